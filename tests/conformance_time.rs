//! IReactorTime on every driver: delayed calls, sleeps, intervals and time limits.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use shardwise::testing::{Env, on_every_driver};
use shardwise::{DelayedCallError, Elapsed, Input, Protocol, Result, Shard, TcpStream, Transport, yield_now};

const MS: Duration = Duration::from_millis(1);

/// SplitMix64 (Steele, Lea, Flood 2014): the test's own choices, repeatable with the simulation's seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ (bits >> 31)) % bound
    }
}

/// The clock that passes while code runs: real where the shard's is.
fn clock(env: &Env) -> Instant {
    if env.is_simulated() { env.shard().now() } else { Instant::now() }
}

fn turns(shard: &Shard) -> u64 {
    shard.handle().report()[shard.id().index()].turns
}

fn panics(shard: &Shard) -> u64 {
    shard.handle().report()[shard.id().index()].panics
}

#[test]
fn ten_thousand_sleeps_never_end_early() {
    on_every_driver(async |env| {
        let mut random = Random(env.seed());
        let earliest = Rc::new(Cell::new(i128::MAX));
        let mut sleepers = Vec::new();
        for _ in 0..10_000 {
            let asked = Duration::from_nanos(random.below(30_000_000));
            let (env, earliest) = (env.clone(), Rc::clone(&earliest));
            sleepers.push(env.shard().clone().spawn(async move {
                let begun = clock(&env);
                env.shard().sleep(asked).await;
                let slept = clock(&env) - begun;
                let late = slept.as_nanos() as i128 - asked.as_nanos() as i128;
                earliest.set(earliest.get().min(late));
            }));
        }
        for sleeper in sleepers {
            sleeper.await?;
        }
        assert!(earliest.get() >= 0, "a sleep ended {} ns early", -earliest.get());
        Ok(())
    });
}

#[test]
fn delayed_calls_are_made_in_the_order_of_their_deadlines_and_equals_in_the_order_they_were_set() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let mut random = Random(env.seed());
        let made = Rc::new(RefCell::new(Vec::new()));
        let mut planned = Vec::new();
        for index in 0..500_usize {
            let made = Rc::clone(&made);
            // Few different delays, some of them closer than a tick of the wheel.
            let delay = MS * 5 + Duration::from_micros(100) * random.below(40) as u32;
            let call = shard.call_later(delay, move |_| made.borrow_mut().push(index));
            planned.push((call.deadline().expect("it is still to come"), index));
        }
        shard.sleep(MS * 30).await;
        planned.sort_by_key(|(deadline, _)| *deadline);
        let expected: Vec<_> = planned.into_iter().map(|(_, index)| index).collect();
        assert_eq!(*made.borrow(), expected);
        Ok(())
    });
}

#[test]
fn tasks_that_sleep_until_the_same_time_wake_in_the_order_they_fell_asleep() {
    on_every_driver(async |env| {
        let shard = env.shard().clone();
        let deadline = shard.now() + MS * 10;
        let woken = Rc::new(RefCell::new(Vec::new()));
        let mut sleepers = Vec::new();
        for index in 0..300 {
            let (shard, woken) = (shard.clone(), Rc::clone(&woken));
            sleepers.push(env.shard().spawn(async move {
                shard.sleep_until(deadline).await;
                woken.borrow_mut().push(index);
            }));
        }
        for sleeper in sleepers {
            sleeper.await?;
        }
        assert_eq!(*woken.borrow(), (0..300).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn a_call_without_delay_is_not_made_before_call_later_returns() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let made = Rc::new(Cell::new(false));
        let seen = Rc::clone(&made);
        let call = shard.call_later(Duration::ZERO, move |_| seen.set(true));
        assert!(!made.get() && call.active());
        while !made.get() {
            yield_now().await;
        }
        assert!(!call.active());
        Ok(())
    });
}

#[test]
fn a_call_without_delay_set_by_a_timer_is_made_in_the_next_turn() {
    fn again(shard: &Shard, seen: Rc<RefCell<Vec<u64>>>) {
        seen.borrow_mut().push(turns(shard));
        if seen.borrow().len() < 50 {
            shard.call_later(Duration::ZERO, move |shard| again(shard, seen));
        }
    }
    on_every_driver(async |env| {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let first = Rc::clone(&seen);
        env.shard().call_later(MS, move |shard| again(shard, first));
        while seen.borrow().len() < 50 {
            env.shard().sleep(MS).await;
        }
        for pair in seen.borrow().windows(2) {
            assert_eq!(pair[1], pair[0] + 1, "neither in the same turn nor a turn too late");
        }
        Ok(())
    });
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

#[test]
fn a_timer_that_sets_itself_again_without_delay_does_not_starve_connections_or_tasks() {
    fn again(shard: &Shard, on: Rc<Cell<bool>>) {
        if on.get() {
            shard.call_later(Duration::ZERO, move |shard| again(shard, on));
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let on = Rc::new(Cell::new(true));
        again(env.shard(), Rc::clone(&on));
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let mut answer = [0; 5];
        client.write_all(b"hello").await?;
        client.read_exact(&mut answer).await?;
        on.set(false);
        yield_now().await;
        env.shard().sleep(MS).await;
        Ok(())
    });
}

#[test]
fn a_cancelled_call_is_never_made_and_lets_go_of_what_it_held_at_once() {
    on_every_driver(async |env| {
        let held = Rc::new(());
        let kept = Rc::clone(&held);
        let call = env.shard().call_later(MS, move |_| {
            let _kept = kept;
            panic!("it was cancelled");
        });
        let before = panics(env.shard());
        assert_eq!(call.cancel(), Ok(()));
        assert_eq!(Rc::strong_count(&held), 1, "the closure is gone");
        assert!(!call.active());
        assert_eq!(call.deadline(), None);
        assert_eq!(call.cancel(), Err(DelayedCallError::AlreadyCancelled));
        assert_eq!(call.reset(MS), Err(DelayedCallError::AlreadyCancelled));
        assert_eq!(call.delay(MS), Err(DelayedCallError::AlreadyCancelled));
        env.shard().sleep(MS * 5).await;
        assert_eq!(panics(env.shard()), before);
        Ok(())
    });
}

#[test]
fn a_call_that_was_made_or_is_being_made_can_no_longer_be_changed() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let itself: Rc<RefCell<Option<shardwise::DelayedCall>>> = Rc::default();
        let inside = Rc::clone(&itself);
        let checked = Rc::new(Cell::new(0));
        let count = Rc::clone(&checked);
        let check = move || {
            let call = inside.borrow();
            let call = call.as_ref().expect("set below, before any turn");
            assert!(!call.active(), "false already while it runs");
            assert_eq!(call.cancel(), Err(DelayedCallError::AlreadyCalled));
            assert_eq!(call.reset(MS), Err(DelayedCallError::AlreadyCalled));
            assert_eq!(call.delay(MS), Err(DelayedCallError::AlreadyCalled));
            count.set(count.get() + 1);
        };
        let again = check.clone();
        *itself.borrow_mut() = Some(shard.call_later(MS, move |_| check()));
        shard.sleep(MS * 3).await;
        again();
        assert_eq!(checked.get(), 2);
        // The handle holds the shard, and the closure the handle.
        itself.take();
        Ok(())
    });
}

#[test]
fn reset_counts_from_now_and_delay_from_the_old_deadline() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let made = Rc::new(Cell::new(0));
        let count = Rc::clone(&made);
        let call = shard.call_later(Duration::from_secs(50), move |_| count.set(count.get() + 1));
        shard.sleep(MS * 2).await;
        let before = clock(&env);
        assert_eq!(call.reset(MS * 20), Ok(()));
        let sooner = call.deadline().unwrap();
        assert!(sooner >= before + MS * 20 && sooner <= clock(&env) + MS * 20, "from now");
        assert_eq!(call.delay(MS * 7), Ok(()));
        assert_eq!(call.deadline(), Some(sooner + MS * 7), "from the old deadline");
        assert_eq!(call.reset(MS), Ok(()), "sooner than planned");
        shard.sleep(MS * 5).await;
        assert_eq!(made.get(), 1);
        // Later than planned: the old deadline passes without it.
        let count = Rc::clone(&made);
        let call = shard.call_later(MS * 2, move |_| count.set(count.get() + 10));
        assert_eq!(call.reset(MS * 30), Ok(()));
        shard.sleep_until(call.deadline().unwrap() - MS * 10).await;
        if call.deadline().is_some_and(|deadline| clock(&env) < deadline) {
            assert_eq!(made.get(), 1);
        }
        while call.active() {
            shard.sleep(MS).await;
        }
        assert_eq!(made.get(), 11, "once");
        Ok(())
    });
}

#[test]
fn dropping_the_handle_of_a_delayed_call_does_not_cancel_it() {
    on_every_driver(async |env| {
        let made = Rc::new(Cell::new(false));
        let seen = Rc::clone(&made);
        drop(env.shard().call_later(MS, move |_| seen.set(true)));
        env.shard().sleep(MS * 5).await;
        assert!(made.get());
        Ok(())
    });
}

#[test]
fn a_timer_may_cancel_or_move_another_that_is_due_in_the_same_turn() {
    on_every_driver(async |env| {
        let shard = env.shard().clone();
        let log = Rc::new(RefCell::new(Vec::new()));
        let others: Rc<RefCell<Vec<shardwise::DelayedCall>>> = Rc::default();
        let (first_log, first_others) = (Rc::clone(&log), Rc::clone(&others));
        let at = shard.now() + MS * 5;
        shard.call_later(at - shard.now(), move |_| {
            first_log.borrow_mut().push("first");
            let others = first_others.borrow();
            assert_eq!(others[0].cancel(), Ok(()));
            assert_eq!(others[1].reset(MS * 10), Ok(()));
        });
        for name in ["cancelled", "moved", "untouched"] {
            let log = Rc::clone(&log);
            let call = shard.call_later(MS * 5, move |_| log.borrow_mut().push(name));
            others.borrow_mut().push(call);
        }
        if !env.is_simulated() {
            // All become due in one turn.
            stall(MS * 10);
        }
        shard.sleep(MS * 8).await;
        assert_eq!(log.borrow()[..2], ["first", "untouched"]);
        shard.sleep(MS * 30).await;
        assert_eq!(*log.borrow(), ["first", "untouched", "moved"]);
        others.borrow_mut().clear();
        Ok(())
    });
}

/// Keeps the shard from its loop, as a slow callback does.
fn stall(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_delay_beyond_all_times_means_never() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let never = shard.call_later(Duration::MAX, |_| panic!("never is over"));
        let almost = shard.call_later(Duration::MAX - MS, |_| panic!("never is over"));
        assert!(never.active() && almost.active());
        assert!(never.deadline().unwrap() > shard.now() + Duration::from_secs(50 * 365 * 86_400));
        assert_eq!(never.delay(Duration::MAX), Ok(()));
        assert_eq!(never.reset(Duration::MAX), Ok(()));
        assert_eq!(shard.timeout(MS, shard.sleep(Duration::MAX)).await, Err(Elapsed));
        assert_eq!(shard.timeout(Duration::MAX, async { 3 }).await, Ok(3));
        let mut rare = shard.interval(Duration::MAX);
        assert_eq!(shard.timeout(MS, rare.tick()).await, Err(Elapsed));
        assert_eq!(never.reset(Duration::from_secs(40)), Ok(()), "never can be taken back");
        assert_eq!((never.cancel(), almost.cancel()), (Ok(()), Ok(())));
        Ok(())
    });
}

#[test]
fn a_panicking_timer_is_counted_and_the_others_that_are_due_are_still_made() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let before = panics(shard);
        let made = Rc::new(Cell::new(0));
        for index in 0..10 {
            let made = Rc::clone(&made);
            shard.call_later(MS, move |_| {
                made.set(made.get() + 1);
                assert!(index % 2 == 0, "as planned");
            });
        }
        shard.sleep(MS * 20).await;
        assert_eq!(made.get(), 10);
        assert_eq!(panics(shard), before + 5);
        Ok(())
    });
}

/// A waker of the application's own, as a home-made executor has one.
struct Bomb;

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        panic!("a waker of the application's panics");
    }
}

#[test]
fn a_waker_that_panics_does_not_take_the_shard_with_it() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let before = panics(shard);
        let mut sleep = pin!(shard.sleep(MS));
        let waker = Waker::from(Arc::new(Bomb));
        assert_eq!(sleep.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
        shard.sleep(MS * 5).await;
        assert_eq!(panics(shard), before + 1);
        sleep.await;
        Ok(())
    });
}

/// A waker whose destructor uses the shard.
struct Tidy;

impl Wake for Tidy {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Tidy {
    fn drop(&mut self) {
        let shard = Shard::current();
        shard.call_later(Duration::ZERO, |_| {}).cancel().unwrap();
    }
}

#[test]
fn a_waker_may_use_the_shard_while_it_is_dropped() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let poll = |sleep: &mut shardwise::Sleep| {
            let waker = Waker::from(Arc::new(Tidy));
            let mut context = Context::from_waker(&waker);
            assert_eq!(std::pin::Pin::new(sleep).poll(&mut context), Poll::Pending);
        };
        let mut forgotten = shard.sleep(MS);
        poll(&mut forgotten);
        poll(&mut forgotten);
        drop(forgotten);
        let mut due = shard.sleep(MS);
        poll(&mut due);
        shard.sleep(MS * 5).await;
        due.await;
        Ok(())
    });
}

#[test]
fn delayed_calls_lists_exactly_what_is_still_to_come() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let listed = || {
            let mut deadlines = shard.delayed_calls();
            deadlines.sort();
            deadlines
        };
        let before = listed();
        let calls: Vec<_> = (1..=20).map(|index| shard.call_later(MS * 10 * index, |_| {})).collect();
        let expect = |calls: &[shardwise::DelayedCall]| {
            let mut expected = before.clone();
            expected.extend(calls.iter().filter_map(|call| call.deadline()));
            expected.sort();
            expected
        };
        assert_eq!(listed(), expect(&calls));
        calls[3].cancel().unwrap();
        calls[4].reset(Duration::from_secs(3)).unwrap();
        assert_eq!(listed(), expect(&calls), "moved, and without the cancelled one");
        assert_eq!(listed().len(), before.len() + 19);
        while calls[1].active() {
            shard.sleep(MS).await;
        }
        let left = listed();
        assert_eq!(left, expect(&calls), "without those that were made");
        assert!(left.len() <= before.len() + 17);
        for call in &calls {
            let _ = call.cancel();
        }
        assert_eq!(listed(), before);
        Ok(())
    });
}

#[test]
fn an_interval_skips_what_it_missed_and_keeps_its_phase() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let period = MS * 10;
        let before = clock(&env);
        let mut interval = shard.interval(period);
        let mut dues = Vec::new();
        for slow in [0, 0, 45, 0, 0, 23, 0] {
            let due = interval.tick().await;
            assert!(clock(&env) >= due, "early by {:?}", due - clock(&env));
            dues.push(due);
            shard.sleep(MS * slow).await;
        }
        let begun = dues[0] - period;
        assert!(begun >= before && begun <= before + MS * 500, "the first tick is one period from now");
        let steps: Vec<u128> = dues.windows(2).map(|pair| (pair[1] - pair[0]).as_nanos()).collect();
        for step in &steps {
            assert_eq!(step % period.as_nanos(), 0, "the phase is kept: {steps:?}");
            assert!(*step > 0);
        }
        if env.is_simulated() {
            // The tick that was due while the task was slow comes late, once; those after it are skipped.
            let ticks: Vec<_> = steps.iter().map(|step| step / period.as_nanos()).collect();
            assert_eq!(ticks, [1, 1, 1, 4, 1, 1]);
        }
        Ok(())
    });
}

/// Twisted's LoopingCall: a call that is a future delays the next one, and its failure is the loop's.
#[test]
fn a_loop_over_an_interval_waits_for_its_own_work_and_fails_with_it() {
    on_every_driver(async |env| {
        let shard = env.shard().clone();
        let running = Rc::new(Cell::new(0));
        let calls = Rc::new(Cell::new(0));
        let (inside, counted) = (Rc::clone(&running), Rc::clone(&calls));
        let looping = shard.spawn({
            let shard = shard.clone();
            async move {
                let mut interval = shard.interval(MS * 5);
                loop {
                    interval.tick().await;
                    inside.set(inside.get() + 1);
                    assert_eq!(inside.get(), 1, "two calls of one loop at once");
                    shard.sleep(MS * 12).await;
                    inside.set(inside.get() - 1);
                    counted.set(counted.get() + 1);
                    if counted.get() == 3 {
                        return Err::<(), _>("the third call fails");
                    }
                }
            }
        });
        assert_eq!(looping.await.unwrap(), Err("the third call fails"));
        shard.sleep(MS * 30).await;
        assert_eq!(calls.get(), 3, "nothing is called after the failure");
        Ok(())
    });
}

#[test]
fn a_tick_that_was_not_waited_for_comes_again() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let mut interval = shard.interval(MS * 30);
        let first = shard.now();
        assert_eq!(shard.timeout(MS, interval.tick()).await, Err(Elapsed));
        let due = interval.tick().await;
        assert!(due >= first + MS * 30 && due < first + MS * 60, "it is still the first tick");
        Ok(())
    });
}

#[test]
#[should_panic(expected = "an interval needs a period")]
fn an_interval_without_a_period_is_a_bug_of_the_caller() {
    on_every_driver(async |env| {
        let _ = env.shard().interval(Duration::ZERO);
        Ok(())
    });
}

#[test]
fn a_time_limit_lets_the_result_through_or_says_that_it_has_passed() {
    on_every_driver(async |env| {
        let shard = env.shard();
        assert_eq!(shard.timeout(MS * 500, shard.sleep(MS)).await, Ok(()));
        let begun = clock(&env);
        assert_eq!(shard.timeout(MS * 10, std::future::pending::<()>()).await, Err(Elapsed));
        assert!(clock(&env) - begun >= MS * 10, "never early");
        assert_eq!(shard.timeout(Duration::ZERO, async { 1 }).await, Ok(1), "what is there is taken");
        assert_eq!(shardwise::timeout(MS, shardwise::sleep(Duration::from_secs(30))).await, Err(Elapsed));
        // Nothing is left of what was given up.
        let before = shard.delayed_calls().len();
        let _ = shard.timeout(MS, shard.sleep(Duration::from_secs(30))).await;
        assert_eq!(shard.delayed_calls().len(), before);
        Ok(())
    });
}

#[test]
fn timers_are_made_once_in_order_and_in_slices_after_a_stall() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let mut random = Random(env.seed());
        let made: Rc<RefCell<Vec<(Instant, u64)>>> = Rc::default();
        let count = 1_500;
        for _ in 0..count {
            let made = Rc::clone(&made);
            let deadline: Rc<Cell<Option<Instant>>> = Rc::default();
            let own = Rc::clone(&deadline);
            let call = shard.call_later(Duration::from_micros(random.below(20_000)), move |shard| {
                made.borrow_mut().push((own.get().unwrap(), turns(shard)));
            });
            deadline.set(call.deadline());
        }
        if !env.is_simulated() {
            stall(MS * 40);
        }
        while made.borrow().len() < count {
            shard.sleep(MS).await;
        }
        shard.sleep(MS * 30).await;
        let made = made.borrow();
        assert_eq!(made.len(), count, "each once");
        assert!(made.windows(2).all(|pair| pair[0].0 <= pair[1].0), "in the order of their deadlines");
        if !env.is_simulated() {
            let slices: HashSet<_> = made.iter().map(|(_, turn)| *turn).collect();
            assert!(slices.len() >= 5, "1,500 timers in slices of 256 take 6 turns, not {}", slices.len());
        }
        Ok(())
    });
}

#[test]
fn a_delayed_call_can_stop_the_runtime() {
    on_every_driver(async |env| {
        env.shard().call_later(MS, |shard| shard.stop().expect("nobody else has"));
        while env.handle().state() == shardwise::RuntimeState::Running {
            env.shard().sleep(MS).await;
        }
        Ok(())
    });
}

#[test]
fn sleep_and_its_relatives_use_the_current_shard() {
    on_every_driver(async |env| {
        let slept = env
            .handle()
            .call_async(shardwise::ShardId::new(1), async |shard: Shard| {
                let before = shard.now();
                shardwise::sleep(MS * 2).await;
                shardwise::interval(MS).tick().await;
                shard.now() - before
            })
            .await?;
        assert!(slept >= MS * 3);
        Ok(())
    });
}
