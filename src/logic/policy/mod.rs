//! How many replicas there should be: an observation in, a decision with its reason out.
//!
//! Each rule is a type that holds its settings and what it remembers; `decide` is the whole of it. [`Slo`] is the
//! one to use; [`Step`] is the plain rule it replaces; the others stand for what people use elsewhere, as their
//! documentation describes it, so that the simulator can compare.
//!
//! **Invariant**: a decision lies within the bounds; missing or stale numbers never shrink the fleet; a clock that
//! jumps does no harm.
mod demand;
mod erlang;
mod hpa;
mod kpa;
mod misses;
mod name;
mod ray;
mod rivals;
mod slo;
mod start_up;
mod step;

use crate::logic::window::Service;
use serde::Serialize;
use std::time::Duration;

pub use hpa::{Hpa, HpaConfig, Metric};
pub use kpa::{Kpa, KpaConfig};
pub use name::{Name, Service as Scaled};
pub use ray::{Ray, RayConfig};
pub use slo::{Slo, SloConfig};
pub use step::{Step, StepConfig};

/// Time between two observations from which nothing is known about what was in between.
const GAP_MAX: Duration = Duration::from_secs(60);

/// Seconds of arrivals that an observation tells one by one.
pub const ARRIVALS_S: usize = 16;

/// Replicas as the scaler sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaCounts {
    /// Asked for.
    pub desired: u32,
    /// Taking requests.
    pub ready: u32,
    /// On their way up.
    pub starting: u32,
    /// Ended before they were ever ready and started again ever more slowly: no capacity to count on.
    pub failing: u32,
}

/// What the monitor says about the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Traffic {
    /// Since a dispatcher last reported, seconds.
    pub age_s: f64,
    /// Latencies behind the percentile.
    pub samples: usize,
    /// 99th percentile of the latency, milliseconds; `None` without samples.
    pub p99_ms: Option<f64>,
    /// Requests that arrived in each of the last seconds, the latest first; they slide, the first ends now.
    pub arrivals: [u32; ARRIVALS_S],
    /// How much of these seconds the monitor has been there for, seconds.
    pub arrivals_known_s: f64,
    /// How long a request holds a slot; `None` without samples.
    pub service: Option<Service>,
    /// Slots that requests hold: the mean since the last observation where that is known, else now.
    pub busy: f64,
    /// Requests that wait for a slot.
    pub waiting: u32,
    /// Slots of the ready replicas.
    pub slots: u32,
    /// Requests that ended since the monitor started.
    pub ended: u64,
    /// Of these, over the latency that is aimed at or not answered at all, without those whose service time alone
    /// was over it: what more replicas could have prevented.
    pub missed: u64,
}

/// Everything a decision is based on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Observation {
    /// Time since the autoscaler started.
    #[serde(skip)]
    pub now: Duration,
    /// The fleet.
    pub replicas: ReplicaCounts,
    /// The traffic; `None` when the monitor could not be asked.
    pub traffic: Option<Traffic>,
}

/// How many replicas there should be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Replicas to ask for.
    pub replicas: u32,
    /// In words, for people.
    pub reason: String,
}

/// Fewest and most replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest, at least 1.
    pub min: u32,
    /// Most.
    pub max: u32,
}

impl Bounds {
    fn apply(self, decision: Decision) -> Decision {
        let Self { min, max } = self;
        let replicas = decision.replicas.clamp(min, max.max(min));
        if replicas == decision.replicas {
            return decision;
        }
        let reason =
            format!("{}; {} is outside the bounds {min} to {max}", decision.reason, decision.replicas);
        Decision { replicas, reason }
    }
}

/// Leaves the fleet as it is.
fn hold(desired: u32, why: &str) -> Decision {
    Decision { replicas: desired, reason: format!("hold: {why}") }
}

/// The traffic if it is fresh, or why nothing is known of it.
fn fresh(observation: &Observation, stale_after_s: f64) -> Result<Traffic, String> {
    match observation.traffic {
        None => Err("the monitor does not answer".to_owned()),
        Some(traffic) if traffic.age_s <= stale_after_s => Ok(traffic),
        Some(traffic) if traffic.age_s.is_finite() => {
            Err(format!("no dispatcher has reported for {:.0} s", traffic.age_s))
        }
        Some(_) => Err("no dispatcher has reported yet".to_owned()),
    }
}

/// Time since the last observation; `None` for the first one, and where the clock went back or leapt.
fn elapsed(last: Option<Duration>, now: Duration) -> Option<Duration> {
    now.checked_sub(last?).filter(|elapsed| *elapsed <= GAP_MAX)
}

/// A rule with its settings and what it remembers.
pub trait Policy {
    /// Decides. `observation.now` should not go back; where it does, nothing is concluded from the difference.
    fn decide(&mut self, observation: &Observation) -> Decision;
}
