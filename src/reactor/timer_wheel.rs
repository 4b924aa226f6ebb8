//! Deadlines: which of a shard's timers are due, and how long the loop may sleep. Does not read the clock,
//! and never runs or drops what a timer carries: it hands values back.
//!
//! A hierarchical wheel (Varghese & Lauck 1987, scheme 7) of 1 ms ticks. The first level has a list per tick
//! for the next 2,047 ticks, so timers up to two seconds away never move; seven more levels of 64 lists reach
//! beyond what 64 bits of nanoseconds can say. A timer's tick is its deadline rounded up.
//!
//! A list of a coarse level is opened, which moves its timers to finer ones, not when its time comes, for a
//! million of them would hold up everything that is due then, but one list's width before, some timers in each
//! pass. For that every level reaches two lists of the next coarser level ahead: so a list that is open gets no
//! more timers, and all it holds has a finer place.
//!
//! The wheel only sorts timers into ticks. When a tick comes up, its list is sorted by exact deadline; what
//! is armed for that tick afterwards goes to a small heap beside it. So what fires, and in which order, is
//! exact to the nanosecond; the tick decides only how long a sleeping loop may lie in: see
//! [`TimerWheel::next_deadline`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// The timers of one shard, each carrying a `T`.
///
/// `insert`, `cancel` and `reset` are O(1) for timers beyond the current tick, and O(log n) in the number of
/// timers of the current tick. Nothing is allocated per timer once the table has grown; a timer takes
/// 32 bytes + `Option<T>`, in whole cache lines. The table does not shrink.
///
/// # Order
/// Timers fire by deadline, and those with one deadline in the order in which they were armed (inserted or
/// last reset). A deadline that has already passed when it is armed counts as the time of the latest
/// [`begin_expiry`](Self::begin_expiry), so it comes after all that were due before it: no stream of late
/// timers can starve the others.
pub(crate) struct TimerWheel<T> {
    start: Instant,
    /// What the current pass may fire: what comes before this.
    pass: Rank,
    /// The tick that holds `pass.deadline_ns`: the wheel turns no further.
    pass_tick: u64,
    /// All timers of this tick and earlier are in `sorted` and `added`, all others in the lists. At most
    /// `pass_tick`.
    current_tick: u64,
    /// Never later than the first tick after `current_tick` at which there is something to do: see
    /// [`Lists::next_event_tick`].
    next_event_tick: u64,
    /// A bit for each level that may have an open list: the one after that of the present.
    open_levels: u32,
    /// How many timers this pass may still move to finer lists, and how many any pass may.
    moves_left: u32,
    moves_per_pass: u32,
    next_sequence: u64,
    /// The timers that the lists held for the current tick, the first to fire at the end. Cancelling leaves an
    /// entry behind, here and in `added`, told from a live one by its sequence.
    sorted: Vec<Near>,
    /// The timers armed for the current tick since it began.
    added: BinaryHeap<Reverse<Near>>,
    stale: usize,
    lists: Lists,
    slots: Slots<T>,
}

/// Names one timer for ever: once the timer has fired or was cancelled, its key finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TimerKey {
    index: u32,
    /// Not zero, so that an `Option` of a key is no larger: every connection has two of them.
    generation: NonZeroU32,
}

/// `now + delay`, or about a century from `now` if that is sooner: nobody waits that long, and no arithmetic
/// on the result overflows.
#[inline]
pub(crate) fn deadline_after(now: Instant, delay: Duration) -> Instant {
    saturating_add(now, delay.min(CENTURY))
}

impl<T> TimerWheel<T> {
    /// A wheel whose time begins at `start`; deadlines before that count as `start`.
    pub(crate) fn new(start: Instant) -> Self {
        TimerWheel {
            start,
            pass: Rank { deadline_ns: 0, sequence: 0 },
            pass_tick: 0,
            current_tick: 0,
            next_event_tick: u64::MAX,
            open_levels: 0,
            moves_left: 0,
            moves_per_pass: MOVES_PER_PASS,
            next_sequence: 0,
            sorted: Vec::new(),
            added: BinaryHeap::new(),
            stale: 0,
            lists: Lists::new(),
            slots: Slots::new(),
        }
    }

    /// Arms a timer. A `deadline` in the past is due in the next pass, one beyond about 584 years never.
    ///
    /// # Panics
    /// Panics at 2^32 - 1 timers.
    #[inline]
    pub(crate) fn insert(&mut self, deadline: Instant, value: T) -> TimerKey {
        let rank = self.next_rank(deadline);
        let index = self.slots.take_vacant();
        let slot = self.slots.get_mut(index);
        slot.value = Some(value);
        slot.rank = rank;
        let key = TimerKey { index, generation: slot.generation };
        self.place(index, rank);
        key
    }

    /// Disarms a timer and gives its value back, to be dropped where no borrow is held. `None` if it has
    /// fired or was cancelled. Works as well on a timer that is due and waits for its turn in a pass.
    #[inline]
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<T> {
        self.slots.find(key)?;
        self.unplace(key.index);
        self.slots.vacate(key.index)
    }

    /// Gives a timer another deadline, earlier or later, as if it had been inserted anew under the same key:
    /// a timer that is reset while it waits for its turn in a pass leaves that pass. False if it has fired or
    /// was cancelled.
    pub(crate) fn reset(&mut self, key: TimerKey, deadline: Instant) -> bool {
        let Some(slot) = self.slots.find(key) else { return false };
        let old_list = slot.list;
        let rank = self.next_rank(deadline);
        let tick = rank.tick();
        // An idle timeout is pushed on with every message, mostly by less than its list is wide.
        let stays = tick > self.current_tick && list_of(tick, self.current_tick).0 == old_list;
        if !stays {
            self.unplace(key.index);
        }
        self.slots.get_mut(key.index).rank = rank;
        if !stays {
            self.place(key.index, rank);
        }
        true
    }

    /// When the timer is due. `None` if it has fired or was cancelled.
    pub(crate) fn deadline(&self, key: TimerKey) -> Option<Instant> {
        self.slots.find(key).map(|slot| self.instant(slot.rank.deadline_ns))
    }

    /// Whether the timer is still to fire.
    pub(crate) fn contains(&self, key: TimerKey) -> bool {
        self.slots.find(key).is_some()
    }

    /// How many timers are still to fire.
    pub(crate) fn len(&self) -> usize {
        self.slots.occupied
    }

    /// All timers still to fire, in firing order. For introspection: walks the whole table.
    pub(crate) fn deadlines(&self) -> Vec<(TimerKey, Instant)> {
        let in_order = self.slots.in_firing_order();
        in_order.into_iter().map(|(rank, key)| (key, self.instant(rank.deadline_ns))).collect()
    }

    /// How long the loop may sleep; `None` for ever.
    ///
    /// Never later than the earliest deadline rounded up to the tick, and not in the future while a timer is
    /// due. Exact (rounded up) for deadlines up to two seconds away. For later ones it may be sooner, when the
    /// timer has to move to a finer level; such wake-ups with nothing to fire number at most 1 for a delay up
    /// to 64 s, 2 up to 34 min, 3 up to 18 h, 4 up to 24 days and 7 for any delay, and timers close together
    /// share them. Where more than 512 have to move at a time, passes follow one another until they have.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        if self.slots.occupied == 0 {
            return None;
        }
        let near = self.first_near();
        if let Some(near) = near
            && near.rank.deadline_ns <= self.pass.deadline_ns
        {
            return Some(self.instant(near.rank.deadline_ns));
        }
        if self.open_list().is_some() {
            return Some(self.instant(self.pass.deadline_ns));
        }
        if let Some(near) = near {
            return Some(self.instant(tick_ns(near.rank.tick())));
        }
        self.next_event_tick = self.lists.next_event_tick(self.current_tick);
        (self.next_event_tick != u64::MAX).then(|| self.instant(tick_ns(self.next_event_tick)))
    }

    /// Begins a pass: from now on [`pop_expired`](Self::pop_expired) yields the timers that are armed at this
    /// moment and whose deadline is `now` or earlier. What is armed later, a zero delay included, waits for
    /// the next pass. What an unfinished pass has left comes first in this one. `now` never goes back.
    pub(crate) fn begin_expiry(&mut self, now: Instant) {
        // The clamp keeps "never" out of reach.
        let now_ns = self.nanoseconds(now).min(NEVER_NS - 1).max(self.pass.deadline_ns);
        self.pass = Rank { deadline_ns: now_ns, sequence: self.next_sequence };
        self.pass_tick = self.pass.tick();
        self.moves_left = self.moves_per_pass;
        self.move_some();
    }

    /// Takes the next timer of the pass; `None` when the pass is over. The work of one call is bounded by the
    /// timers of one tick, and the moves of a pass by their own bound: beyond it only what was not moved in
    /// time, in all the passes of a list's width, moves at once.
    pub(crate) fn pop_expired(&mut self) -> Option<T> {
        let near = self.first_near()?;
        // All that was armed since the pass began ranks behind it: later deadline, or the same and a later
        // sequence. So the first one that may not fire ends the pass.
        if near.rank >= self.pass {
            return None;
        }
        self.pop_near(near);
        self.slots.vacate(near.index)
    }

    /// Disarms every timer and gives the values back, in firing order.
    pub(crate) fn drain_all(&mut self) -> Vec<T> {
        let in_order = self.slots.in_firing_order();
        self.lists = Lists::new();
        self.sorted.clear();
        self.added.clear();
        self.stale = 0;
        self.open_levels = 0;
        in_order.into_iter().filter_map(|(_, key)| self.slots.vacate(key.index)).collect()
    }

    /// The least timer, provided it belongs to a tick that the pass has reached.
    #[inline]
    fn first_near(&mut self) -> Option<Near> {
        loop {
            let near = match (self.sorted.last(), self.added.peek()) {
                (Some(&sorted), Some(&Reverse(added))) => sorted.min(added),
                (Some(&near), None) | (None, Some(&Reverse(near))) => near,
                (None, None) if self.pass_tick < self.next_event_tick => {
                    self.current_tick = self.pass_tick;
                    return None;
                }
                (None, None) => {
                    self.turn_wheel();
                    continue;
                }
            };
            if self.slots.is_live(near) {
                return Some(near);
            }
            self.pop_near(near);
            self.stale -= 1;
        }
    }

    /// Removes the least entry, which is `near`.
    #[inline]
    fn pop_near(&mut self, near: Near) {
        if self.sorted.last() == Some(&near) {
            self.sorted.pop();
        } else {
            self.added.pop();
        }
    }

    /// Goes on to the next tick that has something in its list, or to the end of the pass.
    fn turn_wheel(&mut self) {
        self.next_event_tick = self.lists.next_event_tick(self.current_tick);
        if self.pass_tick < self.next_event_tick || self.finish_moves(self.next_event_tick) {
            return;
        }
        self.current_tick = self.next_event_tick;
        let mut index = self.lists.take(list_at(0, self.current_tick));
        while index != NO_SLOT {
            let slot = self.slots.get_mut(index);
            slot.list = NEAR;
            self.sorted.push(Near { rank: slot.rank, index });
            index = slot.next;
        }
        self.sorted.sort_unstable_by(|one, other| other.cmp(one));
        for level in 1..LEVELS {
            if self.current_tick.trailing_zeros() < shift(level) {
                break;
            }
            self.open_levels |= 1 << level;
        }
        self.move_some();
    }

    /// Moves timers out of open lists, as many as the pass may.
    #[inline]
    fn move_some(&mut self) {
        while self.open_levels != 0
            && self.moves_left > 0
            && let Some(list) = self.open_list()
        {
            self.moves_left -= 1;
            self.move_first(list);
        }
    }

    /// Moves all timers out of the open lists whose time begins at `tick` or before. True if there were any.
    fn finish_moves(&mut self, tick: u64) -> bool {
        let mut moved = false;
        for level in 1..LEVELS {
            let start = ((self.current_tick >> shift(level)) + 1) << shift(level);
            let list = list_at(level, start);
            while start <= tick && self.lists.is_occupied(list) {
                self.move_first(list);
                moved = true;
            }
        }
        moved
    }

    /// An open list that has timers still.
    #[inline]
    fn open_list(&mut self) -> Option<u32> {
        while self.open_levels != 0 {
            let level = self.open_levels.trailing_zeros();
            let start = ((self.current_tick >> shift(level)) + 1) << shift(level);
            let list = list_at(level, start);
            if self.lists.is_occupied(list) {
                return Some(list);
            }
            self.open_levels &= self.open_levels - 1;
        }
        None
    }

    /// Moves the first timer of an open list to a finer one.
    fn move_first(&mut self, list: u32) {
        let index = self.lists.first(list);
        self.unplace(index);
        self.place(index, self.slots.get(index).rank);
    }

    #[inline]
    fn next_rank(&mut self, deadline: Instant) -> Rank {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Rank { deadline_ns: self.nanoseconds(deadline).max(self.pass.deadline_ns), sequence }
    }

    #[inline(always)]
    fn place(&mut self, index: u32, rank: Rank) {
        let tick = rank.tick();
        if tick <= self.current_tick {
            self.slots.get_mut(index).list = NEAR;
            self.added.push(Reverse(Near { rank, index }));
            return;
        }
        let (list, event_tick) = list_of(tick, self.current_tick);
        self.next_event_tick = self.next_event_tick.min(event_tick);
        let next = self.lists.push(list, index);
        let slot = self.slots.get_mut(index);
        slot.list = list;
        slot.next = next;
        slot.previous = NO_SLOT;
        if next != NO_SLOT {
            self.slots.get_mut(next).previous = index;
        }
    }

    #[inline(always)]
    fn unplace(&mut self, index: u32) {
        let slot = self.slots.get_mut(index);
        let (list, next, previous) = (slot.list, slot.next, slot.previous);
        if list == NEAR {
            slot.rank.sequence = STALE;
            self.note_stale();
            return;
        }
        if next != NO_SLOT {
            self.slots.get_mut(next).previous = previous;
        }
        if previous != NO_SLOT {
            self.slots.get_mut(previous).next = next;
        } else {
            self.lists.set_first(list, next);
        }
    }

    /// Keeps what cancelled timers leave in the current tick below what the live ones take.
    #[inline(never)]
    fn note_stale(&mut self) {
        self.stale += 1;
        if self.stale > STALE_KEPT && self.stale > (self.sorted.len() + self.added.len()) / 2 {
            let slots = &self.slots;
            self.sorted.retain(|near| slots.is_live(*near));
            self.added.retain(|Reverse(near)| slots.is_live(*near));
            self.stale = 0;
        }
    }

    #[inline]
    fn nanoseconds(&self, instant: Instant) -> u64 {
        let since_start = instant.saturating_duration_since(self.start);
        let whole_seconds = since_start.as_secs().checked_mul(1_000_000_000);
        whole_seconds.and_then(|ns| ns.checked_add(u64::from(since_start.subsec_nanos()))).unwrap_or(NEVER_NS)
    }

    fn instant(&self, nanoseconds: u64) -> Instant {
        saturating_add(self.start, Duration::from_nanos(nanoseconds))
    }
}

/// The firing order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    deadline_ns: u64,
    sequence: u64,
}

impl Rank {
    #[inline]
    fn tick(self) -> u64 {
        self.deadline_ns.div_ceil(TICK_NS)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Near {
    rank: Rank,
    index: u32,
}

/// The heads of the wheel's lists, finest level first, and one bit for each that is not empty.
struct Lists {
    first: [u32; LISTS],
    occupied: [u64; LISTS / 64],
    /// A bit for each word of `occupied` in the finest level that is not zero.
    fine_words: u32,
}

impl Lists {
    fn new() -> Self {
        Lists { first: [NO_SLOT; LISTS], occupied: [0; LISTS / 64], fine_words: 0 }
    }

    /// Puts a slot in front and returns the one that was there.
    #[inline]
    fn push(&mut self, list: u32, index: u32) -> u32 {
        let word = list / 64;
        self.occupied[word as usize] |= 1 << (list % 64);
        if word < FINE_WORDS {
            self.fine_words |= 1 << word;
        }
        std::mem::replace(&mut self.first[list as usize], index)
    }

    #[inline]
    fn set_first(&mut self, list: u32, index: u32) {
        self.first[list as usize] = index;
        if index == NO_SLOT {
            let word = list / 64;
            self.occupied[word as usize] &= !(1 << (list % 64));
            if word < FINE_WORDS && self.occupied[word as usize] == 0 {
                self.fine_words &= !(1 << word);
            }
        }
    }

    #[inline]
    fn first(&self, list: u32) -> u32 {
        self.first[list as usize]
    }

    #[inline]
    fn is_occupied(&self, list: u32) -> bool {
        self.first(list) != NO_SLOT
    }

    fn take(&mut self, list: u32) -> u32 {
        let first = self.first(list);
        self.set_first(list, NO_SLOT);
        first
    }

    /// The first tick after `current_tick` at which a list of the finest level is due, one of a coarser level has to
    /// be opened, or an open one has to be empty; `u64::MAX` if all are empty. A level's list for the present is
    /// always empty, so every bit found lies ahead, less than a round away.
    fn next_event_tick(&self, current_tick: u64) -> u64 {
        let fine = self.next_occupied_tick(current_tick).unwrap_or(u64::MAX);
        (1..LEVELS).fold(fine, |earliest, level| {
            let present = current_tick >> shift(level);
            let occupied = self.occupied[(FINE_WORDS + level - 1) as usize];
            let occupied = occupied.rotate_right((present + 1) as u32 % 64);
            if occupied == 0 {
                return earliest;
            }
            let ahead = u64::from(occupied.trailing_zeros()) + 1;
            earliest.min(opening_tick(level, present + ahead.max(2)))
        })
    }

    fn next_occupied_tick(&self, current_tick: u64) -> Option<u64> {
        let from = (current_tick + 1) as u32 % FINE_LISTS;
        let word = from / 64;
        // The word where the search begins may come up twice: its upper part first, its lower part last.
        let upper = self.occupied[word as usize] & (!0 << (from % 64));
        let list = if upper != 0 {
            word * 64 + upper.trailing_zeros()
        } else if self.fine_words != 0 {
            let ahead = self.fine_words.rotate_right((word + 1) % FINE_WORDS).trailing_zeros();
            let word = (word + 1 + ahead) % FINE_WORDS;
            word * 64 + self.occupied[word as usize].trailing_zeros()
        } else {
            return None;
        };
        Some(current_tick + 1 + u64::from(list.wrapping_sub(from) % FINE_LISTS))
    }
}

/// Where a timer of `tick` belongs as seen from `current_tick`, which is earlier, and the tick at which that
/// list is due or has to be opened: later than `current_tick`, since a coarse list that is open, the next one,
/// reaches no farther than the finer level does.
#[inline]
fn list_of(tick: u64, current_tick: u64) -> (u32, u64) {
    if tick - current_tick < u64::from(FINE_LISTS) {
        return (list_at(0, tick), tick);
    }
    let mut level = 1;
    // Ends: at the coarsest level no two ticks are 64 lists apart.
    while (tick >> shift(level)) - (current_tick >> shift(level)) >= 64 {
        level += 1;
    }
    (list_at(level, tick), opening_tick(level, tick >> shift(level)))
}

/// When the list of a coarse level, counted from the wheel's start, has to be opened: a list's width before its time.
#[inline]
fn opening_tick(level: u32, number: u64) -> u64 {
    (number - 1) << shift(level)
}

#[inline]
fn list_at(level: u32, tick: u64) -> u32 {
    match level {
        0 => tick as u32 % FINE_LISTS,
        _ => FINE_LISTS + (level - 1) * 64 + (tick >> shift(level)) as u32 % 64,
    }
}

/// A level's lists are 2^shift ticks wide: half as far as the next finer level reaches.
#[inline]
const fn shift(level: u32) -> u32 {
    match level {
        0 => 0,
        _ => FINE_LISTS.trailing_zeros() - 1 + (level - 1) * 5,
    }
}

/// The table of timers. Pages, because growing one vector would stop the shard to copy a million timers.
struct Slots<T> {
    pages: Vec<Box<[Slot<T>; PAGE_SLOTS]>>,
    vacant: u32,
    occupied: usize,
}

/// A cache line, for a `T` of four words with a niche: cancelling a timer among a million costs a look at one.
#[repr(align(64))]
struct Slot<T> {
    value: Option<T>,
    rank: Rank,
    /// The next in the list, or the next vacant slot.
    next: u32,
    previous: u32,
    generation: NonZeroU32,
    list: u32,
}

impl<T> Slots<T> {
    fn new() -> Self {
        Slots { pages: Vec::new(), vacant: NO_SLOT, occupied: 0 }
    }

    #[inline]
    fn get(&self, index: u32) -> &Slot<T> {
        &self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }

    #[inline]
    fn get_mut(&mut self, index: u32) -> &mut Slot<T> {
        &mut self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }

    #[inline]
    fn find(&self, key: TimerKey) -> Option<&Slot<T>> {
        let slot = self.pages.get(key.index as usize / PAGE_SLOTS)?.get(key.index as usize % PAGE_SLOTS)?;
        (slot.generation == key.generation && slot.value.is_some()).then_some(slot)
    }

    /// Whether the slot is still armed as it was when `near` was made: every arming has its own sequence.
    #[inline]
    fn is_live(&self, near: Near) -> bool {
        self.get(near.index).rank.sequence == near.rank.sequence
    }

    #[inline]
    fn take_vacant(&mut self) -> u32 {
        if self.vacant == NO_SLOT {
            self.grow();
        }
        let index = self.vacant;
        self.vacant = self.get(index).next;
        self.occupied += 1;
        index
    }

    /// Takes the value out and makes its key find nothing any more.
    #[inline]
    fn vacate(&mut self, index: u32) -> Option<T> {
        let vacant = self.vacant;
        let slot = self.get_mut(index);
        let value = slot.value.take();
        slot.next = vacant;
        // A slot that has used up its generations is left unused: a key is never given out twice.
        let next_generation = slot.generation.checked_add(1);
        if let Some(generation) = next_generation {
            slot.generation = generation;
            self.vacant = index;
        }
        self.occupied -= 1;
        value
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.pages.len() * PAGE_SLOTS;
        assert!(first + PAGE_SLOTS <= NO_SLOT as usize, "more than 2^32 timers");
        let first = first as u32;
        let last = first + PAGE_SLOTS as u32 - 1;
        let page: Box<[Slot<T>]> = (first..=last)
            .map(|index| Slot {
                value: None,
                rank: Rank { deadline_ns: 0, sequence: STALE },
                next: if index == last { NO_SLOT } else { index + 1 },
                previous: NO_SLOT,
                generation: NonZeroU32::MIN,
                list: NEAR,
            })
            .collect();
        let Ok(page) = page.try_into() else { unreachable!("the range is as long as a page") };
        self.pages.push(page);
        self.vacant = first;
    }

    fn in_firing_order(&self) -> Vec<(Rank, TimerKey)> {
        let slots = self.pages.iter().flat_map(|page| page.iter()).enumerate();
        let mut armed: Vec<_> = slots
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(index, slot)| (slot.rank, TimerKey { index: index as u32, generation: slot.generation }))
            .collect();
        armed.sort_unstable_by_key(|(rank, _)| *rank);
        armed
    }
}

/// `instant + duration`, or as far in that direction as the platform's `Instant` can say.
#[inline]
fn saturating_add(instant: Instant, duration: Duration) -> Instant {
    instant.checked_add(duration).unwrap_or_else(|| farthest_towards(instant, duration))
}

#[cold]
fn farthest_towards(instant: Instant, duration: Duration) -> Instant {
    let halved = std::iter::successors(Some(duration), |duration| Some(*duration / 2));
    halved
        .map_while(|step| (!step.is_zero()).then_some(step))
        .find_map(|step| instant.checked_add(step))
        .unwrap_or(instant)
}

const TICK_NS: u64 = 1_000_000;
/// About 584 years after the wheel's start.
const NEVER_NS: u64 = u64::MAX;
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

const FINE_LISTS: u32 = 2048;
const FINE_WORDS: u32 = FINE_LISTS / 64;
const LEVELS: u32 = 8;
const LISTS: usize = (FINE_LISTS + (LEVELS - 1) * 64) as usize;
const _: () = assert!(
    NEVER_NS.div_ceil(TICK_NS) >> shift(LEVELS - 1) < 64,
    "the coarsest level reaches every tick there is"
);

/// Some 50 µs: what else the shard has to do waits no longer than that.
const MOVES_PER_PASS: u32 = 512;

const PAGE_SLOTS: usize = 256;
const NO_SLOT: u32 = u32::MAX;
/// In place of a list: the timer is among those of the current tick.
const NEAR: u32 = u32::MAX;
/// A sequence no arming ever has.
const STALE: u64 = u64::MAX;
const STALE_KEPT: usize = 64;

#[inline]
fn tick_ns(tick: u64) -> u64 {
    tick.saturating_mul(TICK_NS)
}

#[cfg(test)]
mod tests;
