//! One request through the dispatcher: wait for a slot, hand on, try again elsewhere when a replica breaks.
//!
//! **Invariant**: every request that arrived whole is reported exactly once, also when its client goes away.
use super::State;
use super::pool::{Refusal, Slot};
use super::wire::{DEADLINE_HEADER, Ended, Outcome, ReplicaState, SERVER_TIMING};
use crate::logic::queue::Place;
use crate::net::client::read_answer;
use crate::net::deadline::time_allowed;
use crate::net::error::ApiError;
use crate::net::serve::read_body;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Headers of a request that a replica gets to see.
const REQUEST_HEADERS: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::ACCEPT, HeaderName::from_static("traceparent")];
/// Headers of an answer that the client gets to see.
const ANSWER_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::ALLOW, HeaderName::from_static(SERVER_TIMING)];

/// Reports the request when it ends, however it ends.
struct Account<'a> {
    state: &'a State,
    arrived_at: Instant,
    service: Option<Duration>,
    outcome: Outcome,
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        self.state.reporter.ended(Ended {
            outcome: self.outcome,
            latency_ms: self.arrived_at.elapsed().as_secs_f64() * 1000.0,
            waited_ms: None,
            service_ms: self.service.map(|service| service.as_secs_f64() * 1000.0),
        });
    }
}

/// What is handed on, as often as it takes.
struct Forwarded {
    method: Method,
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
    expires_at: Instant,
}

/// How one try on one replica ended.
enum Try {
    /// An answer for the client.
    Answered(Response),
    /// The replica is too busy or draining; it may be tried later.
    Busy(Response),
    /// The connection failed: the replica is not to be used until it is seen ready again.
    Broken(reqwest::Error),
    /// The time ran out.
    TimedOut,
}

/// Handles a request that a replica is to answer.
pub(super) async fn forward(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    // What cannot be read is no work for the replicas: a client that dawdles must not look like a slow fleet.
    let forwarded = match receive(&state, request, Instant::now()).await {
        Ok(forwarded) => forwarded,
        Err(error) => return error.into_response(),
    };
    state.reporter.arrived();
    let arrived_at = Instant::now();
    // Until something better is known: whoever drops this future is a client that went away.
    let mut account = Account { state: &state, arrived_at, service: None, outcome: Outcome::Aborted };
    let (response, outcome) = match route(&state, &forwarded, arrived_at, &mut account.service).await {
        Ok(response) if response.status().is_server_error() => {
            let shed = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            (response, if shed { Outcome::Shed } else { Outcome::Error })
        }
        Ok(response) => (response, Outcome::Ok),
        Err(error) => {
            let outcome = match error.status {
                StatusCode::SERVICE_UNAVAILABLE => Outcome::Shed,
                StatusCode::GATEWAY_TIMEOUT => Outcome::Timeout,
                _ => Outcome::Error,
            };
            (error.into_response(), outcome)
        }
    };
    account.outcome = outcome;
    response
}

/// Reads the whole request; its time runs from `head_at`, when its head was there.
async fn receive(state: &State, request: Request, head_at: Instant) -> Result<Forwarded, ApiError> {
    let settings = &state.config.settings;
    let (head, body) = request.into_parts();
    let expires_at = head_at + time_allowed(&head.headers, settings.timeout)?;
    let body = read_body(body, settings.body_bytes_max, settings.body_timeout).await?;
    let mut headers = HeaderMap::new();
    for name in REQUEST_HEADERS {
        if let Some(value) = head.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let path_and_query = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Ok(Forwarded { method: head.method, path_and_query, headers, body, expires_at })
}

async fn route(
    state: &State,
    forwarded: &Forwarded,
    arrived_at: Instant,
    service: &mut Option<Duration>,
) -> Result<Response, ApiError> {
    let settings = &state.config.settings;
    let expires_at = forwarded.expires_at;
    let mut place = Place::Back;
    let mut retries = 0;
    loop {
        let slot = state.pool.acquire(expires_at, place).await.map_err(|refusal| refused(&refusal))?;
        let waited = slot.since - arrived_at;
        let outcome = attempt(state, &slot, forwarded).await;
        *service = Some(slot.since.elapsed());
        match outcome {
            Try::Answered(response) => return Ok(with_queue_time(response, waited)),
            Try::TimedOut => return Err(timed_out()),
            Try::Busy(response) if retries >= settings.retries_max => return Ok(response),
            Try::Busy(_) => {
                drop(slot);
                // Busy with what others sent: give it the time of a fast answer.
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Try::Broken(error) => {
                let error = without_url(&error);
                state.pool.unready(&slot.url, ReplicaState::Down);
                tracing::warn!(url = %slot.url, error, retries, "replica broke off");
                if retries >= settings.retries_max {
                    let message = format!("no replica could answer: {error}");
                    return Err(ApiError::new(StatusCode::BAD_GATEWAY, message));
                }
            }
        }
        retries += 1;
        state.metrics.retried();
        place = Place::Front;
    }
}

const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Sends the request to the slot's replica and reads the whole answer.
///
/// The answer is read before any of it is passed on: a replica that dies in the middle of it can still be
/// replaced by another.
async fn attempt(state: &State, slot: &Slot, forwarded: &Forwarded) -> Try {
    let exchange = async {
        let left = forwarded.expires_at.saturating_duration_since(Instant::now());
        let answer = state
            .client
            .request(forwarded.method.clone(), format!("{}{}", slot.url, forwarded.path_and_query))
            .headers(forwarded.headers.clone())
            .header(DEADLINE_HEADER, left.as_millis() as u64)
            .body(forwarded.body.clone())
            .send()
            .await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = read_answer(answer, state.config.settings.answer_bytes_max).await?;
        Ok::<_, reqwest::Error>((status, headers, body))
    };
    match tokio::time::timeout_at(forwarded.expires_at, exchange).await {
        Err(_) => Try::TimedOut,
        Ok(Err(error)) => Try::Broken(error),
        Ok(Ok((_, _, None))) => {
            let too_large = "the replica's answer is larger than --answer-bytes-max";
            Try::Answered(ApiError::new(StatusCode::BAD_GATEWAY, too_large).into_response())
        }
        Ok(Ok((status, headers, Some(body)))) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            for name in ANSWER_HEADERS {
                if let Some(value) = headers.get(&name) {
                    response.headers_mut().insert(name, value.clone());
                }
            }
            if status == StatusCode::SERVICE_UNAVAILABLE {
                Try::Busy(response)
            } else {
                Try::Answered(response)
            }
        }
    }
}

/// Adds the time in the dispatcher's queue to the replica's own account.
fn with_queue_time(mut response: Response, waited: Duration) -> Response {
    let timing = format!("dispatch;dur={:.3}", waited.as_secs_f64() * 1000.0);
    if let Ok(value) = HeaderValue::from_str(&timing) {
        response.headers_mut().append(SERVER_TIMING, value);
    }
    response
}

fn refused(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::Full(_) => ApiError::unavailable(refusal.to_string()),
        Refusal::Expired => timed_out(),
    }
}

fn timed_out() -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "no answer in time")
}

/// The whole chain of causes, without the replica's address, which is no client's business.
fn without_url(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() { "the connection broke".to_owned() } else { text }
}
