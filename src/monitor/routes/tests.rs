//! The monitor as its callers see it: requests in, status, headers and JSON out.
use crate::monitor::{Args, Config, router};
use crate::net::serve;
use crate::net::shutdown::Shutdown;
use axum::Router;
use axum::body::Body;
use clap::Parser;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

mod live;

/// What came back.
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// The answer must be an error in the one shape; returns its sentence.
    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

async fn send(router: &Router, method: &str, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    let response = TowerToHyperService::new(router.clone()).call(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, text }
}

async fn read(router: &Router, path: &str) -> Answer {
    send(router, "GET", path, Body::empty()).await
}

async fn post(router: &Router, report: &Value) -> Answer {
    send(router, "POST", "/report", report.to_string()).await
}

/// Stats without what differs between two runs.
fn stable(mut stats: Value) -> Value {
    assert!(stats["started_unix_s"].as_f64().unwrap() > 1.7e9);
    stats["started_unix_s"] = json!("when the monitor started");
    stats
}

fn monitor() -> Router {
    router(Config { report_bytes_max: 4096, sources_max: 2, ..Config::default() }, Shutdown::new()).unwrap()
}

fn report(source: &str, sequence: u64) -> Value {
    json!({
        "source": source, "sequence": sequence, "arrivals": 5, "lost": 1,
        "ended": [
            {"outcome": "ok", "latency_ms": 40.0, "service_ms": 30.0},
            {"outcome": "ok", "latency_ms": 60.0, "service_ms": 50.0},
            {"outcome": "shed", "latency_ms": 0.5},
            {"outcome": "timeout", "latency_ms": 1500.0, "service_ms": 40.0},
        ],
        "in_flight": 1, "queue_depth": 2, "slots": 2,
        "replicas": [
            {"url": "r1:8081", "state": "ready", "slots": 2, "in_flight": 1},
            {"url": "r2:8081", "state": "starting", "slots": 2, "in_flight": 0},
        ],
    })
}

#[tokio::test(start_paused = true)]
async fn stats_are_null_without_traffic() {
    let answer = read(&monitor(), "/stats").await;
    assert_eq!(answer.status, StatusCode::OK);
    insta::assert_json_snapshot!("stats_idle", stable(answer.json()));
}

#[tokio::test(start_paused = true)]
async fn stats_after_one_report() {
    let monitor = monitor();
    let taken = post(&monitor, &report("dispatch-1", 1)).await;
    assert_eq!((taken.status, taken.json()), (StatusCode::OK, json!({"counted": true})));
    let again = post(&monitor, &report("dispatch-1", 1)).await;
    assert_eq!((again.status, again.json()), (StatusCode::OK, json!({"counted": false})));
    tokio::time::advance(Duration::from_millis(2500)).await;
    insta::assert_json_snapshot!("stats_one_report", stable(read(&monitor, "/stats").await.json()));
}

#[tokio::test(start_paused = true)]
async fn seconds_restricts_the_percentiles() {
    let monitor = monitor();
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(read(&monitor, "/stats?seconds=2.5").await.json()["p99_ms"], Value::Null);
    assert_eq!(read(&monitor, "/stats?seconds=10").await.json()["p99_ms"], json!(1500.0));
    assert_eq!(
        read(&monitor, "/stats?seconds=ten").await.error(),
        "the query does not parse (seconds: invalid float literal); write it as ?seconds=10"
    );
    for wrong in
        ["seconds=0", "seconds=-1", "seconds=NaN", "seconds=inf", "seconds=ten", "seconds=", "second=1"]
    {
        let answer = read(&monitor, &format!("/stats?{wrong}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong}");
        assert!(answer.error().contains("second"), "{wrong}: {}", answer.error());
    }
}

#[tokio::test(start_paused = true)]
async fn since_tells_all_that_ended_and_the_worst_second() {
    let monitor = monitor();
    let before = read(&monitor, "/stats").await.json();
    assert!(before.get("since").is_none());
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_secs(40)).await;
    let asked = format!("/stats?since={}&started_unix_s={}", before["now_s"], before["started_unix_s"]);
    insta::assert_json_snapshot!("stats_since", read(&monitor, &asked).await.json()["since"]);
    let other = read(&monitor, "/stats?since=3.5&started_unix_s=1700000000.5").await.json();
    assert_eq!((&other["since"]["complete"], &other["since"]["missing"]), (&json!(false), &json!("restart")));
    tokio::time::advance(Duration::from_secs(600)).await;
    let late = read(&monitor, &asked).await.json();
    assert_eq!((&late["since"]["missing"], &late["since"]["worst"]), (&json!("horizon"), &Value::Null));
    for wrong in ["since=-1", "since=NaN", "since=now", "since=1e99"] {
        let answer = read(&monitor, &format!("/stats?{wrong}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong}");
        assert!(answer.error().contains("since"), "{wrong}: {}", answer.error());
    }
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_was_started_again_takes_the_reports_that_come() {
    let before = monitor();
    post(&before, &report("dispatch-1", 56)).await;
    // The dispatcher lives on, with its name and its count; what failed meanwhile it sends again.
    let after = monitor();
    assert_eq!(post(&after, &report("dispatch-1", 57)).await.json(), json!({"counted": true}));
    assert_eq!(post(&after, &report("dispatch-1", 57)).await.json(), json!({"counted": false}));
    assert_eq!(post(&after, &report("dispatch-1", 58)).await.json(), json!({"counted": true}));
    let stats = read(&after, "/stats").await.json();
    assert_eq!((&stats["samples"], &stats["slots"], &stats["epoch"]), (&json!(8), &json!(2), &json!(1)));
}

#[tokio::test(start_paused = true)]
async fn history_has_a_point_for_each_second_that_is_over() {
    let monitor = monitor();
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_millis(2200)).await;
    let history = read(&monitor, "/history").await.json();
    assert_eq!((&history["now_s"], &history["promise_ms"]), (&json!(2.2), &json!(500.0)));
    insta::assert_json_snapshot!("history_points", history["points"]);
    assert_eq!(read(&monitor, "/history?since=0").await.json()["points"].as_array().unwrap().len(), 1);
    assert_eq!(read(&monitor, "/history?since=1").await.json()["points"], json!([]));
    assert_eq!(read(&monitor, "/history?since=-1").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn reports_that_cannot_be_taken_are_told_why() {
    let monitor = monitor();
    let broken = send(&monitor, "POST", "/report", "{\"source\":").await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST);
    assert!(broken.error().starts_with("the body is no report: EOF"), "{}", broken.error());

    let incomplete = post(&monitor, &json!({"source": "d"})).await;
    assert_eq!(incomplete.status, StatusCode::BAD_REQUEST);
    assert!(incomplete.error().contains("missing field `sequence`"), "{}", incomplete.error());

    let mut negative = report("d", 1);
    negative["ended"][1]["latency_ms"] = json!(-4.0);
    let negative = post(&monitor, &negative).await;
    assert_eq!(negative.status, StatusCode::BAD_REQUEST);
    assert!(negative.error().contains("ended[1]"), "{}", negative.error());

    let large = send(&monitor, "POST", "/report", "x".repeat(4097)).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);

    post(&monitor, &report("a", 1)).await;
    post(&monitor, &report("b", 1)).await;
    let crowded = post(&monitor, &report("c", 1)).await;
    assert_eq!(crowded.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(crowded.error().contains("--sources-max"), "{}", crowded.error());
    assert!(crowded.headers.contains_key(header::RETRY_AFTER));
    // Nothing of a refused report was counted.
    assert_eq!(read(&monitor, "/stats").await.json()["samples"], 8);
}

#[tokio::test(start_paused = true)]
async fn a_silent_dispatcher_no_longer_counts() {
    let monitor = monitor();
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_secs(11)).await;
    let stats = read(&monitor, "/stats").await.json();
    assert_eq!(
        (&stats["slots"], &stats["in_flight"], &stats["replicas"]),
        (&json!(0), &json!(0), &json!([]))
    );
    assert_eq!((&stats["age_s"], &stats["epoch"], &stats["samples"]), (&json!(11.0), &json!(2), &json!(4)));
}

#[tokio::test(start_paused = true)]
async fn unknown_paths_and_wrong_methods_are_json_errors() {
    let monitor = monitor();
    let unknown = read(&monitor, "/nothing").await;
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (StatusCode::NOT_FOUND, "there is nothing at /nothing")
    );
    for (method, path) in [("GET", "/report"), ("POST", "/stats"), ("DELETE", "/"), ("PUT", "/metrics")] {
        let answer = send(&monitor, method, path, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(answer.headers.contains_key(header::ALLOW), "{method} {path}");
        assert_eq!(answer.error(), format!("{path} does not take {method}"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_page_comes_with_a_strict_policy() {
    let page = read(&monitor(), "/").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe-inline"), "{policy}");
}

#[tokio::test(start_paused = true)]
async fn metrics_count_by_outcome_and_leave_out_what_is_unknown() {
    let monitor = monitor();
    let idle = read(&monitor, "/metrics").await.text;
    assert!(!idle.contains("NaN") && !idle.contains("\nelastic_request_p99_seconds{"), "{idle}");
    post(&monitor, &report("dispatch-1", 1)).await;
    post(&monitor, &report("dispatch-1", 1)).await;
    let text = read(&monitor, "/metrics").await.text;
    for line in [
        "elastic_requests_total{outcome=\"ok\"} 2",
        "elastic_requests_total{outcome=\"shed\"} 1",
        "elastic_requests_total{outcome=\"aborted\"} 0",
        "elastic_request_duration_seconds_bucket{le=\"0.05\",outcome=\"ok\"} 1",
        "elastic_request_duration_seconds_bucket{le=\"0.33\",outcome=\"ok\"} 2",
        "elastic_request_duration_seconds_count{outcome=\"timeout\"} 1",
        "elastic_arrivals_total 5",
        "elastic_requests_over_promise_total 2",
        "elastic_request_service_seconds_count 3",
        "elastic_promise_seconds 0.5",
        "elastic_lost_total 1",
        "elastic_in_flight 1",
        "elastic_queue_depth 2",
        "elastic_slots 2",
        "elastic_replicas{state=\"ready\"} 1",
        "elastic_replicas{state=\"down\"} 0",
        "elastic_request_p99_seconds{} 1.5",
        "# TYPE elastic_requests_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_draining_monitor_is_alive_but_not_ready() {
    let shutdown = Shutdown::new();
    let monitor = router(Config::default(), shutdown.clone()).unwrap();
    assert_eq!(read(&monitor, "/readyz").await.status, StatusCode::OK);
    shutdown.drain();
    assert_eq!(read(&monitor, "/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(read(&monitor, "/healthz").await.status, StatusCode::OK);
}

/// A monitor that shows the decisions of an autoscaler that answers `body`.
async fn with_autoscaler(body: &'static str, bytes_max: usize, test: impl AsyncFnOnce(Router)) {
    let listener = serve::bind("127.0.0.1", 0).await.unwrap();
    let url = format!("{}/scaler/", serve::local_url(&listener).unwrap());
    let autoscaler =
        Router::new().route("/scaler/decisions", axum::routing::get(move || async move { body }));
    let shutdown = Shutdown::new();
    let serving = serve::serve(listener, autoscaler, serve::Limits::default(), shutdown.clone());
    let config =
        Config { decisions: Some(url.parse().unwrap()), decisions_bytes_max: bytes_max, ..Config::default() };
    let testing = async {
        test(router(config, Shutdown::new()).unwrap()).await;
        shutdown.drain();
    };
    tokio::join!(serving, testing);
}

#[tokio::test]
async fn decisions_are_handed_on_and_bounded() {
    assert_eq!(read(&monitor(), "/decisions").await.json(), json!({"decisions": []}));
    let body = r#"{"policy":"step","decisions":[{"replicas":2}]}"#;
    with_autoscaler(body, 64, async |monitor| {
        assert_eq!(
            read(&monitor, "/decisions").await.text,
            r#"{"decisions":[{"replicas":2}],"policy":"step"}"#
        );
    })
    .await;
    let long = r#"{"decisions":["0123456789012345678901234567890123456789012345678901234567890123456789"]}"#;
    for (body, expected) in
        [("<html>", "it is no JSON"), ("{}", "it has no list of decisions"), (long, "larger than 64 bytes")]
    {
        with_autoscaler(body, 64, async |monitor| {
            let answer = read(&monitor, "/decisions").await;
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
            assert!(answer.error().contains(expected), "{}", answer.error());
        })
        .await;
    }
}

#[tokio::test]
async fn the_autoscaler_is_asked_once_for_all_pages() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let decisions = move || async move {
        counting.fetch_add(1, Ordering::Relaxed);
        r#"{"decisions":[]}"#
    };
    let autoscaler = Router::new().route("/decisions", axum::routing::get(decisions));
    let listener = serve::bind("127.0.0.1", 0).await.unwrap();
    let url = serve::local_url(&listener).unwrap();
    let shutdown = Shutdown::new();
    let serving = serve::serve(listener, autoscaler, serve::Limits::default(), shutdown.clone());
    let config = Config {
        decisions: Some(url.parse().unwrap()),
        decisions_interval: Duration::from_secs(60),
        ..Config::default()
    };
    let testing = async {
        let monitor = router(config, Shutdown::new()).unwrap();
        tokio::join!(read(&monitor, "/update"), read(&monitor, "/decisions"), read(&monitor, "/decisions"));
        shutdown.drain();
    };
    tokio::join!(serving, testing);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    args: Args,
}

fn parsed(arguments: &[&str]) -> anyhow::Result<Config> {
    let line = CommandLine::try_parse_from(["monitor"].iter().chain(arguments.iter()))?;
    line.args.config.check()
}

#[test]
fn flags_default_to_the_default_config() {
    let (flags, default) = (parsed(&[]).unwrap(), Config::default());
    assert_eq!(format!("{flags:?}"), format!("{default:?}"));
}

#[test]
fn flags_that_cannot_work_are_refused_by_name() {
    for (arguments, expected) in [
        (["--window", "0"], "--window must be at least 1"),
        (["--window", "2000000"], "--window must be at most 1000000, not 2000000"),
        (["--promise", "0s"], "--promise must be longer than nothing"),
        (["--history-age", "2h"], "--history-age must be between 1s and 1h"),
        (["--decisions", "ftp://x"], "--decisions ftp://x/ must be an http or https address"),
    ] {
        assert_eq!(parsed(&arguments).unwrap_err().to_string(), expected);
    }
}
