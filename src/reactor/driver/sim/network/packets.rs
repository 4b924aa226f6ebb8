//! Packets under way: when each arrives, and what it changes where it does.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;

use super::{EndId, Group, Network, Owner, Phase};
use crate::addr::Addr;
use crate::reactor::driver::sim::sources::Room;
use crate::reactor::random::mix;
use crate::reactor::token::Token;

pub(super) struct Delivery {
    pub(super) due: Duration,
    /// Posting order, which decides between deliveries of one instant.
    pub(super) sequence: u64,
    pub(super) packet: Packet,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::reactor::driver::sim) enum Packet {
    Syn {
        client: EndId,
        attempt: u32,
    },
    SynAck {
        client: EndId,
        server: EndId,
    },
    Ack {
        server: EndId,
    },
    Bytes {
        from: EndId,
        to: EndId,
        count: usize,
    },
    Fin {
        to: EndId,
    },
    Reset {
        to: EndId,
    },
    Refusal {
        client: EndId,
        cause: Errno,
    },
    Datagram {
        number: u64,
    },
    /// A sender that was made to come short may go on.
    Room {
        shard: usize,
        token: Token,
    },
    /// A listener that failed to accept tries again.
    AcceptAgain {
        shard: usize,
        token: Token,
    },
}

impl Network {
    /// Delivers what is due by now. Every verb ends with this.
    pub(in crate::reactor::driver::sim) fn settle(&mut self) {
        self.deliver_until(self.clock);
    }

    pub(in crate::reactor::driver::sim) fn advance_to(&mut self, clock: Duration) {
        self.deliver_until(clock);
        self.clock = self.clock.max(clock);
    }

    /// When the next packet arrives. Packets that nobody waits for are forgotten on the way.
    pub(in crate::reactor::driver::sim) fn next_delivery(&mut self) -> Option<Duration> {
        loop {
            let Reverse(delivery) = self.wire.peek()?;
            if self.is_wanted(&delivery.packet) {
                return Some(delivery.due);
            }
            self.wire.pop();
        }
    }

    /// Sends `packet` on its way; with `to`, behind everything that is under way to that end.
    pub(in crate::reactor::driver::sim) fn post(&mut self, to: Option<EndId>, packet: Packet) {
        let mut due = self.clock + if self.is_instant(&packet) { Duration::ZERO } else { self.latency() };
        if let Some(end) = to.and_then(|to| self.ends.get_mut(&to)) {
            due = due.max(end.last_due);
            end.last_due = due;
        }
        self.post_at(due, packet);
    }

    pub(in crate::reactor::driver::sim) fn post_at(&mut self, due: Duration, packet: Packet) {
        self.posted += 1;
        self.wire.push(Reverse(Delivery { due, sequence: self.posted, packet }));
    }

    fn latency(&mut self) -> Duration {
        let max = self.options.latency_max.as_nanos() as usize;
        if max == 0 || self.chance.below(4) == 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.chance.below(max + 1) as u64)
    }

    fn deliver_until(&mut self, until: Duration) {
        while let Some(Reverse(delivery)) = self.wire.peek()
            && delivery.due <= until
        {
            let Reverse(delivery) = self.wire.pop().expect("just seen");
            self.clock = self.clock.max(delivery.due);
            self.deliver(delivery.packet);
        }
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Syn { client, attempt } => self.deliver_syn(client, attempt),
            Packet::SynAck { client, server } => self.deliver_syn_ack(client, server),
            Packet::Ack { server } => self.deliver_ack(server),
            Packet::Bytes { from, to, count } => self.deliver_bytes(from, to, count),
            Packet::Fin { to } => {
                if let Some(end) = self.ends.get_mut(&to)
                    && end.phase == Phase::Open
                    && !end.input_cut
                {
                    assert_eq!(end.arrived, end.input.len(), "FIN has overtaken bytes");
                    end.finished = true;
                    self.mark_end_ready(to);
                }
            }
            Packet::Reset { to } => self.deliver_reset(to),
            Packet::Refusal { client, cause } => self.break_end(client, cause),
            Packet::Datagram { number } => self.deliver_datagram(number),
            Packet::Room { shard, token } => {
                if let Ok(source) = self.datagram_mut(shard, token) {
                    source.granted |= std::mem::take(&mut source.blocked);
                    self.shards[shard].mark_ready(token);
                } else if let Some(stream) = self.shards[shard].stream_mut(token)
                    && stream.room == Room::WhenGranted
                {
                    stream.room = Room::Granted;
                    self.shards[shard].mark_ready(token);
                }
            }
            Packet::AcceptAgain { shard, token } => {
                if let Some(listener) = self.shards[shard].listener_mut(token) {
                    listener.paused = false;
                    self.shards[shard].mark_ready(token);
                }
            }
        }
    }

    fn deliver_syn(&mut self, client: EndId, attempt: u32) {
        let Some(end) = self.ends.get(&client) else { return };
        let (client_addr, addr) = (end.local, end.remote);
        let member = self.choose_listener(client_addr, addr);
        if member.is_none() && !is_nowhere(addr.ip()) {
            self.post(Some(client), Packet::Refusal { client, cause: Errno::CONNREFUSED });
            return;
        }
        if super::unix::is_of_names(addr) {
            let Some((shard, token)) = member else { return };
            let listener = self.shards[shard].listener(token).expect("groups hold living listeners");
            if listener.refusing {
                self.post(Some(client), Packet::Refusal { client, cause: Errno::CONNREFUSED });
                return;
            }
            if listener.waiting() >= listener.backlog {
                // The client knocks again, as long as it likes.
                self.post_at(self.clock + super::unix::KNOCK_INTERVAL, Packet::Syn { client, attempt });
                return;
            }
        }
        let member = member.filter(|&(shard, token)| {
            let listener = self.shards[shard].listener(token).expect("groups hold living listeners");
            !listener.refusing && listener.waiting() < listener.backlog
        });
        let Some((shard, token)) = member else {
            // Dropped. The client's kernel tries again after 1, 2, 4, ... seconds, and gives up after six times
            // (net.ipv4.tcp_syn_retries).
            let again = self.clock + SYN_RETRY_FIRST * 2u32.pow(attempt);
            let packet = if attempt == SYN_RETRIES {
                Packet::Refusal { client, cause: Errno::TIMEDOUT }
            } else {
                Packet::Syn { client, attempt: attempt + 1 }
            };
            self.post_at(again, packet);
            return;
        };
        let server = self.insert_end(addr, client_addr, Phase::Open, Owner::Listener { shard, token });
        self.ends.get_mut(&server).expect("just inserted").peer = Some(client);
        self.ends.get_mut(&client).expect("seen above").peer = Some(server);
        let listener = self.shards[shard].listener_mut(token).expect("seen above");
        listener.handshaking.push(server);
        self.post(Some(client), Packet::SynAck { client, server });
    }

    fn choose_listener(&self, client: SocketAddr, addr: SocketAddr) -> Option<(usize, Token)> {
        if self.refused_addrs.contains(&addr) {
            return None;
        }
        let group = self.group_at(&self.groups, addr)?;
        Some(group.members[self.spread(client, group.members.len())])
    }

    /// Who is bound to `addr`, or to every address with its port.
    pub(super) fn group_at<'a>(
        &self,
        groups: &'a BTreeMap<SocketAddr, Group>,
        addr: SocketAddr,
    ) -> Option<&'a Group> {
        let any: IpAddr =
            if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        groups.get(&addr).or_else(|| groups.get(&SocketAddr::new(any, addr.port())))
    }

    /// Which of so many members of a group a peer meets: always the same one.
    pub(super) fn spread(&self, peer: SocketAddr, members: usize) -> usize {
        let ip = match peer.ip() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let hash = [ip as u64, (ip >> 64) as u64, peer.port().into()]
            .into_iter()
            .fold(self.seed, |hash, word| mix(hash ^ word));
        (hash % members as u64) as usize
    }

    fn deliver_syn_ack(&mut self, client: EndId, server: EndId) {
        match self.ends.get_mut(&client) {
            None => self.reset(server),
            Some(end) if end.phase == Phase::Connecting => {
                end.phase = Phase::Open;
                self.mark_end_ready(client);
                self.post(Some(server), Packet::Ack { server });
            }
            Some(_) => {}
        }
    }

    fn deliver_ack(&mut self, server: EndId) {
        let Some(end) = self.ends.get(&server) else { return };
        let Owner::Listener { shard, token } = end.owner else { return };
        let listener =
            self.shards[shard].listener_mut(token).expect("a closing listener closes what waits in it");
        listener.handshaking.retain(|waiting| *waiting != server);
        listener.queue.push_back(server);
        self.shards[shard].mark_ready(token);
    }

    fn deliver_bytes(&mut self, from: EndId, to: EndId, count: usize) {
        match self.ends.get_mut(&to) {
            // Data for a socket that has been closed is answered with RST.
            None => self.reset(from),
            Some(end) if end.phase == Phase::Open => {
                end.arrived = (end.arrived + count).min(end.input.len());
                self.mark_end_ready(to);
            }
            Some(_) => {}
        }
    }

    fn deliver_reset(&mut self, to: EndId) {
        let Some(end) = self.ends.get(&to) else { return };
        if let Owner::Listener { shard, token } = end.owner
            && let Some(listener) = self.shards[shard].listener_mut(token)
            && let Some(place) = listener.handshaking.iter().position(|waiting| *waiting == to)
        {
            // Its handshake has not ended: nobody knows of it yet. One that waits to be accepted stays, broken.
            listener.handshaking.remove(place);
            self.ends.remove(&to);
            return;
        }
        let cause = match end.phase {
            Phase::Connecting => Errno::CONNREFUSED,
            _ if end.finished => Errno::PIPE,
            _ => Errno::CONNRESET,
        };
        self.break_end(to, cause);
    }

    /// What has arrived stays readable, as on Linux.
    fn break_end(&mut self, id: EndId, cause: Errno) {
        if let Some(end) = self.ends.get_mut(&id)
            && !matches!(end.phase, Phase::Broken { .. })
        {
            end.phase = Phase::Broken { cause, write_told: false };
            self.mark_end_ready(id);
        }
    }

    pub(super) fn mark_end_ready(&mut self, id: EndId) {
        if let Some(end) = self.ends.get(&id)
            && let Owner::Source { shard, token } = end.owner
        {
            self.shards[shard].mark_ready(token);
        }
    }

    /// Gives an accepted connection to the shard that accepted it.
    pub(in crate::reactor::driver::sim) fn own(&mut self, shard: usize, id: EndId) -> (Token, Addr) {
        let token = self.adopt(shard, id);
        (token, self.name_of(self.ends[&id].remote))
    }

    pub(super) fn is_wanted(&self, packet: &Packet) -> bool {
        match packet {
            Packet::Syn { client: end, .. } | Packet::Refusal { client: end, .. } => {
                self.ends.contains_key(end)
            }
            Packet::Ack { server: end } | Packet::Fin { to: end } | Packet::Reset { to: end } => {
                self.ends.contains_key(end)
            }
            Packet::SynAck { client: one, server: other } | Packet::Bytes { from: one, to: other, .. } => {
                self.ends.contains_key(one) || self.ends.contains_key(other)
            }
            Packet::Datagram { number } => self.flying.contains_key(number),
            Packet::Room { shard, token } | Packet::AcceptAgain { shard, token } => {
                self.shards[*shard].sources.get(*token).is_some()
            }
        }
    }
}

impl PartialEq for Delivery {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Delivery {}

impl PartialOrd for Delivery {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delivery {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

/// Whether no host has this address: those that documents use in examples (RFC 5737, RFC 3849). Every other one is local
/// here, and refuses where nobody listens; these answer nothing.
fn is_nowhere(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_documentation(),
        IpAddr::V6(ip) => ip.segments()[..2] == [0x2001, 0xdb8],
    }
}

const SYN_RETRY_FIRST: Duration = Duration::from_secs(1);
const SYN_RETRIES: u32 = 6;
