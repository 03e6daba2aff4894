//! Tests of the report, and a report for the tests of what is made from one.
use super::*;
use crate::load::fleet::{Change, Replicas};
use crate::load::outcome::{Ended, Failure, Outcome};
use crate::load::record::Counting;

fn judgement(slo_ms: u64) -> Judgement {
    Judgement {
        target: "http://t/predict".into(),
        plan: Planned {
            schedule: "w.txt".into(),
            arrivals: "poisson",
            seed: Some(1),
            interpolate: false,
            speed: 1.0,
            scale: 1.0,
            duration_s: 3.0,
            requests_expected: 100.0,
        },
        seconds_planned: vec![50.0, 0.0, 50.0],
        started_unix_s: 1_700_000_000.25,
        timeout: Duration::from_secs(5),
        lag_max: Duration::from_millis(50),
        slo_p99: Some(Duration::from_millis(slo_ms)),
        failed_max: None,
        interrupted: false,
        fleet: None,
    }
}

fn record(outcomes: &[(u64, u64, Outcome)]) -> Record {
    let mut record = Record::new(Counting::ALL).unwrap();
    for (number, (latency_ms, lag_ms, outcome)) in outcomes.iter().enumerate() {
        let due = Duration::from_millis(number as u64 * 10);
        record.came_due(due);
        let (sent, ended) = (due + Duration::from_millis(*lag_ms), due + Duration::from_millis(*latency_ms));
        record.ended(Ended { due, sent, ended, outcome: outcome.clone() });
    }
    record.finish(Duration::from_secs(9));
    record
}

fn ok(latency_ms: u64) -> (u64, u64, Outcome) {
    (latency_ms, 1, Outcome::Ok { model: Some("m".into()) })
}

#[test]
fn the_promise_is_judged_by_the_latency_from_the_schedule() {
    let mut outcomes = vec![ok(100); 99];
    outcomes.push(ok(900));
    let report = Report::new(&record(&outcomes), judgement(500));
    assert!(report.is_good(), "{report}");
    outcomes.push(ok(900));
    let report = Report::new(&record(&outcomes), judgement(500));
    assert!(!report.is_good());
    assert!(
        report.to_string().contains("is over 500 ms and 0 % failed or were shed: the promise was broken"),
        "{report}"
    );
}

#[test]
fn failed_and_shed_requests_never_flatter() {
    let mut outcomes = vec![ok(10); 98];
    outcomes.push((1, 0, Outcome::Shed));
    outcomes.push((1, 0, Outcome::Failed(Failure::Status(500))));
    let report = Report::new(&record(&outcomes), judgement(500));
    assert_eq!(report.latency_ms.p99, Some(5000.0));
    assert!(!report.is_good());
    assert!(!Report::new(&record(&outcomes), judgement(60_000)).is_good(), "a miss held the promise");
    assert_eq!((report.ok, report.failed, report.shed), (98, 1, 1));
}

#[test]
fn a_generator_that_lags_is_not_trusted() {
    let outcomes = vec![(60, 55, Outcome::Ok { model: None }); 50];
    let report = Report::new(&record(&outcomes), judgement(500));
    assert!(!report.valid && !report.is_good());
    assert!(report.to_string().contains("not to be trusted"), "{report}");
}

#[test]
fn an_interrupted_run_holds_no_promise() {
    let cut = Judgement { interrupted: true, ..judgement(500) };
    let report = Report::new(&record(&vec![ok(100); 50]), cut);
    assert!(!report.is_good() && report.slo.is_some_and(|slo| !slo.held));
    assert!(report.to_string().contains("there is no verdict"), "{report}");
}

#[test]
fn a_run_without_an_answer_is_not_good_even_when_no_promise_was_asked_about() {
    let unasked = || Judgement { slo_p99: None, ..judgement(500) };
    let refused = vec![(1, 0, Outcome::Failed(Failure::Connect)); 3];
    assert!(!Report::new(&record(&refused), unasked()).is_good());
    assert!(Report::new(&record(&[ok(10)]), unasked()).is_good());
}

#[test]
fn an_empty_run_says_so() {
    let report = Report::new(&record(&[]), judgement(500));
    assert!(!report.is_good());
    assert_eq!(report.latency_ms.p99, None);
    assert!(report.to_string().contains("nothing was sent"));
}

/// A report with something of everything: two seconds of requests, misses, and a fleet.
pub(crate) fn full() -> Report {
    let mut outcomes = vec![ok(120); 96];
    outcomes.extend([
        (900, 2, Outcome::Ok { model: None }),
        (1, 1, Outcome::Shed),
        (5000, 1, Outcome::Failed(Failure::Timeout)),
        (1, 1, Outcome::Failed(Failure::Status(500))),
    ]);
    let mut record = Record::new(Counting::ALL).unwrap();
    for (number, (latency_ms, lag_ms, outcome)) in outcomes.into_iter().enumerate() {
        let due = Duration::from_millis(number as u64 * 28);
        record.came_due(due);
        let after = |ms| due + Duration::from_millis(ms);
        record.ended(Ended { due, sent: after(lag_ms), ended: after(latency_ms), outcome });
    }
    record.finish(Duration::from_secs(9));
    let at = |t, ready, starting| Replicas { t, ready, starting };
    let change = |t, from, to, reason: &str| Change { t, from, to, reason: reason.into(), applied: true };
    let fleet = Seen {
        replicas: vec![at(0.5, 1, 0), at(1.5, 1, 1), at(2.5, 2, 0)],
        decisions: vec![change(1.1, 1, 2, "p99 <410 ms> & over the target"), change(2.9, 2, 1, "room")],
        problems: vec![],
    };
    Report::new(&record, Judgement { failed_max: Some(0.001), fleet: Some(fleet), ..judgement(500) })
}

#[test]
fn the_report_as_people_see_it() {
    insta::assert_snapshot!(full());
}

#[test]
fn the_report_as_programs_see_it() {
    insta::assert_snapshot!(full().to_json().unwrap());
}

#[test]
fn failed_and_shed_requests_can_be_bounded_by_themselves() {
    let mut outcomes = vec![ok(10); 199];
    outcomes.push((1, 0, Outcome::Shed));
    let bounded = |failed_max| {
        let judged = Judgement { failed_max: Some(failed_max), ..judgement(500) };
        Report::new(&record(&outcomes), judged)
    };
    assert!(Report::new(&record(&outcomes), judgement(500)).is_good(), "p99 itself allows one in a hundred");
    let verdict = bounded(0.005).verdict();
    assert_eq!(
        verdict,
        "p99 10.0 ms is within 500 ms and 0.5 % failed or were shed, within 0.5 %: the promise held"
    );
    let broken = bounded(0.004);
    assert!(!broken.is_good());
    assert!(broken.verdict().ends_with("0.5 % failed or were shed, over 0.4 %: the promise was broken"));
    let alone = Judgement { slo_p99: None, failed_max: Some(0.004), ..judgement(500) };
    assert!(!Report::new(&record(&outcomes), alone).is_good());
}

#[test]
fn shares_are_never_rounded_to_nothing() {
    let shares = [0.0, 0.00001, 0.0012, 0.01, 0.3333, 1.0].map(percent);
    assert_eq!(shares, ["0 %", "under 0.01 %", "0.12 %", "1 %", "33.33 %", "100 %"]);
}
