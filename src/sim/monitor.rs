//! What the monitor would know: reports of the dispatcher come a few times a second.
use crate::logic::policy::Traffic;
use crate::logic::rates::Rates;
use crate::logic::window::{Limits, Sample, Window};
use std::time::Duration;

/// What the dispatcher has not reported yet.
#[derive(Debug, Default)]
struct Pending {
    arrivals: u64,
    ended: Vec<Sample>,
}

/// What the queue says at the time of a report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gauges {
    pub(super) waiting: u32,
    pub(super) slots: u32,
}

#[derive(Debug)]
pub(super) struct Monitor {
    target_ms: f64,
    window: Window,
    rates: Rates,
    pending: Pending,
    gauges: Gauges,
    reported_at: Option<Duration>,
    ended: u64,
    missed: u64,
    /// Slot-seconds that were held by answered requests since the last look.
    busy_s: f64,
    looked_at: Duration,
}

impl Monitor {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            target_ms: limits.promise_ms,
            window: Window::new(limits),
            rates: Rates::default(),
            pending: Pending::default(),
            gauges: Gauges::default(),
            reported_at: None,
            ended: 0,
            missed: 0,
            busy_s: 0.0,
            looked_at: Duration::ZERO,
        }
    }

    pub(super) fn arrived(&mut self) {
        self.pending.arrivals += 1;
    }

    pub(super) fn ended(&mut self, sample: Sample) {
        self.pending.ended.push(sample);
    }

    /// Slots were held for so long together.
    pub(super) fn busy(&mut self, slots: u32, time_s: f64) {
        self.busy_s += f64::from(slots) * time_s;
    }

    pub(super) fn report(&mut self, now: Duration, gauges: Gauges) {
        let answered = self.pending.ended.iter().filter(|sample| !sample.miss).count() as u64;
        self.rates.record(now, self.pending.arrivals, answered);
        self.pending.arrivals = 0;
        for sample in self.pending.ended.drain(..) {
            self.ended += 1;
            self.missed += u64::from(sample.is_preventable_miss(self.target_ms));
            self.window.record(now, sample);
        }
        self.gauges = gauges;
        self.reported_at = Some(now);
    }

    /// What an autoscaler is told.
    pub(super) fn traffic(&mut self, now: Duration) -> Traffic {
        self.window.forget(now);
        let summary = self.window.summary(now);
        let since_look_s = now.saturating_sub(self.looked_at).as_secs_f64();
        let busy = if since_look_s > 0.0 { self.busy_s / since_look_s } else { 0.0 };
        (self.busy_s, self.looked_at) = (0.0, now);
        let age = self.reported_at.map(|at| now.saturating_sub(at).as_secs_f64());
        Traffic {
            age_s: age.unwrap_or(f64::INFINITY),
            samples: summary.map_or(0, |summary| summary.samples),
            p99_ms: summary.map(|summary| summary.p99_ms),
            arrivals: self.rates.arrivals(now),
            arrivals_known_s: self.rates.known(now).as_secs_f64(),
            service: summary.and_then(|summary| summary.service),
            busy,
            waiting: self.gauges.waiting,
            slots: self.gauges.slots,
            ended: self.ended,
            missed: self.missed,
        }
    }
}
