//! Whether a replica is to be trusted with requests: failures in a row, ejection with back-off, slow start.
//!
//! **Invariant**: a replica that fails everything gets at most `failures_max` requests and then one a back-off,
//! which doubles up to its maximum; one answer restores full trust step by step.
use std::time::Duration;

/// When a replica is put aside, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Failures in a row after which it is.
    pub failures_max: u32,
    /// For how long the first time; twice as long each further time.
    pub backoff: Duration,
    /// The longest that it is.
    pub backoff_max: Duration,
}

/// The first pause after a replica said that it is too busy; twice as long each further time in a row.
const BUSY_PAUSE: Duration = Duration::from_millis(2);
/// The longest such pause.
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(250);

/// What is known of one replica's behaviour.
#[derive(Clone, Debug, Default)]
pub struct Health {
    failures: u32,
    ejections: u32,
    refusals: u32,
    /// Requests it may have at once while it proves itself; none once it has.
    ramp: Option<u32>,
    paused_until: Duration,
}

impl Health {
    /// It takes requests from now on: one at first, twice as many with each answer.
    pub fn opened(&mut self) {
        self.ramp = Some(1);
    }

    /// It answered a request; `slots` is how many it takes at once.
    pub fn answered(&mut self, slots: u32) {
        (self.failures, self.ejections, self.refusals) = (0, 0, 0);
        self.ramp = self.ramp.map(|ramp| ramp.saturating_mul(2)).filter(|&ramp| ramp < slots);
    }

    /// It failed a request. For how long it is to be put aside, if it is.
    pub fn failed(&mut self, limits: &Limits) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.failures < limits.failures_max {
            return None;
        }
        // One failure more after the back-off is enough.
        self.failures = limits.failures_max.saturating_sub(1);
        let backoff = doubled(limits.backoff, self.ejections, limits.backoff_max);
        self.ejections = self.ejections.saturating_add(1);
        Some(backoff)
    }

    /// It refused a request because it is busy with others': it gets none for a moment.
    pub fn refused(&mut self, now: Duration) {
        self.paused_until = now + doubled(BUSY_PAUSE, self.refusals, BUSY_PAUSE_MAX);
        self.refusals = self.refusals.saturating_add(1);
    }

    /// How many requests it may have at once, of `slots`.
    #[must_use]
    pub fn slots(&self, now: Duration, slots: u32) -> u32 {
        if now < self.paused_until { 0 } else { self.ramp.unwrap_or(slots).min(slots) }
    }

    /// When the pause ends that it is in.
    #[must_use]
    pub fn paused_until(&self, now: Duration) -> Option<Duration> {
        (now < self.paused_until).then_some(self.paused_until)
    }

    /// Whether its last request failed: others are to be preferred.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.failures > 0
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(20)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { failures_max: 3, backoff: Duration::from_millis(250), backoff_max: Duration::from_secs(1) };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn three_failures_in_a_row_eject_and_each_further_one_for_longer() {
        let mut health = Health::default();
        let mut fail = |times: u32| (0..times).filter_map(|_| health.failed(&LIMITS)).collect::<Vec<_>>();
        assert!(fail(2).is_empty());
        assert_eq!(fail(1), [ms(250)]);
        assert_eq!(fail(3), [ms(500), ms(1000), ms(1000)]);
        health.answered(1);
        assert!(!health.is_suspect());
        assert_eq!(health.failed(&LIMITS), None);
        assert!(health.is_suspect());
    }

    #[test]
    fn a_new_replica_proves_itself() {
        let mut health = Health::default();
        health.opened();
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(health.slots(ms(0), 6));
            health.answered(6);
        }
        assert_eq!(seen, [1, 2, 4, 6, 6]);
    }

    #[test]
    fn a_busy_replica_is_left_alone_for_a_moment_that_grows() {
        let mut health = Health::default();
        health.refused(ms(10));
        assert_eq!((health.slots(ms(11), 4), health.slots(ms(12), 4)), (0, 4));
        assert_eq!(health.paused_until(ms(11)), Some(ms(12)));
        health.refused(ms(20));
        assert_eq!(health.paused_until(ms(20)), Some(ms(24)));
        for _ in 0..100 {
            health.refused(ms(30));
        }
        assert_eq!(health.paused_until(ms(30)), Some(ms(280)));
        health.answered(4);
        health.refused(ms(900));
        assert_eq!(health.paused_until(ms(900)), Some(ms(902)));
        assert_eq!(health.paused_until(ms(902)), None);
    }
}
