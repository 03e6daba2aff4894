//! What a run found: as a table for people, as JSON for programs, and the verdict on the promise.
//!
//! **Invariant**: a miss never flatters. A percentile that falls on a failed or shed request reads as the
//! longest of the time-out, the slowest answer and the slowest miss.
use crate::load::record::{Latencies, Quantile, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a run is judged by.
pub(crate) struct Judgement {
    /// Where requests went.
    pub(crate) target: String,
    /// What was replayed.
    pub(crate) workload: String,
    /// Time-out of a request.
    pub(crate) timeout: Duration,
    /// Lag (99th percentile) above which the run is not valid.
    pub(crate) lag_max: Duration,
    /// The promise.
    pub(crate) slo_p99: Option<Duration>,
    /// Whether the run was stopped before its end.
    pub(crate) interrupted: bool,
}

/// Percentiles in milliseconds; `null` without requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct LatencyMs {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    max: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct LagMs {
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Slo {
    p99_ms_max: f64,
    held: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Second {
    t: usize,
    sent: u64,
    ok: u64,
    failed: u64,
    shed: u64,
    p99_ms: Option<f64>,
}

/// The report; its JSON is the wire format of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    target: String,
    workload: String,
    sent: u64,
    ok: u64,
    failed: u64,
    shed: u64,
    /// From the scheduled instant.
    latency_ms: LatencyMs,
    /// From the actual send.
    send_latency_ms: LatencyMs,
    /// From the scheduled instant to the actual send.
    lag_ms: LagMs,
    valid: bool,
    interrupted: bool,
    duration_s: f64,
    rate_rps_mean: f64,
    failures: BTreeMap<String, u64>,
    models: BTreeMap<String, u64>,
    slo: Option<Slo>,
    seconds: Vec<Second>,
    #[serde(skip)]
    lag_ms_max: f64,
}

impl Report {
    /// Judges what was recorded.
    pub(crate) fn new(record: &Record, judgement: &Judgement) -> Self {
        let timeout_us = judgement.timeout.as_micros() as u64;
        let missed_us = timeout_us.max(record.missed_us_max).max(record.latency.answered_us_max());
        let ms = |quantile: Quantile| match quantile {
            Quantile::Answered(us) => us as f64 / 1000.0,
            Quantile::Missed => missed_us as f64 / 1000.0,
        };
        let latency = |latencies: &Latencies| LatencyMs {
            p50: latencies.quantile(500).map(ms),
            p90: latencies.quantile(900).map(ms),
            p99: latencies.quantile(990).map(ms),
            p999: latencies.quantile(999).map(ms),
            max: latencies.slowest().map(ms),
        };
        let latency_ms = latency(&record.latency);
        let lag_ms = LagMs {
            p50: record.lag.quantile(500).map(ms),
            p99: record.lag.quantile(990).map(ms),
            max: record.lag.slowest().map(ms),
        };
        let lag_ms_max = judgement.lag_max.as_secs_f64() * 1000.0;
        let duration_s = record.last_ended.as_secs_f64();
        let slo = judgement.slo_p99.map(|slo| {
            let p99_ms_max = slo.as_secs_f64() * 1000.0;
            // A miss holds no promise, however long one was allowed to take.
            let answered = matches!(record.latency.quantile(990), Some(Quantile::Answered(_)));
            let within = latency_ms.p99.is_some_and(|p99| p99 <= p99_ms_max);
            // The part of a workload that was not played might have broken it.
            Slo { p99_ms_max, held: answered && within && !judgement.interrupted }
        });
        let second = |(t, row): (usize, &super::record::Row)| Second {
            t,
            sent: row.sent,
            ok: row.ok,
            failed: row.failed,
            shed: row.shed,
            p99_ms: row.p99.map(ms),
        };
        Self {
            target: judgement.target.clone(),
            workload: judgement.workload.clone(),
            sent: record.sent,
            ok: record.ok,
            failed: record.failed,
            shed: record.shed,
            latency_ms,
            send_latency_ms: latency(&record.send_latency),
            lag_ms,
            valid: record.sent > 0 && lag_ms.p99.is_some_and(|p99| p99 <= lag_ms_max),
            interrupted: judgement.interrupted,
            duration_s,
            rate_rps_mean: if duration_s > 0.0 { record.sent as f64 / duration_s } else { 0.0 },
            failures: record.failures.clone(),
            models: record.models.clone(),
            slo,
            seconds: record.rows.iter().enumerate().map(second).collect(),
            lag_ms_max,
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
    fn verdict(&self) -> String {
        let lag = format!("{} ms (limit {} ms)", show(self.lag_ms.p99), self.lag_ms_max);
        if self.sent == 0 {
            return "nothing was sent: there is nothing to judge".to_owned();
        }
        if self.interrupted {
            return "interrupted before the end of the workload: there is no verdict".to_owned();
        }
        if !self.valid {
            return format!(
                "this run is not to be trusted: the generator itself lagged, p99 {lag}; use a faster machine or \
                 a lower rate"
            );
        }
        match self.slo {
            Some(Slo { p99_ms_max, held: true }) => {
                format!("p99 {} ms is within {p99_ms_max} ms: the promise held", show(self.latency_ms.p99))
            }
            Some(Slo { p99_ms_max, held: false }) => {
                format!(
                    "p99 {} ms is over {p99_ms_max} ms: the promise was broken",
                    show(self.latency_ms.p99)
                )
            }
            None => "no promise was asked about (--slo-p99)".to_owned(),
        }
    }
}

/// Milliseconds as people read them.
fn show(ms: Option<f64>) -> String {
    ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"))
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
        writeln!(f, "{}", self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::{Ended, Failure, Outcome};

    fn judgement(slo_ms: u64) -> Judgement {
        Judgement {
            target: "http://t/predict".into(),
            workload: "w.txt".into(),
            timeout: Duration::from_secs(5),
            lag_max: Duration::from_millis(50),
            slo_p99: Some(Duration::from_millis(slo_ms)),
            interrupted: false,
        }
    }

    fn record(outcomes: &[(u64, u64, Outcome)]) -> Record {
        let mut record = Record::new().unwrap();
        for (number, (latency_ms, lag_ms, outcome)) in outcomes.iter().enumerate() {
            let due = Duration::from_millis(number as u64 * 10);
            record.came_due(due);
            let (sent, ended) =
                (due + Duration::from_millis(*lag_ms), due + Duration::from_millis(*latency_ms));
            record.ended(Ended { due, sent, ended, outcome: outcome.clone() });
        }
        record.finish(Duration::from_secs(9));
        record
    }

    fn ok(latency_ms: u64) -> (u64, u64, Outcome) {
        (latency_ms, 1, Outcome::Ok { model: Some("m".into()) })
    }

    #[test]
    fn the_promise_is_judged_by_the_latency_from_the_schedule() {
        let mut outcomes = vec![ok(100); 99];
        outcomes.push(ok(900));
        let report = Report::new(&record(&outcomes), &judgement(500));
        assert!(report.is_good(), "{report}");
        outcomes.push(ok(900));
        let report = Report::new(&record(&outcomes), &judgement(500));
        assert!(!report.is_good());
        assert!(report.to_string().contains("is over 500 ms: the promise was broken"), "{report}");
    }

    #[test]
    fn failed_and_shed_requests_never_flatter() {
        let mut outcomes = vec![ok(10); 98];
        outcomes.push((1, 0, Outcome::Shed));
        outcomes.push((1, 0, Outcome::Failed(Failure::Status(500))));
        let report = Report::new(&record(&outcomes), &judgement(500));
        assert_eq!(report.latency_ms.p99, Some(5000.0));
        assert!(!report.is_good());
        assert!(!Report::new(&record(&outcomes), &judgement(60_000)).is_good(), "a miss held the promise");
        assert_eq!((report.ok, report.failed, report.shed), (98, 1, 1));
    }

    #[test]
    fn a_generator_that_lags_is_not_trusted() {
        let outcomes = vec![(60, 55, Outcome::Ok { model: None }); 50];
        let report = Report::new(&record(&outcomes), &judgement(500));
        assert!(!report.valid && !report.is_good());
        assert!(report.to_string().contains("not to be trusted"), "{report}");
    }

    #[test]
    fn an_interrupted_run_holds_no_promise() {
        let cut = Judgement { interrupted: true, ..judgement(500) };
        let report = Report::new(&record(&vec![ok(100); 50]), &cut);
        assert!(!report.is_good() && report.slo.is_some_and(|slo| !slo.held));
        assert!(report.to_string().contains("there is no verdict"), "{report}");
    }

    #[test]
    fn a_run_without_an_answer_is_not_good_even_when_no_promise_was_asked_about() {
        let unasked = || Judgement { slo_p99: None, ..judgement(500) };
        let refused = vec![(1, 0, Outcome::Failed(Failure::Connect)); 3];
        assert!(!Report::new(&record(&refused), &unasked()).is_good());
        assert!(Report::new(&record(&[ok(10)]), &unasked()).is_good());
    }

    #[test]
    fn an_empty_run_says_so() {
        let report = Report::new(&record(&[]), &judgement(500));
        assert!(!report.is_good());
        assert_eq!(report.latency_ms.p99, None);
        assert!(report.to_string().contains("nothing was sent"));
    }
}
