//! Frames that end with a delimiter: lines.

use std::borrow::Cow;

use super::{Decoder, EncodeError, Encoder, Found, FrameError};

/// Lines, without their delimiter. The default is CRLF and at most 16,384 bytes.
///
/// Finding a line costs time in proportion to its length, also when it comes byte by byte. A last line without a
/// delimiter is no line.
///
/// ```
/// use shardwise::framing::{Decoder, Encoder, Found, FrameError, Lines};
///
/// let mut lines = Lines::default();
/// assert_eq!(lines.decode(b"HELO a\r\nQU"), Ok(Some(Found { frame: 0..6, used: 8 })));
/// assert_eq!(lines.decode(b"QU"), Ok(None));
///
/// let mut short = Lines::lf().with_line_bytes_max(4);
/// assert_eq!(short.decode(b"abcde"), Err(FrameError::LineTooLong { limit_bytes: 4 }));
///
/// let mut output = Vec::new();
/// lines.encode(b"250 ok", &mut output)?;
/// assert_eq!(output, b"250 ok\r\n");
/// assert!(lines.encode(b"250 ok\r\nRCPT TO: x", &mut output).is_err(), "nobody smuggles a line in");
/// # Ok::<(), shardwise::framing::EncodeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lines {
    end: End,
    line_bytes_max: usize,
    /// In the bytes seen last, no delimiter begins before this one.
    searched: usize,
}

#[derive(Clone, Debug)]
enum End {
    Delimiter(Cow<'static, [u8]>),
    /// LF, with a CR before it or not.
    Newline,
}

impl Lines {
    /// Lines that end with CR and LF, as most protocols have it. A CR or LF alone is part of the line.
    pub fn crlf() -> Self {
        Lines::delimited_by(b"\r\n")
    }

    /// Lines that end with LF. A CR before it is part of the line.
    pub fn lf() -> Self {
        Lines::delimited_by(b"\n")
    }

    /// Lines that end with LF or CR and LF, as somebody types them; CR and LF are sent.
    pub fn newline() -> Self {
        Lines { end: End::Newline, line_bytes_max: LINE_BYTES_MAX, searched: 0 }
    }

    /// Lines that end with `delimiter`.
    ///
    /// # Panics
    /// When `delimiter` is empty.
    pub fn delimited_by(delimiter: impl Into<Cow<'static, [u8]>>) -> Self {
        let delimiter = delimiter.into();
        assert!(!delimiter.is_empty(), "a delimiter has at least one byte");
        Lines { end: End::Delimiter(delimiter), line_bytes_max: LINE_BYTES_MAX, searched: 0 }
    }

    /// Changes how many bytes a line may have without its delimiter; 16,384 unless changed. A protocol's input is kept
    /// up to [`Config::input_bytes_max`](crate::Config::input_bytes_max), which should be larger.
    #[must_use]
    pub fn with_line_bytes_max(mut self, line_bytes_max: usize) -> Self {
        self.line_bytes_max = line_bytes_max;
        self
    }

    fn delimiter(&self) -> &[u8] {
        match &self.end {
            End::Delimiter(delimiter) => delimiter,
            End::Newline => b"\r\n",
        }
    }

    /// The first line of `bytes`, if its delimiter is there.
    fn find(&self, bytes: &[u8]) -> Option<Found> {
        match &self.end {
            End::Newline => {
                let end = find_byte(bytes, self.searched, b'\n')?;
                let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
                Some(Found { frame: 0..line.len(), used: end + 1 })
            }
            End::Delimiter(delimiter) => {
                let end = find(bytes, self.searched, delimiter)?;
                Some(Found { frame: 0..end, used: end + delimiter.len() })
            }
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines::crlf()
    }
}

impl Decoder for Lines {
    type Error = FrameError;

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Found>, FrameError> {
        let window_bytes = self.frame_bytes_max();
        let window = &bytes[..bytes.len().min(window_bytes)];
        match self.find(window) {
            Some(found) if found.frame.end <= self.line_bytes_max => {
                self.searched = 0;
                Ok(Some(found))
            }
            // The longest line and its delimiter would fit.
            None if window.len() < window_bytes => {
                self.searched = match &self.end {
                    End::Newline => window.len(),
                    // The beginning of a delimiter may have come.
                    End::Delimiter(delimiter) => window.len().saturating_sub(delimiter.len() - 1),
                };
                Ok(None)
            }
            Some(_) | None => Err(FrameError::LineTooLong { limit_bytes: self.line_bytes_max }),
        }
    }

    fn frame_bytes_max(&self) -> usize {
        self.line_bytes_max.saturating_add(self.delimiter().len())
    }

    fn restart(&mut self) {
        self.searched = 0;
    }
}

impl Encoder for Lines {
    type Error = EncodeError;

    /// # Errors
    /// [`EncodeError::TooLong`], and [`EncodeError::HoldsDelimiter`] when the peer would see the line end earlier: text
    /// of strangers in a line cannot become a line of its own.
    fn encode(&self, line: &[u8], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        if line.len() > self.line_bytes_max {
            return Err(EncodeError::TooLong { frame_bytes: line.len(), limit_bytes: self.line_bytes_max });
        }
        let begin = output.len();
        output.extend_from_slice(line);
        output.extend_from_slice(self.delimiter());
        // With the delimiter behind it, since the two together may hold one that begins earlier.
        let written = &output[begin..];
        let first = match &self.end {
            End::Newline => find_byte(written, 0, b'\n').filter(|at| *at < line.len()),
            End::Delimiter(delimiter) => find(written, 0, delimiter).filter(|at| *at < line.len()),
        };
        if let Some(position) = first {
            output.truncate(begin);
            return Err(EncodeError::HoldsDelimiter { position });
        }
        Ok(())
    }
}

/// Where `needle`, which is not empty, first begins at `from` or later.
fn find(bytes: &[u8], mut from: usize, needle: &[u8]) -> Option<usize> {
    loop {
        let at = find_byte(bytes, from, needle[0])?;
        if bytes[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Where `wanted` first lies at `from` or later.
fn find_byte(bytes: &[u8], from: usize, wanted: u8) -> Option<usize> {
    // Whole blocks without an early exit become vector instructions; only the block with the byte is looked at singly.
    let mut begin = from;
    for block in bytes.get(from..)?.chunks(BLOCK_BYTES) {
        if block.iter().fold(false, |seen, byte| seen | (*byte == wanted)) {
            return block.iter().position(|byte| *byte == wanted).map(|at| begin + at);
        }
        begin += block.len();
    }
    None
}

/// As long as Twisted's LineReceiver has it, and as SMTP, IRC and the like never need.
const LINE_BYTES_MAX: usize = 16_384;

/// Two vector registers of 16 bytes.
const BLOCK_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::framing::test_kit::{self, Outcome, decode_all, decode_in_pieces};

    fn kinds() -> Vec<Lines> {
        let own = [&b"\r\n"[..], b"\n", b"\0", b"--x--", b"aa", b"aab"].map(Lines::delimited_by);
        [Lines::default(), Lines::newline()].into_iter().chain(own).collect()
    }

    fn lines(outcome: Outcome) -> Vec<String> {
        assert_eq!(outcome.error, None);
        outcome.frames.into_iter().map(|frame| String::from_utf8(frame).unwrap()).collect()
    }

    #[test]
    fn each_delimiter_ends_its_own_lines_only() {
        let text = b"a\rb\nc\r\nd\n\r\n";
        assert_eq!(lines(decode_all(Lines::crlf(), text)), ["a\rb\nc", "d\n"]);
        assert_eq!(lines(decode_all(Lines::lf(), text)), ["a\rb", "c\r", "d", "\r"]);
        assert_eq!(lines(decode_all(Lines::newline(), text)), ["a\rb", "c", "d", ""]);
        assert_eq!(lines(decode_all(Lines::delimited_by(b"\n\r"), text)), ["a\rb\nc\r\nd"]);
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        for codec in kinds() {
            let codec = codec.with_line_bytes_max(7);
            let end = codec.delimiter().to_vec();
            let just = [b"1234567", &end[..], b"8", &end].concat();
            test_kit::in_every_split(&codec, &just, &[b"1234567", b"8"], None);
            let error = Some(FrameError::LineTooLong { limit_bytes: 7 });
            let over = [b"1", &end[..], b"12345678", &end].concat();
            test_kit::in_every_split(&codec, &over, &[b"1"], error.clone());
            test_kit::in_every_split(&codec, &[b'x'; 20], &[], error);
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit_and_again_after_that() {
        let mut codec = Lines::default();
        let mut bytes = vec![b'x'; 16_385];
        assert_eq!(codec.decode(&bytes), Ok(None), "a CR may follow, but the line is at its limit");
        bytes.push(b'x');
        let error = Err(FrameError::LineTooLong { limit_bytes: 16_384 });
        assert_eq!(codec.decode(&bytes), error);
        bytes.extend_from_slice(b"\r\n");
        assert_eq!(codec.decode(&bytes), error, "what follows does not mend it");
    }

    #[test]
    fn ten_thousand_lines_in_one_chunk_are_ten_thousand_lines() {
        let text = b"x\r\n".repeat(10_000);
        assert_eq!(decode_all(Lines::default(), &text).frames.len(), 10_000);
    }

    #[test]
    fn a_line_that_comes_byte_by_byte_is_not_searched_from_its_start_each_time() {
        let mut codec = Lines::default();
        let line = vec![b'x'; 16_000];
        for len in 1..=line.len() {
            assert_eq!(codec.decode(&line[..len]), Ok(None));
            assert_eq!(codec.searched, len - 1, "all but a possible CR");
        }
    }

    #[test]
    fn raw_bytes_may_hold_a_delimiter_and_lines_go_on_behind_them() {
        let text = b"DATA 5\r\n\r\n\r\nxQUIT\r\n";
        for piece_bytes in 1..=text.len() {
            let mut codec = Lines::default();
            let (mut raw, mut lines) = (Vec::new(), Vec::new());
            test_kit::feed(text, &[piece_bytes], |input| {
                loop {
                    if !lines.is_empty() && raw.len() < 5 {
                        let piece = codec.take_raw(input, 5 - raw.len());
                        raw.extend_from_slice(piece);
                        if raw.len() < 5 {
                            return;
                        }
                    }
                    let Some(line) = codec.next(input).unwrap() else { return };
                    lines.push(line.to_vec());
                }
            });
            assert_eq!(raw, b"\r\n\r\nx", "in pieces of {piece_bytes}");
            assert_eq!(lines, [&b"DATA 5"[..], b"QUIT"], "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn raw_bytes_taken_out_of_half_a_line_do_not_hide_the_delimiter_that_follows() {
        let mut codec = Lines::default();
        assert_eq!(codec.decode(b"abcdefgh"), Ok(None));
        let dry = crate::net::input::Dry::default();
        let mut input = crate::Input::new(b"abcdefgh\r\n", &dry);
        assert_eq!(codec.take_raw(&mut input, 8), b"abcdefgh");
        assert_eq!(codec.next(&mut input), Ok(Some(&b""[..])));
    }

    #[test]
    fn an_input_that_runs_dry_gives_no_line_until_it_is_resumed() {
        let dry = crate::net::input::Dry::default();
        let mut codec = Lines::default();
        let mut input = crate::Input::new(b"one\r\ntwo\r\nthr", &dry);
        assert_eq!(codec.next(&mut input), Ok(Some(&b"one"[..])));
        dry.set(true);
        assert_eq!(codec.next(&mut input), Ok(None));
        assert_eq!(codec.take_raw(&mut input, 9), b"");
        dry.set(false);
        assert_eq!(codec.next(&mut input), Ok(Some(&b"two"[..])));
        assert_eq!(codec.next(&mut input), Ok(None));
        dry.set(true);
        assert_eq!(codec.next(&mut input), Ok(None));
        dry.set(false);
        let mut input = crate::Input::new(b"three\r\n", &dry);
        assert_eq!(codec.next(&mut input), Ok(Some(&b"three"[..])));
    }

    #[test]
    fn a_line_that_holds_its_delimiter_is_not_sent() {
        let refused = |codec: &Lines, line: &[u8]| {
            let mut output = b"before".to_vec();
            let error = codec.encode(line, &mut output).unwrap_err();
            assert_eq!(output, b"before");
            error
        };
        let at = |position| EncodeError::HoldsDelimiter { position };
        assert_eq!(refused(&Lines::crlf(), b"a\r\nb"), at(1));
        assert_eq!(refused(&Lines::newline(), b"a\nb"), at(1));
        assert_eq!(refused(&Lines::delimited_by(b"aa"), b"xa"), at(1), "with the delimiter's own first byte");
        let long = Lines::lf().with_line_bytes_max(2);
        assert_eq!(refused(&long, b"abc"), EncodeError::TooLong { frame_bytes: 3, limit_bytes: 2 });
        let mut output = Vec::new();
        Lines::crlf().encode(b"a\nb\r", &mut output).unwrap();
        assert_eq!(lines(decode_all(Lines::crlf(), &output)), ["a\nb\r"]);
    }

    #[test]
    #[should_panic(expected = "a delimiter has at least one byte")]
    fn an_empty_delimiter_is_a_bug() {
        Lines::delimited_by(b"");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_pieces_make_no_difference(
            bytes in proptest::collection::vec(prop::sample::select(&b"ab\r\n-x\0"[..]), 0..200),
            pieces in test_kit::pieces(),
            limit in 0_usize..20,
        ) {
            for codec in kinds() {
                let codec = codec.with_line_bytes_max(limit);
                let whole = decode_all(codec.clone(), &bytes);
                prop_assert_eq!(decode_in_pieces(codec.clone(), &bytes, &pieces), whole.clone());
                prop_assert_eq!(decode_in_pieces(codec, &bytes, &[1]), whole);
            }
        }

        #[test]
        fn what_is_sent_is_what_is_read(
            lines in proptest::collection::vec(
                proptest::collection::vec(prop::sample::select(&b"ab\r\n-x\0"[..]), 0..40), 0..10),
            pieces in test_kit::pieces(),
        ) {
            for codec in kinds() {
                test_kit::round_trip(&codec, &lines, &pieces);
            }
        }

        #[test]
        fn a_byte_is_found_where_it_first_is(
            bytes in proptest::collection::vec(0_u8..6, 0..200), from in 0_usize..220,
        ) {
            let expected = (from..bytes.len()).find(|at| bytes[*at] == 5);
            prop_assert_eq!(find_byte(&bytes, from, 5), expected);
        }
    }
}
