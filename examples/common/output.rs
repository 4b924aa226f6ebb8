//! Lines for stdout and stderr that never block, never fail and never end the process. Does not format logs.
//!
//! A server outlives whoever reads its output. `println!` panics once that reader is gone, and a write to a full
//! pipe waits until somebody reads; a shard that logs would wait with it. So each stream has a thread that does the
//! waiting and a bounded queue in front of it. What does not fit is dropped, and counted where it is missing.
//! Descriptors 0 to 2 need no care here: Rust's start-up opens /dev/null in place of any that is closed.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Prints a line on stdout.
pub fn say(line: impl Display) {
    STDOUT.line(format!("{line}\n"));
}

/// Prints a line on stderr.
pub fn complain(line: impl Display) {
    STDERR.line(format!("{line}\n"));
}

/// Sends what `tracing` reports, from `info` up, to stderr. The first caller decides; later calls do nothing.
pub fn log_to_stderr() {
    let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(ToStderr);
    // An error means that somebody else has chosen where reports go.
    let _ = builder.try_init();
}

/// Waits, but not for long, until what was said has left.
pub fn finish() {
    STDOUT.finish(PATIENCE);
    STDERR.finish(PATIENCE);
}

static STDOUT: LazyLock<Sink> = LazyLock::new(|| Sink::over(io::stdout()));
static STDERR: LazyLock<Sink> = LazyLock::new(|| Sink::over(io::stderr()));

/// A descriptor that is written to by a thread of its own.
pub struct Sink {
    /// `None` if there is nowhere to write: then everything is dropped.
    queue: Option<SyncSender<Entry>>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(String),
    Finish(Sender<()>),
}

impl Sink {
    /// A sink over a descriptor of its own for the same file: nothing of std's buffers and locks is involved.
    pub fn over(stream: impl AsFd) -> Sink {
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        let (queue, lines) = sync_channel(QUEUED_LINES);
        let start = |file| {
            let thread = thread::Builder::new().name("output".to_owned());
            thread.spawn(move || write_lines(&lines, File::from(file), &counted))
        };
        let started = stream.as_fd().try_clone_to_owned().and_then(start);
        Sink { queue: started.is_ok().then_some(queue), dropped }
    }

    /// Queues `line`, which ends in a line break.
    pub fn line(&self, line: String) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(Entry::Line(line)) {
            // Relaxed: a counter; it orders nothing.
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits at most `patience` for the lines queued so far to be written.
    pub fn finish(&self, patience: Duration) {
        let Some(queue) = &self.queue else { return };
        let (written, all_written) = channel();
        if queue.try_send(Entry::Finish(written)).is_ok() {
            // Both a timeout and a writer that has given up mean: do not wait any longer.
            let _ = all_written.recv_timeout(patience);
        }
    }

    /// How many lines found the queue full since the last that were reported.
    pub fn dropped(&self) -> u64 {
        // Relaxed: a counter; it orders nothing.
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_lines(lines: &Receiver<Entry>, mut file: File, dropped: &AtomicU64) {
    for entry in lines {
        match entry {
            // A reader that has gone or a disk that is full takes the line with it; the next may fare better.
            Entry::Line(line) => drop(file.write_all(line.as_bytes())),
            Entry::Finish(written) => drop(written.send(())),
        }
        // Relaxed: a counter; it orders nothing.
        let missing = dropped.swap(0, Ordering::Relaxed);
        if missing > 0 {
            drop(file.write_all(format!("({missing} lines dropped: nobody was reading)\n").as_bytes()));
        }
    }
}

/// Where `tracing` writes: each event comes as one `write`.
struct ToStderr;

impl MakeWriter<'_> for ToStderr {
    type Writer = ToStderr;

    fn make_writer(&self) -> ToStderr {
        ToStderr
    }
}

impl Write for ToStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        STDERR.line(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A screenful twenty times over; at 200 bytes a line 200 KiB.
const QUEUED_LINES: usize = 1000;

/// How long the end of the process waits for a reader.
const PATIENCE: Duration = Duration::from_millis(200);
