//! Atomics and locks, from std or, under `cfg(loom)`, from loom. The only file that knows which.
//!
//! Counters that nobody decides by stay on std's atomics, so that models do not explore them.

#[cfg(not(loom))]
mod chosen {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;
}

#[cfg(loom)]
mod chosen {
    pub(crate) use loom::sync::atomic;
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
}

pub(crate) use chosen::*;

/// Locks `mutex`, also after a panic of another holder: for locks under which no application code runs, so
/// that what they guard is whole at every point where a panic could come from.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A value on cache lines of its own: two of them, because processors fetch lines in pairs.
#[repr(align(128))]
pub(crate) struct OwnLine<T>(pub(crate) T);

impl<T> std::ops::Deref for OwnLine<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
