//! Why the Kubernetes API server did not do what it was asked.
use super::Asked;
use std::time::Duration;

/// Why a call to the Kubernetes API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither a service account nor a kubeconfig says where the API server is.
    #[error(
        "found no Kubernetes cluster to speak to; run in a pod with a mounted service account token, or name a \
         kubeconfig file in KUBECONFIG"
    )]
    NoCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// 404: the object or its namespace does not exist.
    #[error(
        "there is no {kind} {name:?} in namespace {namespace:?}; create it, or name another or its namespace"
    )]
    NotFound {
        /// Kind of the object asked for.
        kind: String,
        /// Its name.
        name: String,
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
    #[error("not allowed to {} {} in namespace {namespace:?}; bind a Role with the rule {}", asked.verb, asked.resource, asked.rule())]
    Forbidden {
        /// The call that was refused.
        asked: Asked,
        /// The namespace it was about.
        namespace: String,
    },
    /// 409: somebody else changed or created the object at the same instant.
    #[error("{kind} {name:?} was changed by someone else at the same time; try again")]
    Conflict {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// 429 or 5xx: the API server answers, but not now.
    #[error("the Kubernetes API server cannot answer now ({status}: {message}); try again")]
    Unavailable {
        /// Status of the answer.
        status: u16,
        /// What the API server said.
        message: String,
    },
    /// 410: the place in the history from which it was to go on is no longer known.
    #[error(
        "what was asked for is too old for the Kubernetes API server ({message}); ask again from the start"
    )]
    Gone {
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
        /// The time-out.
        after: Duration,
    },
    /// The answer is no Kubernetes object.
    #[error("the answer is not one of a Kubernetes API server; does the cluster's address point at one?")]
    BadAnswer(#[source] Box<kube::Error>),
}

impl ClusterError {
    /// What an error of the client library means for a call.
    #[must_use]
    pub fn explain(error: kube::Error, asked: &Asked, namespace: &str) -> Self {
        let (status, message) = match &error {
            kube::Error::Api(answer) => (answer.code, answer.message.clone()),
            kube::Error::Auth(_) => return Self::Unauthorized(Box::new(error)),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => return Self::BadAnswer(Box::new(error)),
            _ => return Self::Unreachable(Box::new(error)),
        };
        let (kind, name) = (asked.kind().to_owned(), asked.name.clone().unwrap_or_default());
        let namespace = namespace.to_owned();
        match status {
            401 => Self::Unauthorized(Box::new(error)),
            403 => Self::Forbidden { asked: asked.clone(), namespace },
            404 => Self::NotFound { kind, name, namespace },
            409 => Self::Conflict { kind, name },
            410 => Self::Gone { message },
            429 | 500.. => Self::Unavailable { status, message },
            _ => Self::Refused { status, message },
        }
    }

    /// The error with what caused it, on one line of the log.
    #[must_use]
    pub fn whole(self) -> String {
        format!("{:#}", anyhow::Error::from(self))
    }

    /// Whether the same call may succeed later without anybody changing the set-up.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::Unavailable { .. }
            | Self::Gone { .. }
            | Self::Unreachable(_)
            | Self::TimedOut { .. } => true,
            Self::NoCluster(_)
            | Self::NotFound { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::BadAnswer(_) => false,
        }
    }
}
