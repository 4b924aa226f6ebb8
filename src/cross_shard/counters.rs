//! What a shard's inbox has seen. Each number is written by the owner alone, on lines of its own, and read by
//! anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the inbox of one shard has seen since the start. Numbers of one reading need not belong to the same
/// instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InboxCounters {
    /// Closures run here: posts, calls, starts of async calls.
    pub(crate) messages: u64,
    /// Calls of this shard that have been answered.
    pub(crate) replies: u64,
    /// Envelopes taken out of the inbox; one holds all that a shard sent at once.
    pub(crate) envelopes: u64,
    /// Writes to the shard's driver.
    pub(crate) wakes_written: u64,
    /// Envelopes that needed no such write, because the shard was awake or being woken.
    pub(crate) wakes_elided: u64,
    /// Writes that came too late to be needed: the shard had found the envelope itself.
    pub(crate) wakes_spurious: u64,
    /// Times the shard went to sleep.
    pub(crate) sleeps: u64,
    /// Panics caught: of closures, and of values of theirs being dropped.
    pub(crate) panics: u64,
    /// Messages of this shard that a stopped shard did not take, dropped here.
    pub(crate) refused: u64,
    /// Answers that came home after their call had been answered.
    pub(crate) late: u64,
}

/// The owner's side of [`InboxCounters`].
#[derive(Default)]
#[repr(align(128))]
pub(super) struct OwnCounters {
    pub(super) messages: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) envelopes: AtomicU64,
    pub(super) wakes_spurious: AtomicU64,
    pub(super) sleeps: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) late: AtomicU64,
}

impl OwnCounters {
    pub(super) fn read(&self, wakes_written: u64) -> InboxCounters {
        let envelopes = self.envelopes.load(Ordering::Relaxed);
        InboxCounters {
            messages: self.messages.load(Ordering::Relaxed),
            replies: self.replies.load(Ordering::Relaxed),
            envelopes,
            wakes_written,
            wakes_elided: envelopes.saturating_sub(wakes_written),
            wakes_spurious: self.wakes_spurious.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
        }
    }
}

/// Adds to a counter that only this thread writes: no read-modify-write needed.
#[inline]
pub(super) fn bump(counter: &AtomicU64, count: usize) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count as u64), Ordering::Relaxed);
}

/// Adds one to a counter that any thread writes. For rare events only.
pub(super) fn bump_shared(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
