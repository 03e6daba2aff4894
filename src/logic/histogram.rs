//! Latencies counted in classes: what a second, or ten minutes of seconds, say about the tail in bounded memory.
//!
//! **Invariant**: a percentile reads no less than the one that sorting gives, and at most 0.8 % and 0.01 ms more,
//! for latencies up to an hour; counts, maximum and the number over the promise are exact. Memory does not grow
//! with the number of requests: see [`Latencies::BYTES_MAX`].
//!
//! Misses (shed, failed, timed out, given up) rank and read as in [`crate::logic::window`]: behind every answered
//! request, as the largest of their own latency, the promise, and the slowest answered request.
use crate::logic::window::confidence_ranks;
use hdrhistogram::Histogram;

/// Finest difference that is told apart, microseconds.
const STEP_US: u64 = 8;
/// Latencies above this count in the last class, microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Two significant digits: 128 classes for each doubling, so that a class is at most 1/128 wide.
const DIGITS: u8 = 2;
/// Classes that these three make: 23 doublings, and the first 128 steps.
const CLASSES: usize = 24 * 128;

/// What some latencies say together; see the module for what each may be off by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// Requests, at least one.
    pub samples: u64,
    /// Median by nearest rank, milliseconds.
    pub p50_ms: f64,
    /// 90th percentile, milliseconds.
    pub p90_ms: f64,
    /// 95th percentile, milliseconds.
    pub p95_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// 95 % confidence interval of the 99th percentile, milliseconds; absent below 368 requests.
    pub p99_ci_ms: Option<[f64; 2]>,
    /// Slowest, milliseconds.
    pub max_ms: f64,
    /// Mean, milliseconds.
    pub mean_ms: f64,
}

/// What the classes do not tell exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Exact {
    answered_ms_sum: f64,
    answered_ms_max: f64,
    missed_ms_max: f64,
    over_promise: u64,
}

/// Latencies that can be added to.
#[derive(Clone, Debug)]
pub struct Latencies {
    promise_ms: f64,
    answered: Histogram<u64>,
    missed: Histogram<u64>,
    exact: Exact,
}

/// Latencies that are kept: the classes that hold any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compact {
    answered: Box<[Class]>,
    missed: Box<[Class]>,
    exact: Exact,
}

/// The largest latency that a class takes, and how many it took.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Class {
    latency_us: u32,
    count: u32,
}

impl Latencies {
    /// Most bytes that the classes of one [`Compact`] take, whatever was recorded: 49 kB, or 29 MB in ten minutes
    /// of seconds. A second with 200 requests takes at most 1.6 kB.
    pub const BYTES_MAX: usize = 2 * CLASSES * size_of::<Class>();

    /// None yet. A miss reads as no less than `promise_ms`.
    #[must_use]
    pub fn new(promise_ms: f64) -> Self {
        Self { promise_ms, answered: classes(), missed: classes(), exact: Exact::default() }
    }

    /// Counts a request that ended; `latency_ms` is finite and not negative.
    pub fn record(&mut self, latency_ms: f64, miss: bool) {
        let latency_us = (latency_ms * 1e3).ceil() as u64;
        if miss {
            self.missed.saturating_record(latency_us);
            self.exact.missed_ms_max = self.exact.missed_ms_max.max(latency_ms);
        } else {
            self.answered.saturating_record(latency_us);
            self.exact.answered_ms_sum += latency_ms;
            self.exact.answered_ms_max = self.exact.answered_ms_max.max(latency_ms);
        }
        self.exact.over_promise += u64::from(miss || latency_ms > self.promise_ms);
    }

    /// Adds what was kept.
    pub fn add(&mut self, kept: &Compact) {
        for (classes, kept) in [(&mut self.answered, &kept.answered), (&mut self.missed, &kept.missed)] {
            for class in kept {
                classes.saturating_record_n(class.latency_us.into(), class.count.into());
            }
        }
        self.exact.answered_ms_sum += kept.exact.answered_ms_sum;
        self.exact.answered_ms_max = self.exact.answered_ms_max.max(kept.exact.answered_ms_max);
        self.exact.missed_ms_max = self.exact.missed_ms_max.max(kept.exact.missed_ms_max);
        self.exact.over_promise += kept.exact.over_promise;
    }

    /// What is worth keeping of them.
    #[must_use]
    pub fn compact(&self) -> Compact {
        let kept = |classes: &Histogram<u64>| {
            let held = classes.iter_recorded().map(|class| Class {
                // Both saturate far beyond what they can be: an hour, and four thousand million requests a second.
                latency_us: u32::try_from(class.value_iterated_to()).unwrap_or(u32::MAX),
                count: u32::try_from(class.count_at_value()).unwrap_or(u32::MAX),
            });
            held.collect()
        };
        Compact { answered: kept(&self.answered), missed: kept(&self.missed), exact: self.exact }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.answered.reset();
        self.missed.reset();
        self.exact = Exact::default();
    }

    /// Requests.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.answered.len() + self.missed.len()
    }

    /// Requests over the promise, misses among them.
    #[must_use]
    pub fn over_promise(&self) -> u64 {
        self.exact.over_promise
    }

    /// What they say together; nothing when there are none.
    #[must_use]
    pub fn tail(&self) -> Option<Tail> {
        let samples = self.samples();
        if samples == 0 {
            return None;
        }
        let permille = |permille: u64| self.at_rank((samples * permille).div_ceil(1000).max(1));
        let interval = usize::try_from(samples).ok().and_then(|samples| confidence_ranks(samples, 990));
        let missed_ms_sum: f64 = self
            .missed
            .iter_recorded()
            .map(|class| self.as_miss(class.value_iterated_to()) * class.count_at_value() as f64)
            .sum();
        Some(Tail {
            samples,
            p50_ms: permille(500),
            p90_ms: permille(900),
            p95_ms: permille(950),
            p99_ms: permille(990),
            p99_ci_ms: interval.map(|ranks| ranks.map(|rank| self.at_rank(rank as u64))),
            max_ms: self.at_rank(samples),
            mean_ms: (self.exact.answered_ms_sum + missed_ms_sum) / samples as f64,
        })
    }

    /// The latency at a rank counted from one, milliseconds.
    fn at_rank(&self, rank: u64) -> f64 {
        match rank.checked_sub(self.answered.len()) {
            None | Some(0) => (class_at(&self.answered, rank) as f64 / 1e3).min(self.exact.answered_ms_max),
            Some(rank) => self.as_miss(class_at(&self.missed, rank)),
        }
    }

    /// What a miss reads as, milliseconds.
    fn as_miss(&self, latency_us: u64) -> f64 {
        let latency_ms = (latency_us as f64 / 1e3).min(self.exact.missed_ms_max);
        latency_ms.max(self.promise_ms).max(self.exact.answered_ms_max)
    }
}

fn classes() -> Histogram<u64> {
    Histogram::new_with_bounds(STEP_US, LATENCY_US_MAX, DIGITS).expect("the three constants fit together")
}

/// The largest value of the class that holds the rank, or 0 without any.
fn class_at(classes: &Histogram<u64>, rank: u64) -> u64 {
    let mut counted = 0;
    for class in classes.iter_recorded() {
        counted += class.count_at_value();
        if counted >= rank {
            return class.value_iterated_to();
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::window::{Sample, summarise};
    use proptest::prelude::*;

    const PROMISE_MS: f64 = 500.0;

    fn recorded(samples: &[(f64, bool)]) -> Latencies {
        let mut latencies = Latencies::new(PROMISE_MS);
        for &(latency_ms, miss) in samples {
            latencies.record(latency_ms, miss);
        }
        latencies
    }

    #[test]
    fn nothing_says_nothing() {
        let mut latencies = recorded(&[]);
        assert_eq!((latencies.tail(), latencies.compact()), (None, Compact::default()));
        latencies.record(7.0, true);
        latencies.clear();
        assert_eq!((latencies.tail(), latencies.samples(), latencies.over_promise()), (None, 0, 0));
    }

    #[test]
    fn a_quick_refusal_reads_as_a_broken_promise_and_is_over_it() {
        let mut samples = vec![(20.0, false); 97];
        samples.extend([(0.2, true), (900.0, true), (500.1, false)]);
        let latencies = recorded(&samples);
        let tail = latencies.tail().unwrap();
        // Two misses rank behind the slow answer and read as no less than it.
        assert_eq!((tail.samples, tail.p99_ms, tail.max_ms), (100, 500.1, 900.0));
        assert!((20.0..20.2).contains(&tail.p50_ms), "{}", tail.p50_ms);
        assert_eq!(latencies.over_promise(), 3);
    }

    #[test]
    fn the_largest_latency_is_bounded_but_the_maximum_is_exact() {
        let day_ms = 86_400_000.0;
        let tail = recorded(&[(day_ms, true)]).tail().unwrap();
        assert!(tail.p50_ms >= 3_600_000.0 && tail.p50_ms <= day_ms, "{tail:?}");
        assert_eq!(recorded(&[(0.0, false)]).tail().map(|tail| tail.max_ms), Some(0.0));
    }

    #[test]
    fn the_classes_are_as_many_as_the_bound_says() {
        let mut latencies = Latencies::new(PROMISE_MS);
        let mut latency_us = 0_u64;
        while latency_us <= LATENCY_US_MAX {
            latencies.record(latency_us as f64 / 1e3, false);
            latencies.record(latency_us as f64 / 1e3, true);
            latency_us = latencies.answered.next_non_equivalent(latency_us);
        }
        let kept = latencies.compact();
        let bytes = size_of_val(&*kept.answered) + size_of_val(&*kept.missed);
        assert!(bytes <= Latencies::BYTES_MAX && bytes > Latencies::BYTES_MAX * 9 / 10, "{bytes}");
    }

    fn samples() -> impl Strategy<Value = Vec<(f64, bool)>> {
        let latency_ms = prop_oneof![
            0.0..2000.0,
            // Every magnitude alike.
            (-3.0..6.5).prop_map(|exponent: f64| 10_f64.powf(exponent)),
            Just(500.0),
            Just(0.0)
        ];
        prop::collection::vec((latency_ms, prop::bool::weighted(0.1)), 1..700)
    }

    proptest! {
        #[test]
        fn percentiles_agree_with_sorting(samples in samples()) {
            let tail = recorded(&samples).tail().unwrap();
            let sorted: Vec<Sample> =
                samples.iter().map(|&(latency_ms, miss)| Sample { latency_ms, miss, service_ms: None }).collect();
            let exact = summarise(sorted.iter(), PROMISE_MS).unwrap();
            let agrees = |read: f64, exact: f64| read >= exact && read <= exact * 1.008 + 0.01;
            for (read, exact) in [
                (tail.p50_ms, exact.p50_ms),
                (tail.p90_ms, exact.p90_ms),
                (tail.p95_ms, exact.p95_ms),
                (tail.p99_ms, exact.p99_ms),
                (tail.max_ms, exact.max_ms),
                (tail.mean_ms + 1e-6, exact.mean_ms),
            ] {
                prop_assert!(agrees(read, exact), "{} is not {}", read, exact);
            }
            prop_assert_eq!(tail.max_ms.to_bits(), exact.max_ms.to_bits());
            match (tail.p99_ci_ms, exact.p99_ci_ms) {
                (Some(read), Some(exact)) => {
                    prop_assert!(agrees(read[0], exact[0]) && agrees(read[1], exact[1]));
                }
                (read, exact) => prop_assert_eq!(read, exact),
            }
            prop_assert_eq!(tail.samples, samples.len() as u64);
        }

        #[test]
        fn seconds_that_were_kept_add_up_to_the_whole(samples in samples(), cuts in 1_usize..9) {
            let mut added = Latencies::new(PROMISE_MS);
            for part in samples.chunks(samples.len().div_ceil(cuts)) {
                added.add(&recorded(part).compact());
            }
            let whole = recorded(&samples);
            let (added_tail, whole_tail) = (added.tail().unwrap(), whole.tail().unwrap());
            prop_assert!((added_tail.mean_ms - whole_tail.mean_ms).abs() <= 1e-9 * whole_tail.mean_ms.max(1.0));
            prop_assert_eq!(Tail { mean_ms: 0.0, ..added_tail }, Tail { mean_ms: 0.0, ..whole_tail });
            prop_assert_eq!(added.over_promise(), whole.over_promise());
        }
    }
}
