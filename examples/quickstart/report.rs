//! What is shown while the clients ask, and after that. Measures nothing.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use shardwise::{Handle, RuntimeState};

use crate::common::output::complain;
use crate::common::say;
use crate::histogram::Histogram;
use crate::{Board, REQUEST, Tally, lock};

/// A thread that shows how far the clients are: a bar on a terminal, a line per second elsewhere. On a thread, since a
/// terminal that takes nothing would stop a shard.
pub struct Progress {
    stop: Sender<()>,
    thread: io::Result<JoinHandle<()>>,
}

impl Progress {
    pub fn start(board: Arc<Board>, seconds: Duration) -> Progress {
        let (stop, stopped) = channel();
        let show = move || show_progress(&board, seconds, &stopped);
        Progress { stop, thread: thread::Builder::new().name("progress".to_owned()).spawn(show) }
    }

    /// Waits until the bar has gone, so that the table does not run into it.
    pub fn stop(self) {
        drop(self.stop);
        if let Ok(thread) = self.thread {
            // Whatever it died of, the table is worth printing.
            let _ = thread.join();
        }
    }
}

fn show_progress(board: &Board, seconds: Duration, stopped: &Receiver<()>) {
    let bar = io::stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{bar:40} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(seconds.as_millis() as u64).with_style(style)
    });
    let tick = if bar.is_some() { Duration::from_millis(100) } else { Duration::from_secs(1) };
    let mut began = None;
    while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
        let running = board.handle.get().filter(|handle| handle.state() == RuntimeState::Running);
        let Some(handle) = running else { continue };
        let elapsed = began.get_or_insert_with(|| Instant::now() - tick).elapsed();
        let requests = requests_so_far(handle);
        match &bar {
            Some(bar) => {
                bar.set_position(elapsed.as_millis() as u64);
                bar.set_message(format!("{} requests", grouped(requests)));
            }
            None => complain(format!("after {} s: {} requests", elapsed.as_secs(), grouped(requests))),
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// Every request is received once by the server and once, as the echo, by its client.
fn requests_so_far(handle: &Handle) -> u64 {
    let received_bytes: u64 = handle.report().iter().map(|shard| shard.received_bytes).sum();
    received_bytes / (2 * REQUEST.len() as u64)
}

/// Prints a row for each shard, and what they come to together.
pub fn print(board: &Board) {
    let Some(handle) = board.handle.get() else { return };
    let tallies = lock(&board.tallies);
    let began = tallies.iter().map(|tally| tally.began).min();
    let ended = tallies.iter().map(|tally| tally.ended).max();
    let (Some(began), Some(ended)) = (began, ended) else {
        let why = lock(&board.failure).take();
        return say(format!(
            "no client has got an answer: {}",
            why.as_deref().unwrap_or("stopped too early")
        ));
    };
    let elapsed = ended.duration_since(began).max(Duration::from_millis(1));
    let rate = |requests: u64| grouped((requests as f64 / elapsed.as_secs_f64()) as u64);

    say("shard   cpu  connections  requests/s    p50 µs    p99 µs   busy");
    let mut busiest = 0;
    let mut total = Histogram::new();
    let shards = handle.report();
    for shard in &shards {
        let own: Vec<&Tally> = tallies.iter().filter(|tally| tally.served_by == shard.shard).collect();
        let mut latencies = Histogram::new();
        own.iter().for_each(|tally| latencies.add(&tally.latencies));
        let cpu = shard.cpu.map_or("any".to_owned(), |cpu| cpu.to_string());
        let busy = (100.0 * shard.busy.as_secs_f64() / elapsed.as_secs_f64()).min(100.0);
        say(format!(
            "{:>5} {:>5} {:>12} {:>11} {:>9} {:>9} {:>4.0} %",
            shard.shard.index(),
            cpu,
            own.len(),
            rate(latencies.count()),
            latencies.quantile(0.5).as_micros(),
            latencies.quantile(0.99).as_micros(),
            busy,
        ));
        busiest = busiest.max(latencies.count());
        total.add(&latencies);
    }
    let mean = total.count() as f64 / shards.len() as f64;
    say(format!("imbalance: {:.2} (requests of the busiest shard ÷ mean)", busiest as f64 / mean.max(1.0)));
    say(format!(
        "together: {} requests/s of {} bytes in {:.1} s, {} requests/s per core; client on the same cores",
        rate(total.count()),
        REQUEST.len(),
        elapsed.as_secs_f64(),
        rate(total.count() / shards.len() as u64),
    ));
    if let Some(why) = lock(&board.failure).take() {
        say(format!("not every client came through: {why}"));
    }
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let groups = rest.as_bytes().chunks(3).map(|group| format!(",{}", String::from_utf8_lossy(group)));
    first.to_owned() + &groups.collect::<String>()
}
