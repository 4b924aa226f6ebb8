//! Futures on a shard.
