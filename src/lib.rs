//! A sharded network runtime: one pinned reactor per CPU core.
#![allow(dead_code, unused_imports)]

mod config;
mod cross_shard;
mod error;
mod net;
mod reactor;
mod runtime;
mod shard;
mod shard_id;
mod sync;
mod sys;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;

pub use shard_id::ShardId;
