//! The network that a path names.
use crate::net::error::ApiError;
use crate::serve_model::State;
use axum::extract::{FromRequestParts, Path};
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use std::sync::Arc;

/// The only version there is.
pub(in crate::serve_model) const VERSION: &str = "1";

/// Proof that a path names the network that is served, in the version that is served.
pub(in crate::serve_model) struct Named;

#[derive(Deserialize)]
struct Segments {
    model: String,
    version: Option<String>,
}

impl FromRequestParts<Arc<State>> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, ApiError> {
        let Path(Segments { model, version }) = Path::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        check(state, &model)?;
        match version {
            Some(version) if version != VERSION => {
                let name = state.model.name();
                let message = format!("{name} has no version {version:?}: its version is {VERSION:?}");
                Err(ApiError::new(StatusCode::NOT_FOUND, message))
            }
            _ => Ok(Self),
        }
    }
}

/// Refuses every name but the network's own and its alias.
pub(in crate::serve_model) fn check(state: &State, name: &str) -> Result<(), ApiError> {
    let (model, alias) = (state.model.name(), state.settings.model_alias.as_str());
    if name == model || name == alias {
        return Ok(());
    }
    let message =
        format!("there is no model {name:?} here: the model is {model:?}, which {alias:?} stands for too");
    Err(ApiError::new(StatusCode::NOT_FOUND, message))
}
