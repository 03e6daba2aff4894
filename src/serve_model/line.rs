//! The line in which images wait for a worker, and the batches that workers take from its head.
//!
//! **Invariant**: at most `queue_max` images wait, beyond those that idle workers are about to take; a batch is
//! the head of the line in its order; whoever waits here wakes when an image comes, when the batch's wait is
//! over, or when the line is closed. An image whose client is gone or whose time ran out is in no batch.
use super::job::Job;
use crate::logic::batch::{Batcher, Decision, Reason, Waiting};
use crate::net::error::ApiError;
use prometheus_client::metrics::counter::Counter;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Images that a worker has to work on together.
pub(super) struct Batch {
    /// In the order of the line; there is at least one.
    pub(super) jobs: Vec<Job>,
    pub(super) reason: Reason,
}

/// How long a batch took, for the decisions to come.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Decoding, by image.
    pub(super) decode: Vec<Duration>,
    /// Inferring, with the number of images.
    pub(super) infer: Option<(usize, Duration)>,
}

/// See the module's documentation.
pub(super) struct Line {
    state: Mutex<State>,
    changed: Condvar,
    queue_max: usize,
    /// From which the decisions count.
    epoch: Instant,
    expired: Counter,
}

struct State {
    jobs: VecDeque<Job>,
    batcher: Batcher,
    workers_idle: usize,
    closed: bool,
}

impl Line {
    /// An empty line; `expired` counts images whose time runs out in it.
    pub(super) fn new(queue_max: usize, batch_max: usize, expired: Counter) -> Self {
        let state =
            State { jobs: VecDeque::new(), batcher: Batcher::new(batch_max), workers_idle: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), queue_max, epoch: Instant::now(), expired }
    }

    /// Joins the line, all or none: where there is no room for all, they are refused at once.
    pub(super) fn submit<Jobs>(&self, jobs: Jobs) -> Result<(), ApiError>
    where
        Jobs: IntoIterator<Item = Job, IntoIter: ExactSizeIterator>,
    {
        let jobs = jobs.into_iter();
        let joining = jobs.len();
        let mut state = self.lock();
        if state.closed {
            return Err(ApiError::unavailable("the workers have stopped"));
        }
        let about_to_go = state.workers_idle.saturating_mul(state.batcher.images_max());
        let length_max = self.queue_max.saturating_add(about_to_go);
        if state.jobs.len().saturating_add(joining) > length_max {
            return Err(ApiError::unavailable("every worker is busy and the queue is full"));
        }
        state.jobs.extend(jobs);
        drop(state);
        for _ in 0..joining {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The next batch, as soon as there is one; none once the line is closed and empty. `measured` is of the
    /// worker's last batch.
    pub(super) fn take(&self, measured: &Measured) -> Option<Batch> {
        let mut state = self.lock();
        state.learn(measured);
        loop {
            let now = Instant::now();
            state.drop_lost(now, &self.expired);
            match state.decide(self.epoch, now) {
                Decision::Run(images, reason) => {
                    let jobs = state.jobs.drain(..images).collect();
                    if !state.jobs.is_empty() && state.workers_idle > 0 {
                        self.changed.notify_one();
                    }
                    return Some(Batch { jobs, reason });
                }
                Decision::Idle if state.closed => return None,
                Decision::Idle => state = self.wait(state, None),
                Decision::WaitUntil(until) => {
                    let left = until.saturating_sub(now.saturating_duration_since(self.epoch));
                    state = self.wait(state, Some(left));
                }
            }
        }
    }

    /// Takes nothing more; the workers finish what waits and end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, at_most: Option<Duration>) -> MutexGuard<'a, State> {
        state.workers_idle += 1;
        let mut state = match at_most {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.workers_idle -= 1;
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn learn(&mut self, measured: &Measured) {
        for took in &measured.decode {
            self.batcher.decoded(*took);
        }
        if let Some((images, took)) = measured.infer {
            self.batcher.inferred(images, took);
        }
    }

    /// Makes sure that whatever could be in the next batch is worth the work.
    fn drop_lost(&mut self, now: Instant, counter: &Counter) {
        let mut at = 0;
        while at < self.batcher.images_max() {
            let Some(job) = self.jobs.get(at) else { return };
            let (abandoned, expired) = (job.is_abandoned(), job.is_expired(now));
            if !abandoned && !expired {
                at += 1;
                continue;
            }
            if let Some(job) = self.jobs.remove(at)
                && !abandoned
            {
                job.expire(counter);
            }
        }
    }

    fn decide(&self, epoch: Instant, now: Instant) -> Decision {
        let since = |instant: Instant| instant.saturating_duration_since(epoch);
        let line = self
            .jobs
            .iter()
            .map(|job| Waiting { arrived_at: since(job.queued_at), expires_at: since(job.expires_at) });
        self.batcher.decide(since(now), line, self.workers_idle)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::job::{Answer, Input, Wanted};
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;
    use std::thread;
    use tokio::sync::oneshot;

    const FAR: Duration = Duration::from_secs(600);

    /// A job with `left` until its deadline, and where its answer comes.
    pub(in crate::serve_model) fn job(image: &'static [u8], left: Duration) -> (Job, Answer) {
        let (reply, answer) = oneshot::channel();
        let queued_at = Instant::now();
        let input = Input::Encoded(Bytes::from_static(image));
        let wanted = Wanted { top_k: 1, scores: false };
        (Job { input, wanted, queued_at, expires_at: queued_at + left, reply }, answer)
    }

    fn submit(line: &Line, images: &[&'static [u8]]) -> Vec<Answer> {
        let submit = |image: &&'static [u8]| {
            let (job, answer) = job(image, FAR);
            line.submit([job]).unwrap();
            answer
        };
        images.iter().map(submit).collect()
    }

    fn bytes(job: &Job) -> Bytes {
        match &job.input {
            Input::Encoded(bytes) | Input::Planes(bytes) => bytes.clone(),
        }
    }

    fn take(line: &Line) -> Option<Vec<Bytes>> {
        let batch = line.take(&Measured::default())?;
        Some(batch.jobs.into_iter().map(|job| bytes(&job)).collect())
    }

    #[test]
    fn batches_keep_the_order_and_the_maximum() {
        let line = Line::new(10, 3, Counter::default());
        let _answers = submit(&line, &[b"a", b"b", b"c", b"d", b"e"]);
        line.close();
        assert_eq!(take(&line).unwrap(), ["a", "b", "c"]);
        assert_eq!(take(&line).unwrap(), ["d", "e"]);
        assert_eq!(take(&line), None);
        assert_eq!(line.submit([job(b"f", FAR).0]).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn the_line_is_bounded() {
        let line = Line::new(2, 4, Counter::default());
        let _answers = submit(&line, &[b"a", b"b"]);
        let refused = line.submit([job(b"c", FAR).0]).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.retry_after_s), (503, Some(1)));
        assert_eq!(take(&line).unwrap(), ["a", "b"]);
        let _answers = submit(&line, &[b"c"]);
    }

    #[test]
    fn images_of_a_request_join_together_or_not_at_all() {
        let line = Line::new(3, 4, Counter::default());
        let _answer = submit(&line, &[b"a"]);
        let three: Vec<_> = (0..3).map(|_| job(b"x", FAR).0).collect();
        assert_eq!(line.submit(three).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        let (jobs, _answers): (Vec<_>, Vec<_>) = [job(b"b", FAR), job(b"c", FAR)].into_iter().unzip();
        line.submit(jobs).unwrap();
        line.close();
        assert_eq!(take(&line).unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn what_nobody_waits_for_is_in_no_batch() {
        let line = Line::new(10, 2, Counter::default());
        let mut answers = submit(&line, &[b"gone", b"a", b"gone", b"gone"]);
        let (late, mut late_answer) = job(b"late", Duration::ZERO);
        line.submit([late]).unwrap();
        answers.extend(submit(&line, &[b"b", b"c"]));
        for at in [0, 2, 3] {
            answers[at].close();
        }
        let batch = line.take(&Measured::default()).unwrap();
        assert_eq!(batch.jobs.iter().map(bytes).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((batch.reason, line.expired.get()), (Reason::Full, 1));
        assert_eq!(late_answer.try_recv().unwrap().unwrap_err().status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(take(&line).unwrap(), ["c"]);
    }

    /// A line whose decisions come from these times of one and of two images.
    fn experienced(one: Duration, two: Duration) -> Line {
        let line = Line::new(10, 2, Counter::default());
        for infer in [Some((1, one)), Some((2, two))] {
            let _answers = submit(&line, &[b"x", b"x"]);
            line.take(&Measured { decode: Vec::new(), infer }).unwrap();
        }
        line
    }

    #[test]
    fn a_worker_waits_for_a_second_image_that_makes_the_batch_cheaper() {
        let line = experienced(FAR / 10, FAR / 10);
        thread::scope(|scope| {
            let worker = scope.spawn(|| take(&line));
            let _first = submit(&line, &[b"a"]);
            // Without the second image this test would hang, or for a minute at least.
            let _second = submit(&line, &[b"b"]);
            assert_eq!(worker.join().unwrap().unwrap(), ["a", "b"]);
        });
    }

    #[test]
    fn a_wait_ends_by_itself() {
        let line = experienced(Duration::from_millis(20), Duration::from_millis(20));
        let started = Instant::now();
        let _answer = submit(&line, &[b"a"]);
        assert_eq!(take(&line).unwrap(), ["a"]);
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn every_image_goes_to_one_worker_however_many_there_are() {
        let line = Line::new(1000, 3, Counter::default());
        let taken = thread::scope(|scope| {
            let worker = || std::iter::from_fn(|| take(&line)).flatten().collect::<Vec<_>>();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            let images: [&'static [u8]; 500] = [b"x"; 500];
            let answers = submit(&line, &images);
            line.close();
            let taken: usize = workers.into_iter().map(|worker| worker.join().unwrap().len()).sum();
            drop(answers);
            taken
        });
        assert_eq!(taken, 500);
    }
}
