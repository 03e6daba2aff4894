//! Events about the Deployment, as `kubectl describe` and `kubectl events` show them.
use crate::net::clock;
use crate::net::kubernetes::{Asked, Cluster, ClusterError};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use std::time::Duration;

/// Who reports, in the form that the API wants.
const CONTROLLER: &str = "elastic/autoscale";
/// Longest note that the API server takes, bytes.
const NOTE_BYTES_MAX: usize = 1024;
/// An Event is worth no longer wait: decisions go on meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What an Event tells.
pub(super) struct Told {
    pub(super) reason: &'static str,
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// Writes an Event about a Deployment.
pub(super) async fn write(
    cluster: &Cluster,
    deployment: &str,
    uid: Option<String>,
    identity: &str,
    told: Told,
) -> Result<(), ClusterError> {
    let Told { reason, action, mut note } = told;
    note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    let event = Event {
        metadata: ObjectMeta { generate_name: Some(format!("{deployment}-")), ..ObjectMeta::default() },
        event_time: Some(now()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(identity.to_owned()),
        action: Some(action.to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("Deployment".to_owned()),
            namespace: Some(cluster.namespace().to_owned()),
            name: Some(deployment.to_owned()),
            uid,
            ..ObjectReference::default()
        }),
        note: Some(note),
        type_: Some("Normal".to_owned()),
        ..Event::default()
    };
    let asked = Asked { verb: "create", group: "events.k8s.io", resource: "events", name: None };
    let events = cluster.api::<Event>();
    let parameters = PostParams::default();
    cluster.call_within(TIMEOUT, &asked, events.create(&parameters, &event)).await.map(drop)
}

/// Now, as the API writes times with fractions of a second.
pub(super) fn now() -> MicroTime {
    let since = clock::unix_time();
    // Beyond what a timestamp can hold lies the year 9999.
    let nanos = i32::try_from(since.subsec_micros() * 1000).unwrap_or(0);
    MicroTime(Timestamp::new(since.as_secs().cast_signed(), nanos).unwrap_or_default())
}
