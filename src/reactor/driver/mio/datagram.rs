//! One watched datagram socket: batches within a budget, and sends that find no room.
//!
//! Watched for reading alone: asked for writability too, the kernel would tell of every datagram that has left. Only
//! while a send waits for room is that asked for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;

use super::turn::{Readiness, Turn};
use super::{MioDriver, Source, not_connected};
use crate::reactor::datagrams::{BatchPool, BatchStore};
use crate::reactor::driver::Event;
use crate::reactor::driver::datagrams::{
    DatagramDriver, DatagramEvent, DatagramOption, DatagramSpec, MulticastInterface, SentSegments,
    wrong_interface,
};
use crate::reactor::token::Token;
use crate::sys::datagram::{self, MESSAGES_MAX, SEGMENTED_BYTES_MAX, SEGMENTS_MAX, Slots};
use crate::sys::socket::Socket;
use crate::sys::unix::{self, Bound};

pub(super) struct Datagram {
    /// For one of a UNIX socket: the file it is bound to, if it is. Before the socket: a file is removed while the socket
    /// holds its number, which another one may have later.
    unix: Option<Option<Bound>>,
    pub(super) socket: Socket,
    is_ipv6: bool,
    pub(super) receiving: bool,
    /// The kernel has datagrams for us, or may have.
    pub(super) unread: bool,
    /// A short batch proves nothing now: the kernel may have stopped at an error. Receive until it has nothing.
    to_the_end: bool,
    /// A send came short: the kernel has been asked to tell when there is room.
    blocked: bool,
    /// It is on the driver's carry list.
    pub(super) carried: bool,
    broken: bool,
    /// Cutting by the kernel has failed with EIO: the device cannot.
    pub(super) cannot_segment: bool,
    /// What a send found that was about an earlier datagram.
    complaint: Option<io::Error>,
    slots: Slots,
    /// Messages asked for at once: doubled when so many came, halved when few did.
    wanted: usize,
    /// The kernel's count of dropped datagrams, as last told.
    dropped: u32,
    datagrams_per_turn: usize,
    bytes_per_turn: usize,
    served_bytes: usize,
    /// Receives that have failed, one after the other, for no reason of the network's.
    failures: u32,
    /// Datagrams in one message, as expected: the kernel joins many of them if it may, and says so afterwards.
    per_message: usize,
}

impl Datagram {
    /// Serves this socket, which is at the head of the turn, once.
    pub(super) fn serve(
        &mut self,
        token: Token,
        readiness: Readiness,
        turn: &mut Turn,
        pool: &Rc<BatchPool>,
        registry: &Registry,
    ) -> Option<Event> {
        if readiness.has(Readiness::READABLE) {
            self.unread = true;
        }
        if readiness.is_unusual() {
            self.unread = true;
            self.to_the_end = true;
        }
        let tell = |event| Some(Event::Datagram { token, event });
        if self.broken {
            turn.pass_head();
            return None;
        }
        if self.blocked && readiness.has(Readiness::WRITABLE) {
            self.blocked = false;
            if let Err(error) = self.register_again(token, registry) {
                return self.break_down(error, token, turn);
            }
            return tell(DatagramEvent::Room);
        }
        if let Some(error) = self.complaint.take() {
            return tell(DatagramEvent::Complaint(error));
        }
        if !self.receiving || !self.unread || self.carried {
            turn.pass_head();
            return None;
        }
        if turn.served == 0 {
            self.served_bytes = 0;
        }
        // Bounded, in number and size: a flood would otherwise keep the loop for itself.
        let mut room = self.datagrams_per_turn.saturating_sub(turn.served);
        if self.per_message > 1 {
            room /= self.per_message;
        }
        if (room == 0 && turn.served > 0) || self.served_bytes >= self.bytes_per_turn {
            self.carry(token, turn);
            turn.pass_head();
            return None;
        }
        let wanted = self.wanted.min(room.max(1));
        let mut store = pool.take();
        let received = if self.unix.is_some() {
            self.receive_unix(&mut store, wanted)
        } else {
            let buffer = &mut store.buffer;
            datagram::receive(self.socket.as_fd(), buffer, self.slots, wanted, &mut store.arrived)
        };
        match received {
            Ok(received) => {
                if let Some(dropped) = received.dropped {
                    store.dropped = dropped.wrapping_sub(self.dropped);
                    self.dropped = dropped;
                }
                self.failures = 0;
                self.served_bytes += store.arrived.iter().map(|one| one.len as usize).sum::<usize>();
                turn.served += store.arrived.len();
                if self.per_message > 1 || store.arrived.len() > received.messages {
                    // At once up, slowly down: what was joined a moment ago will be again.
                    let now = store.arrived.len().div_ceil(received.messages.max(1));
                    self.per_message = now.max(self.per_message - self.per_message.div_ceil(8)).max(1);
                }
                if received.messages < wanted {
                    if !self.to_the_end {
                        self.unread = false;
                        turn.pass_head();
                    }
                    self.wanted = (self.wanted / 2).max(received.messages).clamp(2, MESSAGES_MAX);
                } else {
                    self.wanted = (self.wanted * 2).min(MESSAGES_MAX);
                }
                tell(DatagramEvent::Received(pool.lend(store)))
            }
            Err(error) => {
                pool.give_back(store);
                self.after_failed_receive(token, error, turn)
            }
        }
    }

    fn receive_unix(&self, store: &mut BatchStore, wanted: usize) -> io::Result<datagram::Received> {
        let BatchStore { buffer, arrived, names, .. } = store;
        let messages = unix::receive_datagrams(&self.socket, buffer, self.slots, wanted, arrived, names)?;
        Ok(datagram::Received { messages, dropped: None })
    }

    #[cold]
    fn after_failed_receive(&mut self, token: Token, error: io::Error, turn: &mut Turn) -> Option<Event> {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.failures = 0;
            // Rare, so it is checked: a spurious one would wait for an edge that never comes.
            if self.socket.is_readable() {
                self.carry(token, turn);
            } else {
                self.unread = false;
                self.to_the_end = false;
            }
            turn.pass_head();
            return None;
        }
        match ReceiveFailure::of(&error) {
            ReceiveFailure::Complaint => {
                // The kernel tells it once. It counts, so that a socket which tells nothing else does not keep the turn.
                turn.served += 1;
                Some(Event::Datagram { token, event: DatagramEvent::Complaint(error) })
            }
            // Asked again at once it would say the same.
            ReceiveFailure::Shortage => {
                self.carry(token, turn);
                turn.pass_head();
                None
            }
            ReceiveFailure::Fatal => self.break_down(error, token, turn),
            ReceiveFailure::Other => {
                self.failures += 1;
                if self.failures >= FAILURES_MAX {
                    return self.break_down(error, token, turn);
                }
                self.carry(token, turn);
                turn.pass_head();
                Some(Event::Datagram { token, event: DatagramEvent::Complaint(error) })
            }
        }
    }

    #[cold]
    fn break_down(&mut self, error: io::Error, token: Token, turn: &mut Turn) -> Option<Event> {
        self.broken = true;
        turn.pass_head();
        Some(Event::Datagram { token, event: DatagramEvent::Broken(error) })
    }

    pub(super) fn carry(&mut self, token: Token, turn: &mut Turn) {
        if !std::mem::replace(&mut self.carried, true) {
            turn.carried.push(token);
        }
    }

    fn register_again(&self, token: Token, registry: &Registry) -> io::Result<()> {
        let interest =
            if self.blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let name = mio::Token(token.to_bits() as usize);
        registry.reregister(&mut SourceFd(&self.socket.as_fd().as_raw_fd()), name, interest)
    }
}

impl DatagramDriver for MioDriver {
    fn bind_datagram(&mut self, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)> {
        let socket = Socket::bind_datagram(spec.addr, spec.reuse)?;
        if spec.joined {
            socket.join_datagrams()?;
        }
        if let Some(bytes) = spec.receive_buffer_bytes {
            socket.set_receive_buffer(bytes)?;
        }
        if let Some(bytes) = spec.send_buffer_bytes {
            socket.set_send_buffer(bytes)?;
        }
        self.add_datagram(socket, spec)
    }

    fn adopt_datagram(&mut self, socket: Socket, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)> {
        socket.make_nonblocking()?;
        self.add_datagram(socket, spec)
    }

    fn connect_datagram(&mut self, token: Token, peer: SocketAddr) -> io::Result<()> {
        self.datagram(token)?.socket.connect_datagram(peer)
    }

    fn discard_datagrams(&mut self, token: Token) {
        let Ok(source) = self.datagram(token) else { return };
        // Bounded: a peer may send as fast as this reads.
        for _ in 0..DISCARDS_MAX {
            if datagram::discard(source.socket.as_fd()).is_err() {
                break;
            }
        }
    }

    #[inline]
    fn send_datagram(&mut self, token: Token, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
        let Some(Source::Datagram(source)) = self.sources.get(token) else { return Err(not_connected()) };
        match datagram::send(source.socket.as_fd(), bytes, to) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.after_failed_send(token, error, |socket| datagram::send(socket.as_fd(), bytes, to))
            }
        }
    }

    fn send_segments(
        &mut self,
        token: Token,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
    ) -> SentSegments {
        let mut sent_bytes = 0;
        match self.send_all_segments(token, bytes, segment_bytes, to, &mut sent_bytes) {
            Ok(()) => SentSegments { sent_bytes, stopped_by: None },
            Err(error) => SentSegments { sent_bytes, stopped_by: Some(error) },
        }
    }

    fn set_datagram_option(&mut self, token: Token, option: DatagramOption) -> io::Result<()> {
        let Datagram { socket, is_ipv6, .. } = self.datagram(token)?;
        let is_ipv6 = *is_ipv6;
        match option {
            DatagramOption::Broadcast(on) => socket.set_broadcast(on),
            DatagramOption::MulticastHops(hops) => socket.set_multicast_hops(is_ipv6, hops),
            DatagramOption::MulticastLoop(on) => socket.set_multicast_loop(is_ipv6, on),
            DatagramOption::MulticastInterface(interface) => {
                if is_ipv6 {
                    socket.set_multicast_interface_v6(index_of(interface)?)
                } else {
                    socket.set_multicast_interface_v4(addr_of(interface)?)
                }
            }
            DatagramOption::Membership { group, interface, member } => match group {
                IpAddr::V4(group) => socket.set_membership_v4(group, addr_of(interface)?, member),
                IpAddr::V6(group) => socket.set_membership_v6(group, index_of(interface)?, member),
            },
        }
    }

    fn datagram_option(&self, token: Token, which: DatagramOption) -> io::Result<DatagramOption> {
        let Datagram { socket, is_ipv6, .. } = self.datagram(token)?;
        let is_ipv6 = *is_ipv6;
        Ok(match which {
            DatagramOption::Broadcast(_) => DatagramOption::Broadcast(socket.broadcast()?),
            DatagramOption::MulticastHops(_) => {
                DatagramOption::MulticastHops(socket.multicast_hops(is_ipv6)?)
            }
            DatagramOption::MulticastLoop(_) => {
                DatagramOption::MulticastLoop(socket.multicast_loop(is_ipv6)?)
            }
            DatagramOption::MulticastInterface(_) => {
                let interface = if is_ipv6 {
                    match socket.multicast_interface_v6()? {
                        0 => MulticastInterface::Any,
                        index => MulticastInterface::Index(index),
                    }
                } else {
                    match socket.multicast_interface_v4()? {
                        addr if addr.is_unspecified() => MulticastInterface::Any,
                        addr => MulticastInterface::Addr(addr),
                    }
                };
                DatagramOption::MulticastInterface(interface)
            }
            DatagramOption::Membership { .. } => return Err(io::ErrorKind::Unsupported.into()),
        })
    }
}

impl MioDriver {
    fn add_datagram(&mut self, socket: Socket, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)> {
        let addr = socket.local_addr()?;
        let token = self.add_datagram_source(socket, addr.is_ipv6(), None, spec)?;
        Ok((token, addr))
    }

    pub(super) fn add_unix_datagram(
        &mut self,
        socket: Socket,
        bound: Option<Bound>,
        spec: &DatagramSpec,
    ) -> io::Result<Token> {
        self.add_datagram_source(socket, false, Some(bound), spec)
    }

    fn add_datagram_source(
        &mut self,
        socket: Socket,
        is_ipv6: bool,
        unix: Option<Option<Bound>>,
        spec: &DatagramSpec,
    ) -> io::Result<Token> {
        // A joined message is as long as the longest datagram, whatever its parts are.
        let joined_bytes = if spec.joined { datagram::DATAGRAM_BYTES_MAX } else { 0 };
        let slot_bytes = spec.datagram_bytes_max.max(joined_bytes).clamp(1, datagram::DATAGRAM_BYTES_MAX);
        let is_unix = unix.is_some();
        let source = Datagram {
            socket,
            is_ipv6,
            unix,
            receiving: false,
            unread: false,
            to_the_end: false,
            blocked: false,
            carried: false,
            broken: false,
            // The kernel would send it in one piece: UNIX sockets heed no UDP_SEGMENT.
            cannot_segment: is_unix,
            complaint: None,
            slots: Slots::new(slot_bytes),
            wanted: 2,
            dropped: 0,
            datagrams_per_turn: spec.datagrams_per_turn.max(1),
            bytes_per_turn: spec.bytes_per_turn.max(1),
            served_bytes: 0,
            failures: 0,
            per_message: if spec.joined { SEGMENTS_MAX } else { 1 },
        };
        self.add(Source::Datagram(Box::new(source)))
    }

    fn datagram(&self, token: Token) -> io::Result<&Datagram> {
        match self.sources.get(token) {
            Some(Source::Datagram(source)) => Ok(source),
            _ => Err(not_connected()),
        }
    }

    fn datagram_mut(&mut self, token: Token) -> io::Result<&mut Datagram> {
        match self.sources.get_mut(token) {
            Some(Source::Datagram(source)) => Ok(source),
            _ => Err(not_connected()),
        }
    }

    fn send_all_segments(
        &mut self,
        token: Token,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
        sent_bytes: &mut usize,
    ) -> io::Result<()> {
        let segment_len = usize::from(segment_bytes.max(1));
        let per_call = (SEGMENTED_BYTES_MAX / segment_len).clamp(1, SEGMENTS_MAX) * segment_len;
        let mut one_by_one = self.datagram(token)?.cannot_segment;
        while *sent_bytes < bytes.len() {
            let rest = &bytes[*sent_bytes..];
            let part = if one_by_one { segment_len } else { per_call }.min(rest.len());
            let part = &rest[..part];
            if part.len() <= segment_len {
                self.send_datagram(token, part, to)?;
            } else {
                if let Err(error) = self.send_cut(token, part, segment_bytes, to) {
                    let Some(refusal) = CutRefusal::of(&error) else { return Err(error) };
                    // Each by itself: that is either taken, or says what is wrong.
                    one_by_one = true;
                    self.datagram_mut(token)?.cannot_segment = refusal == CutRefusal::ForGood;
                    continue;
                }
            }
            *sent_bytes += part.len();
        }
        Ok(())
    }

    fn send_cut(
        &mut self,
        token: Token,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
    ) -> io::Result<()> {
        let send = |socket: &Socket| datagram::send_segments(socket.as_fd(), bytes, segment_bytes, to);
        match send(&self.datagram(token)?.socket) {
            Ok(()) => Ok(()),
            Err(error) if CutRefusal::of(&error).is_some() => Err(error),
            Err(error) => self.after_failed_send(token, error, send),
        }
    }

    /// Goes on after a send that failed with `error`.
    #[cold]
    fn after_failed_send(
        &mut self,
        token: Token,
        mut error: io::Error,
        mut send: impl FnMut(&Socket) -> io::Result<()>,
    ) -> io::Result<()> {
        let registry = self.poll.registry();
        let Some(Source::Datagram(source)) = self.sources.get_mut(token) else { return Err(not_connected()) };
        for _ in 1..SENDS_MAX {
            if error.kind() == io::ErrorKind::WouldBlock {
                if source.socket.is_writable() {
                    // There is room by now, or the refusal was spurious.
                } else {
                    if !source.blocked {
                        source.blocked = true;
                        source.register_again(token, registry)?;
                    }
                    return Err(error);
                }
            } else if is_complaint(&error) {
                // About an earlier datagram; this one has not been tried.
                source.complaint = Some(error);
                source.carry(token, &mut self.turn);
            } else {
                return Err(error);
            }
            match send(&source.socket) {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
        if error.kind() == io::ErrorKind::WouldBlock {
            // Refused again and again although there is room: no event will tell that it is over.
            return Err(Errno::NOBUFS.into());
        }
        Err(error)
    }
}

/// `ip(7)`, `icmp(7)`: what a router or the peer's host said about an earlier datagram of a connected socket.
fn is_complaint(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// What a failed receive says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiveFailure {
    /// The network's word about an earlier datagram: `icmp(7)`, `ip(7)`. The kernel tells it once.
    Complaint,
    /// The kernel has no memory now.
    Shortage,
    /// The descriptor is closed, or is no socket any more: asking again would spin.
    Fatal,
    /// Perhaps it is over soon, and perhaps it is forbidden for good, as by a filter of system calls.
    Other,
}

impl ReceiveFailure {
    fn of(error: &io::Error) -> ReceiveFailure {
        match Errno::from_io_error(error) {
            Some(
                Errno::CONNREFUSED
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::PROTO
                | Errno::MSGSIZE,
            ) => ReceiveFailure::Complaint,
            Some(Errno::NOMEM | Errno::NOBUFS) => ReceiveFailure::Shortage,
            Some(Errno::BADF | Errno::NOTSOCK | Errno::INVAL | Errno::FAULT | Errno::OPNOTSUPP) => {
                ReceiveFailure::Fatal
            }
            _ => ReceiveFailure::Other,
        }
    }
}

/// Why the kernel does not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CutRefusal {
    /// The device has no checksum offload, or the kernel knows no cutting.
    ForGood,
    /// Parts that do not fit the path, or an address that is none: the next call may be another matter.
    ThisTime,
}

impl CutRefusal {
    fn of(error: &io::Error) -> Option<CutRefusal> {
        match Errno::from_io_error(error)? {
            Errno::IO | Errno::NOPROTOOPT | Errno::OPNOTSUPP => Some(CutRefusal::ForGood),
            Errno::INVAL => Some(CutRefusal::ThisTime),
            _ => None,
        }
    }
}

fn addr_of(interface: MulticastInterface) -> io::Result<std::net::Ipv4Addr> {
    match interface {
        MulticastInterface::Any => Ok(std::net::Ipv4Addr::UNSPECIFIED),
        MulticastInterface::Addr(addr) => Ok(addr),
        MulticastInterface::Index(_) => Err(wrong_interface()),
    }
}

fn index_of(interface: MulticastInterface) -> io::Result<u32> {
    match interface {
        MulticastInterface::Any => Ok(0),
        MulticastInterface::Index(index) => Ok(index),
        MulticastInterface::Addr(_) => Err(wrong_interface()),
    }
}

/// Datagrams dropped before a connected socket begins to receive: more than any usual receive buffer holds.
const DISCARDS_MAX: usize = 4096;
/// Receives, each in a turn of its own, that may fail for no reason of the network's before the socket is given up.
const FAILURES_MAX: u32 = 16;
/// How often a kernel may refuse, for reasons that are over or not its own.
const SENDS_MAX: usize = 8;
