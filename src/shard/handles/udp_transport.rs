//! A datagram socket as its protocol sees it: what to send by, and its settings.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{CloseReason, MulticastError, SendError};
use crate::net::addr::ToAddr;
use crate::net::udp::family_fits;
use crate::reactor::driver::datagrams::{DatagramOption, MulticastInterface};
use crate::shard::Shard;
use crate::shard::datagrams::UdpCore;
use crate::shard::groups::Multicast;
use crate::shard::handles::listener::Closing;

/// A datagram socket's sending end, and its settings. Cheap to clone; clones may be kept by tasks and timers of the same
/// shard, and outlive the socket harmlessly. Dropping it changes nothing.
///
/// # Threads
/// `!Send`: it stays on its shard.
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<shardwise::UdpTransport>();
/// ```
#[derive(Clone)]
pub struct UdpTransport {
    shard: Shard,
    core: Rc<UdpCore>,
}

impl UdpTransport {
    #[inline]
    pub(crate) fn new(shard: Shard, core: Rc<UdpCore>) -> Self {
        UdpTransport { shard, core }
    }

    pub(crate) fn core(&self) -> &Rc<UdpCore> {
        &self.core
    }

    /// The shard the socket lives on.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The address really bound: for port 0, with the number the kernel chose.
    ///
    /// # Errors
    /// `NotConnected` after the end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let addr = self.shard.inner.driver.borrow().local_addr(self.core.token)?;
        addr.as_ip().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Whom it is connected to.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.core.peer.get()
    }

    /// Whether the socket is open.
    pub fn is_open(&self) -> bool {
        self.core.open.get()
    }

    /// Connects the socket, once: from now on it sends to `peer` alone, and gets nothing but what comes from there.
    /// Nothing is sent. What came from others before is still delivered.
    ///
    /// # Errors
    /// [`SendError::InvalidAddress`] for anything but an address, [`SendError::Connected`] the second time,
    /// [`SendError::WrongFamily`], [`SendError::Closed`], or what the operating system says.
    pub fn connect(&self, peer: impl ToAddr) -> Result<(), SendError> {
        let peer = peer.to_addr()?;
        if let Some(peer) = self.core.peer.get() {
            return Err(SendError::Connected { peer });
        }
        self.core.check_destination(Some(peer))?;
        self.shard
            .inner
            .driver
            .borrow_mut()
            .connect_datagram(self.core.token, peer)
            .map_err(SendError::Os)?;
        self.core.peer.set(Some(peer));
        Ok(())
    }

    /// Sends a datagram to the connected peer: all of it, or nothing. That it was sent does not mean that it arrives.
    ///
    /// # Errors
    /// [`SendError`] says why not; never because an earlier datagram was refused: that is told by
    /// [`DatagramProtocol::refused`](crate::DatagramProtocol::refused).
    #[inline]
    pub fn try_send(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send_now(bytes, None)
    }

    /// Sends a datagram to `to`: an address, also that of a broadcast
    /// ([`set_broadcast`](UdpTransport::set_broadcast)) or of a multicast group.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send`]; [`SendError::InvalidAddress`] for the name of a host, and
    /// [`SendError::WrongFamily`] for an address of the other IP version.
    #[inline]
    pub fn try_send_to(&self, bytes: &[u8], to: impl ToAddr) -> Result<(), SendError> {
        self.send_now(bytes, Some(to.to_addr()?))
    }

    #[inline]
    fn send_now(&self, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), SendError> {
        let to = self.core.check_destination(to)?;
        let sent = self.shard.inner.driver.borrow_mut().send_datagram(self.core.token, bytes, to);
        match sent {
            Ok(()) => {
                self.shard.inner.stats.datagrams_sent.add(1);
                Ok(())
            }
            Err(error) => Err(self.shard.send_failed(&self.core, error, bytes.len())),
        }
    }

    /// Sends the pieces, one after the other, as one datagram.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send_to`].
    pub fn try_send_vectored(
        &self,
        pieces: &[io::IoSlice<'_>],
        to: Option<SocketAddr>,
    ) -> Result<(), SendError> {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.send_now(&bytes, to)
    }

    /// Sends `bytes` as datagrams of `segment_bytes` each, the last of which may be shorter, to `to` or to the connected
    /// peer. The kernel cuts many of them from one call where it can (UDP_SEGMENT); where it cannot they are sent one by
    /// one. Says how many bytes were sent, always whole datagrams; less than all means that there is no more room now.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send`], when not even the first was sent.
    /// # Panics
    /// When `segment_bytes` is 0.
    pub fn try_send_segments(
        &self,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
    ) -> Result<usize, SendError> {
        assert!(segment_bytes > 0, "a datagram of a batch has at least one byte");
        let to = self.core.check_destination(to)?;
        let sent =
            self.shard.inner.driver.borrow_mut().send_segments(self.core.token, bytes, segment_bytes, to);
        match sent {
            Ok(sent_bytes) => {
                self.shard.inner.stats.datagrams_sent.add(sent_bytes.div_ceil(segment_bytes.into()) as u64);
                Ok(sent_bytes)
            }
            Err(error) => Err(self.shard.send_failed(&self.core, error, segment_bytes.into())),
        }
    }

    /// Sends a datagram to the connected peer, and waits for room.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send`], but for `NoRoom`.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was sent.
    pub fn send<'a>(&'a self, bytes: &'a [u8]) -> SendDatagram<'a> {
        SendDatagram { transport: self, bytes, to: Ok(None) }
    }

    /// Sends a datagram to `to`, and waits for room.
    ///
    /// # Errors
    /// As [`UdpTransport::try_send_to`], but for `NoRoom`.
    /// # Cancel safety
    /// Dropped before it is ready, nothing was sent.
    pub fn send_to<'a>(&'a self, bytes: &'a [u8], to: impl ToAddr) -> SendDatagram<'a> {
        SendDatagram { transport: self, bytes, to: to.to_addr().map(Some).map_err(SendError::InvalidAddress) }
    }

    /// Allows to send to broadcast addresses (SO_BROADCAST); off unless switched on.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_broadcast(&self, on: bool) -> io::Result<()> {
        self.set(DatagramOption::Broadcast(on))
    }

    /// Whether it may send to broadcast addresses.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn broadcast(&self) -> io::Result<bool> {
        match self.get(DatagramOption::Broadcast(false))? {
            DatagramOption::Broadcast(on) => Ok(on),
            _ => unreachable!("the driver answers what it was asked"),
        }
    }

    /// Joins a multicast group at an interface; on one shard alone: every socket that joins gets a copy of each
    /// datagram. Of the shards that share this address the first one to join becomes the owner of the group, and for the
    /// others this changes nothing. Says whether this shard is the owner.
    ///
    /// Only what is sent to groups that were joined here is received, whatever other sockets of this host have joined.
    ///
    /// # Errors
    /// [`MulticastError`] says why not: the address is no group's, the kernel refuses, …
    pub fn join_group(&self, group: IpAddr, interface: MulticastInterface) -> Result<bool, MulticastError> {
        let multicast = self.multicast(group, interface)?;
        if !self.core.group.own_multicast(multicast, self.shard.inner.id) {
            return Ok(false);
        }
        if let Err(error) = self.set(DatagramOption::Membership { group, interface, member: true }) {
            self.core.group.disown_multicast(multicast, self.shard.inner.id);
            return Err(MulticastError::Os(error));
        }
        Ok(true)
    }

    /// Joins a multicast group on this shard too, whoever else has: then every shard that does gets a copy of each
    /// datagram.
    ///
    /// # Errors
    /// As [`UdpTransport::join_group`].
    pub fn join_group_as_well(
        &self,
        group: IpAddr,
        interface: MulticastInterface,
    ) -> Result<(), MulticastError> {
        self.multicast(group, interface)?;
        self.core.group.own_multicast((group, interface), self.shard.inner.id);
        self.set(DatagramOption::Membership { group, interface, member: true }).map_err(MulticastError::Os)
    }

    /// Leaves a multicast group at an interface. On a shard that has not joined it, this fails.
    ///
    /// # Errors
    /// As [`UdpTransport::join_group`].
    pub fn leave_group(&self, group: IpAddr, interface: MulticastInterface) -> Result<(), MulticastError> {
        let multicast = self.multicast(group, interface)?;
        self.set(DatagramOption::Membership { group, interface, member: false })
            .map_err(MulticastError::Os)?;
        self.core.group.disown_multicast(multicast, self.shard.inner.id);
        Ok(())
    }

    fn multicast(&self, group: IpAddr, interface: MulticastInterface) -> Result<Multicast, MulticastError> {
        if !group.is_multicast() {
            return Err(MulticastError::NotMulticast { addr: group });
        }
        if !family_fits(self.core.is_ipv6, SocketAddr::new(group, 0)) {
            return Err(MulticastError::WrongFamily { group });
        }
        if !self.core.open.get() {
            return Err(MulticastError::Closed);
        }
        Ok((group, interface))
    }

    /// How many routers a multicast datagram may pass; 1 unless set, so none. At most 255.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_multicast_hops(&self, hops: u32) -> io::Result<()> {
        self.set(DatagramOption::MulticastHops(hops))
    }

    /// See [`UdpTransport::set_multicast_hops`].
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn multicast_hops(&self) -> io::Result<u32> {
        match self.get(DatagramOption::MulticastHops(0))? {
            DatagramOption::MulticastHops(hops) => Ok(hops),
            _ => unreachable!("the driver answers what it was asked"),
        }
    }

    /// Whether this host gets what it sends to a group itself; on unless switched off.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_multicast_loop(&self, on: bool) -> io::Result<()> {
        self.set(DatagramOption::MulticastLoop(on))
    }

    /// See [`UdpTransport::set_multicast_loop`].
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn multicast_loop(&self) -> io::Result<bool> {
        match self.get(DatagramOption::MulticastLoop(false))? {
            DatagramOption::MulticastLoop(on) => Ok(on),
            _ => unreachable!("the driver answers what it was asked"),
        }
    }

    /// By which interface multicast datagrams leave.
    ///
    /// # Errors
    /// `InvalidInput` when it is named as the other IP version does; else what the operating system says.
    pub fn set_multicast_interface(&self, interface: MulticastInterface) -> io::Result<()> {
        self.set(DatagramOption::MulticastInterface(interface))
    }

    /// See [`UdpTransport::set_multicast_interface`].
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn multicast_interface(&self) -> io::Result<MulticastInterface> {
        match self.get(DatagramOption::MulticastInterface(MulticastInterface::Any))? {
            DatagramOption::MulticastInterface(interface) => Ok(interface),
            _ => unreachable!("the driver answers what it was asked"),
        }
    }

    fn set(&self, option: DatagramOption) -> io::Result<()> {
        self.shard.inner.driver.borrow_mut().set_datagram_option(self.core.token, option)
    }

    fn get(&self, which: DatagramOption) -> io::Result<DatagramOption> {
        self.shard.inner.driver.borrow().datagram_option(self.core.token, which)
    }

    /// Closes the socket, and those of the other shards that share its address. Nothing more is received from now on;
    /// [`DatagramProtocol::stopped`](crate::DatagramProtocol::stopped) is called later, never before this returns.
    /// Idempotent. The future is ready when the address can be bound again; it need not be awaited.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub fn close(&self) -> Closing {
        self.shard.close_datagram(&self.core, CloseReason::Closed);
        Closing::of(Arc::clone(&self.core.group))
    }
}

impl fmt::Debug for UdpTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "UdpTransport({})", self.core.group.addr)
    }
}

/// A datagram that waits for room; made by [`UdpTransport::send`].
#[must_use = "nothing is sent before it is awaited"]
#[derive(Debug)]
pub struct SendDatagram<'a> {
    transport: &'a UdpTransport,
    bytes: &'a [u8],
    to: Result<Option<SocketAddr>, SendError>,
}

impl Future for SendDatagram<'_> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let to = match std::mem::replace(&mut self.to, Ok(None)) {
            Ok(to) => to,
            Err(error) => return Poll::Ready(Err(error)),
        };
        match self.transport.send_now(self.bytes, to) {
            Err(SendError::NoRoom) => {
                self.to = Ok(to);
                self.transport.core.wait_to_send(context);
                Poll::Pending
            }
            outcome => Poll::Ready(outcome),
        }
    }
}
