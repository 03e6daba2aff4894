//! From a request to its answer: what it asks for, who asks, what goes wrong, and the log of it all.
use super::faults::{self, Effect};
use super::kinds::{self, Kind};
use super::status::Refusal;
use super::{Call, Shared, State, verbs, watch};
use axum::body::Body;
use axum::extract::{Query, State as Extracted};
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const BODY_BYTES_MAX: usize = 1 << 20;

/// What a path is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Target {
    pub(super) group: String,
    version: String,
    pub(super) namespace: Option<String>,
    pub(super) resource: String,
    pub(super) name: Option<String>,
    subresource: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", version, rest),
            ["apis", group, version, rest @ ..] => (*group, version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // The namespace itself.
            ["namespaces", name] => (Some(*name), rest),
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let owned = |part: Option<&&str>| part.map(|part| (*part).to_owned());
        Some(Self {
            group: group.to_owned(),
            version: (*version).to_owned(),
            namespace: namespace.map(ToOwned::to_owned),
            resource: owned(rest.first())?,
            name: owned(rest.get(1)),
            subresource: owned(rest.get(2)),
        })
    }

    /// As Roles name it: `deployments/scale`.
    pub(super) fn full_resource(&self) -> String {
        match &self.subresource {
            Some(part) => format!("{}/{part}", self.resource),
            None => self.resource.clone(),
        }
    }

    fn kind(&self) -> Option<&'static Kind> {
        kinds::served(&self.group, &self.version, &self.resource)
    }
}

/// A request as it was read.
pub(super) struct Asked {
    method: Method,
    path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) content_type: String,
    token: Option<String>,
    pub(super) body: Value,
    target: Option<Target>,
}

impl Asked {
    async fn read(request: http::Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let token = text(header::AUTHORIZATION).map(|value| value.trim_start_matches("Bearer ").to_owned());
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
        let query = Query::<BTreeMap<String, String>>::try_from_uri(&head.uri).map(|Query(query)| query);
        let mut asked = Self {
            path: head.uri.path().to_owned(),
            query: query.unwrap_or_default(),
            content_type: text(header::CONTENT_TYPE).unwrap_or_default(),
            token,
            body: serde_json::from_slice(&body).unwrap_or_default(),
            target: Target::parse(head.uri.path()),
            method: head.method,
        };
        // A list of the one object with a name counts as being about that object.
        let named = verbs::selector(asked.query.get("fieldSelector")).unwrap_or_default();
        if let (Some(target), Some((_, name))) =
            (&mut asked.target, named.into_iter().find(|(field, _)| field == "metadata.name"))
        {
            target.name.get_or_insert(name);
        }
        asked
    }

    fn verb(&self) -> &'static str {
        let in_the_path = self.path.trim_end_matches('/').rsplit('/').next();
        let one = self.target.as_ref().is_some_and(|target| {
            target.subresource.is_some() || (target.name.is_some() && target.name.as_deref() == in_the_path)
        });
        match self.method {
            Method::GET if self.is("watch") => "watch",
            Method::GET if one => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if one => "delete",
            _ => "deletecollection",
        }
    }

    pub(super) fn is(&self, flag: &str) -> bool {
        self.query.get(flag).is_some_and(|value| ["true", "1"].contains(&value.as_str()))
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.query.get("dryRun").is_some_and(|value| value == "All")
    }
}

/// An answer that is no refusal.
pub(super) enum Reply {
    Json(u16, Value),
    Watch(Box<watch::Wanted>),
}

/// Answers every request.
pub(super) async fn answer(
    Extracted(shared): Extracted<Arc<Shared>>,
    request: http::Request<Body>,
) -> Response {
    let asked = Asked::read(request).await;
    let verb = asked.verb();
    let resource = asked.target.as_ref().map(Target::full_resource).unwrap_or_default();
    let (number, effect) = shared.change(|state| {
        state.calls.push(state.call(&asked, verb, &resource));
        (state.calls.len() - 1, faults::take(&mut state.faults, verb, &resource))
    });
    let outcome = match effect {
        Some(Effect::Silence) => std::future::pending().await,
        Some(Effect::Text { code, text }) => {
            shared.change(|state| state.calls[number].status = Some(code));
            return (status(code), text).into_response();
        }
        Some(Effect::Answer { code: 410, .. }) if verb == "watch" => {
            Ok(Reply::Watch(watch::Wanted::failed(Refusal::of_code(410, None))))
        }
        Some(Effect::Answer { code, retry_after_s }) => {
            let about =
                asked.target.as_ref().and_then(|target| Some((target.kind()?, target.name.as_deref()?)));
            Err(Refusal::of_code(code, about).after(retry_after_s))
        }
        Some(Effect::Slow(by)) => {
            tokio::time::sleep(by).await;
            shared.change(|state| respond(state, &asked, verb))
        }
        None => shared.change(|state| respond(state, &asked, verb)),
    };
    let code = match &outcome {
        Ok(Reply::Json(code, _)) => *code,
        Ok(Reply::Watch(_)) => 200,
        Err(refusal) => refusal.code,
    };
    shared.change(|state| state.calls[number].status = Some(code));
    match outcome {
        Ok(Reply::Json(code, body)) => (status(code), axum::Json(body)).into_response(),
        Ok(Reply::Watch(wanted)) => {
            let body = Body::from_stream(watch::events(&shared, *wanted));
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(refusal) => {
            let mut answer = (status(refusal.code), axum::Json(refusal.body)).into_response();
            if let Some(seconds) = refusal.retry_after_s {
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            answer
        }
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

impl State {
    fn call(&self, asked: &Asked, verb: &'static str, resource: &str) -> Call {
        Call {
            user: self.tokens.who(asked.token.as_deref()).map_or_else(String::new, |who| who.user()),
            verb,
            resource: resource.to_owned(),
            name: asked.target.as_ref().and_then(|target| target.name.clone()).unwrap_or_default(),
            path: asked.path.clone(),
            query: asked.query.clone(),
            content_type: asked.content_type.clone(),
            body: asked.body.clone(),
            status: None,
            at: tokio::time::Instant::now(),
        }
    }
}

/// Carries out what is asked for, if who asks may.
fn respond(state: &mut State, asked: &Asked, verb: &'static str) -> Result<Reply, Refusal> {
    let who = state.tokens.who(asked.token.as_deref()).ok_or_else(Refusal::unauthorized)?;
    if asked.path == "/version" {
        return Ok(Reply::Json(200, version()));
    }
    let target = asked.target.as_ref().ok_or_else(Refusal::unknown_path)?;
    if !who.may(&state.store, verb, target) {
        return Err(Refusal::forbidden(&who.user(), verb, target));
    }
    let kind = target.kind().ok_or_else(Refusal::unknown_path)?;
    let namespace = if kind.namespaced { target.namespace.as_deref() } else { Some("") };
    let request = verbs::Request { asked, kind, namespace, name: target.name.as_deref().unwrap_or_default() };
    match (target.subresource.as_deref(), verb) {
        (Some("scale"), verb) if kind.stored_as == "deployments" => request.scale(&mut state.store, verb),
        (Some(_), _) => Err(Refusal::unknown_path()),
        (None, "get") => request.get(&state.store),
        (None, "list") => request.list(&state.store),
        (None, "watch") => request.watch(state),
        (None, _) if kind.shown.is_some() => Err(Refusal::method_not_allowed()),
        (None, "create") => request.create(&mut state.store),
        (None, "update") => {
            let may_create = who.may(&state.store, "create", target);
            request.replace(
                &mut state.store,
                may_create.then_some(()).ok_or_else(|| Refusal::forbidden(&who.user(), "create", target)),
            )
        }
        (None, "patch") => request.patch(&mut state.store),
        (None, "delete") => request.delete(&mut state.store),
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": "v1.36.2", "gitCommit": "8e16b12", "gitTreeState": "clean",
        "buildDate": "2026-08-21T00:00:00Z", "goVersion": "go1.26.6", "compiler": "gc", "platform": "linux/amd64",
    })
}
