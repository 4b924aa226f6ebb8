//! IReactorUDP and IReactorMulticast: datagrams, event style.

use std::net::SocketAddr;

use crate::addr::UnixAddr;
use crate::error::{CloseReason, ConnectError, ListenError, Result, SendError};
use crate::net::addr::ToAddr;
use crate::shard::Shard;
use crate::shard::datagrams::Binding;
use crate::shard::handles::udp_transport::UdpTransport;
use crate::sys::datagram::DATAGRAM_BYTES_MAX;

/// What an application makes of the datagrams of one socket.
///
/// Callbacks run on the socket's shard, one at a time, never within each other.
///
/// An error or a panic of a callback is counted ([`ShardReport::datagrams_failed`](crate::ShardReport::datagrams_failed))
/// and logged, and the socket goes on: whoever sent the datagram must not be able to take the socket from all others.
/// Only a `started` that fails ends it.
#[allow(unused_variables, reason = "the names tell what the arguments are")]
pub trait DatagramProtocol: 'static {
    /// The socket is bound. Called before the call that bound it returns.
    fn started(&mut self, transport: &UdpTransport) -> Result<()> {
        Ok(())
    }

    /// A datagram came; it may be empty. After the socket was closed no more come, also not those that had arrived
    /// together with this one.
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()>;

    /// Nobody receives at the peer's address (ICMP port unreachable): an earlier datagram is lost. The socket goes on,
    /// and the peer may come back. Connected sockets only, since the others cannot know whom it is about.
    fn refused(&mut self, transport: &UdpTransport) -> Result<()> {
        Ok(())
    }

    /// There is room again after a send that found none ([`SendError::NoRoom`]).
    fn sendable(&mut self, transport: &UdpTransport) -> Result<()> {
        Ok(())
    }

    /// The socket is closed, and its address may be bound again unless other shards still have it. Called once, last.
    fn stopped(&mut self, reason: CloseReason) {}
}

/// A datagram, lying in a buffer of the shard.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    bytes: &'a [u8],
    source: SocketAddr,
    name: Option<&'a UnixAddr>,
    truncated: bool,
}

impl<'a> Datagram<'a> {
    #[inline]
    pub(crate) fn new(
        bytes: &'a [u8],
        source: SocketAddr,
        name: Option<&'a UnixAddr>,
        truncated: bool,
    ) -> Self {
        Datagram { bytes, source, name, truncated }
    }

    /// What it carries; may be empty.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Who says to have sent it: easily forged, see [`AmplificationLimit`](crate::AmplificationLimit). `0.0.0.0:0` at a UNIX
    /// socket: see [`Datagram::unix_source`].
    #[inline]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// The name of the UNIX socket that sent it; unnamed, it cannot be answered. `None` at other sockets.
    pub fn unix_source(&self) -> Option<&'a UnixAddr> {
        self.name
    }

    /// Whether it was longer than [`UdpOptions::datagram_bytes_max`], and its end is lost.
    #[inline]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }
}

/// How a datagram socket is bound, where the defaults do not do.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    pub(crate) shared: Option<bool>,
    pub(crate) share_port: bool,
    pub(crate) multiple: bool,
    pub(crate) datagram_bytes_max: usize,
    pub(crate) receive_joined: bool,
    pub(crate) receive_buffer_bytes: Option<usize>,
    pub(crate) send_buffer_bytes: Option<usize>,
}

impl Default for UdpOptions {
    fn default() -> Self {
        UdpOptions {
            shared: None,
            share_port: false,
            multiple: false,
            datagram_bytes_max: DATAGRAM_BYTES_MAX,
            receive_joined: false,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
        }
    }
}

impl UdpOptions {
    /// The defaults.
    pub fn new() -> Self {
        UdpOptions::default()
    }

    /// Whether all shards that bind this address share it, as one group. By default those of
    /// [`Shard::listen_udp`] do, and those of [`UdpSocket::bind`](crate::UdpSocket::bind) do not.
    pub fn shared(mut self, on: bool) -> Self {
        self.shared = Some(on);
        self
    }

    /// Shares the address with other processes of the same user that do the same; then a second server is not told that
    /// the address is in use, it silently gets its share of the senders. Off by default.
    pub fn share_port(mut self, on: bool) -> Self {
        self.share_port = on;
        self
    }

    /// Lets any number of sockets, of any process, bind the address, each on its own: for multicast, of which each that
    /// has joined the group gets every datagram. Of others each goes to one of them. Off by default.
    pub fn multiple(mut self, on: bool) -> Self {
        self.multiple = on;
        self
    }

    /// The longest datagram that is received whole; 65,535 bytes, so all of them. Longer ones are cut, and say so.
    /// Smaller values save memory traffic where none longer are expected.
    pub fn datagram_bytes_max(mut self, bytes: usize) -> Self {
        self.datagram_bytes_max = bytes.clamp(1, DATAGRAM_BYTES_MAX);
        self
    }

    /// Lets the kernel join datagrams of one sender on their way up (UDP_GRO); they come apart again before they are
    /// delivered. Saves much where few peers send a lot, as over QUIC. [`UdpOptions::datagram_bytes_max`] counts for
    /// nothing then. Off by default.
    pub fn receive_joined(mut self, on: bool) -> Self {
        self.receive_joined = on;
        self
    }

    /// The kernel's buffer for what has come and is not yet received, in bytes; the system's default, and at most its
    /// `net.core.rmem_max`. What does not fit is dropped, and counted.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> Self {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    /// The kernel's buffer for what has not left yet, in bytes; the system's default, and at most its
    /// `net.core.wmem_max`.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.send_buffer_bytes = Some(bytes);
        self
    }
}

impl Shard {
    /// Binds `addr` and gives its datagrams to `protocol`, which is started before this returns. Datagrams are delivered
    /// once every shard has started.
    ///
    /// Shards that bind the same address share it, as for [`Shard::listen_tcp`]: the first one binds alone, so a server
    /// that runs already is noticed; with port 0 the kernel chooses once; closing it on one closes it on all. All
    /// datagrams of one source go to the same shard for as long as the group stays as it is, so it is best bound by all
    /// shards in `start`. When the runtime stops, what has come by then is delivered, and the sockets are closed.
    ///
    /// # Errors
    /// [`ListenError`] names the address and the cause.
    pub fn listen_udp(
        &self,
        addr: impl ToAddr,
        protocol: impl DatagramProtocol,
    ) -> std::result::Result<UdpTransport, ListenError> {
        self.listen_udp_with(addr, &UdpOptions::default(), protocol)
    }

    /// As [`Shard::listen_udp`], with options.
    ///
    /// # Errors
    /// As [`Shard::listen_udp`].
    pub fn listen_udp_with(
        &self,
        addr: impl ToAddr,
        options: &UdpOptions,
        protocol: impl DatagramProtocol,
    ) -> std::result::Result<UdpTransport, ListenError> {
        let binding = Binding { addr: addr.to_addr()?, options, shared: true, listens: true };
        self.bind_datagram(binding, Some(Box::new(protocol)))
    }

    /// Makes a socket that talks with `peer` alone, from a port of its own, and gives its datagrams to `protocol`. The
    /// protocol is started before the socket is connected. It lives until it is closed, or until the shard has drained.
    ///
    /// # Errors
    /// [`ConnectError`] names the address and the cause. That nobody is there is found out later:
    /// [`DatagramProtocol::refused`].
    pub fn connect_udp(
        &self,
        peer: impl ToAddr,
        protocol: impl DatagramProtocol,
    ) -> std::result::Result<UdpTransport, ConnectError> {
        self.connect_udp_with(peer, &UdpOptions::default(), protocol)
    }

    /// As [`Shard::connect_udp`], with options.
    ///
    /// # Errors
    /// As [`Shard::connect_udp`].
    pub fn connect_udp_with(
        &self,
        peer: impl ToAddr,
        options: &UdpOptions,
        protocol: impl DatagramProtocol,
    ) -> std::result::Result<UdpTransport, ConnectError> {
        let addr = peer.to_addr()?;
        let any = any_port(addr);
        let binding = Binding { addr: any, options, shared: false, listens: false };
        let transport = self.bind_datagram(binding, Some(Box::new(protocol)));
        let transport = transport.map_err(|error| not_bound(any, error))?;
        match transport.connect(addr) {
            Ok(()) => Ok(transport),
            Err(error) => {
                drop(transport.close());
                let source = match error {
                    SendError::Os(source) => source,
                    other => std::io::Error::other(other),
                };
                Err(ConnectError::Os { addr: addr.into(), source })
            }
        }
    }
}

/// Any port, at any address from which `peer` can be reached.
pub(crate) fn any_port(peer: SocketAddr) -> SocketAddr {
    let ip: std::net::IpAddr = match peer {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

fn not_bound(addr: SocketAddr, error: ListenError) -> ConnectError {
    match error {
        ListenError::InvalidAddress(error) => ConnectError::InvalidAddress(error),
        ListenError::InvalidPath(error) => ConnectError::InvalidPath(error),
        ListenError::Stopping => ConnectError::Stopping,
        ListenError::AddressInUse { addr } => {
            ConnectError::Bind { addr, source: std::io::ErrorKind::AddrInUse.into() }
        }
        ListenError::Os { source, .. } => ConnectError::Bind { addr: addr.into(), source },
    }
}
