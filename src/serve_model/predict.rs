//! `POST /predict`.
use super::State;
use super::forms::image_of;
use super::line::Job;
use crate::net::deadline::time_allowed;
use crate::net::error::ApiError;
use crate::net::serve::read_body;
use crate::net::wire::{ClassifyAnswer, SERVER_TIMING};
use axum::Json;
use axum::extract::{Query, Request, State as Shared, rejection::QueryRejection};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

const TOP_K_DEFAULT: usize = 5;

/// Parameters of the query string.
#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    top_k: Option<usize>,
}

/// Classifies the image in the body.
pub(super) async fn predict(
    Shared(state): Shared<Arc<State>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived_at = Instant::now();
    let Query(parameters) = parameters.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let top_k = parameters.top_k.unwrap_or(TOP_K_DEFAULT);
    let classes = state.model.classes();
    if !(1..=classes).contains(&top_k) {
        return Err(ApiError::bad_request(format!("top_k must be from 1 to {classes}")));
    }
    let (head, body) = request.into_parts();
    let settings = &state.settings;
    let expires_at = arrived_at + time_allowed(&head.headers, settings.timeout)?;
    let body = read_body(body, settings.body_bytes_max, settings.body_timeout).await?;
    let image = image_of(&head.headers, body, settings.body_bytes_max).await?;
    let (reply, answer) = oneshot::channel();
    state.workers.submit(Job { image, top_k, queued_at: Instant::now(), expires_at, reply })?;
    let answer = answer.await.map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the worker stopped before it answered")
    })??;
    Ok(respond(answer))
}

fn respond(answer: ClassifyAnswer) -> Response {
    let timing = answer.timing_ms;
    let account = format!(
        "queue;dur={:.3}, decode;dur={:.3}, infer;dur={:.3}",
        timing.queue, timing.decode, timing.infer
    );
    let mut response = Json(answer).into_response();
    if let Ok(value) = HeaderValue::from_str(&account) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}
