//! Tests of the comparison.
use super::*;
use serde_json::{Value, json};

fn run_json(p99_ms: f64) -> Value {
    json!({
        "target": "http://t/predict", "workload": "workload.txt",
        "plan": {
            "schedule": "workload.txt", "arrivals": "poisson", "seed": 1, "interpolate": false,
            "speed": 1.0, "scale": 1.0, "duration_s": 600.0, "requests_expected": 15000.0,
        },
        "sent": 15000, "ok": 14980, "failed": 5, "shed": 15,
        "latency_ms": { "p50": 120.0, "p90": 200.0, "p99": p99_ms, "p999": 480.0, "max": 600.0 },
        "duration_s": 600.2, "valid": true, "interrupted": false, "models": { "mobilenet_v2": 14980 },
        "something_new": [1, 2],
    })
}

fn search_json(rate_rps: Option<f64>) -> Value {
    json!({
        "kind": "find_max", "target": "http://t/predict", "slo_p99_ms": 330.0, "rate_rps": rate_rps,
        "seed": 1, "trials": [],
    })
}

fn compare(before: &Value, after: &Value) -> Comparison {
    let report = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    Comparison::new(&report(before), &report(after), 0.05).unwrap()
}

#[test]
fn a_worse_run_as_people_see_it() {
    let mut after = run_json(402.0);
    after["failed"] = 30.into();
    after["plan"]["seed"] = 2.into();
    after["valid"] = false.into();
    let comparison = compare(&run_json(310.0), &after);
    assert_eq!(comparison.verdict(), Change::Worse);
    insta::assert_snapshot!(comparison);
}

#[test]
fn two_searches_as_people_see_them() {
    let comparison = compare(&search_json(Some(40.0)), &search_json(Some(52.5)));
    assert_eq!(comparison.verdict(), Change::Better);
    insta::assert_snapshot!(comparison);
    assert_eq!(compare(&search_json(Some(40.0)), &search_json(None)).verdict(), Change::Worse);
}

#[test]
fn what_is_within_the_tolerance_is_the_same() {
    for (after_ms, expected) in [
        (310.0, Change::Same),
        (325.5, Change::Same),
        (325.6, Change::Worse),
        (294.5, Change::Same),
        (294.4, Change::Better),
    ] {
        assert_eq!(compare(&run_json(310.0), &run_json(after_ms)).verdict(), expected, "{after_ms}");
    }
    // A millisecond is noise even where it is a large share.
    assert_eq!(compare(&run_json(2.0), &run_json(3.0)).verdict(), Change::Same);
}

#[test]
fn one_worse_figure_outweighs_a_better_one() {
    let mut after = run_json(200.0);
    after["shed"] = 150.into();
    let comparison = compare(&run_json(310.0), &after);
    assert_eq!(comparison.verdict(), Change::Worse);
    assert!(comparison.to_string().ends_with("worse, by over 5 %: failed or shed\n"), "{comparison}");
}

#[test]
fn what_makes_runs_hard_to_compare_is_said() {
    let like = || run_json(310.0);
    assert!(compare(&like(), &like()).warnings.is_empty());
    for (path, value, says) in [
        ("/workload", json!("other.txt"), "schedule"),
        ("/plan/arrivals", json!("even"), "arrivals"),
        ("/plan/seed", json!(7), "seed: 1 and 7"),
        ("/plan/speed", json!(10.0), "speed"),
        ("/plan/scale", json!(2.0), "scale"),
        ("/plan/duration_s", json!(60.0), "duration"),
        ("/plan/requests_expected", json!(99.0), "number of requests"),
        ("/plan/interpolate", json!(true), "interpolation"),
        ("/plan", json!(null), "older report"),
        ("/valid", json!(false), "not to be trusted"),
        ("/interrupted", json!(true), "interrupted"),
        ("/models", json!({ "other": 1 }), "network"),
    ] {
        let mut after = like();
        *after.pointer_mut(path).unwrap() = value;
        let comparison = compare(&like(), &after);
        let [warning] = &comparison.warnings[..] else { panic!("{path}: {:?}", comparison.warnings) };
        assert!(warning.contains(says), "{warning} does not say {says}");
        assert_eq!(comparison.verdict(), Change::Same);
    }
}

#[test]
fn a_run_and_a_search_are_not_compared() {
    let report = |value: Value| serde_json::from_value(value).unwrap();
    let error = Comparison::new(&report(run_json(1.0)), &report(search_json(None)), 0.05).err().unwrap();
    assert!(error.to_string().contains("--find-max"));
}
