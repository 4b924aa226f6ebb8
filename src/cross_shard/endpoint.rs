//! What one shard owns of the mesh: it sends, delivers, sleeps and stops. What the messages say is not its concern.

use super::calls::{Call, Calls, Settled};
use super::counters::{InboxCounters, OwnCounters, bump};
use super::credit::{Acquire, Credit, Credits};
use super::envelope::{Batch, CallKey, Came, Site, Slot, Slots, Status, Way};
use super::error::{Panic, message_of};
use super::inbox::{Inbox, Slept};
use super::mesh::Mesh;
use super::outbox::{BATCH_UNITS, FIRST_BATCH_UNITS, Outbox};
use super::route::Route;
use crate::ShardId;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

/// One shard's end of the mesh. Stays on the shard's thread.
///
/// Dropping it without [`close`](Self::close) closes the inbox all the same: posts in it are dropped unrun,
/// and calls are answered with `Stopped`.
pub(crate) struct Endpoint<C: 'static> {
    local: Rc<Local<C>>,
}

/// What [`Endpoint::deliver`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Messages run and replies taken in.
    pub(crate) count: usize,
    /// Whether the budget ended it before the inbox did.
    pub(crate) more: bool,
}

/// Shared with the replies that tasks of this shard hold.
pub(super) struct Local<C: 'static> {
    mesh: Arc<Mesh<C>>,
    id: ShardId,
    outboxes: Box<[Outbox<C>]>,
    /// Targets with something staged or a wake owed.
    dirty: RefCell<Vec<ShardId>>,
    /// Empty batches that have come home.
    spares: RefCell<Vec<Slots<C>>>,
    calls: Rc<Calls>,
    credits: Rc<Credits>,
    /// What the budget left over.
    carried: RefCell<Option<Batch<C>>>,
    /// The async call whose closure runs right now, and whether its reply has been dropped unsent meanwhile.
    starting: Cell<Option<Starting>>,
    delivering: Cell<bool>,
    closed: Cell<bool>,
    next_any: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Starting {
    origin: ShardId,
    key: CallKey,
    dropped: bool,
}

/// Empty batches kept for the next turns; at 8 KiB each, 256 KiB at most.
const SPARES_MAX: usize = 32;

impl<C: 'static> Endpoint<C> {
    pub(super) fn new(mesh: Arc<Mesh<C>>, id: ShardId) -> Self {
        let shards = mesh.len();
        let credits = Credits::new(shards);
        let calls = Calls::new(Arc::clone(&mesh.station(id).withdrawals), Rc::clone(&credits));
        Endpoint {
            local: Rc::new(Local {
                mesh,
                id,
                outboxes: (0..shards).map(|_| Outbox::new()).collect(),
                dirty: RefCell::new(Vec::with_capacity(shards)),
                spares: RefCell::new(Vec::new()),
                calls,
                credits,
                carried: RefCell::new(None),
                starting: Cell::new(None),
                delivering: Cell::new(false),
                closed: Cell::new(false),
                // Shards start their rounds at different places.
                next_any: Cell::new(id.index()),
            }),
        }
    }

    pub(crate) fn id(&self) -> ShardId {
        self.local.id
    }

    pub(crate) fn mesh(&self) -> &Arc<Mesh<C>> {
        &self.local.mesh
    }

    /// Which shard a message from here goes to.
    pub(crate) fn resolve(&self, route: Route) -> ShardId {
        let local = &*self.local;
        let next = || local.next_any.replace(local.next_any.get().wrapping_add(1));
        route.resolve(local.mesh.len(), next, |id| local.mesh.is_open(id))
    }

    /// Stages `f` to run on `target`, which may be this shard: then too it is queued. Messages to one target start
    /// in the order they were staged, calls among them.
    ///
    /// Should the target stop between now and [`publish`](Self::publish), `f` is dropped here, unrun, and counted.
    ///
    /// # Errors
    /// Gives `f` back when the target has stopped.
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn post<F: FnOnce(&C) + Send + 'static>(&self, target: ShardId, f: F) -> Result<(), F> {
        if !self.local.mesh.is_open(target) {
            return Err(f);
        }
        self.local.stage(target, self.local.outbox(target), |slots| slots.push_post(f));
        Ok(())
    }

    /// Stages a call of `f` on `target`, which may be this shard. What `f` returns comes home with the batch.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    #[inline]
    pub(crate) fn call<T, F>(&self, target: ShardId, f: F) -> Call<T>
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.local.stage_call(target, |slots, key| slots.push_call(key, f))
    }

    /// Stages a call of `f` on `target` that is answered whenever the [`Reply`] is sent there. A reply dropped
    /// unsent answers `Stopped`.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn call_async<T, F>(&self, target: ShardId, f: F) -> Call<T>
    where
        F: FnOnce(&C, Reply<T, C>) + Send + 'static,
        T: Send + 'static,
    {
        self.local.stage_call(target, |slots, key| slots.push_async_call(key, f))
    }

    /// A credit for one call to `target`, if one is free. Hand it to [`Call::holding`].
    pub(crate) fn try_credit(&self, target: ShardId) -> Option<Credit> {
        self.local.credits.take(target)
    }

    /// Waits for a credit, first come, first served. Hand it to [`Call::holding`].
    ///
    /// # Errors
    /// `Stopped` once this shard has.
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn credit(&self, target: ShardId) -> Acquire {
        self.local.credits.acquire(target)
    }

    /// Runs what is in the inbox, at most `budget` messages and replies. What arrives meanwhile, also from here,
    /// waits for the next turn. Panics of closures are caught, counted and logged.
    ///
    /// # Panics
    /// Panics when called from within a message.
    pub(crate) fn deliver(&self, context: &C, budget: usize) -> Delivered {
        Delivery::begin(&self.local).run(context, budget)
    }

    /// Sends what has been staged, and wakes each target that sleeps, once.
    pub(crate) fn publish(&self) {
        self.local.publish();
    }

    /// Whether there is something to deliver or to publish. Cheap: for polling.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        let local = &*self.local;
        !local.inbox().is_empty() || local.carried.borrow().is_some() || !local.dirty.borrow().is_empty()
    }

    /// Announces that this shard is about to sleep: from here on it is woken. `false`: there is mail after all,
    /// and nothing was announced.
    ///
    /// After `true`, look at every other source that wakes through [`Mesh::wake`] once more; then sleep, or do not;
    /// then call [`finish_sleep`](Self::finish_sleep).
    pub(crate) fn prepare_sleep(&self) -> bool {
        let local = &*self.local;
        if !local.dirty.borrow().is_empty() || local.carried.borrow().is_some() {
            return false;
        }
        local.inbox().mark_sleeping();
        if local.inbox().is_empty() {
            bump(&local.counters().sleeps, 1);
            return true;
        }
        if local.inbox().mark_awake() == Slept::Notified {
            bump(&local.counters().wakes_spurious, 1);
        }
        false
    }

    /// This shard is awake again.
    pub(crate) fn finish_sleep(&self) {
        self.local.inbox().mark_awake();
    }

    /// Whether calls are in flight: worth polling for.
    pub(crate) fn awaits_replies(&self) -> bool {
        self.local.calls.waiting() != 0
    }

    pub(crate) fn counters(&self) -> InboxCounters {
        self.local.mesh.counters(self.local.id)
    }

    /// Stops taking messages, runs all that were taken, publishes, and answers the calls of this shard that are still
    /// out with `Stopped`. From here on nothing comes home: calls made later are answered `Stopped` at once; posts
    /// and replies to other shards leave without waiting for `publish`.
    ///
    /// # Panics
    /// Panics when called from within a message.
    pub(crate) fn close(&self, context: &C) {
        let delivery = Delivery::begin(&self.local);
        if self.local.closed.replace(true) {
            return;
        }
        self.local.inbox().close();
        delivery.run(context, usize::MAX);
        self.local.finish_closing();
    }
}

impl<C: 'static> Drop for Endpoint<C> {
    fn drop(&mut self) {
        if !self.local.closed.replace(true) {
            self.local.inbox().close();
            self.local.turn_away();
            self.local.finish_closing();
        }
    }
}

/// Marks that messages are being run: they must not ask for more to be run inside themselves.
struct Delivery<'a, C: 'static> {
    local: &'a Rc<Local<C>>,
}

impl<'a, C: 'static> Delivery<'a, C> {
    fn begin(local: &'a Rc<Local<C>>) -> Self {
        assert!(!local.delivering.replace(true), "messages are delivered from within a message");
        Delivery { local }
    }

    fn run(&self, context: &C, budget: usize) -> Delivered {
        let local = self.local;
        // What arrives from here on is left for the next turn.
        let arrived = local.inbox().len();
        let (mut left, mut taken, mut messages) = (budget, 0, 0);
        let mut carried = local.carried.take();
        while left > 0 {
            let mut batch = match carried.take() {
                Some(batch) => batch,
                None if taken == arrived => break,
                None => {
                    let Some(batch) = local.inbox().pop() else { break };
                    taken += 1;
                    batch
                }
            };
            if batch.way == Way::Home {
                // Whole: it is bounded, and hardly any of it is application code.
                left = left.saturating_sub(local.come_home(batch));
                continue;
            }
            let ran = local.work(&mut batch.slots, left, &local.site(context, batch.origin));
            messages += ran;
            left -= ran;
            if !batch.slots.are_done() {
                *local.carried.borrow_mut() = Some(batch);
            } else if batch.way == Way::Out {
                local.send_home(batch);
            }
        }
        bump(&local.counters().messages, messages);
        bump(&local.counters().envelopes, taken);
        Delivered { count: budget - left, more: taken < arrived || local.carried.borrow().is_some() }
    }
}

impl<C: 'static> Drop for Delivery<'_, C> {
    fn drop(&mut self) {
        self.local.delivering.set(false);
    }
}

impl<C: 'static> Local<C> {
    #[inline]
    fn inbox(&self) -> &Inbox<Batch<C>> {
        &self.mesh.station(self.id).inbox
    }

    fn site<'a>(self: &'a Rc<Self>, context: &'a C, origin: ShardId) -> Site<'a, C> {
        Site { context, local: self, origin, withdrawals: &self.mesh.station(origin).withdrawals }
    }

    fn counters(&self) -> &OwnCounters {
        &self.mesh.station(self.id).counters
    }

    #[inline]
    fn outbox(&self, target: ShardId) -> &Outbox<C> {
        let Some(outbox) = self.outboxes.get(target.index()) else { panic!("there is no {target}") };
        outbox
    }

    /// Stages a call; `push` adds its request.
    #[inline]
    fn stage_call<T>(&self, target: ShardId, push: impl FnOnce(&mut Slots<C>, CallKey)) -> Call<T> {
        let outbox = self.outbox(target);
        let key = self.calls.open(target);
        let call = self.calls.future(key);
        if self.closed.get() {
            // No answer would come home.
            self.calls.settle(key, |_| Came::Stopped);
            return call;
        }
        outbox.brings_replies.set(true);
        self.stage(target, outbox, |slots| push(slots, key));
        call
    }

    #[inline]
    fn stage(&self, target: ShardId, outbox: &Outbox<C>, push: impl FnOnce(&mut Slots<C>)) {
        let (was_empty, units) = {
            let mut staged = outbox.staged.borrow_mut();
            if !staged.has_capacity() {
                *staged = self.spare();
            }
            let was_empty = staged.is_empty();
            push(&mut staged);
            (was_empty, staged.units())
        };
        if was_empty || units >= outbox.limit.get() {
            self.after_staging(target, outbox, units);
        }
    }

    fn stage_answer(&self, origin: ShardId, push: impl FnOnce(&mut Slots<C>)) {
        self.stage(origin, self.outbox(origin), push);
    }

    #[cold]
    fn spare(&self) -> Slots<C> {
        self.spares.borrow_mut().pop().unwrap_or_else(Slots::new)
    }

    /// The first and the last slot of a batch need more than being staged.
    #[inline(never)]
    fn after_staging(&self, target: ShardId, outbox: &Outbox<C>, units: usize) {
        self.list(target, outbox);
        if self.closed.get() {
            // There are no more turns at whose end it would leave.
            self.publish();
        } else if units >= outbox.limit.get() {
            outbox.limit.set(BATCH_UNITS.min(units * 2));
            self.flush(target, outbox);
        }
    }

    #[inline]
    fn list(&self, target: ShardId, outbox: &Outbox<C>) {
        if !outbox.listed.replace(true) {
            self.dirty.borrow_mut().push(target);
        }
    }

    fn publish(&self) {
        loop {
            let Some(target) = self.dirty.borrow_mut().pop() else { return };
            let outbox = &self.outboxes[target.index()];
            outbox.listed.set(false);
            outbox.limit.set(FIRST_BATCH_UNITS);
            self.flush(target, outbox);
            if outbox.wake_owed.take() {
                self.mesh.station(target).inbox.wake();
            }
        }
    }

    /// Puts what is staged into the target's inbox. Waking it is left to `publish`.
    fn flush(&self, target: ShardId, outbox: &Outbox<C>) {
        let slots = outbox.staged.replace(Slots::new());
        if slots.is_empty() {
            return;
        }
        let brings_replies = outbox.brings_replies.take();
        let batch = Batch { slots, origin: self.id, way: Way::Out, brings_replies };
        match self.mesh.station(target).inbox.push(batch) {
            Ok(false) => {}
            Ok(true) => outbox.wake_owed.set(true),
            Err(mut batch) => {
                // Also posts are something to look at then.
                batch.brings_replies = true;
                self.come_home(batch);
            }
        }
    }

    /// Runs at most `budget` slots that somebody sent here, one after the other, and returns how many. Panics of
    /// application code end here.
    fn work(&self, slots: &mut Slots<C>, budget: usize, site: &Site<'_, C>) -> usize {
        let worked = self.contain(slots, budget, |slot| self.take_in(slot, site));
        self.wake_all();
        worked
    }

    /// A batch of this shard's own is back, or was not taken by its target. Returns how many answers it brought, wanted
    /// or not.
    fn come_home(&self, mut batch: Batch<C>) -> usize {
        let (mut settled, mut others) = (0, 0);
        if batch.brings_replies {
            batch.slots.rewind();
            (settled, others) = self.calls.settle_all(&mut batch.slots);
            bump(&self.counters().replies, settled);
            if others > 0 {
                batch.slots.rewind();
                self.contain(&mut batch.slots, usize::MAX, |slot| self.take_home(slot));
            }
            self.wake_all();
        }
        self.recycle(batch.slots);
        settled + others
    }

    /// One frame that catches panics for all slots, not one each: what panicked is the last slot given.
    #[inline]
    fn contain(&self, slots: &mut Slots<C>, limit: usize, deal_with: impl Fn(&mut Slot<'_, C>)) -> usize {
        let mut count = 0;
        loop {
            let dealt = catch_unwind(AssertUnwindSafe(|| {
                while count < limit {
                    let Some(mut slot) = slots.next() else { return };
                    count += 1;
                    deal_with(&mut slot);
                }
            }));
            match dealt {
                Ok(()) => return count,
                Err(payload) => self.after_panic(&mut slots.last(), payload),
            }
        }
    }

    /// Wakes the tasks whose answers have come in.
    fn wake_all(&self) {
        while let Err(payload) = catch_unwind(AssertUnwindSafe(|| while self.calls.wake_next() {})) {
            self.note_panic("a waker", &*payload);
            drop_contained(payload);
        }
    }

    /// A slot of somebody's, sent here.
    #[inline]
    fn take_in(&self, slot: &mut Slot<'_, C>, site: &Site<'_, C>) {
        match slot.status() {
            Status::Post => slot.run(site),
            Status::Call => {
                if !site.withdrawals.is_raised(slot.key().index) {
                    slot.run(site);
                }
            }
            Status::AsyncCall => {
                if !site.withdrawals.is_raised(slot.key().index) {
                    self.start(slot, site);
                }
            }
            Status::Value | Status::Panicked | Status::Unanswered => self.settle(slot),
            Status::Running | Status::Spent | Status::Empty => unreachable!("nobody sends these"),
        }
    }

    /// A slot of this shard's own, back from where it was sent.
    #[inline]
    fn take_home(&self, slot: &mut Slot<'_, C>) {
        match slot.status() {
            Status::Value | Status::Panicked | Status::Unanswered => self.settle(slot),
            Status::Spent | Status::Empty => {}
            Status::Call | Status::AsyncCall => {
                // It has not run: withdrawn, or its target has stopped.
                self.calls.settle(slot.key(), |_| Came::Stopped);
                slot.clear();
            }
            Status::Post => {
                bump(&self.counters().refused, 1);
                slot.clear();
            }
            Status::Running => unreachable!("a closure that ends leaves another status"),
        }
    }

    #[inline]
    fn settle(&self, slot: &mut Slot<'_, C>) {
        bump(&self.counters().replies, 1);
        match self.calls.settle(slot.key(), |words| slot.take_outcome(words)) {
            Settled::Kept => {}
            Settled::Unwanted => slot.clear(),
            Settled::Late => {
                bump(&self.counters().late, 1);
                slot.clear();
            }
        }
    }

    fn is_withdrawn(&self, origin: ShardId, key: CallKey) -> bool {
        self.mesh.station(origin).withdrawals.is_raised(key.index)
    }

    fn start(&self, slot: &mut Slot<'_, C>, site: &Site<'_, C>) {
        self.starting.set(Some(Starting { origin: site.origin, key: slot.key(), dropped: false }));
        slot.run(site);
        if self.starting.take().is_some_and(|starting| starting.dropped) {
            slot.set_unanswered();
        }
    }

    /// What a panic left behind: the slot knows how far it came.
    #[cold]
    fn after_panic(&self, slot: &mut Slot<'_, C>, payload: Box<dyn Any + Send>) {
        self.starting.set(None);
        if slot.status() != Status::Running {
            self.note_panic("a value being dropped", &*payload);
            drop_contained(payload);
        } else if slot.key() == CallKey::NONE {
            self.note_panic("a posted closure", &*payload);
            slot.set_spent();
            drop_contained(payload);
        } else {
            self.note_panic("a called closure", &*payload);
            slot.set_panicked(payload);
        }
    }

    /// Counts and logs a panic of application code.
    #[cold]
    pub(super) fn note_panic(&self, what: &'static str, payload: &(dyn Any + Send)) {
        bump(&self.counters().panics, 1);
        // The subscriber is the application's, too.
        let logged = catch_unwind(AssertUnwindSafe(|| {
            let shard = self.id.index();
            tracing::error!(shard, panic = message_of(payload), "{what} panicked");
        }));
        if let Err(payload) = logged {
            drop_contained(payload);
        }
    }

    /// Returns a batch to the shard that made it. At once, so that its answers are not held back by the rest of this
    /// turn; a wake that is owed for them waits for `publish`. A batch that only brings memory wakes nobody: it
    /// lies in the inbox until its owner is awake anyway. (That is one push per batch; freeing it here instead
    /// would meet the allocator's locks, since it came from another thread.)
    fn send_home(&self, mut batch: Batch<C>) {
        batch.way = Way::Home;
        let (origin, brings_replies) = (batch.origin, batch.brings_replies);
        let outbox = &self.outboxes[origin.index()];
        if brings_replies {
            // What was posted home before the answers were given also arrives before them.
            self.flush(origin, outbox);
        }
        match self.mesh.station(origin).inbox.push(batch) {
            Ok(asleep) => {
                if asleep && brings_replies {
                    outbox.wake_owed.set(true);
                    self.list(origin, outbox);
                }
            }
            // Its home is gone: this is the one case in which it is dropped elsewhere.
            Err(homeless) => self.drop_batch(homeless),
        }
    }

    /// Keeps the memory of a batch.
    fn recycle(&self, mut slots: Slots<C>) {
        slots.clear_spent();
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX {
            spares.push(slots);
        }
    }

    fn drop_batch(&self, mut batch: Batch<C>) {
        batch.slots.rewind();
        self.contain(&mut batch.slots, usize::MAX, |slot| slot.clear());
    }

    /// Empties a closed inbox without running anything.
    fn turn_away(&self) {
        let carried = self.carried.take();
        let rest = std::iter::from_fn(|| self.inbox().pop());
        for mut batch in carried.into_iter().chain(rest) {
            match batch.way {
                Way::Home => {
                    self.come_home(batch);
                }
                Way::Out => {
                    // Unrun. Also posts are something to look at for their owner then.
                    batch.brings_replies = true;
                    self.send_home(batch);
                }
                Way::In => {
                    bump(&self.counters().refused, 1);
                    self.drop_batch(batch);
                }
            }
        }
    }

    /// Nothing comes home any more.
    fn finish_closing(&self) {
        self.publish();
        self.calls.stop();
        self.wake_all();
        // Tasks that were just told so may have answered others.
        self.publish();
    }
}

/// Drops a panic's payload, which may panic itself, with a payload of its own: not without end.
fn drop_contained(mut payload: Box<dyn Any + Send>) {
    for _ in 0..8 {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    std::mem::forget(payload);
}

/// The means to answer an async call, on the shard that was called. Dropped unsent, it answers `Stopped`.
pub(crate) struct Reply<T: Send + 'static, C: 'static> {
    local: Rc<Local<C>>,
    origin: ShardId,
    key: CallKey,
    sent: bool,
    result: PhantomData<fn(T)>,
}

impl<T: Send + 'static, C: 'static> Reply<T, C> {
    pub(super) fn new(local: &Rc<Local<C>>, origin: ShardId, key: CallKey) -> Self {
        Reply { local: Rc::clone(local), origin, key, sent: false, result: PhantomData }
    }

    /// Sends the result home: a message of its own, published with this turn's.
    pub(crate) fn send(mut self, result: Result<T, Panic>) {
        self.sent = true;
        self.local.stage_answer(self.origin, |slots| slots.push_answer(self.key, result));
    }

    /// Whether somebody still waits for it. A hint, for giving up early.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.local.is_withdrawn(self.origin, self.key)
    }
}

impl<T: Send + 'static, C: 'static> Drop for Reply<T, C> {
    fn drop(&mut self) {
        if self.sent {
            return;
        }
        let local = &*self.local;
        match local.starting.get() {
            // Its slot is still here and says so itself; or that the closure panicked.
            Some(starting) if (starting.origin, starting.key) == (self.origin, self.key) => {
                local.starting.set(Some(Starting { dropped: true, ..starting }));
            }
            _ => local.stage_answer(self.origin, |slots| slots.push_unanswered(self.key)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::CallError;
    use super::super::test_kit::{AtHome, Bed, Shard, at, id, poll, ready};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn posts_and_calls_to_one_shard_start_in_the_order_they_were_made() {
        let bed = Bed::new(2);
        assert!(bed[0].post(id(1), |shard| shard.log(1)).is_ok());
        let call = bed[0].call(id(1), |shard| shard.log(2));
        assert!(bed[0].post(id(1), |shard| shard.log(3)).is_ok());
        assert_eq!(bed.deliver(1).count, 0, "nothing leaves before it is published");
        bed.publish(0);
        assert_eq!(bed.deliver(1), Delivered { count: 3, more: false });
        assert_eq!(bed.log(1), [1, 2, 3]);
        bed.deliver(0);
        assert!(ready(call).is_ok());
    }

    #[test]
    fn a_call_to_the_own_shard_is_queued_and_answered_like_any_other() {
        let bed = Bed::new(1);
        let call = bed[0].call(id(0), |shard| {
            shard.log(7);
            "done"
        });
        assert!(bed.log(0).is_empty(), "never inlined");
        assert!(bed[0].has_mail() && !bed[0].prepare_sleep(), "staged work keeps a shard awake");
        bed.settle();
        assert_eq!(bed.log(0), [7]);
        assert_eq!(ready(call).unwrap(), "done");
    }

    #[test]
    fn what_arrives_during_a_turn_waits_for_the_next() {
        let bed = Bed::new(1);
        let mesh = bed.mesh.clone();
        let from_outside = move |shard: &Shard| {
            shard.log(1);
            assert!(mesh.post(id(0), |shard| shard.log(3)).is_ok());
            assert!(shard.endpoint.post(id(0), |shard| shard.log(4)).is_ok());
            shard.endpoint.publish();
        };
        assert!(bed[0].post(id(0), from_outside).is_ok());
        assert!(bed[0].post(id(0), |shard| shard.log(2)).is_ok());
        bed.publish(0);
        assert_eq!(bed.deliver(0).count, 2);
        assert_eq!(bed.log(0), [1, 2]);
        bed.settle();
        assert_eq!(bed.log(0), [1, 2, 3, 4]);
    }

    #[test]
    fn a_budget_ends_a_turn_in_the_middle_of_a_batch_and_nothing_is_lost() {
        let bed = Bed::new(2);
        let calls: Vec<_> =
            (0..300).map(|number| bed[0].call(id(1), move |shard| shard.log(number))).collect();
        bed.publish(0);
        assert_eq!(bed.deliver_some(1, 7), Delivered { count: 7, more: true });
        assert!(bed[1].has_mail() && !bed[1].prepare_sleep(), "what is left over keeps a shard awake");
        let mut turns = 1;
        while bed.deliver_some(1, 7).more {
            turns += 1;
        }
        assert_eq!(turns, 300 / 7);
        bed.publish(1);
        assert!(bed.deliver_some(0, 1).more, "replies are taken in by the batch");
        bed.deliver(0);
        assert_eq!(bed.log(1), (0..300).collect::<Vec<_>>());
        assert!(calls.into_iter().all(|call| ready(call).is_ok()));
    }

    #[test]
    fn results_of_every_size_and_alignment_come_home() {
        #[repr(align(64))]
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Aligned(u8);
        #[repr(align(256))]
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Nothing;
        let bed = Bed::new(2);
        let large = [7_u64; 100];
        let unit = bed[0].call(id(1), |_| ());
        let inline = bed[0].call(id(1), |_| [1_u64, 2, 3, 4, 5]);
        let grown = bed[0].call(id(1), |_| [9_u64; 6]);
        let shrunk = bed[0].call(id(1), move |_| large.iter().sum::<u64>());
        let both = bed[0].call(id(1), move |_| large.to_vec());
        let aligned = bed[0].call(id(1), |_| Aligned(3));
        let nothing = bed[0].call(id(1), |_| Nothing);
        let took_aligned = Aligned(4);
        let took = bed[0].call(id(1), move |_| took_aligned.0);
        assert!(bed[0].post(id(1), move |shard| shard.log(large[0] as u32)).is_ok());
        bed.settle();
        ready(unit).unwrap();
        assert_eq!(ready(inline).unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(ready(grown).unwrap(), [9; 6]);
        assert_eq!(ready(shrunk).unwrap(), 700);
        assert_eq!(ready(both).unwrap(), large);
        assert_eq!(ready(aligned).unwrap(), Aligned(3));
        assert_eq!(ready(nothing).unwrap(), Nothing);
        assert_eq!(ready(took).unwrap(), 4);
        assert_eq!(bed.log(1), [7]);
    }

    #[test]
    fn a_batch_comes_home_and_is_used_again() {
        let bed = Bed::new(2);
        for _ in 0..3 {
            let call = bed[0].call(id(1), |_| ());
            assert_eq!(bed[0].local.spares.borrow().len(), 0, "the one batch there is is in use");
            bed.settle();
            assert!(ready(call).is_ok());
            assert!(bed[0].post(id(1), |_| ()).is_ok());
            bed.settle();
            assert_eq!(bed[0].local.spares.borrow().len(), 1, "posts alone also give it back");
        }
    }

    #[test]
    fn a_withdrawn_call_does_not_start_and_is_dropped_at_home() {
        let drops = Arc::new(AtomicUsize::new(0));
        let bed = Bed::new(2);
        let (small, large) = (AtHome::<8>::new(0, &drops), AtHome::<400>::new(0, &drops));
        let call = bed[0].call(id(1), move |shard| {
            let _small = small;
            shard.log(1);
        });
        let large_call = bed[0].call(id(1), move |shard| {
            let _large = large;
            shard.log(2);
        });
        let async_kept = AtHome::<0>::new(0, &drops);
        let async_call = bed[0].call_async(id(1), move |shard: &Shard, reply: Reply<(), Shard>| {
            let _kept = async_kept;
            shard.log(3);
            drop(reply);
        });
        bed.publish(0);
        assert!(bed[0].awaits_replies());
        drop((call, large_call, async_call));
        assert!(!bed[0].awaits_replies());
        bed.deliver(1);
        assert_eq!(bed.deliver(0).count, 3, "unwanted answers are work, too");
        assert!(bed.log(1).is_empty());
        assert_eq!(drops.load(Ordering::Relaxed), 3);

        let next = bed[0].call(id(1), |shard| shard.log(4));
        bed.settle();
        assert!(ready(next).is_ok(), "the entry of a withdrawn call serves the next");
    }

    #[test]
    fn a_result_that_nobody_wants_is_dropped_at_home() {
        let drops = Arc::new(AtomicUsize::new(0));
        let bed = Bed::new(2);
        let made = Arc::clone(&drops);
        let before = bed[0].call(id(1), move |_| AtHome::<8>::new(0, &made));
        let made = Arc::clone(&drops);
        let boxed = bed[0].call(id(1), move |_| AtHome::<500>::new(0, &made));
        let made = Arc::clone(&drops);
        let after = bed[0].call(id(1), move |_| AtHome::<8>::new(0, &made));
        let made = Arc::clone(&drops);
        let payload = bed[0].call(id(1), move |_| {
            std::panic::panic_any(AtHome::<8>::new(0, &made));
        });
        bed.publish(0);
        bed.deliver(1);
        drop((before, boxed, payload));
        bed.settle();
        assert_eq!(drops.load(Ordering::Relaxed), 3);
        at(0, || drop(after));
        assert_eq!(drops.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_panic_travels_to_the_caller_and_the_target_goes_on() {
        let bed = Bed::new(2);
        let ballast = [1_u8; 100];
        let boom = bed[0].call(id(1), |_| -> u32 { panic!("boom") });
        let boxed = bed[0].call(id(1), move |_| -> u32 { panic!("{} booms", ballast[0]) });
        let fine = bed[0].call(id(1), |_| 5);
        let async_boom =
            bed[0].call_async(id(1), |_: &Shard, _reply: Reply<u32, Shard>| panic!("async boom"));
        assert!(bed[0].post(id(1), |_| panic!("nobody is told")).is_ok());
        assert!(bed[0].post(id(1), |shard| shard.log(1)).is_ok());
        bed.settle();
        assert_eq!(ready(boom).unwrap_err().to_string(), "the called closure panicked: boom");
        assert_eq!(ready(boxed).unwrap_err().to_string(), "the called closure panicked: 1 booms");
        assert_eq!(ready(fine).unwrap(), 5);
        assert_eq!(ready(async_boom).unwrap_err().to_string(), "the called closure panicked: async boom");
        assert_eq!(bed.log(1), [1]);
        assert_eq!(bed[1].counters().panics, 4);
    }

    #[test]
    fn values_that_panic_when_dropped_harm_nobody() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let bed = Bed::new(2);
        assert!(bed[0].post(id(1), |_| std::panic::panic_any(Bomb)).is_ok());
        let unwanted = bed[0].call(id(1), |_| Bomb);
        let bomb = Bomb;
        let withdrawn = bed[0].call(id(1), move |_| drop(bomb));
        let fine = bed[0].call(id(1), |_| 1);
        bed.publish(0);
        drop(withdrawn);
        bed.deliver(1);
        drop(unwanted);
        bed.settle();
        assert_eq!(ready(fine).unwrap(), 1);
        assert_eq!((bed[0].counters().panics, bed[1].counters().panics), (2, 1));
    }

    #[test]
    fn an_async_call_is_answered_whenever_its_reply_is_sent() {
        let bed = Bed::new(2);
        thread_local! {
            static REPLIES: RefCell<Vec<Reply<[u64; 9], Shard>>> = const { RefCell::new(Vec::new()) };
        }
        let keep = |_: &Shard, reply| REPLIES.with_borrow_mut(|replies| replies.push(reply));
        let [mut one, two, three] = std::array::from_fn(|_| bed[0].call_async(id(1), keep));
        bed.settle();
        assert!(poll(&mut one).is_pending());
        let [first, second, third] = REPLIES.take().try_into().ok().unwrap();
        assert!(first.is_wanted());
        first.send(Ok([4; 9]));
        second.send(Err(Panic::new(Box::new("late"))));
        drop(third);
        bed.settle();
        assert_eq!(ready(one).unwrap(), [4; 9]);
        assert_eq!(ready(two).unwrap_err().to_string(), "the called closure panicked: late");
        assert!(matches!(ready(three), Err(CallError::Stopped)));
    }

    #[test]
    fn a_closed_shard_runs_what_it_had_taken_and_refuses_the_rest() {
        let bed = Bed::new(2);
        assert!(bed.mesh.post(id(1), |shard| shard.log(1)).is_ok());
        assert!(bed[0].post(id(1), |shard| shard.log(2)).is_ok());
        let taken = bed[0].call(id(1), |_| 3);
        bed.publish(0);
        let staged = bed[0].call(id(1), |_| 4);
        assert!(bed[0].post(id(1), |shard| shard.log(5)).is_ok());
        let own = bed[1].call(id(0), |_| 6);
        bed.publish(1);
        bed.close(1);
        assert_eq!(bed.log(1), [1, 2]);
        assert!(matches!(ready(own), Err(CallError::Stopped)));
        assert!(!bed.mesh.is_open(id(1)));

        let back = bed.mesh.post(id(1), |shard: &Shard| shard.log(7)).unwrap_err();
        back(bed.shard(0));
        assert!(bed[0].post(id(1), |_| ()).is_err());
        let late = bed[0].call(id(1), |_| 8);
        bed.settle();
        assert!(matches!(ready(late), Err(CallError::Stopped)));
        assert_eq!(bed.log(0), [7]);
        assert_eq!(ready(taken).unwrap(), 3);
        assert!(matches!(ready(staged), Err(CallError::Stopped)));
        assert_eq!(bed[0].counters().refused, 1, "the post that was staged too late");
        assert!(matches!(ready(bed[1].call(id(0), |_| 9)), Err(CallError::Stopped)), "no answer could come");
    }

    #[test]
    fn a_shard_that_is_lost_without_closing_answers_all_who_wait_for_it() {
        let drops = Arc::new(AtomicUsize::new(0));
        let mut bed = Bed::new(2);
        let (posted, called) = (AtHome::<8>::new(0, &drops), AtHome::<90>::new(0, &drops));
        let run: Vec<_> = (0..3).map(|number| bed[0].call(id(1), move |_| number)).collect();
        bed.publish(0);
        bed.deliver_some(1, 2);
        assert!(bed[0].post(id(1), move |_| drop(posted)).is_ok());
        let unrun = bed[0].call(id(1), move |_| drop(called));
        bed.publish(0);
        let from_outside = bed.mesh.call_from_thread(id(1), |_| ());
        bed.lose_last();
        bed.settle();
        let run: Vec<_> = run.into_iter().map(|call| ready(call).ok()).collect();
        assert_eq!(run, [Some(0), Some(1), None]);
        assert!(matches!(ready(unrun), Err(CallError::Stopped)));
        assert!(matches!(from_outside.wait_blocking(), Err(CallError::Stopped)));
        assert_eq!(drops.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn answers_that_come_after_the_caller_has_stopped_are_dropped_where_they_are() {
        let bed = Bed::new(2);
        let drops = Arc::new(AtomicUsize::new(0));
        let result = Arc::clone(&drops);
        let call = bed[0].call(id(1), move |_| AtHome::<8>::new(1, &result));
        bed.publish(0);
        bed.close(0);
        assert!(matches!(ready(call), Err(CallError::Stopped)));
        bed.settle();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_sleeping_target_is_woken_once_per_turn_and_an_awake_one_never() {
        let bed = Bed::new(3);
        let wakes = |shard: usize| bed.shard(shard).wakes.count();
        for _ in 0..500 {
            assert!(bed[0].post(id(1), |_| ()).is_ok());
        }
        bed.publish(0);
        assert_eq!(wakes(1), 0, "it was awake");
        assert!(!bed[1].prepare_sleep(), "there is mail");
        bed.deliver(1);
        assert!(bed[1].prepare_sleep());
        for _ in 0..500 {
            assert!(bed[0].post(id(1), |_| ()).is_ok());
        }
        assert_eq!(wakes(1), 0, "full batches leave early, the wake does not");
        bed.publish(0);
        assert!(bed[2].post(id(1), |_| ()).is_ok());
        bed.publish(2);
        assert!(bed.mesh.post(id(1), |_| ()).is_ok());
        assert_eq!(wakes(1), 1, "one write per sleep, whoever comes");
        bed[1].finish_sleep();
        assert!(bed.mesh.post(id(1), |_| ()).is_ok());
        assert_eq!(wakes(1), 1, "awake again");
        assert_eq!(bed.deliver(1).count, 503);
        let counters = bed[1].counters();
        assert_eq!((counters.wakes_written, counters.sleeps, counters.messages), (1, 1, 1_003));
        assert_eq!(counters.envelopes, counters.wakes_written + counters.wakes_elided);
        assert_eq!((wakes(0), wakes(2)), (0, 0));
    }

    #[test]
    fn the_memory_of_posts_comes_home_without_waking_anybody() {
        let bed = Bed::new(2);
        assert!(bed[0].post(id(1), |_| ()).is_ok());
        bed.publish(0);
        assert!(bed[0].prepare_sleep());
        bed.deliver(1);
        bed.publish(1);
        assert_eq!(bed.shard(0).wakes.count(), 0);
        bed[0].finish_sleep();
        bed.deliver(0);
        assert_eq!(bed[0].local.spares.borrow().len(), 1);
        assert!(bed[0].prepare_sleep(), "nothing is left");
    }

    #[test]
    fn a_reply_wakes_the_task_that_waits_for_it() {
        use std::task::{Context, Wake, Waker};
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (stale, woken) = (Arc::new(Woken(AtomicUsize::new(0))), Arc::new(Woken(AtomicUsize::new(0))));
        let bed = Bed::new(2);
        let mut call = bed[0].call(id(1), |_| ());
        let mut poll_by = |woken: &Arc<Woken>| {
            let waker = Waker::from(Arc::clone(woken));
            std::pin::Pin::new(&mut call).poll(&mut Context::from_waker(&waker))
        };
        assert!(poll_by(&stale).is_pending());
        assert!(poll_by(&woken).is_pending());
        bed.publish(0);
        assert!(bed[0].prepare_sleep());
        bed.deliver(1);
        assert_eq!(bed.shard(0).wakes.count(), 0);
        bed.publish(1);
        assert_eq!(bed.shard(0).wakes.count(), 1, "the shard that sleeps is woken for its reply");
        bed[0].finish_sleep();
        bed.deliver(0);
        assert_eq!(stale.0.load(Ordering::Relaxed), 0, "only the last waker counts");
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(poll_by(&woken).is_ready());
    }

    #[test]
    fn what_a_call_posts_to_its_caller_arrives_before_its_answer() {
        let bed = Bed::new(2);
        let call = bed[0].call(id(1), |shard| {
            assert!(shard.endpoint.post(id(0), |shard| shard.log(1)).is_ok());
        });
        let posted = bed[0].call(id(1), |_| ());
        bed.publish(0);
        bed.deliver(1);
        assert_eq!(bed.deliver_some(0, 1).count, 1);
        assert_eq!(bed.log(0), [1]);
        bed.settle();
        assert!(ready(call).is_ok() && ready(posted).is_ok());
    }

    #[test]
    fn a_reply_that_was_sent_outlives_a_panic_right_after_it() {
        let bed = Bed::new(2);
        let call = bed[0].call_async(id(1), |_: &Shard, reply: Reply<u32, Shard>| {
            reply.send(Ok(1));
            panic!("after the answer");
        });
        bed.settle();
        assert_eq!(ready(call).unwrap(), 1);
        assert_eq!(bed[0].counters().late, 1, "the panic comes home too, and finds the call answered");
        let next = bed[0].call(id(1), |_| 2);
        bed.settle();
        assert_eq!(ready(next).unwrap(), 2);
    }

    #[test]
    fn an_async_call_that_drops_its_reply_at_once_is_answered() {
        let bed = Bed::new(1);
        let call = bed[0].call_async(id(0), |_: &Shard, reply: Reply<u32, Shard>| drop(reply));
        bed.settle();
        assert!(matches!(ready(call), Err(CallError::Stopped)));
    }

    #[test]
    #[should_panic(expected = "delivered from within a message")]
    fn messages_do_not_deliver_messages() {
        let bed = Bed::new(1);
        let delivery = Delivery::begin(&bed[0].local);
        bed.deliver(0);
        drop(delivery);
    }

    #[test]
    #[should_panic(expected = "there is no shard 2")]
    fn a_shard_that_does_not_exist_is_a_bug_of_the_caller() {
        let bed = Bed::new(2);
        drop(bed[0].call(id(2), |_| ()));
    }

    #[test]
    #[should_panic(expected = "shard 0 has its endpoint already")]
    fn there_is_one_endpoint_per_shard() {
        let bed = Bed::new(1);
        drop(bed.mesh.endpoint(id(0)));
    }
}
