//! One request through the dispatcher: read it, get it answered, report how it ended.
//!
//! **Invariant**: every request that arrived whole is reported exactly once, also when its client goes away.
use super::State;
use super::tries::{self, Ended as Tried};
use super::upstream::{Answer, end_to_end};
use super::wire::{Ended, Outcome, SERVER_TIMING};
use crate::logic::queue::Refusal;
use crate::net::deadline::time_allowed;
use crate::net::error::ApiError;
use crate::net::pieces::Pieces;
use crate::net::serve::read_pieces;
use crate::net::wire::DEADLINE_HEADER;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A body that is arriving.
pub(super) trait Arriving:
    http_body::Body<Data = Bytes, Error: Send> + Send + Unpin + 'static
{
}

impl<B: http_body::Body<Data = Bytes, Error: Send> + Send + Unpin + 'static> Arriving for B {}

/// What is handed on, as often as it takes.
pub(super) struct Forwarded {
    method: Method,
    path: Uri,
    headers: HeaderMap,
    body: Pieces,
    /// When its client no longer waits.
    pub(super) expires_at: Instant,
    /// Until when it waits for a first replica: a client that named a deadline of its own keeps it.
    pub(super) patient_until: Instant,
}

impl Forwarded {
    /// The request for a replica that has until `expires_at`.
    pub(super) fn request(&self, expires_at: Instant) -> http::Request<Pieces> {
        let mut request = http::Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        let left_ms = expires_at.saturating_duration_since(Instant::now()).as_millis() as u64;
        request.headers_mut().insert(DEADLINE_HEADER, HeaderValue::from(left_ms));
        request
    }
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Waiting for the slot of its last try.
    pub(super) waited: Option<Duration>,
    /// Holding that slot.
    pub(super) service: Option<Duration>,
}

/// Reports the request when it ends, however it ends.
struct Account<'a> {
    state: &'a State,
    arrived_at: Instant,
    spent: Spent,
    outcome: Outcome,
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        self.state.reporter.ended(Ended {
            outcome: self.outcome,
            latency_ms: ms(self.arrived_at.elapsed()),
            waited_ms: self.spent.waited.map(ms),
            service_ms: self.spent.service.map(ms),
        });
    }
}

/// Handles a request that takes a replica's slot.
pub(super) async fn infer<B: Arriving>(
    Shared(state): Shared<Arc<State>>,
    request: http::Request<B>,
) -> Response {
    // What cannot be read is no work for the replicas: a client that dawdles must not look like a slow fleet.
    let forwarded = match receive(&state, request).await {
        Ok(forwarded) => forwarded,
        Err(error) => return error.into_response(),
    };
    state.reporter.arrived();
    let arrived_at = Instant::now();
    // Until something better is known: whoever drops this future is a client that went away.
    let mut account =
        Account { state: &state, arrived_at, spent: Spent::default(), outcome: Outcome::Aborted };
    let tried = tries::answer(&state, &forwarded, &mut account.spent).await;
    let waited = account.spent.waited;
    let (response, outcome) = match tried {
        Tried::Answered(answer) if answer.status() == StatusCode::GATEWAY_TIMEOUT => {
            (respond(answer, waited), Outcome::Timeout)
        }
        Tried::Answered(answer) => (respond(answer, waited), Outcome::Ok),
        Tried::Failed(answer) => (respond(answer, waited), Outcome::Error),
        Tried::Unanswered(error) => (error.into_response(), Outcome::Error),
        Tried::TimedOut => (timed_out().into_response(), Outcome::Timeout),
        Tried::Refused(refusal) => refused(&state, &refusal),
    };
    account.outcome = outcome;
    if outcome != Outcome::Ok || tracing::enabled!(tracing::Level::DEBUG) {
        log(&forwarded, outcome, response.status(), &account);
    }
    response
}

/// Handles a request about the service, which any replica can answer beside its work.
pub(super) async fn ask(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    let forwarded = match receive(&state, request).await {
        Ok(forwarded) => forwarded,
        Err(error) => return error.into_response(),
    };
    let mut last = None;
    for upstream in state.pool.ready_ones().into_iter().take(1 + state.config.settings.retries_max as usize) {
        let exchange = upstream
            .exchange(|| forwarded.request(forwarded.expires_at), state.config.settings.answer_bytes_max);
        match tokio::time::timeout_at(forwarded.expires_at, exchange).await {
            Ok(Ok(answer)) => return respond(answer, None),
            Ok(Err(error)) => last = Some(error),
            Err(_) => return timed_out().into_response(),
        }
    }
    match last {
        Some(error) => {
            tracing::warn!(%error, "no replica answered a question about the service");
            let message = "no replica could answer; try again";
            ApiError::new(StatusCode::BAD_GATEWAY, message).into_response()
        }
        None => ApiError::unavailable("no replica is ready").into_response(),
    }
}

/// Reads the whole request.
async fn receive<B: Arriving>(state: &State, request: http::Request<B>) -> Result<Forwarded, ApiError> {
    let head_at = Instant::now();
    let settings = &state.config.settings;
    let (mut head, body) = request.into_parts();
    let stated = head.headers.contains_key(DEADLINE_HEADER);
    let allowed = time_allowed(&head.headers, settings.timeout)?;
    let body = read_pieces(body, settings.body_bytes_max, settings.body_timeout).await?;
    // A deadline that the client names counts from its request's head. The one that is promised to all counts
    // from the whole request: how long the upload takes is not in this service's hand.
    let (expires_at, patient_until) = if stated {
        (head_at + allowed, head_at + allowed)
    } else {
        let now = Instant::now();
        (now + settings.deadline.min(settings.timeout), now + settings.timeout)
    };
    end_to_end(&mut head.headers);
    let path = head.uri.into_parts().path_and_query.map_or_else(Uri::default, Uri::from);
    Ok(Forwarded { method: head.method, path, headers: head.headers, body, expires_at, patient_until })
}

/// The answer for the client, with the time in the dispatcher's queue added to the replica's own account.
fn respond(answer: Answer, waited: Option<Duration>) -> Response {
    let mut response = answer.map(Body::new);
    if let Some(waited) = waited {
        let timing = format!("dispatch;dur={:.3}", waited.as_secs_f64() * 1000.0);
        if let Ok(value) = HeaderValue::from_str(&timing) {
            response.headers_mut().append(SERVER_TIMING, value);
        }
    }
    response
}

fn refused(state: &State, refusal: &Refusal) -> (Response, Outcome) {
    state.metrics.refused(refusal);
    match refusal {
        Refusal::Full { .. } | Refusal::Hopeless => {
            (ApiError::unavailable(refusal.to_string()).into_response(), Outcome::Shed)
        }
        Refusal::Expired => (timed_out().into_response(), Outcome::Timeout),
    }
}

fn timed_out() -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "no answer in time")
}

fn log(forwarded: &Forwarded, outcome: Outcome, status: StatusCode, account: &Account<'_>) {
    let trace = forwarded.headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("");
    let latency_ms = account.arrived_at.elapsed().as_secs_f64() * 1000.0;
    tracing::debug!(
        traceparent = trace,
        path = forwarded.path.path(),
        status = status.as_u16(),
        outcome = outcome.name(),
        latency_ms,
        "request ended"
    );
}
