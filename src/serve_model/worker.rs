//! The worker threads: plain OS threads that decode and infer, in batches, behind a bounded line.
//!
//! **Invariant**: every image that a worker takes is answered once. A bad image and a panic while decoding fail
//! that image alone, a panic while inferring fails its batch alone; neither ends the worker.
use super::Settings;
use super::job::{Classified, Input, Job, Scores, Wanted};
use super::line::{Batch, Line, Measured};
use super::metrics::Metrics;
use crate::model::{DecodeError, Decoder, Model, ModelError, ModelSession, PlanesError, Prediction, softmax};
use crate::net::error::ApiError;
use crate::net::wire::TimingMs;
use candle_core::{DType, Tensor};
use http::StatusCode;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// See the module's documentation.
pub(super) struct Workers {
    line: Arc<Line>,
    slots: usize,
}

impl Workers {
    /// Starts `threads` threads; they finish what waits and end when this is dropped.
    pub(super) fn start(
        threads: usize,
        settings: &Settings,
        model: &Arc<Model>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let line = Arc::new(Line::new(settings.queue_max, settings.batch_max, metrics.expired()));
        // Made before any thread, so that the threads that run already end when a later one cannot start.
        let slots = threads.saturating_mul(settings.batch_max) + settings.slots_extra;
        let workers = Self { line: Arc::clone(&line), slots };
        for number in 0..threads {
            let mut session = model.session(settings.batch_max)?;
            session.warm_up()?;
            let (model, images_max) = (Arc::clone(model), settings.batch_max);
            let engine = Loaded { model, session, images_max, decoder: Decoder::new() };
            let (line, metrics, pace) = (Arc::clone(&line), Arc::clone(metrics), settings.pace);
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || work(&line, engine, &metrics, pace))?;
        }
        Ok(workers)
    }

    /// Images that can be worked on at once. With fewer a dispatcher would never send enough for a batch.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Queues the images of a request, or refuses them all at once.
    pub(super) fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        self.line.submit(jobs)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.line.close();
    }
}

/// What a worker works with: the model, or what a test puts in its place.
trait Engine {
    /// Image bytes to `[1, size, size, 3]`.
    fn decode(&mut self, image: &[u8]) -> Result<Tensor, DecodeError>;
    /// A client's own tensor to `[1, size, size, 3]`.
    fn planes(&mut self, planes: &[u8]) -> Result<Tensor, PlanesError>;
    /// Logits of each image of `[N, size, size, 3]`.
    fn logits(&mut self, images: &Tensor) -> Result<Vec<Vec<f32>>, ModelError>;
    fn top_k(&self, logits: &[f32], k: usize) -> Vec<Prediction>;
    /// Makes its memory anew, which a panic may have left in any state.
    fn renew(&mut self) -> Result<(), ModelError>;
}

struct Loaded {
    model: Arc<Model>,
    session: ModelSession,
    images_max: usize,
    decoder: Decoder,
}

impl Engine for Loaded {
    fn decode(&mut self, image: &[u8]) -> Result<Tensor, DecodeError> {
        // Taken out, so that one in which decoding panicked is not used again.
        let mut decoder = std::mem::take(&mut self.decoder);
        let input = self.model.decode_with(&mut decoder, image);
        self.decoder = decoder;
        input
    }

    fn planes(&mut self, planes: &[u8]) -> Result<Tensor, PlanesError> {
        self.model.planes(planes)
    }

    fn logits(&mut self, images: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        self.session.logits(images)
    }

    fn top_k(&self, logits: &[f32], k: usize) -> Vec<Prediction> {
        self.model.top_k(logits, k)
    }

    fn renew(&mut self) -> Result<(), ModelError> {
        self.session = self.model.session(self.images_max)?;
        Ok(())
    }
}

fn work(line: &Line, mut engine: impl Engine, metrics: &Metrics, pace: Option<Duration>) {
    let mut measured = Measured::default();
    while let Some(batch) = line.take(&measured) {
        metrics.batch(batch.jobs.len(), batch.reason);
        measured = classify(&mut engine, batch, metrics, pace);
    }
}

/// An image that is ready for the network.
struct Decoded {
    job: Job,
    input: Tensor,
    took: Duration,
}

impl Decoded {
    /// Where its time went, if the network began at `infer_at` and took `infer`.
    fn timing(&self, infer_at: Instant, infer: Duration) -> TimingMs {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
        // The others of its batch are decoded while it waits.
        let queued = infer_at.saturating_duration_since(self.job.queued_at).saturating_sub(self.took);
        TimingMs { queue: milliseconds(queued), decode: milliseconds(self.took), infer: milliseconds(infer) }
    }
}

/// Decodes, infers and answers.
fn classify(engine: &mut impl Engine, batch: Batch, metrics: &Metrics, pace: Option<Duration>) -> Measured {
    let taken_at = Instant::now();
    let pace_whole = pace.map(|pace| pace.saturating_mul(batch.jobs.len() as u32));
    let decoded: Vec<Decoded> =
        batch.jobs.into_iter().filter_map(|job| decode(engine, job, metrics, pace)).collect();
    let decode = decoded.iter().map(|image| image.took).collect();
    // Bytes and float32 do not fit into one tensor.
    let (photos, tensors): (Vec<_>, Vec<_>) =
        decoded.into_iter().partition(|image| image.input.dtype() == DType::U8);
    let pace = pace_whole.map(|pace| (taken_at, pace));
    let infer = match (photos.is_empty(), tensors.is_empty()) {
        (true, true) => None,
        (false, true) => answer(engine, photos, metrics, pace),
        (true, false) => answer(engine, tensors, metrics, pace),
        (false, false) => {
            answer(engine, photos, metrics, pace);
            answer(engine, tensors, metrics, pace);
            // Two inferences say nothing about one of as many images.
            None
        }
    };
    Measured { decode, infer }
}

/// Infers and answers; the number of images and how long that took, if it worked.
fn answer(
    engine: &mut impl Engine,
    images: Vec<Decoded>,
    metrics: &Metrics,
    pace: Option<(Instant, Duration)>,
) -> Option<(usize, Duration)> {
    let infer_at = Instant::now();
    let found = infer(engine, &images);
    let took = infer_at.elapsed();
    if let Some((since, pace)) = pace {
        hold_until(since, pace);
    }
    let measured = found.is_ok().then(|| (images.len(), infer_at.elapsed()));
    match found {
        Ok(found) => {
            for (image, (predictions, scores)) in images.into_iter().zip(found) {
                let timing_ms = image.timing(infer_at, took);
                metrics.classified(&timing_ms);
                let _ = image.job.reply.send(Ok(Classified { predictions, scores, timing_ms }));
            }
        }
        Err(error) => {
            for image in images {
                let _ = image.job.reply.send(Err(error.clone()));
            }
        }
    }
    measured
}

/// Decodes an image, or answers why that is not possible or of no use.
fn decode(engine: &mut impl Engine, job: Job, metrics: &Metrics, pace: Option<Duration>) -> Option<Decoded> {
    let started_at = Instant::now();
    // Much may have happened while the images before it were decoded.
    if job.is_abandoned() {
        return None;
    }
    if job.is_expired(started_at) {
        job.expire(&metrics.expired());
        return None;
    }
    let input = catch_unwind(AssertUnwindSafe(|| match &job.input {
        Input::Encoded(image) => engine.decode(image).map_err(|error| refuse_image(&error)),
        Input::Planes(planes) => {
            engine.planes(planes).map_err(|error| ApiError::bad_request(error.to_string()))
        }
    }));
    let refusal = match input {
        Ok(Ok(input)) => return Some(Decoded { job, input, took: started_at.elapsed() }),
        Ok(Err(refusal)) => refusal,
        Err(_) => panicked(),
    };
    if let Some(pace) = pace {
        hold_until(started_at, pace);
    }
    let _ = job.reply.send(Err(refusal));
    None
}

/// What was wanted of an image.
type Found = (Vec<Prediction>, Option<Scores>);

/// What was wanted of each image.
fn infer(engine: &mut impl Engine, images: &[Decoded]) -> Result<Vec<Found>, ApiError> {
    let inferred = catch_unwind(AssertUnwindSafe(|| {
        let logits = match images {
            [image] => engine.logits(&image.input)?,
            images => {
                let inputs: Vec<&Tensor> = images.iter().map(|image| &image.input).collect();
                engine.logits(&Tensor::cat(&inputs, 0)?)?
            }
        };
        let found = |(image, logits): (&Decoded, Vec<f32>)| {
            let Wanted { top_k, scores } = image.job.wanted;
            let predictions = if top_k == 0 { Vec::new() } else { engine.top_k(&logits, top_k) };
            let scores = scores.then(|| Scores { probabilities: softmax(&logits), logits });
            (predictions, scores)
        };
        Ok::<_, ModelError>(images.iter().zip(logits).map(found).collect())
    }));
    let Ok(found) = inferred else {
        if let Err(error) = engine.renew() {
            tracing::error!(%error, "the memory of a worker that panicked could not be made anew");
        }
        return Err(panicked());
    };
    found.map_err(|error| {
        tracing::error!(%error, "inference failed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "inference failed")
    })
}

fn panicked() -> ApiError {
    tracing::error!("a worker panicked on an image; this is a bug");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the image could not be worked on")
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

/// Keeps this thread busy until `pace` after `since`, as a slower CPU would.
fn hold_until(since: Instant, pace: Duration) {
    loop {
        let left = pace.saturating_sub(since.elapsed());
        if left.is_zero() {
            return;
        }
        // May wake early; nobody unparks a worker.
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::Answer;
    use super::super::line::tests::job;
    use super::*;
    use crate::logic::batch::Reason;
    use candle_core::Device;

    /// Takes one byte for an image; its logits are that byte. Letters stand for what can go wrong.
    #[derive(Default)]
    struct Fake {
        batches: Vec<usize>,
        renewed: usize,
    }

    impl Engine for Fake {
        fn decode(&mut self, image: &[u8]) -> Result<Tensor, DecodeError> {
            match image {
                b"bad" => Err(DecodeError::UnknownFormat),
                b"panic" => panic!("as the test wants"),
                image => Ok(Tensor::from_slice(&image[..1], (1, 1, 1, 1), &Device::Cpu).unwrap()),
            }
        }

        fn planes(&mut self, planes: &[u8]) -> Result<Tensor, PlanesError> {
            crate::model::planes::tensor(planes, 1)
        }

        fn logits(&mut self, images: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
            if images.dtype() == DType::F32 {
                self.batches.push(images.dims()[0]);
                return Ok(images.flatten(1, 3)?.to_vec2()?);
            }
            let bytes: Vec<u8> = images.flatten_all()?.to_vec1()?;
            assert!(!bytes.contains(&b'P'), "as the test wants");
            if bytes.contains(&b'N') {
                return Err(ModelError::NotFinite);
            }
            self.batches.push(bytes.len());
            Ok(bytes.into_iter().map(|byte| vec![f32::from(byte)]).collect())
        }

        fn top_k(&self, logits: &[f32], _: usize) -> Vec<Prediction> {
            vec![Prediction { label: String::new(), index: logits[0] as usize, probability: 1.0 }]
        }

        fn renew(&mut self) -> Result<(), ModelError> {
            self.renewed += 1;
            Ok(())
        }
    }

    /// Works on the images as one batch. The class that each is answered with, or the status, in their order.
    fn check(engine: &mut Fake, images: &[&'static [u8]], expected: &[Result<usize, u16>]) -> Measured {
        let (jobs, mut answers): (Vec<Job>, Vec<Answer>) =
            images.iter().map(|image| job(image, Duration::from_secs(600))).unzip();
        let batch = Batch { jobs, reason: Reason::Full };
        let measured = classify(engine, batch, &Metrics::new("fake"), None);
        let answers: Vec<Result<usize, u16>> = answers
            .iter_mut()
            .map(|answer| {
                let answer = answer.try_recv().expect("every image is answered");
                answer.map(|answer| answer.predictions[0].index).map_err(|error| error.status.as_u16())
            })
            .collect();
        assert_eq!(answers, expected);
        measured
    }

    #[test]
    fn each_image_of_a_batch_gets_its_own_answer() {
        let mut engine = Fake::default();
        let measured = check(&mut engine, &[b"\x07", b"\x03", b"\x05"], &[Ok(7), Ok(3), Ok(5)]);
        assert_eq!(engine.batches, [3]);
        assert_eq!((measured.decode.len(), measured.infer.unwrap().0), (3, 3));
        check(&mut engine, &[b"\x09"], &[Ok(9)]);
        assert_eq!(engine.batches, [3, 1]);
    }

    #[test]
    fn tensors_and_photos_of_a_batch_are_inferred_apart() {
        let mut engine = Fake::default();
        let far = Duration::from_secs(600);
        let (mut jobs, mut answers): (Vec<Job>, Vec<Answer>) =
            [job(b"\x07", far), job(b"", far), job(b"\x05", far), job(b"", far)].into_iter().unzip();
        let planes = |values: [f32; 3]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        jobs[1].input = Input::Planes(planes([3.0, 0.0, 0.0]));
        jobs[1].wanted = Wanted { top_k: 0, scores: true };
        jobs[3].input = Input::Planes(planes([f32::NAN, 0.0, 0.0]));
        let batch = Batch { jobs, reason: Reason::Full };
        let measured = classify(&mut engine, batch, &Metrics::new("fake"), None);
        assert_eq!((engine.batches, measured.infer), (vec![2, 1], None));
        let mut answer = |at: usize| answers[at].try_recv().unwrap();
        assert_eq!(answer(0).unwrap().predictions[0].index, 7);
        assert_eq!(answer(2).unwrap().predictions[0].index, 5);
        let Classified { predictions, scores, .. } = answer(1).unwrap();
        let scores = scores.unwrap();
        assert!(predictions.is_empty() && scores.logits == [3.0, 0.0, 0.0] && scores.probabilities[0] > 0.9);
        assert_eq!(answer(3).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_bad_image_fails_alone() {
        let mut engine = Fake::default();
        let images: [&[u8]; 4] = [b"\x01", b"bad", b"panic", b"\x02"];
        let measured = check(&mut engine, &images, &[Ok(1), Err(415), Err(500), Ok(2)]);
        assert_eq!(engine.batches, [2]);
        assert_eq!((measured.decode.len(), measured.infer.unwrap().0), (2, 2));
        let measured = check(&mut engine, &[b"bad", b"bad"], &[Err(415), Err(415)]);
        assert!(engine.batches == [2] && measured.infer.is_none() && engine.renewed == 0);
    }

    #[test]
    fn a_failing_network_fails_one_batch() {
        let mut engine = Fake::default();
        check(&mut engine, &[b"\x01", b"P", b"bad"], &[Err(500), Err(500), Err(415)]);
        assert_eq!(engine.renewed, 1);
        check(&mut engine, &[b"\x01", b"N"], &[Err(500), Err(500)]);
        assert_eq!(engine.renewed, 1);
        check(&mut engine, &[b"\x01", b"\x02"], &[Ok(1), Ok(2)]);
    }

    #[test]
    fn an_image_that_nobody_waits_for_any_more_is_not_worked_on() {
        let mut engine = Fake::default();
        let (late, mut late_answer) = job(b"\x01", Duration::ZERO);
        let (gone, gone_answer) = job(b"\x02", Duration::from_secs(600));
        drop(gone_answer);
        let metrics = Metrics::new("fake");
        let batch = Batch { jobs: vec![late, gone], reason: Reason::NoGain };
        classify(&mut engine, batch, &metrics, None);
        assert_eq!(late_answer.try_recv().unwrap().unwrap_err().status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(metrics.expired().get(), 1);
        assert!(engine.batches.is_empty());
    }

    #[test]
    fn timings_account_for_all_of_an_images_time() {
        let mut engine = Fake::default();
        let pace = Duration::from_millis(20);
        let (jobs, mut answers): (Vec<Job>, Vec<Answer>) =
            (0..2).map(|_| job(b"\x01", Duration::from_secs(600))).unzip();
        let queued_at = jobs[0].queued_at;
        let batch = Batch { jobs, reason: Reason::Full };
        let measured = classify(&mut engine, batch, &Metrics::new("fake"), Some(pace));
        let all_ms = queued_at.elapsed().as_secs_f64() * 1000.0;
        // A batch of two is held for two paces, which is its service time.
        assert!(all_ms >= 40.0);
        let (_, infer) = measured.infer.unwrap();
        assert!(infer + measured.decode.iter().sum() >= Duration::from_millis(39), "{measured:?}");
        for answer in &mut answers {
            let TimingMs { queue, decode, infer } = answer.try_recv().unwrap().unwrap().timing_ms;
            assert!(queue >= 0.0 && decode > 0.0 && infer > 0.0 && queue + decode + infer <= all_ms);
        }
    }
}
