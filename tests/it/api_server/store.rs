//! The objects, and all that ever happened to them.
//!
//! **Invariant**: every change gets the next number of one counter, which is the `resourceVersion` of what it left; a
//! write that changes nothing is no change.
use super::kinds::Kind;
use rand::Rng as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) stored_as: &'static str,
    /// What it was; `None` when it was created.
    pub(crate) before: Option<Value>,
    /// What it is; `None` when it was removed.
    pub(crate) after: Option<Value>,
}

type Place = (String, String);

/// Every object of the cluster.
#[derive(Default)]
pub(crate) struct Store {
    pub(super) version: u64,
    /// No watch and no page may begin before this version.
    pub(super) oldest: u64,
    objects: BTreeMap<&'static str, BTreeMap<Place, Value>>,
    pub(super) history: Vec<Change>,
}

impl Store {
    /// Looks one object up, as in `get("deployments", "elastic", "model")`.
    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(plural)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The objects of a kind in one namespace, or in all of them, in order of their names.
    pub(crate) fn list(&self, plural: &str, namespace: Option<&str>) -> Vec<&Value> {
        let all = self.objects.get(plural).into_iter().flatten();
        all.filter(|((place, _), _)| namespace.is_none_or(|asked| asked == place))
            .map(|(_, object)| object)
            .collect()
    }

    /// The objects of a kind as they were at a version.
    pub(super) fn list_at(&self, kind: &Kind, version: u64) -> BTreeMap<Place, Value> {
        let mut then = self.objects.get(kind.stored_as).cloned().unwrap_or_default();
        let later = self.history.iter().rev().take_while(|change| change.version > version);
        for change in later.filter(|change| change.stored_as == kind.stored_as) {
            let place = place(change.after.as_ref().or(change.before.as_ref()).unwrap());
            match &change.before {
                Some(before) => then.insert(place, before.clone()),
                None => then.remove(&place),
            };
        }
        then
    }

    /// Fills in what the API server does of an object that is to be created.
    pub(super) fn complete(kind: &Kind, object: &mut Value, namespace: &str) {
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.singular.into();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let metadata = object["metadata"].as_object_mut().unwrap();
        if kind.namespaced {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
        if !metadata.contains_key("name") {
            let begin = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
            let name = format!("{begin}{}", random_suffix());
            metadata.insert("name".to_owned(), name.into());
        }
        metadata.insert("uid".to_owned(), random_uid().into());
        metadata.insert("creationTimestamp".to_owned(), now().into());
        metadata.remove("resourceVersion");
        metadata.remove("generation");
        defaults(kind, object);
    }

    /// Stores an object, new or changed, and returns it as it is now.
    pub(super) fn put(&mut self, kind: &Kind, mut object: Value) -> Value {
        let place = place(&object);
        let before = self.objects.get(kind.stored_as).and_then(|objects| objects.get(&place)).cloned();
        number_generation(kind, before.as_ref(), &mut object);
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return object;
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.entry(kind.stored_as).or_default().insert(place, object.clone());
        let after = Some(object.clone());
        self.history.push(Change { version: self.version, stored_as: kind.stored_as, before, after });
        object
    }

    /// Removes an object, and returns it as it was.
    pub(super) fn remove(&mut self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        let place = (namespace.to_owned(), name.to_owned());
        let before = self.objects.get_mut(kind.stored_as)?.remove(&place)?;
        self.version += 1;
        let change = Change {
            version: self.version,
            stored_as: kind.stored_as,
            before: Some(before.clone()),
            after: None,
        };
        self.history.push(change);
        Some(before)
    }

    /// Replicas that a Deployment asks for.
    pub(crate) fn replicas(&self, namespace: &str, deployment: &str) -> Option<u64> {
        self.get("deployments", namespace, deployment)?["spec"]["replicas"].as_u64()
    }
}

/// Where an object is kept: its namespace, if any, and its name.
fn place(object: &Value) -> Place {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn number_generation(kind: &Kind, before: Option<&Value>, object: &mut Value) {
    let Some(part) = kind.generation_of else { return };
    let number = match before {
        None => 1,
        Some(before) => {
            let number = before["metadata"]["generation"].as_u64().unwrap_or(1);
            number + u64::from(part(before) != part(object))
        }
    };
    object["metadata"]["generation"] = number.into();
}

/// The defaults that somebody reads.
fn defaults(kind: &Kind, object: &mut Value) {
    let fields = object.as_object_mut().unwrap();
    match kind.stored_as {
        "deployments" => {
            let spec = fields.entry("spec").or_insert_with(|| json!({}));
            if spec["replicas"].is_null() {
                spec["replicas"] = 1.into();
            }
            fields.entry("status").or_insert_with(|| json!({}));
        }
        "events" => {
            fields.entry("deprecatedSource").or_insert_with(|| json!({}));
            fields.entry("deprecatedFirstTimestamp").or_insert(Value::Null);
            fields.entry("deprecatedLastTimestamp").or_insert(Value::Null);
        }
        "horizontalpodautoscalers" => {
            fields.entry("status").or_insert_with(|| json!({"desiredReplicas": 0, "currentMetrics": null}));
        }
        _ => {}
    }
}

/// Whether an object's labels are all of those asked for.
pub(super) fn has_labels(object: &Value, labels: &[(String, String)]) -> bool {
    labels.iter().all(|(name, value)| object["metadata"]["labels"][name] == **value)
}

/// Whether fields of an object, named by their path, are as asked for.
pub(super) fn has_fields(object: &Value, fields: &[(String, String)]) -> bool {
    let field = |path: &str| path.split('.').try_fold(object, |part, name| part.get(name));
    fields.iter().all(|(path, value)| field(path).and_then(Value::as_str).unwrap_or_default() == value)
}

/// An object as an item of a list, which does not repeat the kind.
pub(super) fn as_item(kind: &Kind, stored: &Value) -> Value {
    let mut item = kind.show(stored);
    let fields: &mut Map<String, Value> = item.as_object_mut().unwrap();
    fields.remove("kind");
    fields.remove("apiVersion");
    item
}

/// The scale of a Deployment.
pub(super) fn scale_of(deployment: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata.insert(field.to_owned(), deployment["metadata"][field].clone());
    }
    let replicas = deployment["spec"]["replicas"].as_i64().unwrap_or(0);
    // Zero is left out.
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    let existing = deployment["status"]["replicas"].as_i64().unwrap_or(0);
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object();
    let selector: Vec<_> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap()))
        .collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {"replicas": existing, "selector": selector.join(",")},
    })
}

/// Five characters, as the API server puts them behind a `generateName`.
pub(crate) fn random_suffix() -> String {
    const CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(CHARACTERS[random.random_range(0..CHARACTERS.len())])).collect()
}

fn random_uid() -> String {
    let digits = format!("{:032x}", rand::rng().random::<u128>());
    let parts = [&digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..]];
    format!("{}-{}-4{}-8{}-{}", parts[0], parts[1], parts[2], parts[3], parts[4])
}

/// The time as `creationTimestamp` has it: whole seconds.
pub(crate) fn now() -> String {
    in_seconds(0)
}

/// The time in so many seconds.
pub(super) fn in_seconds(later_s: u64) -> String {
    let unix_s = elastic::net::clock::unix_time().as_secs() + later_s;
    k8s_openapi::jiff::Timestamp::from_second(unix_s.cast_signed()).unwrap().to_string()
}
