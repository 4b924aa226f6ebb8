//! TCP connecting: one outcome per attempt, on every driver.

mod common;

#[path = "conformance_tcp_connecting/by_name.rs"]
mod by_name;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use common::{Echo, Log, Probe, echo_server, let_others_go_on, read_to_end, round_trip};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{
    ConnectError, ConnectOptions, Factory, Input, ListenOptions, Protocol, Result, TcpStream, Transport,
};

/// An address where nobody listens.
async fn nobody(env: &Env) -> Result<SocketAddr> {
    let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
    listener.close().await;
    Ok(listener.local_addr())
}

/// Counts its calls, and its drop.
struct CountingFactory {
    made: Rc<Cell<usize>>,
    dropped: Rc<Cell<usize>>,
}

impl CountingFactory {
    fn new() -> (Self, Rc<Cell<usize>>, Rc<Cell<usize>>) {
        let (made, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        (CountingFactory { made: Rc::clone(&made), dropped: Rc::clone(&dropped) }, made, dropped)
    }

    fn into_closure(self) -> impl Fn() -> Echo {
        move || {
            self.made.set(self.made.get() + 1);
            Echo
        }
    }
}

impl Drop for CountingFactory {
    fn drop(&mut self) {
        self.dropped.set(self.dropped.get() + 1);
    }
}

/// Asks a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|context| match pin!(&mut *future).poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[test]
fn the_outcome_is_the_transport_of_a_protocol_that_is_connected() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let log = Log::new();
        let probe = log.clone();
        let attempt = env.shard().connect_tcp(addr, move || Probe::new(&probe, |_, _| None));
        assert!(log.seen().is_empty(), "reported before the call returned");
        let transport = attempt.await?;
        assert_eq!(log.seen()[0], "connected");
        transport.write(b"hello")?;
        log.until(|state| state.received == b"hello").await;
        assert_eq!(transport.peer_addr(), Some(addr));
        transport.close();
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn the_clients_addresses_are_numbers_of_the_right_family() {
    on_every_driver(async |env| {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let listener = env.shard().listen_tcp(text, || Echo)?;
            let stream = TcpStream::connect(listener.local_addr()).await?;
            assert_eq!(stream.peer_addr()?, listener.local_addr());
            let local = stream.local_addr()?;
            assert_eq!(local.ip(), listener.local_addr().ip());
            assert!(local.port() != 0 && local.port() != listener.local_addr().port());
        }
        Ok(())
    });
}

#[test]
fn a_refused_attempt_says_so_and_names_the_address() {
    on_every_driver(async |env| {
        let target = nobody(&env).await?;
        let (factory, made, dropped) = CountingFactory::new();
        let error = env.shard().connect_tcp(target, factory.into_closure()).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Refused { addr, .. } if *addr == target), "{error:?}");
        assert_eq!((made.get(), dropped.get()), (0, 1));
        let error = TcpStream::connect(target).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
        Ok(())
    });
}

#[test]
fn text_that_is_no_address_is_an_outcome_too() {
    on_every_driver(async |env| {
        let error = env.shard().connect_tcp("nowhere", || Echo).await.unwrap_err();
        assert!(matches!(error, ConnectError::InvalidAddress(_)), "{error:?}");
        assert!(matches!(TcpStream::connect("").await, Err(ConnectError::InvalidAddress(_))));
        Ok(())
    });
}

#[test]
fn an_attempt_that_gets_no_answer_times_out_once() {
    on_every_driver(async |env| {
        // A full queue answers nobody. On a real loopback the queue is full before the first one is accepted; in
        // the simulation no time at all is too short for some handshakes.
        let after = if env.is_simulated() { Duration::ZERO } else { Duration::from_millis(60) };
        let options = ListenOptions::new().backlog(1);
        let listener = env.shard().listen_tcp_with("127.0.0.1:0", &options, || Echo)?;
        let target = listener.local_addr();
        let options = ConnectOptions::new().timeout(after);
        let mut attempts = Vec::new();
        for _ in 0..20 {
            let (factory, made, dropped) = CountingFactory::new();
            let attempt = env.shard().connect_tcp_with(target, &options, factory.into_closure());
            attempts.push((attempt, made, dropped));
        }
        let begun = env.shard().now();
        let mut timed_out = 0;
        for (attempt, made, dropped) in attempts {
            match attempt.await {
                Ok(transport) => {
                    assert_eq!(made.get(), 1);
                    transport.close();
                }
                Err(ConnectError::TimedOut { addr, after: told }) => {
                    assert_eq!((addr, told), (target.into(), after));
                    assert!(env.shard().now() - begun >= after);
                    assert_eq!(made.get(), 0);
                    timed_out += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
            assert_eq!(dropped.get(), 1, "the factory has done its work");
        }
        assert!(timed_out > 0, "none of 20 timed out");
        Ok(())
    });
}

#[test]
fn an_address_to_connect_from_that_is_in_use_is_an_outcome() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let holder = TcpStream::connect(addr).await?;
        let taken = holder.local_addr()?;
        let options = ConnectOptions::new().bind(taken);
        let attempt = env.shard().connect_tcp_with(addr, &options, || Echo);
        let error = attempt.await.unwrap_err();
        assert!(matches!(&error, ConnectError::Bind { addr, .. } if *addr == taken), "{error:?}");
        Ok(())
    });
}

#[test]
fn connecting_from_an_address_uses_it() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let options = ConnectOptions::new().bind("127.0.0.1:0".parse()?);
        let transport = env.shard().connect_tcp_with(addr, &options, || Echo).await?;
        assert_eq!(transport.local_addr()?.ip(), "127.0.0.1".parse::<std::net::IpAddr>()?);
        Ok(())
    });
}

#[test]
fn a_connection_to_itself_is_a_failure() {
    on_every_driver(async |env| {
        let free = nobody(&env).await?;
        let options = ConnectOptions::new().bind(free);
        let outcome = env.shard().connect_tcp_with(free, &options, || Echo).await;
        assert!(outcome.is_err(), "connected to itself");
        Ok(())
    });
}

#[test]
fn a_cancelled_attempt_fails_once_and_makes_nothing() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        for wait_a_turn in [false, true] {
            let (factory, made, dropped) = CountingFactory::new();
            let mut attempt = env.shard().connect_tcp(addr, factory.into_closure());
            if wait_a_turn && poll_once(&mut attempt).await.is_some() {
                continue;
            }
            attempt.cancel();
            attempt.cancel();
            assert!(matches!(attempt.await, Err(ConnectError::Cancelled)));
            let_others_go_on(&env).await?;
            assert_eq!((made.get(), dropped.get()), (0, 1));
        }
        Ok(())
    });
}

#[test]
fn cancelling_after_the_outcome_changes_nothing() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let log = Log::new();
        let probe = log.clone();
        let attempt = env.shard().connect_tcp(addr, move || Probe::new(&probe, |_, _| None));
        log.saw("connected").await;
        attempt.cancel();
        let transport = attempt.await?;
        transport.write(b"alive")?;
        log.until(|state| state.received == b"alive").await;
        let refused = env.shard().connect_tcp(nobody(&env).await?, || Echo);
        let_others_go_on(&env).await?;
        refused.cancel();
        assert!(matches!(refused.await, Err(ConnectError::Refused { .. })));
        Ok(())
    });
}

#[test]
fn on_failure_is_called_once_and_from_a_later_turn() {
    on_every_driver(async |env| {
        let refusing = nobody(&env).await?.to_string();
        for target in [refusing.as_str(), "no address"] {
            let log = Log::new();
            let noted = log.clone();
            let attempt = env.shard().connect_tcp(target, || Echo);
            attempt.on_failure(move |shard, error| {
                assert!(shard.running());
                let told = matches!(error, ConnectError::Refused { .. } | ConnectError::InvalidAddress(_));
                noted.note(if told { "failed" } else { "failed strangely" });
            });
            assert!(log.seen().is_empty(), "called before on_failure returned");
            log.until(|state| !state.seen.is_empty()).await;
            let_others_go_on(&env).await?;
            assert_eq!(log.seen(), ["failed"]);
        }
        Ok(())
    });
}

#[test]
fn on_failure_of_an_outcome_that_is_already_there_is_called_too() {
    on_every_driver(async |env| {
        let attempt = env.shard().connect_tcp(nobody(&env).await?, || Echo);
        let_others_go_on(&env).await?;
        let log = Log::new();
        let noted = log.clone();
        attempt.on_failure(move |_, _| noted.note("failed"));
        assert!(log.seen().is_empty(), "called before on_failure returned");
        log.saw("failed").await;
        Ok(())
    });
}

#[test]
fn an_attempt_with_on_failure_goes_on_by_itself_and_success_is_no_failure() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let log = Log::new();
        let (probe, noted) = (log.clone(), log.clone());
        env.shard()
            .connect_tcp(addr, move || Probe::new(&probe, |_, _| None))
            .on_failure(move |_, _| noted.note("failed"));
        let transport = log.transport().await;
        transport.write(b"hello")?;
        log.until(|state| state.received == b"hello").await;
        transport.close();
        log.ended().await;
        assert_eq!(log.count("failed"), 0);
        Ok(())
    });
}

#[test]
fn a_new_attempt_may_begin_where_the_last_one_failed() {
    on_every_driver(async |env| {
        let (bad, good) = (nobody(&env).await?, echo_server(&env)?);
        let log = Log::new();
        let probe = log.clone();
        env.shard().connect_tcp(bad, || Echo).on_failure(move |shard, _| {
            drop(shard.connect_tcp(bad, || Echo));
            let again = shard.connect_tcp(good, move || Probe::new(&probe, |_, _| None));
            again.on_failure(|_, error| panic!("{error:?}"));
        });
        log.saw("connected").await;
        Ok(())
    });
}

#[test]
fn dropping_an_attempt_gives_it_up() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let (factory, made, dropped) = CountingFactory::new();
        drop(env.shard().connect_tcp(addr, factory.into_closure()));
        assert_eq!(dropped.get(), 1);
        let_others_go_on(&env).await?;
        assert_eq!(made.get(), 0);
        Ok(())
    });
}

#[test]
fn dropping_a_streams_attempt_closes_it_however_far_it_is() {
    on_every_driver(async |env| {
        let log = Log::new();
        let listener = common::listen(&env, &log, |_, _| None)?;
        for turns in 0..4 {
            let mut attempt = Box::pin(TcpStream::connect(listener.local_addr()));
            assert!(poll_once(&mut attempt).await.is_none(), "connected before the call returned");
            for _ in 0..turns {
                shardwise::yield_now().await;
            }
            drop(attempt);
        }
        let_others_go_on(&env).await?;
        // What the server has seen of it has ended; the test's own look for leaks covers the client.
        let (begun, ended) = (log.count("connected"), log.count("disconnected"));
        assert_eq!(begun, ended);
        Ok(())
    });
}

#[test]
fn a_factory_that_refuses_or_panics_fails_its_attempt_alone() {
    struct Panics;
    impl Factory<Panics> for Panics {
        fn build(&mut self, _incoming: &shardwise::Incoming<'_>) -> Option<Box<dyn Protocol>> {
            panic!("as the test wants it");
        }
    }
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let refused = env.shard().connect_tcp(addr, || None::<Echo>).await;
        assert!(matches!(refused, Err(ConnectError::NoProtocol)), "{refused:?}");
        let panicked = env.shard().connect_tcp(addr, Panics).await;
        assert!(matches!(panicked, Err(ConnectError::NoProtocol)), "{panicked:?}");
        round_trip(&mut TcpStream::connect(addr).await?, b"others go on").await?;
        Ok(())
    });
}

#[test]
fn a_factory_whose_drop_panics_harms_nobody() {
    struct PanicsOnDrop;
    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("as the test wants it");
        }
    }
    on_every_driver(async |env| {
        let bad = nobody(&env).await?;
        let good = echo_server(&env)?;
        for addr in [bad, good] {
            let trap = PanicsOnDrop;
            let attempt = env.shard().connect_tcp(addr, move || {
                let _ = &trap;
                Echo
            });
            assert_eq!(attempt.await.is_ok(), addr == good);
        }
        assert_eq!(env.handle().report()[0].panics, 2);
        round_trip(&mut TcpStream::connect(good).await?, b"unharmed").await?;
        Ok(())
    });
}

#[test]
fn reconnecting_from_disconnected_makes_a_new_connection() {
    struct Again {
        addr: SocketAddr,
        left: Rc<RefCell<usize>>,
        log: Log,
    }
    impl Protocol for Again {
        fn connected(&mut self, transport: &Transport) -> Result<()> {
            transport.close();
            Ok(())
        }
        fn data_received(&mut self, _transport: &Transport, _input: &mut Input<'_>) -> Result<()> {
            Ok(())
        }
        fn disconnected(&mut self, _reason: shardwise::CloseReason) {
            *self.left.borrow_mut() -= 1;
            if *self.left.borrow() == 0 {
                self.log.note("enough");
                return;
            }
            let next = Again { addr: self.addr, left: Rc::clone(&self.left), log: self.log.clone() };
            let next = RefCell::new(Some(next));
            shardwise::Shard::current()
                .connect_tcp(self.addr, move || next.borrow_mut().take())
                .on_failure(|_, error| panic!("{error:?}"));
        }
    }
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let log = Log::new();
        let first = Again { addr, left: Rc::new(RefCell::new(5)), log: log.clone() };
        let first = RefCell::new(Some(first));
        env.shard().connect_tcp(addr, move || first.borrow_mut().take()).await?;
        log.saw("enough").await;
        Ok(())
    });
}

#[test]
fn many_attempts_at_once_all_have_their_outcome() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        let attempts: Vec<_> =
            (0..100).map(|_| env.shard().spawn(async move { TcpStream::connect(addr).await })).collect();
        for (number, attempt) in attempts.into_iter().enumerate() {
            let mut stream = attempt.await??;
            round_trip(&mut stream, &number.to_be_bytes()).await?;
            stream.shutdown_write();
            assert!(read_to_end(&mut stream).await?.is_empty());
        }
        Ok(())
    });
}
