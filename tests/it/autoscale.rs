//! The autoscaler: children that live and die, and the loop from `/stats` to a changed fleet.
use crate::support::{Running, client, flags};
use axum::extract::{RawQuery, State};
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser as _;
use elastic::autoscale::processes::{ProcessScaler, ReplicaState, Spawn};
use elastic::autoscale::{self, Config, Scaler, Settings};
use elastic::cli::Cli;
use elastic::logic::policy::{Bounds, ReplicaCounts, SloConfig, StepConfig};
use elastic::net::serve::{Limits, serve};
use elastic::net::shutdown::Shutdown;
use elastic::net::wire::{ServiceMs, Stats};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A child that says it is ready and ends when its standard input closes.
const GOOD: &str = "#!/bin/sh\necho '{\"ready\":\"http://127.0.0.1:1\",\"startup_ms\":1}'\ncat >/dev/null\n";
/// A child that ends before it is ready, unless there is no file called `lock` beside it: then it makes one and is
/// good.
const ONE_GOOD: &str = "#!/bin/sh\nmkdir \"$(dirname \"$0\")/lock\" 2>/dev/null || exit 3\n\
    echo '{\"ready\":\"http://127.0.0.1:1\",\"startup_ms\":1}'\ncat >/dev/null\n";
/// A child that ends before it is ready the first time, and then runs without ever being ready.
const NEVER_READY: &str =
    "#!/bin/sh\nmkdir \"$(dirname \"$0\")/lock\" 2>/dev/null && exit 3\ncat >/dev/null\n";
/// A child that does not care that it should end.
const STUBBORN: &str =
    "#!/bin/sh\necho '{\"ready\":\"http://127.0.0.1:1\",\"startup_ms\":1}'\nexec tail -f /dev/null\n";

struct Script {
    path: PathBuf,
    folder: tempfile::TempDir,
}

fn script(text: &str) -> Script {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("child");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Script { path, folder }
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
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 3, ready: 3, starting: 0, failing: 0 });
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

/// Waits until the scaler counts so many replicas in each state.
async fn until_counts(scaler: &ProcessScaler, [desired, ready, starting, failing]: [u32; 4]) {
    until(scaler, |scaler| scaler.observe() == ReplicaCounts { desired, ready, starting, failing }).await;
}

#[tokio::test]
async fn children_that_crash_are_failing_until_others_are_ready_in_their_place() {
    let script = script(ONE_GOOD);
    let scaler = scaler(&script, 3);
    // Not started yet is on its way.
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 3, ready: 0, starting: 3, failing: 0 });
    let (shutdown, supervised) = supervise(&scaler);
    until_counts(&scaler, [3, 1, 0, 2]).await;
    let good = scaler.replicas().iter().find(|replica| replica.state == ReplicaState::Ready).unwrap().pid;
    // They are the first that are given up, whether one of them runs just now or none does.
    scaler.scale_to(2);
    until_counts(&scaler, [2, 1, 0, 1]).await;
    // What was wrong is mended.
    std::fs::remove_dir(script.folder.path().join("lock")).unwrap();
    until_counts(&scaler, [2, 2, 0, 0]).await;
    assert_eq!(scaler.replicas()[0].pid, good);
    // One that was ready and is killed starts again, and fails only then.
    let status = std::process::Command::new("kill").args(["-KILL", &good.unwrap().to_string()]).status();
    assert!(status.unwrap().success());
    until_counts(&scaler, [2, 1, 0, 1]).await;
    shutdown.drain();
    supervised.join_all().await;
}

#[tokio::test]
async fn a_child_that_is_started_again_is_failing_while_it_is_not_ready() {
    let script = script(NEVER_READY);
    let scaler = scaler(&script, 1);
    let (shutdown, supervised) = supervise(&scaler);
    let runs_again = |scaler: &ProcessScaler| scaler.observe().failing == 1 && !scaler.replicas().is_empty();
    until(&scaler, runs_again).await;
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 1, ready: 0, starting: 0, failing: 1 });
    // Others are on their way all the same.
    scaler.scale_to(2);
    until(&scaler, |scaler| scaler.replicas().len() == 2).await;
    assert_eq!(scaler.observe(), ReplicaCounts { desired: 2, ready: 0, starting: 1, failing: 1 });
    shutdown.drain();
    supervised.join_all().await;
}

#[tokio::test]
async fn an_executable_that_is_not_there_is_no_capacity() {
    let spawn = Spawn::executable("/nowhere/elastic".into(), vec![], Duration::from_millis(10));
    let scaler = ProcessScaler::new(spawn, 2);
    let (shutdown, supervised) = supervise(&scaler);
    until_counts(&scaler, [2, 0, 0, 2]).await;
    shutdown.drain();
    supervised.join_all().await;
}

pub(crate) type Said = Arc<Mutex<(Stats, Option<String>)>>;

/// A monitor that says what the test wants and remembers what it was asked.
pub(crate) async fn monitor(stats: Stats) -> (Running, Said) {
    let said: Said = Arc::new(Mutex::new((stats, None)));
    (Running::router(saying(Arc::clone(&said))).await, said)
}

/// One where another was.
async fn monitor_at(url: &str, stats: Stats) -> Running {
    let listener = TcpListener::bind(url.strip_prefix("http://").unwrap()).await.unwrap();
    let router = saying(Arc::new(Mutex::new((stats, None))));
    Running::at(listener, |listener, shutdown| serve(listener, router, Limits::default(), shutdown))
}

fn saying(said: Said) -> Router {
    let stats = get(|State(said): State<Said>, RawQuery(query): RawQuery| async move {
        let mut said = said.lock().unwrap();
        said.1 = query;
        Json(said.0.clone())
    });
    Router::new().route("/stats", stats).with_state(said)
}

/// Forty requests a second, of 100 ms each, of which one slot can serve ten.
pub(crate) fn slow() -> Stats {
    Stats {
        samples: 500,
        age_s: Some(0.1),
        p99_ms: Some(700.0),
        arrivals: [40; 16],
        arrivals_known_s: 60.0,
        ended: 500,
        missed: 100,
        in_flight: 1,
        queue_depth: 12,
        slots: 1,
        service_ms: Some(ServiceMs { mean: 100.0, p95: 110.0, cv: 0.1 }),
        ..Stats::default()
    }
}

/// Nobody comes; `ended` as it was.
pub(crate) fn quiet() -> Stats {
    Stats { age_s: Some(0.1), arrivals_known_s: 60.0, ended: 500, missed: 100, ..Stats::default() }
}

async fn decisions(url: &str) -> Value {
    let answer = client().get(format!("{url}/decisions")).send().await.unwrap();
    answer.json().await.unwrap()
}

async fn autoscaler(monitor: &str, scaler: &Arc<ProcessScaler>, policy: &str, dry_run: bool) -> Running {
    let settings: Settings =
        flags(&["--policy", policy, "--interval", "20ms", "--replicas-max", "6", "--hold", "0s"]);
    let config = Config::new(&settings, monitor, dry_run, Limits::default()).unwrap();
    let scaler = Scaler::Processes(Arc::clone(scaler));
    Running::start(|listener, shutdown| async move {
        autoscale::serve(listener, config, scaler, shutdown).await.unwrap();
    })
    .await
}

/// The first decision in the journal that is as expected, or the test's time-out.
pub(crate) async fn decided(url: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let journal = decisions(url).await;
            let records = journal["decisions"].as_array().unwrap();
            if let Some(record) = records.iter().find(|record| expected(record)) {
                break record.clone();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("it was never decided")
}

pub(crate) fn says(record: &Value, text: &str) -> bool {
    record["reason"].as_str().unwrap().contains(text)
}

#[tokio::test]
async fn the_step_rule_follows_the_latency_and_every_step_has_its_reason() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, said) = monitor(slow()).await;
    let running = autoscaler(&monitor.url, &scaler, "step", false).await;
    until(&scaler, |scaler| all_ready(scaler, 6)).await;
    assert_eq!(said.lock().unwrap().1, None, "the rule goes by the whole window");
    said.lock().unwrap().0 = quiet();
    until(&scaler, |scaler| all_ready(scaler, 1)).await;
    let journal = decisions(&running.url).await;
    assert_eq!(journal["policy"], "step");
    let up = decided(&running.url, |step| step["replicas"] == 2 && step["replicas_before"] == 1).await;
    assert_eq!(up["reason"], "up: p99 700 ms is not under 330 ms");
    assert_eq!(up["applied"], true);
    let traffic = &up["inputs"]["traffic"];
    assert_eq!(
        (&traffic["p99_ms"], &traffic["waiting"], &traffic["busy"]),
        (&700.0.into(), &12.into(), &1.0.into())
    );
    assert_eq!(traffic["service"]["mean_ms"], 100.0);
    assert_eq!((&traffic["ended"], &traffic["missed"]), (&500.into(), &100.into()));
    decided(&running.url, |step| says(step, "down: idle")).await;
    running.stop().await;
    assert!(scaler.replicas().is_empty(), "children are left");
}

#[tokio::test]
async fn the_slo_rule_scales_up_at_once_and_holds_while_the_monitor_is_away() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, said) = monitor(quiet()).await;
    let running = autoscaler(&monitor.url, &scaler, "slo", false).await;
    decided(&running.url, |record| record["inputs"]["traffic"]["ended"] == 500).await;
    assert_eq!(scaler.observe().desired, 1);

    // Load appears: 40 requests/s of 100 ms hold four slots at least.
    said.lock().unwrap().0 = slow();
    until(&scaler, |scaler| scaler.observe().desired > 4).await;
    let up = decided(&running.url, |record| record["replicas_before"] == 1 && record["replicas"] != 1).await;
    assert!(up["replicas"].as_u64().unwrap() > 4, "not at once: {up}");
    assert!(says(&up, "up: "), "{up}");
    assert_eq!((&up["applied"], &up["inputs"]["traffic"]["arrivals"][0]), (&true.into(), &40.into()));
    assert_eq!(decisions(&running.url).await["policy"], "slo");

    // The monitor goes away.
    let address = monitor.url.clone();
    monitor.stop().await;
    let held = decided(&running.url, |record| says(record, "hold: the monitor does not answer")).await;
    let busy = scaler.observe().desired;
    assert_eq!((&held["replicas"], busy > 4), (&busy.into(), true), "{held}");

    // It is back, started again: it knows little, and its totals have begun anew.
    let mut young = Stats { started_unix_s: 2.0, samples: 3, ended: 3, missed: 0, slots: busy, ..slow() };
    (young.arrivals, young.arrivals_known_s) = ([0; 16], 1.0);
    young.arrivals[0] = 40;
    let again = monitor_at(&address, young).await;
    let seen = decided(&running.url, |record| record["inputs"]["traffic"]["ended"] == 3).await;
    assert_eq!((&seen["replicas_before"], &seen["inputs"]["traffic"]["missed"]), (&busy.into(), &0.into()));
    assert!(scaler.observe().desired > 4, "{seen}");
    again.stop().await;
    running.stop().await;
    assert!(scaler.replicas().is_empty(), "children are left");
}

#[tokio::test]
async fn what_someone_else_asks_for_is_taken_as_it_is() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, said) = monitor(quiet()).await;
    said.lock().unwrap().0.age_s = Some(1e6);
    let running = autoscaler(&monitor.url, &scaler, "slo", false).await;
    decided(&running.url, |record| says(record, "no dispatcher has reported")).await;
    scaler.scale_to(3);
    let held = decided(&running.url, |record| record["inputs"]["replicas"]["desired"] == 3).await;
    assert_eq!((&held["replicas_before"], &held["replicas"]), (&3.into(), &3.into()), "{held}");
    // Outside the bounds it does not stay.
    scaler.scale_to(9);
    let bounded = decided(&running.url, |record| record["replicas_before"] == 9).await;
    assert_eq!(bounded["replicas"], 6, "{bounded}");
    until(&scaler, |scaler| scaler.observe().desired == 6).await;
    running.stop().await;
}

#[test]
fn flags_reach_the_rules_and_default_to_what_they_default_to() {
    let config = |flags_: &[&str]| Config::new(&flags(flags_), "http://m:1", false, Limits::default());
    let told = |flags_: &[&str]| format!("{:?}", config(flags_).unwrap());
    let bounds = Bounds { min: 1, max: 4 };
    let slo = format!("{:?}", SloConfig::new(bounds, 330.0));
    assert!(told(&[]).contains(&slo) && told(&[]).contains("interval: 1s"), "{}", told(&[]));
    let step = ["--policy", "step"];
    assert!(told(&step).contains(&format!("{:?}", StepConfig::new(bounds, 330.0))), "{}", told(&step));
    assert!(told(&step).contains("interval: 10s"), "{}", told(&step));
    for (set, says) in [
        (["--interval", "3s"], "interval: 3s"),
        (["--miss-budget", "0.02"], "miss_budget: 0.02"),
        (["--hold", "40s"], "hold: 40s"),
        (["--stale-after", "7s"], "stale_after_s: 7.0"),
        (["--p99-target", "250ms"], "promise_ms: 250.0"),
        (["--replicas-max", "9"], "max: 9"),
    ] {
        assert!(told(&set).contains(says), "{}", told(&set));
    }
    let step = told(&["--policy", "step", "--up-factor", "1.5", "--stale-after", "7s"]);
    assert!(step.contains("up_factor: 1.5") && step.contains("stale_after_s: 7.0"), "{step}");
    for (wrong, says) in [
        (["--miss-budget", "0"], "--miss-budget must be over 0 and below 1"),
        (["--miss-budget", "1"], "--miss-budget must be over 0 and below 1"),
        (["--interval", "0s"], "--interval must be longer than 0"),
        (
            ["--interval", "16s"],
            "--interval must be at most 15s with --policy slo, which sees no further back",
        ),
        (["--p99-target", "0s"], "--p99-target must be longer than 0"),
        (["--up-factor", "1"], "--up-factor must be over 1 and at most 100"),
    ] {
        assert_eq!(config(&wrong).unwrap_err().to_string(), says);
    }
}

#[test]
fn the_rules_of_others_are_not_for_a_real_fleet() {
    let refused = Cli::try_parse_from(["elastic", "up", "--policy", "hpa"]).unwrap_err().to_string();
    assert!(refused.contains("[possible values: slo, step]"), "{refused}");
}

#[tokio::test]
async fn a_dry_run_explains_and_changes_nothing() {
    let script = script(GOOD);
    let scaler = scaler(&script, 1);
    let (monitor, _said) = monitor(slow()).await;
    let running = autoscaler(&monitor.url, &scaler, "step", true).await;
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
    let running = autoscaler("http://127.0.0.1:1", &scaler, "slo", false).await;
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
