//! What the live page draws from, as the page gets it.
use super::{monitor, post, read, report, with_autoscaler};
use crate::monitor::{Config, Update, router};
use crate::net::shutdown::Shutdown;
use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::time::Duration;

const DECISIONS: &str = r#"{"policy":"step","decisions":[
    {"at_unix_s":1000.5,"age_s":61.0,"replicas_before":1,"replicas":2,"reason":"p99 over the target","applied":true,"inputs":{}},
    {"at_unix_s":1010.5,"age_s":51.0,"replicas_before":2,"replicas":2,"reason":"within it","applied":true,"inputs":{}},
    {"strange":true}]}"#;

async fn follow(router: &Router, path: &str, last_id: Option<&str>) -> Response<Body> {
    let request = Request::builder().uri(path);
    let request = last_id.into_iter().fold(request, |request, id| request.header("last-event-id", id));
    TowerToHyperService::new(router.clone()).call(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// The next event: its id and its data.
async fn next_event(stream: &mut Response<Body>) -> Option<(String, Update)> {
    let bytes = stream.body_mut().frame().await?.unwrap().into_data().unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert_eq!(field("event: "), "update");
    Some((field("id: "), serde_json::from_str(&field("data: ")).unwrap()))
}

fn seconds(update: &Update) -> Vec<u64> {
    update.points.iter().map(|point| point.t_s).collect()
}

#[tokio::test(start_paused = true)]
async fn each_second_brings_an_event_with_what_is_new() {
    let monitor = monitor();
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_millis(2200)).await;
    let mut stream = follow(&monitor, "/events", None).await;
    assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
    let (id, first) = next_event(&mut stream).await.unwrap();
    assert_eq!((id.as_str(), first.anew, seconds(&first)), (first.cursor.as_str(), true, vec![0, 1]));
    assert_eq!((first.stats.samples, first.target_ms, first.promise_ms), (4, 330.0, 500.0));
    post(&monitor, &report("dispatch-1", 2)).await;
    let (_, second) = next_event(&mut stream).await.unwrap();
    assert_eq!((second.anew, seconds(&second), second.stats.samples), (false, vec![2], 8));
    // Idle seconds are told too.
    let (_, third) = next_event(&mut stream).await.unwrap();
    assert_eq!((seconds(&third), third.stats.now_s), (vec![3], 4.2));

    // A reader that comes back goes on where it stopped, whatever it asked for at first.
    let mut again = follow(&monitor, "/events?after=1_2_3", Some(&id)).await;
    let (_, caught_up) = next_event(&mut again).await.unwrap();
    assert_eq!((caught_up.anew, seconds(&caught_up)), (false, vec![2, 3]));
    // A cursor of another life is of no use.
    let mut other = follow(&monitor, "/events?after=1_2_3", None).await;
    let (_, all) = next_event(&mut other).await.unwrap();
    assert_eq!((all.anew, seconds(&all)), (true, vec![0, 1, 2, 3]));
    assert_eq!(follow(&monitor, "/events?after=x", None).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_all_it_missed_in_one_event() {
    let monitor = monitor();
    let mut stream = follow(&monitor, "/events", None).await;
    next_event(&mut stream).await.unwrap();
    tokio::time::advance(Duration::from_millis(7300)).await;
    let (_, update) = next_event(&mut stream).await.unwrap();
    assert_eq!(seconds(&update), [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn streams_are_bounded_and_end_with_the_monitor() {
    let shutdown = Shutdown::new();
    let config = Config { subscribers_max: 1, ..Config::default() };
    let monitor = router(config, shutdown.clone()).unwrap();
    let mut stream = follow(&monitor, "/events", None).await;
    next_event(&mut stream).await.unwrap();
    let refused = read(&monitor, "/events").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.error().contains("--subscribers-max"), "{}", refused.error());
    assert!(read(&monitor, "/metrics").await.text.contains("\nelastic_subscribers 1\n"));
    // One that takes nothing makes room, and learns of it when it takes up again.
    tokio::time::advance(Duration::from_secs(31)).await;
    let mut newer = follow(&monitor, "/events", None).await;
    assert!(next_event(&mut newer).await.is_some());
    assert!(next_event(&mut stream).await.is_none());
    shutdown.drain();
    assert!(next_event(&mut newer).await.is_none());
    assert!(next_event(&mut follow(&monitor, "/events", None).await).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_poll_gets_the_same_as_an_event() {
    let monitor = monitor();
    post(&monitor, &report("dispatch-1", 1)).await;
    tokio::time::advance(Duration::from_millis(1200)).await;
    let first = read(&monitor, "/update").await.json();
    assert_eq!((&first["anew"], first["points"].as_array().unwrap().len()), (&json!(true), 1));
    let path = format!("/update?after={}", first["cursor"].as_str().unwrap());
    let second = read(&monitor, &path).await.json();
    assert_eq!((&second["anew"], &second["points"]), (&json!(false), &json!([])));
    assert_eq!(read(&monitor, "/update?since=3").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn decisions_are_told_once_by_the_time_of_the_monitor() {
    with_autoscaler(DECISIONS, 4096, async |monitor| {
        let update: Update = serde_json::from_str(&read(&monitor, "/update").await.text).unwrap();
        let told: Vec<(u32, f64)> =
            update.decisions.iter().map(|decided| (decided.replicas, decided.t_s.round())).collect();
        assert_eq!(told, [(2, -61.0), (2, -51.0)]);
        assert_eq!(update.decisions_error, None);
        let raw = read(&monitor, "/update").await.json();
        assert_eq!(raw["decisions"][0]["age_s"], Value::Null, "an age is old a moment later");
        let next = read(&monitor, &format!("/update?after={}", update.cursor)).await.json();
        assert_eq!(next["decisions"], json!([]));
    })
    .await;
    with_autoscaler("{}", 4096, async |monitor| {
        let update = read(&monitor, "/update").await.json();
        assert!(update["decisions_error"].as_str().unwrap().contains("no list of decisions"), "{update}");
    })
    .await;
}
