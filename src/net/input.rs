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
    dry: &'a Dry,
}

/// Whether the input of the callback that runs now has run dry, and whether it was looked at before. One byte for both, so
/// that neither costs the others anything.
#[derive(Default)]
pub(crate) struct Dry(Cell<u8>);

const IS_DRY: u8 = 1;
const WAS_SEEN: u8 = 2;

impl Dry {
    /// For the next callback.
    #[inline]
    pub(crate) fn begin(&self) {
        self.0.set(0);
    }

    #[inline]
    pub(crate) fn set(&self, dry: bool) {
        let seen = self.0.get() & WAS_SEEN;
        self.0.set(if dry { seen | IS_DRY } else { seen });
    }

    #[inline]
    pub(crate) fn get(&self) -> bool {
        self.0.get() & IS_DRY != 0
    }

    /// Whether the input was looked at while it was not dry.
    pub(crate) fn was_seen(&self) -> bool {
        self.0.get() & WAS_SEEN != 0
    }
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8], dry: &'a Dry) -> Self {
        Input { bytes, consumed: 0, dry }
    }

    /// The bytes not yet consumed, oldest first. Empty once reading has stopped.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        if self.dry.get() {
            return &[];
        }
        self.dry.0.set(WAS_SEEN);
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
        let dry = Dry::default();
        let mut input = Input::new(b"abcdef", &dry);
        input.consume(2);
        assert_eq!(input.bytes(), b"cdef");
        assert_eq!(input.take(), b"cdef");
        assert!(input.is_empty());
        assert_eq!(input.consumed(), 6);
    }

    #[test]
    fn it_runs_dry_when_told_and_what_was_seen_may_still_be_consumed() {
        let dry = Dry::default();
        let mut input = Input::new(b"abcdef", &dry);
        let frame = &input.bytes()[..3];
        dry.set(true);
        assert!(input.is_empty());
        assert_eq!(input.take(), b"");
        input.consume(frame.len());
        assert_eq!(input.consumed(), 3);
    }

    #[test]
    fn who_looks_before_it_runs_dry_has_seen_it() {
        let dry = Dry::default();
        let input = Input::new(b"abc", &dry);
        assert!(!dry.was_seen(), "nobody has looked");
        assert!(!input.is_empty());
        dry.set(true);
        assert!(dry.was_seen() && dry.get());
        dry.set(false);
        assert!(dry.was_seen() && !dry.get());
        dry.begin();
        dry.set(true);
        assert!(input.is_empty() && !dry.was_seen(), "it was dry before anybody looked");
    }

    #[test]
    #[should_panic(expected = "consumed 7 bytes of an input of 6")]
    fn consuming_more_than_there_is_is_a_bug() {
        let dry = Dry::default();
        Input::new(b"abcdef", &dry).consume(7);
    }
}
