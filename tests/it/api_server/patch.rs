//! Merge patches, and what must hold of an object before it is stored.
use super::kinds::Kind;
use super::status::{Cause, Refusal};
use serde_json::{Map, Value};

/// The annotation that says which pod a Deployment gives up first.
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const NOTE_BYTES_MAX: usize = 1024;

/// Merges `patch` into `target` as RFC 7386 says: null removes, objects are merged, all else is replaced.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let fields = target.as_object_mut().unwrap();
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Merges a strategic merge patch. Only lists are merged in another way, and the double merges none.
pub(super) fn merge_strategically(target: &mut Value, patch: &Value) -> Result<(), Refusal> {
    if has_list(patch) {
        return Err(Refusal::new(500, "InternalError", "the double merges no lists strategically"));
    }
    merge(target, patch);
    Ok(())
}

fn has_list(value: &Value) -> bool {
    value.is_array() || value.as_object().is_some_and(|fields| fields.values().any(has_list))
}

/// Leaves out empty maps that a merge has emptied, as the API server's types do.
pub(super) fn drop_empty(object: &mut Value) {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for name in ["annotations", "labels"] {
        if metadata.get(name).is_some_and(|map| map.as_object().is_some_and(Map::is_empty)) {
            metadata.remove(name);
        }
    }
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {}", message.into()),
        field: field.into(),
    }
}

fn required(field: &str) -> Cause {
    Cause { reason: "FieldValueRequired", message: "Required value".to_owned(), field: field.to_owned() }
}

/// What the API server checks while it reads a body.
pub(super) fn check_read(kind: &Kind, object: &Value) -> Result<(), Refusal> {
    let times: &[&str] = match kind.stored_as {
        "leases" => &["/spec/acquireTime", "/spec/renewTime"],
        "events" => &["/eventTime", "/series/lastObservedTime"],
        _ => &[],
    };
    for time in times.iter().filter_map(|path| object.pointer(path)).filter_map(Value::as_str) {
        if let Some(rest) = not_microseconds(time) {
            let (name, version) = (kind.singular, kind.version);
            return Err(Refusal::bad_request(format!(
                "{name} in version {version:?} cannot be handled as a {name}: parsing time {time:?} as \
                 \"2006-01-02T15:04:05.000000Z07:00\": cannot parse {rest:?} as \".000000\""
            )));
        }
    }
    Ok(())
}

/// What stands where six digits of a second should; `None` when they are there.
fn not_microseconds(time: &str) -> Option<&str> {
    let rest = time.get("2006-01-02T15:04:05".len()..).unwrap_or(time);
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    (digits != 6).then_some(rest)
}

/// What the API server checks of an object that is to be stored.
pub(super) fn check(kind: &Kind, object: &Value) -> Result<(), Refusal> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (causes, group) = match kind.stored_as {
        "leases" => (lease_causes(object), kind.group),
        // The message forgets the group.
        "events" => (event_causes(object), ""),
        "pods" => (pod_causes(object), kind.group),
        "deployments" => (deployment_causes(object), kind.group),
        _ => return Ok(()),
    };
    if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid(kind.singular, group, name, &causes)) }
}

fn lease_causes(lease: &Value) -> Vec<Cause> {
    let field = "spec.leaseDurationSeconds";
    let duration_s = lease["spec"]["leaseDurationSeconds"].as_i64();
    let too_short = duration_s.filter(|duration_s| *duration_s <= 0);
    too_short.into_iter().map(|short| invalid(field, format!("{short}: must be greater than 0"))).collect()
}

fn event_causes(event: &Value) -> Vec<Cause> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    if text("eventTime").is_empty() {
        return vec![required("eventTime")];
    }
    if text("reportingController").is_empty() {
        let field = "reportingController";
        causes.push(required(field));
        causes.push(invalid(field, "\"\": name part must be non-empty"));
        let pattern = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                       an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                       validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        causes.push(invalid(field, format!("\"\": {pattern}")));
    }
    let missing =
        ["reportingInstance", "action", "reason"].into_iter().filter(|field| text(field).is_empty());
    causes.extend(missing.map(required));
    if !["Normal", "Warning"].contains(&text("type")) {
        causes.push(invalid("type", format!("\"\": has invalid value: {}", text("type"))));
    }
    if text("note").len() > NOTE_BYTES_MAX {
        causes.push(invalid("message", format!("\"\": can have at most {NOTE_BYTES_MAX} characters")));
    }
    causes
}

fn pod_causes(pod: &Value) -> Vec<Cause> {
    let cost = &pod["metadata"]["annotations"][DELETION_COST];
    let Some(text) = cost.as_str().filter(|text| text.parse::<i32>().is_err()) else { return Vec::new() };
    // The API server finds it twice.
    let found = || {
        invalid(
            format!("metadata.annotations[{DELETION_COST}]"),
            format!("{text:?}: must be a 32bit integer"),
        )
    };
    vec![found(), found()]
}

fn deployment_causes(deployment: &Value) -> Vec<Cause> {
    let replicas = deployment["spec"]["replicas"].as_i64().unwrap_or(0);
    let negative = (replicas < 0).then(|| invalid("spec.replicas", negative(replicas)));
    negative.into_iter().collect()
}

/// Checks the number of replicas that a scale asks for.
pub(super) fn check_scale(name: &str, replicas: i64) -> Result<(), Refusal> {
    if replicas >= 0 {
        return Ok(());
    }
    Err(Refusal::invalid("Scale", "autoscaling", name, &[invalid("spec.replicas", negative(replicas))]))
}

fn negative(replicas: i64) -> String {
    format!("{replicas}: must be greater than or equal to 0")
}

/// A PUT without the version that it replaces, for kinds that insist on one.
pub(super) fn version_required(kind: &Kind, name: &str) -> Refusal {
    let cause = invalid("metadata.resourceVersion", "0: must be specified for an update");
    Refusal::invalid(kind.plural, kind.group, name, &[cause])
}

/// A patch that would rename its object.
pub(super) fn renamed(kind: &Kind, name: &str, wanted: &str) -> Refusal {
    let cause = invalid("metadata.name", format!("{wanted:?}: field is immutable"));
    Refusal::invalid(kind.singular, kind.group, name, &[cause])
}

/// A streaming list that does not say how fresh it must be.
pub(super) fn match_required() -> Refusal {
    let cause = Cause {
        reason: "FieldValueForbidden",
        message: "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            .to_owned(),
        field: "resourceVersionMatch".to_owned(),
    };
    Refusal::invalid("ListOptions", "meta.k8s.io", "", &[cause])
}
