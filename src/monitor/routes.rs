//! The monitor's HTTP side.
//!
//! **Invariant**: the memory's lock is never held across an await.
use crate::monitor::Config;
use crate::monitor::decisions::Decisions;
use crate::monitor::exposition::Exposition;
use crate::monitor::history::Point;
use crate::monitor::live::{self, Subscribers};
use crate::monitor::page;
use crate::monitor::state::{AskedSince, Question, ReportError, State};
use crate::net::clock::unix_time;
use crate::net::error::{ApiError, method_not_allowed, not_found};
use crate::net::serve::read_body;
use crate::net::shutdown::Shutdown;
use crate::net::wire::{Report, Stats};
use anyhow::Context as _;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extract};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What the handlers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) started_unix: Duration,
    state: Mutex<State>,
    /// What was last told to the live pages, so that many of them cost no more than one.
    told: Mutex<Option<Arc<Stats>>>,
    exposition: Exposition,
    pub(super) decisions: Decisions,
    pub(super) subscribers: Subscribers,
    page_policy: HeaderValue,
    pub(super) shutdown: Shutdown,
}

impl Shared {
    /// An empty memory whose time starts now. `config` is checked already.
    pub(super) fn new(config: Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        Ok(Self {
            started: Instant::now(),
            started_unix: unix_time(),
            state: Mutex::new(State::new(&config)),
            told: Mutex::new(None),
            exposition: Exposition::new(&config),
            decisions: Decisions::new(&config)?,
            subscribers: Subscribers::new(config.subscribers_max, config.subscriber_silence_max),
            page_policy: HeaderValue::try_from(page::policy()).context("the page's policy is no header")?,
            shutdown,
            config,
        })
    }

    /// The memory and the time, read under its lock so that time never runs backwards for it.
    ///
    /// The memory is valid between any two of its statements, so a poisoned lock is taken over.
    fn lock(&self) -> (MutexGuard<'_, State>, Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state, self.started.elapsed())
    }

    /// `GET /stats` at this moment.
    fn stats(&self, question: &Question) -> Stats {
        let (mut state, now) = self.lock();
        let stats = state.stats(now, question);
        drop(state);
        Stats { started_unix_s: self.started_unix.as_secs_f64(), ..stats }
    }

    /// The points after a second, and stats that are at most half a second old.
    pub(super) fn points_and_stats(&self, after: Option<u64>) -> (Vec<Point>, Stats) {
        let (mut state, now) = self.lock();
        let points = state.history(now, after);
        drop(state);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let current = told.take().filter(|stats| now.as_secs_f64() - stats.now_s < 0.5);
        let current = current.unwrap_or_else(|| Arc::new(self.stats(&Question::default())));
        *told = Some(Arc::clone(&current));
        drop(told);
        (points, Stats::clone(&current))
    }
}

/// Every route of the monitor.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(live_page))
        .route("/report", post(report))
        .route("/stats", get(stats))
        .route("/history", get(history))
        .route("/events", get(live::events))
        .route("/update", get(live::get_update))
        .route("/decisions", get(decisions))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared)
}

/// Answer to `POST /report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// False when the report's sequence was seen before; either way the dispatcher is done with it.
    pub counted: bool,
}

/// Answer to `GET /history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Seconds since the monitor's start. Where it shrinks, or `started_unix_s` changes, the monitor was
    /// started again and earlier points are of another life.
    pub now_s: f64,
    /// When the monitor started, seconds since the Unix epoch.
    pub started_unix_s: f64,
    /// How far back points go, seconds.
    pub history_s: u64,
    /// Latency that is aimed at, milliseconds.
    pub target_ms: f64,
    /// Latency that was promised, milliseconds.
    pub promise_ms: f64,
    /// One point for each second that is over, oldest first.
    pub points: Vec<Point>,
}

/// Query of `GET /stats`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatsQuery {
    /// Restricts the window's percentiles, and `recent`, to the last so many seconds.
    seconds: Option<f64>,
    /// Asks for everything since this time: `now_s` of an earlier answer.
    since: Option<f64>,
    /// `started_unix_s` of that answer: tells whether the monitor was started again since.
    started_unix_s: Option<f64>,
}

/// Query of `GET /history`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    /// Only the seconds after this one.
    since: Option<u64>,
}

async fn live_page(Extract(shared): Extract<Arc<Shared>>) -> Response {
    page::answer(shared.page_policy.clone())
}

async fn report(Extract(shared): Extract<Arc<Shared>>, body: Body) -> Result<Json<Taken>, ApiError> {
    let body = read_body(body, shared.config.report_bytes_max, shared.config.report_timeout).await?;
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is no report: {error}")))?;
    let (mut state, now) = shared.lock();
    let counted = state.record(now, &report);
    drop(state);
    match counted {
        Ok(counted) => {
            if counted {
                shared.exposition.record(&report);
            } else {
                tracing::debug!(source = report.source, sequence = report.sequence, "report seen before");
            }
            Ok(Json(Taken { counted }))
        }
        Err(error @ ReportError::Invalid(_)) => {
            tracing::warn!(source = report.source, %error, "report refused");
            Err(ApiError::bad_request(error.to_string()))
        }
        Err(error @ ReportError::TooManySources(_)) => {
            tracing::warn!(source = report.source, %error, "report refused");
            Err(ApiError::unavailable(error.to_string()))
        }
    }
}

async fn stats(
    Extract(shared): Extract<Arc<Shared>>,
    query: Result<Query<StatsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| unread(&error, "?seconds=10"))?;
    let wrong = || ApiError::bad_request("seconds must be a positive number, as in ?seconds=10");
    let recent = match query.seconds {
        None => None,
        Some(seconds) if seconds > 0.0 => Some(Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?),
        Some(_) => return Err(wrong()),
    };
    let wrong = || ApiError::bad_request("since must be now_s of an earlier answer, as in ?since=61.25");
    let at = query.since.map(|at_s| Duration::try_from_secs_f64(at_s).map_err(|_| wrong())).transpose()?;
    // Both are printed and read as decimal numbers, which may cost the last bit.
    let other = |told_s: f64| (told_s - shared.started_unix.as_secs_f64()).abs() > 1e-3;
    let other_life = query.started_unix_s.is_some_and(other);
    let since = at.map(|at| AskedSince { at, other_life });
    Ok(fresh(shared.stats(&Question { recent, since })))
}

async fn history(
    Extract(shared): Extract<Arc<Shared>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| unread(&error, "?since=120"))?;
    let (mut state, now) = shared.lock();
    let points = state.history(now, query.since);
    drop(state);
    Ok(fresh(History {
        now_s: now.as_secs_f64(),
        started_unix_s: shared.started_unix.as_secs_f64(),
        history_s: shared.config.history_age.as_secs(),
        target_ms: shared.config.target_latency.as_secs_f64() * 1e3,
        promise_ms: shared.config.promise.as_secs_f64() * 1e3,
        points,
    }))
}

async fn decisions(Extract(shared): Extract<Arc<Shared>>) -> Result<Response, ApiError> {
    shared.decisions.latest().await.answer.map(|answer| fresh(&*answer))
}

async fn metrics(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap) -> Response {
    let current = shared.stats(&Question::default());
    shared.exposition.render(&current, shared.subscribers.count(), &headers)
}

async fn healthz() -> &'static str {
    "ok"
}

async fn readyz(Extract(shared): Extract<Arc<Shared>>) -> Result<&'static str, ApiError> {
    if shared.shutdown.is_leaving() {
        return Err(ApiError::unavailable("shutting down"));
    }
    Ok("ready")
}

/// A query that does not parse, with an example of one that does.
pub(super) fn unread(error: &QueryRejection, example: &str) -> ApiError {
    let text = error.body_text();
    let why = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    ApiError::bad_request(format!("the query does not parse ({why}); write it as {example}"))
}

/// JSON that no cache may keep: it is old a moment later.
pub(super) fn fresh(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

#[cfg(test)]
mod tests;
