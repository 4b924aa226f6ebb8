//! TCP and UDP in memory: connections are pairs of bounded pipes, packets are under way for a while, everything undecided
//! is drawn from one seed. What Linux does is the rule, and the comments say where it shows.

pub(super) mod datagrams;
mod packets;
#[cfg(test)]
pub(super) mod test_kit;
mod unix;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use self::datagrams::Flying;
use self::packets::Delivery;
pub(super) use self::packets::Packet;
use self::unix::Names;
use super::chance::Chance;
use super::options::SimOptions;
use super::sources::{Listener, Room, ShardSide, SourceKind, Stream};
use crate::reactor::buffer::Output;
use crate::reactor::driver::{CloseKind, ConnectSpec, Emptied, ListenSpec, Submitted};
use crate::reactor::token::Token;

/// All that one world holds. Verbs change it and post packets; [`Network::settle`] delivers what is due.
pub(super) struct Network {
    pub(super) seed: u64,
    pub(super) options: SimOptions,
    /// What the network decides.
    pub(super) chance: Chance,
    /// What the runner decides.
    pub(super) schedule: Chance,
    /// What the shards draw.
    pub(super) application: Chance,
    /// Virtual time since the world began.
    pub(super) clock: Duration,
    pub(super) shards: Vec<ShardSide>,
    pub(super) ends: BTreeMap<EndId, End>,
    last_end: u64,
    groups: BTreeMap<SocketAddr, Group>,
    /// UNIX sockets are at addresses of their own.
    names: Names,
    datagram_groups: BTreeMap<SocketAddr, Group>,
    /// Datagrams under way, by number.
    flying: BTreeMap<u64, Flying>,
    flights: u64,
    next_listen_port: u16,
    next_client_port: u16,
    client_addrs: BTreeSet<SocketAddr>,
    /// Where connecting is refused whoever listens.
    pub(super) refused_addrs: BTreeSet<SocketAddr>,
    pub(super) accept_faults: Option<(Errno, usize)>,
    wire: BinaryHeap<Reverse<Delivery>>,
    posted: u64,
}

/// Names one end of one connection; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndId(u64);

/// One end of a connection, wherever it lives. Gone when its owner has closed it; what it sent goes on its way.
pub(super) struct End {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The other end, once there is one. It may be gone.
    peer: Option<EndId>,
    pub(super) phase: Phase,
    owner: Owner,
    /// What the peer has sent and this end has not read.
    input: VecDeque<u8>,
    /// How much of `input` has arrived; the rest is under way.
    pub(super) arrived: usize,
    input_capacity: usize,
    /// A reset has destroyed bytes that were under way: a FIN after them must not arrive either.
    input_cut: bool,
    /// Descriptors that travel with bytes of `input`: each with the number of its byte, counted from the first ever.
    descriptors: VecDeque<(u64, Vec<OwnedFd>)>,
    /// How many bytes have been read.
    consumed: u64,
    /// FIN has arrived.
    pub(super) finished: bool,
    write_shut: bool,
    /// When the last packet to this end arrives: packets to one end never overtake each other.
    last_due: Duration,
    connected_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    /// Refused or reset. As on Linux, the first write tells the cause and later ones say EPIPE.
    Broken {
        cause: Errno,
        write_told: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Listener { shard: usize, token: Token },
    Source { shard: usize, token: Token },
    Detached,
}

/// The listeners at one address.
struct Group {
    members: Vec<(usize, Token)>,
    shared: bool,
}

// Listening and connecting.
impl Network {
    pub(super) fn new(seed: u64, options: SimOptions) -> Self {
        assert!(options.read_buffer_bytes > 0 && options.pipe_bytes_min > 0);
        assert!(options.pipe_bytes_min <= options.pipe_bytes_max);
        let mut chance = Chance::new(seed, NETWORK_STREAM);
        let next_client_port = chance.between(CLIENT_PORT_FIRST.into(), CLIENT_PORT_LAST.into()) as u16;
        Network {
            seed,
            options,
            chance,
            schedule: Chance::new(seed, SCHEDULE_STREAM),
            application: Chance::new(seed, APPLICATION_STREAM),
            clock: Duration::ZERO,
            shards: Vec::new(),
            ends: BTreeMap::new(),
            last_end: 0,
            groups: BTreeMap::new(),
            names: Names::default(),
            datagram_groups: BTreeMap::new(),
            flying: BTreeMap::new(),
            flights: 0,
            next_listen_port: LISTEN_PORT_FIRST,
            next_client_port,
            client_addrs: BTreeSet::new(),
            refused_addrs: BTreeSet::new(),
            accept_faults: None,
            wire: BinaryHeap::new(),
            posted: 0,
        }
    }

    pub(super) fn listen(&mut self, shard: usize, spec: &ListenSpec) -> io::Result<(Token, SocketAddr)> {
        let mut addr = spec.addr;
        if addr.port() == 0 {
            addr.set_port(self.free_listen_port()?);
        }
        // As with SO_REUSEPORT: all who hold the address must share it, and the newcomer must ask to.
        let taken =
            self.groups.iter().any(|(held, group)| overlap(*held, addr) && !(spec.join && group.shared));
        if taken {
            return Err(Errno::ADDRINUSE.into());
        }
        let token = self.shards[shard].insert(SourceKind::Listener(Box::new(Listener {
            addr,
            backlog: spec.backlog.max(1) as usize,
            accepts_per_turn: spec.accepts_per_turn.max(1),
            accepting: false,
            paused: false,
            refusing: false,
            handshaking: Vec::new(),
            queue: VecDeque::new(),
            taken: VecDeque::new(),
        })));
        let group = self.groups.entry(addr).or_insert(Group { members: Vec::new(), shared: spec.join });
        group.members.push((shard, token));
        Ok((token, addr))
    }

    pub(super) fn share_port(&mut self, shard: usize, token: Token) -> io::Result<()> {
        if let Some(addr) = self.datagram_bound(shard, token) {
            self.share_datagram_port(addr);
            return Ok(());
        }
        let listener = self.shards[shard].listener(token).ok_or(Errno::NOTCONN)?;
        let group = self.groups.get_mut(&listener.addr).expect("a listener is in the group of its address");
        group.shared = true;
        Ok(())
    }

    pub(super) fn accept(&mut self, shard: usize, token: Token, on: bool) {
        if let Some(listener) = self.shards[shard].listener_mut(token) {
            listener.accepting = on;
            self.shards[shard].mark_ready(token);
        }
    }

    pub(super) fn refuse_handshakes(&mut self, shard: usize, token: Token) -> io::Result<()> {
        self.shards[shard].listener_mut(token).ok_or(Errno::NOTCONN)?.refusing = true;
        Ok(())
    }

    pub(super) fn accept_queue(&mut self, shard: usize, token: Token) -> Emptied {
        let Some(listener) = self.shards[shard].listener_mut(token) else {
            return Emptied { accepted: 0, more: false };
        };
        if !listener.queue.is_empty()
            && let Some((fault, count)) = self.accept_faults
        {
            self.accept_faults = (count > 1).then_some((fault, count - 1));
            return Emptied { accepted: 0, more: true };
        }
        let accepted = listener.queue.len();
        listener.taken.append(&mut listener.queue);
        self.shards[shard].mark_ready(token);
        Emptied { accepted, more: false }
    }

    pub(super) fn connect(&mut self, shard: usize, spec: &ConnectSpec) -> io::Result<Token> {
        let remote = dialled(spec.addr);
        let local = self.client_addr(remote, spec.bind_addr)?;
        let client = self.insert_end(local, remote, Phase::Connecting, Owner::Detached);
        let token = self.shards[shard].insert(SourceKind::Stream(Stream::new(client, false)));
        let end = self.ends.get_mut(&client).expect("just inserted");
        end.owner = Owner::Source { shard, token };
        end.connected_out = true;
        self.client_addrs.insert(local);
        self.post(None, Packet::Syn { client, attempt: 0 });
        Ok(token)
    }

    fn free_listen_port(&mut self) -> io::Result<u16> {
        for _ in LISTEN_PORT_FIRST..=u16::MAX {
            let port = self.next_listen_port;
            self.next_listen_port = port.checked_add(1).unwrap_or(LISTEN_PORT_FIRST);
            if self.groups.keys().all(|addr| addr.port() != port) {
                return Ok(port);
            }
        }
        Err(Errno::ADDRINUSE.into())
    }

    fn client_addr(&mut self, remote: SocketAddr, bind: Option<SocketAddr>) -> io::Result<SocketAddr> {
        // Every address is local here, and from a local address to itself is how Linux connects then.
        let ip = match bind {
            Some(bind) if bind.is_ipv4() != remote.is_ipv4() => return Err(Errno::AFNOSUPPORT.into()),
            Some(bind) if !bind.ip().is_unspecified() => bind.ip(),
            _ => remote.ip(),
        };
        if let Some(port) = bind.map(|bind| bind.port()).filter(|port| *port != 0) {
            let addr = SocketAddr::new(ip, port);
            return if self.client_addrs.contains(&addr) { Err(Errno::ADDRINUSE.into()) } else { Ok(addr) };
        }
        for _ in CLIENT_PORT_FIRST..=CLIENT_PORT_LAST {
            let addr = SocketAddr::new(ip, self.next_client_port);
            self.next_client_port =
                if addr.port() == CLIENT_PORT_LAST { CLIENT_PORT_FIRST } else { addr.port() + 1 };
            if !self.client_addrs.contains(&addr) {
                return Ok(addr);
            }
        }
        Err(Errno::ADDRNOTAVAIL.into())
    }

    fn insert_end(&mut self, local: SocketAddr, remote: SocketAddr, phase: Phase, owner: Owner) -> EndId {
        self.last_end += 1;
        let id = EndId(self.last_end);
        let input_capacity = self.chance.between(self.options.pipe_bytes_min, self.options.pipe_bytes_max);
        let end = End {
            local,
            remote,
            peer: None,
            phase,
            owner,
            input: VecDeque::new(),
            arrived: 0,
            input_capacity,
            input_cut: false,
            descriptors: VecDeque::new(),
            consumed: 0,
            finished: false,
            write_shut: false,
            last_due: Duration::ZERO,
            connected_out: false,
        };
        self.ends.insert(id, end);
        id
    }
}

// What a connection does.
impl Network {
    pub(super) fn adopt(&mut self, shard: usize, id: EndId) -> Token {
        let token = self.shards[shard].insert(SourceKind::Stream(Stream::new(id, true)));
        let end = self.ends.get_mut(&id).expect("a detached socket keeps its end");
        end.owner = Owner::Source { shard, token };
        self.shards[shard].mark_ready(token);
        token
    }

    pub(super) fn release(&mut self, shard: usize, token: Token) -> Option<EndId> {
        let stream = self.shards[shard].stream(token).filter(|stream| stream.announced)?;
        let id = stream.end;
        self.shards[shard].remove(token);
        self.ends.get_mut(&id).expect("an open source has an end").owner = Owner::Detached;
        Some(id)
    }

    pub(super) fn receive(&mut self, shard: usize, token: Token, on: bool) {
        if let Ok(source) = self.datagram_mut(shard, token) {
            source.receiving = on;
            self.shards[shard].mark_ready(token);
            return;
        }
        let Some(stream) = self.shards[shard].stream_mut(token) else { return };
        let was_on = std::mem::replace(&mut stream.receiving, on);
        if was_on == on {
            return;
        }
        // What has come may already be on its way to the shard.
        stream.late =
            !on && self.ends[&stream.end].arrived > 0 && self.chance.hits(self.options.faults.late_received);
        self.shards[shard].mark_ready(token);
    }

    /// Sends as much of `bytes` as there is room for and the faults allow.
    pub(super) fn send(&mut self, shard: usize, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let from = self.writer(shard, token)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let to = self.ends[&from].peer.expect("an open connection has had a peer");
        // To a peer that is gone, bytes leave as long as its reset has not come.
        let room = self.ends.get(&to).map_or(ORPHAN_BYTES, |end| end.input_capacity - end.input.len());
        let faults = &self.options.faults;
        let offered = if self.chance.hits(faults.refused_send) {
            0
        } else if self.chance.hits(faults.short_send) {
            self.chance.below(bytes.len())
        } else {
            bytes.len()
        };
        let count = offered.min(room);
        if count > 0 {
            if let Some(end) = self.ends.get_mut(&to) {
                end.input.extend(&bytes[..count]);
            }
            self.post(Some(to), Packet::Bytes { from, to, count });
        }
        if count < bytes.len() {
            let full = count == room;
            let stream = self.shards[shard].stream_mut(token).expect("looked up above");
            stream.room = if full { Room::WhenRead } else { Room::WhenGranted };
            if !full {
                self.post(None, Packet::Room { shard, token });
            } else if !self.ends.contains_key(&to) {
                self.shards[shard].mark_ready(token);
            }
        }
        Ok(count)
    }

    pub(super) fn submit(
        &mut self,
        shard: usize,
        token: Token,
        output: &mut Output,
    ) -> io::Result<Submitted> {
        self.writer(shard, token)?;
        while !output.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); SLICES];
            let filled = output.slices(&mut slices);
            let mut taken = 0;
            let mut short = false;
            for slice in &slices[..filled] {
                let count = self.send(shard, token, slice)?;
                taken += count;
                short = count < slice.len();
                if short {
                    break;
                }
            }
            output.advance(taken);
            if short {
                return Ok(Submitted::Blocked);
            }
        }
        Ok(Submitted::Done)
    }

    pub(super) fn shutdown_write(&mut self, shard: usize, token: Token) -> io::Result<()> {
        let stream = self.shards[shard].stream(token).filter(|stream| stream.announced);
        let id = stream.ok_or(Errno::NOTCONN)?.end;
        let end = self.ends.get_mut(&id).expect("an open source has an end");
        if end.phase != Phase::Open {
            return Err(Errno::NOTCONN.into());
        }
        if !std::mem::replace(&mut end.write_shut, true) {
            let to = end.peer.expect("an open connection has had a peer");
            self.post(Some(to), Packet::Fin { to });
        }
        Ok(())
    }

    pub(super) fn close(&mut self, shard: usize, token: Token, kind: CloseKind) {
        let datagram_addr = self.datagram_bound(shard, token);
        match self.shards[shard].remove(token) {
            None => {}
            Some(SourceKind::Datagram(_)) => {
                let addr = datagram_addr.expect("looked up above");
                self.forget_datagram_member(addr, (shard, token));
            }
            Some(SourceKind::Stream(stream)) => self.close_end(stream.end, kind),
            Some(SourceKind::Listener(listener)) => {
                let group =
                    self.groups.get_mut(&listener.addr).expect("a listener is in the group of its address");
                group.members.retain(|member| *member != (shard, token));
                if group.members.is_empty() {
                    self.groups.remove(&listener.addr);
                    self.names.forget(listener.addr);
                }
                // As Linux does, unless net.ipv4.tcp_migrate_req is set: nobody else gets what waited here.
                for id in listener.taken.into_iter().chain(listener.queue).chain(listener.handshaking) {
                    self.close_end(id, CloseKind::Reset);
                }
            }
        }
    }

    /// Closes an end as close(2) does: with bytes unread, or linger set to zero, the peer gets RST instead of FIN.
    pub(super) fn close_end(&mut self, id: EndId, kind: CloseKind) {
        let end = self.ends.remove(&id).expect("an end is closed once, by its owner");
        if end.connected_out {
            self.client_addrs.remove(&end.local);
        }
        // Without a peer the handshake has not begun; a broken connection has nobody to tell. A client that
        // gives up in the middle of its handshake is found missing by the SYN-ACK.
        let (Some(to), Phase::Open) = (end.peer, end.phase) else { return };
        if kind == CloseKind::Reset || end.arrived > 0 {
            self.reset(to);
        } else if !end.write_shut {
            self.post(Some(to), Packet::Fin { to });
        }
    }

    /// Sends RST to `to`, whose peer is gone.
    fn reset(&mut self, to: EndId) {
        let Some(end) = self.ends.get_mut(&to) else { return };
        // On Linux, what the sender's kernel still holds is thrown away.
        if end.input.len() > end.arrived && self.chance.hits(self.options.faults.lossy_reset) {
            end.input.truncate(end.arrived);
            end.input_cut = true;
        }
        self.post(Some(to), Packet::Reset { to });
    }

    /// The end behind `token`, if it may write.
    fn writer(&mut self, shard: usize, token: Token) -> io::Result<EndId> {
        let stream = self.shards[shard].stream(token).filter(|stream| stream.announced);
        let id = stream.ok_or(Errno::NOTCONN)?.end;
        let end = self.ends.get_mut(&id).expect("an open source has an end");
        match &mut end.phase {
            Phase::Connecting => Err(Errno::NOTCONN.into()),
            Phase::Broken { cause, write_told } => {
                let first = !std::mem::replace(write_told, true);
                Err(if first { *cause } else { Errno::PIPE }.into())
            }
            Phase::Open if end.write_shut => Err(Errno::PIPE.into()),
            Phase::Open => Ok(id),
        }
    }

    /// Copies out and forgets the first bytes that have arrived at `id`.
    pub(super) fn read(&mut self, id: EndId, buffer: &mut [u8]) {
        let (first, second) = self.ends[&id].input.as_slices();
        let split = first.len().min(buffer.len());
        let rest = buffer.len() - split;
        buffer[..split].copy_from_slice(&first[..split]);
        buffer[split..].copy_from_slice(&second[..rest]);
        self.consume(id, buffer.len());
    }

    fn consume(&mut self, id: EndId, count: usize) {
        let end = self.ends.get_mut(&id).expect("the caller has looked it up");
        assert!(count <= end.arrived, "read what has not arrived");
        end.input.drain(..count);
        end.arrived -= count;
        end.consumed += count as u64;
        end.close_passed_descriptors();
        if end.input.is_empty() {
            // An idle connection owns no buffer.
            end.input = VecDeque::new();
        }
        if let Some(writer) = end.peer {
            self.mark_end_ready(writer);
        }
    }

    /// Whether a sender that found the pipe from `id` full is told now: at a third of the room, as on Linux.
    pub(super) fn has_room(&self, id: EndId) -> bool {
        let peer = self.ends[&id].peer.and_then(|peer| self.ends.get(&peer));
        peer.is_none_or(|end| (end.input_capacity - end.input.len()) * 3 >= end.input_capacity)
    }
}

/// Where a connect to `addr` goes: to an unspecified address means to this host.
fn dialled(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port()),
        // Flow labels and scopes name nothing here.
        ip => SocketAddr::new(ip, addr.port()),
    }
}

/// Whether two listeners would take the same connections. IPv6 listeners take no IPv4 (IPV6_V6ONLY is always set).
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

const LISTEN_PORT_FIRST: u16 = 40_000;
/// Below the listeners' ports, so that no client ever sits where a listener wants to.
const CLIENT_PORT_FIRST: u16 = 10_000;
const CLIENT_PORT_LAST: u16 = LISTEN_PORT_FIRST - 1;

/// What one send may put on the way to a peer that is gone.
const ORPHAN_BYTES: usize = 64 * 1024;

/// Slices asked of an output at once.
const SLICES: usize = 16;

const NETWORK_STREAM: u64 = 1;
const SCHEDULE_STREAM: u64 = 2;
const APPLICATION_STREAM: u64 = 3;
