//! The dispatcher against replicas that behave, break off, are busy or never answer.
use crate::support::{Running, client, flags};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use elastic::dispatch::{self, Config, Peers, Policy, Settings};
use elastic::net::serve::Limits;
use elastic::net::wire::{DEADLINE_HEADER, Outcome, Readiness, Registration, ReplicaState, Report};
use http::StatusCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

/// A replica whose answers the test lets go one by one.
#[derive(Clone)]
pub(crate) struct Replica {
    name: &'static str,
    slots: u32,
    /// Says when a request has arrived.
    arrived: mpsc::UnboundedSender<&'static str>,
    /// A permit lets one request be answered.
    let_go: Arc<Semaphore>,
}

impl Replica {
    pub(crate) async fn start(self) -> Running {
        Running::router(
            Router::new()
                .route("/readyz", get(|State(replica): State<Self>| async move { Json(replica.readiness()) }))
                .route("/predict", post(Self::predict))
                .with_state(self),
        )
        .await
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: true, model: "test".into(), slots: self.slots }
    }

    async fn predict(State(replica): State<Self>, body: bytes::Bytes) -> (StatusCode, String) {
        let _ = replica.arrived.send(replica.name);
        replica.let_go.acquire().await.unwrap().forget();
        (StatusCode::OK, format!("{} {}", replica.name, body.len()))
    }
}

pub(crate) fn replica(
    name: &'static str,
    permits: usize,
) -> (Replica, mpsc::UnboundedReceiver<&'static str>) {
    let (arrived, arrivals) = mpsc::unbounded_channel();
    (Replica { name, slots: 1, arrived, let_go: Arc::new(Semaphore::new(permits)) }, arrivals)
}

pub(crate) async fn dispatcher(settings: &[&str], replicas: &[&str], monitor: Option<&str>) -> Running {
    dispatcher_with(Policy::Central, settings, replicas, monitor).await
}

async fn dispatcher_with(
    policy: Policy,
    settings: &[&str],
    replicas: &[&str],
    monitor: Option<&str>,
) -> Running {
    let replicas = replicas.iter().map(ToString::to_string).collect();
    let peers = Peers { monitor: monitor.map(ToOwned::to_owned), replicas, ..Peers::default() };
    let settings: Settings = flags(settings);
    let config = Config::new(policy, settings, peers, Limits::default()).unwrap();
    Running::start(|listener, shutdown| async move {
        dispatch::serve(listener, None, config, shutdown).await.unwrap();
    })
    .await
}

/// A replica that takes connections, reads a little and breaks off, except that it looks ready.
async fn breaking() -> (String, tokio::task::JoinSet<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap_or(0);
            if head[..read].starts_with(b"GET /readyz") {
                let body = r#"{"ready":true,"model":"test","slots":4}"#;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    });
    (url, tasks)
}

pub(crate) async fn predict(url: &str, body: &'static str) -> reqwest::Response {
    client().post(format!("{url}/predict")).body(body).send().await.unwrap()
}

#[tokio::test]
async fn a_request_waits_for_the_replica_that_is_free_first() {
    let (a, mut at_a) = replica("a", 0);
    let (b, mut at_b) = replica("b", 100);
    let a_let_go = Arc::clone(&a.let_go);
    let (a, b) = (a.start().await, b.start().await);
    let door = dispatcher(&[], &[&a.url], None).await;
    let (url, door_of_both) = (door.url.clone(), dispatcher(&[], &[&a.url, &b.url], None).await);
    // One dispatcher: `a` is held by the first request, the second waits behind it.
    let mut asked = tokio::task::JoinSet::new();
    asked.spawn(async move { predict(&url, "x").await.text().await.unwrap() });
    assert_eq!(at_a.recv().await, Some("a"));
    // The other dispatcher: whatever it sends to `a` stays there, all else goes through `b`.
    let url = door_of_both.url.clone();
    for _ in 0..3 {
        let url = url.clone();
        asked.spawn(async move { predict(&url, "xyz").await.text().await.unwrap() });
    }
    assert_eq!(at_b.recv().await, Some("b"));
    a_let_go.add_permits(100);
    let answers = asked.join_all().await;
    assert_eq!(answers.len(), 4);
    assert!(answers.contains(&"b 3".to_owned()), "{answers:?}");
}

#[tokio::test]
async fn no_request_is_lost_when_a_replica_breaks_off() {
    let (good, _arrivals) = replica("good", 1000);
    let good = good.start().await;
    let (bad, _tasks) = breaking().await;
    for policy in [Policy::Central, Policy::Random, Policy::RoundRobin, Policy::LeastOutstanding] {
        let flags = ["--probe-interval", "20ms", "--retries-max", "50"];
        let door = dispatcher_with(policy, &flags, &[&bad, &good.url], None).await;
        for _ in 0..20 {
            let answer = predict(&door.url, "x").await;
            assert_eq!(answer.status(), StatusCode::OK, "{policy:?}");
            assert_eq!(answer.text().await.unwrap(), "good 1");
        }
    }
}

#[tokio::test]
async fn a_replica_that_always_breaks_off_is_a_502_and_not_an_endless_retry() {
    let (bad, _tasks) = breaking().await;
    let door = dispatcher(&["--probe-interval", "10ms", "--retries-max", "2"], &[&bad], None).await;
    let answer = predict(&door.url, "x").await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let text = answer.text().await.unwrap();
    assert!(text.starts_with(r#"{"error":"no replica could answer"#), "{text}");
    assert!(!text.contains("127.0.0.1"), "it names a replica's address: {text}");
}

/// A dispatcher that has no replicas but those that register at the URL returned with it.
pub(crate) async fn registry(settings: &[&str]) -> (Running, String) {
    let config = Config::new(Policy::Central, flags(settings), Peers::default(), Limits::default()).unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_url = format!("http://{}/replicas", admin.local_addr().unwrap());
    let door = Running::start(|listener, shutdown| async move {
        dispatch::serve(listener, Some(admin), config, shutdown).await.unwrap();
    })
    .await;
    (door, admin_url)
}

pub(crate) async fn register(admin_url: &str, replica: &Running) -> Registration {
    let registration = Registration { url: replica.url.clone(), slots: 1 };
    let answer = client().post(admin_url).json(&registration).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    registration
}

#[tokio::test]
async fn a_full_line_is_a_503_at_once_and_a_late_answer_a_504() {
    let (slow, mut arrivals) = replica("slow", 0);
    let slow = slow.start().await;
    let (door, admin_url) = registry(&["--waiting-max", "0"]).await;
    register(&admin_url, &slow).await;
    let url = door.url.clone();
    let mut asked = tokio::task::JoinSet::new();
    asked.spawn(async move {
        let request = client().post(format!("{url}/predict")).header(DEADLINE_HEADER, "500").body("x");
        request.send().await.unwrap().status()
    });
    assert_eq!(arrivals.recv().await, Some("slow"));
    let refused = predict(&door.url, "x").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(asked.join_next().await.unwrap().unwrap(), StatusCode::GATEWAY_TIMEOUT);
}

/// A monitor that refuses the first report and hands on what it takes.
async fn monitor() -> (Running, mpsc::UnboundedReceiver<Report>) {
    let (sender, reports) = mpsc::unbounded_channel();
    let refused = Arc::new(std::sync::Mutex::new(0));
    let router = Router::new().route(
        "/report",
        post(move |Json(report): Json<Report>| async move {
            let mut refused = refused.lock().unwrap();
            if *refused == 0 && !report.ended.is_empty() {
                *refused = report.sequence;
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            if *refused != 0 && !report.ended.is_empty() {
                assert!(report.sequence >= *refused);
            }
            let _ = sender.send(report);
            StatusCode::NO_CONTENT
        }),
    );
    (Running::router(router).await, reports)
}

#[tokio::test]
async fn every_outcome_is_reported_once_even_when_a_report_fails() {
    let (replica, mut arrivals) = replica("r", 3);
    let let_go = Arc::clone(&replica.let_go);
    let replica = replica.start().await;
    let (monitor, mut reports) = monitor().await;
    let flags = ["--report-interval", "20ms", "--probe-interval", "20ms"];
    let door = dispatcher(&flags, &[&replica.url], Some(&monitor.url)).await;
    for _ in 0..3 {
        assert_eq!(predict(&door.url, "x").await.status(), StatusCode::OK);
        arrivals.recv().await;
    }
    // A client that goes away while its request is on the replica.
    let url = format!("{}/predict", door.url);
    let mut given_up = tokio::task::JoinSet::new();
    given_up.spawn(async move { client().post(url).body("x").send().await.map(drop) });
    arrivals.recv().await;
    given_up.shutdown().await;
    let mut outcomes = Vec::new();
    let mut arrived = 0;
    while outcomes.len() < 4 {
        let report = reports.recv().await.unwrap();
        arrived += report.arrivals;
        assert!(report.ended.iter().all(|ended| ended.latency_ms > 0.0));
        outcomes.extend(report.ended.iter().map(|ended| ended.outcome));
    }
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Aborted]);
    assert_eq!(arrived, 4);
    // Its slot is free again.
    let_go.add_permits(10);
    assert_eq!(predict(&door.url, "x").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn replicas_register_and_say_goodbye() {
    let (door, admin_url) = registry(&["--probe-interval", "1ms"]).await;
    let (replica, mut arrivals) = replica("r", 0);
    let let_go = Arc::clone(&replica.let_go);
    let replica = replica.start().await;
    // A request that comes before any replica waits for the first one.
    let url = door.url.clone();
    let mut asked = tokio::task::JoinSet::new();
    asked.spawn(async move { predict(&url, "x").await.status() });
    let registration = register(&admin_url, &replica).await;
    assert_eq!(arrivals.recv().await, Some("r"));
    // It says goodbye while it works: it finishes what it has and is forgotten then.
    client().delete(&admin_url).json(&registration).send().await.unwrap();
    let list = || async {
        let list = client().get(&admin_url).send().await.unwrap();
        list.json::<Vec<elastic::net::wire::ReplicaStatus>>().await.unwrap()
    };
    assert_eq!(list().await[0].state, ReplicaState::Draining);
    let_go.add_permits(1);
    assert_eq!(asked.join_next().await.unwrap().unwrap(), StatusCode::OK);
    assert!(list().await.is_empty());
    for wrong in [r#"{"url":"nonsense","slots":1}"#, r#"{"url":"http://127.0.0.1:1","slots":0}"#] {
        let request = client().post(&admin_url).header("content-type", "application/json").body(wrong);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let (replica, _arrivals) = replica("r", 9);
    let replica = replica.start().await;
    let door = dispatcher(&["--body-bytes-max", "10"], &[&replica.url], None).await;
    let url = |path: &str| format!("{}{path}", door.url);
    let large = client().post(url("/predict")).body("more than ten bytes").send().await.unwrap();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let odd = client().post(url("/predict")).header(DEADLINE_HEADER, "soon").body("x").send().await.unwrap();
    assert_eq!(odd.status(), StatusCode::BAD_REQUEST);
    let unknown = client().get(url("/nothing")).send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(unknown.text().await.unwrap(), r#"{"error":"there is nothing at /nothing"}"#);
    let wrong = client().get(url("/predict")).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(wrong.headers()["allow"], "POST");
}

#[tokio::test]
async fn what_never_arrives_whole_is_no_arrival() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (replica, _arrivals) = replica("r", 9);
    let replica = replica.start().await;
    let (monitor, mut reports) = monitor().await;
    let flags = ["--report-interval", "10ms", "--body-timeout", "50ms"];
    let door = dispatcher(&flags, &[&replica.url], Some(&monitor.url)).await;
    let mut dawdling =
        tokio::net::TcpStream::connect(door.url.strip_prefix("http://").unwrap()).await.unwrap();
    dawdling.write_all(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx").await.unwrap();
    let mut status = [0; 12];
    dawdling.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 408");
    assert_eq!(predict(&door.url, "x").await.status(), StatusCode::OK);
    let (mut arrived, mut ended) = (0, Vec::new());
    while ended.is_empty() {
        let report = reports.recv().await.unwrap();
        arrived += report.arrivals;
        ended.extend(report.ended);
    }
    assert_eq!((arrived, ended.len(), ended[0].outcome), (1, 1, Outcome::Ok));
}
