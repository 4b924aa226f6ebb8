//! A call from a shard, as a future that stays there; and what all calls have in common. Those that may go anywhere are
//! in `handle_call`.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use crate::ShardId;
use crate::cross_shard::{
    Acquire, Answer, Call as HomeCall, CallError, Credit, ForeignCall, Panic, Reply, Route,
};
use crate::error::log_contained;
use crate::shard::Shard;
use crate::shard::interfaces::time::Sleep;
use crate::shard::shared::Shared;

/// A call from one shard to another: a lazy future of the closure's result. Made by [`Shard::call`] and its relatives.
///
/// # Cancel safety
/// Dropped before it has started on the target, the call is withdrawn; after that its result is discarded.
///
/// # Threads
/// Stays on the shard that calls, as all that it brings home does; [`HandleCall`](crate::HandleCall) may go anywhere.
///
/// ```compile_fail
/// fn needs_send<T: Send>(_: T) {}
/// fn calls(shard: shardwise::Shard, target: shardwise::ShardId) {
///     needs_send(shard.call(target, |_: &shardwise::Shard| ()));
/// }
/// ```
#[must_use = "nothing is called unless this is awaited"]
pub struct Call<D, T> {
    shard: Shard,
    route: Route,
    deadline: Option<Duration>,
    state: State<D, T>,
}

enum State<D, T> {
    Unsent(D),
    /// Too many calls are in flight to that shard.
    Waiting(D, Acquire, ShardId, Option<Sleep>),
    Sent(HomeCall<T>, Option<Sleep>),
    Done,
}

// Nothing here is pinned: closures are moved, never polled.
impl<D, T> Unpin for Call<D, T> {}

/// How a closure is sent: the two kinds of calls.
pub(crate) trait Dispatch<T>: Sized {
    /// From a shard, by whom alone the result is fetched.
    fn send(self, shard: &Shard, target: ShardId, credit: Credit) -> HomeCall<T>;
    /// From wherever this is, which `home` says if it is a shard of this runtime; the result is fetched anywhere.
    fn send_from_anywhere(self, shared: &Shared, home: Option<&Shard>, target: ShardId) -> ForeignCall<T>;
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

    fn send_from_anywhere(self, shared: &Shared, home: Option<&Shard>, target: ShardId) -> ForeignCall<T> {
        match home {
            Some(shard) => shard.inner.endpoint.call_for_anybody(target, self.f),
            None => shared.mesh.call_from_thread(target, self.f),
        }
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

    fn send_from_anywhere(self, shared: &Shared, home: Option<&Shard>, target: ShardId) -> ForeignCall<T> {
        let start = move |shard: &Shard, answer| run_and_answer(shard, self.f, answer);
        match home {
            Some(shard) => shard.inner.endpoint.call_async_for_anybody(target, start),
            None => shared.mesh.call_async_from_thread(target, start),
        }
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

/// As `run_and_reply`, for whoever waits anywhere.
fn run_and_answer<T, F>(shard: &Shard, f: F, answer: Answer<T>)
where
    F: AsyncFnOnce(Shard) -> T + 'static,
    T: Send + 'static,
{
    let home = shard.clone();
    drop(shard.spawn(async move {
        let outcome = Contained { future: f(home.clone()) }.await;
        home.note_call_panic(&outcome);
        answer.send(outcome.map_err(CallError::Panicked));
    }));
}

impl Shard {
    /// The panic of an async call travels to its caller; it is counted where it happened.
    fn note_call_panic<T>(&self, outcome: &Result<T, Panic>) {
        if let Err(panic) = outcome {
            self.inner.stats.panics.add(1);
            let shard = self.inner.id.index();
            log_contained(|| tracing::error!(shard, panic = panic.message(), "an async call panicked"));
        }
    }
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
    pub(crate) fn new(shard: Shard, route: Route, dispatch: D) -> Self {
        Call { shard, route, deadline: None, state: State::Unsent(dispatch) }
    }

    /// Gives up with [`CallError::DeadlineExceeded`] when there is no result `after` the first poll. A closure that has
    /// not started by then does not run. Kept by a timer of the shard that calls.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }
}

#[expect(private_bounds, reason = "how a closure is sent is nobody else's business")]
impl<D: Dispatch<T>, T> Call<D, T> {
    fn begin(&mut self, dispatch: D) {
        let shard = &self.shard;
        let sleep = self.deadline.map(|after| shard.sleep(after));
        let target = shard.inner.endpoint.resolve(self.route);
        self.state = match shard.inner.endpoint.try_credit(target) {
            Some(credit) => State::Sent(dispatch.send(shard, target, credit), sleep),
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
                        this.state = State::Sent(dispatch.send(&this.shard, target, credit), sleep);
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
pub(crate) async fn join_all<C, T>(calls: Vec<C>) -> Vec<Result<T, CallError>>
where
    C: Future<Output = Result<T, CallError>> + Unpin,
{
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
