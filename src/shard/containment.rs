//! What an application's code does wrong goes no further than itself: panics, errors, destructors that panic.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::addr::Addr;
use crate::error::{CloseReason, log_contained, panic_message};
use crate::shard::Shard;

impl Shard {
    /// Counts and logs a panic of application code, and gives its message. The payload is dropped safely.
    pub(crate) fn panicked(&self, who: &str, payload: Box<dyn Any + Send>) -> String {
        let message = panic_message(&*payload);
        self.inner.stats.panics.add(1);
        log_contained(|| tracing::error!(shard = self.inner.id.index(), message, "{who} panicked"));
        self.drop_contained(payload);
        message
    }

    /// Logs an application's error. A `Display` that panics is counted like any other code of the application.
    #[cold]
    pub(crate) fn log_failure(&self, error: &(dyn Error + Send + Sync), what: &str) {
        let logged = log_contained(|| tracing::debug!(shard = self.inner.id.index(), %error, "{what}"));
        if !logged {
            self.inner.stats.panics.add(1);
        }
    }

    /// Logs an end that was not in order. The reason may hold an application's error.
    #[cold]
    pub(super) fn log_end(&self, reason: &CloseReason, peer: &Addr) {
        let shard = self.inner.id.index();
        if !log_contained(|| tracing::debug!(shard, %peer, %reason, "a connection ended")) {
            self.inner.stats.panics.add(1);
        }
    }

    /// Drops an application's value; a panic in its destructor goes no further.
    pub(crate) fn drop_contained<T>(&self, value: T) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
            self.inner.stats.panics.add(1);
            log_contained(|| tracing::error!(shard = self.inner.id.index(), "a destructor panicked"));
            // Its payload may panic again when it is dropped; it is leaked instead.
            std::mem::forget(payload);
        }
    }
}
