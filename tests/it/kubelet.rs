//! A small cluster around the double of the API server: it plays the controllers and the kubelet for one Deployment, and
//! every pod is a real `elastic serve-model` process on loopback.
//!
//! Each pod has an address of its own (Linux has all of 127.0.0.0/8) and a port of its own, so each has a slice of its
//! own too.
//!
//! **Invariant**: a pod that is to end is `terminating` and not `ready` in its slice before its process gets SIGTERM, and
//! its slice is there until the process has ended. No process outlives the [`Kubelet`].
mod controllers;
mod pod;

pub(crate) use controllers::{first_to_go, has_condition};

use crate::api_server::{ApiServer, random_suffix};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What is run, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The Deployment whose pods are run; the Service has its name.
    pub(crate) deployment: &'static str,
    /// Flags of `elastic serve-model`, beside the address.
    pub(crate) flags: Vec<String>,
    /// Flags of containers that are to fail.
    pub(crate) failing_flags: Vec<String>,
    /// Time between two looks at a container's `/readyz`.
    pub(crate) probe_period: Duration,
    /// Pause before a container that ended is started again; it doubles each time.
    pub(crate) back_off: Duration,
    /// Whether every pod has a second slice with its address as IPv6.
    pub(crate) dual_stack: bool,
}

impl Default for Options {
    fn default() -> Self {
        let flags = ["--model", "efficientnet_lite0", "--threads", "1", "--log", "error"];
        Self {
            deployment: "model",
            flags: flags.map(ToOwned::to_owned).to_vec(),
            failing_flags: vec!["--no-such-flag".to_owned()],
            probe_period: Duration::from_millis(50),
            back_off: Duration::from_millis(200),
            dual_stack: false,
        }
    }
}

impl Options {
    /// The same with more flags of `elastic serve-model`.
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }
}

/// A pod that has ended as it was told to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) pod: String,
    /// What its process returned; `None` when it was killed, as when its grace period was over.
    pub(crate) code: Option<i32>,
}

/// What a pod is told.
enum Order {
    /// SIGTERM, and SIGKILL after the grace period.
    Terminate,
    /// SIGKILL now, as when it has too much memory.
    Kill,
}

/// What the pods' tasks and the test share.
struct Node {
    server: ApiServer,
    options: Options,
    is_failing: AtomicBool,
    ended: Mutex<Vec<Ended>>,
}

type Orders = Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Order>>>>;

/// The controllers and the node; all stops with this value.
pub(crate) struct Kubelet {
    node: Arc<Node>,
    orders: Orders,
    _running: JoinSet<()>,
}

impl Kubelet {
    /// Follows the Deployment, which may be there already or come later.
    pub(crate) fn start(server: &ApiServer, options: Options) -> Self {
        let node = Arc::new(Node {
            server: server.clone(),
            options,
            is_failing: AtomicBool::default(),
            ended: Mutex::default(),
        });
        let orders = Orders::default();
        let mut running = JoinSet::new();
        running.spawn(reconcile(Arc::clone(&node), Arc::clone(&orders)));
        Self { node, orders, _running: running }
    }

    /// Kills the process of a pod; it is started again, with a back-off.
    pub(crate) fn kill(&self, pod: &str) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = orders[pod].send(Order::Kill);
    }

    /// Whether containers that are started from now on fail at once.
    pub(crate) fn fail(&self, fail: bool) {
        self.node.is_failing.store(fail, Ordering::Relaxed);
    }

    /// The pods that were told to end and have, in that order.
    pub(crate) fn ended(&self) -> Vec<Ended> {
        self.node.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// After every change: what the controllers do of it, then what the node does.
async fn reconcile(node: Arc<Node>, orders: Orders) {
    let hash = format!("{}{}", random_suffix(), random_suffix());
    let mut pods = JoinSet::new();
    let mut pods_started = 0;
    loop {
        let version = node.server.version();
        controllers::scale(&node, &hash);
        controllers::publish(&node);
        controllers::report(&node);
        for pod in controllers::pods(&node) {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
            let order = orders.entry(name.clone()).or_insert_with(|| {
                let (order, received) = mpsc::unbounded_channel();
                pods.spawn(pod::run(Arc::clone(&node), name, pods_started, received));
                pods_started += 1;
                order
            });
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                let _ = order.send(Order::Terminate);
            }
        }
        node.server.changed_since(version).await;
    }
}
