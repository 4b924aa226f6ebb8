//! What a UNIX connection can do beyond TCP: descriptors that travel with bytes, and who is at the other end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use crate::addr::{Addr, ToUnixAddr};
use crate::error::ConnectError;
use crate::net::connection::DESCRIPTORS_HIGH;
use crate::shard::handles::stream_core::WritesAfter;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::handles::transport::{Flow, Transport};
use crate::shard::interfaces::unix::UnixConnectOptions;
use crate::sys::socket::PeerCredentials;

/// Why a descriptor was not taken to be sent; gives it back.
pub struct DescriptorRefused {
    descriptor: OwnedFd,
    reason: DescriptorRefusal,
}

/// Why a descriptor was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorRefusal {
    /// The connection is closed or closing, or its write half was shut.
    Closed,
    /// So many are unsent already. The connection is open.
    Full,
    /// Only UNIX connections pass descriptors.
    NotUnix,
    /// The connection speaks TLS, which protects bytes alone: a descriptor would travel unprotected beside them.
    Tls,
}

impl DescriptorRefused {
    /// Why.
    pub fn reason(&self) -> DescriptorRefusal {
        self.reason
    }

    /// The descriptor.
    pub fn into_inner(self) -> OwnedFd {
        self.descriptor
    }
}

impl fmt::Display for DescriptorRefused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.reason {
            DescriptorRefusal::Closed => "the connection is closed for writing",
            DescriptorRefusal::Full => "the connection has too many unsent descriptors",
            DescriptorRefusal::NotUnix => "only UNIX connections pass descriptors",
            DescriptorRefusal::Tls => "a connection that speaks TLS passes no descriptors",
        })
    }
}

impl fmt::Debug for DescriptorRefused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DescriptorRefused({:?})", self.reason)
    }
}

impl std::error::Error for DescriptorRefused {}

impl From<DescriptorRefused> for io::Error {
    fn from(error: DescriptorRefused) -> Self {
        let kind = match error.reason {
            DescriptorRefusal::Closed => io::ErrorKind::BrokenPipe,
            DescriptorRefusal::Full => io::ErrorKind::WouldBlock,
            DescriptorRefusal::NotUnix | DescriptorRefusal::Tls => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error)
    }
}

impl Transport {
    /// Passes a descriptor to the peer of a UNIX connection; the peer gets one of its own for the same open file. It
    /// travels with the first byte that is written after this call, and waits for it: a descriptor behind which nothing
    /// is written is never sent. Any number may travel with one byte. Ours is closed when it has left, and with the
    /// connection if it has not.
    ///
    /// Unsent descriptors count for the writer as bytes do: above 64 the [`Flow`] says stop, and
    /// [`Protocol::write_paused`](crate::Protocol::write_paused) is called; at 16
    /// [`Protocol::write_resumed`](crate::Protocol::write_resumed). While more descriptors of this user are under way than
    /// it may have open (`ETOOMANYREFS`, `unix(7)`), sending waits, for at most
    /// [`Config::write_timeout`](crate::Config::write_timeout).
    ///
    /// # Errors
    /// [`DescriptorRefused`] gives it back: the connection is closed for writing, is none of a UNIX socket, speaks TLS, or
    /// has 256 unsent already.
    pub fn send_descriptor(&self, descriptor: OwnedFd) -> Result<Flow, DescriptorRefused> {
        let inner = &self.shard().inner;
        let token = self.token();
        let refused = |descriptor, reason| Err(DescriptorRefused { descriptor, reason });
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else {
            return refused(descriptor, DescriptorRefusal::Closed);
        };
        if !matches!(slot.connection.peer(), Addr::Unix(_)) {
            return refused(descriptor, DescriptorRefusal::NotUnix);
        }
        if !slot.connection.may_write() {
            return refused(descriptor, DescriptorRefusal::Closed);
        }
        if slot.connection.wire.is_tls() {
            return refused(descriptor, DescriptorRefusal::Tls);
        }
        if slot.connection.unsent_descriptors() >= UNSENT_MAX {
            return refused(descriptor, DescriptorRefusal::Full);
        }
        if inner.active.get() == token {
            // What was written before it leaves before it.
            let mut staged = inner.staged.borrow_mut();
            slot.connection.queue(&staged);
            staged.clear();
            inner.staged_room.set(0);
        }
        slot.connection.queue_descriptor(descriptor);
        if slot.connection.unsent_descriptors() <= DESCRIPTORS_HIGH {
            return Ok(Flow::Open);
        }
        if inner.active.get() != token {
            inner.mark_slot_unsettled(token, slot);
        }
        drop(connections);
        Ok(self.above_high())
    }

    /// Whether descriptors that the peer passes are taken
    /// ([`Protocol::descriptor_received`](crate::Protocol::descriptor_received), [`TcpStream::read_descriptor`]), or closed
    /// unseen. Off unless switched on, here or by [`UnixListenOptions`](crate::UnixListenOptions): a peer could else fill
    /// the table of a process that never asked for any.
    ///
    /// Taken descriptors for which the process has no room end the connection, since those that did not fit are lost
    /// (`MSG_CTRUNC`).
    pub fn set_takes_descriptors(&self, on: bool) {
        let inner = &self.shard().inner;
        self.change(|slot| inner.take_descriptors(self.token(), &mut slot.connection, on));
    }

    /// Who is at the other end of a UNIX connection.
    ///
    /// # Errors
    /// `Unsupported` for other connections; `NotConnected` after the end.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        self.shard().inner.driver.borrow().peer_credentials(self.token())
    }

    /// The same process as a descriptor, which never comes to mean another one: see `pidfd_open(2)`. Linux 6.5 and later.
    ///
    /// # Errors
    /// What the operating system says: an older kernel, no UNIX connection, no such process any more.
    pub fn peer_pidfd(&self) -> io::Result<OwnedFd> {
        self.shard().inner.driver.borrow().peer_pidfd(self.token())
    }
}

/// A UNIX connection as a task sees it: the same type as for TCP, so that a handler serves both.
/// [`TcpStream::connect_unix`] connects; addresses that may be either are those of its
/// [`transport`](TcpStream::transport).
pub type UnixStream = TcpStream;

impl TcpStream {
    /// Connects to a UNIX socket, from the shard this is called on.
    ///
    /// # Errors
    /// [`ConnectError`]. A listener whose queue is full is tried again until
    /// [`Config::connect_timeout`](crate::Config::connect_timeout).
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    /// # Panics
    /// When no shard is current on this thread.
    pub async fn connect_unix(name: impl ToUnixAddr) -> Result<TcpStream, ConnectError> {
        TcpStream::connect_unix_with(name, &UnixConnectOptions::default()).await
    }

    /// As [`TcpStream::connect_unix`], with options.
    ///
    /// # Errors
    /// As [`TcpStream::connect_unix`].
    /// # Cancel safety
    /// As [`TcpStream::connect_unix`].
    /// # Panics
    /// As [`TcpStream::connect_unix`].
    pub async fn connect_unix_with(
        name: impl ToUnixAddr,
        options: &UnixConnectOptions,
    ) -> Result<TcpStream, ConnectError> {
        let (goal, how, preamble) = options.attempt_at(name);
        TcpStream::established(goal, how, preamble).await
    }

    /// The next descriptor that the peer has passed; waits for one. `None` is the end of input. Only where they are taken:
    /// see [`Transport::set_takes_descriptors`].
    ///
    /// A descriptor is there not later than the bytes it travelled with. If 253 are there and not taken, nothing is read.
    ///
    /// # Errors
    /// The connection broke.
    /// # Cancel safety
    /// No descriptor is lost when the future is dropped.
    pub async fn read_descriptor(&mut self) -> io::Result<Option<OwnedFd>> {
        poll_fn(|context| self.poll_read_descriptor(context)).await
    }

    /// The poll form of [`TcpStream::read_descriptor`].
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_read_descriptor(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<OwnedFd>>> {
        match self.try_read_descriptor() {
            Some(descriptor) => Poll::Ready(Ok(Some(descriptor))),
            None => self.core().poll_end(context).map_ok(|()| None),
        }
    }

    /// The next descriptor that is there.
    pub fn try_read_descriptor(&mut self) -> Option<OwnedFd> {
        self.transport().shard().next_descriptor(self.transport().token())
    }

    /// Passes a descriptor to the peer, as [`Transport::send_descriptor`] does; waits while too many are unsent. It leaves
    /// with the first byte that is written afterwards.
    ///
    /// # Errors
    /// The connection is closed for writing, broke, speaks TLS, or is none of a UNIX socket; `WouldBlock` when 256 wait for a byte that
    /// has not been written. The descriptor is closed then.
    /// # Cancel safety
    /// Dropped before it is ready, the descriptor is closed and was not sent.
    pub async fn send_descriptor(&mut self, descriptor: OwnedFd) -> io::Result<()> {
        let mut descriptor = Some(descriptor);
        poll_fn(|context| {
            let sending = descriptor.take().expect("polled until it is ready");
            match self.transport().send_descriptor(sending) {
                Ok(_) => Poll::Ready(Ok(())),
                Err(refused)
                    if refused.reason() == DescriptorRefusal::Full && self.transport().buffered() > 0 =>
                {
                    descriptor = Some(refused.into_inner());
                    self.core().check_broken()?;
                    self.core().wait_to_write(context, WritesAfter::Room);
                    self.transport().shard().inner.mark_unsettled(self.transport().token());
                    Poll::Pending
                }
                Err(refused) => {
                    self.core().check_broken()?;
                    Poll::Ready(Err(refused.into()))
                }
            }
        })
        .await
    }
}

/// Unsent descriptors of one connection: what is queued is open, and the process has no end of them.
const UNSENT_MAX: usize = 256;
