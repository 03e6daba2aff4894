//! What really happened, as a monitor recorded it: its answer to `GET /history`.
//!
//! **Invariant**: the seconds of a record that was read follow one another without a gap, and no count contradicts
//! another.
use crate::net::client;
use crate::net::files::read_text;
use crate::sim::{COUNTED_MAX, Requests, Second};
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// Largest record, bytes.
const RECORD_BYTES_MAX: usize = 256 << 20;
/// Longest record, seconds: a week, as with workloads.
const SECONDS_MAX: usize = 7 * 86_400;
/// How long a monitor may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// The part of the monitor's answer that matters here.
#[derive(Debug, Deserialize)]
struct History {
    promise_ms: f64,
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    t_s: u64,
    arrivals: u64,
    ok: u64,
    shed: u64,
    errors: u64,
    over_promise: u64,
    replicas_ready: Option<u32>,
    replicas_starting: Option<u32>,
}

/// A second that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) arrivals: u32,
    /// Requests that ended in it, and those of them over the promise. They may have arrived earlier.
    pub(super) ended: u64,
    pub(super) over_promise: u64,
    /// Replicas at its end: ready, and those with the starting ones.
    pub(super) replicas: Option<(u32, u32)>,
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// The promise that its requests are judged by.
    pub(super) promise: Duration,
    pub(super) seconds: Vec<Recorded>,
}

impl Record {
    /// Reads a record from a file or asks a monitor, whose URL may be its base or that of its history.
    pub(super) async fn read(place: &str) -> anyhow::Result<Self> {
        let text = if place.starts_with("http://") || place.starts_with("https://") {
            ask(place).await?
        } else {
            read_text("record", Path::new(place), RECORD_BYTES_MAX as u64)
                .context("name a monitor's URL or a file with its answer to GET /history with --record")?
        };
        Self::parse(&text).with_context(|| format!("record {place}"))
    }

    /// Reads the answer of a monitor.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let history: History =
            serde_json::from_str(text).context("this is not what a monitor answers to GET /history")?;
        let promise = Duration::try_from_secs_f64(history.promise_ms / 1e3).ok();
        let promise = promise.filter(|promise| (0.001..=86_400.0).contains(&promise.as_secs_f64()));
        let promise = promise.with_context(|| format!("a promise of {} ms is none", history.promise_ms))?;
        let points = history.points;
        ensure!(!points.is_empty(), "it has no second that is over: wait, or save it after a run");
        ensure!(points.len() <= SECONDS_MAX, "over {SECONDS_MAX} seconds: cut it");
        for pair in points.windows(2) {
            let (one, next) = (pair[0].t_s, pair[1].t_s);
            ensure!(
                one.checked_add(1) == Some(next),
                "second {one} is followed by {next}: seconds must follow one another without a gap, so cut the \
                 record to a part that does"
            );
        }
        let seconds: Vec<Recorded> = points.iter().map(Point::check).collect::<anyhow::Result<_>>()?;
        ensure!(seconds.iter().any(|second| second.arrivals > 0), "not one request arrived in it");
        Ok(Self { promise, seconds })
    }

    /// The same arrivals, to be played again.
    pub(super) fn requests(&self, seed: u64) -> Requests {
        let seconds = self.seconds.iter().map(|second| second.arrivals).collect();
        Requests::Counted { seconds, seed }
    }

    /// Requests that arrived.
    pub(super) fn arrivals(&self) -> u64 {
        self.seconds.iter().map(|second| u64::from(second.arrivals)).sum()
    }

    /// The first number of ready replicas that is known and above 0.
    pub(super) fn replicas_start(&self) -> Option<u32> {
        let known = self.seconds.iter().filter_map(|second| second.replicas);
        known.map(|(ready, _)| ready).find(|ready| *ready > 0)
    }

    /// The record in the simulator's words; replicas stay as they were where nothing is known of them.
    pub(super) fn played(&self) -> Vec<Second> {
        let mut last = (0, 0);
        let play = |second: &Recorded| {
            last = second.replicas.unwrap_or(last);
            let missed = u32::try_from(second.over_promise).unwrap_or(u32::MAX);
            Second { arrivals: second.arrivals, missed, desired: last.1, ready: last.0 }
        };
        self.seconds.iter().map(play).collect()
    }
}

impl Point {
    fn check(&self) -> anyhow::Result<Recorded> {
        let t_s = self.t_s;
        let arrivals = u32::try_from(self.arrivals).ok().filter(|arrivals| *arrivals <= COUNTED_MAX);
        let arrivals = arrivals.with_context(|| {
            format!(
                "second {t_s}: {} arrivals are over {COUNTED_MAX}, the most that is played",
                self.arrivals
            )
        })?;
        let ended = self.ok.checked_add(self.shed).and_then(|ended| ended.checked_add(self.errors));
        let ended =
            ended.filter(|ended| *ended >= self.over_promise && *ended < 1 << 40).with_context(|| {
                format!(
                    "second {t_s}: {} requests over the promise are more than ended in it",
                    self.over_promise
                )
            })?;
        let replicas = self
            .replicas_ready
            .map(|ready| (ready, ready.saturating_add(self.replicas_starting.unwrap_or(0))));
        Ok(Recorded { arrivals, ended, over_promise: self.over_promise, replicas })
    }
}

/// Asks a monitor for its history.
async fn ask(place: &str) -> anyhow::Result<String> {
    let base = client::base_url(place).context("--record")?;
    let url = if base.ends_with("/history") { base } else { format!("{base}/history") };
    let answer = client::client(ANSWER_TIME_MAX)?.get(&url).send().await;
    let answer = answer.with_context(|| format!("{url} does not answer; is a monitor running there?"))?;
    let status = answer.status();
    ensure!(status.is_success(), "{url} answers {status}; is it a monitor?");
    let body = client::read_answer(answer, RECORD_BYTES_MAX).await;
    let Some(body) = body.with_context(|| format!("the answer of {url} broke off"))? else {
        bail!("the answer of {url} is larger than {RECORD_BYTES_MAX} bytes");
    };
    String::from_utf8(body.into()).with_context(|| format!("the answer of {url} is no text"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A monitor's answer with these seconds: arrivals, over the promise, ready replicas.
    pub(in crate::simulate) fn history(seconds: &[(u64, u64, Option<u32>)]) -> Value {
        let point = |(t_s, (arrivals, over, ready)): (usize, &(u64, u64, Option<u32>))| {
            json!({
                "t_s": t_s + 40, "p50_ms": null, "p99_ms": 120.5, "max_ms": null, "arrivals": arrivals, "ok": arrivals,
                "shed": over, "errors": 0, "over_promise": over, "in_flight": 1, "queue_depth": 0,
                "replicas_ready": ready, "replicas_starting": ready.map(|_| 1), "replicas_draining": 0, "slots": 2,
            })
        };
        let points: Vec<Value> = seconds.iter().enumerate().map(point).collect();
        json!({
            "now_s": 99.5, "started_unix_s": 1.7e9, "history_s": 600, "target_ms": 410.0, "promise_ms": 500.0,
            "points": points,
        })
    }

    #[test]
    fn a_record_is_its_seconds() {
        let text = history(&[(5, 0, None), (0, 1, Some(2)), (7, 0, None)]).to_string();
        let record = Record::parse(&text).unwrap();
        assert_eq!(record.promise, Duration::from_millis(500));
        assert_eq!((record.arrivals(), record.replicas_start()), (12, Some(2)));
        let second = |arrivals, missed, desired, ready| Second { arrivals, missed, desired, ready };
        assert_eq!(record.played(), [second(5, 0, 0, 0), second(0, 1, 3, 2), second(7, 0, 3, 2)]);
        let Requests::Counted { seconds, seed } = record.requests(9) else { panic!("counted") };
        assert_eq!((seconds, seed), (vec![5, 0, 7], 9));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let good = || history(&[(5, 0, Some(1)), (3, 1, Some(1)), (7, 0, None)]);
        let refused = |change: &dyn Fn(&mut Value), says: &str| {
            let mut history = good();
            change(&mut history);
            let error = format!("{:#}", Record::parse(&history.to_string()).unwrap_err());
            assert!(error.contains(says), "{error} does not say {says}");
        };
        assert!(Record::parse(&good().to_string()).is_ok());
        refused(&|history| history["points"][1]["t_s"] = 45.into(), "second 40 is followed by 45");
        refused(&|history| history["points"][1]["t_s"] = 40.into(), "second 40 is followed by 40");
        refused(&|history| history["points"][1]["t_s"] = u64::MAX.into(), "followed by 18446744073709551615");
        refused(&|history| history["points"][1]["over_promise"] = 9.into(), "second 41: 9 requests over");
        refused(&|history| history["points"][1]["ok"] = u64::MAX.into(), "second 41");
        refused(
            &|history| history["points"][1]["arrivals"] = 100_001.into(),
            "100001 arrivals are over 100000",
        );
        refused(&|history| history["points"][1]["arrivals"] = (-1).into(), "not what a monitor answers");
        refused(&|history| history["points"][1]["arrivals"] = Value::Null, "not what a monitor answers");
        refused(&|history| history["points"] = json!([]), "no second that is over");
        refused(&|history| history["promise_ms"] = 0.into(), "a promise of 0 ms is none");
        refused(&|history| history["promise_ms"] = (-5).into(), "a promise of -5 ms is none");
        refused(
            &|history| (0..3).for_each(|at| history["points"][at]["arrivals"] = 0.into()),
            "not one request",
        );
        assert!(Record::parse("[]").is_err() && Record::parse("").is_err());
    }

    #[tokio::test]
    async fn a_record_that_is_not_there_is_named() {
        let error = format!("{:#}", Record::read("absent.json").await.unwrap_err());
        assert!(error.contains("cannot read the record absent.json"), "{error}");
        assert!(error.contains("GET /history"), "{error}");
    }
}
