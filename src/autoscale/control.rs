//! The loop: observe, decide, write down, carry out.
use super::{Config, PolicyName, Scaler};
use crate::logic::policy::{Decision, Observation, Traffic};
use crate::logic::window::Service;
use crate::net::metrics::{registry, render};
use crate::net::wire::Stats;
use crate::net::{client, clock, shutdown::Shutdown};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest time the monitor may take to answer.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);

/// One decision, with everything it was based on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    /// When, seconds since the Unix epoch.
    at_unix_s: f64,
    /// How long ago, seconds.
    age_s: f64,
    #[serde(skip)]
    at: Instant,
    replicas_before: u32,
    replicas: u32,
    reason: String,
    /// Whether it was carried out: not in a dry run, nor where the target could not be changed.
    applied: bool,
    inputs: Observation,
}

/// Answer to `GET /decisions`, the latest last.
#[derive(Debug, Serialize)]
pub(super) struct Decisions {
    policy: PolicyName,
    decisions: Vec<Record>,
}

/// Remembers the latest decisions. A row of decisions to hold keeps only its last.
pub(super) struct Journal {
    policy: PolicyName,
    records: Mutex<VecDeque<Record>>,
    records_max: usize,
    registry: Registry,
    desired: Gauge,
    changes: Counter,
}

impl Journal {
    pub(super) fn new(policy: PolicyName, records_max: usize) -> Self {
        let (desired, changes) = (Gauge::default(), Counter::default());
        let mut registry = registry();
        registry.register("autoscale_replicas_desired", "Replicas last decided on", desired.clone());
        let help = "Decisions that changed the number of replicas";
        registry.register("autoscale_changes", help, changes.clone());
        Self { policy, records: Mutex::default(), records_max, registry, desired, changes }
    }

    fn write(&self, record: Record) {
        self.desired.set(i64::from(record.replicas));
        let holds = |record: &Record| record.replicas == record.replicas_before;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if !holds(&record) {
            self.changes.inc();
        } else if records.back().is_some_and(|last| holds(last) && last.replicas == record.replicas) {
            records.pop_back();
        }
        if records.len() >= self.records_max {
            records.pop_front();
        }
        records.push_back(record);
    }

    pub(super) fn decisions(&self) -> Decisions {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let aged = records
            .iter()
            .map(|record| Record { age_s: record.at.elapsed().as_secs_f64(), ..record.clone() });
        Decisions { policy: self.policy, decisions: aged.collect() }
    }

    pub(super) fn metrics(&self, headers: &http::HeaderMap) -> axum::response::Response {
        render(&self.registry, headers)
    }
}

/// Decides every `interval` until `shutdown` drains.
pub(super) async fn run(
    config: Config,
    scaler: &Scaler,
    journal: &Journal,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let client = client::client(MONITOR_TIMEOUT)?;
    let mut ticks = tokio::time::interval(config.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut policy = config.rule.policy();
    let mut complained = false;
    loop {
        tokio::select! {
            () = shutdown.drained() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let replicas = match scaler.observe().await {
            Ok(replicas) => replicas,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot see the replicas; leaving them as they are"
                );
                continue;
            }
        };
        let now = started.elapsed();
        let traffic = traffic(&client, &config.monitor).await;
        if let Err(error) = &traffic
            && !complained
        {
            tracing::warn!(%error, "the monitor does not answer; leaving the replicas as they are");
        }
        complained = traffic.is_err();
        let observation = Observation { now, replicas, traffic: traffic.ok() };
        let decision = policy.decide(&observation);
        if shutdown.is_draining() {
            return Ok(());
        }
        let applied = carry_out(&config, scaler, replicas.desired, &decision).await;
        journal.write(Record {
            at_unix_s: clock::unix_time().as_secs_f64(),
            age_s: 0.0,
            at: Instant::now(),
            replicas_before: replicas.desired,
            replicas: decision.replicas,
            reason: decision.reason,
            applied,
            inputs: observation,
        });
    }
}

/// Whether the fleet is as decided.
async fn carry_out(config: &Config, scaler: &Scaler, before: u32, decision: &Decision) -> bool {
    if decision.replicas == before {
        return true;
    }
    let Decision { replicas, reason } = decision;
    if config.dry_run {
        tracing::info!(before, replicas, reason, "dry run: would scale");
        return false;
    }
    match scaler.scale_to(*replicas).await {
        Ok(()) => {
            tracing::info!(before, replicas, reason, "scaled");
            true
        }
        Err(error) => {
            tracing::warn!(before, replicas, reason, error = format!("{error:#}"), "cannot scale");
            false
        }
    }
}

async fn traffic(client: &reqwest::Client, monitor: &str) -> reqwest::Result<Traffic> {
    let stats: Stats =
        client.get(format!("{monitor}/stats")).send().await?.error_for_status()?.json().await?;
    Ok(told(&stats))
}

/// What a rule goes by of what the monitor tells.
fn told(stats: &Stats) -> Traffic {
    let service = stats.service_ms.map(|service| Service {
        mean_ms: service.mean,
        p95_ms: service.p95,
        cv: service.cv,
    });
    Traffic {
        // A monitor that never heard of a dispatcher knows nothing at all.
        age_s: stats.age_s.unwrap_or(f64::INFINITY),
        samples: stats.samples,
        p99_ms: stats.p99_ms,
        arrivals: stats.arrivals,
        arrivals_known_s: stats.arrivals_known_s,
        service,
        busy: f64::from(stats.in_flight),
        waiting: stats.queue_depth,
        slots: stats.slots,
        ended: stats.ended,
        missed: stats.missed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::ReplicaCounts;

    #[test]
    fn a_monitor_that_has_heard_nothing_knows_nothing_of_now() {
        let told = told(&Stats::default());
        assert!(told.age_s.is_infinite() && told.service.is_none() && told.p99_ms.is_none(), "{told:?}");
    }

    fn record(before: u32, after: u32, reason: &str) -> Record {
        let replicas = ReplicaCounts { desired: before, ..ReplicaCounts::default() };
        Record {
            at_unix_s: 0.0,
            age_s: 0.0,
            at: Instant::now(),
            replicas_before: before,
            replicas: after,
            reason: reason.to_owned(),
            applied: true,
            inputs: Observation { now: Duration::ZERO, replicas, traffic: None },
        }
    }

    #[tokio::test]
    async fn a_row_of_decisions_to_hold_keeps_its_last_and_the_oldest_make_room() {
        let journal = Journal::new(PolicyName::Slo, 3);
        for (before, after, reason) in
            [(1, 1, "a"), (1, 1, "b"), (1, 4, "c"), (4, 4, "d"), (5, 5, "someone else"), (5, 5, "e")]
        {
            journal.write(record(before, after, reason));
        }
        let told = journal.decisions();
        let reasons: Vec<_> = told.decisions.iter().map(|record| record.reason.as_str()).collect();
        assert_eq!((told.policy, reasons), (PolicyName::Slo, vec!["c", "d", "e"]));
    }
}
