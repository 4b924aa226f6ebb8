//! What async-task polls: one future of the application, contained and able to go early. Knows its home.

use std::future::Future;
use std::marker::PhantomPinned;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;

use super::executor::{Shared, UNPARKED};
use super::join::{JoinError, PanicPayload};
use super::link::Link;

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
                && let Some(link) = this.take_future(None)
            {
                link.finish_cancelled();
            }
        }
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F: Future> {
        Live { #[pin] future: F, link: Rc<Link<F::Output>> },
        /// May be dropped on any thread. Keeps what the task's wakers point to, if async-task does not know yet
        /// that there is nothing to wake.
        Gone { _shared: Option<Arc<Shared>> },
    }
}

/// A [`TaskFuture`] at rest, its type forgotten.
pub(super) struct Parked {
    task: NonNull<()>,
    drop_future: unsafe fn(NonNull<()>),
    /// Keeps the task's memory, and so its future, where it is, even if nothing else can wake it.
    _waker: Waker,
}

impl<F: Future> TaskFuture<F> {
    #[inline]
    pub(super) fn new(link: Rc<Link<F::Output>>, future: F) -> Self {
        TaskFuture { stage: Stage::Live { future, link }, _pinned: PhantomPinned }
    }

    /// Drops the future, if it is there still. The caller tells the link.
    #[inline]
    fn take_future(self: Pin<&mut Self>, shared: Option<Arc<Shared>>) -> Option<Rc<Link<F::Output>>> {
        let mut stage = self.project().stage;
        let StageProjection::Live { link, .. } = stage.as_mut().project() else { return None };
        let link = Rc::clone(link);
        let gone = Stage::Gone { _shared: shared };
        if mem::needs_drop::<F>() {
            link.home().contain(|| stage.set(gone));
        } else {
            stage.set(gone);
        }
        Some(link)
    }

    /// Lets the home know where the future rests, from its first poll on.
    #[cold]
    fn park(mut self: Pin<&mut Self>, waker: &Waker) {
        let waker = waker.clone();
        // SAFETY: the pointer is used for nothing but dropping the pinned value's content in place.
        let task = NonNull::from(unsafe { self.as_mut().get_unchecked_mut() }).cast();
        let StageProjection::Live { link, .. } = self.project().stage.project() else { return };
        let parked = Parked { task, drop_future: drop_future_of::<F>, _waker: waker };
        link.park_under(link.home().park(parked));
    }
}

impl<F: Future> Future for TaskFuture<F> {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let stage = self.as_mut().project().stage;
        let StageProjection::Live { future, link } = stage.project() else {
            // Woken after it was cancelled.
            return Poll::Ready(());
        };
        link.home().begin_poll(link.token());
        let result = if link.is_condemned() {
            Err(JoinError::Cancelled)
        } else {
            match panic::catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
                Ok(Poll::Ready(output)) => Ok(output),
                Ok(Poll::Pending) if link.is_condemned() => Err(JoinError::Cancelled),
                Ok(Poll::Pending) => {
                    link.home().end_poll();
                    if link.token() == UNPARKED {
                        self.park(context.waker());
                    }
                    return Poll::Pending;
                }
                Err(payload) => {
                    link.home().note_panic(&*payload);
                    Err(JoinError::Panicked(PanicPayload::new(payload)))
                }
            }
        };
        // Still the task that is being polled: nobody drops it in place while its destructor runs. async-task is
        // told at once that the task has returned, and schedules it no more.
        if let Some(link) = self.take_future(None) {
            link.finish(result);
            link.home().end_poll();
        }
        Poll::Ready(())
    }
}

impl Parked {
    /// # Safety
    /// Once, on the home's thread, the task still where it was parked, neither polled nor dropped since, and not
    /// freed until this returns.
    pub(super) unsafe fn drop_future(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { (self.drop_future)(self.task) }
    }
}

/// # Safety
/// As for [`Parked::drop_future`], and `task` is a `TaskFuture<F>`.
unsafe fn drop_future_of<F: Future>(task: NonNull<()>) {
    // SAFETY: by the caller's promise `task` points to a pinned value that nobody borrows: async-task touches it
    // only to poll or drop it. The pointer stems from the borrow of its first poll, which async-task made from
    // the same raw pointer as all later ones.
    let mut task = unsafe { Pin::new_unchecked(task.cast::<TaskFuture<F>>().as_mut()) };
    let StageProjection::Live { link, .. } = task.as_mut().project().stage.project() else { return };
    // Its wakers may schedule it still.
    let shared = Arc::clone(link.home().shared());
    if let Some(link) = task.take_future(Some(shared)) {
        link.finish_cancelled();
    }
}
