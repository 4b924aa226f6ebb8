//! Flags by which an origin takes back calls that have not started. Who asks for them is decided in
//! `endpoint`.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;

/// One flag per call that a shard may have in flight, under the call's index: written by that shard, and only
/// when a call is dropped early; read by the shards it calls, just before they start one.
///
/// Everything is Relaxed: a flag promises nothing about other memory, and its reuse is ordered by the
/// messages themselves. An index is free for a next call only after the batch of the last one has come home,
/// and both ways lead through a queue that publishes.
pub(super) struct Withdrawals {
    /// How many flags are up: while there are none, which is nearly always, nobody looks further.
    raised: AtomicUsize,
    /// Segment `s` holds `FIRST << s` flags; they never move, so that readers need no lock.
    segments: [OnceLock<Box<[AtomicBool]>>; SEGMENTS],
}

const FIRST: usize = if cfg!(loom) { 2 } else { 256 };
const SEGMENTS: usize = 32 - FIRST.trailing_zeros() as usize;

impl Withdrawals {
    pub(super) fn new() -> Self {
        let this =
            Withdrawals { raised: AtomicUsize::new(0), segments: [const { OnceLock::new() }; SEGMENTS] };
        this.segment(0);
        this
    }

    /// Made when the first of its flags is needed; the first segment at once.
    fn segment(&self, segment: usize) -> &[AtomicBool] {
        self.segments[segment].get_or_init(|| (0..FIRST << segment).map(|_| AtomicBool::new(false)).collect())
    }

    /// For the origin: the call at `index` shall not start any more.
    pub(super) fn raise(&self, index: u32) {
        let (segment, at) = place(index);
        let flags = self.segment(segment);
        flags[at].store(true, Ordering::Relaxed);
        self.raised.fetch_add(1, Ordering::Relaxed);
    }

    /// For the origin: the call at `index`, once withdrawn, is home.
    pub(super) fn lower(&self, index: u32) {
        let (segment, at) = place(index);
        let flags = self.segments[segment].get().expect("only what was raised is lowered");
        flags[at].store(false, Ordering::Relaxed);
        self.raised.fetch_sub(1, Ordering::Relaxed);
    }

    /// For a target: whether the call at `index` has been withdrawn.
    #[inline]
    pub(super) fn is_raised(&self, index: u32) -> bool {
        self.raised.load(Ordering::Relaxed) != 0 && self.look(index)
    }

    #[cold]
    fn look(&self, index: u32) -> bool {
        let (segment, at) = place(index);
        self.segments[segment].get().is_some_and(|flags| flags[at].load(Ordering::Relaxed))
    }
}

fn place(index: u32) -> (usize, usize) {
    let shifted = index as usize + FIRST;
    let segment = shifted.ilog2() as usize - FIRST.trailing_zeros() as usize;
    (segment, shifted - (FIRST << segment))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_a_flag_of_its_own() {
        let flags = Withdrawals::new();
        for index in [0, 1, 255, 256, 257, 767, 768, 100_000] {
            assert!(!flags.is_raised(index));
            flags.raise(index);
            assert!(flags.is_raised(index) && !flags.is_raised(index + 1), "{index}");
            flags.lower(index);
            assert!(!flags.is_raised(index), "{index}");
        }
        let mut places: Vec<_> = (0..5_000).map(place).collect();
        places.dedup();
        assert_eq!(places.len(), 5_000);
        assert_eq!(place(u32::MAX - 256).0, SEGMENTS - 1);
    }
}
