//! What the wheel promises: exact order, and the same behaviour as a sorted list.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);
const NS: Duration = Duration::from_nanos(1);

fn wheel<T>() -> (TimerWheel<T>, Instant) {
    let start = Instant::now();
    (TimerWheel::new(start), start)
}

/// One whole pass.
fn expire<T>(wheel: &mut TimerWheel<T>, now: Instant) -> Vec<T> {
    wheel.begin_expiry(now);
    std::iter::from_fn(|| wheel.pop_expired()).collect()
}

#[test]
fn a_timer_fires_at_its_deadline_and_not_a_nanosecond_before() {
    let around_lists = [1023 * MS, 1024 * MS, 1025 * MS, 2047 * MS, 2048 * MS, 2049 * MS, 3072 * MS];
    for delay in [NS, 999 * US, MS, MS + NS, 70_000 * MS + 7 * NS].into_iter().chain(around_lists) {
        let (mut wheel, start) = wheel();
        wheel.insert(start + delay, ());
        assert_eq!(expire(&mut wheel, start + delay - NS), [], "{delay:?}");
        assert_eq!(expire(&mut wheel, start + delay), [()], "{delay:?}");
        assert_eq!(expire(&mut wheel, start + delay + MS), [], "{delay:?}: once");
    }
}

#[test]
fn a_loop_that_sleeps_as_told_is_at_most_a_tick_late_and_wakes_rarely() {
    let cases = [(1, 2_000, 0), (2_000, 64_000, 1), (64_000, 2_040_000, 2), (2_040_000, 64_800_000, 3)];
    let far = [(2_073_600_000, 4), (3_000_000_000_000, 7)];
    let cases = cases.into_iter().flat_map(|(from, to, extra)| {
        (0..200).map(move |step| (from + (to - from) * step / 200, extra)).chain([(to, extra)])
    });
    for (delay_ms, extra_wakes) in cases.chain(far) {
        let (mut wheel, start) = wheel();
        // Not at a round moment, so that the coarse lists begin at odd distances.
        let armed = start + Duration::from_nanos(delay_ms % 997 * 1_234_567);
        expire(&mut wheel, armed);
        let deadline = armed + Duration::from_millis(delay_ms) + 3 * NS;
        wheel.insert(deadline, ());
        let mut wakes = 0;
        let woken = loop {
            let now = wheel.next_deadline().expect("a timer is armed");
            wakes += 1;
            if !expire(&mut wheel, now).is_empty() {
                break now;
            }
            assert!(wakes <= extra_wakes, "{delay_ms} ms: woken in vain too often");
        };
        assert!(deadline <= woken && woken < deadline + MS, "{delay_ms} ms: {:?} late", woken - deadline);
        assert_eq!(wheel.next_deadline(), None);
    }
}

#[test]
fn next_deadline_is_the_earliest_rounded_up_to_the_tick_and_forgets_the_cancelled() {
    let (mut wheel, start) = wheel();
    assert_eq!(wheel.next_deadline(), None);
    let late = wheel.insert(start + 900 * MS, 'l');
    let early = wheel.insert(start + 20 * MS + US, 'e');
    let now = wheel.insert(start + 300 * US, 'n');
    assert_eq!(wheel.next_deadline(), Some(start + MS));
    wheel.cancel(now);
    assert_eq!(wheel.next_deadline(), Some(start + 21 * MS));
    wheel.cancel(early);
    assert_eq!(wheel.next_deadline(), Some(start + 900 * MS));
    assert!(wheel.reset(late, start + 5 * MS));
    assert_eq!(wheel.next_deadline(), Some(start + 5 * MS));
    wheel.cancel(late);
    assert_eq!(wheel.next_deadline(), None);
}

#[test]
fn next_deadline_lets_no_loop_sleep_while_a_timer_is_due() {
    let (mut wheel, start) = wheel();
    let now = start + 10 * MS + 250 * US;
    for step in 0..6 {
        wheel.insert(now - 2 * MS * step, step);
    }
    wheel.begin_expiry(now);
    for popped in 0..6 {
        assert!(wheel.next_deadline().unwrap() <= now, "after {popped} of 6");
        assert_eq!(wheel.pop_expired(), Some(5 - popped));
    }
    assert_eq!(wheel.next_deadline(), None);
    // A zero delay: due at once, not at the end of the tick.
    wheel.insert(now, 6);
    assert_eq!(wheel.next_deadline(), Some(now));
}

#[test]
fn timers_of_one_tick_fire_by_deadline_and_equal_deadlines_in_the_order_armed() {
    let (mut wheel, start) = wheel();
    let at = |us: u32| start + 5 * MS + us * US;
    let reset = wheel.insert(at(100), "first at 100, armed anew: last");
    for (us, name) in [(900, "900"), (100, "100 a"), (101, "101"), (100, "100 b"), (0, "0")] {
        wheel.insert(at(us), name);
    }
    assert!(wheel.reset(reset, at(100)));
    let expected = ["0", "100 a", "100 b", "first at 100, armed anew: last", "101", "900"];
    assert_eq!(expire(&mut wheel, at(900)), expected);
}

#[test]
fn a_timer_armed_from_afar_fires_before_its_equals_armed_later() {
    let (mut wheel, start) = wheel();
    let deadline = start + 70_000 * MS;
    wheel.insert(deadline, "from 70 s");
    expire(&mut wheel, start + 69_000 * MS);
    wheel.insert(deadline, "from 1 s");
    expire(&mut wheel, start + 69_500 * MS);
    wheel.insert(deadline, "from 0.5 s");
    assert_eq!(expire(&mut wheel, deadline), ["from 70 s", "from 1 s", "from 0.5 s"]);
}

#[test]
fn a_zero_delay_timer_armed_in_a_pass_waits_for_the_next() {
    let (mut wheel, start) = wheel();
    let now = start + 3 * MS + 500 * US;
    wheel.insert(now, "first");
    let pending = wheel.insert(now, "second");
    wheel.begin_expiry(now);
    assert_eq!(wheel.pop_expired(), Some("first"));
    wheel.insert(now, "zero delay");
    wheel.insert(start, "in the past");
    assert!(wheel.reset(pending, now));
    assert_eq!(wheel.pop_expired(), None);
    assert_eq!(expire(&mut wheel, now), ["zero delay", "in the past", "second"]);
}

#[test]
fn a_deadline_in_the_past_is_due_in_the_next_pass_after_what_was_due_before() {
    let (mut wheel, start) = wheel();
    wheel.insert(start - 5 * MS, "before the wheel began");
    assert_eq!(expire(&mut wheel, start), ["before the wheel began"]);
    for name in ["a", "b", "c"] {
        wheel.insert(start + 10 * MS, name);
    }
    wheel.begin_expiry(start + 20 * MS);
    assert_eq!(wheel.pop_expired(), Some("a"));
    wheel.insert(start + 5 * MS, "past");
    assert_eq!(expire(&mut wheel, start + 20 * MS), ["b", "c", "past"]);
}

#[test]
fn a_pass_cut_short_goes_on_in_order_and_later_timers_come_after() {
    let (mut wheel, start) = wheel();
    for ms in (1..=100).rev() {
        wheel.insert(start + ms * MS, ms);
    }
    let mut fired = Vec::new();
    for turn in 0.. {
        wheel.begin_expiry(start + (50 + turn) * MS);
        let before = fired.len();
        fired.extend(std::iter::from_fn(|| wheel.pop_expired()).take(7));
        if fired.len() == before {
            break;
        }
    }
    assert_eq!(fired, Vec::from_iter(1..=fired.len() as u32));
    assert!(fired.len() >= 50);
}

#[test]
fn after_a_stall_everything_due_fires_once_in_deadline_order() {
    let (mut wheel, start) = wheel();
    let delays: Vec<_> = (0..5_000u64).map(|step| step * 48_271 % 4_999_999 + 1).collect();
    for &delay_us in &delays {
        wheel.insert(start + Duration::from_micros(delay_us), delay_us);
    }
    let mut expected = delays;
    expected.sort_unstable();
    assert_eq!(expire(&mut wheel, start + 5_000 * MS), expected);
    assert_eq!(wheel.len(), 0);
}

#[test]
fn a_due_timer_can_be_cancelled_and_reset_before_its_turn_in_the_pass() {
    let (mut wheel, start) = wheel();
    let keys: Vec<_> = (0..5).map(|number| wheel.insert(start + 2 * MS, number)).collect();
    wheel.begin_expiry(start + 10 * MS);
    assert_eq!(wheel.pop_expired(), Some(0));
    assert_eq!(wheel.cancel(keys[1]), Some(1));
    assert!(wheel.reset(keys[2], start + 30 * MS), "later");
    assert!(wheel.reset(keys[3], start + 3 * MS), "a time that has passed too");
    assert_eq!(wheel.pop_expired(), Some(4));
    assert_eq!(wheel.pop_expired(), None);
    assert_eq!(expire(&mut wheel, start + 29 * MS), [3]);
    assert_eq!(expire(&mut wheel, start + 30 * MS), [2]);
}

#[test]
fn reset_moves_a_timer_earlier_and_later() {
    let (mut wheel, start) = wheel();
    let key = wheel.insert(start + 5_000 * MS, 'x');
    for delay_ms in [7_000, 5_001, 5_000, 20, 1_000_000, 3] {
        assert!(wheel.reset(key, start + delay_ms * MS));
        assert_eq!(wheel.deadline(key), Some(start + delay_ms * MS));
        assert_eq!(wheel.len(), 1);
    }
    assert_eq!(expire(&mut wheel, start + 3 * MS), ['x']);
    assert!(!wheel.reset(key, start), "gone");
}

#[test]
fn the_key_of_a_timer_that_is_gone_finds_nothing_though_its_slot_is_used_again() {
    let (mut wheel, start) = wheel();
    let fired = wheel.insert(start, 'f');
    assert_eq!(expire(&mut wheel, start), ['f']);
    let cancelled = wheel.insert(start, 'c');
    assert_eq!(wheel.cancel(cancelled), Some('c'));
    let live = wheel.insert(start, 'l');
    assert_eq!((fired.index, cancelled.index), (live.index, live.index), "slots are used again");
    for gone in [fired, cancelled] {
        assert_eq!(wheel.cancel(gone), None);
        assert!(!wheel.reset(gone, start));
        assert_eq!(wheel.deadline(gone), None);
        assert!(!wheel.contains(gone));
    }
    assert!(wheel.contains(live));
    assert_eq!(wheel.len(), 1);
}

#[test]
fn a_slot_out_of_generations_is_never_used_again() {
    let (mut wheel, start) = wheel();
    let first = wheel.insert(start, ());
    wheel.cancel(first);
    wheel.slots.get_mut(first.index).generation = NonZeroU32::MAX;
    let last = wheel.insert(start, ());
    assert_eq!((last.index, last.generation), (first.index, NonZeroU32::MAX));
    wheel.cancel(last);
    assert_eq!(wheel.cancel(last), None);
    assert_ne!(wheel.insert(start, ()).index, last.index);
}

#[test]
fn huge_delays_mean_never() {
    let (mut wheel, start) = wheel();
    assert!(deadline_after(start, Duration::MAX) > start + CENTURY - MS);
    assert_eq!(deadline_after(start, MS), start + MS);
    let farthest = saturating_add(start, Duration::MAX);
    assert!(farthest > start + 2 * CENTURY);
    let never = wheel.insert(farthest, "never");
    wheel.insert(deadline_after(start, Duration::MAX), "in a century");
    assert!(wheel.next_deadline().unwrap() > start + CENTURY / 3, "sleeps for decades");
    assert_eq!(expire(&mut wheel, start + CENTURY - MS), [""; 0]);
    assert_eq!(expire(&mut wheel, start + CENTURY), ["in a century"]);
    assert_eq!(expire(&mut wheel, farthest), [""; 0], "not even at the end of time");
    assert!(wheel.next_deadline().is_some());
    assert!(wheel.deadline(never).unwrap() > start + 5 * CENTURY);
    assert!(deadline_after(farthest, Duration::MAX) >= farthest, "saturates");
    assert_eq!(wheel.cancel(never), Some("never"));
}

#[test]
fn a_clock_that_steps_back_is_ignored() {
    let (mut wheel, start) = wheel();
    wheel.insert(start + 5 * MS, 'a');
    wheel.begin_expiry(start + 10 * MS);
    assert_eq!(expire(&mut wheel, start), ['a']);
    wheel.insert(start + 11 * MS, 'b');
    assert_eq!(expire(&mut wheel, start + 11 * MS), ['b']);
}

#[test]
fn draining_gives_every_value_back_in_firing_order_and_leaves_a_wheel_that_works() {
    let (mut wheel, start) = wheel();
    let delays_ms = [5_000, 1, 70_000, 300, 0];
    let keys = delays_ms.map(|ms| wheel.insert(start + ms * MS, ms));
    let cancelled = wheel.insert(start, 9);
    wheel.cancel(cancelled);
    let listed: Vec<_> = wheel.deadlines();
    let expected = [4, 1, 3, 0, 2].map(|which: usize| (keys[which], start + delays_ms[which] * MS));
    assert_eq!(listed, expected);
    assert_eq!(wheel.drain_all(), [0, 1, 300, 5_000, 70_000]);
    assert_eq!((wheel.len(), wheel.next_deadline()), (0, None));
    assert!(keys.iter().all(|key| !wheel.contains(*key)));
    wheel.insert(start + 300 * MS, 7);
    assert_eq!(expire(&mut wheel, start + 100_000 * MS), [7]);
}

#[test]
fn a_hundred_thousand_timers_with_all_but_a_few_cancelled_fire_those_few() {
    let (mut wheel, start) = wheel();
    let delay = |number: u64| Duration::from_micros(number * 7_919 % 60_000_000 + 1);
    let keys: Vec<_> = (0..100_000).map(|number| wheel.insert(start + delay(number), number)).collect();
    let pages = wheel.slots.pages.len();
    for (number, key) in keys.iter().enumerate().filter(|(number, _)| number % 100 != 0) {
        assert_eq!(wheel.cancel(*key), Some(number as u64));
    }
    assert_eq!(wheel.len(), 1_000);
    let mut expected: Vec<_> = (0..100_000).step_by(100).collect();
    expected.sort_by_key(|number| (delay(*number), *number));
    assert_eq!(expire(&mut wheel, start + 60_001 * MS), expected);
    for number in 0..100_000 {
        wheel.insert(start + 120_000 * MS + delay(number), number);
    }
    assert_eq!(wheel.slots.pages.len(), pages, "slots are used again");
}

#[test]
fn a_crowd_of_distant_timers_moves_a_few_in_each_pass_and_has_moved_when_it_is_due() {
    let (mut wheel, start) = wheel();
    // Miri needs a quarter of an hour for twenty passes' worth.
    let full_passes: u32 = if cfg!(miri) { 3 } else { 20 };
    let crowd = u64::from(full_passes * MOVES_PER_PASS);
    let due = start + 65_536 * MS;
    let delay = |number: u64| Duration::from_micros(number * 7_919 % 1_000_000 + 1);
    for number in 0..crowd {
        wheel.insert(due + delay(number), number);
    }
    let near = |wheel: &TimerWheel<u64>| {
        let slots = wheel.slots.pages.iter().flat_map(|page| page.iter());
        slots.filter(|slot| slot.value.is_some() && slot.list < FINE_LISTS).count() as u64
    };
    let mut now = start;
    let (mut passes, mut moving) = (0, 0);
    while near(&wheel) < crowd {
        let before = near(&wheel);
        let woken = wheel.next_deadline().unwrap();
        moving += u32::from(woken <= now);
        now = now.max(woken);
        assert_eq!(expire(&mut wheel, now), [0; 0]);
        assert!(near(&wheel) - before <= u64::from(MOVES_PER_PASS), "all at once");
        passes += 1;
        assert!(passes < 60, "moves too few");
    }
    assert!(now <= due - 1_000 * MS, "{:?} before they are due", due - now);
    assert!(moving >= full_passes - 2, "one pass followed the other {moving} times");
    assert!(wheel.next_deadline().unwrap() > now, "nothing is left to do");
    let mut expected = Vec::from_iter(0..crowd);
    expected.sort_by_key(|number| delay(*number));
    assert_eq!(expire(&mut wheel, due + 1_001 * MS), expected);
}

#[test]
fn a_crowd_that_nobody_had_time_to_move_fires_all_the_same() {
    let (mut wheel, start) = wheel();
    let crowd = 20 * u64::from(MOVES_PER_PASS);
    let delay = |number: u64| Duration::from_micros(3_000_000 + number * 7_919 % 1_000_000);
    let keys: Vec<_> = (0..crowd).map(|number| wheel.insert(start + delay(number), number)).collect();
    // The list is open, and most are in it still: one is cancelled, one put off, one brought forward.
    assert_eq!(expire(&mut wheel, start + 2_050 * MS), [0; 0]);
    assert!(wheel.open_list().is_some());
    assert_eq!(wheel.cancel(keys[0]), Some(0));
    assert!(wheel.reset(keys[1], start + 9_000 * MS));
    assert!(wheel.reset(keys[2], start + 2_500 * MS));
    let mut expected = Vec::from_iter(3..crowd);
    expected.sort_by_key(|number| delay(*number));
    expected.insert(0, 2);
    assert_eq!(expire(&mut wheel, start + 5_000 * MS), expected);
    assert_eq!(expire(&mut wheel, start + 9_000 * MS), [1]);
}

#[test]
fn cancelling_timers_of_the_current_tick_piles_nothing_up() {
    let (mut wheel, start) = wheel();
    let kept = wheel.insert(start, 0);
    for number in 1..10_000 {
        let key = wheel.insert(start, number);
        assert_eq!(wheel.cancel(key), Some(number));
        assert!(wheel.reset(kept, start));
    }
    assert!(wheel.added.len() < 4 * STALE_KEPT, "{} entries for one timer", wheel.added.len());
    assert_eq!(expire(&mut wheel, start), [0]);
    assert_eq!((wheel.added.len(), wheel.stale), (0, 0));
}

#[test]
fn a_timer_is_small() {
    type FourWords = (&'static (), [usize; 3]);
    assert_eq!((size_of::<Slot<FourWords>>(), align_of::<Slot<FourWords>>()), (64, 64));
    assert_eq!((size_of::<TimerKey>(), size_of::<Option<TimerKey>>()), (8, 8));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Duration),
    Cancel(usize),
    Reset(usize, Duration),
    /// Moves the clock on, then fires at most so many.
    Advance(Duration, usize),
    /// Fires more in the same pass.
    GoOn(usize),
    /// Sleeps as told and fires what is due, so many times.
    Sleep(usize),
}

fn delay() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        4 => (0..2_500u64).prop_map(Duration::from_micros),
        // Few values, so that deadlines meet.
        4 => (0..40u64).prop_map(|step| Duration::from_millis(step * 50)),
        2 => (0..80_000u64).prop_map(Duration::from_millis),
        1 => (0..20_000_000_000u64).prop_map(Duration::from_millis),
        1 => any::<u64>().prop_map(Duration::from_secs),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let advance = prop_oneof![
        8 => (0..3_000u64).prop_map(Duration::from_micros),
        4 => (0..40u64).prop_map(|step| Duration::from_millis(step * 50)),
        2 => (0..80_000u64).prop_map(Duration::from_millis),
        1 => (0..20_000_000_000u64).prop_map(Duration::from_millis),
    ];
    prop_oneof![
        6 => delay().prop_map(Step::Insert),
        2 => any::<usize>().prop_map(Step::Cancel),
        3 => (any::<usize>(), delay()).prop_map(|(which, delay)| Step::Reset(which, delay)),
        4 => (advance, prop_oneof![Just(usize::MAX), 0..4usize])
            .prop_map(|(by, budget)| Step::Advance(by, budget)),
        1 => (0..4usize).prop_map(Step::GoOn),
        2 => (1..12usize).prop_map(Step::Sleep),
    ]
}

/// What the wheel promises, with a sorted map.
struct Model {
    armed: BTreeMap<(Instant, u64), usize>,
    sequence: u64,
    now: Instant,
    pass: (Instant, u64),
}

impl Model {
    fn arm(&mut self, deadline: Instant, name: usize) -> (Instant, u64) {
        let rank = (deadline.max(self.pass.0), self.sequence);
        self.sequence += 1;
        self.armed.insert(rank, name);
        rank
    }

    fn pop(&mut self) -> Option<usize> {
        let first = self.armed.first_entry()?;
        (*first.key() < self.pass).then(|| first.remove())
    }
}

/// Fires at most so many timers of both.
fn fire(wheel: &mut TimerWheel<usize>, model: &mut Model, at_most: usize) -> Result<(), TestCaseError> {
    for _ in 0..at_most {
        let expected = model.pop();
        prop_assert_eq!(wheel.pop_expired(), expected);
        if expected.is_none() {
            break;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_wheel_does_what_a_sorted_map_does(
        steps in prop::collection::vec(step(), 1..200),
        moves_per_pass in prop_oneof![Just(1), Just(3), Just(MOVES_PER_PASS)],
    ) {
        let (mut wheel, start) = wheel();
        wheel.moves_per_pass = moves_per_pass;
        let mut model = Model { armed: BTreeMap::new(), sequence: 0, now: start, pass: (start, 0) };
        let mut timers: Vec<(TimerKey, (Instant, u64))> = Vec::new();
        for step in steps {
            let mut budget = 0;
            match step {
                Step::Insert(delay) => {
                    let deadline = deadline_after(model.now, delay);
                    let rank = model.arm(deadline, timers.len());
                    timers.push((wheel.insert(deadline, timers.len()), rank));
                }
                Step::Cancel(which) if !timers.is_empty() => {
                    let (key, rank) = timers[which % timers.len()];
                    prop_assert_eq!(wheel.cancel(key), model.armed.remove(&rank));
                }
                Step::Reset(which, delay) if !timers.is_empty() => {
                    let which = which % timers.len();
                    let (key, rank) = timers[which];
                    let deadline = deadline_after(model.now, delay);
                    let armed = model.armed.remove(&rank).is_some();
                    if armed {
                        timers[which].1 = model.arm(deadline, which);
                    }
                    prop_assert_eq!(wheel.reset(key, deadline), armed);
                }
                Step::Cancel(_) | Step::Reset(..) => {}
                Step::Advance(by, at_most) => {
                    model.now += by;
                    model.pass = (model.now, model.sequence);
                    wheel.begin_expiry(model.now);
                    budget = at_most;
                }
                Step::GoOn(at_most) => budget = at_most,
                Step::Sleep(times) => {
                    for _ in 0..times {
                        let wake = wheel.next_deadline().filter(|wake| *wake < start + 3 * CENTURY);
                        let Some(wake) = wake else { break };
                        model.now = model.now.max(wake);
                        model.pass = (model.now, model.sequence);
                        wheel.begin_expiry(model.now);
                        fire(&mut wheel, &mut model, usize::MAX)?;
                    }
                }
            }
            fire(&mut wheel, &mut model, budget)?;
            prop_assert_eq!(wheel.len(), model.armed.len());
            let wake = wheel.next_deadline();
            prop_assert_eq!(wake.is_some(), !model.armed.is_empty());
            if let (Some(wake), Some(((earliest, _), _))) = (wake, model.armed.first_key_value()) {
                if *earliest <= model.pass.0 {
                    prop_assert!(wake <= model.pass.0, "sleeps while a timer is due");
                } else {
                    prop_assert!(wake < *earliest + MS, "sleeps too long");
                    prop_assert!(wake > model.pass.0 || wheel.open_list().is_some(), "does not sleep");
                }
            }
        }
        let expected: Vec<_> =
            model.armed.iter().map(|((deadline, _), name)| (timers[*name].0, *deadline)).collect();
        prop_assert_eq!(wheel.deadlines(), expected);
        prop_assert_eq!(wheel.drain_all(), model.armed.into_values().collect::<Vec<_>>());
    }
}
