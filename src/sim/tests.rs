use super::*;
use crate::logic::arrivals::{Pace, Plan, Spacing, Workload};
use crate::logic::balance;
use crate::logic::policy::{Bounds, Decision, Name, Observation, Policy, Scaled};
use proptest::prelude::*;
use std::time::Duration;

const SETTINGS: Settings = Settings {
    service_time: Duration::from_millis(100),
    cv: 0.1,
    start_up: Duration::from_secs(5),
    slots: 1,
    dispatch: balance::Policy::Central,
    waiting_max: 100_000,
    promise: Duration::from_millis(330),
    deadline: Duration::from_millis(330),
    interval: Duration::from_secs(1),
    replicas_start: 2,
    seed: 7,
    window: 1000,
};

/// So many replicas from each second on.
struct Fixed(Vec<(u64, u32)>);

impl Policy for Fixed {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let now_s = observation.now.as_secs();
        let last = self.0.iter().rev().find(|(from_s, _)| *from_s <= now_s);
        let replicas = last.map_or(observation.replicas.desired, |(_, replicas)| *replicas);
        Decision { replicas, reason: "it is so".to_owned() }
    }
}

fn planned(rates_rps: &[f64], line_s: f64, spacing: Spacing) -> Requests {
    let text = rates_rps.iter().map(f64::to_string).collect::<Vec<_>>().join("\n");
    let pace = Pace { line_s, ..Pace::default() };
    Requests::Planned(Plan::new(&Workload::parse(&text).unwrap(), pace, 10_000_000).unwrap(), spacing)
}

fn poisson(rate_rps: f64, duration_s: f64) -> Requests {
    planned(&[rate_rps], duration_s, Spacing::Poisson { seed: 3 })
}

fn named(name: Name) -> Box<dyn Policy + Send> {
    name.policy(&Scaled {
        bounds: Bounds { min: 1, max: 100 },
        promise: SETTINGS.promise,
        service_time: SETTINGS.service_time,
        slots: 1,
    })
}

/// Share of the requests of an M/D/1 queue that wait longer than `wait_s` (A. K. Erlang, 1909).
fn waits_longer(rate_rps: f64, service_s: f64, wait_s: f64) -> f64 {
    let terms = (wait_s / service_s) as i32;
    let mut factorial = 1.0;
    let sum: f64 = (0..=terms)
        .map(|k| {
            factorial *= f64::from(k.max(1));
            let x = rate_rps * (f64::from(k) * service_s - wait_s);
            x.powi(k) / factorial * (-x).exp()
        })
        .sum();
    1.0 - (1.0 - rate_rps * service_s) * sum
}

#[test]
fn one_replica_waits_as_theory_says() {
    for (rate_rps, wait_ms) in [(5.0, 50), (7.0, 150), (8.0, 250)] {
        let promise = SETTINGS.service_time + Duration::from_millis(wait_ms) + Duration::from_nanos(10);
        let settings =
            Settings { cv: 0.0, promise, deadline: Duration::from_secs(1000), replicas_start: 1, ..SETTINGS };
        let outcome = run(&settings, &poisson(rate_rps, 40_000.0), &mut Fixed(Vec::new()));
        let expected = waits_longer(rate_rps, 0.1, wait_ms as f64 / 1e3);
        let seen = outcome.missed as f64 / outcome.requests as f64;
        assert!((seen / expected - 1.0).abs() < 0.03, "{rate_rps}: {seen}, not {expected}");
        assert_eq!(outcome.refused, 0);
    }
}

#[test]
fn service_times_have_the_mean_and_variation_asked_for() {
    let times = service::ServiceTimes::new(Duration::from_millis(100), 0.5, 1);
    let drawn: Vec<f64> = (0..200_000).map(|ticket| times.of(ticket).as_secs_f64()).collect();
    let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
    let variance = drawn.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
    assert!((mean - 0.1).abs() < 5e-4 && (variance.sqrt() / mean - 0.5).abs() < 0.01, "{mean} {variance}");
}

#[test]
fn replicas_cost_from_being_asked_for_to_their_end() {
    let mut policy = Fixed(vec![(10, 3), (20, 1)]);
    let outcome = run(&SETTINGS, &planned(&[1.0], 60.0, Spacing::Even), &mut policy);
    let ready: Vec<u32> = [9, 10, 14, 15, 19, 20].map(|second: usize| outcome.seconds[second].ready).to_vec();
    // Asked for at the end of second 9, they are seen to be up at the end of second 14.
    assert_eq!(ready, [2, 2, 3, 3, 1, 1]);
    assert!((outcome.replica_s - (10.0 * 2.0 + 10.0 * 3.0 + 40.0)).abs() < 0.2, "{}", outcome.replica_s);
    let changes: Vec<(u64, u32, u32)> =
        outcome.changes.iter().map(|change| (change.at.as_secs(), change.from, change.to)).collect();
    assert_eq!(changes, [(10, 2, 3), (20, 3, 1)]);
}

#[test]
fn every_second_tells_its_replicas_however_rarely_the_rule_looks() {
    let settings = Settings { interval: Duration::from_secs(10), ..SETTINGS };
    let mut policy = Fixed(vec![(10, 3)]);
    let outcome = run(&settings, &planned(&[1.0], 30.0, Spacing::Even), &mut policy);
    let told: Vec<(u32, u32)> = outcome.seconds.iter().map(|second| (second.desired, second.ready)).collect();
    assert_eq!(told[..9], [(2, 2); 9]);
    assert_eq!(told[10..15], [(3, 2); 5]);
    assert_eq!(told[15..], [(3, 3); 15]);
}

#[test]
fn one_that_starts_and_is_given_up_never_serves() {
    let mut policy = Fixed(vec![(10, 3), (12, 2)]);
    let outcome = run(&SETTINGS, &planned(&[1.0], 30.0, Spacing::Even), &mut policy);
    assert_eq!(outcome.seconds.iter().map(|second| second.ready).max(), Some(2));
    assert!((outcome.replica_s - 62.0).abs() < 1e-9, "{}", outcome.replica_s);
}

#[test]
fn overload_is_refused_and_counted() {
    let outcome = run(&SETTINGS, &poisson(40.0, 100.0), &mut Fixed(Vec::new()));
    // Two slots answer twenty a second; the others are refused.
    let share = outcome.missed as f64 / outcome.requests as f64;
    assert!((share - 0.5).abs() < 0.04, "{share}");
    assert!(outcome.refused as f64 > 0.95 * outcome.missed as f64);
}

#[test]
fn one_line_serves_more_than_lots() {
    let missed = |dispatch| {
        let settings = Settings { dispatch, replicas_start: 10, ..SETTINGS };
        run(&settings, &poisson(80.0, 300.0), &mut Fixed(Vec::new())).missed
    };
    let (central, two, random) = (
        missed(balance::Policy::Central),
        missed(balance::Policy::PowerOfTwo),
        missed(balance::Policy::Random),
    );
    assert!(central * 10 < two && two * 2 < random, "{central} {two} {random}");
}

#[test]
fn counted_requests_are_those_that_were_counted() {
    let requests = Requests::Counted { seconds: vec![3, 0, 40, 1], seed: 5 };
    let outcome = run(&SETTINGS, &requests, &mut Fixed(Vec::new()));
    let arrivals: Vec<u32> = outcome.seconds.iter().map(|second| second.arrivals).collect();
    assert_eq!(arrivals, [3, 0, 40, 1]);
}

#[test]
fn the_clairvoyant_needs_what_can_be_worked_out_by_hand() {
    let settings = Settings { cv: 0.0, replicas_start: 2, ..SETTINGS };
    let least = |rates_rps: &[f64], line_s| {
        clairvoyant::replica_seconds(&settings, &planned(rates_rps, line_s, Spacing::Even))
    };
    // One slot's worth of work needs one replica all the time, half as much again needs two.
    assert!((least(&[10.0], 60.0) - 60.0).abs() < 1e-9);
    assert!((least(&[15.0], 60.0) - 120.0).abs() < 1.5, "{}", least(&[15.0], 60.0));
    // A minute's valley pays: one replica less for 60 s, less the five seconds of starting it again.
    let valley = least(&[15.0, 5.0, 15.0], 60.0);
    assert!((valley - (120.0 + 60.0 + 120.0 + 5.0)).abs() < 1.5, "{valley}");
    // One of three seconds does not.
    let short = least(&[15.0, 5.0, 15.0], 3.0);
    assert!((short - 18.0).abs() < 1.5, "{short}");
    // A large fleet forgets no work: 100 slots' worth, less what may be left at the end.
    let settings = Settings { replicas_start: 100, ..settings };
    let large = clairvoyant::replica_seconds(&settings, &planned(&[1000.0], 60.0, Spacing::Even));
    assert!((5900.0..=6000.1).contains(&large), "{large}");
}

#[test]
fn an_hour_of_the_plain_rules_is_the_same_every_time() {
    let requests = planned(&[20.0, 60.0, 15.0, 90.0], 60.0, Spacing::Poisson { seed: 1 });
    for name in Name::ALL {
        let settings = Settings { interval: name.interval(), ..SETTINGS };
        let play = || run(&settings, &requests, &mut *named(name));
        assert_eq!(play(), play(), "{name}");
    }
}

#[test]
fn slo_misses_less_than_a_percent_and_needs_little_more_than_the_clairvoyant() {
    let rates_rps: Vec<f64> = (0..600).map(|second| 60.0 + 40.0 * (f64::from(second) / 60.0).sin()).collect();
    let requests = planned(&rates_rps, 1.0, Spacing::Poisson { seed: 1 });
    let settings = Settings { replicas_start: 9, ..SETTINGS };
    let outcome = run(&settings, &requests, &mut *named(Name::Slo));
    let share = outcome.missed as f64 / outcome.requests as f64;
    let ratio = outcome.replica_s / clairvoyant::replica_seconds(&settings, &requests);
    assert!(share < 0.004, "{share}");
    assert!(ratio > 1.0 && ratio < 1.25, "{ratio}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_request_ends_once_and_nobody_beats_the_clairvoyant(
        rates_rps in proptest::collection::vec(0.0..60.0_f64, 3..12), seed in 0_u64..1000,
        which in 0_usize..7, dispatch in 0_usize..3, start in 1_u32..10,
    ) {
        let dispatch = [balance::Policy::Central, balance::Policy::Random, balance::Policy::PowerOfTwo][dispatch];
        let name = Name::ALL[which];
        let settings =
            Settings { dispatch, seed, replicas_start: start, interval: name.interval(), ..SETTINGS };
        let requests = planned(&rates_rps, 5.0, Spacing::Poisson { seed });
        let outcome = run(&settings, &requests, &mut *named(name));
        let sum = |of: fn(&Second) -> u32| outcome.seconds.iter().map(|second| u64::from(of(second))).sum::<u64>();
        prop_assert_eq!(outcome.requests, requests.tickets().count() as u64);
        prop_assert_eq!(sum(|second| second.arrivals), outcome.requests);
        prop_assert_eq!(sum(|second| second.missed), outcome.missed);
        prop_assert!(outcome.refused <= outcome.missed && outcome.missed <= outcome.requests);
        if outcome.missed == 0 {
            prop_assert!(outcome.replica_s >= clairvoyant::replica_seconds(&settings, &requests) - 1e-6);
        }
    }
}
