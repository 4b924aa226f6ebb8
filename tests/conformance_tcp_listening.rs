//! TCP listening: each test's name is a promise of the contract, kept on every driver.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Call, Echo, Log, Probe, echo_server, listen, read_to_end, round_trip};
use shardwise::testing::on_every_driver;
use shardwise::{
    Incoming, Input, ListenError, Protocol, Result, Runtime, Shard, ShardId, TcpStream, Transport,
};

/// Answers everything with the number of its shard, and checks that it never leaves it.
struct WhereAmI {
    shard: ShardId,
    thread: std::thread::ThreadId,
    ends: &'static AtomicUsize,
}

impl WhereAmI {
    fn new(shard: ShardId, ends: &'static AtomicUsize) -> Self {
        WhereAmI { shard, thread: std::thread::current().id(), ends }
    }

    fn check(&self) {
        assert_eq!(Shard::current().id(), self.shard);
        assert_eq!(std::thread::current().id(), self.thread);
    }
}

impl Protocol for WhereAmI {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        self.check();
        assert_eq!(transport.shard().id(), self.shard);
        Ok(())
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.check();
        for _ in input.take() {
            transport.write(&[self.shard.index() as u8])?;
        }
        Ok(())
    }

    fn disconnected(&mut self, _reason: shardwise::CloseReason) {
        self.check();
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn port_zero_is_resolved_once_for_both_shards() {
    on_every_driver(async |env| {
        let here = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let there = env
            .handle()
            .call(ShardId::new(1), |shard: &Shard| {
                shard.listen_tcp("127.0.0.1:0", || Echo).map(|listener| listener.local_addr())
            })
            .await??;
        assert_ne!(here.local_addr().port(), 0);
        assert_eq!(here.local_addr(), there);
        for _ in 0..8 {
            round_trip(&mut TcpStream::connect(there).await?, b"hello").await?;
        }
        Ok(())
    });
}

#[test]
fn both_ends_see_the_same_addresses_on_v4_and_v6() {
    on_every_driver(async |env| {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let seen = Rc::new(RefCell::new(Vec::new()));
            let log = Log::new();
            let listener = {
                let (seen, log) = (Rc::clone(&seen), log.clone());
                env.shard().listen_tcp(text, move |incoming: &Incoming<'_>| {
                    seen.borrow_mut().push((incoming.peer_addr(), incoming.local_addr(), incoming.shard()));
                    Probe::new(&log, |_, _| None)
                })?
            };
            let addr = listener.local_addr();
            assert_eq!(addr.is_ipv6(), text.starts_with('['));
            let client = TcpStream::connect(addr).await?;
            let transport = log.transport().await;
            assert_eq!(client.peer_addr()?, addr);
            assert_eq!(*seen.borrow(), [(Some(client.local_addr()?), Some(addr), env.shard().id())]);
            assert_eq!(transport.peer_addr(), Some(client.local_addr()?));
            assert_eq!(transport.local_addr()?, addr);
        }
        Ok(())
    });
}

#[test]
fn text_that_is_no_address_is_refused_at_the_call() {
    on_every_driver(async |env| {
        for text in ["localhost:80", "127.0.0.1", "", "127.0.0.1:65536"] {
            let error = env.shard().listen_tcp(text, || Echo).unwrap_err();
            assert!(matches!(error, ListenError::InvalidAddress(_)), "{text}: {error:?}");
        }
        Ok(())
    });
}

#[test]
fn the_same_shard_cannot_listen_twice_on_one_address() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let taken = listener.local_addr();
        let error = env.shard().listen_tcp(taken, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { addr } if *addr == taken), "{error:?}");
        round_trip(&mut TcpStream::connect(taken).await?, b"the first one is unharmed").await?;
        Ok(())
    });
}

#[test]
fn an_address_that_overlaps_one_in_use_is_in_use() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let wide = format!("0.0.0.0:{}", listener.local_addr().port());
        let error = env.shard().listen_tcp(wide.as_str(), || Echo).unwrap_err();
        assert!(
            matches!(&error, ListenError::AddressInUse { addr } if addr.to_string() == wide),
            "{error:?}"
        );
        round_trip(&mut TcpStream::connect(listener.local_addr()).await?, b"unharmed").await?;
        Ok(())
    });
}

/// On mio alone: two simulations share no network.
#[test]
fn a_second_runtime_is_told_that_the_address_is_in_use() {
    static ADDR: Mutex<Option<std::net::SocketAddr>> = Mutex::new(None);
    let first = Runtime::new().shards(2).pin(false);
    let first = first
        .start(async |shard: Shard| {
            let addr = shard.listen_tcp("127.0.0.1:0", || Echo)?.local_addr();
            *ADDR.lock().unwrap() = Some(addr);
            Ok(())
        })
        .unwrap();
    let taken = ADDR.lock().unwrap().unwrap();
    let outcome = Runtime::new().shards(2).pin(false).start(async move |shard: Shard| {
        shard.listen_tcp(taken, || Echo)?;
        Ok(())
    });
    let message = outcome.map(drop).unwrap_err().to_string();
    assert!(message.contains(&taken.to_string()), "{message}");
    let answer = first.handle().blocking_call_async_from_thread(ShardId::new(0), async move |_| {
        let mut stream = TcpStream::connect(taken).await?;
        round_trip(&mut stream, b"the first runtime is unharmed").await
    });
    answer.unwrap().unwrap();
    first.stop().unwrap();
    first.join().unwrap();
    let third = Runtime::new().shards(2).pin(false).start(async move |shard: Shard| {
        shard.listen_tcp(taken, || Echo)?;
        Ok(())
    });
    third.expect("the address is free once the first runtime has stopped").stop().unwrap();
}

#[test]
fn a_closed_listener_can_be_opened_again_at_once() {
    on_every_driver(async |env| {
        let mut listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let addr = listener.local_addr();
        for _ in 0..10 {
            let mut kept = TcpStream::connect(addr).await?;
            round_trip(&mut kept, b"before").await?;
            listener.close().await;
            listener.close().await;
            assert!(TcpStream::connect(addr).await.is_err(), "nobody listens");
            round_trip(&mut kept, b"an accepted connection lives on").await?;
            listener = env.shard().listen_tcp(addr, || Echo)?;
            round_trip(&mut TcpStream::connect(addr).await?, b"after").await?;
        }
        Ok(())
    });
}

#[test]
fn closing_on_one_shard_closes_the_group_on_all() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let addr = listener.local_addr();
        let there = env.handle().call(ShardId::new(1), move |shard: &Shard| {
            shard.listen_tcp(addr, || Echo).map(drop).map_err(|error| error.to_string())
        });
        there.await??;
        // Closed by the shard that joined.
        let closed = env.handle().call_async(ShardId::new(1), async move |shard: Shard| {
            let again = shard.listen_tcp(addr, || Echo);
            assert!(matches!(again, Err(ListenError::AddressInUse { .. })));
        });
        closed.await?;
        listener.close().await;
        for _ in 0..8 {
            assert!(TcpStream::connect(addr).await.is_err(), "no member is left");
        }
        // The other shard founds the next group.
        let founded = env.handle().call(ShardId::new(1), move |shard: &Shard| {
            shard.listen_tcp(addr, || Echo).map(drop).map_err(|error| error.to_string())
        });
        founded.await??;
        round_trip(&mut TcpStream::connect(addr).await?, b"served by the other shard").await?;
        Ok(())
    });
}

#[test]
fn connections_are_spread_and_each_stays_on_one_thread() {
    static ENDS: AtomicUsize = AtomicUsize::new(0);
    on_every_driver(async |env| {
        ENDS.store(0, Ordering::Relaxed);
        let here = env.shard().id();
        let listener = env.shard().listen_tcp("127.0.0.1:0", move || WhereAmI::new(here, &ENDS))?;
        let addr = listener.local_addr();
        let there = env.handle().call(ShardId::new(1), move |shard: &Shard| {
            let there = shard.id();
            shard.listen_tcp(addr, move || WhereAmI::new(there, &ENDS)).map(drop)
        });
        there.await??;
        let mut streams = Vec::new();
        let mut shards = BTreeSet::new();
        for _ in 0..40 {
            let mut stream = TcpStream::connect(addr).await?;
            let mut number = [9];
            for _ in 0..3 {
                stream.write_all(b"?").await?;
                let before = number;
                stream.read_exact(&mut number).await?;
                assert!(before == [9] || before == number, "it has moved");
            }
            shards.insert(number[0]);
            streams.push(stream);
        }
        assert_eq!(shards, BTreeSet::from([0, 1]), "40 connections on one of two shards");
        for mut stream in streams {
            stream.shutdown_write();
            assert!(read_to_end(&mut stream).await?.is_empty());
        }
        let panics: u64 = env.handle().report().iter().map(|report| report.panics).sum();
        assert_eq!(panics, 0, "a connection was called on another thread");
        Ok(())
    });
}

#[test]
fn a_factory_that_gives_none_refuses_that_connection_alone() {
    on_every_driver(async |env| {
        let asked = Rc::new(Cell::new(0));
        let listener = {
            let asked = Rc::clone(&asked);
            env.shard().listen_tcp("127.0.0.1:0", move || {
                asked.set(asked.get() + 1);
                (asked.get() % 2 == 0).then_some(Echo)
            })?
        };
        for _ in 0..4 {
            let mut refused = TcpStream::connect(listener.local_addr()).await?;
            assert!(!matches!(refused.read_chunk().await, Ok(Some(_))));
            round_trip(&mut TcpStream::connect(listener.local_addr()).await?, b"welcome").await?;
        }
        assert_eq!(asked.get(), 8);
        Ok(())
    });
}

#[test]
fn a_factory_that_panics_costs_that_connection_alone() {
    on_every_driver(async |env| {
        let asked = Cell::new(0);
        let listener = env.shard().listen_tcp("127.0.0.1:0", move || {
            asked.set(asked.get() + 1);
            assert!(asked.get() != 2, "as the test wants it");
            Echo
        })?;
        let mut before = TcpStream::connect(listener.local_addr()).await?;
        round_trip(&mut before, b"before").await?;
        let mut unlucky = TcpStream::connect(listener.local_addr()).await?;
        assert!(!matches!(unlucky.read_chunk().await, Ok(Some(_))));
        round_trip(&mut before, b"still here").await?;
        round_trip(&mut TcpStream::connect(listener.local_addr()).await?, b"after").await?;
        assert_eq!(env.handle().report()[0].panics, 1);
        Ok(())
    });
}

#[test]
fn a_connection_accepted_before_the_close_is_served() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let addr = listener.local_addr();
        // None of them can have been accepted when the listener closes: this task has not yielded.
        let attempts: Vec<_> = (0..50)
            .map(|_| {
                let log = Log::new();
                let probe = log.clone();
                (log, env.shard().connect_tcp(addr, move || Probe::new(&probe, |_, _| None)))
            })
            .collect();
        let closed = listener.close();
        let mut served = 0;
        for (log, attempt) in attempts {
            let Ok(transport) = attempt.await else { continue };
            transport.write(b"anybody there?")?;
            log.until(|state| state.received == b"anybody there?" || state.reason.is_some()).await;
            assert_eq!(log.look(|state| state.reason.clone()), None, "a connection was lost in the queue");
            served += 1;
            transport.close();
        }
        // A real loopback has finished every handshake within `connect`.
        assert!(served == 50 || env.is_simulated(), "{served} were served");
        closed.await;
        Ok(())
    });
}

#[test]
fn a_listener_may_be_closed_by_its_own_factory_and_its_connections() {
    on_every_driver(async |env| {
        let slot: Rc<RefCell<Option<shardwise::Listener>>> = Rc::default();
        let listener = {
            let slot = Rc::clone(&slot);
            env.shard().listen_tcp("127.0.0.1:0", move || {
                if let Some(listener) = slot.borrow_mut().take() {
                    drop(listener.close());
                }
                Echo
            })?
        };
        *slot.borrow_mut() = Some(listener.clone());
        let mut stream = TcpStream::connect(listener.local_addr()).await?;
        round_trip(&mut stream, b"closed behind me").await?;
        listener.close().await;
        round_trip(&mut stream, b"and I am here").await?;
        assert!(TcpStream::connect(listener.local_addr()).await.is_err());
        Ok(())
    });
}

#[test]
fn several_listeners_of_one_shard_are_independent() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let log = Log::new();
        let other = listen(&env, &log, |call, transport| match call {
            Call::Connected => Some(transport.write(b"the other").map(drop).map_err(Into::into)),
            _ => None,
        })?;
        assert_ne!(addr, other.local_addr());
        let mut stream = TcpStream::connect(other.local_addr()).await?;
        let mut hello = [0; 9];
        stream.read_exact(&mut hello).await?;
        assert_eq!(&hello, b"the other");
        other.close().await;
        round_trip(&mut TcpStream::connect(addr).await?, b"still open").await?;
        Ok(())
    });
}
