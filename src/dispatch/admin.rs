//! Readiness, metrics, and the registration of replicas.
use super::State;
use super::pool::{Snapshot, Source};
use super::wire::{Registration, ReplicaState, ReplicaStatus};
use crate::net::client::base_url;
use crate::net::error::{self, ApiError};
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

const REGISTRATION_BYTES_MAX: usize = 4096;

/// Routes of the registration port.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/replicas", get(list).post(register).delete(goodbye))
        .layer(DefaultBodyLimit::max(REGISTRATION_BYTES_MAX))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state)
}

/// Ready while it takes requests; a dispatcher without replicas is ready: requests wait for the first one.
pub(super) async fn readyz(Shared(state): Shared<Arc<State>>) -> Result<&'static str, ApiError> {
    if state.shutdown.is_draining() {
        return Err(ApiError::unavailable("shutting down"));
    }
    Ok("ready")
}

pub(super) async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    let snapshot: Snapshot = state.pool.snapshot();
    state.metrics.render(&snapshot, &headers)
}

async fn list(Shared(state): Shared<Arc<State>>) -> Json<Vec<ReplicaStatus>> {
    Json(state.pool.snapshot().replicas)
}

/// A replica says that it is ready. Saying it again is harmless.
async fn register(
    Shared(state): Shared<Arc<State>>,
    Json(registration): Json<Registration>,
) -> Result<StatusCode, ApiError> {
    let url = base_url(&registration.url).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if registration.slots == 0 {
        return Err(ApiError::bad_request("slots must be at least 1"));
    }
    if !state.pool.learn(&url, Source::Registered) {
        return Err(ApiError::unavailable("too many replicas; raise --replicas-known-max"));
    }
    state.pool.ready(&url, registration.slots);
    Ok(StatusCode::NO_CONTENT)
}

/// A replica says goodbye: it gets nothing new and finishes what it has.
async fn goodbye(
    Shared(state): Shared<Arc<State>>,
    Json(registration): Json<Registration>,
) -> Result<StatusCode, ApiError> {
    let url = base_url(&registration.url).map_err(|error| ApiError::bad_request(error.to_string()))?;
    state.pool.unready(&url, ReplicaState::Draining);
    Ok(StatusCode::NO_CONTENT)
}
