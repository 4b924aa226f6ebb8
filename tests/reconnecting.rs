//! A connection that is kept up: brought up again after waits that grow, and ended when it is to end.

mod common;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Call, Echo, Log, Probe, let_others_go_on, read_to_end, round_trip};
use shardwise::testing::{Env, Names, Simulation, on_every_driver};
use shardwise::{
    Backoff, ClientError, ClientFailure, ClientService, ClientState, ConnectError, ConnectOptions, Input,
    Listener, Protocol, Result, Shard, TcpStream, Transport,
};

const MS: Duration = Duration::from_millis(1);
/// Never comes, in any time a test takes.
const HOUR: Duration = Duration::from_secs(3600);

/// Tries again at once, nearly.
fn soon() -> Backoff {
    Backoff::new(MS, 2 * MS)
}

/// Waits so long that somebody must have ended the wait.
fn never() -> Backoff {
    Backoff::new(HOUR, HOUR).jitter(false)
}

fn probe(log: &Log) -> impl Fn() -> Probe + use<> {
    let log = log.clone();
    move || Probe::new(&log, |_, _| None)
}

/// An address where nobody listens.
async fn nobody(env: &Env) -> Result<SocketAddr> {
    let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
    listener.close().await;
    Ok(listener.local_addr())
}

/// Keeps the streams of its clients open until told to let go of the first.
#[derive(Clone, Default)]
struct Clients {
    streams: Rc<RefCell<Vec<Transport>>>,
    served: Rc<Cell<usize>>,
    arrived: Log,
}

impl Clients {
    fn listen(&self, env: &Env) -> Result<Listener> {
        self.listen_at(env, "127.0.0.1:0".parse()?)
    }

    fn listen_at(&self, env: &Env, addr: SocketAddr) -> Result<Listener> {
        let clients = self.clone();
        let listener = env.shard().serve_tcp(addr, async move |mut stream: TcpStream| {
            clients.streams.borrow_mut().push(stream.transport().clone());
            clients.served.set(clients.served.get() + 1);
            clients.arrived.note("arrived");
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        Ok(listener)
    }

    /// Waits for the client of this number, counted from 1, over all time.
    async fn until(&self, number: usize) {
        self.arrived.until(|state| state.seen.len() >= number).await;
    }

    fn hang_up(&self) {
        let streams = self.streams.take();
        streams.iter().for_each(Transport::close);
    }
}

#[test]
fn a_connection_that_ends_is_brought_up_again() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let made = Rc::new(Cell::new(0));
        let count = Rc::clone(&made);
        let service = ClientService::builder(listener.local_addr())?
            .backoff(soon())
            .factory(move || {
                count.set(count.get() + 1);
                Echo
            })
            .start(env.shard());
        for number in 1..=4 {
            clients.until(number).await;
            assert_eq!(service.when_connected(None).await?.peer_addr(), Some(listener.local_addr()));
            assert_eq!(service.state(), ClientState::Connected);
            clients.hang_up();
        }
        clients.until(5).await;
        assert_eq!(made.get(), 5, "a protocol for each connection");
        service.stop().await;
        assert_eq!(service.state(), ClientState::Stopped);
        Ok(())
    });
}

#[test]
fn a_task_is_run_for_each_connection_in_the_async_style() {
    on_every_driver(async |env| {
        let addr = common::echo_server(&env)?;
        let log = Log::new();
        let noted = log.clone();
        let service = ClientService::builder(addr)?
            .backoff(soon())
            .handler(async move |mut stream: TcpStream| {
                round_trip(&mut stream, b"hello").await?;
                noted.note("served");
                if noted.count("served") == 2 {
                    return Err("as the test wants it".into());
                }
                Ok(())
            })
            .start(env.shard());
        log.until(|state| state.seen.len() >= 4).await;
        service.stop().await;
        let seen = log.seen().len();
        let_others_go_on(&env).await?;
        assert_eq!(log.seen().len(), seen, "it has stopped");
        Ok(())
    });
}

#[test]
fn waits_grow_with_the_failures_in_a_row_up_to_the_limit() {
    on_every_driver(async |env| {
        let unit = if env.is_simulated() { Duration::from_secs(1) } else { 4 * MS };
        let addr = nobody(&env).await?;
        let service = ClientService::builder(addr)?
            .backoff(Backoff::new(unit, 8 * unit).jitter(false))
            .factory(|| Echo)
            .start(env.shard());
        let mut last = None::<Instant>;
        for (number, wait) in [0, 1, 2, 4, 8, 8].into_iter().enumerate() {
            let error = service.when_connected(1).await.unwrap_err();
            let now = env.shard().now();
            if let Some(last) = last {
                let took = now - last;
                assert!(took >= wait * unit, "{number}: {took:?}");
                assert!(!env.is_simulated() || took < wait * unit + 5 * MS, "{number}: {took:?}");
            }
            last = Some(now);
            let ClientError::Failed { failures: 1, last } = error else { panic!("{error:?}") };
            assert!(matches!(&*last, ClientFailure::Connect(ConnectError::Refused { .. })), "{last:?}");
            assert_eq!(service.failures(), number as u32 + 1);
        }
        service.stop().await;
        Ok(())
    });
}

#[test]
fn a_connection_that_stood_makes_the_failures_forgotten() {
    on_every_driver(async |env| {
        let addr = nobody(&env).await?;
        let service = ClientService::builder(addr)?.backoff(soon()).factory(|| Echo).start(env.shard());
        let error = service.when_connected(3).await.unwrap_err();
        let ClientError::Failed { failures: 3, last } = &error else { panic!("{error:?}") };
        let ClientFailure::Connect(ConnectError::Refused { source, .. }) = &**last else {
            panic!("{last:?}")
        };
        assert_eq!(
            error.to_string(),
            format!("no connection after 3 attempts; the last one: cannot connect to {addr}: {source}")
        );
        let clients = Clients::default();
        let _listener = clients.listen_at(&env, addr)?;
        service.when_connected(None).await?;
        assert_eq!(service.failures(), 0);
        clients.until(1).await;
        clients.hang_up();
        clients.until(2).await;
        service.when_connected(1).await?;
        assert_eq!(service.failures(), 0, "an end is no failure");
        service.stop().await;
        Ok(())
    });
}

#[test]
fn waiters_fail_each_after_its_own_number_of_failures() {
    on_every_driver(async |env| {
        let addr = nobody(&env).await?;
        let service = ClientService::builder(addr)?.backoff(soon()).factory(|| Echo).start(env.shard());
        let (patient, two) = (service.when_connected(None), service.when_connected(2));
        let zero = service.when_connected(0).await.unwrap_err();
        assert!(matches!(zero, ClientError::Failed { failures: 1, .. }), "at least one: {zero:?}");
        // Counted from when it was asked for.
        let one_more = service.when_connected(1);
        assert!(matches!(two.await, Err(ClientError::Failed { failures: 2, .. })));
        assert!(matches!(one_more.await, Err(ClientError::Failed { failures: 1, .. })));
        drop(service.when_connected(5));
        service.stop().await;
        assert!(matches!(patient.await, Err(ClientError::Stopped)));
        assert!(matches!(service.when_connected(None).await, Err(ClientError::Stopped)));
        Ok(())
    });
}

#[test]
fn stopping_ends_a_wait_at_once() {
    on_every_driver(async |env| {
        let service =
            ClientService::builder(nobody(&env).await?)?.backoff(never()).factory(|| Echo).start(env.shard());
        service.when_connected(1).await.unwrap_err();
        env.shard().sleep(MS).await;
        assert_eq!(service.state(), ClientState::Waiting);
        service.stop().await;
        assert_eq!(service.state(), ClientState::Stopped);
        // Its timer is gone, as the look for leaks shows.
        Ok(())
    });
}

#[test]
fn stopping_gives_up_an_attempt_wherever_it_is() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        env.names().silence("silent.test");
        let silent =
            ClientService::builder("silent.test:80")?.backoff(never()).factory(|| Echo).start(env.shard());
        let log = Log::new();
        let preparing = ClientService::builder(listener.local_addr())?
            .backoff(never())
            .factory(probe(&log))
            .prepare(async |_| pending().await)
            .start(env.shard());
        let stream = ClientService::builder(listener.local_addr())?
            .backoff(never())
            .handler(async |_| Ok(()))
            .prepare(async |_| pending().await)
            .start(env.shard());
        clients.until(2).await;
        log.saw("connected").await;
        for service in [silent, preparing, stream] {
            assert_eq!(service.state(), ClientState::Connecting);
            service.stop().await;
            assert_eq!(service.state(), ClientState::Stopped);
        }
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn stopping_closes_the_connection_and_waits_for_its_end() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let log = Log::new();
        let service = ClientService::builder(listener.local_addr())?.factory(probe(&log)).start(env.shard());
        service.when_connected(None).await?.write(b"the last words")?;
        service.stop().await;
        assert_eq!(log.ended().await, "Closed");
        service.stop().await;
        assert_eq!(service.state(), ClientState::Stopped);
        Ok(())
    });
}

#[test]
fn a_task_finds_its_connection_closed_and_is_waited_for() {
    on_every_driver(async |env| {
        let addr = common::echo_server(&env)?;
        let log = Log::new();
        let noted = log.clone();
        let service = ClientService::builder(addr)?
            .handler(async move |mut stream: TcpStream| {
                noted.note("began");
                // The end of input, or an error: it is over in any case.
                let _ = read_to_end(&mut stream).await;
                Shard::current().sleep(5 * MS).await;
                noted.note("ended");
                Ok(())
            })
            .start(env.shard());
        log.saw("began").await;
        service.stop().await;
        assert_eq!(log.seen(), ["began", "ended"]);
        Ok(())
    });
}

#[test]
fn a_service_that_was_stopped_can_be_started_again() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let service = ClientService::builder(listener.local_addr())?
            .backoff(never())
            .factory(|| Echo)
            .start(env.shard());
        for number in 1..=3 {
            service.start();
            clients.until(number).await;
            service.when_connected(None).await?;
            service.start();
            assert_eq!(service.state(), ClientState::Connected, "starting twice changes nothing");
            service.stop().await;
        }
        // Started before the stop had any effect: it just goes on.
        service.start();
        service.when_connected(None).await?;
        let stopping = service.stop();
        service.start();
        stopping.await;
        assert_eq!(service.state(), ClientState::Connected);
        let_others_go_on(&env).await?;
        assert_eq!(clients.served.get(), 4);
        service.stop().await;
        Ok(())
    });
}

#[test]
fn a_service_started_while_it_disconnects_connects_again_after_the_end() {
    on_every_driver(async |env| {
        let addr = common::echo_server(&env)?;
        let log = Log::new();
        let noted = log.clone();
        let service = ClientService::builder(addr)?
            .backoff(never())
            .handler(async move |mut stream: TcpStream| {
                noted.note("began");
                let _ = read_to_end(&mut stream).await;
                noted.saw("let go").await;
                noted.note("ended");
                Ok(())
            })
            .start(env.shard());
        log.saw("began").await;
        let stopping = service.stop();
        env.shard().sleep(5 * MS).await;
        assert_eq!(service.state(), ClientState::Disconnecting);
        assert!(matches!(service.when_connected(None).await, Err(ClientError::Stopped)));
        service.start();
        assert_eq!(service.state(), ClientState::Restarting);
        let again = service.when_connected(None);
        log.note("let go");
        stopping.await;
        // Far longer than it takes, and far shorter than the wait there would be.
        env.shard().timeout(Duration::from_secs(10), again).await??;
        log.until(|state| state.seen.iter().filter(|name| **name == "began").count() == 2).await;
        assert_eq!(log.seen(), ["began", "let go", "ended", "began"], "never two at a time, and no wait");
        service.stop().await;
        Ok(())
    });
}

/// Connections of a protocol: how many there have been, how many are open.
#[derive(Clone, Default)]
struct Tally {
    begun: Rc<Cell<usize>>,
    open: Rc<Cell<usize>>,
}

impl Tally {
    fn factory(&self) -> impl Fn() -> Tallied + use<> {
        let tally = self.clone();
        move || {
            tally.begun.set(tally.begun.get() + 1);
            tally.open.set(tally.open.get() + 1);
            Tallied { tally: tally.clone() }
        }
    }

    fn counts(&self) -> (usize, usize) {
        (self.begun.get(), self.open.get())
    }
}

struct Tallied {
    tally: Tally,
}

impl Protocol for Tallied {
    fn data_received(&mut self, _transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        input.take();
        Ok(())
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        self.tally.open.set(self.tally.open.get() - 1);
    }
}

#[test]
fn preparing_that_fails_counts_as_a_failed_attempt_and_closes_the_connection() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let tally = Tally::default();
        let tries = Rc::new(Cell::new(0));
        let count = Rc::clone(&tries);
        let service = ClientService::builder(listener.local_addr())?
            .backoff(soon())
            .factory(tally.factory())
            .prepare(async move |transport: Transport| {
                transport.write(b"login")?;
                count.set(count.get() + 1);
                if count.get() < 3 { Err("wrong password".into()) } else { Ok(()) }
            })
            .start(env.shard());
        let error = service.when_connected(1).await.unwrap_err();
        assert_eq!(error.to_string(), "preparing the connection failed: wrong password");
        service.when_connected(None).await?;
        assert_eq!((tries.get(), service.failures()), (3, 0));
        let_others_go_on(&env).await?;
        assert_eq!(tally.counts(), (3, 1), "those that were not prepared have been closed");
        service.stop().await;
        assert_eq!(tally.counts(), (3, 0));
        Ok(())
    });
}

#[test]
fn a_stream_is_prepared_before_its_task_begins() {
    on_every_driver(async |env| {
        let addr = common::echo_server(&env)?;
        let log = Log::new();
        let (preparing, serving) = (log.clone(), log.clone());
        let service = ClientService::builder(addr)?
            .backoff(soon())
            .handler(async move |mut stream: TcpStream| {
                serving.note("serving");
                round_trip(&mut stream, b"work").await?;
                let _ = read_to_end(&mut stream).await;
                Ok(())
            })
            .prepare(async move |stream: &mut TcpStream| {
                round_trip(stream, b"login").await?;
                preparing.note("prepared");
                if preparing.count("prepared") == 1 { Err("once more".into()) } else { Ok(()) }
            })
            .start(env.shard());
        let error = service.when_connected(1).await.unwrap_err();
        let ClientError::Failed { last, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(&**last, ClientFailure::Prepare(_)), "{error:?}");
        service.when_connected(None).await?;
        log.saw("serving").await;
        assert_eq!(log.seen(), ["prepared", "prepared", "serving"]);
        service.stop().await;
        Ok(())
    });
}

#[test]
fn preparing_has_a_time_limit_of_its_own() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let after = 20 * MS;
        let tally = Tally::default();
        let service = ClientService::builder(listener.local_addr())?
            .backoff(never())
            .options(&ConnectOptions::new().timeout(after))
            .factory(tally.factory())
            .prepare(async |_| pending().await)
            .start(env.shard());
        let begun = env.shard().now();
        let error = service.when_connected(1).await.unwrap_err();
        assert_eq!(error.to_string(), "preparing the connection took longer than 20ms");
        assert!(env.shard().now() - begun >= after);
        service.stop().await;
        let_others_go_on(&env).await?;
        assert_eq!(tally.counts(), (1, 0));
        Ok(())
    });
}

#[test]
fn a_connection_lost_while_it_is_prepared_is_a_failed_attempt() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |_stream| Ok(()))?;
        let service = ClientService::builder(listener.local_addr())?
            .backoff(never())
            .factory(Tally::default().factory())
            .prepare(async |_| pending().await)
            .start(env.shard());
        let error = service.when_connected(1).await.unwrap_err();
        assert_eq!(error.to_string(), "the connection ended while it was being prepared");
        service.stop().await;
        Ok(())
    });
}

#[test]
fn a_hook_or_task_that_panics_costs_one_attempt() {
    on_every_driver(async |env| {
        let addr = common::echo_server(&env)?;
        let panics = || env.handle().report()[0].panics;
        let before = panics();
        let service = ClientService::builder(addr)?
            .backoff(soon())
            .factory(Tally::default().factory())
            .prepare({
                let first = Cell::new(true);
                async move |_: Transport| {
                    assert!(!first.replace(false), "as the test wants it");
                    Ok(())
                }
            })
            .start(env.shard());
        let error = service.when_connected(1).await.unwrap_err();
        assert_eq!(error.to_string(), "preparing the connection panicked: as the test wants it");
        service.when_connected(None).await?;
        service.stop().await;
        assert_eq!(panics(), before + 1);

        let log = Log::new();
        let noted = log.clone();
        let service = ClientService::builder(addr)?
            .backoff(soon())
            .handler(async move |_: TcpStream| {
                noted.note("called");
                assert!(noted.count("called") > 1, "as the test wants it");
                Ok(())
            })
            .start(env.shard());
        log.until(|state| state.seen.len() >= 2).await;
        service.stop().await;
        assert_eq!(panics(), before + 2);

        let made = Cell::new(0);
        let service = ClientService::builder(addr)?
            .backoff(soon())
            .factory(move || {
                made.set(made.get() + 1);
                assert!(made.get() > 1, "as the test wants it");
                Echo
            })
            .start(env.shard());
        let error = service.when_connected(1).await.unwrap_err();
        let ClientError::Failed { last, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(&**last, ClientFailure::Connect(ConnectError::NoProtocol)), "{error:?}");
        service.when_connected(None).await?;
        service.stop().await;
        assert_eq!(panics(), before + 3);
        Ok(())
    });
}

#[test]
fn a_target_that_is_none_is_told_at_once() {
    on_every_driver(async |_env| {
        let error = ClientService::builder("nowhere").err().expect("it is no target");
        assert!(error.to_string().starts_with("`nowhere` is not a target"), "{error}");
        Ok(())
    });
}

#[test]
fn every_attempt_looks_the_name_up_anew() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let old = clients.listen(&env)?;
        let port = old.local_addr().port();
        env.names().insert("moves.test", &["127.0.0.1"]);
        let service =
            ClientService::builder(("moves.test", port))?.backoff(soon()).factory(|| Echo).start(env.shard());
        service.when_connected(None).await?;
        clients.until(1).await;
        old.close().await;
        let _new = clients.listen_at(&env, SocketAddr::from(([127, 0, 0, 2], port)))?;
        env.names().insert("moves.test", &["127.0.0.2"]);
        clients.hang_up();
        clients.until(2).await;
        let transport = service.when_connected(None).await?;
        assert_eq!(transport.peer_addr(), Some(SocketAddr::from(([127, 0, 0, 2], port))));
        service.stop().await;
        Ok(())
    });
}

#[test]
fn dropping_the_service_lets_it_go_on() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        let service = ClientService::builder(listener.local_addr())?
            .backoff(soon())
            .factory(|| Echo)
            .start(env.shard());
        drop(service.clone());
        drop(service);
        for number in 1..=3 {
            clients.until(number).await;
            clients.hang_up();
        }
        // The end of the runtime ends it: nothing is left over.
        Ok(())
    });
}

#[test]
fn a_drain_ends_a_service_in_whatever_state_and_nothing_is_brought_up_again() {
    on_every_driver(async |env| {
        let clients = Clients::default();
        let listener = clients.listen(&env)?;
        env.names().silence("silent.test");
        let start = |target: &dyn shardwise::ToTarget| -> Result<ClientService> {
            Ok(ClientService::builder(target)?.backoff(never()).factory(|| Echo).start(env.shard()))
        };
        let waiting = start(&nobody(&env).await?)?;
        waiting.when_connected(1).await.unwrap_err();
        let connecting = start(&"silent.test:80")?;
        let log = Log::new();
        let connected = ClientService::builder(listener.local_addr())?
            .backoff(soon())
            .factory(probe(&log))
            .start(env.shard());
        connected.when_connected(None).await?;
        clients.until(1).await;
        let pending = connecting.when_connected(None);
        env.shard().stop()?;
        assert!(matches!(pending.await, Err(ClientError::Stopped)));
        log.saw("draining").await;
        assert_eq!(log.ended().await, "Closed");
        for service in [&waiting, &connecting, &connected] {
            let mut turns = 0;
            while service.state() != ClientState::Stopped {
                shardwise::yield_now().await;
                turns += 1;
                assert!(turns < 1000, "{service:?}");
            }
        }
        assert_eq!(clients.served.get(), 1);
        // One that is started now ends at once.
        let late = start(&listener.local_addr())?;
        shardwise::yield_now().await;
        assert_eq!(late.state(), ClientState::Stopped);
        assert_eq!(clients.served.get(), 1);
        Ok(())
    });
}

#[test]
fn the_same_seed_gives_the_same_waits() {
    let run = |seed| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        let app = async move |shard: Shard| {
            let service = ClientService::builder("nobody.test:80")?
                .backoff(Backoff::new(Duration::from_secs(1), Duration::from_secs(3600)))
                .factory(|| Echo)
                .start(&shard);
            let begun = shard.now();
            for _ in 0..10 {
                service.when_connected(1).await.unwrap_err();
                notes.lock().unwrap().push(shard.now() - begun);
            }
            service.stop().await;
            shard.stop()?;
            Ok(())
        };
        Simulation::new(seed).shards(1).resolver(Names::new()).run(app).unwrap();
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    };
    let waits = run(7);
    assert_eq!(run(7), waits);
    assert_ne!(run(8), waits);
    // Full jitter: within the ceiling each time, and not at it.
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3600));
    let mut well_below = 0;
    for (failures, times) in (1..).zip(waits.windows(2)) {
        let wait = times[1] - times[0];
        assert!(wait < backoff.ceiling(failures) + 6 * MS, "{failures}: {wait:?}");
        well_below += usize::from(wait < backoff.ceiling(failures).mul_f64(0.9));
    }
    assert!(well_below > 0, "{waits:?}");
}

/// `stop` may come in the very turn in which the connection comes to stand, before the service knows.
#[test]
fn stopping_while_the_connection_comes_to_stand_closes_it() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let (log, place) = (Log::new(), Rc::new(RefCell::new(None::<ClientService>)));
        let (noted, stops) = (log.clone(), Rc::clone(&place));
        let service = ClientService::builder(listener.local_addr())?
            .factory(move || {
                let stops = Rc::clone(&stops);
                Probe::new(&noted, move |call, _| {
                    if matches!(call, Call::Connected) {
                        drop(stops.borrow().as_ref().map(ClientService::stop));
                    }
                    None
                })
            })
            .start(env.shard());
        *place.borrow_mut() = Some(service.clone());
        log.ended().await;
        service.stop().await;
        place.take();
        assert_eq!(service.state(), ClientState::Stopped);
        Ok(())
    });
}

#[test]
fn a_stop_while_it_prepares_waits_until_the_connection_has_ended() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let log = Log::new();
        let service = ClientService::builder(listener.local_addr())?
            .factory(probe(&log))
            .prepare(async |_transport: Transport| pending().await)
            .start(env.shard());
        log.saw("connected").await;
        shardwise::yield_now().await;
        service.stop().await;
        assert!(log.seen().contains(&"disconnected"), "{:?}", log.seen());
        Ok(())
    });
}
