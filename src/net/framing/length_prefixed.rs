//! Frames behind a number of fixed width that says their length.

use super::{Decoder, EncodeError, Encoder, Found, FrameError, LENGTH_BYTES_MAX};

/// Frames behind their length: 1, 2 or 4 bytes in network byte order, which do not count themselves. A frame has at
/// most 99,999 bytes unless changed, and never more than its length field can say.
///
/// ```
/// use shardwise::framing::{Decoder, Encoder, Found, FrameError, LengthPrefixed};
///
/// let mut codec = LengthPrefixed::u16();
/// assert_eq!(codec.decode(&[0, 2, b'h', b'i', 0]), Ok(Some(Found { frame: 2..4, used: 4 })));
///
/// let mut codec = LengthPrefixed::u32();
/// let too_long = FrameError::TooLong { declared_bytes: 0xffff_ffff, limit_bytes: 99_999 };
/// assert_eq!(codec.decode(&[0xff; 4]), Err(too_long), "before anything of it has come");
///
/// assert!(LengthPrefixed::u8().encode(&[0; 256], &mut Vec::new()).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct LengthPrefixed {
    width: Width,
    frame_bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
enum Width {
    One = 1,
    Two = 2,
    Four = 4,
}

impl LengthPrefixed {
    /// A length of one byte: frames of up to 255 bytes.
    pub fn u8() -> Self {
        LengthPrefixed { width: Width::One, frame_bytes_max: LENGTH_BYTES_MAX }
    }

    /// A length of two bytes: frames of up to 65,535 bytes.
    pub fn u16() -> Self {
        LengthPrefixed { width: Width::Two, frame_bytes_max: LENGTH_BYTES_MAX }
    }

    /// A length of four bytes: frames of up to 99,999 bytes unless changed.
    pub fn u32() -> Self {
        LengthPrefixed { width: Width::Four, frame_bytes_max: LENGTH_BYTES_MAX }
    }

    /// Changes how many bytes a frame may have. A protocol's input is kept up to
    /// [`Config::input_bytes_max`](crate::Config::input_bytes_max), which should be larger.
    #[must_use]
    pub fn with_frame_bytes_max(mut self, frame_bytes_max: usize) -> Self {
        self.frame_bytes_max = frame_bytes_max;
        self
    }

    fn limit_bytes(&self) -> usize {
        let sayable = match self.width {
            Width::One => u8::MAX.into(),
            Width::Two => u16::MAX.into(),
            Width::Four => usize::try_from(u32::MAX).unwrap_or(usize::MAX),
        };
        self.frame_bytes_max.min(sayable)
    }
}

impl Decoder for LengthPrefixed {
    type Error = FrameError;

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Found>, FrameError> {
        let begin = self.width as usize;
        let Some(prefix) = bytes.get(..begin) else { return Ok(None) };
        let declared_bytes = prefix.iter().fold(0_u64, |len, byte| len << 8 | u64::from(*byte));
        let limit_bytes = self.limit_bytes();
        let Some(len) = usize::try_from(declared_bytes).ok().filter(|len| *len <= limit_bytes) else {
            return Err(FrameError::TooLong { declared_bytes, limit_bytes });
        };
        let end = begin.saturating_add(len);
        Ok((bytes.len() >= end).then_some(Found { frame: begin..end, used: end }))
    }

    fn frame_bytes_max(&self) -> usize {
        self.limit_bytes().saturating_add(self.width as usize)
    }
}

impl Encoder for LengthPrefixed {
    type Error = EncodeError;

    fn encode(&self, frame: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        let limit_bytes = self.limit_bytes();
        if frame.len() > limit_bytes {
            return Err(EncodeError::TooLong { frame_bytes: frame.len(), limit_bytes });
        }
        let length = (frame.len() as u64).to_be_bytes();
        output.extend_from_slice(&length[length.len() - self.width as usize..]);
        output.extend_from_slice(frame);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::framing::test_kit::{self, decode_all, decode_in_pieces, in_every_split};

    fn kinds() -> [LengthPrefixed; 3] {
        [LengthPrefixed::u8(), LengthPrefixed::u16(), LengthPrefixed::u32()]
    }

    #[test]
    fn the_length_is_in_network_byte_order() {
        in_every_split(&LengthPrefixed::u8(), b"\x02hi\x00", &[b"hi", b""], None);
        in_every_split(&LengthPrefixed::u16(), b"\0\x02hi\0\0", &[b"hi", b""], None);
        in_every_split(&LengthPrefixed::u32(), b"\0\0\0\x02hi\0\0\0\0", &[b"hi", b""], None);
        let long = [b"\x01\x02", &[b'x'; 258][..]].concat();
        assert_eq!(decode_all(LengthPrefixed::u16(), &long).frames, [[b'x'; 258]]);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let too_long = |declared_bytes, limit_bytes| Err(FrameError::TooLong { declared_bytes, limit_bytes });
        let mut codec = LengthPrefixed::u32();
        assert_eq!(codec.decode(&99_999_u32.to_be_bytes()), Ok(None));
        assert_eq!(codec.decode(&100_000_u32.to_be_bytes()), too_long(100_000, 99_999));
        assert_eq!(codec.decode(&[0, 1, 0x86]), Ok(None), "a length that is not there yet decides nothing");
        assert_eq!(LengthPrefixed::u16().decode(b"\xff\xff"), Ok(None));
        assert_eq!(LengthPrefixed::u8().with_frame_bytes_max(3).decode(b"\x04"), too_long(4, 3));
        let mut unlimited = LengthPrefixed::u32().with_frame_bytes_max(usize::MAX);
        assert_eq!(unlimited.decode(&[0xff; 9]), Ok(None), "and nothing is allocated for it");
    }

    #[test]
    fn a_frame_that_its_length_field_cannot_say_is_not_sent() {
        for (codec, limit_bytes) in kinds().iter().zip([255, 65_535, 99_999]) {
            let mut output = Vec::new();
            codec.encode(&vec![b'x'; limit_bytes], &mut output).unwrap();
            assert_eq!(output.len(), codec.frame_bytes_max());
            assert_eq!(decode_all(codec.clone(), &output).frames[0].len(), limit_bytes);
            let error = EncodeError::TooLong { frame_bytes: limit_bytes + 1, limit_bytes };
            assert_eq!(codec.encode(&vec![b'x'; limit_bytes + 1], &mut output), Err(error));
            assert_eq!(output.len(), codec.frame_bytes_max(), "nothing of it was written");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_pieces_make_no_difference(
            bytes in proptest::collection::vec(0_u8..9, 0..100),
            pieces in test_kit::pieces(),
        ) {
            for codec in kinds() {
                let codec = codec.with_frame_bytes_max(6);
                let whole = decode_all(codec.clone(), &bytes);
                prop_assert_eq!(decode_in_pieces(codec.clone(), &bytes, &pieces), whole.clone());
                prop_assert_eq!(decode_in_pieces(codec, &bytes, &[1]), whole);
            }
        }

        #[test]
        fn what_is_sent_is_what_is_read(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10),
            pieces in test_kit::pieces(),
        ) {
            for codec in kinds() {
                test_kit::round_trip(&codec, &frames, &pieces);
            }
        }
    }
}
