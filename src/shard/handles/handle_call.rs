//! A call to a shard made through a `Handle`, as a future for any thread. Those that stay on a shard are in `call`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::ShardId;
use crate::cross_shard::{CallError, ForeignCall, Overdue, Route};
use crate::shard::Shard;
use crate::shard::handles::call::Dispatch;
use crate::shard::handles::handle::Handle;

/// A call made through a [`Handle`]: a lazy future of the closure's result. Made by [`Handle::call`] and
/// [`Handle::call_async`].
///
/// # Cancel safety
/// Dropped before it has started on the target, the call is withdrawn, and the closure is dropped there; after that its
/// result is discarded.
///
/// # Threads
/// `Send`, when the closure and its result are: it may be polled on any thread, by any runtime, and go from one to
/// another between polls. It is sent by whoever polls it first.
#[must_use = "nothing is called unless this is awaited"]
pub struct HandleCall<D, T> {
    handle: Handle,
    route: Route,
    deadline: Option<Duration>,
    state: State<D, T>,
}

enum State<D, T> {
    Unsent(D),
    Sent(ForeignCall<T>),
    Done,
}

// Nothing here is pinned: closures are moved, never polled.
impl<D, T> Unpin for HandleCall<D, T> {}

impl<D, T> HandleCall<D, T> {
    pub(crate) fn new(handle: Handle, route: Route, dispatch: D) -> Self {
        HandleCall { handle, route, deadline: None, state: State::Unsent(dispatch) }
    }

    /// Gives up with [`CallError::DeadlineExceeded`] when there is no result `after` the first poll. A closure that has
    /// not started by then does not run.
    ///
    /// Kept by a timer of the shard that polls first; polled elsewhere, of a shard that is not the called one if there is
    /// any other, so that a target that is stuck does not hold it up. That shard counts from when it hears of it: soon,
    /// unless it is stuck itself.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }
}

#[expect(private_bounds, reason = "how a closure is sent is nobody else's business")]
impl<D: Dispatch<T>, T: Send + 'static> HandleCall<D, T> {
    fn begin(&self, dispatch: D) -> Result<ForeignCall<T>, CallError> {
        let shared = self.handle.shared();
        let home = self.handle.home();
        if home.is_none() && shared.is_prepared_here() {
            return Err(CallError::NotStarted);
        }
        let target = match &home {
            Some(shard) => shard.inner.endpoint.resolve(self.route),
            None => shared.mesh.resolve(self.route),
        };
        let call = dispatch.send_from_anywhere(shared, home.as_ref(), target);
        if let Some(after) = self.deadline {
            let overdue = call.overdue();
            match &home {
                Some(shard) => keep_deadline(shard, after, overdue),
                None => {
                    let keeper = (target.index() + 1) % shared.mesh.len();
                    let keep = move |shard: &Shard| keep_deadline(shard, after, overdue);
                    // Refused by a shard that has stopped: then so has, or will soon, the one that was called.
                    drop(shared.mesh.post(ShardId::new(keeper as u16), keep));
                }
            }
        }
        Ok(call)
    }
}

/// Ends a call that has no answer in time. Goes away as soon as it has one.
fn keep_deadline<T: Send + 'static>(shard: &Shard, after: Duration, mut overdue: Overdue<T>) {
    let sleep = shard.sleep(after);
    drop(shard.spawn(async move {
        let mut sleep = sleep;
        let is_late = std::future::poll_fn(|context| {
            if Pin::new(&mut overdue).poll(context).is_ready() {
                return Poll::Ready(false);
            }
            Pin::new(&mut sleep).poll(context).map(|()| true)
        });
        if is_late.await {
            overdue.give_up();
        }
    }));
}

impl<D: Dispatch<T>, T: Send + 'static> Future for HandleCall<D, T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let State::Unsent(_) = this.state {
            let State::Unsent(dispatch) = std::mem::replace(&mut this.state, State::Done) else {
                unreachable!("matched above")
            };
            match this.begin(dispatch) {
                Ok(call) => this.state = State::Sent(call),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let State::Sent(call) = &mut this.state else {
            panic!("a call was polled after it had given its result");
        };
        let outcome = std::task::ready!(Pin::new(call).poll(context));
        this.state = State::Done;
        Poll::Ready(outcome)
    }
}

impl<D, T> fmt::Debug for HandleCall<D, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HandleCall").field("route", &self.route).finish()
    }
}
