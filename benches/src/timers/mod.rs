//! A million timers: what each costs in CPU, and how late they fire. One thread, pinned.

#[cfg(feature = "ours")]
mod shardwise;
mod tokio;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Result;
use crate::client::latencies;
use crate::machine::{self, Facts, process_cpu_time};
use crate::report::{self, NOT_BUILT, Table, figure};
use crate::statistics::Summary;

#[derive(Args)]
pub(crate) struct TimersArgs {
    #[arg(long, value_parser = crate::positive, default_value_t = 1_000_000)]
    timers: usize,
    #[arg(long, value_parser = crate::positive, default_value_t = 3)]
    rounds: usize,
    /// All are scheduled this long before the first is due. Too short is an error, not a wrong figure.
    #[arg(long, default_value_t = 8000)]
    lead_ms: u64,
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// `tokio::time::Sleep`: cancelled ones polled once and dropped, fired ones each in a spawned task.
    TokioSleep,
    /// A call in the future as tokio has it: a task that sleeps first, cancelled by `abort`. Fires as `tokio-sleep`.
    TokioTask,
    /// tokio-util's DelayQueue, drained by one task.
    TokioDelayQueue,
    /// `Shard::call_later`.
    ShardwiseCallLater,
    /// `Shard::sleep`, used as `tokio-sleep` uses its own.
    ShardwiseSleep,
}

impl Row {
    fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    fn is_built(self) -> bool {
        cfg!(feature = "ours") || !matches!(self, Row::ShardwiseCallLater | Row::ShardwiseSleep)
    }

    fn measure(self, load: &Arc<Load>) -> Result<Sample> {
        match self {
            Row::TokioSleep => on_pinned_thread(load, tokio::sleeps),
            Row::TokioTask => on_pinned_thread(load, tokio::tasks),
            Row::TokioDelayQueue => on_pinned_thread(load, tokio::delay_queue),
            #[cfg(feature = "ours")]
            Row::ShardwiseCallLater => on_pinned_thread(load, shardwise::delayed_calls),
            #[cfg(feature = "ours")]
            Row::ShardwiseSleep => on_pinned_thread(load, shardwise::sleeps),
            #[cfg(not(feature = "ours"))]
            Row::ShardwiseCallLater | Row::ShardwiseSleep => Err(NOT_BUILT.into()),
        }
    }
}

/// What every row is given.
struct Load {
    /// For those that are cancelled: 1 to 60 s, never reached.
    far: Vec<Duration>,
    /// For those that fire: within a second, all counted from one moment `lead` after the start.
    near: Vec<Duration>,
    lead: Duration,
    cpu: usize,
}

/// CPU of the whole process per timer, in nanoseconds.
#[derive(Serialize)]
struct Sample {
    /// Scheduled and cancelled, one after the other.
    cancel_at_once_ns: f64,
    /// All scheduled, then all cancelled.
    cancel_later_ns: f64,
    /// From scheduling the first to the last one scheduled, for those that fire.
    schedule_ns: f64,
    /// From before the first is due until the last has fired.
    fire_ns: f64,
    late_p50_ms: f64,
    late_p99_ms: f64,
    late_max_ms: f64,
}

#[derive(Serialize)]
struct Measured {
    row: String,
    timers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    samples: Vec<Sample>,
}

/// CPU per timer since the last question.
struct Meter {
    timers: usize,
    since: Duration,
}

impl Meter {
    fn start(load: &Load) -> Self {
        Meter { timers: load.near.len(), since: process_cpu_time() }
    }

    fn lap_ns(&mut self) -> f64 {
        let now = process_cpu_time();
        let spent = now - std::mem::replace(&mut self.since, now);
        spent.as_nanos() as f64 / self.timers as f64
    }
}

/// How late timers fired.
struct Lateness {
    left: usize,
    histogram: Histogram<u64>,
}

impl Lateness {
    fn expect(timers: usize) -> Self {
        Lateness { left: timers, histogram: latencies() }
    }

    /// Takes down one that fires now. True: it was the last.
    ///
    /// # Panics
    /// Panics when it fires early: such a timer is broken, however cheap.
    fn fired(&mut self, deadline: Instant) -> bool {
        let now = Instant::now();
        let late = now.checked_duration_since(deadline);
        let late = late.unwrap_or_else(|| panic!("fired {:?} early", deadline - now));
        self.histogram.saturating_record(late.as_nanos() as u64);
        self.left -= 1;
        self.left == 0
    }

    fn milliseconds(&self) -> [f64; 3] {
        let at = |quantile| self.histogram.value_at_quantile(quantile) as f64 / 1e6;
        [at(0.5), at(0.99), at(1.0)]
    }
}

fn all_scheduled_in_time(base: Instant) -> Result<()> {
    match Instant::now().checked_duration_since(base) {
        None => Ok(()),
        Some(over) => Err(format!("scheduling took {over:?} longer than --lead-ms").into()),
    }
}

fn on_pinned_thread(load: &Arc<Load>, measure: fn(&Arc<Load>) -> Result<Sample>) -> Result<Sample> {
    let (sender, receiver) = mpsc::channel();
    let load = Arc::clone(load);
    let thread = thread::spawn(move || {
        let sample = machine::pin(&[load.cpu]).map_err(Into::into).and_then(|()| measure(&load));
        sender.send(sample).expect("the caller waits");
    });
    let sample = receiver.recv();
    thread.join().map_err(|_| "the measuring thread panicked")?;
    sample?
}

pub(crate) fn run(args: &TimersArgs) -> Result<()> {
    let facts = Facts::collect();
    facts.print();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} · {} rounds of {} timers", args.rounds, args.timers);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut delays = |range: std::ops::Range<u64>| -> Vec<Duration> {
        (0..args.timers).map(|_| Duration::from_micros(random.u64(range.clone()))).collect()
    };
    let load = Arc::new(Load {
        far: delays(1_000_000..60_000_000),
        near: delays(0..1_000_000),
        lead: Duration::from_millis(args.lead_ms),
        cpu: args.cpu,
    });
    let rows = if args.rows.is_empty() { Row::value_variants() } else { &args.rows };
    let mut results: Vec<Measured> = rows
        .iter()
        .map(|row| Measured {
            row: row.name(),
            timers: args.timers,
            absent: (!row.is_built()).then_some(NOT_BUILT),
            samples: Vec::new(),
        })
        .collect();
    let mut order: Vec<usize> = (0..rows.len()).filter(|&index| rows[index].is_built()).collect();
    for _ in 0..args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let row = rows[index];
            let sample = row.measure(&load).map_err(|error| format!("{}: {error}", row.name()))?;
            results[index].samples.push(sample);
        }
    }
    print(&results);
    Ok(report::finish(args.json.as_deref(), &facts, &results)?)
}

fn print(results: &[Measured]) {
    println!("\nmedian over rounds; CPU ns per timer, lateness in ms");
    let mut table = Table::new(&[
        "row",
        "cancel at once",
        "cancel later",
        "schedule",
        "fire",
        "late p50",
        "late p99",
        "late max",
    ]);
    for result in results {
        if result.samples.is_empty() {
            table.absent(&result.row, result.absent.unwrap_or("no rounds"));
            continue;
        }
        let median = |value: fn(&Sample) -> f64| {
            figure(Summary::of(&result.samples.iter().map(value).collect::<Vec<_>>()).median)
        };
        table.row(vec![
            result.row.clone(),
            median(|sample| sample.cancel_at_once_ns),
            median(|sample| sample.cancel_later_ns),
            median(|sample| sample.schedule_ns),
            median(|sample| sample.fire_ns),
            median(|sample| sample.late_p50_ms),
            median(|sample| sample.late_p99_ms),
            median(|sample| sample.late_max_ms),
        ]);
    }
    table.print();
}
