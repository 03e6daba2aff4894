//! One second after the other for the last ten minutes: what the live page draws, and what tails are read from.
//!
//! **Invariant**: seconds are consecutive, and at most `seconds_max` that are over are kept beside the one under
//! way. Each takes at most [`Latencies::BYTES_MAX`] and a little, however busy it was.
use crate::logic::histogram::{Compact, Latencies, Tail};
use crate::monitor::sources::Totals;
use crate::net::wire::{Ended, Outcome, ReplicaState, Report, Span, WaitedMs, WorstSecond};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// What happened in one second. Latencies and gauges are `null` where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The second, counted from the monitor's start.
    pub t_s: u64,
    /// Median of the requests that ended in it, milliseconds; at most 0.8 % and 0.01 ms too high.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the requests that ended in it, milliseconds; as exact as the median.
    pub p99_ms: Option<f64>,
    /// Slowest, milliseconds.
    pub max_ms: Option<f64>,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Requests answered.
    pub ok: u64,
    /// Requests refused.
    pub shed: u64,
    /// Requests that failed, timed out or were given up.
    pub errors: u64,
    /// Requests over the promise: answered too late, refused, failed, timed out or given up.
    pub over_promise: u64,
    /// Requests on replicas at its end; `null` where no dispatcher reports.
    pub in_flight: Option<u32>,
    /// Requests waiting for a slot at its end.
    pub queue_depth: Option<u32>,
    /// Replicas that take requests at its end.
    pub replicas_ready: Option<u32>,
    /// Replicas that are starting at its end.
    pub replicas_starting: Option<u32>,
    /// Replicas that finish what they have, at its end.
    pub replicas_draining: Option<u32>,
    /// Slots of the replicas that take requests, at its end.
    pub slots: Option<u32>,
}

/// Limits of a [`History`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Seconds kept that are over.
    pub(super) seconds_max: usize,
    /// Least latency that a miss reads as, milliseconds.
    pub(super) promise_ms: f64,
}

/// What was counted in one or more seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    arrivals: u64,
    ok: u64,
    shed: u64,
    errors: u64,
    waits: u64,
    waited_ms_sum: f64,
    waited_ms_max: f64,
}

impl Counts {
    fn ended(&mut self, ended: &Ended) {
        match ended.outcome {
            Outcome::Ok => self.ok += 1,
            Outcome::Shed => self.shed += 1,
            Outcome::Error | Outcome::Timeout | Outcome::Aborted => self.errors += 1,
        }
        if let Some(waited_ms) = ended.waited_ms {
            self.waits += 1;
            self.waited_ms_sum += waited_ms;
            self.waited_ms_max = self.waited_ms_max.max(waited_ms);
        }
    }

    fn add(&mut self, other: &Self) {
        self.arrivals = self.arrivals.saturating_add(other.arrivals);
        self.ok += other.ok;
        self.shed += other.shed;
        self.errors += other.errors;
        self.waits += other.waits;
        self.waited_ms_sum += other.waited_ms_sum;
        self.waited_ms_max = self.waited_ms_max.max(other.waited_ms_max);
    }

    fn waited_ms(&self) -> Option<WaitedMs> {
        let mean = self.waited_ms_sum / self.waits as f64;
        (self.waits > 0).then_some(WaitedMs { mean, max: self.waited_ms_max })
    }
}

/// A second that is over.
#[derive(Debug)]
struct Second {
    point: Point,
    counts: Counts,
    latencies: Compact,
}

/// The seconds that are over and the one under way.
#[derive(Debug)]
pub(super) struct History {
    limits: Limits,
    over: VecDeque<Second>,
    second: u64,
    counts: Counts,
    latencies: Latencies,
}

impl History {
    /// Starts with second 0 under way.
    pub(super) fn new(limits: Limits) -> Self {
        let latencies = Latencies::new(limits.promise_ms);
        Self { limits, over: VecDeque::new(), second: 0, counts: Counts::default(), latencies }
    }

    /// Counts a report into the second under way; [`History::advance`] comes first.
    pub(super) fn record(&mut self, report: &Report) {
        self.counts.arrivals = self.counts.arrivals.saturating_add(report.arrivals);
        for ended in &report.ended {
            self.counts.ended(ended);
            self.latencies.record(ended.latency_ms, ended.outcome.is_miss());
        }
    }

    /// Closes every second that is over at `now`. `totals` tells the gauges at a time; it is asked for the end
    /// of each closed second, before anything newer is recorded.
    pub(super) fn advance(&mut self, now: Duration, totals: impl Fn(Duration) -> Totals) {
        let second_now = now.as_secs();
        if second_now <= self.second {
            return;
        }
        // After a long silence only the seconds that are still kept are worth a point.
        let oldest_kept = second_now.saturating_sub(self.limits.seconds_max as u64);
        for second in self.second.max(oldest_kept)..second_now {
            let totals = totals(Duration::from_secs(second + 1));
            let closed = if second == self.second { self.under_way() } else { Second::silent(second) };
            self.over.push_back(Second { point: closed.point.with_gauges(&totals), ..closed });
        }
        let excess = self.over.len().saturating_sub(self.limits.seconds_max);
        self.over.drain(..excess);
        self.latencies.clear();
        (self.second, self.counts) = (second_now, Counts::default());
    }

    /// The points of the seconds after `since`, or all of them, oldest first.
    pub(super) fn since(&self, since: Option<u64>) -> Vec<Point> {
        let start = since.map_or(0, |since| self.position(since.saturating_add(1)));
        self.over.range(start..).map(|second| second.point).collect()
    }

    /// The oldest second that is kept, the one under way included.
    pub(super) fn oldest_s(&self) -> u64 {
        self.over.front().map_or(self.second, |second| second.point.t_s)
    }

    /// What the seconds from `from_s` on say together, the one under way included, at `now`.
    pub(super) fn span(&self, now: Duration, from_s: u64) -> Span {
        let from_s = from_s.clamp(self.oldest_s(), self.second);
        let (mut counts, mut latencies) = (self.counts, self.latencies.clone());
        for second in self.over.range(self.position(from_s)..) {
            counts.add(&second.counts);
            latencies.add(&second.latencies);
        }
        let (tail, over_promise) = (latencies.tail(), latencies.over_promise());
        Span {
            from_s,
            seconds: now.saturating_sub(Duration::from_secs(from_s)).as_secs_f64(),
            samples: latencies.samples(),
            p50_ms: tail.map(|tail| tail.p50_ms),
            p90_ms: tail.map(|tail| tail.p90_ms),
            p95_ms: tail.map(|tail| tail.p95_ms),
            p99_ms: tail.map(|tail| tail.p99_ms),
            p99_ci_ms: tail.and_then(|tail| tail.p99_ci_ms),
            max_ms: tail.map(|tail| tail.max_ms),
            mean_ms: tail.map(|tail| tail.mean_ms),
            arrivals: counts.arrivals,
            answered: counts.ok,
            shed: counts.shed,
            errors: counts.errors,
            over_promise,
            over_promise_share: tail.map(|tail| over_promise as f64 / tail.samples as f64),
            waited_ms: counts.waited_ms(),
        }
    }

    /// The worst second from `from_s` on, the one under way included; nothing when no request ended.
    pub(super) fn worst(&self, from_s: u64) -> Option<WorstSecond> {
        let over = self.over.range(self.position(from_s)..).filter_map(|second| second.point.as_worst());
        let under_way = self.under_way_point().as_worst();
        over.chain(under_way)
            .max_by(|a, b| a.p99_ms.total_cmp(&b.p99_ms).then(a.over_promise.cmp(&b.over_promise)))
    }

    /// Where the second `t_s` is, or would be, among those that are over.
    fn position(&self, t_s: u64) -> usize {
        self.over.partition_point(|second| second.point.t_s < t_s)
    }

    fn under_way(&self) -> Second {
        let point = self.under_way_point();
        Second { point, counts: self.counts, latencies: self.latencies.compact() }
    }

    fn under_way_point(&self) -> Point {
        let tail: Option<Tail> = self.latencies.tail();
        Point {
            t_s: self.second,
            p50_ms: tail.map(|tail| tail.p50_ms),
            p99_ms: tail.map(|tail| tail.p99_ms),
            max_ms: tail.map(|tail| tail.max_ms),
            arrivals: self.counts.arrivals,
            ok: self.counts.ok,
            shed: self.counts.shed,
            errors: self.counts.errors,
            over_promise: self.latencies.over_promise(),
            ..Point::default()
        }
    }
}

impl Second {
    fn silent(t_s: u64) -> Self {
        let point = Point { t_s, ..Point::default() };
        Self { point, counts: Counts::default(), latencies: Compact::default() }
    }
}

impl Point {
    fn as_worst(&self) -> Option<WorstSecond> {
        Some(WorstSecond {
            t_s: self.t_s,
            samples: self.ok + self.shed + self.errors,
            p99_ms: self.p99_ms?,
            max_ms: self.max_ms?,
            over_promise: self.over_promise,
        })
    }

    fn with_gauges(self, totals: &Totals) -> Self {
        if totals.sources == 0 {
            return self;
        }
        Self {
            in_flight: Some(totals.in_flight),
            queue_depth: Some(totals.queue_depth),
            replicas_ready: Some(totals.replicas_in(ReplicaState::Ready)),
            replicas_starting: Some(totals.replicas_in(ReplicaState::Starting)),
            replicas_draining: Some(totals.replicas_in(ReplicaState::Draining)),
            slots: Some(totals.slots),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(seconds_max: usize) -> History {
        History::new(Limits { seconds_max, promise_ms: 500.0 })
    }

    fn report(outcomes: &[(Outcome, f64)]) -> Report {
        let ended = outcomes.iter().map(|&(outcome, latency_ms)| Ended {
            outcome,
            latency_ms,
            waited_ms: None,
            service_ms: None,
        });
        Report { arrivals: outcomes.len() as u64, ended: ended.collect(), ..Report::default() }
    }

    fn one_source(in_flight: u32) -> Totals {
        Totals { sources: 1, in_flight, slots: 4, ..Totals::default() }
    }

    #[test]
    fn a_second_gets_its_point_when_it_is_over() {
        let mut history = history(10);
        history.record(&report(&[(Outcome::Ok, 20.0), (Outcome::Shed, 0.1), (Outcome::Timeout, 900.0)]));
        history.advance(Duration::from_millis(999), |_| one_source(2));
        assert!(history.since(None).is_empty());
        history.advance(Duration::from_secs(1), |_| one_source(2));
        let [point] = history.since(None)[..] else { panic!("one point") };
        assert_eq!((point.t_s, point.arrivals, point.ok, point.shed, point.errors), (0, 3, 1, 1, 1));
        assert_eq!((point.p50_ms, point.p99_ms), (Some(500.0), Some(900.0)));
        assert_eq!((point.in_flight, point.slots, point.replicas_ready), (Some(2), Some(4), Some(0)));
    }

    #[test]
    fn silent_seconds_have_no_latency_and_no_gauges_once_the_dispatcher_is_gone() {
        let mut history = history(10);
        history.record(&report(&[(Outcome::Ok, 20.0)]));
        let totals = |at: Duration| if at.as_secs() <= 2 { one_source(1) } else { Totals::default() };
        history.advance(Duration::from_secs(4), totals);
        let points = history.since(Some(0));
        assert_eq!(points.iter().map(|point| point.t_s).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(points.iter().all(|point| point.p99_ms.is_none() && point.arrivals == 0));
        assert_eq!(points.iter().map(|point| point.in_flight).collect::<Vec<_>>(), [Some(1), None, None]);
    }

    #[test]
    fn points_are_bounded_however_long_the_silence() {
        let mut history = history(5);
        history.record(&report(&[(Outcome::Ok, 20.0)]));
        history.advance(Duration::from_secs(1), |_| one_source(1));
        history.advance(Duration::from_secs(1_000_000), |_| Totals::default());
        let seconds: Vec<u64> = history.since(None).iter().map(|point| point.t_s).collect();
        assert_eq!(seconds, [999_995, 999_996, 999_997, 999_998, 999_999]);
        assert!(history.since(Some(u64::MAX)).is_empty());
    }

    /// Closes the second under way and starts the next.
    fn next_second(history: &mut History) {
        history.advance(Duration::from_secs(history.second + 1), |_| one_source(1));
    }

    #[test]
    fn seconds_add_up_and_the_worst_is_found() {
        let mut history = history(10);
        for latency_ms in [20.0, 700.0, 30.0] {
            history.record(&report(&[(Outcome::Ok, latency_ms), (Outcome::Ok, 10.0)]));
            next_second(&mut history);
        }
        history.record(&report(&[(Outcome::Shed, 0.1), (Outcome::Ok, 10.0)]));
        let now = Duration::from_millis(3500);
        let all = history.span(now, 0);
        assert_eq!((all.from_s, all.seconds, all.samples, all.arrivals), (0, 3.5, 8, 8));
        assert_eq!((all.answered, all.shed, all.over_promise), (7, 1, 2));
        assert_eq!((all.max_ms, all.over_promise_share), (Some(700.0), Some(0.25)));
        assert!(all.p50_ms.is_some_and(|p50_ms| (10.0..10.1).contains(&p50_ms)), "{all:?}");
        let worst = history.worst(0).unwrap();
        assert_eq!((worst.t_s, worst.p99_ms, worst.samples, worst.over_promise), (1, 700.0, 2, 1));
        // After the bad second the one under way is the worst.
        assert_eq!(history.worst(2).unwrap(), WorstSecond { t_s: 3, p99_ms: 500.0, max_ms: 500.0, ..worst });
        let last = history.span(now, 3);
        assert_eq!((last.from_s, last.samples, last.max_ms), (3, 2, Some(500.0)));
        // What is not kept, and what has not come yet, is left out.
        assert_eq!((history.span(now, 99).from_s, history.span(now, 99).samples), (3, 2));
    }

    #[test]
    fn an_idle_span_has_no_percentiles() {
        let mut history = history(2);
        next_second(&mut history);
        let span = history.span(Duration::from_secs(1), 0);
        assert_eq!(span, Span { seconds: 1.0, ..Span::default() });
        assert_eq!(history.worst(0), None);
    }

    #[test]
    fn waits_are_over_those_that_got_a_slot() {
        let mut history = history(10);
        let mut waited = report(&[(Outcome::Ok, 20.0), (Outcome::Ok, 20.0), (Outcome::Shed, 0.1)]);
        (waited.ended[0].waited_ms, waited.ended[1].waited_ms) = (Some(4.0), Some(0.0));
        history.record(&waited);
        next_second(&mut history);
        let span = history.span(Duration::from_secs(1), 0);
        assert_eq!(span.waited_ms, Some(WaitedMs { mean: 2.0, max: 4.0 }));
    }

    #[test]
    fn what_lies_beyond_the_horizon_is_forgotten() {
        let mut history = history(3);
        history.record(&report(&[(Outcome::Ok, 900.0)]));
        for _ in 0..3 {
            next_second(&mut history);
        }
        assert_eq!((history.oldest_s(), history.worst(0).map(|worst| worst.t_s)), (0, Some(0)));
        next_second(&mut history);
        assert_eq!((history.oldest_s(), history.worst(0)), (1, None));
        assert_eq!(history.span(Duration::from_secs(4), 0).samples, 0);
    }
}
