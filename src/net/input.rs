//! What a protocol sees of its received bytes, and how it says which it has used.

use std::cell::Cell;

/// Received bytes, lent for the time of one callback.
///
/// A protocol takes whole frames and leaves the rest, which comes back in front of the next bytes. The input runs
/// dry as soon as the protocol closes its transport or pauses reading, or has written more than the high watermark: what
/// follows is either never delivered, or delivered once reading goes on.
///
/// ```
/// use shardwise::{Input, Protocol, Result, Transport};
///
/// struct Lines;
/// impl Protocol for Lines {
///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
///         while let Some(end) = input.bytes().iter().position(|byte| *byte == b'\n') {
///             let line = &input.bytes()[..=end];
///             transport.write(line)?;
///             input.consume(end + 1);
///         }
///         Ok(())
///     }
/// }
/// ```
pub struct Input<'a> {
    bytes: &'a [u8],
    consumed: usize,
    /// Whether they were looked at.
    seen: Cell<bool>,
    dry: &'a Cell<bool>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8], dry: &'a Cell<bool>) -> Self {
        Input { bytes, consumed: 0, seen: Cell::new(false), dry }
    }

    /// The bytes not yet consumed, oldest first. Empty once reading has stopped.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        if self.dry.get() {
            return &[];
        }
        self.seen.set(true);
        &self.bytes[self.consumed..]
    }

    /// How many bytes there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks the first `count` bytes as used: they will not come again.
    ///
    /// # Panics
    /// Panics when there were never that many: the protocol's arithmetic is wrong.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        assert!(
            count <= self.bytes.len() - self.consumed,
            "consumed {count} bytes of an input of {}",
            self.bytes.len() - self.consumed
        );
        self.consumed += count;
    }

    /// All bytes, marked as used.
    #[inline]
    pub fn take(&mut self) -> &'a [u8] {
        let bytes = self.bytes();
        self.consumed += bytes.len();
        bytes
    }

    /// How many bytes have been used so far, in this callback. Layers count by it: [`Input::len`] is 0 when the input has
    /// run dry, whatever is left.
    #[inline]
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// Whether all of it was looked at, and nothing used.
    pub(crate) fn was_left_whole(&self) -> bool {
        self.seen.get() && self.consumed == 0
    }
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Input({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_consumed_does_not_come_again() {
        let dry = Cell::new(false);
        let mut input = Input::new(b"abcdef", &dry);
        input.consume(2);
        assert_eq!(input.bytes(), b"cdef");
        assert_eq!(input.take(), b"cdef");
        assert!(input.is_empty());
        assert_eq!(input.consumed(), 6);
    }

    #[test]
    fn it_runs_dry_when_told_and_what_was_seen_may_still_be_consumed() {
        let dry = Cell::new(false);
        let mut input = Input::new(b"abcdef", &dry);
        let frame = &input.bytes()[..3];
        dry.set(true);
        assert!(input.is_empty());
        assert_eq!(input.take(), b"");
        input.consume(frame.len());
        assert_eq!(input.consumed(), 3);
    }

    #[test]
    fn it_is_left_whole_by_who_looks_and_takes_nothing() {
        let dry = Cell::new(false);
        let mut input = Input::new(b"abc", &dry);
        assert!(!input.was_left_whole(), "nobody has looked");
        assert!(!input.is_empty());
        assert!(input.was_left_whole());
        input.consume(1);
        assert!(!input.was_left_whole());
        dry.set(true);
        let unseen = Input::new(b"abc", &dry);
        assert!(unseen.is_empty() && !unseen.was_left_whole(), "it was dry before anybody looked");
    }

    #[test]
    #[should_panic(expected = "consumed 7 bytes of an input of 6")]
    fn consuming_more_than_there_is_is_a_bug() {
        let dry = Cell::new(false);
        Input::new(b"abcdef", &dry).consume(7);
    }
}
