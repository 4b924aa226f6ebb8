//! What: one shard. Its turn, its connections, and the interface set that applications see.

pub(crate) mod blocking_resolver;
pub(crate) mod connecting;
pub(crate) mod connections;
pub(crate) mod containment;
pub(crate) mod datagrams;
pub(crate) mod descriptors;
pub(crate) mod draining;
pub(crate) mod flushing;
pub(crate) mod groups;
pub(crate) mod handing_out;
pub(crate) mod handles;
pub(crate) mod interfaces;
pub(crate) mod layer;
pub(crate) mod lifecycle;
pub(crate) mod listening;
pub(crate) mod placement;
pub mod policies;
pub(crate) mod policing;
pub(crate) mod producers;
pub(crate) mod protocol;
pub(crate) mod proxied;
pub(crate) mod secured;
pub(crate) mod serving;
pub(crate) mod shared;
pub(crate) mod stats;
pub(crate) mod turn;
pub(crate) mod waker_list;
pub(crate) mod watching;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::ShardId;
use crate::cross_shard::Endpoint;
use crate::error::{log_contained, panic_message};
use crate::inline::InlineCall;
use crate::net::input::Dry;
use crate::net::wire::{PIECE_BYTES, SealBuffer};
use crate::reactor::driver::Driver;
use crate::reactor::lease::{Lease, LeasePool};
use crate::reactor::registry::Registry;
use crate::reactor::timer_wheel::TimerWheel;
use crate::reactor::token::Token;
use crate::tasks::{Executor, Remote, RemoteTask};
use connecting::Attempts;
use connections::Slot;
use datagrams::Datagrams;
use draining::DrainCalls;
use handles::delayed_call::DelayedCall;
use lifecycle::ShardPhase;
use listening::Listeners;
use policing::Policing;
use producers::Producers;
use secured::Handshakes;
use shared::Shared;
use stats::ShardStats;
use turn::Rest;
use watching::Watches;

/// One shard seen from its own thread: the interface set.
///
/// Cheap to clone. Everything here is local to the shard, so nothing locks; to reach another shard use
/// [`Shard::call`] or [`Handle::call_from_thread`](crate::Handle::call_from_thread).
///
/// # Threads
/// A `Shard` never leaves its thread:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<shardwise::Shard>();
/// ```
#[derive(Clone)]
pub struct Shard {
    pub(crate) inner: Rc<Inner>,
}

/// All that one shard owns, a cell per part. No borrow is held while application code runs, and no application
/// value is dropped under one.
pub(crate) struct Inner {
    pub(crate) id: ShardId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) driver: RefCell<Box<dyn Driver>>,
    pub(crate) endpoint: Endpoint<Shard>,
    pub(crate) executor: Executor,
    pub(crate) timers: RefCell<TimerWheel<Timer>>,
    pub(crate) connections: RefCell<Registry<Slot>>,
    pub(crate) listeners: Listeners,
    pub(crate) attempts: Attempts,
    pub(crate) datagrams: Datagrams,
    pub(crate) watches: Watches,
    pub(crate) producers: Producers,
    pub(crate) policing: Policing,
    /// Output of the connection whose callback runs now.
    pub(crate) staged: RefCell<Vec<u8>>,
    /// Where ciphertext is made. Empty between uses.
    pub(crate) spare: RefCell<SealBuffer>,
    /// Pieces of plaintext on loan.
    pub(crate) plain: Rc<LeasePool>,
    pub(crate) handshakes: Handshakes,
    /// Ciphertext of the connection whose bytes are opened now, for whoever detaches it meanwhile.
    pub(crate) unopened: Cell<Option<Lease>>,
    /// What it has just received, while its stream's task may take it.
    pub(crate) lent: Cell<Option<Lease>>,
    /// How much may be staged without a further look at that connection; 0 when it may not be written to, or has output
    /// already.
    pub(crate) staged_room: Cell<usize>,
    /// That connection, or nobody.
    pub(crate) active: Cell<Token>,
    /// Whether its input has run dry: it was closed or paused in its own callback.
    pub(crate) dry: Dry,
    /// Connections written to, or closed, outside their own event.
    pub(crate) unsettled: RefCell<Vec<Token>>,
    /// Connections whose kept input, or FIN, may be delivered again.
    pub(crate) resumed: RefCell<Vec<Token>>,
    /// Connections that end with this turn.
    pub(crate) ending: RefCell<Vec<Token>>,
    /// The turn's clock.
    pub(crate) now: Cell<Instant>,
    /// When the kernel was asked for events last, without sleeping.
    pub(crate) kernel_asked: Cell<Instant>,
    pub(crate) phase: Cell<ShardPhase>,
    /// Tasks of `serve_tcp` that have not finished.
    pub(crate) serving: Cell<usize>,
    /// Calls to be made once the runtime runs.
    pub(crate) when_running: RefCell<Vec<RunningCall>>,
    /// Calls to be made when it begins to stop.
    pub(crate) drain_calls: DrainCalls,
    pub(crate) drain_deadline: RefCell<Option<DelayedCall>>,
    /// Set while connections that came in late have their time to be served.
    pub(crate) late_drain: RefCell<Option<DelayedCall>>,
    /// For TCP and for UDP.
    pub(crate) port_zero_calls: [Cell<usize>; 2],
    /// What the shard may do after its last turn: go on, or sleep until when.
    pub(crate) rest: Cell<Rest>,
    pub(crate) turning: Cell<bool>,
    pub(crate) poll: turn::AdaptivePoll,
    pub(crate) stats: Arc<ShardStats>,
}

pub(crate) type RunningCall = Box<dyn FnOnce(&Shard)>;

/// What the timer wheel holds: a call of the application's, the waker of a sleeping task, or what is to be done for a
/// connection. In place, since most timers are cancelled: a box for each would cost more than the wheel.
pub(crate) type Timer = InlineCall<Shard>;

thread_local! {
    static CURRENT: RefCell<Option<Shard>> = const { RefCell::new(None) };
}

/// Restores the shard that was current before.
pub(crate) struct CurrentGuard {
    previous: Option<Shard>,
}

impl Drop for CurrentGuard {
    fn drop(&mut self) {
        let previous = self.previous.take();
        let left = CURRENT.try_with(|current| current.replace(previous));
        drop(left);
    }
}

impl Shard {
    /// The shard whose callback or task runs now on this thread.
    ///
    /// # Panics
    /// Panics where no shard is current; see [`Shard::try_current`].
    pub fn current() -> Shard {
        Shard::try_current().expect("no shard runs on this thread now")
    }

    /// The shard whose callback or task runs now on this thread, if any. Never panics, also not while the thread's
    /// locals are being destroyed.
    pub fn try_current() -> Option<Shard> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// This shard's number.
    pub fn id(&self) -> ShardId {
        self.inner.id
    }

    /// How many shards the runtime has.
    pub fn shards(&self) -> usize {
        self.inner.shared.mesh.len()
    }

    /// A new shard, on the thread it will live on.
    pub(crate) fn new(id: ShardId, shared: Arc<Shared>, driver: Box<dyn Driver>) -> Shard {
        let now = driver.now();
        let endpoint = shared.mesh.endpoint(id);
        let executor = Executor::new(Arc::new(WayHome { id, shared: Arc::downgrade(&shared) }));
        let bound = if shared.may_poll { shared.config.poll_before_park } else { Duration::ZERO };
        let stats = Arc::clone(&shared.stats[id.index()]);
        let task_stats = Arc::clone(&stats);
        executor.set_panic_hook(move |panic| {
            task_stats.panics.add(1);
            tracing::error!(shard = id.index(), panic, "a task panicked");
        });
        let inner = Inner {
            id,
            driver: RefCell::new(driver),
            endpoint,
            executor,
            timers: RefCell::new(TimerWheel::new(now)),
            connections: RefCell::new(Registry::new()),
            listeners: Listeners::default(),
            attempts: Attempts::default(),
            datagrams: Datagrams::default(),
            watches: Watches::default(),
            producers: Producers::default(),
            policing: Policing::new(),
            staged: RefCell::default(),
            spare: RefCell::default(),
            plain: LeasePool::new(2 * PIECE_BYTES),
            handshakes: Handshakes::default(),
            unopened: Cell::new(None),
            lent: Cell::new(None),
            staged_room: Cell::new(0),
            active: Cell::new(Token::NOBODY),
            dry: Dry::default(),
            unsettled: RefCell::default(),
            resumed: RefCell::default(),
            ending: RefCell::default(),
            now: Cell::new(now),
            kernel_asked: Cell::new(now),
            phase: Cell::new(ShardPhase::Starting),
            when_running: RefCell::default(),
            drain_calls: DrainCalls::default(),
            drain_deadline: RefCell::default(),
            late_drain: RefCell::default(),
            serving: Cell::new(0),
            port_zero_calls: Default::default(),
            rest: Cell::new(Rest::None),
            turning: Cell::new(false),
            poll: turn::AdaptivePoll::new(bound),
            stats,
            shared,
        };
        Shard { inner: Rc::new(inner) }
    }

    /// Makes this shard current until the guard is dropped.
    pub(crate) fn enter(&self) -> CurrentGuard {
        let previous = CURRENT.with(|current| current.replace(Some(self.clone())));
        CurrentGuard { previous }
    }
}

/// How a task woken elsewhere comes back to its shard: as a message like any other.
struct WayHome {
    id: ShardId,
    /// Weak, since wakers may be kept for ever by anybody.
    shared: Weak<Shared>,
}

impl Remote for WayHome {
    fn send_home(&self, task: RemoteTask) {
        let Some(shared) = self.shared.upgrade() else { return };
        // Refused once the shard has stopped: the task is dropped here, its future was dropped at home.
        let _ = shared.mesh.post(self.id, move |shard: &Shard| shard.inner.executor.accept(task));
    }
}

/// Wakes a task that may not be one of ours: a waker is other people's code, and its panic goes no further.
pub(crate) fn wake_contained(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        match Shard::try_current() {
            Some(shard) => drop(shard.panicked("a waker", payload)),
            None => {
                log_contained(|| tracing::error!(message = panic_message(&*payload), "a waker panicked"));
                // Its payload may panic again when it is dropped; it is leaked instead.
                std::mem::forget(payload);
            }
        }
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Shard({})", self.inner.id.index())
    }
}
