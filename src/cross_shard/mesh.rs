//! What everybody shares: the inbox of every shard, and the way in for threads that are no shard. What one
//! shard owns is in `endpoint`.

use super::batch::{Batch, Way};
use super::counters::{InboxCounters, OwnCounters};
use super::endpoint::Endpoint;
use super::envelope::{Memory, Slots};
use super::foreign::{self, Answer, ForeignCall};
use super::inbox::Inbox;
use super::route::{Route, id_of};
use super::withdrawal::Withdrawals;
use crate::ShardId;
use crate::reactor::waker::DriverWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// All inboxes of a runtime. `C` is what messages run on.
pub(crate) struct Mesh<C: 'static> {
    stations: Box<[Station<C>]>,
    /// Counts the uses of [`Route::Any`] from outside.
    next_any: AtomicUsize,
}

/// What the others need of one shard.
pub(super) struct Station<C: 'static> {
    pub(super) inbox: Inbox<Batch<C>>,
    pub(super) withdrawals: Arc<Withdrawals>,
    pub(super) counters: OwnCounters,
    has_endpoint: AtomicBool,
}

impl<C: 'static> Mesh<C> {
    /// A mesh of as many shards as there are wakers, each woken by its own.
    ///
    /// # Panics
    /// Panics when there are none, or more than 65,536.
    pub(crate) fn new(wakers: Vec<DriverWaker>) -> Arc<Self> {
        assert!(!wakers.is_empty(), "a mesh has at least one shard");
        id_of(wakers.len() - 1);
        let station = |waker| Station {
            inbox: Inbox::new(waker),
            withdrawals: Arc::new(Withdrawals::new()),
            counters: OwnCounters::default(),
            has_endpoint: AtomicBool::new(false),
        };
        Arc::new(Mesh { stations: wakers.into_iter().map(station).collect(), next_any: AtomicUsize::new(0) })
    }

    /// What the shard with this number owns. Made once per shard, on its thread. Until then messages to it
    /// wait; should the shard never come up, making its endpoint and dropping it answers them all.
    ///
    /// # Panics
    /// Panics the second time, and when there is no such shard.
    pub(crate) fn endpoint(self: &Arc<Self>, id: ShardId) -> Endpoint<C> {
        // Relaxed: guards against our own mistake, and orders nothing.
        let again = self.station(id).has_endpoint.swap(true, Ordering::Relaxed);
        assert!(!again, "{id} has its endpoint already");
        Endpoint::new(Arc::clone(self), id)
    }

    /// Runs `f` on `target`, from a thread that is no shard: never waits, and is never refused for want of
    /// room. Messages of one thread start in the order they were posted.
    ///
    /// # Errors
    /// Gives `f` back when the target has stopped. Of an `f` that was not given back, the target runs it,
    /// also when it stops at the same moment.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn post<F: FnOnce(&C) + Send + 'static>(&self, target: ShardId, f: F) -> Result<(), F> {
        let inbox = &self.station(target).inbox;
        let Some(entered) = inbox.enter() else { return Err(f) };
        let mut slots = Slots::new();
        slots.push_post(f);
        if entered.push(Batch {
            slots,
            origin: target,
            way: Way::In,
            brings_replies: false,
            memory: Memory::NONE,
        }) {
            inbox.wake();
        }
        Ok(())
    }

    /// Runs `f` on `target` and gives its result, from a thread that is no shard. Sent at once.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn call_from_thread<F, T>(&self, target: ShardId, f: F) -> ForeignCall<T>
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (answer, call) = foreign::pair();
        let inbox = &self.station(target).inbox;
        // Of a closed inbox the call learns by `answer` being dropped, with `f`, on the way out.
        if let Some(entered) = inbox.enter() {
            let mut slots = Slots::new();
            slots.push_foreign_call(f, answer);
            if entered.push(Batch {
                slots,
                origin: target,
                way: Way::In,
                brings_replies: false,
                memory: Memory::NONE,
            }) {
                inbox.wake();
            }
        }
        call
    }

    /// Runs `f` on `target`, from a thread that is no shard, and gives what it sends as its answer, whenever that is.
    /// Sent at once.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn call_async_from_thread<F, T>(&self, target: ShardId, f: F) -> ForeignCall<T>
    where
        F: FnOnce(&C, Answer<T>) + Send + 'static,
        T: Send + 'static,
    {
        let (answer, call) = foreign::pair();
        // Refused by a closed inbox, the closure is dropped here, and the answer with it: that says `Stopped`.
        drop(self.post(target, foreign::starting(f, answer)));
        call
    }

    /// Makes `target` look at its sources, should it sleep: for news that lie elsewhere than in its inbox.
    /// Async-signal-safe: two atomic steps, and a write to its driver.
    ///
    /// What the news consist of must be published before, and the shard must look there between
    /// `prepare_sleep` and going to sleep.
    pub(crate) fn wake(&self, target: ShardId) {
        self.station(target).inbox.wake();
    }

    /// Which shard a message from outside goes to.
    pub(crate) fn resolve(&self, route: Route) -> ShardId {
        // Relaxed: any order of turns is as good as another.
        let next = || self.next_any.fetch_add(1, Ordering::Relaxed);
        route.resolve(self.len(), next, |id| self.is_open(id))
    }

    pub(crate) fn len(&self) -> usize {
        self.stations.len()
    }

    /// Whether `target` takes messages. May have changed the moment this returns.
    pub(crate) fn is_open(&self, target: ShardId) -> bool {
        self.station(target).inbox.is_open()
    }

    pub(crate) fn counters(&self, target: ShardId) -> InboxCounters {
        let station = self.station(target);
        station.counters.read(station.inbox.wakes_written())
    }

    pub(super) fn stations(&self) -> &[Station<C>] {
        &self.stations
    }

    #[inline]
    pub(super) fn station(&self, id: ShardId) -> &Station<C> {
        let Some(station) = self.stations.get(id.index()) else { panic!("there is no {id}") };
        station
    }
}
