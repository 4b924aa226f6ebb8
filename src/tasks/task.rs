//! What async-task polls: one future of the application, contained and able to go early. Knows its home.

use std::future::Future;
use std::marker::PhantomPinned;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::executor::{Home, Outcome};
use super::join::PanicPayload;
use super::output::Output;
use crate::reactor::token::Token;

pin_project! {
    /// A task's future until it has finished, been cancelled, or its executor has closed; then nothing.
    ///
    /// Its size is the future's and a constant: an `async` block would keep the future twice.
    pub(super) struct TaskFuture<F: Future> {
        #[pin]
        stage: Stage<F>,
        // Never `Unpin`: a pointer to it outlives the borrow it stems from (`Parked`).
        #[pin]
        _pinned: PhantomPinned,
    }

    impl<F: Future> PinnedDrop for TaskFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Stage::Live { .. } = this.stage
                && let Some((home, token)) = this.take_future()
            {
                home.finish(token, Outcome::Cancelled);
            }
        }
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F> {
        Live { #[pin] future: F, home: Rc<Home>, token: Token, is_parked: bool },
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
        TaskFuture { stage: Stage::Live { future, home, token, is_parked: false }, _pinned: PhantomPinned }
    }

    /// Drops the future, if it is there still, and becomes `Finished`. The caller tells the home.
    fn take_future(self: Pin<&mut Self>) -> Option<(Rc<Home>, Token)> {
        let mut stage = self.project().stage;
        let StageProjection::Live { home, token, .. } = stage.as_mut().project() else { return None };
        let (home, token) = (Rc::clone(home), *token);
        if mem::needs_drop::<F>() {
            home.contain(|| stage.set(Stage::Finished));
        } else {
            stage.set(Stage::Finished);
        }
        Some((home, token))
    }

    fn park(self: Pin<&mut Self>) -> Parked {
        // SAFETY: the pointer is used for nothing but dropping the pinned value's content in place.
        let task = NonNull::from(unsafe { self.get_unchecked_mut() });
        Parked { task: task.cast(), drop_future: drop_future_of::<F> }
    }
}

impl<F: Future> Future for TaskFuture<F>
where
    F::Output: 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let stage = self.as_mut().project().stage;
        let StageProjection::Live { future, home, token, is_parked } = stage.project() else {
            // Woken after it was cancelled.
            return Poll::Ready(());
        };
        let (home, token) = (Rc::clone(home), *token);
        home.begin_poll(token);
        let outcome = if home.is_condemned(token) {
            Outcome::Cancelled
        } else {
            match panic::catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
                Ok(Poll::Ready(output)) => Outcome::Returned(Output::new(output)),
                Ok(Poll::Pending) if home.is_condemned(token) => Outcome::Cancelled,
                Ok(Poll::Pending) => {
                    if !mem::replace(is_parked, true) {
                        home.park(token, self.park());
                    }
                    home.end_poll();
                    return Poll::Pending;
                }
                Err(payload) => {
                    home.note_panic(&*payload);
                    Outcome::Panicked(PanicPayload::new(payload))
                }
            }
        };
        // Still the task that is being polled: nobody drops it in place while its destructor runs.
        self.take_future();
        home.finish(token, outcome);
        home.end_poll();
        Poll::Ready(())
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
        home.finish(token, Outcome::Cancelled);
    }
}
