//! The Open Inference Protocol, version 2, with Triton's extensions `binary_tensor_data` and `classification`.
pub mod about;
pub(super) mod answer;
pub mod request;

use super::named::Named;
use crate::net::error::ApiError;
use crate::serve_model::ask::{self, Shared};
use crate::serve_model::job::Wanted;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderName};

/// Length of the JSON before the binary tensors, bytes, of requests and answers.
const INFERENCE_HEADER_CONTENT_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// `POST /v2/models/{model}/infer`.
pub(in crate::serve_model) async fn infer(
    State(state): Shared,
    _: Named,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = ask::read(&state, request).await?;
    let json_length = json_length(&asked.head.headers)?;
    let (body, bounds) = (asked.body, state.bounds());
    let to_parse = json_length.unwrap_or(body.len());
    let request = ask::parse(to_parse, move || request::parse(body, json_length, bounds)).await?;
    let classes = state.model.classes();
    let top_k = request.outputs.iter().filter_map(|output| output.classes).max().unwrap_or(0).min(classes);
    let wanted = Wanted { top_k, scores: true };
    let found = ask::classify(&state, request.inputs, wanted, asked.expires_at).await?;
    let id = request.id.as_deref();
    let response = answer::respond(state.model.name(), id, &request.outputs, &found)?;
    Ok(ask::with_timing(response, ask::longest(&found)))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(INFERENCE_HEADER_CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        ApiError::bad_request("inference-header-content-length must be the number of the JSON's bytes")
    })
}
