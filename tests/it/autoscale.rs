//! The autoscaler: children that live and die, and the loop from `/stats` to a changed fleet.
use crate::support::{Running, client, flags};
use axum::extract::{RawQuery, State};
use axum::routing::get;
use axum::{Json, Router};
use elastic::autoscale::processes::{ProcessScaler, ReplicaState, Spawn};
use elastic::autoscale::{self, Config, Scaler, Settings};
use elastic::logic::policy::ReplicaCounts;
use elastic::net::serve::Limits;
use elastic::net::shutdown::Shutdown;
use elastic::net::wire::{ServiceMs, Stats};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// A child that says it is ready and ends when its standard input closes.
const GOOD: &str = "#!/bin/sh\necho '{\"ready\":\"http://127.0.0.1:1\",\"startup_ms\":1}'\ncat >/dev/null\n";
/// A child that ends before it is ready.
const CRASHING: &str = "#!/bin/sh\nexit 3\n";
/// A child that does not care that it should end.
const STUBBORN: &str =
    "#!/bin/sh\necho '{\"ready\":\"http://127.0.0.1:1\",\"startup_ms\":1}'\nexec tail -f /dev/null\n";

struct Script {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn script(text: &str) -> Script {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("child");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Script { path, _folder: folder }
}

fn scaler(script: &Script, replicas: u32) -> Arc<ProcessScaler> {
    let spawn = Spawn::executable(script.path.clone(), vec![], Duration::from_millis(10));
    ProcessScaler::new(spawn, replicas)
}

/// Supervises the children until the shutdown drains.
fn supervise(scaler: &Arc<ProcessScaler>) -> (Shutdown, JoinSet<()>) {
    let shutdown = Shutdown::new();
    let mut supervised = JoinSet::new();
    let (supervisor, stop) = (Arc::clone(scaler), shutdown.clone());
    supervised.spawn(async move { supervisor.supervise(stop).await });
    (shutdown, supervised)
}

/// Waits until the fleet looks as expected; the test's own time-out is the limit.
async fn until(scaler: &ProcessScaler, expected: impl Fn(&ProcessScaler) -> bool) {
    let reached = async {
        while !expected(scaler) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the fleet never got there");
}

fn pids(scaler: &ProcessScaler) -> Vec<u32> {
    scaler.replicas().iter().filter_map(|replica| replica.pid).collect()
}

fn all_ready(scaler: &ProcessScaler, count: usize) -> bool {
    let replicas = scaler.replicas();
    replicas.len() == count && replicas.iter().all(|replica| replica.state == ReplicaState::Ready)
}

#[tokio::test]
async fn children_are_started_replaced_and_drained_youngest_first() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (shutdown, supervised) = supervise(&scaler);
    until(&scaler, |scaler| all_ready(scaler, 1)).await;
    scaler.scale_to(3);
    until(&scaler, |scaler| all_ready(scaler, 3)).await;
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 3, ready: 3, starting: 0 });
    let first = pids(&scaler);
    // One that is killed is replaced.
    let status = std::process::Command::new("kill").args(["-KILL", &first[0].to_string()]).status();
    assert!(status.unwrap().success());
    until(&scaler, |scaler| all_ready(scaler, 3) && !pids(scaler).contains(&first[0])).await;
    let second = pids(&scaler);
    scaler.scale_to(1);
    until(&scaler, |scaler| all_ready(scaler, 1)).await;
    assert_eq!(pids(&scaler), second[..1], "the oldest stays");
    shutdown.drain();
    supervised.join_all().await;
    assert!(scaler.replicas().is_empty());
}

#[tokio::test]
async fn a_child_that_does_not_drain_is_killed() {
    let script = script(STUBBORN);
    let scaler = scaler(&script, 1);
    let (shutdown, supervised) = supervise(&scaler);
    until(&scaler, |scaler| all_ready(scaler, 1)).await;
    shutdown.drain();
    supervised.join_all().await;
    assert!(scaler.replicas().is_empty());
}

#[tokio::test]
async fn children_that_crash_are_no_capacity_and_are_started_ever_more_slowly() {
    let script = script(CRASHING);
    let scaler = scaler(&script, 2);
    let (shutdown, supervised) = supervise(&scaler);
    until(&scaler, |scaler| !scaler.replicas().is_empty()).await;
    until(&scaler, |scaler| scaler.replicas().is_empty()).await;
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 2, ready: 0, starting: 2 });
    shutdown.drain();
    supervised.join_all().await;
}

type Said = Arc<Mutex<(Stats, Option<String>)>>;

/// A monitor that says what the test wants and remembers what it was asked.
async fn monitor(stats: Stats) -> (Running, Said) {
    let said: Said = Arc::new(Mutex::new((stats, None)));
    let router = Router::new().route(
        "/stats",
        get(|State(said): State<Said>, RawQuery(query): RawQuery| async move {
            let mut said = said.lock().unwrap();
            said.1 = query;
            Json(said.0.clone())
        }),
    );
    (Running::router(router.with_state(Arc::clone(&said))).await, said)
}

fn slow() -> Stats {
    Stats {
        samples: 500,
        age_s: Some(0.1),
        p99_ms: Some(700.0),
        arrival_rps: Some(50.0),
        in_flight: 3,
        slots: 1,
        service_ms: Some(ServiceMs { mean: 100.0, p95: 110.0, cv: 0.1 }),
        ..Stats::default()
    }
}

async fn decisions(url: &str) -> serde_json::Value {
    let answer = client().get(format!("{url}/decisions")).send().await.unwrap();
    answer.json().await.unwrap()
}

async fn autoscaler(monitor: &str, scaler: &Arc<ProcessScaler>, dry_run: bool) -> Running {
    let settings: Settings = flags(&["--interval", "20ms", "--replicas-max", "3", "--down-interval", "1ms"]);
    let config = Config::new(&settings, monitor, dry_run, Limits::default()).unwrap();
    let scaler = Scaler::Processes(Arc::clone(scaler));
    Running::start(|listener, shutdown| async move {
        autoscale::serve(listener, config, scaler, shutdown).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn the_fleet_follows_the_latency_and_every_step_has_its_reason() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, said) = monitor(slow()).await;
    let running = autoscaler(&monitor.url, &scaler, false).await;
    until(&scaler, |scaler| all_ready(scaler, 3)).await;
    assert!(said.lock().unwrap().1.as_ref().is_some_and(|query| query.starts_with("seconds=")));
    said.lock().unwrap().0 = Stats { age_s: Some(0.1), ..Stats::default() };
    until(&scaler, |scaler| all_ready(scaler, 1)).await;
    let journal = decisions(&running.url).await;
    assert_eq!(journal["policy"], "step");
    let steps: Vec<_> = journal["decisions"].as_array().unwrap().iter().collect();
    let up = steps.iter().find(|step| step["replicas"] == 2).unwrap();
    assert_eq!(up["reason"], "up: p99 700 ms is over 330 ms");
    assert_eq!(up["applied"], true);
    assert_eq!(up["inputs"]["traffic"]["p99_ms"], 700.0);
    assert!(steps.iter().any(|step| step["reason"].as_str().unwrap().starts_with("down: idle")));
    running.stop().await;
    assert!(scaler.replicas().is_empty(), "children are left");
}

#[tokio::test]
async fn a_dry_run_explains_and_changes_nothing() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, _said) = monitor(slow()).await;
    let running = autoscaler(&monitor.url, &scaler, true).await;
    loop {
        let journal = decisions(&running.url).await;
        if let Some(up) = journal["decisions"].as_array().unwrap().iter().find(|step| step["replicas"] == 2) {
            assert_eq!(up["applied"], false);
            break;
        }
    }
    assert_eq!(scaler.observe().desired, 1);
    running.stop().await;
}

#[tokio::test]
async fn without_a_monitor_the_fleet_stays_as_it_is() {
    let script = script(GOOD);
    let scaler = scaler(&script, 2);
    let running = autoscaler("http://127.0.0.1:1", &scaler, false).await;
    let journal = loop {
        let journal = decisions(&running.url).await;
        if !journal["decisions"].as_array().unwrap().is_empty() {
            break journal;
        }
    };
    assert_eq!(journal["decisions"][0]["reason"], "hold: the monitor does not answer");
    assert_eq!(scaler.observe().desired, 2);
    running.stop().await;
}
