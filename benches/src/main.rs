//! Measures shardwise against hand-written loops and against its peers. See README.md.

#[allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
mod allocation;
#[allow(unsafe_code, reason = "a child's parent-death signal is set between fork and exec")]
mod child;
mod client;
mod cross_shard;
mod echo;
mod instructions;
mod load;
#[allow(unsafe_code, reason = "the CPU clock of another process has no safe wrapper")]
mod machine;
mod memory;
mod report;
mod servers;
mod spawn;
mod statistics;
mod timers;
mod tls_client;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Parses a number that makes sense only from one up.
fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// Measures shardwise against hand-written loops and against its peers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one echo server until killed.
    Serve(servers::ServeArgs),
    /// Server CPU per request against a raw epoll loop, by slices.
    Echo(echo::EchoArgs),
    /// User-space bytes per idle connection.
    Memory(memory::MemoryArgs),
    /// Hold idle connections; obeys the parent. Part of `memory`.
    #[command(hide = true)]
    Hold(memory::HoldArgs),
    /// User-space instructions per request, counted by callgrind.
    Instructions(instructions::InstructionsArgs),
    /// Round trips between two threads, asleep and polling.
    CrossShard(cross_shard::CrossShardArgs),
    /// Timers: schedule and cancel, and fire, a million of each.
    Timers(timers::TimersArgs),
    /// Spawning a local task and awaiting it.
    Spawn(spawn::SpawnArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => servers::serve(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Hold(args) => memory::hold(&args),
        Command::Instructions(args) => instructions::run(&args),
        Command::CrossShard(args) => cross_shard::run(&args),
        Command::Timers(args) => timers::run(&args),
        Command::Spawn(args) => spawn::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shardwise-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
