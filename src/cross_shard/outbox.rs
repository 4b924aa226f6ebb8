//! What a shard has staged for one target in this turn. Does not publish it.

use super::envelope::{Memory, Slots};
use std::cell::{Cell, RefCell};

pub(super) struct Outbox<C: 'static> {
    pub(super) staged: RefCell<Slots<C>>,
    /// How many units may be staged before they leave.
    pub(super) limit: Cell<usize>,
    /// Whether a call is among them, for whose answer somebody waits.
    pub(super) brings_replies: Cell<bool>,
    /// Whether the target is on the list of those to be published.
    pub(super) listed: Cell<bool>,
    /// Whether something has gone out that found the target asleep.
    pub(super) wake_owed: Cell<bool>,
    /// What messages of the target's came in last: the next batch to there is written into it, since its cache lines
    /// are here. While both shards send, the same memory thus goes to and fro, and no line makes a journey for nothing.
    pub(super) at_hand: Cell<Memory>,
    /// Further memory of the target's, that goes home with the next batch: one push less. One piece at most, as above,
    /// hence twice 8 KiB; while nothing is sent they stay, and others go home alone.
    pub(super) returning: Cell<Memory>,
}

/// What one batch may hold, in units of 32 bytes: 8 KiB. A partly run batch then holds few answers back.
pub(super) const BATCH_UNITS: usize = if cfg!(loom) { 2 } else { 256 };

/// What the first batch of a turn may hold; each further one may be twice as large. What is staged beyond
/// that leaves at once, and a target that polls has something to do while this shard goes on; small batches
/// are dearer per call, though.
pub(super) const FIRST_BATCH_UNITS: usize = if cfg!(loom) { 2 } else { 32 };

impl<C: 'static> Outbox<C> {
    pub(super) fn new() -> Self {
        Outbox {
            staged: RefCell::new(Slots::new()),
            limit: Cell::new(FIRST_BATCH_UNITS),
            brings_replies: Cell::new(false),
            listed: Cell::new(false),
            wake_owed: Cell::new(false),
            at_hand: Cell::new(Memory::NONE),
            returning: Cell::new(Memory::NONE),
        }
    }

    /// Keeps what the target's messages came in, for batches to there. Gives back what there is no place for.
    pub(super) fn keep(&self, memory: Memory) -> Result<(), Memory> {
        for place in [&self.at_hand, &self.returning] {
            let before = place.take();
            if before.is_none() {
                place.set(memory);
                return Ok(());
            }
            place.set(before);
        }
        Err(memory)
    }
}
