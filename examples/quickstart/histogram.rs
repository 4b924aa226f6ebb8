//! How long things took, in a fixed number of buckets. Knows the order of magnitude and an eighth of it.

use std::time::Duration;

/// Counts durations in buckets whose width grows with what they hold: a quantile is at most an eighth too high.
#[derive(Clone)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    count: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { buckets: [0; BUCKETS], count: 0 }
    }

    pub fn record(&mut self, duration: Duration) {
        self.buckets[bucket(duration)] += 1;
        self.count += 1;
    }

    pub fn add(&mut self, other: &Histogram) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.count += other.count;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration that a `share` of all, 0 to 1, did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut below = 0;
        let found = self.buckets.iter().position(|count| {
            below += count;
            below >= wanted.max(1)
        });
        found.map_or(Duration::ZERO, upper_end)
    }
}

/// The position of the highest bit, then the three bits below it.
fn bucket(duration: Duration) -> usize {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1 << STEP_BITS);
    let octave = nanos.ilog2();
    let step = (nanos >> (octave - STEP_BITS)) as usize - STEPS;
    ((octave - STEP_BITS) as usize * STEPS + step).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    let (octave, step) = (bucket / STEPS, bucket % STEPS);
    Duration::from_nanos(((STEPS + step + 1) as u64) << octave)
}

const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;
/// Up to 2^36 ns, which is 69 s.
const BUCKETS: usize = (36 - STEP_BITS as usize) * STEPS;
