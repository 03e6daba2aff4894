//! What a run found: as a table for people, as JSON for programs, and the verdict on the promise.
//!
//! **Invariant**: a miss never flatters. A percentile that falls on a failed or shed request reads as the
//! longest of the time-out, the slowest answer and the slowest miss.
use crate::load::Args;
use crate::load::fleet::Seen;
use crate::load::latencies::{Latencies, Quantile};
use crate::load::outcome::Failure;
use crate::load::record::{Record, Row};
use crate::logic::arrivals::Plan;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What was planned; two runs of the same plan can be compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Planned {
    /// The shape or the file.
    pub(crate) schedule: String,
    /// `even` or `poisson`.
    pub(crate) arrivals: &'static str,
    /// Of random arrivals.
    pub(crate) seed: Option<u64>,
    /// Whether the rate goes in straight lines from line to line.
    pub(crate) interpolate: bool,
    /// Divided how long it lasts.
    pub(crate) speed: f64,
    /// Multiplied every rate.
    pub(crate) scale: f64,
    /// How long it lasts, seconds.
    pub(crate) duration_s: f64,
    /// The integral of the rate.
    pub(crate) requests_expected: f64,
}

impl Planned {
    /// What the flags say about `plan`.
    pub(crate) fn new(args: &Args, plan: &Plan) -> Self {
        let arrivals = args.arrivals();
        Self {
            schedule: args.played(),
            arrivals: arrivals.name(),
            seed: (arrivals == crate::load::args::Arrivals::Poisson).then_some(args.seed),
            interpolate: args.interpolate,
            speed: args.speed,
            scale: args.scale,
            duration_s: plan.duration().as_secs_f64(),
            requests_expected: plan.requests_expected(),
        }
    }
}

/// What a run is judged by, and what was known of it before.
pub(crate) struct Judgement {
    /// Where requests went.
    pub(crate) target: String,
    /// What was played.
    pub(crate) plan: Planned,
    /// Requests expected in each second.
    pub(crate) seconds_planned: Vec<f64>,
    /// When it started, seconds since the Unix epoch.
    pub(crate) started_unix_s: f64,
    /// Time-out of a request.
    pub(crate) timeout: Duration,
    /// Lag (99th percentile) above which the run is not valid.
    pub(crate) lag_max: Duration,
    /// The promise on latency.
    pub(crate) slo_p99: Option<Duration>,
    /// The promise on failed and shed requests, as a share of all.
    pub(crate) failed_max: Option<f64>,
    /// Whether the run was stopped before its end.
    pub(crate) interrupted: bool,
    /// What was seen of the fleet meanwhile.
    pub(crate) fleet: Option<Seen>,
}

/// Percentiles in milliseconds; `null` without requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LatencyMs {
    pub(crate) p50: Option<f64>,
    pub(crate) p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) max: Option<f64>,
}

/// How late the generator was, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LagMs {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) max: Option<f64>,
}

/// The promise and whether it held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Slo {
    /// Highest 99th percentile from the scheduled instant, milliseconds.
    pub(crate) p99_ms_max: Option<f64>,
    /// Highest share of failed and shed requests.
    pub(crate) missed_share_max: Option<f64>,
    /// Whether both held.
    pub(crate) held: bool,
}

/// The requests that were due within one second of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Second {
    pub(crate) t: usize,
    /// Requests expected.
    pub(crate) planned: f64,
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) shed: u64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// Failed requests by kind.
    pub(crate) failures: BTreeMap<String, u64>,
}

/// The report; its JSON is the wire format of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) target: String,
    /// The same as `plan.schedule`.
    workload: String,
    pub(crate) plan: Planned,
    pub(crate) started_unix_s: f64,
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) shed: u64,
    /// Failed and shed requests as a share of all.
    pub(crate) missed_share: f64,
    /// From the scheduled instant.
    pub(crate) latency_ms: LatencyMs,
    /// From the actual send.
    pub(crate) send_latency_ms: LatencyMs,
    /// From the scheduled instant to the actual send.
    pub(crate) lag_ms: LagMs,
    /// Highest 99th percentile of the lag at which a run is valid.
    pub(crate) lag_ms_max: f64,
    pub(crate) valid: bool,
    pub(crate) interrupted: bool,
    pub(crate) duration_s: f64,
    pub(crate) rate_rps_mean: f64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) models: BTreeMap<String, u64>,
    pub(crate) slo: Option<Slo>,
    pub(crate) seconds: Vec<Second>,
    pub(crate) fleet: Option<Seen>,
}

impl Report {
    /// Judges what was recorded.
    pub(crate) fn new(record: &Record, judgement: Judgement) -> Self {
        let timeout_us = judgement.timeout.as_micros() as u64;
        let missed_us = timeout_us.max(record.missed_us_max).max(record.latency.answered_us_max());
        let latency_ms = latency(&record.latency, missed_us);
        let lag = |per_mille| record.lag.quantile(per_mille).map(|quantile| ms(quantile, missed_us));
        let lag_ms = LagMs { p50: lag(500), p99: lag(990), max: lag(1000) };
        let lag_ms_max = judgement.lag_max.as_secs_f64() * 1000.0;
        let duration_s = record.last_ended.as_secs_f64();
        let planned = judgement.seconds_planned.iter().copied().chain(std::iter::repeat(0.0));
        let rows = record.rows.iter().zip(planned).enumerate();
        Self {
            target: judgement.target.clone(),
            workload: judgement.plan.schedule.clone(),
            started_unix_s: judgement.started_unix_s,
            sent: record.counts.sent,
            ok: record.counts.ok,
            failed: record.counts.failed(),
            shed: record.counts.shed,
            missed_share: record.counts.missed_share(),
            latency_ms,
            send_latency_ms: latency(&record.send_latency, missed_us),
            lag_ms,
            lag_ms_max,
            valid: record.counts.sent > 0 && lag_ms.p99.is_some_and(|p99| p99 <= lag_ms_max),
            interrupted: judgement.interrupted,
            duration_s,
            rate_rps_mean: if duration_s > 0.0 { record.counts.sent as f64 / duration_s } else { 0.0 },
            failures: by_name(&record.counts.failures),
            models: record.models.clone(),
            slo: slo(record, &judgement),
            seconds: rows.map(|(t, (row, planned))| second(t, row, planned, missed_us)).collect(),
            plan: judgement.plan,
            fleet: judgement.fleet,
        }
    }

    /// Whether the run reached its end, something was answered, and the promise, if one was asked about, held
    /// in a run that can be trusted.
    pub(crate) fn is_good(&self) -> bool {
        let judged = self.slo.is_none_or(|slo| slo.held && self.valid);
        judged && self.ok > 0 && !self.interrupted
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// The verdict in one sentence.
    pub(crate) fn verdict(&self) -> String {
        if self.sent == 0 {
            return "nothing was sent: there is nothing to judge".to_owned();
        }
        if self.interrupted {
            return "interrupted before the end of the schedule: there is no verdict".to_owned();
        }
        if !self.valid {
            return format!(
                "this run is not to be trusted: the generator itself lagged, p99 {} ms (limit {} ms); use a \
                 faster or quieter machine, a lower rate, or allow more with --lag-max",
                show(self.lag_ms.p99),
                self.lag_ms_max
            );
        }
        let missed = format!("{} failed or were shed", percent(self.missed_share));
        let Some(slo) = self.slo else {
            return format!("no promise was asked about (--slo-p99); {missed}");
        };
        let side = |held: bool| if held { "within" } else { "over" };
        let missed = match slo.missed_share_max {
            Some(max) => format!("{missed}, {} {}", side(self.missed_share <= max), percent(max)),
            None => missed,
        };
        let outcome = if slo.held { "the promise held" } else { "the promise was broken" };
        match slo.p99_ms_max {
            Some(max) => {
                let p99_held = self.latency_ms.p99.is_some_and(|p99| p99 <= max);
                let p99 = show(self.latency_ms.p99);
                format!("p99 {p99} ms is {} {max} ms and {missed}: {outcome}", side(p99_held))
            }
            None => format!("{missed}: {outcome}"),
        }
    }
}

/// Milliseconds of a percentile; a miss took `missed_us`.
pub(crate) fn ms(quantile: Quantile, missed_us: u64) -> f64 {
    match quantile {
        Quantile::Answered(us) => us as f64 / 1000.0,
        Quantile::Missed => missed_us as f64 / 1000.0,
    }
}

fn latency(latencies: &Latencies, missed_us: u64) -> LatencyMs {
    let of = |per_mille| latencies.quantile(per_mille).map(|quantile| ms(quantile, missed_us));
    let max = latencies.slowest().map(|quantile| ms(quantile, missed_us));
    LatencyMs { p50: of(500), p90: of(900), p99: of(990), p999: of(999), max }
}

fn slo(record: &Record, judgement: &Judgement) -> Option<Slo> {
    let p99_ms_max = judgement.slo_p99.map(|slo| slo.as_secs_f64() * 1000.0);
    let missed_share_max = judgement.failed_max;
    if p99_ms_max.is_none() && missed_share_max.is_none() {
        return None;
    }
    let p99_held = p99_ms_max.is_none_or(|max| match record.latency.quantile(990) {
        Some(Quantile::Answered(us)) => us as f64 / 1000.0 <= max,
        // A miss holds no promise, however long one was allowed to take.
        Some(Quantile::Missed) | None => false,
    });
    let missed_held = missed_share_max.is_none_or(|max| record.counts.missed_share() <= max);
    // The part of a schedule that was not played might have broken it.
    Some(Slo { p99_ms_max, missed_share_max, held: p99_held && missed_held && !judgement.interrupted })
}

fn second(t: usize, row: &Row, planned: f64, missed_us: u64) -> Second {
    Second {
        t,
        planned: (planned * 1000.0).round() / 1000.0,
        sent: row.counts.sent,
        ok: row.counts.ok,
        failed: row.counts.failed(),
        shed: row.counts.shed,
        p50_ms: row.p50.map(|quantile| ms(quantile, missed_us)),
        p99_ms: row.p99.map(|quantile| ms(quantile, missed_us)),
        failures: by_name(&row.counts.failures),
    }
}

fn by_name(failures: &BTreeMap<Failure, u64>) -> BTreeMap<String, u64> {
    failures.iter().map(|(failure, count)| (failure.kind(), *count)).collect()
}

/// Milliseconds as people read them.
pub(crate) fn show(ms: Option<f64>) -> String {
    match ms {
        None => "–".to_owned(),
        // Lags are fractions of a millisecond.
        Some(ms) if ms < 10.0 => format!("{ms:.2}"),
        Some(ms) => format!("{ms:.1}"),
    }
}

/// A share as people read it, to a hundredth of a per cent at most.
pub(crate) fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if share > 0.0 && text == "0" { "under 0.01 %".to_owned() } else { format!("{text} %") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against {}", self.workload, self.target)?;
        writeln!(
            f,
            "{} requests in {:.1} s, {:.1} a second: {} ok, {} failed, {} shed",
            self.sent, self.duration_s, self.rate_rps_mean, self.ok, self.failed, self.shed
        )?;
        let columns = ["p50", "p90", "p99", "p99.9", "max"];
        write!(f, "\n{:<26}", "milliseconds")?;
        columns.iter().try_for_each(|column| write!(f, "{column:>10}"))?;
        let mut row = |name: &str, values: [Option<f64>; 5]| {
            write!(f, "\n{name:<26}")?;
            values.iter().try_for_each(|value| write!(f, "{:>10}", show(*value)))
        };
        let values = |l: LatencyMs| [l.p50, l.p90, l.p99, l.p999, l.max];
        row("latency from schedule", values(self.latency_ms))?;
        row("latency from send", values(self.send_latency_ms))?;
        let lag = self.lag_ms;
        row("lag of the generator", [lag.p50, None, lag.p99, None, lag.max])?;
        writeln!(f, "\n")?;
        for (kind, count) in &self.failures {
            writeln!(f, "failed: {kind} × {count}")?;
        }
        for (model, count) in &self.models {
            writeln!(f, "answered by {model} × {count}")?;
        }
        for problem in self.fleet.iter().flat_map(|fleet| &fleet.problems) {
            writeln!(f, "no replicas or decisions: {problem}")?;
        }
        writeln!(f, "{}", self.verdict())
    }
}

#[cfg(test)]
pub(crate) mod tests;
