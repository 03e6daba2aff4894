//! Replicas that are the endpoints of a Kubernetes Service, listed and watched.
//!
//! Pods that are not ready yet are learned too: they are looked at directly, and used the moment they are ready
//! rather than a probe period of the kubelet later. A pod that terminates gets nothing new at once.
//!
//! **Invariant**: it needs `list` and `watch` on `endpointslices` of one namespace and nothing else; a watch is short
//! and followed by a list, since an open watch does not mean a live server. While the API server is away, the
//! replicas of before stay: they are looked at themselves.
use super::{Discovery, Fleet, Running};
use crate::dispatch::pool::Source;
use crate::net::backoff::Backoff;
use crate::net::kubernetes::{Asked, Cluster};
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{ListParams, WatchEvent, WatchParams};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

const WATCH_S: u32 = 15;
/// Longest time to wait for a list, and for a watch to begin.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A watch that ends sooner than this was refused in all but name.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// The endpoints of one Service.
pub(in crate::dispatch) struct Slices {
    cluster: Cluster,
    service: String,
}

/// An endpoint that takes requests, or will.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    url: String,
    /// Which pod it is; the same pod may be in several slices.
    pod: Option<String>,
    ready: bool,
    ends: bool,
}

impl Slices {
    /// The Service `service` in the cluster that the service account or the kubeconfig names.
    pub(in crate::dispatch) async fn connect(
        namespace: Option<String>,
        service: String,
    ) -> anyhow::Result<Self> {
        let cluster = Cluster::infer(namespace, CALL_TIMEOUT).await.context("--replica-service")?;
        Ok(Self { cluster, service })
    }

    /// Lists, then watches until the watch ends. Whatever is heard goes to `fleet`; `ready` are those that were ready.
    async fn follow(&self, fleet: &Fleet, ready: &mut BTreeSet<String>) -> anyhow::Result<()> {
        let selector = format!("kubernetes.io/service-name={}", self.service);
        let slices = self.cluster.api::<EndpointSlice>();
        let asked = |verb| Asked { verb, group: "discovery.k8s.io", resource: "endpointslices", name: None };
        let parameters = ListParams::default().labels(&selector);
        let list = self.cluster.call(&asked("list"), slices.list(&parameters)).await?;
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let mut known: BTreeMap<String, Vec<Found>> =
            list.items.iter().map(|slice| (name(slice), found(slice))).collect();
        tell(fleet, &known, ready);
        let parameters = WatchParams::default().labels(&selector).timeout(WATCH_S);
        let watch = self.cluster.call(&asked("watch"), slices.watch(&parameters, &version)).await?;
        let end = tokio::time::sleep(Duration::from_secs(u64::from(WATCH_S) + 5));
        let mut events = pin!(watch.take_until(end));
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                    known.insert(name(&slice), found(&slice));
                }
                WatchEvent::Deleted(slice) => {
                    known.remove(&name(&slice));
                }
                WatchEvent::Bookmark(_) => continue,
                // Most likely the version is too old by now: list again.
                WatchEvent::Error(error) => {
                    tracing::debug!(version, error = error.message, "the watch of replicas ended");
                    return Ok(());
                }
            }
            tell(fleet, &known, ready);
        }
        Ok(())
    }
}

impl Discovery for Slices {
    fn source(&self) -> Source {
        Source::Slices
    }

    fn run(self: Box<Self>, fleet: Fleet, shutdown: Shutdown) -> Running {
        Box::pin(async move {
            let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
            let mut ready = BTreeSet::new();
            loop {
                let began = Instant::now();
                let followed = tokio::select! {
                    () = shutdown.drained() => return,
                    followed = self.follow(&fleet, &mut ready) => followed,
                };
                if followed.is_ok() && began.elapsed() >= WATCH_MIN {
                    backoff.reset();
                    continue;
                }
                let pause = backoff.failed();
                if let Err(error) = followed {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        service = self.service,
                        error,
                        ?pause,
                        "cannot watch the replicas' Service"
                    );
                }
                tokio::select! {
                    () = shutdown.drained() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        })
    }
}

/// Tells which replicas there are, each once, and has those looked at that have just become ready.
fn tell(fleet: &Fleet, known: &BTreeMap<String, Vec<Found>>, ready: &mut BTreeSet<String>) {
    let all = each_once(known.values().flatten());
    fleet.set(&all.iter().map(|found| found.url.clone()).collect());
    let ready_now: BTreeSet<String> =
        all.iter().filter(|found| found.ready).map(|found| found.url.clone()).collect();
    for url in ready_now.difference(ready) {
        fleet.look(url);
    }
    *ready = ready_now;
}

/// One endpoint for every pod that does not end. A pod may be in two slices at the same time: while the controller
/// moves it, and where it has addresses of both families, of which IPv4 is taken.
fn each_once<'a>(all: impl Iterator<Item = &'a Found> + Clone) -> Vec<&'a Found> {
    let ending: BTreeSet<&String> =
        all.clone().filter(|found| found.ends).filter_map(|found| found.pod.as_ref()).collect();
    let mut chosen: BTreeMap<&String, &Found> = BTreeMap::new();
    let ends = |found: &Found| found.ends || found.pod.as_ref().is_some_and(|pod| ending.contains(pod));
    for found in all.filter(|found| !ends(found)) {
        let of_the_pod = chosen.entry(found.pod.as_ref().unwrap_or(&found.url)).or_insert(found);
        let is_six = |found: &Found| found.url.contains('[');
        if (is_six(found), !found.ready) < (is_six(of_the_pod), !of_the_pod.ready) {
            *of_the_pod = found;
        }
    }
    chosen.into_values().collect()
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// A slice's endpoints, at its port named `http`, else at its first.
fn found(slice: &EndpointSlice) -> Vec<Found> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("http"));
    let Some(port) = named.or(ports.first()).and_then(|port| port.port) else { return Vec::new() };
    let url = |address: &String| match slice.address_type.as_str() {
        "IPv6" => format!("http://[{address}]:{port}"),
        _ => format!("http://{address}:{port}"),
    };
    let of_one = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let found = Found {
            // The API's word: where it is not said, it is ready.
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            ends: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            pod: endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()),
            // All addresses of an endpoint lead to the same pod; the first is to be used.
            url: endpoint.addresses.first().map(url)?,
        };
        Some(found)
    };
    slice.endpoints.iter().flatten().filter_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(addresses: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": { "name": "model-1" },
            "addressType": "IPv4",
            "endpoints": addresses,
            "ports": [
                { "name": "metrics", "port": 9000, "protocol": "TCP" },
                { "name": "http", "port": 8081, "protocol": "TCP" },
            ],
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_terminate_are_left_out_and_those_that_start_are_not() {
        let endpoint = |address: &str, ready: bool, terminating: bool| {
            json!({
                "addresses": [address],
                "conditions": { "ready": ready, "serving": ready, "terminating": terminating },
            })
        };
        let found = urls(&[slice(&json!([
            endpoint("10.0.0.1", true, false),
            endpoint("10.0.0.2", false, false),
            endpoint("10.0.0.3", false, true),
        ]))]);
        assert_eq!(found, ["http://10.0.0.1:8081", "http://10.0.0.2:8081"]);
    }

    #[test]
    fn a_service_without_pods_has_no_endpoints_at_all() {
        let empty: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "other" }, "addressType": "IPv4", "endpoints": null, "ports": null,
        }))
        .unwrap();
        assert!(urls(&[empty]).is_empty());
        assert!(urls(&[slice(&json!(null))]).is_empty());
        let six =
            EndpointSlice { address_type: "IPv6".into(), ..slice(&json!([{ "addresses": ["fd00::1"] }])) };
        assert_eq!(urls(&[six]), ["http://[fd00::1]:8081"]);
    }

    #[test]
    fn a_pod_in_two_slices_is_one_replica() {
        let of = |addresses: [&str; 2], terminating: bool| {
            slice(&json!([
                { "addresses": [addresses[0]], "targetRef": { "kind": "Pod", "uid": "a" } },
                { "addresses": [addresses[1]], "targetRef": { "kind": "Pod", "uid": "b" },
                  "conditions": { "terminating": terminating } },
            ]))
        };
        let four = of(["10.0.0.1", "10.0.0.2"], false);
        let six = EndpointSlice { address_type: "IPv6".into(), ..of(["fd00::1", "fd00::2"], false) };
        let both = ["http://10.0.0.1:8081", "http://10.0.0.2:8081"];
        assert_eq!(urls(&[six.clone(), four.clone()]), both);
        assert_eq!(urls(&[four.clone(), six.clone()]), both);
        assert_eq!(urls(std::slice::from_ref(&six)), ["http://[fd00::1]:8081", "http://[fd00::2]:8081"]);
        // What one slice has heard of already, the other will too.
        assert_eq!(urls(&[of(["10.0.0.1", "10.0.0.2"], true), six]), ["http://10.0.0.1:8081"]);
    }

    fn urls(slices: &[EndpointSlice]) -> Vec<String> {
        let all: Vec<Found> = slices.iter().flat_map(found).collect();
        let urls: BTreeSet<_> = each_once(all.iter()).into_iter().map(|found| found.url.clone()).collect();
        urls.into_iter().collect()
    }

    /// A double of the API server: a list, then one event of a watch whenever the test sends one.
    async fn api(events: tokio::sync::mpsc::UnboundedReceiver<serde_json::Value>) -> kube::Client {
        use axum::body::Body;
        use axum::response::IntoResponse as _;
        let events = std::sync::Arc::new(tokio::sync::Mutex::new(events));
        let answer = move |uri: http::Uri| {
            let events = std::sync::Arc::clone(&events);
            async move {
                let query = uri.query().unwrap_or_default();
                assert!(query.contains("labelSelector=kubernetes.io%2Fservice-name%3Dmodel"), "{query}");
                if !query.contains("watch=true") {
                    let first = slice(&json!([{ "addresses": ["10.0.0.1"] }]));
                    let list = json!({
                        "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
                        "metadata": { "resourceVersion": "7" }, "items": [first],
                    });
                    return axum::Json(list).into_response();
                }
                assert!(query.contains("resourceVersion=7"), "{query}");
                let lines = futures_util::stream::unfold(events, |events| async move {
                    let event = events.lock().await.recv().await?;
                    Some((Ok::<_, std::io::Error>(format!("{event}\n")), events))
                });
                Body::from_stream(lines).into_response()
            }
        };
        let listener = crate::net::serve::bind("127.0.0.1", 0).await.unwrap();
        let url = crate::net::serve::local_url(&listener).unwrap();
        let router = axum::Router::new()
            .route("/apis/discovery.k8s.io/v1/namespaces/elastic/endpointslices", axum::routing::get(answer));
        let serving =
            crate::net::serve::serve(listener, router, crate::net::serve::Limits::default(), Shutdown::new());
        let mut server = tokio::task::JoinSet::new();
        server.spawn(serving);
        server.detach_all();
        crate::net::client::install_tls();
        kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn the_fleet_follows_the_watch() {
        let (events, received) = tokio::sync::mpsc::unbounded_channel();
        let cluster = Cluster::with_client(api(received).await, "elastic".to_owned(), CALL_TIMEOUT);
        let slices = Slices { cluster, service: "model".to_owned() };
        let pool = crate::dispatch::pool::Pool::new(&crate::dispatch::tests::config());
        let fleet = Fleet::new(std::sync::Arc::clone(&pool), Source::Slices, std::sync::Arc::default());
        let shutdown = Shutdown::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(Box::new(slices).run(fleet, shutdown.clone()));
        let known = || pool.known().iter().map(|known| known.url.to_string()).collect::<Vec<_>>();
        let becomes = async |wanted: &[&str]| {
            while known() != wanted {
                tokio::task::yield_now().await;
            }
        };
        let event =
            |kind: &str, endpoints: serde_json::Value| json!({ "type": kind, "object": slice(&endpoints) });
        becomes(&["http://10.0.0.1:8081"]).await;
        let both = json!([{ "addresses": ["10.0.0.1"] }, { "addresses": ["10.0.0.2"] }]);
        events.send(event("MODIFIED", both)).unwrap();
        becomes(&["http://10.0.0.1:8081", "http://10.0.0.2:8081"]).await;
        let one_ends = json!([
            { "addresses": ["10.0.0.1"], "conditions": { "terminating": true } },
            { "addresses": ["10.0.0.2"] },
        ]);
        events.send(event("MODIFIED", one_ends)).unwrap();
        becomes(&["http://10.0.0.2:8081"]).await;
        // Too old: it lists again.
        events.send(json!({ "type": "ERROR", "object": { "kind": "Status", "status": "Failure", "code": 410, "message": "too old", "reason": "Expired" } })).unwrap();
        becomes(&["http://10.0.0.1:8081"]).await;
        shutdown.drain();
        tasks.join_all().await;
    }
}
