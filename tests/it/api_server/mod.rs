//! A double of the Kubernetes API server on loopback, for tests of what speaks to one.
//!
//! It stores objects, serves the verbs that this project uses, and some it must not use, and answers as a real server
//! of version 1.36 does: `recordings` plays recorded exchanges against it. A test reaches around the API to put
//! objects there ([`ApiServer::apply`], [`ApiServer::edit`]), to make things go wrong ([`ApiServer::fault`] and its
//! neighbours), and to wait for what it expects ([`ApiServer::until`]) instead of sleeping.
//!
//! ```ignore
//! let server = ApiServer::start();
//! server.apply_manifests();
//! let file = server.kubeconfig(folder.path(), &server.token("autoscale"));
//! server.fault(Fault::answer(503).resource("deployments/scale").times(3));
//! server.until("three replicas are asked for", |state| {
//!     (state.store.replicas(NAMESPACE, "model")? == 3).then_some(())
//! }).await;
//! ```
//!
//! **Invariant**: whoever waits with `until` sees every state that a client could have seen last: each call and each
//! change wakes it.
mod access;
mod connections;
mod faults;
mod kinds;
mod patch;
mod recordings;
mod routes;
mod status;
mod store;
mod tests;
mod verbs;
mod watch;

pub(crate) use access::ADMIN;
pub(crate) use faults::Fault;
pub(crate) use patch::DELETION_COST;
pub(crate) use store::{Store, now, random_suffix};

use connections::{Connections, Door};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch as ticks;
use tokio::time::Instant;

/// The namespace that everything of ours is in.
pub(crate) const NAMESPACE: &str = "elastic";
/// Longest time that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request, as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Who asked: `system:serviceaccount:elastic:autoscale`; empty for a bad token.
    pub(crate) user: String,
    /// get, list, watch, create, update, patch, delete.
    pub(crate) verb: &'static str,
    /// As a Role names it: `deployments/scale`.
    pub(crate) resource: String,
    /// The object's name, if the path or a field selector has one.
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    pub(crate) body: Value,
    /// What was answered; `None` until then.
    pub(crate) status: Option<u16>,
    pub(crate) at: Instant,
}

/// All that a test can look at.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) store: Store,
    /// Every request so far, in order.
    pub(crate) calls: Vec<Call>,
    /// Watches that are open now.
    pub(crate) watches_open: usize,
    /// Watches that were open and are no more.
    pub(crate) watches_ended: usize,
    tokens: access::Tokens,
    faults: Vec<Fault>,
    orders: watch::Orders,
    old_storage: bool,
}

impl State {
    /// How often a verb was asked of a resource.
    pub(crate) fn count(&self, verb: &str, resource: &str) -> usize {
        self.calls.iter().filter(|call| call.verb == verb && call.resource == resource).count()
    }
}

/// What requests, watches and the test share.
struct Shared {
    state: Mutex<State>,
    ticks: ticks::Sender<u64>,
}

impl Shared {
    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.ticks.send_modify(|ticks| *ticks += 1);
        changed
    }
}

/// The double; it serves until the last clone is dropped.
#[derive(Clone)]
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
}

impl ApiServer {
    /// A cluster with the namespaces `default` and `elastic`, and nothing in them.
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), ticks: ticks::channel(0).0 });
        let router = axum::Router::new().fallback(routes::answer).with_state(Arc::clone(&shared));
        let server = Self { shared, connections: Arc::new(Connections::start(router)) };
        for name in ["default", NAMESPACE] {
            server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        server
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.connections.address)
    }

    /// A new token of a `ServiceAccount` of our namespace; its Roles say what it may do.
    pub(crate) fn token(&self, account: &str) -> String {
        self.shared.change(|state| state.tokens.issue(NAMESPACE, account))
    }

    /// From now on the token is answered 401, as when it has expired.
    pub(crate) fn revoke(&self, token: &str) {
        self.shared.change(|state| state.tokens.revoke(token));
    }

    /// Writes a kubeconfig into `folder`. The token is in the file `token` beside it, as a pod finds its own: writing
    /// another one there renews it.
    pub(crate) fn kubeconfig(&self, folder: &Path, token: &str) -> PathBuf {
        std::fs::write(folder.join("token"), token).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": self.url()}}],
            "users": [{"name": "double", "user": {"tokenFile": folder.join("token")}}],
            "contexts": [{
                "name": "double", "context": {"cluster": "double", "user": "double", "namespace": NAMESPACE},
            }],
        });
        let file = folder.join("kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// A client that does not try again by itself.
    pub(crate) fn client(&self, token: &str) -> kube::Client {
        elastic::net::client::install_tls();
        let mut config = kube::Config::new(self.url().parse().unwrap());
        NAMESPACE.clone_into(&mut config.default_namespace);
        config.auth_info.token = Some(token.to_owned().into());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// Creates an object, or merges it into the one of the same name; status included, and past all rights.
    pub(crate) fn apply(&self, object: Value) -> Value {
        let kind = kinds::of(&object);
        let namespace =
            if kind.namespaced { object["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE) } else { "" };
        let (namespace, name) =
            (namespace.to_owned(), object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        self.shared.change(|state| {
            let mut object = object;
            if let Some(existing) = state.store.get(kind.stored_as, &namespace, &name) {
                let mut merged = existing.clone();
                patch::merge(&mut merged, &object);
                object = merged;
            } else {
                store::Store::complete(kind, &mut object, &namespace);
            }
            state.store.put(kind, object)
        })
    }

    /// Applies what is in `deploy/base`.
    pub(crate) fn apply_manifests(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base");
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            for document in documents.into_iter().filter(kinds::is_known) {
                self.apply(document);
            }
        }
    }

    /// An object of our namespace: `get("deployments", "model")`.
    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.shared.look(|state| state.store.get(plural, NAMESPACE, name).cloned())
    }

    /// The objects of a kind in our namespace.
    pub(crate) fn list(&self, plural: &str) -> Vec<Value> {
        self.shared.look(|state| state.store.list(plural, Some(NAMESPACE)).into_iter().cloned().collect())
    }

    /// Changes an object of our namespace, status included and past all rights; `None` when it is not there.
    pub(crate) fn edit(&self, plural: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Option<Value> {
        self.shared.change(|state| {
            let mut object = state.store.get(plural, NAMESPACE, name)?.clone();
            edit(&mut object);
            Some(state.store.put(kinds::stored(plural), object))
        })
    }

    /// Removes an object of our namespace at once.
    pub(crate) fn remove(&self, plural: &str, name: &str) {
        self.shared.change(|state| state.store.remove(kinds::stored(plural), NAMESPACE, name));
    }

    /// Has a pod end, as DELETE does: whoever plays the kubelet removes it afterwards.
    pub(crate) fn terminate_pod(&self, name: &str) {
        self.edit("pods", name, |pod| verbs::mark_terminating(pod, None));
    }

    /// Forgets all changes so far: a watch or a page from before now is too old.
    pub(crate) fn compact(&self) {
        self.shared.change(|state| state.store.oldest = state.store.version);
    }

    /// Whether the storage is one that cannot stream lists (`sendInitialEvents`).
    pub(crate) fn old_storage(&self, old: bool) {
        self.shared.change(|state| state.old_storage = old);
    }

    /// Adds a fault behind those that are there; the first that matches a call has it.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.change(|state| state.faults.push(fault));
    }

    /// Ends every fault of calls. Those that were met with silence stay so.
    pub(crate) fn clear_faults(&self) {
        self.shared.change(|state| state.faults.clear());
    }

    /// Breaks the connections of open watches off.
    pub(crate) fn cut_watches(&self) {
        self.shared.change(|state| state.orders.cut += 1);
    }

    /// Ends open watches as when their time is up.
    pub(crate) fn end_watches(&self) {
        self.shared.change(|state| state.orders.ended += 1);
    }

    /// Ends open watches with an error 410.
    pub(crate) fn expire_watches(&self) {
        self.shared.change(|state| state.orders.expired += 1);
    }

    /// Keeps open watches, and those to come, open but silent, or has them tell what they missed.
    pub(crate) fn silence_watches(&self, silent: bool) {
        self.shared.change(|state| state.orders.silent = silent);
    }

    /// Sends a bookmark to the open watches that want any.
    pub(crate) fn bookmark(&self) {
        self.shared.change(|state| state.orders.bookmarks += 1);
    }

    /// As on SIGTERM: new connections are refused, kept ones closed, open watches stay and are silent.
    pub(crate) async fn terminate(&self) {
        self.silence_watches(true);
        self.connections.set(Door::Closing).await;
    }

    /// As on SIGKILL: new connections are refused, all others cut.
    pub(crate) async fn kill(&self) {
        self.connections.set(Door::Shut).await;
    }

    /// Comes back on the same port. A new process remembers no changes from before.
    pub(crate) async fn restart(&self) {
        self.kill().await;
        self.compact();
        self.silence_watches(false);
        self.connections.set(Door::Open).await;
    }

    /// Every request so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.look(|state| state.calls.clone())
    }

    /// Waits until `find` finds what it looks for, and returns it. It looks again after every call and change.
    ///
    /// # Panics
    /// When it has not found it after a minute; `what` says what that was.
    pub(crate) async fn until<T>(&self, what: &str, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let mut ticks = self.shared.ticks.subscribe();
        let found = async {
            loop {
                if let Some(found) = self.shared.look(&mut find) {
                    return found;
                }
                ticks.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("waited in vain until {what}; {}", self.shared.look(State::summary)))
    }

    /// The `resourceVersion` of the newest change.
    pub(crate) fn version(&self) -> u64 {
        self.shared.look(|state| state.store.version)
    }

    /// Resolves once something has changed after this version.
    pub(crate) async fn changed_since(&self, version: u64) {
        let mut ticks = self.shared.ticks.subscribe();
        while self.version() <= version {
            ticks.changed().await.unwrap();
        }
    }
}

impl State {
    /// What a test that waited in vain is told.
    fn summary(&self) -> String {
        let calls = self.calls.iter().rev().take(10).rev();
        let calls: Vec<String> = calls
            .map(|call| format!("{} {} {:?} {:?}", call.verb, call.path, call.status, call.body))
            .collect();
        format!("{} calls, of which the last are\n{}", self.calls.len(), calls.join("\n"))
    }
}
