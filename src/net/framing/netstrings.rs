//! Frames like `5:hello,` (<https://cr.yp.to/proto/netstrings.txt>).

use super::{Decoder, EncodeError, Encoder, Found, FrameError, LENGTH_BYTES_MAX};

/// Netstrings, at most 99,999 bytes each unless changed.
///
/// ```
/// use shardwise::framing::{Decoder, Found, FrameError, Netstrings};
///
/// let mut codec = Netstrings::default();
/// assert_eq!(codec.decode(b"5:hello,0:,"), Ok(Some(Found { frame: 2..7, used: 8 })));
/// assert_eq!(codec.decode(b"5:hel"), Ok(None));
/// assert_eq!(codec.decode(b"5x"), Err(FrameError::NotALength { position: 1, found: b'x' }));
/// let too_long = FrameError::TooLong { declared_bytes: 100_000, limit_bytes: 99_999 };
/// assert_eq!(codec.decode(b"100000"), Err(too_long), "before anything of it has come");
/// ```
#[derive(Clone, Debug)]
pub struct Netstrings {
    frame_bytes_max: usize,
}

impl Netstrings {
    /// Netstrings of up to 99,999 bytes.
    pub fn new() -> Self {
        Netstrings { frame_bytes_max: LENGTH_BYTES_MAX }
    }

    /// Changes how many bytes a frame may have; 99,999 unless changed. A protocol's input is kept up to
    /// [`Config::input_bytes_max`](crate::Config::input_bytes_max), which should be larger.
    #[must_use]
    pub fn with_frame_bytes_max(mut self, frame_bytes_max: usize) -> Self {
        self.frame_bytes_max = frame_bytes_max;
        self
    }
}

impl Default for Netstrings {
    fn default() -> Self {
        Netstrings::new()
    }
}

impl Decoder for Netstrings {
    type Error = FrameError;

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Found>, FrameError> {
        let mut len = 0_usize;
        // Ends after the digits of the limit: more of them are too long, or begin with a zero.
        for (position, byte) in bytes.iter().enumerate() {
            match byte {
                b'0'..=b'9' => {
                    if position > 0 && bytes[0] == b'0' {
                        return Err(FrameError::LeadingZero);
                    }
                    len = len.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
                    if len > self.frame_bytes_max {
                        let (declared_bytes, limit_bytes) = (len as u64, self.frame_bytes_max);
                        return Err(FrameError::TooLong { declared_bytes, limit_bytes });
                    }
                }
                b':' if position > 0 => {
                    let begin = position + 1;
                    let end = begin.saturating_add(len);
                    return match bytes.get(end) {
                        None => Ok(None),
                        Some(b',') => Ok(Some(Found { frame: begin..end, used: end + 1 })),
                        Some(found) => Err(FrameError::NoComma { declared_bytes: len, found: *found }),
                    };
                }
                _ => return Err(FrameError::NotALength { position, found: *byte }),
            }
        }
        Ok(None)
    }

    fn frame_bytes_max(&self) -> usize {
        let digits = self.frame_bytes_max.checked_ilog10().unwrap_or(0) as usize + 1;
        self.frame_bytes_max.saturating_add(digits + 2)
    }
}

impl Encoder for Netstrings {
    type Error = EncodeError;

    fn encode(&self, frame: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        if frame.len() > self.frame_bytes_max {
            let limit_bytes = self.frame_bytes_max;
            return Err(EncodeError::TooLong { frame_bytes: frame.len(), limit_bytes });
        }
        output.extend_from_slice(frame.len().to_string().as_bytes());
        output.push(b':');
        output.extend_from_slice(frame);
        output.push(b',');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::framing::test_kit::{self, decode_all, decode_in_pieces, in_every_split};

    #[test]
    fn frames_come_out_whole() {
        in_every_split(&Netstrings::new(), b"5:hello,0:,1:,,12:hello, world,", &FRAMES, None);
    }
    const FRAMES: [&[u8]; 4] = [b"hello", b"", b",", b"hello, world"];

    #[test]
    fn what_is_malformed_is_named() {
        let not = |position, found| FrameError::NotALength { position, found };
        let cases: [(&[u8], FrameError); 8] = [
            (b"x:", not(0, b'x')),
            (b":,", not(0, b':')),
            (b" 1:a,", not(0, b' ')),
            (b"-1:a,", not(0, b'-')),
            (b"1 :a,", not(1, b' ')),
            (b"01:a,", FrameError::LeadingZero),
            (b"00:,", FrameError::LeadingZero),
            (b"1:ab", FrameError::NoComma { declared_bytes: 1, found: b'b' }),
        ];
        for (bytes, error) in cases {
            in_every_split(&Netstrings::new(), bytes, &[], Some(error));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut codec = Netstrings::new();
        assert_eq!(codec.decode(b"99999"), Ok(None));
        assert_eq!(codec.decode(b"99999:"), Ok(None));
        let too_long = |declared_bytes| Err(FrameError::TooLong { declared_bytes, limit_bytes: 99_999 });
        assert_eq!(codec.decode(b"100000"), too_long(100_000));
        assert_eq!(codec.decode(&[b'9'; 100]), too_long(999_999));
        let mut unlimited = Netstrings::new().with_frame_bytes_max(usize::MAX);
        assert_eq!(unlimited.decode(&[b'9'; 19]), Ok(None), "and nothing is allocated for it");
        assert_eq!(unlimited.decode(b"18446744073709551615:abc"), Ok(None));
    }

    #[test]
    fn the_longest_frame_takes_what_the_codec_says() {
        for limit in [0, 1, 9, 10, 99_999, 100_000] {
            let codec = Netstrings::new().with_frame_bytes_max(limit);
            let mut output = Vec::new();
            codec.encode(&vec![b'x'; limit], &mut output).unwrap();
            assert_eq!(output.len(), codec.frame_bytes_max(), "limit {limit}");
            assert_eq!(decode_all(codec.clone(), &output).frames[0].len(), limit);
            let error = EncodeError::TooLong { frame_bytes: limit + 1, limit_bytes: limit };
            assert_eq!(codec.encode(&vec![b'x'; limit + 1], &mut Vec::new()), Err(error));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_pieces_make_no_difference(
            bytes in proptest::collection::vec(prop::sample::select(&b"0123:,,:x"[..]), 0..100),
            pieces in test_kit::pieces(),
        ) {
            let codec = Netstrings::new().with_frame_bytes_max(30);
            let whole = decode_all(codec.clone(), &bytes);
            prop_assert_eq!(decode_in_pieces(codec.clone(), &bytes, &pieces), whole.clone());
            prop_assert_eq!(decode_in_pieces(codec, &bytes, &[1]), whole);
        }

        #[test]
        fn what_is_sent_is_what_is_read(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10),
            pieces in test_kit::pieces(),
        ) {
            test_kit::round_trip(&Netstrings::new(), &frames, &pieces);
        }
    }
}
