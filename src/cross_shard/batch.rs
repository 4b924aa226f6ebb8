//! What lies in an inbox: slots, who they are from, and which way they go. What is in them is in `envelope`.

use super::envelope::{Memory, Slots};
use crate::ShardId;

/// What lies in an inbox: what a shard sent at once, or got back; or one message of a thread that is no
/// shard.
pub(super) struct Batch<C: 'static> {
    pub(super) slots: Slots<C>,
    /// The shard that made it; the one it was sent to, if that was no shard.
    pub(super) origin: ShardId,
    pub(super) way: Way,
    /// Whether somebody waits for it to come home.
    pub(super) brings_replies: bool,
    /// What the receiver once sent messages in, and gets back along with these.
    pub(super) memory: Memory,
}

/// Which way a batch is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the shard that runs it.
    Out,
    /// Back to the shard that made it: with the replies of its calls, and its memory.
    Home,
    /// In from a thread that is no shard, and has no inbox to send anything home to.
    In,
}
