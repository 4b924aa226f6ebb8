//! What can go wrong at each boundary. Errors say what, where and why; refusals give back what they were given.
//!
//! One convention for causes: an error's text is one line and ends with its cause's, so that printing the error alone
//! tells all. `source` is then the cause's own cause, so that a printed chain says nothing twice. The cause itself is a
//! field of the variant.

mod names;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

pub(crate) use self::names::{AddressFault, NameFault, Wanted};
pub use self::names::{InvalidAddress, InvalidName, ResolveError};
use crate::ShardId;
use crate::addr::{Addr, InvalidPath, UnixAddr};

pub use tls::{CertificateProblem, TlsError};

mod tls;

/// What applications and their callbacks return: any error will do, and `?` works.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Why a runtime did not start, or did not end cleanly.
///
/// Its `Debug` is its one-line `Display`, so that a `main` which returns it prints something readable. The line ends with
/// the cause's text; the cause itself is in the variant, and [`Error::source`] gives the cause's own cause.
#[non_exhaustive]
pub enum RunError {
    /// A setting is out of range.
    Config(ConfigError),
    /// The shards cannot be placed as asked: no shard, a CPU that may not be used.
    Placement(Box<dyn Error + Send + Sync>),
    /// A shard's driver or thread could not be made, or its driver broke.
    Os {
        /// The shard.
        shard: ShardId,
        /// What was being done.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// `App::prepare` returned an error.
    Prepare(Box<dyn Error + Send + Sync>),
    /// `App::start` returned an error: the first one, all shards were stopped for it.
    Start {
        /// The shard whose `start` failed.
        shard: ShardId,
        /// What it returned.
        source: Box<dyn Error + Send + Sync>,
    },
    /// `App::start` panicked, or a shard did.
    Panicked {
        /// The shard.
        shard: ShardId,
        /// The panic's message.
        message: String,
    },
    /// Connections were still open when the drain deadline passed or a second signal came; they were aborted.
    Forced {
        /// How many connections were aborted.
        connections: usize,
        /// The signal that asked for the stop, if one did.
        signal: Option<i32>,
    },
    /// The signal handlers could not be installed.
    Signals(io::Error),
    /// On a shard's own thread, which would stand still while it waits for the new runtime.
    OnShardThread,
}

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Config(error) => write!(formatter, "{error}"),
            RunError::Placement(error) => write!(formatter, "{error}"),
            RunError::Os { shard, action, source } => write!(formatter, "{shard}: {action}: {source}"),
            RunError::Prepare(error) => write!(formatter, "prepare failed: {error}"),
            RunError::Start { shard, source } => write!(formatter, "{shard} failed to start: {source}"),
            RunError::Panicked { shard, message } => write!(formatter, "{shard} panicked: {message}"),
            RunError::Forced { connections, .. } => {
                write!(formatter, "stopped by force with {connections} connections still open")
            }
            RunError::Signals(error) => write!(formatter, "cannot install signal handlers: {error}"),
            RunError::OnShardThread => {
                write!(formatter, "a runtime cannot be started on a shard's own thread")
            }
        }
    }
}

impl fmt::Debug for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Error for RunError {
    /// What the cause says of its own cause: the cause itself is part of the text.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RunError::Config(error) => error.source(),
            RunError::Placement(error) | RunError::Prepare(error) => error.source(),
            RunError::Start { source, .. } => source.source(),
            RunError::Os { source, .. } | RunError::Signals(source) => source.source(),
            RunError::Panicked { .. } | RunError::Forced { .. } | RunError::OnShardThread => None,
        }
    }
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) setting: &'static str,
    pub(crate) range: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "setting `{}` is out of range: it must be {}", self.setting, self.range)
    }
}

impl Error for ConfigError {}

/// The runtime, or the shard, is not running: it was never started, or was stopped already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRunning;

impl fmt::Display for NotRunning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("not running")
    }
}

impl Error for NotRunning {}

/// Why an address cannot be listened on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// The address is not one.
    InvalidAddress(InvalidAddress),
    /// No UNIX socket can have that name.
    InvalidPath(InvalidPath),
    /// Somebody listens there already: another process, or this shard.
    AddressInUse {
        /// The address.
        addr: Addr,
    },
    /// Anything else the operating system said: no permission, no such address here, …
    Os {
        /// The address.
        addr: Addr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The shard is stopping.
    Stopping,
}

impl fmt::Display for ListenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenError::InvalidAddress(error) => write!(formatter, "cannot listen: {error}"),
            ListenError::InvalidPath(error) => write!(formatter, "cannot listen: {error}"),
            ListenError::AddressInUse { addr } => {
                write!(formatter, "cannot listen on {addr}: address in use")
            }
            ListenError::Os { addr, source } => write!(formatter, "cannot listen on {addr}: {source}"),
            ListenError::Stopping => write!(formatter, "cannot listen: the shard is stopping"),
        }
    }
}

impl Error for ListenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ListenError::InvalidAddress(error) => error.source(),
            ListenError::Os { source, .. } => source.source(),
            ListenError::InvalidPath(_) | ListenError::AddressInUse { .. } | ListenError::Stopping => None,
        }
    }
}

impl From<InvalidAddress> for ListenError {
    fn from(error: InvalidAddress) -> Self {
        ListenError::InvalidAddress(error)
    }
}

impl From<InvalidPath> for ListenError {
    fn from(error: InvalidPath) -> Self {
        ListenError::InvalidPath(error)
    }
}

/// Why a connection was not established.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The target is not one.
    InvalidAddress(InvalidAddress),
    /// The host's addresses are not known.
    Resolve(ResolveError),
    /// The host has addresses, and none of them could be connected to.
    AllFailed {
        /// What was aimed at: host and port.
        target: String,
        /// What became of each address that was tried, in the order of the failures. Those that had not answered by the
        /// deadline come last, as [`ConnectError::TimedOut`].
        causes: Vec<ConnectError>,
    },
    /// No UNIX socket can have that name.
    InvalidPath(InvalidPath),
    /// The address to connect from cannot be used.
    Bind {
        /// The address to connect from.
        addr: Addr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nobody listens there.
    Refused {
        /// The address aimed at.
        addr: Addr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nobody holds the lock file beside the path, which was to be checked: whoever listened there is gone, or never took
    /// one. Nothing was tried.
    NoOwner {
        /// The name aimed at.
        addr: Addr,
    },
    /// It took longer than it may.
    TimedOut {
        /// The address aimed at.
        addr: Addr,
        /// How long it was tried.
        after: Duration,
    },
    /// The caller gave up.
    Cancelled,
    /// There are as many connections as a [`ConnectionLimit`](crate::policies::ConnectionLimit) allows, in all or to that
    /// peer.
    LimitReached {
        /// The address aimed at.
        addr: Addr,
    },
    /// The factory refused the connection.
    NoProtocol,
    /// The connection was established, but not its TLS.
    Tls {
        /// What was aimed at: host, or address, and port.
        target: String,
        /// Why not.
        source: TlsError,
    },
    /// The shard is stopping.
    Stopping,
    /// Anything else the operating system said: no route, no port left, …
    Os {
        /// The address aimed at.
        addr: Addr,
        /// What the operating system said.
        source: io::Error,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::InvalidAddress(error) => write!(formatter, "cannot connect: {error}"),
            ConnectError::Resolve(error) => write!(formatter, "cannot connect: {error}"),
            ConnectError::AllFailed { target, causes } => {
                write!(formatter, "cannot connect to {target}")?;
                for (number, cause) in causes.iter().enumerate() {
                    let separator = if number == 0 { ": " } else { "; " };
                    write!(formatter, "{separator}{cause}")?;
                }
                Ok(())
            }
            ConnectError::InvalidPath(error) => write!(formatter, "cannot connect: {error}"),
            ConnectError::NoOwner { addr } => {
                write!(formatter, "cannot connect to {addr}: no live process holds its lock file")
            }
            ConnectError::Bind { addr, source } => write!(formatter, "cannot connect from {addr}: {source}"),
            ConnectError::Refused { addr, source } => write!(formatter, "cannot connect to {addr}: {source}"),
            ConnectError::TimedOut { addr, after } => {
                write!(formatter, "cannot connect to {addr}: no answer after {after:?}")
            }
            ConnectError::Cancelled => write!(formatter, "connecting was cancelled"),
            ConnectError::LimitReached { addr } => {
                write!(
                    formatter,
                    "cannot connect to {addr}: there are as many connections as the limit allows"
                )
            }
            ConnectError::NoProtocol => write!(formatter, "the factory refused the connection"),
            ConnectError::Tls { target, source } => write!(formatter, "no TLS with {target}: {source}"),
            ConnectError::Stopping => write!(formatter, "cannot connect: the shard is stopping"),
            ConnectError::Os { addr, source } => write!(formatter, "cannot connect to {addr}: {source}"),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ConnectError::InvalidAddress(error) => error.source(),
            ConnectError::Resolve(error) => error.source(),
            ConnectError::AllFailed { causes, .. } => causes.last().and_then(Error::source),
            ConnectError::Bind { source, .. }
            | ConnectError::Refused { source, .. }
            | ConnectError::Os { source, .. } => source.source(),
            _ => None,
        }
    }
}

impl From<ResolveError> for ConnectError {
    fn from(error: ResolveError) -> Self {
        ConnectError::Resolve(error)
    }
}

impl From<InvalidAddress> for ConnectError {
    fn from(error: InvalidAddress) -> Self {
        ConnectError::InvalidAddress(error)
    }
}

impl From<InvalidPath> for ConnectError {
    fn from(error: InvalidPath) -> Self {
        ConnectError::InvalidPath(error)
    }
}

/// Why nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The connection is closed or closing, or its write half was shut.
    Closed,
    /// More would be unsent than [`Watermarks::cap_bytes`](crate::Watermarks::cap_bytes) allows. The connection is
    /// open, and nothing of this write was taken.
    Full,
}

impl fmt::Display for WriteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            WriteError::Closed => "the connection is closed for writing",
            WriteError::Full => "the connection has too much unsent output",
        })
    }
}

impl Error for WriteError {}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        let kind = match error {
            WriteError::Closed => io::ErrorKind::BrokenPipe,
            WriteError::Full => io::ErrorKind::WouldBlock,
        };
        io::Error::new(kind, error)
    }
}

/// Why a datagram was not sent. The socket is as it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The destination is not an address; names are not looked up.
    InvalidAddress(InvalidAddress),
    /// An IPv4 socket cannot send to IPv6, nor an IPv6 socket to IPv4.
    WrongFamily {
        /// The destination.
        to: SocketAddr,
    },
    /// No datagram is that long, or the way there takes none.
    TooLong {
        /// How long it was.
        bytes: usize,
    },
    /// The kernel has no room now. `DatagramProtocol::sendable` is called when it has; the sends that are awaited wait
    /// for it.
    NoRoom,
    /// It has no peer, and none was named.
    NotConnected,
    /// It has a peer, and can send to nobody else; nor be connected again.
    Connected {
        /// The peer.
        peer: SocketAddr,
    },
    /// As `Connected`, for a UNIX socket.
    ConnectedUnix {
        /// The peer.
        peer: UnixAddr,
    },
    /// No UNIX socket can have that name.
    InvalidPath(InvalidPath),
    /// The socket is closed.
    Closed,
    /// Anything else the operating system said: no route, broadcast is not allowed, …
    Os(io::Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::InvalidAddress(error) => write!(formatter, "cannot send: {error}"),
            SendError::WrongFamily { to } => {
                write!(formatter, "cannot send to {to}: the socket is of the other IP version")
            }
            SendError::TooLong { bytes } => write!(formatter, "{bytes} bytes are too long for a datagram"),
            SendError::NoRoom => write!(formatter, "the kernel has no room for a datagram now"),
            SendError::NotConnected => write!(formatter, "no destination: the socket is not connected"),
            SendError::Connected { peer } => write!(formatter, "the socket is connected to {peer}"),
            SendError::ConnectedUnix { peer } => write!(formatter, "the socket is connected to {peer}"),
            SendError::InvalidPath(error) => write!(formatter, "cannot send: {error}"),
            SendError::Closed => write!(formatter, "the socket is closed"),
            SendError::Os(source) => write!(formatter, "cannot send: {source}"),
        }
    }
}

impl Error for SendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SendError::InvalidAddress(error) => Some(error),
            SendError::Os(source) => Some(source),
            _ => None,
        }
    }
}

impl From<InvalidAddress> for SendError {
    fn from(error: InvalidAddress) -> Self {
        SendError::InvalidAddress(error)
    }
}

/// Why a multicast group was not joined or left.
#[derive(Debug)]
#[non_exhaustive]
pub enum MulticastError {
    /// The address is no group's: neither in 224.0.0.0/4 nor in ff00::/8.
    NotMulticast {
        /// The address.
        addr: std::net::IpAddr,
    },
    /// The group is of the other IP version.
    WrongFamily {
        /// The group.
        group: std::net::IpAddr,
    },
    /// The socket is closed.
    Closed,
    /// What the operating system said: no such interface, too many groups, …
    Os(io::Error),
}

impl fmt::Display for MulticastError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MulticastError::NotMulticast { addr } => write!(formatter, "{addr} is no multicast group"),
            MulticastError::WrongFamily { group } => {
                write!(formatter, "{group}: the socket is of the other IP version")
            }
            MulticastError::Closed => write!(formatter, "the socket is closed"),
            MulticastError::Os(source) => write!(formatter, "multicast: {source}"),
        }
    }
}

impl Error for MulticastError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            MulticastError::Os(source) => Some(source),
            _ => None,
        }
    }
}

/// A connection has a producer already, which stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerError {
    /// The type of the one that is registered.
    pub kept: &'static str,
    /// The type of the one that was refused.
    pub refused: &'static str,
}

impl fmt::Display for ProducerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProducerError { kept, refused } = self;
        write!(formatter, "`{refused}` cannot be registered: `{kept}` produces for this connection already")
    }
}

impl Error for ProducerError {}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// We closed it; all output was handed to the kernel.
    Closed,
    /// The peer finished, and so did we.
    PeerFinished,
    /// We aborted it; unsent output is lost.
    Aborted,
    /// The connection went to another owner: another shard, or whoever detached it.
    HandedOff,
    /// TLS failed: its handshake, or what came after it. [`TlsError::Truncated`] is an end that the peer did not announce.
    Tls(TlsError),
    /// The protocol left more of its input unread than it may.
    InputTooLong {
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// The peer took nothing of our output for too long.
    WriteStalled {
        /// How long, at the least.
        after: Duration,
    },
    /// The deadline set for the connection has passed.
    DeadlineReached,
    /// No byte went either way for as long as its idle timeout.
    Idle {
        /// How long, at the least.
        after: Duration,
    },
    /// A callback of the protocol returned an error.
    Protocol(Box<dyn Error + Send + Sync>),
    /// A callback of the protocol panicked, with this message.
    Panicked(String),
    /// The runtime stopped, and the connection had not ended by the drain deadline or by a second signal.
    Stopped,
    /// The connection broke.
    Os {
        /// The call that found it.
        call: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl CloseReason {
    /// Whether both sides ended it in order.
    pub fn is_clean(&self) -> bool {
        matches!(self, CloseReason::Closed | CloseReason::PeerFinished | CloseReason::HandedOff)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Closed => write!(formatter, "closed"),
            CloseReason::PeerFinished => write!(formatter, "the peer finished"),
            CloseReason::Aborted => write!(formatter, "aborted"),
            CloseReason::HandedOff => write!(formatter, "handed off"),
            CloseReason::Tls(error) => write!(formatter, "TLS: {error}"),
            CloseReason::InputTooLong { limit_bytes } => {
                write!(formatter, "more than {limit_bytes} bytes of input were left unread")
            }
            CloseReason::WriteStalled { after } => {
                write!(formatter, "the peer took no output for {after:?}")
            }
            CloseReason::DeadlineReached => write!(formatter, "its deadline passed"),
            CloseReason::Idle { after } => write!(formatter, "idle for {after:?}"),
            CloseReason::Protocol(error) => write!(formatter, "the protocol failed: {error}"),
            CloseReason::Panicked(message) => write!(formatter, "the protocol panicked: {message}"),
            CloseReason::Stopped => write!(formatter, "still open when the runtime stopped"),
            CloseReason::Os { call, source } => write!(formatter, "{call}: {source}"),
        }
    }
}

impl Error for CloseReason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            CloseReason::Os { source, .. } => source.source(),
            CloseReason::Protocol(error) => error.source(),
            _ => None,
        }
    }
}

/// Writes to the log. The subscriber is the application's code, and so is the `Display` of its errors: a panic of theirs
/// goes no further. Says whether all went well.
#[cold]
pub(crate) fn log_contained(log: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(log)) {
        Ok(()) => true,
        Err(payload) => {
            // It may panic again when it is dropped; it is leaked instead.
            std::mem::forget(payload);
            false
        }
    }
}

/// The text of a panic's payload.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_string()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text".to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cause with a cause.
    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("the outer one")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    fn inner() -> io::Error {
        io::Error::other("the inner one")
    }

    fn outer() -> Box<dyn Error + Send + Sync> {
        Box::new(Outer(inner()))
    }

    /// The error and its chain of causes, as programs print them.
    fn chain(mut error: &dyn Error) -> Vec<String> {
        let mut lines = vec![error.to_string()];
        while let Some(source) = error.source() {
            lines.push(source.to_string());
            error = source;
        }
        lines
    }

    #[test]
    fn a_printed_chain_says_nothing_twice_and_the_first_line_tells_the_cause() {
        let shard = ShardId::new(3);
        let addr: SocketAddr = ([127, 0, 0, 1], 80).into();
        let failed =
            || ResolveError::Failed { name: "a.example".to_string(), source: io::Error::other(outer()) };
        let os = |source| ConnectError::Os { addr: addr.into(), source };
        let all = ConnectError::AllFailed {
            target: "a.example:80".to_string(),
            causes: vec![ConnectError::Cancelled, os(io::Error::other(outer()))],
        };
        let with_two: [Box<dyn Error>; 7] = [
            Box::new(failed()),
            Box::new(ConnectError::Resolve(failed())),
            Box::new(all),
            Box::new(RunError::Placement(outer())),
            Box::new(RunError::Prepare(outer())),
            Box::new(RunError::Start { shard, source: outer() }),
            Box::new(CloseReason::Protocol(outer())),
        ];
        for error in with_two {
            let lines = chain(&*error);
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(lines[0].ends_with("the outer one"), "{lines:?}");
            assert_eq!(lines[1], "the inner one");
        }
        let text = || InvalidAddress {
            text: "nowhere".to_string(),
            wanted: Wanted::Address,
            fault: AddressFault::NoPort,
        };
        let name = || InvalidName { name: String::new(), fault: NameFault::Empty };
        let addr = || addr.into();
        let with_one: [(Box<dyn Error>, &str); 13] = [
            (Box::new(ResolveError::InvalidName(name())), "it is empty"),
            (Box::new(ConnectError::Resolve(name().into())), "it is empty"),
            (Box::new(RunError::Config(ConfigError { setting: "a", range: "b" })), "it must be b"),
            (Box::new(RunError::Os { shard, action: "x", source: inner() }), "the inner one"),
            (Box::new(RunError::Signals(inner())), "the inner one"),
            (Box::new(ListenError::InvalidAddress(text())), "[::1]:7000"),
            (Box::new(ListenError::Os { addr: addr(), source: inner() }), "the inner one"),
            (Box::new(ConnectError::InvalidAddress(text())), "[::1]:7000"),
            (Box::new(ConnectError::Bind { addr: addr(), source: inner() }), "the inner one"),
            (Box::new(ConnectError::Refused { addr: addr(), source: inner() }), "the inner one"),
            (Box::new(ConnectError::Os { addr: addr(), source: inner() }), "the inner one"),
            (Box::new(CloseReason::Os { call: "x", source: inner() }), "the inner one"),
            (Box::new(RunError::Panicked { shard, message: "boom".to_string() }), "boom"),
        ];
        for (error, end) in with_one {
            let lines = chain(&*error);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].ends_with(end) && !lines[0].contains('\n'), "{lines:?}");
        }
    }
}
