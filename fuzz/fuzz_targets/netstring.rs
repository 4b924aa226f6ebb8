//! Netstrings, in any pieces, against a reader that takes the text of the length first.
//!
//! `cargo +nightly fuzz run netstring`

#![no_main]

mod pieces;

use libfuzzer_sys::fuzz_target;
use pieces::{Case, check};
use shardwise::framing::Netstrings;

/// The frames of `bytes`, and whether something is wrong behind them.
fn reference(limit: usize, mut bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Vec::new();
    loop {
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = std::str::from_utf8(&bytes[..digits]).expect("digits are ASCII");
        if digits > 1 && text.starts_with('0') || digits > 30 {
            return (frames, true);
        }
        let len: u128 = text.parse().unwrap_or(0);
        if len > limit as u128 {
            return (frames, true);
        }
        match bytes.get(digits) {
            None => return (frames, false),
            Some(b':') if digits > 0 => {}
            Some(_) => return (frames, true),
        }
        let rest = &bytes[digits + 1..];
        match rest.get(len as usize) {
            None => return (frames, false),
            Some(b',') => {}
            Some(_) => return (frames, true),
        }
        frames.push(rest[..len as usize].to_vec());
        bytes = &rest[len as usize + 1..];
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(case) = Case::new(data) else { return };
    let limit = if case.choice & 1 == 0 { case.limit } else { 99_999 };
    let codec = Netstrings::new().with_frame_bytes_max(limit);
    let (frames, error, _) = check(&codec, &case);
    assert_eq!((frames, error.is_some()), reference(limit, case.bytes), "{error:?}");
});
