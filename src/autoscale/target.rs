//! What carries decisions out: children of this process, or a Kubernetes Deployment.
use super::kubernetes::{DeploymentScaler, Leadership, Seen};
use super::processes::{ProcessScaler, Replica};
use crate::logic::policy::ReplicaCounts;
use crate::net::kubernetes::ClusterError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What carries decisions out.
#[derive(Clone)]
pub enum Scaler {
    /// Children of this process.
    Processes(Arc<ProcessScaler>),
    /// A Kubernetes Deployment.
    Deployment {
        /// Reads and sets its number.
        scaler: Arc<DeploymentScaler>,
        /// This autoscaler's part among several; without it, it is the only one.
        leadership: Option<Arc<Leadership>>,
    },
}

/// The replicas as they were looked at.
pub(super) struct Observed {
    pub(super) counts: ReplicaCounts,
    deployment: Option<Seen>,
}

impl Scaler {
    pub(super) async fn observe(&self) -> anyhow::Result<Observed> {
        match self {
            Self::Processes(scaler) => Ok(Observed { counts: scaler.observe(), deployment: None }),
            Self::Deployment { scaler, .. } => {
                let seen = scaler.observe().await?;
                Ok(Observed { counts: seen.counts, deployment: Some(seen) })
            }
        }
    }

    /// For how long this autoscaler may act; `None` while another does.
    pub(super) fn acts_for(&self) -> Option<Duration> {
        match self {
            Self::Deployment { leadership: Some(leadership), .. } => leadership.acts_for(),
            _ => Some(Duration::MAX),
        }
    }

    /// Sets the number of replicas within a time. False where it is no longer the number that was seen.
    pub(super) async fn scale_to(
        &self,
        seen: &Observed,
        replicas: u32,
        within: Duration,
        in_flight: &HashMap<String, u32>,
    ) -> anyhow::Result<bool> {
        match (self, &seen.deployment) {
            (Self::Processes(scaler), _) => scaler.scale_to(replicas),
            (Self::Deployment { scaler, .. }, Some(seen)) => {
                match scaler.scale_to(seen, replicas, within, in_flight).await {
                    Err(ClusterError::Conflict { .. }) => return Ok(false),
                    scaled => scaled?,
                }
            }
            (Self::Deployment { .. }, None) => {}
        }
        Ok(true)
    }

    /// Tells people that the number was changed.
    pub(super) async fn tell_scaled(&self, seen: &Observed, replicas: u32, reason: &str) {
        if let (Self::Deployment { scaler, .. }, Some(seen)) = (self, &seen.deployment) {
            scaler.tell_scaled(seen, replicas, reason).await;
        }
    }

    /// Tells people that somebody else's number is kept.
    pub(super) async fn tell_adopted(&self, seen: &Observed, from: u32, keep: Duration) {
        if let (Self::Deployment { scaler, .. }, Some(seen)) = (self, &seen.deployment) {
            scaler.tell_adopted(seen, from, keep).await;
        }
    }

    /// Another autoscaler of the same target.
    pub(super) async fn rival(&self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Processes(_) => Ok(None),
            Self::Deployment { scaler, .. } => Ok(scaler.rival().await?),
        }
    }

    pub(super) fn leadership(&self) -> Option<&Leadership> {
        match self {
            Self::Deployment { leadership, .. } => leadership.as_deref(),
            Self::Processes(_) => None,
        }
    }

    pub(super) fn replicas(&self) -> Vec<Replica> {
        match self {
            Self::Processes(scaler) => scaler.replicas(),
            Self::Deployment { .. } => Vec::new(),
        }
    }
}
