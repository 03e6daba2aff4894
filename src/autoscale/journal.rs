//! What was decided, and what it was based on.
use super::PolicyName;
use crate::logic::policy::Observation;
use crate::net::metrics::{registry, render};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// One decision, with everything it was based on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    /// When, seconds since the Unix epoch.
    pub(super) at_unix_s: f64,
    /// How long ago, seconds.
    pub(super) age_s: f64,
    #[serde(skip)]
    pub(super) at: Instant,
    pub(super) replicas_before: u32,
    pub(super) replicas: u32,
    pub(super) reason: String,
    /// Whether it was carried out: not in a dry run, nor where the target could not be changed.
    pub(super) applied: bool,
    pub(super) inputs: Observation,
}

/// Answer to `GET /decisions`, the latest last.
#[derive(Debug, Serialize)]
pub(super) struct Decisions {
    policy: PolicyName,
    /// Who decides, where several take turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leader: Option<String>,
    #[serde(rename = "decisions")]
    records: Vec<Record>,
}

/// Remembers the latest decisions. A row of decisions to hold keeps only its last.
pub(super) struct Journal {
    policy: PolicyName,
    records: Mutex<VecDeque<Record>>,
    records_max: usize,
    registry: Registry,
    desired: Gauge,
    changes: Counter,
    leader: Gauge,
    failures: Counter,
}

impl Journal {
    pub(super) fn new(policy: PolicyName, records_max: usize) -> Self {
        let (desired, changes) = (Gauge::default(), Counter::default());
        let (leader, failures) = (Gauge::default(), Counter::default());
        let mut registry = registry();
        registry.register("autoscale_replicas_desired", "Replicas last decided on", desired.clone());
        let help = "Decisions that changed the number of replicas";
        registry.register("autoscale_changes", help, changes.clone());
        let help = "1 where this autoscaler decides, 0 where it stands by for another";
        registry.register("autoscale_leader", help, leader.clone());
        let help = "Rounds in which the replicas could not be seen or their number not be set";
        registry.register("autoscale_api_errors", help, failures.clone());
        Self { policy, records: Mutex::default(), records_max, registry, desired, changes, leader, failures }
    }

    /// Whether this autoscaler decides.
    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A round failed.
    pub(super) fn failed(&self) {
        self.failures.inc();
    }

    pub(super) fn write(&self, record: Record) {
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
        Decisions { policy: self.policy, leader: None, records: aged.collect() }
    }

    pub(super) fn metrics(&self, headers: &http::HeaderMap) -> axum::response::Response {
        render(&self.registry, headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::ReplicaCounts;
    use std::time::Duration;

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
        let reasons: Vec<_> = told.records.iter().map(|record| record.reason.as_str()).collect();
        assert_eq!((told.policy, reasons), (PolicyName::Slo, vec!["c", "d", "e"]));
    }
}
