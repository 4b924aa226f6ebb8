//! The async face of a UNIX datagram socket: the same socket, read by tasks.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::addr::{Addr, ToUnixAddr, UnixAddr};
use crate::error::{ConnectError, ListenError, SendError};
use crate::shard::Shard;
use crate::shard::handles::udp_transport::{SendDatagram, UdpTransport};
use crate::shard::interfaces::unix_datagram::UnixDatagramOptions;

/// A UNIX datagram socket for tasks. Sends and settings are those of its [`transport`](UnixDatagram::transport), or
/// straight here. Dropping it closes it, and removes the file that it made.
///
/// ```
/// # use shardwise::{Result, Shard, UnixDatagram};
/// # async fn example(shard: Shard) -> Result<()> {
/// let socket = UnixDatagram::bind("/run/app/socket")?;
/// let mut buffer = [0; 2048];
/// loop {
///     let received = socket.recv_from(&mut buffer).await?;
///     if !received.source.is_unnamed() {
///         socket.send_to(&buffer[..received.len], received.source).await?;
///     }
/// }
/// # }
/// ```
///
/// # Threads
/// `!Send`: it stays on its shard.
pub struct UnixDatagram {
    transport: UdpTransport,
}

/// What a receive from a UNIX socket brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixReceived {
    /// Bytes of the buffer that it filled; may be 0.
    pub len: usize,
    /// Who sent it; without a name it cannot be answered.
    pub source: UnixAddr,
    /// Whether it was longer than the buffer, or than the socket takes: its end is lost.
    pub truncated: bool,
}

impl UnixDatagram {
    /// Binds `name` on the current shard. The file is made, found stale, and removed as by [`Shard::listen_unix`].
    ///
    /// # Errors
    /// [`ListenError`] names the socket and the cause.
    /// # Panics
    /// When no shard is current on this thread.
    pub fn bind(name: impl ToUnixAddr) -> Result<UnixDatagram, ListenError> {
        UnixDatagram::bind_with(name, &UnixDatagramOptions::default())
    }

    /// As [`UnixDatagram::bind`], with options. Unlike [`Shard::listen_unix_datagram`], it lives on while the runtime
    /// drains.
    ///
    /// # Errors
    /// As [`UnixDatagram::bind`].
    /// # Panics
    /// As [`UnixDatagram::bind`].
    pub fn bind_with(
        name: impl ToUnixAddr,
        options: &UnixDatagramOptions,
    ) -> Result<UnixDatagram, ListenError> {
        let name = name.to_unix_addr()?;
        let bound = Shard::current().bind_unix_datagram(&name, None, options, None);
        Ok(UnixDatagram { transport: bound.map_err(|error| error.of_listening(&name))? })
    }

    /// Makes a socket that talks with `peer` alone, without a name of its own: then it cannot be answered.
    ///
    /// # Errors
    /// [`ConnectError`] names the socket and the cause; nobody there is one.
    /// # Panics
    /// When no shard is current on this thread.
    pub fn connect(peer: impl ToUnixAddr) -> Result<UnixDatagram, ConnectError> {
        UnixDatagram::connect_with(peer, None, &UnixDatagramOptions::default())
    }

    /// As [`UnixDatagram::connect`], bound to `name` if one is given.
    ///
    /// # Errors
    /// As [`UnixDatagram::connect`].
    /// # Panics
    /// As [`UnixDatagram::connect`].
    pub fn connect_with(
        peer: impl ToUnixAddr,
        name: Option<&UnixAddr>,
        options: &UnixDatagramOptions,
    ) -> Result<UnixDatagram, ConnectError> {
        let peer = peer.to_unix_addr()?;
        let name = name.unwrap_or(&UnixAddr::UNNAMED);
        let bound = Shard::current().bind_unix_datagram(name, Some(&peer), options, None);
        Ok(UnixDatagram { transport: bound.map_err(|error| error.of_connecting(name, &peer))? })
    }

    /// What to send by and to set; may be cloned and kept.
    pub fn transport(&self) -> &UdpTransport {
        &self.transport
    }

    /// The name it is bound to; none, if it was given none.
    pub fn local(&self) -> &UnixAddr {
        self.transport.local().as_unix().expect("it is a UNIX socket")
    }

    /// Waits for a datagram and copies it into `buffer`. Several tasks may wait; each datagram goes to one of them.
    ///
    /// # Errors
    /// `NotConnected` after the socket was closed.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was taken.
    pub fn recv_from<'a>(&'a self, buffer: &'a mut [u8]) -> ReceiveUnixDatagram<'a> {
        ReceiveUnixDatagram { transport: &self.transport, buffer }
    }

    /// Sends a datagram to the connected peer, and waits for room. See [`UdpTransport::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send<'a>(&'a self, bytes: &'a [u8]) -> SendDatagram<'a> {
        self.transport.send(bytes)
    }

    /// Sends a datagram to `to`, and waits for room in its queue. See [`UdpTransport::send_to_name`].
    ///
    /// # Errors
    /// As there.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was sent.
    pub async fn send_to(&self, bytes: &[u8], to: impl ToUnixAddr) -> Result<(), SendError> {
        self.transport.send_to_name(bytes, to).await
    }
}

impl Drop for UnixDatagram {
    fn drop(&mut self) {
        drop(self.transport.close());
    }
}

impl fmt::Debug for UnixDatagram {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "UnixDatagram({})", Addr::from(self.local().clone()))
    }
}

/// A task's wait for a datagram; made by [`UnixDatagram::recv_from`].
#[must_use = "nothing is received before it is awaited"]
#[derive(Debug)]
pub struct ReceiveUnixDatagram<'a> {
    transport: &'a UdpTransport,
    buffer: &'a mut [u8],
}

impl Future for ReceiveUnixDatagram<'_> {
    type Output = io::Result<UnixReceived>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (transport, buffer) = (self.transport, &mut *self.buffer);
        transport.core().poll_datagram(transport.shard(), context, |lent| {
            let (len, truncated) = lent.copy_to(buffer);
            UnixReceived { len, source: lent.name.cloned().unwrap_or(UnixAddr::UNNAMED), truncated }
        })
    }
}
