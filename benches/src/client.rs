//! The closed-loop client: many connections on one thread, every reply checked. Does not compare servers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send, socket_with,
    sockopt,
};
use rustix::time::Timespec;

use crate::Result;
use crate::servers::unix_name;

/// What the connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    connections: usize,
    message_bytes: usize,
    /// Messages written at once; the next ones follow when all have come back.
    depth: usize,
    /// A connection per message, closed by the client when the echo is there.
    reconnect: bool,
    /// Datagrams instead of connections. None may get lost, so there must be few enough for the server's buffer.
    datagrams: bool,
    /// Over UNIX sockets.
    unix: bool,
}

impl Workload {
    /// As many connections for each of `shards`.
    pub(crate) fn times(self, shards: usize) -> Self {
        Workload { connections: self.connections * shards, ..self }
    }

    /// What is in flight when every connection is busy.
    pub(crate) fn requests_at_once(self) -> u64 {
        (self.connections * self.depth) as u64
    }

    /// The plainest one: what instruction counts are stated for.
    pub(crate) const ECHO_64: Workload = Workload {
        connections: 64,
        message_bytes: 64,
        depth: 1,
        reconnect: false,
        datagrams: false,
        unix: false,
    };
}

impl FromStr for Workload {
    type Err = String;

    /// `CONNECTIONSxBYTES`, `unixCONNECTIONSxBYTES`, `udpSOCKETSxBYTES`, `pipelinedDEPTH` (64 connections, 64 bytes) or `connect`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = |number: &str| match number.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?}: expected 64x64, pipelined16, connect or the like")),
            Ok(number) => Ok(number),
        };
        if text == "connect" {
            return Ok(Workload { reconnect: true, ..Workload::ECHO_64 });
        }
        if let Some(depth) = text.strip_prefix("pipelined") {
            return Ok(Workload { depth: parse(depth)?, ..Workload::ECHO_64 });
        }
        let (datagrams, unix, sizes) = match (text.strip_prefix("udp"), text.strip_prefix("unix")) {
            (Some(sizes), _) => (true, false, sizes),
            (_, Some(sizes)) => (false, true, sizes),
            _ => (false, false, text),
        };
        let (connections, bytes) = sizes.split_once('x').unwrap_or((sizes, ""));
        let workload = Workload {
            connections: parse(connections)?,
            message_bytes: parse(bytes)?,
            depth: 1,
            reconnect: false,
            datagrams,
            unix,
        };
        if workload.message_bytes < STAMP_BYTES {
            return Err(format!("{text:?}: a message has room for {STAMP_BYTES} bytes of stamp at least"));
        }
        Ok(workload)
    }
}

/// When a run stops sending. What is in flight then is still awaited and counted.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Elapsed(Duration),
    /// Rounded up to whole batches.
    Requests(u64),
}

/// What one run did.
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
}

/// The connections to one server, kept over all its slices.
pub(crate) struct Crowd {
    epoll: OwnedFd,
    server: SocketAddrV4,
    workload: Workload,
    connections: Vec<Connection>,
    /// What every batch looks like behind its stamp.
    pattern: Vec<u8>,
    received: Vec<u8>,
    events: Vec<Event>,
    /// Rotates the source address of short connections.
    opened: u64,
}

struct Connection {
    socket: OwnedFd,
    batch: u64,
    started: Instant,
    bytes_sent: usize,
    bytes_received: usize,
    in_flight: bool,
}

impl Crowd {
    /// Opens the connections, unless the workload opens one per message.
    pub(crate) fn connect(port: u16, workload: Workload) -> Result<Self> {
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut random = fastrand::Rng::with_seed(u64::from(port));
        let mut crowd = Crowd {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            server,
            workload,
            connections: Vec::with_capacity(workload.connections),
            pattern: (0..workload.message_bytes * workload.depth).map(|_| random.u8(..)).collect(),
            received: vec![0; RECEIVE_BUFFER_BYTES],
            events: Vec::with_capacity(1024),
            opened: 0,
        };
        while !workload.reconnect && crowd.connections.len() < workload.connections {
            let key = crowd.connections.len();
            let socket = crowd.open(key)?;
            crowd.connections.push(Connection::new(socket));
        }
        Ok(crowd)
    }

    /// Keeps every connection busy until `until`. Adds a latency (ns) per batch to `latencies`.
    ///
    /// # Errors
    /// When a connection breaks, a reply is not what was sent, or nothing moves for five seconds.
    pub(crate) fn run(&mut self, until: Until, latencies: &mut Histogram<u64>) -> Result<Done> {
        self.run_and_tell(until, latencies, || Ok(()))
    }

    /// One batch on every connection; `when_written` is called when all are written, before any is read back.
    ///
    /// # Errors
    /// As [`run`](Self::run), and what `when_written` returns.
    pub(crate) fn run_one_round(&mut self, when_written: impl FnOnce() -> Result<()>) -> Result<Done> {
        let round = Until::Requests(self.workload.requests_at_once());
        self.run_and_tell(round, &mut latencies(), when_written)
    }

    fn run_and_tell(
        &mut self,
        until: Until,
        latencies: &mut Histogram<u64>,
        when_started: impl FnOnce() -> Result<()>,
    ) -> Result<Done> {
        let mut run = Run::new(until);
        if self.workload.reconnect {
            self.connections.clear();
        }
        for key in 0..self.workload.connections {
            if !run.may_start(self.workload.depth) {
                break;
            }
            if self.workload.reconnect {
                let socket = self.open(key)?;
                self.connections.push(Connection::new(socket));
            }
            self.start_batch(key, &mut run)?;
        }
        when_started()?;
        let mut events = std::mem::take(&mut self.events);
        while run.in_flight > 0 {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE)) {
                Ok(0) => return Err(format!("nothing moved for 5 s, {} in flight", run.in_flight).into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.serve(event.data.u64() as usize, event.flags, &mut run, latencies)?;
            }
        }
        self.events = events;
        let requests = run.batches_done * self.workload.depth as u64;
        Ok(Done { requests, elapsed: run.started.elapsed() })
    }

    fn serve(
        &mut self,
        key: usize,
        flags: EventFlags,
        run: &mut Run,
        latencies: &mut Histogram<u64>,
    ) -> Result<()> {
        let batch_bytes = self.pattern.len();
        let connection = &mut self.connections[key];
        if !connection.in_flight {
            return if flags.intersects(EventFlags::IN | EventFlags::HUP) {
                Err(format!("connection {key}: bytes or an end that nothing asked for").into())
            } else {
                Ok(()) // only writable
            };
        }
        connection.send(&mut self.pattern, key)?;
        loop {
            let room = self.received.len().min(batch_bytes);
            let received = match recv(&connection.socket, &mut self.received[..room], RecvFlags::empty()) {
                Ok((0, _)) => return Err(format!("connection {key}: the server closed it").into()),
                Ok((received, _)) => received,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(format!("connection {key}: {error}").into()),
            };
            connection.check(key, &self.received[..received], &mut self.pattern)?;
            if connection.bytes_received == batch_bytes {
                break;
            }
            if received < room {
                return Ok(());
            }
        }
        connection.in_flight = false;
        run.now = Instant::now();
        run.batches_done += 1;
        run.in_flight -= 1;
        latencies.saturating_record((run.now - connection.started).as_nanos() as u64);
        if run.may_start(self.workload.depth) {
            if self.workload.reconnect {
                let batch = connection.batch;
                let socket = self.open(key)?;
                self.connections[key] = Connection { batch, started: run.now, ..Connection::new(socket) };
            }
            self.start_batch(key, run)?;
        }
        Ok(())
    }

    fn start_batch(&mut self, key: usize, run: &mut Run) -> Result<()> {
        run.batches_started += 1;
        run.in_flight += 1;
        let connection = &mut self.connections[key];
        connection.batch += 1;
        connection.bytes_sent = 0;
        connection.bytes_received = 0;
        connection.in_flight = true;
        if !self.workload.reconnect {
            connection.started = run.now; // a reconnecting one started when it began to connect
        }
        connection.send(&mut self.pattern, key)
    }

    fn open(&mut self, key: usize) -> Result<OwnedFd> {
        if self.workload.unix {
            return open_unix(&self.epoll, self.server.port(), key);
        }
        if self.workload.datagrams {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
            connect(&socket, &self.server)?;
            // Asked for room, too, epoll would tell of every datagram that has left.
            let reading = EventFlags::IN | EventFlags::ET;
            epoll::add(&self.epoll, &socket, EventData::new_u64(key as u64), reading)?;
            return Ok(socket);
        }
        // The client closes first, so its ports linger for a minute. 28,000 of them last seconds at these
        // rates, hence many source addresses.
        self.opened += 1;
        open_stream(&self.epoll, self.server, key, self.opened)
    }
}

/// Begins to connect to `server`; what happens is told under `key`. `number` chooses the source address.
pub(crate) fn open_stream(epoll: &OwnedFd, server: SocketAddrV4, key: usize, number: u64) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    let source = Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1);
    bind(&socket, &SocketAddrV4::new(source, 0))?;
    match connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(format!("connect to {server}: {error}").into()),
    }
    watch_both(epoll, socket, key)
}

/// Connects to the UNIX server that goes by the number `port`; its queue is longer than any workload here.
fn open_unix(epoll: &OwnedFd, port: u16, key: usize) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &unix_name(port)?)?;
    watch_both(epoll, socket, key)
}

/// Edge-triggered: registered once for both ways.
fn watch_both(epoll: &OwnedFd, socket: OwnedFd, key: usize) -> Result<OwnedFd> {
    let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(epoll, &socket, EventData::new_u64(key as u64), both)?;
    Ok(socket)
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Connection {
            socket,
            batch: 0,
            started: Instant::now(),
            bytes_sent: 0,
            bytes_received: 0,
            in_flight: false,
        }
    }

    /// Sends what is left of the batch, as far as the kernel takes it.
    fn send(&mut self, pattern: &mut [u8], key: usize) -> Result<()> {
        if self.bytes_sent == pattern.len() {
            return Ok(());
        }
        pattern[..STAMP_BYTES].copy_from_slice(&stamp(key, self.batch));
        while self.bytes_sent < pattern.len() {
            match send(&self.socket, &pattern[self.bytes_sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.bytes_sent += sent,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(format!("connection {key}: {error}").into()),
            }
        }
        Ok(())
    }

    /// Length and stamp are checked always, every byte of one batch in [`SAMPLED_EVERY`].
    fn check(&mut self, key: usize, received: &[u8], pattern: &mut [u8]) -> Result<()> {
        let start = self.bytes_received;
        let end = start + received.len();
        if end > self.bytes_sent {
            return Err(format!("connection {key}: {end} bytes came back of {} sent", self.bytes_sent).into());
        }
        let checked_bytes =
            if self.batch.is_multiple_of(SAMPLED_EVERY) { received.len() } else { STAMP_BYTES };
        if start < STAMP_BYTES || checked_bytes == received.len() {
            pattern[..STAMP_BYTES].copy_from_slice(&stamp(key, self.batch));
            let checked_bytes = checked_bytes.min(received.len());
            if received[..checked_bytes] != pattern[start..start + checked_bytes] {
                return Err(format!("connection {key}: batch {} came back changed", self.batch).into());
            }
        }
        self.bytes_received = end;
        Ok(())
    }
}

pub(crate) fn stamp(key: usize, batch: u64) -> [u8; STAMP_BYTES] {
    (((key as u64) << 40) ^ batch).to_le_bytes()
}

/// One run of a closed loop, and how far it has come.
pub(crate) struct Run {
    until: Until,
    pub(crate) started: Instant,
    pub(crate) now: Instant,
    pub(crate) batches_started: u64,
    pub(crate) batches_done: u64,
    pub(crate) in_flight: usize,
}

impl Run {
    pub(crate) fn new(until: Until) -> Self {
        let started = Instant::now();
        Run { until, started, batches_started: 0, batches_done: 0, in_flight: 0, now: started }
    }

    pub(crate) fn may_start(&self, depth: usize) -> bool {
        match self.until {
            Until::Elapsed(duration) => self.now - self.started < duration,
            Until::Requests(requests) => self.batches_started * (depth as u64) < requests,
        }
    }
}

/// An empty histogram of nanoseconds, up to 10 s at three digits.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("the bounds are sound")
}

/// Connection and batch number, at the front of every batch: bytes of another connection are noticed.
pub(crate) const STAMP_BYTES: usize = 8;
pub(crate) const SAMPLED_EVERY: u64 = 64;
/// Nothing moving for longer than this is an error.
pub(crate) const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
const RECEIVE_BUFFER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn a_server_that_changes_one_byte_is_caught() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 64];
            while stream.read_exact(&mut buffer).is_ok() {
                buffer[3] ^= 1;
                stream.write_all(&buffer).unwrap();
            }
        });
        let workload: Workload = "1x64".parse().unwrap();
        let mut crowd = Crowd::connect(port, workload).unwrap();
        let result = crowd.run(Until::Requests(1000), &mut latencies());
        assert!(result.err().unwrap().to_string().contains("came back changed"));
        drop(crowd);
        server.join().unwrap();
    }

    #[test]
    fn replies_in_pieces_are_counted_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = [0; 7];
            while let Ok(received @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..received]).unwrap();
            }
        });
        let workload: Workload = "1x100".parse().unwrap();
        let mut crowd = Crowd::connect(port, workload).unwrap();
        let mut latencies = latencies();
        let done = crowd.run(Until::Requests(200), &mut latencies).unwrap();
        assert_eq!((done.requests, latencies.len()), (200, 200));
        drop(crowd);
        server.join().unwrap();
    }

    #[test]
    fn a_round_is_written_as_a_whole_before_the_first_reply_is_read() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let workload: Workload = "3x64".parse().unwrap();
        let mut crowd = Crowd::connect(port, workload).unwrap();
        let mut streams: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        for _ in 0..2 {
            let echo_all = || {
                for stream in &mut streams {
                    let mut message = [0; 64];
                    stream.read_exact(&mut message)?;
                    stream.write_all(&message)?;
                }
                Ok(())
            };
            assert_eq!(crowd.run_one_round(echo_all).unwrap().requests, 3);
        }
    }

    #[test]
    fn workloads_are_read_as_the_tables_write_them() {
        let parse = |text: &str| text.parse::<Workload>();
        assert_eq!(parse("64x64"), Ok(Workload::ECHO_64));
        assert_eq!(parse("pipelined16"), Ok(Workload { depth: 16, ..Workload::ECHO_64 }));
        assert_eq!(parse("connect"), Ok(Workload { reconnect: true, ..Workload::ECHO_64 }));
        assert_eq!(parse("udp64x64"), Ok(Workload { datagrams: true, ..Workload::ECHO_64 }));
        assert_eq!(parse("unix64x64"), Ok(Workload { unix: true, ..Workload::ECHO_64 }));
        for wrong in ["", "64", "0x64", "64x7", "pipelined", "x"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
