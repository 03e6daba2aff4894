//! A service in simulated time: arrivals, the dispatcher's queue, replicas that start and end, the monitor, and a
//! rule that scales. Queue, window, rates and rules are the code of [`crate::logic`] that runs in production.
//!
//! **Invariant**: the same settings, plan and seed give the same outcome; every request of the plan ends exactly
//! once; a request has the same service time under every rule.
pub mod clairvoyant;
mod fleet;
mod monitor;
mod requests;
mod service;
mod world;

pub use requests::{COUNTED_MAX, Requests};
pub use world::{Change, Outcome, Second, Settings, run};

#[cfg(test)]
mod tests;
