//! User-space instructions per request, where wall clocks are too coarse. Kernel work is not counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::child::{Server, ServerOptions};
use crate::client::{Crowd, Until, Workload, latencies};
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
    workload: Workload,
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
    instructions_per_request: Option<f64>,
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
    let mut rows = Vec::new();
    let mut table = Table::new(&["server", "shards", "instructions/request"]);
    for &implementation in &args.implementations {
        let server = Server::Own(implementation);
        for &shards in &args.shards {
            let mut row = Row { server: server.name(), shards, absent: None, instructions_per_request: None };
            if server.is_built() {
                let count = |requests| {
                    count(args, &server, shards, requests)
                        .map_err(|error| format!("{}, {shards} shards: {error}", server.name()))
                };
                let per_request = (count(long)? as f64 - count(short)? as f64) / (long - short) as f64;
                row.instructions_per_request = Some(per_request);
                table.row(vec![server.name(), shards.to_string(), format!("{per_request:.0}")]);
            } else {
                row.absent = Some(NOT_BUILT);
                table.absent(&server.name(), NOT_BUILT);
            }
            rows.push(row);
        }
    }
    println!("\n{:?}, runs of {short} and {long} requests", args.workload);
    table.print();
    Ok(report::finish(args.json.as_deref(), &facts, &rows)?)
}

fn has_valgrind() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Instructions of a whole server run that answers `requests`.
fn count(args: &InstructionsArgs, server: &Server, shards: usize, requests: u64) -> Result<u64> {
    let folder = args.keep.clone().unwrap_or_else(std::env::temp_dir);
    let file = folder.join(format!("callgrind.{}.{}.{shards}.{requests}", std::process::id(), server.name()));
    let wrapper = ["valgrind", "--tool=callgrind", "--quiet"].map(str::to_owned);
    let out = format!("--callgrind-out-file={}", file.display());
    let wrapper: Vec<String> = wrapper.into_iter().chain([out]).collect();
    let options = ServerOptions { cpu: 0, shards, count_allocations: false };
    let running = server.start_under(&wrapper, options)?;
    let mut crowd = Crowd::connect(running.port(), args.workload)?;
    crowd.run(Until::Requests(requests), &mut latencies())?;
    running.exit()?;
    let total = total_of(&file)?;
    if args.keep.is_none() {
        fs::remove_file(&file)?;
    }
    Ok(total)
}

/// The total a callgrind file states.
fn total_of(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals:"));
    Ok(line.ok_or_else(|| format!("{} has no totals", file.display()))?.trim().parse()?)
}
