//! What became of the requests: counts, latencies, lag, and one row a second.
//!
//! Percentiles are over every request that came due. One that failed or was shed counts as slower than every
//! answered one: only answered latencies go into the histograms, and a percentile whose rank lies beyond
//! them is [`Quantile::Missed`].
//!
//! **Invariant**: `ok + failed + shed <= sent` while the run lasts, and equal once it is over.
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Largest latency that a histogram tells apart, microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Most model names that are counted apart; a target that makes up names must not fill the memory.
const MODELS_MAX: usize = 16;
/// What the live line looks back on: ended requests of so long ago, and at most so many.
const RECENT: Duration = Duration::from_secs(5);
const RECENT_MAX: usize = 4096;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No whole answer within the time-out.
    Timeout,
    /// No connection.
    Connect,
    /// The connection broke.
    Transport,
    /// The answer is larger than allowed.
    AnswerTooLarge,
    /// An answer with a status that is neither a success nor 503.
    Status(u16),
    /// Too many requests were in flight to send this one.
    Cap,
}

impl Failure {
    /// Name in the report.
    fn kind(self) -> String {
        match self {
            Self::Timeout => "timeout".to_owned(),
            Self::Connect => "connect".to_owned(),
            Self::Transport => "transport".to_owned(),
            Self::AnswerTooLarge => "answer_too_large".to_owned(),
            Self::Status(status) => format!("http_{status}"),
            Self::Cap => "cap".to_owned(),
        }
    }
}

/// Name in the report of requests that a second signal cut off.
const ABORTED: &str = "aborted";

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered with a success.
    Ok {
        /// The network that the answer names.
        model: Option<Box<str>>,
    },
    /// Refused with 503.
    Shed,
    /// Anything else.
    Failed(Failure),
}

/// A request that ended; instants since the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// When it was due.
    pub(crate) due: Duration,
    /// When it was handed to the HTTP client, or refused for the cap.
    pub(crate) sent: Duration,
    /// When its answer was there as a whole.
    #[allow(clippy::struct_field_names)] // due, sent, ended: the three instants of a request
    pub(crate) ended: Duration,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// A percentile of latencies in which misses are slower than every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantile {
    /// The latency of an answered request, microseconds.
    Answered(u64),
    /// A request that failed or was shed.
    Missed,
}

/// Latencies of answered requests, microseconds to 3 digits, and the number of requests without one.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    answered: Histogram<u64>,
    answered_us_max: u64,
    misses: u64,
}

impl Latencies {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            answered: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            answered_us_max: 0,
            misses: 0,
        })
    }

    fn answer(&mut self, latency: Duration) {
        let latency_us = microseconds(latency);
        self.answered.saturating_record(latency_us);
        self.answered_us_max = self.answered_us_max.max(latency_us);
    }

    fn total(&self) -> u64 {
        self.answered.len() + self.misses
    }

    /// The slowest answer, exact, microseconds; 0 where there is none.
    pub(crate) fn answered_us_max(&self) -> u64 {
        self.answered_us_max
    }

    /// The smallest latency that at least `per_mille` thousandths of the requests keep; `None` without any.
    pub(crate) fn quantile(&self, per_mille: u64) -> Option<Quantile> {
        let rank = rank(self.total(), per_mille)?;
        if rank > self.answered.len() {
            return Some(Quantile::Missed);
        }
        let mut seen = 0;
        for step in self.answered.iter_recorded() {
            seen += step.count_since_last_iteration();
            if seen >= rank {
                // A bucket reads as its upper end, which may lie over the slowest value in it.
                let upper = self.answered.highest_equivalent(step.value_iterated_to());
                return Some(Quantile::Answered(upper.min(self.answered_us_max)));
            }
        }
        Some(Quantile::Answered(self.answered_us_max))
    }

    /// The slowest request; `None` without any.
    pub(crate) fn slowest(&self) -> Option<Quantile> {
        self.quantile(1000)
    }
}

/// Rank, from 1, of a percentile among `total` values; `None` without any.
fn rank(total: u64, per_mille: u64) -> Option<u64> {
    (total > 0).then(|| (u128::from(total) * u128::from(per_mille)).div_ceil(1000).max(1) as u64)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The requests that were due within one second of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Requests that came due.
    pub(crate) sent: u64,
    /// Those answered.
    pub(crate) ok: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Those refused with 503.
    pub(crate) shed: u64,
    /// 99th percentile of their latencies from the scheduled instant, once all of them ended.
    pub(crate) p99: Option<Quantile>,
    /// Answered latencies until then, microseconds.
    latencies_us: Vec<u64>,
}

impl Row {
    fn outstanding(&self) -> u64 {
        self.sent - self.ok - self.failed - self.shed
    }

    /// Keeps the percentile and lets the latencies go, so that a long run stays small.
    fn close(&mut self) {
        let latencies_us = std::mem::take(&mut self.latencies_us);
        self.p99 = quantile_of(latencies_us, self.sent, 990);
    }
}

/// A percentile of `total` requests of which those in `answered_us` were answered.
fn quantile_of(mut answered_us: Vec<u64>, total: u64, per_mille: u64) -> Option<Quantile> {
    let index = rank(total, per_mille)? as usize - 1;
    if index >= answered_us.len() {
        return Some(Quantile::Missed);
    }
    let (_, value, _) = answered_us.select_nth_unstable(index);
    Some(Quantile::Answered(*value))
}

/// What the live line shows; instants since the start of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Now.
    pub(crate) elapsed: Duration,
    /// Requests that came due.
    pub(crate) sent: u64,
    /// Those answered.
    pub(crate) ok: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Those refused with 503.
    pub(crate) shed: u64,
    /// Those under way.
    pub(crate) in_flight: usize,
    /// The rate planned now, requests a second.
    pub(crate) rate_rps_planned: f64,
    recent_answered_us: Vec<u64>,
    recent: u64,
}

impl Snapshot {
    /// A percentile over what ended in the last seconds.
    pub(crate) fn quantile(&self, per_mille: u64) -> Option<Quantile> {
        quantile_of(self.recent_answered_us.clone(), self.recent, per_mille)
    }
}

/// Collects what became of the requests of one run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Requests that came due, also those that the cap kept from being sent.
    pub(crate) sent: u64,
    /// Those answered.
    pub(crate) ok: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Those refused with 503.
    pub(crate) shed: u64,
    /// From the scheduled instant to the end of the answer.
    pub(crate) latency: Latencies,
    /// From the actual send to the end of the answer.
    pub(crate) send_latency: Latencies,
    /// From the scheduled instant to the actual send, microseconds.
    pub(crate) lag: Latencies,
    /// Longest that a failed or shed request took from its scheduled instant, microseconds.
    pub(crate) missed_us_max: u64,
    /// Failed requests by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Answered requests by the model that the answer names.
    pub(crate) models: BTreeMap<String, u64>,
    /// One row a second of the run.
    pub(crate) rows: Vec<Row>,
    /// When the last request ended, since the start of the run.
    pub(crate) last_ended: Duration,
    recent: VecDeque<(Duration, Quantile)>,
}

impl Record {
    /// An empty record.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            sent: 0,
            ok: 0,
            failed: 0,
            shed: 0,
            latency: Latencies::new()?,
            send_latency: Latencies::new()?,
            lag: Latencies::new()?,
            missed_us_max: 0,
            failures: BTreeMap::new(),
            models: BTreeMap::new(),
            rows: Vec::new(),
            last_ended: Duration::ZERO,
            recent: VecDeque::new(),
        })
    }

    /// Counts a request whose instant came.
    pub(crate) fn came_due(&mut self, due: Duration) {
        let second = due.as_secs() as usize;
        if second >= self.rows.len() {
            if let Some(row) = self.rows.last_mut().filter(|row| row.outstanding() == 0) {
                row.close();
            }
            self.rows.resize(second + 1, Row::default());
        }
        self.sent += 1;
        self.rows[second].sent += 1;
    }

    /// Counts a request that ended; [`Record::came_due`] counted it before.
    pub(crate) fn ended(&mut self, request: Ended) {
        let latency = request.ended.saturating_sub(request.due);
        self.lag.answer(request.sent.saturating_sub(request.due));
        self.last_ended = self.last_ended.max(request.ended);
        let second = request.due.as_secs() as usize;
        let is_last = second + 1 == self.rows.len();
        let row = &mut self.rows[second];
        let answered = matches!(request.outcome, Outcome::Ok { .. });
        match request.outcome {
            Outcome::Ok { model } => {
                self.latency.answer(latency);
                self.send_latency.answer(request.ended.saturating_sub(request.sent));
                self.ok += 1;
                row.ok += 1;
                row.latencies_us.push(microseconds(latency));
                count_model(&mut self.models, model.as_deref().unwrap_or("(unnamed)"));
            }
            Outcome::Shed => {
                self.shed += 1;
                row.shed += 1;
            }
            Outcome::Failed(failure) => {
                self.failed += 1;
                row.failed += 1;
                *self.failures.entry(failure.kind()).or_default() += 1;
            }
        }
        if row.outstanding() == 0 && !is_last {
            row.close();
        }
        if !answered {
            self.latency.misses += 1;
            self.send_latency.misses += 1;
            self.missed_us_max = self.missed_us_max.max(microseconds(latency));
        }
        let quantile = if answered { Quantile::Answered(microseconds(latency)) } else { Quantile::Missed };
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
        Snapshot {
            elapsed,
            sent: self.sent,
            ok: self.ok,
            failed: self.failed,
            shed: self.shed,
            in_flight,
            rate_rps_planned,
            recent_answered_us: answered.collect(),
            recent: self.recent.len() as u64,
        }
    }

    /// Ends the run at `elapsed`: requests still under way were cut off and count as failed.
    pub(crate) fn finish(&mut self, elapsed: Duration) {
        let outstanding: u64 = self.rows.iter().map(Row::outstanding).sum();
        if outstanding > 0 {
            self.failed += outstanding;
            self.latency.misses += outstanding;
            self.send_latency.misses += outstanding;
            self.failures.insert(ABORTED.to_owned(), outstanding);
            self.last_ended = elapsed;
        }
        for row in &mut self.rows {
            row.failed += row.outstanding();
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
    use proptest::prelude::*;

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
        let mut record = Record::new().unwrap();
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
    fn no_request_has_no_percentile() {
        let record = record(&[]);
        assert_eq!((record.latency.quantile(990), record.latency.slowest()), (None, None));
        assert!(record.rows.is_empty());
    }

    #[test]
    fn a_request_belongs_to_the_second_in_which_it_was_due() {
        let record = record(&[(900, 5000, ok()), (2000, 10, Outcome::Shed), (2999, 20, ok())]);
        let rows: Vec<_> =
            record.rows.iter().map(|row| (row.sent, row.ok, row.failed, row.shed, row.p99)).collect();
        assert_eq!(
            rows,
            [
                (1, 1, 0, 0, Some(Quantile::Answered(5_000_000))),
                (0, 0, 0, 0, None),
                (2, 1, 0, 1, Some(Quantile::Missed)),
            ]
        );
        assert!(record.rows.iter().all(|row| row.latencies_us.capacity() == 0));
    }

    #[test]
    fn answers_that_come_after_their_second_still_count_in_it() {
        let mut record = Record::new().unwrap();
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
        let mut record = Record::new().unwrap();
        record.came_due(ms(10));
        record.came_due(ms(20));
        record.ended(ended(10, 5, ok()));
        record.finish(ms(700));
        assert_eq!((record.sent, record.ok, record.failed), (2, 1, 1));
        assert_eq!(record.failures["aborted"], 1);
        assert_eq!(record.latency.slowest(), Some(Quantile::Missed));
        assert_eq!((record.rows[0].failed, record.rows[0].p99), (1, Some(Quantile::Missed)));
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
        assert_eq!(snapshot.quantile(500), Some(Quantile::Answered(20_000)));
        assert_eq!(snapshot.quantile(990), Some(Quantile::Answered(30_000)));
        assert_eq!((snapshot.sent, snapshot.in_flight), (3, 3));
        assert_eq!(record.snapshot(ms(60_000), 0, 0.0).quantile(500), None);
    }

    proptest! {
        #[test]
        fn percentiles_agree_with_sorting_to_three_digits(
            latencies_ms in prop::collection::vec(prop::option::weighted(0.9, 1u64..100_000), 1..200),
        ) {
            let requests: Vec<_> = latencies_ms.iter().map(|latency_ms| match latency_ms {
                Some(latency_ms) => (0, *latency_ms, ok()),
                None => (0, 1, Outcome::Shed),
            }).collect();
            let record = record(&requests);
            let mut sorted: Vec<u64> = latencies_ms.iter().map(|l| l.map_or(u64::MAX, |ms| ms * 1000)).collect();
            sorted.sort_unstable();
            for per_mille in [500, 900, 990, 999, 1000] {
                let index = (sorted.len() as u64 * per_mille).div_ceil(1000) as usize - 1;
                match record.latency.quantile(per_mille).unwrap() {
                    Quantile::Missed => prop_assert_eq!(sorted[index], u64::MAX),
                    // Never below the true value, and at most a thousandth above.
                    Quantile::Answered(us) => {
                        prop_assert!(us >= sorted[index] && us <= sorted[index] + sorted[index] / 1000 + 1);
                    }
                }
            }
        }
    }
}
