//! How long to wait before trying again what failed.
use rand::Rng as _;
use std::time::Duration;

/// Pauses that double with every failure in a row, each shortened at random by up to half, so that many who failed
/// together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause after another failure.
    pub fn failed(&mut self) -> Duration {
        let pause = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It went well: the next pause is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_each_is_cut_by_at_most_half() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(10));
        let mut backoff = Backoff::new(first, longest);
        for round in 0..2 {
            for failures in 0..40 {
                let full = first.saturating_mul(1 << failures.min(10)).min(longest);
                let pause = backoff.failed();
                assert!(pause >= full / 2 && pause <= full, "{round}: {pause:?} of {full:?}");
            }
            backoff.reset();
        }
    }
}
