//! The Deployment's pods: which of them fail, and which should go first.
use crate::net::kubernetes::{Asked, Cluster, ClusterError};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// The `ReplicaSet` controller removes pods with a lower cost first (its own default is 0).
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The cost of those that should go first; an annotation with another value is somebody else's.
const CHEAP: &str = "-100";
/// Annotations that are set at the same time.
const PATCHES_AT_ONCE: usize = 8;
/// Why a container that waits is not just on its way up.
const BROKEN: [&str; 8] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// An annotation to set, or to take away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pod: String,
    cheap: bool,
}

/// The pods that a selector selects.
pub(super) async fn list(cluster: &Cluster, selector: &str) -> Result<Vec<Pod>, ClusterError> {
    let asked = Asked { verb: "list", group: "", resource: "pods", name: None };
    let parameters = ListParams::default().labels(selector);
    Ok(cluster.call(&asked, cluster.api::<Pod>().list(&parameters)).await?.items)
}

/// Pods that will not be ready by waiting: they crash, or cannot be started at all.
pub(super) fn failing(pods: &[Pod]) -> u32 {
    pods.iter().filter(|pod| stays(pod) && !is_ready(pod) && fails(pod)).count() as u32
}

/// What to mark so that `surplus` ready pods with the least in flight go first, of several with as much the youngest.
pub(super) fn marks(pods: &[Pod], surplus: u32, in_flight: &HashMap<String, u32>) -> Vec<Mark> {
    let busy = |pod: &Pod| {
        let addresses = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        addresses.filter_map(|address| in_flight.get(&address.ip)).sum::<u32>()
    };
    let mut ready: Vec<&Pod> = pods.iter().filter(|pod| stays(pod) && is_ready(pod)).collect();
    ready.sort_by_key(|pod| (busy(pod), Reverse(pod.metadata.creation_timestamp.clone())));
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    let chosen: BTreeSet<String> = ready.iter().take(surplus as usize).map(|pod| name(pod)).collect();
    let mark = |pod: &Pod| {
        let pod_name = name(pod);
        let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(COST));
        let (is_cheap, cheap) = (cost.is_some_and(|cost| cost == CHEAP), chosen.contains(&pod_name));
        (is_cheap != cheap && (is_cheap || cost.is_none())).then_some(Mark { pod: pod_name, cheap })
    };
    pods.iter().filter(|pod| stays(pod)).filter_map(mark).collect()
}

/// Sets and takes away marks. A pod that has gone meanwhile needs none.
pub(super) async fn mark(cluster: &Cluster, marks: Vec<Mark>) -> Result<(), ClusterError> {
    let one = async |Mark { pod, cheap }: Mark| {
        let asked = Asked { verb: "patch", group: "", resource: "pods", name: Some(pod.clone()) };
        let cost = cheap.then_some(CHEAP);
        let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": {COST: cost}}}));
        let patched =
            cluster.call(&asked, cluster.api::<Pod>().patch(&pod, &PatchParams::default(), &patch)).await;
        match patched {
            Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    };
    futures_util::stream::iter(marks).map(one).buffer_unordered(PATCHES_AT_ONCE).try_collect().await
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn fails(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let waits_in_vain = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        // Between two crashes it runs for a moment.
        container.restart_count > 0 || reason.is_some_and(|reason| BROKEN.contains(&reason))
    };
    status.phase.as_deref() == Some("Failed") || status.container_statuses.iter().flatten().any(waits_in_vain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ready: bool, more: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "phase": "Running", "podIPs": [{"ip": format!("10.0.0.{name}")}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        merge(&mut pod, more);
        serde_json::from_value(pod).unwrap()
    }

    fn merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }

    fn container(restarts: i32, waiting: Option<&str>) -> Value {
        let state = waiting.map_or(json!({"running": {}}), |reason| json!({"waiting": {"reason": reason}}));
        json!({"status": {"containerStatuses": [{
            "name": "model", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state,
        }]}})
    }

    #[test]
    fn pods_that_crash_or_cannot_start_fail_and_those_on_their_way_do_not() {
        let fails = |ready, more: Value| failing(&[pod("1", ready, &more)]) == 1;
        assert!(fails(false, container(3, Some("CrashLoopBackOff"))));
        assert!(fails(false, container(0, Some("ImagePullBackOff"))));
        assert!(fails(false, container(1, None)), "up for a moment between two crashes");
        assert!(fails(false, json!({"status": {"phase": "Failed"}})));
        assert!(!fails(false, container(0, Some("ContainerCreating"))));
        assert!(!fails(false, json!({"status": {"phase": "Pending"}})));
        assert!(!fails(true, container(3, None)), "it crashed once and is well again");
        assert!(!fails(
            false,
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Failed"}})
        ));
    }

    fn told(marks: &[Mark]) -> Vec<(&str, bool)> {
        marks.iter().map(|mark| (mark.pod.as_str(), mark.cheap)).collect()
    }

    #[test]
    fn those_with_the_least_in_flight_go_first_then_the_youngest() {
        let young = json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"}});
        let pods = [
            pod("1", true, &json!({})),
            pod("2", true, &json!({})),
            pod("3", true, &young),
            pod("4", false, &json!({})),
        ];
        let in_flight = HashMap::from([("10.0.0.1".to_owned(), 2), ("10.0.0.3".to_owned(), 0)]);
        assert_eq!(told(&marks(&pods, 1, &in_flight)), [("3", true)]);
        assert_eq!(told(&marks(&pods, 2, &in_flight)), [("2", true), ("3", true)]);
    }

    #[test]
    fn marks_of_before_are_taken_away_and_other_peoples_are_left_alone() {
        let cost = |cost: &str| json!({"metadata": {"annotations": {COST: cost}}});
        let pods = [
            pod("1", true, &cost(CHEAP)),
            pod("2", true, &cost("7")),
            pod("3", true, &json!({})),
            pod("4", true, &cost(CHEAP)),
        ];
        let in_flight = HashMap::from([("10.0.0.1".to_owned(), 5), ("10.0.0.2".to_owned(), 9)]);
        assert_eq!(told(&marks(&pods, 2, &in_flight)), [("1", false), ("3", true)]);
    }
}
