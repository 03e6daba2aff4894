//! What every inference request goes through, whatever its dialect: read it, queue its images, wait for all.
//!
//! **Invariant**: the images of a request are answered all or none; whatever of them still waits when one fails, or
//! when the client goes away, is dropped from the line.
use super::State;
use super::job::{Answer, Classified, Input, Job, Wanted};
use crate::net::deadline::time_allowed;
use crate::net::error::ApiError;
use crate::net::serve::read_body;
use crate::net::wire::{SERVER_TIMING, TimingMs};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header, request::Parts};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Bodies from this length on are parsed beside the threads that serve connections, bytes.
const PARSED_HERE_MAX: usize = 128 << 10;

/// A request that has arrived whole.
pub(super) struct Asked {
    pub(super) head: Parts,
    pub(super) body: Bytes,
    pub(super) expires_at: Instant,
}

/// Reads a request, within the limits on its body and time.
pub(super) async fn read(state: &State, request: Request) -> Result<Asked, ApiError> {
    let arrived_at = Instant::now();
    let (head, body) = request.into_parts();
    let settings = &state.settings;
    let expires_at = arrived_at + time_allowed(&head.headers, settings.timeout)?;
    let encoding = head.headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        let message = "compressed bodies are not read: send the body without a Content-Encoding";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let body = read_body(body, settings.body_bytes_max, settings.body_timeout).await?;
    Ok(Asked { head, body, expires_at })
}

/// Runs a parser, beside the threads that serve connections if there is much to parse.
pub(super) async fn parse<T, F>(length: usize, parser: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    if length < PARSED_HERE_MAX {
        return parser();
    }
    let parsed = tokio::task::spawn_blocking(parser).await;
    parsed.unwrap_or_else(|error| {
        tracing::error!(%error, "a parser panicked; this is a bug");
        Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be parsed"))
    })
}

/// Classifies images, each on whichever worker is free.
pub(super) async fn classify(
    state: &State,
    inputs: Vec<Input>,
    wanted: Wanted,
    expires_at: Instant,
) -> Result<Vec<Classified>, ApiError> {
    let queued_at = Instant::now();
    let job = |input| {
        let (reply, answer) = oneshot::channel();
        (Job { input, wanted, queued_at, expires_at, reply }, answer)
    };
    let (jobs, answers): (Vec<Job>, Vec<Answer>) = inputs.into_iter().map(job).unzip();
    state.workers.submit(jobs)?;
    let images = answers.len();
    let mut found = Vec::with_capacity(images);
    // In their order: the first to fail drops the receivers of those behind it, which empties the line of them.
    for (at, answer) in answers.into_iter().enumerate() {
        let answer = answer.await.unwrap_or_else(|_| Err(stopped()));
        found.push(answer.map_err(|error| of_image(error, at, images))?);
    }
    Ok(found)
}

/// The most probable classes of one image.
pub(super) async fn classify_one(
    state: &State,
    image: Bytes,
    top_k: usize,
    expires_at: Instant,
) -> Result<Classified, ApiError> {
    let wanted = Wanted { top_k, scores: false };
    classify(state, vec![Input::Encoded(image)], wanted, expires_at).await?.pop().ok_or_else(stopped)
}

fn stopped() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the worker stopped before it answered")
}

/// Says which of several images is to blame.
fn of_image(error: ApiError, at: usize, images: usize) -> ApiError {
    if images == 1 {
        return error;
    }
    ApiError { message: format!("image {at} of {images}, counted from 0: {}", error.message), ..error }
}

/// Where the time of a request went: of several images, that of the one which took longest.
pub(super) fn longest(found: &[Classified]) -> TimingMs {
    let whole = |timing: &TimingMs| timing.queue + timing.decode + timing.infer;
    let timings = found.iter().map(|classified| classified.timing_ms);
    timings.max_by(|a, b| whole(a).total_cmp(&whole(b))).unwrap_or_default()
}

/// Adds where the time went.
pub(super) fn with_timing(mut response: Response, timing: TimingMs) -> Response {
    let account = format!(
        "queue;dur={:.3}, decode;dur={:.3}, infer;dur={:.3}",
        timing.queue, timing.decode, timing.infer
    );
    if let Ok(value) = HeaderValue::from_str(&account) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// How many classes are told where the client does not say.
pub(super) const TOP_K_DEFAULT: usize = 5;

/// The number of classes to tell, from the query string.
pub(super) fn top_k(state: &State, asked: Option<usize>) -> Result<usize, ApiError> {
    let classes = state.model.classes();
    let top_k = asked.unwrap_or(TOP_K_DEFAULT.min(classes));
    if (1..=classes).contains(&top_k) {
        return Ok(top_k);
    }
    Err(ApiError::bad_request(format!("top_k must be from 1 to {classes}")))
}

/// What handlers share.
pub(super) type Shared = axum::extract::State<Arc<State>>;

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;

    #[test]
    fn an_error_names_its_image_where_there_are_several() {
        let error = || ApiError::unavailable("busy");
        assert_eq!(of_image(error(), 0, 1), error());
        let named = of_image(error(), 2, 3);
        assert_eq!(
            (named.message.as_str(), named.retry_after_s),
            ("image 2 of 3, counted from 0: busy", Some(1))
        );
    }

    #[test]
    fn the_image_that_took_longest_tells_where_the_time_went() {
        let found = |queue, decode, infer| Classified {
            predictions: Vec::new(),
            scores: None,
            timing_ms: TimingMs { queue, decode, infer },
        };
        let response =
            with_timing(().into_response(), longest(&[found(0.0, 5.0, 1.0), found(4.0, 1.0, 1.5)]));
        assert_eq!(response.headers()[SERVER_TIMING], "queue;dur=4.000, decode;dur=1.000, infer;dur=1.500");
    }

    #[tokio::test]
    async fn long_bodies_are_parsed_elsewhere() {
        let here = std::thread::current().id();
        let parsed_at = |length| parse(length, || Ok(std::thread::current().id()));
        assert_eq!(parsed_at(10).await.unwrap(), here);
        assert_ne!(parsed_at(PARSED_HERE_MAX).await.unwrap(), here);
        let panicked = parse::<(), _>(PARSED_HERE_MAX, || panic!("as the test wants")).await;
        assert_eq!(panicked.unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
