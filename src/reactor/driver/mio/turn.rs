//! What one turn of the driver has before it, in the order in which it is served.

use std::collections::VecDeque;

use crate::reactor::driver::Event;
use crate::reactor::token::Token;

/// What this turn serves, and what the next one will.
pub(super) struct Turn {
    /// What has news. Copied out of mio's events, whose iterator cannot be resumed.
    pub(super) ready: Vec<News>,
    /// The first of `ready` that is not served yet.
    pub(super) head: usize,
    /// How often the one at the head was read or accepted from in this turn.
    pub(super) served: usize,
    /// What stopped on its budget: news of the next turn.
    pub(super) carried: Vec<Token>,
    /// What has happened already, and is told before anything else.
    pub(super) happened: VecDeque<Event>,
}

impl Turn {
    /// Done, for this turn, with what is at the head.
    #[inline]
    pub(super) fn pass_head(&mut self) {
        self.head += 1;
        self.served = 0;
    }

    /// Forgets what was served. What the shard had no time for stays in front.
    pub(super) fn begin(&mut self) {
        self.ready.drain(..self.head);
        self.head = 0;
        self.served = 0;
    }
}

/// A source and what its edge told.
pub(super) struct News {
    pub(super) token: Token,
    pub(super) readiness: Readiness,
}

#[derive(Clone, Copy)]
pub(super) struct Readiness(u8);

impl Readiness {
    pub(super) const NONE: Readiness = Readiness(0);
    pub(super) const READABLE: Readiness = Readiness(1);
    pub(super) const WRITABLE: Readiness = Readiness(2);
    /// Hung up, failed, or urgent data: a short read is not the end.
    pub(super) const TO_THE_END: Readiness = Readiness(4);
    pub(super) const ERROR: Readiness = Readiness(8);

    #[inline]
    pub(super) fn of(event: &mio::event::Event) -> Self {
        let bit = |is_so: bool, what: Readiness| if is_so { what.0 } else { 0 };
        let bits = bit(event.is_readable(), Self::READABLE) | bit(event.is_writable(), Self::WRITABLE);
        // One branch for all that is rare.
        let is_rare = event.is_error() | event.is_priority() | event.is_read_closed();
        if is_rare { Self::with_rare_bits(bits, event) } else { Readiness(bits) }
    }

    #[cold]
    #[inline(never)]
    fn with_rare_bits(bits: u8, event: &mio::event::Event) -> Self {
        let error = if event.is_error() { Self::ERROR.0 } else { 0 };
        Readiness(bits | Self::TO_THE_END.0 | error)
    }

    #[inline]
    pub(super) fn has(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }
    /// Whether it tells of more than bytes and room.
    #[inline]
    pub(super) fn is_unusual(self) -> bool {
        self.0 & (Self::TO_THE_END.0 | Self::ERROR.0) != 0
    }
}
