//! What a shard's endpoint and the replies in its tasks share: what is staged, what is out, and what has come
//! home. Running messages is in `delivery`.

use super::batch::{Batch, Way};
use super::calls::{Call, Calls};
use super::counters::{OwnCounters, bump};
use super::credit::Credits;
use super::envelope::{CallKey, Came, Memory, Site, Slots};
use super::inbox::Inbox;
use super::mesh::Mesh;
use super::outbox::{BATCH_UNITS, FIRST_BATCH_UNITS, Outbox};
use crate::ShardId;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Shared with the replies that tasks of this shard hold.
pub(super) struct Local<C: 'static> {
    pub(super) mesh: Arc<Mesh<C>>,
    pub(super) id: ShardId,
    outboxes: Box<[Outbox<C>]>,
    /// Targets with something staged or a wake owed.
    pub(super) dirty: RefCell<Vec<ShardId>>,
    /// What has come home of empty batches.
    pub(super) spares: RefCell<Vec<Memory>>,
    pub(super) calls: Rc<Calls>,
    pub(super) credits: Rc<Credits>,
    /// What the budget left over.
    pub(super) carried: RefCell<Option<Batch<C>>>,
    /// The async call whose closure runs right now, and whether its reply has been dropped unsent meanwhile.
    pub(super) starting: Cell<Option<Starting>>,
    pub(super) delivering: Cell<bool>,
    pub(super) closed: Cell<bool>,
    pub(super) next_any: Cell<usize>,
}

#[derive(Clone, Copy)]
pub(super) struct Starting {
    pub(super) origin: ShardId,
    pub(super) key: CallKey,
    pub(super) dropped: bool,
}

/// Empty batches kept for the next turns; at 8 KiB each, 256 KiB at most.
const SPARES_MAX: usize = 32;

impl<C: 'static> Local<C> {
    pub(super) fn new(mesh: Arc<Mesh<C>>, id: ShardId) -> Self {
        let shards = mesh.len();
        let credits = Credits::new(shards);
        let calls = Calls::new(Arc::clone(&mesh.station(id).withdrawals), Rc::clone(&credits));
        Local {
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
        }
    }

    #[inline]
    pub(super) fn inbox(&self) -> &Inbox<Batch<C>> {
        &self.mesh.station(self.id).inbox
    }

    pub(super) fn site<'a>(self: &'a Rc<Self>, context: &'a C, origin: ShardId) -> Site<'a, C> {
        Site { context, local: self, origin, withdrawals: &self.mesh.station(origin).withdrawals }
    }

    pub(super) fn counters(&self) -> &OwnCounters {
        &self.mesh.station(self.id).counters
    }

    #[inline]
    pub(super) fn outbox(&self, target: ShardId) -> &Outbox<C> {
        let Some(outbox) = self.outboxes.get(target.index()) else { panic!("there is no {target}") };
        outbox
    }

    /// Stages a call; `push` adds its request.
    #[inline]
    pub(super) fn stage_call<T>(
        &self,
        target: ShardId,
        push: impl FnOnce(&mut Slots<C>, CallKey),
    ) -> Call<T> {
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
    pub(super) fn stage(&self, target: ShardId, outbox: &Outbox<C>, push: impl FnOnce(&mut Slots<C>)) {
        let units = {
            let mut staged = outbox.staged.borrow_mut();
            if staged.is_empty() {
                self.begin_batch(target, outbox, &mut staged);
            }
            push(&mut staged);
            staged.units()
        };
        if units >= outbox.limit.get() {
            self.end_batch(target, outbox, units);
        }
    }

    pub(super) fn stage_answer(&self, origin: ShardId, push: impl FnOnce(&mut Slots<C>)) {
        self.stage(origin, self.outbox(origin), push);
    }

    /// Memory to stage messages in.
    fn room(&self, outbox: &Outbox<C>) -> Slots<C> {
        let at_hand = outbox.at_hand.take();
        if !at_hand.is_none() {
            return Slots::within(at_hand);
        }
        let mut spare = Slots::within(self.spares.borrow_mut().pop().unwrap_or(Memory::NONE));
        spare.fetch_room();
        spare
    }

    #[cold]
    #[inline(never)]
    fn begin_batch(&self, target: ShardId, outbox: &Outbox<C>, staged: &mut Slots<C>) {
        *staged = self.room(outbox);
        self.list(target, outbox);
        if self.closed.get() {
            // There are no more turns at whose end it would leave.
            outbox.limit.set(0);
        }
    }

    #[cold]
    #[inline(never)]
    fn end_batch(&self, target: ShardId, outbox: &Outbox<C>, units: usize) {
        if self.closed.get() {
            self.publish();
        } else {
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

    pub(super) fn publish(&self) {
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
        let memory = outbox.returning.take();
        let batch = Batch { slots, origin: self.id, way: Way::Out, brings_replies, memory };
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

    #[cfg(test)]
    pub(super) fn is_withdrawn(&self, origin: ShardId, key: CallKey) -> bool {
        self.mesh.station(origin).withdrawals.is_raised(key.index)
    }

    /// Returns a batch to the shard that made it. At once, so that its answers are not held back by the rest
    /// of this turn; a wake that is owed for them waits for `publish`. A batch that only brings memory goes along
    /// with the next that is sent there, or wakes nobody: it lies in the inbox until its owner is awake anyway.
    /// (Freeing it here instead would meet the allocator's locks, since it came from another thread.)
    pub(super) fn send_home(&self, mut batch: Batch<C>) {
        batch.way = Way::Home;
        let (origin, brings_replies) = (batch.origin, batch.brings_replies);
        let outbox = &self.outboxes[origin.index()];
        if brings_replies {
            // What was posted home before the answers were given also arrives before them.
            self.flush(origin, outbox);
        } else if !batch.slots.have_blocks() {
            match outbox.keep(batch.slots.into_memory()) {
                Ok(()) => return,
                Err(memory) => batch.slots = Slots::within(memory),
            }
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

    /// A batch of this shard's own is back, or was not taken by its target. Returns how many answers it
    /// brought, wanted or not.
    pub(super) fn come_home(&self, mut batch: Batch<C>) -> usize {
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

    /// Keeps the memory of a batch.
    fn recycle(&self, slots: Slots<C>) {
        self.keep(slots.into_memory());
    }

    pub(super) fn keep(&self, memory: Memory) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX {
            spares.push(memory);
        }
    }

    /// Empties a closed inbox without running anything.
    pub(super) fn turn_away(&self) {
        let carried = self.carried.take();
        let rest = std::iter::from_fn(|| self.inbox().pop());
        for mut batch in carried.into_iter().chain(rest) {
            self.keep(std::mem::take(&mut batch.memory));
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
    pub(super) fn finish_closing(&self) {
        self.publish();
        self.return_memory();
        self.calls.stop();
        self.wake_all();
        // Tasks that were just told so may have answered others.
        self.publish();
    }

    /// Sends home what was to go along with batches that will not come any more.
    fn return_memory(&self) {
        for (outbox, station) in self.outboxes.iter().zip(self.mesh.stations()) {
            for memory in [outbox.at_hand.take(), outbox.returning.take()] {
                if memory.is_none() {
                    continue;
                }
                let slots = Slots::within(Memory::NONE);
                let batch = Batch { slots, origin: self.id, way: Way::Out, brings_replies: false, memory };
                // Where its owner has stopped as well, it is freed here.
                drop(station.inbox.push(batch));
            }
        }
    }
}
