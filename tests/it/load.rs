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

/// Runs `elastic load` with the flags.
async fn elastic(flags: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_elastic"));
    command.arg("load").args(flags).env("ELASTIC_LOAD_PHOTOS", PHOTOS).output().await.unwrap()
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

/// What wrk2 is known for: what was due during a stall waited for its end, and the report says so.
#[tokio::test]
async fn a_service_that_stalls_shows_the_stall_in_every_request_that_waited() {
    // One answer at a time, and the eleventh takes a second: a closed loop would see one slow answer.
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
    let ran = load(&service.url, "40\n40\n40\n40\n", &["--slo-p99", "500ms"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(ran.report["ok"], 80);
    // Due every 25 ms, those of the stalled second wait for what is left of it, from 1000 ms down to nothing: of
    // all 80 the slowest is the 99th percentile, and the ninth slowest, at 800 ms, the 90th.
    let latency = &ran.report["latency_ms"];
    assert!(latency["p99"].as_f64().unwrap() > 960.0, "{latency}");
    assert!(latency["max"].as_f64().unwrap() > 990.0, "{latency}");
    assert!(latency["p90"].as_f64().unwrap() > 780.0, "{latency}");
    let second = &ran.report["seconds"][0];
    assert!(second["p50_ms"].as_f64().unwrap() > 480.0, "{second}");
    assert!(second["p99_ms"].as_f64().unwrap() > 960.0, "{second}");
    // A closed loop would have sent 10 requests, then none for a second.
    assert_eq!((&second["sent"], &second["planned"]), (&40.into(), &40.0.into()));
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
    let ran = load(&service.url, "40\n", &["--slo-p99", "1m", "--timeout", "1m"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report = ran.report;
    assert_eq!((&report["ok"], &report["shed"], &report["failed"]), (&10.into(), &5.into(), &5.into()));
    assert_eq!(report["failures"]["http_500"], 5);
    assert_eq!(report["seconds"][0]["failures"]["http_500"], 5);
    assert_eq!(report["missed_share"], 0.5);
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

#[tokio::test]
async fn flags_that_contradict_each_other_are_wrong_flags() {
    for (flags, says) in [
        (&["--slo-p99", "6s"][..], "raise --timeout"),
        (&["--schedule", "ramp:1"], "ramp:FROM..TO"),
        (&["--workload", "w.txt", "--schedule", "constant:1"], "cannot be used with"),
        (&["compare", "/nonexistent", "/nonexistent"], "/nonexistent"),
        (&["compare", "/nonexistent"], "Usage"),
    ] {
        let output = elastic(flags).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr} does not say {says}");
    }
}

#[tokio::test]
async fn a_signal_ends_the_run_with_its_report_and_130() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let asking = Arc::clone(&asked);
    let answer = post(move || async move {
        asking.notify_one();
        "{}"
    });
    let service = Running::router(router().route("/predict", answer)).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_elastic"));
    command.args(["load", "--schedule", "constant:40", "--duration", "1h", "--json", "-", "--quiet"]);
    command.args(["--target", &service.url, "--lag-max", "5s"]).env("ELASTIC_LOAD_PHOTOS", PHOTOS);
    let child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    asked.notified().await;
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!(report["ok"].as_u64().unwrap() >= 1, "{report}");
}

#[tokio::test]
async fn a_run_tells_the_fleet_and_two_runs_are_compared() {
    let history = |query: axum::extract::RawQuery| async move {
        let first = query.0.as_deref() == Some(&format!("since={}", u64::MAX));
        // The run starts at 100 s of the monitor's life; two seconds of it are told when it is over.
        let point = |t_s: u64| serde_json::json!({"t_s": t_s, "replicas_ready": t_s - 99, "replicas_starting": 1, "p50": 1});
        let points = if first { vec![] } else { vec![point(100), point(101)] };
        axum::Json(serde_json::json!({"now_s": if first { 100.0 } else { 103.0 }, "points": points}))
    };
    let decisions = || async {
        r#"{"policy":"step","decisions":[{"at_unix_s":5.0,"age_s":1.0,"replicas_before":1,"replicas":2,
            "reason":"p99 <over> the target","applied":true,"inputs":{}}]}"#
    };
    let monitor =
        Running::router(Router::new().route("/history", get(history)).route("/decisions", get(decisions)))
            .await;
    let service = Running::router(router().route("/predict", post(|| async { "{}" }))).await;
    let folder = tempfile::tempdir().unwrap();
    let [html, before, after] = ["r.html", "a.json", "b.json"].map(|name| {
        let path = folder.path().join(name);
        path.to_str().unwrap().to_owned()
    });
    let flags =
        ["--target", &service.url, "--schedule", "ramp:10..30", "--duration", "1500ms", "--lag-max", "5s"];
    let with_fleet = [&flags[..], &["--monitor", &monitor.url, "--html", &html, "--json", &before]].concat();
    let output = elastic(&with_fleet).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&before).unwrap()).unwrap();
    assert_eq!((&report["sent"], &report["plan"]["schedule"]), (&30.into(), &"ramp:10..30".into()));
    let fleet = &report["fleet"];
    assert_eq!(fleet["problems"], serde_json::json!([]), "{fleet}");
    assert_eq!((&fleet["replicas"][1]["ready"], &fleet["decisions"][0]["to"]), (&2.into(), &2.into()));
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("p99 &lt;over&gt; the target") && page.contains("data-chart=\"replicas\""));

    let output = elastic(&[&flags[..], &["--scale", "0.5", "--json", &after]].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let same = elastic(&["compare", &before, &before]).await;
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    let worse = elastic(&["compare", &before, &after, "--tolerance", "20%"]).await;
    let stdout = String::from_utf8(worse.stdout).unwrap();
    assert_eq!(worse.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("warning: not the same scale: 1 and 0.5"), "{stdout}");
    let verdict = stdout.lines().last().unwrap();
    assert!(verdict.starts_with("the second run is worse, by over 20 %: "), "{stdout}");
    assert!(verdict.ends_with("answered a second"), "{stdout}");
}

/// Searches the highest rate at `target` with trials of at least 100 requests: the exit code and what was found.
async fn search(target: &str, flags: &[&str]) -> (Option<i32>, Value) {
    let always = [
        "--find-max",
        "--target",
        target,
        "--lag-max",
        "5s",
        "--find-samples",
        "100",
        "--json",
        "-",
        "--quiet",
    ];
    let output = elastic(&[&always, flags].concat()).await;
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test]
async fn the_highest_rate_is_found_and_confirmed_with_another_seed() {
    // Takes 150 requests in any half second, which is 300 a second, and refuses the rest.
    let taken = Arc::new(std::sync::Mutex::new(std::collections::VecDeque::new()));
    let answer = post(move || async move {
        let (now, mut taken) = (tokio::time::Instant::now(), taken.lock().unwrap());
        while taken.front().is_some_and(|at| *at + Duration::from_millis(500) < now) {
            taken.pop_front();
        }
        if taken.len() >= 150 {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        taken.push_back(now);
        StatusCode::OK
    });
    let service = Running::router(router().route("/predict", answer)).await;
    let (code, found) = search(
        &service.url,
        &[
            "--slo-p99",
            "4s",
            "--seed",
            "3",
            "--find-start",
            "150",
            "--find-trial",
            "1s",
            "--find-warm-up",
            "100ms",
            "--find-resolution",
            "50%",
            "--find-time",
            "2m",
        ],
    )
    .await;
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(found["ending"], "confirmed");
    let rate_rps = found["rate_rps"].as_f64().unwrap();
    assert!((75.0..=300.0).contains(&rate_rps), "{found}");
    let trials = found["trials"].as_array().unwrap();
    let last = trials.last().unwrap();
    assert_eq!(
        (&last["purpose"], &last["seed"], &last["held"]),
        (&"confirm".into(), &4.into(), &true.into())
    );
    assert!(
        trials
            .iter()
            .any(|trial| trial["rate_rps"] == rate_rps && trial["seed"] == 3 && trial["held"] == true)
    );
    assert!(trials.iter().any(|trial| trial["held"] == false), "{found}");
    assert!(trials.iter().all(|trial| trial["held"] == false || trial["sent"].as_u64() >= Some(100)));
}

#[tokio::test]
async fn a_trial_that_is_lost_ends_early_and_a_search_without_time_has_no_answer() {
    let refuse = post(|| async { StatusCode::SERVICE_UNAVAILABLE });
    let service = Running::router(router().route("/predict", refuse)).await;
    // A trial takes a minute, so there is time for one; it is lost once one in a hundred of its 300 missed.
    let (code, found) = search(
        &service.url,
        &[
            "--slo-p99",
            "1s",
            "--find-start",
            "5",
            "--find-trial",
            "1m",
            "--find-warm-up",
            "0s",
            "--find-time",
            "61s",
        ],
    )
    .await;
    assert_eq!(code, Some(1), "{found}");
    assert_eq!((&found["ending"], &found["rate_rps"]), (&"out_of_time".into(), &Value::Null));
    let [trial] = &found["trials"].as_array().unwrap()[..] else { panic!("{found}") };
    assert_eq!((&trial["ended_early"], &trial["held"]), (&true.into(), &false.into()));
    assert!((3..100).contains(&trial["shed"].as_u64().unwrap()), "{found}");
}

#[tokio::test]
async fn a_search_whose_generator_lags_has_no_answer() {
    let service = Running::router(router().route("/predict", post(|| async { "{}" }))).await;
    let output = elastic(&[
        "--find-max",
        "--slo-p99",
        "1s",
        "--target",
        &service.url,
        "--lag-max",
        "0ms",
        "--find-start",
        "200",
        "--find-trial",
        "500ms",
        "--find-samples",
        "100",
        "--find-warm-up",
        "0s",
        "--quiet",
    ])
    .await;
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("not to be trusted") && stdout.contains("--lag-max"), "{stdout}");
}
