//! The worker threads: plain OS threads that decode and infer, behind a bounded queue.
//!
//! **Invariant**: at most `queue_max` images wait; a panic while working on one image fails that image
//! alone; an image whose client is gone or whose time ran out is dropped before it is decoded.
use super::Settings;
use super::metrics::Metrics;
use crate::model::{DecodeError, Model, ModelSession};
use crate::net::error::ApiError;
use crate::net::wire::{ClassifyAnswer, TimingMs};
use bytes::Bytes;
use http::StatusCode;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// An image to classify.
pub(super) struct Job {
    pub(super) image: Bytes,
    pub(super) top_k: usize,
    pub(super) queued_at: Instant,
    pub(super) expires_at: Instant,
    pub(super) reply: oneshot::Sender<Result<ClassifyAnswer, ApiError>>,
}

/// See the module's documentation.
pub(super) struct Workers {
    queue: SyncSender<Job>,
    threads: usize,
}

impl Workers {
    /// Starts the threads; they end when this is dropped.
    pub(super) fn start(
        threads: usize,
        settings: Settings,
        model: &Arc<Model>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (queue, jobs) = sync_channel(settings.queue_max);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads {
            let (jobs, model, metrics) = (Arc::clone(&jobs), Arc::clone(model), Arc::clone(metrics));
            let mut session = model.session(1)?;
            session.warm_up()?;
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || work(&jobs, &model, session, &metrics, settings.pace))?;
        }
        Ok(Self { queue, threads })
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Queues an image, or refuses it at once.
    pub(super) fn submit(&self, job: Job) -> Result<(), ApiError> {
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::unavailable("every worker is busy and the queue is full"),
            TrySendError::Disconnected(_) => ApiError::unavailable("the workers have stopped"),
        })
    }
}

fn work(
    jobs: &Mutex<Receiver<Job>>,
    model: &Model,
    mut session: ModelSession,
    metrics: &Metrics,
    pace: Option<Duration>,
) {
    loop {
        // The lock passes the next job to one idle thread; the others wait for the lock instead.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let taken_at = Instant::now();
        if job.reply.is_closed() {
            continue;
        }
        if taken_at >= job.expires_at {
            metrics.expired();
            let _ = job.reply.send(Err(ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                "the time ran out before the image was decoded",
            )));
            continue;
        }
        let queued = taken_at - job.queued_at;
        let answer =
            catch_unwind(AssertUnwindSafe(|| classify(model, &mut session, &job.image, job.top_k, queued)));
        let answer = answer.unwrap_or_else(|_| {
            tracing::error!("a worker panicked on an image; this is a bug");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the image could not be worked on"))
        });
        if let Some(pace) = pace {
            hold_until(taken_at + pace);
        }
        if let Ok(answer) = &answer {
            metrics.classified(&answer.timing_ms);
        }
        let _ = job.reply.send(answer);
    }
}

fn classify(
    model: &Model,
    session: &mut ModelSession,
    image: &[u8],
    top_k: usize,
    queued: Duration,
) -> Result<ClassifyAnswer, ApiError> {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let started = Instant::now();
    let input = model.decode(image).map_err(|error| refuse_image(&error))?;
    let decoded = Instant::now();
    let logits = session.logits(&input).map_err(|error| {
        tracing::error!(%error, "inference failed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "inference failed")
    })?;
    let predictions = model.top_k(&logits[0], top_k);
    Ok(ClassifyAnswer {
        model: model.name().to_owned(),
        predictions,
        timing_ms: TimingMs {
            queue: milliseconds(queued),
            decode: milliseconds(decoded - started),
            infer: milliseconds(decoded.elapsed()),
        },
    })
}

/// The status that fits what is wrong with an image.
fn refuse_image(error: &DecodeError) -> ApiError {
    let status = match error {
        DecodeError::TooLarge { .. } | DecodeError::TooMuchMemory => StatusCode::PAYLOAD_TOO_LARGE,
        DecodeError::UnknownFormat | DecodeError::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        DecodeError::Empty => StatusCode::BAD_REQUEST,
        DecodeError::Corrupt(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    ApiError::new(status, error.to_string())
}

/// Keeps this thread busy until `instant`, as a slower CPU would.
fn hold_until(instant: Instant) {
    loop {
        let left = instant.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        // May wake early; nobody unparks a worker.
        std::thread::park_timeout(left);
    }
}
