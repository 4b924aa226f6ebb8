//! How the end of a task is awaited, and what can have become of it.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use super::executor::drop_payload;
use super::link::Link;

/// A spawned task, seen by whoever spawned it: a future of its result.
///
/// Dropping the handle detaches the task, which goes on; its result is then dropped where the task ran.
///
/// # Cancel safety
/// Polling by reference (`(&mut handle).await`) is cancel safe: the result waits. Once it was taken, the handle
/// yields [`JoinError::Cancelled`].
///
/// # Threads
/// `!Send`: a handle stays on the shard of its task.
pub struct JoinHandle<T> {
    link: Rc<Link<T>>,
}

/// Why a task has no result.
pub enum JoinError {
    /// It was cancelled, or its shard stopped.
    Cancelled,
    /// Its future panicked; here is what the panic carried.
    Panicked(PanicPayload),
}

/// What a panic carried, made `Sync`. A destructor of it that panics is contained.
pub struct PanicPayload {
    /// `None` only while being dropped. The mutex is what makes a payload `Sync` that need not be; boxed, since
    /// every result has room for it.
    payload: Box<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl<T> JoinHandle<T> {
    #[inline]
    pub(super) fn new(link: Rc<Link<T>>) -> Self {
        JoinHandle { link }
    }

    /// Has the task's future dropped, on its shard and before it would be polled again. A task that finishes
    /// first keeps its result; else the handle yields [`JoinError::Cancelled`].
    pub fn cancel(&self) {
        self.link.cancel();
    }

    /// Whether the task's future is gone: it returned, panicked, or was dropped.
    pub fn is_finished(&self) -> bool {
        self.link.has_ended()
    }
}

impl<T: 'static> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.link.join(context.waker())
    }
}

impl<T> Unpin for JoinHandle<T> {}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        self.link.detach();
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JoinHandle").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl JoinError {
    /// Whether the task was cancelled, or its shard stopped.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, JoinError::Cancelled)
    }

    /// What the task's panic carried, if it panicked.
    pub fn into_panic(self) -> Option<PanicPayload> {
        match self {
            JoinError::Cancelled => None,
            JoinError::Panicked(payload) => Some(payload),
        }
    }
}

impl PanicPayload {
    pub(super) fn new(payload: Box<dyn Any + Send>) -> Self {
        PanicPayload { payload: Box::new(Mutex::new(Some(payload))) }
    }

    /// The text of the panic, or a stand-in if it carried something else.
    pub fn message(&self) -> String {
        let payload = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        payload.as_deref().map_or("", message_of).to_owned()
    }

    /// What the panic carried, as for [`std::panic::resume_unwind`].
    pub fn into_inner(self) -> Box<dyn Any + Send> {
        let mut payload = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        payload.take().expect("a payload is there until it is dropped")
    }
}

impl Drop for PanicPayload {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            drop_payload(payload);
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Cancelled => formatter.write_str("the task was cancelled"),
            JoinError::Panicked(payload) => write!(formatter, "the task panicked: {}", payload.message()),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Cancelled => formatter.write_str("Cancelled"),
            JoinError::Panicked(payload) => formatter.debug_tuple("Panicked").field(payload).finish(),
        }
    }
}

impl fmt::Debug for PanicPayload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.message())
    }
}

impl Error for JoinError {}

/// The text of a panic, as `panic!` leaves it.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(a panic that carried no text)"
    }
}
