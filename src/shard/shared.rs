//! What all shards and handles of one runtime share. Nothing here is touched per event.

use std::cell::RefCell;
use std::sync::Arc;

use crate::config::Config;
use crate::cross_shard::Mesh;
use crate::shard::Shard;
use crate::shard::groups::Groups;
use crate::shard::lifecycle::Lifecycle;
use crate::shard::stats::ShardStats;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) mesh: Arc<Mesh<Shard>>,
    pub(crate) groups: Groups,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) stats: Box<[Arc<ShardStats>]>,
    /// The CPU each shard is pinned to, if it is.
    pub(crate) cpus: Box<[Option<usize>]>,
    /// Whether shards may poll before they park: pinned, and no two on one CPU.
    pub(crate) may_poll: bool,
}

thread_local! {
    /// The runtimes whose application is asked to prepare, on this thread, at this moment: one, or some inside each other.
    static PREPARED_HERE: RefCell<Vec<*const Shared>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, this thread is the one that the shards wait for.
pub(crate) struct Preparing;

impl Drop for Preparing {
    fn drop(&mut self) {
        PREPARED_HERE.with_borrow_mut(Vec::pop);
    }
}

impl Shared {
    /// Notes that `App::prepare` runs on this thread until the guard is dropped.
    pub(crate) fn begin_preparing(&self) -> Preparing {
        PREPARED_HERE.with_borrow_mut(|preparing| preparing.push(self));
        Preparing
    }

    /// Whether whoever waits for a shard here would wait for ever: it would keep the shards from running.
    pub(crate) fn is_prepared_here(&self) -> bool {
        // A thread whose locals are gone already is in no `prepare`.
        PREPARED_HERE
            .try_with(|preparing| preparing.borrow().iter().any(|&shared| std::ptr::eq(shared, self)))
            .unwrap_or(false)
    }
}
