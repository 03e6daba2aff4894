//! What the modes say to each other, as JSON. Field names carry their unit.
use crate::logic::policy::ARRIVALS_S;
use crate::model::Prediction;
use serde::{Deserialize, Serialize};

/// Milliseconds a request has left when it is handed on.
pub const DEADLINE_HEADER: &str = "x-elastic-deadline-ms";
/// Where the time of a request went, on every answer: `queue;dur=…, decode;dur=…, infer;dur=…`.
pub const SERVER_TIMING: &str = "server-timing";

/// Answer to `POST /predict`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifyAnswer {
    /// The network that answered.
    pub model: String,
    /// Most probable classes, best first.
    pub predictions: Vec<Prediction>,
    /// Where the time went inside the replica.
    pub timing_ms: TimingMs,
}

/// Where the time of one request went inside a replica, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingMs {
    /// Waiting for a worker thread, and for the rest of its batch.
    pub queue: f64,
    /// Image bytes to the network's input.
    pub decode: f64,
    /// The network itself, on the whole batch.
    pub infer: f64,
}

/// How a request ended, as its client felt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered (a 4xx for a bad image is an answer).
    Ok,
    /// Refused at once: too busy, or the deadline could not be met.
    Shed,
    /// No replica could answer.
    Error,
    /// The time-out passed first.
    Timeout,
    /// The client went away first.
    Aborted,
}

impl Outcome {
    /// Whether the request counts against the promise whatever its latency.
    #[must_use]
    pub fn is_miss(self) -> bool {
        self != Self::Ok
    }

    /// Its name on the wire and in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Shed => "shed",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Aborted => "aborted",
        }
    }
}

/// One request that ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// From the last byte of the request to the answer, milliseconds.
    pub latency_ms: f64,
    /// How long it waited for a replica's slot before its last try, milliseconds; absent where it never got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<f64>,
    /// How long it held a replica's slot, milliseconds; absent where it never reached one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ms: Option<f64>,
}

/// What a dispatcher tells the monitor a few times a second, also when idle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Names the dispatcher; the same for its whole life.
    pub source: String,
    /// Grows by one a report, so that a report sent again is counted once.
    pub sequence: u64,
    /// Requests that arrived whole since the last report.
    pub arrivals: u64,
    /// Requests that ended since the last report, in the order in which they ended.
    pub ended: Vec<Ended>,
    /// Ended requests that the bounded buffer had to drop while the monitor was away.
    pub lost: u64,
    /// Requests on a replica now.
    pub in_flight: u32,
    /// Requests waiting for a slot now.
    pub queue_depth: u32,
    /// Slots of the replicas that are ready now.
    pub slots: u32,
    /// Every replica this dispatcher knows.
    pub replicas: Vec<ReplicaStatus>,
}

/// State of a replica as a dispatcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Known but not ready yet.
    Starting,
    /// Takes requests.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Was ready and does not answer.
    Down,
    /// Answers, but failed too often; it is tried again after a while.
    Ejected,
}

impl ReplicaState {
    /// Its name on the wire and in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Ejected => "ejected",
        }
    }
}

/// `GET /readyz` at a replica, with status 200 when it is ready and 503 when not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Takes requests.
    pub ready: bool,
    /// The network it runs.
    pub model: String,
    /// Requests it takes at once.
    pub slots: u32,
}

/// One replica as a dispatcher sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Base URL of the replica.
    pub url: String,
    /// Its state.
    pub state: ReplicaState,
    /// Requests it takes at once.
    pub slots: u32,
    /// Requests it has now.
    pub in_flight: u32,
    /// Requests it has answered since this dispatcher knows it.
    #[serde(default)]
    pub answered: u64,
    /// Where the time of its latest answers went, a moving mean; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages_ms: Option<TimingMs>,
}

/// `POST /replicas` at a dispatcher's admin address: a replica says that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Base URL under which the dispatcher reaches the replica.
    pub url: String,
    /// Requests it takes at once.
    pub slots: u32,
}

/// The line a child replica writes to standard output when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Base URL of the replica.
    pub ready: String,
    /// From its start to its readiness, as it counted itself, milliseconds.
    pub startup_ms: u64,
}

/// `GET /stats` at the monitor. `null` where there was no traffic, never 0 or NaN.
///
/// Percentiles are over the window's latencies from the dispatcher's door to the answer. Requests that were
/// shed, failed, timed out or were given up count as slower than every answered one, so that shedding can
/// never look like health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When this was said, seconds since the monitor's start. A poll that must not miss a bad second hands it
    /// back as `?since=`.
    #[serde(default)]
    pub now_s: f64,
    /// When the monitor started, seconds since the Unix epoch; changes when it is started again.
    #[serde(default)]
    pub started_unix_s: f64,
    /// Latencies in the window.
    pub samples: usize,
    /// Age of the window's oldest latency, seconds.
    pub window_s: Option<f64>,
    /// Seconds since a dispatcher last reported; a big one means that the rest is stale.
    pub age_s: Option<f64>,
    /// Median, milliseconds. A percentile that falls on a miss reads as the miss's latency or, where that
    /// is larger, the promise or the window's slowest answer.
    pub p50_ms: Option<f64>,
    /// 90th percentile, milliseconds.
    pub p90_ms: Option<f64>,
    /// 95th percentile, milliseconds.
    pub p95_ms: Option<f64>,
    /// 99th percentile, milliseconds.
    pub p99_ms: Option<f64>,
    /// 95 % confidence interval of the 99th percentile from order statistics, milliseconds.
    pub p99_ci_ms: Option<[f64; 2]>,
    /// Slowest, milliseconds.
    pub max_ms: Option<f64>,
    /// Mean, milliseconds.
    pub mean_ms: Option<f64>,
    /// Requests that arrived a second, over the last 15 s.
    pub arrival_rps: Option<f64>,
    /// Requests answered a second, over the last 15 s.
    pub throughput_rps: Option<f64>,
    /// Requests that arrived in each of the last seconds, the latest first; they slide, the first ends now.
    #[serde(default)]
    pub arrivals: [u32; ARRIVALS_S],
    /// How long ago the first report came, seconds: of an earlier second nothing is known.
    #[serde(default)]
    pub arrivals_known_s: f64,
    /// Requests that ended, since the monitor started.
    #[serde(default)]
    pub ended: u64,
    /// Of these, over the latency that is aimed at, refused, failed, timed out or given up, without those that held
    /// a slot for longer than that by themselves: what more replicas could have prevented.
    #[serde(default)]
    pub missed: u64,
    /// Requests refused, since the monitor started.
    pub shed: u64,
    /// Requests that failed, timed out or were given up by the client, since the monitor started.
    pub errors: u64,
    /// Requests on replicas now.
    pub in_flight: u32,
    /// Requests waiting for a slot now.
    pub queue_depth: u32,
    /// How long a request holds a slot, over the whole window however few seconds are asked about.
    pub service_ms: Option<ServiceMs>,
    /// Slots of the replicas that are ready.
    pub slots: u32,
    /// Every replica that a dispatcher knows.
    pub replicas: Vec<ReplicaStatus>,
    /// Changes whenever the set of ready replicas changes.
    pub epoch: u64,
    /// Ended requests that dispatchers had to drop unreported, since the monitor started.
    pub lost: u64,
    /// The last seconds, from the histogram of each; `null` where nothing arrived and nothing ended in them.
    #[serde(default)]
    pub recent: Option<Span>,
    /// Everything since the time that was asked about; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
}

/// What the histograms of some whole seconds say together. Percentiles read at most 0.8 % and 0.01 ms too high.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Its first second, counted from the monitor's start.
    pub from_s: u64,
    /// How long it is, up to now, seconds.
    pub seconds: f64,
    /// Requests that ended.
    pub samples: u64,
    /// Median, milliseconds; misses read as in [`Stats`].
    pub p50_ms: Option<f64>,
    /// 90th percentile, milliseconds.
    pub p90_ms: Option<f64>,
    /// 95th percentile, milliseconds.
    pub p95_ms: Option<f64>,
    /// 99th percentile, milliseconds.
    pub p99_ms: Option<f64>,
    /// 95 % confidence interval of the 99th percentile from order statistics, milliseconds.
    pub p99_ci_ms: Option<[f64; 2]>,
    /// Slowest, milliseconds.
    pub max_ms: Option<f64>,
    /// Mean, milliseconds.
    pub mean_ms: Option<f64>,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests refused.
    pub shed: u64,
    /// Requests that failed, timed out or were given up.
    pub errors: u64,
    /// Requests over the promise: answered too late, refused, failed, timed out or given up.
    pub over_promise: u64,
    /// Their share of the requests that ended.
    pub over_promise_share: Option<f64>,
    /// How long requests waited in the dispatchers for a replica's slot.
    pub waited_ms: Option<WaitedMs>,
}

/// How long requests waited in the dispatchers for a replica's slot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitedMs {
    /// Mean, milliseconds.
    pub mean: f64,
    /// Longest, milliseconds.
    pub max: f64,
}

/// Everything that ended since a time. Whole seconds: the one in which the time lies counts as a whole, so that
/// two polls in a row may tell of the same request, but none is left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Since {
    /// The time that was asked about, seconds since the monitor's start.
    pub asked_s: f64,
    /// Whether everything since then is told.
    pub complete: bool,
    /// Why not, where it is not.
    pub missing: Option<Missing>,
    /// What is told.
    #[serde(flatten)]
    pub span: Span,
    /// The second with the largest 99th percentile, and of several the one with the most over the promise.
    pub worst: Option<WorstSecond>,
}

/// Why an answer does not reach back as far as was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The time lies further back than seconds are kept.
    Horizon,
    /// The monitor was started again since; what it knew before is lost.
    Restart,
}

/// One second that was worse than the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorstSecond {
    /// The second, counted from the monitor's start.
    pub t_s: u64,
    /// Requests that ended in it.
    pub samples: u64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Slowest, milliseconds.
    pub max_ms: f64,
    /// Requests over the promise.
    pub over_promise: u64,
}

/// How long a request holds a slot, over the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceMs {
    /// Mean, milliseconds.
    pub mean: f64,
    /// 95th percentile, milliseconds.
    pub p95: f64,
    /// Coefficient of variation: standard deviation over mean.
    pub cv: f64,
}
