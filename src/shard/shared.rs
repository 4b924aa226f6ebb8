//! What all shards and handles of one runtime share. Nothing here is touched per event.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::ShardId;
use crate::config::Config;
use crate::cross_shard::Mesh;
use crate::net::resolver::Resolver;
use crate::shard::Shard;
use crate::shard::groups::Groups;
use crate::shard::lifecycle::{Lifecycle, RuntimeState};
use crate::shard::stats::ShardStats;
use crate::sys::signals::keeping_errno;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) mesh: Arc<Mesh<Shard>>,
    pub(crate) groups: Groups,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) stats: Box<[Arc<ShardStats>]>,
    /// The CPU each shard is pinned to, if it is.
    pub(crate) cpus: Box<[Option<usize>]>,
    /// Whether shards may poll before they park: pinned, and no two on one CPU.
    pub(crate) may_poll: bool,
    /// A signal handler asks for the stop, which it cannot begin itself. Read by every shard in every turn.
    pub(crate) stop_asked: AtomicBool,
    pub(crate) detached: Detached,
}

/// Counts the streams that are on their way from one shard to another, so that a drain waits for them.
#[derive(Default)]
pub(crate) struct Detached {
    /// Twice their number, and one more once nobody waits for them any longer.
    state: AtomicUsize,
}

const ABANDONED: usize = 1;
const ONE_STREAM: usize = 2;

/// One stream on its way. Dropping it says that the stream has arrived, or is gone.
pub(crate) struct InTransit {
    shared: Arc<Shared>,
}

impl InTransit {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        // SeqCst, as all that follows: whoever drains looks at this after it has said so, and who arrives looks whether
        // somebody drains after it has counted itself down.
        shared.detached.state.fetch_add(ONE_STREAM, Ordering::SeqCst);
        InTransit { shared: Arc::clone(shared) }
    }
}

impl Drop for InTransit {
    fn drop(&mut self) {
        let before = self.shared.detached.state.fetch_sub(ONE_STREAM, Ordering::SeqCst);
        if before & !ABANDONED == ONE_STREAM && self.shared.lifecycle.state() == RuntimeState::Draining {
            self.shared.tell_all(Shard::check_drained);
        }
    }
}

impl Detached {
    /// Whether a drain waits for any.
    pub(crate) fn are_awaited(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & ABANDONED == 0 && state != 0
    }

    /// Whether those that are still on their way may not arrive any more.
    pub(crate) fn are_abandoned(&self) -> bool {
        self.state.load(Ordering::SeqCst) & ABANDONED != 0
    }

    /// Nobody waits any longer. Gives how many are lost by that: once, whoever asks first.
    pub(crate) fn abandon(&self) -> usize {
        match self.state.fetch_or(ABANDONED, Ordering::SeqCst) {
            before if before & ABANDONED == 0 => before / ONE_STREAM,
            _ => 0,
        }
    }
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
    /// Asks for the stop and wakes the shards, one of which begins it. Async-signal-safe: neither allocates nor locks, and
    /// leaves errno as it was.
    pub(crate) fn ask_for_stop(&self) {
        keeping_errno(|| {
            // Relaxed: `Mesh::wake` publishes it to a shard that goes to sleep, and one that is awake looks soon.
            self.stop_asked.store(true, Ordering::Relaxed);
            for number in 0..self.mesh.len() {
                self.mesh.wake(ShardId::new(number as u16));
            }
        });
    }

    /// Whether a signal handler has asked for the stop.
    #[inline]
    pub(crate) fn is_stop_asked(&self) -> bool {
        self.stop_asked.load(Ordering::Relaxed)
    }

    /// Begins the stop that a signal handler has asked for.
    #[cold]
    pub(crate) fn stop_as_asked(&self) {
        if self.stop_asked.swap(false, Ordering::Relaxed) {
            // Stopped already is as good.
            let _ = self.stop();
        }
    }

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
