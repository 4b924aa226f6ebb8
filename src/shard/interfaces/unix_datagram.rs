//! IReactorUNIXDatagram: datagrams between UNIX sockets, by the machinery of UDP.

use std::future::poll_fn;
use std::task::Poll;

use crate::addr::{Addr, ToUnixAddr, UnixAddr};
use crate::error::{ConnectError, ListenError, SendError};
use crate::shard::Shard;
use crate::shard::datagrams::NotBound;
use crate::shard::handles::udp_transport::UdpTransport;
use crate::shard::interfaces::udp::DatagramProtocol;
use crate::shard::interfaces::unix::MODE;
use crate::shard::listening::listen_error;
use crate::sys::datagram::DATAGRAM_BYTES_MAX;
use crate::sys::unix::BindHow;

/// How a UNIX datagram socket is bound, where the defaults do not do.
#[derive(Clone, Copy, Debug)]
pub struct UnixDatagramOptions {
    pub(crate) how: BindHow,
    pub(crate) datagram_bytes_max: usize,
}

impl Default for UnixDatagramOptions {
    fn default() -> Self {
        let how = BindHow { mode: MODE, lock: false };
        UnixDatagramOptions { how, datagram_bytes_max: DATAGRAM_BYTES_MAX }
    }
}

impl UnixDatagramOptions {
    /// The defaults.
    pub fn new() -> Self {
        UnixDatagramOptions::default()
    }

    /// Who may send: see [`UnixListenOptions::mode`](crate::UnixListenOptions::mode).
    pub fn mode(mut self, mode: u32) -> Self {
        self.how.mode = mode;
        self
    }

    /// Holds a lock on `path.lock` for as long as it is bound: see
    /// [`UnixListenOptions::lock`](crate::UnixListenOptions::lock). Off by default.
    pub fn lock(mut self, on: bool) -> Self {
        self.how.lock = on;
        self
    }

    /// The longest datagram that is received whole; 65,535 bytes, which is also the most. Longer ones are cut, and say so.
    pub fn datagram_bytes_max(mut self, bytes: usize) -> Self {
        self.datagram_bytes_max = bytes.clamp(1, DATAGRAM_BYTES_MAX);
        self
    }
}

impl Shard {
    /// Binds a UNIX datagram socket and gives its datagrams to `protocol`, which is started before this returns: on this
    /// shard alone, since there is one socket to a name. The file is made, found stale, and removed as by
    /// [`Shard::listen_unix`]; the rest is as for [`Shard::listen_udp`].
    ///
    /// # Errors
    /// [`ListenError`] names the socket and the cause.
    pub fn listen_unix_datagram(
        &self,
        name: impl ToUnixAddr,
        options: &UnixDatagramOptions,
        protocol: impl DatagramProtocol,
    ) -> Result<UdpTransport, ListenError> {
        let name = name.to_unix_addr()?;
        let bound = self.bind_unix_datagram(&name, None, options, Some(Box::new(protocol)));
        bound.map_err(|error| error.of_listening(&name))
    }

    /// Makes a UNIX datagram socket that talks with `peer` alone. Bound to `name`, if one is given, since a socket without
    /// a name cannot be answered.
    ///
    /// # Errors
    /// [`ConnectError`] names the socket and the cause; nobody there is one.
    pub fn connect_unix_datagram(
        &self,
        peer: impl ToUnixAddr,
        name: Option<&UnixAddr>,
        options: &UnixDatagramOptions,
        protocol: impl DatagramProtocol,
    ) -> Result<UdpTransport, ConnectError> {
        let peer = peer.to_unix_addr()?;
        let name = name.unwrap_or(&UnixAddr::UNNAMED);
        let bound = self.bind_unix_datagram(name, Some(&peer), options, Some(Box::new(protocol)));
        bound.map_err(|error| error.of_connecting(name, &peer))
    }
}

impl NotBound {
    pub(crate) fn of_listening(self, name: &UnixAddr) -> ListenError {
        match self {
            NotBound::Stopping => ListenError::Stopping,
            NotBound::Bind(source) | NotBound::Connect(source) => listen_error(name.clone().into(), source),
        }
    }

    pub(crate) fn of_connecting(self, name: &UnixAddr, peer: &UnixAddr) -> ConnectError {
        match self {
            NotBound::Stopping => ConnectError::Stopping,
            NotBound::Bind(source) => ConnectError::Bind { addr: name.clone().into(), source },
            NotBound::Connect(source) if source.kind() == std::io::ErrorKind::ConnectionRefused => {
                ConnectError::Refused { addr: peer.clone().into(), source }
            }
            NotBound::Connect(source) => ConnectError::Os { addr: peer.clone().into(), source },
        }
    }
}

impl UdpTransport {
    /// The address it is bound to, whatever it is.
    pub fn local(&self) -> &Addr {
        &self.core().group.addr
    }

    /// Sends a datagram to a UNIX socket: all of it, or nothing.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send`]; [`SendError::NoRoom`] when the receiver's queue is full: nothing is lost in silence.
    /// [`DatagramProtocol::sendable`] is called a millisecond later, since nothing tells when there is room.
    pub fn try_send_to_name(&self, bytes: &[u8], to: impl ToUnixAddr) -> Result<(), SendError> {
        let to = to.to_unix_addr().map_err(SendError::InvalidPath)?;
        let core = self.core();
        if !core.open.get() {
            return Err(SendError::Closed);
        }
        if let Some(peer) = &*core.unix_peer.borrow() {
            return Err(SendError::ConnectedUnix { peer: peer.clone() });
        }
        let inner = &self.shard().inner;
        let sent = inner.driver.borrow_mut().send_datagram_to_name(core.token, bytes, &to);
        match sent {
            Ok(()) => {
                inner.stats.datagrams_sent.add(1);
                Ok(())
            }
            Err(error) => {
                let error = self.shard().send_failed(core, error, bytes.len());
                if matches!(error, SendError::NoRoom) {
                    self.shard().retry_later(core);
                }
                Err(error)
            }
        }
    }

    /// Sends a datagram to a UNIX socket, and waits for room in its queue.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send_to_name`], but for `NoRoom`.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was sent.
    pub async fn send_to_name(&self, bytes: &[u8], to: impl ToUnixAddr) -> Result<(), SendError> {
        let to = to.to_unix_addr().map_err(SendError::InvalidPath)?;
        poll_fn(|context| match self.try_send_to_name(bytes, &to) {
            Err(SendError::NoRoom) => {
                self.core().wait_to_send(context);
                Poll::Pending
            }
            outcome => Poll::Ready(outcome),
        })
        .await
    }
}
