//! What a shard has staged for one target in this turn. Does not publish it.

use super::envelope::Slot;
use std::cell::{Cell, RefCell};

pub(super) struct Outbox<C: 'static> {
    pub(super) staged: RefCell<Vec<Slot<C>>>,
    /// Whether a call is among them, for whose answer somebody waits.
    pub(super) brings_replies: Cell<bool>,
    /// Whether the target is on the list of those to be published.
    pub(super) listed: Cell<bool>,
    /// Whether something has gone out that found the target asleep.
    pub(super) wake_owed: Cell<bool>,
}

/// Slots in one batch; what is staged beyond it leaves at once. So a turn with many calls keeps its target busy
/// while it goes on, and a partly run batch holds few answers back.
pub(super) const BATCH_SLOTS: usize = if cfg!(loom) { 2 } else { 128 };

impl<C: 'static> Outbox<C> {
    pub(super) fn new() -> Self {
        Outbox {
            staged: RefCell::new(Vec::new()),
            brings_replies: Cell::new(false),
            listed: Cell::new(false),
            wake_owed: Cell::new(false),
        }
    }
}
