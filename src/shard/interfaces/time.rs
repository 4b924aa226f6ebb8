//! IReactorTime: the clock, calls in the future, and waiting for a time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::shard::handles::delayed_call::DelayedCall;
use crate::shard::{Shard, Timer, wake_contained};

impl Shard {
    /// The time as of the beginning of this turn. Costs nothing. Monotonic; virtual in a simulation.
    pub fn now(&self) -> Instant {
        self.inner.now.get()
    }

    /// The time right now.
    pub(crate) fn read_clock(&self) -> Instant {
        self.inner.driver.borrow_mut().read_clock()
    }

    /// Calls `call` once, `delay` from now: never earlier, never before this returns, and among equal deadlines in the
    /// order of these calls. A call set by a call that is being made waits for the next turn, also with no delay. A
    /// delay beyond about a century means never.
    ///
    /// A panic in `call` is counted and logged, and goes no further.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn example(shard: &shardwise::Shard) {
    /// let call = shard.call_later(Duration::from_secs(1), |shard| println!("a second later on {shard:?}"));
    /// call.cancel().unwrap();
    /// assert!(call.cancel().is_err(), "it was cancelled already");
    /// # }
    /// ```
    pub fn call_later(&self, delay: Duration, call: impl FnOnce(&Shard) + 'static) -> DelayedCall {
        let deadline = deadline_after(self.read_clock(), delay);
        let key = self.inner.timers.borrow_mut().insert(deadline, Timer::new(call));
        DelayedCall::new(self.clone(), key)
    }

    /// Deadlines of everything that is still to come on this shard: delayed calls, sleeping tasks, and the guards of
    /// connections. For introspection; in no particular order.
    pub fn delayed_calls(&self) -> Vec<Instant> {
        self.inner.timers.borrow().deadlines().into_iter().map(|(_, deadline)| deadline).collect()
    }

    /// Waits `delay` from now: never less.
    pub fn sleep(&self, delay: Duration) -> Sleep {
        self.sleep_until(deadline_after(self.read_clock(), delay))
    }

    /// Waits until `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { shard: self.clone(), deadline, key: None }
    }

    /// Runs `future` for at most `delay`.
    pub fn timeout<F: Future>(&self, delay: Duration, future: F) -> Timeout<F> {
        Timeout { sleep: self.sleep(delay), future }
    }

    /// Ticks every `period`, the first time one period from now.
    ///
    /// # Panics
    /// When `period` is zero.
    pub fn interval(&self, period: Duration) -> Interval {
        assert!(!period.is_zero(), "an interval needs a period");
        Interval { sleep: self.sleep(period), period }
    }
}

/// Waits `delay` from now, on the current shard.
///
/// # Panics
/// When no shard is current on this thread.
pub fn sleep(delay: Duration) -> Sleep {
    Shard::current().sleep(delay)
}

/// Runs `future` for at most `delay`, on the current shard.
///
/// # Panics
/// When no shard is current on this thread.
pub fn timeout<F: Future>(delay: Duration, future: F) -> Timeout<F> {
    Shard::current().timeout(delay, future)
}

/// Ticks every `period`, on the current shard.
///
/// # Panics
/// When no shard is current on this thread, and when `period` is zero.
pub fn interval(period: Duration) -> Interval {
    Shard::current().interval(period)
}

/// A future that is ready at a time. Dropping it forgets the time.
#[must_use = "it waits when it is awaited"]
pub struct Sleep {
    shard: Shard,
    deadline: Instant,
    /// Set while the wheel holds our waker.
    key: Option<TimerKey>,
}

impl Sleep {
    /// When it is ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    fn forget(&mut self) {
        if let Some(key) = self.key.take() {
            let timer = self.shard.inner.timers.borrow_mut().cancel(key);
            drop(timer);
        }
    }

    fn reset(&mut self, deadline: Instant) {
        self.forget();
        self.deadline = deadline;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(key) = self.key {
            if !self.shard.inner.timers.borrow().contains(key) {
                self.key = None;
                return Poll::Ready(());
            }
            // Another task may be asking this time.
            self.forget();
        } else if self.deadline <= self.shard.now() {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        let wake = Timer::new(move |_: &Shard| wake_contained(waker));
        let deadline = self.deadline;
        let key = self.shard.inner.timers.borrow_mut().insert(deadline, wake);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sleep").field("deadline", &self.deadline).finish()
    }
}

pin_project! {
    /// A future with a time limit: what it gives, or [`Elapsed`].
    #[must_use = "it runs when it is awaited"]
    pub struct Timeout<F> {
        sleep: Sleep,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(this.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// The time limit has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the time limit has passed")
    }
}

impl std::error::Error for Elapsed {}

/// Ticks at a fixed rate. Ticks that were missed, since the shard or the task was busy, are skipped; the phase is kept.
#[derive(Debug)]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
}

impl Interval {
    /// Waits for the next tick, and says when it was due.
    ///
    /// # Cancel safety
    /// Safe: a tick that was not waited for to the end comes again.
    pub async fn tick(&mut self) -> Instant {
        Pin::new(&mut self.sleep).await;
        let due = self.sleep.deadline;
        let late = self.sleep.shard.now().saturating_duration_since(due);
        let missed = late.as_nanos() / self.period.as_nanos();
        let step = u32::try_from(missed + 1).ok().and_then(|ticks| self.period.checked_mul(ticks));
        self.sleep.reset(deadline_after(due, step.unwrap_or(Duration::MAX)));
        due
    }
}
