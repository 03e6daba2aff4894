//! What the recordings do not show of the double.
use super::*;
use crate::kubelet::{Kubelet, Options};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

fn ready(state: &State) -> usize {
    let pods = state.store.list("pods", Some(NAMESPACE)).into_iter();
    pods.filter(|pod| crate::kubelet::has_condition(pod, "Ready")).count()
}

fn slices(state: &State) -> usize {
    state.store.list("endpointslices", Some(NAMESPACE)).len()
}

#[tokio::test]
async fn pods_are_processes_that_come_ready_serve_and_drain() {
    let server = ApiServer::start();
    server.apply_manifests();
    server.edit("deployments", "model", |deployment| deployment["spec"]["replicas"] = 2.into());
    // Long enough on its way out to be seen there.
    let options = Options { dual_stack: true, ..Options::default() }.with(&["--drain-delay", "1s"]);
    let kubelet = Kubelet::start(&server, options);
    server.until("two pods are ready", |state| (ready(state) == 2).then_some(())).await;
    let urls = server
        .until("four slices say so", |state| {
            let slices = state.store.list("endpointslices", Some(NAMESPACE)).into_iter();
            let ready = slices.filter(|slice| slice["endpoints"][0]["conditions"]["ready"] == true);
            let urls = ready.map(|slice| {
                let (address, port) = (&slice["endpoints"][0]["addresses"][0], &slice["ports"][0]["port"]);
                let address = address.as_str().unwrap();
                if slice["addressType"] == "IPv6" {
                    format!("http://[{address}]:{port}")
                } else {
                    format!("http://{address}:{port}")
                }
            });
            Some(urls.collect::<Vec<_>>()).filter(|urls| urls.len() == 4)
        })
        .await;
    for url in &urls {
        let answer = crate::support::client().get(format!("{url}/readyz")).send().await.unwrap();
        assert!(answer.status().is_success());
    }
    let deployments = Api::<Deployment>::default_namespaced(server.client(ADMIN));
    let status = server
        .until("the Deployment has them", |state| {
            let status = &state.store.get("deployments", NAMESPACE, "model")?["status"];
            (status["readyReplicas"] == 2).then(|| status.clone())
        })
        .await;
    assert_eq!((&status["replicas"], &status["unavailableReplicas"]), (&json!(2), &Value::Null));
    // The one that costs least goes, though it is the older one.
    let pods = Api::<Pod>::default_namespaced(server.client(ADMIN));
    let mut names: Vec<String> =
        server.list("pods").iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    let born = |name: &String| {
        server.get("pods", name).unwrap()["metadata"]["annotations"]["double/born"].to_string()
    };
    names.sort_by_key(born);
    let cheap = Patch::Merge(json!({"metadata": {"annotations": {DELETION_COST: "-1"}}}));
    pods.patch(&names[0], &PatchParams::default(), &cheap).await.unwrap();
    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    deployments.patch_scale("model", &PatchParams::default(), &one).await.unwrap();
    server
        .until("it is terminating, with its slices", |state| {
            let slices = state.store.list("endpointslices", Some(NAMESPACE)).into_iter();
            let going = slices.filter(|slice| {
                slice["endpoints"][0]["conditions"]
                    == json!({"ready": false, "serving": true, "terminating": true})
            });
            (going.count() == 2).then_some(())
        })
        .await;
    server.until("its slices are gone", |state| (slices(state) == 2).then_some(())).await;
    let ended = kubelet.ended();
    assert_eq!((ended.len(), &ended[0].pod, ended[0].code), (1, &names[0], Some(0)));
}

#[tokio::test]
async fn a_pod_that_crashes_is_started_again_and_one_that_always_does_backs_off() {
    let server = ApiServer::start();
    server.apply_manifests();
    let kubelet = Kubelet::start(&server, Options::default());
    let name = server
        .until("the pod is ready", |state| {
            let pods = state.store.list("pods", Some(NAMESPACE)).into_iter();
            let mut ready = pods.filter(|pod| crate::kubelet::has_condition(pod, "Ready"));
            ready.next().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        })
        .await;
    kubelet.fail(true);
    kubelet.kill(&name);
    let container = |state: &State| {
        Some(state.store.get("pods", NAMESPACE, &name)?["status"]["containerStatuses"][0].clone())
    };
    let failed = server
        .until("it has failed twice", |state| {
            container(state).filter(|container| container["restartCount"] == 2)
        })
        .await;
    assert_eq!(failed["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(failed["lastState"]["terminated"]["exitCode"], 2);
    let unavailable = |state: &State| {
        state.store.get("deployments", NAMESPACE, "model")?["status"]["unavailableReplicas"].as_u64()
    };
    server.until("the Deployment says so", unavailable).await;
    kubelet.fail(false);
    server.until("it is ready again", |state| (ready(state) == 1).then_some(())).await;
    assert!(kubelet.ended().is_empty());
}

#[tokio::test]
async fn rights_come_from_the_manifests_and_end_with_the_token() {
    let server = ApiServer::start();
    server.apply_manifests();
    let token = server.token("autoscale");
    let deployments = Api::<Deployment>::default_namespaced(server.client(&token));
    deployments.get_scale("model").await.unwrap();
    assert_eq!(code(&deployments.get_scale("dispatch").await.unwrap_err()), 403);
    assert_eq!(code(&deployments.list(&ListParams::default()).await.unwrap_err()), 403);
    let monitor = Api::<Deployment>::default_namespaced(server.client(&server.token("monitor")));
    assert_eq!(code(&monitor.get_scale("model").await.unwrap_err()), 403);
    server.revoke(&token);
    assert_eq!(code(&deployments.get_scale("model").await.unwrap_err()), 401);
    let last = server.calls().pop().unwrap();
    assert_eq!(
        (last.verb, last.resource.as_str(), last.name.as_str()),
        ("get", "deployments/scale", "model")
    );
    assert_eq!((last.user.as_str(), last.status), ("", Some(401)));
    let folder = tempfile::tempdir().unwrap();
    let file = server.kubeconfig(folder.path(), &server.token("autoscale"));
    let read = kube::config::Kubeconfig::read_from(file).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default()).await;
    let client = kube::Client::try_from(config.unwrap()).unwrap();
    Api::<Deployment>::default_namespaced(client).get("model").await.unwrap();
}

#[tokio::test]
async fn faults_meet_the_calls_they_match_as_often_as_they_say() {
    let server = ApiServer::start();
    server.apply_manifests();
    let deployments = Api::<Deployment>::default_namespaced(server.client(ADMIN));
    server.fault(Fault::answer(503).verb("get").resource("deployments/scale").times(2));
    server.fault(Fault::answer(409).verb("patch"));
    let two_replicas = json!({"spec": {"replicas": 2}});
    let two = Patch::Merge(two_replicas.clone());
    let parameters = PatchParams::default();
    let patch = || deployments.patch_scale("model", &parameters, &two);
    for expected in [503, 503] {
        assert_eq!(code(&deployments.get_scale("model").await.unwrap_err()), expected);
    }
    assert_eq!(deployments.get_scale("model").await.unwrap().spec.unwrap().replicas, Some(1));
    assert_eq!(code(&patch().await.unwrap_err()), 409);
    server.clear_faults();
    assert_eq!(patch().await.unwrap().spec.unwrap().replicas, Some(2));
    let last = server.calls().pop().unwrap();
    assert_eq!((last.body, last.content_type.as_str()), (two_replicas, "application/merge-patch+json"));
    server.fault(Fault::answer(429));
    let answer = crate::support::client().get(format!("{}/version", server.url())).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &http::HeaderValue::from(1))
    );
    server.clear_faults();
    server.fault(Fault::text(502, "<html>"));
    assert_eq!(code(&patch().await.unwrap_err()), 502);
    server.clear_faults();
    server.fault(Fault::slow(Duration::from_millis(30)).times(1));
    patch().await.unwrap();
    assert!(server.calls().pop().unwrap().at.elapsed() >= Duration::from_millis(30));
    server.fault(Fault::silence().verb("get"));
    let silent = tokio::time::timeout(Duration::from_millis(50), deployments.get_scale("model"));
    assert!(silent.await.is_err());
    assert_eq!(server.calls().pop().unwrap().status, None);
}

#[tokio::test]
async fn it_goes_down_and_comes_back_on_the_same_port() {
    let server = ApiServer::start();
    server.apply_manifests();
    let leases = Api::<Lease>::default_namespaced(server.client(ADMIN));
    for graceful in [true, false] {
        leases.list(&ListParams::default()).await.unwrap();
        if graceful {
            server.terminate().await;
        } else {
            server.kill().await;
        }
        assert!(
            matches!(leases.list(&ListParams::default()).await, Err(error) if !matches!(error, kube::Error::Api(_)))
        );
        server.restart().await;
    }
    leases.list(&ListParams::default()).await.unwrap();
}

/// Opens a watch of the Deployments.
async fn watch(server: &ApiServer, more: &str) -> Watch {
    let url = format!("{}/apis/apps/v1/namespaces/elastic/deployments?watch=true{more}", server.url());
    Watch::new(crate::support::client().get(url).bearer_auth(ADMIN).send().await.unwrap())
}

/// The answer to a watch.
pub(super) struct Watch {
    answer: reqwest::Response,
    read: Vec<u8>,
}

impl Watch {
    pub(super) fn new(answer: reqwest::Response) -> Self {
        Self { answer, read: Vec::new() }
    }

    /// The next event; `None` at the end, an error when the connection broke.
    pub(super) async fn next(&mut self) -> reqwest::Result<Option<Value>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let Some(more) = self.answer.chunk().await? else { return Ok(None) };
            self.read.extend(more);
        }
    }
}

#[tokio::test]
async fn open_watches_are_cut_ended_expired_or_silent() {
    let server = ApiServer::start();
    server.apply_manifests();
    let from = format!("&resourceVersion={}&allowWatchBookmarks=true&timeoutSeconds=60", server.version());
    let mut replicas = 1;
    let mut change = || {
        replicas += 1;
        server.edit("deployments", "model", |deployment| deployment["spec"]["replicas"] = replicas.into());
        replicas
    };
    let mut cut = watch(&server, &from).await;
    let wanted = change();
    assert_eq!(cut.next().await.unwrap().unwrap()["object"]["spec"]["replicas"], wanted);
    server.cut_watches();
    assert!(cut.next().await.is_err());

    let from = format!("&resourceVersion={}&allowWatchBookmarks=true&timeoutSeconds=60", server.version());
    let mut ended = watch(&server, &from).await;
    server.bookmark();
    assert_eq!(ended.next().await.unwrap().unwrap()["type"], "BOOKMARK");
    server.silence_watches(true);
    let wanted = change();
    let silent = tokio::time::timeout(Duration::from_millis(30), ended.next()).await;
    assert!(silent.is_err());
    server.silence_watches(false);
    assert_eq!(ended.next().await.unwrap().unwrap()["object"]["spec"]["replicas"], wanted);
    server.end_watches();
    assert!(ended.next().await.unwrap().is_none());

    let mut expired = watch(&server, &from).await;
    assert_eq!(expired.next().await.unwrap().unwrap()["object"]["spec"]["replicas"], wanted);
    server.expire_watches();
    assert_eq!(expired.next().await.unwrap().unwrap()["object"]["code"], 410);
    assert!(expired.next().await.unwrap().is_none());

    assert_eq!(server.shared.look(|state| state.count("watch", "deployments")), 3);
    assert_eq!(server.calls()[0].query["timeoutSeconds"], "60");
    server.fault(Fault::answer(410).verb("watch").times(1));
    let mut refused = watch(&server, "&resourceVersion=0").await;
    assert_eq!(refused.next().await.unwrap().unwrap()["type"], "ERROR");

    // An object that is no longer asked for is as good as gone.
    let mut labelled = watch(&server, "&labelSelector=app.kubernetes.io/name=model").await;
    assert_eq!(labelled.next().await.unwrap().unwrap()["type"], "ADDED");
    server.edit("deployments", "model", |deployment| deployment["metadata"]["labels"] = json!({}));
    assert_eq!(labelled.next().await.unwrap().unwrap()["type"], "DELETED");
    server.until("no other is open", |state| (state.watches_open == 1).then_some(())).await;
}
