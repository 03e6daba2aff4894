//! One point a second for the last ten minutes: what the live page draws.
//!
//! **Invariant**: points are consecutive whole seconds, at most `seconds_max` of them, and only seconds that
//! are over have one. The samples of the second under way are at most `samples_max`.
use crate::logic::window::{Sample, summarise};
use crate::monitor::sources::Totals;
use crate::net::wire::{Outcome, ReplicaState, Report};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// What happened in one second. Latencies and gauges are `null` where nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The second, counted from the monitor's start.
    pub t_s: u64,
    /// Median of the requests that ended in it, milliseconds.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the requests that ended in it, milliseconds.
    pub p99_ms: Option<f64>,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Requests answered.
    pub ok: u64,
    /// Requests refused.
    pub shed: u64,
    /// Requests that failed, timed out or were given up.
    pub errors: u64,
    /// Requests on replicas at its end; `null` where no dispatcher reports.
    pub in_flight: Option<u32>,
    /// Requests waiting for a slot at its end.
    pub queue_depth: Option<u32>,
    /// Replicas that take requests at its end.
    pub replicas_ready: Option<u32>,
    /// Replicas that are starting at its end.
    pub replicas_starting: Option<u32>,
    /// Slots of the replicas that take requests, at its end.
    pub slots: Option<u32>,
}

/// Limits of a [`History`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Points kept.
    pub(super) seconds_max: usize,
    /// Samples kept of the second under way; the oldest make room.
    pub(super) samples_max: usize,
    /// Least latency that a miss reads as, milliseconds.
    pub(super) promise_ms: f64,
}

/// The seconds that are over and the one under way.
#[derive(Debug)]
pub(super) struct History {
    limits: Limits,
    points: VecDeque<Point>,
    second: u64,
    arrivals: u64,
    ok: u64,
    shed: u64,
    errors: u64,
    samples: VecDeque<Sample>,
}

impl History {
    /// Starts with second 0 under way.
    pub(super) fn new(limits: Limits) -> Self {
        let samples = VecDeque::new();
        Self { limits, points: VecDeque::new(), second: 0, arrivals: 0, ok: 0, shed: 0, errors: 0, samples }
    }

    /// Counts a report into the second under way; [`History::advance`] comes first.
    pub(super) fn record(&mut self, report: &Report) {
        self.arrivals = self.arrivals.saturating_add(report.arrivals);
        for ended in &report.ended {
            match ended.outcome {
                Outcome::Ok => self.ok += 1,
                Outcome::Shed => self.shed += 1,
                Outcome::Error | Outcome::Timeout | Outcome::Aborted => self.errors += 1,
            }
            if self.samples.len() >= self.limits.samples_max {
                self.samples.pop_front();
            }
            self.samples.push_back(super::state::sample(ended));
        }
    }

    /// Closes every second that is over at `now`. `totals` tells the gauges at a time; it is asked for the end
    /// of each closed second, before anything newer is recorded.
    pub(super) fn advance(&mut self, now: Duration, totals: impl Fn(Duration) -> Totals) {
        let second_now = now.as_secs();
        if second_now <= self.second {
            return;
        }
        let under_way = self.second;
        // After a long silence only the seconds that are still kept are worth a point.
        let oldest_kept = second_now.saturating_sub(self.limits.seconds_max as u64);
        for second in under_way.max(oldest_kept)..second_now {
            let point = if second == under_way { self.counted() } else { Point::empty(second) };
            let totals = totals(Duration::from_secs(second + 1));
            self.points.push_back(point.with_gauges(&totals));
        }
        let excess = self.points.len().saturating_sub(self.limits.seconds_max);
        self.points.drain(..excess);
        self.samples.clear();
        (self.second, self.arrivals, self.ok, self.shed, self.errors) = (second_now, 0, 0, 0, 0);
    }

    /// The points of the seconds after `since`, or all of them, oldest first.
    pub(super) fn since(&self, since: Option<u64>) -> Vec<Point> {
        let start = since.map_or(0, |since| self.points.partition_point(|point: &Point| point.t_s <= since));
        self.points.range(start..).copied().collect()
    }

    fn counted(&self) -> Point {
        let summary = summarise(self.samples.iter(), self.limits.promise_ms);
        Point {
            p50_ms: summary.map(|summary| summary.p50_ms),
            p99_ms: summary.map(|summary| summary.p99_ms),
            arrivals: self.arrivals,
            ok: self.ok,
            shed: self.shed,
            errors: self.errors,
            ..Point::empty(self.second)
        }
    }
}

impl Point {
    fn empty(t_s: u64) -> Self {
        Self {
            t_s,
            p50_ms: None,
            p99_ms: None,
            arrivals: 0,
            ok: 0,
            shed: 0,
            errors: 0,
            in_flight: None,
            queue_depth: None,
            replicas_ready: None,
            replicas_starting: None,
            slots: None,
        }
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
            slots: Some(totals.slots),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::wire::Ended;

    fn history(seconds_max: usize) -> History {
        History::new(Limits { seconds_max, samples_max: 3, promise_ms: 500.0 })
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

    #[test]
    fn only_the_latest_samples_of_a_busy_second_are_kept_but_all_are_counted() {
        let mut history = history(5);
        history.record(&report(&[
            (Outcome::Ok, 9.0),
            (Outcome::Ok, 1.0),
            (Outcome::Ok, 2.0),
            (Outcome::Ok, 3.0),
        ]));
        history.advance(Duration::from_secs(1), |_| one_source(1));
        let point = history.since(None)[0];
        assert_eq!((point.ok, point.p50_ms, point.p99_ms), (4, Some(2.0), Some(3.0)));
    }
}
