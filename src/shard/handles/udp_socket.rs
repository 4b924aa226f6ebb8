//! The async face of a datagram socket: the same socket, read by tasks.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::{ListenError, SendError};
use crate::net::addr::ToAddr;
use crate::shard::Shard;
use crate::shard::datagrams::Binding;
use crate::shard::handles::udp_transport::{SendDatagram, UdpTransport};
use crate::shard::interfaces::udp::UdpOptions;

/// A datagram socket for tasks. Sends and settings are those of its [`transport`](UdpSocket::transport), or straight
/// here. Dropping it closes it.
///
/// ```
/// # use shardwise::{Result, Shard, UdpSocket};
/// # async fn example(shard: Shard) -> Result<()> {
/// let socket = UdpSocket::bind("127.0.0.1:7000")?;
/// let mut buffer = [0; 2048];
/// loop {
///     let received = socket.recv_from(&mut buffer).await?;
///     socket.send_to(&buffer[..received.len], received.source).await?;
/// }
/// # }
/// ```
///
/// # Threads
/// `!Send`: it stays on its shard.
pub struct UdpSocket {
    transport: UdpTransport,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the buffer that it filled; may be 0.
    pub len: usize,
    /// Who says to have sent it.
    pub source: SocketAddr,
    /// Whether it was longer than the buffer, or than the socket takes: its end is lost.
    pub truncated: bool,
}

impl UdpSocket {
    /// Binds `addr` on the current shard, alone: a second shard that binds it is told that it is in use. Port 0 lets the
    /// kernel choose.
    ///
    /// # Errors
    /// [`ListenError`] names the address and the cause.
    /// # Panics
    /// When no shard is current on this thread.
    pub fn bind(addr: impl ToAddr) -> Result<UdpSocket, ListenError> {
        UdpSocket::bind_with(addr, &UdpOptions::default())
    }

    /// As [`UdpSocket::bind`], with options: with [`UdpOptions::shared`], all shards that bind the address share it as
    /// they do with [`Shard::listen_udp`]. Unlike that one, it lives on while the runtime drains.
    ///
    /// # Errors
    /// As [`UdpSocket::bind`].
    /// # Panics
    /// As [`UdpSocket::bind`].
    pub fn bind_with(addr: impl ToAddr, options: &UdpOptions) -> Result<UdpSocket, ListenError> {
        let binding = Binding { addr: addr.to_addr()?, options, shared: false, listens: false };
        Ok(UdpSocket { transport: Shard::current().bind_datagram(binding, None)? })
    }

    /// What to send by and to set; may be cloned and kept.
    pub fn transport(&self) -> &UdpTransport {
        &self.transport
    }

    /// The address really bound.
    ///
    /// # Errors
    /// `NotConnected` after the end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.transport.local_addr()
    }

    /// See [`UdpTransport::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, peer: impl ToAddr) -> Result<(), SendError> {
        self.transport.connect(peer)
    }

    /// Waits for a datagram and copies it into `buffer`. Several tasks may wait; each datagram goes to one of them.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody receives at the connected peer's address; `NotConnected` after the socket was
    /// closed.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was taken.
    pub fn recv_from<'a>(&'a self, buffer: &'a mut [u8]) -> ReceiveDatagram<'a> {
        ReceiveDatagram { transport: &self.transport, buffer }
    }

    /// Sends a datagram to the connected peer, and waits for room. See [`UdpTransport::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send<'a>(&'a self, bytes: &'a [u8]) -> SendDatagram<'a> {
        self.transport.send(bytes)
    }

    /// Sends a datagram to `to`, and waits for room. See [`UdpTransport::send_to`].
    ///
    /// # Errors
    /// As there.
    pub fn send_to<'a>(&'a self, bytes: &'a [u8], to: impl ToAddr) -> SendDatagram<'a> {
        self.transport.send_to(bytes, to)
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        drop(self.transport.close());
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "UdpSocket({})", self.transport.core().group.addr)
    }
}

/// A task's wait for a datagram; made by [`UdpSocket::recv_from`].
#[must_use = "nothing is received before it is awaited"]
#[derive(Debug)]
pub struct ReceiveDatagram<'a> {
    transport: &'a UdpTransport,
    buffer: &'a mut [u8],
}

impl Future for ReceiveDatagram<'_> {
    type Output = io::Result<Received>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (transport, buffer) = (self.transport, &mut *self.buffer);
        transport.core().poll_datagram(transport.shard(), context, |lent| {
            let (len, truncated) = lent.copy_to(buffer);
            Received { len, source: lent.source, truncated }
        })
    }
}
