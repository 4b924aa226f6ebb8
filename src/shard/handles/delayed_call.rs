//! A call that is still to come.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::shard::Shard;

/// A call scheduled by [`Shard::call_later`]. Dropping it changes nothing: the call is made all the same.
pub struct DelayedCall {
    shard: Shard,
    key: TimerKey,
    cancelled: Cell<bool>,
}

/// Why a delayed call can no longer be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayedCallError {
    /// It was cancelled before.
    AlreadyCancelled,
    /// It has been made, or runs right now.
    AlreadyCalled,
}

impl fmt::Display for DelayedCallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            DelayedCallError::AlreadyCancelled => "the call was cancelled already",
            DelayedCallError::AlreadyCalled => "the call has been made already",
        })
    }
}

impl std::error::Error for DelayedCallError {}

impl DelayedCall {
    pub(crate) fn new(shard: Shard, key: TimerKey) -> Self {
        DelayedCall { shard, key, cancelled: Cell::new(false) }
    }

    /// Prevents the call; its closure is dropped now.
    ///
    /// # Errors
    /// [`DelayedCallError`], when there is nothing left to prevent.
    pub fn cancel(&self) -> Result<(), DelayedCallError> {
        let timer = self.shard.inner.timers.borrow_mut().cancel(self.key);
        match timer {
            Some(timer) => {
                self.cancelled.set(true);
                self.shard.drop_contained(timer);
                Ok(())
            }
            None => Err(self.gone()),
        }
    }

    /// Makes the call `delay` from now instead, sooner or later than planned.
    ///
    /// # Errors
    /// [`DelayedCallError`], when it is no longer to come.
    pub fn reset(&self, delay: Duration) -> Result<(), DelayedCallError> {
        let now = self.shard.read_clock();
        self.move_to(deadline_after(now, delay))
    }

    /// Makes the call `more` later than planned.
    ///
    /// # Errors
    /// [`DelayedCallError`], when it is no longer to come.
    pub fn delay(&self, more: Duration) -> Result<(), DelayedCallError> {
        let deadline = self.deadline().ok_or_else(|| self.gone())?;
        self.move_to(deadline_after(deadline, more))
    }

    /// Whether it is still to come. False already while it runs.
    pub fn active(&self) -> bool {
        self.shard.inner.timers.borrow().contains(self.key)
    }

    /// When it is to be made, if it still is.
    pub fn deadline(&self) -> Option<Instant> {
        self.shard.inner.timers.borrow().deadline(self.key)
    }

    fn move_to(&self, deadline: Instant) -> Result<(), DelayedCallError> {
        if self.shard.inner.timers.borrow_mut().reset(self.key, deadline) { Ok(()) } else { Err(self.gone()) }
    }

    fn gone(&self) -> DelayedCallError {
        if self.cancelled.get() {
            DelayedCallError::AlreadyCancelled
        } else {
            DelayedCallError::AlreadyCalled
        }
    }
}

impl fmt::Debug for DelayedCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DelayedCall").field("deadline", &self.deadline()).finish()
    }
}
