//! What connections are held to whatever their protocol says: idle timeouts, rates, limits on their number, and a log of
//! their bytes. The same on all kinds of connections, and not felt by protocols and streams: they read, write, half-close,
//! pause and switch to TLS as ever.
//!
//! A [`Policies`] value is made once and given to whatever listens or connects, by
//! [`ListenOptions::policies`](crate::ListenOptions::policies),
//! [`ConnectOptions::policies`](crate::ConnectOptions::policies), and the options of UNIX sockets. What is to count for all
//! shards together – a [`ConnectionLimit`], a [`Throttle`] – is made before the runtime starts, and every shard given a clone.
//!
//! ```
//! use shardwise::policies::{ConnectionLimit, Policies, Rate, TrafficLog};
//! use shardwise::{ListenOptions, Runtime, Shard};
//! use std::time::Duration;
//!
//! let policies = Policies::new()
//!     .limit_connections(&ConnectionLimit::new().total(20_000).per_peer(200))
//!     .idle_timeout(Duration::from_secs(600))
//!     .write_rate(Rate::bytes_per_second(1 << 20))
//!     .log_traffic(TrafficLog::new("echo"));
//! # let stops = true;
//! Runtime::new().shards(2).run(async move |shard: Shard| {
//!     let options = ListenOptions::new().policies(&policies);
//!     shard.serve_tcp_with("127.0.0.1:0", &options, async |mut stream| {
//!         while let Some(chunk) = stream.read_chunk().await? {
//!             stream.write_all(&chunk).await?;
//!         }
//!         Ok(())
//!     })?;
//! #   if stops { let _ = shard.stop(); }
//!     Ok(())
//! })?;
//! # Ok::<(), shardwise::RunError>(())
//! ```
//!
//! A connection that has none pays nothing for them. One that is detached takes them along to its next shard.

mod limit;
mod rate;
mod traffic;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use limit::ConnectionLimit;
pub use rate::{Rate, Throttle};
pub use traffic::TrafficLog;

pub(crate) use limit::{Permit, Reached};
pub(crate) use rate::Metered;
pub(crate) use traffic::{Logged, Way};

use crate::addr::Addr;
use crate::reactor::timer_wheel::TimerKey;

/// What connections are held to. Nothing, until told; see the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Policies {
    idle_timeout: Option<Duration>,
    limits: Vec<ConnectionLimit>,
    read_rate: Option<Rate>,
    write_rate: Option<Rate>,
    read_throttles: Vec<Throttle>,
    write_throttles: Vec<Throttle>,
    log: Option<TrafficLog>,
}

impl Policies {
    /// None.
    pub fn new() -> Self {
        Policies::default()
    }

    /// Ends a connection with [`CloseReason::Idle`](crate::CloseReason::Idle) when no byte has gone either way for this
    /// long: never earlier, and at most a timer's tick (1 ms) and a turn later. A stream's reads and writes say `TimedOut`
    /// then.
    ///
    /// What counts is what the kernel gives and takes, TLS records included. A connection that waits for its turn under a
    /// rate is not idle; one whose reading is paused is, unless it writes. Output that the peer does not take is lost, and
    /// the peer reset; otherwise it gets FIN.
    ///
    /// [`Transport::set_idle_timeout`](crate::Transport::set_idle_timeout) changes it for one connection. A protocol that
    /// wants to say good-bye first uses [`Transport::set_deadline`](crate::Transport::set_deadline).
    pub fn idle_timeout(mut self, after: Duration) -> Self {
        self.idle_timeout = Some(after);
        self
    }

    /// Takes a place of `limit` for each connection, and refuses it if there is none. With several limits, one of each.
    pub fn limit_connections(mut self, limit: &ConnectionLimit) -> Self {
        self.limits.push(limit.clone());
        self
    }

    /// Reads no faster than this from each connection: reading is held until it may go on, so that the peer feels it.
    /// Counted are bytes as they come from the kernel, TLS records included. Handshakes are counted and not held.
    pub fn read_rate(mut self, rate: Rate) -> Self {
        self.read_rate = Some(rate);
        self
    }

    /// Sends no faster than this on each connection: output waits, and whoever writes is told by the watermarks as ever.
    /// Counted are bytes as they go to the kernel, TLS records included. While output waits for its turn,
    /// [`Config::write_timeout`](crate::Config::write_timeout) does not run, and a close waits as well. Bytes that travel with
    /// descriptors go at once, and what comes after them waits the longer.
    pub fn write_rate(mut self, rate: Rate) -> Self {
        self.write_rate = Some(rate);
        self
    }

    /// As [`Policies::read_rate`], for all connections under `throttle` together. May be called for several.
    pub fn throttle_reads(mut self, throttle: &Throttle) -> Self {
        self.read_throttles.push(throttle.clone());
        self
    }

    /// As [`Policies::write_rate`], for all connections under `throttle` together. May be called for several.
    pub fn throttle_writes(mut self, throttle: &Throttle) -> Self {
        self.write_throttles.push(throttle.clone());
        self
    }

    /// Logs what goes either way.
    pub fn log_traffic(mut self, log: TrafficLog) -> Self {
        self.log = Some(log);
        self
    }

    /// Takes a place of every limit, or says which one is reached.
    pub(crate) fn admit(&self, peer: Option<SocketAddr>) -> Result<Vec<Permit>, (Reached, &ConnectionLimit)> {
        let peer = peer.map(|peer| peer.ip());
        self.limits.iter().map(|limit| limit.admit(peer).map_err(|reached| (reached, limit))).collect()
    }

    /// Whether every limit has a place now; takes none.
    pub(crate) fn has_place(&self, peer: Option<SocketAddr>) -> bool {
        let peer = peer.map(|peer| peer.ip());
        self.limits.iter().all(|limit| limit.has_place(peer))
    }

    /// Counts the peer of a connection that has its places, now that it is known, or says which number is reached.
    pub(crate) fn admit_peer(
        &self,
        policed: &mut Policed,
        peer: SocketAddr,
    ) -> Result<(), (Reached, &ConnectionLimit)> {
        let mut places = self.limits.iter().zip(&mut policed.permits);
        places.try_for_each(|(limit, permit)| {
            limit.admit_peer(permit, peer.ip()).map_err(|reached| (reached, limit))
        })
    }

    /// What a connection is held to that has its places.
    pub(crate) fn police(&self, permits: Vec<Permit>, peer: &Addr) -> Policed {
        let log = self.log.as_ref().filter(|log| log.is_wanted());
        Policed {
            permits: permits.into(),
            idle: self.idle_timeout.map(|after| Idle { after, last: None, timer: None }),
            reads: Metered::boxed(self.read_rate, &self.read_throttles),
            reads_on: None,
            writes: Metered::boxed(self.write_rate, &self.write_throttles),
            write_credit: 0,
            writes_on: None,
            logged: log.map(|log| Box::new(Logged::new(log, peer))),
        }
    }
}

/// What one connection is held to, and where it stands. `Send`: it moves with its connection. Ten thousand idle connections
/// with a timeout are ten thousand of these: what only few have is boxed.
#[derive(Default)]
pub(crate) struct Policed {
    /// One of each limit, in their order.
    permits: Box<[Permit]>,
    pub(crate) idle: Option<Idle>,
    pub(crate) reads: Option<Box<Metered>>,
    /// Set while reading is held, until then; one of the connection's holds is this one.
    pub(crate) reads_on: Option<TimerKey>,
    pub(crate) writes: Option<Box<Metered>>,
    /// Bytes that are charged and not sent.
    pub(crate) write_credit: usize,
    /// Set while they wait for their turn.
    pub(crate) writes_on: Option<TimerKey>,
    pub(crate) logged: Option<Box<Logged>>,
}

/// An idle timeout. The timer is not moved with every byte: it looks, when it fires, whether there was one.
pub(crate) struct Idle {
    pub(crate) after: Duration,
    /// When bytes went last. None before the connection begins.
    pub(crate) last: Option<Instant>,
    pub(crate) timer: Option<TimerKey>,
}

/// What a connection's slot knows of its policies: where to look into the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched(u8);

impl Watched {
    const NOTHING: u8 = 0;
    /// Bytes that come and go are noted.
    const BYTES: u8 = 1;
    /// Output waits for its turn.
    const WRITES: u8 = 2;
    /// What the application reads and writes is logged.
    const LOG: u8 = 4;

    #[inline]
    pub(crate) fn is_any(self) -> bool {
        self.0 != Self::NOTHING
    }

    #[inline]
    pub(crate) fn meters_writes(self) -> bool {
        self.0 & Self::WRITES != 0
    }

    #[inline]
    pub(crate) fn logs(self) -> bool {
        self.0 & Self::LOG != 0
    }
}

impl Policed {
    pub(crate) fn watched(&self) -> Watched {
        let mut watched = Watched::NOTHING;
        if self.idle.is_some() || self.reads.is_some() {
            watched |= Watched::BYTES;
        }
        if self.writes.is_some() {
            watched |= Watched::WRITES;
        }
        if self.logged.is_some() {
            watched |= Watched::LOG;
        }
        Watched(watched)
    }

    /// Bytes have gone.
    pub(crate) fn note_activity(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(idle) = &mut self.idle {
            idle.last = Some(now());
        }
    }

    /// Whether its own rates keep it from going on.
    pub(crate) fn waits(&self) -> bool {
        self.reads_on.is_some() || self.writes_on.is_some()
    }

    /// Its timers, which are to be cancelled. What was charged is given back while it waits for its turn: later, others
    /// have theirs behind it.
    pub(crate) fn stop(&mut self) -> impl Iterator<Item = TimerKey> {
        let credit = std::mem::take(&mut self.write_credit);
        if let (Some(writes), true) = (&self.writes, self.writes_on.is_some()) {
            writes.give_back(credit);
        }
        let idle = self.idle.as_mut().and_then(|idle| idle.timer.take());
        [idle, self.reads_on.take(), self.writes_on.take()].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Addr {
        Addr::Ip(([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn what_a_connection_is_held_to_can_travel_and_policies_can_be_shared() {
        fn travels<T: Send>() {}
        fn is_shared<T: Send + Sync + Clone>() {}
        travels::<Policed>();
        is_shared::<Policies>();
    }

    #[test]
    fn a_connection_with_a_place_alone_is_not_looked_up_for_its_bytes() {
        let policies = Policies::new().limit_connections(&ConnectionLimit::new().total(1));
        let permits = policies.admit(None).ok().unwrap();
        assert!(!policies.police(permits, &nobody()).watched().is_any());
    }

    #[test]
    fn traffic_that_nobody_listens_to_is_not_looked_at() {
        let policies = Policies::new().log_traffic(TrafficLog::new("unheard"));
        assert!(!policies.police(Vec::new(), &nobody()).watched().is_any());
    }

    #[test]
    fn what_is_kept_of_a_connection_with_a_timeout_is_small() {
        let bytes = size_of::<Policed>();
        assert!(bytes <= 112, "{bytes} bytes");
    }

    #[test]
    fn of_several_limits_a_refusal_gives_the_other_places_back() {
        let wide = ConnectionLimit::new().total(5);
        let policies =
            Policies::new().limit_connections(&wide).limit_connections(&ConnectionLimit::new().total(0));
        assert!(policies.admit(None).is_err());
        assert_eq!(wide.connections(), 0);
    }
}
