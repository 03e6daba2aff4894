//! What an autoscaler answers over HTTP.
use super::journal::Journal;
use super::processes::Replica;
use super::target::Scaler;
use crate::net::error::{self, ApiError};
use crate::net::{client, shutdown::Shutdown};
use axum::extract::State as Shared;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use std::sync::Arc;
use std::time::Duration;

/// Longest time that the leader may take to tell its decisions.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest list of decisions that is handed on, bytes.
const DECISIONS_BYTES_MAX: usize = 4 << 20;
/// On a question that was handed on already: two that take each other for the leader must not ask in circles.
const HANDED_ON: &str = "x-elastic-handed-on";

struct State {
    journal: Arc<Journal>,
    scaler: Scaler,
    client: reqwest::Client,
    shutdown: Shutdown,
}

pub(super) fn router(journal: Arc<Journal>, scaler: Scaler, shutdown: Shutdown) -> anyhow::Result<Router> {
    let client = client::client(LEADER_TIMEOUT)?;
    Ok(Router::new()
        .route("/decisions", get(decisions))
        .route("/replicas", get(replicas))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(Arc::new(State { journal, scaler, client, shutdown })))
}

/// This autoscaler's decisions or, where it stands by, the leader's.
async fn decisions(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    let leader = state
        .scaler
        .leadership()
        .and_then(|leadership| leadership.leader().map(|leader| (leadership.is_me(&leader), leader)));
    if let Some((false, leader)) = &leader
        && let Some(url) = &leader.url
        && !headers.contains_key(HANDED_ON)
    {
        match ask(&state.client, url).await {
            Ok(Some(body)) => {
                return ([(http::header::CONTENT_TYPE, "application/json")], body).into_response();
            }
            Ok(None) => tracing::debug!(url, "the leader's list of decisions is too long"),
            Err(error) => tracing::debug!(url, %error, "the leader does not tell its decisions"),
        }
    }
    let mut decisions = state.journal.decisions();
    decisions.leader = leader.map(|(_, leader)| leader.identity);
    Json(decisions).into_response()
}

async fn ask(client: &reqwest::Client, url: &str) -> reqwest::Result<Option<bytes::Bytes>> {
    let asked = client.get(format!("{url}/decisions")).header(HANDED_ON, "1").send().await?;
    client::read_answer(asked.error_for_status()?, DECISIONS_BYTES_MAX).await
}

/// Ready while it runs: one that stands by is as ready as the leader.
async fn readyz(Shared(state): Shared<Arc<State>>) -> Result<&'static str, ApiError> {
    if state.shutdown.is_leaving() {
        return Err(ApiError::unavailable("shutting down"));
    }
    Ok("ready")
}

async fn replicas(Shared(state): Shared<Arc<State>>) -> Json<Vec<Replica>> {
    Json(state.scaler.replicas())
}

async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    state.journal.metrics(&headers)
}
