//! Latencies and their percentiles.
//!
//! Percentiles are over every request. One that failed or was shed counts as slower than every answered one:
//! only answered latencies go into the histogram, and a percentile whose rank lies beyond them is
//! [`Quantile::Missed`].
//!
//! **Invariant**: a percentile never reads below the true value, and at most a thousandth above it.
use hdrhistogram::Histogram;
use std::time::Duration;

/// Largest latency that a histogram tells apart, microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// A percentile of latencies in which misses are slower than every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantile {
    /// The latency of an answered request, microseconds.
    Answered(u64),
    /// A request that failed or was shed.
    Missed,
}

/// Latencies of answered requests, microseconds to 3 digits, and the number of requests without one.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    answered: Histogram<u64>,
    answered_us_max: u64,
    misses: u64,
}

impl Latencies {
    /// No latency yet.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            answered: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            answered_us_max: 0,
            misses: 0,
        })
    }

    /// Counts an answered request.
    pub(crate) fn answer(&mut self, latency: Duration) {
        let latency_us = microseconds(latency);
        self.answered.saturating_record(latency_us);
        self.answered_us_max = self.answered_us_max.max(latency_us);
    }

    /// Counts requests without an answer.
    pub(crate) fn miss(&mut self, count: u64) {
        self.misses += count;
    }

    fn total(&self) -> u64 {
        self.answered.len() + self.misses
    }

    /// The slowest answer, exact, microseconds; 0 where there is none.
    pub(crate) fn answered_us_max(&self) -> u64 {
        self.answered_us_max
    }

    /// The smallest latency that at least `per_mille` thousandths of the requests keep; `None` without any.
    pub(crate) fn quantile(&self, per_mille: u64) -> Option<Quantile> {
        let rank = rank(self.total(), per_mille)?;
        if rank > self.answered.len() {
            return Some(Quantile::Missed);
        }
        let mut seen = 0;
        for step in self.answered.iter_recorded() {
            seen += step.count_since_last_iteration();
            if seen >= rank {
                // A bucket reads as its upper end, which may lie over the slowest value in it.
                let upper = self.answered.highest_equivalent(step.value_iterated_to());
                return Some(Quantile::Answered(upper.min(self.answered_us_max)));
            }
        }
        Some(Quantile::Answered(self.answered_us_max))
    }

    /// The slowest request; `None` without any.
    pub(crate) fn slowest(&self) -> Option<Quantile> {
        self.quantile(1000)
    }
}

/// A percentile of `total` requests of which those in `answered_us` were answered; reorders them.
pub(crate) fn quantile_of(answered_us: &mut [u64], total: u64, per_mille: u64) -> Option<Quantile> {
    let index = rank(total, per_mille)? as usize - 1;
    if index >= answered_us.len() {
        return Some(Quantile::Missed);
    }
    let (_, value, _) = answered_us.select_nth_unstable(index);
    Some(Quantile::Answered(*value))
}

/// Whole microseconds.
pub(crate) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Rank, from 1, of a percentile among `total` values; `None` without any.
fn rank(total: u64, per_mille: u64) -> Option<u64> {
    (total > 0).then(|| (u128::from(total) * u128::from(per_mille)).div_ceil(1000).max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percentiles_agree_with_sorting_to_three_digits(
            latencies_ms in prop::collection::vec(prop::option::weighted(0.9, 1u64..100_000), 1..200),
        ) {
            let mut latencies = Latencies::new().unwrap();
            for latency_ms in &latencies_ms {
                match latency_ms {
                    Some(latency_ms) => latencies.answer(Duration::from_millis(*latency_ms)),
                    None => latencies.miss(1),
                }
            }
            let mut sorted: Vec<u64> = latencies_ms.iter().map(|l| l.map_or(u64::MAX, |ms| ms * 1000)).collect();
            sorted.sort_unstable();
            let mut answered: Vec<u64> = latencies_ms.iter().filter_map(|l| l.map(|ms| ms * 1000)).collect();
            for per_mille in [500, 900, 990, 999, 1000] {
                let index = (sorted.len() as u64 * per_mille).div_ceil(1000) as usize - 1;
                let exact = quantile_of(&mut answered, sorted.len() as u64, per_mille).unwrap();
                match latencies.quantile(per_mille).unwrap() {
                    Quantile::Missed => {
                        prop_assert_eq!(sorted[index], u64::MAX);
                        prop_assert_eq!(exact, Quantile::Missed);
                    }
                    Quantile::Answered(us) => {
                        prop_assert!(us >= sorted[index] && us <= sorted[index] + sorted[index] / 1000 + 1);
                        prop_assert_eq!(exact, Quantile::Answered(sorted[index]));
                    }
                }
            }
        }
    }

    #[test]
    fn no_request_has_no_percentile() {
        let latencies = Latencies::new().unwrap();
        assert_eq!((latencies.quantile(990), latencies.slowest()), (None, None));
        assert_eq!(quantile_of(&mut [], 0, 990), None);
    }
}
