//! The Deployment scaler against a small double of the Kubernetes API server on loopback.
#![allow(clippy::unwrap_used)] // helpers of tests count as no tests to clippy
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use elastic::autoscale::kubernetes::DeploymentScaler;
use elastic::logic::policy::ReplicaCounts;
use elastic::net::client::install_tls;
use elastic::net::kubernetes::{Cluster, ClusterError};
use elastic::net::serve::{Limits, bind, local_url, serve};
use elastic::net::shutdown::Shutdown;
use futures_util::StreamExt as _;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SCALE: &str = "/apis/apps/v1/namespaces/elastic/deployments/model/scale";
const PODS: &str = "/api/v1/namespaces/elastic/pods";
const TIMEOUT: Duration = Duration::from_secs(5);
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/elastic/deployments/model";

/// How the double answers one kind of call.
#[derive(Clone)]
enum Answer {
    Json(StatusCode, Value),
    Text(StatusCode, &'static str),
    /// Nothing ever comes.
    Silence,
    /// A head and half a body, then nothing.
    HalfABody,
}

/// One call that the double saw.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    method: Method,
    path: String,
    query: Option<String>,
    content_type: Option<String>,
    body: Value,
}

struct Script {
    get_scale: Answer,
    get_deployment: Answer,
    patch_scale: Answer,
    calls: Mutex<Vec<Call>>,
}

/// The double, which lives as long as this value.
struct Double {
    script: Arc<Script>,
    scaler: DeploymentScaler,
    _server: JoinSet<()>,
}

impl Double {
    async fn start(get_scale: Answer, get_deployment: Answer, patch_scale: Answer) -> Self {
        let script = Arc::new(Script { get_scale, get_deployment, patch_scale, calls: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let listener = bind("127.0.0.1", 0).await.unwrap();
        let url = local_url(&listener).unwrap();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, router, Limits::default(), Shutdown::new()));
        Self { script, scaler: scaler(&url), _server: server }
    }

    fn calls(&self) -> Vec<Call> {
        self.script.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn scaler(url: &str) -> DeploymentScaler {
    install_tls();
    let mut config = kube::Config::new(url.parse().unwrap());
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let cluster = Cluster::with_client(client, "elastic".into(), TIMEOUT);
    DeploymentScaler::new(Arc::new(cluster), "model".into(), "test".into())
}

async fn answer(State(script): State<Arc<Script>>, request: http::Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
    let content_type = head.headers.get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned());
    let call = Call {
        method: head.method,
        path: head.uri.path().to_owned(),
        // The client library puts a separator before the first parameter, too.
        query: head.uri.query().map(|query| query.trim_start_matches('&').to_owned()),
        content_type,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let answer = match (&call.method, call.path.as_str()) {
        (&Method::GET, SCALE) => script.get_scale.clone(),
        (&Method::GET, DEPLOYMENT) => script.get_deployment.clone(),
        (&Method::PATCH, SCALE) => script.patch_scale.clone(),
        (&Method::GET, PODS) => Answer::Json(StatusCode::OK, json!({"metadata": {}, "items": []})),
        _ => Answer::Text(StatusCode::IM_A_TEAPOT, "the scaler must not call this"),
    };
    script.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    match answer {
        Answer::Json(status, body) => (status, axum::Json(body)).into_response(),
        Answer::Text(status, text) => (status, text).into_response(),
        Answer::Silence => std::future::pending().await,
        Answer::HalfABody => {
            let half = futures_util::stream::iter([Ok::<_, std::io::Error>("{\"kind\":")]);
            Body::from_stream(half.chain(futures_util::stream::pending())).into_response()
        }
    }
}

/// A scale as the API server writes it; `spec.replicas` is left out when it is zero.
fn scale(desired: u32, existing: u32) -> Answer {
    let spec = if desired == 0 { json!({}) } else { json!({"replicas": desired}) };
    let body = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": "model", "namespace": "elastic", "resourceVersion": "352"},
        "spec": spec, "status": {"replicas": existing, "selector": "app=model"},
    });
    Answer::Json(StatusCode::OK, body)
}

/// A Deployment as the API server writes it, as far as the scaler reads it.
fn deployment(status: &Value) -> Answer {
    let body = json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "model", "namespace": "elastic", "generation": 3},
        "spec": {
            "replicas": 99, "selector": {"matchLabels": {"app": "model"}},
            "template": {"metadata": {"labels": {"app": "model"}}, "spec": {"containers": [{"name": "model"}]}},
        },
        "status": status,
    });
    Answer::Json(StatusCode::OK, body)
}

/// A failure as the API server writes it.
fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    Answer::Json(StatusCode::from_u16(code).unwrap(), body)
}

fn forbidden() -> Answer {
    failure(403, "Forbidden", "deployments.apps \"model\" is forbidden")
}

async fn observed(get_scale: Answer, get_deployment: Answer) -> Result<ReplicaCounts, ClusterError> {
    let seen = Double::start(get_scale, get_deployment, Answer::Silence).await.scaler.observe().await?;
    Ok(seen.counts)
}

/// A Deployment with two ready pods, in which setting the number is answered so.
async fn settled(patch_scale: Answer) -> Double {
    Double::start(scale(2, 2), deployment(&json!({"readyReplicas": 2})), patch_scale).await
}

async fn scaled(double: &Double, replicas: u32) -> Result<(), ClusterError> {
    let seen = double.scaler.observe().await?;
    double.scaler.scale_to(&seen, replicas, TIMEOUT, &HashMap::new()).await
}

async fn patched(patch_scale: Answer) -> ClusterError {
    scaled(&settled(patch_scale).await, 3).await.unwrap_err()
}

#[tokio::test]
async fn counts_come_from_the_scale_and_the_deployments_status() {
    for (desired, existing, status, ready, starting) in [
        (2, 2, json!({"replicas": 2, "readyReplicas": 2}), 2, 0),
        // Scaled up: the third pod exists and is not ready, the fourth does not exist yet.
        (4, 3, json!({"replicas": 3, "readyReplicas": 2}), 2, 2),
        // Scaled down: the surplus pod still takes requests.
        (1, 2, json!({"replicas": 2, "readyReplicas": 2}), 2, 0),
        // The API server leaves out counts of zero.
        (3, 0, json!({}), 0, 3),
        (0, 0, json!({}), 0, 0),
        (1, 1, Value::Null, 0, 1),
    ] {
        let counts = observed(scale(desired, existing), deployment(&status)).await.unwrap();
        assert_eq!(counts, ReplicaCounts { desired, ready, starting, failing: 0 }, "{status}");
    }
}

#[tokio::test]
async fn without_the_right_to_read_the_deployment_pods_that_exist_count_as_ready() {
    let counts = observed(scale(4, 3), forbidden()).await.unwrap();
    assert_eq!(counts, ReplicaCounts { desired: 4, ready: 3, starting: 1, failing: 0 });
}

#[tokio::test]
async fn observing_only_reads() {
    let status = json!({"readyReplicas": 1});
    let double = Double::start(scale(1, 1), deployment(&status), Answer::Silence).await;
    double.scaler.observe().await.unwrap();
    let calls: Vec<_> = double.calls().into_iter().map(|call| (call.method, call.path)).collect();
    assert_eq!(calls, [(Method::GET, SCALE.to_owned()), (Method::GET, DEPLOYMENT.to_owned())]);
}

#[tokio::test]
async fn scaling_sends_one_merge_patch_with_the_number_wanted() {
    let double = settled(scale(3, 2)).await;
    scaled(&double, 3).await.unwrap();
    let expected = Call {
        method: Method::PATCH,
        path: SCALE.into(),
        query: Some("fieldManager=elastic".into()),
        content_type: Some("application/merge-patch+json".into()),
        body: json!({"spec": {"replicas": 3}, "metadata": {"resourceVersion": "352"}}),
    };
    assert_eq!(double.calls()[2..], [expected]);
}

#[tokio::test]
async fn a_number_that_no_deployment_can_have_is_refused_without_a_call() {
    let double = settled(Answer::Silence).await;
    let error = scaled(&double, u32::MAX).await.unwrap_err();
    let says = "a deployment cannot have 4294967295 replicas; the most is 2147483647";
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!(double.calls().len(), 2, "the two looks");
}

#[tokio::test]
async fn a_deployment_that_is_not_there_is_named_with_its_namespace() {
    let missing = || failure(404, "NotFound", "deployments.apps \"model\" not found");
    let ready = deployment(&json!({"readyReplicas": 1}));
    for error in [
        observed(missing(), ready).await.unwrap_err(),
        // Removed between the two reads.
        observed(scale(1, 1), missing()).await.unwrap_err(),
        patched(missing()).await,
    ] {
        assert!(matches!(error, ClusterError::NotFound { .. }), "{error:?}");
        assert!(!error.is_transient());
        let text = error.to_string();
        assert!(text.starts_with("there is no deployment \"model\" in namespace \"elastic\""), "{text}");
    }
}

#[tokio::test]
async fn a_missing_right_is_answered_with_the_rule_that_gives_it() {
    let error = observed(forbidden(), Answer::Silence).await.unwrap_err();
    let rule = "{apiGroups: [apps], resources: [deployments/scale], resourceNames: [model], verbs: [get]}";
    assert!(error.to_string().ends_with(rule), "{error}");
    let error = patched(forbidden()).await;
    assert!(error.to_string().ends_with(&rule.replace("get", "patch")), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn unknown_credentials_are_told_from_missing_rights() {
    let error = observed(failure(401, "Unauthorized", "Unauthorized"), Answer::Silence).await.unwrap_err();
    assert!(matches!(error, ClusterError::Unauthorized(_)), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_conflict_can_be_tried_again() {
    let error = patched(failure(409, "Conflict", "the object has been modified")).await;
    assert!(matches!(&error, ClusterError::Conflict { name, .. } if name == "model"), "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_server_in_trouble_can_be_tried_again_and_says_what_it_said() {
    for (answer, text) in [
        (failure(500, "InternalError", "etcd is away"), "(500: etcd is away)"),
        (
            failure(503, "ServiceUnavailable", "apiserver is shutting down"),
            "(503: apiserver is shutting down)",
        ),
        (failure(429, "TooManyRequests", "too many requests"), "(429: too many requests)"),
        // A proxy in front of the API server speaks no JSON.
        (Answer::Text(StatusCode::BAD_GATEWAY, "bad gateway\n"), "(502: bad gateway)"),
    ] {
        let error = patched(answer.clone()).await;
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.is_transient());
        let error = observed(answer, Answer::Silence).await.unwrap_err();
        assert!(matches!(error, ClusterError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_refusal_for_good_is_not_tried_again() {
    let error = patched(failure(422, "Invalid", "must be greater than or equal to 0")).await;
    assert!(matches!(error, ClusterError::Refused { status: 422, .. }), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn an_answer_that_is_no_scale_is_told_from_no_answer() {
    let error =
        observed(Answer::Text(StatusCode::OK, "<html>hello</html>"), Answer::Silence).await.unwrap_err();
    assert!(matches!(error, ClusterError::BadAnswer(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let listener = bind("127.0.0.1", 0).await.unwrap();
    let url = local_url(&listener).unwrap();
    drop(listener);
    let error = scaler(&url).observe().await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreachable(_)), "{error:?}");
    assert!(error.is_transient());
}

// The clock stands still and jumps to the next timer once nothing else can happen: no test waits five seconds.
#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_or_stops_halfway_runs_into_the_time_out() {
    for (get_scale, get_deployment) in [
        (Answer::Silence, Answer::Silence),
        (scale(1, 1), Answer::Silence),
        (Answer::HalfABody, Answer::Silence),
    ] {
        let double = Double::start(get_scale, get_deployment, Answer::Silence).await;
        let started = Instant::now();
        let error = double.scaler.observe().await.unwrap_err();
        assert_eq!(started.elapsed(), TIMEOUT);
        assert!(matches!(error, ClusterError::TimedOut { after } if after == TIMEOUT), "{error:?}");
        assert!(error.is_transient());
    }
    for answer in [Answer::Silence, Answer::HalfABody] {
        let started = Instant::now();
        let error = patched(answer).await;
        assert_eq!(started.elapsed(), TIMEOUT);
        assert!(matches!(error, ClusterError::TimedOut { .. }), "{error:?}");
    }
}
