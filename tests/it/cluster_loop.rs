//! The whole loop on a small cluster: load, more replicas asked for through the API, found through their slices, and
//! given up again, without a request that fails.
//!
//! Every mode is a process of its own with the rights of its `ServiceAccount`; the cluster is the double of the API
//! server and a kubelet that runs real replicas.
use crate::api_server::{ApiServer, Call, DELETION_COST, NAMESPACE, State};
use crate::kubelet::{Kubelet, Options};
use crate::serve_model::photo;
use crate::support::{Process, client};
use elastic::net::wire::Stats;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a replica works on a request; it has one slot.
const PACE: &str = "100ms";
/// Requests a second that take three replicas, and some that one can do.
const BUSY_RPS: f64 = 25.0;
const QUIET_RPS: f64 = 2.0;
/// How many are to be answered before it grows quiet; more would be remembered for longer.
const ANSWERED_MIN: u64 = 70;

/// Whoever comes before the fleet has grown waits, and counts as served in time.
const PROMISE: &str = "9s";
/// Under which name the autoscaler holds the Lease.
const IDENTITY: &str = "autoscale-1";

/// The modes around the cluster, as its manifests have them, but quick to shrink.
struct Modes {
    monitor: Process,
    dispatch: Process,
    autoscale: Process,
}

impl Modes {
    async fn start(server: &ApiServer, folder: &Path) -> Self {
        let kubeconfig = |account: &str| {
            let folder = folder.join(account);
            std::fs::create_dir(&folder).unwrap();
            server.kubeconfig(&folder, &server.token(account)).into_os_string()
        };
        let monitor = Process::start(&["monitor", "--target-latency", PROMISE], &[]).await;
        let dispatch =
            ["dispatch", "--monitor", &monitor.url, "--replica-service", "model", "--deadline", PROMISE];
        let autoscale = format!(
            "autoscale --monitor {} --target deployment/model --lease autoscale --lease-duration 3s --identity {IDENTITY} \
             --p99-target {PROMISE} --interval 500ms --hold 2s --replicas-min 1 --replicas-max 3",
            monitor.url
        );
        let autoscale: Vec<&str> = autoscale.split_whitespace().collect();
        let dispatch = Process::start(&dispatch, &[("KUBECONFIG", &kubeconfig("dispatch"))]).await;
        let autoscale = Process::start(&autoscale, &[("KUBECONFIG", &kubeconfig("autoscale"))]).await;
        Self { monitor, dispatch, autoscale }
    }

    async fn stats(&self) -> Stats {
        let answer = client().get(format!("{}/stats", self.monitor.url)).send().await.unwrap();
        answer.json().await.unwrap()
    }
}

/// Resolves once a dispatcher has so many slots.
pub(crate) async fn has_slots(dispatch: &str, slots: u32) {
    let line = format!("elastic_dispatch_slots {slots}\n");
    let has_them = async {
        loop {
            let metrics = client().get(format!("{dispatch}/metrics")).send().await.unwrap();
            if metrics.text().await.unwrap().contains(&line) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), has_them).await;
    assert!(in_time.is_ok(), "the dispatcher does not have {slots} slots");
}

/// Sends photos at the rate that is wanted at the time, until none is; returns what was answered.
async fn load(dispatch: String, mut rate_rps: watch::Receiver<f64>) -> Vec<(u16, String)> {
    let photo = bytes::Bytes::from(photo("goldfish.jpg"));
    let client = client();
    let mut asked = JoinSet::new();
    let mut next = Instant::now();
    loop {
        let rate = *rate_rps.borrow();
        if rate == 0.0 {
            return asked.join_all().await;
        }
        let request = client.post(format!("{dispatch}/predict")).body(photo.clone());
        asked.spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        });
        next += Duration::from_secs_f64(1.0 / rate);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            _ = rate_rps.changed() => next = Instant::now(),
        }
    }
}

#[tokio::test]
async fn replicas_come_with_the_load_and_go_with_it_and_no_request_fails() {
    let server = ApiServer::start();
    server.apply_manifests();
    // Every pod is in two slices, and counts once all the same.
    let options = Options { dual_stack: true, ..Options::default() };
    let kubelet = Kubelet::start(&server, options.with(&["--pace", PACE, "--drain-delay", "300ms"]));
    let folder = tempfile::tempdir().unwrap();
    let modes = Modes::start(&server, folder.path()).await;
    server
        .until("the autoscaler leads", |state| {
            let lease = state.store.get("leases", NAMESPACE, "autoscale")?;
            (lease["spec"]["holderIdentity"] == IDENTITY).then_some(())
        })
        .await;
    has_slots(&modes.dispatch.url, 1).await;

    let (rate_rps, wanted_rps) = watch::channel(BUSY_RPS);
    let mut loading = JoinSet::new();
    loading.spawn(load(modes.dispatch.url.clone(), wanted_rps));
    let replicas = |state: &State| state.store.replicas(NAMESPACE, "model");
    server.until("three replicas are asked for", |state| (replicas(state)? == 3).then_some(())).await;
    has_slots(&modes.dispatch.url, 3).await;
    while modes.stats().await.ended < ANSWERED_MIN {
        tokio::task::yield_now().await;
    }

    rate_rps.send_replace(QUIET_RPS);
    server.until("one is asked for", |state| (replicas(state)? == 1).then_some(())).await;
    server
        .until("one is left", |state| (state.store.list("pods", Some(NAMESPACE)).len() == 1).then_some(()))
        .await;
    has_slots(&modes.dispatch.url, 1).await;
    rate_rps.send_replace(0.0);
    let answers = loading.join_next().await.unwrap().unwrap();

    assert!(answers.len() as u64 > ANSWERED_MIN, "{}", answers.len());
    for (status, text) in &answers {
        assert_eq!(*status, 200, "{text}");
    }
    let stats = modes.stats().await;
    assert_eq!((stats.shed, stats.errors), (0, 0));
    let calls = server.calls();
    let cheap = |call: &&Call| call.body["metadata"]["annotations"][DELETION_COST] == "-100";
    let mut marked: Vec<&str> = calls.iter().filter(cheap).map(|call| call.name.as_str()).collect();
    let ended = kubelet.ended();
    let mut gone: Vec<&str> = ended.iter().map(|ended| ended.pod.as_str()).collect();
    marked.sort_unstable();
    gone.sort_unstable();
    assert_eq!(gone, marked, "those that were to go first went");
    assert!(ended.iter().all(|ended| ended.code == Some(0)), "every replica drained in time: {ended:?}");
    assert_eq!(ended.len(), 2);
    let events = server.list("events");
    assert!(events.len() >= 2 && events.iter().all(|event| event["reason"] == "Scaled"), "{events:?}");
    let refused: Vec<_> = calls.iter().filter(|call| matches!(call.status, Some(401 | 403))).collect();
    assert!(refused.is_empty(), "{refused:?}");

    modes.autoscale.end().await;
    let lease = server.get("leases", "autoscale").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "given back");
    modes.dispatch.end().await;
    modes.monitor.end().await;
}
