//! What a replica counts of itself.
use crate::logic::batch::Reason;
use crate::net::metrics::{LATENCY_EDGES_S, registry, render};
use crate::net::wire::TimingMs;
use axum::response::Response;
use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

const BATCH_EDGES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

pub(super) struct Metrics {
    registry: Registry,
    stages: Family<Stage, Histogram, fn() -> Histogram>,
    batches: Family<Limit, Histogram, fn() -> Histogram>,
    expired: Counter,
}

impl Metrics {
    pub(super) fn new(model: &str) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_EDGES_S);
        let stages = Family::new_with_constructor(histogram);
        let histogram: fn() -> Histogram = || Histogram::new(BATCH_EDGES);
        let batches = Family::new_with_constructor(histogram);
        let expired = Counter::default();
        let mut registry = registry();
        let model = Info::new([("model".to_owned(), model.to_owned())]);
        registry.register("replica", "The network that answers", model);
        let help = "Time of a classification by stage: queue, decode, infer";
        registry.register("replica_stage_duration_seconds", help, stages.clone());
        let help = "Images that a worker took together, by what kept further ones out: the most allowed (full), an \
                    idle worker (shared), a deadline, or that waiting would cost more than it saves (no-gain)";
        registry.register("replica_batch_images", help, batches.clone());
        let help = "Images whose time ran out before they were decoded";
        registry.register("replica_expired", help, expired.clone());
        Self { registry, stages, batches, expired }
    }

    pub(super) fn classified(&self, timing: &TimingMs) {
        for (stage, ms) in [("queue", timing.queue), ("decode", timing.decode), ("infer", timing.infer)] {
            self.stages.get_or_create(&Stage { stage }).observe(ms / 1000.0);
        }
    }

    pub(super) fn batch(&self, images: usize, reason: Reason) {
        self.batches.get_or_create(&Limit { limit: reason.name() }).observe(images as f64);
    }

    /// Counts images whose time ran out before they were decoded.
    pub(super) fn expired(&self) -> Counter {
        self.expired.clone()
    }

    pub(super) fn render(&self, headers: &HeaderMap) -> Response {
        render(&self.registry, headers)
    }
}
