//! What is known of service times: how long a request holds a slot.
//!
//! Mean and deviation forget exponentially, so that they follow a fleet whose speed changes; quantiles are over
//! the last 256 service times.
//!
//! **Invariant**: an estimate exists from the first service time on and is never negative or infinite.
use std::collections::VecDeque;
use std::time::Duration;

/// Weight of a new service time once there are many: the memory is about its inverse.
const WEIGHT_MIN: f64 = 1.0 / 64.0;
/// Service times that quantiles are over.
const RECENT: usize = 256;
/// How often the quantile in use is worked out anew, service times.
const QUANTILE_EVERY: u32 = 32;

/// Service times so far.
#[derive(Clone, Debug, Default)]
pub struct ServiceTimes {
    seen: u64,
    mean_s: f64,
    variance_s2: f64,
    recent: VecDeque<Duration>,
    /// The quantile asked for last, and how long it may still be used.
    quantile: Option<(u16, Duration)>,
    quantile_left: u32,
}

/// Mean and standard deviation of the service time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Mean.
    pub mean: Duration,
    /// Standard deviation.
    pub deviation: Duration,
}

impl Estimate {
    /// A time within which a request is usually served: the mean and `deviations` standard deviations.
    #[must_use]
    pub fn within(&self, deviations: f64) -> Duration {
        self.mean + self.deviation.mul_f64(deviations)
    }
}

impl ServiceTimes {
    /// Takes in how long a request held its slot.
    ///
    /// Exponentially weighted mean and variance (West, "Updating mean and variance estimates: an improved
    /// method", 1979, with a constant weight); the first ones weigh as in a plain mean.
    pub fn record(&mut self, service: Duration) {
        self.seen += 1;
        let weight = (1.0 / self.seen as f64).max(WEIGHT_MIN);
        let delta_s = service.as_secs_f64() - self.mean_s;
        self.mean_s += weight * delta_s;
        self.variance_s2 = (1.0 - weight) * (self.variance_s2 + weight * delta_s * delta_s);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(service);
        self.quantile_left = self.quantile_left.saturating_sub(1);
    }

    /// The estimate; nothing before the first service time.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        (self.seen > 0).then(|| Estimate {
            mean: Duration::from_secs_f64(self.mean_s.max(0.0)),
            deviation: Duration::from_secs_f64(self.variance_s2.max(0.0).sqrt()),
        })
    }

    /// A quantile of the latest service times in thousandths, at most 32 service times old;
    /// nothing before there are enough of them to tell it from the slowest.
    pub fn quantile(&mut self, per_mille: u16) -> Option<Duration> {
        let above_per_mille = usize::from(1000_u16.saturating_sub(per_mille).max(1));
        if self.recent.len() * above_per_mille < 1000 {
            return None;
        }
        if let Some((held, value)) = self.quantile
            && held == per_mille
            && self.quantile_left > 0
        {
            return Some(value);
        }
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        let rank = (sorted.len() * usize::from(per_mille)).div_ceil(1000).clamp(1, sorted.len());
        let value = *sorted.select_nth_unstable(rank - 1).1;
        (self.quantile, self.quantile_left) = (Some((per_mille, value)), QUANTILE_EVERY);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn of(times_ms: &[u64]) -> ServiceTimes {
        let mut times = ServiceTimes::default();
        for &time in times_ms {
            times.record(ms(time));
        }
        times
    }

    #[test]
    fn nothing_is_known_before_the_first() {
        assert_eq!(ServiceTimes::default().estimate(), None);
        assert_eq!(of(&[7]).estimate(), Some(Estimate { mean: ms(7), deviation: Duration::ZERO }));
    }

    #[test]
    fn the_first_ones_weigh_the_same() {
        let estimate = of(&[10, 20, 30, 40]).estimate().unwrap();
        assert!((estimate.mean.as_secs_f64() - 0.025).abs() < 1e-9);
        assert!((estimate.deviation.as_secs_f64() - 0.000_125_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_fleet_that_becomes_slower_is_noticed() {
        let mut times = of(&[10; 500]);
        (0..300).for_each(|_| times.record(ms(100)));
        let estimate = times.estimate().unwrap();
        assert!(estimate.mean > ms(98) && estimate.mean <= ms(100), "{estimate:?}");
    }

    #[test]
    fn quantiles_need_enough_to_go_by() {
        assert_eq!(of(&[5; 19]).quantile(950), None);
        assert_eq!(of(&[5; 20]).quantile(950), Some(ms(5)));
        let mut times = of(&(1..=256).collect::<Vec<_>>());
        assert_eq!(times.quantile(950), Some(ms(244)));
        assert_eq!(times.quantile(990), Some(ms(254)));
        assert_eq!(times.quantile(995), Some(ms(255)));
        assert_eq!(times.quantile(999), None);
    }

    proptest! {
        #[test]
        fn estimates_stay_within_what_was_seen(times_ms in proptest::collection::vec(0_u64..10_000, 1..600)) {
            let estimate = of(&times_ms).estimate().unwrap();
            let (least, most) = (*times_ms.iter().min().unwrap(), *times_ms.iter().max().unwrap());
            let slack = Duration::from_nanos(100);
            prop_assert!(estimate.mean + slack >= ms(least) && estimate.mean <= ms(most) + slack);
            prop_assert!(estimate.deviation <= ms(most - least) + slack);
        }
    }
}
