//! Looking up names: whose answer it is, what it costs whom, and when it ends.

mod common;

use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use common::{echo_server, round_trip};
use shardwise::testing::{Simulation, on_every_driver};
use shardwise::{
    BlockingResolver, Config, HostName, Lookup, ResolveError, Resolver, Result, Runtime, Shard, TcpStream,
};

/// Asks a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|context| match pin!(&mut *future).poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn ips(addrs: &[SocketAddr]) -> Vec<IpAddr> {
    let mut ips: Vec<_> = addrs.iter().map(SocketAddr::ip).collect();
    ips.sort();
    ips
}

#[test]
fn a_name_has_all_its_addresses_of_both_families() {
    on_every_driver(async |env| {
        env.names().insert("two.test", &["10.0.0.1", "10.0.0.2", "fd00::1"]);
        for spelling in ["two.test", "TWO.test", "two.test."] {
            let addrs = env.shard().resolve(spelling, 80).await?;
            let expected: Vec<IpAddr> =
                ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
            assert_eq!(ips(&addrs), expected, "{spelling}");
            assert!(addrs.iter().all(|addr| addr.port() == 80));
        }
        Ok(())
    });
}

#[test]
fn the_resolvers_order_stands() {
    on_every_driver(async |env| {
        let given = ["10.0.0.3", "10.0.0.1", "fd00::1", "10.0.0.2"];
        env.names().insert("ordered.test", &given);
        env.names().keep_order();
        let addrs = env.shard().resolve("ordered.test", 80).await?;
        assert_eq!(addrs.iter().map(|addr| addr.ip().to_string()).collect::<Vec<_>>(), given);
        Ok(())
    });
}

#[test]
fn an_address_is_its_own_answer_at_once_and_asks_nobody() {
    on_every_driver(async |env| {
        for (text, expected) in [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")] {
            let answer = poll_once(&mut env.shard().resolve(text, 80)).await.expect("at once");
            assert_eq!(answer?, [expected.parse()?]);
        }
        assert_eq!(env.names().asked(), 0);
        Ok(())
    });
}

#[test]
fn what_is_no_name_says_why_at_once_and_asks_nobody() {
    on_every_driver(async |env| {
        let longest = "a".repeat(64);
        for (text, reason) in [
            ("", "it is empty"),
            ("a..b", "it has an empty label"),
            ("a b", "it may not contain ' '"),
            ("a:80", "it may not contain ':'"),
            ("127.1", "its last label is a number, and it is no address"),
            (&longest, "it has a label longer than 63 bytes"),
        ] {
            let answer = poll_once(&mut env.shard().resolve(text, 80)).await.expect("at once");
            let error = answer.unwrap_err();
            assert!(matches!(error, ResolveError::InvalidName(_)), "{error:?}");
            assert_eq!(error.to_string(), format!("`{text}` is not a host name: {reason}"));
        }
        assert_eq!(env.names().asked(), 0);
        Ok(())
    });
}

#[test]
fn a_name_without_addresses_is_not_found() {
    on_every_driver(async |env| {
        env.names().insert("empty.test", &[]);
        for name in ["unknown.test", "empty.test"] {
            let error = env.shard().resolve(name, 80).await.unwrap_err();
            assert!(matches!(&error, ResolveError::NotFound { name: told } if told == name), "{error:?}");
            assert_eq!(error.to_string(), format!("`{name}` has no address"));
        }
        Ok(())
    });
}

#[test]
fn an_answer_that_does_not_come_is_waited_for_until_the_deadline() {
    on_every_driver(async |env| {
        env.names().silence("silent.test");
        // On a real clock not the default of ten seconds.
        let after =
            if env.is_simulated() { Config::default().resolve_timeout } else { Duration::from_millis(20) };
        let begun = env.shard().now();
        let lookup = env.shard().resolve("silent.test", 80);
        let lookup = if env.is_simulated() { lookup } else { lookup.timeout(after) };
        let error = lookup.await.unwrap_err();
        assert!(matches!(&error, ResolveError::TimedOut { after: told, .. } if *told == after), "{error:?}");
        assert!(env.shard().now() - begun >= after);
        assert_eq!(error.to_string(), format!("the address of `silent.test` was not found within {after:?}"));
        Ok(())
    });
}

#[test]
fn nobody_is_asked_before_the_lookup_is_awaited_and_dropping_it_gives_it_up() {
    on_every_driver(async |env| {
        drop(env.shard().resolve("localhost", 80));
        assert_eq!(env.names().asked(), 0);
        let mut lookup = env.shard().resolve("localhost", 80);
        assert!(poll_once(&mut lookup).await.is_none(), "an answer takes a while");
        assert_eq!(env.names().asked(), 1);
        // Its timers go with it, as the test's look for leaks shows.
        drop(lookup);
        Ok(())
    });
}

#[test]
fn lookups_of_all_shards_have_their_answers_at_home() {
    on_every_driver(async |env| {
        for number in 0..50 {
            env.names().insert(&format!("host{number}.test"), &[&format!("10.0.0.{number}")]);
        }
        let answers = env.handle().shard_ids().map(|id| {
            env.shard().call_async(id, async move |shard: Shard| {
                let lookups: Vec<_> = (0..50)
                    .map(|number| {
                        let home = shard.clone();
                        shard.spawn(async move {
                            let answer = home.resolve(&format!("host{number}.test"), 80).await;
                            assert_eq!(Shard::current().id(), home.id());
                            answer
                        })
                    })
                    .collect();
                for (number, lookup) in lookups.into_iter().enumerate() {
                    let addrs = lookup.await.unwrap().unwrap();
                    assert_eq!(addrs, [SocketAddr::from(([10, 0, 0, number as u8], 80))]);
                }
            })
        });
        for answer in answers.collect::<Vec<_>>() {
            answer.await?;
        }
        Ok(())
    });
}

/// Runs `body` on one shard, with this resolver, in the simulation and on a real kernel.
fn with_resolver<R, F>(resolver: R, body: F)
where
    R: Resolver + Clone,
    F: AsyncFn(Shard) -> Result<()> + Send + Sync + 'static,
{
    let body = Arc::new(body);
    let app = move |body: Arc<F>| {
        async move |shard: Shard| {
            body(shard.clone()).await?;
            shard.stop()?;
            Ok(())
        }
    };
    Simulation::new(1).shards(1).resolver(resolver.clone()).run(app(Arc::clone(&body))).unwrap();
    on_mio(Config::default(), resolver, app(body));
}

/// Runs `app` on one shard of a real kernel.
fn on_mio<A: shardwise::App>(config: Config, resolver: impl Resolver, app: A) {
    let runtime = Runtime::new().shards(1).pin(false).config(config).resolver(resolver);
    runtime.start(app).and_then(|running| running.join()).unwrap();
}

#[test]
fn a_resolver_that_panics_fails_its_lookup_alone() {
    #[derive(Clone)]
    struct Panics;
    impl Resolver for Panics {
        fn lookup(&self, name: &HostName, port: u16) -> Lookup {
            match name.as_str() {
                "when-asked.test" => panic!("as the test wants it"),
                "when-polled.test" => Box::pin(async { panic!("as the test wants it") }),
                _ => Box::pin(async move { Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))]) }),
            }
        }
    }
    with_resolver(Panics, async |shard: Shard| {
        for name in ["when-asked.test", "when-polled.test"] {
            let error = shard.resolve(name, 80).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{name}` cannot be looked up: the resolver panicked: as the test wants it")
            );
        }
        assert_eq!(shard.resolve("fine.test", 80).await?.len(), 1);
        assert_eq!(shard.handle().report()[0].panics, 2);
        Ok(())
    });
}

#[test]
fn a_lookup_whose_drop_panics_harms_nobody() {
    struct Trap;
    impl Drop for Trap {
        fn drop(&mut self) {
            panic!("as the test wants it");
        }
    }
    #[derive(Clone)]
    struct Traps;
    impl Resolver for Traps {
        fn lookup(&self, name: &HostName, port: u16) -> Lookup {
            let trap = Trap;
            let silent = name.as_str() == "silent.test";
            Box::pin(async move {
                let trap = std::mem::ManuallyDrop::new(trap);
                if silent {
                    let _trap = std::mem::ManuallyDrop::into_inner(trap);
                    pending::<()>().await;
                }
                Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
            })
        }
    }
    with_resolver(Traps, async |shard: Shard| {
        let mut lookup = shard.resolve("silent.test", 80);
        assert!(poll_once(&mut lookup).await.is_none());
        drop(lookup);
        assert_eq!(shard.handle().report()[0].panics, 1);
        assert_eq!(shard.resolve("fine.test", 80).await?.len(), 1);
        Ok(())
    });
}

// ---- lookups that block -------------------------------------------------------------------------------------
//
// Threads have no place in a simulation, whose clock does not wait for them: these run on a real kernel alone.

/// Longer than any step takes: a guard, not a measure.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_systems_resolver_knows_localhost() {
    Runtime::new()
        .shards(1)
        .pin(false)
        .start(async |shard: Shard| {
            let addrs = shard.resolve("localhost", 80).await?;
            assert!(!addrs.is_empty());
            assert!(addrs.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 80), "{addrs:?}");
            shard.stop()?;
            Ok(())
        })
        .and_then(|running| running.join())
        .unwrap();
}

/// Lookups that hang until they are let go: all of them, when `let_go` is dropped.
struct Stuck {
    resolver: BlockingResolver,
    begun: mpsc::Receiver<String>,
    let_go: mpsc::Sender<()>,
}

fn stuck(config: &Config) -> Stuck {
    let (begin, begun) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let resolver = BlockingResolver::new(config, move |name, port| {
        // Nobody may be listening any more.
        let _ = begin.send(name.to_string());
        let _ = go.lock().unwrap().recv();
        Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
    });
    Stuck { resolver, begun, let_go }
}

#[test]
fn a_lookup_that_hangs_holds_up_neither_its_shard_nor_the_stop() {
    let Stuck { resolver, begun, let_go } = stuck(&Config::default());
    let begun_at = Instant::now();
    on_mio(Config::default(), resolver, async move |shard: Shard| {
        let hangs = shard.spawn({
            let shard = shard.clone();
            async move { shard.resolve("hangs.test", 80).await }
        });
        let listener = shard.listen_tcp("127.0.0.1:0", || common::Echo)?;
        let addr = listener.local_addr();
        shard.call_when_running(move |shard| {
            let home = shard.clone();
            drop(shard.spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                for _ in 0..100 {
                    round_trip(&mut stream, b"as ever").await.unwrap();
                }
                assert!(!hangs.is_finished());
                home.stop().unwrap();
            }));
        });
        Ok(())
    });
    assert_eq!(begun.recv_timeout(PATIENCE).unwrap(), "hangs.test");
    assert!(begun_at.elapsed() < PATIENCE, "the stop waited for the lookup");
    // It was hanging all the time.
    drop(let_go);
}

#[test]
fn lookups_run_on_threads_of_their_own_on_any_cpu() {
    let everywhere = rustix::thread::sched_getaffinity(None).unwrap();
    let (tell, told) = mpsc::channel();
    let resolver = BlockingResolver::new(&Config::default(), move |_name, port| {
        let name = std::thread::current().name().unwrap_or_default().to_string();
        tell.send((name, rustix::thread::sched_getaffinity(None).unwrap())).unwrap();
        Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
    });
    // Pinned, as far as it may be: its threads inherit that.
    let runtime = Runtime::new().shards(1).resolver(resolver);
    let running = runtime.start(async |shard: Shard| {
        shard.resolve("any.test", 80).await?;
        shard.stop()?;
        Ok(())
    });
    running.and_then(|running| running.join()).unwrap();
    let (name, cpus) = told.recv().unwrap();
    assert!(name.starts_with("resolver-"), "{name}");
    assert!(cpus == everywhere, "it shares the CPU of a shard: {cpus:?}, not {everywhere:?}");
}

#[test]
fn too_many_lookups_that_wait_are_refused_until_some_are_given_up() {
    let mut config = Config::default();
    config.resolver_threads_max = 1;
    config.resolver_queue_max = 2;
    let Stuck { resolver, begun, let_go } = stuck(&config);
    let (begun, let_go) = (Mutex::new(begun), Mutex::new(Some(let_go)));
    on_mio(config, resolver, async move |shard: Shard| {
        let mut running = shard.resolve("running.test", 80);
        assert!(poll_once(&mut running).await.is_none());
        assert_eq!(begun.lock().unwrap().recv_timeout(PATIENCE)?, "running.test");
        let mut waiting = [shard.resolve("first.test", 80), shard.resolve("second.test", 80)];
        for lookup in &mut waiting {
            assert!(poll_once(lookup).await.is_none());
        }
        let error = shard.resolve("one-more.test", 80).await.unwrap_err();
        assert!(matches!(error, ResolveError::Busy { waiting: 2, .. }), "{error:?}");
        assert_eq!(error.to_string(), "`one-more.test` cannot be looked up: 2 lookups are waiting already");
        let [first, second] = waiting;
        drop(first);
        let mut third = shard.resolve("third.test", 80);
        assert!(poll_once(&mut third).await.is_none(), "there is room again");
        drop(let_go.lock().unwrap().take());
        for lookup in [running, second, third] {
            lookup.await?;
        }
        let order: Vec<_> = begun.lock().unwrap().try_iter().collect();
        assert_eq!(order, ["second.test", "third.test"], "what was given up did not run");
        shard.stop()?;
        Ok(())
    });
}

#[test]
fn a_blocking_lookup_that_fails_or_panics_fails_alone() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let resolver = BlockingResolver::new(&Config::default(), move |name, port| {
        count.fetch_add(1, SeqCst);
        match name.as_str() {
            "fails.test" => Err(io::Error::other("no such luck")),
            "panics.test" => panic!("as the test wants it"),
            "none.test" => Ok(Vec::new()),
            _ => Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))]),
        }
    });
    on_mio(Config::default(), resolver, async |shard: Shard| {
        for (name, message) in [
            ("fails.test", "`fails.test` cannot be looked up: no such luck"),
            ("panics.test", "`panics.test` cannot be looked up: the lookup panicked"),
            ("none.test", "`none.test` has no address"),
        ] {
            assert_eq!(shard.resolve(name, 80).await.unwrap_err().to_string(), message);
        }
        assert_eq!(shard.resolve("fine.test", 80).await?.len(), 1);
        shard.stop()?;
        Ok(())
    });
    assert_eq!(calls.load(SeqCst), 4);
}

#[test]
fn an_answer_that_comes_after_the_deadline_is_discarded() {
    let Stuck { resolver, begun, let_go } = stuck(&Config::default());
    let (begun, let_go) = (Mutex::new(begun), Mutex::new(Some(let_go)));
    on_mio(Config::default(), resolver, async move |shard: Shard| {
        let error = shard.resolve("late.test", 80).timeout(Duration::from_millis(5)).await.unwrap_err();
        assert!(matches!(error, ResolveError::TimedOut { .. }), "{error:?}");
        assert_eq!(begun.lock().unwrap().recv_timeout(PATIENCE)?, "late.test");
        drop(let_go.lock().unwrap().take());
        assert_eq!(shard.resolve("next.test", 80).await?.len(), 1);
        shard.stop()?;
        Ok(())
    });
}

#[test]
fn the_same_seed_gives_the_same_answers_in_the_same_time() {
    let run = |seed| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let names = shardwise::testing::Names::new();
        names.insert("many.test", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
        let notes = Arc::clone(&seen);
        let app = async move |shard: Shard| {
            let begun = shard.now();
            for _ in 0..3 {
                let addrs = shard.resolve("many.test", 80).await?;
                notes.lock().unwrap().push((addrs, shard.now() - begun));
            }
            shard.stop()?;
            Ok(())
        };
        Simulation::new(seed).shards(1).resolver(names).run(app).unwrap();
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_real_server_is_reached_by_its_name() {
    on_every_driver(async |env| {
        let addr = echo_server(&env)?;
        env.names().insert("server.test", &["127.0.0.1"]);
        round_trip(&mut TcpStream::connect(("server.test", addr.port())).await?, b"hello").await?;
        Ok(())
    });
}
