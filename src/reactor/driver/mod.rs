//! The seam between a shard and a kernel: completions, not readiness. A readiness kernel imitates completions
//! cheaply; the other way round it cannot be done. Everything above this trait exists once.

pub(crate) mod datagrams;
pub(crate) mod mio;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod sim;
pub(crate) mod unix;
pub(crate) mod watching;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use self::datagrams::{DatagramDriver, DatagramEvent};
use self::unix::UnixDriver;
use self::watching::{Ready, WatchDriver};
use super::buffer::Output;
use super::lease::Lease;
use super::token::Token;
use super::waker::DriverWaker;
use crate::addr::Addr;
use crate::sys::socket::Socket;

/// What a shard asks of its kernel.
///
/// The driver makes the tokens. A token whose source is gone is ignored by verbs without a result and answered
/// with `NotConnected` by the others. No verb calls back: what happens is an [`Event`], fetched by `next`.
pub(crate) trait Driver: DatagramDriver + UnixDriver + WatchDriver {
    /// Wakes this driver out of `wait`, from any thread, also after the driver is gone.
    fn waker(&self) -> DriverWaker;

    /// The time as of the end of the last `wait` (or of construction). Costs nothing.
    fn now(&self) -> Instant;

    /// The time right now; becomes what `now` says.
    fn read_clock(&mut self) -> Instant;

    /// Binds and listens. Nothing is accepted until [`Driver::accept`] switches it on. With `spec.join` the
    /// address is shared with a member that listens already.
    fn listen(&mut self, spec: &ListenSpec) -> io::Result<(Token, SocketAddr)>;

    /// Lets others join this listener's address from now on (the recipe's second step).
    fn share_port(&mut self, listener: Token) -> io::Result<()>;

    /// Starts or stops accepting. Each connection arrives as [`Event::Accepted`], with receiving off.
    fn accept(&mut self, listener: Token, on: bool);

    /// Turns away new handshakes at this listener; what is queued, or in the middle of its handshake, still arrives.
    fn refuse_handshakes(&mut self, listener: Token) -> io::Result<()>;

    /// Accepts all that waits, without a cap: the last look before closing. Each one arrives as [`Event::Accepted`].
    /// Works while accepting is off, too.
    fn accept_queue(&mut self, listener: Token) -> Emptied;

    /// Begins to connect. Ends in [`Event::Connected`] or [`Event::Failed`], never before this returns.
    fn connect(&mut self, spec: &ConnectSpec) -> io::Result<Token>;

    /// Takes over a connected socket, with receiving off.
    fn adopt(&mut self, socket: DetachedSocket) -> io::Result<Token>;

    /// Gives a connected socket away; its token is gone. Nothing may be in flight.
    fn release(&mut self, token: Token) -> Option<DetachedSocket>;

    /// Switches receiving on or off. While off, a reset by the peer is still reported, and a `Received` already
    /// on its way may still come.
    fn receive(&mut self, token: Token, on: bool);

    /// Offers bytes to the kernel now. 0 is always allowed, and means "by `submit`". After less than all was
    /// taken, [`Event::Sent`] tells when there is room again.
    fn try_send(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize>;

    /// Hands over queued output; what is taken leaves `output`.
    fn submit(&mut self, token: Token, output: &mut Output) -> io::Result<Submitted>;

    /// Sends FIN. All output must have been taken and sent.
    fn shutdown_write(&mut self, token: Token) -> io::Result<()>;

    /// Retires a source of any kind. With [`CloseKind::Reset`] a peer sees RST. No event for `token` follows.
    fn close(&mut self, token: Token, kind: CloseKind);

    fn local_addr(&self, token: Token) -> io::Result<Addr>;
    fn set_option(&mut self, token: Token, option: SocketOption) -> io::Result<()>;

    /// Random bits: from a seed of the kernel's, or of the simulation's, whose runs they repeat with. Not for secrets.
    fn random(&mut self) -> u64;

    /// Waits until an event, a wake or `timeout` (`None`: for ever). Zero never sleeps. Also returns early, and at
    /// once, while sources that stopped on their budget have more. Reads the clock at its end.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// Whether `next` has something to tell now.
    fn has_ready(&self) -> bool;

    /// How long a wait of `wanted` may last before this driver has to be asked again: zero while sources that stopped on
    /// their budget have more.
    fn longest_rest(&self, wanted: Option<Duration>) -> Option<Duration>;

    /// The next thing that happened. `None` ends the batch of this turn; a source that stopped on its budget then
    /// stays ready for the next one. One connection is read per call.
    fn next(&mut self) -> Option<Event>;

    /// A descriptor that can be read from while `wait` would find something in the kernel: for loops around this one.
    fn news_fd(&self) -> io::Result<OwnedFd>;

    /// What is open and on loan, for leak checks and metrics.
    fn census(&self) -> Census;
}

/// The sizes of a driver. `Default` is what a shard uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DriverConfig {
    /// Bytes of one read buffer. Larger than the common message: a read that fills it costs a second one.
    pub(crate) read_buffer_bytes: usize,
    /// Readiness events taken from the kernel by one `wait`.
    pub(crate) events_per_wait: usize,
}

impl Default for DriverConfig {
    fn default() -> Self {
        DriverConfig { read_buffer_bytes: 64 * 1024, events_per_wait: 1024 }
    }
}

/// What happened. Bytes are owned by the event, on loan from the driver.
pub(crate) enum Event {
    /// A connection came in at `listener`. Receiving is off until asked for.
    Accepted { listener: Token, token: Token, peer: Addr },
    /// An outgoing connection stands. Receiving is off until asked for.
    Connected { token: Token },
    /// Bytes came; never empty.
    Received { token: Token, bytes: Lease },
    /// Descriptors came, of this connection's next bytes or of bytes before them; never none.
    Descriptors { token: Token, descriptors: Vec<OwnedFd> },
    /// The peer has sent FIN; every byte before it has been delivered. At most once.
    PeerFinished { token: Token },
    /// There is room for output again, after a short `try_send` or a `Blocked` `submit`.
    Sent { token: Token },
    /// The source is broken: an outgoing connection was refused, a connection was reset. The source stays open, and
    /// silent, until it is closed.
    Failed { token: Token, error: io::Error },
    /// Accepting failed: out of descriptors or memory. The driver has paused the listener and will go on by itself.
    AcceptFailed { listener: Token, error: io::Error },
    /// Something happened to a datagram socket.
    Datagram { token: Token, event: DatagramEvent },
    /// A descriptor of the application is as it was wanted; nothing more is told of it until it is armed again.
    Ready { token: Token, ready: Ready },
}

/// What a last look at a listener's queue has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Emptied {
    /// How many connections it gave.
    pub(crate) accepted: usize,
    /// Some may be left: descriptors or memory ran out.
    pub(crate) more: bool,
}

/// How much of the output the kernel has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    /// All of it.
    Done,
    /// Not all; [`Event::Sent`] follows when there is room.
    Blocked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseKind {
    Orderly,
    Reset,
}

#[derive(Clone, Debug)]
pub(crate) struct ListenSpec {
    pub(crate) addr: SocketAddr,
    /// Finished handshakes that may wait, per member.
    pub(crate) backlog: u32,
    /// Another member listens at this very address: share it.
    pub(crate) join: bool,
    /// Connections accepted per turn.
    pub(crate) accepts_per_turn: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct ConnectSpec {
    pub(crate) addr: SocketAddr,
    /// Where to connect from.
    pub(crate) bind_addr: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketOption {
    /// TCP_NODELAY.
    NoDelay(bool),
    /// SO_KEEPALIVE, with the times of `sys::socket`.
    KeepAlive(bool),
}

/// A connected socket on its way from one shard to another.
pub(crate) enum DetachedSocket {
    Os(Socket),
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimSocket),
}

impl DetachedSocket {
    /// # Errors
    /// `InvalidInput` for a socket that no kernel knows.
    fn into_os(self) -> io::Result<Socket> {
        match self {
            DetachedSocket::Os(socket) => Ok(socket),
            #[cfg(any(test, feature = "testing"))]
            DetachedSocket::Sim(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) listeners: usize,
    /// Datagram sockets and descriptors of the application count among them.
    pub(crate) connections: usize,
    pub(crate) leases: usize,
}
