//! Scales a Kubernetes Deployment: reads and patches its scale subresource.
//!
//! A patch carries the version of the Deployment that the decision was based on, so that one which arrives late, or
//! comes from a leader that was replaced, changes nothing. It is not retried: the next round is the retry.
//!
//! **Invariant**: it needs `get` and `patch` on the one Deployment's `deployments/scale`. What else makes its work better
//! (reading the Deployment and its pods, marking those that should go first, writing Events) it does without where it
//! may not, and says so once.
mod events;
mod lease;
mod pods;

pub use lease::{Leader, Leadership};

use crate::logic::policy::ReplicaCounts;
use crate::net::kubernetes::{Asked, Cluster, ClusterError};
use events::Told;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{ListParams, Patch, PatchParams};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The name under which the API server notes who set the number of replicas.
const FIELD_MANAGER: &str = "elastic";
/// Time-outs of one call that setting a number may take as a whole.
const CALLS_MAX: u32 = 3;
/// Tries to set a number that nobody else has changed while the Deployment's status moves on.
const TRIES_MAX: u32 = 4;

/// The Deployment as it was looked at; what a decision is based on.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its replicas.
    pub counts: ReplicaCounts,
    version: Option<String>,
    uid: Option<String>,
    selector: Option<String>,
}

/// Scales one Deployment through its scale subresource.
#[derive(Debug)]
pub struct DeploymentScaler {
    cluster: Arc<Cluster>,
    deployment: String,
    /// Who writes Events.
    identity: String,
    /// What was said already not to be allowed.
    said: Mutex<BTreeSet<String>>,
}

impl DeploymentScaler {
    /// A scaler for a Deployment, which acts as `identity`. It sends nothing yet: [`DeploymentScaler::observe`] is the
    /// first call that can tell whether the Deployment is there.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, deployment: String, identity: String) -> Self {
        Self { cluster, deployment, identity, said: Mutex::default() }
    }

    /// Reads how many replicas are wanted, ready, starting and failing.
    ///
    /// Where the Deployment itself may not be read, every pod that exists counts as ready; where its pods may not,
    /// none counts as failing.
    pub async fn observe(&self) -> Result<Seen, ClusterError> {
        let scale = self.scale().await?;
        let mut seen = Seen {
            counts: ReplicaCounts { desired: wanted_pods(&scale), ..ReplicaCounts::default() },
            version: scale.metadata.resource_version.clone(),
            uid: scale.metadata.uid.clone(),
            selector: scale.status.as_ref().and_then(|status| status.selector.clone()),
        };
        let asked = self.asked("get", "deployments");
        let deployment =
            self.cluster.call(&asked, self.cluster.api::<Deployment>().get(&self.deployment)).await;
        let ready = match self.allowed(deployment, "counting every pod that exists as ready")? {
            Some(deployment) => ready_pods(&deployment),
            None => existing_pods(&scale),
        };
        let missing = seen.counts.desired.saturating_sub(ready);
        // Whether pods fail or start matters where some are missing, and costs a list of them.
        let failing = if missing > 0 { self.failing(&seen).await?.min(missing) } else { 0 };
        seen.counts = ReplicaCounts { ready, starting: missing - failing, failing, ..seen.counts };
        Ok(seen)
    }

    /// Sets the number of replicas, if it is still the one that was seen. Pods with the least in flight go first,
    /// where it shrinks: `in_flight` has the requests under way by a replica's host.
    pub async fn scale_to(
        &self,
        seen: &Seen,
        replicas: u32,
        within: Duration,
        in_flight: &HashMap<String, u32>,
    ) -> Result<(), ClusterError> {
        let until = tokio::time::Instant::now() + within.min(self.cluster.timeout() * CALLS_MAX);
        let left = || until.saturating_duration_since(tokio::time::Instant::now());
        let wanted = i32::try_from(replicas).map_err(|_| ClusterError::Refused {
            status: 422,
            message: format!("a deployment cannot have {replicas} replicas; the most is {}", i32::MAX),
        })?;
        let surplus = seen.counts.desired.saturating_sub(replicas);
        if surplus > 0 {
            // Half of the time at most: that the fleet shrinks matters more than who goes.
            let marked = tokio::time::timeout(left() / 2, self.mark(seen, surplus, in_flight)).await;
            if marked.is_err() {
                tracing::warn!("marking the pods that should go first took too long");
            }
        }
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let asked = self.asked("patch", "deployments/scale");
        let mut version = seen.version.clone();
        for tries_left in (0..TRIES_MAX).rev() {
            let mut patch = serde_json::json!({"spec": {"replicas": wanted}});
            if let Some(version) = &version {
                patch["metadata"] = serde_json::json!({"resourceVersion": version});
            }
            let patch = Patch::Merge(patch);
            let deployments = self.cluster.api::<Deployment>();
            let patched = deployments.patch_scale(&self.deployment, &parameters, &patch);
            match self.cluster.call_within(left(), &asked, patched).await {
                Err(ClusterError::Conflict { .. }) if tries_left > 0 => {}
                patched => return patched.map(drop),
            }
            // The version also moves with every pod that becomes ready.
            let scale = self.scale().await?;
            if wanted_pods(&scale) != seen.counts.desired {
                break;
            }
            version = scale.metadata.resource_version;
        }
        Err(ClusterError::Conflict { kind: asked.kind().to_owned(), name: self.deployment.clone() })
    }

    /// Writes down, for people who look at the Deployment, that its number was changed.
    pub async fn tell_scaled(&self, seen: &Seen, replicas: u32, reason: &str) {
        let note = format!("replicas {} -> {replicas}: {reason}", seen.counts.desired);
        self.tell(seen, Told { reason: "Scaled", action: "Scale", note }).await;
    }

    /// Writes down that somebody else's number is kept.
    pub async fn tell_adopted(&self, seen: &Seen, from: u32, keep: Duration) {
        let note = format!(
            "replicas {from} -> {}, set by someone else: kept for {} s, then decided on again",
            seen.counts.desired,
            keep.as_secs()
        );
        self.tell(seen, Told { reason: "Adopted", action: "Adopt", note }).await;
    }

    /// Name of a `HorizontalPodAutoscaler` of this very Deployment.
    pub async fn rival(&self) -> Result<Option<String>, ClusterError> {
        let asked =
            Asked { verb: "list", group: "autoscaling", resource: "horizontalpodautoscalers", name: None };
        let all = self.cluster.api::<HorizontalPodAutoscaler>();
        let listed = self.cluster.call(&asked, all.list(&ListParams::default())).await;
        let listed =
            self.allowed(listed, "not looking for a HorizontalPodAutoscaler of the same Deployment")?;
        let ours = |hpa: &HorizontalPodAutoscaler| {
            let target = &hpa.spec.scale_target_ref;
            let of_apps = target.api_version.as_ref().is_none_or(|version| version.starts_with("apps/"));
            of_apps && target.kind == "Deployment" && target.name == self.deployment
        };
        let rival = listed.and_then(|listed| listed.items.into_iter().find(ours));
        Ok(rival.and_then(|rival| rival.metadata.name))
    }

    async fn scale(&self) -> Result<Scale, ClusterError> {
        let asked = self.asked("get", "deployments/scale");
        let deployments = self.cluster.api::<Deployment>();
        self.cluster.call(&asked, deployments.get_scale(&self.deployment)).await
    }

    async fn failing(&self, seen: &Seen) -> Result<u32, ClusterError> {
        let Some(selector) = &seen.selector else { return Ok(0) };
        let pods = pods::list(&self.cluster, selector).await;
        let pods = self.allowed(pods, "not telling pods that fail from those that start")?;
        Ok(pods.map_or(0, |pods| pods::failing(&pods)))
    }

    async fn mark(&self, seen: &Seen, surplus: u32, in_flight: &HashMap<String, u32>) {
        let Some(selector) = &seen.selector else { return };
        let without = "leaving it to Kubernetes which pods go first";
        let marked = async {
            let pods = pods::list(&self.cluster, selector).await?;
            pods::mark(&self.cluster, pods::marks(&pods, surplus, in_flight)).await
        };
        if let Err(error) = self.allowed(marked.await, without) {
            tracing::warn!(%error, without);
        }
    }

    async fn tell(&self, seen: &Seen, told: Told) {
        let written =
            events::write(&self.cluster, &self.deployment, seen.uid.clone(), &self.identity, told).await;
        if let Err(error) = self.allowed(written, "writing no Events") {
            tracing::warn!(%error, "cannot write an Event");
        }
    }

    fn asked(&self, verb: &'static str, resource: &'static str) -> Asked {
        Asked { verb, group: "apps", resource, name: Some(self.deployment.clone()) }
    }

    /// `None` where it is not allowed; that is said once, with what is done `without`.
    fn allowed<T>(
        &self,
        answer: Result<T, ClusterError>,
        without: &'static str,
    ) -> Result<Option<T>, ClusterError> {
        match answer {
            Err(forbidden @ ClusterError::Forbidden { .. }) => {
                let reason = forbidden.to_string();
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.insert(reason.clone()) {
                    tracing::warn!(reason, "{without}");
                }
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }
}

/// Pods asked for. The API server leaves the field out when it is zero.
fn wanted_pods(scale: &Scale) -> u32 {
    scale.spec.as_ref().and_then(|spec| spec.replicas).map_or(0, count)
}

/// Pods that exist, ready or not.
fn existing_pods(scale: &Scale) -> u32 {
    scale.status.as_ref().map_or(0, |status| count(status.replicas))
}

/// Pods that pass their readiness probe.
fn ready_pods(deployment: &Deployment) -> u32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).map_or(0, count)
}

/// The API's counts are signed but never negative.
fn count(pods: i32) -> u32 {
    u32::try_from(pods).unwrap_or(0)
}
