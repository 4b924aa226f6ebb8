//! IReactorThreads and calls between shards, on every driver; what needs threads besides the shards runs on the real
//! kernel alone.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use shardwise::testing::{Simulation, on_every_driver, on_every_driver_with};
use shardwise::{
    App, CallError, Config, Handle, Result, Route, RunError, Running, Runtime, RuntimeState, Shard, ShardId,
    yield_now,
};

#[path = "conformance_threads/handles.rs"]
mod handles;

const MS: Duration = Duration::from_millis(1);

fn shard_id(number: u16) -> ShardId {
    ShardId::new(number)
}

/// An idle runtime on the real kernel, for tests with threads of their own.
fn idle(shards: usize) -> Running {
    Runtime::new().shards(shards).pin(false).start(async |_: Shard| Ok(())).unwrap()
}

/// Waits for another thread, for as long as that may take on a machine with much else to do.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "in vain: {what}");
        thread::yield_now();
    }
}

/// A value that knows on which shard it may be dropped, and tells.
struct Homebound {
    home: ShardId,
    dropped: Arc<AtomicUsize>,
}

impl Homebound {
    fn new(home: ShardId, dropped: &Arc<AtomicUsize>) -> Self {
        Homebound { home, dropped: Arc::clone(dropped) }
    }
}

impl Drop for Homebound {
    fn drop(&mut self) {
        assert_eq!(Shard::current().id(), self.home, "dropped away from home");
        self.dropped.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_call_from_a_thread_runs_on_the_shards_own_thread() {
    let running = idle(2);
    let handle = running.handle();
    let (tell, told) = mpsc::channel();
    for id in handle.shard_ids() {
        let tell = tell.clone();
        let call = move |shard: &Shard| {
            let name = thread::current().name().map(str::to_string);
            tell.send((shard.id(), name, Shard::current().id())).unwrap();
        };
        handle.call_from_thread(id, call).unwrap();
        let number = id.index();
        assert_eq!(told.recv().unwrap(), (id, Some(format!("shard-{number}")), id));
    }
    assert!(Shard::try_current().is_none());
}

#[test]
fn calls_of_one_thread_run_in_the_order_they_were_made_whoever_else_calls() {
    let running = idle(2);
    let log: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (handle, log) = (running.handle(), Arc::clone(&log));
            thread::spawn(move || {
                for number in 0..1_000 {
                    let log = Arc::clone(&log);
                    handle
                        .call_from_thread(shard_id(1), move |_| log.lock().unwrap().push((caller, number)))
                        .unwrap();
                }
                handle.blocking_call_from_thread(shard_id(1), |_| ()).unwrap();
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    let log = log.lock().unwrap();
    for caller in 0..4 {
        let numbers: Vec<_> = log.iter().filter(|(by, _)| *by == caller).map(|(_, number)| *number).collect();
        assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
    }
}

#[test]
fn messages_from_one_shard_to_another_run_in_the_order_they_were_sent_posts_and_calls_alike() {
    on_every_driver(async |env| {
        let log: Arc<Mutex<Vec<usize>>> = Arc::default();
        let handle = env.handle();
        let mut calls = Vec::new();
        for number in 0..300 {
            let log = Arc::clone(&log);
            let note = move |_: &Shard| log.lock().unwrap().push(number);
            if number % 3 == 0 {
                let mut call = Box::pin(handle.call(shard_id(1), note));
                // Sent when it is first polled.
                let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending());
                calls.push(call);
            } else {
                handle.call_from_thread(shard_id(1), note).unwrap();
            }
        }
        for call in calls {
            call.await?;
        }
        handle.call(shard_id(1), |_| ()).await?;
        assert_eq!(*log.lock().unwrap(), (0..300).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn a_call_to_ones_own_shard_is_queued_and_not_run_at_once() {
    on_every_driver(async |env| {
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        env.handle().call_from_thread(env.shard().id(), move |_| _ = count.fetch_add(1, SeqCst)).unwrap();
        assert_eq!(ran.load(SeqCst), 0, "not inlined");
        let id = env.shard().call(env.shard().id(), |shard| shard.id()).await?;
        assert_eq!((id, ran.load(SeqCst)), (env.shard().id(), 1), "and in order with calls");
        Ok(())
    });
}

/// Sends before any shard has begun.
struct SendsFirst(Arc<Mutex<Vec<usize>>>);

impl App for SendsFirst {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        for number in 0..10 {
            let log = Arc::clone(&self.0);
            handle.call_from_thread(shard_id(1), move |_| log.lock().unwrap().push(number)).unwrap();
        }
        assert!(self.0.lock().unwrap().is_empty(), "kept until the shard runs");
        Ok(())
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        shard.call_when_running(|shard| _ = shard.stop());
        Ok(())
    }
}

#[test]
fn calls_made_before_the_runtime_runs_are_kept() {
    let log: Arc<Mutex<Vec<usize>>> = Arc::default();
    let check = |outcome: std::result::Result<(), RunError>| {
        outcome.unwrap();
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), (0..10).collect::<Vec<_>>());
    };
    let runtime = Runtime::new().shards(2).pin(false);
    check(runtime.start(SendsFirst(Arc::clone(&log))).and_then(|running| running.join()));
    for seed in 0..5 {
        check(Simulation::new(seed).run(SendsFirst(Arc::clone(&log))));
    }
}

#[test]
fn after_the_stop_calls_are_refused_and_the_closure_comes_back() {
    let running = idle(2);
    let handle = running.handle();
    drop(running);
    let ticket = String::from("mine");
    let refused = handle.call_from_thread(shard_id(0), move |_| drop(ticket)).unwrap_err();
    assert_eq!(refused.to_string(), "the shard has stopped");
    let _closure = refused.into_inner();
    assert!(handle.call_from_thread(Route::Any, |_| ()).is_err());
    let blocked = handle.blocking_call_from_thread(shard_id(1), |_| ());
    assert!(matches!(blocked, Err(CallError::Stopped)), "{blocked:?}");
    let blocked = handle.blocking_call_async_from_thread(shard_id(1), async |_| ());
    assert!(matches!(blocked, Err(CallError::Stopped)), "{blocked:?}");
    let all = handle.call_all_from_thread(|_| ());
    assert!(all.len() == 2 && all.iter().all(|one| matches!(one, Err(CallError::Stopped))), "{all:?}");
    assert!(matches!(block_on(handle.call(shard_id(0), |_| ())), Err(CallError::Stopped)));
}

#[test]
fn a_blocking_call_gives_results_of_closures_and_of_async_closures() {
    let running = idle(2);
    let handle = running.handle();
    assert_eq!(handle.blocking_call_from_thread(shard_id(1), |shard| shard.id()).unwrap(), shard_id(1));
    let slept = handle.blocking_call_async_from_thread(shard_id(0), async |shard: Shard| {
        let local = Rc::new(shard.id());
        shard.sleep(MS).await;
        *local
    });
    assert_eq!(slept.unwrap(), shard_id(0));
    let ids = handle.call_all_from_thread(|shard| shard.id());
    assert_eq!(
        ids.into_iter().map(std::result::Result::unwrap).collect::<Vec<_>>(),
        [shard_id(0), shard_id(1)]
    );
}

#[test]
fn a_blocking_call_on_a_shards_thread_is_refused_and_never_a_deadlock() {
    on_every_driver(async |env| {
        let handle = env.handle();
        for id in handle.shard_ids() {
            let call = handle.blocking_call_from_thread(id, |_| ());
            assert!(matches!(call, Err(CallError::OnShardThread)), "{call:?}");
            let call = handle.blocking_call_async_from_thread(id, async |_| ());
            assert!(matches!(call, Err(CallError::OnShardThread)), "{call:?}");
        }
        let all = handle.call_all_from_thread(|_| ());
        assert!(
            all.len() == 2 && all.iter().all(|one| matches!(one, Err(CallError::OnShardThread))),
            "{all:?}"
        );
        Ok(())
    });
}

#[test]
fn a_blocking_call_ends_when_its_shard_stops_first() {
    let running = idle(1);
    let handle = running.handle();
    let (started, has_started) = mpsc::channel();
    let caller = thread::spawn({
        let handle = running.handle();
        move || {
            handle.blocking_call_async_from_thread(shard_id(0), async move |_: Shard| {
                started.send(()).unwrap();
                pending::<()>().await;
            })
        }
    });
    has_started.recv().unwrap();
    handle.stop().unwrap();
    let outcome = caller.join().unwrap();
    assert!(matches!(outcome, Err(CallError::Stopped)), "{outcome:?}");
    running.join().unwrap();
}

#[test]
fn panics_of_called_closures_travel_to_the_caller_and_are_counted_where_they_happened() {
    on_every_driver(async |env| {
        let handle = env.handle();
        let panics = || handle.report()[1].panics;
        let plain = handle.call(shard_id(1), |_| -> () { panic!("plain {}", 1) }).await;
        let Err(CallError::Panicked(panic)) = plain else { panic!("{plain:?}") };
        assert_eq!(panic.message(), "plain 1");
        assert_eq!(panics(), 1);
        let late = handle
            .call_async(shard_id(1), async |shard: Shard| {
                shard.sleep(MS).await;
                std::panic::panic_any(7_u8)
            })
            .await;
        let late: std::result::Result<(), _> = late;
        let Err(CallError::Panicked(panic)) = late else { panic!("{late:?}") };
        assert_eq!(panic.into_payload().downcast_ref::<u8>(), Some(&7));
        assert_eq!(panics(), 2);
        let all = handle.call_all(|shard| assert_eq!(shard.id().index(), 0, "not here")).await;
        assert!(all[0].is_ok());
        assert!(matches!(&all[1], Err(CallError::Panicked(panic)) if panic.message().contains("not here")));
        handle.call(shard_id(1), |_| ()).await?;
        Ok(())
    });
}

#[test]
fn a_panicking_post_is_counted_and_the_rest_of_the_batch_runs() {
    on_every_driver(async |env| {
        let handle = env.handle();
        let ran = Arc::new(AtomicUsize::new(0));
        for number in 0..10 {
            let ran = Arc::clone(&ran);
            let post = move |_: &Shard| {
                ran.fetch_add(1, SeqCst);
                assert!(number % 2 == 0, "as planned");
            };
            handle.call_from_thread(shard_id(1), post).unwrap();
        }
        handle.call(shard_id(1), |_| ()).await?;
        assert_eq!(ran.load(SeqCst), 10);
        assert_eq!(handle.report()[1].panics, 5);
        Ok(())
    });
}

#[test]
fn a_thread_that_is_no_shard_can_await_calls() {
    let running = idle(2);
    let handle = running.handle();
    assert_eq!(block_on(handle.call(shard_id(1), |shard| shard.id())).unwrap(), shard_id(1));
    let slept = block_on(handle.call_async(shard_id(0), async |shard: Shard| {
        shard.sleep(MS).await;
        shard.id()
    }));
    assert_eq!(slept.unwrap(), shard_id(0));
    assert_eq!(block_on(handle.call_all(|shard| shard.id().index())).len(), 2);
    let panicked = block_on(handle.call(shard_id(0), |_| -> () { panic!("there") }));
    assert!(matches!(panicked, Err(CallError::Panicked(_))), "{panicked:?}");
}

/// An executor of one future.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(Duration::from_secs(10)),
        }
    }
}

#[test]
fn routes_lead_to_the_shard_named_round_the_shards_and_by_key() {
    on_every_driver_with(4, Config::default(), async |env| {
        let handle = env.handle();
        let mut round = Vec::new();
        for _ in 0..8 {
            round.push(handle.call(Route::Any, |shard| shard.id()).await?);
        }
        assert_eq!(round.iter().collect::<HashSet<_>>().len(), 4, "{round:?}");
        assert_eq!(round[..4], round[4..], "round robin");
        let mut owners = HashSet::new();
        for key in 0..64_u32 {
            let owner = handle.call(Route::key(&key), |shard| shard.id()).await?;
            assert_eq!(
                handle.call(Route::key(&key), |shard| shard.id()).await?,
                owner,
                "the same key, the same shard"
            );
            owners.insert(owner);
        }
        assert_eq!(owners.len(), 4, "keys spread");
        for id in handle.shard_ids() {
            assert_eq!(handle.call(id, |shard| shard.id()).await?, id);
        }
        let ids: Vec<_> =
            handle.call_all(|shard| shard.id()).await.into_iter().map(|id| id.unwrap()).collect();
        assert_eq!(ids, handle.shard_ids().collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
#[should_panic(expected = "there is no shard 2")]
fn a_shard_that_does_not_exist_is_a_bug_of_the_caller() {
    let running = idle(2);
    let _ = running.handle().call_from_thread(shard_id(2), |_| ());
}

#[test]
fn a_call_that_takes_too_long_is_given_up_at_its_deadline() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let begun = shard.now();
        let late = shard
            .call_async(shard_id(1), async |shard: Shard| shard.sleep(MS * 400).await)
            .deadline(MS * 10)
            .await;
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        assert!(shard.now() - begun >= MS * 10, "not early");
        let early = shard.call(shard_id(1), |_| 5).deadline(Duration::from_secs(50)).await;
        assert_eq!(early.unwrap(), 5);
        // The task that nobody waits for ends by itself.
        shard.sleep(MS * 500).await;
        Ok(())
    });
}

/// Keeps shard 1 busy and posts to it from shard 0: what is sent meanwhile has not started when this is released.
fn hold(handle: &Handle) -> (Arc<Barrier>, Arc<Barrier>) {
    let (held, release) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (in_call, until) = (Arc::clone(&held), Arc::clone(&release));
    let wait = move |_: &Shard| {
        in_call.wait();
        until.wait();
    };
    handle.call_from_thread(shard_id(1), wait).unwrap();
    (held, release)
}

/// Mio alone: a callback that blocks needs threads.
#[test]
fn a_call_dropped_before_it_has_started_does_not_run_and_is_dropped_at_home() {
    let running = idle(2);
    let handle = running.handle();
    let (held, release) = hold(&handle);
    held.wait();
    let dropped = Arc::new(AtomicUsize::new(0));
    let closure = Arc::clone(&dropped);
    let withdrawn = handle.blocking_call_async_from_thread(shard_id(0), async move |shard: Shard| {
        let value = Homebound::new(shard.id(), &closure);
        let call = shard.call(shard_id(1), move |_| -> () {
            let _value = value;
            panic!("it was withdrawn");
        });
        // Sent, and given up while shard 1 is held.
        let outcome = shard.timeout(MS * 20, call).await.is_err();
        release.wait();
        // Comes home with what was sent after it.
        shard.call(shard_id(1), |_| ()).await.unwrap();
        outcome
    });
    assert!(withdrawn.unwrap());
    wait_until("the closure is dropped", || dropped.load(SeqCst) == 1);
    assert_eq!(
        handle.report().iter().map(|shard| shard.panics).sum::<u64>(),
        0,
        "it did not run, nor panic at drop"
    );
}

#[test]
fn a_call_that_was_never_polled_sends_nothing() {
    on_every_driver(async |env| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let value = Homebound::new(env.shard().id(), &dropped);
        let call = env.shard().call(shard_id(1), move |_| -> () {
            let _value = value;
            panic!("it was never awaited");
        });
        drop(call);
        assert_eq!(dropped.load(SeqCst), 1);
        env.shard().call(shard_id(1), |_| ()).await?;
        assert_eq!(env.handle().report()[1].panics, 0);
        Ok(())
    });
}

#[test]
fn a_result_that_nobody_waits_for_any_more_is_dropped_at_home() {
    on_every_driver(async |env| {
        let shard = env.shard().clone();
        let dropped = Arc::new(AtomicUsize::new(0));
        for plain in [true, false] {
            for _ in 0..20 {
                let value = Homebound::new(shard.id(), &dropped);
                let call: Pin<Box<dyn Future<Output = ()>>> = if plain {
                    let call = shard.call(shard_id(1), move |_| value);
                    Box::pin(async move { drop(call.await) })
                } else {
                    let call = shard.call_async(shard_id(1), async move |shard: Shard| {
                        shard.sleep(MS * 5).await;
                        value
                    });
                    Box::pin(async move { drop(call.await) })
                };
                let mut call = call;
                assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                let task = shard.spawn(async move {
                    // It is under way, perhaps started, perhaps answered.
                    yield_now().await;
                    drop(call);
                });
                task.await?;
            }
        }
        let begun = shard.now();
        while dropped.load(SeqCst) < 40 {
            assert!(shard.now() - begun < Duration::from_secs(20), "{} of 40", dropped.load(SeqCst));
            shard.sleep(MS).await;
        }
        let panics: u64 = env.handle().report().iter().map(|shard| shard.panics).sum();
        assert_eq!(panics, 0, "none was dropped away from home");
        Ok(())
    });
}

async fn bounce(shard: Shard, left: u32) -> u32 {
    if left == 0 {
        return 0;
    }
    let other = shard_id(1 - shard.id().index() as u16);
    let next: Pin<Box<dyn Future<Output = _>>> =
        Box::pin(shard.call_async(other, async move |shard: Shard| Box::pin(bounce(shard, left - 1)).await));
    next.await.unwrap() + 1
}

#[test]
fn a_cycle_of_calls_between_two_shards_makes_progress() {
    on_every_driver(async |env| {
        assert_eq!(bounce(env.shard().clone(), 9).await, 9);
        // Each waits on the other shard for a call back to this one.
        let mut chains = Vec::new();
        for _ in 0..300 {
            chains.push(env.shard().spawn(bounce(env.shard().clone(), 3)));
        }
        for chain in chains {
            assert_eq!(chain.await?, 3);
        }
        Ok(())
    });
}

/// Every level of it held a credit until the level below had answered: beyond 1,024 none was left, and none came back.
#[test]
fn a_chain_of_calls_that_wait_for_each_other_may_be_longer_than_there_are_credits() {
    fn chain(shard: Shard, left: u32) -> Pin<Box<dyn Future<Output = u32>>> {
        Box::pin(async move {
            let Some(left) = left.checked_sub(1) else { return 0 };
            let other = shard_id(1 - shard.id().index() as u16);
            1 + shard.call_async(other, async move |there: Shard| chain(there, left).await).await.unwrap()
        })
    }
    on_every_driver(async |env| {
        let length = env.shard().timeout(Duration::from_secs(50), chain(env.shard().clone(), 4_500)).await?;
        assert_eq!(length, 4_500);
        Ok(())
    });
}

#[test]
fn ten_thousand_calls_at_once_make_progress_beyond_the_credits_in_both_directions() {
    on_every_driver(async |env| {
        let flood = async |shard: Shard| {
            let target = shard_id(1 - shard.id().index() as u16);
            let sum = Rc::new(Cell::new(0));
            let mut calls = Vec::new();
            for number in 0..10_000_u64 {
                let (home, sum) = (shard.clone(), Rc::clone(&sum));
                calls.push(shard.spawn(async move {
                    let answer = home.call(target, move |_| number).await.unwrap();
                    sum.set(sum.get() + answer);
                }));
            }
            for call in calls {
                call.await.unwrap();
            }
            sum.get()
        };
        let there = env.shard().call_async(shard_id(1), flood);
        let there = env.shard().spawn(async move { there.await.unwrap() });
        let here = flood(env.shard().clone()).await;
        assert_eq!((here, there.await?), (49_995_000, 49_995_000));
        Ok(())
    });
}

/// Mio alone: two runtimes at once.
#[test]
fn every_call_to_a_stopping_runtime_is_answered() {
    let (caller, target) = (idle(1), idle(2));
    let (theirs, stopping) = (target.handle(), target.handle());
    let answers = caller.handle().blocking_call_async_from_thread(shard_id(0), async move |shard: Shard| {
        let calls: Vec<_> = (0..400)
            .map(|number| {
                let theirs = theirs.clone();
                shard.spawn(async move {
                    for _ in 0..number % 50 {
                        yield_now().await;
                    }
                    theirs.call(shard_id(1), |_| ()).await
                })
            })
            .collect();
        yield_now().await;
        stopping.stop().unwrap();
        let (mut ran, mut refused) = (0, 0);
        for call in calls {
            match call.await.unwrap() {
                Ok(()) => ran += 1,
                Err(CallError::Stopped) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (ran, refused)
    });
    let (ran, refused) = answers.unwrap();
    assert_eq!(ran + refused, 400);
    target.join().unwrap();
}

/// Mio alone: threads that call while the runtime stops.
#[test]
fn of_calls_that_race_with_the_stop_each_ran_or_came_back() {
    for _ in 0..20 {
        let running = idle(2);
        let (ran, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (handle, ran, refused) = (running.handle(), Arc::clone(&ran), Arc::clone(&refused));
                thread::spawn(move || {
                    let mut sent = 0;
                    loop {
                        sent += 1;
                        let count = Arc::clone(&ran);
                        let post = move |_: &Shard| _ = count.fetch_add(1, SeqCst);
                        if handle.call_from_thread(Route::Any, post).is_err() {
                            refused.fetch_add(1, SeqCst);
                            if handle.state() == RuntimeState::Stopped {
                                return sent;
                            }
                        }
                    }
                })
            })
            .collect();
        wait_until("some have run", || ran.load(SeqCst) > 50);
        running.stop().unwrap();
        running.join().unwrap();
        let sent: usize = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        assert_eq!(ran.load(SeqCst) + refused.load(SeqCst), sent);
    }
}

/// Mio alone: what a wake costs is a system call there.
#[test]
fn a_sleeping_shard_is_woken_once_per_sleep_and_an_awake_one_never() {
    let running = idle(2);
    let handle = running.handle();
    let report = || handle.report()[1].clone();
    handle.blocking_call_from_thread(shard_id(1), |_| ()).unwrap();
    wait_until("calls find it asleep now and then", || {
        handle.blocking_call_from_thread(shard_id(1), |_| ()).unwrap();
        report().wakes_written >= 5
    });
    let woken = report();
    assert!(
        woken.wakes_written <= woken.parks + 1,
        "{} wakes in {} sleeps",
        woken.wakes_written,
        woken.parks
    );
    // Awake for certain: inside a callback.
    let (held, release) = hold(&handle);
    held.wait();
    let before = report();
    for _ in 0..100 {
        handle.call_from_thread(shard_id(1), |_| ()).unwrap();
    }
    assert_eq!(report().wakes_written, before.wakes_written, "it is awake");
    release.wait();
    handle.blocking_call_from_thread(shard_id(1), |_| ()).unwrap();
    // Counted when the turn's messages have been run.
    wait_until("the messages are counted", || report().messages >= before.messages + 100);
    wait_until("the wakes saved are counted", || report().wakes_elided >= before.wakes_elided + 100);
}

#[test]
fn a_flood_of_messages_that_send_themselves_again_starves_neither_timers_nor_tasks() {
    fn again(shard: &Shard, on: Arc<AtomicUsize>) {
        if on.load(SeqCst) == 0 {
            let next = Arc::clone(&on);
            let _ = shard.handle().call_from_thread(shard.id(), move |shard| again(shard, next));
        }
    }
    on_every_driver(async |env| {
        let off = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            again(env.shard(), Arc::clone(&off));
        }
        let fired = Rc::new(RefCell::new(false));
        let seen = Rc::clone(&fired);
        env.shard().call_later(MS, move |_| *seen.borrow_mut() = true);
        env.shard().sleep(MS * 3).await;
        assert!(*fired.borrow());
        off.store(1, SeqCst);
        Ok(())
    });
}
