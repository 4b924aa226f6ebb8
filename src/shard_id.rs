//! The number of a shard. Does not know what a shard is.

use std::fmt;

/// A shard's number within its runtime, from 0 up to, and not including, the number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u16);

impl ShardId {
    /// The shard with this number. Whether it exists is found out where the id is used.
    pub const fn new(number: u16) -> Self {
        ShardId(number)
    }

    /// The number, 0-based.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "shard {}", self.0)
    }
}
