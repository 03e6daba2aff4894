//! The dispatcher among replicas that fail, hang, are busy or overloaded: what its clients see of it.
use crate::dispatch::{register, registry};
use crate::support::{Running, client};
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use elastic::net::serve::Limits;
use elastic::net::wire::{DEADLINE_HEADER, ReplicaState, ReplicaStatus};
use http::{HeaderMap, StatusCode};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How a replica behaves at the moment.
#[derive(Default)]
struct Manners {
    fails: AtomicBool,
    hangs: AtomicBool,
    is_busy: AtomicBool,
    asked: AtomicUsize,
}

/// A replica with one slot that answers its name after `service`, unless its manners are bad.
async fn replica(name: &'static str, service: Duration) -> (Running, Arc<Manners>) {
    let manners = Arc::new(Manners::default());
    let router = Router::new()
        .route(
            "/readyz",
            get(|State(manners): State<Arc<Manners>>| async move {
                if manners.hangs.load(Ordering::SeqCst) {
                    pending::<()>().await;
                }
                r#"{"ready":true,"model":"test","slots":1}"#
            }),
        )
        .route(
            "/predict",
            post(move |State(manners): State<Arc<Manners>>, headers: HeaderMap| async move {
                manners.asked.fetch_add(1, Ordering::SeqCst);
                if manners.hangs.load(Ordering::SeqCst) {
                    pending::<()>().await;
                }
                if manners.fails.load(Ordering::SeqCst) {
                    return (StatusCode::INTERNAL_SERVER_ERROR, "broken").into_response();
                }
                if manners.is_busy.swap(false, Ordering::SeqCst) {
                    return (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response();
                }
                tokio::time::sleep(service).await;
                seen(name, &headers)
            }),
        )
        .route("/v2", get(move || async move { name }))
        .with_state(Arc::clone(&manners));
    (Running::router(router).await, manners)
}

/// An answer that tells which headers of interest arrived.
fn seen(name: &'static str, headers: &HeaderMap) -> Response {
    let told = ["traceparent", "inference-header-content-length", "x-own", "te", "connection", "x-hop"];
    let told: Vec<_> = told.into_iter().filter(|name| headers.contains_key(*name)).collect();
    let mut answer = name.into_response();
    answer.headers_mut().insert("x-seen", told.join(" ").parse().unwrap());
    answer.headers_mut().insert("inference-header-content-length", "7".parse().unwrap());
    answer.headers_mut().insert("server-timing", "queue;dur=1, decode;dur=2, infer;dur=3".parse().unwrap());
    answer
}

/// A dispatcher whose replicas register in the order given, and its registration URL.
async fn door(settings: &[&str], replicas: &[&Running]) -> (Running, String) {
    let (door, admin_url) = registry(settings).await;
    for replica in replicas {
        register(&admin_url, replica).await;
    }
    (door, admin_url)
}

async fn states(admin_url: &str) -> Vec<ReplicaState> {
    let list = client().get(admin_url).send().await.unwrap().json::<Vec<ReplicaStatus>>().await.unwrap();
    list.iter().map(|status| status.state).collect()
}

async fn predict(url: &str) -> reqwest::Response {
    client().post(format!("{url}/predict")).body("x").send().await.unwrap()
}

#[tokio::test]
async fn no_client_sees_the_500_of_a_replica_and_the_replica_is_ejected() {
    let (bad, manners) = replica("bad", Duration::ZERO).await;
    let (good, _) = replica("good", Duration::ZERO).await;
    let (door, admin_url) =
        door(&["--eject-backoff", "10m", "--eject-backoff-max", "10m"], &[&bad, &good]).await;
    manners.fails.store(true, Ordering::SeqCst);
    let mut asked = JoinSet::new();
    for _ in 0..30 {
        let url = door.url.clone();
        asked.spawn(async move { predict(&url).await.text().await.unwrap() });
    }
    for answer in asked.join_all().await {
        assert_eq!(answer, "good");
    }
    // Failing fast must not have attracted the work.
    assert!((1..=3).contains(&manners.asked.load(Ordering::SeqCst)), "{:?}", manners.asked);
    while states(&admin_url).await[0] != ReplicaState::Ejected {
        predict(&door.url).await;
    }
    assert_eq!(manners.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_ejected_replica_comes_back_after_its_time() {
    let (bad, manners) = replica("bad", Duration::ZERO).await;
    let (good, _) = replica("good", Duration::ZERO).await;
    let settings = ["--eject-after", "1", "--eject-backoff", "20ms", "--probe-interval", "5ms"];
    let (door, admin_url) = door(&settings, &[&bad, &good]).await;
    manners.fails.store(true, Ordering::SeqCst);
    assert_eq!(predict(&door.url).await.text().await.unwrap(), "good");
    manners.fails.store(false, Ordering::SeqCst);
    while states(&admin_url).await[0] != ReplicaState::Ready {}
    assert_eq!(predict(&door.url).await.text().await.unwrap(), "bad");
}

#[tokio::test]
async fn when_all_fail_the_answer_of_the_last_is_passed_on() {
    let (bad, manners) = replica("bad", Duration::ZERO).await;
    manners.fails.store(true, Ordering::SeqCst);
    let (door, _) = door(&["--retries-max", "2"], &[&bad]).await;
    let answer = predict(&door.url).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.text().await.unwrap(), "broken");
    assert_eq!(manners.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_retry_budget_is_kept() {
    let (bad, manners) = replica("bad", Duration::ZERO).await;
    manners.fails.store(true, Ordering::SeqCst);
    let (door, _) = door(&["--retry-share", "0.5", "--retry-reserve", "0"], &[&bad]).await;
    for _ in 0..20 {
        predict(&door.url).await;
    }
    // Every second request is sent once more.
    assert_eq!(manners.asked.load(Ordering::SeqCst), 30);
}

#[tokio::test]
async fn requests_on_a_replica_that_hangs_are_answered_in_time_by_another() {
    let (hanging, manners) = replica("hanging", Duration::ZERO).await;
    let (good, _) = replica("good", Duration::ZERO).await;
    let (door, admin_url) =
        door(&["--eject-backoff", "10m", "--eject-backoff-max", "10m"], &[&hanging, &good]).await;
    // It takes some answers to know what is usual.
    for _ in 0..5 {
        assert_eq!(predict(&door.url).await.text().await.unwrap(), "hanging");
    }
    manners.hangs.store(true, Ordering::SeqCst);
    let mut failed = 0;
    // Two looks in vain take it out, or three requests that were saved; each of them at its deadline at the latest.
    while states(&admin_url).await[0] == ReplicaState::Ready {
        let answer = predict(&door.url).await;
        failed += u32::from(answer.status() != StatusCode::OK);
        assert_eq!(answer.text().await.unwrap(), "good");
    }
    assert_eq!(failed, 0);
}

#[tokio::test]
async fn a_busy_replica_costs_a_wait_and_no_error() {
    let (busy, manners) = replica("busy", Duration::ZERO).await;
    let (door, _) = door(&["--retries-max", "0", "--retry-reserve", "0"], &[&busy]).await;
    for _ in 0..5 {
        manners.is_busy.store(true, Ordering::SeqCst);
        let answer = predict(&door.url).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(manners.asked.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn who_cannot_be_served_in_time_is_told_so_at_once() {
    let (slow, _) = replica("slow", Duration::from_millis(100)).await;
    let (door, _) = door(&["--deadline", "350ms"], &[&slow]).await;
    predict(&door.url).await;
    let mut asked = JoinSet::new();
    for _ in 0..20 {
        let url = door.url.clone();
        asked.spawn(async move { predict(&url).await });
    }
    let answers = asked.join_all().await;
    let (served, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status() == StatusCode::OK);
    // Three service times fit into the deadline; a slow machine may manage one less.
    assert!((2..=3).contains(&served.len()), "{} were served", served.len());
    for answer in refused {
        assert_eq!(
            (answer.status(), &answer.headers()["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        assert_eq!(answer.text().await.unwrap(), r#"{"error":"too busy to answer within the deadline"}"#);
    }
    // A client with more time waits its turn.
    let mut asked = JoinSet::new();
    for _ in 0..6 {
        let patient =
            client().post(format!("{}/predict", door.url)).header(DEADLINE_HEADER, "5000").body("x");
        asked.spawn(async move { patient.send().await.unwrap().status() });
    }
    assert_eq!(asked.join_all().await, [StatusCode::OK; 6]);
}

#[tokio::test]
async fn headers_pass_end_to_end_and_no_further() {
    let (replica, _) = replica("r", Duration::ZERO).await;
    let (door, _) = door(&[], &[&replica]).await;
    let answer = client()
        .post(format!("{}/predict", door.url))
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("inference-header-content-length", "1")
        .header("x-own", "1")
        .header("te", "trailers")
        .header("x-hop", "1")
        .header("connection", "x-hop")
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-seen"], "traceparent inference-header-content-length x-own");
    assert_eq!(answer.headers()["inference-header-content-length"], "7");
    let timings: Vec<_> = answer.headers().get_all("server-timing").iter().collect();
    assert_eq!(timings[0], "queue;dur=1, decode;dur=2, infer;dur=3");
    assert!(timings[1].to_str().unwrap().starts_with("dispatch;dur="));
}

#[tokio::test]
async fn questions_about_the_service_need_no_slot() {
    let (replica, manners) = replica("r", Duration::ZERO).await;
    let (door, _) = door(&[], &[]).await;
    let ask = || async { client().get(format!("{}/v2", door.url)).send().await.unwrap() };
    assert_eq!(ask().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(door);
    let (door, _) = self::door(&[], &[&replica]).await;
    manners.hangs.store(true, Ordering::SeqCst);
    let url = door.url.clone();
    let mut held = JoinSet::new();
    held.spawn(async move { predict(&url).await.status() });
    while manners.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let answer = client().get(format!("{}/v2", door.url)).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "r");
}

#[tokio::test]
async fn http_2_without_tls_is_understood() {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (replica, _) = replica("r", Duration::ZERO).await;
    let (door, _) = door(&[], &[&replica]).await;
    let stream = tokio::net::TcpStream::connect(door.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    for _ in 0..3 {
        let request = http::Request::post(format!("{}/predict", door.url));
        let request = request.body(Full::new(bytes::Bytes::from_static(b"x"))).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, http::Version::HTTP_2));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "r");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    use tokio::io::AsyncReadExt as _;
    let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = Running::start(|listener, shutdown| {
        elastic::net::serve::serve(listener, Router::new(), limits, shutdown)
    })
    .await;
    let mut stream =
        tokio::net::TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test]
async fn every_path_of_the_document_is_served() {
    let (door, _) = door(&[], &[]).await;
    let document: serde_json::Value = serde_json::from_str(elastic::net::openapi::DOCUMENT).unwrap();
    let live = client().get(format!("{}/v2/health/live", door.url)).send().await.unwrap();
    assert_eq!(live.text().await.unwrap(), r#"{"live":true}"#);
    let mut paths = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in
            methods.as_object().unwrap().keys().filter(|key| ["get", "post", "put"].contains(&key.as_str()))
        {
            let url = format!("{}{}", door.url, path.replace(['{', '}'], ""));
            let method = method.to_uppercase().parse().unwrap();
            let request = client().request(method, url).header(DEADLINE_HEADER, "1").body("x");
            let status = request.send().await.unwrap().status();
            let known = ![StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status);
            assert!(known, "{path}: {status}");
            paths += 1;
        }
    }
    assert!(paths > 20, "{paths}");
}
