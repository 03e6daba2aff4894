//! The monitor's `/metrics`.
//!
//! **Invariant**: a gauge of something unknown is absent, never 0 or NaN.
use crate::monitor::Config;
use crate::net::metrics::{LATENCY_EDGES_S, registry, render};
use crate::net::wire::{Outcome, ReplicaState, Report, Stats};
use axum::response::Response;
use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// How a request ended, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// State of a replica, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

/// A gauge that is there only while its value is known.
type KnownGauge = Family<Vec<(String, String)>, Gauge<f64, AtomicU64>>;

const OUTCOMES: [Outcome; 5] =
    [Outcome::Ok, Outcome::Shed, Outcome::Error, Outcome::Timeout, Outcome::Aborted];
const STATES: [ReplicaState; 5] = [
    ReplicaState::Starting,
    ReplicaState::Ready,
    ReplicaState::Draining,
    ReplicaState::Down,
    ReplicaState::Ejected,
];

/// Counters that reports move, and gauges that are set whenever someone reads.
#[derive(Debug)]
pub(super) struct Exposition {
    registry: Registry,
    durations: Family<ByOutcome, Histogram, fn() -> Histogram>,
    waits: Histogram,
    services: Histogram,
    requests: Family<ByOutcome, Counter>,
    over_promise: Counter,
    promise_ms: f64,
    arrivals: Counter,
    lost: Counter,
    in_flight: Gauge,
    queue_depth: Gauge,
    slots: Gauge,
    subscribers: Gauge,
    replicas: Family<ByState, Gauge>,
    p50: KnownGauge,
    p99: KnownGauge,
    report_age: KnownGauge,
}

impl Exposition {
    /// Registers every metric, each outcome at zero, so that a rate over them starts at the first request.
    pub(super) fn new(config: &Config) -> Self {
        let registry = registry();
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_EDGES_S);
        let durations = Family::new_with_constructor(histogram);
        let requests = Family::default();
        for outcome in OUTCOMES {
            drop(durations.get_or_create(&ByOutcome { outcome: outcome.name() }));
            drop(requests.get_or_create(&ByOutcome { outcome: outcome.name() }));
        }
        let exposition = Self {
            durations,
            waits: histogram(),
            services: histogram(),
            requests,
            over_promise: Counter::default(),
            promise_ms: config.promise.as_secs_f64() * 1e3,
            arrivals: Counter::default(),
            lost: Counter::default(),
            in_flight: Gauge::default(),
            queue_depth: Gauge::default(),
            slots: Gauge::default(),
            subscribers: Gauge::default(),
            replicas: Family::default(),
            p50: KnownGauge::default(),
            p99: KnownGauge::default(),
            report_age: KnownGauge::default(),
            registry: Registry::default(),
        };
        exposition.registered(config, registry)
    }

    fn registered(self, config: &Config, mut registry: Registry) -> Self {
        let it = &self;
        let help =
            "From the dispatcher's door to the answer, as it was (a miss is not raised to the promise)";
        registry.register_with_unit("request_duration", help, Unit::Seconds, it.durations.clone());
        let help = "Waiting in the dispatcher for a replica's slot, of the requests that got one";
        registry.register_with_unit("request_wait", help, Unit::Seconds, it.waits.clone());
        let help = "Holding a replica's slot, of the requests that got one";
        registry.register_with_unit("request_service", help, Unit::Seconds, it.services.clone());
        registry.register("requests", "Requests that ended", it.requests.clone());
        let help = "Requests answered later than the promise, shed, failed, timed out or given up";
        registry.register("requests_over_promise", help, it.over_promise.clone());
        registry.register("arrivals", "Requests that arrived", it.arrivals.clone());
        registry.register("lost", "Ended requests that dispatchers dropped unreported", it.lost.clone());
        registry.register("in_flight", "Requests on replicas now", it.in_flight.clone());
        registry.register("queue_depth", "Requests waiting for a slot now", it.queue_depth.clone());
        registry.register("slots", "Slots of the replicas that are ready now", it.slots.clone());
        registry.register("replicas", "Replicas now", it.replicas.clone());
        registry.register("subscribers", "Readers of the monitor's events now", it.subscribers.clone());
        let help = "Median over the rolling window; absent without traffic";
        registry.register_with_unit("request_p50", help, Unit::Seconds, it.p50.clone());
        let help = "99th percentile over the rolling window, misses over the promise; absent without traffic";
        registry.register_with_unit("request_p99", help, Unit::Seconds, it.p99.clone());
        let help = "Time since a dispatcher last reported; absent before the first report";
        registry.register_with_unit("report_age", help, Unit::Seconds, it.report_age.clone());
        for (name, help, time) in [
            ("promise", "Latency that was promised", config.promise),
            ("target", "Latency that is aimed at", config.target_latency),
        ] {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(time.as_secs_f64());
            registry.register_with_unit(name, help, Unit::Seconds, gauge);
        }
        Self { registry, ..self }
    }

    /// Counts a report that was seen for the first time.
    pub(super) fn record(&self, report: &Report) {
        self.arrivals.inc_by(report.arrivals);
        self.lost.inc_by(report.lost);
        for ended in &report.ended {
            let label = ByOutcome { outcome: ended.outcome.name() };
            self.requests.get_or_create(&label).inc();
            self.durations.get_or_create(&label).observe(ended.latency_ms / 1e3);
            if ended.outcome.is_miss() || ended.latency_ms > self.promise_ms {
                self.over_promise.inc();
            }
            for (histogram, ms) in [(&self.waits, ended.waited_ms), (&self.services, ended.service_ms)] {
                if let Some(ms) = ms {
                    histogram.observe(ms / 1e3);
                }
            }
        }
    }

    /// The text that `headers` ask for, with the gauges of `stats`.
    pub(super) fn render(&self, stats: &Stats, subscribers: usize, headers: &HeaderMap) -> Response {
        self.in_flight.set(stats.in_flight.into());
        self.queue_depth.set(stats.queue_depth.into());
        self.slots.set(stats.slots.into());
        self.subscribers.set(i64::try_from(subscribers).unwrap_or(i64::MAX));
        for state in STATES {
            let count = stats.replicas.iter().filter(|replica| replica.state == state).count();
            self.replicas
                .get_or_create(&ByState { state: state.name() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        set(&self.p50, stats.p50_ms.map(|ms| ms / 1e3));
        set(&self.p99, stats.p99_ms.map(|ms| ms / 1e3));
        set(&self.report_age, stats.age_s);
        render(&self.registry, headers)
    }
}

fn set(gauge: &KnownGauge, value: Option<f64>) {
    match value {
        Some(value) => drop(gauge.get_or_create(&Vec::new()).set(value)),
        None => gauge.clear(),
    }
}
