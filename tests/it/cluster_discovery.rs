//! The dispatcher that follows a Service's slices, while the API server and its watches fail.
use crate::api_server::{ApiServer, Fault};
use crate::cluster_loop::has_slots;
use crate::dispatch::replica;
use crate::support::{Process, Running, client};
use serde_json::{Value, json};

/// Two replicas that answer everything, and a dispatcher of the Service `model`, which has the first of them.
struct Scene {
    server: ApiServer,
    replicas: [Running; 2],
    dispatch: Process,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A dispatcher with more flags.
    async fn with(flags: &[&str]) -> Self {
        let server = ApiServer::start();
        server.apply_manifests();
        let (first, second) = (replica("first", 1000).0, replica("second", 1000).0);
        let replicas = [first.start().await, second.start().await];
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = server.kubeconfig(folder.path(), &server.token("dispatch"));
        let environment = [("KUBECONFIG", kubeconfig.as_os_str())];
        let args = [&["dispatch", "--replica-service", "model"], flags].concat();
        let dispatch = Process::start(&args, &environment).await;
        let scene = Self { server, replicas, dispatch, folder };
        scene.publish(0, &json!({"ready": true}));
        has_slots(&scene.dispatch.url, 1).await;
        scene
    }

    /// Publishes a replica in a slice of its own.
    fn publish(&self, number: usize, conditions: &Value) {
        let port: u16 = self.replicas[number].url.rsplit(':').next().unwrap().parse().unwrap();
        self.server.apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("model-{number}"), "labels": {"kubernetes.io/service-name": "model"}},
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["127.0.0.1"], "conditions": conditions,
                "targetRef": {"kind": "Pod", "name": format!("model-{number}"), "uid": format!("uid-{number}")},
            }],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }));
    }

    /// Has the second replica come, or go, and waits until the dispatcher knows.
    async fn second(&self, comes: bool) {
        if comes {
            self.publish(1, &json!({"ready": true}));
        } else {
            self.server.remove("endpointslices", "model-1");
        }
        has_slots(&self.dispatch.url, 1 + u32::from(comes)).await;
    }

    async fn serves(&self) {
        let asked = client().post(format!("{}/predict", self.dispatch.url)).body("x").send().await.unwrap();
        assert_eq!(asked.status(), 200);
    }
}

#[tokio::test]
async fn replicas_come_and_go_with_their_slices() {
    let scene = Scene::start().await;
    scene.second(true).await;
    // One that terminates gets nothing new, though it serves on.
    scene.publish(1, &json!({"ready": false, "serving": true, "terminating": true}));
    has_slots(&scene.dispatch.url, 1).await;
    scene.second(true).await;
    scene.server.bookmark();
    scene.second(false).await;
}

/// What happens while no watch is open is heard of all the same, after `trouble`, which ends the one that is.
async fn follows_after(trouble: impl FnOnce(&ApiServer)) {
    let scene = Scene::start().await;
    let server = &scene.server;
    server.until("a watch is open", |state| (state.watches_open == 1).then_some(())).await;
    trouble(server);
    server.until("it has ended", |state| (state.watches_ended > 0).then_some(())).await;
    scene.second(true).await;
    server.until("another is open", |state| (state.watches_open == 1).then_some(())).await;
    scene.second(false).await;
}

#[tokio::test]
async fn the_fleet_follows_whatever_happens_to_the_watch() {
    tokio::join!(
        follows_after(ApiServer::end_watches),
        follows_after(ApiServer::cut_watches),
        follows_after(ApiServer::expire_watches),
        follows_after(|server| {
            server.fault(Fault::answer(410).verb("watch").times(1));
            server.end_watches();
        }),
        follows_after(|server| {
            server.fault(Fault::answer(429).verb("list").times(1));
            server.fault(Fault::answer(503).verb("list").times(1));
            server.cut_watches();
        }),
    );
}

#[tokio::test]
async fn replicas_serve_on_while_the_api_server_is_away() {
    let scene = Scene::start().await;
    let server = &scene.server;
    server.kill().await;
    scene.serves().await;
    has_slots(&scene.dispatch.url, 1).await;
    // What changes meanwhile is heard of later: the server that is back remembers no changes.
    scene.publish(1, &json!({"ready": true}));
    server.restart().await;
    has_slots(&scene.dispatch.url, 2).await;
    server.terminate().await;
    scene.serves().await;
    server.remove("endpointslices", "model-1");
    server.restart().await;
    has_slots(&scene.dispatch.url, 1).await;
}

#[tokio::test]
async fn a_token_that_has_expired_is_read_again() {
    let scene = Scene::start().await;
    let server = &scene.server;
    let file = scene.folder.path().join("token");
    server.revoke(&std::fs::read_to_string(&file).unwrap());
    server.cut_watches();
    server
        .until("it was refused", |state| {
            state.calls.iter().any(|call| call.status == Some(401)).then_some(())
        })
        .await;
    scene.serves().await;
    std::fs::write(&file, server.token("dispatch")).unwrap();
    scene.second(true).await;
}

/// By itself, this dispatcher would look at its replicas a minute later.
#[tokio::test]
async fn a_replica_is_looked_at_when_its_slice_turns_ready() {
    let scene = Scene::with(&["--probe-interval", "60s"]).await;
    scene.server.until("a watch is open", |state| (state.watches_open == 1).then_some(())).await;
    scene.publish(1, &json!({"ready": false}));
    scene.second(true).await;
    scene.publish(1, &json!({"ready": false, "serving": true, "terminating": true}));
    has_slots(&scene.dispatch.url, 1).await;
}

#[tokio::test]
async fn a_pod_that_is_in_two_slices_is_one_replica() {
    let scene = Scene::start().await;
    let mut twin = scene.server.get("endpointslices", "model-0").unwrap();
    twin["metadata"] = json!({"name": "model-0-6", "labels": {"kubernetes.io/service-name": "model"}});
    (twin["addressType"], twin["endpoints"][0]["addresses"]) = ("IPv6".into(), json!(["::ffff:127.0.0.1"]));
    scene.server.apply(twin);
    // What comes after it has been heard of, so has it.
    scene.second(true).await;
    scene.second(false).await;
}

/// As while the API server shuts down: the watch is open, and nothing comes.
#[tokio::test]
async fn a_watch_that_is_silent_is_not_believed_for_long() {
    let scene = Scene::start().await;
    scene.server.until("a watch is open", |state| (state.watches_open == 1).then_some(())).await;
    scene.server.silence_watches(true);
    scene.second(true).await;
}
