//! How long requests hold a slot.
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use std::f64::consts::TAU;
use std::time::Duration;

/// Draws the service time of a request from its name, so that it does not depend on when or where it runs.
///
/// Service times are log-normal: positive, skewed to the right, and given by mean and coefficient of variation.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceTimes {
    seed: u64,
    /// Mean and deviation of the logarithm of seconds.
    location: f64,
    scale: f64,
}

impl ServiceTimes {
    pub(super) fn new(mean: Duration, cv: f64, seed: u64) -> Self {
        let variance = (cv * cv).ln_1p();
        Self { seed, location: mean.as_secs_f64().ln() - variance / 2.0, scale: variance.sqrt() }
    }

    pub(super) fn of(&self, ticket: u64) -> Duration {
        let mut random = Pcg64Mcg::seed_from_u64(self.seed ^ ticket.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Box and Muller, "A note on the generation of random normal deviates", 1958.
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        let normal = radius * (TAU * random.random::<f64>()).cos();
        Duration::from_secs_f64((self.location + self.scale * normal).exp())
    }
}
