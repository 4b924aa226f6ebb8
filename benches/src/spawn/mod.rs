//! Spawning a task that does nothing and awaiting it, on one pinned thread.

#[cfg(feature = "ours")]
mod shardwise;
mod tokio;

use std::path::PathBuf;
use std::thread;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::Result;
use crate::machine::{self, Facts};
use crate::report::{self, NOT_BUILT, Table, figure};
use crate::statistics::Summary;

#[derive(Args)]
pub(crate) struct SpawnArgs {
    /// Tasks per slice, one after the other.
    #[arg(long, value_parser = crate::positive, default_value_t = 200_000)]
    tasks: usize,
    #[arg(long, value_parser = crate::positive, default_value_t = 24)]
    rounds: usize,
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// `tokio::spawn` on a current_thread runtime.
    TokioSpawn,
    /// `tokio::task::spawn_local` in a LocalSet.
    TokioSpawnLocal,
    /// `Shard::spawn`.
    ShardwiseSpawn,
}

impl Row {
    fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    fn is_built(self) -> bool {
        cfg!(feature = "ours") || self != Row::ShardwiseSpawn
    }

    /// CPU nanoseconds per task.
    fn measure(self, tasks: usize, cpu: usize) -> Result<f64> {
        match self {
            Row::TokioSpawn => on_pinned_thread(tasks, cpu, tokio::spawn),
            Row::TokioSpawnLocal => on_pinned_thread(tasks, cpu, tokio::spawn_local),
            #[cfg(feature = "ours")]
            Row::ShardwiseSpawn => on_pinned_thread(tasks, cpu, shardwise::spawn),
            #[cfg(not(feature = "ours"))]
            Row::ShardwiseSpawn => Err(NOT_BUILT.into()),
        }
    }
}

#[derive(Serialize)]
struct Measured {
    row: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ns_per_task: Option<Summary>,
    /// Divided by the first row inside each round.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Summary>,
    samples: Vec<f64>,
}

fn on_pinned_thread(tasks: usize, cpu: usize, measure: fn(usize) -> Result<f64>) -> Result<f64> {
    let thread = thread::spawn(move || {
        machine::pin(&[cpu])?;
        measure(tasks)
    });
    thread.join().map_err(|_| "the measuring thread panicked")?
}

pub(crate) fn run(args: &SpawnArgs) -> Result<()> {
    let facts = Facts::collect();
    facts.print();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} · {} rounds of {} tasks", args.rounds, args.tasks);
    let mut random = fastrand::Rng::with_seed(seed);
    let rows = Row::value_variants();
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    let mut order: Vec<usize> = (0..rows.len()).filter(|&index| rows[index].is_built()).collect();
    for _ in 0..args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            samples[index].push(rows[index].measure(args.tasks, args.cpu)?);
        }
    }
    let first = samples[0].clone();
    let results: Vec<Measured> = rows
        .iter()
        .zip(samples)
        .map(|(row, samples)| {
            let ratios: Vec<f64> = samples.iter().zip(&first).map(|(sample, first)| sample / first).collect();
            Measured {
                row: row.name(),
                absent: (!row.is_built()).then_some(NOT_BUILT),
                cpu_ns_per_task: (!samples.is_empty()).then(|| Summary::of(&samples)),
                ratio: (!samples.is_empty()).then(|| Summary::of(&ratios)),
                samples,
            }
        })
        .collect();
    print(&results);
    Ok(report::finish(args.json.as_deref(), &facts, &results)?)
}

fn print(results: &[Measured]) {
    println!("\nspawn and await a local task: CPU ns, median (min–max) over rounds");
    let mut table = Table::new(&["row", "cpu ns", "min", "max", "÷ first"]);
    for result in results {
        match (&result.cpu_ns_per_task, &result.ratio) {
            (Some(cpu), Some(ratio)) => table.row(vec![
                result.row.clone(),
                figure(cpu.median),
                figure(cpu.min),
                figure(cpu.max),
                report::spread(ratio),
            ]),
            _ => table.absent(&result.row, result.absent.unwrap_or("no rounds")),
        }
    }
    table.print();
}
