//! What each verb does to the objects.
use super::State;
use super::kinds::{self, Kind};
use super::patch;
use super::routes::{Asked, Reply};
use super::status::Refusal;
use super::store::{Store, as_item, has_fields, has_labels, scale_of};
use super::watch::{From, Wanted};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use std::time::Duration;

const GRACE_S: u64 = 30;
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                       list without the continue parameter, or use the continue token in this response to retrieve the \
                       remainder of the results. Continuing with the provided token results in an inconsistent list - \
                       objects that were created, modified, or deleted between the time the first chunk was returned \
                       and now may show up in the list.";

/// A request for one kind of object, whose sender may do it.
pub(super) struct Request<'a> {
    pub(super) asked: &'a Asked,
    pub(super) kind: &'static Kind,
    /// `None` for all namespaces.
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
}

type Answer = Result<Reply, Refusal>;

impl Request<'_> {
    fn place(&self) -> &str {
        self.namespace.unwrap_or_default()
    }

    fn existing<'s>(&self, store: &'s Store) -> Result<&'s Value, Refusal> {
        let found = store.get(self.kind.stored_as, self.place(), self.name);
        found.ok_or_else(|| Refusal::not_found(self.kind, self.name))
    }

    /// Stores an object, or only says what it would be.
    fn put(&self, store: &mut Store, object: Value) -> Value {
        if self.asked.is_dry_run() { object } else { store.put(self.kind, object) }
    }

    fn body(&self) -> Result<Value, Refusal> {
        let body = self.asked.body.clone();
        if !body.is_object() {
            return Err(Refusal::bad_request("the body is no JSON object"));
        }
        let (kind, version) = (&body["kind"], &body["apiVersion"]);
        if (!kind.is_null() && *kind != self.kind.singular)
            || (!version.is_null() && *version != self.kind.api_version())
        {
            return Err(Refusal::bad_request(format!("{kind} of {version} does not belong under this path")));
        }
        patch::check_read(self.kind, &body)?;
        Ok(body)
    }

    pub(super) fn get(&self, store: &Store) -> Answer {
        Ok(Reply::Json(200, self.kind.show(self.existing(store)?)))
    }

    pub(super) fn create(&self, store: &mut Store) -> Answer {
        let mut object = self.body()?;
        if self.kind.namespaced && store.get("namespaces", "", self.place()).is_none() {
            return Err(Refusal::not_found(kinds::stored("namespaces"), self.place()));
        }
        let meant = object["metadata"]["namespace"].as_str().unwrap_or(self.place());
        if meant != self.place() {
            let message =
                "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::bad_request(message));
        }
        Store::complete(self.kind, &mut object, self.place());
        patch::check(self.kind, &object)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if store.get(self.kind.stored_as, self.place(), name).is_some() {
            return Err(Refusal::already_exists(self.kind, name));
        }
        Ok(Reply::Json(201, self.put(store, object)))
    }

    pub(super) fn replace(&self, store: &mut Store, may_create: Result<(), Refusal>) -> Answer {
        let mut object = self.body()?;
        let given = object["metadata"]["name"].as_str().unwrap_or_default();
        if given != self.name {
            let message = format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                self.name
            );
            return Err(Refusal::bad_request(message));
        }
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let Ok(existing) = self.existing(store) else {
            if !uid.is_empty() {
                return Err(Refusal::wrong_uid(self.kind, self.place(), self.name, &uid, ""));
            }
            if !self.kind.creates_on_put {
                return Err(Refusal::not_found(self.kind, self.name));
            }
            may_create?;
            Store::complete(self.kind, &mut object, self.place());
            patch::check(self.kind, &object)?;
            return Ok(Reply::Json(201, self.put(store, object)));
        };
        let there = existing["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != there {
            return Err(Refusal::wrong_uid(self.kind, self.place(), self.name, &uid, there));
        }
        if object["metadata"]["resourceVersion"].is_null() && !self.kind.blind_put {
            return Err(patch::version_required(self.kind, self.name));
        }
        self.check_version(existing, &object)?;
        let object = carried_over(self.kind, existing, object);
        patch::check(self.kind, &object)?;
        Ok(Reply::Json(200, self.put(store, object)))
    }

    /// A change that names the version it is based on is refused when that is not the newest one.
    fn check_version(&self, existing: &Value, change: &Value) -> Result<(), Refusal> {
        let based_on = &change["metadata"]["resourceVersion"];
        if based_on.is_null() || *based_on == existing["metadata"]["resourceVersion"] {
            return Ok(());
        }
        Err(Refusal::conflict(self.kind, self.name))
    }

    fn merged(&self, target: &Value) -> Result<Value, Refusal> {
        let (mut merged, change) = (target.clone(), &self.asked.body);
        match self.asked.content_type.as_str() {
            "application/merge-patch+json" => patch::merge(&mut merged, change),
            "application/strategic-merge-patch+json" => patch::merge_strategically(&mut merged, change)?,
            _ => return Err(Refusal::unsupported_media_type()),
        }
        Ok(merged)
    }

    pub(super) fn patch(&self, store: &mut Store) -> Answer {
        let existing = self.existing(store);
        let mut merged = self.merged(existing.as_ref().map_or(&Value::Null, |existing| *existing))?;
        let existing = existing?;
        self.check_version(existing, &self.asked.body)?;
        let wanted = merged["metadata"]["name"].as_str().unwrap_or_default();
        if wanted != self.name {
            return Err(patch::renamed(self.kind, self.name, wanted));
        }
        patch::check_read(self.kind, &merged)?;
        patch::drop_empty(&mut merged);
        let object = carried_over(self.kind, existing, merged);
        patch::check(self.kind, &object)?;
        Ok(Reply::Json(200, self.put(store, object)))
    }

    pub(super) fn delete(&self, store: &mut Store) -> Answer {
        let mut object = self.existing(store)?.clone();
        let uid = object["metadata"]["uid"].clone();
        if self.kind.stored_as == "pods" && !self.asked.is_dry_run() {
            return Ok(Reply::Json(200, self.terminate(store, &mut object)));
        }
        if !self.asked.is_dry_run() {
            store.remove(self.kind, self.place(), self.name);
        }
        let mut details = json!({"name": self.name, "kind": self.kind.plural, "uid": uid});
        if !self.kind.group.is_empty() {
            details["group"] = self.kind.group.into();
        }
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        });
        Ok(Reply::Json(200, status))
    }

    /// A pod that a node has is only marked: the kubelet removes it when its processes have ended.
    fn terminate(&self, store: &mut Store, pod: &mut Value) -> Value {
        let given = self.asked.query.get("gracePeriodSeconds").and_then(|seconds| seconds.parse().ok());
        let given = given.or_else(|| self.asked.body["gracePeriodSeconds"].as_u64());
        if pod["spec"]["nodeName"].is_null() || given == Some(0) {
            store.remove(self.kind, self.place(), self.name);
            return pod.clone();
        }
        mark_terminating(pod, given);
        store.put(self.kind, pod.clone())
    }

    pub(super) fn scale(&self, store: &mut Store, verb: &str) -> Answer {
        let existing = self.existing(store);
        let scale = existing.as_ref().ok().map(|deployment| scale_of(deployment)).unwrap_or_default();
        let wanted = match verb {
            "get" => return Ok(Reply::Json(200, scale_of(existing?))),
            "patch" => self.merged(&scale)?,
            "update" => self.asked.body.clone(),
            _ => return Err(Refusal::method_not_allowed()),
        };
        let mut deployment = existing?.clone();
        self.check_version(&deployment, &self.asked.body)?;
        let replicas = &wanted["spec"]["replicas"];
        let replicas = if replicas.is_null() { Some(0) } else { replicas.as_i64() };
        let replicas = replicas.ok_or_else(|| Refusal::bad_request("spec.replicas is no number"))?;
        patch::check_scale(self.name, replicas)?;
        deployment["spec"]["replicas"] = replicas.into();
        Ok(Reply::Json(200, scale_of(&self.put(store, deployment))))
    }

    pub(super) fn list(&self, store: &Store) -> Answer {
        let (labels, fields) = self.selectors()?;
        let page = self.asked.query.get("continue").map(|token| Page::read(token)).transpose()?;
        let version = page.as_ref().and_then(|page| page.version).unwrap_or(store.version);
        if page.is_some() && version < store.oldest {
            let rest = Page { version: None, ..page.unwrap_or_default() };
            let mut refusal = Refusal::new(410, "Expired", TOO_OLD);
            refusal.body["metadata"]["continue"] = rest.write().into();
            return Err(refusal);
        }
        let mut left = Vec::new();
        for ((namespace, name), object) in store.list_at(self.kind, version) {
            let begin = if self.namespace.is_some() { String::new() } else { format!("/{namespace}") };
            let key = format!("{begin}/{name}");
            let is_here = self.namespace.is_none_or(|asked| asked == namespace);
            let is_left = page.as_ref().is_none_or(|page| key > page.after);
            if is_here
                && is_left
                && has_labels(&object, &labels)
                && has_fields(&self.kind.show(&object), &fields)
            {
                left.push((key, as_item(self.kind, &object)));
            }
        }
        let limit =
            self.asked.query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
        let rest = left.len().saturating_sub(limit.unwrap_or(usize::MAX));
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if rest > 0 {
            left.truncate(left.len() - rest);
            let after = left.last().map(|(key, _)| key.clone()).unwrap_or_default();
            metadata["continue"] = Page { version: Some(version), after }.write().into();
            if labels.is_empty() && fields.is_empty() {
                metadata["remainingItemCount"] = rest.into();
            }
        }
        let items: Vec<Value> = left.into_iter().map(|(_, item)| item).collect();
        let list = json!({
            "kind": format!("{}List", self.kind.singular), "apiVersion": self.kind.api_version(),
            "metadata": metadata, "items": items,
        });
        Ok(Reply::Json(200, list))
    }

    fn selectors(&self) -> Result<(Selector, Selector), Refusal> {
        let query = &self.asked.query;
        Ok((selector(query.get("labelSelector"))?, selector(query.get("fieldSelector"))?))
    }

    pub(super) fn watch(&self, state: &State) -> Answer {
        let (labels, fields) = self.selectors()?;
        let number = |name| self.asked.query.get(name).and_then(|value| value.parse::<u64>().ok());
        let from = if self.asked.is("sendInitialEvents") {
            if self.asked.query.get("resourceVersionMatch").is_none_or(|wanted| wanted != "NotOlderThan") {
                return Err(patch::match_required());
            }
            if state.old_storage {
                let message = "a watch stream was requested by the client but the required storage feature \
                               RequestWatchProgress is disabled";
                let failed = Wanted::failed(Refusal::new(500, "InternalError", message));
                return Ok(Reply::Watch(failed));
            }
            From::StreamedList
        } else {
            match number("resourceVersion") {
                None | Some(0) => From::All,
                Some(version) if version < state.store.oldest => {
                    let failed = Wanted::failed(Refusal::too_old(version, state.store.oldest));
                    return Ok(Reply::Watch(failed));
                }
                Some(version) => From::Version(version),
            }
        };
        Ok(Reply::Watch(Box::new(Wanted {
            kind: self.kind,
            namespace: self.namespace.map(ToOwned::to_owned),
            labels,
            fields,
            from,
            bookmarks: self.asked.is("allowWatchBookmarks"),
            lasts: number("timeoutSeconds").map(Duration::from_secs),
        })))
    }
}

/// Marks a pod as one that is to end.
pub(super) fn mark_terminating(pod: &mut Value, given_s: Option<u64>) {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let grace_s =
        given_s.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(GRACE_S);
    pod["metadata"]["deletionTimestamp"] = super::store::in_seconds(grace_s).into();
    pod["metadata"]["deletionGracePeriodSeconds"] = grace_s.into();
}

/// A changed object with the parts of the old one that no client may change.
fn carried_over(kind: &Kind, existing: &Value, mut object: Value) -> Value {
    let metadata = ["uid", "creationTimestamp", "generation", "namespace", "resourceVersion"];
    for field in metadata.into_iter().chain(["deletionTimestamp", "deletionGracePeriodSeconds"]) {
        if !existing["metadata"][field].is_null() {
            object["metadata"][field] = existing["metadata"][field].clone();
        }
    }
    for field in ["apiVersion", "kind"] {
        object[field] = existing[field].clone();
    }
    // Status is a subresource, which only those who write past the API change here.
    if ["deployments", "pods", "horizontalpodautoscalers"].contains(&kind.stored_as) {
        object["status"] = existing["status"].clone();
    }
    object
}

/// Names and the values that they must have.
pub(super) type Selector = Vec<(String, String)>;

/// Reads `a=b,c=d`; the double knows no other kind of selector.
pub(super) fn selector(text: Option<&String>) -> Result<Selector, Refusal> {
    let parts = text.into_iter().flat_map(|text| text.split(',')).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((name, value)) if !name.ends_with('!') => {
                Ok((name.to_owned(), value.trim_start_matches('=').to_owned()))
            }
            _ => Err(Refusal::bad_request(format!("the double knows no selector like {part:?}"))),
        })
        .collect()
}

/// Where the next page of a list begins.
#[derive(Default)]
struct Page {
    /// The version of the whole list; `None` for whatever there is by then.
    version: Option<u64>,
    /// The last key of the page before.
    after: String,
}

impl Page {
    fn read(token: &str) -> Result<Self, Refusal> {
        let read = || {
            let token: Value = serde_json::from_slice(&BASE64.decode(token).ok()?).ok()?;
            let start = token["start"].as_str()?.trim_end_matches('\0');
            let after = format!("/{}", start.trim_start_matches('/'));
            Some(Self { version: u64::try_from(token["rv"].as_i64()?).ok(), after })
        };
        read().ok_or_else(|| Refusal::bad_request("continue key is not valid: the double did not give it"))
    }

    fn write(&self) -> String {
        let version = self.version.map_or_else(|| "-1".to_owned(), |version| version.to_string());
        // The API server leaves the slash out where it gives no version.
        let start =
            if self.version.is_some() { self.after.as_str() } else { self.after.trim_start_matches('/') };
        BASE64.encode(format!(r#"{{"v":"meta.k8s.io/v1","rv":{version},"start":"{start}\u0000"}}"#))
    }
}
