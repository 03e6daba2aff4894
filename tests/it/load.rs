//! The load generator, from the executable itself, against services that behave and that do not.
use crate::support::Running;
use axum::Router;
use axum::routing::{get, post};
use http::StatusCode;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/photos");

struct Ran {
    code: i32,
    report: Value,
    stderr: String,
}

/// Replays `rates` at `url`, half a second a line.
async fn load(url: &str, rates: &str, flags: &[&str]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let (workload, report) = (folder.path().join("w.txt"), folder.path().join("r.json"));
    std::fs::write(&workload, rates).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_elastic"))
        .args(["load", "--target", url, "--speed", "2", "--lag-max", "5s", "--workload"])
        .arg(&workload)
        .arg("--json")
        .arg(&report)
        .args(flags)
        .env("ELASTIC_LOAD_PHOTOS", PHOTOS)
        .output()
        .await
        .unwrap();
    let report = std::fs::read(&report).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
    let stderr = String::from_utf8(output.stderr).unwrap();
    Ran { code: output.status.code().unwrap(), report, stderr }
}

fn router() -> Router {
    Router::new().route("/readyz", get(|| async { "ready" }))
}

#[tokio::test]
async fn a_good_run_is_counted_in_full() {
    let answer = post(|| async { r#"{"model":"mobilenet_v2","predictions":[]}"# });
    let service = Running::router(router().route("/predict", answer)).await;
    let ran = load(&service.url, "40\n20\n", &["--slo-p99", "5s"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = ran.report;
    assert_eq!((&report["sent"], &report["ok"]), (&30.into(), &30.into()), "{report}");
    assert_eq!(report["models"]["mobilenet_v2"], 30);
    assert_eq!((&report["valid"], &report["slo"]["held"]), (&true.into(), &true.into()));
    for key in ["p50", "p90", "p99", "p999", "max"] {
        assert!(
            report["latency_ms"][key].as_f64().unwrap() >= report["send_latency_ms"][key].as_f64().unwrap()
        );
    }
    assert!(report["lag_ms"]["p99"].is_number() && report["failed"] == 0 && report["shed"] == 0);
}

#[tokio::test]
async fn a_service_that_stalls_shows_the_stall_in_every_request_that_waited() {
    // One answer at a time, and the tenth takes a second: a closed loop would see one slow answer.
    let turn = Arc::new(tokio::sync::Mutex::new(()));
    let served = Arc::new(AtomicU64::new(0));
    let answer = post(move || async move {
        let _turn = turn.lock().await;
        if served.fetch_add(1, Ordering::Relaxed) == 10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        "{}"
    });
    let service = Running::router(router().route("/predict", answer)).await;
    let ran = load(&service.url, "40\n40\n", &["--slo-p99", "500ms"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let latency = &ran.report["latency_ms"];
    assert!(latency["p50"].as_f64().unwrap() > 200.0, "{latency}");
    assert!(latency["p99"].as_f64().unwrap() > 900.0, "{latency}");
    assert_eq!(ran.report["ok"], 40);
}

#[tokio::test]
async fn refusals_and_errors_are_told_apart_and_break_the_promise() {
    let served = Arc::new(AtomicU64::new(0));
    let answer = post(move || async move {
        match served.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => StatusCode::SERVICE_UNAVAILABLE,
            1 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        }
    });
    let service = Running::router(router().route("/predict", answer)).await;
    let ran = load(&service.url, "40\n", &["--slo-p99", "1m"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report = ran.report;
    assert_eq!((&report["ok"], &report["shed"], &report["failed"]), (&10.into(), &5.into(), &5.into()));
    assert_eq!(report["failures"]["http_500"], 5);
}

#[tokio::test]
async fn what_cannot_be_run_is_explained() {
    for (rates, flags, says) in [
        ("1\nmany\n", &[][..], "line 2"),
        ("", &[], "no line has a rate"),
        ("1\n", &["--photos", "/nonexistent"], "--photos DIR"),
        ("1\n", &["--wait", "300ms"], "elastic up"),
    ] {
        let ran = load("http://127.0.0.1:1", rates, flags).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains(says), "{} does not say {says}", ran.stderr);
    }
    let ran = load("http://127.0.0.1:1", "4\n", &["--wait", "0s"]).await;
    assert_eq!((ran.code, &ran.report["failures"]["connect"]), (1, &2.into()), "{}", ran.stderr);
}
