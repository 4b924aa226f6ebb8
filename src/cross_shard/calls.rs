//! The calls a shard has in flight, and the future of each. Does not send anything.

use super::credit::Credits;
use super::envelope::{CALLS_MAX, CallKey, Came, Slots, Words};
use super::error::CallError;
use super::withdrawal::Withdrawals;
use crate::ShardId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A call on its way: resolves to what the closure returned.
///
/// # Cancel safety
/// Dropping it withdraws the call: a closure that has not started does not start any more and is dropped
/// here, on the shard that made the call, when it comes home. When it has started, its result is dropped
/// here.
///
/// # Panics
/// When polled again after it was ready.
#[must_use = "a call that is dropped is withdrawn"]
pub(crate) struct Call<T> {
    calls: Rc<Calls>,
    /// `None` once the result has been taken out.
    key: Option<CallKey>,
    result: PhantomData<T>,
}

/// Results are moved in and out, never pinned.
impl<T> Unpin for Call<T> {}

/// All calls of one shard that have not been answered, or whose answer has not been fetched.
pub(super) struct Calls {
    entries: RefCell<Entries>,
    /// How many have not been answered and are waited for; drives polling.
    waiting: Cell<usize>,
    /// Tasks whose answer or credit has come in. Waking them is other people's code: see `wake_next`.
    to_wake: RefCell<VecDeque<Waker>>,
    withdrawals: Arc<Withdrawals>,
    credits: Rc<Credits>,
}

#[derive(Default)]
struct Entries {
    slots: Vec<Entry>,
    free: Vec<u32>,
}

/// An entry is used again only when its answer is home *and* its future is gone. One cache line.
struct Entry {
    words: Words,
    waker: Option<Waker>,
    generation: u32,
    target: ShardId,
    holds_credit: bool,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Vacant,
    /// Sent, and its future is alive.
    Waiting,
    /// Sent, and nobody wants the answer.
    Abandoned,
    /// The answer is in the words.
    Answered(Came),
}

/// What became of an answer.
pub(super) enum Settled {
    Kept,
    /// Nobody wants it: to be dropped by the caller, at home.
    Unwanted,
    /// The call had been answered before.
    Late,
}

impl Calls {
    pub(super) fn new(withdrawals: Arc<Withdrawals>, credits: Rc<Credits>) -> Rc<Self> {
        Rc::new(Calls {
            entries: RefCell::default(),
            waiting: Cell::new(0),
            to_wake: RefCell::default(),
            withdrawals,
            credits,
        })
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Names a new call.
    #[inline]
    pub(super) fn open(&self, target: ShardId) -> CallKey {
        self.waiting.set(self.waiting.get() + 1);
        let entries = &mut *self.entries.borrow_mut();
        let index = match entries.free.pop() {
            Some(index) => index,
            None => entries.grow(),
        };
        let entry = &mut entries.slots[index as usize];
        entry.phase = Phase::Waiting;
        entry.target = target;
        CallKey { index, generation: entry.generation }
    }

    /// The future of a call.
    #[inline]
    pub(super) fn future<T>(self: &Rc<Self>, key: CallKey) -> Call<T> {
        Call { calls: Rc::clone(self), key: Some(key), result: PhantomData }
    }

    /// Takes in what came of calls in `slots`, which are back from one shard, as far as somebody waits for
    /// it: under one borrow, since no application code runs. Returns how many it took, and how many other
    /// slots there are, which stay as they are.
    #[inline]
    pub(super) fn settle_all<C: 'static>(&self, slots: &mut Slots<C>) -> (usize, usize) {
        let (mut settled, mut credits, mut others) = (0, 0, 0);
        let entries = &mut *self.entries.borrow_mut();
        let mut from = None;
        while let Some(mut slot) = slots.next() {
            match entries.get_mut(slot.key()) {
                Some(entry) if entry.phase == Phase::Waiting && slot.is_outcome() => {
                    let came = match slot.take_small_value(&mut entry.words) {
                        true => Came::Inline,
                        false => slot.take_outcome(&mut entry.words),
                    };
                    entry.phase = Phase::Answered(came);
                    if let Some(waker) = entry.waker.take() {
                        self.to_wake.borrow_mut().push_back(waker);
                    }
                    credits += usize::from(std::mem::take(&mut entry.holds_credit));
                    settled += 1;
                    from = Some(entry.target);
                }
                _ => others += 1,
            }
        }
        self.waiting.set(self.waiting.get() - settled);
        if let Some(from) = from {
            self.credits_home(from, credits);
        }
        (settled, others)
    }

    /// Notes what came of one call; `keep` moves it, if somebody wants it.
    pub(super) fn settle(&self, key: CallKey, keep: impl FnOnce(&mut Words) -> Came) -> Settled {
        let entries = &mut *self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(key) else { return Settled::Late };
        let credits = usize::from(std::mem::take(&mut entry.holds_credit));
        self.credits_home(entry.target, credits);
        match entry.phase {
            Phase::Waiting => {
                entry.phase = Phase::Answered(keep(&mut entry.words));
                self.waiting.set(self.waiting.get() - 1);
                self.to_wake.borrow_mut().extend(entry.waker.take());
                Settled::Kept
            }
            Phase::Abandoned => {
                // Its flag was raised when it was abandoned. All who might read it have answered.
                self.withdrawals.lower(key.index);
                entries.vacate(key);
                Settled::Unwanted
            }
            Phase::Answered(_) => Settled::Late,
            Phase::Vacant => unreachable!("a key of this generation names a call"),
        }
    }

    /// The target has started an async call: it lies in no inbox any more, and its credit is home. Held until the answer,
    /// the credits of calls that wait for each other across shards would run out for good.
    pub(super) fn note_started(&self, key: CallKey) {
        let entries = &mut *self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(key) else { return };
        let credits = usize::from(std::mem::take(&mut entry.holds_credit));
        self.credits_home(entry.target, credits);
    }

    /// Wakes one task whose answer or credit has come in. `false` when there is none.
    #[inline]
    pub(super) fn wake_next(&self) -> bool {
        let Some(waker) = self.to_wake.borrow_mut().pop_front() else { return false };
        waker.wake();
        true
    }

    /// Answers every call that is still waited for: nothing comes home any more. Flags of withdrawn ones stay
    /// up.
    pub(super) fn stop(&self) {
        let keys = self.entries.borrow().waiting();
        for key in keys {
            self.settle(key, |_| Came::Stopped);
        }
        self.to_wake.borrow_mut().extend(self.credits.stop());
    }

    #[inline]
    fn credits_home(&self, from: ShardId, count: usize) {
        for waker in (0..count).filter_map(|_| self.credits.give_back(from)) {
            self.to_wake.borrow_mut().push_back(waker);
        }
    }

    /// The credit of this call comes back with its answer, or when it has started. `false`: that has been.
    fn hold_credit(&self, key: CallKey, credit_target: ShardId) -> bool {
        let entries = &mut *self.entries.borrow_mut();
        let entry = entries.of_future(key);
        assert_eq!(entry.target, credit_target, "a credit for another shard");
        entry.holds_credit = entry.phase == Phase::Waiting;
        entry.holds_credit
    }

    /// What came of a call whose closure returned a `T`, or whose answer was one.
    ///
    /// # Safety
    /// The call was made with this `T`.
    #[inline]
    unsafe fn poll<T>(&self, key: CallKey, waker: &Waker) -> Poll<Result<T, CallError>> {
        {
            let entries = &mut *self.entries.borrow_mut();
            let entry = entries.of_future(key);
            if entry.phase == Phase::Answered(Came::Inline) {
                // The common case, without a detour.
                // SAFETY: the words hold the value, of this type by the caller's promise; vacating the entry
                // makes sure that it is moved out once.
                let value = unsafe { entry.words.take() };
                entry.vacate();
                entries.free.push(key.index);
                return Poll::Ready(Ok(value));
            }
            if entry.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                return Poll::Pending;
            }
        }
        // SAFETY: passed on.
        unsafe { self.poll_rare(key, waker) }
    }

    /// # Safety
    /// As for `poll`.
    #[inline(never)]
    unsafe fn poll_rare<T>(&self, key: CallKey, waker: &Waker) -> Poll<Result<T, CallError>> {
        // Cloning one waker and dropping another is other people's code: not under the borrow.
        let waker = waker.clone();
        let mut entries = self.entries.borrow_mut();
        let entry = entries.of_future(key);
        match entry.phase {
            Phase::Answered(came) => {
                // SAFETY: as in `poll`. No application code runs in here.
                let result = unsafe { entry.words.open::<T>(came) };
                entries.vacate(key);
                drop(entries);
                Poll::Ready(result)
            }
            Phase::Waiting => {
                let before = entry.waker.replace(waker);
                drop(entries);
                drop(before);
                Poll::Pending
            }
            Phase::Vacant | Phase::Abandoned => unreachable!("a future keeps its entry"),
        }
    }

    /// The future is gone. Gives back an answer that nobody will fetch.
    ///
    /// # Safety
    /// The call was made with this `T`.
    #[cold]
    unsafe fn abandon<T>(&self, key: CallKey) -> Option<Result<T, CallError>> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.of_future(key);
        match entry.phase {
            Phase::Answered(came) => {
                // SAFETY: as in `poll`.
                let result = unsafe { entry.words.open::<T>(came) };
                entries.vacate(key);
                Some(result)
            }
            Phase::Waiting => {
                entry.phase = Phase::Abandoned;
                let waker = entry.waker.take();
                self.withdrawals.raise(key.index);
                self.waiting.set(self.waiting.get() - 1);
                drop(entries);
                drop(waker);
                None
            }
            Phase::Vacant | Phase::Abandoned => unreachable!("a future keeps its entry"),
        }
    }
}

impl Entry {
    #[inline]
    fn vacate(&mut self) {
        self.phase = Phase::Vacant;
        // A late answer that still names this call finds another generation.
        self.generation = self.generation.wrapping_add(1);
    }
}

impl Entries {
    #[cold]
    fn grow(&mut self) -> u32 {
        let index = self.slots.len() as u32;
        assert!(index < CALLS_MAX, "more than {CALLS_MAX} calls in flight");
        self.slots.push(Entry {
            words: Words::EMPTY,
            waker: None,
            generation: 0,
            target: ShardId::new(0),
            holds_credit: false,
            phase: Phase::Vacant,
        });
        index
    }

    #[inline]
    fn get_mut(&mut self, key: CallKey) -> Option<&mut Entry> {
        let entry = self.slots.get_mut(key.index as usize)?;
        (entry.generation == key.generation).then_some(entry)
    }

    /// The entry of a call whose future is alive.
    #[inline]
    fn of_future(&mut self, key: CallKey) -> &mut Entry {
        let entry = &mut self.slots[key.index as usize];
        assert_eq!(entry.generation, key.generation, "a future keeps its entry");
        entry
    }

    #[inline]
    fn vacate(&mut self, key: CallKey) {
        self.slots[key.index as usize].vacate();
        self.free.push(key.index);
    }

    fn waiting(&self) -> Vec<CallKey> {
        let named = self.slots.iter().zip(0..);
        named
            .filter(|(entry, _)| entry.phase == Phase::Waiting)
            .map(|(entry, index)| CallKey { index, generation: entry.generation })
            .collect()
    }
}

impl<T> Call<T> {
    /// Uses up `credit` for this call: it comes back with the answer, or, of an async call, when that has started.
    pub(crate) fn holding(self, credit: super::Credit) -> Self {
        let key = self.key.expect("a call is not polled before it has its credit");
        if self.calls.hold_credit(key, credit.target()) {
            credit.spend();
        }
        self
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T, CallError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("polled again after it was ready");
        // SAFETY: `Endpoint::call` and `call_async` make a `Call<T>` for a closure that returns or answers a
        // `T`.
        let polled = unsafe { self.calls.poll(key, context.waker()) };
        if polled.is_ready() {
            self.key = None;
        }
        polled
    }
}

impl<T> Drop for Call<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // SAFETY: as in `poll`.
            drop(unsafe { self.calls.abandon::<T>(key) });
        }
    }
}
