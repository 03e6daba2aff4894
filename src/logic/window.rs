//! A rolling window of the latest latencies, and what they say about the tail.
//!
//! **Invariant**: at most `samples_max` samples, none older than `age_max` at the last `now` seen, in the order
//! in which they were recorded. A window without samples has no summary: absent, never zero.
//!
//! # How samples rank
//! Answered requests rank by their latency. Misses (shed, failed, timed out, given up) rank behind every
//! answered request of the same summary, and each reads as the largest of
//!
//! * its own latency,
//! * the promise, and
//! * the latency of the slowest answered request.
//!
//! A refusal after 0.2 ms is thereby as bad as a broken promise, and shedding can never look like health.
//! Percentiles, maximum and mean are all over these values.
use std::collections::VecDeque;
use std::time::Duration;

/// Permille of the percentiles in a [`Summary`].
const P50: usize = 500;
const P90: usize = 900;
const P95: usize = 950;
const P99: usize = 990;

/// What a window may hold and what a miss reads as.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Samples kept; a further one replaces the oldest.
    pub samples_max: usize,
    /// Samples older than this are forgotten, so that an idle service does not show yesterday's burst.
    pub age_max: Duration,
    /// Least latency that a miss reads as, milliseconds.
    pub promise_ms: f64,
}

/// One request that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// From the door to the answer, milliseconds; finite and not negative.
    pub latency_ms: f64,
    /// Whether it counts against the promise whatever its latency.
    pub miss: bool,
    /// How long it held a replica's slot, milliseconds; absent where it never reached one.
    pub service_ms: Option<f64>,
}

impl Sample {
    /// Whether it missed `target_ms` although its service time alone would not have: what more replicas, or
    /// earlier ones, could have prevented.
    #[must_use]
    pub fn is_preventable_miss(&self, target_ms: f64) -> bool {
        let missed = self.miss || self.latency_ms > target_ms;
        missed && self.service_ms.is_none_or(|service_ms| service_ms <= target_ms)
    }
}

/// What some samples say together. See the module for how misses rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many samples there were; at least one.
    pub samples: usize,
    /// Median, milliseconds. All percentiles are nearest rank: the smallest value that at least that share of
    /// the samples does not exceed, always one of the samples.
    pub p50_ms: f64,
    /// 90th percentile, milliseconds.
    pub p90_ms: f64,
    /// 95th percentile, milliseconds.
    pub p95_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// 95 % confidence interval of the 99th percentile, milliseconds; see [`confidence_ranks`].
    pub p99_ci_ms: Option<[f64; 2]>,
    /// Slowest, milliseconds.
    pub max_ms: f64,
    /// Mean, milliseconds.
    pub mean_ms: f64,
    /// How long requests held a slot; absent when none reached one.
    pub service: Option<Service>,
}

/// How long requests held a replica's slot.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Service {
    /// Mean, milliseconds.
    pub mean_ms: f64,
    /// 95th percentile by nearest rank, milliseconds.
    pub p95_ms: f64,
    /// Coefficient of variation: the population's standard deviation over its mean; 0 when the mean is 0.
    pub cv: f64,
}

/// The latest samples with the time at which each was recorded.
#[derive(Debug)]
pub struct Window {
    limits: Limits,
    samples: VecDeque<(Duration, Sample)>,
}

impl Window {
    /// An empty window. It grows to its limit as samples come.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, samples: VecDeque::new() }
    }

    /// Adds a sample that became known at `now`. A `now` before the newest sample's counts as the newest's,
    /// so that times never run backwards along the window.
    pub fn record(&mut self, now: Duration, sample: Sample) {
        let now = self.samples.back().map_or(now, |(newest, _)| now.max(*newest));
        self.forget(now);
        if self.samples.len() >= self.limits.samples_max {
            self.samples.pop_front();
        }
        if self.limits.samples_max > 0 {
            self.samples.push_back((now, sample));
        }
    }

    /// Drops the samples that are older than `age_max` at `now`.
    pub fn forget(&mut self, now: Duration) {
        while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > self.limits.age_max) {
            self.samples.pop_front();
        }
    }

    /// Samples held, those past their age included until the next [`Window::forget`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether no sample is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Age at `now` of the oldest sample no older than `age_max`.
    #[must_use]
    pub fn oldest_age(&self, now: Duration, age_max: Duration) -> Option<Duration> {
        self.within(now, age_max).next().map(|(at, _)| now.saturating_sub(*at))
    }

    /// Summary of the whole window at `now`.
    #[must_use]
    pub fn summary(&self, now: Duration) -> Option<Summary> {
        self.recent(now, self.limits.age_max)
    }

    /// Summary of the window's samples that are no older than `age_max` at `now`.
    #[must_use]
    pub fn recent(&self, now: Duration, age_max: Duration) -> Option<Summary> {
        summarise(self.within(now, age_max).map(|(_, sample)| sample), self.limits.promise_ms)
    }

    /// How long the whole window's requests held a slot at `now`.
    #[must_use]
    pub fn service(&self, now: Duration) -> Option<Service> {
        let within = self.within(now, self.limits.age_max);
        summarise_service(within.filter_map(|(_, sample)| sample.service_ms).collect())
    }

    /// The samples no older than `age_max`, oldest first. Times only grow along the window, so this is a suffix.
    fn within(&self, now: Duration, age_max: Duration) -> impl Iterator<Item = &(Duration, Sample)> {
        let age_max = age_max.min(self.limits.age_max);
        let start = self.samples.partition_point(|(at, _)| now.saturating_sub(*at) > age_max);
        self.samples.range(start..)
    }
}

/// Summary of `samples`, or nothing when there are none. Costs a sort of the latencies.
pub fn summarise<'a>(samples: impl Iterator<Item = &'a Sample>, promise_ms: f64) -> Option<Summary> {
    let (mut ranked, mut misses, mut service) = (Vec::new(), Vec::new(), Vec::new());
    for sample in samples {
        if sample.miss { &mut misses } else { &mut ranked }.push(sample.latency_ms);
        service.extend(sample.service_ms);
    }
    ranked.sort_unstable_by(f64::total_cmp);
    misses.sort_unstable_by(f64::total_cmp);
    let slowest_ms = ranked.last().copied().unwrap_or(0.0);
    ranked.extend(misses.iter().map(|latency_ms| latency_ms.max(promise_ms).max(slowest_ms)));

    let max_ms = ranked.last().copied()?;
    Some(Summary {
        samples: ranked.len(),
        p50_ms: percentile(&ranked, P50)?,
        p90_ms: percentile(&ranked, P90)?,
        p95_ms: percentile(&ranked, P95)?,
        p99_ms: percentile(&ranked, P99)?,
        p99_ci_ms: confidence_ranks(ranked.len(), P99)
            .and_then(|[low, high]| Some([*ranked.get(low - 1)?, *ranked.get(high - 1)?])),
        max_ms,
        mean_ms: mean(&ranked),
        service: summarise_service(service),
    })
}

fn summarise_service(mut service_ms: Vec<f64>) -> Option<Service> {
    service_ms.sort_unstable_by(f64::total_cmp);
    let p95_ms = percentile(&service_ms, P95)?;
    let mean_ms = mean(&service_ms);
    let squares: f64 = service_ms.iter().map(|value| (value - mean_ms).powi(2)).sum();
    let deviation_ms = (squares / service_ms.len() as f64).sqrt();
    let cv = if mean_ms > 0.0 { deviation_ms / mean_ms } else { 0.0 };
    Some(Service { mean_ms, p95_ms, cv })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Nearest rank: the value at rank `ceil(n * permille / 1000)`, counted from one, of ascending `ranked`.
fn percentile(ranked: &[f64], permille: usize) -> Option<f64> {
    let rank = (ranked.len() * permille).div_ceil(1000).max(1);
    ranked.get(rank - 1).copied()
}

/// The ranks, counted from one, of the two of `samples` ordered values between which the true quantile lies
/// with at least 95 % confidence, whatever the distribution.
///
/// The number of samples below the quantile `q` is binomial(n, q), so `[X(l), X(u)]` covers it with
/// probability `F(u-1) - F(l-1)`. Each side may miss by 2.5 %: `l` is the largest rank with
/// `F(l-1) <= 0.025`, `u` the smallest with `F(u-1) >= 0.975`. `None` when no two samples enclose the quantile
/// that surely, for the 99th percentile below 368 samples. (Hahn and Meeker, *Statistical Intervals*, 1991,
/// section 5.2; samples are taken as independent, which latencies in a queue are not quite, so that the true
/// interval is wider.)
#[must_use]
pub fn confidence_ranks(samples: usize, permille: usize) -> Option<[usize; 2]> {
    // Counted from the top, where the sum is short: K = n - B is the number of samples above the quantile.
    let above = 1.0 - permille as f64 / 1000.0;
    let odds_ln = (above / (1.0 - above)).ln();
    let count = samples as f64;
    let mut probability_ln = count * (1.0 - above).ln();
    let (mut cumulative, mut above_min) = (0.0, None);
    for above_now in 0..samples {
        cumulative += probability_ln.exp();
        if cumulative <= 0.025 {
            above_min = Some(above_now);
        }
        if cumulative >= 0.975 {
            return above_min.map(|above_min| [samples - above_now, samples - above_min]);
        }
        let k = above_now as f64;
        probability_ln += odds_ln + ((count - k) / (k + 1.0)).ln();
    }
    None
}

#[cfg(test)]
mod tests {
    // Percentiles are samples themselves, so that they are equal to the bit.
    #![allow(clippy::float_cmp)]
    use super::*;
    use proptest::prelude::*;

    const PROMISE_MS: f64 = 500.0;

    fn limits(samples_max: usize, age_max_s: u64) -> Limits {
        Limits { samples_max, age_max: Duration::from_secs(age_max_s), promise_ms: PROMISE_MS }
    }

    fn answered(latency_ms: f64) -> Sample {
        Sample { latency_ms, miss: false, service_ms: None }
    }

    fn missed(latency_ms: f64) -> Sample {
        Sample { latency_ms, miss: true, service_ms: None }
    }

    fn at_s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn filled(samples: &[Sample]) -> Window {
        let mut window = Window::new(limits(1000, 600));
        for sample in samples {
            window.record(Duration::ZERO, *sample);
        }
        window
    }

    #[test]
    fn an_empty_window_has_no_summary() {
        let window = Window::new(limits(1000, 600));
        assert_eq!(window.summary(at_s(5.0)), None);
        assert_eq!(window.oldest_age(at_s(5.0), Duration::MAX), None);
        assert!(window.is_empty());
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let samples: Vec<Sample> = (1..=200).map(|n| answered(f64::from(n))).collect();
        let summary = filled(&samples).summary(Duration::ZERO).unwrap();
        assert_eq!(
            (summary.p50_ms, summary.p90_ms, summary.p95_ms, summary.p99_ms, summary.max_ms),
            (100.0, 180.0, 190.0, 198.0, 200.0)
        );
        assert!((summary.mean_ms - 100.5).abs() < 1e-9);
        let one = filled(&[answered(7.0)]).summary(Duration::ZERO).unwrap();
        assert_eq!((one.p50_ms, one.p99_ms, one.samples), (7.0, 7.0, 1));
    }

    #[test]
    fn a_quick_refusal_reads_as_a_broken_promise() {
        let mut samples = vec![answered(20.0); 98];
        samples.extend([missed(0.2), missed(900.0)]);
        let summary = filled(&samples).summary(Duration::ZERO).unwrap();
        assert_eq!((summary.p50_ms, summary.p99_ms, summary.max_ms), (20.0, PROMISE_MS, 900.0));
    }

    #[test]
    fn a_miss_ranks_behind_an_answer_slower_than_the_promise() {
        let summary = filled(&[missed(1.0), answered(2000.0)]).summary(Duration::ZERO).unwrap();
        assert_eq!((summary.p50_ms, summary.p99_ms, summary.max_ms), (2000.0, 2000.0, 2000.0));
    }

    #[test]
    fn an_idle_service_forgets_its_burst() {
        let mut window = Window::new(limits(1000, 600));
        window.record(at_s(1.0), answered(9.0));
        assert!(window.summary(at_s(601.0)).is_some());
        assert_eq!(window.summary(at_s(601.5)), None);
        window.forget(at_s(601.5));
        assert!(window.is_empty());
    }

    #[test]
    fn recent_looks_at_the_last_seconds_only() {
        let mut window = Window::new(limits(1000, 600));
        window.record(at_s(1.0), answered(900.0));
        window.record(at_s(8.0), answered(10.0));
        window.record(at_s(9.0), answered(20.0));
        let recent = window.recent(at_s(10.0), at_s(2.0)).unwrap();
        assert_eq!((recent.samples, recent.max_ms), (2, 20.0));
        assert_eq!(window.oldest_age(at_s(10.0), at_s(2.0)), Some(at_s(2.0)));
        assert_eq!(window.recent(at_s(20.0), at_s(2.0)), None);
        assert_eq!(window.summary(at_s(10.0)).unwrap().samples, 3);
    }

    #[test]
    fn a_time_before_the_newest_sample_counts_as_its_time() {
        let mut window = Window::new(limits(10, 600));
        window.record(at_s(5.0), answered(1.0));
        window.record(at_s(4.0), answered(2.0));
        assert_eq!(window.recent(at_s(6.0), at_s(1.0)).unwrap().samples, 2);
    }

    #[test]
    fn service_time_is_over_those_that_held_a_slot() {
        let mut samples = [answered(9.0), answered(9.0), missed(0.1)];
        samples[0].service_ms = Some(100.0);
        samples[1].service_ms = Some(300.0);
        let service = filled(&samples).summary(Duration::ZERO).unwrap().service.unwrap();
        assert_eq!(service, Service { mean_ms: 200.0, p95_ms: 300.0, cv: 0.5 });
        assert_eq!(filled(&samples).service(Duration::ZERO), Some(service));
        assert_eq!(filled(&samples).service(at_s(601.0)), None);
        assert_eq!(filled(&[answered(9.0)]).summary(Duration::ZERO).unwrap().service, None);
    }

    #[test]
    fn the_interval_of_p99_needs_368_samples_and_matches_exact_sums() {
        assert_eq!(confidence_ranks(0, P99), None);
        assert_eq!(confidence_ranks(367, P99), None);
        assert_eq!(confidence_ranks(368, P99).map(|[_, high]| high), Some(368));
        assert_eq!(confidence_ranks(1000, P99), Some([983, 997]));
        // Worked out with exact fractions, as the one above.
        assert_eq!(confidence_ranks(100, P90), Some([84, 96]));
        let [low, high] = confidence_ranks(1_000_000, P99).unwrap();
        assert!((989_800..989_810).contains(&low) && (990_190..990_200).contains(&high), "{low} {high}");
    }

    /// Binomial cumulative distribution the long way, from Pascal-like recursion over trials.
    fn binomial_cumulative(trials: usize, share: f64) -> Vec<f64> {
        let mut probabilities = vec![1.0];
        for _ in 0..trials {
            let mut next = vec![0.0; probabilities.len() + 1];
            for (k, probability) in probabilities.iter().enumerate() {
                next[k] += probability * (1.0 - share);
                next[k + 1] += probability * share;
            }
            probabilities = next;
        }
        probabilities
            .iter()
            .scan(0.0, |sum, p| {
                *sum += p;
                Some(*sum)
            })
            .collect()
    }

    fn any_sample() -> impl Strategy<Value = Sample> {
        let latency_ms = prop_oneof![0.0..2000.0, Just(500.0), Just(0.0), (0_u32..5).prop_map(f64::from)];
        (latency_ms, prop::bool::weighted(0.2), prop::option::of(0.0..500.0))
            .prop_map(|(latency_ms, miss, service_ms)| Sample { latency_ms, miss, service_ms })
    }

    proptest! {
        #[test]
        fn percentiles_match_counting(samples in prop::collection::vec(any_sample(), 1..400)) {
            let summary = filled(&samples).summary(Duration::ZERO).unwrap();
            let slowest = samples.iter().filter(|s| !s.miss).map(|s| s.latency_ms).fold(0.0, f64::max);
            let reads: Vec<f64> = samples
                .iter()
                .map(|s| if s.miss { s.latency_ms.max(PROMISE_MS).max(slowest) } else { s.latency_ms })
                .collect();
            // The definition itself: the smallest value that enough samples do not exceed.
            let counted = |percent: usize| {
                reads
                    .iter()
                    .copied()
                    .filter(|v| reads.iter().filter(|w| **w <= *v).count() * 100 >= percent * reads.len())
                    .fold(f64::INFINITY, f64::min)
            };
            prop_assert_eq!(summary.p50_ms, counted(50));
            prop_assert_eq!(summary.p90_ms, counted(90));
            prop_assert_eq!(summary.p95_ms, counted(95));
            prop_assert_eq!(summary.p99_ms, counted(99));
            prop_assert_eq!(summary.max_ms, reads.iter().copied().fold(0.0, f64::max));
            let mean_ms = reads.iter().sum::<f64>() / reads.len() as f64;
            prop_assert!((summary.mean_ms - mean_ms).abs() < 1e-6);
            if let Some([low, high]) = summary.p99_ci_ms {
                prop_assert!(low <= summary.p99_ms && summary.p99_ms <= high);
            }
        }

        #[test]
        fn the_window_holds_the_latest_and_no_more(
            steps in prop::collection::vec((0_u64..2000, any_sample()), 1..200),
            samples_max in 1_usize..50,
            recent_s in 0_u64..40,
        ) {
            let mut window = Window::new(limits(samples_max, 30));
            let (mut now, mut all) = (Duration::ZERO, Vec::new());
            for (step_ms, sample) in steps {
                now += Duration::from_millis(step_ms);
                window.record(now, sample);
                all.push((now, sample));
                prop_assert!(window.len() <= samples_max);
            }
            let kept = &all[all.len().saturating_sub(samples_max)..];
            let age_max = Duration::from_secs(recent_s.min(30));
            let expected: Vec<Sample> =
                kept.iter().filter(|(at, _)| now.saturating_sub(*at) <= age_max).map(|(_, sample)| *sample).collect();
            prop_assert_eq!(
                window.recent(now, Duration::from_secs(recent_s)),
                summarise(expected.iter(), PROMISE_MS)
            );
        }

        #[test]
        fn the_interval_covers_95_percent_and_is_tight(trials in 1_usize..700) {
            let cumulative = binomial_cumulative(trials, 0.99);
            // below(r) is the probability that at most r-1 samples lie below the quantile.
            let below = |rank: usize| cumulative[rank - 1];
            match confidence_ranks(trials, P99) {
                Some([low, high]) => {
                    prop_assert!(below(high) - below(low) >= 0.95);
                    prop_assert!(below(low) <= 0.025 && below(low + 1) > 0.025);
                    prop_assert!(below(high) >= 0.975 && below(high - 1) < 0.975);
                }
                None => prop_assert!(below(trials) < 0.975 || below(1) > 0.025),
            }
        }
    }
}
