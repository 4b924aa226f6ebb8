//! The calls a shard has in flight, and the future of each. Does not send anything.

use super::credit::Credits;
use super::envelope::{CallKey, Outcome};
use super::error::CallError;
use super::withdrawal::Withdrawals;
use crate::ShardId;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A call on its way: resolves to what the closure returned.
///
/// # Cancel safety
/// Dropping it withdraws the call: a closure that has not started does not start any more and is dropped here, on
/// the shard that made the call, when it comes home. When it has started, its result is dropped here.
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
    withdrawals: Arc<Withdrawals>,
    credits: Rc<Credits>,
}

struct Entries {
    slots: Vec<Entry>,
    free: u32,
}

const NO_ENTRY: u32 = u32::MAX;

/// An entry is used again only when its answer is home *and* its future is gone.
struct Entry {
    generation: u32,
    target: ShardId,
    holds_credit: bool,
    phase: Phase,
}

enum Phase {
    Vacant {
        next_free: u32,
    },
    /// Sent, and its future is alive.
    Waiting(Option<Waker>),
    /// Sent, and nobody wants the answer.
    Abandoned,
    Answered(Outcome),
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
        let entries = RefCell::new(Entries { slots: Vec::new(), free: NO_ENTRY });
        Rc::new(Calls { entries, waiting: Cell::new(0), withdrawals, credits })
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Names a new call.
    #[inline]
    pub(super) fn open(&self, target: ShardId) -> CallKey {
        self.waiting.set(self.waiting.get() + 1);
        let mut entries = self.entries.borrow_mut();
        let index = entries.free;
        if let Some(entry) = entries.slots.get_mut(index as usize) {
            let Phase::Vacant { next_free } = entry.phase else {
                unreachable!("the free list holds only vacant entries")
            };
            entry.phase = Phase::Waiting(None);
            entry.target = target;
            let generation = entry.generation;
            entries.free = next_free;
            return CallKey { index, generation };
        }
        let index = u32::try_from(entries.slots.len()).expect("fewer calls in flight than 32 bits count");
        entries.slots.push(Entry { generation: 0, target, holds_credit: false, phase: Phase::Waiting(None) });
        CallKey { index, generation: 0 }
    }

    /// The future of a call.
    #[inline]
    pub(super) fn future<T>(self: &Rc<Self>, key: CallKey) -> Call<T> {
        Call { calls: Rc::clone(self), key: Some(key), result: PhantomData }
    }

    /// Notes what came of a call, fetched from its slot only if somebody wants it.
    #[inline]
    pub(super) fn settle(&self, key: CallKey, outcome: impl FnOnce() -> Outcome) -> Settled {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(key) else { return Settled::Late };
        let target = entry.target;
        let (settled, waker) = match &mut entry.phase {
            Phase::Waiting(waker) => {
                let waker = waker.take();
                entry.phase = Phase::Answered(outcome());
                self.waiting.set(self.waiting.get() - 1);
                (Settled::Kept, waker)
            }
            Phase::Abandoned => {
                // Its flag was raised when it was abandoned. All who might read it have answered.
                self.withdrawals.lower(key.index);
                (Settled::Unwanted, None)
            }
            Phase::Answered(_) => return Settled::Late,
            Phase::Vacant { .. } => unreachable!("a key of this generation names a call"),
        };
        let credit_is_home = std::mem::take(&mut entry.holds_credit);
        if matches!(settled, Settled::Unwanted) {
            entries.vacate(key);
        }
        drop(entries);
        // No borrow is held: both of these wake tasks, which is other people's code.
        if credit_is_home {
            self.credits.give_back(target);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        settled
    }

    /// Answers every call that is still waited for: nothing comes home any more. Flags of withdrawn ones stay up.
    pub(super) fn stop(&self) {
        let keys: Vec<CallKey> = self.entries.borrow().waiting().collect();
        for key in keys {
            self.settle(key, || Outcome::STOPPED);
        }
    }

    /// The credit of this call comes back with its answer.
    fn hold_credit(&self, key: CallKey, credit_target: ShardId) -> bool {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key).expect("a future keeps its entry");
        assert_eq!(entry.target, credit_target, "a credit for another shard");
        if matches!(entry.phase, Phase::Answered(_)) {
            return false;
        }
        entry.holds_credit = true;
        true
    }

    #[inline]
    fn poll(&self, key: CallKey, waker: &Waker) -> Poll<Outcome> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key).expect("a future keeps its entry");
        match &mut entry.phase {
            Phase::Answered(outcome) => {
                let outcome = *outcome;
                entries.vacate(key);
                Poll::Ready(outcome)
            }
            Phase::Waiting(Some(known)) if known.will_wake(waker) => Poll::Pending,
            Phase::Waiting(known) => {
                let before = known.replace(waker.clone());
                drop(entries);
                // Not under the borrow: it may be the last handle of a task.
                drop(before);
                Poll::Pending
            }
            Phase::Vacant { .. } | Phase::Abandoned => unreachable!("a future keeps its entry"),
        }
    }

    /// The future is gone. Gives back an answer that nobody will fetch.
    fn abandon(&self, key: CallKey) -> Option<Outcome> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key).expect("a future keeps its entry");
        match std::mem::replace(&mut entry.phase, Phase::Abandoned) {
            Phase::Answered(outcome) => {
                entries.vacate(key);
                Some(outcome)
            }
            Phase::Waiting(waker) => {
                self.withdrawals.raise(key.index);
                self.waiting.set(self.waiting.get() - 1);
                drop(entries);
                drop(waker);
                None
            }
            Phase::Vacant { .. } | Phase::Abandoned => unreachable!("a future keeps its entry"),
        }
    }
}

impl Entries {
    #[inline]
    fn get_mut(&mut self, key: CallKey) -> Option<&mut Entry> {
        let entry = self.slots.get_mut(key.index as usize)?;
        (entry.generation == key.generation).then_some(entry)
    }

    #[inline]
    fn vacate(&mut self, key: CallKey) {
        let entry = &mut self.slots[key.index as usize];
        entry.phase = Phase::Vacant { next_free: self.free };
        // A late answer that still names this call finds another generation.
        entry.generation = entry.generation.wrapping_add(1);
        self.free = key.index;
    }

    fn waiting(&self) -> impl Iterator<Item = CallKey> {
        let named = self.slots.iter().zip(0..);
        named
            .filter(|(entry, _)| matches!(entry.phase, Phase::Waiting(_)))
            .map(|(entry, index)| CallKey { index, generation: entry.generation })
    }
}

impl<T> Call<T> {
    /// Uses up `credit` for this call: it comes back with the answer.
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
        match self.calls.poll(key, context.waker()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => {
                self.key = None;
                // SAFETY: `Endpoint::call` and `call_async` make a `Call<T>` for a closure that returns or answers a `T`;
                // the entry was vacated, so nobody opens this outcome again.
                Poll::Ready(unsafe { outcome.open() })
            }
        }
    }
}

impl<T> Drop for Call<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(outcome) = self.key.take().and_then(|key| self.calls.abandon(key)) {
            // SAFETY: as in `poll`.
            drop(unsafe { outcome.open::<T>() });
        }
    }
}
