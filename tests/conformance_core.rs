//! IReactorCore on every driver: starting, running, stopping, and what goes wrong on the way.

use std::cell::RefCell;
use std::error::Error;
use std::future::{Future, pending};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use shardwise::testing::{Simulation, on_every_driver};
use shardwise::{
    App, CallError, Config, Handle, Input, ListenError, NotRunning, Protocol, Result, RunError, Runtime,
    RuntimeState, Shard, ShardId, TcpStream, Transport, yield_now,
};

const MS: Duration = Duration::from_millis(1);

fn runtime(shards: usize) -> Runtime {
    // Tests run side by side: pinned, all their shards would share the first CPUs.
    Runtime::new().shards(shards).pin(false)
}

/// Runs what `make` makes with two shards until it has stopped: on mio, then simulated.
fn run_on_every_driver<A: App>(
    make: impl Fn() -> A,
    check: impl Fn(&str, std::result::Result<(), RunError>),
) {
    check("mio", runtime(2).start(make()).and_then(|running| running.join()));
    for seed in 0..5 {
        check(&format!("sim {seed}"), Simulation::new(seed).run(make()));
    }
}

/// Waits for another thread, for as long as that may take on a machine with much else to do.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "in vain: {what}");
        thread::yield_now();
    }
}

fn shard_id(number: u16) -> ShardId {
    ShardId::new(number)
}

#[test]
fn run_returns_after_stop() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let outcome = runtime(2).run(async move |shard: Shard| {
        count.fetch_add(1, SeqCst);
        shard.call_when_running(|shard| {
            let _ = shard.stop();
        });
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(ran.load(SeqCst), 2);
}

#[test]
fn a_second_stop_says_that_nothing_runs() {
    let handle = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&handle);
    on_every_driver(async move |env| {
        assert_eq!(env.handle().state(), RuntimeState::Running);
        assert_eq!(env.shard().stop(), Ok(()));
        assert_eq!(env.shard().stop(), Err(NotRunning));
        assert_eq!(env.handle().stop(), Err(NotRunning));
        assert_eq!(env.handle().state(), RuntimeState::Draining);
        *kept.lock().unwrap() = Some(env.handle());
        Ok(())
    });
    let handle: Handle = handle.lock().unwrap().take().unwrap();
    assert_eq!(handle.state(), RuntimeState::Stopped);
    assert_eq!(handle.stop(), Err(NotRunning), "after it has stopped, too");
}

#[test]
fn stop_inside_start_stops_also_shards_that_have_not_started() {
    run_on_every_driver(
        || {
            async |shard: Shard| {
                if shard.id() == shard_id(0) {
                    shard.stop()?;
                } else {
                    pending::<()>().await;
                }
                Ok(())
            }
        },
        |driver, outcome| assert!(outcome.is_ok(), "{driver}: {outcome:?}"),
    );
}

/// Stops before any shard has begun.
struct StopsFirst;

impl App for StopsFirst {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        assert_eq!(handle.state(), RuntimeState::Starting);
        Ok(handle.stop()?)
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        // What `?` makes of a stop is no failure.
        shard.listen_tcp("127.0.0.1:0", || Mute)?;
        pending().await
    }
}

struct Mute;

impl Protocol for Mute {
    fn data_received(&mut self, _: &Transport, input: &mut Input<'_>) -> Result<()> {
        input.take();
        Ok(())
    }
}

#[test]
fn stop_before_the_shards_have_started_is_an_orderly_end() {
    run_on_every_driver(|| StopsFirst, |driver, outcome| assert!(outcome.is_ok(), "{driver}: {outcome:?}"));
}

#[test]
fn listening_while_the_runtime_stops_is_refused() {
    on_every_driver(async |env| {
        env.shard().stop()?;
        while matches!(env.handle().call(shard_id(0), |shard| shard.running()).await, Ok(true)) {
            match env.shard().listen_tcp("127.0.0.1:0", || Mute) {
                Err(ListenError::Stopping) => return Ok(()),
                other => other?.close().await,
            }
        }
        Ok(())
    });
}

#[test]
fn the_first_error_of_start_stops_all_shards_and_names_its_own() {
    let dropped = Arc::new(AtomicUsize::new(0));
    run_on_every_driver(
        || {
            let dropped = Arc::clone(&dropped);
            async move |shard: Shard| {
                if shard.id() == shard_id(1) {
                    shard.sleep(MS).await;
                    return Err("no\nluck".into());
                }
                let _noted = OnDrop(Some(|| _ = dropped.fetch_add(1, SeqCst)));
                pending::<Result<()>>().await
            }
        },
        |driver, outcome| {
            let error = outcome.expect_err(driver);
            let RunError::Start { shard, source } = &error else { panic!("{driver}: {error}") };
            assert_eq!((*shard, source.to_string()), (shard_id(1), "no\nluck".to_string()), "{driver}");
            assert!(error.source().is_none(), "its text holds the cause's");
            assert!(error.to_string().starts_with("shard 1 failed to start"), "{error}");
            assert_eq!(format!("{error:?}"), error.to_string());
            assert_eq!(dropped.swap(0, SeqCst), 1, "{driver}: the other shard's start was given up");
        },
    );
}

#[test]
fn the_debug_form_of_an_error_is_its_one_line() {
    let outcome = runtime(2).run(async |_: Shard| Err("the disk is gone".into()));
    let error = outcome.unwrap_err();
    let shown = format!("{error:?}");
    assert_eq!(shown, error.to_string());
    assert!(shown.ends_with("failed to start: the disk is gone") && !shown.contains('\n'), "{shown}");
}

#[test]
fn a_panic_in_start_stops_all_shards_and_names_its_own() {
    run_on_every_driver(
        || {
            async |shard: Shard| {
                if shard.id() == shard_id(0) {
                    return pending().await;
                }
                shard.sleep(MS).await;
                panic!("start went wrong")
            }
        },
        |driver, outcome| {
            let error = outcome.expect_err(driver);
            assert_eq!(error.to_string(), "shard 1 panicked: start went wrong", "{driver}");
        },
    );
}

#[test]
fn start_that_fails_after_others_have_started_ends_the_runtime() {
    let outcome = runtime(2).start(async |shard: Shard| {
        shard.serve_tcp("127.0.0.1:0", async |_stream: TcpStream| Ok(()))?;
        if shard.id() == shard_id(1) { Err("no".into()) } else { Ok(()) }
    });
    assert!(matches!(outcome, Err(RunError::Start { .. })), "{outcome:?}");
}

struct FailsToPrepare {
    handle: Arc<Mutex<Option<Handle>>>,
    panics: bool,
}

impl App for FailsToPrepare {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        *self.handle.lock().unwrap() = Some(handle.clone());
        handle.call_from_thread(shard_id(0), |_| panic!("no shard ever begins")).unwrap();
        assert!(!self.panics, "prepare went wrong");
        Err("not prepared".into())
    }

    async fn start(&self, _: Shard) -> Result<()> {
        panic!("no shard ever begins")
    }
}

/// The handle that `prepare` was given must not promise what will never be.
fn assert_stopped(handle: Handle) {
    assert_eq!(handle.state(), RuntimeState::Stopped);
    assert_eq!(handle.stop(), Err(NotRunning));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let _ = tell.send(handle.blocking_call_from_thread(shard_id(0), |_| ()));
    });
    let outcome = told.recv_timeout(Duration::from_secs(30)).expect("the call comes back");
    assert!(matches!(outcome, Err(CallError::Stopped)), "{outcome:?}");
}

#[test]
fn an_error_of_prepare_is_what_run_returns_and_no_shard_begins() {
    let handle = Arc::new(Mutex::new(None));
    let app = || FailsToPrepare { handle: Arc::clone(&handle), panics: false };
    run_on_every_driver(app, |driver, outcome| {
        let error = outcome.expect_err(driver);
        assert!(matches!(error, RunError::Prepare(_)), "{driver}: {error}");
        assert_eq!(format!("{error:?}"), "prepare failed: not prepared");
        assert_stopped(handle.lock().unwrap().take().unwrap());
    });
}

#[test]
fn a_panic_of_prepare_goes_to_the_caller_and_leaves_nobody_waiting() {
    let handle = Arc::new(Mutex::new(None));
    let app = FailsToPrepare { handle: Arc::clone(&handle), panics: true };
    let outcome = thread::spawn(|| runtime(2).start(app)).join();
    assert!(outcome.is_err());
    assert_stopped(handle.lock().unwrap().take().unwrap());
}

#[test]
fn runtimes_run_one_after_another_and_several_at_once() {
    let echo = async |shard: Shard| {
        shard.call_when_running(|shard| _ = shard.stop());
        Ok(())
    };
    for _ in 0..3 {
        runtime(1).start(echo).unwrap().join().unwrap();
    }
    let first = runtime(2).start(async |_: Shard| Ok(())).unwrap();
    let second = runtime(3).start(async |_: Shard| Ok(())).unwrap();
    let other = second.handle();
    let shards = first.handle().blocking_call_async_from_thread(shard_id(1), async move |shard: Shard| {
        // A shard of one awaits a shard of the other.
        let theirs = other.call(shard_id(2), |shard| (shard.id(), shard.shards())).await.unwrap();
        (theirs, shard.shards())
    });
    assert_eq!(shards.unwrap(), ((shard_id(2), 3), 2));
    first.stop().unwrap();
    first.join().unwrap();
    assert_eq!(second.handle().state(), RuntimeState::Running, "the end of one is not the other's");
    second.stop().unwrap();
    second.join().unwrap();
}

#[test]
fn run_inside_a_running_loop_is_refused_and_does_the_loop_no_harm() {
    let running = runtime(1).start(async |_: Shard| Ok(())).unwrap();
    let handle = running.handle();
    let nested = handle.blocking_call_from_thread(shard_id(0), |_| {
        let never = async |_: Shard| -> Result<()> { panic!("it was refused") };
        (runtime(1).run(never).unwrap_err(), runtime(1).start(never).unwrap_err())
    });
    let (run, start) = nested.unwrap();
    assert!(matches!(run, RunError::OnShardThread), "{run}");
    assert!(matches!(start, RunError::OnShardThread), "{start}");
    assert!(handle.blocking_call_from_thread(shard_id(0), |shard| shard.running()).unwrap());
    drop(running);
}

#[test]
fn run_may_be_called_on_any_thread() {
    let run = || {
        runtime(1).run(async |shard: Shard| {
            shard.stop()?;
            Ok(())
        })
    };
    thread::spawn(run).join().unwrap().unwrap();
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

/// Shard 0 has started and listens; shard 1 takes its time.
struct SlowStart {
    done: Arc<AtomicBool>,
    addr: Mutex<Option<std::net::SocketAddr>>,
}

impl App for SlowStart {
    async fn start(&self, shard: Shard) -> Result<()> {
        let handle = shard.handle();
        if shard.id() == shard_id(0) {
            let listener = shard.listen_tcp("127.0.0.1:0", || Echo)?;
            *self.addr.lock().unwrap() = Some(listener.local_addr());
            return Ok(());
        }
        let addr = loop {
            let addr = *self.addr.lock().unwrap();
            match addr {
                Some(addr) => break addr,
                None => yield_now().await,
            }
        };
        // While it has not started, timers, calls and connecting out work; nothing is accepted.
        assert!(!shard.running());
        assert_eq!(handle.state(), RuntimeState::Starting);
        let mut client = TcpStream::connect(addr).await?;
        client.write_all(b"early").await?;
        for _ in 0..20 {
            shard.sleep(MS).await;
            let (id, running) = shard.call(shard_id(0), |shard| (shard.id(), shard.running())).await?;
            assert_eq!((id, running), (shard_id(0), false));
        }
        assert_eq!(handle.report()[0].accepted, 0, "before every shard has started");
        let done = Arc::clone(&self.done);
        drop(shard.spawn(async move {
            let mut answer = [0; 5];
            client.read_exact(&mut answer).await.expect("it was only kept waiting");
            assert_eq!(&answer, b"early");
            let shard = Shard::current();
            assert!(shard.running());
            assert_eq!(shard.handle().report()[0].accepted, 1);
            done.store(true, SeqCst);
            drop(client);
            shard.stop().unwrap();
        }));
        Ok(())
    }
}

#[test]
fn nothing_is_accepted_before_every_start_has_returned_but_everything_else_works() {
    let done = Arc::new(AtomicBool::new(false));
    run_on_every_driver(
        || SlowStart { done: Arc::clone(&done), addr: Mutex::new(None) },
        |driver, outcome| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            assert!(done.swap(false, SeqCst), "{driver}: the client was not served");
        },
    );
}

#[test]
fn calls_for_when_it_runs_are_made_in_order_after_every_start_has_returned() {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    run_on_every_driver(
        || {
            let log = Arc::clone(&log);
            async move |shard: Shard| {
                if shard.id() == shard_id(1) {
                    shard.sleep(MS * 5).await;
                    log.lock().unwrap().push("shard 1 has started".into());
                    return Ok(());
                }
                for number in 0..5 {
                    let log = Arc::clone(&log);
                    shard.call_when_running(move |shard| {
                        assert!(shard.running());
                        log.lock().unwrap().push(format!("call {number}"));
                        if number == 1 {
                            let inner = Arc::clone(&log);
                            shard.call_when_running(move |_| inner.lock().unwrap().push("later".into()));
                            log.lock().unwrap().push("not at once".into());
                        }
                        assert!(number != 2, "a panic stops nobody else's call");
                    });
                }
                let log = Arc::clone(&log);
                shard.call_when_running(move |shard| {
                    shard.call_later(MS * 20, move |shard| _ = shard.stop());
                    log.lock().unwrap().push("last".into());
                });
                assert!(!shard.running());
                Ok(())
            }
        },
        |driver, outcome| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            let log = std::mem::take(&mut *log.lock().unwrap());
            let expected = [
                "shard 1 has started",
                "call 0",
                "call 1",
                "not at once",
                "call 2",
                "call 3",
                "call 4",
                "last",
                "later",
            ];
            assert_eq!(log, expected, "{driver}");
        },
    );
}

#[test]
fn a_call_for_when_it_runs_is_dropped_uncalled_if_it_never_does() {
    let dropped = Arc::new(AtomicUsize::new(0));
    run_on_every_driver(
        || {
            let dropped = Arc::clone(&dropped);
            async move |shard: Shard| {
                let dropped = Arc::clone(&dropped);
                let noted = OnDrop(Some(move || _ = dropped.fetch_add(1, SeqCst)));
                shard.call_when_running(move |_| {
                    let _noted = noted;
                    panic!("it never runs");
                });
                if shard.id() == shard_id(1) { Err("no".into()) } else { Ok(()) }
            }
        },
        |driver, outcome| {
            assert!(matches!(outcome, Err(RunError::Start { .. })), "{driver}: {outcome:?}");
            assert_eq!(dropped.swap(0, SeqCst), 2, "{driver}");
        },
    );
}

/// Calls it when dropped.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

#[test]
fn running_is_true_while_it_drains_and_false_when_tasks_are_dropped() {
    let seen: Arc<Mutex<Vec<(ShardId, bool)>>> = Arc::default();
    run_on_every_driver(
        || {
            let seen = Arc::clone(&seen);
            async move |shard: Shard| {
                let seen = Arc::clone(&seen);
                drop(shard.spawn(async move {
                    let _noted = OnDrop(Some(|| {
                        let shard = Shard::current();
                        seen.lock().unwrap().push((shard.id(), shard.running()));
                    }));
                    pending::<()>().await;
                }));
                shard.call_when_running(|shard| {
                    if shard.id() == shard_id(0) {
                        shard.stop().unwrap();
                        assert!(shard.running(), "stop only asks");
                    }
                });
                Ok(())
            }
        },
        |driver, outcome| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            let mut seen = std::mem::take(&mut *seen.lock().unwrap());
            seen.sort();
            assert_eq!(
                seen,
                [(shard_id(0), false), (shard_id(1), false)],
                "{driver}: at home, and not running"
            );
        },
    );
}

#[test]
fn what_destructors_send_to_their_own_shard_at_the_end_runs_there_and_cannot_block_it() {
    let seen: Arc<Mutex<Vec<&str>>> = Arc::default();
    run_on_every_driver(
        || {
            let seen = Arc::clone(&seen);
            async move |shard: Shard| {
                if shard.id() == shard_id(1) {
                    return Ok(());
                }
                let (handle, seen) = (shard.handle(), Arc::clone(&seen));
                drop(shard.spawn(async move {
                    let _sends = OnDrop(Some(|| {
                        let own = handle.clone();
                        let sent = handle.call_from_thread(shard_id(0), move |shard| {
                            assert_eq!(Shard::current().id(), shard.id());
                            let blocked = own.blocking_call_from_thread(shard_id(0), |_| ());
                            assert!(matches!(blocked, Err(CallError::OnShardThread)));
                            assert!(own.call_from_thread(shard_id(0), |_| ()).is_err(), "it has stopped");
                            seen.lock().unwrap().push("ran");
                        });
                        sent.expect("it has not stopped yet");
                    }));
                    pending::<()>().await;
                }));
                shard.call_when_running(|shard| shard.stop().unwrap());
                Ok(())
            }
        },
        |driver, outcome| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), ["ran"], "{driver}");
        },
    );
}

#[test]
fn a_stopped_runtime_keeps_nothing_that_timers_and_attempts_held() {
    let dropped: Arc<Mutex<Vec<&str>>> = Arc::default();
    let note = |dropped: &Arc<Mutex<Vec<&'static str>>>, what| {
        let dropped = Arc::clone(dropped);
        OnDrop(Some(move || dropped.lock().unwrap().push(what)))
    };
    run_on_every_driver(
        || {
            let dropped = Arc::clone(&dropped);
            async move |shard: Shard| {
                if shard.id() == shard_id(1) {
                    return Ok(());
                }
                let timer = note(&dropped, "timer");
                let home = shard.clone();
                let again = Arc::clone(&dropped);
                shard.call_later(Duration::from_secs(3600), move |_| drop((timer, home)));
                // Its destructor sets another, which holds the shard.
                let sets = OnDrop(Some(move || {
                    let shard = Shard::current();
                    let (home, timer) = (shard.clone(), note(&again, "a destructor's timer"));
                    shard.call_later(MS, move |_| drop((home, timer)));
                }));
                shard.call_later(Duration::from_secs(3600), move |_| drop(sets));
                let (home, attempt) = (shard.clone(), note(&dropped, "attempt"));
                shard.call_when_running(move |shard| {
                    shard.stop().unwrap();
                    shard.call_later(Duration::ZERO, move |shard| {
                        let held = (home, attempt);
                        // TEST-NET-1 (RFC 5737): nobody answers.
                        shard.connect_tcp("192.0.2.1:9", || Mute).on_failure(move |_, _| drop(held));
                    });
                });
                Ok(())
            }
        },
        |driver, outcome| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            let mut dropped = std::mem::take(&mut *dropped.lock().unwrap());
            dropped.sort();
            assert_eq!(dropped, ["a destructor's timer", "attempt", "timer"], "{driver}");
        },
    );
}

#[test]
fn dropping_a_running_runtime_stops_and_joins_it() {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let running = runtime(2)
        .start(async move |shard: Shard| {
            let count = Arc::clone(&count);
            drop(shard.spawn(async move {
                let _noted = OnDrop(Some(|| _ = count.fetch_add(1, SeqCst)));
                pending::<()>().await;
            }));
            Ok(())
        })
        .unwrap();
    let handle = running.handle();
    assert_eq!(handle.state(), RuntimeState::Running, "start returns when all have started");
    drop(running);
    assert_eq!(handle.state(), RuntimeState::Stopped);
    assert_eq!(ended.load(SeqCst), 2, "the shards are gone when drop returns");
}

#[test]
fn a_runtime_dropped_or_joined_on_its_own_shard_stops_without_waiting_for_itself() {
    for joins in [false, true] {
        let running = runtime(2).start(async |_: Shard| Ok(())).unwrap();
        let handle = running.handle();
        let sent = handle
            .call_from_thread(shard_id(1), move |_| if joins { drop(running.join()) } else { drop(running) });
        sent.unwrap();
        wait_until("the runtime has stopped", || handle.state() == RuntimeState::Stopped);
        assert_eq!(handle.report()[1].panics, u64::from(joins), "to join there is a bug, and told as one");
    }
}

#[test]
fn abort_ends_at_once_and_says_so() {
    run_on_every_driver(
        || {
            async |shard: Shard| {
                shard.listen_tcp("127.0.0.1:0", || Mute)?;
                shard.call_when_running(|shard| shard.handle().abort());
                Ok(())
            }
        },
        |driver, outcome| {
            let error = outcome.expect_err(driver);
            assert!(matches!(error, RunError::Forced { connections: 0, signal: None }), "{driver}: {error}");
        },
    );
}

#[test]
fn abort_right_after_stop_finds_listeners_half_closed_and_ends_all_the_same() {
    run_on_every_driver(
        || {
            async |shard: Shard| {
                shard.listen_tcp("127.0.0.1:0", || Mute)?;
                shard.call_when_running(|shard| {
                    let _ = shard.stop();
                    shard.call_later(Duration::ZERO, |shard| shard.handle().abort());
                });
                Ok(())
            }
        },
        |driver, outcome| {
            if let Err(error) = outcome {
                assert!(matches!(error, RunError::Forced { connections: 0, .. }), "{driver}: {error}");
            }
        },
    );
}

#[test]
fn abort_after_the_end_changes_nothing() {
    let running = runtime(2).start(async |_: Shard| Ok(())).unwrap();
    let handle = running.handle();
    handle.stop().unwrap();
    wait_until("the runtime has stopped", || handle.state() == RuntimeState::Stopped);
    handle.abort();
    let outcome = running.join();
    assert!(outcome.is_ok(), "it had ended in order: {outcome:?}");
}

#[test]
fn a_setting_out_of_range_is_an_error_that_names_it() {
    let mut config = Config::default();
    config.tasks_per_turn = 0;
    let app = || async |_: Shard| -> Result<()> { panic!("never started") };
    let error = runtime(1).config(config.clone()).start(app()).unwrap_err();
    assert!(matches!(error, RunError::Config(_)), "{error}");
    assert!(
        error.to_string().contains("tasks_per_turn") && error.to_string().contains("at least 1"),
        "{error}"
    );
    let error = Simulation::new(1).config(config).run(app()).unwrap_err();
    assert!(matches!(error, RunError::Config(_)), "{error}");
}

#[test]
fn impossible_placements_are_errors_that_say_what_is_possible() {
    let place = |runtime: Runtime| {
        let error = runtime.start(async |_: Shard| -> Result<()> { panic!("never started") }).unwrap_err();
        assert!(matches!(error, RunError::Placement(_)), "{error}");
        error.to_string()
    };
    let none = place(Runtime::new().shards(0));
    assert!(none.contains("0 shards") && none.contains("at least 1"), "{none}");
    let many = place(Runtime::new().shards(257));
    assert!(many.contains("257") && many.contains("256"), "{many}");
    place(Runtime::new().cpus([]));
    // No mask of a test machine reaches that far.
    let outside = place(Runtime::new().cpus([1023]));
    assert!(outside.contains("1023"), "{outside}");
}

#[test]
fn a_shard_is_pinned_to_its_cpu_and_says_so() {
    let running = match Runtime::new().cpus([0]).pin(true).start(async |_: Shard| Ok(())) {
        Ok(running) => running,
        // CPU 0 is not this process's to use.
        Err(RunError::Placement(_)) => return,
        Err(error) => panic!("{error}"),
    };
    let handle = running.handle();
    let status = handle
        .blocking_call_from_thread(shard_id(0), |_| {
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        })
        .unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    match handle.report()[0].cpu {
        Some(cpu) => assert_eq!((cpu, allowed), (0, "0")),
        None => assert_ne!(allowed, "0", "reported as not pinned"),
    }
    assert_eq!(handle.shards(), 1, "one shard on each CPU named");
}

#[test]
fn the_current_shard_is_the_one_whose_code_runs() {
    on_every_driver(async |env| {
        assert_eq!(Shard::current().id(), shard_id(0));
        let seen = Rc::new(RefCell::new(Vec::new()));
        for number in [1, 0, 1] {
            let id = env.handle().call(shard_id(number), |_| Shard::current().id()).await?;
            seen.borrow_mut().push(id);
            assert_eq!(Shard::current().id(), shard_id(0), "back at home");
        }
        assert_eq!(*seen.borrow(), [shard_id(1), shard_id(0), shard_id(1)]);
        Ok(())
    });
    assert!(Shard::try_current().is_none(), "off shard there is none");
}

#[test]
fn a_closure_or_a_type_of_ones_own_is_an_app() {
    fn accepts(_: impl App) {}
    accepts(async |_: Shard| Ok(()));
    accepts(StopsFirst);
    fn is_future(_: impl Future<Output = Result<()>>) {}
    fn check<A: App>(app: &A, shard: Shard) {
        is_future(app.start(shard));
    }
    let _ = check::<StopsFirst>;
}
