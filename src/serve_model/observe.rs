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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::error::ApiError;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of a refused request with this header.
    async fn logged(level: tracing::Level, traceparent: &str) -> String {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let refuse = post(|| async { ApiError::bad_request("no") }).layer(from_fn(observe));
        let service = TowerToHyperService::new(Router::new().route("/predict", refuse));
        let request = Request::post("/predict").header(traceparent::TRACEPARENT, traceparent);
        let response = service.call(request.body(Body::empty()).unwrap()).await.unwrap();
        assert!(response.headers()[SERVER_TIMING].to_str().unwrap().starts_with("total;dur="));
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn a_traced_request_is_one_line_and_others_are_none() {
        let traced = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let line = logged(tracing::Level::DEBUG, traced).await;
        assert_eq!(line.matches("request answered").count(), 1, "{line}");
        for part in
            ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "/predict", "status=400", "total;dur="]
        {
            assert!(line.contains(part), "{line}");
        }
        assert!(!logged(tracing::Level::DEBUG, "malformed").await.contains("request answered"));
        assert_eq!(logged(tracing::Level::INFO, traced).await, "");
    }
}
