//! What the monitor and the autoscaler say about the time of a run: replicas and decisions on its time axis.
//!
//! Both count ages from their own now, so what they say is placed by how long ago it was when they answered. No
//! two machines' clocks have to agree.
//!
//! **Invariant**: a run never fails or waits for the monitor; what it could not tell is said in the report.
use crate::load::Args;
use crate::load::record::Snapshot;
use crate::net::client;
use anyhow::Context as _;
use reqwest::{Client, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it is asked; a monitor remembers minutes, and a run may take days.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// A second of the monitor is told when it is over and the dispatcher's report is in.
const LAST_SECOND: Duration = Duration::from_millis(1500);
/// Most seconds and most decisions that a report holds.
const SECONDS_MAX: usize = 1_000_000;
const DECISIONS_MAX: usize = 10_000;
/// Most complaints that a report holds.
const PROBLEMS_MAX: usize = 5;

/// The number of replicas at a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Replicas {
    /// When, seconds since the start of the run.
    pub(crate) t: f64,
    /// Those that take requests.
    pub(crate) ready: u32,
    /// Those that are starting.
    pub(crate) starting: u32,
}

/// A decision to change the number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Change {
    /// When, seconds since the start of the run.
    pub(crate) t: f64,
    /// Replicas before.
    pub(crate) from: u32,
    /// Replicas decided on.
    pub(crate) to: u32,
    /// Why.
    pub(crate) reason: String,
    /// Whether it was carried out.
    pub(crate) applied: bool,
}

/// What was seen of the fleet during a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Seen {
    /// Replicas, a point a second.
    pub(crate) replicas: Vec<Replicas>,
    /// Decisions that changed their number.
    pub(crate) decisions: Vec<Change>,
    /// What could not be read.
    pub(crate) problems: Vec<String>,
}

/// `GET /history` of the monitor, as far as it is used here.
#[derive(Debug, Deserialize)]
struct History {
    now_s: f64,
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    t_s: u64,
    replicas_ready: Option<u32>,
    replicas_starting: Option<u32>,
}

/// `GET /decisions` of the autoscaler, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Decisions {
    decisions: Vec<Decision>,
}

#[derive(Debug, Deserialize)]
struct Decision {
    at_unix_s: f64,
    age_s: f64,
    replicas_before: u32,
    replicas: u32,
    reason: String,
    #[serde(default)]
    applied: bool,
}

/// Reads the monitor and the autoscaler while a run lasts.
pub(crate) struct Fleet {
    client: Client,
    history: Option<Url>,
    decisions: Option<Url>,
    answer_bytes_max: usize,
    start: Instant,
    /// The monitor's last second that was read.
    since: Option<u64>,
    replicas: BTreeMap<u64, Replicas>,
    changes: BTreeMap<u64, Change>,
    problems: BTreeSet<String>,
}

impl Fleet {
    /// Reads what `args` name.
    pub(crate) fn new(args: &Args) -> anyhow::Result<Self> {
        let decisions = args.autoscaler.as_ref().or(args.monitor.as_ref());
        Ok(Self {
            client: client::client(args.timeout).context("cannot make an HTTP client")?,
            history: args.monitor.as_ref().map(|base| below(base, "history")),
            decisions: decisions.map(|base| below(base, "decisions")),
            answer_bytes_max: args.answer_bytes_max,
            start: Instant::now(),
            since: None,
            replicas: BTreeMap::new(),
            changes: BTreeMap::new(),
            problems: BTreeSet::new(),
        })
    }

    /// Asks every minute and once more when the run is over, which is when nobody sends snapshots any more.
    /// Instants count from `start`.
    pub(crate) async fn watch(&mut self, start: Instant, mut snapshots: watch::Receiver<Snapshot>) {
        self.start = start;
        if self.decisions.is_none() {
            return;
        }
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { break },
                _ = ticks.tick() => self.ask().await,
            }
        }
        tokio::time::sleep(LAST_SECOND).await;
        self.ask().await;
    }

    /// What was seen; `None` where nobody was asked.
    pub(crate) fn seen(self) -> Option<Seen> {
        self.decisions.is_some().then(|| Seen {
            replicas: self.replicas.into_values().collect(),
            decisions: self.changes.into_values().collect(),
            problems: self.problems.into_iter().collect(),
        })
    }

    async fn ask(&mut self) {
        if let Some(mut url) = self.history.clone() {
            // Before the first answer the monitor's clock is not known: points of before the run would be thrown
            // away, and there may be a day of them.
            let since = self.since.unwrap_or(u64::MAX);
            url.set_query(Some(&format!("since={since}")));
            match self.get(url).await {
                Ok(history) => self.take_history(history, self.start.elapsed()),
                Err(error) => self.complain(&error),
            }
        }
        if let Some(url) = self.decisions.clone() {
            match self.get(url).await {
                Ok(decisions) => self.take_decisions(decisions, self.start.elapsed()),
                Err(error) => self.complain(&error),
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, url: Url) -> anyhow::Result<T> {
        let answer = async {
            let answer = self.client.get(url.clone()).send().await?.error_for_status()?;
            client::read_answer(answer, self.answer_bytes_max).await
        };
        let place = url.as_str().split('?').next().unwrap_or_default();
        let body = answer.await.map_err(reqwest::Error::without_url);
        let body = body.with_context(|| format!("cannot read {place}"))?;
        let body = body.with_context(|| format!("{place} answers more than --answer-bytes-max"))?;
        serde_json::from_slice(&body).with_context(|| format!("cannot understand {place}"))
    }

    fn take_history(&mut self, history: History, elapsed: Duration) {
        // The run's time on the monitor's clock and back.
        let run_s = |monitor_s: f64| elapsed.as_secs_f64() - (history.now_s - monitor_s);
        let restarted = self.since.is_some_and(|since| history.now_s < since as f64);
        let last = history.points.last().map(|point| point.t_s);
        let first_s = (history.now_s - elapsed.as_secs_f64()).max(0.0) as u64;
        self.since = if restarted { None } else { last.or(self.since) };
        self.since.get_or_insert(first_s.saturating_sub(1));
        for point in history.points {
            // A point tells of the end of its second.
            let t = run_s(point.t_s as f64 + 1.0);
            let (Some(ready), Some(starting)) = (point.replicas_ready, point.replicas_starting) else {
                continue;
            };
            if t >= 0.0 && self.replicas.len() < SECONDS_MAX {
                self.replicas.insert((t * 1000.0) as u64, Replicas { t: round_ms(t), ready, starting });
            }
        }
    }

    fn take_decisions(&mut self, answer: Decisions, elapsed: Duration) {
        for decision in answer.decisions {
            let t = elapsed.as_secs_f64() - decision.age_s;
            let changes = decision.replicas != decision.replicas_before;
            if changes && t >= 0.0 && self.changes.len() < DECISIONS_MAX {
                let Decision { replicas_before: from, replicas: to, reason, applied, .. } = decision;
                let change = Change { t: round_ms(t), from, to, reason, applied };
                // The same decision is told again and again.
                self.changes.entry((decision.at_unix_s * 1000.0) as u64).or_insert(change);
            }
        }
    }

    fn complain(&mut self, error: &anyhow::Error) {
        let problem = format!("{error:#}");
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&problem) {
            tracing::warn!(problem, "the report will lack replicas or decisions");
            self.problems.insert(problem);
        }
    }
}

/// `http://host/base` and `history` make `http://host/base/history`.
fn below(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{name}", base.path().trim_end_matches('/')));
    url.set_query(None);
    url
}

fn round_ms(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Fleet {
        Fleet {
            client: client::client(Duration::from_secs(1)).unwrap(),
            history: None,
            decisions: Some(below(&Url::parse("http://h/scaler/").unwrap(), "decisions")),
            answer_bytes_max: 1000,
            start: Instant::now(),
            since: None,
            replicas: BTreeMap::new(),
            changes: BTreeMap::new(),
            problems: BTreeSet::new(),
        }
    }

    fn history(now_s: f64, seconds: std::ops::Range<u64>) -> History {
        let point = |t_s| Point { t_s, replicas_ready: Some(2), replicas_starting: Some(1) };
        History { now_s, points: seconds.map(point).collect() }
    }

    #[test]
    fn points_are_placed_by_how_long_ago_they_were() {
        let mut fleet = fleet();
        // The run started when the monitor's clock said 100.5.
        fleet.take_history(history(100.75, 0..0), Duration::from_millis(250));
        assert_eq!(fleet.since, Some(99));
        fleet.take_history(history(103.5, 100..103), Duration::from_secs(3));
        let mut hole = history(105.5, 103..105);
        hole.points[0].replicas_ready = None;
        fleet.take_history(hole, Duration::from_secs(5));
        assert_eq!(fleet.since, Some(104));
        let seen = fleet.seen().unwrap();
        assert_eq!(seen.replicas.iter().map(|at| at.t).collect::<Vec<_>>(), [0.5, 1.5, 2.5, 4.5]);
        assert_eq!((seen.replicas[0].ready, seen.replicas[0].starting), (2, 1));
    }

    #[test]
    fn a_monitor_that_started_again_is_read_from_its_start() {
        let mut fleet = fleet();
        fleet.take_history(history(100.0, 0..0), Duration::ZERO);
        fleet.take_history(history(160.0, 100..160), Duration::from_secs(60));
        fleet.take_history(history(20.0, 0..0), Duration::from_secs(120));
        assert_eq!(fleet.since, Some(0));
    }

    #[test]
    fn a_decision_is_kept_once_and_one_that_holds_is_none() {
        let mut fleet = fleet();
        let decision = |at_unix_s, age_s, replicas| Decision {
            at_unix_s,
            age_s,
            replicas_before: 2,
            replicas,
            reason: "p99".to_owned(),
            applied: true,
        };
        let answer = Decisions { decisions: vec![decision(990.0, 20.0, 3), decision(1005.0, 5.0, 3)] };
        fleet.take_decisions(answer, Duration::from_secs(10));
        let answer = Decisions { decisions: vec![decision(1005.0, 6.0004, 3), decision(1010.0, 1.0, 2)] };
        fleet.take_decisions(answer, Duration::from_secs(11));
        let seen = fleet.seen().unwrap();
        let [change] = &seen.decisions[..] else { panic!("{seen:?}") };
        assert_eq!((change.t, change.from, change.to), (5.0, 2, 3));
    }

    #[test]
    fn paths_of_a_base_are_kept() {
        assert_eq!(fleet().decisions.unwrap().as_str(), "http://h/scaler/decisions");
        assert_eq!(below(&Url::parse("http://h:1").unwrap(), "history").as_str(), "http://h:1/history");
    }
}
