//! The autoscaler of a Deployment while the API server, its rights or other people get in its way.
//!
//! The rule is `step`, every 20 ms, since it wants one more replica with every slow answer and one less without.
use crate::api_server::{ADMIN, ApiServer, DELETION_COST, Fault, NAMESPACE, State};
use crate::autoscale::{Said, decided, monitor, quiet, says, slow};
use crate::support::{Running, client, flags};
use elastic::autoscale::kubernetes::{DeploymentScaler, Leader, Leadership};
use elastic::autoscale::{self, Config, Scaler, Settings};
use elastic::net::kubernetes::Cluster;
use elastic::net::serve::{Limits, local_url};
use elastic::net::wire::{ReplicaState, ReplicaStatus, Stats};
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_millis(200);
const SCALE: &str = "deployments/scale";

/// A cluster with the Deployment `model`, whose pods are ready and stay as they are.
fn cluster(replicas: u32) -> ApiServer {
    let server = ApiServer::start();
    server.apply_manifests();
    server.edit("deployments", "model", |deployment| {
        deployment["spec"]["replicas"] = replicas.into();
        deployment["status"] = json!({"replicas": replicas, "readyReplicas": replicas});
    });
    for number in 1..=replicas {
        server.apply(pod(number));
    }
    server
}

fn pod(number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("model-{number}"), "labels": {"app.kubernetes.io/name": "model",
            "app.kubernetes.io/part-of": "elastic"}},
        "spec": {"containers": [{"name": "model"}]},
        "status": {
            "phase": "Running", "podIP": format!("10.0.0.{number}"), "podIPs": [{"ip": format!("10.0.0.{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// An autoscaler in this process, which asks as `account`.
async fn autoscaler(server: &ApiServer, monitor: &str, account: &str, more: &[&str]) -> Running {
    autoscaler_of(server, monitor, account, None, more).await
}

async fn autoscaler_of(
    server: &ApiServer,
    monitor: &str,
    account: &str,
    leader: Option<Leader>,
    more: &[&str],
) -> Running {
    let mut all = vec!["--policy", "step", "--interval", "20ms"];
    all.extend(more);
    if !more.contains(&"--replicas-max") {
        all.extend(["--replicas-max", "6"]);
    }
    let settings: Settings = flags(&all);
    let config = Config::new(&settings, monitor, false, Limits::default()).unwrap();
    let client = server.client(&server.token(account));
    Running::start(|listener, shutdown| async move {
        let cluster = Arc::new(Cluster::with_client(client, NAMESPACE.to_owned(), TIMEOUT));
        let me = leader.as_ref().map_or("alone", |leader| &leader.identity).to_owned();
        let scaler = Arc::new(DeploymentScaler::new(Arc::clone(&cluster), "model".to_owned(), me));
        let url = Some(local_url(&listener).unwrap());
        let leadership = leader.map(|me| {
            let me = Leader { url, ..me };
            Arc::new(Leadership::new(cluster, "autoscale".to_owned(), Duration::from_secs(3), me))
        });
        let scaler = Scaler::Deployment { scaler, leadership };
        Box::pin(autoscale::serve(listener, config, scaler, shutdown)).await.unwrap();
    })
    .await
}

fn wanted(state: &State) -> u64 {
    state.store.replicas(NAMESPACE, "model").unwrap()
}

async fn until_wanted(server: &ApiServer, replicas: u64) {
    let what = format!("{replicas} replicas are wanted");
    server.until(&what, |state| (wanted(state) == replicas).then_some(())).await;
}

/// Numbers that were asked for in a patch, carried out or not.
fn asked_for(server: &ApiServer) -> Vec<u64> {
    let calls = server.calls().into_iter().filter(|call| call.verb == "patch" && call.resource == SCALE);
    calls.filter_map(|call| call.body["spec"]["replicas"].as_u64()).collect()
}

async fn metrics(running: &Running) -> String {
    client().get(format!("{}/metrics", running.url)).send().await.unwrap().text().await.unwrap()
}

fn set(said: &Said, stats: Stats) {
    said.lock().unwrap().0 = stats;
}

fn events(server: &ApiServer, reason: &str) -> Vec<String> {
    let events = server.list("events").into_iter().filter(|event| event["reason"] == reason);
    events.map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_decision_names_the_version_it_is_based_on_and_leaves_an_event() {
    let server = cluster(2);
    let (monitor, said) = monitor(slow()).await;
    let running = autoscaler(&server, &monitor.url, "autoscale", &["--replicas-max", "3"]).await;
    until_wanted(&server, 3).await;
    let event = server
        .until("there is an Event", |state| {
            state.store.list("events", Some(NAMESPACE)).first().map(|event| (*event).clone())
        })
        .await;
    assert_eq!(event["note"], "replicas 2 -> 3: up: p99 700 ms is not under 330 ms");
    let regarding = &event["regarding"];
    let uid = &server.get("deployments", "model").unwrap()["metadata"]["uid"];
    assert_eq!(
        (&regarding["kind"], &regarding["name"], &regarding["uid"]),
        (&"Deployment".into(), &"model".into(), uid)
    );
    assert_eq!((&event["action"], &event["reportingInstance"]), (&"Scale".into(), &"alone".into()));
    let patch =
        server.calls().into_iter().find(|call| call.verb == "patch" && call.resource == SCALE).unwrap();
    assert!(patch.body["metadata"]["resourceVersion"].is_string(), "{patch:?}");
    assert_eq!(patch.query["fieldManager"], "elastic");
    set(&said, quiet());
    running.stop().await;
}

#[tokio::test]
async fn trouble_at_the_api_server_leaves_the_fleet_as_it_is_until_it_is_over() {
    let troubles = [
        ("500", Fault::answer(500)),
        ("503", Fault::answer(503)),
        ("429", Fault::answer(429)),
        ("410", Fault::answer(410)),
        ("conflicts", Fault::answer(409).verb("patch")),
        ("a proxy's answer", Fault::text(502, "bad gateway")),
        ("another's answer", Fault::text(200, "<html>hello</html>")),
        ("silence", Fault::silence()),
        ("answers that come too late", Fault::slow(TIMEOUT * 2)),
    ];
    for (name, trouble) in troubles {
        let server = cluster(3);
        let (monitor, said) = monitor(quiet()).await;
        server.fault(trouble);
        // It would shrink, were it not for the trouble.
        let running = autoscaler(&server, &monitor.url, "autoscale", &[]).await;
        server.until(name, |state| (state.calls.len() >= 3).then_some(())).await;
        assert_eq!(server.get("deployments", "model").unwrap()["spec"]["replicas"], 3, "{name}");
        // Now it would grow: that is what it does as soon as it can.
        set(&said, slow());
        let before = asked_for(&server).len();
        server.clear_faults();
        server.until(name, |state| (wanted(state) >= 4).then_some(())).await;
        assert!(asked_for(&server)[before..].iter().all(|replicas| *replicas != 1), "{name}");
        running.stop().await;
    }
}

#[tokio::test]
async fn an_api_server_that_dies_and_comes_back_is_asked_ever_more_seldom_meanwhile() {
    let server = cluster(2);
    let (monitor, said) = monitor(Stats { p99_ms: Some(100.0), ..slow() }).await;
    let running = autoscaler(&server, &monitor.url, "autoscale", &["--replicas-min", "2"]).await;
    decided(&running.url, |record| record["replicas"] == 2).await;
    server.kill().await;
    set(&said, slow());
    // What it counts are rounds in vain, of which 20 ms apart there would be dozens in a second.
    let failures = async || {
        let metrics = metrics(&running).await;
        let line =
            metrics.lines().find(|line| line.starts_with("elastic_autoscale_api_errors_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let killed = Instant::now();
    while failures().await < 5 {
        tokio::task::yield_now().await;
    }
    // Five pauses of 20, 40, 80, 160 ms, each cut by at most half.
    assert!(killed.elapsed() >= Duration::from_millis(150), "{:?}", killed.elapsed());
    server.restart().await;
    server.until("it grows", |state| (wanted(state) >= 3).then_some(())).await;
    running.stop().await;
}

#[tokio::test]
async fn a_status_that_moves_on_is_no_obstacle_but_another_number_is() {
    let server = cluster(2);
    let (monitor, said) = monitor(slow()).await;
    // Every try is refused at first, as if pods became ready all the time.
    server.fault(Fault::answer(409).verb("patch").resource(SCALE).times(2));
    let running = autoscaler(&server, &monitor.url, "autoscale", &["--replicas-max", "3"]).await;
    until_wanted(&server, 3).await;
    assert_eq!(asked_for(&server), [3, 3, 3], "tried again within the same round");
    // Somebody else's number is no error: it is taken.
    set(&said, quiet());
    server.edit("deployments", "model", |deployment| deployment["spec"]["replicas"] = 5.into());
    decided(&running.url, |record| says(record, "someone else set 5 replicas")).await;
    running.stop().await;
}

#[tokio::test]
async fn somebody_elses_number_is_kept_for_a_while_and_said() {
    let server = cluster(2);
    let (monitor, said) = monitor(Stats { p99_ms: Some(100.0), ..slow() }).await;
    let running =
        autoscaler(&server, &monitor.url, "autoscale", &["--replicas-min", "2", "--hold", "400ms"]).await;
    decided(&running.url, |record| record["replicas"] == 2).await;
    set(&said, quiet());
    let set_at = Instant::now();
    server.edit("deployments", "model", |deployment| deployment["spec"]["replicas"] = 5.into());
    let kept = decided(&running.url, |record| says(record, "someone else set 5 replicas")).await;
    assert_eq!((&kept["replicas_before"], &kept["replicas"]), (&5.into(), &5.into()), "{kept}");
    until_wanted(&server, 4).await;
    assert!(set_at.elapsed() >= Duration::from_millis(400), "taken back after {:?}", set_at.elapsed());
    assert_eq!(
        events(&server, "Adopted"),
        ["replicas 2 -> 5, set by someone else: kept for 0 s, then decided on again"]
    );
    running.stop().await;
}

#[tokio::test]
async fn those_with_the_least_in_flight_are_marked_before_the_fleet_shrinks() {
    let server = cluster(3);
    let replica = |number, in_flight| ReplicaStatus {
        url: format!("http://10.0.0.{number}:8081"),
        state: ReplicaState::Ready,
        slots: 4,
        in_flight,
        answered: 1,
        stages_ms: None,
    };
    let stats = Stats { replicas: vec![replica(1, 3), replica(2, 0), replica(3, 2)], ..quiet() };
    let (monitor, _said) = monitor(stats).await;
    let running = autoscaler(&server, &monitor.url, "autoscale", &["--replicas-min", "2"]).await;
    until_wanted(&server, 2).await;
    let cost = |name| server.get("pods", name).unwrap()["metadata"]["annotations"][DELETION_COST].clone();
    assert_eq!(
        (cost("model-1"), cost("model-2"), cost("model-3")),
        (Value::Null, "-100".into(), Value::Null)
    );
    let writes: Vec<_> = server.calls().into_iter().filter(|call| call.verb == "patch").collect();
    let resources: Vec<_> = writes.iter().map(|call| call.resource.as_str()).collect();
    assert_eq!(resources, ["pods", SCALE], "first who, then how many; once a decision");
    running.stop().await;
}

#[tokio::test]
async fn with_the_least_rights_it_scales_all_the_same() {
    let server = cluster(2);
    let rule = json!({"apiGroups": ["apps"], "resources": [SCALE], "resourceNames": ["model"], "verbs": ["get", "patch"]});
    server.edit("roles", "autoscale", |role| role["rules"] = json!([rule]));
    let (monitor, said) = monitor(slow()).await;
    let running = autoscaler(&server, &monitor.url, "autoscale", &["--replicas-max", "3"]).await;
    until_wanted(&server, 3).await;
    set(&said, quiet());
    until_wanted(&server, 1).await;
    running.stop().await;
}

fn candidate(name: &str) -> Leader {
    Leader { identity: name.to_owned(), url: None }
}

/// One of several autoscalers.
async fn competing(server: &ApiServer, monitor: &str, name: &str) -> Running {
    autoscaler_of(server, monitor, "autoscale", Some(candidate(name)), &["--replicas-min", "2"]).await
}

/// Whether it says that it is the one who decides.
async fn leads(running: &Running) -> bool {
    let metrics = metrics(running).await;
    metrics.lines().any(|line| line == "elastic_autoscale_leader 1")
}

async fn until_leads(running: &Running) {
    let leading = async {
        while !leads(running).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), leading).await.expect("it never leads");
}

fn holder(server: &ApiServer) -> String {
    let lease = server.get("leases", "autoscale").unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_leads_and_when_it_dies_another_does_before_long() {
    let server = cluster(2);
    let (monitor, said) = monitor(Stats { p99_ms: Some(100.0), ..slow() }).await;
    let one = competing(&server, &monitor.url, "one").await;
    until_leads(&one).await;
    let two = competing(&server, &monitor.url, "two").await;
    let looked = |state: &State| {
        let looks = state.calls.iter().filter(|call| call.verb == "get" && call.resource == "leases");
        (looks.count() >= 4).then_some(())
    };
    server.until("both have looked at the lease", looked).await;
    assert!(!leads(&two).await);
    // Dies without a word: its tasks are dropped. The lease is of 3 s.
    let died = Instant::now();
    drop(one);
    set(&said, slow());
    server.until("the other scales", |state| (wanted(state) >= 3).then_some(())).await;
    assert!(died.elapsed() >= Duration::from_secs(1), "before the lease was over: {:?}", died.elapsed());
    assert_eq!(holder(&server), "two");
    assert_eq!(server.get("leases", "autoscale").unwrap()["spec"]["leaseTransitions"], 1);
    // Ends as it should: the lease is free at once.
    two.stop().await;
    assert_eq!(holder(&server), "");
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let server = cluster(2);
    let (monitor, _said) = monitor(Stats { p99_ms: Some(100.0), ..slow() }).await;
    let one = competing(&server, &monitor.url, "one").await;
    until_leads(&one).await;
    // It sees the Deployment and not the Lease, so that it could go on scaling.
    server.fault(Fault::answer(503).resource("leases"));
    let stopped = async {
        while leads(&one).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), stopped).await.expect("it never stops");
    assert_eq!(holder(&server), "one", "nobody else was there to take it");
    server.clear_faults();
    until_leads(&one).await;
    one.stop().await;
}

#[tokio::test]
async fn one_that_stands_by_tells_what_the_leader_decided() {
    let server = cluster(2);
    let (monitor, _said) = monitor(slow()).await;
    let more = ["--replicas-max", "3"];
    let one = autoscaler_of(&server, &monitor.url, "autoscale", Some(candidate("one")), &more).await;
    until_wanted(&server, 3).await;
    let two = autoscaler_of(&server, &monitor.url, "autoscale", Some(candidate("two")), &more).await;
    let told = async {
        loop {
            let answer: Value =
                client().get(format!("{}/decisions", two.url)).send().await.unwrap().json().await.unwrap();
            if answer["leader"] == "one" && answer["decisions"].as_array().is_some_and(|all| !all.is_empty())
            {
                return answer;
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), told).await.expect("it never tells");
    assert!(says(&told["decisions"][0], "up: p99 700 ms"), "{told}");
    two.stop().await;
    one.stop().await;
}

/// A command of the executable, whose API server is the double.
fn elastic(kubeconfig: &std::path::Path, monitor: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elastic"));
    command
        .args(["autoscale", "--target", "deployment/model", "--port", "0", "--policy", "step"])
        .args(["--interval", "20ms", "--kubernetes-timeout", "500ms", "--monitor", monitor])
        .env("KUBECONFIG", kubeconfig)
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn it_refuses_to_start_beside_a_horizontal_pod_autoscaler_of_the_same_deployment() {
    let server = cluster(2);
    let hpa = |name: &str, kind: &str, target: &str| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {"maxReplicas": 4, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": target}},
        })
    };
    server.apply(hpa("others", "Deployment", "other"));
    server.apply(hpa("sets", "StatefulSet", "model"));
    server.apply(hpa("cpu", "Deployment", "model"));
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(folder.path(), &server.token("autoscale"));
    let ended = elastic(&kubeconfig, "http://127.0.0.1:1").output().await.unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(
        text.contains("the HorizontalPodAutoscaler \"cpu\" scales deployment \"model\" already"),
        "{text}"
    );
    assert!(text.contains("kubectl delete horizontalpodautoscaler cpu"), "{text}");
    assert!(asked_for(&server).is_empty());
}

#[tokio::test]
async fn a_token_that_expires_is_read_again() {
    let server = cluster(2);
    let (monitor, said) = monitor(Stats { p99_ms: Some(100.0), ..slow() }).await;
    let folder = tempfile::tempdir().unwrap();
    let token = server.token("autoscale");
    let kubeconfig = server.kubeconfig(folder.path(), &token);
    let mut child = elastic(&kubeconfig, &monitor.url).args(["--replicas-min", "2"]).spawn().unwrap();
    server.until("it looks", |state| (state.count("get", SCALE) >= 2).then_some(())).await;
    server.revoke(&token);
    set(&said, slow());
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = log.next_line().await.unwrap().expect("it ended");
        if line.contains("does not accept the credentials") {
            break;
        }
    }
    assert_eq!(server.get("deployments", "model").unwrap()["spec"]["replicas"], 2);
    std::fs::write(folder.path().join("token"), server.token("autoscale")).unwrap();
    server.until("it grows", |state| (wanted(state) >= 3).then_some(())).await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn the_administrator_is_not_needed() {
    let server = cluster(2);
    let (monitor, _said) = monitor(slow()).await;
    let leader = Some(candidate("one"));
    let running = autoscaler_of(&server, &monitor.url, "autoscale", leader, &["--replicas-max", "3"]).await;
    until_wanted(&server, 3).await;
    running.stop().await;
    let refused: Vec<_> = server.calls().into_iter().filter(|call| call.status == Some(403)).collect();
    assert!(refused.is_empty(), "the Role in deploy/base lacks a right: {refused:?}");
    let by_admin = server.calls().into_iter().any(|call| call.user.contains(ADMIN));
    assert!(!by_admin);
}
