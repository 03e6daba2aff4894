//! One image on its way through the workers: what comes in, what is wanted of it, what goes out.
use crate::model::Prediction;
use crate::net::error::ApiError;
use crate::net::wire::TimingMs;
use bytes::Bytes;
use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What is to be classified. Both kinds share the memory of the request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The bytes of an image file.
    Encoded(Bytes),
    /// Little-endian float32 `[3, size, size]`, normalised as the network wants it: nothing is left to decode.
    Planes(Bytes),
}

/// What the client wants to know of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// So many of the most probable classes.
    pub(super) top_k: usize,
    /// The numbers of every class.
    pub(super) scores: bool,
}

/// What a worker found out.
#[derive(Clone, Debug)]
pub(super) struct Classified {
    /// The most probable classes, best first.
    pub(super) predictions: Vec<Prediction>,
    /// By class, where wanted.
    pub(super) scores: Option<Scores>,
    pub(super) timing_ms: TimingMs,
}

/// The numbers of every class, by its index.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    pub(super) logits: Vec<f32>,
    pub(super) probabilities: Vec<f32>,
}

/// Where a worker's answer comes.
pub(super) type Answer = oneshot::Receiver<Result<Classified, ApiError>>;

/// An image to classify.
pub(super) struct Job {
    pub(super) input: Input,
    pub(super) wanted: Wanted,
    pub(super) queued_at: Instant,
    pub(super) expires_at: Instant,
    pub(super) reply: oneshot::Sender<Result<Classified, ApiError>>,
}

impl Job {
    /// Whether nobody would read its answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires_at
    }

    /// Answers that the time ran out.
    pub(super) fn expire(self, counter: &Counter) {
        counter.inc();
        let message = "the time ran out before the image was decoded";
        let _ = self.reply.send(Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)));
    }
}
