//! How many requests a second are to be served when a replica that is asked for now will be ready.
//!
//! **Invariant**: a demand is finite and never below the mean rate that was seen.
use super::ARRIVALS_S;

/// Seconds that the mean and the trend are over.
const SPAN: usize = 15;
/// Last seconds that are looked at for a burst.
const BURST_SPANS: [usize; 4] = [1, 2, 4, 8];
/// A burst is this many standard deviations, and one request, over what the mean lets expect. With four spans looked
/// at every second, four deviations are one false alarm in about an hour and a half.
const BURST_DEVIATIONS: f64 = 4.0;
/// What a trend is shrunk by, in standard errors of its slope: noise of an even rate looks like a trend, too.
const TREND_DEVIATIONS: f64 = 1.25;
/// Share of the remaining trend that is taken to go on.
const TREND_WEIGHT: f64 = 0.75;

/// A rate and what was added to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(clippy::struct_field_names, reason = "all of them are rates, and a name ends in its unit")]
pub(super) struct Demand {
    /// Mean of the last seconds, requests a second.
    pub(super) mean_rps: f64,
    /// What it will have grown by.
    pub(super) trend_rps: f64,
    /// The rate of a burst under way; 0 without one.
    pub(super) burst_rps: f64,
}

impl Demand {
    /// From requests in each of the last seconds, the latest first, of which `known_s` were seen; for a time
    /// `ahead_s` from now.
    pub(super) fn of(arrivals: &[u32; ARRIVALS_S], known_s: f64, ahead_s: f64) -> Self {
        let counts = arrivals.map(f64::from);
        let in_last = |seconds: usize| counts[..seconds].iter().sum::<f64>();
        let mean_rps = in_last(SPAN) / known_s.clamp(1.0, SPAN as f64);
        let trend_rps = if known_s < SPAN as f64 { 0.0 } else { trend(&counts[..SPAN], mean_rps, ahead_s) };
        let bursts = BURST_SPANS.into_iter().filter_map(|seconds| {
            let (count, expected) = (in_last(seconds), mean_rps * seconds as f64);
            let is_burst = count > expected + BURST_DEVIATIONS * expected.sqrt() + 1.0;
            is_burst.then_some(count / seconds as f64)
        });
        let burst_rps = bursts.fold(0.0, f64::max);
        Self { mean_rps, trend_rps, burst_rps }
    }

    /// The rate to have replicas for.
    pub(super) fn rate_rps(&self) -> f64 {
        (self.mean_rps + self.trend_rps).max(self.burst_rps)
    }
}

/// What the rate will have grown by: the slope of the least-squares line through the counts, made smaller by what
/// chance alone may do to it (counts of a Poisson process: the variance of each is its mean), from the middle of the
/// counts to `ahead_s` from now. Falling rates have no trend here; they are followed by holding less.
fn trend(counts: &[f64], mean_rps: f64, ahead_s: f64) -> f64 {
    let middle = (counts.len() as f64 - 1.0) / 2.0;
    let times_s = || (0..counts.len()).map(|age| middle - age as f64);
    let spread: f64 = times_s().map(|time_s| time_s * time_s).sum();
    let together: f64 = times_s().zip(counts).map(|(time_s, count)| time_s * (count - mean_rps)).sum();
    let slope = together / spread - TREND_DEVIATIONS * (mean_rps / spread).sqrt();
    TREND_WEIGHT * slope.max(0.0) * (counts.len() as f64 / 2.0 + ahead_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_even_rate_is_its_mean() {
        let demand = Demand::of(&[40; ARRIVALS_S], 100.0, 5.0);
        assert_eq!(demand, Demand { mean_rps: 40.0, trend_rps: 0.0, burst_rps: 0.0 });
    }

    #[test]
    fn a_ramp_is_followed_to_where_it_leads() {
        // 10 a second more each second: 150 in the mean 7 s ago, 270 in 5.5 s if it goes on; three quarters of
        // the growth is counted on, less what chance might be.
        let ramp: [u32; ARRIVALS_S] = std::array::from_fn(|age| 220 - 10 * age as u32);
        let demand = Demand::of(&ramp, 100.0, 5.0);
        assert!((demand.mean_rps - 150.0).abs() < 1e-9);
        let expected = 0.75 * (10.0 - 1.25 * (150.0_f64 / 280.0).sqrt()) * 12.5;
        assert!((demand.trend_rps - expected).abs() < 1e-9, "{demand:?}");
        let falling: [u32; ARRIVALS_S] = std::array::from_fn(|age| 10 + 10 * age as u32);
        assert!(Demand::of(&falling, 100.0, 5.0).trend_rps <= 0.0);
    }

    #[test]
    fn a_burst_is_told_from_noise() {
        let mut arrivals = [25; ARRIVALS_S];
        arrivals[0] = 45;
        assert!(Demand::of(&arrivals, 100.0, 5.0).burst_rps <= 0.0);
        arrivals[0] = 60;
        let demand = Demand::of(&arrivals, 100.0, 5.0);
        assert!((demand.rate_rps() - 60.0).abs() < 1e-9, "{demand:?}");
        // After silence two requests are chance, and eight in two seconds are none.
        let mut after_silence = [0; ARRIVALS_S];
        after_silence[0] = 2;
        assert!(Demand::of(&after_silence, 100.0, 5.0).burst_rps <= 0.0);
        after_silence[..2].copy_from_slice(&[30, 20]);
        assert!((Demand::of(&after_silence, 100.0, 5.0).burst_rps - 30.0).abs() < 1e-9);
    }

    #[test]
    fn a_young_monitor_does_not_tell_too_little() {
        let mut arrivals = [0; ARRIVALS_S];
        arrivals[..3].copy_from_slice(&[40, 40, 20]);
        let demand = Demand::of(&arrivals, 2.5, 5.0);
        assert!((demand.mean_rps - 40.0).abs() < 1e-9 && demand.trend_rps <= 0.0, "{demand:?}");
    }

    proptest! {
        #[test]
        fn demand_is_finite_and_not_below_the_mean(
            arrivals in proptest::array::uniform16(0_u32..100_000), known_s in 0.0..1e6_f64,
            ahead_s in 0.0..600.0_f64,
        ) {
            let demand = Demand::of(&arrivals, known_s, ahead_s);
            prop_assert!(demand.rate_rps().is_finite() && demand.rate_rps() >= demand.mean_rps);
        }
    }
}
