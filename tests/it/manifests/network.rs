//! Services, network policies, disruption budgets and what Prometheus scrapes: they select the pods that are there.
use super::objects::ServiceMonitor;
use super::render::{FOLDER_MONITORED, Objects, PORTS, argument, arguments, container, name, read, rendered};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use std::collections::BTreeMap;

/// A pod, or who else opens a connection.
struct Party {
    namespace: &'static str,
    labels: BTreeMap<String, String>,
}

impl Party {
    fn of(objects: &Objects, mode: &str) -> Self {
        let template = objects.one::<Deployment>(mode).spec.unwrap().template;
        Self { namespace: "elastic", labels: template.metadata.unwrap().labels.unwrap() }
    }

    fn elsewhere(namespace: &'static str) -> Self {
        Self { namespace, labels: BTreeMap::new() }
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    assert_eq!(selector.match_expressions, None, "this check does not know expressions");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a list of peers and ports lets a connection through. No list is everybody, or every port.
fn lets_through(
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    other: &Party,
    (protocol, port): (&str, i32),
) -> bool {
    let is_peer = |peer: &NetworkPolicyPeer| {
        assert_eq!(peer.ip_block, None, "this check does not know addresses");
        let its_namespace =
            BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), other.namespace.to_owned())]);
        let namespace = match &peer.namespace_selector {
            Some(selector) => selects(selector, &its_namespace),
            None => other.namespace == "elastic",
        };
        namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &other.labels))
    };
    let is_port = |known: &NetworkPolicyPort| {
        assert_eq!(known.end_port, None, "this check does not know ranges");
        known.protocol.as_deref().unwrap_or("TCP") == protocol
            && known.port.as_ref().is_none_or(|known| *known == IntOrString::Int(port))
    };
    peers.is_none_or(|peers| peers.iter().any(is_peer)) && ports.is_none_or(|ports| ports.iter().any(is_port))
}

/// Whether a pod of the namespace takes a connection from `from`.
fn takes(policies: &[NetworkPolicy], from: &Party, to: &Party, port: (&str, i32)) -> bool {
    let applying = applying(policies, to, "Ingress");
    let mut rules = applying.iter().flat_map(|policy| policy.spec.as_ref().unwrap().ingress.iter().flatten());
    applying.is_empty()
        || rules.any(|rule| lets_through(rule.from.as_deref(), rule.ports.as_deref(), from, port))
}

/// Whether a pod of the namespace may open a connection to `to`.
fn may_reach(policies: &[NetworkPolicy], from: &Party, to: &Party, port: (&str, i32)) -> bool {
    let applying = applying(policies, from, "Egress");
    let mut rules = applying.iter().flat_map(|policy| policy.spec.as_ref().unwrap().egress.iter().flatten());
    applying.is_empty() || rules.any(|rule| lets_through(rule.to.as_deref(), rule.ports.as_deref(), to, port))
}

fn applying<'a>(policies: &'a [NetworkPolicy], pod: &Party, direction: &str) -> Vec<&'a NetworkPolicy> {
    let applies = |policy: &&NetworkPolicy| {
        let spec = policy.spec.as_ref().unwrap();
        // What is not said is derived from the rules that there are: say it.
        let directions = spec.policy_types.as_ref().unwrap();
        directions.iter().any(|known| known == direction)
            && spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
    };
    policies.iter().filter(applies).collect()
}

/// Who has to reach whom.
const TALKS: [(&str, &str); 6] = [
    ("dispatch", "model"),
    ("dispatch", "monitor"),
    ("autoscale", "monitor"),
    ("monitor", "autoscale"),
    ("autoscale", "autoscale"),
    // From anywhere, and nobody in the namespace has to.
    ("anybody", "dispatch"),
];

#[test]
fn modes_reach_whom_they_have_to_and_nobody_else() {
    for objects in rendered() {
        let policies = objects.all::<NetworkPolicy>();
        for (from, _) in PORTS {
            for (to, _) in PORTS {
                for (_, port) in PORTS {
                    let [one, other] = [from, to].map(|mode| Party::of(objects, mode));
                    let reached = takes(&policies, &one, &other, ("TCP", port))
                        && may_reach(&policies, &one, &other, ("TCP", port));
                    let wanted = TALKS.contains(&(from, to)) && PORTS.contains(&(to, port));
                    assert_eq!(reached, wanted, "{}: {from} to {to}:{port}", objects.folder);
                }
            }
        }
    }
}

#[test]
fn strangers_reach_the_front_door_alone_and_prometheus_the_metrics() {
    for objects in rendered() {
        let policies = objects.all::<NetworkPolicy>();
        for (mode, port) in PORTS {
            let takes_from = |namespace| {
                takes(&policies, &Party::elsewhere(namespace), &Party::of(objects, mode), ("TCP", port))
            };
            assert_eq!(takes_from("default"), mode == "dispatch", "{}: {mode}", objects.folder);
            // A pod of the namespace that is none of ours is a stranger too.
            assert_eq!(takes_from("elastic"), mode == "dispatch");
            let scraped = objects.folder == FOLDER_MONITORED || mode == "dispatch";
            assert_eq!(takes_from("monitoring"), scraped, "{}: {mode}", objects.folder);
        }
    }
}

#[test]
fn modes_reach_names_and_the_api_server_if_they_need_them() {
    for objects in rendered() {
        let policies = objects.all::<NetworkPolicy>();
        let outside = Party::elsewhere("kube-system");
        for (mode, _) in PORTS {
            let reaches = |port| may_reach(&policies, &Party::of(objects, mode), &outside, port);
            let asks_names = mode != "model";
            assert_eq!(reaches(("UDP", 53)), asks_names, "{mode}");
            assert_eq!(reaches(("TCP", 53)), asks_names, "{mode}");
            let speaks = ["autoscale", "dispatch"].contains(&mode);
            for port in [443, 6443, 8443, 16443] {
                assert_eq!(reaches(("TCP", port)), speaks, "{mode} {port}");
            }
            assert!(!reaches(("TCP", 80)), "{mode}");
        }
    }
}

#[test]
fn every_service_leads_to_the_pods_of_its_mode() {
    for objects in rendered() {
        let known: Vec<_> = objects.all::<Service>().iter().map(|service| name(service).to_owned()).collect();
        assert_eq!(known, PORTS.map(|(mode, _)| mode));
        for (mode, port) in PORTS {
            let (deployment, service) = (objects.one::<Deployment>(mode), objects.one::<Service>(mode));
            let spec = service.spec.unwrap();
            let selector = spec.selector.unwrap();
            let pods = deployment.spec.as_ref().unwrap();
            assert_eq!(Some(&selector), pods.selector.match_labels.as_ref());
            assert!(!selector.is_empty());
            assert!(selects(
                &LabelSelector { match_labels: Some(selector), match_expressions: None },
                &Party::of(objects, mode).labels
            ));
            let ports = serde_json::to_value(&spec.ports).unwrap();
            assert_eq!(ports, json!([{ "name": "http", "port": port, "targetPort": "http" }]));
            assert_eq!(container(&deployment).ports.as_ref().unwrap()[0].name.as_deref(), Some("http"));
            // The dispatcher chooses among the replicas itself.
            assert_eq!(spec.cluster_ip.as_deref(), (mode == "model").then_some("None"));
        }
    }
}

#[test]
fn arguments_that_name_another_mode_name_one_that_is_there() {
    let known = PORTS.map(|(name, port)| format!("http://{name}:{port}"));
    for objects in rendered() {
        let deployments = objects.all::<Deployment>();
        let urls = deployments.iter().flat_map(arguments).filter(|argument| argument.contains("//"));
        let urls: Vec<_> = urls.collect();
        assert_eq!(urls.len(), 3, "the monitor twice, the decisions");
        for url in urls {
            assert!(known.contains(&url), "nobody is at {url}");
        }
        objects.one::<Service>(&argument(&objects.one("dispatch"), "--replica-service").unwrap());
        let target = argument(&objects.one("autoscale"), "--target").unwrap();
        objects.one::<Deployment>(target.strip_prefix("deployment/").unwrap());
    }
}

/// How many of `pods` may be taken away at once; a share is rounded up.
fn may_go(budget: &PodDisruptionBudget, pods: i32) -> i32 {
    let spec = budget.spec.as_ref().unwrap();
    assert_eq!(spec.min_available, None, "it would hold up a node where there is one pod alone");
    match spec.max_unavailable.as_ref().unwrap() {
        IntOrString::Int(count) => *count,
        IntOrString::String(share) => {
            let percent: i32 = share.strip_suffix('%').unwrap().parse().unwrap();
            (pods * percent + 99) / 100
        }
    }
}

#[test]
fn budgets_select_the_pods_of_a_mode_and_never_hold_up_a_node_for_good() {
    for objects in rendered() {
        let budgets = objects.all::<PodDisruptionBudget>();
        assert_eq!(budgets.iter().map(name).collect::<Vec<_>>(), PORTS.map(|(mode, _)| mode));
        for budget in &budgets {
            let mode = name(budget);
            let spec = budget.spec.as_ref().unwrap();
            let deployment = objects.one::<Deployment>(mode).spec.unwrap();
            assert_eq!(spec.selector.as_ref(), Some(&deployment.selector), "{mode}");
            assert_eq!(spec.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
            for pods in [1, deployment.replicas.unwrap_or(10)] {
                let going = may_go(budget, pods);
                assert!(going >= 1, "{mode}: none of {pods} may go");
                assert!(pods == 1 || going * 3 <= pods + 1, "{mode}: {going} of {pods} at once");
            }
        }
    }
}

#[test]
fn prometheus_is_told_of_every_mode() {
    for objects in rendered().iter().filter(|objects| objects.folder == FOLDER_MONITORED) {
        let document =
            objects.documents.iter().find(|document| document["kind"] == "ServiceMonitor").unwrap();
        let spec = read::<ServiceMonitor>(document).spec;
        for service in objects.all::<Service>() {
            let labels = service.metadata.labels.as_ref().unwrap();
            assert!(selects(&spec.selector, labels), "{} is not scraped", name(&service));
            assert_eq!(labels["app.kubernetes.io/name"], name(&service), "the job is the mode");
        }
        let [endpoint] = spec.endpoints.as_slice() else { panic!("one port a Service") };
        assert_eq!((endpoint.port.as_str(), endpoint.path.as_str()), ("http", "/metrics"));
    }
}
