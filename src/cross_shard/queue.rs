//! The lock-free queue below an inbox: any number of senders, one owner. The one door to crossbeam-queue.
//!
//! What an inbox relies on is less than `SegQueue` gives: `push` publishes what happened before it to the
//! `pop` that takes the element; elements of one sender stay in order; and a `push` that happened before
//! `is_empty` or `pop` is seen by it. Under loom a queue stands in that gives exactly this much and no more,
//! made of Release and Acquire alone: with stronger ordering than that, a model would prove the queue's, not
//! ours.

#[cfg(not(loom))]
pub(super) use crossbeam_queue::SegQueue as Queue;

#[cfg(loom)]
pub(super) use stand_in::Queue;

#[cfg(loom)]
mod stand_in {
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicPtr, Ordering};
    use std::collections::VecDeque;
    use std::ptr;

    /// A stack that senders push to, and the owner's list of what it took from there, turned round.
    pub(crate) struct Queue<T> {
        pushed: AtomicPtr<Node<T>>,
        taken: UnsafeCell<VecDeque<T>>,
    }

    struct Node<T> {
        value: T,
        below: *mut Node<T>,
    }

    // SAFETY: `pushed` hands each node from one sender to the owner by Release and Acquire; `taken` is used
    // by the owner alone, which loom checks.
    unsafe impl<T: Send> Sync for Queue<T> {}
    // SAFETY: as above: a queue owns its values.
    unsafe impl<T: Send> Send for Queue<T> {}

    impl<T> Queue<T> {
        pub(crate) fn new() -> Self {
            Queue { pushed: AtomicPtr::new(ptr::null_mut()), taken: UnsafeCell::new(VecDeque::new()) }
        }

        pub(crate) fn push(&self, value: T) {
            let node = Box::into_raw(Box::new(Node { value, below: ptr::null_mut() }));
            let mut top = self.pushed.load(Ordering::Relaxed);
            loop {
                // SAFETY: the node is ours until the exchange succeeds.
                unsafe { (*node).below = top };
                match self.pushed.compare_exchange(top, node, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => return,
                    Err(now) => top = now,
                }
            }
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.take_all();
            // SAFETY: only the owner pops.
            self.taken.with_mut(|taken| unsafe { (*taken).pop_front() })
        }

        pub(crate) fn len(&self) -> usize {
            self.take_all();
            // SAFETY: only the owner asks.
            self.taken.with(|taken| unsafe { (*taken).len() })
        }

        pub(crate) fn is_empty(&self) -> bool {
            // SAFETY: only the owner asks.
            let none_taken = self.taken.with(|taken| unsafe { (*taken).is_empty() });
            none_taken && self.pushed.load(Ordering::Acquire).is_null()
        }

        fn take_all(&self) {
            if self.pushed.load(Ordering::Acquire).is_null() {
                return;
            }
            let mut top = self.pushed.swap(ptr::null_mut(), Ordering::Acquire);
            let mut batch = VecDeque::new();
            while !top.is_null() {
                // SAFETY: the swap made these nodes ours alone, and Acquire made their contents visible.
                let node = unsafe { Box::from_raw(top) };
                top = node.below;
                batch.push_front(node.value);
            }
            // SAFETY: only the owner takes.
            self.taken.with_mut(|taken| unsafe { (*taken).extend(batch) });
        }
    }

    impl<T> Drop for Queue<T> {
        fn drop(&mut self) {
            self.take_all();
        }
    }
}
