//! Every path of the front door.
//!
//! Inference takes a slot; questions about the service go to any ready replica beside its work; the rest is
//! answered here.
use super::State;
use super::forward::{ask, infer};
use crate::net::error::{self, ApiError};
use crate::net::openapi;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, Method, header};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// The front door as a service: the path that nearly every request takes does without the router, which would cost
/// as much as all the rest of this crate does with a request.
#[derive(Clone)]
pub(super) struct Door {
    state: Arc<State>,
    router: TowerToHyperService<Router>,
}

impl Door {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { router: TowerToHyperService::new(router(Arc::clone(&state))), state }
    }
}

impl Service<http::Request<Incoming>> for Door {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        if request.uri().path() == PREDICT && request.method() == Method::POST {
            let state = Arc::clone(&self.state);
            return Box::pin(async move { Ok(infer(Shared(state), request).await) });
        }
        let answer = self.router.call(request);
        Box::pin(answer)
    }
}

const PREDICT: &str = "/predict";

fn router(state: Arc<State>) -> Router {
    let inference = post(infer);
    let question = get(ask);
    Router::new()
        .route(PREDICT, inference.clone())
        // Open Inference Protocol V2
        .route("/v2", question.clone())
        .route("/v2/health/live", get(|| async { Json(serde_json::json!({ "live": true })) }))
        .route("/v2/health/ready", question.clone())
        .route("/v2/models", question.clone())
        .route("/v2/models/{model}", question.clone())
        .route("/v2/models/{model}/ready", question.clone())
        .route("/v2/models/{model}/config", question.clone())
        .route("/v2/models/{model}/infer", inference.clone())
        .route("/v2/models/{model}/versions/{version}", question.clone())
        .route("/v2/models/{model}/versions/{version}/ready", question.clone())
        .route("/v2/models/{model}/versions/{version}/config", question.clone())
        .route("/v2/models/{model}/versions/{version}/infer", inference.clone())
        .route("/v2/repository/index", question.clone().post(ask))
        // KServe V1
        .route("/v1/models", question.clone())
        .route("/v1/models/{model}", any(v1))
        // TorchServe
        .route("/ping", question)
        .route("/predictions/{model}", inference.clone().put(infer))
        .route("/predictions/{model}/{version}", inference.put(infer))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state)
}

/// `POST /v1/models/NAME:predict` and `GET /v1/models/NAME`: the verb is a part of the last segment, which the router
/// cannot tell apart.
async fn v1(state: Shared<Arc<State>>, request: Request) -> Response {
    let is_predict = request.uri().path().ends_with(":predict");
    match *request.method() {
        Method::POST if is_predict => infer(state, request).await,
        Method::GET | Method::HEAD if !is_predict => ask(state, request).await,
        _ => {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let mut refused = error::method_not_allowed(method, uri).await.into_response();
            let allowed = HeaderValue::from_static(if is_predict { "POST" } else { "GET,HEAD" });
            refused.headers_mut().insert(header::ALLOW, allowed);
            refused
        }
    }
}

/// Ready while it takes requests; a dispatcher without replicas is ready: requests wait for the first one.
async fn readyz(Shared(state): Shared<Arc<State>>) -> Result<&'static str, ApiError> {
    if state.shutdown.is_leaving() {
        return Err(ApiError::unavailable("shutting down"));
    }
    Ok("ready")
}

async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    state.metrics.render(&state.pool.snapshot(), &headers)
}
