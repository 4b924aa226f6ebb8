//! How many connections there may be, in all and from one place: counts that all shards share. Opens and closes nothing.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A limit on the number of connections, in all and by the address of the peer, right across shards.
///
/// Give one to every shard (it is cheap to clone): clones share their counts, wherever they are used. A clone with other
/// numbers still shares them, so that a part of the places can be kept for some:
///
/// ```
/// use shardwise::policies::{ConnectionLimit, Policies};
/// use shardwise::{Input, ListenOptions, Protocol, Result, Runtime, Shard, Transport};
///
/// struct Echo;
/// impl Protocol for Echo {
///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
///         transport.write(input.take())?;
///         Ok(())
///     }
/// }
///
/// let public = ConnectionLimit::new().total(10_000).per_peer(100);
/// let internal = public.clone().total(10_100); // a hundred places that the public cannot take
/// # let stops = true;
/// Runtime::new().shards(2).run(async move |shard: Shard| {
///     let policies = Policies::new().limit_connections(&public);
///     let options = ListenOptions::new().policies(&policies);
///     shard.listen_tcp_with("127.0.0.1:0", &options, || Echo)?;
///     let policies = Policies::new().limit_connections(&internal);
///     let options = ListenOptions::new().policies(&policies);
///     shard.listen_tcp_with("127.0.0.1:0", &options, || Echo)?;
/// #   if stops { let _ = shard.stop(); }
///     Ok(())
/// })?;
/// # Ok::<(), shardwise::RunError>(())
/// ```
///
/// A connection takes its place when it is accepted, before anything else is done for it, and gives it back when its socket
/// is closed, however it ends; what is detached keeps it. One too many is reset at once (RST, not FIN): the peer is told
/// that it was not served, and nothing of it is left with us, neither in TIME_WAIT nor waiting for its FIN, as a flood would
/// like. (At a UNIX socket, where there is no RST, it is closed.) It is counted ([`ConnectionLimit::refused`],
/// [`ShardReport::refused`](crate::ShardReport::refused)), and a line at WARN tells of it, at most one a second for each limit.
///
/// An outgoing connection under a limit that is reached fails with
/// [`ConnectError::LimitReached`](crate::ConnectError::LimitReached).
///
/// Behind a proxy all peers have one address: do not limit by it there, unless the proxy says whose the connections are, at a
/// `haproxy:` [endpoint](crate::endpoint). Those count in all from when they are accepted, and with the peer that their
/// header names from when it has come.
#[derive(Clone)]
pub struct ConnectionLimit {
    total: usize,
    per_peer: usize,
    ipv6_prefix: u8,
    counts: Arc<Counts>,
}

/// The counts of a limit and of its clones.
struct Counts {
    connections: AtomicUsize,
    /// Striped, so that shards that accept at the same time seldom meet. A place that has no connection has no entry.
    by_peer: [Mutex<HashMap<IpAddr, usize>>; STRIPES],
    hasher: RandomState,
    refused: AtomicU64,
    /// Refusals that no line was written about.
    untold: AtomicU64,
    began: OnceLock<Instant>,
    /// In nanoseconds after `began`: when the next line may be written.
    next_line: AtomicU64,
}

const STRIPES: usize = 16;
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A connection's place. Dropping it gives it back.
pub(crate) struct Permit {
    counts: Arc<Counts>,
    /// Set where peers are counted.
    peer: Option<IpAddr>,
}

/// Which number is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Total(usize),
    PerPeer(usize),
}

impl fmt::Display for Reached {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reached::Total(limit) => write!(formatter, "{limit} connections in all"),
            Reached::PerPeer(limit) => write!(formatter, "{limit} connections of one peer"),
        }
    }
}

impl ConnectionLimit {
    /// Counts, and limits nothing yet.
    pub fn new() -> Self {
        let counts = Counts {
            connections: AtomicUsize::new(0),
            by_peer: Default::default(),
            hasher: RandomState::new(),
            refused: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            began: OnceLock::new(),
            next_line: AtomicU64::new(0),
        };
        let (total, per_peer) = (usize::MAX, usize::MAX);
        ConnectionLimit { total, per_peer, ipv6_prefix: 64, counts: Arc::new(counts) }
    }

    /// At most so many connections.
    pub fn total(mut self, connections: usize) -> Self {
        self.total = connections;
        self
    }

    /// At most so many of one peer: of one IPv4 address, or of one IPv6 network, since a host there has a whole /64 to choose
    /// from (RFC 6177). IPv4 addresses written as IPv6 ones count as IPv4. Peers without an IP address count in all only.
    pub fn per_peer(mut self, connections: usize) -> Self {
        self.per_peer = connections;
        self
    }

    /// How long the prefix is that makes an IPv6 network, in bits; 64, and at most 128, which is one address.
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    /// How many connections there are now.
    pub fn connections(&self) -> usize {
        // Acquire: see `Permit::drop`.
        self.counts.connections.load(Acquire)
    }

    /// How many there are now of this peer, or of its network. None are counted where peers are not limited.
    pub fn connections_of(&self, peer: IpAddr) -> usize {
        let peer = self.place_of(peer);
        self.counts.stripe(&peer).get(&peer).copied().unwrap_or(0)
    }

    /// How many were refused so far.
    pub fn refused(&self) -> u64 {
        self.counts.refused.load(Relaxed)
    }

    /// Takes a place, or says which number is reached.
    pub(crate) fn admit(&self, peer: Option<IpAddr>) -> Result<Permit, Reached> {
        let counts = &self.counts;
        let one_more = |taken: usize| (taken < self.total).then(|| taken + 1);
        // Relaxed, here and below: the numbers stand for themselves.
        if counts.connections.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            return Err(self.refuse(Reached::Total(self.total)));
        }
        // From here on dropping it gives the place back.
        let mut permit = Permit { counts: Arc::clone(counts), peer: None };
        if let Some(peer) = peer {
            self.admit_peer(&mut permit, peer)?;
        }
        Ok(permit)
    }

    /// Whether there is a place now; else that is a refusal. Takes none, so that nobody else is refused for it.
    pub(crate) fn has_place(&self, peer: Option<IpAddr>) -> bool {
        let has_place_of = |peer| self.per_peer == usize::MAX || self.connections_of(peer) < self.per_peer;
        let reached = if self.connections() >= self.total {
            Some(Reached::Total(self.total))
        } else {
            (!peer.is_none_or(has_place_of)).then_some(Reached::PerPeer(self.per_peer))
        };
        reached.map(|reached| self.refuse(reached)).is_none()
    }

    /// Counts the peer of a connection that has its place in all, or says that its number is reached.
    pub(crate) fn admit_peer(&self, permit: &mut Permit, peer: IpAddr) -> Result<(), Reached> {
        if self.per_peer == usize::MAX || permit.peer.is_some() {
            return Ok(());
        }
        let peer = self.place_of(peer);
        let mut stripe = self.counts.stripe(&peer);
        let taken = stripe.get(&peer).copied().unwrap_or(0);
        if taken >= self.per_peer {
            drop(stripe);
            return Err(self.refuse(Reached::PerPeer(self.per_peer)));
        }
        stripe.insert(peer, taken + 1);
        permit.peer = Some(peer);
        Ok(())
    }

    fn refuse(&self, reached: Reached) -> Reached {
        self.counts.refused.fetch_add(1, Relaxed);
        self.counts.untold.fetch_add(1, Relaxed);
        reached
    }

    /// How many refusals a line is to tell of, if one may be written now.
    pub(crate) fn line_due(&self, now: Instant) -> Option<u64> {
        let counts = &self.counts;
        let began = *counts.began.get_or_init(|| now);
        let now_ns = now.saturating_duration_since(began).as_nanos() as u64;
        let next = |at: u64| (at <= now_ns).then(|| now_ns + LINE_EVERY.as_nanos() as u64);
        counts.next_line.fetch_update(Relaxed, Relaxed, next).ok()?;
        Some(counts.untold.swap(0, Relaxed))
    }

    /// The address that stands for all of one peer.
    fn place_of(&self, peer: IpAddr) -> IpAddr {
        match peer.to_canonical() {
            IpAddr::V4(addr) => IpAddr::V4(addr),
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask))
            }
        }
    }
}

impl Default for ConnectionLimit {
    fn default() -> Self {
        ConnectionLimit::new()
    }
}

impl fmt::Debug for ConnectionLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("ConnectionLimit");
        debug.field("total", &self.total).field("per_peer", &self.per_peer);
        debug.field("connections", &self.connections()).field("refused", &self.refused()).finish()
    }
}

impl Counts {
    /// No code but ours runs under this lock.
    fn stripe(&self, peer: &IpAddr) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        let stripe = self.hasher.hash_one(peer) as usize % STRIPES;
        self.by_peer[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(peer) = self.peer
            && let Entry::Occupied(mut entry) = self.counts.stripe(&peer).entry(peer)
        {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        // Last, and Release: whoever sees that nobody is left (`connections`) finds no peer either.
        self.counts.connections.fetch_sub(1, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn places_are_taken_refused_and_given_back() {
        let limit = ConnectionLimit::new().total(2);
        let first = limit.admit(ip("192.0.2.1")).ok().unwrap();
        let _second = limit.admit(None).ok().unwrap();
        assert_eq!(limit.admit(None).err(), Some(Reached::Total(2)));
        assert_eq!((limit.connections(), limit.refused()), (2, 1));
        drop(first);
        assert!(limit.admit(None).is_ok());
        assert_eq!(limit.connections(), 1);
    }

    #[test]
    fn a_refusal_by_peer_takes_no_place_of_the_total() {
        let limit = ConnectionLimit::new().total(10).per_peer(1);
        let kept = limit.admit(ip("192.0.2.1")).ok().unwrap();
        assert_eq!(limit.admit(ip("192.0.2.1")).err(), Some(Reached::PerPeer(1)));
        assert_eq!(limit.connections(), 1);
        assert!(limit.admit(ip("192.0.2.2")).is_ok(), "another one");
        drop(kept);
        assert_eq!(limit.connections_of("192.0.2.1".parse().unwrap()), 0);
        assert!(
            limit.counts.by_peer.iter().all(|stripe| stripe.lock().unwrap().is_empty()),
            "no entry is left"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_peer_and_a_mapped_address_is_ipv4() {
        let limit = ConnectionLimit::new().per_peer(1);
        let _held = limit.admit(ip("2001:db8:1:2::1")).ok().unwrap();
        assert!(limit.admit(ip("2001:db8:1:2:ffff::9")).is_err(), "the same /64");
        assert!(limit.admit(ip("2001:db8:1:3::1")).is_ok());
        let _held = limit.admit(ip("192.0.2.1")).ok().unwrap();
        assert!(limit.admit(ip("::ffff:192.0.2.1")).is_err());
        let exact = ConnectionLimit::new().per_peer(1).ipv6_prefix(128);
        let _held = exact.admit(ip("2001:db8:1:2::1")).ok().unwrap();
        assert!(exact.admit(ip("2001:db8:1:2::2")).is_ok());
        let all = ConnectionLimit::new().per_peer(1).ipv6_prefix(0);
        let _held = all.admit(ip("2001:db8:1:2::1")).ok().unwrap();
        assert!(all.admit(ip("fe80::1")).is_err());
    }

    #[test]
    fn clones_share_their_counts_and_have_their_own_numbers() {
        let public = ConnectionLimit::new().total(1);
        let internal = public.clone().total(2);
        let _held = public.admit(None).ok().unwrap();
        assert!(public.admit(None).is_err());
        let _held = internal.admit(None).ok().unwrap();
        assert!(internal.admit(None).is_err());
        assert_eq!(public.refused(), 2);
    }

    #[test]
    fn threads_together_never_get_more_places_than_there_are() {
        let limit = ConnectionLimit::new().total(50).per_peer(20);
        let peers = [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")];
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let limit = &limit;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for step in 0..5000 {
                        held.extend(limit.admit(peers[(step + thread) % 3]).ok());
                        assert!(limit.connections() <= 50);
                        for peer in peers.into_iter().flatten() {
                            assert!(limit.connections_of(peer) <= 20);
                        }
                        if step % 7 == 0 {
                            held.clear();
                        }
                    }
                });
            }
        });
        assert_eq!(limit.connections(), 0);
        assert!(peers.into_iter().flatten().all(|peer| limit.connections_of(peer) == 0));
    }

    #[test]
    fn a_line_a_second_tells_of_all_refusals() {
        let limit = ConnectionLimit::new().total(0);
        let start = Instant::now();
        let refuse = || assert!(limit.admit(None).is_err());
        refuse();
        assert_eq!(limit.line_due(start), Some(1));
        refuse();
        refuse();
        assert_eq!(limit.line_due(start + Duration::from_millis(999)), None);
        assert_eq!(limit.line_due(start + Duration::from_secs(1)), Some(2));
        assert_eq!(limit.line_due(start + Duration::from_secs(1)), None);
    }
}
