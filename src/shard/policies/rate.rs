//! How fast bytes may go: a rate, and the bucket that keeps one connection, or many together, to it. Knows no connections.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// So many bytes per second, and so many at once after a rest.
///
/// ```
/// use shardwise::policies::Rate;
///
/// let slow = Rate::bytes_per_second(64 * 1024);
/// assert_eq!(slow.burst_bytes(), 6554, "a tenth of a second's worth");
/// let in_bursts = slow.burst(256 * 1024);
/// assert_eq!(in_bursts.burst_bytes(), 256 * 1024);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    bytes_per_second: u64,
    burst_bytes: u64,
}

impl Rate {
    /// So many bytes per second, at least 1. A tenth of that may go at once: enough for timers of a millisecond to keep the
    /// rate, and little enough not to be felt as a burst.
    pub const fn bytes_per_second(bytes: u64) -> Self {
        let bytes_per_second = if bytes == 0 { 1 } else { bytes };
        Rate { bytes_per_second, burst_bytes: bytes_per_second.div_ceil(10) }
    }

    /// So many bytes may go at once after a rest, at least 1. In any time span no more than these, and what the rate gives
    /// for the span, are sent; received may be one read buffer
    /// ([`Config::read_buffer_bytes`](crate::Config::read_buffer_bytes)) more, since what the kernel has given is not put
    /// back.
    ///
    /// Much less than a millisecond's worth costs throughput: timers are not finer.
    pub const fn burst(mut self, bytes: u64) -> Self {
        self.burst_bytes = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// The burst, in bytes.
    pub const fn burst_bytes(&self) -> u64 {
        self.burst_bytes
    }

    /// How long `bytes` take, in nanoseconds, rounded up.
    fn nanos(&self, bytes: u64) -> u64 {
        let nanos = u128::from(bytes) * 1_000_000_000;
        u64::try_from(nanos.div_ceil(u128::from(self.bytes_per_second))).unwrap_or(u64::MAX)
    }
}

/// One rate for all connections that are under it. Clones are the same throttle.
///
/// What it spans is decided by who has it: made before the runtime starts and given to every shard, it holds for all shards
/// together; made on a shard, for that shard; made for a listener, for that listener. Nobody locks: it is one atomic number.
/// Connections that wait are served in the order in which they began to, a piece each
/// (at most the burst, or 16 KiB).
///
/// ```
/// use shardwise::policies::{Policies, Rate, Throttle};
///
/// let uplink = Throttle::new(Rate::bytes_per_second(10 << 20));
/// let downloads = Policies::new().throttle_writes(&uplink).write_rate(Rate::bytes_per_second(1 << 20));
/// let backups = Policies::new().throttle_writes(&uplink);
/// # let _ = (downloads, backups);
/// ```
#[derive(Clone, Debug)]
pub struct Throttle {
    bucket: Arc<Bucket>,
}

impl Throttle {
    /// A throttle nobody is under yet.
    pub fn new(rate: Rate) -> Self {
        Throttle { bucket: Arc::new(Bucket::new(rate)) }
    }

    /// The rate it keeps.
    pub fn rate(&self) -> Rate {
        self.bucket.rate
    }
}

/// A token bucket as one number: the time at which all that went will have been paid for (GCRA, ITU-T I.371). So charging
/// is one atomic addition, debts and waiting in line come by themselves, and nothing has to be refilled.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// From the first charge on: simulated time may lie anywhere.
    began: OnceLock<Instant>,
    /// In nanoseconds after `began`.
    paid_at: AtomicU64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Bucket { rate, began: OnceLock::new(), paid_at: AtomicU64::new(0) }
    }

    /// Charges `bytes`, and says when their turn is; `None` is now.
    fn charge(&self, now: Instant, bytes: usize) -> Option<Instant> {
        let began = *self.began.get_or_init(|| now);
        let now_ns = u64::try_from(now.saturating_duration_since(began).as_nanos()).unwrap_or(u64::MAX);
        let cost = self.rate.nanos(bytes as u64);
        let after = |paid_at: u64| paid_at.max(now_ns).saturating_add(cost);
        // Relaxed: the number stands for itself.
        let before = self.paid_at.fetch_update(Relaxed, Relaxed, |paid_at| Some(after(paid_at)));
        let paid_at = after(before.unwrap_or_else(|paid_at| paid_at));
        let due = paid_at.saturating_sub(self.rate.nanos(self.rate.burst_bytes));
        (due > now_ns).then(|| began + Duration::from_nanos(due.min(CENTURY_NANOS)))
    }

    /// What was charged was not used.
    fn give_back(&self, bytes: usize) {
        let cost = self.rate.nanos(bytes as u64);
        let less = |paid_at: u64| Some(paid_at.saturating_sub(cost));
        let _ = self.paid_at.fetch_update(Relaxed, Relaxed, less);
    }
}

/// Nobody waits that long, and no arithmetic on the result overflows.
const CENTURY_NANOS: u64 = 100 * 365 * 86_400 * 1_000_000_000;

/// All the rates that one direction of a connection is kept to; one at least.
#[derive(Debug)]
pub(crate) struct Metered {
    own: Option<Bucket>,
    shared: Vec<Throttle>,
}

/// The largest piece that waits for its turn as a whole.
const PIECE_BYTES: u64 = 16 * 1024;

impl Metered {
    pub(super) fn boxed(own: Option<Rate>, shared: &[Throttle]) -> Option<Box<Self>> {
        let metered = Metered { own: own.map(Bucket::new), shared: shared.to_vec() };
        (metered.own.is_some() || !metered.shared.is_empty()).then(|| Box::new(metered))
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.own.iter().chain(self.shared.iter().map(|throttle| &*throttle.bucket))
    }

    /// Charges `bytes` to each, and says when their turn is by all of them; `None` is now.
    pub(crate) fn charge(&self, now: Instant, bytes: usize) -> Option<Instant> {
        self.buckets().filter_map(|bucket| bucket.charge(now, bytes)).max()
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.buckets().for_each(|bucket| bucket.give_back(bytes));
    }

    /// How much waits for its turn at a time, at the most.
    pub(crate) fn piece_bytes(&self) -> usize {
        let bursts = self.buckets().map(|bucket| bucket.rate.burst_bytes);
        bursts.fold(PIECE_BYTES, u64::min) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: Duration = Duration::from_millis(1);

    #[test]
    fn a_rested_bucket_gives_its_burst_and_then_the_rate() {
        let bucket = Bucket::new(Rate::bytes_per_second(1000).burst(100));
        let start = Instant::now();
        assert_eq!(bucket.charge(start, 60), None);
        assert_eq!(bucket.charge(start, 40), None);
        assert_eq!(bucket.charge(start, 1), Some(start + MILLIS));
        assert_eq!(bucket.charge(start, 9), Some(start + 10 * MILLIS));
        assert_eq!(bucket.charge(start + 110 * MILLIS, 100), None, "it has rested");
        assert_eq!(bucket.charge(start + 10_000 * MILLIS, 200), Some(start + 10_100 * MILLIS), "never more");
    }

    #[test]
    fn in_any_span_no_more_goes_than_the_burst_and_the_rate() {
        let rate = Rate::bytes_per_second(7_777).burst(500);
        let bucket = Bucket::new(rate);
        let start = Instant::now();
        let (mut now, mut sent) = (start, Vec::new());
        for step in 0..2000_u64 {
            let bytes = step * 7919 % 97 + 1;
            now = bucket.charge(now, bytes as usize).unwrap_or(now);
            sent.push((now, bytes));
            if step % 211 == 0 {
                now += 300 * MILLIS;
            }
        }
        for from in (0..sent.len()).step_by(37) {
            let mut total = 0;
            for &(at, bytes) in &sent[from..] {
                total += bytes;
                let span = at - sent[from].0;
                let allowed = 500.0 + 7_777.0 * span.as_secs_f64();
                assert!(total as f64 <= allowed + 1.0, "{total} bytes in {span:?}, {allowed} allowed");
            }
        }
    }

    #[test]
    fn what_is_given_back_can_be_used_by_others() {
        let bucket = Bucket::new(Rate::bytes_per_second(10).burst(10));
        let now = Instant::now();
        assert_eq!(bucket.charge(now, 10), None);
        assert!(bucket.charge(now, 10).is_some());
        bucket.give_back(10);
        assert_eq!(bucket.charge(now, 5), Some(now + 500 * MILLIS));
    }

    #[test]
    fn absurd_numbers_neither_overflow_nor_panic() {
        let now = Instant::now();
        let bucket = Bucket::new(Rate::bytes_per_second(1).burst(u64::MAX));
        assert_eq!(bucket.charge(now, usize::MAX), None);
        let bucket = Bucket::new(Rate::bytes_per_second(0).burst(0));
        assert!(bucket.charge(now, usize::MAX).is_some());
        assert!(bucket.charge(now, usize::MAX).is_some());
        let bucket = Bucket::new(Rate::bytes_per_second(u64::MAX));
        assert_eq!(bucket.charge(now, usize::MAX / 20), None);
    }

    #[test]
    fn shards_that_charge_one_throttle_at_a_time_lose_nothing() {
        let throttle = Throttle::new(Rate::bytes_per_second(1000).burst(1));
        let now = Instant::now();
        throttle.bucket.charge(now, 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| {
                        throttle.bucket.charge(now, 1);
                    })
                });
            }
        });
        assert_eq!(throttle.bucket.charge(now, 1), Some(now + Duration::from_millis(4001)));
    }

    #[test]
    fn the_strictest_of_several_rates_counts() {
        let shared = Throttle::new(Rate::bytes_per_second(10).burst(100));
        let both = Metered::boxed(Some(Rate::bytes_per_second(1000).burst(50)), &[shared]).unwrap();
        let now = Instant::now();
        assert_eq!(both.piece_bytes(), 50);
        assert_eq!(both.charge(now, 50), None);
        assert_eq!(both.charge(now, 50), Some(now + 50 * MILLIS), "its own");
        assert_eq!(both.charge(now + 50 * MILLIS, 50), Some(now + 5_000 * MILLIS), "the shared one");
        assert!(Metered::boxed(None, &[]).is_none());
    }
}
