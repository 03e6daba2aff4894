//! The Kubernetes API server: where it is, who we are to it, and what its answers mean.
//!
//! **Invariant**: no call takes longer than its time-out, and none is retried here: its caller knows whether the same
//! call still makes sense a moment later.
mod error;

pub use error::ClusterError;

use crate::net::client::install_tls;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use std::future::Future;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// A call, as a Role describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update` or `patch`.
    pub verb: &'static str,
    /// API group; empty for the core's.
    pub group: &'static str,
    /// Plural of the resource, with a subresource after a slash.
    pub resource: &'static str,
    /// Name of the object, where the call is about one.
    pub name: Option<String>,
}

impl Asked {
    /// The kind of the object as one says it: `deployment` for `deployments/scale`.
    #[must_use]
    pub fn kind(&self) -> &str {
        let resource = self.resource.split('/').next().unwrap_or_default();
        resource.strip_suffix('s').unwrap_or(resource)
    }

    /// The rule of a Role that allows it.
    #[must_use]
    pub fn rule(&self) -> String {
        let Self { verb, group, resource, name } = self;
        let group = if group.is_empty() { "\"\"" } else { group };
        // Names cannot narrow what creates an object, and pods' names are not known beforehand.
        let named = name.as_ref().filter(|_| *verb != "create" && *resource != "pods");
        let names = named.map(|name| format!("resourceNames: [{name}], ")).unwrap_or_default();
        format!("{{apiGroups: [{group}], resources: [{resource}], {names}verbs: [{verb}]}}")
    }
}

/// One namespace of a cluster.
pub struct Cluster {
    client: RwLock<Client>,
    namespace: String,
    timeout: Duration,
    /// Whether the credentials can be read again from where they came.
    inferred: bool,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster that the kubeconfig or, in a pod, the service account names. No call takes longer than `timeout`.
    ///
    /// Without a `namespace` it takes the one of the kubeconfig's context or of the pod. It sends nothing yet.
    pub async fn infer(namespace: Option<String>, timeout: Duration) -> Result<Self, ClusterError> {
        let (client, default_namespace) = log_in(timeout).await?;
        let namespace = namespace.unwrap_or(default_namespace);
        Ok(Self { client: RwLock::new(client), namespace, timeout, inferred: true })
    }

    /// A cluster spoken to through `client`, whose own time-outs and retries are left as they are.
    #[must_use]
    pub fn with_client(client: Client, namespace: String, timeout: Duration) -> Self {
        Self { client: RwLock::new(client), namespace, timeout, inferred: false }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The longest that a call may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The namespace's objects of a kind.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        Api::namespaced(client, &self.namespace)
    }

    /// Waits for a call, which is described by `asked`.
    ///
    /// Where the credentials are refused, they are read again for the next one: tokens expire and are replaced.
    pub async fn call<T>(
        &self,
        asked: &Asked,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        self.call_within(self.timeout, asked, call).await
    }

    /// [`Cluster::call`] with a time-out that is shorter than the usual one.
    pub async fn call_within<T>(
        &self,
        timeout: Duration,
        asked: &Asked,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        let after = timeout.min(self.timeout);
        let Ok(answer) = tokio::time::timeout(after, call).await else {
            return Err(ClusterError::TimedOut { after });
        };
        let answer = answer.map_err(|error| ClusterError::explain(error, asked, &self.namespace));
        if let Err(ClusterError::Unauthorized(_)) = &answer {
            self.log_in_again().await;
        }
        answer
    }

    async fn log_in_again(&self) {
        if !self.inferred {
            return;
        }
        match log_in(self.timeout).await {
            Ok((client, _)) => *self.client.write().unwrap_or_else(PoisonError::into_inner) = client,
            Err(error) => tracing::debug!(%error, "cannot read the credentials again"),
        }
    }
}

/// A client of the cluster that the environment names, and the namespace that goes with it.
async fn log_in(timeout: Duration) -> Result<(Client, String), ClusterError> {
    install_tls();
    let mut config = Config::infer().await.map_err(|error| ClusterError::NoCluster(error.into()))?;
    config.connect_timeout = Some(timeout);
    config.write_timeout = Some(timeout);
    // A watch is quiet for as long as nothing changes; other calls have a time-out as a whole.
    config.read_timeout = None;
    // Up to 15 retries with a back-off that nobody set here would hide a 503 behind a time-out.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|error| ClusterError::NoCluster(error.into()))?;
    Ok((client, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_names_the_rule_that_allows_it() {
        let asked = |verb, group, resource, name: Option<&str>| Asked {
            verb,
            group,
            resource,
            name: name.map(str::to_owned),
        };
        let scale = asked("patch", "apps", "deployments/scale", Some("model"));
        assert_eq!(scale.kind(), "deployment");
        let rule =
            "{apiGroups: [apps], resources: [deployments/scale], resourceNames: [model], verbs: [patch]}";
        assert_eq!(scale.rule(), rule);
        let pods = asked("patch", "", "pods", Some("model-1"));
        assert_eq!(pods.rule(), "{apiGroups: [\"\"], resources: [pods], verbs: [patch]}");
        let lease = asked("create", "coordination.k8s.io", "leases", Some("autoscale"));
        assert_eq!(lease.rule(), "{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}");
    }
}
