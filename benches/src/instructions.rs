//! User-space instructions per request, where wall clocks are too coarse. Kernel work is not counted.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::child::{RunningServer, Server, ServerOptions};
use crate::client::{Crowd, Until, latencies};
use crate::load::Load;
use crate::machine::{self, Facts};
use crate::report::{self, NOT_BUILT, Table};
use crate::servers::Implementation;

#[derive(Args)]
pub(crate) struct InstructionsArgs {
    #[arg(long = "impl", value_delimiter = ',', default_values = ["raw-epoll", "raw-mio", "tokio", "shardwise-protocol", "shardwise-async"])]
    implementations: Vec<Implementation>,
    /// Shards of the library's servers; several numbers compare.
    #[arg(long, value_delimiter = ',', default_values = ["1"])]
    shards: Vec<usize>,
    /// Two lengths of run: start-up and connecting cancel in the difference.
    #[arg(long, value_delimiter = ',', num_args = 1, default_values = ["20000", "60000"])]
    requests: Vec<u64>,
    #[arg(long, default_value = "64x64")]
    workload: Load,
    /// The connections of `--workload` for each shard, and in rounds: the server is stopped while a message is written
    /// on every connection, so that each shard finds all of its own at once, however the threads are scheduled.
    #[arg(long)]
    lockstep: bool,
    /// Measures every row that often and shows the spread.
    #[arg(long, default_value_t = 1, value_parser = crate::positive)]
    repeats: usize,
    /// Keep the callgrind files here, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    server: String,
    shards: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    /// One for each repeat.
    per_request: Vec<Counts>,
}

/// Of one run as a whole, or per request.
#[derive(Clone, Copy, Serialize)]
struct Counts {
    instructions: f64,
    /// Of the library's servers: turns of their loops.
    turns: f64,
}

pub(crate) fn run(args: &InstructionsArgs) -> Result<()> {
    let facts = Facts::collect();
    facts.print();
    let &[short, long] = &args.requests[..] else {
        return Err("--requests takes two numbers, the shorter run first".into());
    };
    if short >= long {
        return Err("--requests takes the shorter run first".into());
    }
    if !has_valgrind() {
        return Err("valgrind is not installed; on Debian: apt install valgrind".into());
    }
    machine::pin(&[1])?;
    machine::raise_descriptor_limit()?;
    let mut rows = Vec::new();
    let mut table = Table::new(&["server", "shards", "instructions/request", "turns/1,000 requests"]);
    for &implementation in &args.implementations {
        let server = Server::Own(implementation);
        for &shards in &args.shards {
            let mut row = Row { server: server.name(), shards, absent: None, per_request: Vec::new() };
            if server.is_built() {
                for _ in 0..args.repeats {
                    let counts = count_per_request(args, &server, shards, (short, long))
                        .map_err(|error| format!("{}, {shards} shards: {error}", server.name()))?;
                    row.per_request.push(counts);
                }
                let spread = |number: fn(&Counts) -> f64| spread(row.per_request.iter().map(number));
                table.row(vec![
                    server.name(),
                    shards.to_string(),
                    spread(|counts| counts.instructions),
                    spread(|counts| counts.turns * 1000.0),
                ]);
            } else {
                row.absent = Some(NOT_BUILT);
                table.absent(&server.name(), NOT_BUILT);
            }
            rows.push(row);
        }
    }
    let rounds = if args.lockstep { " for each shard, in lockstep" } else { "" };
    println!("\n{:?}{rounds}, runs of {short} and {long} requests", args.workload);
    table.print();
    Ok(report::finish(args.json.as_deref(), &facts, &rows)?)
}

/// The median, and minimum and maximum when there are several.
fn spread(numbers: impl Iterator<Item = f64>) -> String {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    match &sorted[..] {
        [] => String::new(),
        [only] => format!("{only:.1}"),
        [min, .., max] => format!("{:.1} ({min:.1}–{max:.1})", sorted[sorted.len() / 2]),
    }
}

fn has_valgrind() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

fn count_per_request(
    args: &InstructionsArgs,
    server: &Server,
    shards: usize,
    (short, long): (u64, u64),
) -> Result<Counts> {
    let (short_requests, short) = count(args, server, shards, short)?;
    let (long_requests, long) = count(args, server, shards, long)?;
    let requests = (long_requests - short_requests) as f64;
    Ok(Counts {
        instructions: (long.instructions - short.instructions) / requests,
        turns: (long.turns - short.turns) / requests,
    })
}

/// What a whole server run counts that answers `requests`, rounded up to whole rounds.
fn count(args: &InstructionsArgs, server: &Server, shards: usize, requests: u64) -> Result<(u64, Counts)> {
    let folder = args.keep.clone().unwrap_or_else(std::env::temp_dir);
    let file = folder.join(format!("callgrind.{}.{}.{shards}.{requests}", std::process::id(), server.name()));
    let wrapper = ["valgrind", "--tool=callgrind", "--quiet"].map(str::to_owned);
    let out = format!("--callgrind-out-file={}", file.display());
    let wrapper: Vec<String> = wrapper.into_iter().chain([out]).collect();
    let options = ServerOptions { cpu: 0, shards, count_allocations: false };
    let running = server.start_under(&wrapper, options)?;
    // Dropped not before it has exited: how many ends a server serves until it is told to is a matter of luck.
    let requests = match args.workload {
        Load::Plain(workload) if args.lockstep => {
            let mut crowd = Crowd::connect(running.port(), workload.times(shards))?;
            let requests = run_in_lockstep(&running, &mut crowd, requests)?;
            running.exit()?;
            requests
        }
        Load::Tls(_) if args.lockstep => return Err("--lockstep is for plain workloads".into()),
        load => {
            let mut crowd = load.connect(running.port())?;
            let requests = crowd.run(Until::Requests(requests), &mut latencies())?.requests;
            running.exit()?;
            requests
        }
    };
    let counts = counts_of(&fs::read_to_string(&file)?)
        .ok_or_else(|| format!("{} is not as callgrind writes it", file.display()))?;
    if args.keep.is_none() {
        fs::remove_file(&file)?;
    }
    Ok((requests, counts))
}

/// Says how many requests were answered.
fn run_in_lockstep(server: &RunningServer, crowd: &mut Crowd, requests: u64) -> Result<u64> {
    let mut answered = 0;
    while answered < requests {
        server.pause()?;
        answered += crowd.run_one_round(|| server.go_on())?.requests;
    }
    // The last answer may be here before the turn that sent it is over.
    server.pause()?;
    server.go_on()?;
    Ok(answered)
}

/// What a callgrind file says: the total, and how often the one function was called that is a turn.
fn counts_of(file: &str) -> Option<Counts> {
    let mut instructions = None;
    let mut turns = 0;
    // A name is written out once, as `cfn=(17) name`; later on the number stands for it.
    let mut turn_number = None;
    let mut calls_turn = false;
    for line in file.lines() {
        if let Some(callee) = line.strip_prefix("cfn=").or(line.strip_prefix("fn=")) {
            let (number, name) = callee.split_once(' ').unwrap_or((callee, ""));
            if name.ends_with(TURN) {
                turn_number = Some(number);
            }
            calls_turn = turn_number == Some(number);
        } else if let Some(calls) = line.strip_prefix("calls=").filter(|_| calls_turn) {
            turns += calls.split(' ').next()?.parse::<u64>().ok()?;
        } else if let Some(total) = line.strip_prefix("totals:") {
            instructions = Some(total.trim().parse::<u64>().ok()?);
        }
    }
    Some(Counts { instructions: instructions? as f64, turns: turns as f64 })
}

/// The function of the library that is called once a turn, and not inlined.
const TURN: &str = "Shard>::phases";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_the_calls_of_the_function_that_is_a_turn_from_wherever() {
        let file = "fn=(1) main\n12 3\ncfn=(7) a::<impl a::Shard>::phases\ncalls=5 10\n12 400\n\
                    cfn=(8) other\ncalls=9 11\n12 1\nfn=(2) test\ncfn=(7)\ncalls=2 10\n3 40\ntotals: 444\n";
        let counts = counts_of(file).unwrap();
        assert_eq!((counts.instructions, counts.turns), (444.0, 7.0));
        assert!(counts_of("fn=(1) main\n12 3\n").is_none(), "a file that was cut short");
    }
}
