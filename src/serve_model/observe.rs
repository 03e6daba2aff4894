//! What is said of an inference request once it is answered: where its time went, and to whose trace it belongs.
use crate::net::traceparent;
use crate::net::wire::SERVER_TIMING;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderValue;
use tokio::time::Instant;

/// Puts `Server-Timing` on answers that have none, which are the refusals, and logs one line for each request that
/// names a trace, if such lines are wanted.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let arrived_at = Instant::now();
    let wanted = tracing::enabled!(tracing::Level::DEBUG);
    let trace = if wanted { traceparent::of(request.headers()) } else { None };
    let trace = trace.map(|trace| (trace, request.uri().path().to_owned()));
    let mut response = next.run(request).await;
    let total_ms = arrived_at.elapsed().as_secs_f64() * 1000.0;
    if !response.headers().contains_key(SERVER_TIMING)
        && let Ok(timing) = HeaderValue::from_str(&format!("total;dur={total_ms:.3}"))
    {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    if let Some((trace, path)) = trace {
        let timing = response.headers().get(SERVER_TIMING).and_then(|timing| timing.to_str().ok());
        tracing::debug!(
            trace_id = trace.trace_id,
            parent_id = trace.parent_id,
            path,
            status = response.status().as_u16(),
            total_ms,
            timing,
            "request answered"
        );
    }
    response
}
