//! The runner's handle on a simulated world: time, randomness, and which shard has news.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::SimDriver;
use super::network::Network;
use super::options::SimOptions;
use super::sources::ShardSide;

/// A network in memory and a clock that only moves when told to, shared by the drivers of all shards.
///
/// Everything undecided in it is drawn from one seed: the same calls in the same order give the same events.
/// Step the drivers on one thread; the lock is there so that a detached socket is `Send`. It is never held over
/// foreign code.
#[derive(Clone)]
pub(crate) struct World {
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    network: Mutex<Network>,
}

impl World {
    pub(crate) fn new(seed: u64, options: SimOptions) -> World {
        let network = Mutex::new(Network::new(seed, options));
        World { shared: Arc::new(Shared { began: Instant::now(), network }) }
    }

    /// Makes the driver of a shard.
    ///
    /// # Panics
    /// Panics while an earlier driver of the same shard lives.
    pub(crate) fn driver(&self, shard: usize) -> SimDriver {
        let options = self.with(|network| {
            while network.shards.len() <= shard {
                network.shards.push(ShardSide::new());
            }
            let was_driven = std::mem::replace(&mut network.shards[shard].driven, true);
            (!was_driven).then(|| network.options.clone())
        });
        SimDriver::new(self.clone(), shard, &options.expect("a shard has one driver"))
    }

    pub(crate) fn now(&self) -> Instant {
        self.shared.began + self.elapsed()
    }

    /// Virtual time since the world began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.with(|network| network.clock)
    }

    /// Moves the clock on, and delivers what is due on the way, each packet at its own time. Never moves it back.
    pub(crate) fn advance_to(&self, instant: Instant) {
        let clock = instant.saturating_duration_since(self.shared.began);
        self.with(|network| network.advance_to(clock));
    }

    /// When the next packet arrives somewhere: connections being made, bytes, a listener's retry.
    pub(crate) fn next_delivery(&self) -> Option<Instant> {
        self.with(|network| network.next_delivery()).map(|due| self.shared.began + due)
    }

    /// Whether the shard would be told something, now or after its next `wait`.
    pub(crate) fn has_events(&self, shard: usize) -> bool {
        self.with(|network| network.has_events(shard))
    }

    /// Whether the shard has been woken since its last `wait`.
    pub(crate) fn is_woken(&self, shard: usize) -> bool {
        self.with(|network| network.shards.get(shard).is_some_and(|side| side.waker.is_set()))
    }

    /// Random bits for the runner. Drawing them changes nothing that the network decides.
    pub(crate) fn random(&self) -> u64 {
        self.with(|network| network.schedule.bits())
    }

    pub(super) fn is(&self, other: &World) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn instant(&self, clock: Duration) -> Instant {
        self.shared.began + clock
    }

    /// Does one thing to the network, and then what follows from it at this same instant.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Network) -> R) -> R {
        // A panic has already failed the test; sockets dropped while it unwinds must not panic again.
        let mut network = self.shared.network.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut network);
        network.settle();
        result
    }
}
