//! What futures do with the wakers they are given: kept once for each wait, given back when it is given up, and cloned where
//! a waker may come back to the shard. A waker is other people's code.
#![allow(unsafe_code, reason = "a waker that does something when it is cloned is made by hand")]

mod common;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};

use common::Echo;
use shardwise::testing::on_every_driver;
use shardwise::{AsyncFd, ClientService, TcpStream, UdpSocket};

struct Idle;

impl Wake for Idle {
    fn wake(self: Arc<Self>) {}
}

/// Polls a new future again and again, each with a waker of its own; says how many of those are still held afterwards.
fn held_after_giving_up<F: Future>(mut make: impl FnMut() -> F) -> usize {
    let idle = Arc::new(Idle);
    for _ in 0..1000 {
        let waker = Waker::from(Arc::clone(&idle));
        // A new allocation each, so that no two wake the same.
        let waker = Waker::from(Arc::new(Forwards(waker)));
        assert!(pin!(make()).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    Arc::strong_count(&idle) - 1
}

struct Forwards(#[allow(dead_code, reason = "held, to be counted")] Waker);

impl Wake for Forwards {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_wait_that_is_given_up_leaves_no_waker_behind() {
    on_every_driver(async |env| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let held = held_after_giving_up(|| async { socket.recv_from(&mut [0; 8]).await });
        assert_eq!(held, 0, "waits for a datagram");

        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let service = ClientService::builder(listener.local_addr())?.factory(|| Echo).start(env.shard());
        service.when_connected(None).await?;
        assert_eq!(held_after_giving_up(|| service.stop()), 0, "waits for a stop");
        service.stop().await;

        if !env.is_simulated() {
            let (reader, _writer) = std::io::pipe()?;
            let fd = AsyncFd::new(reader)?;
            assert_eq!(held_after_giving_up(|| async { fd.readable().await }), 0, "waits for a descriptor");
        }
        Ok(())
    });
}

/// A waker that does something when it is cloned. Made for tests whose future is polled once.
fn waker_that<F: Fn() + 'static>(act: F) -> Waker {
    struct Table<F>(std::marker::PhantomData<F>);
    impl<F: Fn() + 'static> Table<F> {
        const TABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                // SAFETY: made by `Rc::into_raw` below, and alive: whoever clones holds one.
                let act = unsafe { std::mem::ManuallyDrop::new(Rc::from_raw(data.cast::<F>())) };
                act();
                RawWaker::new(Rc::into_raw(Rc::clone(&act)).cast(), &Self::TABLE)
            },
            // SAFETY: as above; the one that wakes is given up.
            |data| drop(unsafe { Rc::from_raw(data.cast::<F>()) }),
            |_| {},
            // SAFETY: as above.
            |data| drop(unsafe { Rc::from_raw(data.cast::<F>()) }),
        );
    }
    let data = Rc::into_raw(Rc::new(act));
    // SAFETY: the table treats the data as what it is, a counted reference; it never leaves this thread.
    unsafe { Waker::from_raw(RawWaker::new(data.cast(), &Table::<F>::TABLE)) }
}

/// Polls once, by a waker that does the same when it is cloned.
fn poll_once<F: Future>(future: F, act: impl Fn() + 'static) -> Poll<F::Output> {
    let waker = waker_that(act);
    pin!(future).poll(&mut Context::from_waker(&waker))
}

#[test]
fn a_waker_may_use_the_very_thing_that_clones_it() {
    on_every_driver(async |env| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let transport = socket.transport().clone();
        assert!(poll_once(socket.recv_from(&mut [0; 8]), move || drop(transport.close())).is_pending());

        // The lock of its group is not held either.
        let other = UdpSocket::bind("127.0.0.1:0")?;
        let transport = other.transport().clone();
        assert!(
            poll_once(other.transport().close(), move || {
                let mut again = pin!(transport.close());
                assert!(again.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            })
            .is_pending()
        );

        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let mut stream = TcpStream::connect(listener.local_addr()).await?;
        let transport = stream.transport().clone();
        assert!(poll_once(stream.read_chunk(), move || transport.abort()).is_pending());

        let service = ClientService::builder(listener.local_addr())?.factory(|| Echo).start(env.shard());
        service.when_connected(None).await?;
        let same = service.clone();
        assert!(
            poll_once(service.stop(), move || {
                let mut again = pin!(same.stop());
                assert!(again.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            })
            .is_pending()
        );
        service.stop().await;

        if !env.is_simulated() {
            let (reader, _writer) = std::io::pipe()?;
            let fd = Rc::new(AsyncFd::new(reader)?);
            let same = Rc::clone(&fd);
            assert!(
                poll_once(fd.readable(), move || {
                    let _ = poll_once(same.readable(), || {});
                })
                .is_pending()
            );
        }
        Ok(())
    });
}
