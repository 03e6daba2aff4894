//! A request as it is handed on.
//!
//! **Invariant**: it is held whole, within `--body-bytes-max`, and its bytes are shared by every try, never copied.
use super::settings::Settings;
use super::upstream::end_to_end;
use crate::net::deadline::time_allowed;
use crate::net::error::ApiError;
use crate::net::pieces::Pieces;
use crate::net::serve::read_pieces;
use crate::net::wire::DEADLINE_HEADER;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use std::time::Duration;
use tokio::time::Instant;

/// A body that is arriving.
pub(super) trait Arriving:
    http_body::Body<Data = Bytes, Error: Send> + Send + Unpin + 'static
{
}

impl<B: http_body::Body<Data = Bytes, Error: Send> + Send + Unpin + 'static> Arriving for B {}

/// What is handed on, as often as it takes.
pub(super) struct Forwarded {
    method: Method,
    path: Uri,
    headers: HeaderMap,
    body: Pieces,
    /// When its client no longer waits.
    pub(super) expires_at: Instant,
    /// Until when it waits for a first replica: a client that named a deadline of its own keeps it.
    pub(super) patient_until: Instant,
}

impl Forwarded {
    /// Reads the whole request.
    pub(super) async fn receive<B: Arriving>(
        settings: &Settings,
        request: http::Request<B>,
    ) -> Result<Self, ApiError> {
        let head_at = Instant::now();
        let (mut head, body) = request.into_parts();
        let stated = head.headers.contains_key(DEADLINE_HEADER);
        let allowed = time_allowed(&head.headers, settings.timeout)?;
        let body = read_pieces(body, settings.body_bytes_max, settings.body_timeout).await?;
        // A deadline that the client names counts from its request's head. The one that is promised to all counts
        // from the whole request: how long the upload takes is not in this service's hand.
        let (expires_at, patient_until) = if stated {
            (head_at + allowed, head_at + allowed)
        } else {
            let now = Instant::now();
            (now + settings.deadline.min(settings.timeout), now + settings.timeout)
        };
        end_to_end(&mut head.headers);
        let path = head.uri.into_parts().path_and_query.map_or_else(Uri::default, Uri::from);
        Ok(Self { method: head.method, path, headers: head.headers, body, expires_at, patient_until })
    }

    /// The request for a replica that has until `expires_at`.
    pub(super) fn request(&self, expires_at: Instant) -> http::Request<Pieces> {
        let mut request = http::Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        let left_ms = expires_at.saturating_duration_since(Instant::now()).as_millis() as u64;
        request.headers_mut().insert(DEADLINE_HEADER, HeaderValue::from(left_ms));
        request
    }

    /// Its path, for the log.
    pub(super) fn path(&self) -> &str {
        self.path.path()
    }

    /// Its W3C trace context, for the log; empty without one.
    pub(super) fn traceparent(&self) -> &str {
        self.headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Waiting for the slot of its last try.
    pub(super) waited: Option<Duration>,
    /// Holding that slot.
    pub(super) service: Option<Duration>,
}
