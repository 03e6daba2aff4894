//! Watches: the changes of the objects that were asked about, as lines, until the time is up.
//!
//! **Invariant**: an open watch sees every change after the version it began at once and in order, whatever the double
//! has forgotten meanwhile.
use super::kinds::Kind;
use super::status::Refusal;
use super::store::{Change, has_fields, has_labels};
use super::verbs::Selector;
use super::{Shared, State};
use futures_util::Stream;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What a watch begins with.
pub(super) enum From {
    /// The changes after this version.
    Version(u64),
    /// Everything there is.
    All,
    /// Everything there is, and then a bookmark that says so.
    StreamedList,
    /// One error, and then the end.
    Failure(Value),
}

/// A watch as it was asked for.
pub(super) struct Wanted {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) labels: Selector,
    pub(super) fields: Selector,
    pub(super) from: From,
    pub(super) bookmarks: bool,
    pub(super) lasts: Option<Duration>,
}

impl Wanted {
    /// A watch that fails after it was accepted, as most do.
    pub(super) fn failed(refusal: Refusal) -> Box<Self> {
        Box::new(Self {
            kind: super::kinds::stored("events"),
            namespace: None,
            labels: Selector::new(),
            fields: Selector::new(),
            from: From::Failure(refusal.body),
            bookmarks: false,
            lasts: None,
        })
    }

    fn is_about(&self, object: &Value) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == **namespace)
            && has_labels(object, &self.labels)
            && has_fields(&self.kind.show(object), &self.fields)
    }

    /// A change as this watch sees it. An object that is no longer asked about is as good as gone.
    fn event(&self, change: &Change) -> Option<Value> {
        let before = change.before.as_ref().filter(|object| self.is_about(object));
        let after = change.after.as_ref().filter(|object| self.is_about(object));
        let (kind, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after.clone()),
            (Some(_), Some(after)) => ("MODIFIED", after.clone()),
            (Some(before), None) => {
                let mut gone = before.clone();
                gone["metadata"]["resourceVersion"] = change.version.to_string().into();
                ("DELETED", gone)
            }
        };
        Some(event(kind, &self.kind.show(&object)))
    }

    fn bookmark(&self, version: u64, ends_a_list: bool) -> Value {
        let mut object = (self.kind.empty)();
        object["kind"] = self.kind.singular.into();
        object["apiVersion"] = self.kind.api_version().into();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if ends_a_list {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        event("BOOKMARK", &object)
    }
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// What all open watches are told; each number counts how often.
#[derive(Clone, Copy, Default)]
pub(super) struct Orders {
    /// They stay open and say nothing.
    pub(super) silent: bool,
    /// The connection breaks, without an end of the answer.
    pub(super) cut: u64,
    /// The answer ends as it does when the time is up.
    pub(super) ended: u64,
    /// One error 410, and the end.
    pub(super) expired: u64,
    /// A bookmark, for those that want any.
    pub(super) bookmarks: u64,
}

struct Watching {
    shared: Arc<Shared>,
    wanted: Wanted,
    ticks: watch::Receiver<u64>,
    /// Everything up to this version was told.
    version: u64,
    lines: VecDeque<Value>,
    ends_at: Option<Instant>,
    has_ended: bool,
    seen: Orders,
}

/// The answer to a watch, line by line.
pub(super) fn events(
    shared: &Arc<Shared>,
    wanted: Wanted,
) -> impl Stream<Item = std::io::Result<String>> + use<> {
    let ticks = shared.ticks.subscribe();
    let watching = shared.change(|state| {
        state.watches_open += 1;
        let mut lines = VecDeque::new();
        let mut version = state.store.version;
        let mut has_ended = false;
        match &wanted.from {
            From::Version(from) => version = *from,
            From::Failure(status) => {
                lines.push_back(event("ERROR", status));
                has_ended = true;
            }
            From::All | From::StreamedList => {
                let objects =
                    state.store.list(wanted.kind.stored_as, wanted.namespace.as_deref()).into_iter();
                let objects = objects.filter(|object| wanted.is_about(object));
                lines.extend(objects.map(|object| event("ADDED", &wanted.kind.show(object))));
            }
        }
        if matches!(wanted.from, From::StreamedList) && wanted.bookmarks {
            lines.push_back(wanted.bookmark(version, true));
        }
        let ends_at = wanted.lasts.map(|lasts| Instant::now() + lasts);
        let seen = Orders { silent: false, ..state.orders };
        Watching { shared: Arc::clone(shared), wanted, ticks, version, lines, ends_at, has_ended, seen }
    });
    futures_util::stream::unfold(watching, |mut watching| async move {
        let line = watching.next().await?;
        Some((line, watching))
    })
}

impl Watching {
    async fn next(&mut self) -> Option<std::io::Result<String>> {
        loop {
            let shared = Arc::clone(&self.shared);
            let goes_on = shared.look(|state| self.hear(state));
            if !goes_on {
                return Some(Err(std::io::Error::other("cut")));
            }
            if !self.seen.silent
                && let Some(line) = self.lines.pop_front()
            {
                return Some(Ok(format!("{line}\n")));
            }
            if self.has_ended {
                return None;
            }
            let time_is_up = async {
                match self.ends_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.ticks.changed() => changed.ok()?,
                () = time_is_up => {
                    self.has_ended = true;
                    if self.wanted.bookmarks {
                        self.lines.push_back(self.wanted.bookmark(self.version, false));
                    }
                }
            }
        }
    }

    /// Takes in what happened since it last listened; false when the connection is to break.
    fn hear(&mut self, state: &State) -> bool {
        let (orders, seen) = (state.orders, self.seen);
        self.seen = orders;
        if orders.cut > seen.cut {
            return false;
        }
        if self.has_ended {
            return true;
        }
        if orders.silent {
            self.has_ended = orders.ended > seen.ended;
            return true;
        }
        let first = state.store.history.partition_point(|change| change.version <= self.version);
        let changes = state.store.history[first..].iter();
        let changes = changes.filter(|change| change.stored_as == self.wanted.kind.stored_as);
        self.lines.extend(changes.filter_map(|change| self.wanted.event(change)));
        self.version = self.version.max(state.store.version);
        if orders.bookmarks > seen.bookmarks && self.wanted.bookmarks {
            self.lines.push_back(self.wanted.bookmark(self.version, false));
        }
        if orders.expired > seen.expired {
            self.lines.push_back(event("ERROR", &Refusal::too_old(self.version, self.version + 1).body));
            self.has_ended = true;
        }
        self.has_ended |= orders.ended > seen.ended;
        true
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.watches_open -= 1;
            state.watches_ended += 1;
        });
    }
}
