//! `Framed` over streams that give and take what they like.

use std::collections::VecDeque;
use std::pin::pin;
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::net::framing::test_kit;
use crate::net::framing::{EncodeError, FrameError, LengthPrefixed, Lines, Netstrings};

/// Gives its chunks one after the other with a pause before each, and takes `room` bytes before each pause.
#[derive(Default)]
struct Fake {
    chunks: VecDeque<Vec<u8>>,
    about_to_give: bool,
    broken: bool,
    written: Vec<u8>,
    room: usize,
    left: usize,
}

impl Fake {
    fn reading(bytes: &[u8], pieces: &[usize]) -> Self {
        let mut chunks = VecDeque::new();
        let mut rest = bytes;
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, after) = rest.split_at(rest.len().min(*piece));
            chunks.push_back(chunk.to_vec());
            rest = after;
        }
        Fake { chunks, ..Fake::default() }
    }
}

impl ReadChunks for Fake {
    type Chunk = Vec<u8>;
    fn poll_read_chunk(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        self.about_to_give = !self.about_to_give;
        if self.about_to_give {
            return Poll::Pending;
        }
        match self.chunks.pop_front() {
            None if self.broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            chunk => Poll::Ready(Ok(chunk)),
        }
    }
}

impl WriteBytes for Fake {
    fn poll_write(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = self.left.min(bytes.len());
        if count == 0 {
            self.left = self.room;
            return Poll::Pending;
        }
        self.left -= count;
        self.written.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }
}

/// Polls `future` up to `times`.
fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..times {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
    }
    None
}

fn finish<F: Future>(future: F) -> F::Output {
    poll_times(future, 10_000).expect("it ends")
}

/// All frames, each asked for by a future that is dropped once while it waits, and the error at the end.
fn receive_all<C: Decoder>(framed: &mut Framed<Fake, C>) -> (Vec<Vec<u8>>, Option<ReceiveError<C::Error>>) {
    let mut frames = Vec::new();
    loop {
        if let Some(outcome) = poll_times(framed.next(), 1) {
            match outcome {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }
}

#[test]
fn frames_come_whole_from_any_chunks() {
    let bytes = b"5:hello,0:,3:a:b,";
    for piece in 1..=bytes.len() {
        let mut framed = Framed::new(Fake::reading(bytes, &[piece]), Netstrings::new());
        let (frames, error) = receive_all(&mut framed);
        assert_eq!(frames, [&b"hello"[..], b"", b"a:b"], "in pieces of {piece}");
        assert!(error.is_none(), "in pieces of {piece}");
    }
}

#[test]
fn a_frame_is_lent_from_the_chunk_it_came_in() {
    let stream = Fake::reading(b"one\r\ntwo\r\n", &[10]);
    let chunk = stream.chunks[0].as_ptr_range();
    let mut framed = Framed::new(stream, Lines::default());
    for expected in [b"one", b"two"] {
        let frame = finish(framed.next()).unwrap().unwrap();
        assert_eq!(frame, expected);
        assert!(chunk.contains(&frame.as_ptr()), "it was copied");
    }
}

#[test]
fn between_frames_nothing_is_kept() {
    let mut framed = Framed::new(Fake::reading(b"one\r\ntw", &[5, 2]), Lines::default());
    finish(framed.next()).unwrap().unwrap();
    assert!(poll_times(framed.next(), 1).is_none());
    assert!(matches!(framed.unread, Unread::Nothing), "while it waits for a frame");
    assert!(poll_times(framed.next(), 1).is_none());
    assert!(matches!(framed.unread, Unread::Kept { .. }), "half a frame is copied, and its chunk given back");
}

#[test]
fn an_end_inside_a_frame_is_told_and_the_bytes_are_there() {
    let mut framed = Framed::new(Fake::reading(b"one\r\ntwo", &[3]), Lines::default());
    let (frames, error) = receive_all(&mut framed);
    assert_eq!(frames, [b"one"]);
    assert!(matches!(error, Some(ReceiveError::Incomplete { unread_bytes: 3 })), "{error:?}");
    assert_eq!(framed.unread(), b"two");
    assert_eq!(framed.into_parts().unread, b"two");
}

#[test]
fn what_is_wrong_stays_wrong() {
    let mut framed = Framed::new(Fake::reading(b"1:a,x", &[2]), Netstrings::new());
    assert_eq!(finish(framed.next()).unwrap(), Some(&b"a"[..]));
    for _ in 0..2 {
        let error = finish(framed.next()).unwrap_err();
        let expected = FrameError::NotALength { position: 0, found: b'x' };
        assert!(matches!(&error, ReceiveError::Frame(found) if *found == expected), "{error:?}");
    }
    let mut framed = Framed::new(Fake { broken: true, ..Fake::default() }, Netstrings::new());
    assert!(matches!(finish(framed.next()), Err(ReceiveError::Io(_))));
}

#[test]
fn a_codec_that_never_decides_is_stopped_at_its_own_limit() {
    struct Undecided;
    impl Decoder for Undecided {
        type Error = FrameError;
        fn decode(&mut self, _: &[u8]) -> Result<Option<crate::net::framing::Found>, FrameError> {
            Ok(None)
        }
        fn frame_bytes_max(&self) -> usize {
            100
        }
    }
    let mut framed = Framed::new(Fake::reading(&[0; 1000], &[30]), Undecided);
    let (_, error) = receive_all(&mut framed);
    assert!(matches!(error, Some(ReceiveError::Undecided { limit_bytes: 100 })), "{error:?}");
    assert_eq!(framed.unread().len(), 120, "one chunk beyond it at the most");
}

#[test]
fn raw_bytes_come_between_frames() {
    let bytes = b"DATA 5\r\n\r\n\r\nxQUIT\r\n";
    for piece in 1..=bytes.len() {
        let mut framed = Framed::new(Fake::reading(bytes, &[piece]), Lines::default());
        assert_eq!(finish(framed.next()).unwrap(), Some(&b"DATA 5"[..]));
        let mut raw = Vec::new();
        while let Some(bytes) = finish(framed.next_raw(5 - raw.len())).unwrap() {
            raw.extend_from_slice(bytes);
        }
        assert_eq!(raw, b"\r\n\r\nx", "in pieces of {piece}");
        assert_eq!(finish(framed.next()).unwrap(), Some(&b"QUIT"[..]), "in pieces of {piece}");
        assert_eq!(finish(framed.next_raw(1)).unwrap(), None, "the end of input");
    }
}

#[test]
fn another_codec_goes_on_where_the_first_one_stopped() {
    let mut lines = Framed::new(Fake::reading(b"BINARY\r\n\x02hi\x01", &[12]), Lines::default());
    assert_eq!(finish(lines.next()).unwrap(), Some(&b"BINARY"[..]));
    assert_eq!(lines.unread(), b"\x02hi\x01");
    let mut messages = lines.with_codec(LengthPrefixed::u8());
    assert_eq!(finish(messages.next()).unwrap(), Some(&b"hi"[..]));
    assert_eq!(messages.unread(), b"\x01");
}

#[test]
fn a_send_that_is_dropped_half_way_tears_no_frame() {
    for polls in 0..6 {
        let mut framed = Framed::new(Fake { room: 3, ..Fake::default() }, Lines::default());
        assert!(poll_times(framed.send(b"a long line"), polls.min(4)).is_none(), "{polls} polls");
        finish(framed.send(b"next")).unwrap();
        let written = std::mem::take(&mut framed.stream_mut().written);
        let expected: &[u8] = if polls == 0 { b"next\r\n" } else { b"a long line\r\nnext\r\n" };
        assert_eq!(written.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{polls} polls");
        assert_eq!(framed.unsent.capacity(), 0, "nothing is kept once it is sent");
    }
}

#[test]
fn a_frame_that_cannot_be_sent_leaves_the_stream_as_it_was() {
    let mut framed = Framed::new(Fake { room: 9, ..Fake::default() }, Lines::default());
    let error = finish(framed.send(b"a\r\nb")).unwrap_err();
    assert!(matches!(error, SendError::Frame(EncodeError::HoldsDelimiter { position: 1 })), "{error:?}");
    finish(framed.send(b"ok")).unwrap();
    assert_eq!(framed.stream().written, b"ok\r\n");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_task_sees_the_frames_that_a_protocol_sees(
        bytes in proptest::collection::vec(prop::sample::select(&b"ab\r\n"[..]), 0..200),
        pieces in test_kit::pieces(),
    ) {
        let codec = Lines::default().with_line_bytes_max(20);
        let expected = test_kit::decode_all(codec.clone(), &bytes);
        let mut framed = Framed::new(Fake::reading(&bytes, &pieces), codec);
        let (frames, error) = receive_all(&mut framed);
        prop_assert_eq!(frames, expected.frames);
        match error {
            Some(ReceiveError::Frame(error)) => prop_assert_eq!(Some(error), expected.error),
            Some(ReceiveError::Incomplete { unread_bytes }) => {
                prop_assert_eq!((unread_bytes, None), (expected.unread_bytes, expected.error));
            }
            None => prop_assert_eq!((0, None), (expected.unread_bytes, expected.error)),
            Some(other) => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn what_one_sends_the_other_receives(
        sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..10),
        pieces in test_kit::pieces(),
        room in 1_usize..40,
    ) {
        let mut sender = Framed::new(Fake { room, ..Fake::default() }, Netstrings::new());
        for frame in &sent {
            finish(sender.send(frame)).unwrap();
        }
        let stream = Fake::reading(&sender.stream().written, &pieces);
        let (received, error) = receive_all(&mut Framed::new(stream, Netstrings::new()));
        prop_assert!(error.is_none());
        prop_assert_eq!(received, sent);
    }
}
