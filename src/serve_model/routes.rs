//! Every path of a replica, in one list.
//!
//! **Invariant**: `net/openapi.json` describes exactly these.
use super::State as Server;
use super::ask::Shared;
use super::dialects::{predict, torchserve, v1, v2};
use super::observe::observe;
use crate::net::wire::Readiness;
use crate::net::{error, openapi};
use axum::extract::State;
use axum::handler::Handler;
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

type Route = MethodRouter<Arc<Server>>;

/// Paths with what answers there.
fn routes() -> Vec<(&'static str, Route)> {
    let infer = || inference(v2::infer);
    vec![
        ("/predict", inference(predict::predict)),
        ("/v2", get(v2::about::server)),
        ("/v2/health/live", get(v2::about::live)),
        ("/v2/health/ready", get(v2::about::ready)),
        ("/v2/repository/index", get(v2::about::index).post(v2::about::index)),
        ("/v2/models", get(v2::about::models)),
        ("/v2/models/{model}", get(v2::about::model)),
        ("/v2/models/{model}/ready", get(v2::about::model_ready)),
        ("/v2/models/{model}/config", get(v2::about::config)),
        ("/v2/models/{model}/infer", infer()),
        ("/v2/models/{model}/versions/{version}", get(v2::about::model)),
        ("/v2/models/{model}/versions/{version}/ready", get(v2::about::model_ready)),
        ("/v2/models/{model}/versions/{version}/config", get(v2::about::config)),
        ("/v2/models/{model}/versions/{version}/infer", infer()),
        ("/v1/models", get(v1::models)),
        ("/v1/models/{model}", inference(v1::predict).get(v1::model).fallback(v1::other)),
        ("/ping", get(torchserve::ping)),
        ("/predictions/{model}", predictions()),
        ("/predictions/{model}/{version}", predictions()),
        ("/healthz", get(|| async { "ok" })),
        ("/readyz", get(readyz)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi::document)),
    ]
}

/// A route whose `POST` is inference.
fn inference<T: 'static>(handler: impl Handler<T, Arc<Server>>) -> Route {
    post(handler).layer(from_fn(observe))
}

fn predictions() -> Route {
    post(torchserve::predictions).put(torchserve::predictions).layer(from_fn(observe))
}

pub(super) fn router(state: Arc<Server>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, route)| router.route(path, route))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state)
}

async fn readyz(State(state): Shared) -> (StatusCode, Json<Readiness>) {
    let ready = !state.shutdown.is_leaving();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let slots = state.workers.slots() as u32;
    (status, Json(Readiness { ready, model: state.model.name().to_owned(), slots }))
}

async fn metrics(State(state): Shared, headers: HeaderMap) -> axum::response::Response {
    state.metrics.render(&headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_describes_these_paths_and_no_others() {
        let document: serde_json::Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let described = document["paths"].as_object().unwrap().keys().map(String::as_str);
        // The router cannot tell these two apart, the document can.
        let described: BTreeSet<&str> =
            described.map(|path| path.strip_suffix(":predict").unwrap_or(path)).collect();
        let routed: BTreeSet<&str> = routes().iter().map(|(path, _)| *path).collect();
        assert_eq!(described, routed);
    }
}
