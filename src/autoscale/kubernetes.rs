//! Scales a Kubernetes Deployment: reads and patches its scale subresource.
//!
//! A patch states the wanted number, not a change, so sending it again does no harm and the scaler itself never
//! retries: the next scaling round is the retry.
//!
//! **Invariant**: it needs `get` and `patch` on the one Deployment's `deployments/scale` and, to tell ready pods
//! from starting ones, `get` on that Deployment; nothing else. No call takes longer than the scaler's `timeout`.
use crate::logic::policy::ReplicaCounts;
use crate::net::client::install_tls;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The name under which the API server notes who set the number of replicas.
const FIELD_MANAGER: &str = "elastic";

/// Why a Deployment could not be read or scaled.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// Neither a service account nor a kubeconfig says where the API server is.
    #[error(
        "found no Kubernetes cluster to speak to; run in a pod with a mounted service account token, or name a \
         kubeconfig file in KUBECONFIG"
    )]
    NoCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// 404: the Deployment or its namespace does not exist.
    #[error(
        "there is no deployment {deployment:?} in namespace {namespace:?}; create it, or name another target \
         or namespace"
    )]
    NotFound {
        /// The Deployment asked for.
        deployment: String,
        /// The namespace it was looked for in.
        namespace: String,
    },
    /// 401: the API server does not know who is asking.
    #[error(
        "the Kubernetes API server does not accept the credentials; is the service account's token mounted and \
         its pod still there, or the kubeconfig's login expired?"
    )]
    Unauthorized(#[source] Box<kube::Error>),
    /// 403: no role allows the call.
    #[error(
        "not allowed to {verb} {resource} of deployment {deployment:?} in namespace {namespace:?}; bind a Role \
         with the rule {{apiGroups: [apps], resources: [{resource}], resourceNames: [{deployment}], \
         verbs: [{verb}]}}"
    )]
    Forbidden {
        /// The verb that was refused: `get` or `patch`.
        verb: &'static str,
        /// The resource that was refused: `deployments/scale` or `deployments`.
        resource: &'static str,
        /// The Deployment asked for.
        deployment: String,
        /// Its namespace.
        namespace: String,
    },
    /// 409: somebody else changed the Deployment at the same instant.
    #[error("deployment {deployment:?} was changed by someone else at the same time; try again")]
    Conflict {
        /// The Deployment asked for.
        deployment: String,
    },
    /// 429 or 5xx: the API server answers, but not now.
    #[error("the Kubernetes API server cannot answer now ({status}: {message}); try again")]
    Unavailable {
        /// Status of the answer.
        status: u16,
        /// What the API server said.
        message: String,
    },
    /// Another status: the API server refuses the call for good.
    #[error("the Kubernetes API server refused ({status}: {message})")]
    Refused {
        /// Status of the answer.
        status: u16,
        /// What the API server said.
        message: String,
    },
    /// No connection, or it broke off.
    #[error(
        "cannot reach the Kubernetes API server; is it up, and does a network policy let this process reach it?"
    )]
    Unreachable(#[source] Box<kube::Error>),
    /// The answer did not come in time.
    #[error("the Kubernetes API server did not answer within {after:?}; try again, or allow more time")]
    TimedOut {
        /// The scaler's time-out.
        after: Duration,
    },
    /// The answer is no Kubernetes object.
    #[error("the answer is not one of a Kubernetes API server; does the cluster's address point at one?")]
    BadAnswer(#[source] Box<kube::Error>),
    /// More replicas than a Deployment can be asked for.
    #[error("a deployment cannot have {replicas} replicas; the most is {}", i32::MAX)]
    TooMany {
        /// The number asked for.
        replicas: u32,
    },
}

impl ScaleError {
    /// Whether the same call may succeed later without anybody changing the set-up.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable(_)
            | Self::TimedOut { .. } => true,
            Self::NoCluster(_)
            | Self::NotFound { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::BadAnswer(_)
            | Self::TooMany { .. } => false,
        }
    }
}

/// Scales one Deployment through its scale subresource.
#[derive(Debug)]
pub struct DeploymentScaler {
    deployments: Api<Deployment>,
    namespace: String,
    deployment: String,
    timeout: Duration,
    /// Whether it was said already that ready pods cannot be told from starting ones.
    said_ready_unknown: AtomicBool,
}

impl DeploymentScaler {
    /// A scaler for the cluster that the kubeconfig or, in a pod, the service account names.
    ///
    /// Without a `namespace` it takes the one of the kubeconfig's context or of the pod. It sends nothing yet:
    /// [`DeploymentScaler::observe`] is the first call that can tell whether the Deployment is there.
    pub async fn connect(
        namespace: Option<String>,
        deployment: String,
        timeout: Duration,
    ) -> Result<Self, ScaleError> {
        install_tls();
        let mut config = Config::infer().await.map_err(|error| ScaleError::NoCluster(error.into()))?;
        config.connect_timeout = Some(timeout);
        config.write_timeout = Some(timeout);
        // Up to 15 retries with a back-off that nobody set here would hide a 503 behind a time-out.
        config.default_retry = false;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| ScaleError::NoCluster(error.into()))?;
        Ok(Self::with_client(client, namespace, deployment, timeout))
    }

    /// A scaler that speaks through `client`, whose own time-outs and retries it does not change.
    #[must_use]
    pub fn with_client(client: Client, namespace: String, deployment: String, timeout: Duration) -> Self {
        let deployments = Api::namespaced(client, &namespace);
        Self { deployments, namespace, deployment, timeout, said_ready_unknown: AtomicBool::new(false) }
    }

    /// Reads how many replicas are wanted, ready and starting.
    ///
    /// Where the Deployment itself may not be read, every pod that exists counts as ready; a warning says so
    /// once.
    pub async fn observe(&self) -> Result<ReplicaCounts, ScaleError> {
        self.in_time(async {
            let scale = self.deployments.get_scale(&self.deployment).await;
            let scale = scale.map_err(|error| self.explain("get", "deployments/scale", error))?;
            match self.deployments.get(&self.deployment).await {
                Ok(deployment) => Ok(counts(&scale, ready_pods(&deployment))),
                Err(error) => match self.explain("get", "deployments", error) {
                    forbidden @ ScaleError::Forbidden { .. } => {
                        self.say_ready_unknown(&forbidden);
                        Ok(counts(&scale, existing_pods(&scale)))
                    }
                    other => Err(other),
                },
            }
        })
        .await
    }

    /// Asks for `replicas` replicas.
    pub async fn scale_to(&self, replicas: u32) -> Result<(), ScaleError> {
        let wanted = i32::try_from(replicas).map_err(|_| ScaleError::TooMany { replicas })?;
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        // Without a resourceVersion: what counts is the newest wish, whoever touched the Deployment since.
        let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": wanted}}));
        self.in_time(async {
            let patched = self.deployments.patch_scale(&self.deployment, &parameters, &patch).await;
            patched.map(|_| ()).map_err(|error| self.explain("patch", "deployments/scale", error))
        })
        .await
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, ScaleError>>) -> Result<T, ScaleError> {
        let answer = tokio::time::timeout(self.timeout, call).await;
        answer.unwrap_or(Err(ScaleError::TimedOut { after: self.timeout }))
    }

    fn explain(&self, verb: &'static str, resource: &'static str, error: kube::Error) -> ScaleError {
        let (status, message) = match &error {
            kube::Error::Api(answer) => (answer.code, answer.message.clone()),
            kube::Error::Auth(_) => return ScaleError::Unauthorized(Box::new(error)),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                return ScaleError::BadAnswer(Box::new(error));
            }
            _ => return ScaleError::Unreachable(Box::new(error)),
        };
        let (deployment, namespace) = (self.deployment.clone(), self.namespace.clone());
        match status {
            401 => ScaleError::Unauthorized(Box::new(error)),
            403 => ScaleError::Forbidden { verb, resource, deployment, namespace },
            404 => ScaleError::NotFound { deployment, namespace },
            409 => ScaleError::Conflict { deployment },
            429 | 500.. => ScaleError::Unavailable { status, message },
            _ => ScaleError::Refused { status, message },
        }
    }

    fn say_ready_unknown(&self, forbidden: &ScaleError) {
        if !self.said_ready_unknown.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason = %forbidden, "cannot tell ready pods from starting ones; counting all as ready");
        }
    }
}

/// Counts from the scale subresource and a number of ready pods. Neither tells a pod that crashes from one that
/// starts, so none counts as failing.
fn counts(scale: &Scale, ready: u32) -> ReplicaCounts {
    let desired = wanted_pods(scale);
    ReplicaCounts { desired, ready, starting: desired.saturating_sub(ready), failing: 0 }
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
