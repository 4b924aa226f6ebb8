//! What a shard asks of its kernel about datagrams: the part of the seam beside connections.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::reactor::datagrams::Batch;
use crate::reactor::token::Token;
use crate::sys::socket::{Reuse, Socket};

/// The verbs for datagram sockets. `receive`, `share_port`, `local_addr` and `close` of [`Driver`](super::Driver) are
/// theirs, too.
pub(crate) trait DatagramDriver {
    /// Binds a socket. Receiving is off until asked for.
    fn bind_datagram(&mut self, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)>;

    /// Takes over a socket that is bound already; of `spec` only what it may take of a turn counts. Receiving is off until
    /// asked for.
    fn adopt_datagram(&mut self, socket: Socket, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)>;

    /// Sends to and receives from `peer` alone, from now on.
    fn connect_datagram(&mut self, token: Token, peer: SocketAddr) -> io::Result<()>;

    /// Sends one datagram, to the connected peer unless another is named.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room: [`DatagramEvent::Room`] tells when there is. `ENOBUFS` when the kernel has
    /// no memory: nothing tells of its end. Errors that a peer has sent are told as events, not here.
    fn send_datagram(&mut self, token: Token, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()>;

    /// Sends `bytes` as datagrams of `segment_bytes`; the last may be shorter. Says how many bytes left, which is
    /// 0 only if there are none.
    ///
    /// # Errors
    /// As [`DatagramDriver::send_datagram`], when not even the first left.
    fn send_segments(
        &mut self,
        token: Token,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
    ) -> io::Result<usize>;

    fn set_datagram_option(&mut self, token: Token, option: DatagramOption) -> io::Result<()>;

    /// The option as it is now; the value in `which` does not count.
    fn datagram_option(&self, token: Token, which: DatagramOption) -> io::Result<DatagramOption>;
}

#[derive(Clone, Debug)]
pub(crate) struct DatagramSpec {
    pub(crate) addr: SocketAddr,
    pub(crate) reuse: Reuse,
    /// Longer ones are cut.
    pub(crate) datagram_bytes_max: usize,
    /// Let the kernel join datagrams of one sender. They come apart again in the batch.
    pub(crate) joined: bool,
    pub(crate) receive_buffer_bytes: Option<usize>,
    pub(crate) send_buffer_bytes: Option<usize>,
    /// What one socket may take of a turn: messages, and their bytes.
    pub(crate) datagrams_per_turn: usize,
    pub(crate) bytes_per_turn: usize,
}

/// What happened to a datagram socket.
pub(crate) enum DatagramEvent {
    /// Some came; never none.
    Received(Batch),
    /// There is room again, after a `WouldBlock`.
    Room,
    /// The network said something about an earlier datagram: nobody there, no route. The socket works on.
    Complaint(io::Error),
    /// The socket is broken, and silent until it is closed.
    Broken(io::Error),
}

/// A setting of a datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DatagramOption {
    Broadcast(bool),
    MulticastHops(u32),
    MulticastLoop(bool),
    /// The interface that multicast leaves by.
    MulticastInterface(MulticastInterface),
    Membership {
        group: IpAddr,
        interface: MulticastInterface,
        member: bool,
    },
}

/// A network interface, as multicast names it.
///
/// IPv4 names an interface by its address, IPv6 by its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MulticastInterface {
    /// The one the system chooses.
    #[default]
    Any,
    /// The one with this address (IPv4).
    Addr(std::net::Ipv4Addr),
    /// The one with this index (IPv6); see `if_nametoindex(3)`.
    Index(u32),
}

pub(crate) fn wrong_interface() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "IPv4 multicast names an interface by its address, IPv6 multicast by its index",
    )
}
