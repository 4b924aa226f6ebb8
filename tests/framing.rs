//! Frames over connections, in both styles, over every driver.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use shardwise::framing::{
    Decoder, Encoder, Framed, LengthPrefixed, Lines, ReadChunks, ReceiveError, WriteBytes,
};
use shardwise::testing::on_every_driver;
use shardwise::{Chunk, CloseReason, Input, Protocol, Result, Shard, TcpStream, Transport};

/// Upper-cases lines. `RAW n` announces n raw bytes, which come back as they are; `WAIT` pauses for a while.
#[derive(Default)]
struct Shouter {
    lines: Lines,
    raw_left: usize,
    told: Rc<RefCell<Option<CloseReason>>>,
}

impl Protocol for Shouter {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        loop {
            if self.raw_left > 0 {
                let raw = self.lines.take_raw(input, self.raw_left);
                self.raw_left -= raw.len();
                transport.write(raw)?;
                if self.raw_left > 0 {
                    return Ok(());
                }
            }
            let Some(line) = self.lines.next(input)? else { return Ok(()) };
            if let Some(count) = line.strip_prefix(b"RAW ") {
                self.raw_left = std::str::from_utf8(count)?.parse()?;
                continue;
            }
            if line == b"WAIT" {
                transport.pause_reading();
                let transport = transport.clone();
                drop(transport.shard().clone().call_later(Duration::from_millis(5), move |_: &Shard| {
                    transport.resume_reading();
                }));
                continue;
            }
            let mut answer = Vec::new();
            self.lines.encode(&line.to_ascii_uppercase(), &mut answer)?;
            transport.write(&answer)?;
        }
    }

    fn disconnected(&mut self, reason: CloseReason) {
        *self.told.borrow_mut() = Some(reason);
    }
}

async fn read_to_end(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.read_chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

const SCRIPT: &[u8] = b"one\r\nRAW 6\r\n\r\nab\r\ntwo\r\nWAIT\r\nthree\r\nWAIT\r\nWAIT\r\nRAW 0\r\nfour\r\n";
const ANSWER: &[u8] = b"ONE\r\n\r\nab\r\nTWO\r\nTHREE\r\nFOUR\r\n";

#[test]
fn a_protocol_takes_lines_and_raw_bytes_and_pauses_between_them() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", Shouter::default)?;
        for piece in [1, 2, 7, SCRIPT.len()] {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.set_nodelay(true)?;
            for bytes in SCRIPT.chunks(piece) {
                client.write_all(bytes).await?;
                client.flush().await?;
            }
            let mut answer = vec![0; ANSWER.len()];
            client.read_exact(&mut answer).await?;
            assert_eq!(answer.escape_ascii().to_string(), ANSWER.escape_ascii().to_string());
            client.shutdown_write();
            assert!(read_to_end(&mut client).await?.is_empty(), "nothing came twice");
        }
        Ok(())
    });
}

#[test]
fn a_line_that_is_too_long_closes_the_connection_and_says_so() {
    on_every_driver(async |env| {
        let told = Rc::new(RefCell::new(None));
        let shared = Rc::clone(&told);
        let listener = env
            .shard()
            .listen_tcp("127.0.0.1:0", move || Shouter { told: Rc::clone(&shared), ..Shouter::default() })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"hello\r\n").await?;
        client.write_all(&[b'x'; 20_000]).await?;
        assert_eq!(read_to_end(&mut client).await?, b"HELLO\r\n", "what came before is answered");
        let reason = told.take().expect("the protocol was told");
        assert_eq!(reason.to_string(), "the protocol failed: a line is longer than 16384 bytes");
        Ok(())
    });
}

#[test]
fn a_task_takes_lines_and_raw_bytes() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |stream: TcpStream| {
            let mut lines = Framed::new(stream, Lines::default());
            while let Some(line) = lines.next().await? {
                if let Some(count) = line.strip_prefix(b"RAW ") {
                    let mut left: usize = std::str::from_utf8(count)?.parse()?;
                    while let Some(raw) = lines.next_raw(left).await? {
                        let raw = raw.to_vec();
                        left -= raw.len();
                        lines.stream_mut().write_all(&raw).await?;
                    }
                } else if line != b"WAIT" {
                    let answer = line.to_ascii_uppercase();
                    lines.send(&answer).await?;
                }
            }
            Ok(())
        })?;
        for piece in [1, 2, 7, SCRIPT.len()] {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            for bytes in SCRIPT.chunks(piece) {
                client.write_all(bytes).await?;
                client.flush().await?;
            }
            client.shutdown_write();
            let answer = read_to_end(&mut client).await?;
            assert_eq!(answer.escape_ascii().to_string(), ANSWER.escape_ascii().to_string());
        }
        Ok(())
    });
}

#[test]
fn frames_larger_than_a_read_buffer_travel_whole_both_ways() {
    on_every_driver(async |env| {
        let codec = || LengthPrefixed::u32().with_frame_bytes_max(300_000);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            let mut messages = Framed::new(stream, codec());
            while let Some(message) = messages.next().await? {
                let answer = message.to_vec();
                messages.send(&answer).await?;
            }
            Ok(())
        })?;
        let mut client = Framed::new(TcpStream::connect(listener.local_addr()).await?, codec());
        for len in [0, 1, 65_536, 300_000] {
            let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            client.send(&sent).await?;
            assert!(client.next().await? == Some(&sent[..]), "a frame of {len} bytes");
        }
        Ok(())
    });
}

#[test]
fn a_peer_that_leaves_within_a_frame_is_told_apart_from_one_that_is_done() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.write_all(b"whole\r\nhalf").await?;
            Ok(())
        })?;
        let mut client = Framed::new(TcpStream::connect(listener.local_addr()).await?, Lines::default());
        assert_eq!(client.next().await?, Some(&b"whole"[..]));
        let error = client.next().await.unwrap_err();
        assert!(matches!(error, ReceiveError::Incomplete { unread_bytes: 4 }), "{error}");
        assert_eq!(client.unread(), b"half");
        Ok(())
    });
}

/// A stream that says how much was read from it.
struct Counted {
    stream: TcpStream,
    received: Rc<Cell<usize>>,
}

impl ReadChunks for Counted {
    type Chunk = Chunk;

    fn poll_read_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let chunk = self.stream.poll_read_chunk(context);
        if let Poll::Ready(Ok(Some(chunk))) = &chunk {
            self.received.set(self.received.get() + chunk.len());
        }
        chunk
    }

    fn set_within_frame(&mut self, within: bool) {
        self.stream.set_within_frame(within);
    }
}

impl WriteBytes for Counted {
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(context, bytes)
    }
}

#[test]
fn a_drain_lets_half_a_frame_come_whole_and_then_ends_the_input() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let received = Rc::new(Cell::new(0));
        let shared = Rc::clone(&received);
        let listener = shard.serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            let stream = Counted { stream, received: Rc::clone(&shared) };
            let mut lines = Framed::new(stream, Lines::default());
            while let Some(line) = lines.next().await? {
                let answer = line.to_ascii_uppercase();
                lines.send(&answer).await?;
            }
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.set_ends_on_drain(false);
        client.write_all(b"half a").await?;
        while received.get() < 6 {
            shard.sleep(Duration::from_millis(1)).await;
        }
        shard.stop()?;
        shard.sleep(Duration::from_millis(5)).await;
        client.write_all(b" frame\r\n").await?;
        assert_eq!(read_to_end(&mut client).await?, b"HALF A FRAME\r\n");
        Ok(())
    });
}

#[test]
fn a_drain_ends_the_wait_for_a_raw_body_unless_that_is_switched_off() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let received = Rc::new(Cell::new(0));
        let begun = Rc::clone(&received);
        let listener = shard.serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            let mut lines = Framed::new(stream, Lines::default());
            let whole = lines.next().await? == Some(&b"WHOLE"[..]);
            lines.stream_mut().set_ends_on_drain(!whole);
            let mut body = Vec::new();
            while let Some(raw) = lines.next_raw(8 - body.len()).await? {
                body.extend_from_slice(raw);
                begun.set(begun.get() + raw.len());
            }
            body.push(b'.');
            lines.stream_mut().write_all(&body).await?;
            Ok(())
        })?;
        let mut clients = Vec::new();
        for command in ["WHOLE\r\nhalf", "HALF\r\nhalf"] {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.set_ends_on_drain(false);
            client.write_all(command.as_bytes()).await?;
            clients.push(client);
        }
        while received.get() < 8 {
            shard.sleep(Duration::from_millis(1)).await;
        }
        shard.stop()?;
        let [mut whole, mut half] = clients.try_into().unwrap();
        assert_eq!(read_to_end(&mut half).await?, b"half.", "the wait has ended");
        whole.write_all(b"rest").await?;
        assert_eq!(read_to_end(&mut whole).await?, b"halfrest.");
        Ok(())
    });
}

/// Gives lines back. Whether a drain lets half a line come whole, `finishes` says.
#[derive(Default)]
struct Returner {
    lines: Lines,
    finishes: bool,
    within_frame: bool,
    draining: bool,
    seen: Rc<Cell<usize>>,
}

impl Protocol for Returner {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        while let Some(line) = self.lines.next(input)? {
            transport.write(line)?;
        }
        self.within_frame = !input.bytes().is_empty();
        self.seen.set(self.seen.get().max(input.bytes().len()));
        if self.draining && !self.within_frame {
            transport.close();
        }
        Ok(())
    }

    fn draining(&mut self, transport: &Transport) -> Result<()> {
        self.draining = true;
        if !(self.finishes && self.within_frame) {
            transport.close();
        }
        Ok(())
    }
}

#[test]
fn a_protocol_loses_half_a_frame_at_the_drain_unless_it_stays_open_for_the_rest() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let mut clients = Vec::new();
        for finishes in [false, true] {
            let seen = Rc::new(Cell::new(0));
            let shown = Rc::clone(&seen);
            let listener = shard.listen_tcp("127.0.0.1:0", move || Returner {
                finishes,
                seen: Rc::clone(&shown),
                ..Returner::default()
            })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.set_ends_on_drain(false);
            client.write_all(b"whole\r\nhalf").await?;
            while seen.get() < 4 {
                shard.sleep(Duration::from_millis(1)).await;
            }
            clients.push(client);
        }
        shard.stop()?;
        let [mut loses, mut keeps] = clients.try_into().unwrap();
        assert_eq!(read_to_end(&mut loses).await?, b"whole");
        keeps.write_all(b" a line\r\n").await?;
        assert_eq!(read_to_end(&mut keeps).await?, b"wholehalf a line");
        Ok(())
    });
}
