//! What one shard owns of the mesh: it sends, delivers, sleeps and stops. How is in `local` and `delivery`.

use super::calls::Call;
use super::counters::bump;
use super::credit::{Acquire, Credit};
use super::delivery::Delivery;
use super::foreign::{self, Answer, ForeignCall};
use super::inbox::Slept;
use super::local::Local;
use super::mesh::Mesh;
use super::reply::Reply;
use super::route::Route;
use crate::ShardId;
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

impl<C: 'static> Endpoint<C> {
    pub(super) fn new(mesh: Arc<Mesh<C>>, id: ShardId) -> Self {
        Endpoint { local: Rc::new(Local::new(mesh, id)) }
    }

    #[cfg(all(test, loom))]
    pub(crate) fn id(&self) -> ShardId {
        self.local.id
    }

    #[cfg(all(test, loom))]
    pub(crate) fn mesh(&self) -> &Arc<Mesh<C>> {
        &self.local.mesh
    }

    /// Which shard a message from here goes to.
    #[inline]
    pub(crate) fn resolve(&self, route: Route) -> ShardId {
        let local = &*self.local;
        let next = || local.next_any.replace(local.next_any.get().wrapping_add(1));
        route.resolve(local.mesh.len(), next, |id| local.mesh.is_open(id))
    }

    /// Stages `f` to run on `target`, which may be this shard: then too it is queued. Messages to one target
    /// start in the order they were staged, calls among them.
    ///
    /// Should the target stop between now and [`publish`](Self::publish), `f` is dropped here, unrun, and
    /// counted.
    ///
    /// # Errors
    /// Gives `f` back when the target has stopped.
    /// # Panics
    /// Panics when there is no such shard.
    #[inline]
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

    /// Stages a call of `f` on `target` that is answered whenever the [`Reply`] is sent there. A reply
    /// dropped unsent answers `Stopped`.
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

    /// As `call`, but the result may be fetched anywhere. Such a call needs no credit, and has a cell of its own.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn call_for_anybody<T, F>(&self, target: ShardId, f: F) -> ForeignCall<T>
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (answer, call) = foreign::pair();
        let outbox = self.local.outbox(target);
        // Dropped by a target that has stopped, the answer says so.
        self.local.stage(target, outbox, |slots| slots.push_foreign_call(f, answer));
        call
    }

    /// As `call_async`, but the result may be fetched anywhere.
    ///
    /// # Panics
    /// Panics when there is no such shard.
    pub(crate) fn call_async_for_anybody<T, F>(&self, target: ShardId, f: F) -> ForeignCall<T>
    where
        F: FnOnce(&C, Answer<T>) + Send + 'static,
        T: Send + 'static,
    {
        let (answer, call) = foreign::pair();
        // Refused by a target that has stopped, the closure is dropped here, and the answer with it.
        drop(self.post(target, foreign::starting(f, answer)));
        call
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

    /// Runs what is in the inbox, at most `budget` messages and replies (replies by the batch: the last one
    /// may go beyond it). What arrives meanwhile, also from here, waits for the next turn. Panics of closures
    /// are caught, counted and logged.
    ///
    /// # Panics
    /// Panics when called from within a message.
    #[inline]
    pub(crate) fn deliver(&self, context: &C, budget: usize) -> Delivered {
        let local = &*self.local;
        if local.inbox().is_empty() && local.carried.borrow().is_none() && !local.delivering.get() {
            return Delivered { count: 0, more: false };
        }
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

    /// Announces that this shard is about to sleep: from here on it is woken. `false`: there is mail after
    /// all, and nothing was announced.
    ///
    /// After `true`, look at every other source that wakes through [`Mesh::wake`] once more; then sleep, or
    /// do not; then call [`finish_sleep`](Self::finish_sleep).
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

    #[cfg(test)]
    pub(crate) fn counters(&self) -> super::counters::InboxCounters {
        self.local.mesh.counters(self.local.id)
    }

    /// Publishes, stops taking messages, runs all that were taken, publishes, and answers the calls of this
    /// shard that are still out with `Stopped`. From here on nothing comes home: calls made later are
    /// answered `Stopped` at once; posts and replies to other shards leave without waiting for `publish`.
    ///
    /// # Panics
    /// Panics when called from within a message.
    pub(crate) fn close(&self, context: &C) {
        let delivery = Delivery::begin(&self.local);
        if self.local.closed.get() {
            return;
        }
        // What this shard has staged for itself is among what is run.
        self.local.publish();
        self.local.closed.set(true);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::CallError;
    use super::super::error::Panic;
    use super::super::test_kit::{AtHome, Bed, Shard, at, id, poll, ready};
    use super::*;
    use std::cell::RefCell;
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
            assert!(bed[1].post(id(0), |_| ()).is_ok());
            bed.settle();
            assert_eq!(bed[0].local.spares.borrow().len(), 0, "that of posts stays where they ran");
        }
    }

    #[test]
    fn shards_that_post_to_each_other_do_so_in_the_same_memory() {
        let bed = Bed::new(2);
        let holds = |shard: usize, target: u16| {
            let outbox = bed[shard].local.outbox(id(target));
            [&outbox.at_hand, &outbox.returning].map(|place| {
                let memory = place.take();
                let is_some = !memory.is_none();
                place.set(memory);
                is_some
            })
        };
        for _ in 0..3 {
            assert!(bed[0].post(id(1), |_| ()).is_ok());
            bed.settle();
            assert_eq!((holds(0, 1), holds(1, 0)), ([false; 2], [true, false]));
            assert!(bed[1].post(id(0), |_| ()).is_ok());
            bed.settle();
            assert_eq!((holds(0, 1), holds(1, 0)), ([true, false], [false; 2]));
        }
        assert!(bed[0].local.spares.borrow().is_empty() && bed[1].local.spares.borrow().is_empty());
    }

    #[test]
    fn of_the_memory_of_posts_a_target_keeps_two_batches_at_most_and_none_when_it_stops() {
        let bed = Bed::new(2);
        let post = |count: usize| {
            for _ in 0..count {
                assert!(bed[0].post(id(1), |_| ()).is_ok());
                bed.publish(0);
            }
            bed.settle();
        };
        post(1);
        let spares = || bed[0].local.spares.borrow().len();
        assert_eq!(spares(), 0);
        post(3);
        assert_eq!(spares(), 2, "with nothing to go along with, the rest goes home alone");
        bed.close(1);
        bed.deliver(0);
        assert_eq!(spares(), 4);
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
        for _ in 0..3 {
            assert!(bed[0].post(id(1), |_| ()).is_ok());
            bed.publish(0);
        }
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

    /// Two shards whose next call has the same key, so that an answer that went astray would find one to
    /// answer.
    #[test]
    fn an_answer_that_is_refused_or_turned_away_answers_nobody_else() {
        for lost in [false, true] {
            let mut bed = Bed::new(2);
            let drops = Arc::new(AtomicUsize::new(0));
            let value = Arc::clone(&drops);
            let asked = bed[1].call_async(id(0), move |_: &Shard, reply: Reply<AtHome<8>, Shard>| {
                reply.send(Ok(AtHome::new(0, &value)));
            });
            let own = bed[0].call(id(0), |_| String::from("mine"));
            bed.publish(1);
            if lost {
                // It is in the inbox of a shard that is lost, and comes back from there.
                bed.deliver(0);
                bed.lose_last();
            } else {
                // It is refused by a shard that has stopped.
                bed.close(1);
                bed.deliver(0);
            }
            assert!(matches!(ready(asked), Err(CallError::Stopped)));
            bed.settle();
            assert_eq!(ready(own).unwrap(), "mine");
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn no_budget_delivers_nothing_and_loses_nothing() {
        let bed = Bed::new(2);
        for number in 0..3 {
            assert!(bed[0].post(id(1), move |shard| shard.log(number)).is_ok());
        }
        bed.publish(0);
        assert_eq!(bed.deliver_some(1, 2), Delivered { count: 2, more: true });
        assert_eq!(bed.deliver_some(1, 0), Delivered { count: 0, more: true });
        bed.deliver(1);
        assert_eq!(bed.log(1), [0, 1, 2]);
    }

    #[test]
    fn a_shard_that_closes_runs_what_it_had_staged_for_itself() {
        let bed = Bed::new(1);
        assert!(bed[0].post(id(0), |shard| shard.log(1)).is_ok());
        bed.close(0);
        assert_eq!(bed.log(0), [1]);
        assert_eq!(bed[0].counters().refused, 0);
    }
}
