//! A call to a shard, as a future: sent when it is first polled, by the way that is nearest.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use crate::ShardId;
use crate::cross_shard::{Acquire, Call as HomeCall, CallError, Credit, ForeignCall, Panic, Reply, Route};
use crate::shard::Shard;
use crate::shard::handles::handle::Handle;
use crate::shard::interfaces::time::Sleep;
use crate::shard::shared::Shared;

/// A call to a shard: a lazy future of the closure's result. Made by [`Shard::call`] and its relatives.
///
/// # Cancel safety
/// Dropped before it has started on the target, the call is withdrawn; after that its result is discarded.
#[must_use = "nothing is called unless this is awaited"]
pub struct Call<D, T> {
    origin: Origin,
    route: Route,
    deadline: Option<Duration>,
    state: State<D, T>,
}

/// Where a call is made.
pub(crate) enum Origin {
    /// On this shard.
    Home(Shard),
    /// Wherever it is first polled.
    Anywhere(Handle),
}

impl Origin {
    fn shard(&self) -> Option<Shard> {
        match self {
            Origin::Home(shard) => Some(shard.clone()),
            Origin::Anywhere(handle) => handle.home(),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        match self {
            Origin::Home(shard) => &shard.inner.shared,
            Origin::Anywhere(handle) => handle.shared(),
        }
    }
}

enum State<D, T> {
    Unsent(D),
    /// Too many calls are in flight to that shard.
    Waiting(D, Acquire, ShardId, Option<Sleep>),
    Sent(HomeCall<T>, Option<Sleep>),
    SentFromOutside(ForeignCall<T>),
    Done,
}

// Nothing here is pinned: closures are moved, never polled.
impl<D, T> Unpin for Call<D, T> {}

/// How a closure is sent: the two kinds of calls.
pub(crate) trait Dispatch<T>: Sized {
    fn send(self, shard: &Shard, target: ShardId, credit: Credit) -> HomeCall<T>;
    fn send_from_outside(self, shared: &Arc<Shared>, target: ShardId) -> ForeignCall<T>;
}

/// A closure that is called.
#[doc(hidden)]
pub struct Closure<F> {
    f: F,
}

/// An async closure that is called and awaited.
#[doc(hidden)]
pub struct AsyncClosure<F> {
    f: F,
}

impl<F> Closure<F> {
    pub(crate) fn new(f: F) -> Self {
        Closure { f }
    }
}

impl<F> AsyncClosure<F> {
    pub(crate) fn new(f: F) -> Self {
        AsyncClosure { f }
    }
}

impl<F, T> Dispatch<T> for Closure<F>
where
    F: FnOnce(&Shard) -> T + Send + 'static,
    T: Send + 'static,
{
    fn send(self, shard: &Shard, target: ShardId, credit: Credit) -> HomeCall<T> {
        shard.inner.endpoint.call(target, self.f).holding(credit)
    }

    fn send_from_outside(self, shared: &Arc<Shared>, target: ShardId) -> ForeignCall<T> {
        shared.mesh.call_from_thread(target, self.f)
    }
}

impl<F, T> Dispatch<T> for AsyncClosure<F>
where
    F: AsyncFnOnce(Shard) -> T + Send + 'static,
    T: Send + 'static,
{
    fn send(self, shard: &Shard, target: ShardId, credit: Credit) -> HomeCall<T> {
        let start = move |shard: &Shard, reply: Reply<T, Shard>| run_and_reply(shard, self.f, reply);
        shard.inner.endpoint.call_async(target, start).holding(credit)
    }

    fn send_from_outside(self, shared: &Arc<Shared>, target: ShardId) -> ForeignCall<T> {
        call_async_from_outside(shared, target, self.f)
    }
}

/// Runs an async closure as a task of its target.
fn run_and_reply<T, F>(shard: &Shard, f: F, reply: Reply<T, Shard>)
where
    F: AsyncFnOnce(Shard) -> T + 'static,
    T: Send + 'static,
{
    let home = shard.clone();
    drop(shard.spawn(async move {
        let outcome = Contained { future: f(home.clone()) }.await;
        home.note_call_panic(&outcome);
        reply.send(outcome);
    }));
}

fn call_async_from_outside<T, F>(shared: &Arc<Shared>, target: ShardId, f: F) -> ForeignCall<T>
where
    F: AsyncFnOnce(Shard) -> T + Send + 'static,
    T: Send + 'static,
{
    shared.mesh.call_async_from_thread(target, move |shard: &Shard, answer| {
        let home = shard.clone();
        drop(shard.spawn(async move {
            let outcome = Contained { future: f(home.clone()) }.await;
            home.note_call_panic(&outcome);
            answer.send(outcome.map_err(CallError::Panicked));
        }));
    })
}

impl Shard {
    /// The panic of an async call travels to its caller; it is counted where it happened.
    fn note_call_panic<T>(&self, outcome: &Result<T, Panic>) {
        if let Err(panic) = outcome {
            self.inner.stats.panics.add(1);
            tracing::error!(shard = self.inner.id.index(), panic = panic.message(), "an async call panicked");
        }
    }
}

/// Sends an async closure from a thread that is no shard.
pub(crate) fn call_async_from_thread<T, F>(shared: &Arc<Shared>, route: Route, f: F) -> ForeignCall<T>
where
    F: AsyncFnOnce(Shard) -> T + Send + 'static,
    T: Send + 'static,
{
    call_async_from_outside(shared, shared.mesh.resolve(route), f)
}

pin_project! {
    /// A future whose panic is its result.
    struct Contained<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(Panic::new(payload))),
        }
    }
}

impl<D, T> Call<D, T> {
    pub(crate) fn new(origin: Origin, route: Route, dispatch: D) -> Self {
        Call { origin, route, deadline: None, state: State::Unsent(dispatch) }
    }

    /// Gives up with [`CallError::DeadlineExceeded`] when there is no result `after` the first poll. A closure that has
    /// not started by then does not run.
    ///
    /// Kept by a timer of the shard the call is awaited on; awaited elsewhere, the call has no deadline.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }
}

#[expect(private_bounds, reason = "how a closure is sent is nobody else's business")]
impl<D: Dispatch<T>, T> Call<D, T> {
    fn begin(&mut self, dispatch: D) {
        let Some(shard) = self.origin.shard() else {
            let shared = self.origin.shared();
            let target = shared.mesh.resolve(self.route);
            self.state = State::SentFromOutside(dispatch.send_from_outside(shared, target));
            return;
        };
        let sleep = self.deadline.map(|after| shard.sleep(after));
        let target = shard.inner.endpoint.resolve(self.route);
        self.state = match shard.inner.endpoint.try_credit(target) {
            Some(credit) => State::Sent(dispatch.send(&shard, target, credit), sleep),
            None => State::Waiting(dispatch, shard.inner.endpoint.credit(target), target, sleep),
        };
    }
}

impl<D: Dispatch<T>, T> Future for Call<D, T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let sleep = match &mut this.state {
                State::Unsent(_) => {
                    let State::Unsent(dispatch) = std::mem::replace(&mut this.state, State::Done) else {
                        unreachable!("matched above")
                    };
                    this.begin(dispatch);
                    continue;
                }
                State::Waiting(_, acquire, target, _) => {
                    if let Poll::Ready(granted) = Pin::new(acquire).poll(context) {
                        let target = *target;
                        let State::Waiting(dispatch, _, _, sleep) =
                            std::mem::replace(&mut this.state, State::Done)
                        else {
                            unreachable!("matched above")
                        };
                        let credit = match granted {
                            Ok(credit) => credit,
                            Err(error) => return Poll::Ready(Err(error)),
                        };
                        let Some(shard) = this.origin.shard() else {
                            return Poll::Ready(Err(CallError::Stopped));
                        };
                        this.state = State::Sent(dispatch.send(&shard, target, credit), sleep);
                        continue;
                    }
                    let State::Waiting(_, _, _, sleep) = &mut this.state else {
                        unreachable!("matched above")
                    };
                    sleep
                }
                State::Sent(call, sleep) => {
                    if let Poll::Ready(outcome) = Pin::new(call).poll(context) {
                        this.state = State::Done;
                        return Poll::Ready(outcome);
                    }
                    sleep
                }
                State::SentFromOutside(call) => {
                    let outcome = std::task::ready!(Pin::new(call).poll(context));
                    this.state = State::Done;
                    return Poll::Ready(outcome);
                }
                State::Done => panic!("a call was polled after it had given its result"),
            };
            if let Some(sleep) = sleep {
                std::task::ready!(Pin::new(sleep).poll(context));
                this.state = State::Done;
                return Poll::Ready(Err(CallError::DeadlineExceeded));
            }
            return Poll::Pending;
        }
    }
}

impl<D, T> fmt::Debug for Call<D, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Call").field("route", &self.route).finish()
    }
}

/// Polls all calls, so that all are sent, until each has given its result.
pub(crate) async fn join_all<D: Dispatch<T>, T>(calls: Vec<Call<D, T>>) -> Vec<Result<T, CallError>> {
    let mut pending: Vec<_> = calls.into_iter().map(|call| (Some(call), None)).collect();
    std::future::poll_fn(|context| {
        let mut waits = false;
        for (call, result) in &mut pending {
            let Some(polled) = call else { continue };
            match Pin::new(polled).poll(context) {
                Poll::Ready(outcome) => {
                    *result = Some(outcome);
                    *call = None;
                }
                Poll::Pending => waits = true,
            }
        }
        if waits { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    pending.into_iter().filter_map(|(_, result)| result).collect()
}
