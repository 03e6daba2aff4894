//! The plain rule: ×1.2 up while p99 is not under the target, else −1 down, every ten seconds.
use super::{Bounds, Decision, Observation, Policy, Traffic, fresh, hold};

/// Settings of [`Step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Latency above which the fleet grows, milliseconds (99th percentile).
    pub target_ms: f64,
    /// Factor by which it grows, rounded up.
    pub up_factor: f64,
    /// Age from which a report counts as missing, seconds.
    pub stale_after_s: f64,
}

impl StepConfig {
    /// The rule as it is meant.
    #[must_use]
    pub const fn new(bounds: Bounds, target_ms: f64) -> Self {
        Self { bounds, target_ms, up_factor: 1.2, stale_after_s: 30.0 }
    }
}

/// The rule; it remembers nothing.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    config: StepConfig,
}

impl Step {
    /// The rule with its settings.
    #[must_use]
    pub fn new(config: StepConfig) -> Self {
        Self { config }
    }
}

impl Policy for Step {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let desired = observation.replicas.desired;
        let decision = match fresh(observation, self.config.stale_after_s) {
            Err(why) => hold(desired, &why),
            Ok(traffic) => step(&self.config, desired, &traffic),
        };
        self.config.bounds.apply(decision)
    }
}

fn step(config: &StepConfig, desired: u32, traffic: &Traffic) -> Decision {
    let target_ms = config.target_ms;
    match traffic.p99_ms {
        // A request that was refused may read as the target itself.
        Some(p99_ms) if p99_ms >= target_ms => {
            // 1.2 has no exact binary form: 5 × 1.2 must not become 7.
            let up = (f64::from(desired) * config.up_factor - 1e-9).ceil() as u32;
            let replicas = up.max(desired.saturating_add(1));
            Decision { replicas, reason: format!("up: p99 {p99_ms:.0} ms is not under {target_ms:.0} ms") }
        }
        Some(p99_ms) => Decision {
            replicas: desired.saturating_sub(1),
            reason: format!("down: p99 {p99_ms:.0} ms is under {target_ms:.0} ms"),
        },
        None if traffic.waiting == 0 && traffic.busy <= 0.0 => {
            Decision { replicas: desired.saturating_sub(1), reason: "down: idle".to_owned() }
        }
        None => hold(desired, "no request has ended lately"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::{ARRIVALS_S, ReplicaCounts};
    use proptest::prelude::*;
    use std::time::Duration;

    const CONFIG: StepConfig = StepConfig::new(Bounds { min: 1, max: 20 }, 330.0);

    fn busy(p99_ms: f64) -> Traffic {
        Traffic {
            age_s: 0.2,
            samples: 1000,
            p99_ms: Some(p99_ms),
            arrivals: [40; ARRIVALS_S],
            arrivals_known_s: 16.0,
            service: None,
            busy: 4.0,
            waiting: 0,
            slots: 5,
            ended: 1000,
            missed: 10,
        }
    }

    fn idle() -> Traffic {
        Traffic { samples: 0, p99_ms: None, arrivals: [0; ARRIVALS_S], busy: 0.0, ..busy(0.0) }
    }

    fn decide(desired: u32, traffic: Option<Traffic>) -> Decision {
        let replicas = ReplicaCounts { desired, ready: desired, ..ReplicaCounts::default() };
        let now = Duration::from_secs(100);
        Step::new(CONFIG).decide(&Observation { now, replicas, traffic })
    }

    fn check(desired: u32, traffic: Option<Traffic>, expected: u32, says: &str) {
        let decision = decide(desired, traffic);
        assert_eq!(decision.replicas, expected, "{}", decision.reason);
        assert!(decision.reason.contains(says), "{:?} does not say {says:?}", decision.reason);
    }

    #[test]
    fn it_grows_by_a_fifth_rounded_up() {
        for (from, to) in [(1, 2), (2, 3), (4, 5), (5, 6), (6, 8), (10, 12), (11, 14), (15, 18)] {
            check(from, Some(busy(331.0)), to, "up: p99 331 ms is not under 330 ms");
        }
    }

    #[test]
    fn it_shrinks_by_one_while_p99_is_within_the_target_or_nobody_comes() {
        check(20, Some(busy(329.9)), 19, "down: p99 330 ms is under 330 ms");
        // A refused request may read as the very target: that is no health.
        check(10, Some(busy(330.0)), 12, "up: p99 330 ms is not under 330 ms");
        check(2, Some(busy(0.0)), 1, "down: p99 0 ms is under 330 ms");
        check(3, Some(idle()), 2, "down: idle");
    }

    #[test]
    fn it_stays_within_the_bounds() {
        check(
            20,
            Some(busy(900.0)),
            20,
            "up: p99 900 ms is not under 330 ms; 24 is outside the bounds 1 to 20",
        );
        check(1, Some(busy(20.0)), 1, "0 is outside the bounds 1 to 20");
        // Someone else set it.
        check(60, None, 20, "hold: the monitor does not answer; 60 is outside the bounds 1 to 20");
        check(0, None, 1, "0 is outside the bounds 1 to 20");
    }

    #[test]
    fn missing_and_stale_numbers_hold_the_fleet() {
        check(5, None, 5, "hold: the monitor does not answer");
        check(5, Some(Traffic { age_s: 30.0, ..idle() }), 4, "down: idle");
        let stale = Traffic { age_s: 31.0, ..busy(900.0) };
        check(5, Some(stale), 5, "hold: no dispatcher has reported for 31 s");
        let never = Traffic { age_s: f64::INFINITY, ..idle() };
        check(5, Some(never), 5, "hold: no dispatcher has reported yet");
    }

    #[test]
    fn requests_that_have_not_ended_are_no_idleness() {
        check(5, Some(Traffic { busy: 1.0, ..idle() }), 5, "hold: no request has ended");
        check(5, Some(Traffic { waiting: 1, ..idle() }), 5, "hold: no request has ended");
    }

    #[test]
    fn it_goes_down_one_at_every_look() {
        let mut step = Step::new(CONFIG);
        let mut replicas = ReplicaCounts { desired: 5, ready: 5, ..ReplicaCounts::default() };
        let desired: Vec<_> = (0..6)
            .map(|look| {
                let now = Duration::from_secs(10 * look);
                replicas.desired =
                    step.decide(&Observation { now, replicas, traffic: Some(busy(100.0)) }).replicas;
                replicas.desired
            })
            .collect();
        assert_eq!(desired, [4, 3, 2, 1, 1, 1]);
        // It looks at the whole window, whatever has changed since.
    }

    proptest! {
        #[test]
        fn a_decision_is_bounded_and_never_shrinks_on_bad_news(
            desired in 0_u32..60, starting in 0_u32..10, failing in 0_u32..10, age_s in 0.0..100.0_f64,
            p99_ms in proptest::option::of(0.0..1e6_f64), samples in 0_usize..2000,
            busy_slots in 0.0..100.0_f64, waiting in 0_u32..100, known in any::<bool>(),
        ) {
            let traffic = Traffic { age_s, samples, p99_ms, busy: busy_slots, waiting, ..idle() };
            let replicas = ReplicaCounts { desired, ready: desired, starting, failing };
            let now = Duration::from_secs(100);
            let observation = Observation { now, replicas, traffic: known.then_some(traffic) };
            let decision = Step::new(CONFIG).decide(&observation);
            prop_assert!((1..=20).contains(&decision.replicas));
            prop_assert!(!decision.reason.is_empty());
            prop_assert!(decision.replicas >= desired.saturating_sub(1).min(20), "{}", decision.reason);
            let bad = p99_ms.is_some_and(|p99_ms| p99_ms >= 330.0);
            if !known || age_s > 30.0 || bad {
                prop_assert!(decision.replicas >= desired.min(20), "{}", decision.reason);
            }
        }
    }
}
