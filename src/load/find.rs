//! The highest rate that holds the promise, as in `MLPerf` Inference's server scenario.
//!
//! Poisson arrivals at a rate; the rate holds if the 99th percentile from the scheduled instant is within the
//! promise (Reddi et al. 2020, *`MLPerf` Inference Benchmark*). A trial
//! warms up first, then counts at least `--find-samples` requests over at least `--find-trial`. All trials of
//! the search play the same random numbers, which makes rates comparable; the confirmation plays others.
//!
//! **Invariant**: the rate that is answered held in a run that was repeated with another seed, and in no trial
//! did the generator lag.
use crate::load::record::{Counting, Record, Snapshot};
use crate::load::report::{ms, percent, show};
use crate::load::target::Target;
use crate::load::{Args, INTERRUPTED, Playing, play, progress};
use crate::logic::arrivals::{Pace, Plan, Spacing, Workload};
use crate::logic::search::{Limits, Next, Purpose, RATE_RPS_MIN, Search};
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// One trial of a rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Trial {
    rate_rps: f64,
    purpose: &'static str,
    seed: u64,
    sent: u64,
    ok: u64,
    failed: u64,
    shed: u64,
    missed_share: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    lag_p99_ms: Option<f64>,
    /// Whether it was over as soon as too many requests were too slow for the promise to hold.
    ended_early: bool,
    valid: bool,
    held: bool,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match () {
            () if !self.valid => "not to be trusted: the generator lagged",
            () if self.held => "held",
            () if self.ended_early => "broken, ended early",
            () => "broken",
        };
        write!(
            f,
            "{:>10.2} rps  {:<8} {:>7} sent  p50 {:>7} ms  p99 {:>7} ms  missed {:>8}  lag {:>5} ms  {verdict}",
            self.rate_rps,
            self.purpose,
            self.sent,
            show(self.p50_ms),
            show(self.p99_ms),
            percent(self.missed_share),
            show(self.lag_p99_ms),
        )
    }
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Confirmed,
    NothingHolds,
    OutOfTime,
    Invalid,
    Interrupted,
}

/// What a search found; its JSON is the wire format of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Found {
    kind: &'static str,
    target: String,
    slo_p99_ms: f64,
    missed_share_max: Option<f64>,
    seed: u64,
    resolution: f64,
    samples_min: u64,
    trial_s_min: f64,
    warm_up_s: f64,
    /// The answer; `null` unless confirmed.
    rate_rps: Option<f64>,
    ending: Ending,
    verdict: String,
    trials: Vec<Trial>,
}

/// Searches, prints every trial and the answer, and gives the outcome as exit code.
pub(super) async fn run(args: &Args, target: Arc<Target>, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let finder = Finder { args, target, shutdown, slo: args.slo_p99.context("--find-max needs --slo-p99")? };
    let found = finder.search().await?;
    if args.json.as_deref() == Some(Path::new("-")) {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("{}", found.verdict);
    }
    if let Some(path) = args.json.as_deref().filter(|path| *path != Path::new("-")) {
        std::fs::write(path, serde_json::to_string_pretty(&found)? + "\n")
            .with_context(|| format!("cannot write the result to {}", path.display()))?;
    }
    Ok(match found.ending {
        Ending::Confirmed => ExitCode::SUCCESS,
        Ending::Interrupted => ExitCode::from(INTERRUPTED),
        Ending::NothingHolds | Ending::OutOfTime | Ending::Invalid => ExitCode::FAILURE,
    })
}

struct Finder<'a> {
    args: &'a Args,
    target: Arc<Target>,
    shutdown: Shutdown,
    slo: Duration,
}

impl Finder<'_> {
    async fn search(&self) -> anyhow::Result<Found> {
        let find = &self.args.find;
        let mut search = Search::new(Limits {
            start_rps: find.find_start,
            rate_rps_max: find.find_rate_max,
            resolution: find.find_resolution,
        });
        let (begun, mut trials) = (Instant::now(), Vec::new());
        self.say(&format!(
            "highest rate with p99 within {:?} at {}\na trial warms up for {:?}, then counts at least {} requests over \
             at least {:?}",
            self.slo, self.args.target, find.find_warm_up, find.find_samples, find.find_trial
        ));
        loop {
            let left_s = find.find_time.saturating_sub(begun.elapsed()).as_secs_f64();
            let (rate_rps, purpose) = match search.next(left_s, |rate_rps| self.trial_s(rate_rps)) {
                Next::Try(rate_rps, purpose) => (rate_rps, purpose),
                end => return Ok(self.found(&search, trials, Some(end))),
            };
            let Some(trial) = self.trial(rate_rps, purpose).await? else {
                return Ok(self.found(&search, trials, None));
            };
            self.say(&trial.to_string());
            search.record(rate_rps, purpose, trial.held);
            let valid = trial.valid;
            trials.push(trial);
            if !valid {
                return Ok(self.found(&search, trials, None));
            }
        }
    }

    /// How long a trial takes, about: answers that are still to come at its end come on top.
    fn trial_s(&self, rate_rps: f64) -> f64 {
        let find = &self.args.find;
        // A Poisson process may take a little longer for its requests than they take on average.
        let samples_s = 1.1 * find.find_samples as f64 / rate_rps;
        find.find_warm_up.as_secs_f64() + find.find_trial.as_secs_f64().max(samples_s)
    }

    /// Tries a rate; `None` when a signal ended it.
    async fn trial(&self, rate_rps: f64, purpose: Purpose) -> anyhow::Result<Option<Trial>> {
        let confirms = purpose == Purpose::Confirm;
        let seed = if confirms { self.args.seed.wrapping_add(1) } else { self.args.seed };
        let spacing = Spacing::Poisson { seed };
        let (plan, requests) = self.plan(rate_rps, spacing)?;
        // More than one in a hundred over the promise, and the 99th percentile is.
        let over_max = requests / 100;
        let (progress, snapshots) = watch::channel(Snapshot::default());
        let shutdown = self.shutdown.child();
        let playing = Playing {
            plan: &plan,
            spacing,
            start: Instant::now(),
            counting: Counting { from: self.args.find.find_warm_up, limit: self.slo },
            in_flight_max: self.args.in_flight_max,
            shutdown: shutdown.clone(),
        };
        let shown = async {
            if !self.args.quiet {
                progress::show(snapshots.clone(), plan.duration(), plan.requests_expected()).await;
            }
        };
        let played = play(playing, progress, Arc::clone(&self.target));
        // Draining, it also waits for what is under way, so that the next trial starts with an idle target.
        let lost = end_when_lost(snapshots.clone(), over_max, shutdown);
        let (played, (), ended_early) = tokio::join!(played, shown, lost);
        let (record, _) = played?;
        if self.shutdown.is_draining() {
            return Ok(None);
        }
        Ok(Some(self.judge(&record, &Tried { rate_rps, purpose, seed, ended_early })))
    }

    /// A constant rate, long enough for what a trial needs, and how many of its requests are counted.
    fn plan(&self, rate_rps: f64, spacing: Spacing) -> anyhow::Result<(Plan, u64)> {
        let find = &self.args.find;
        let workload = Workload::constant(rate_rps).with_context(|| format!("{rate_rps} is no rate"))?;
        let mut counted_s = find.find_trial.as_secs_f64();
        loop {
            let line_s = find.find_warm_up.as_secs_f64() + counted_s;
            let pace = Pace { line_s, ..Pace::default() };
            let plan = Plan::new(&workload, pace, self.args.requests_max)
                .with_context(|| format!("a trial at {rate_rps} requests a second"))?;
            let counted = plan.instants(spacing).filter(|due| *due >= find.find_warm_up).count() as u64;
            if counted >= find.find_samples {
                return Ok((plan, counted));
            }
            counted_s *= 1.02;
        }
    }

    fn judge(&self, record: &Record, tried: &Tried) -> Trial {
        let missed_us = (self.args.timeout.as_micros() as u64).max(record.missed_us_max);
        let of = |per_mille| record.latency.quantile(per_mille).map(|quantile| ms(quantile, missed_us));
        let lag_p99_ms = record.lag.quantile(990).map(|quantile| ms(quantile, missed_us));
        let within = of(990).is_some_and(|p99_ms| p99_ms <= self.slo.as_secs_f64() * 1000.0);
        let missed_share = record.counts.missed_share();
        let few_missed = self.args.failed_max.is_none_or(|max| missed_share <= max);
        Trial {
            rate_rps: tried.rate_rps,
            purpose: tried.purpose.name(),
            seed: tried.seed,
            sent: record.counts.sent,
            ok: record.counts.ok,
            failed: record.counts.failed(),
            shed: record.counts.shed,
            missed_share,
            p50_ms: of(500),
            p99_ms: of(990),
            lag_p99_ms,
            ended_early: tried.ended_early,
            valid: lag_p99_ms.is_none_or(|lag_ms| lag_ms <= self.args.lag_max.as_secs_f64() * 1000.0),
            held: within && few_missed && !tried.ended_early,
        }
    }

    /// What the search comes to; `end` is `None` where a trial could not be used.
    fn found(&self, search: &Search, trials: Vec<Trial>, end: Option<Next>) -> Found {
        let lagged = trials.last().filter(|trial| !trial.valid);
        let broken = search.broken_rps_min().map_or_else(
            || "nothing higher was tried (--find-rate-max)".to_owned(),
            |rate_rps| format!("{rate_rps:.2} did not hold"),
        );
        let (ending, rate_rps, verdict) = match end {
            Some(Next::Found(rate_rps)) => (
                Ending::Confirmed,
                Some(rate_rps),
                format!(
                    "{rate_rps:.2} requests a second hold p99 within {:?}, confirmed with another seed; {broken}",
                    self.slo
                ),
            ),
            Some(Next::OutOfTime(held)) => {
                let known = held.map_or_else(
                    || "no rate held".to_owned(),
                    |held| format!("{held:.2} requests a second held once, unconfirmed"),
                );
                let text = format!("out of time (--find-time {:?}): {known}", self.args.find.find_time);
                (Ending::OutOfTime, None, text)
            }
            Some(_) => (
                Ending::NothingHolds,
                None,
                format!("not even {RATE_RPS_MIN} requests a second hold the promise"),
            ),
            None => match lagged {
                Some(trial) => {
                    let limit = self.args.lag_max;
                    let text = format!(
                        "the trial at {:.2} requests a second is not to be trusted, so there is no answer: the generator \
                         itself lagged, p99 {} ms (limit {limit:?}); use a faster or quieter machine, or allow more with \
                         --lag-max",
                        trial.rate_rps,
                        show(trial.lag_p99_ms)
                    );
                    (Ending::Invalid, None, text)
                }
                None => (Ending::Interrupted, None, "interrupted: there is no answer".to_owned()),
            },
        };
        Found {
            kind: "find_max",
            target: self.args.target.to_string(),
            slo_p99_ms: self.slo.as_secs_f64() * 1000.0,
            missed_share_max: self.args.failed_max,
            seed: self.args.seed,
            resolution: self.args.find.find_resolution,
            samples_min: self.args.find.find_samples,
            trial_s_min: self.args.find.find_trial.as_secs_f64(),
            warm_up_s: self.args.find.find_warm_up.as_secs_f64(),
            rate_rps,
            ending,
            verdict,
            trials,
        }
    }

    fn say(&self, text: &str) {
        if !self.args.quiet && self.args.json.as_deref() != Some(Path::new("-")) {
            println!("{text}");
        }
    }
}

/// What a trial tried.
struct Tried {
    rate_rps: f64,
    purpose: Purpose,
    seed: u64,
    ended_early: bool,
}

/// Ends a trial as soon as more than `over_max` of its requests missed the promise: what is still to be sent
/// cannot save it. Tells whether that happened.
async fn end_when_lost(mut snapshots: watch::Receiver<Snapshot>, over_max: u64, shutdown: Shutdown) -> bool {
    let mut lost = false;
    while snapshots.changed().await.is_ok() {
        if !lost && snapshots.borrow_and_update().over > over_max {
            lost = true;
            shutdown.drain();
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_a_line_that_says_how_it_went() {
        let held = Trial {
            rate_rps: 47.57,
            purpose: "bisect",
            seed: 1,
            sent: 1003,
            ok: 1002,
            failed: 1,
            shed: 0,
            missed_share: 1.0 / 1003.0,
            p50_ms: Some(104.2),
            p99_ms: Some(298.0),
            lag_p99_ms: Some(0.31),
            ended_early: false,
            valid: true,
            held: true,
        };
        let broken = Trial { rate_rps: 64.0, ended_early: true, held: false, ..held.clone() };
        let invalid = Trial { lag_p99_ms: Some(12.5), valid: false, ..held.clone() };
        let start = "     47.57 rps  bisect      1003 sent  p50   104.2 ms  p99   298.0 ms  missed    0.1 %  lag  0.31 ms";
        assert_eq!(held.to_string(), format!("{start}  held"));
        assert!(broken.to_string().ends_with("lag  0.31 ms  broken, ended early"), "{broken}");
        assert!(
            invalid.to_string().ends_with("lag  12.5 ms  not to be trusted: the generator lagged"),
            "{invalid}"
        );
    }
}
