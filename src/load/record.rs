//! What became of the requests: counts, latencies, lag, and one row a second.
//!
//! **Invariant**: `ok + failed + shed <= sent` while the run lasts, and equal once it is over.
use crate::load::latencies::{Latencies, Quantile, microseconds, quantile_of};
use crate::load::outcome::{Ended, Failure, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Most model names that are counted apart; a target that makes up names must not fill the memory.
const MODELS_MAX: usize = 16;
/// What the live line looks back on: ended requests of so long ago, and at most so many.
const RECENT: Duration = Duration::from_secs(5);
const RECENT_MAX: usize = 4096;

/// How many requests there were, and how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests that came due, also those that the cap kept from being sent.
    pub(crate) sent: u64,
    /// Those answered.
    pub(crate) ok: u64,
    /// Those refused with 503.
    pub(crate) shed: u64,
    /// Those that failed, by kind.
    pub(crate) failures: BTreeMap<Failure, u64>,
}

impl Counts {
    /// Those that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Those that failed or were shed, as a share of all; 0 without any.
    pub(crate) fn missed_share(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { (self.failed() + self.shed) as f64 / self.sent as f64 }
    }

    fn outstanding(&self) -> u64 {
        self.sent - self.ok - self.shed - self.failed()
    }

    fn end(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok { .. } => self.ok += 1,
            Outcome::Shed => self.shed += 1,
            Outcome::Failed(failure) => self.fail(*failure, 1),
        }
    }

    fn fail(&mut self, failure: Failure, count: u64) {
        *self.failures.entry(failure).or_default() += count;
    }
}

/// The requests that were due within one second of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// How many, and how they ended.
    pub(crate) counts: Counts,
    /// Median of their latencies from the scheduled instant, once all of them ended.
    pub(crate) p50: Option<Quantile>,
    /// 99th percentile of them.
    pub(crate) p99: Option<Quantile>,
    /// Answered latencies until then, microseconds.
    latencies_us: Vec<u64>,
}

impl Row {
    /// Keeps the percentiles and lets the latencies go, so that a long run stays small.
    fn close(&mut self) {
        let mut latencies_us = std::mem::take(&mut self.latencies_us);
        self.p50 = quantile_of(&mut latencies_us, self.counts.sent, 500);
        self.p99 = quantile_of(&mut latencies_us, self.counts.sent, 990);
    }
}

/// What the live line shows; instants since the start of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Now.
    pub(crate) elapsed: Duration,
    /// Requests so far.
    pub(crate) counts: Counts,
    /// Requests that took longer than [`Record::counting`] was told, or missed.
    pub(crate) over: u64,
    /// Those under way.
    pub(crate) in_flight: usize,
    /// The rate planned now, requests a second.
    pub(crate) rate_rps_planned: f64,
    /// Median over what ended in the last seconds.
    pub(crate) p50: Option<Quantile>,
    /// 99th percentile of it.
    pub(crate) p99: Option<Quantile>,
}

/// Collects what became of the requests of one run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// How many, and how they ended.
    pub(crate) counts: Counts,
    /// From the scheduled instant to the end of the answer.
    pub(crate) latency: Latencies,
    /// From the actual send to the end of the answer.
    pub(crate) send_latency: Latencies,
    /// From the scheduled instant to the actual send.
    pub(crate) lag: Latencies,
    /// Longest that a failed or shed request took from its scheduled instant, microseconds.
    pub(crate) missed_us_max: u64,
    /// Answered requests by the model that the answer names.
    pub(crate) models: BTreeMap<String, u64>,
    /// One row a second of the run.
    pub(crate) rows: Vec<Row>,
    /// When the last request ended, since the start of the run.
    pub(crate) last_ended: Duration,
    counting: Counting,
    over: u64,
    recent: VecDeque<(Duration, Quantile)>,
}

/// What is counted, and what counts as slow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counting {
    /// Requests that are due before warm the target up and are not counted.
    pub(crate) from: Duration,
    /// A latency above counts into [`Snapshot::over`].
    pub(crate) limit: Duration,
}

impl Counting {
    /// Every request, none of them slow.
    pub(crate) const ALL: Self = Self { from: Duration::ZERO, limit: Duration::MAX };
}

impl Record {
    /// An empty record.
    pub(crate) fn new(counting: Counting) -> anyhow::Result<Self> {
        Ok(Self {
            counts: Counts::default(),
            latency: Latencies::new()?,
            send_latency: Latencies::new()?,
            lag: Latencies::new()?,
            missed_us_max: 0,
            models: BTreeMap::new(),
            rows: Vec::new(),
            last_ended: Duration::ZERO,
            counting,
            over: 0,
            recent: VecDeque::new(),
        })
    }

    /// Counts a request whose instant came.
    pub(crate) fn came_due(&mut self, due: Duration) {
        if due < self.counting.from {
            return;
        }
        let second = due.as_secs() as usize;
        if second >= self.rows.len() {
            if let Some(row) = self.rows.last_mut().filter(|row| row.counts.outstanding() == 0) {
                row.close();
            }
            self.rows.resize(second + 1, Row::default());
        }
        self.counts.sent += 1;
        self.rows[second].counts.sent += 1;
    }

    /// Counts a request that ended; [`Record::came_due`] counted it before.
    pub(crate) fn ended(&mut self, request: Ended) {
        if request.due < self.counting.from {
            return;
        }
        let latency = request.ended.saturating_sub(request.due);
        let latency_us = microseconds(latency);
        self.lag.answer(request.sent.saturating_sub(request.due));
        self.last_ended = self.last_ended.max(request.ended);
        let second = request.due.as_secs() as usize;
        let is_last = second + 1 == self.rows.len();
        let row = &mut self.rows[second];
        self.counts.end(&request.outcome);
        row.counts.end(&request.outcome);
        let quantile = if let Outcome::Ok { model } = request.outcome {
            self.latency.answer(latency);
            self.send_latency.answer(request.ended.saturating_sub(request.sent));
            row.latencies_us.push(latency_us);
            count_model(&mut self.models, model.as_deref().unwrap_or("(unnamed)"));
            Quantile::Answered(latency_us)
        } else {
            self.latency.miss(1);
            self.send_latency.miss(1);
            self.missed_us_max = self.missed_us_max.max(latency_us);
            Quantile::Missed
        };
        if quantile == Quantile::Missed || latency > self.counting.limit {
            self.over += 1;
        }
        if row.counts.outstanding() == 0 && !is_last {
            row.close();
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((request.ended, quantile));
    }

    /// What the live line shows at `elapsed`.
    pub(crate) fn snapshot(
        &mut self,
        elapsed: Duration,
        in_flight: usize,
        rate_rps_planned: f64,
    ) -> Snapshot {
        while self.recent.front().is_some_and(|(ended, _)| *ended + RECENT < elapsed) {
            self.recent.pop_front();
        }
        let answered = self.recent.iter().filter_map(|(_, quantile)| match quantile {
            Quantile::Answered(latency_us) => Some(*latency_us),
            Quantile::Missed => None,
        });
        let (mut answered_us, total) = (answered.collect::<Vec<_>>(), self.recent.len() as u64);
        Snapshot {
            elapsed,
            counts: self.counts.clone(),
            over: self.over,
            in_flight,
            rate_rps_planned,
            p50: quantile_of(&mut answered_us, total, 500),
            p99: quantile_of(&mut answered_us, total, 990),
        }
    }

    /// Ends the run at `elapsed`: requests still under way were cut off and count as failed.
    pub(crate) fn finish(&mut self, elapsed: Duration) {
        let outstanding = self.counts.outstanding();
        if outstanding > 0 {
            self.counts.fail(Failure::Aborted, outstanding);
            self.latency.miss(outstanding);
            self.send_latency.miss(outstanding);
            self.last_ended = elapsed;
        }
        for row in &mut self.rows {
            let outstanding = row.counts.outstanding();
            if outstanding > 0 {
                row.counts.fail(Failure::Aborted, outstanding);
            }
            // A row closed before has let its latencies go already.
            if row.p99.is_none() {
                row.close();
            }
        }
    }
}

fn count_model(models: &mut BTreeMap<String, u64>, name: &str) {
    if let Some(count) = models.get_mut(name) {
        *count += 1;
    } else if models.len() < MODELS_MAX {
        models.insert(name.to_owned(), 1);
    } else {
        *models.entry("(others)".to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn ended(due_ms: u64, latency_ms: u64, outcome: Outcome) -> Ended {
        Ended { due: ms(due_ms), sent: ms(due_ms + 1), ended: ms(due_ms + latency_ms), outcome }
    }

    fn ok() -> Outcome {
        Outcome::Ok { model: Some("net".into()) }
    }

    fn record(requests: &[(u64, u64, Outcome)]) -> Record {
        let mut record = Record::new(Counting::ALL).unwrap();
        for (due_ms, latency_ms, outcome) in requests {
            record.came_due(ms(*due_ms));
            record.ended(ended(*due_ms, *latency_ms, outcome.clone()));
        }
        record.finish(ms(60_000));
        record
    }

    #[test]
    fn a_miss_is_slower_than_every_answer_however_fast_it_came() {
        let mut requests: Vec<_> = (0..98).map(|at| (at, 100, ok())).collect();
        requests.push((98, 1, Outcome::Shed));
        requests.push((99, 1, Outcome::Failed(Failure::Connect)));
        let record = record(&requests);
        assert_eq!(record.latency.quantile(980), Some(Quantile::Answered(100_000)));
        assert_eq!(record.latency.quantile(990), Some(Quantile::Missed));
        assert_eq!(record.send_latency.quantile(990), Some(Quantile::Missed));
        assert_eq!(record.send_latency.quantile(500), Some(Quantile::Answered(99_000)));
        assert_eq!(record.rows[0].p99, Some(Quantile::Missed));
        assert_eq!(record.missed_us_max, 1000);
        assert_eq!(record.lag.slowest(), Some(Quantile::Answered(1000)));
    }

    #[test]
    fn a_request_belongs_to_the_second_in_which_it_was_due() {
        let record = record(&[(900, 5000, ok()), (2000, 10, Outcome::Shed), (2999, 20, ok())]);
        let counts = |row: &Row| (row.counts.sent, row.counts.ok, row.counts.failed(), row.counts.shed);
        let rows: Vec<_> = record.rows.iter().map(|row| (counts(row), row.p50, row.p99)).collect();
        let answered = |latency_us| Some(Quantile::Answered(latency_us));
        assert_eq!(
            rows,
            [
                ((1, 1, 0, 0), answered(5_000_000), answered(5_000_000)),
                ((0, 0, 0, 0), None, None),
                ((2, 1, 0, 1), answered(20_000), Some(Quantile::Missed)),
            ]
        );
        assert!(record.rows.iter().all(|row| row.latencies_us.capacity() == 0));
    }

    #[test]
    fn answers_that_come_after_their_second_still_count_in_it() {
        let mut record = Record::new(Counting::ALL).unwrap();
        record.came_due(ms(100));
        record.ended(ended(100, 10, ok()));
        record.came_due(ms(200));
        record.came_due(ms(1100));
        record.ended(ended(200, 3000, ok()));
        assert_eq!(record.rows[0].p99, Some(Quantile::Answered(3_000_000)));
        record.ended(ended(1100, 30, ok()));
        record.finish(ms(4000));
        assert_eq!(record.rows[0].p99, Some(Quantile::Answered(3_000_000)));
        assert_eq!(record.rows[1].p99, Some(Quantile::Answered(30_000)));
    }

    #[test]
    fn requests_that_never_ended_are_failed_as_aborted() {
        let mut record = Record::new(Counting::ALL).unwrap();
        record.came_due(ms(10));
        record.came_due(ms(20));
        record.ended(ended(10, 5, ok()));
        record.finish(ms(700));
        assert_eq!((record.counts.sent, record.counts.ok, record.counts.failed()), (2, 1, 1));
        assert_eq!(record.counts.failures[&Failure::Aborted], 1);
        assert_eq!(record.latency.slowest(), Some(Quantile::Missed));
        assert_eq!((record.rows[0].counts.failed(), record.rows[0].p99), (1, Some(Quantile::Missed)));
        assert_eq!(record.last_ended, ms(700));
    }

    #[test]
    fn names_that_a_target_makes_up_are_bounded() {
        let named = |index: u64| (index, 1, Outcome::Ok { model: Some(format!("m{index:03}").into()) });
        let record = record(&(0..100).map(named).collect::<Vec<_>>());
        assert_eq!(record.models.len(), MODELS_MAX + 1);
        assert_eq!(record.models["(others)"], 100 - MODELS_MAX as u64);
    }

    #[test]
    fn the_live_line_looks_back_a_few_seconds() {
        let mut record = record(&[(0, 10, ok()), (8000, 20, ok()), (8001, 30, ok())]);
        let snapshot = record.snapshot(ms(9000), 3, 5.0);
        assert_eq!(snapshot.p50, Some(Quantile::Answered(20_000)));
        assert_eq!(snapshot.p99, Some(Quantile::Answered(30_000)));
        assert_eq!((snapshot.counts.sent, snapshot.in_flight), (3, 3));
        assert_eq!(record.snapshot(ms(60_000), 0, 0.0).p50, None);
    }

    #[test]
    fn requests_that_warm_up_are_not_counted_and_slow_ones_are_counted_apart() {
        let mut record = Record::new(Counting { from: ms(1000), limit: ms(50) }).unwrap();
        for (due_ms, latency_ms, outcome) in
            [(999, 9000, ok()), (1000, 50, ok()), (1500, 51, ok()), (1600, 1, Outcome::Shed)]
        {
            record.came_due(ms(due_ms));
            record.ended(ended(due_ms, latency_ms, outcome));
        }
        assert_eq!((record.counts.sent, record.snapshot(ms(2000), 0, 0.0).over), (3, 2));
        record.finish(ms(3000));
        assert_eq!(record.latency.quantile(500), Some(Quantile::Answered(51_000)));
        assert_eq!((record.rows[0].counts.sent, record.last_ended), (0, ms(1601)));
    }
}
