//! Counters of one shard, written by it alone and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Relaxed throughout: every counter stands for itself, and nobody concludes anything from one about another.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct ShardStats {
    pub(crate) handshakes: Count,
    pub(crate) tls_failures: Count,
    pub(crate) accepted: Count,
    pub(crate) connected: Count,
    pub(crate) open: Count,
    pub(crate) received_bytes: Count,
    pub(crate) receives: Count,
    pub(crate) turns: Count,
    pub(crate) parks: Count,
    pub(crate) busy_nanos: Count,
    pub(crate) panics: Count,
    pub(crate) aborted: Count,
    pub(crate) accept_failures: Count,
    pub(crate) refused: Count,
    pub(crate) proxy_headers_refused: Count,
    pub(crate) unsent_bytes_dropped: Count,
    pub(crate) datagrams_received: Count,
    pub(crate) datagrams_sent: Count,
    pub(crate) datagrams_dropped: Count,
    pub(crate) datagrams_truncated: Count,
    pub(crate) datagrams_failed: Count,
}

/// A number with one writer: no locked instruction is needed to add to it.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    pub(crate) fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
