//! The echo servers, by name, and how they are told to count and to stop. Does not measure.

#[allow(unsafe_code, reason = "installing a signal handler is unsafe")]
pub(crate) mod control;
mod raw_epoll;
mod raw_mio;
#[cfg(feature = "ours")]
mod shardwise;
mod tokio;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use clap::{Args, ValueEnum};
use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};

use crate::{Result, allocation, machine};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Implementation {
    /// Level-triggered epoll, one 64 KiB buffer, echoed straight.
    RawEpoll,
    /// The same again: shows the bias the method has left.
    #[value(name = "raw-epoll-2")]
    RawEpoll2,
    /// mio's Poll, edge-triggered, otherwise the same loop.
    RawMio,
    /// tokio current_thread, a task and a buffer per connection.
    Tokio,
    /// The library, event style.
    ShardwiseProtocol,
    /// The library, async style, leased reads.
    ShardwiseAsync,
    /// The library, async style, reads copied into a buffer of the task.
    ShardwiseAsyncCopied,
}

impl Implementation {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    pub(crate) fn is_built(self) -> bool {
        use Implementation::*;
        cfg!(feature = "ours") || !matches!(self, ShardwiseProtocol | ShardwiseAsync | ShardwiseAsyncCopied)
    }
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    #[arg(long = "impl")]
    implementation: Implementation,
    /// The CPU to be pinned to.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Several CPUs, instead of --cpu: only the library's servers use more than the first.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    #[arg(long)]
    port: u16,
    /// Shards of the library's servers; may be more than the CPUs.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Buffer of each connection, where the server's style has one (tokio, copied reads).
    #[arg(long, default_value_t = 16 * 1024)]
    buffer_bytes: usize,
    /// Count live allocator bytes (slower).
    #[arg(long)]
    count_allocations: bool,
    /// Obey SIGUSR1 (answer with a line: the live bytes) and SIGUSR2 (exit cleanly).
    #[arg(long)]
    controlled: bool,
}

/// Serves until killed or told to exit.
pub(crate) fn serve(args: &ServeArgs) -> Result<()> {
    machine::raise_descriptor_limit()?;
    let cpus = if args.cpus.is_empty() { vec![args.cpu] } else { args.cpus.clone() };
    machine::pin(&cpus)?;
    if args.count_allocations {
        allocation::start_counting();
    }
    if args.controlled {
        control::obey()?;
    }
    match args.implementation {
        Implementation::RawEpoll | Implementation::RawEpoll2 => raw_epoll::serve(args.port)?,
        Implementation::RawMio => raw_mio::serve(args.port)?,
        Implementation::Tokio => tokio::serve(args.port, args.buffer_bytes)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseProtocol => shardwise::serve_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseAsync => shardwise::serve_leased(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseAsyncCopied => {
            shardwise::serve_copied(args.port, args.shards, args.buffer_bytes)?;
        }
        #[cfg(not(feature = "ours"))]
        _ => {
            return Err(format!(
                "{}: {} ({} shards)",
                args.implementation.name(),
                crate::report::NOT_BUILT,
                args.shards
            )
            .into());
        }
    }
    Ok(())
}

/// A non-blocking listener on loopback with a backlog no workload here overruns.
fn listen_on_loopback(port: u16) -> io::Result<TcpListener> {
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    listen(&listener, BACKLOG)?;
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

const BACKLOG: i32 = 4096;
/// A full read is followed by another, up to this many per turn of a connection.
const READS_PER_TURN: usize = 4;
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Accepts per turn.
const ACCEPTS_PER_TURN: usize = 64;
const EVENTS_PER_WAIT: usize = 1024;
