//! Replicas that register themselves, over HTTP on a port of its own.
use super::{Discovery, Fleet, Running};
use crate::dispatch::State;
use crate::dispatch::pool::Source;
use crate::dispatch::wire::{Registration, ReplicaStatus};
use crate::net::client::base_url;
use crate::net::error::{self, ApiError};
use crate::net::serve;
use crate::net::shutdown::Shutdown;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use std::sync::Arc;
use tokio::net::TcpListener;

const REGISTRATION_BYTES_MAX: usize = 4096;

/// A bound listener at which replicas register, say again that they are there, and say goodbye.
pub(in crate::dispatch) struct Registrations {
    pub(in crate::dispatch) listener: TcpListener,
    pub(in crate::dispatch) state: Arc<State>,
}

impl Discovery for Registrations {
    fn source(&self) -> Source {
        Source::Registered
    }

    fn run(self: Box<Self>, fleet: Fleet, shutdown: Shutdown) -> Running {
        let Self { listener, state } = *self;
        let settings = &state.config.settings;
        let (interval, forget_after) = (settings.probe_interval, settings.forget_after);
        let limits = state.config.limits;
        Box::pin(async move {
            let forgetting = async {
                let mut ticks = tokio::time::interval(interval);
                loop {
                    ticks.tick().await;
                    fleet.forget_away(forget_after);
                }
            };
            let router = router(Registry { fleet: fleet.clone(), state });
            tokio::select! {
                () = serve::serve(listener, router, limits, shutdown) => {}
                () = forgetting => {}
            }
        })
    }
}

#[derive(Clone)]
struct Registry {
    fleet: Fleet,
    state: Arc<State>,
}

fn router(registry: Registry) -> Router {
    Router::new()
        .route("/replicas", get(list).post(register).delete(goodbye))
        .layer(DefaultBodyLimit::max(REGISTRATION_BYTES_MAX))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(registry)
}

async fn list(Shared(registry): Shared<Registry>) -> Json<Vec<ReplicaStatus>> {
    Json(registry.state.pool.snapshot().replicas)
}

/// A replica says that it is ready. Saying it again is a heartbeat.
async fn register(
    Shared(registry): Shared<Registry>,
    Json(registration): Json<Registration>,
) -> Result<StatusCode, ApiError> {
    let url = base_url(&registration.url).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if registration.slots == 0 {
        return Err(ApiError::bad_request("slots must be at least 1"));
    }
    if !registry.fleet.join(&url, registration.slots) {
        return Err(ApiError::unavailable(
            "too many replicas (--replicas-known-max), or the URL is not http",
        ));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A replica says goodbye: it gets nothing new and finishes what it has.
async fn goodbye(
    Shared(registry): Shared<Registry>,
    Json(registration): Json<Registration>,
) -> Result<StatusCode, ApiError> {
    let url = base_url(&registration.url).map_err(|error| ApiError::bad_request(error.to_string()))?;
    registry.fleet.leave(&url);
    Ok(StatusCode::NO_CONTENT)
}
