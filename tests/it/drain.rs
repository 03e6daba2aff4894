//! What every mode does when it is asked to end: no longer ready at once, still serving for the delay, then exit 0.
use crate::serve_model::photo;
use crate::support::client;
use http::StatusCode;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::Instant;

const DELAY: Duration = Duration::from_secs(1);
/// Longest time for one step, under whatever else runs.
const LIMIT: Duration = Duration::from_secs(60);

/// A mode in a process of its own.
struct Mode {
    child: Child,
    url: String,
    /// Held open: a closed pipe would break its next line.
    _log: Lines<BufReader<ChildStderr>>,
}

impl Mode {
    async fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_elastic"))
            .args(args)
            .args(["--port", "0", "--drain-delay", "1s", "--log-format", "json", "--log", "info"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = tokio::time::timeout(LIMIT, async {
            loop {
                let line = log.next_line().await.unwrap().expect("it ended before it was ready");
                let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(url) = line["url"].as_str() {
                    return url.to_owned();
                }
            }
        });
        Self { url: url.await.unwrap(), child, _log: log }
    }

    async fn status(&self, path: &str) -> StatusCode {
        client().get(format!("{}{path}", self.url)).send().await.unwrap().status()
    }

    /// Asks it to end, and sees what it does: `served` is asked for once it is no longer ready.
    async fn ends_well(mut self, served: impl AsyncFnOnce(&str)) {
        assert_eq!(self.status("/readyz").await, StatusCode::OK, "{}", self.url);
        let asked = Instant::now();
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        // The signal arrives at its own time, long before the delay is over.
        while self.status("/readyz").await == StatusCode::OK {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.status("/healthz").await, StatusCode::OK, "not ready, but well");
        served(&self.url).await;
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0), "{}", self.url);
        assert!(asked.elapsed() >= DELAY, "{} ended after {:?}", self.url, asked.elapsed());
    }
}

async fn classifies(url: &str) {
    let asked = client().post(format!("{url}/predict")).body(photo("dam.jpg")).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::OK, "{url}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_serves_on_for_a_while_and_then_ends_by_itself() {
    let weights = tempfile::tempdir().unwrap();
    let weights = weights.path().to_str().unwrap();
    let serve_model = ["serve-model", "--weights-dir", weights];
    let (behind, model) = tokio::join!(Mode::start(&serve_model), Mode::start(&serve_model));
    let monitor = Mode::start(&["monitor"]).await;
    let dispatch = ["dispatch", "--replica", &behind.url, "--monitor", &monitor.url];
    let autoscale =
        ["autoscale", "--monitor", &monitor.url, "--target", "processes", "--dry-run", "--replicas-max", "1"];
    let (dispatch, autoscale) = tokio::join!(Mode::start(&dispatch), Mode::start(&autoscale));
    tokio::join!(
        model.ends_well(classifies),
        dispatch.ends_well(classifies),
        autoscale.ends_well(async |_: &str| {}),
    );
    monitor.ends_well(async |_: &str| {}).await;
}
