//! A question and its answer between two pinned threads: how long, how many, and at what price in CPU.

mod raw;
#[cfg(feature = "ours")]
mod shardwise;
mod tokio;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::Serialize;

use self::raw::Hearing;
use crate::client::latencies;
use crate::machine::{self, Facts};
use crate::report::{self, NOT_BUILT, Table, figure};
use crate::statistics::Summary;
use crate::{Result, machine::process_cpu_time};

#[derive(Args)]
pub(crate) struct CrossShardArgs {
    #[arg(long, value_parser = crate::positive, value_delimiter = ',', default_values = ["1", "64", "1024"])]
    in_flight: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_values = ["asleep", "polling"])]
    modes: Vec<Mode>,
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    #[arg(long, value_parser = crate::positive, default_value_t = 24)]
    rounds: usize,
    #[arg(long, default_value_t = 150)]
    slice_ms: u64,
    /// How long a polling side polls before it sleeps.
    #[arg(long, default_value_t = 50)]
    poll_us: u64,
    /// The side that asks.
    #[arg(long, default_value_t = 0)]
    origin_cpu: usize,
    /// The side that answers.
    #[arg(long, default_value_t = 1)]
    target_cpu: usize,
    #[arg(long)]
    seed: Option<u64>,
    /// Run one slice of every row under `strace -f -c` instead, and print its system calls per round trip.
    #[arg(long)]
    strace: bool,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
enum Mode {
    /// A side with nothing to do sleeps at once.
    Asleep,
    /// It polls for a while first.
    Polling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
enum Row {
    /// Two eventfds and nothing else.
    RawEventfd,
    /// The same, heard through epoll: the floor of whoever waits for sockets as well.
    RawEventfdEpoll,
    /// crossbeam ArrayQueues of plain words, a state byte, an eventfd.
    RawQueue,
    /// The same, but every word is a turn of its own: asks after each whether the other side sleeps.
    RawQueueEach,
    /// Unbounded mpsc with a oneshot for the reply, between two current_thread runtimes.
    Tokio,
    /// The same, asked by a plain thread that blocks.
    TokioThread,
    /// `call_from_thread` there and `call_from_thread` back, no future.
    ShardwisePost,
    /// `call(..).await` in as many tasks as are in flight.
    ShardwiseCall,
    /// `call_from_thread` by a plain thread, which spins (polling) or blocks (asleep) for the answer.
    ShardwiseThread,
}

impl Row {
    fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    fn is_built(self) -> bool {
        use Row::*;
        cfg!(feature = "ours") || !matches!(self, ShardwisePost | ShardwiseCall | ShardwiseThread)
    }

    /// Whether the row says anything about this case.
    fn applies(self, mode: Mode, in_flight: usize) -> bool {
        match self {
            Row::RawEventfd | Row::RawEventfdEpoll => mode == Mode::Asleep && in_flight == 1,
            // tokio has no polling: its one way is shown beside both, but for the spinning caller.
            Row::TokioThread => mode == Mode::Asleep && in_flight == 1,
            Row::ShardwiseThread => in_flight == 1,
            Row::RawQueueEach => in_flight > 1,
            Row::RawQueue | Row::Tokio | Row::ShardwisePost | Row::ShardwiseCall => true,
        }
    }

    fn measure(self, load: Load) -> Result<Sample> {
        match self {
            Row::RawEventfd => raw::eventfds(load, Hearing::Read),
            Row::RawEventfdEpoll => raw::eventfds(load, Hearing::Epoll),
            Row::RawQueue => raw::queues(load, load.in_flight),
            Row::RawQueueEach => raw::queues(load, 1),
            Row::Tokio => tokio::between_runtimes(load),
            Row::TokioThread => tokio::from_thread(load),
            #[cfg(feature = "ours")]
            Row::ShardwisePost => shardwise::posts(load),
            #[cfg(feature = "ours")]
            Row::ShardwiseCall => shardwise::calls(load),
            #[cfg(feature = "ours")]
            Row::ShardwiseThread => shardwise::from_thread(load),
            #[cfg(not(feature = "ours"))]
            _ => Err(NOT_BUILT.into()),
        }
    }
}

/// One case of one row.
#[derive(Clone, Copy)]
struct Load {
    in_flight: usize,
    slice: Duration,
    /// Zero: sleep at once.
    poll: Duration,
    origin_cpu: usize,
    target_cpu: usize,
}

impl Load {
    /// Runs a short burst, which is forgotten, then the one that counts.
    fn measure(self, mut burst: impl FnMut(Duration) -> Result<Burst>) -> Result<Sample> {
        burst(self.slice / 10)?;
        let (cpu, sleeps) = (process_cpu_time(), machine::sleeps());
        let burst = burst(self.slice)?;
        let (cpu, sleeps) = (process_cpu_time() - cpu, machine::sleeps() - sleeps);
        let trips = burst.trips as f64;
        Ok(Sample {
            million_per_second: trips / burst.elapsed.as_secs_f64() / 1e6,
            p50_us: (!burst.latencies.is_empty())
                .then(|| burst.latencies.value_at_quantile(0.5) as f64 / 1e3),
            cpu_ns_per_trip: cpu.as_nanos() as f64 / trips,
            sleeps_per_trip: sleeps as f64 / trips,
            trips: burst.trips,
        })
    }
}

/// What the asking side saw.
struct Burst {
    trips: u64,
    elapsed: Duration,
    /// With one in flight only: beyond that the time of a trip is its place in the queue.
    latencies: Histogram<u64>,
}

/// Counts trips on the asking side, and says whether to go on asking.
struct Counter {
    started: Instant,
    last: Instant,
    slice: Duration,
    trips: u64,
    in_flight: usize,
    latencies: Histogram<u64>,
    over: bool,
}

impl Counter {
    fn start(in_flight: usize, slice: Duration) -> Self {
        let started = Instant::now();
        let latencies = latencies();
        Counter { started, last: started, slice, trips: 0, in_flight, latencies, over: false }
    }

    /// Counts a trip that is complete. False: do not ask again.
    fn trip(&mut self) -> bool {
        self.trips += 1;
        // A clock read per trip only where it is the point.
        if self.in_flight == 1 {
            let now = Instant::now();
            self.latencies.saturating_record((now - self.last).as_nanos() as u64);
            self.last = now;
            self.over = now - self.started >= self.slice;
        } else if self.trips.is_multiple_of(TRIPS_PER_CLOCK_READ) {
            self.over = self.started.elapsed() >= self.slice;
        }
        !self.over
    }

    /// Counts the trips before the next one that is to be counted by `trip`, because it may be the last. They are to be
    /// made.
    #[cfg(feature = "ours")]
    fn take_unasked(&mut self) -> u64 {
        if self.in_flight == 1 {
            return 0;
        }
        let unasked = TRIPS_PER_CLOCK_READ - 1 - self.trips % TRIPS_PER_CLOCK_READ;
        self.trips += unasked;
        unasked
    }

    fn finish(self) -> Burst {
        Burst { trips: self.trips, elapsed: self.started.elapsed(), latencies: self.latencies }
    }
}

#[derive(Clone, Serialize)]
struct Sample {
    million_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    /// Both sides together, and what polling burns.
    cpu_ns_per_trip: f64,
    /// Voluntary context switches of both sides.
    sleeps_per_trip: f64,
    trips: u64,
}

#[derive(Serialize)]
struct Measured {
    mode: Mode,
    in_flight: usize,
    row: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summaries: Option<Summaries>,
    samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Summaries {
    /// Rates divided by the first row's inside each round.
    rate_ratio: Summary,
    million_per_second: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<Summary>,
    /// Medians of latency divided by the first row's inside each round.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ratio: Option<Summary>,
    cpu_ns_per_trip: Summary,
    sleeps_per_trip: Summary,
}

pub(crate) fn run(args: &CrossShardArgs) -> Result<()> {
    if args.strace {
        return under_strace(args);
    }
    let facts = Facts::collect();
    facts.print();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} · {} rounds of {} ms slices", args.rounds, args.slice_ms);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut results = Vec::new();
    for &mode in &args.modes {
        for &in_flight in &args.in_flight {
            let measured = measure(args, mode, in_flight, &mut random)?;
            print(mode, in_flight, &measured);
            results.extend(measured);
        }
    }
    Ok(report::finish(args.json.as_deref(), &facts, &results)?)
}

fn rows(args: &CrossShardArgs, mode: Mode, in_flight: usize) -> Vec<Row> {
    let rows = if args.rows.is_empty() { Row::value_variants() } else { &args.rows };
    rows.iter().copied().filter(|row| row.applies(mode, in_flight)).collect()
}

fn measure(
    args: &CrossShardArgs,
    mode: Mode,
    in_flight: usize,
    random: &mut fastrand::Rng,
) -> Result<Vec<Measured>> {
    let rows = rows(args, mode, in_flight);
    let poll = if mode == Mode::Polling { Duration::from_micros(args.poll_us) } else { Duration::ZERO };
    let slice = Duration::from_millis(args.slice_ms);
    let load = Load { in_flight, slice, poll, origin_cpu: args.origin_cpu, target_cpu: args.target_cpu };
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); rows.len()];
    let mut order: Vec<usize> = (0..rows.len()).filter(|&index| rows[index].is_built()).collect();
    for _ in 0..args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let row = rows[index];
            samples[index].push(row.measure(load).map_err(|error| format!("{}: {error}", row.name()))?);
        }
    }
    let first = samples.iter().find(|samples| !samples.is_empty()).cloned().unwrap_or_default();
    let measured = rows.into_iter().zip(samples).map(|(row, samples)| Measured {
        mode,
        in_flight,
        row: row.name(),
        absent: (!row.is_built()).then_some(NOT_BUILT),
        summaries: (!samples.is_empty()).then(|| summarise(&samples, &first)),
        samples,
    });
    Ok(measured.collect())
}

fn summarise(samples: &[Sample], first: &[Sample]) -> Summaries {
    let values = |figure: fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<_>>();
    let ratios = |figure: fn(&Sample) -> f64| {
        samples.iter().zip(first).map(|(sample, first)| figure(sample) / figure(first)).collect::<Vec<_>>()
    };
    let p50 = |sample: &Sample| sample.p50_us.unwrap_or(f64::NAN);
    let has_p50 = samples.iter().chain(first).all(|sample| sample.p50_us.is_some());
    Summaries {
        rate_ratio: Summary::of(&ratios(|sample| sample.million_per_second)),
        million_per_second: Summary::of(&values(|sample| sample.million_per_second)),
        p50_us: has_p50.then(|| Summary::of(&values(p50))),
        p50_ratio: has_p50.then(|| Summary::of(&ratios(p50))),
        cpu_ns_per_trip: Summary::of(&values(|sample| sample.cpu_ns_per_trip)),
        sleeps_per_trip: Summary::of(&values(|sample| sample.sleeps_per_trip)),
    }
}

fn print(mode: Mode, in_flight: usize, measured: &[Measured]) {
    println!(
        "\n{mode:?}, {in_flight} in flight: median (min–max) over rounds; p50 ÷ first: trimmed mean ± 2 standard errors"
    );
    let mut table =
        Table::new(&["row", "p50 µs", "p50 ÷ first", "M/s", "rate ÷ first", "cpu ns/trip", "sleeps/trip"]);
    for row in measured {
        let Some(summaries) = &row.summaries else {
            table.absent(&row.row, row.absent.unwrap_or("no rounds"));
            continue;
        };
        let optional = |summary: &Option<Summary>, show: fn(&Summary) -> String| {
            summary.as_ref().map_or("–".to_owned(), show)
        };
        table.row(vec![
            row.row.clone(),
            optional(&summaries.p50_us, report::spread),
            optional(&summaries.p50_ratio, report::ratio),
            report::spread_fine(&summaries.million_per_second),
            report::spread(&summaries.rate_ratio),
            figure(summaries.cpu_ns_per_trip.median),
            format!("{:.4}", summaries.sleeps_per_trip.median),
        ]);
    }
    table.print();
}

/// Tracing makes every system call dear, so the shares of sleeping and polling shift: counts, not times.
fn under_strace(args: &CrossShardArgs) -> Result<()> {
    for &mode in &args.modes {
        for &in_flight in &args.in_flight {
            println!("\n{mode:?}, {in_flight} in flight: system calls per round trip, traced");
            let mut table = Table::new(&["row", "calls"]);
            for row in rows(args, mode, in_flight) {
                if row.is_built() {
                    table.row(vec![row.name(), traced(args, row, mode, in_flight)?]);
                } else {
                    table.absent(&row.name(), NOT_BUILT);
                }
            }
            table.print();
        }
    }
    Ok(())
}

fn traced(args: &CrossShardArgs, row: Row, mode: Mode, in_flight: usize) -> Result<String> {
    let stem = format!("shardwise-bench.{}", std::process::id());
    let (counts, json) =
        (env::temp_dir().join(format!("{stem}.strace")), env::temp_dir().join(format!("{stem}.json")));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&counts).arg(env::current_exe()?);
    strace.args(["cross-shard", "--rounds", "1", "--slice-ms", &args.slice_ms.to_string()]);
    strace.args(["--rows", &row.name(), "--in-flight", &in_flight.to_string()]);
    strace.args(["--modes", mode.to_possible_value().expect("no variant is skipped").get_name()]);
    strace.args(["--poll-us", &args.poll_us.to_string(), "--json"]).arg(&json);
    let output =
        strace.output().map_err(|error| format!("strace: {error}; on Debian: apt install strace"))?;
    if !output.status.success() {
        return Err(
            format!("{} under strace: {}", row.name(), String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    let trips = trips_in(&json)?;
    let calls = calls_in(&fs::read_to_string(&counts)?);
    fs::remove_file(&counts)?;
    fs::remove_file(&json)?;
    let mut calls: Vec<(String, u64)> = calls.into_iter().collect();
    calls.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let text = calls.iter().take(5).map(|(name, count)| format!("{name} {:.3}", *count as f64 / trips));
    Ok(text.collect::<Vec<_>>().join(", "))
}

/// The measured trips of a run's only sample, with a tenth more for the burst before it.
fn trips_in(json: &Path) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(json)?)?;
    let trips = report["results"][0]["samples"][0]["trips"].as_f64();
    Ok(trips.ok_or("the traced run has no sample")? * 1.1)
}

fn calls_in(table: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let count = words.next()?.parse().ok()?;
        Some((words.next().filter(|&name| name != "total")?.to_owned(), count))
    };
    table.lines().filter_map(row).collect()
}

const TRIPS_PER_CLOCK_READ: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_but_the_total_is_read_from_a_table_of_strace() {
        let table = "    calls syscall\n--------- ----------------\n       12 read\n        3 epoll_wait\n--------- ---\n       15 total\n";
        let expected = BTreeMap::from([("read".to_owned(), 12), ("epoll_wait".to_owned(), 3)]);
        assert_eq!(calls_in(table), expected);
    }

    #[test]
    fn every_trip_asked_for_comes_back_in_both_raw_rows() {
        let load = |in_flight, poll_us| Load {
            in_flight,
            slice: Duration::from_millis(20),
            poll: Duration::from_micros(poll_us),
            origin_cpu: 0,
            target_cpu: 0, // one CPU: the machine may have no more
        };
        for (in_flight, poll_us) in [(1, 0), (1, 50), (64, 0), (64, 50)] {
            for words_per_turn in [1, in_flight] {
                let sample = raw::queues(load(in_flight, poll_us), words_per_turn).unwrap();
                assert!(sample.trips >= in_flight as u64);
            }
        }
        for hearing in [Hearing::Read, Hearing::Epoll] {
            assert!(raw::eventfds(load(1, 0), hearing).unwrap().trips > 0);
        }
    }
}
