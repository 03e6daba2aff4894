//! What the controllers of Deployments, their pods and their slices do.
use super::Node;
use crate::api_server::{DELETION_COST, now, random_suffix};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Labels a slice with the Service it belongs to.
const SERVICE: &str = "kubernetes.io/service-name";

/// The Deployment's pods, those that end included.
pub(super) fn pods(node: &Node) -> Vec<Value> {
    let owner = format!("{}-", node.options.deployment);
    let mut pods = node.server.list("pods");
    pods.retain(|pod| {
        pod["metadata"]["generateName"].as_str().is_some_and(|begin| begin.starts_with(&owner))
    });
    pods
}

pub(super) fn is_terminating(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a condition of a pod or a Deployment holds.
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// Creates pods or has some end, until there are as many as asked for.
pub(super) fn scale(node: &Node, hash: &str) {
    let deployment = node.server.get("deployments", node.options.deployment);
    let wanted =
        deployment.as_ref().and_then(|deployment| deployment["spec"]["replicas"].as_u64()).unwrap_or(0);
    let mut active = pods(node);
    active.retain(|pod| !is_terminating(pod));
    let missing = (wanted as usize).saturating_sub(active.len());
    for _ in 0..missing {
        let mut pod = new_pod(deployment.as_ref().unwrap(), hash);
        pod["metadata"]["annotations"][BORN] = node.server.version().to_string().into();
        node.server.apply(pod);
    }
    active.sort_by_key(first_to_go);
    let too_many = active.len().saturating_sub(wanted as usize);
    for pod in &active[..too_many] {
        node.server.terminate_pod(pod["metadata"]["name"].as_str().unwrap());
    }
}

/// The order in which a `ReplicaSet` gives pods up: those that do not run, those that are not ready, those whose deletion
/// costs least, those that were restarted most, the youngest.
pub(crate) fn first_to_go(pod: &Value) -> impl Ord + use<> {
    let cost = pod["metadata"]["annotations"][DELETION_COST].as_str();
    let cost: i32 = cost.and_then(|cost| cost.parse().ok()).unwrap_or(0);
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
    // Times have whole seconds only; the number says it exactly.
    let born = pod["metadata"]["annotations"][BORN].as_str().and_then(|number| number.parse::<u64>().ok());
    (pod["status"]["phase"] == "Running", has_condition(pod, "Ready"), cost, Reverse(restarts), Reverse(born))
}

/// The version of the cluster when a pod was made.
const BORN: &str = "double/born";

fn new_pod(deployment: &Value, hash: &str) -> Value {
    let owner = deployment["metadata"]["name"].as_str().unwrap();
    let template = &deployment["spec"]["template"];
    let set = format!("{owner}-{hash}");
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": template["metadata"],
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    });
    pod["metadata"]["name"] = format!("{set}-{}", random_suffix()).into();
    pod["metadata"]["generateName"] = format!("{set}-").into();
    pod["metadata"]["labels"]["pod-template-hash"] = hash.into();
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": deployment["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    pod["spec"]["nodeName"] = "node1".into();
    // Its process takes a free one.
    pod["spec"]["containers"][0].as_object_mut().unwrap().remove("ports");
    pod
}

/// Brings the slices in line with the pods: one each, or two, as soon as a pod has an address and a port.
pub(super) fn publish(node: &Node) {
    let mut wanted = BTreeSet::new();
    for pod in pods(node) {
        let Some(address) = pod["status"]["podIP"].as_str() else { continue };
        let Some(port) = pod["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64() else { continue };
        let name = pod["metadata"]["name"].as_str().unwrap();
        let mut slices = vec![(name.to_owned(), "IPv4", address.to_owned())];
        if node.options.dual_stack {
            // Reaches the same listener.
            slices.push((format!("{name}-6"), "IPv6", format!("::ffff:{address}")));
        }
        for (name, family, address) in slices {
            node.server.apply(slice(node, &pod, &name, family, &address, port));
            wanted.insert(name);
        }
    }
    let belongs = |slice: &Value| slice["metadata"]["labels"][SERVICE] == node.options.deployment;
    for slice in node.server.list("endpointslices").into_iter().filter(belongs) {
        let name = slice["metadata"]["name"].as_str().unwrap();
        if !wanted.contains(name) {
            node.server.remove("endpointslices", name);
        }
    }
}

fn slice(node: &Node, pod: &Value, name: &str, family: &str, address: &str, port: u64) -> Value {
    let (serving, terminating) = (has_condition(pod, "Ready"), is_terminating(pod));
    let service = node.options.deployment;
    let owner = node.server.get("services", service).unwrap_or_default();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "generateName": format!("{service}-"),
            "labels": {
                SERVICE: service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "uid": owner["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": family,
        "endpoints": [{
            "addresses": [address],
            "conditions": {"ready": serving && !terminating, "serving": serving, "terminating": terminating},
            "targetRef": {
                "kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            },
            "nodeName": "node1",
        }],
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    })
}

/// Writes the Deployment's status.
pub(super) fn report(node: &Node) {
    let pods = pods(node);
    let terminating = pods.iter().filter(|pod| is_terminating(pod)).count();
    let ready = pods.iter().filter(|pod| !is_terminating(pod) && has_condition(pod, "Ready")).count();
    let existing = pods.len() - terminating;
    node.server.edit("deployments", node.options.deployment, |deployment| {
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(0) as usize;
        // A quarter may be missing, rounded down.
        let is_available = ready >= wanted - wanted / 4;
        let mut status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "terminatingReplicas": terminating,
            "conditions": [
                condition(deployment, "Progressing", true, "NewReplicaSetAvailable", "the pods are those of the template"),
                condition(
                    deployment,
                    "Available",
                    is_available,
                    if is_available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
                    if is_available { "enough pods are ready" } else { "too few pods are ready" },
                ),
            ],
        });
        let counts = [
            ("replicas", existing),
            ("updatedReplicas", existing),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
            ("unavailableReplicas", wanted.max(existing) - ready),
        ];
        // Zero is left out.
        for (field, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            status[field] = count.into();
        }
        deployment["status"] = status;
    });
}

/// A condition that says since when it is as it is.
fn condition(object: &Value, kind: &str, holds: bool, reason: &str, message: &str) -> Value {
    let mut condition = plain_condition(object, kind, holds);
    condition["reason"] = reason.into();
    condition["message"] = message.into();
    condition["lastUpdateTime"] = condition["lastTransitionTime"].clone();
    condition
}

/// The same without a reason, as pods have them.
pub(super) fn plain_condition(object: &Value, kind: &str, holds: bool) -> Value {
    let status = if holds { "True" } else { "False" };
    let mut known = object["status"]["conditions"].as_array().into_iter().flatten();
    let same = known.find(|condition| condition["type"] == kind && condition["status"] == status);
    let since = same.map_or_else(|| now().into(), |condition| condition["lastTransitionTime"].clone());
    json!({"type": kind, "status": status, "lastTransitionTime": since})
}
