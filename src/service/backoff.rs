//! How long to wait before trying again. Draws nothing and waits for nothing itself.

use std::time::Duration;

/// How long to wait after failures: longer after each one, up to a limit, and spread out at random, so that those who
/// lost one server together do not all come back to it together.
///
/// After `n` failures in a row the wait is drawn between zero and `initial × factor^(n - 1)`, at most `max` ("full jitter":
/// Brooker 2015, "Exponential Backoff And Jitter").
///
/// ```
/// use shardwise::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// assert_eq!(backoff.ceiling(3), Duration::from_millis(400));
/// assert!(backoff.delay(3, 0x1234_5678_9abc_def0) < Duration::from_millis(400));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    factor: f64,
    jitter: bool,
}

impl Default for Backoff {
    /// 1 s, twice as long each time, 60 s at most.
    fn default() -> Self {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(60))
    }
}

impl Backoff {
    /// At most `initial` after the first failure, twice as long after each further one, and never more than `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff { initial, max, factor: 2.0, jitter: true }
    }

    /// So many times longer after each failure, instead of twice.
    ///
    /// # Panics
    /// When it is less than 1, or no number.
    pub fn factor(mut self, factor: f64) -> Self {
        assert!(factor >= 1.0 && factor.is_finite(), "waits do not become shorter with failures");
        self.factor = factor;
        self
    }

    /// Whether the wait is drawn at random; true unless switched off. Off, it is [`Backoff::ceiling`].
    pub fn jitter(mut self, on: bool) -> Self {
        self.jitter = on;
        self
    }

    /// The longest wait after so many failures in a row. None counts as one.
    pub fn ceiling(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.initial.as_secs_f64() * self.factor.powi(exponent);
        // Beyond what a Duration can hold, and in the end beyond what an f64 can: the limit is long reached.
        if self.initial.is_zero() {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(self.max)
    }

    /// The wait after so many failures in a row, drawn with these random bits: [`Shard::random`](crate::Shard::random).
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let ceiling = self.ceiling(failures);
        if !self.jitter {
            return ceiling;
        }
        // As many bits as an f64 holds exactly: from 0 to just below 1.
        ceiling.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_ceiling_grows_by_the_factor_up_to_the_limit() {
        let backoff = Backoff::default();
        let seconds =
            [0, 1, 2, 3, 4, 6, 7, 8, 1_000_000, u32::MAX].map(|failures| backoff.ceiling(failures).as_secs());
        assert_eq!(seconds, [1, 1, 2, 4, 8, 32, 60, 60, 60, 60]);
        let slow = Backoff::new(SECOND, 1000 * SECOND).factor(1.5);
        assert_eq!(slow.ceiling(3), Duration::from_millis(2250));
        assert_eq!(slow.factor(1.0).ceiling(u32::MAX), SECOND);
    }

    #[test]
    fn no_number_overflows() {
        let endless = Backoff::new(Duration::MAX, Duration::MAX).factor(f64::MAX);
        for failures in [0, 1, 2, 3, 1000, u32::MAX] {
            assert_eq!(endless.ceiling(failures), Duration::MAX);
            assert!(endless.delay(failures, u64::MAX) <= Duration::MAX);
            assert_eq!(endless.delay(failures, 0), Duration::ZERO);
        }
        assert_eq!(Backoff::new(Duration::ZERO, SECOND).ceiling(u32::MAX), Duration::ZERO);
        assert_eq!(Backoff::new(2 * SECOND, SECOND).ceiling(1), SECOND, "the limit is the limit");
    }

    #[test]
    fn full_jitter_fills_the_whole_range_and_stays_below_the_ceiling() {
        let backoff = Backoff::new(SECOND, 60 * SECOND);
        assert_eq!(backoff.delay(3, 0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 1 << 63), 2 * SECOND);
        let most = backoff.delay(3, u64::MAX);
        assert!(most <= 4 * SECOND && most > Duration::from_millis(3999), "{most:?}");
        assert_eq!(backoff.jitter(false).delay(3, 0), 4 * SECOND);
    }

    #[test]
    #[should_panic(expected = "waits do not become shorter")]
    fn a_factor_that_makes_no_sense_is_refused() {
        let _ = Backoff::default().factor(f64::NAN);
    }
}
