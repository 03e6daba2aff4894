//! The rules by name.
use super::{
    Bounds, Hpa, HpaConfig, Kpa, KpaConfig, Policy, Ray, RayConfig, Slo, SloConfig, Step, StepConfig,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Share of what a replica can serve that rules with a rate as their target are told to aim at.
const RATE_TARGET: f64 = 0.8;

/// Every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// Fewest replicas that keep the latency promise, from arrivals, service times and queueing theory
    Slo,
    /// ×1.2 up unless p99 is under the target, else −1 down, every 10 s
    Step,
    /// The horizontal pod autoscaler of Kubernetes at 80 % CPU
    Hpa,
    /// The same on requests per replica
    HpaRps,
    /// KEDA's HTTP add-on at a request rate, through an HPA
    Keda,
    /// Knative's autoscaler (KPA) on concurrency, with its panic mode
    Kpa,
    /// Ray Serve on ongoing requests
    Ray,
}

/// What rules are told of the service that they scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Service {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Latency that is promised.
    pub promise: Duration,
    /// Time that a request holds a slot, as an operator would have measured it: some rules need a rate to aim at.
    pub service_time: Duration,
    /// Requests that a replica takes at once.
    pub slots: u32,
}

impl Name {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] =
        [Self::Slo, Self::Step, Self::Hpa, Self::HpaRps, Self::Keda, Self::Kpa, Self::Ray];

    /// The rule with its documented settings, before its first decision.
    #[must_use]
    pub fn policy(self, service: &Service) -> Box<dyn Policy + Send> {
        let &Service { bounds, promise, service_time, slots } = service;
        let target_ms = promise.as_secs_f64() * 1e3;
        let rate_target = RATE_TARGET * f64::from(slots) / service_time.as_secs_f64();
        match self {
            Self::Slo => Box::new(Slo::new(SloConfig::new(bounds, target_ms))),
            Self::Step => Box::new(Step::new(StepConfig::new(bounds, target_ms))),
            Self::Hpa => Box::new(Hpa::new(HpaConfig::cpu(bounds))),
            Self::HpaRps => Box::new(Hpa::new(HpaConfig::requests_per_replica(bounds, rate_target))),
            Self::Keda => Box::new(Hpa::new(HpaConfig::keda(bounds, rate_target))),
            Self::Kpa => Box::new(Kpa::new(KpaConfig::documented(bounds, slots))),
            Self::Ray => Box::new(Ray::new(RayConfig::documented(bounds, RayConfig::target_for(slots)))),
        }
    }

    /// Time between two observations; rules that act less often keep their own time.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_secs(if self == Self::Step { 10 } else { 1 })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Slo => "slo",
            Self::Step => "step",
            Self::Hpa => "hpa",
            Self::HpaRps => "hpa-rps",
            Self::Keda => "keda",
            Self::Kpa => "kpa",
            Self::Ray => "ray",
        })
    }
}
