//! Running what has arrived, one slot after the other. Application code ends here: whatever it panics with
//! goes no further.

use super::batch::{Batch, Way};
use super::calls::Settled;
use super::counters::bump;
use super::endpoint::Delivered;
use super::envelope::{CallKey, Came, Site, Slot, Slots, Status};
use super::error::message_of;
use super::local::{Local, Starting};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Marks that messages are being run: they must not ask for more to be run inside themselves.
pub(super) struct Delivery<'a, C: 'static> {
    local: &'a Rc<Local<C>>,
}

impl<'a, C: 'static> Delivery<'a, C> {
    pub(super) fn begin(local: &'a Rc<Local<C>>) -> Self {
        assert!(!local.delivering.replace(true), "messages are delivered from within a message");
        Delivery { local }
    }

    pub(super) fn run(&self, context: &C, budget: usize) -> Delivered {
        let local = self.local;
        // What arrives from here on is left for the next turn.
        let arrived = local.inbox().len();
        let (mut left, mut taken, mut messages) = (budget, 0, 0);
        while left > 0 {
            let carried = local.carried.take();
            let mut batch = match carried {
                Some(batch) => batch,
                None if taken == arrived => break,
                None => {
                    let Some(mut batch) = local.inbox().pop() else { break };
                    taken += 1;
                    if !batch.memory.is_none() {
                        local.keep(std::mem::take(&mut batch.memory));
                    }
                    batch
                }
            };
            if batch.way != Way::Home || batch.brings_replies {
                batch.slots.fetch_ahead();
            }
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
    /// Runs at most `budget` slots that somebody sent here, one after the other, and returns how many. Panics
    /// of application code end here.
    pub(super) fn work(&self, slots: &mut Slots<C>, budget: usize, site: &Site<'_, C>) -> usize {
        let worked = self.contain(slots, budget, |slot| self.take_in(slot, site));
        self.wake_all();
        worked
    }

    /// One frame that catches panics for all slots, not one each: what panicked is the last slot given.
    #[inline]
    pub(super) fn contain(
        &self,
        slots: &mut Slots<C>,
        limit: usize,
        deal_with: impl Fn(&mut Slot<'_, C>),
    ) -> usize {
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
    pub(super) fn wake_all(&self) {
        while let Err(payload) = catch_unwind(AssertUnwindSafe(|| while self.calls.wake_next() {})) {
            self.note_panic("a waker", &*payload);
            drop_contained(payload);
        }
    }

    /// A slot of somebody's, sent here.
    #[inline]
    fn take_in(&self, slot: &mut Slot<'_, C>, site: &Site<'_, C>) {
        // Told apart first: the others are dearer anyway.
        if slot.status() == Status::Post {
            return slot.run(site);
        }
        match slot.status() {
            Status::Post => unreachable!("see above"),
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
            Status::AnsweredValue | Status::AnsweredPanic | Status::AnsweredNothing => self.settle(slot),
            Status::Value | Status::Panicked | Status::Unanswered => unreachable!("these only go home"),
            Status::Running | Status::Spent | Status::Empty => unreachable!("nobody sends these"),
        }
    }

    /// A slot of this shard's own, back from where it was sent.
    #[inline]
    pub(super) fn take_home(&self, slot: &mut Slot<'_, C>) {
        match slot.status() {
            Status::Value | Status::Panicked | Status::Unanswered => self.settle(slot),
            // An async call that has started, unless nobody waits for it: then the key names none.
            Status::Spent => self.calls.note_started(slot.key()),
            Status::Empty => {}
            Status::Call | Status::AsyncCall => {
                // It has not run: withdrawn, or its target has stopped.
                self.calls.settle(slot.key(), |_| Came::Stopped);
                slot.clear();
            }
            // Not taken by the shard it was meant for. An answer names a call of *that* shard.
            Status::Post | Status::AnsweredValue | Status::AnsweredPanic | Status::AnsweredNothing => {
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

    pub(super) fn drop_batch(&self, mut batch: Batch<C>) {
        batch.slots.rewind();
        self.contain(&mut batch.slots, usize::MAX, |slot| slot.clear());
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
