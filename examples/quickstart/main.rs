//! A first look: an echo server on every core, and clients on the same cores that keep it busy for a few seconds.
//! Prints what each shard has done.
#![allow(unreachable_pub, reason = "an example is a crate of its own")]

#[path = "../common/mod.rs"]
mod common;
mod histogram;
mod report;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use shardwise::{App, Handle, Incoming, Input, Protocol, Result, Shard, ShardId, TcpStream, Transport};

use histogram::Histogram;

#[derive(clap::Args)]
struct Own {
    /// How long the clients ask, in seconds, 1 to 3600
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_up_to::<3600>, allow_negative_numbers = true)]
    seconds: u64,

    /// How many connections the clients open, 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_up_to::<10_000>, allow_negative_numbers = true)]
    connections: u64,
}

fn main() -> ExitCode {
    let (flags, own) =
        common::parse_or_exit::<Own>("Shows what a server on every core does on this machine.", 0);
    let addr = flags.addr_or_exit("the clients in here speak plain TCP");
    let seconds = Duration::from_secs(own.seconds);
    let board = Arc::new(Board::default());
    let show = FirstLook { addr, seconds, connections: own.connections as usize, board: Arc::clone(&board) };
    let progress = report::Progress::start(Arc::clone(&board), seconds);
    common::output::log_to_stderr();
    let outcome = flags.runtime().run(show);
    progress.stop();
    if outcome.is_ok() {
        report::print(&board);
    }
    common::runtime::exit_code(outcome)
}

/// The server and its clients.
struct FirstLook {
    addr: SocketAddr,
    seconds: Duration,
    connections: usize,
    board: Arc<Board>,
}

/// What the shards find out, for the main thread to print.
#[derive(Default)]
struct Board {
    handle: OnceLock<Handle>,
    /// Which shard serves the client at an address.
    served_by: Mutex<HashMap<SocketAddr, ShardId>>,
    tallies: Mutex<Vec<Tally>>,
    failure: Mutex<Option<String>>,
    shards_done: AtomicUsize,
}

/// What one client connection has seen.
struct Tally {
    served_by: ShardId,
    began: Instant,
    ended: Instant,
    latencies: Histogram,
}

impl App for FirstLook {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        self.board.handle.get_or_init(|| handle.clone());
        Ok(())
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        let board = Arc::clone(&self.board);
        let listener = shard.listen_tcp(self.addr, move |incoming: &Incoming<'_>| {
            if let Some(peer) = incoming.peer_addr() {
                lock(&board.served_by).insert(peer, incoming.shard());
            }
            Echo
        })?;
        common::announce(&shard, &listener);

        let (addr, seconds, board) = (listener.local_addr(), self.seconds, Arc::clone(&self.board));
        let share = share_of(self.connections, shard.shards(), shard.id().index());
        shard.call_when_running(move |shard| {
            drop(shard.spawn(drive(shard.clone(), addr, share, seconds, board)))
        });
        Ok(())
    }
}

/// The clients of one shard, side by side. Whoever is the last to have finished stops the runtime.
async fn drive(shard: Shard, addr: SocketAddr, connections: usize, seconds: Duration, board: Arc<Board>) {
    let clients: Vec<_> = (0..connections)
        .map(|_| shard.spawn(client(shard.clone(), addr, seconds, Arc::clone(&board))))
        .collect();
    for client in clients {
        match client.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => board.note_failure(&error.to_string()),
            Err(panicked) => board.note_failure(&panicked.to_string()),
        }
    }
    // Relaxed: it only counts; what the clients found out is behind a mutex.
    let done = board.shards_done.fetch_add(1, Ordering::Relaxed) + 1;
    if done == shard.shards() {
        // A signal may have been faster.
        let _ = shard.stop();
    }
}

/// One connection that asks until the time is over, and what it has seen.
async fn client(shard: Shard, addr: SocketAddr, seconds: Duration, board: Arc<Board>) -> Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    let own_addr = stream.local_addr()?;
    let mut latencies = Histogram::new();
    let began = Instant::now();
    let outcome = ask(&mut stream, &shard, seconds, &mut latencies).await;
    if let Some(&served_by) = lock(&board.served_by).get(&own_addr) {
        lock(&board.tallies).push(Tally { served_by, began, ended: Instant::now(), latencies });
    }
    match outcome {
        // The server has been told to stop.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Sends, waits for the echo, and does it again.
async fn ask(
    stream: &mut TcpStream,
    shard: &Shard,
    seconds: Duration,
    latencies: &mut Histogram,
) -> io::Result<()> {
    let ends = shard.now() + seconds;
    stream.set_deadline(Some(seconds + PATIENCE));
    let mut answer = [0; REQUEST.len()];
    while shard.now() < ends {
        let sent = Instant::now();
        stream.write_all(&REQUEST).await?;
        stream.read_exact(&mut answer).await?;
        latencies.record(sent.elapsed());
    }
    Ok(())
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }

    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        transport.pause_reading();
        Ok(())
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        transport.resume_reading();
        Ok(())
    }
}

impl Board {
    /// The first failure stands for all: they tend to be alike.
    fn note_failure(&self, error: &str) {
        lock(&self.failure).get_or_insert_with(|| error.to_owned());
    }
}

/// A panic elsewhere is no reason for another one here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse_up_to<const MOST: u64>(text: &str) -> std::result::Result<u64, String> {
    let number = text.parse().ok().filter(|number| (1..=MOST).contains(number));
    number.ok_or_else(|| format!("not a number from 1 to {MOST}"))
}

/// How many of `total` fall to the one with this `index` among `parts`.
fn share_of(total: usize, parts: usize, index: usize) -> usize {
    total / parts + usize::from(index < total % parts)
}

const REQUEST: [u8; 64] = [b'.'; 64];

/// For an answer that comes late.
const PATIENCE: Duration = Duration::from_secs(5);
