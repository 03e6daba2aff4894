//! The simulator, from the executable itself.
use crate::support::Running;
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

/// Runs `elastic simulate` on a workload.
async fn simulate(workload: &str, flags: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.txt");
    std::fs::write(&path, workload).unwrap();
    elastic(&[&["--workload", path.to_str().unwrap()], flags].concat()).await
}

async fn elastic(flags: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_elastic"));
    command.arg("simulate").args(flags).output().await.unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    assert_eq!(code(output), 0, "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A minute of 20 requests a second, then a minute of 60.
fn burst() -> String {
    "20\n".repeat(60) + &"60\n".repeat(60)
}

#[tokio::test]
async fn every_rule_is_played_on_the_same_requests() {
    let output = simulate(&burst(), &["--json"]).await;
    let rows = rows(&output);
    let names: Vec<_> = rows.iter().map(|row| row["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["slo", "step", "hpa", "hpa-rps", "keda", "kpa", "ray"]);
    for row in &rows {
        assert_eq!(row["requests"], rows[0]["requests"]);
        // 4 replicas are busy on average when all are served.
        assert!(row["clairvoyant_replicas_mean"].as_f64().unwrap() > 3.9, "{row}");
        let figure = |name: &str| row[name].as_f64().unwrap();
        let ratio = figure("replicas_mean") / figure("clairvoyant_replicas_mean");
        assert!((figure("clairvoyant_ratio") - ratio).abs() < 1e-9, "{row}");
        assert!((figure("replica_seconds") - 120.0 * figure("replicas_mean")).abs() < 1e-6, "{row}");
        assert!((0.0..=1.0).contains(&row["missed_share"].as_f64().unwrap()), "{row}");
    }
    let requests = rows[0]["requests"].as_f64().unwrap();
    // 4800 expected, with a standard deviation of 69.
    assert!((requests - 4800.0).abs() < 350.0, "{requests}");
}

#[tokio::test]
async fn a_seed_gives_the_same_bytes_and_another_one_others() {
    let run = async |seed: &str| {
        let flags = ["--policy", "slo,kpa", "--dispatch", "central,random,p2c", "--seed", seed, "--json"];
        simulate(&burst(), &flags).await.stdout
    };
    let one = run("1").await;
    assert_eq!(one, run("1").await);
    assert_ne!(one, run("2").await);
}

#[tokio::test]
async fn one_queue_misses_less_than_dice() {
    let flags = ["--policy", "hpa-rps", "--dispatch", "central,random", "--json"];
    let rows = rows(&simulate(&burst(), &flags).await);
    let missed = |index: usize| rows[index]["missed_share"].as_f64().unwrap();
    assert!(missed(0) < missed(1), "{rows:?}");
}

#[tokio::test]
async fn the_page_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("simulated.html");
    let flags = ["--policy", "slo,step", "--html", page.to_str().unwrap()];
    let output = simulate(&burst(), &flags).await;
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("bound, the fewest"), "{}", text(&output.stdout));
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("data-chart=\"replicas-1\"") && html.ends_with("</html>\n"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let absent = folder.path().join("absent/page.html");
    let output = simulate("5\n", &["--policy", "slo", "--html", absent.to_str().unwrap()]).await;
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("make it first"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    // A folder stands where the page should.
    let taken = folder.path().join("taken.html");
    std::fs::create_dir(&taken).unwrap();
    let output = simulate("5\n", &["--policy", "slo", "--html", taken.to_str().unwrap()]).await;
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("taken.html"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn what_cannot_be_played_says_what_to_do_and_ends_with_2() {
    for (workload, flags, says) in [
        ("5\n", &["--policy", "magic"][..], "possible values: slo, step"),
        ("5\n", &["--dispatch", "magic"], "power-of-two (or p2c)"),
        ("5\n", &["--cv=-1"], "--cv"),
        ("many\n", &[], "line 1"),
        ("5\n", &["--requests-max", "1"], "raise the limit"),
    ] {
        let output = simulate(workload, flags).await;
        assert_eq!(code(&output), 2, "{flags:?}");
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let output = elastic(&["--workload", "absent.txt"]).await;
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("--workload FILE"), "{}", text(&output.stderr));
}

/// A monitor's answer: 90 seconds with ten requests each, three replicas, one miss in all.
fn history() -> Value {
    let point = |t_s: u64| {
        json!({
            "t_s": t_s, "p50_ms": 100.0, "p99_ms": 120.0, "max_ms": 130.0, "arrivals": 10, "ok": 10, "shed": 0,
            "errors": 0, "over_promise": u64::from(t_s == 7), "in_flight": 1, "queue_depth": 0, "replicas_ready": 3,
            "replicas_starting": 0, "replicas_draining": 0, "slots": 3,
        })
    };
    json!({
        "now_s": 90.5, "started_unix_s": 1.7e9, "history_s": 600, "target_ms": 410.0, "promise_ms": 500.0,
        "points": (0..90).map(point).collect::<Vec<_>>(),
    })
}

#[tokio::test]
async fn a_record_is_played_again_from_a_file_and_from_its_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    std::fs::write(&path, history().to_string()).unwrap();
    let flags = ["--policy", "step", "--record"];
    let from_file = elastic(&[&flags[..], &[path.to_str().unwrap()]].concat()).await;
    assert_eq!(code(&from_file), 0, "{}", text(&from_file.stderr));
    let table = text(&from_file.stdout);
    assert!(table.contains("900 requests in 1:30") && table.contains("promise 500ms"), "{table}");
    let recorded = table.lines().find(|line| line.starts_with("recorded  ")).unwrap();
    assert!(recorded.contains("0.111 %") && recorded.contains("3.00"), "{recorded}");

    let router = Router::new().route("/history", get(|| async { axum::Json(history()) }));
    let monitor = Running::router(router).await;
    let asked = elastic(&[&flags[..], &[&monitor.url]].concat()).await;
    assert_eq!(code(&asked), 0, "{}", text(&asked.stderr));
    let figures =
        |output: &Output| text(&output.stdout).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(figures(&asked), figures(&from_file));
    let missing = format!("{}/nothing-here", monitor.url);
    let asked = elastic(&[&flags[..], &[&missing]].concat()).await;
    assert_eq!(code(&asked), 2);
    assert!(text(&asked.stderr).contains("404"), "{}", text(&asked.stderr));
}

#[tokio::test]
async fn a_record_with_a_gap_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    let mut history = history();
    history["points"].as_array_mut().unwrap().remove(40);
    std::fs::write(&path, history.to_string()).unwrap();
    let output = elastic(&["--record", path.to_str().unwrap()]).await;
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("second 39 is followed by 41"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn an_interrupt_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.txt");
    // Some minutes of work, far more than the test waits for.
    std::fs::write(&path, "2000\n".repeat(43_200)).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_elastic"))
        .args(["simulate", "--jobs", "1", "--workload"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let id = child.id().unwrap().to_string();
    until_signals_are_caught(Path::new(&format!("/proc/{id}/status"))).await;
    let sent = tokio::process::Command::new("kill").args(["-INT", &id]).status().await.unwrap();
    assert!(sent.success());
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
    assert_eq!(ended.expect("it goes on").unwrap().code(), Some(130));
}

/// Waits until a process has a handler for SIGINT: before that the signal would end it by itself.
async fn until_signals_are_caught(status: &Path) {
    let caught = || {
        let text = std::fs::read_to_string(status).unwrap_or_default();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 2 != 0)
    };
    for _ in 0..2000 {
        if caught() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never caught SIGINT");
}
