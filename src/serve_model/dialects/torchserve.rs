//! TorchServe's inference API: `/ping` and `/predictions/{model}`.
use super::named::Named;
use super::photo;
use crate::model::Prediction;
use crate::net::error::ApiError;
use crate::serve_model::ask::{self, Shared};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// Health in TorchServe's words.
pub(in crate::serve_model) async fn ping(State(state): Shared) -> (StatusCode, Json<serde_json::Value>) {
    let (status, word) = if state.shutdown.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, "Unhealthy")
    } else {
        (StatusCode::OK, "Healthy")
    };
    (status, Json(serde_json::json!({ "status": word })))
}

/// Classifies the image in the body.
pub(in crate::serve_model) async fn predictions(
    State(state): Shared,
    _: Named,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = ask::read(&state, request).await?;
    let image = photo::find(&asked.head.headers, asked.body, state.settings.body_bytes_max).await?;
    let found = ask::classify_one(&state, image, ask::top_k(&state, None)?, asked.expires_at).await?;
    Ok(ask::with_timing(Json(ByLabel(&found.predictions)).into_response(), found.timing_ms))
}

/// Probabilities by label, best first. Of classes with the same name the most probable one is told, since names
/// in a JSON object are to be unique.
struct ByLabel<'a>(&'a [Prediction]);

impl Serialize for ByLabel<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, Prediction { label, probability, .. }) in self.0.iter().enumerate() {
            if self.0[..at].iter().all(|better| better.label != *label) {
                map.serialize_entry(label, probability)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_in_order() {
        let prediction =
            |label: &str, probability| Prediction { label: label.to_owned(), index: 0, probability };
        let predictions =
            [prediction("maillot", 0.5), prediction("crane", 0.25), prediction("maillot", 0.125)];
        let json = serde_json::to_string(&ByLabel(&predictions)).unwrap();
        assert_eq!(json, r#"{"maillot":0.5,"crane":0.25}"#);
    }
}
