//! What the API server says when it does not do as it was asked.
use super::kinds::Kind;
use serde_json::{Value, json};

/// An answer other than success: a `Status`, word for word as the API server writes it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) body: Value,
    pub(super) retry_after_s: Option<u32>,
}

/// A field that is not as it must be.
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) field: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        });
        Self { code, body, retry_after_s: None }
    }

    fn detailed(mut self, details: Value) -> Self {
        self.body["details"] = details;
        self
    }

    pub(super) fn after(self, retry_after_s: Option<u32>) -> Self {
        Self { retry_after_s, ..self }
    }

    /// What a fault answers when it is told no more than a code; `about` is where it has a name.
    pub(super) fn of_code(code: u16, about: Option<(&Kind, &str)>) -> Self {
        match (code, about) {
            (401, _) => Self::unauthorized(),
            (404, Some((kind, name))) => Self::not_found(kind, name),
            (409, Some((kind, name))) => Self::conflict(kind, name),
            (410, _) => Self::new(410, "Expired", "the requested resource version is too old"),
            (429, _) => Self::new(429, "TooManyRequests", "Too many requests, please try again later."),
            (503, _) => Self::new(503, "ServiceUnavailable", "apiserver is shutting down"),
            (504, _) => Self::new(504, "Timeout", "request did not complete within the allotted timeout"),
            _ => Self::new(code, "InternalError", "Internal error occurred: etcdserver: request timed out"),
        }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn unknown_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").detailed(json!({}))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unsupported_media_type() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").detailed(json!({}))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).detailed(json!({}))
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.qualified());
        Self::new(404, "NotFound", message).detailed(named(name, kind.group, kind.plural))
    }

    pub(super) fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.qualified());
        Self::new(409, "AlreadyExists", message).detailed(named(name, kind.group, kind.plural))
    }

    pub(super) fn conflict(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::cannot_be_fulfilled(kind, name, why)
    }

    /// The body asks for an object with a uid that the object there, if any, does not have.
    pub(super) fn wrong_uid(kind: &Kind, namespace: &str, name: &str, asked: &str, there: &str) -> Self {
        let plural = kind.plural;
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{plural}/{namespace}/{name}, ResourceVersion: 0, \
             AdditionalErrorMsg: Precondition failed: UID in precondition: {asked}, UID in object meta: {there}"
        );
        Self::cannot_be_fulfilled(kind, name, &why)
    }

    fn cannot_be_fulfilled(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.qualified());
        Self::new(409, "Conflict", message).detailed(named(name, kind.group, kind.plural))
    }

    /// `what` is a kind or a resource: the API server says now one, now the other. Its group goes with it.
    pub(super) fn invalid(what: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        let mut faults: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        faults.dedup();
        let faults =
            if let [fault] = faults.as_slice() { fault.clone() } else { format!("[{}]", faults.join(", ")) };
        let mut details = named(name, group, what);
        details["causes"] = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        let qualified = super::kinds::qualified(what, group);
        Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {faults}")).detailed(details)
    }

    pub(super) fn forbidden(user: &str, verb: &str, asked: &super::routes::Target) -> Self {
        let (group, plural) = (&asked.group, &asked.resource);
        let qualified = super::kinds::qualified(plural, group);
        let object = asked.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let place = match &asked.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let resource = asked.full_resource();
        let message = format!(
            "{qualified}{object} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group \
             {group:?} {place}"
        );
        let name = asked.name.as_deref().unwrap_or_default();
        Self::new(403, "Forbidden", message).detailed(named(name, group, plural))
    }

    /// A watch from a version that is no longer remembered.
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }
}

/// Details about one object; empty parts are left out.
fn named(name: &str, group: &str, kind: &str) -> Value {
    let mut details = json!({"kind": kind});
    for (field, value) in [("name", name), ("group", group)] {
        if !value.is_empty() {
            details[field] = value.into();
        }
    }
    details
}
