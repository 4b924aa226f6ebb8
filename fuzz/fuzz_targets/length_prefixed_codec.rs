//! Frames behind a length of each width, in any pieces, against a reader of whole numbers.
//!
//! `cargo +nightly fuzz run length_prefixed_codec`

#![no_main]

mod pieces;

use libfuzzer_sys::fuzz_target;
use pieces::{Case, check};
use shardwise::framing::{FrameError, LengthPrefixed};

/// The frames of `bytes`, and the length that is too long.
fn reference(width: usize, limit: usize, mut bytes: &[u8]) -> (Vec<Vec<u8>>, Option<u64>) {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = bytes.split_at_checked(width) {
        let mut number = [0; 8];
        number[8 - width..].copy_from_slice(prefix);
        let declared = u64::from_be_bytes(number);
        if declared > limit as u64 {
            return (frames, Some(declared));
        }
        let Some((frame, rest)) = rest.split_at_checked(declared as usize) else { break };
        frames.push(frame.to_vec());
        bytes = rest;
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some(case) = Case::new(data) else { return };
    let (codec, width, most) = match case.choice % 3 {
        0 => (LengthPrefixed::u8(), 1, 255),
        1 => (LengthPrefixed::u16(), 2, 65_535),
        _ => (LengthPrefixed::u32(), 4, 99_999),
    };
    let (codec, limit) = if case.choice & 0x80 == 0 {
        (codec, most)
    } else {
        (codec.with_frame_bytes_max(case.limit), case.limit)
    };
    let (frames, error, _) = check(&codec, &case);
    let (expected, declared) = reference(width, limit, case.bytes);
    assert_eq!(frames, expected);
    let too_long = |declared_bytes| FrameError::TooLong { declared_bytes, limit_bytes: limit };
    assert_eq!(error, declared.map(too_long));
});
