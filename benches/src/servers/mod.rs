//! The echo servers, by name, and how they are told to count and to stop. Does not measure.

#[allow(unsafe_code, reason = "installing a signal handler is unsafe")]
pub(crate) mod control;
mod datagrams;
mod raw_epoll;
mod raw_mio;
#[cfg(feature = "ours")]
mod shardwise;
pub(crate) mod tls;
mod tokio;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use clap::{Args, ValueEnum};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket, socket_with, sockopt,
};

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
    /// Datagrams: level-triggered epoll, echoed one by one.
    UdpRawEpoll,
    /// The same again.
    #[value(name = "udp-raw-epoll-2")]
    UdpRawEpoll2,
    /// Datagrams on tokio current_thread.
    UdpTokio,
    /// Datagrams with the library, event style.
    UdpShardwiseProtocol,
    /// Datagrams with the library, async style.
    UdpShardwiseAsync,
    /// TLS: tokio current_thread and tokio-rustls, an echo.
    TlsTokio,
    /// The same again.
    #[value(name = "tls-tokio-2")]
    TlsTokio2,
    /// TLS with the library, event style, an echo.
    TlsShardwiseProtocol,
    /// TLS with the library, async style, an echo.
    TlsShardwiseAsync,
    /// TLS: tokio current_thread and tokio-rustls, bulk in either direction.
    TlsBulkTokio,
    /// The same again.
    #[value(name = "tls-bulk-tokio-2")]
    TlsBulkTokio2,
    /// TLS with the library, event style, bulk.
    TlsBulkShardwiseProtocol,
    /// TLS with the library, async style, bulk.
    TlsBulkShardwiseAsync,
    /// UNIX sockets: the loop of raw-epoll.
    UnixRawEpoll,
    /// The same again.
    #[value(name = "unix-raw-epoll-2")]
    UnixRawEpoll2,
    /// UNIX sockets on tokio current_thread.
    UnixTokio,
    /// UNIX sockets with the library, event style.
    UnixShardwiseProtocol,
    /// UNIX sockets with the library, async style, leased reads.
    UnixShardwiseAsync,
}

impl Implementation {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    pub(crate) fn is_built(self) -> bool {
        use Implementation::*;
        let is_ours = match self {
            RawEpoll | RawEpoll2 | RawMio | Tokio | UdpRawEpoll | UdpRawEpoll2 | UdpTokio => false,
            TlsTokio | TlsTokio2 | TlsBulkTokio | TlsBulkTokio2 => false,
            ShardwiseProtocol | ShardwiseAsync | ShardwiseAsyncCopied => true,
            UdpShardwiseProtocol | UdpShardwiseAsync => true,
            TlsShardwiseProtocol | TlsShardwiseAsync => true,
            TlsBulkShardwiseProtocol | TlsBulkShardwiseAsync => true,
            UnixRawEpoll | UnixRawEpoll2 | UnixTokio => false,
            UnixShardwiseProtocol | UnixShardwiseAsync => true,
        };
        cfg!(feature = "ours") || !is_ours
    }

    /// Whether it echoes datagrams.
    pub(crate) fn is_datagram(self) -> bool {
        use Implementation::*;
        matches!(self, UdpRawEpoll | UdpRawEpoll2 | UdpTokio | UdpShardwiseProtocol | UdpShardwiseAsync)
    }

    /// Whether it listens at a UNIX socket.
    pub(crate) fn is_unix(self) -> bool {
        use Implementation::*;
        matches!(self, UnixRawEpoll | UnixRawEpoll2 | UnixTokio | UnixShardwiseProtocol | UnixShardwiseAsync)
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
        Implementation::RawEpoll | Implementation::RawEpoll2 => {
            raw_epoll::serve(listen_on_loopback(args.port)?)?
        }
        Implementation::UnixRawEpoll | Implementation::UnixRawEpoll2 => {
            raw_epoll::serve_unix(listen_at_name(args.port)?)?;
        }
        Implementation::UnixTokio => {
            tokio::serve_unix(listen_at_name(args.port)?, args.buffer_bytes)?;
        }
        Implementation::RawMio => raw_mio::serve(listen_on_loopback(args.port)?)?,
        Implementation::Tokio => tokio::serve(listen_on_loopback(args.port)?, args.buffer_bytes)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseProtocol => shardwise::serve_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseAsync => shardwise::serve_leased(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::ShardwiseAsyncCopied => {
            shardwise::serve_copied(args.port, args.shards, args.buffer_bytes)?;
        }
        Implementation::UdpRawEpoll | Implementation::UdpRawEpoll2 => {
            datagrams::serve_raw(UdpSocket::bind((Ipv4Addr::LOCALHOST, args.port))?)?;
        }
        Implementation::UdpTokio => {
            datagrams::serve_tokio(UdpSocket::bind((Ipv4Addr::LOCALHOST, args.port))?)?;
        }
        #[cfg(feature = "ours")]
        Implementation::UdpShardwiseProtocol => datagrams::ours::serve_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::UdpShardwiseAsync => datagrams::ours::serve_async(args.port, args.shards)?,
        Implementation::TlsTokio | Implementation::TlsTokio2 => {
            tls::serve_tokio(listen_on_loopback(args.port)?, args.buffer_bytes)?;
        }
        Implementation::TlsBulkTokio | Implementation::TlsBulkTokio2 => {
            tls::serve_bulk_tokio(listen_on_loopback(args.port)?)?;
        }
        #[cfg(feature = "ours")]
        Implementation::TlsShardwiseProtocol => tls::ours::serve_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::TlsShardwiseAsync => tls::ours::serve_async(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::TlsBulkShardwiseProtocol => tls::ours::serve_bulk_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::TlsBulkShardwiseAsync => tls::ours::serve_bulk_async(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::UnixShardwiseProtocol => shardwise::serve_unix_protocol(args.port, args.shards)?,
        #[cfg(feature = "ours")]
        Implementation::UnixShardwiseAsync => shardwise::serve_unix_leased(args.port, args.shards)?,
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

/// The abstract name of the UNIX server that goes by the number `port`.
pub(crate) fn unix_name(port: u16) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(name_text(port).as_bytes())?)
}

fn name_text(port: u16) -> String {
    format!("shardwise-bench-{port}")
}

/// As [`listen_on_loopback`], at a name.
fn listen_at_name(port: u16) -> io::Result<UnixListener> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&listener, &unix_name(port)?)?;
    listen(&listener, BACKLOG)?;
    Ok(UnixListener::from(listener))
}

const BACKLOG: i32 = 4096;
/// A full read is followed by another, up to this many per turn of a connection.
const READS_PER_TURN: usize = 4;
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Accepts per turn.
const ACCEPTS_PER_TURN: usize = 64;
const EVENTS_PER_WAIT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::thread;

    /// Eight megabytes written before the first is read back: far more than the kernel's buffers hold.
    fn echoes_what_the_kernel_refuses_at_first(serve: fn(TcpListener) -> io::Result<()>) {
        let listener = listen_on_loopback(0).unwrap();
        let address = listener.local_addr().unwrap();
        // Servers never return: this thread ends with the test process.
        thread::spawn(move || serve(listener).unwrap());
        let mut reading = TcpStream::connect(address).unwrap();
        let mut writing = reading.try_clone().unwrap();
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let sent: Vec<u8> = (0..8 * 1024 * 1024).map(|_| random.u8(..)).collect();
        let mut received = vec![0; sent.len()];
        thread::scope(|scope| {
            let sent = &sent;
            scope.spawn(move || writing.write_all(sent).unwrap());
            reading.read_exact(&mut received).unwrap();
        });
        assert!(sent == received, "the echo differs, seed {seed}");
        reading.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reading.read(&mut [0]).unwrap(), 0, "the server closes when its peer has finished");
    }

    #[test]
    fn raw_epoll_keeps_and_sends_what_the_kernel_refuses_at_first() {
        echoes_what_the_kernel_refuses_at_first(raw_epoll::serve);
    }

    #[test]
    fn raw_mio_keeps_and_sends_what_the_kernel_refuses_at_first() {
        echoes_what_the_kernel_refuses_at_first(raw_mio::serve);
    }

    #[test]
    fn tokio_sends_all_too() {
        echoes_what_the_kernel_refuses_at_first(|listener| tokio::serve(listener, 16 * 1024));
    }
}
