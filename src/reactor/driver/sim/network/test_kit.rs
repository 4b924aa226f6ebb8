//! What tests of the simulation do to a world and ask of it, beyond what its runner does.

use std::cmp::Reverse;
use std::net::SocketAddr;

use rustix::io::Errno;

use super::{Network, Owner, Phase};
use crate::reactor::driver::sim::chance::Chance;
use crate::reactor::driver::sim::options::Faults;
use crate::reactor::driver::sim::world::World;
use crate::reactor::token::Token;

/// What is left in a world; all zero when everything was closed and all packets have arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::reactor::driver::sim) struct WorldCensus {
    pub(in crate::reactor::driver::sim) listeners: usize,
    /// Ends of connections that a driver holds.
    pub(in crate::reactor::driver::sim) connections: usize,
    /// Ends that wait to be accepted.
    pub(in crate::reactor::driver::sim) waiting: usize,
    /// Ends on their way from one shard to another.
    pub(in crate::reactor::driver::sim) detached: usize,
    /// Packets under way that somebody still waits for.
    pub(in crate::reactor::driver::sim) packets: usize,
}

impl World {
    /// From now on connecting to `addr` is refused, whoever listens there.
    pub(in crate::reactor::driver::sim) fn refuse_connects(&self, addr: SocketAddr) {
        self.with(|network| network.refused_addrs.insert(addr));
    }

    /// Takes back [`World::refuse_connects`].
    pub(in crate::reactor::driver::sim) fn allow_connects(&self, addr: SocketAddr) {
        self.with(|network| network.refused_addrs.remove(&addr));
    }

    /// The next `count` accepts in this world fail. Each one pauses its listener for 100 ms of virtual time, or makes
    /// `accept_queue` stop before it has taken any.
    pub(in crate::reactor::driver::sim) fn fail_accepts(&self, fault: Errno, count: usize) {
        self.with(|network| network.accept_faults = (count > 0).then_some((fault, count)));
    }

    /// As [`World::fail_accepts`], for want of descriptors.
    pub(crate) fn withhold_descriptors(&self, count: usize) {
        self.fail_accepts(Errno::MFILE, count);
    }

    /// Whether the connection has neither been made nor failed.
    pub(in crate::reactor::driver::sim) fn is_connecting(&self, shard: usize, token: Token) -> bool {
        self.with(|network| {
            let stream = network.shards[shard].stream(token).expect("the connection is open");
            network.ends[&stream.end].phase == Phase::Connecting
        })
    }

    pub(in crate::reactor::driver::sim) fn census(&self) -> WorldCensus {
        self.with(|network| network.census())
    }
}

impl Network {
    fn census(&self) -> WorldCensus {
        let owned = |wanted: fn(&Owner) -> bool| self.ends.values().filter(|end| wanted(&end.owner)).count();
        WorldCensus {
            listeners: self.groups.values().map(|group| group.members.len()).sum(),
            connections: owned(|owner| matches!(owner, Owner::Source { .. })),
            waiting: owned(|owner| matches!(owner, Owner::Listener { .. })),
            detached: owned(|owner| matches!(owner, Owner::Detached)),
            packets: self.wire.iter().filter(|Reverse(delivery)| self.is_wanted(&delivery.packet)).count(),
        }
    }
}

impl Faults {
    /// A random half of the faults, at random rates: what finds the bugs that need one fault often and another
    /// one never (swarm testing, Groce et al. 2012).
    pub(in crate::reactor::driver::sim) fn swarm(seed: u64) -> Self {
        let mut chance = Chance::new(seed, SWARM_STREAM);
        let mut rate = || {
            let size = chance.below(900) as f64 / 1000.0;
            if chance.hits(0.5) { size } else { 0.0 }
        };
        Faults {
            short_read: rate(),
            short_send: rate(),
            refused_send: rate(),
            shuffle: rate(),
            late_received: rate(),
            empty_wait: rate(),
            lost_datagram: 0.0,
            doubled_datagram: 0.0,
            lossy_reset: rate(),
        }
    }
}

const SWARM_STREAM: u64 = 0x5357_4152_4d00_0000;
