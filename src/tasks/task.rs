//! What async-task polls: one future of the application, contained and able to go early. Knows its home.

use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::executor::Home;
use super::join::JoinError;
use crate::reactor::token::Token;

pin_project! {
    /// A task's future until it has finished, been cancelled, or its executor has closed; then nothing.
    ///
    /// Its size is the future's and a constant: an `async` block would keep the future twice.
    pub(super) struct TaskFuture<F: Future> {
        #[pin]
        stage: Stage<F>,
    }

    impl<F: Future> PinnedDrop for TaskFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some((home, token)) = this.take_future() {
                home.finish_dropped(token);
            }
        }
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F> {
        Live { #[pin] future: F, home: Rc<Home>, token: Token },
        /// May be dropped on any thread.
        Finished,
    }
}

/// A [`TaskFuture`] at rest, its type forgotten.
pub(super) struct Parked {
    task: NonNull<()>,
    drop_future: unsafe fn(NonNull<()>),
}

impl<F: Future> TaskFuture<F> {
    pub(super) fn new(home: Rc<Home>, token: Token, future: F) -> Self {
        TaskFuture { stage: Stage::Live { future, home, token } }
    }

    /// Drops the future, if it is there still, and becomes `Finished`. The caller tells the home.
    fn take_future(self: Pin<&mut Self>) -> Option<(Rc<Home>, Token)> {
        let mut stage = self.project().stage;
        let StageProjection::Live { home, token, .. } = stage.as_mut().project() else { return None };
        let (home, token) = (Rc::clone(home), *token);
        // First of all: from here on nobody else may drop it in place, whatever its destructor does.
        home.begin_drop(token);
        home.contain(|| stage.set(Stage::Finished));
        Some((home, token))
    }

    fn park(self: Pin<&mut Self>) -> Parked {
        // SAFETY: the pointer is used for nothing but dropping the pinned value's content in place.
        let task = NonNull::from(unsafe { self.get_unchecked_mut() });
        Parked { task: task.cast(), drop_future: drop_future_of::<F> }
    }
}

impl<F: Future> Future for TaskFuture<F> {
    type Output = Result<F::Output, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let stage = self.as_mut().project().stage;
        let StageProjection::Live { future, home, token } = stage.project() else {
            // Woken after it was cancelled.
            return Poll::Ready(Err(JoinError::Cancelled));
        };
        let (home, token) = (Rc::clone(home), *token);
        let result = if home.begin_poll(token) {
            match panic::catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
                Ok(Poll::Ready(output)) => Ok(output),
                Ok(Poll::Pending) if home.park(token, self.as_mut().park()) => return Poll::Pending,
                Ok(Poll::Pending) => Err(JoinError::Cancelled),
                Err(payload) => {
                    home.note_panic(&*payload);
                    Err(JoinError::panicked(payload))
                }
            }
        } else {
            Err(JoinError::Cancelled)
        };
        self.take_future();
        if home.finish_polled(token) {
            return Poll::Ready(result);
        }
        // Nobody waits: dropped here, where a destructor that panics is contained.
        home.contain(|| drop(result));
        Poll::Ready(Err(JoinError::Cancelled))
    }
}

impl Parked {
    /// # Safety
    /// On the home's thread, the task still where it was parked, neither polled nor dropped since, and not freed
    /// until this returns.
    pub(super) unsafe fn drop_future(self) {
        // SAFETY: the caller's promise.
        unsafe { (self.drop_future)(self.task) }
    }
}

/// # Safety
/// As for [`Parked::drop_future`], and `task` is a `TaskFuture<F>`.
unsafe fn drop_future_of<F: Future>(task: NonNull<()>) {
    // SAFETY: by the caller's promise `task` points to a pinned value that nobody borrows: async-task touches it
    // only to poll or drop it. The pointer stems from the borrow of its last poll, and nothing has borrowed it
    // since.
    let task = unsafe { Pin::new_unchecked(task.cast::<TaskFuture<F>>().as_mut()) };
    if let Some((home, token)) = task.take_future() {
        home.finish_dropped(token);
    }
}
