//! One request through the dispatcher: have it read, have it answered, report how it ended.
//!
//! **Invariant**: every request that arrived whole is reported exactly once, also when its client goes away.
use super::State;
use super::request::{Arriving, Forwarded, Spent};
use super::tries::{self, Ended as Tried};
use super::upstream::Answer;
use super::wire::{Ended, Outcome, SERVER_TIMING};
use crate::logic::queue::Refusal;
use crate::net::error::ApiError;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

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
    let forwarded = match Forwarded::receive(&state.config.settings, request).await {
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
    let forwarded = match Forwarded::receive(&state.config.settings, request).await {
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
    let latency_ms = account.arrived_at.elapsed().as_secs_f64() * 1000.0;
    tracing::debug!(
        traceparent = forwarded.traceparent(),
        path = forwarded.path(),
        status = status.as_u16(),
        outcome = outcome.name(),
        latency_ms,
        "request ended"
    );
}
