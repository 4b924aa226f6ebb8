//! Futures on a shard: when a task is polled, and where it may be dropped. Knows nothing of shards.
//! The one door to async-task.

#[allow(unsafe_code, reason = "async-task's unchecked spawn: the checked one pays for a thread id per poll")]
mod executor;
mod join;
mod link;
#[allow(unsafe_code, reason = "a sleeping future is dropped in place when its executor closes")]
mod task;
#[cfg(test)]
mod tests;

pub use executor::yield_now;
pub(crate) use executor::{Executor, Remote, RemoteTask};
pub use join::{JoinError, JoinHandle, PanicPayload};
