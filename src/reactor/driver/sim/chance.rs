//! What a simulation leaves to chance: numbers in a range and rates, from independent streams of one seed.

use crate::reactor::random::{Random, mix};

/// One stream of random bits. Streams of one seed are independent of each other, so that what one part of a
/// simulation draws does not change what another part sees.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    random: Random,
}

impl Chance {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Chance { random: Random::new(mix(seed ^ mix(stream))) }
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.random.bits()
    }

    /// A number below `limit`.
    ///
    /// # Panics
    /// Panics when `limit` is zero: there is no such number.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        assert!(limit > 0, "no number is below zero");
        // The high half of a widening product: no division, and a bias far below what a test could see.
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True with probability `rate`. Draws nothing when the rate is zero, so that a fault that is switched off
    /// leaves all other choices as they were.
    pub(super) fn hits(&mut self, rate: f64) -> bool {
        rate > 0.0 && ((self.bits() >> 11) as f64) < rate * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_kept_and_certainties_are_certain() {
        let mut chance = Chance::new(1, 1);
        let hits = (0..10_000).filter(|_| chance.hits(0.25)).count();
        assert!((2_300..2_700).contains(&hits), "{hits} of 10,000 at a rate of 0.25");
        assert!((0..1_000).all(|_| chance.hits(1.0)));
        assert!((0..1_000).all(|_| !chance.hits(0.0)));
    }

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let draw = |seed, stream| {
            let mut chance = Chance::new(seed, stream);
            [chance.bits(), chance.bits()]
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }
}
