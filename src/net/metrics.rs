//! Prometheus exposition, the same for every mode.
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Edges of latency histograms in seconds. 0.33 and 0.5, the target and the promise, are edges, so that the
/// share of requests over them can be read off exactly.
pub const LATENCY_EDGES_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.33, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A registry whose metrics are all called `elastic_…`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("elastic")
}

/// Writes a registry as OpenMetrics text.
#[must_use]
pub fn render(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
