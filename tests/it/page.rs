//! The live page in a browser, drawn from ten made-up minutes that a real monitor tells.
//!
//! `ELASTIC_TEST_SHOTS=FOLDER` keeps pictures of it to look at.
#![allow(clippy::disallowed_methods)] // the environment says where pictures go
use crate::browser::{Browser, Screen};
use crate::support::{Running, client, program};
use axum::body::Body;
use axum::routing::get;
use axum::{Json, Router};
use elastic::monitor::{self, Config};
use elastic::net::serve::Limits;
use elastic::net::shutdown::Shutdown;
use elastic::net::wire::{Ended, Outcome, ReplicaState, ReplicaStatus, Report, TimingMs};
use http::Request;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const SECONDS: u64 = 620;
/// When a burst comes that three replicas are too few for.
const BURST: std::ops::Range<u64> = 300..330;

/// Replicas of a second: their number, and which state the last is in.
fn fleet(second: u64) -> (usize, ReplicaState) {
    match second {
        0..10 => (1, ReplicaState::Starting),
        10..120 => (1, ReplicaState::Ready),
        120..126 => (2, ReplicaState::Starting),
        312..318 => (3, ReplicaState::Starting),
        318..520 => (3, ReplicaState::Ready),
        520..530 => (3, ReplicaState::Draining),
        _ => (2, ReplicaState::Ready),
    }
}

fn replicas(second: u64) -> Vec<ReplicaStatus> {
    let (count, last) = fleet(second);
    let status = |number: usize| {
        let state = if number + 1 == count { last } else { ReplicaState::Ready };
        let ready = state == ReplicaState::Ready;
        let slow = 1.0 + number as f64 * 0.4;
        ReplicaStatus {
            url: format!("http://10.0.0.{}:8081", number + 11),
            state,
            slots: 2,
            in_flight: if ready { (second as u32 + number as u32) % 3 } else { 0 },
            answered: if ready { second * 11 } else { 0 },
            stages_ms: ready.then_some(TimingMs { queue: 3.0 * slow, decode: 6.5, infer: 48.0 * slow }),
        }
    };
    (0..count).map(status).collect()
}

fn report(second: u64) -> Report {
    let burst = BURST.contains(&second);
    let arrivals = if burst { 60 } else { 22 + (second / 40) % 7 + second % 5 };
    // Nobody comes for a while.
    let arrivals = if (420..440).contains(&second) { 0 } else { arrivals };
    let ended = (0..arrivals).map(|number| {
        let spread = ((number * 37 + second * 11) % 50) as f64;
        let waited_ms = if burst { 180.0 + 4.0 * spread } else { spread / 4.0 };
        let outcome = match number {
            0..6 if burst => Outcome::Shed,
            6 if burst => Outcome::Timeout,
            _ => Outcome::Ok,
        };
        let service_ms = 55.0 + spread;
        let held = outcome == Outcome::Ok;
        Ended {
            outcome,
            latency_ms: if held { waited_ms + service_ms } else { 0.4 },
            waited_ms: held.then_some(waited_ms),
            service_ms: held.then_some(service_ms),
        }
    });
    let replicas = replicas(second);
    Report {
        source: "dispatch-1".to_owned(),
        sequence: second + 1,
        arrivals,
        ended: ended.collect(),
        lost: 0,
        in_flight: replicas.iter().map(|replica| replica.in_flight).sum(),
        queue_depth: if burst { 14 } else { 0 },
        slots: 2 * replicas.iter().filter(|replica| replica.state == ReplicaState::Ready).count() as u32,
        replicas,
    }
}

/// An autoscaler that has decided a few times.
async fn autoscaler() -> Running {
    let decision = |second: u64, before: u32, after: u32, applied: bool, reason: &str| {
        json!({
            "at_unix_s": 1000 + second, "age_s": SECONDS - second, "replicas_before": before, "replicas": after,
            "reason": reason, "applied": applied, "inputs": {},
        })
    };
    let decisions = json!({ "policy": "step", "decisions": [
        decision(118, 1, 2, true, "p99 402 ms is over the target of 330 ms: ×1.2, rounded up"),
        decision(290, 2, 2, true, "p99 148 ms is within the target, and one replica fewer would leave 86 % of the slots busy"),
        decision(306, 2, 3, false, "p99 610 ms is over the target of 330 ms: ×1.2, rounded up"),
        decision(311, 2, 3, true, "p99 655 ms is over the target of 330 ms: ×1.2, rounded up"),
        decision(518, 3, 2, true, "p99 121 ms is within the target, and one replica fewer would leave 61 % of the slots busy"),
        decision(600, 2, 2, true, "p99 118 ms is within the target, and there is no room for one replica fewer"),
    ] });
    Running::router(Router::new().route("/decisions", get(|| async move { Json(decisions) }))).await
}

/// A monitor that has seen ten minutes, which pass in a moment.
async fn monitor(decisions: &str, subscribers_max: usize) -> Running {
    let decisions = Some(decisions.parse().unwrap());
    let config = Config { decisions, subscribers_max, ..Config::default() };
    tokio::time::pause();
    let shutdown = Shutdown::new();
    let router = monitor::router(config, shutdown.clone()).unwrap();
    for second in 0..SECONDS {
        post(&router, &report(second)).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    // From here on time passes as it does, and traffic goes on.
    Running::start(|listener, stopping| async move {
        let traffic = async {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            for second in SECONDS.. {
                seconds.tick().await;
                post(&router, &report(second)).await;
            }
        };
        let serving =
            elastic::net::serve::serve(listener, router.clone(), Limits::default(), stopping.clone());
        let stopped = async {
            stopping.drained().await;
            shutdown.drain();
        };
        tokio::select! { () = async { tokio::join!(serving, stopped); } => {}, () = traffic => {} }
    })
    .await
}

async fn post(router: &Router, report: &Report) {
    let body = serde_json::to_vec(report).unwrap();
    let request = Request::post("/report").body(Body::from(body)).unwrap();
    let answer = TowerToHyperService::new(router.clone()).call(request).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
}

/// The page as it is once an update has been drawn.
async fn opened(url: &str, screen: Screen) -> Option<Browser> {
    let mut browser = Browser::start(&program("chromium")?).await;
    browser.open(url, screen).await;
    browser.until("document.getElementById('k-p99')?.textContent").await;
    Some(browser)
}

/// Keeps a picture where the environment asks for it.
async fn keep(browser: &mut Browser, name: &str) {
    if let Some(folder) = std::env::var_os("ELASTIC_TEST_SHOTS") {
        browser.shoot(&Path::new(&folder).join(format!("{name}.png"))).await;
    }
}

const DESKTOP: Screen = Screen { width: 1280, height: 1420, phone: false, dark: false };
const PHONE: Screen = Screen { width: 390, height: 2100, phone: true, dark: true };

#[tokio::test]
async fn the_page_shows_what_the_monitor_knows() {
    let scaler = autoscaler().await;
    let monitor = monitor(&scaler.url, 64).await;
    let Some(mut browser) = opened(&monitor.url, DESKTOP).await else { return };
    browser.until("document.getElementById('status').textContent === 'live'").await;
    for (id, expected) in [
        ("p99-note", "✓ within target · 1,000 requests, 95\u{a0}% confidence"),
        ("recent-note", "over the promise"),
        ("ready", "2"),
        ("missed", "210"),
        ("missed-note", "180 shed, 30 failed"),
        ("aim", "p99 target 330 ms, promise 500 ms"),
        ("rows", "10.0.0.12:8081"),
        ("rows", " + 6.5 + 67 = "),
        ("decisions", "▼ 3 → 2"),
        ("decisions", "not applied"),
        ("decisions", "no room for one replica fewer"),
    ] {
        let found = browser.text(id).await;
        assert!(found.contains(expected), "{id}: {found:?} does not contain {expected:?}");
    }
    let p99_ms: u32 = browser.text("p99").await.trim_end_matches("ms").parse().unwrap();
    assert!((100..130).contains(&p99_ms), "{p99_ms}");
    let axis = browser.value("document.getElementById('axis').getAttribute('aria-label')").await;
    assert!(axis.as_str().unwrap().starts_with("4 scaling decisions"), "{axis}");
    assert_eq!(browser.complaints, Vec::<String>::new());
    // Something is drawn, in the colour of each line.
    for (canvas, colour) in
        [("latency", "p99"), ("latency", "promise"), ("rate", "arrivals"), ("axis", "arrivals")]
    {
        assert_eq!(
            browser.value(&format!("({DRAWN})('{canvas}', '{colour}')")).await,
            true,
            "{canvas} {colour}"
        );
    }
    // Reading pictures back is something to warn of, and the page does not do it.
    browser.complaints.clear();
    keep(&mut browser, "desktop").await;

    // Pointing at a decision tells it, and the figures of that second.
    let (x, y) = on_axis(&mut browser, 2).await;
    browser.point(x, y).await;
    browser.until("!document.getElementById('tip').hidden").await;
    assert!(browser.text("tip").await.contains("p99 655 ms is over the target"));
    assert_eq!(browser.text("k-shed").await, "6");
    keep(&mut browser, "pointed").await;
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// Where the mark of a decision is in the window.
async fn on_axis(browser: &mut Browser, number: usize) -> (f64, f64) {
    let box_of_axis = "document.getElementById('axis').getBoundingClientRect()";
    let x = format!("{box_of_axis}.left + plot('axis', 1, []).x(marks()[{number}].t_s)");
    let (x, y) = (browser.value(&x).await, browser.value(&format!("{box_of_axis}.top + 11")).await);
    (x.as_f64().unwrap(), y.as_f64().unwrap())
}

/// Whether a canvas has a point in one of the page's colours.
const DRAWN: &str = "(id, name) => {
    const probe = document.createElement('canvas').getContext('2d');
    probe.fillStyle = colour(name); probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = probe.getImageData(0, 0, 1, 1).data, canvas = document.getElementById(id);
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4) if (data[i] === r && data[i + 1] === g && data[i + 2] === b) return true;
    return false;
}";

#[tokio::test]
async fn the_page_fits_a_phone_and_asks_where_events_do_not_come_through() {
    let scaler = autoscaler().await;
    // All the readers of events there may be.
    let monitor = monitor(&scaler.url, 1).await;
    let reader = client().get(format!("{}/events", monitor.url)).send().await.unwrap();
    let Some(mut browser) = opened(&monitor.url, PHONE).await else { return };
    browser.until("document.getElementById('status').title === 'the page asks for news each second'").await;
    let seen = browser.value("points.at(-1).t_s").await;
    browser.until(&format!("points.at(-1).t_s > {seen}")).await;
    assert_eq!(
        browser.value("points.every((p, i) => i === 0 || p.t_s === points[i - 1].t_s + 1)").await,
        true
    );
    assert_eq!(browser.value("document.documentElement.scrollWidth <= window.innerWidth").await, true);
    // A finger that is lifted leaves the words there, and another tap elsewhere takes them away.
    let (x, y) = on_axis(&mut browser, 3).await;
    browser.tap(x, y).await;
    browser.until("!document.getElementById('tip').hidden").await;
    assert!(browser.text("tip").await.contains("61 % of the slots busy"));
    keep(&mut browser, "phone").await;
    browser.tap(5.0, 5.0).await;
    browser.until("document.getElementById('tip').hidden").await;
    drop(reader);
}

#[tokio::test]
async fn the_page_says_so_when_the_monitor_is_gone_and_goes_on_with_the_next() {
    let scaler = autoscaler().await;
    let first = monitor(&scaler.url, 64).await;
    let Some(mut browser) = opened(&first.url, DESKTOP).await else { return };
    let address = first.url.strip_prefix("http://").unwrap().to_owned();
    first.stop().await;
    browser.until("document.getElementById('status').textContent === 'monitor unreachable'").await;
    assert!(browser.text("notice").await.contains("has not answered"));
    // Another life at the same address: what the first knew is gone from the page too.
    let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
    let shutdown = Shutdown::new();
    let serving = elastic::monitor::serve(listener, Config::default(), shutdown.clone());
    let looking = async {
        browser.until("document.getElementById('status').textContent === 'no traffic yet'").await;
        assert_eq!(browser.value("points.filter(p => p.arrivals > 0).length").await, 0);
        shutdown.drain();
    };
    let (served, ()) = tokio::join!(serving, looking);
    served.unwrap();
}
