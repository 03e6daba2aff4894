//! `POST /predict`, our own dialect.
use super::photo;
use crate::net::error::ApiError;
use crate::net::wire::ClassifyAnswer;
use crate::serve_model::ask::{self, Shared};
use axum::Json;
use axum::extract::{Query, Request, State, rejection::QueryRejection};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

/// Parameters of the query string.
#[derive(Debug, Deserialize)]
pub(in crate::serve_model) struct Parameters {
    pub(super) top_k: Option<usize>,
}

/// Classifies the image in the body.
pub(in crate::serve_model) async fn predict(
    State(state): Shared,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(parameters) = parameters.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let top_k = ask::top_k(&state, parameters.top_k)?;
    let asked = ask::read(&state, request).await?;
    let image = photo::find(&asked.head.headers, asked.body, state.settings.body_bytes_max).await?;
    let found = ask::classify_one(&state, image, top_k, asked.expires_at).await?;
    let (timing_ms, predictions) = (found.timing_ms, found.predictions);
    let answer = ClassifyAnswer { model: state.model.name().to_owned(), predictions, timing_ms };
    Ok(ask::with_timing(Json(answer).into_response(), timing_ms))
}
