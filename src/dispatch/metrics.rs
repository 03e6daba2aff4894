//! What a dispatcher counts of itself.
use super::pool::Snapshot;
use super::wire::Ended;
use crate::logic::queue::Refusal;
use crate::net::metrics::{LATENCY_EDGES_S, registry, render};
use axum::response::Response;
use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

pub(super) struct Metrics {
    registry: Registry,
    duration: Family<Labels, Histogram, fn() -> Histogram>,
    retries: Counter,
    hedges: Counter,
    refusals: Family<Reason, Counter>,
    lost: Counter,
    in_flight: Gauge,
    waiting: Gauge,
    slots: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_EDGES_S);
        let metrics = Self {
            registry: registry(),
            duration: Family::new_with_constructor(histogram),
            retries: Counter::default(),
            hedges: Counter::default(),
            refusals: Family::default(),
            lost: Counter::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            slots: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        let help = "From the whole request to its answer, by outcome";
        registry.register("dispatch_duration_seconds", help, self.duration.clone());
        registry.register(
            "dispatch_retries",
            "Requests tried again on another replica",
            self.retries.clone(),
        );
        registry.register(
            "dispatch_hedges",
            "Requests sent to a second replica because the first took too long",
            self.hedges.clone(),
        );
        registry.register("dispatch_refusals", "Requests that got no slot, by reason", self.refusals.clone());
        registry.register(
            "dispatch_reports_lost",
            "Outcomes that the monitor never heard of",
            self.lost.clone(),
        );
        registry.register("dispatch_in_flight", "Requests on replicas", self.in_flight.clone());
        registry.register("dispatch_waiting", "Requests waiting for a slot", self.waiting.clone());
        registry.register("dispatch_slots", "Slots of the ready replicas", self.slots.clone());
        self
    }

    pub(super) fn ended(&self, ended: &Ended) {
        let labels = Labels { outcome: ended.outcome.name() };
        self.duration.get_or_create(&labels).observe(ended.latency_ms / 1000.0);
    }

    pub(super) fn retried(&self) {
        self.retries.inc();
    }

    pub(super) fn hedged(&self) {
        self.hedges.inc();
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::Full { .. } => "full",
            Refusal::Hopeless => "deadline",
            Refusal::Expired => "expired",
        };
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn lost(&self, outcomes: u64) {
        self.lost.inc_by(outcomes);
    }

    pub(super) fn render(&self, pool: &Snapshot, headers: &HeaderMap) -> Response {
        self.in_flight.set(i64::from(pool.in_flight));
        self.waiting.set(i64::from(pool.waiting));
        self.slots.set(i64::from(pool.slots));
        render(&self.registry, headers)
    }
}
