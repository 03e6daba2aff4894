//! What came of a run, in the figures that runs are compared by.
//!
//! **Invariant**: a figure that cannot be known (no requests, no bound) is `None`, never NaN or infinite.
use crate::sim::{Change, Outcome, Second};
use crate::simulate::record::Record;
use serde::Serialize;
use std::time::Duration;

/// Seconds of a minute.
const MINUTE: usize = 60;
/// A minute is bad when more than this share of the requests that arrived in it missed the promise.
const MINUTE_MISSED_MAX: f64 = 0.01;

/// The figures of a run, as programs read them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Row {
    /// The rule that scaled.
    pub(super) policy: String,
    /// How requests were bound to replicas.
    pub(super) dispatch: String,
    /// Requests that arrived.
    pub(super) requests: u64,
    /// Share of them over the promise: answered too late, or refused.
    pub(super) missed_share: Option<f64>,
    /// Share of them refused, also for want of time.
    pub(super) refused_share: Option<f64>,
    /// Share of the minutes in which more than 1 % of the requests that arrived missed.
    pub(super) bad_minutes_share: Option<f64>,
    /// Replicas that were paid for, on average.
    pub(super) replicas_mean: Option<f64>,
    /// Most replicas that were asked for.
    pub(super) replicas_max: u32,
    /// The same in replica-seconds, from asking for a replica to its end.
    pub(super) replica_seconds: Option<f64>,
    /// Changes of the number of replicas.
    pub(super) scale_actions_per_hour: Option<f64>,
    /// Replica-seconds over those of the bound.
    pub(super) clairvoyant_ratio: Option<f64>,
    /// The bound: replicas on average of the fewest that would have done, for somebody who knows the future.
    pub(super) clairvoyant_replicas_mean: Option<f64>,
}

/// A run with its figures and its course.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) row: Row,
    /// Whether it really happened.
    pub(super) recorded: bool,
    pub(super) seconds: Vec<Second>,
    pub(super) changes: Vec<Change>,
}

/// What all runs have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Common {
    pub(super) duration: Duration,
    pub(super) replicas_start: u32,
    /// Replica-seconds of the bound.
    pub(super) clairvoyant_replica_s: f64,
}

impl Run {
    /// A simulated run.
    pub(super) fn simulated(policy: String, dispatch: String, outcome: Outcome, common: &Common) -> Self {
        let duration_s = common.duration.as_secs_f64();
        let changes_most = outcome.changes.iter().map(|change| change.to).max().unwrap_or(0);
        let row = Row {
            policy,
            dispatch,
            requests: outcome.requests,
            missed_share: ratio(outcome.missed as f64, outcome.requests as f64),
            refused_share: ratio(outcome.refused as f64, outcome.requests as f64),
            bad_minutes_share: bad_minutes_share(&outcome.seconds),
            replicas_mean: ratio(outcome.replica_s, duration_s),
            replicas_max: changes_most.max(common.replicas_start),
            replica_seconds: finite(outcome.replica_s),
            scale_actions_per_hour: ratio(outcome.changes.len() as f64 * 3600.0, duration_s),
            clairvoyant_ratio: ratio(outcome.replica_s, common.clairvoyant_replica_s),
            clairvoyant_replicas_mean: ratio(common.clairvoyant_replica_s, duration_s),
        };
        Self { row, recorded: false, seconds: outcome.seconds, changes: outcome.changes }
    }

    /// What really happened: the share of misses is of the requests that ended, replicas are the ready ones.
    pub(super) fn recorded(record: &Record) -> Self {
        let seconds = record.played();
        let ended: u64 = record.seconds.iter().map(|second| second.ended).sum();
        let missed: u64 = record.seconds.iter().map(|second| second.over_promise).sum();
        let ready: Vec<f64> = record
            .seconds
            .iter()
            .filter_map(|second| second.replicas)
            .map(|(ready, _)| f64::from(ready))
            .collect();
        let row = Row {
            policy: "recorded".to_owned(),
            dispatch: "–".to_owned(),
            requests: record.arrivals(),
            missed_share: ratio(missed as f64, ended as f64),
            bad_minutes_share: bad_minutes_share(&seconds),
            replicas_mean: ratio(ready.iter().sum(), ready.len() as f64),
            replicas_max: seconds.iter().map(|second| second.desired).max().unwrap_or(0),
            ..Row::default()
        };
        Self { row, recorded: true, seconds, changes: Vec::new() }
    }
}

fn bad_minutes_share(seconds: &[Second]) -> Option<f64> {
    let minutes = seconds.chunks(MINUTE);
    let all = minutes.len();
    let is_bad = |minute: &&[Second]| {
        let sum = |of: fn(&Second) -> u32| minute.iter().map(|second| f64::from(of(second))).sum::<f64>();
        sum(|second| second.missed) > MINUTE_MISSED_MAX * sum(|second| second.arrivals)
    };
    ratio(minutes.filter(is_bad).count() as f64, all as f64)
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    finite(part / whole)
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact by construction
pub(super) mod tests {
    use super::*;

    fn second(arrivals: u32, missed: u32) -> Second {
        Second { arrivals, missed, desired: 2, ready: 2 }
    }

    /// Three minutes: one without a miss, one with exactly 1 %, one with more; the third has half its seconds.
    pub(in crate::simulate) fn outcome() -> Outcome {
        let mut seconds = vec![second(10, 0); 150];
        seconds[60].missed = 6;
        seconds[149].missed = 4;
        Outcome {
            requests: 1500,
            missed: 10,
            refused: 3,
            replica_s: 300.0,
            seconds,
            changes: vec![
                Change { at: Duration::from_secs(50), from: 2, to: 5, reason: "rate <9> & more".to_owned() },
                Change { at: Duration::from_secs(90), from: 5, to: 2, reason: "less".to_owned() },
            ],
        }
    }

    pub(in crate::simulate) const COMMON: Common =
        Common { duration: Duration::from_secs(150), replicas_start: 2, clairvoyant_replica_s: 200.0 };

    #[test]
    fn figures_are_what_happened() {
        let run = Run::simulated("slo".to_owned(), "central".to_owned(), outcome(), &COMMON);
        let expected = Row {
            policy: "slo".to_owned(),
            dispatch: "central".to_owned(),
            requests: 1500,
            missed_share: Some(10.0 / 1500.0),
            refused_share: Some(0.002),
            // Exactly 1 % is within the promise.
            bad_minutes_share: Some(1.0 / 3.0),
            replicas_mean: Some(2.0),
            replicas_max: 5,
            replica_seconds: Some(300.0),
            scale_actions_per_hour: Some(48.0),
            clairvoyant_ratio: Some(1.5),
            clairvoyant_replicas_mean: Some(200.0 / 150.0),
        };
        assert_eq!(run.row, expected);
    }

    #[test]
    fn what_cannot_be_known_is_nothing() {
        let outcome = Outcome { seconds: vec![Second::default(); 60], replica_s: 60.0, ..Outcome::default() };
        let common = Common { clairvoyant_replica_s: 0.0, ..COMMON };
        let row = Run::simulated("slo".to_owned(), "central".to_owned(), outcome, &common).row;
        assert_eq!((row.missed_share, row.refused_share, row.clairvoyant_ratio), (None, None, None));
        // A minute without requests breaks no promise.
        assert_eq!(row.bad_minutes_share, Some(0.0));
        assert_eq!(bad_minutes_share(&[]), None);
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["missed_share"].is_null() && json["clairvoyant_ratio"].is_null());
    }

    #[test]
    fn a_record_is_told_as_it_was() {
        let text = crate::simulate::record::tests::history(&[(5, 0, None), (4, 3, Some(2)), (7, 0, Some(5))]);
        let run = Run::recorded(&Record::parse(&text.to_string()).unwrap());
        let row = &run.row;
        assert_eq!((row.policy.as_str(), row.requests, row.replicas_max), ("recorded", 16, 6));
        // Three were refused beside the sixteen that were answered.
        assert_eq!((row.missed_share, row.replicas_mean), (Some(3.0 / 19.0), Some(3.5)));
        assert_eq!((row.replica_seconds, row.clairvoyant_ratio), (None, None));
        assert_eq!(run.seconds.len(), 3);
    }
}
