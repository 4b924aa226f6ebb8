//! Lines of every kind, in any pieces, against a search that starts anew for each line.
//!
//! `cargo +nightly fuzz run line_codec`

#![no_main]

mod pieces;

use libfuzzer_sys::fuzz_target;
use pieces::{Case, check};
use shardwise::framing::{FrameError, Lines};

/// The lines of `bytes`, and whether one is too long.
fn reference(delimiter: &[u8], strip_cr: bool, limit: usize, mut bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut lines = Vec::new();
    let end_bytes = if strip_cr { 2 } else { delimiter.len() };
    while let Some(at) = bytes.windows(delimiter.len()).position(|window| window == delimiter) {
        let line = &bytes[..at];
        let line = if strip_cr { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        if line.len() > limit {
            return (lines, true);
        }
        lines.push(line.to_vec());
        bytes = &bytes[at + delimiter.len()..];
    }
    (lines, bytes.len() >= limit + end_bytes)
}

fuzz_target!(|data: &[u8]| {
    let Some(case) = Case::new(data) else { return };
    let (codec, delimiter, strip_cr): (Lines, &[u8], bool) = match case.choice % 6 {
        0 => (Lines::crlf(), b"\r\n", false),
        1 => (Lines::lf(), b"\n", false),
        2 => (Lines::newline(), b"\n", true),
        3 => (Lines::delimited_by(b"aab"), b"aab", false),
        4 => (Lines::delimited_by(b"--\r\n--"), b"--\r\n--", false),
        _ => (Lines::delimited_by(b"\0"), b"\0", false),
    };
    let codec = codec.with_line_bytes_max(case.limit);
    let (lines, error, _) = check(&codec, &case);
    let (expected, too_long) = reference(delimiter, strip_cr, case.limit, case.bytes);
    assert_eq!(lines, expected);
    assert_eq!(error, too_long.then_some(FrameError::LineTooLong { limit_bytes: case.limit }));
});
