//! What is said about a handful of samples. Does not know what they are samples of.

use serde::Serialize;

/// Samples of one figure, one per round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    /// Mean of what is left when the lowest and the highest fifth are dropped.
    pub(crate) trimmed_mean: f64,
    /// Twice the standard error of the trimmed mean (winsorised variance, Tukey & McLaughlin 1963).
    pub(crate) two_standard_errors: f64,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: usize,
}

impl Summary {
    /// # Panics
    /// Panics on no samples or a NaN: a measurement that went wrong should not become a table.
    pub(crate) fn of(samples: &[f64]) -> Self {
        assert!(!samples.is_empty(), "no samples");
        let mut sorted = samples.to_vec();
        sorted.sort_by(|a, b| a.partial_cmp(b).expect("a sample is NaN"));
        let count = sorted.len();
        let cut = (count as f64 * TRIMMED_SHARE) as usize;
        let kept = &sorted[cut..count - cut];
        let (low, high) = (kept[0], kept[kept.len() - 1]);
        let winsorised: Vec<f64> = sorted.iter().map(|sample| sample.clamp(low, high)).collect();
        let share_kept = kept.len() as f64 / count as f64;
        Summary {
            trimmed_mean: mean(kept),
            two_standard_errors: 2.0 * deviation(&winsorised) / (share_kept * (count as f64).sqrt()),
            median: median(&sorted),
            min: sorted[0],
            max: sorted[count - 1],
            samples: count,
        }
    }
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

fn deviation(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Dropped at each end.
const TRIMMED_SHARE: f64 = 0.2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_round_moves_neither_the_trimmed_mean_nor_its_error() {
        let calm = Summary::of(&[1.0, 1.1, 0.9, 1.0, 1.0]);
        let wild = Summary::of(&[1.0, 50.0, 0.9, 1.0, 1.0]);
        assert!((calm.trimmed_mean - 1.0).abs() < 1e-9);
        assert!((wild.trimmed_mean - 1.0).abs() < 1e-9);
        assert!(wild.two_standard_errors < 0.01);
        assert_eq!(wild.max, 50.0);
    }

    #[test]
    fn the_error_matches_a_case_worked_by_hand() {
        // 1..=10, two trimmed at each end: winsorised 3,3,3,4,5,6,7,8,8,8, sum 55, squares 345,
        // variance (345 - 302.5) / 9 = 4.7222; 2 * 2.17307 / (0.6 * 3.16228) = 2.29061
        let samples: Vec<f64> = (1..=10).map(f64::from).collect();
        let summary = Summary::of(&samples);
        assert_eq!((summary.trimmed_mean, summary.median), (5.5, 5.5));
        assert!((summary.two_standard_errors - 2.29061).abs() < 1e-4, "{summary:?}");
    }
}
