//! What every mode does when it is asked to end: no longer ready at once, still serving for the delay, then exit 0.
use crate::serve_model::photo;
use crate::support::{Process, client, signal};
use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

const DELAY: Duration = Duration::from_secs(1);
/// Longest time for one step, under whatever else runs.
const LIMIT: Duration = Duration::from_secs(60);

/// A mode that serves on for a while after it was asked to end.
struct Mode(Process);

impl Mode {
    async fn start(args: &[&str]) -> Self {
        Self(Process::start(&[args, &["--drain-delay", "1s"]].concat(), &[]).await)
    }

    async fn status(&self, path: &str) -> StatusCode {
        client().get(format!("{}{path}", self.0.url)).send().await.unwrap().status()
    }

    /// Asks it to end, and sees what it does: `served` is asked for once it is no longer ready.
    async fn ends_well(mut self, served: impl AsyncFnOnce(&str)) {
        assert_eq!(self.status("/readyz").await, StatusCode::OK, "{}", self.0.url);
        let asked = Instant::now();
        signal("-TERM", self.0.child.id().unwrap());
        // The signal arrives at its own time, long before the delay is over.
        while self.status("/readyz").await == StatusCode::OK {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.status("/healthz").await, StatusCode::OK, "not ready, but well");
        served(&self.0.url).await;
        let ended = tokio::time::timeout(LIMIT, self.0.child.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0), "{}", self.0.url);
        assert!(asked.elapsed() >= DELAY, "{} ended after {:?}", self.0.url, asked.elapsed());
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
    let dispatch = ["dispatch", "--replica", &behind.0.url, "--monitor", &monitor.0.url];
    let autoscale = [
        "autoscale",
        "--monitor",
        &monitor.0.url,
        "--target",
        "processes",
        "--dry-run",
        "--replicas-max",
        "1",
    ];
    let (dispatch, autoscale) = tokio::join!(Mode::start(&dispatch), Mode::start(&autoscale));
    tokio::join!(
        model.ends_well(classifies),
        dispatch.ends_well(classifies),
        autoscale.ends_well(async |_: &str| {}),
    );
    monitor.ends_well(async |_: &str| {}).await;
}
