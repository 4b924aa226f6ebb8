//! How many calls a shard may have in flight to another: a credit each, awaited in order. Does not call.
//!
//! A credit bounds what one shard can pile up in another's inbox. It is a matter of the origin alone: it is taken
//! here and comes back here, with the batch in which the call was run or an async one started, so nothing in this
//! file crosses a thread. What an async call does once it has started needs none: it is a task of the target then,
//! awaited by a task of the origin, and such tasks may wait for each other to any depth.

use super::error::CallError;
use crate::ShardId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Calls that one shard may have on their way to one other. More than a target works off in a turn, so that it
/// never runs dry; little enough that a stuck target holds 64 KiB of this shard's slots at most, and what the
/// closures own.
pub(super) const CREDITS_PER_PAIR: usize = if cfg!(loom) { 1 } else { 1024 };

/// The credits of one shard, per target.
pub(super) struct Credits {
    pools: Box<[Pool]>,
    stopped: Cell<bool>,
}

struct Pool {
    free: Cell<usize>,
    waiters: RefCell<Waiters>,
}

#[derive(Default)]
struct Waiters {
    queue: VecDeque<Rc<Waiter>>,
    /// How many in the queue have gone away.
    gone: usize,
}

struct Waiter {
    place: Cell<Place>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Granted,
    Gone,
}

/// The right to one call. Dropping it gives it back.
#[must_use = "a credit that is dropped goes to the next in line"]
pub(crate) struct Credit {
    credits: Rc<Credits>,
    target: ShardId,
    /// Whether it comes back with an answer instead.
    spent: bool,
}

/// Waits for a credit. First come, first served.
///
/// # Cancel safety
/// Dropping it leaves the line, and passes on a credit that had just been granted.
pub(crate) struct Acquire {
    credits: Rc<Credits>,
    target: ShardId,
    waiter: Option<Rc<Waiter>>,
}

impl Credits {
    pub(super) fn new(targets: usize) -> Rc<Self> {
        let pool = || Pool { free: Cell::new(CREDITS_PER_PAIR), waiters: RefCell::default() };
        Rc::new(Credits { pools: (0..targets).map(|_| pool()).collect(), stopped: Cell::new(false) })
    }

    /// A credit, if one is free and nobody has been waiting for it.
    #[inline]
    pub(super) fn take(self: &Rc<Self>, target: ShardId) -> Option<Credit> {
        let pool = &self.pools[target.index()];
        // Credits are free only when nobody waits: those that come back go to the first in line.
        let free = pool.free.get().checked_sub(1)?;
        pool.free.set(free);
        Some(Credit { credits: Rc::clone(self), target, spent: false })
    }

    pub(super) fn acquire(self: &Rc<Self>, target: ShardId) -> Acquire {
        assert!(target.index() < self.pools.len(), "{target} does not exist");
        Acquire { credits: Rc::clone(self), target, waiter: None }
    }

    /// A credit is home: it goes to the first in line, who is to be woken then.
    #[inline]
    #[must_use]
    pub(super) fn give_back(&self, target: ShardId) -> Option<Waker> {
        let pool = &self.pools[target.index()];
        match pool.waiters.borrow_mut().first() {
            None => {
                pool.free.set(pool.free.get() + 1);
                None
            }
            Some(waiter) => {
                waiter.place.set(Place::Granted);
                waiter.waker.take()
            }
        }
    }

    /// This shard makes no more calls: whoever waits is to be told so.
    pub(super) fn stop(&self) -> Vec<Waker> {
        self.stopped.set(true);
        let queues = self.pools.iter().map(|pool| std::mem::take(&mut *pool.waiters.borrow_mut()).queue);
        queues.flatten().filter_map(|waiter| waiter.waker.take()).collect()
    }
}

impl Waiters {
    fn first(&mut self) -> Option<Rc<Waiter>> {
        while let Some(waiter) = self.queue.pop_front() {
            if waiter.place.get() == Place::Queued {
                return Some(waiter);
            }
            self.gone -= 1;
        }
        None
    }

    /// One in the queue has gone away; swept out once they are the greater part.
    fn note_gone(&mut self) {
        self.gone += 1;
        if self.gone * 2 > self.queue.len() {
            self.queue.retain(|waiter| waiter.place.get() == Place::Queued);
            self.gone = 0;
        }
    }
}

impl Waiter {
    fn set_waker(&self, waker: &Waker) {
        let before = self.waker.borrow_mut().replace(waker.clone());
        drop(before);
    }
}

impl Credit {
    pub(crate) fn target(&self) -> ShardId {
        self.target
    }

    /// It comes back with the answer of a call instead.
    pub(super) fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if !self.spent
            && let Some(waker) = self.credits.give_back(self.target)
        {
            waker.wake();
        }
    }
}

impl Future for Acquire {
    type Output = Result<Credit, CallError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.credits.stopped.get() {
            return Poll::Ready(Err(CallError::Stopped));
        }
        match &self.waiter {
            Some(waiter) if waiter.place.get() == Place::Granted => {
                waiter.place.set(Place::Gone);
                self.waiter = None;
                Poll::Ready(Ok(Credit {
                    credits: Rc::clone(&self.credits),
                    target: self.target,
                    spent: false,
                }))
            }
            Some(waiter) => {
                waiter.set_waker(context.waker());
                Poll::Pending
            }
            None => match self.credits.take(self.target) {
                Some(credit) => Poll::Ready(Ok(credit)),
                None => {
                    let waiter =
                        Rc::new(Waiter { place: Cell::new(Place::Queued), waker: RefCell::default() });
                    waiter.set_waker(context.waker());
                    let pool = &self.credits.pools[self.target.index()];
                    pool.waiters.borrow_mut().queue.push_back(Rc::clone(&waiter));
                    self.waiter = Some(waiter);
                    Poll::Pending
                }
            },
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        let pool = &self.credits.pools[self.target.index()];
        match waiter.place.replace(Place::Gone) {
            Place::Granted => {
                if let Some(waker) = self.credits.give_back(self.target) {
                    waker.wake();
                }
            }
            Place::Queued => pool.waiters.borrow_mut().note_gone(),
            Place::Gone => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::test_kit::{Bed, id, poll, ready};
    use super::*;

    fn emptied() -> (Bed, Vec<Credit>) {
        let bed = Bed::new(2);
        let credits: Vec<_> = std::iter::from_fn(|| bed[0].try_credit(id(1))).collect();
        assert_eq!(credits.len(), CREDITS_PER_PAIR);
        (bed, credits)
    }

    #[test]
    fn credits_go_to_those_who_wait_in_the_order_they_came() {
        let (bed, mut credits) = emptied();
        assert!(bed[0].try_credit(id(0)).is_some(), "each target has its own");
        let mut first = bed[0].credit(id(1));
        let mut second = bed[0].credit(id(1));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        credits.pop();
        assert!(bed[0].try_credit(id(1)).is_none(), "nobody overtakes those who wait");
        assert!(poll(&mut second).is_pending());
        let held = ready(&mut first).unwrap();
        assert_eq!(held.target(), id(1));
        drop(held);
        assert!(ready(second).is_ok());
        assert!(bed[0].try_credit(id(1)).is_some());
    }

    #[test]
    fn who_leaves_the_line_passes_on_what_was_granted() {
        let (bed, mut credits) = emptied();
        let mut waiting: Vec<_> = (0..5).map(|_| bed[0].credit(id(1))).collect();
        assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_pending()));
        credits.pop();
        waiting.remove(0);
        assert!(poll(&mut waiting[1]).is_pending());
        let granted = ready(waiting.remove(0)).unwrap();
        waiting.truncate(1);
        let mut last = waiting.pop().unwrap();
        let pool = &bed[0].credit(id(1)).credits.pools[1];
        assert!(pool.waiters.borrow().queue.len() <= 2, "those who left are swept out");
        drop(granted);
        assert!(ready(&mut last).is_ok());
    }

    #[test]
    fn a_credit_comes_back_with_the_answer_however_the_call_ends() {
        let (mut bed, credits) = emptied();
        drop(credits);
        let spend = |bed: &Bed| bed[0].try_credit(id(1)).unwrap();
        let answered = bed[0].call(id(1), |_| ()).holding(spend(&bed));
        let panicked = bed[0].call(id(1), |_| panic!("boom")).holding(spend(&bed));
        let withdrawn = bed[0].call(id(1), |_| ()).holding(spend(&bed));
        drop(withdrawn);
        let free = |bed: &Bed| bed[0].credit(id(1)).credits.pools[1].free.get();
        assert_eq!(free(&bed), CREDITS_PER_PAIR - 3, "not before the answers are home");
        bed.settle();
        assert_eq!(free(&bed), CREDITS_PER_PAIR);
        assert!(ready(answered).is_ok() && ready(panicked).is_err());

        let refused = bed[0].call(id(1), |_| ()).holding(spend(&bed));
        bed.lose_last();
        bed.settle();
        assert!(ready(refused).is_err());
        assert_eq!(free(&bed), CREDITS_PER_PAIR);
    }

    #[test]
    fn the_credit_of_an_async_call_comes_back_when_it_has_started() {
        use crate::cross_shard::Reply;
        use crate::cross_shard::test_kit::Shard;
        thread_local! {
            static REPLIES: RefCell<Vec<Reply<u32, Shard>>> = const { RefCell::new(Vec::new()) };
        }
        let (bed, credits) = emptied();
        drop(credits);
        let free = || bed[0].credit(id(1)).credits.pools[1].free.get();
        let keep = |_: &Shard, reply| REPLIES.with_borrow_mut(|replies| replies.push(reply));
        let spend = || bed[0].try_credit(id(1)).unwrap();
        let [mut awaited, dropped] = [0, 1].map(|_| bed[0].call_async(id(1), keep).holding(spend()));
        bed.publish(0);
        assert_eq!(free(), CREDITS_PER_PAIR - 2, "they lie in the inbox");
        bed.settle();
        assert_eq!(free(), CREDITS_PER_PAIR, "they run");
        assert!(poll(&mut awaited).is_pending());
        drop(dropped);
        for reply in REPLIES.take() {
            reply.send(Ok(1));
        }
        bed.settle();
        assert_eq!(ready(awaited).unwrap(), 1);
        assert_eq!(free(), CREDITS_PER_PAIR, "once");
    }

    #[test]
    fn a_shard_that_stops_tells_those_who_wait_for_credits() {
        let (bed, _credits) = emptied();
        let mut waiting = bed[0].credit(id(1));
        assert!(poll(&mut waiting).is_pending());
        bed.close(0);
        assert!(matches!(ready(&mut waiting), Err(CallError::Stopped)));
    }
}
