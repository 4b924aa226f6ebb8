//! Datagrams in the simulated network: they get lost, come twice, and overtake each other, as drawn from the seed.
//!
//! There are no interfaces, so there is neither multicast nor broadcast; and no descriptors, so nothing can be watched.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

use super::{Group, LISTEN_PORT_FIRST, Network, dialled, overlap};
use crate::reactor::datagrams::{Batch, BatchPool};
use crate::reactor::driver::datagrams::{DatagramEvent, DatagramOption, DatagramSpec};
use crate::reactor::driver::sim::network::Packet;
use crate::reactor::driver::sim::sources::SourceKind;
use crate::reactor::token::Token;
use crate::sys::datagram::{Arrived, MESSAGES_MAX, Slots};
use crate::sys::socket::Reuse;

/// A datagram socket of one shard.
pub(in crate::reactor::driver::sim) struct DatagramSource {
    addr: SocketAddr,
    peer: Option<SocketAddr>,
    datagram_bytes_max: usize,
    pub(in crate::reactor::driver::sim) datagrams_per_turn: usize,
    pub(in crate::reactor::driver::sim) receiving: bool,
    broadcast: bool,
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    queued_bytes: usize,
    dropped: u32,
    /// Nobody was there when a datagram of this socket arrived.
    refused: bool,
    /// A send was made to find no room; `Packet::Room` follows.
    pub(in crate::reactor::driver::sim) blocked: bool,
    pub(in crate::reactor::driver::sim) granted: bool,
}

/// A datagram under way.
pub(super) struct Flying {
    from: SocketAddr,
    to: SocketAddr,
    /// Whose it is, to tell it that nobody was there.
    sender: (usize, Token),
    bytes: Vec<u8>,
}

impl DatagramSource {
    pub(in crate::reactor::driver::sim) fn has_news(&self) -> bool {
        self.refused || self.granted || (self.receiving && !self.queue.is_empty())
    }
}

impl Network {
    pub(in crate::reactor::driver::sim) fn bind_datagram(
        &mut self,
        shard: usize,
        spec: &DatagramSpec,
    ) -> io::Result<(Token, SocketAddr)> {
        let mut addr = spec.addr;
        if addr.port() == 0 {
            addr.set_port(self.free_datagram_port()?);
        }
        let shared = spec.reuse != Reuse::No;
        let taken = self
            .datagram_groups
            .iter()
            .any(|(held, group)| overlap(*held, addr) && !(shared && group.shared));
        if taken {
            return Err(Errno::ADDRINUSE.into());
        }
        let token = self.shards[shard].insert(SourceKind::Datagram(Box::new(DatagramSource {
            addr,
            peer: None,
            datagram_bytes_max: spec.datagram_bytes_max,
            datagrams_per_turn: spec.datagrams_per_turn.max(1),
            receiving: false,
            broadcast: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            dropped: 0,
            refused: false,
            blocked: false,
            granted: false,
        })));
        let group = self.datagram_groups.entry(addr).or_insert(Group { members: Vec::new(), shared });
        group.members.push((shard, token));
        Ok((token, addr))
    }

    fn free_datagram_port(&mut self) -> io::Result<u16> {
        for _ in LISTEN_PORT_FIRST..=u16::MAX {
            let port = self.next_listen_port;
            self.next_listen_port = port.checked_add(1).unwrap_or(LISTEN_PORT_FIRST);
            if self.datagram_groups.keys().all(|addr| addr.port() != port) {
                return Ok(port);
            }
        }
        Err(Errno::ADDRINUSE.into())
    }

    pub(super) fn share_datagram_port(&mut self, addr: SocketAddr) {
        if let Some(group) = self.datagram_groups.get_mut(&addr) {
            group.shared = true;
        }
    }

    pub(super) fn forget_datagram_member(&mut self, addr: SocketAddr, member: (usize, Token)) {
        let Some(group) = self.datagram_groups.get_mut(&addr) else { return };
        group.members.retain(|kept| *kept != member);
        if group.members.is_empty() {
            self.datagram_groups.remove(&addr);
        }
    }

    pub(in crate::reactor::driver::sim) fn datagram(
        &self,
        shard: usize,
        token: Token,
    ) -> io::Result<&DatagramSource> {
        match self.shards[shard].sources.get(token).map(|source| &source.kind) {
            Some(SourceKind::Datagram(source)) => Ok(source),
            _ => Err(Errno::NOTCONN.into()),
        }
    }

    pub(super) fn datagram_mut(&mut self, shard: usize, token: Token) -> io::Result<&mut DatagramSource> {
        match self.shards[shard].sources.get_mut(token).map(|source| &mut source.kind) {
            Some(SourceKind::Datagram(source)) => Ok(source),
            _ => Err(Errno::NOTCONN.into()),
        }
    }

    /// The address it was bound to.
    pub(super) fn datagram_bound(&self, shard: usize, token: Token) -> Option<SocketAddr> {
        self.datagram(shard, token).ok().map(|source| source.addr)
    }

    /// Bound to every address, it is at that of its peer: from a local address to itself is how Linux sends then.
    pub(in crate::reactor::driver::sim) fn datagram_addr(
        &self,
        shard: usize,
        token: Token,
    ) -> io::Result<SocketAddr> {
        let source = self.datagram(shard, token)?;
        Ok(match source.peer {
            Some(peer) if source.addr.ip().is_unspecified() => SocketAddr::new(peer.ip(), source.addr.port()),
            _ => source.addr,
        })
    }

    pub(in crate::reactor::driver::sim) fn connect_datagram(
        &mut self,
        shard: usize,
        token: Token,
        peer: SocketAddr,
    ) -> io::Result<()> {
        self.datagram_mut(shard, token)?.peer = Some(dialled(peer));
        Ok(())
    }

    pub(in crate::reactor::driver::sim) fn discard_datagrams(&mut self, shard: usize, token: Token) {
        if let Ok(source) = self.datagram_mut(shard, token) {
            source.queue.clear();
            source.queued_bytes = 0;
        }
    }

    pub(in crate::reactor::driver::sim) fn send_datagram(
        &mut self,
        shard: usize,
        token: Token,
        bytes: &[u8],
        to: Option<SocketAddr>,
    ) -> io::Result<()> {
        let source = self.datagram(shard, token)?;
        let to = dialled(to.or(source.peer).ok_or(Errno::DESTADDRREQ)?);
        if to.is_ipv4() != source.addr.is_ipv4() {
            return Err(Errno::AFNOSUPPORT.into());
        }
        if bytes.len() > if to.is_ipv4() { BYTES_MAX_V4 } else { BYTES_MAX_V6 } {
            return Err(Errno::MSGSIZE.into());
        }
        let ip = if source.addr.ip().is_unspecified() { to.ip() } else { source.addr.ip() };
        let from = SocketAddr::new(ip, source.addr.port());
        if self.chance.hits(self.options.faults.refused_send) {
            self.datagram_mut(shard, token)?.blocked = true;
            self.post(None, Packet::Room { shard, token });
            return Err(Errno::AGAIN.into());
        }
        if self.chance.hits(self.options.faults.lost_datagram) {
            return Ok(());
        }
        let copies = 1 + usize::from(self.chance.hits(self.options.faults.doubled_datagram));
        for _ in 0..copies {
            self.flights += 1;
            let number = self.flights;
            let flying = Flying { from, to, sender: (shard, token), bytes: bytes.to_vec() };
            self.flying.insert(number, flying);
            self.post(None, Packet::Datagram { number });
        }
        Ok(())
    }

    pub(super) fn deliver_datagram(&mut self, number: u64) {
        let Some(Flying { from, to, sender, bytes }) = self.flying.remove(&number) else { return };
        let Some((shard, token)) = self.choose_datagram_socket(from, to) else {
            // ICMP: port unreachable. A socket that is not connected is not told.
            let (shard, token) = sender;
            if let Ok(source) = self.datagram_mut(shard, token)
                && source.peer == Some(to)
            {
                source.refused = true;
                self.shards[shard].mark_ready(token);
            }
            return;
        };
        let source = self.datagram_mut(shard, token).expect("groups hold living sockets");
        if source.queued_bytes + bytes.len() + QUEUE_OVERHEAD_BYTES > QUEUE_BYTES_MAX {
            source.dropped += 1;
            return;
        }
        source.queued_bytes += bytes.len() + QUEUE_OVERHEAD_BYTES;
        source.queue.push_back((from, bytes));
        self.shards[shard].mark_ready(token);
    }

    /// A socket connected to the sender comes first; the others share what comes by a hash of the sender.
    fn choose_datagram_socket(&self, from: SocketAddr, to: SocketAddr) -> Option<(usize, Token)> {
        let group = self.group_at(&self.datagram_groups, to)?;
        let peer = |member: &(usize, Token)| {
            self.datagram(member.0, member.1).expect("groups hold living sockets").peer
        };
        if let Some(member) = group.members.iter().find(|member| peer(member) == Some(from)) {
            return Some(*member);
        }
        let open: Vec<_> = group.members.iter().filter(|member| peer(member).is_none()).collect();
        (!open.is_empty()).then(|| *open[self.spread(from, open.len())])
    }

    /// What a datagram socket has to tell.
    pub(in crate::reactor::driver::sim) fn tell_datagram(
        &mut self,
        shard: usize,
        token: Token,
        pool: &std::rc::Rc<BatchPool>,
    ) -> DatagramEvent {
        let count = self.chance.between(1, MESSAGES_MAX);
        let source = self.datagram_mut(shard, token).expect("it has news");
        if std::mem::take(&mut source.refused) {
            return DatagramEvent::Complaint(Errno::CONNREFUSED.into());
        }
        if std::mem::take(&mut source.granted) {
            return DatagramEvent::Room;
        }
        let slots = Slots::new(source.datagram_bytes_max);
        let mut store = pool.take();
        for (index, (from, bytes)) in source.queue.drain(..count.min(source.queue.len())).enumerate() {
            source.queued_bytes -= bytes.len() + QUEUE_OVERHEAD_BYTES;
            let start = index * slots.stride_bytes;
            let len = bytes.len().min(slots.slot_bytes);
            store.buffer[start..start + len].copy_from_slice(&bytes[..len]);
            store.arrived.push(Arrived {
                source: from,
                start: start as u32,
                len: len as u32,
                truncated: len < bytes.len(),
            });
        }
        store.dropped = std::mem::take(&mut source.dropped);
        let batch: Batch = pool.lend(store);
        DatagramEvent::Received(batch)
    }

    pub(in crate::reactor::driver::sim) fn set_datagram_option(
        &mut self,
        shard: usize,
        token: Token,
        option: DatagramOption,
    ) -> io::Result<()> {
        match option {
            DatagramOption::Broadcast(on) => self.datagram_mut(shard, token)?.broadcast = on,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }

    pub(in crate::reactor::driver::sim) fn datagram_option(
        &self,
        shard: usize,
        token: Token,
        which: DatagramOption,
    ) -> io::Result<DatagramOption> {
        match which {
            DatagramOption::Broadcast(_) => {
                Ok(DatagramOption::Broadcast(self.datagram(shard, token)?.broadcast))
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// What IP leaves of its 65,535 bytes when its header and that of UDP are in them; IPv6 does not count its own.
const BYTES_MAX_V4: usize = 65_507;
const BYTES_MAX_V6: usize = 65_527;
/// As net.core.rmem_default.
const QUEUE_BYTES_MAX: usize = 212_992;
/// What the kernel counts for a datagram beside its bytes.
const QUEUE_OVERHEAD_BYTES: usize = 768;
