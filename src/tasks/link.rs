//! What a task and its handle share: whether it goes on, who waits for it, and how it ended.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::executor::{Home, UNPARKED};
use super::join::JoinError;
use crate::reactor::token::Token;

pub(super) struct Link<T> {
    home: Rc<Home>,
    /// Where the future is parked; `UNPARKED` before it has been polled.
    token: Cell<Token>,
    has_ended: Cell<bool>,
    is_cancelled: Cell<bool>,
    is_detached: Cell<bool>,
    joiner: Cell<Option<Waker>>,
    /// From the task's end until the handle takes it.
    result: Cell<Option<Result<T, JoinError>>>,
}

impl<T> Link<T> {
    #[inline]
    pub(super) fn new(home: Rc<Home>) -> Self {
        Link {
            home,
            token: Cell::new(UNPARKED),
            has_ended: Cell::new(false),
            is_cancelled: Cell::new(false),
            is_detached: Cell::new(false),
            joiner: Cell::new(None),
            result: Cell::new(None),
        }
    }

    #[inline]
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    #[inline]
    pub(super) fn token(&self) -> Token {
        self.token.get()
    }

    pub(super) fn park_under(&self, token: Token) {
        self.token.set(token);
    }

    /// Whether the task's future is to be dropped instead of polled (again).
    #[inline]
    pub(super) fn is_condemned(&self) -> bool {
        self.is_cancelled.get() || !self.home.is_open()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// There never was a task.
    pub(super) fn refuse(&self) {
        self.has_ended.set(true);
    }

    /// The task has dropped its future.
    #[inline]
    pub(super) fn finish(&self, result: Result<T, JoinError>) {
        self.home.note_finished(self.token.get());
        self.has_ended.set(true);
        if !self.is_detached.get() {
            // Forgets nothing: a task finishes once.
            mem::forget(self.result.replace(Some(result)));
            if let Some(joiner) = self.joiner.take() {
                self.home.contain(|| joiner.wake());
            }
        } else if let Ok(unwanted) = result {
            self.home.contain(|| drop(unwanted));
        }
    }

    /// The task has dropped its future, having been cancelled.
    #[cold]
    pub(super) fn finish_cancelled(&self) {
        self.finish(Err(JoinError::Cancelled));
    }

    /// Takes what has become of the task, or has `waker` woken when it is known.
    #[inline]
    pub(super) fn join(&self, waker: &Waker) -> Poll<Result<T, JoinError>> {
        if !self.has_ended.get() {
            let mut joiner = self.joiner.take();
            if !joiner.as_ref().is_some_and(|joiner| joiner.will_wake(waker)) {
                // Cloning and dropping wakers may run anybody's code, which may end the task.
                joiner = Some(waker.clone());
            }
            if !self.has_ended.get() {
                self.joiner.set(joiner);
                return Poll::Pending;
            }
        }
        Poll::Ready(self.result.take().unwrap_or_else(|| Err(JoinError::Cancelled)))
    }

    /// Nobody waits for the task's result any more.
    #[inline]
    pub(super) fn detach(&self) {
        self.is_detached.set(true);
        if let Some(joiner) = self.joiner.take() {
            drop(joiner);
        }
        if let Some(result) = self.result.take() {
            drop(result);
        }
    }

    /// Has the task's future dropped: at the beginning of the next run, in place of its next poll, or at the
    /// end of the present one. Before its first poll it is in the queue, and finds out by itself.
    pub(super) fn cancel(&self) {
        let token = self.token.get();
        if !self.has_ended.get() && !self.is_cancelled.replace(true) && token != UNPARKED {
            self.home.cancel(token);
        }
    }
}
