//! What a shard asks of its kernel about UNIX sockets and sockets that others have made: the part of the seam that TCP does
//! without.

use std::io;
use std::os::fd::OwnedFd;

use super::datagrams::DatagramSpec;
use crate::addr::{Addr, UnixAddr};
use crate::reactor::token::Token;
use crate::sys::socket::{PeerCredentials, Socket};
use crate::sys::unix::BindHow;

/// The verbs for descriptors that travel with bytes, for peers that are processes, and for sockets from elsewhere.
pub(crate) trait UnixDriver {
    /// Binds and listens, for one shard alone: as [`Driver::listen`](super::Driver::listen), `accept`, `refuse_handshakes`,
    /// `accept_queue` and `close` are of [`Driver`](super::Driver).
    fn listen_unix(&mut self, spec: &UnixListenSpec) -> io::Result<Token>;

    /// As [`Driver::connect`](super::Driver::connect). A listener whose queue is full is tried again and again.
    fn connect_unix(&mut self, name: &UnixAddr) -> io::Result<Token>;

    /// Sends `bytes`, of which there is at least one, with `descriptors` on the first of them: at most 253, and all of
    /// them or none. Says how many bytes were taken, as [`Driver::try_send`](super::Driver::try_send) does.
    ///
    /// # Errors
    /// `ETOOMANYREFS` while too many descriptors of this user are under way: nothing tells when that ends.
    fn send_descriptors(&mut self, token: Token, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize>;

    /// Whether descriptors that come are told, by [`Event::Descriptors`](super::Event::Descriptors), or closed unseen.
    /// Off until switched on.
    fn receive_descriptors(&mut self, token: Token, on: bool);

    /// Binds a datagram socket, unless its name is none; of `spec` only what it may take of a turn counts, and how long a
    /// datagram may be. `receive` and `close` are of [`Driver`](super::Driver), and room is told as for any other.
    fn bind_unix_datagram(&mut self, name: &UnixAddr, how: BindHow, spec: &DatagramSpec)
    -> io::Result<Token>;

    /// Sends to and receives from `peer` alone, from now on.
    fn connect_unix_datagram(&mut self, token: Token, peer: &UnixAddr) -> io::Result<()>;

    /// As [`DatagramDriver::send_datagram`](super::datagrams::DatagramDriver::send_datagram), to a UNIX socket. That the
    /// receiver's queue is full is told as `WouldBlock`, and never by an event that there is room: try again by time.
    fn send_datagram_to_name(&mut self, token: Token, bytes: &[u8], to: &UnixAddr) -> io::Result<()>;

    fn peer_credentials(&self, token: Token) -> io::Result<PeerCredentials>;
    fn peer_pidfd(&self, token: Token) -> io::Result<OwnedFd>;

    /// Takes over a UNIX datagram socket. No file is removed with it.
    fn adopt_unix_datagram(&mut self, socket: Socket, spec: &DatagramSpec) -> io::Result<Token>;

    /// Accepts at a socket that listens already, and that other processes may have, too: it is never shut down, and
    /// nothing is removed with it.
    fn adopt_listener(&mut self, socket: Socket, accepts_per_turn: usize) -> io::Result<(Token, Addr)>;
}

#[derive(Clone, Debug)]
pub(crate) struct UnixListenSpec {
    pub(crate) name: UnixAddr,
    pub(crate) how: BindHow,
    /// Connections that may wait.
    pub(crate) backlog: u32,
    /// Connections accepted per turn.
    pub(crate) accepts_per_turn: usize,
}
