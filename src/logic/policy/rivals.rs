//! What the rules of others share: samples with the time at which they were taken, and how a decision is put.
//!
//! The rules are re-implemented from their public documentation, so that the simulator can compare; where it
//! leaves a choice, the one taken is named, and it is one that does not make the rule look worse.
//!
//! **Invariant**: at most [`SAMPLES_MAX`] samples; a clock that goes back or leaps is noticed by
//! [`super::elapsed`], and the rules then start over instead of concluding anything from the difference.
use super::Traffic;
#[cfg(test)]
use super::{Decision, Observation};
use std::collections::VecDeque;
use std::time::Duration;

/// Samples kept at most; one a second fills an hour.
const SAMPLES_MAX: usize = 3600;
/// What rounding may add: 0.9 / 0.1 must not become 10.
const ROUNDING: f64 = 1e-9;

/// Values with the time at which they were taken, oldest first.
#[derive(Debug, Default)]
pub(super) struct Samples {
    values: VecDeque<(Duration, f64)>,
}

impl Samples {
    /// Adds a value, and drops those that are older than `age_max`.
    pub(super) fn record(&mut self, now: Duration, value: f64, age_max: Duration) {
        while self.values.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= age_max) {
            self.values.pop_front();
        }
        if self.values.len() >= SAMPLES_MAX {
            self.values.pop_front();
        }
        self.values.push_back((now, value));
    }

    /// Mean of the values that are younger than `window`; `None` without any.
    pub(super) fn mean(&self, now: Duration, window: Duration) -> Option<f64> {
        let (count, sum) =
            self.within(now, window).fold((0.0, 0.0), |(count, sum), v| (count + 1.0, sum + v));
        (count > 0.0).then(|| sum / count)
    }

    /// Largest of the values that are younger than `window`; `None` without any.
    pub(super) fn max(&self, now: Duration, window: Duration) -> Option<f64> {
        self.within(now, window).reduce(f64::max)
    }

    fn within(&self, now: Duration, window: Duration) -> impl Iterator<Item = f64> {
        self.values.iter().rev().take_while(move |(at, _)| now.saturating_sub(*at) < window).map(|(_, v)| *v)
    }
}

/// Whether something that happens every `period` happens now, and if so notes that it did.
pub(super) fn is_due(last: &mut Option<Duration>, now: Duration, period: Duration) -> bool {
    let due = last.is_none_or(|last| now.saturating_sub(last) >= period);
    if due {
        *last = Some(now);
    }
    due
}

/// Requests that are served or wait.
pub(super) fn ongoing(traffic: &Traffic) -> f64 {
    traffic.busy.max(0.0) + f64::from(traffic.waiting)
}

/// The next whole number; infinity is the largest there is.
pub(super) fn round_up(replicas: f64) -> u32 {
    (replicas - ROUNDING).ceil() as u32
}

/// Whether a ratio is as good as 1.
pub(super) fn is_close(ratio: f64, tolerance: f64) -> bool {
    (ratio - 1.0).abs() <= tolerance + ROUNDING
}

/// How `wanted` compares, in a word.
pub(super) fn direction(wanted: u32, desired: u32) -> &'static str {
    match wanted.cmp(&desired) {
        std::cmp::Ordering::Less => "down",
        std::cmp::Ordering::Equal => "hold",
        std::cmp::Ordering::Greater => "up",
    }
}

/// A rule and the fleet it scales, observed each second; replicas have one slot and are ready at once, unless
/// `stuck` of them are not.
#[cfg(test)]
pub(super) struct Story<P> {
    rule: P,
    pub(super) at_s: u64,
    replicas: u32,
    pub(super) stuck: u32,
    /// Requests that are served or wait, while the monitor answers.
    pub(super) ongoing: Option<u32>,
    pub(super) rps: u32,
    /// Second and replicas of each change.
    changes: Vec<(u64, u32)>,
    /// Of the last decision that was due, or of the last change.
    pub(super) reason: String,
}

#[cfg(test)]
impl<P: super::Policy> Story<P> {
    pub(super) fn new(rule: P, replicas: u32) -> Self {
        let (changes, reason) = (Vec::new(), String::new());
        Self { rule, at_s: 0, replicas, stuck: 0, ongoing: Some(0), rps: 0, changes, reason }
    }

    pub(super) fn observation(&self) -> Observation {
        let ready = self.replicas.saturating_sub(self.stuck);
        let traffic = self.ongoing.map(|ongoing| Traffic {
            age_s: 0.1,
            samples: 0,
            p99_ms: None,
            arrivals: [self.rps; super::ARRIVALS_S],
            arrivals_known_s: 1000.0,
            service: None,
            busy: f64::from(ongoing.min(ready)),
            waiting: ongoing.saturating_sub(ready),
            slots: ready,
            ended: 0,
            missed: 0,
        });
        let replicas = super::ReplicaCounts {
            desired: self.replicas,
            ready,
            starting: self.stuck,
            ..super::ReplicaCounts::default()
        };
        Observation { now: Duration::from_secs(self.at_s), replicas, traffic }
    }

    /// One second passes.
    fn second(&mut self) {
        let Decision { replicas, reason } = self.rule.decide(&self.observation());
        if replicas != self.replicas {
            self.changes.push((self.at_s, replicas));
            self.replicas = replicas;
            self.reason = reason;
        } else if !reason.contains("the next") {
            self.reason = reason;
        }
        self.at_s += 1;
    }

    /// Seconds pass. The changes meanwhile: how long after the first of these seconds, and to what.
    pub(super) fn seconds(&mut self, seconds: u64) -> Vec<(u64, u32)> {
        let start_s = self.at_s;
        self.changes.clear();
        for _ in 0..seconds {
            self.second();
        }
        self.changes.iter().map(|(at_s, replicas)| (at_s - start_s, *replicas)).collect()
    }
}

#[cfg(test)]
mod tests {
    // Sums of small whole numbers are exact.
    #![allow(clippy::float_cmp)]
    use super::*;
    use crate::logic::policy::{
        ARRIVALS_S, Bounds, Hpa, HpaConfig, Kpa, KpaConfig, Policy, Ray, RayConfig, ReplicaCounts, elapsed,
    };
    use proptest::prelude::*;

    fn at_s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_window_has_its_own_samples_only() {
        let mut samples = Samples::default();
        assert_eq!(samples.mean(at_s(0), at_s(60)), None);
        for second in 0..100_u32 {
            samples.record(at_s(second.into()), second.into(), at_s(60));
        }
        assert_eq!(samples.values.len(), 60);
        assert_eq!(samples.mean(at_s(99), at_s(3)), Some(98.0));
        assert_eq!(samples.max(at_s(99), at_s(3)), Some(99.0));
        assert_eq!(samples.mean(at_s(109), at_s(10)), None);
        for _ in 0..2 * SAMPLES_MAX {
            samples.record(at_s(100), 1.0, at_s(60));
        }
        assert_eq!(samples.values.len(), SAMPLES_MAX);
    }

    #[test]
    fn time_that_goes_back_or_leaps_is_no_time() {
        assert_eq!(elapsed(None, at_s(5)), None);
        assert_eq!(elapsed(Some(at_s(5)), at_s(6)), Some(at_s(1)));
        assert_eq!(elapsed(Some(at_s(5)), at_s(4)), None);
        assert_eq!(elapsed(Some(at_s(5)), at_s(66)), None);
    }

    #[test]
    fn rounding_up_forgives_what_binary_fractions_add() {
        assert_eq!(round_up(0.7 / 0.1 + f64::EPSILON * 8.0), 7);
        assert_eq!([round_up(7.001), round_up(-1.0), round_up(f64::NAN)], [8, 0, 0]);
        assert_eq!(round_up(f64::INFINITY), u32::MAX);
        assert!(is_close(1.1, 0.1) && is_close(0.9, 0.1) && !is_close(1.11, 0.1));
    }

    const BOUNDS: Bounds = Bounds { min: 2, max: 20 };

    fn every_rule() -> [Box<dyn Policy>; 6] {
        let keda = HpaConfig::keda(BOUNDS, 8.0);
        [
            Box::new(Hpa::new(HpaConfig::cpu(BOUNDS))),
            Box::new(Hpa::new(HpaConfig::requests_per_replica(BOUNDS, 8.0))),
            Box::new(Hpa::new(keda)),
            Box::new(Hpa::new(HpaConfig { cached_for: Some(at_s(30)), ..keda })),
            Box::new(Kpa::new(KpaConfig::documented(BOUNDS, 1))),
            Box::new(Ray::new(RayConfig::documented(BOUNDS, RayConfig::target_for(1)))),
        ]
    }

    prop_compose! {
        fn any_traffic()(
            age_s in prop_oneof![9 => 0.0..30.0_f64, 1 => 30.1..100.0_f64],
            arrivals in prop::array::uniform16(0_u32..400),
            arrivals_known_s in 0.0..100.0_f64,
            busy in 0.0..40.0_f64, waiting in 0_u32..200, slots in 0_u32..40,
        ) -> Traffic {
            let arrivals: [u32; ARRIVALS_S] = arrivals;
            let (samples, p99_ms, service, ended, missed) = (0, None, None, 0, 0);
            Traffic {
                age_s, samples, p99_ms, arrivals, arrivals_known_s, service, busy, waiting, slots, ended,
                missed,
            }
        }
    }

    prop_compose! {
        /// A stretch of time in which little changes: seconds, how the clock moves each time, fleet, traffic.
        fn any_stretch()(
            seconds in 1_usize..90,
            step_ms in prop_oneof![8 => Just(1000_i64), 1 => 0..5000_i64, 1 => -3_600_000..3_600_000_i64],
            ready in 0_u32..25, starting in 0_u32..5, failing in 0_u32..3, missing in 0_u32..3,
            traffic in prop::option::weighted(0.8, any_traffic()),
        ) -> (usize, i64, ReplicaCounts, Option<Traffic>) {
            let desired = ready + starting + failing + missing;
            (seconds, step_ms, ReplicaCounts { desired, ready, starting, failing }, traffic)
        }
    }

    proptest! {
        #[test]
        fn every_rule_is_bounded_and_never_shrinks_on_missing_numbers(
            stretches in prop::collection::vec(any_stretch(), 1..12),
            follow in any::<bool>(),
        ) {
            for mut rule in every_rule() {
                let mut now_ms = 10_000_000_i64;
                for (seconds, step_ms, mut replicas, traffic) in stretches.clone() {
                    for _ in 0..seconds {
                        now_ms = (now_ms + step_ms).max(0);
                        let now = Duration::from_millis(now_ms.unsigned_abs());
                        let decision = rule.decide(&Observation { now, replicas, traffic });
                        prop_assert!((BOUNDS.min..=BOUNDS.max).contains(&decision.replicas));
                        prop_assert!(!decision.reason.is_empty());
                        if traffic.is_none_or(|traffic| traffic.age_s > 30.0) {
                            let least = replicas.desired.min(BOUNDS.max);
                            prop_assert!(decision.replicas >= least, "{}", decision.reason);
                        }
                        if follow {
                            replicas.desired = decision.replicas;
                        }
                    }
                }
            }
        }
    }
}
