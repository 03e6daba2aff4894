//! Replicas that are the endpoints of a Kubernetes Service, listed and watched.
//!
//! Pods that are not ready yet are learned too: they are looked at directly, and used the moment they are ready
//! rather than a probe period of the kubelet later. A pod that terminates gets nothing new at once.
//!
//! **Invariant**: it needs `list` and `watch` on `endpointslices` of one namespace and nothing else; a watch lasts a
//! minute and is followed by a list, since an open watch does not mean a live server.
use super::{Discovery, Fleet, Running};
use crate::dispatch::pool::Source;
use crate::net::client::install_tls;
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Config};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

const WATCH_S: u32 = 60;
/// Longest time to wait for a list, and for a watch to begin.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The endpoints of one Service.
pub(in crate::dispatch) struct Slices {
    slices: Api<EndpointSlice>,
    service: String,
}

impl Slices {
    /// The Service `service` in the cluster that the service account or the kubeconfig names.
    pub(in crate::dispatch) async fn connect(
        namespace: Option<String>,
        service: String,
    ) -> anyhow::Result<Self> {
        install_tls();
        let mut config = Config::infer().await.context(
            "--replica-service needs a cluster: run in a pod with a service account, or set KUBECONFIG",
        )?;
        config.connect_timeout = Some(CALL_TIMEOUT);
        // A watch is quiet for as long as nothing changes.
        config.read_timeout = None;
        config.default_retry = false;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("cannot speak to the Kubernetes API server")?;
        Ok(Self::with_client(client, &namespace, service))
    }

    pub(super) fn with_client(client: Client, namespace: &str, service: String) -> Self {
        Self { slices: Api::namespaced(client, namespace), service }
    }

    fn selector(&self) -> String {
        format!("kubernetes.io/service-name={}", self.service)
    }

    /// Lists, then watches until the watch ends. Whatever is heard goes to `fleet`.
    async fn follow(&self, fleet: &Fleet) -> anyhow::Result<()> {
        let parameters = ListParams::default().labels(&self.selector());
        let list = self.slices.list(&parameters);
        let list = tokio::time::timeout(CALL_TIMEOUT, list).await.context("listing timed out")??;
        let mut version = list.metadata.resource_version.clone().unwrap_or_default();
        let mut known: BTreeMap<String, BTreeSet<String>> =
            list.items.iter().map(|slice| (name(slice), urls(slice))).collect();
        tell(fleet, &known);
        let parameters = WatchParams::default().labels(&self.selector()).timeout(WATCH_S);
        let watch = self.slices.watch(&parameters, &version);
        let watch = tokio::time::timeout(CALL_TIMEOUT, watch).await.context("watching timed out")??;
        let mut events =
            pin!(watch.take_until(tokio::time::sleep(Duration::from_secs(u64::from(WATCH_S) + 5))));
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                    version = slice.metadata.resource_version.clone().unwrap_or(version);
                    known.insert(name(&slice), urls(&slice));
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
            tell(fleet, &known);
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
            let mut pause = PAUSE_MIN;
            loop {
                let followed = tokio::select! {
                    () = shutdown.drained() => return,
                    followed = self.follow(&fleet) => followed,
                };
                match followed {
                    Ok(()) => pause = PAUSE_MIN,
                    Err(error) => {
                        // Known replicas stay: they are looked at themselves.
                        let error = format!("{error:#}");
                        tracing::warn!(
                            service = self.service,
                            error,
                            ?pause,
                            "cannot watch the replicas' Service"
                        );
                        tokio::select! {
                            () = shutdown.drained() => return,
                            () = tokio::time::sleep(pause) => {}
                        }
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
        })
    }
}

fn tell(fleet: &Fleet, known: &BTreeMap<String, BTreeSet<String>>) {
    fleet.set(&known.values().flatten().cloned().collect());
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// Base URLs of a slice's endpoints that do not terminate, at its port named `http`, else at its first.
fn urls(slice: &EndpointSlice) -> BTreeSet<String> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("http"));
    let Some(port) = named.or(ports.first()).and_then(|port| port.port) else { return BTreeSet::new() };
    let stays = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        !conditions.and_then(|conditions| conditions.terminating).unwrap_or(false)
    };
    let endpoints = slice.endpoints.iter().flatten();
    let addresses = endpoints.filter(stays).flat_map(|endpoint| &endpoint.addresses);
    addresses
        .map(|address| match slice.address_type.as_str() {
            "IPv6" => format!("http://[{address}]:{port}"),
            _ => format!("http://{address}:{port}"),
        })
        .collect()
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
        let found = urls(&slice(&json!([
            endpoint("10.0.0.1", true, false),
            endpoint("10.0.0.2", false, false),
            endpoint("10.0.0.3", false, true),
        ])));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["http://10.0.0.1:8081", "http://10.0.0.2:8081"]);
    }

    #[test]
    fn a_service_without_pods_has_no_endpoints_at_all() {
        let empty: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "other" }, "addressType": "IPv4", "endpoints": null, "ports": null,
        }))
        .unwrap();
        assert!(urls(&empty).is_empty());
        assert!(urls(&slice(&json!(null))).is_empty());
        let six =
            EndpointSlice { address_type: "IPv6".into(), ..slice(&json!([{ "addresses": ["fd00::1"] }])) };
        assert_eq!(urls(&six).into_iter().collect::<Vec<_>>(), ["http://[fd00::1]:8081"]);
    }

    /// A double of the API server: a list, then one event of a watch whenever the test sends one.
    async fn api(events: tokio::sync::mpsc::UnboundedReceiver<serde_json::Value>) -> Client {
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
        install_tls();
        Client::try_from(Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn the_fleet_follows_the_watch() {
        let (events, received) = tokio::sync::mpsc::unbounded_channel();
        let slices = Slices::with_client(api(received).await, "elastic", "model".to_owned());
        let pool = crate::dispatch::pool::Pool::new(&crate::dispatch::tests::config());
        let fleet = Fleet::new(std::sync::Arc::clone(&pool), Source::Slices);
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
