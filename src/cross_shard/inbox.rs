//! One shard's inbox: what has arrived, who wakes the owner, and how it closes. Does not look into envelopes.
//!
//! Everything is decided by one word, the gate: how many senders are inside, whether the owner sleeps, and
//! whether the inbox is closed. All changes of it are read-modify-writes, hence in one order that everybody
//! agrees on.

use super::counters::bump_shared;
use super::queue::Queue;
use crate::reactor::waker::DriverWaker;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{OwnLine, yield_now};
use std::sync::atomic::AtomicU64;

/// Where envelopes of type `E` for one shard arrive.
///
/// # Waking
/// A sender publishes, then leaves through the gate and thereby learns whether the owner sleeps. The owner
/// marks itself at the gate, then looks at every source again, then sleeps. Whoever comes second at the gate
/// sees the other: either the sender sees the mark and wakes, or the owner sees what was published and stays
/// awake. The waker that clears the mark is the one that writes: an awake owner is never written to, and a
/// sleeping one once.
///
/// # Closing
/// A sender enters before it publishes. Closing is one read-modify-write at the same gate: a sender that
/// entered before it is waited for (it is between two instructions, or preempted there) and drained, one that
/// comes after gets its envelope back.
pub(super) struct Inbox<E> {
    queue: Queue<E>,
    gate: OwnLine<AtomicUsize>,
    /// As in the gate, for those who only want to know: on a line that is written once.
    closed: AtomicBool,
    waker: DriverWaker,
    /// Counted next to a system call, which is far dearer.
    wakes_written: AtomicU64,
}

const SLEEPING: usize = 1;
const CLOSED: usize = 2;
const ONE_SENDER: usize = 4;

/// How the owner found its inbox when it was back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// Nobody woke it.
    Undisturbed,
    /// Somebody has woken it, or is just about to write to its driver.
    Notified,
}

impl<E> Inbox<E> {
    pub(super) fn new(waker: DriverWaker) -> Self {
        Inbox {
            queue: Queue::new(),
            gate: OwnLine(AtomicUsize::new(0)),
            closed: AtomicBool::new(false),
            waker,
            wakes_written: AtomicU64::new(0),
        }
    }

    /// Puts `envelope` into the queue, without waking anybody: `Ok(true)` says that the owner sleeps, and
    /// that a [`wake`](Self::wake) is owed to it. A closed inbox gives the envelope back.
    #[inline]
    pub(super) fn push(&self, envelope: E) -> Result<bool, E> {
        match self.enter() {
            Some(entered) => Ok(entered.push(envelope)),
            None => Err(envelope),
        }
    }

    /// Goes in through the gate, unless it is closed. Whoever is inside pushes and leaves at once: the closer
    /// waits.
    #[inline]
    pub(super) fn enter(&self) -> Option<Entered<'_, E>> {
        // Relaxed: it is the place in the gate's order that counts. A sender before `close` in that order is
        // waited for there; one after it publishes nothing.
        if self.gate.fetch_add(ONE_SENDER, Ordering::Relaxed) & CLOSED == 0 {
            return Some(Entered { inbox: self });
        }
        self.gate.fetch_sub(ONE_SENDER, Ordering::Relaxed);
        None
    }

    /// Wakes the owner if it sleeps: for what was pushed, or for news that lie elsewhere.
    pub(super) fn wake(&self) {
        // Release: pairs with the Acquire in `mark_sleeping`, for news that lie elsewhere: an owner that
        // marks itself after this sees them. (What was pushed has been published by `Entered::push` already.)
        if self.gate.fetch_and(!SLEEPING, Ordering::Release) & SLEEPING != 0 {
            bump_shared(&self.wakes_written);
            self.waker.wake();
        }
    }

    /// Whether envelopes are still taken. A hint: it may be old the moment it is returned.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn wakes_written(&self) -> u64 {
        self.wakes_written.load(Ordering::Relaxed)
    }

    /// For the owner: the oldest envelope.
    #[inline]
    pub(super) fn pop(&self) -> Option<E> {
        self.queue.pop()
    }

    /// For the owner: how many envelopes there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// For the owner: whether there is none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// For the owner: marks it as sleeping. From here on senders wake it.
    pub(super) fn mark_sleeping(&self) {
        // Acquire: pairs with the Release of every sender that left the gate before; `is_empty`, asked next,
        // then sees what they published. Those who leave after it see the mark.
        self.gate.fetch_or(SLEEPING, Ordering::Acquire);
    }

    /// For the owner: takes the mark away.
    pub(super) fn mark_awake(&self) -> Slept {
        // Relaxed: what arrives from here on is found by the next `mark_sleeping` at the latest.
        match self.gate.fetch_and(!SLEEPING, Ordering::Relaxed) & SLEEPING {
            SLEEPING => Slept::Undisturbed,
            _ => Slept::Notified,
        }
    }

    /// For the owner: takes no more envelopes. When this returns, everything ever taken is in the queue.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Relaxed: decides by its place in the gate's order, see `enter`.
        self.gate.fetch_or(CLOSED, Ordering::Relaxed);
        // Senders never wait; the closer does, for those who are just between entering and leaving.
        // Acquire: pairs with the Release of each of them in `Entered::push`, so that the drain that follows
        // sees it all.
        while self.gate.load(Ordering::Acquire) >= ONE_SENDER {
            yield_now();
        }
    }
}

/// A sender inside the gate.
pub(super) struct Entered<'a, E> {
    inbox: &'a Inbox<E>,
}

impl<E> Entered<'_, E> {
    /// Puts `envelope` into the queue and leaves. Says whether the owner sleeps: then a [`Inbox::wake`] is
    /// owed to it.
    #[inline]
    pub(super) fn push(self, envelope: E) -> bool {
        let inbox = self.inbox;
        std::mem::forget(self);
        inbox.queue.push(envelope);
        // Release: pairs with the Acquire in `mark_sleeping` and in `close`, which must see what was just
        // published.
        inbox.gate.fetch_sub(ONE_SENDER, Ordering::Release) & SLEEPING != 0
    }
}

impl<E> Drop for Entered<'_, E> {
    fn drop(&mut self) {
        // Relaxed: nothing was published.
        self.inbox.gate.fetch_sub(ONE_SENDER, Ordering::Relaxed);
    }
}
