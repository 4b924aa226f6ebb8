//! What handlers were told, as a list that a test can wait on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What happened, in order. Clones are one list.
#[derive(Clone, Default)]
pub(crate) struct Notes {
    state: Rc<RefCell<(Vec<String>, Vec<Waker>)>>,
}

impl Notes {
    pub(crate) fn add(&self, note: impl Into<String>) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            state.0.push(note.into());
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.state.borrow().0.clone()
    }

    pub(crate) fn count(&self, note: &str) -> usize {
        self.state.borrow().0.iter().filter(|kept| *kept == note).count()
    }

    /// Waits until there are so many of these.
    pub(crate) async fn until(&self, note: &str, count: usize) {
        poll_fn(|context| {
            if self.count(note) >= count {
                return Poll::Ready(());
            }
            self.state.borrow_mut().1.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
