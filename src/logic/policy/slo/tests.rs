use super::*;
use crate::logic::policy::ARRIVALS_S;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { min: 2, max: 50 };

fn slo() -> Slo {
    Slo::new(SloConfig::new(BOUNDS, 330.0))
}

fn ready(replicas: u32) -> ReplicaCounts {
    ReplicaCounts { desired: replicas, ready: replicas, starting: 0, failing: 0 }
}

/// An even rate, with requests of 100 ms.
fn traffic(rate_rps: u32, replicas: u32) -> Traffic {
    Traffic {
        age_s: 0.2,
        samples: 1000,
        p99_ms: Some(200.0),
        arrivals: [rate_rps; ARRIVALS_S],
        arrivals_known_s: 100.0,
        service: Some(Service { mean_ms: 100.0, p95_ms: 117.0, cv: 0.1 }),
        busy: 1.0,
        waiting: 0,
        slots: replicas,
        ended: 0,
        missed: 0,
    }
}

fn at(now_s: u64, replicas: ReplicaCounts, traffic: Option<Traffic>) -> Observation {
    Observation { now: Duration::from_secs(now_s), replicas, traffic }
}

/// Lets time pass with the same traffic and a scaler that obeys at once; the replicas at the end.
fn pass(slo: &mut Slo, seconds: std::ops::Range<u64>, mut replicas: u32, rate_rps: u32) -> u32 {
    for now_s in seconds {
        replicas = slo.decide(&at(now_s, ready(replicas), Some(traffic(rate_rps, replicas)))).replicas;
    }
    replicas
}

#[test]
fn load_becomes_replicas() {
    // 200 requests/s of 100 ms hold 20 slots; by M/D/c a few more keep the wait under 213 ms.
    let decision = slo().decide(&at(0, ready(18), Some(traffic(200, 18))));
    assert_eq!(decision.replicas, 21, "{}", decision.reason);
    assert_eq!(
        decision.reason,
        "up: 200.0 requests/s hold 20.0 slots in the mean; 21 keep waits under 213 ms"
    );
}

#[test]
fn replicas_with_more_slots_are_fewer() {
    let mut slo = slo();
    let two_slots = |replicas| Some(Traffic { slots: 2 * replicas, ..traffic(200, replicas) });
    // At once, before it can be known to stay so.
    assert_eq!(self::slo().decide(&at(0, ready(5), two_slots(5))).replicas, 11);
    for now_s in 0..4 {
        slo.decide(&at(now_s, ready(22), two_slots(22)));
    }
    let decision = slo.decide(&at(4, ready(5), two_slots(5)));
    assert_eq!(decision.replicas, 11, "{}", decision.reason);
}

#[test]
fn the_same_traffic_asks_for_no_second_step() {
    let mut slo = slo();
    assert_eq!(pass(&mut slo, 0..30, 18, 200), 21);
}

#[test]
fn it_shrinks_to_the_most_that_was_wanted_for_a_while() {
    let mut slo = slo();
    let mut replicas = pass(&mut slo, 0..50, 21, 200);
    let mut changes = Vec::new();
    for now_s in 50..140 {
        let rate_rps = if now_s < 70 { 150 } else { 50 };
        let before = replicas;
        replicas = pass(&mut slo, now_s..now_s + 1, before, rate_rps);
        if replicas != before {
            changes.push((now_s, replicas));
        }
    }
    // 200 a second were last wanted at 49 s, 150 at 69 s; never to less than half at once.
    assert_eq!(changes, [(90, 16), (110, 8), (111, 6)]);
}

#[test]
fn slow_starters_are_held_longer() {
    let mut slo = slo();
    // Five replicas are asked for at 1 s and come up at 31 s: they took 30 s.
    for now_s in 0..80 {
        let replicas = match now_s {
            0 => ready(22),
            1..31 => ReplicaCounts { desired: 27, ready: 22, starting: 5, failing: 0 },
            _ => ready(27),
        };
        slo.decide(&at(now_s, replicas, Some(traffic(245, 27))));
    }
    assert_eq!(slo.start_up(), Duration::from_secs(30));
    assert_eq!(slo.hold(), Duration::from_secs(60));
}

#[test]
fn replicas_on_their_way_count() {
    let mut slo = slo();
    let starting = ReplicaCounts { desired: 22, ready: 18, starting: 4, failing: 0 };
    for now_s in 0..30 {
        let decision = slo.decide(&at(now_s, starting, Some(traffic(200, 18))));
        assert_eq!(decision.replicas, 22, "{}", decision.reason);
    }
}

#[test]
fn replicas_that_crash_are_no_capacity() {
    let crashing = |desired, failing| ReplicaCounts { desired, ready: 18, starting: 0, failing };
    let seen = |counts| slo().decide(&at(0, counts, Some(traffic(200, 18)))).replicas;
    assert_eq!(seen(crashing(21, 4)), 25);
    // What crashes them may crash all: a quarter more at most.
    assert_eq!(seen(crashing(40, 22)), 40);
    assert_eq!(seen(crashing(21, 21)), 27);
}

#[test]
fn unknown_traffic_holds_and_starts_the_hold_again() {
    let mut slo = slo();
    let replicas = pass(&mut slo, 0..100, 21, 200);
    for now_s in 100..130 {
        let stale = Traffic { age_s: 31.0, ..traffic(0, 22) };
        let observed = at(now_s, ready(replicas), (now_s % 2 == 0).then_some(stale));
        assert_eq!(slo.decide(&observed).replicas, 21);
    }
    let mut shrinks = (130..200).filter(|&now_s| pass(&mut slo, now_s..now_s + 1, 21, 50) < 21);
    assert_eq!(shrinks.next(), Some(170));
}

#[test]
fn without_an_answer_it_waits_and_without_requests_it_shrinks() {
    let silent = |rate_rps| Some(Traffic { service: None, p99_ms: None, samples: 0, ..traffic(rate_rps, 5) });
    let mut rule = slo();
    for now_s in 0..60 {
        let decision = rule.decide(&at(now_s, ready(5), silent(10)));
        assert_eq!((decision.replicas, decision.reason.as_str()), (5, "hold: no request was answered yet"));
    }
    let mut rule = slo();
    let decisions: Vec<u32> =
        (0..50).map(|now_s| rule.decide(&at(now_s, ready(5), silent(0))).replicas).collect();
    assert_eq!((decisions[39], decisions[40]), (5, 2));
}

#[test]
fn a_spent_budget_buys_more_replicas() {
    let wanted = |missed| {
        let mut slo = slo();
        slo.decide(&at(0, ready(2), Some(traffic(25, 2))));
        let spent = Traffic { ended: 10_000, missed, ..traffic(25, 2) };
        slo.decide(&at(1, ready(2), Some(spent))).replicas
    };
    assert_eq!((wanted(0), wanted(20), wanted(40)), (3, 3, 4));
}

#[test]
fn a_burst_that_broke_the_budget_is_remembered() {
    let mut slo = slo();
    let mut totals = (0, 0);
    let mut decide = |now_s: u64, rate_rps: u32, missed: u64| {
        totals = (totals.0 + u64::from(rate_rps), totals.1 + missed);
        // The rate changes every second: only the last one has arrived.
        let mut arrivals = [0; ARRIVALS_S];
        arrivals[0] = rate_rps;
        let traffic = Traffic { arrivals, ended: totals.0, missed: totals.1, ..traffic(0, 4) };
        slo.decide(&at(now_s, ready(4), Some(traffic)))
    };
    decide(0, 0, 0);
    for now_s in 1..5 {
        decide(now_s, 100, 50);
    }
    let decisions: Vec<Decision> = (5..1000).map(|now_s| decide(now_s, 0, 0)).collect();
    // 100 requests of 100 ms a second for four seconds: ten slots, less what may wait; half as many again.
    let (last, first) = (&decisions[800], &decisions[100]);
    assert_eq!((first.replicas, last.replicas), (14, 14), "{}", first.reason);
    assert!(first.reason.contains("50.0 % missed in 15 min"), "{}", first.reason);
    // The scaler here never obeys, so it is the decision alone that forgets.
    assert_eq!(decisions[990].replicas, 2, "{}", decisions[990].reason);
}

#[test]
fn steps_are_capped() {
    let wants = |replicas| slo().decide(&at(0, ready(replicas), Some(traffic(450, replicas)))).replicas;
    assert_eq!((wants(3), wants(12), wants(40)), (13, 24, 46));
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    for jump in [0, 1_000_000] {
        let mut slo = slo();
        let replicas = pass(&mut slo, 500..600, 21, 200);
        assert_eq!(pass(&mut slo, jump..jump + 200, replicas, 200), 21);
        let mut slo = slo_after(500..600);
        // Less traffic after the jump shrinks nothing before a whole hold has passed.
        assert_eq!(pass(&mut slo, jump..jump + 40, 21, 50), 21);
        assert!(pass(&mut slo, jump + 40..jump + 41, 21, 50) < 21);
    }
}

fn slo_after(seconds: std::ops::Range<u64>) -> Slo {
    let mut slo = slo();
    pass(&mut slo, seconds, 21, 200);
    slo
}

/// An observation of any kind.
fn any_observation() -> impl Strategy<Value = Observation> {
    let counts = (0_u32..60, 0_u32..60, 0_u32..10, 0_u32..10)
        .prop_map(|(desired, ready, starting, failing)| ReplicaCounts { desired, ready, starting, failing });
    let service = (0.0..1e4_f64, 0.0..1e4_f64, 0.0..5.0_f64).prop_map(|(mean_ms, p95_ms, cv)| Service {
        mean_ms,
        p95_ms,
        cv,
    });
    let numbers = (0.0..60.0_f64, 0.0..1e4_f64, 0_u32..1000, 0_u32..1000, 0_u64..10_000, 0_u64..10_000);
    let arrivals = proptest::array::uniform16(0_u32..2000);
    let traffic = (numbers, arrivals, proptest::option::of(service)).prop_map(
        |((age_s, known_s, waiting, slots, ended, missed), arrivals, service)| Traffic {
            age_s,
            arrivals,
            arrivals_known_s: known_s,
            service,
            waiting,
            slots,
            ended,
            missed,
            ..traffic(0, 0)
        },
    );
    (0_u64..100_000, counts, proptest::option::of(traffic)).prop_map(|(now_ms, replicas, traffic)| {
        Observation { now: Duration::from_millis(now_ms), replicas, traffic }
    })
}

proptest! {
    /// Whatever is observed, in whatever order, with a clock that jumps.
    #[test]
    fn decisions_are_bounded_and_capped_and_never_shrink_on_missing_numbers(
        observations in proptest::collection::vec(any_observation(), 1..40),
    ) {
        let mut slo = slo();
        for observation in &observations {
            let decision = slo.decide(observation);
            let desired = observation.replicas.desired;
            prop_assert!((BOUNDS.min..=BOUNDS.max).contains(&decision.replicas));
            prop_assert!(!decision.reason.is_empty());
            let most = (2 * desired).max(desired + GROW_ALWAYS).max(BOUNDS.min);
            prop_assert!(decision.replicas <= most, "{desired} to {}", decision.replicas);
            let least = (desired / 2).min(BOUNDS.max);
            prop_assert!(decision.replicas >= least, "{desired} to {}", decision.replicas);
            if observation.traffic.is_none_or(|traffic| traffic.age_s > 30.0) {
                prop_assert_eq!(decision.replicas, desired.clamp(BOUNDS.min, BOUNDS.max));
            }
        }
    }

    /// With an even load nothing moves twice: one step up if need be, and after the hold one or more down.
    #[test]
    fn an_even_load_settles(rate_rps in 0_u32..450, start in 2_u32..50) {
        let mut slo = slo();
        let mut replicas = start;
        let mut turns = Vec::new();
        for now_s in 0..200 {
            let before = replicas;
            replicas = pass(&mut slo, now_s..now_s + 1, before, rate_rps);
            if replicas != before {
                turns.push(replicas > before);
            }
        }
        turns.dedup();
        prop_assert!(turns.len() <= 1, "{turns:?}");
        prop_assert_eq!(pass(&mut slo, 200..300, replicas, rate_rps), replicas);
    }

    /// No shrinking within the hold of anything that wanted more.
    #[test]
    fn it_never_shrinks_below_what_was_wanted_within_the_hold(
        rates_rps in proptest::collection::vec(0_u32..450, 60..120),
    ) {
        let mut slo = slo();
        let mut replicas = 10;
        let mut wanted: Vec<u32> = Vec::new();
        for (now_s, &rate_rps) in rates_rps.iter().enumerate() {
            let alone = self::slo().decide(&at(0, ready(50), Some(traffic(rate_rps, 50))));
            // What is wanted shows where it is reached from below.
            let from_below = (0..50).fold(1, |replicas, _| {
                self::slo().decide(&at(0, ready(replicas), Some(traffic(rate_rps, replicas)))).replicas
            });
            prop_assert_eq!(alone.replicas, 50);
            wanted.push(from_below);
            let before = replicas;
            replicas = pass(&mut slo, now_s as u64..now_s as u64 + 1, before, rate_rps);
            if replicas < before {
                let held = wanted[now_s.saturating_sub(40)..].iter().max().copied();
                prop_assert!(held.is_some_and(|held| replicas >= held));
            }
        }
    }
}
