//! Tasks on every driver: spawning, results, cancelling, fairness, and who drops a future where.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use shardwise::testing::{Simulation, on_every_driver};
use shardwise::{JoinError, Runtime, Shard, ShardId, TcpStream, yield_now};

const MS: Duration = Duration::from_millis(1);

fn turns(shard: &Shard) -> u64 {
    shard.handle().report()[shard.id().index()].turns
}

/// Counts its drops, and insists on being dropped on its shard.
struct Homebound {
    home: ShardId,
    dropped: Arc<AtomicUsize>,
    /// Not `Send`: it could not be dropped elsewhere without undefined behaviour.
    local: Rc<()>,
}

impl Homebound {
    fn new(shard: &Shard, dropped: &Arc<AtomicUsize>) -> Self {
        Homebound { home: shard.id(), dropped: Arc::clone(dropped), local: Rc::new(()) }
    }
}

impl Drop for Homebound {
    fn drop(&mut self) {
        if Shard::try_current().is_some_and(|shard| shard.id() == self.home) {
            self.dropped.fetch_add(Rc::strong_count(&self.local), SeqCst);
        }
    }
}

#[test]
fn a_task_runs_after_spawn_has_returned_and_its_handle_gives_the_result() {
    on_every_driver(async |env| {
        let begun = Rc::new(Cell::new(false));
        let seen = Rc::clone(&begun);
        let task = env.shard().spawn(async move {
            seen.set(true);
            let local = Rc::new(41);
            shardwise::sleep(MS).await;
            *local + 1
        });
        assert!(!begun.get() && !task.is_finished(), "not inside spawn");
        assert_eq!(task.await?, 42);
        assert!(begun.get());
        Ok(())
    });
}

#[test]
fn a_task_goes_on_when_its_handle_is_dropped() {
    on_every_driver(async |env| {
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        drop(env.shard().spawn(async move {
            shardwise::sleep(MS * 3).await;
            seen.set(true);
        }));
        env.shard().sleep(MS * 10).await;
        assert!(done.get());
        Ok(())
    });
}

#[test]
fn a_cancelled_task_is_dropped_and_its_handle_says_so() {
    on_every_driver(async |env| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let held = Homebound::new(env.shard(), &dropped);
        let asleep = env.shard().spawn(async move {
            let _held = held;
            pending::<()>().await;
        });
        let held = Homebound::new(env.shard(), &dropped);
        let unpolled = env.shard().spawn(async move {
            let _held = held;
            panic!("it was cancelled before it began");
        });
        unpolled.cancel();
        yield_now().await;
        yield_now().await;
        asleep.cancel();
        for task in [asleep, unpolled] {
            let outcome = task.await;
            assert!(outcome.as_ref().is_err_and(JoinError::is_cancelled), "{outcome:?}");
        }
        assert_eq!(dropped.load(SeqCst), 2);
        // One that has finished keeps its result.
        let finished = env.shard().spawn(async { 5 });
        yield_now().await;
        yield_now().await;
        assert!(finished.is_finished());
        finished.cancel();
        assert_eq!(finished.await?, 5);
        Ok(())
    });
}

#[test]
fn a_panic_in_a_task_is_its_handles_error_is_counted_and_harms_nobody_else() {
    on_every_driver(async |env| {
        let panics = || env.handle().report()[0].panics;
        let before = panics();
        let bad = env.shard().spawn(async {
            shardwise::sleep(MS).await;
            panic!("task {}", 7)
        });
        let good = env.shard().spawn(async {
            shardwise::sleep(MS * 2).await;
            7
        });
        let error: JoinError = bad.await.unwrap_err();
        assert_eq!(error.to_string(), "the task panicked: task 7");
        assert_eq!(error.into_panic().unwrap().message(), "task 7");
        assert_eq!(good.await?, 7);
        assert_eq!(panics(), before + 1);
        drop(env.shard().spawn(async { panic!("nobody asks") }));
        env.shard().sleep(MS).await;
        assert_eq!(panics(), before + 2, "counted also when nobody asks");
        Ok(())
    });
}

#[test]
fn tasks_that_yield_take_turns() {
    on_every_driver(async |env| {
        let log = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|number| {
                let log = Rc::clone(&log);
                env.shard().spawn(async move {
                    for _ in 0..4 {
                        log.borrow_mut().push(number);
                        yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        assert_eq!(*log.borrow(), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
        Ok(())
    });
}

#[test]
fn a_task_that_wakes_itself_for_ever_starves_neither_connections_nor_timers_nor_calls() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        let greedy: Vec<_> = (0..3)
            .map(|_| {
                env.shard().spawn(poll_fn(|context| -> Poll<()> {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }))
            })
            .collect();
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        for _ in 0..5 {
            let mut answer = [0; 3];
            client.write_all(b"abc").await?;
            client.read_exact(&mut answer).await?;
            env.shard().sleep(MS).await;
            env.shard().call(ShardId::new(1), |_| ()).await?;
        }
        for task in greedy {
            task.cancel();
            assert!(task.await.is_err_and(|error| error.is_cancelled()));
        }
        Ok(())
    });
}

#[test]
fn two_tasks_that_wake_each_other_for_ever_do_not_starve_the_rest() {
    on_every_driver(async |env| {
        let wakers: Rc<[RefCell<Option<Waker>>; 2]> = Rc::default();
        let tasks: Vec<_> = (0..2)
            .map(|own| {
                let wakers = Rc::clone(&wakers);
                env.shard().spawn(poll_fn(move |context| -> Poll<()> {
                    *wakers[own].borrow_mut() = Some(context.waker().clone());
                    let other = wakers[1 - own].borrow().clone();
                    if let Some(other) = other {
                        other.wake();
                    }
                    Poll::Pending
                }))
            })
            .collect();
        env.shard().sleep(MS * 5).await;
        env.shard().call(ShardId::new(1), |_| ()).await?;
        for task in tasks {
            task.cancel();
            assert!(task.await.is_err());
        }
        for waker in wakers.iter() {
            waker.borrow_mut().take();
        }
        Ok(())
    });
}

/// Real time alone: in a simulation work takes none.
#[test]
fn a_turn_polls_tasks_for_half_a_millisecond_and_then_looks_after_the_rest() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let seen = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..96)
            .map(|_| {
                let (shard, seen) = (env.shard().clone(), Rc::clone(&seen));
                env.shard().spawn(async move {
                    seen.borrow_mut().push(turns(&shard));
                    let begun = Instant::now();
                    while begun.elapsed() < Duration::from_micros(300) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        let mut turns = seen.borrow().clone();
        turns.dedup();
        assert!(turns.len() >= 4, "96 tasks of 0.3 ms in {} turns", turns.len());
        Ok(())
    });
}

#[test]
fn should_yield_says_when_a_turn_has_taken_long_enough() {
    on_every_driver(async |env| {
        yield_now().await;
        if env.is_simulated() {
            assert!(!env.shard().should_yield(), "no time has passed");
            return Ok(());
        }
        let begun = Instant::now();
        while !env.shard().should_yield() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it never says so");
        }
        Ok(())
    });
}

/// Where the parts of a hand-made future meet.
#[derive(Default)]
struct Gate {
    open: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Gate {
    async fn pass(self: Arc<Self>) {
        poll_fn(|context| {
            *self.waker.lock().unwrap() = Some(context.waker().clone());
            if self.open.load(SeqCst) > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Mio alone: threads besides the shards.
#[test]
fn a_task_woken_by_any_thread_goes_on_at_home() {
    let running = Runtime::new().shards(2).pin(false).start(async |_: Shard| Ok(())).unwrap();
    let handle = running.handle();
    let outcome = handle.blocking_call_async_from_thread(ShardId::new(1), async |shard: Shard| {
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let gate = Arc::new(Gate::default());
            let local = Rc::new(thread::current().id());
            let passing = Arc::clone(&gate);
            tasks.push(shard.spawn(async move {
                passing.pass().await;
                *local == thread::current().id()
            }));
            thread::spawn(move || {
                let waker = loop {
                    let waker = gate.waker.lock().unwrap().clone();
                    match waker {
                        Some(waker) => break waker,
                        None => thread::yield_now(),
                    }
                };
                // Too early, too often, from clones, by value and by reference.
                waker.wake_by_ref();
                let clone = waker.clone();
                thread::spawn(move || clone.wake());
                gate.open.store(1, SeqCst);
                waker.wake();
            });
        }
        let mut at_home = 0;
        for task in tasks {
            at_home += usize::from(task.await.unwrap());
        }
        at_home
    });
    assert_eq!(outcome.unwrap(), 50);
}

/// Mio alone: threads besides the shards.
#[test]
fn wakers_may_be_used_and_dropped_anywhere_for_ever_after_the_stop() {
    let (give, wakers) = mpsc::channel();
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    let running = Runtime::new()
        .shards(2)
        .pin(false)
        .start(async move |shard: Shard| {
            for _ in 0..20 {
                let (give, held) = (give.clone(), Homebound::new(&shard, &count));
                drop(shard.spawn(async move {
                    let _held = held;
                    poll_fn(|context| {
                        give.send(context.waker().clone()).unwrap();
                        Poll::<()>::Pending
                    })
                    .await;
                }));
            }
            Ok(())
        })
        .unwrap();
    let early: Vec<Waker> = (0..40).map(|_| wakers.recv().unwrap()).collect();
    // Wakes that meet the stop half-way.
    let storm = thread::spawn({
        let early = early.clone();
        move || {
            for _ in 0..200 {
                early.iter().for_each(Waker::wake_by_ref);
            }
        }
    });
    running.stop().unwrap();
    running.join().unwrap();
    storm.join().unwrap();
    assert_eq!(dropped.load(SeqCst), 40, "every future was dropped at home, before join returned");
    let late = early.clone();
    thread::spawn(move || late.into_iter().for_each(Waker::wake)).join().unwrap();
    early.iter().for_each(Waker::wake_by_ref);
    drop(early);
    assert_eq!(dropped.load(SeqCst), 40);
}

#[test]
fn futures_are_dropped_at_home_when_the_runtime_stops() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let app = || {
        let dropped = Arc::clone(&dropped);
        async move |shard: Shard| {
            for kind in 0..4 {
                let held = Homebound::new(&shard, &dropped);
                let home = shard.clone();
                drop(shard.spawn(async move {
                    let _held = held;
                    match kind {
                        0 => pending().await,
                        1 => home.sleep(Duration::from_secs(3600)).await,
                        2 => loop {
                            yield_now().await;
                        },
                        // A handle of another task, and a call that never ends.
                        _ => {
                            let task = home.spawn(pending::<()>());
                            let _ = home
                                .call_async(ShardId::new(0), async |_: Shard| pending::<()>().await)
                                .await;
                            let _ = task.await;
                        }
                    }
                }));
            }
            shard.call_when_running(|shard| {
                shard.call_later(MS * 5, |shard| _ = shard.stop());
            });
            Ok(())
        }
    };
    Runtime::new().shards(2).pin(false).start(app()).unwrap().join().unwrap();
    assert_eq!(dropped.swap(0, SeqCst), 8, "mio");
    for seed in 0..5 {
        Simulation::new(seed).run(app()).unwrap();
        assert_eq!(dropped.swap(0, SeqCst), 8, "sim {seed}");
    }
}

#[test]
fn spawning_after_the_end_gives_a_cancelled_task() {
    /// Spawns when it is dropped, which is when its shard ends.
    struct Late(Shard, Arc<Mutex<Vec<bool>>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let task = self.0.spawn(async { panic!("it never runs") });
            self.1.lock().unwrap().push(task.is_finished());
        }
    }
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let app = || {
        let seen = Arc::clone(&seen);
        async move |shard: Shard| {
            let late = Late(shard.clone(), Arc::clone(&seen));
            drop(shard.spawn(async move {
                let _late = late;
                pending::<()>().await;
            }));
            shard.call_when_running(|shard| _ = shard.stop());
            Ok(())
        }
    };
    Runtime::new().shards(2).pin(false).start(app()).unwrap().join().unwrap();
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [true, true]);
    for seed in 0..3 {
        Simulation::new(seed).run(app()).unwrap();
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [true, true]);
    }
}

#[test]
fn ten_thousand_tasks_all_end() {
    on_every_driver(async |env| {
        let sum = Rc::new(Cell::new(0_u64));
        let tasks: Vec<_> = (0..10_000)
            .map(|number| {
                let sum = Rc::clone(&sum);
                env.shard().spawn(async move {
                    yield_now().await;
                    sum.set(sum.get() + number);
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        assert_eq!(sum.get(), 49_995_000);
        Ok(())
    });
}

#[test]
fn a_handle_polled_by_reference_keeps_the_result() {
    on_every_driver(async |env| {
        let mut task = env.shard().spawn(async {
            shardwise::sleep(MS * 10).await;
            3
        });
        let early = env.shard().timeout(MS, &mut task).await;
        assert!(early.is_err(), "not yet");
        assert_eq!((&mut task).await?, 3);
        assert!((&mut task).await.is_err_and(|error| error.is_cancelled()), "it was taken");
        Ok(())
    });
}
