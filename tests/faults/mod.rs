//! What the fault tests share: a server to break, clients on real sockets, and patience. Breaks nothing itself.
#![allow(dead_code, reason = "each test crate uses a part of it")]

pub(crate) mod traced;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use shardwise::{Config, Handle, Input, Listener, Protocol, Result, Running, Runtime, Shard, Transport};

/// Longer than any step takes on a loaded machine: a guard, not a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Says to a test that it is the child.
const CHILD: &str = "SHARDWISE_FAULT_CHILD";

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

pub(crate) fn itself(program: &mut Command, test: &str) {
    program.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
}

/// Runs `body` in a process of its own, which must end well.
pub(crate) fn in_a_child(test: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let mut program = Command::new(std::env::current_exe().unwrap());
    itself(&mut program, test);
    let output = program.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the child: {}\n{}\n{text}", output.status, {
        String::from_utf8_lossy(&output.stdout)
    });
}

/// Whether this machine lets a process trace its child; says so if not.
pub(crate) fn may_trace() -> bool {
    let traced =
        Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let may = traced.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: `strace` is not here, or not permitted");
    }
    may
}

pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How a server is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Protocol,
    Async,
}

pub(crate) const STYLES: [Style; 2] = [Style::Protocol, Style::Async];

/// A runtime that listens on one address.
pub(crate) struct Server {
    pub(crate) running: Running,
    pub(crate) addr: SocketAddr,
}

pub(crate) struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

/// Listens with an echo of this style.
pub(crate) fn echo(shard: &Shard, style: Style) -> Result<Listener> {
    Ok(match style {
        Style::Protocol => shard.listen_tcp("127.0.0.1:0", || Echo)?,
        Style::Async => shard.serve_tcp("127.0.0.1:0", async |mut stream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?,
    })
}

impl Server {
    /// Not pinned, since tests run side by side.
    pub(crate) fn start<L>(shards: usize, config: Config, listen: L) -> Server
    where
        L: Fn(&Shard) -> Result<Listener> + Send + Sync + 'static,
    {
        let bound = Arc::new(OnceLock::new());
        let tell = Arc::clone(&bound);
        let app = async move |shard: Shard| {
            let listener = listen(&shard)?;
            // All shards are members of one group: the address is the same.
            let _ = tell.set(listener.local_addr());
            Ok(())
        };
        let running = Runtime::new().shards(shards).pin(false).config(config).start(app).unwrap();
        Server { running, addr: *bound.get().unwrap() }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.running.handle()
    }

    /// A sum over all shards.
    pub(crate) fn sum(&self, of: impl Fn(&shardwise::ShardReport) -> u64) -> u64 {
        self.handle().report().iter().map(of).sum()
    }

    pub(crate) fn open(&self) -> u64 {
        self.sum(|report| report.open_connections)
    }

    /// Waits until no more than `count` connections are open.
    pub(crate) fn wait_open(&self, count: u64) {
        eventually(&format!("{count} open connections"), || self.open() == count);
    }

    /// Stops in order. Everything has been closed before, so nothing is forced.
    pub(crate) fn stop(self) {
        self.running.stop().unwrap();
        self.running.join().unwrap();
    }
}

/// A blocking client that never waits for ever.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    patient(TcpStream::connect_timeout(&addr, PATIENCE).unwrap())
}

/// A client from another address of the loopback network, so that ports do not run out.
pub(crate) fn connect_from(source: [u8; 4], addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&addr.into())?;
    Ok(patient(socket.into()))
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Ends `stream` with RST.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A connection that must not notice what happens to the others.
pub(crate) struct Canary {
    stream: TcpStream,
    pings: u32,
}

impl Canary {
    pub(crate) fn new(addr: SocketAddr) -> Canary {
        let mut canary = Canary { stream: connect(addr), pings: 0 };
        canary.ping();
        canary
    }

    /// One round trip.
    pub(crate) fn ping(&mut self) {
        self.pings += 1;
        let sent = self.pings.to_be_bytes();
        let mut answer = [0; 4];
        self.stream.write_all(&sent).unwrap();
        self.stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("ping {}: {error}", self.pings));
        assert_eq!(answer, sent, "ping {}", self.pings);
    }
}

/// Looks until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A time in which something is counted that must stay small.
pub(crate) fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| ((index + seed) % 251) as u8).collect()
}

/// A number from the environment, for runs heavier than the usual ones.
pub(crate) fn rounds(variable: &str, usual: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => usual,
    }
}
