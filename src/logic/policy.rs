//! How many replicas there should be: an observation and a history in, a decision with its reason out.
//!
//! **Invariant**: a decision lies within the bounds; missing or stale numbers never shrink the fleet.
use serde::Serialize;
use std::time::Duration;

/// Replicas as the scaler sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaCounts {
    /// Asked for.
    pub desired: u32,
    /// Taking requests.
    pub ready: u32,
    /// On their way up.
    pub starting: u32,
}

/// What the monitor says about the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Traffic {
    /// Since a dispatcher last reported, seconds.
    pub age_s: f64,
    /// Latencies behind the percentile.
    pub samples: usize,
    /// 99th percentile of the latency, milliseconds; `None` without samples.
    pub p99_ms: Option<f64>,
    /// Requests that arrive a second; `None` when idle.
    pub arrival_rps: Option<f64>,
    /// Mean time that a request holds a slot, milliseconds; `None` without samples.
    pub service_ms: Option<f64>,
    /// Requests on replicas or waiting for one.
    pub outstanding: u32,
    /// Slots of the ready replicas.
    pub slots: u32,
}

/// Everything a decision is based on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Observation {
    /// Time since the autoscaler started.
    #[serde(skip)]
    pub now: Duration,
    /// The fleet.
    pub replicas: ReplicaCounts,
    /// The traffic; `None` when the monitor could not be asked.
    pub traffic: Option<Traffic>,
}

/// How many replicas there should be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Replicas to ask for.
    pub replicas: u32,
    /// In words, for people.
    pub reason: String,
}

/// Fewest and most replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest, at least 1.
    pub min: u32,
    /// Most.
    pub max: u32,
}

/// Settings of [`step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Latency above which the fleet grows, milliseconds (99th percentile).
    pub target_ms: f64,
    /// Factor by which it grows, rounded up.
    pub up_factor: f64,
    /// Least time between two steps down, or from a step up to one down.
    pub down_interval: Duration,
    /// Highest share of the slots that may be busy after a step down.
    pub room_utilisation: f64,
    /// Fewest latencies to act on.
    pub samples_min: usize,
    /// Age from which a report counts as missing, seconds.
    pub stale_after_s: f64,
}

/// What [`step`] remembers between two decisions.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    /// Ready replicas at the last observation and since when there are as many.
    ready_since: Option<(u32, Duration)>,
    /// When the fleet was last told to change.
    changed_at: Option<Duration>,
}

impl History {
    /// How far back latencies say something about the fleet as it is: to the last change of the number of
    /// ready replicas. Asking the monitor for no more keeps old samples from causing a second step.
    #[must_use]
    pub fn relevant(&self, now: Duration) -> Option<Duration> {
        self.ready_since.map(|(_, since)| now.saturating_sub(since))
    }
}

/// The step rule: ×`up_factor`, rounded up, while p99 is over the target; −1 when there is room.
///
/// There is room when p99 is within the target and one replica fewer would leave at most
/// `room_utilisation` of the slots busy: offered load (arrival rate × service time, Little's law) over
/// slots. While replicas are on their way up it waits for them instead of adding more.
pub fn step(config: &StepConfig, history: &mut History, observation: &Observation) -> Decision {
    let now = observation.now;
    let replicas = observation.replicas;
    if history.ready_since.is_none_or(|(ready, _)| ready != replicas.ready) {
        history.ready_since = Some((replicas.ready, now));
    }
    let (wanted, reason) = unbounded(config, history, observation);
    let bounded = wanted.clamp(config.bounds.min, config.bounds.max);
    let reason = if bounded == wanted {
        reason
    } else {
        let Bounds { min, max } = config.bounds;
        format!("{reason}; {wanted} is outside the bounds {min} to {max}")
    };
    if bounded != replicas.desired {
        history.changed_at = Some(now);
    }
    Decision { replicas: bounded, reason }
}

fn unbounded(config: &StepConfig, history: &History, observation: &Observation) -> (u32, String) {
    let desired = observation.replicas.desired;
    let hold = |why: String| (desired, format!("hold: {why}"));
    let Some(traffic) = observation.traffic else {
        return hold("the monitor does not answer".to_owned());
    };
    if traffic.age_s > config.stale_after_s {
        return hold(format!("no dispatcher has reported for {:.0} s", traffic.age_s));
    }
    if observation.replicas.starting > 0 {
        return hold(format!("{} replicas are starting", observation.replicas.starting));
    }
    match traffic.p99_ms.filter(|_| traffic.samples >= config.samples_min) {
        Some(p99_ms) if p99_ms > config.target_ms => {
            // 1.2 has no exact binary form: 5 × 1.2 must not become 7.
            let up = (f64::from(desired) * config.up_factor - 1e-9).ceil() as u32;
            let up = up.max(desired.saturating_add(1));
            (up, format!("up: p99 {p99_ms:.0} ms is over {:.0} ms", config.target_ms))
        }
        p99_ms => down(config, history, observation, traffic, p99_ms).unwrap_or_else(hold),
    }
}

/// One replica fewer, or why not.
fn down(
    config: &StepConfig,
    history: &History,
    observation: &Observation,
    traffic: Traffic,
    p99_ms: Option<f64>,
) -> Result<(u32, String), String> {
    let desired = observation.replicas.desired;
    if desired <= config.bounds.min {
        return Err(format!("at the least of {} replicas", config.bounds.min));
    }
    let idle = traffic.arrival_rps.unwrap_or(0.0) <= 0.0 && traffic.outstanding == 0;
    let busy_after = if idle {
        0.0
    } else {
        let (Some(rps), Some(service_ms)) = (traffic.arrival_rps, traffic.service_ms) else {
            return Err("too few answers to judge whether there is room".to_owned());
        };
        let slots_a_replica = f64::from(traffic.slots) / f64::from(observation.replicas.ready.max(1));
        let slots_after = slots_a_replica * f64::from(desired - 1);
        rps * service_ms / 1000.0 / slots_after.max(f64::MIN_POSITIVE)
    };
    if busy_after > config.room_utilisation {
        return Err(format!("one fewer would be {:.0} % busy", busy_after * 100.0));
    }
    let since_change = history.changed_at.map(|at| observation.now.saturating_sub(at));
    if let Some(since) = since_change.filter(|since| *since < config.down_interval) {
        return Err(format!("there is room, but the last change was {:.0} s ago", since.as_secs_f64()));
    }
    let p99 = p99_ms.map_or_else(|| "idle".to_owned(), |p99_ms| format!("p99 {p99_ms:.0} ms"));
    Ok((desired - 1, format!("down: {p99}, and one fewer would be {:.0} % busy", busy_after * 100.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: StepConfig = StepConfig {
        bounds: Bounds { min: 1, max: 20 },
        target_ms: 330.0,
        up_factor: 1.2,
        down_interval: Duration::from_secs(10),
        room_utilisation: 0.7,
        samples_min: 20,
        stale_after_s: 30.0,
    };

    fn busy(p99_ms: f64) -> Traffic {
        Traffic {
            age_s: 0.2,
            samples: 1000,
            p99_ms: Some(p99_ms),
            arrival_rps: Some(40.0),
            service_ms: Some(100.0),
            outstanding: 4,
            slots: 5,
        }
    }

    fn idle() -> Traffic {
        let nothing = Traffic { arrival_rps: None, service_ms: None, outstanding: 0, ..busy(0.0) };
        Traffic { samples: 0, p99_ms: None, ..nothing }
    }

    fn seen(at_s: u64, ready: u32, traffic: Option<Traffic>) -> Observation {
        let replicas = ReplicaCounts { desired: ready, ready, starting: 0 };
        Observation { now: Duration::from_secs(at_s), replicas, traffic }
    }

    fn check(observation: &Observation, expected: u32, says: &str) {
        let decision = step(&CONFIG, &mut History::default(), observation);
        assert_eq!(decision.replicas, expected, "{}", decision.reason);
        assert!(decision.reason.contains(says), "{:?} does not say {says:?}", decision.reason);
    }

    #[test]
    fn it_grows_by_a_fifth_rounded_up() {
        for (from, to) in [(1, 2), (4, 5), (5, 6), (6, 8), (10, 12), (18, 20), (20, 20)] {
            check(&seen(10, from, Some(busy(331.0))), to, "p99 331 ms is over 330 ms");
        }
        check(&seen(10, 5, Some(busy(330.0))), 5, "hold");
    }

    #[test]
    fn it_shrinks_by_one_only_when_there_is_room() {
        // 40 rps × 100 ms = 4 busy slots: 4 of 5 is 80 %, 4 of 6 is 67 %.
        check(&seen(10, 6, Some(Traffic { slots: 6, ..busy(120.0) })), 6, "one fewer would be 80 % busy");
        check(&seen(10, 7, Some(Traffic { slots: 7, ..busy(120.0) })), 6, "down: p99 120 ms");
        check(&seen(10, 3, Some(idle())), 2, "down: idle");
        check(&seen(10, 1, Some(idle())), 1, "at the least of 1 replicas");
    }

    #[test]
    fn missing_and_stale_numbers_hold_the_fleet() {
        check(&seen(10, 5, None), 5, "the monitor does not answer");
        check(
            &seen(10, 5, Some(Traffic { age_s: 31.0, ..idle() })),
            5,
            "no dispatcher has reported for 31 s",
        );
        let few = Traffic { samples: 3, service_ms: None, ..busy(900.0) };
        check(&seen(10, 5, Some(few)), 5, "too few answers");
    }

    #[test]
    fn it_waits_for_replicas_on_their_way_and_forgets_older_latencies() {
        let mut history = History::default();
        assert_eq!(step(&CONFIG, &mut history, &seen(10, 5, Some(busy(900.0)))).replicas, 6);
        let mut starting = seen(11, 5, Some(busy(900.0)));
        starting.replicas = ReplicaCounts { desired: 6, ready: 5, starting: 1 };
        assert_eq!(step(&CONFIG, &mut history, &starting).replicas, 6);
        assert_eq!(step(&CONFIG, &mut history, &seen(13, 6, Some(busy(200.0)))).replicas, 6);
        assert_eq!(history.relevant(Duration::from_secs(15)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn it_goes_down_slowly() {
        let mut history = History::default();
        let mut replicas = 5;
        let mut downs = Vec::new();
        for at_s in 0..35 {
            let decision = step(&CONFIG, &mut history, &seen(at_s, replicas, Some(idle())));
            if decision.replicas < replicas {
                downs.push(at_s);
            }
            replicas = decision.replicas;
        }
        assert_eq!(downs, [0, 10, 20, 30]);
    }

    proptest! {
        #[test]
        fn a_decision_is_bounded_and_never_shrinks_on_bad_news(
            desired in 1_u32..60, ready in 0_u32..60, starting in 0_u32..10,
            p99_ms in proptest::option::of(0.0..1e6_f64), samples in 0_usize..2000, age_s in 0.0..100.0_f64,
            rps in proptest::option::of(0.0..1e4_f64), service_ms in proptest::option::of(0.0..1e4_f64),
            slots in 0_u32..100, outstanding in 0_u32..100, known in any::<bool>(),
        ) {
            let traffic = Traffic { age_s, samples, p99_ms, arrival_rps: rps, service_ms, outstanding, slots };
            let replicas = ReplicaCounts { desired, ready, starting };
            let now = Duration::from_secs(100);
            let observation = Observation { now, replicas, traffic: known.then_some(traffic) };
            let decision = step(&CONFIG, &mut History::default(), &observation);
            prop_assert!((1..=20).contains(&decision.replicas));
            prop_assert!(!decision.reason.is_empty());
            let bad = p99_ms.is_some_and(|p99_ms| p99_ms > 330.0 && samples >= 20);
            if !known || age_s > 30.0 || bad {
                prop_assert!(decision.replicas >= desired.min(20), "{}", decision.reason);
            }
        }
    }
}
