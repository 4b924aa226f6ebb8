//! Feeds decoders in pieces of any size, as a connection does.

use std::fmt::Debug;

use proptest::prelude::*;

use super::{Decoder, EncodeError, Encoder};
use crate::net::input::{Dry, Input};

/// What a decoder made of its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome<E = super::FrameError> {
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) error: Option<E>,
    /// Bytes that belong to no frame so far.
    pub(super) unread_bytes: usize,
}

/// Sizes of pieces, used in turns.
pub(super) fn pieces() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1_usize..30, 1..20)
}

/// Shows `take` growing input until all of `bytes` has come; what it leaves comes again.
pub(super) fn feed(bytes: &[u8], pieces: &[usize], mut take: impl FnMut(&mut Input<'_>)) -> usize {
    let dry = Dry::default();
    let (mut used, mut come) = (0, 0);
    for piece in pieces.iter().cycle() {
        if come == bytes.len() {
            break;
        }
        come = bytes.len().min(come + piece);
        let mut input = Input::new(&bytes[used..come], &dry);
        take(&mut input);
        used += input.consumed();
    }
    bytes.len() - used
}

pub(super) fn decode_in_pieces<D: Decoder>(
    mut decoder: D,
    bytes: &[u8],
    pieces: &[usize],
) -> Outcome<D::Error> {
    let (mut frames, mut error) = (Vec::new(), None);
    let unread_bytes = feed(bytes, pieces, |input| {
        while error.is_none() {
            match decoder.next(input) {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => {
                    assert!(
                        input.len() < decoder.frame_bytes_max(),
                        "it waits for more than its longest frame"
                    );
                    break;
                }
                Err(found) => error = Some(found),
            }
        }
    });
    Outcome { frames, error, unread_bytes }
}

pub(super) fn decode_all<D: Decoder>(decoder: D, bytes: &[u8]) -> Outcome<D::Error> {
    decode_in_pieces(decoder, bytes, &[bytes.len().max(1)])
}

/// Checks what comes out, whichever two pieces the bytes come in, and byte by byte.
#[track_caller]
pub(super) fn in_every_split<D>(decoder: &D, bytes: &[u8], frames: &[&[u8]], error: Option<D::Error>)
where
    D: Decoder + Clone,
    D::Error: PartialEq,
{
    for first in 1..=bytes.len() {
        let outcome = decode_in_pieces(decoder.clone(), bytes, &[first, bytes.len()]);
        assert_eq!(outcome.frames, frames, "split at {first}");
        assert_eq!(outcome.error, error, "split at {first}");
    }
    let outcome = decode_in_pieces(decoder.clone(), bytes, &[1]);
    assert_eq!((outcome.frames, outcome.error), (frames.iter().map(|frame| frame.to_vec()).collect(), error));
}

/// Checks that the frames which the codec sends are read again, in pieces.
pub(super) fn round_trip<C>(codec: &C, frames: &[Vec<u8>], pieces: &[usize])
where
    C: Decoder + Encoder<Error = EncodeError> + Clone + Debug,
{
    let mut output = Vec::new();
    let sent: Vec<Vec<u8>> =
        frames.iter().filter(|frame| codec.encode(frame, &mut output).is_ok()).cloned().collect();
    let outcome = decode_in_pieces(codec.clone(), &output, pieces);
    assert!(outcome.error.is_none(), "{codec:?}: {:?}", outcome.error);
    assert_eq!(outcome.frames, sent, "{codec:?}");
    assert_eq!(outcome.unread_bytes, 0, "{codec:?}");
}
