//! Rounds weights so that their errors cancel on the activations that were seen.
//!
//! Rounding each weight to the nearest integer makes the least error in each weight. What counts is the error in
//! the sum `Σ weight·input`, whose variance is `eᵀ·C·e` for weight errors `e` and the inputs' covariance `C`. The
//! least of that is a closest-vector problem; Babai's nearest plane ("On Lovász' lattice reduction and the
//! nearest lattice point problem", 1986) solves it well enough: one weight after the other is rounded, each time
//! after the errors made so far were moved onto it. Frantar et al. 2022 ("GPTQ") is the same procedure told in
//! another way. The mean of the error is not part of it: that goes into the bias.
//!
//! **Invariant**: rounding depends on the arguments alone, and what it gives is within −127..=127.

/// Largest weight; −128 is left out so that weights are symmetric.
pub(super) const WEIGHT_MAX: f64 = 127.0;

/// Added to each variance, as a part of the mean variance: the covariance is of some photos only, and without
/// it of channels that were silent on them nothing would be known.
const DAMPING: f64 = 0.01;

/// Smallest variance under a root, as a part of the mean variance: roundings may leave less than nothing.
const VARIANCE_PART_MIN: f64 = 1e-6;

/// How errors of different weights weigh together: the lower triangular `L` of `C = L·Lᵀ`.
pub(super) struct Metric {
    size: usize,
    /// `[size, size]`; zero above the diagonal.
    factor: Vec<f64>,
}

impl Metric {
    /// Factors a covariance (Cholesky), `None` where all of it is zero.
    pub(super) fn new(size: usize, covariance: impl Fn(usize, usize) -> f64) -> Option<Self> {
        let mean = (0..size).map(|at| covariance(at, at)).sum::<f64>() / size as f64;
        if mean.is_nan() || mean <= 0.0 {
            return None;
        }
        let mut factor = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..=row {
                let (a, b) = (&factor[row * size..][..column], &factor[column * size..][..column]);
                let rest = covariance(row, column) - a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                factor[row * size + column] = if row == column {
                    (rest + DAMPING * mean).max(VARIANCE_PART_MIN * mean).sqrt()
                } else {
                    rest / factor[column * size + column]
                };
            }
        }
        Some(Self { size, factor })
    }

    /// Integers `w` for which `step·w` is close to `weights` in this metric.
    pub(super) fn round(&self, weights: &[f64], step: f64) -> Vec<f64> {
        let mut rounded = vec![0.0; self.size];
        // For each weight, what the errors of those after it ask of it.
        let mut owed = vec![0.0; self.size];
        for at in (0..self.size).rev() {
            let row = &self.factor[at * self.size..][..=at];
            rounded[at] = nearest((weights[at] + owed[at] / row[at]) / step);
            let error = weights[at] - rounded[at] * step;
            owed.iter_mut().zip(&row[..at]).for_each(|(owed, factor)| *owed += factor * error);
        }
        rounded
    }
}

/// The nearest weight, of two the even one.
pub(super) fn nearest(value: f64) -> f64 {
    value.round_ties_even().clamp(-WEIGHT_MAX, WEIGHT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `eᵀ·C·e` with the damping in `C`.
    fn variance(error: &[f64], covariance: &impl Fn(usize, usize) -> f64) -> f64 {
        let size = error.len();
        let mean = (0..size).map(|at| covariance(at, at)).sum::<f64>() / size as f64;
        let damped = |a: usize, b: usize| covariance(a, b) + if a == b { DAMPING * mean } else { 0.0 };
        (0..size * size).map(|at| error[at / size] * error[at % size] * damped(at / size, at % size)).sum()
    }

    fn errors(weights: &[f64], rounded: &[f64], step: f64) -> Vec<f64> {
        weights.iter().zip(rounded).map(|(weight, rounded)| weight - rounded * step).collect()
    }

    #[test]
    fn two_inputs_that_are_one_share_their_errors() {
        let metric = Metric::new(2, |_, _| 1.0).unwrap();
        // 0.4 + 0.4 is nearer to 1 than to 0.
        assert_eq!(metric.round(&[0.4, 0.4], 1.0), [1.0, 0.0]);
        assert_eq!(metric.round(&[200.0, -200.0], 1.0), [127.0, -127.0]);
    }

    #[test]
    fn inputs_that_know_nothing_of_each_other_are_rounded_alone() {
        let metric = Metric::new(3, |a, b| if a == b { 4.0 } else { 0.0 }).unwrap();
        assert_eq!(metric.round(&[0.4, -0.9, 1.6], 0.5), [1.0, -2.0, 3.0]);
        assert!(Metric::new(3, |_, _| 0.0).is_none());
    }

    proptest! {
        #[test]
        fn the_variance_is_within_the_bound_of_the_nearest_plane(
            factors in prop::collection::vec(-1.0_f64..1.0, 36),
            weights in prop::collection::vec(-20.0_f64..20.0, 6),
        ) {
            // A sum of squares is a covariance.
            let covariance = |a: usize, b: usize| (0..6).map(|k| factors[a * 6 + k] * factors[b * 6 + k]).sum::<f64>();
            let metric = Metric::new(6, covariance).unwrap();
            let rounded = metric.round(&weights, 1.0);
            prop_assert!(rounded.iter().all(|value| value.fract() == 0.0));
            // Each plane is at most half a step away: no more than a quarter of the squared diagonal together.
            let bound: f64 = (0..6).map(|at| metric.factor[at * 7].powi(2) / 4.0).sum();
            let got = variance(&errors(&weights, &rounded, 1.0), &covariance);
            prop_assert!(got <= bound * (1.0 + 1e-6), "{got} above {bound}");
        }
    }
}
