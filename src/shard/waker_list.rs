//! Who waits for one thing: a waker for each wait, which leaves with it. No waker is cloned, dropped or woken under a
//! borrow or a lock, since all of that is other people's code.

use std::cell::RefCell;
use std::task::{Context, Waker};

use crate::shard::wake_contained;

/// The wakers of those who wait, in the order they came. Whoever keeps it in a lock sees to the rule above.
#[derive(Default)]
pub(crate) struct WakerList {
    /// By key, which only grows.
    wakers: Vec<(u64, Waker)>,
    last_key: u64,
}

/// Names one wait in a list; at first none.
#[derive(Debug, Default)]
pub(crate) struct WaitKey(u64);

impl WakerList {
    /// Whether the wait `key` is here already, to be woken by that very waker.
    pub(crate) fn has(&self, key: &WaitKey, waker: &Waker) -> bool {
        self.find(key).is_ok_and(|index| self.wakers[index].1.will_wake(waker))
    }

    /// Keeps `waker` for the wait `key`; gives the one it had before.
    pub(crate) fn keep(&mut self, key: &mut WaitKey, waker: Waker) -> Option<Waker> {
        if let Ok(index) = self.find(key) {
            return Some(std::mem::replace(&mut self.wakers[index].1, waker));
        }
        self.last_key += 1;
        *key = WaitKey(self.last_key);
        self.wakers.push((self.last_key, waker));
        None
    }

    /// The wait is over; gives its waker, if it was not woken.
    pub(crate) fn remove(&mut self, key: &WaitKey) -> Option<Waker> {
        self.find(key).ok().map(|index| self.wakers.remove(index).1)
    }

    /// Takes all wakers: whoever is not content waits again.
    pub(crate) fn take(&mut self) -> Vec<Waker> {
        let wakers = std::mem::take(&mut self.wakers);
        wakers.into_iter().map(|(_, waker)| waker).collect()
    }

    fn find(&self, key: &WaitKey) -> Result<usize, usize> {
        self.wakers.binary_search_by_key(&key.0, |(kept, _)| *kept)
    }
}

/// A list for the futures of one shard.
#[derive(Default)]
pub(crate) struct Waiters {
    list: RefCell<WakerList>,
}

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.borrow().wakers.is_empty()
    }

    /// Has the wait `key` woken by the waker of `context`.
    pub(crate) fn keep(&self, key: &mut WaitKey, context: &Context<'_>) {
        if self.list.borrow().has(key, context.waker()) {
            return;
        }
        let waker = context.waker().clone();
        let replaced = self.list.borrow_mut().keep(key, waker);
        drop(replaced);
    }

    /// The wait is over, or given up.
    pub(crate) fn forget(&self, key: &WaitKey) {
        let removed = self.list.borrow_mut().remove(key);
        drop(removed);
    }

    /// Takes all wakers, for whoever wakes them in a place of its own.
    pub(crate) fn take(&self) -> Vec<Waker> {
        self.list.borrow_mut().take()
    }

    pub(crate) fn wake_all(&self) {
        self.take().into_iter().for_each(wake_contained);
    }
}

/// One wait; dropped, it leaves its list.
pub(crate) struct Wait<'a> {
    waiters: &'a Waiters,
    key: WaitKey,
}

impl<'a> Wait<'a> {
    pub(crate) fn at(waiters: &'a Waiters) -> Self {
        Wait { waiters, key: WaitKey::default() }
    }

    pub(crate) fn keep(&mut self, context: &Context<'_>) {
        self.waiters.keep(&mut self.key, context);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiters.forget(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_wait_keeps_one_waker_and_takes_it_along() {
        let waiters = Waiters::default();
        let [first, second] = [0, 1].map(|_| Arc::new(Counts::default()));
        let wakers = [Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second))];
        let mut waits = [0, 1].map(|_| Wait::at(&waiters));
        for _ in 0..100 {
            for (wait, waker) in waits.iter_mut().zip(&wakers) {
                wait.keep(&Context::from_waker(waker));
            }
        }
        assert_eq!(waiters.list.borrow().wakers.len(), 2);
        // Polled by another task from now on.
        waits[1].keep(&Context::from_waker(&wakers[0]));
        assert_eq!(waiters.list.borrow().wakers.len(), 2);
        let [kept, given_up] = waits;
        drop(given_up);
        waiters.wake_all();
        assert!(waiters.is_empty());
        assert_eq!([&first, &second].map(|counts| counts.0.load(Ordering::Relaxed)), [1, 0]);
        // Woken, it is in nobody's way, and may wait again.
        let mut later = Wait::at(&waiters);
        later.keep(&Context::from_waker(&wakers[1]));
        drop(kept);
        assert!(!waiters.is_empty());
        drop(later);
        assert!(waiters.is_empty());
    }

    #[test]
    fn a_wait_that_never_waited_takes_nobody_elses_waker() {
        let waiters = Waiters::default();
        let mut waits = Wait::at(&waiters);
        waits.keep(&Context::from_waker(Waker::noop()));
        drop(Wait::at(&waiters));
        assert!(!waiters.is_empty());
    }
}
