//! The budget of missed requests: how much of it is spent, and which fixed fleet would have kept it.
//!
//! **Invariant**: at most [`SECONDS_MAX`] seconds are remembered, none older than [`MEMORY`].
use super::Traffic;
use std::collections::VecDeque;
use std::time::Duration;

/// How far back misses count.
pub(super) const MEMORY: Duration = Duration::from_secs(900);
const SECONDS_MAX: usize = 2048;
/// A burst that broke the budget is taken to come again larger: so much of what it was over the mean is added.
const LARGER: f64 = 0.5;
/// How sure it must be that the budget is broken, in standard deviations, and how many requests it takes.
const SURE_DEVIATIONS: f64 = 3.0;
const SURE_REQUESTS: f64 = 3.0;

/// What happened between two looks, at most a second.
#[derive(Clone, Copy, Debug)]
struct Past {
    at: Duration,
    arrivals: u32,
    ended: u64,
    missed: u64,
}

/// The last quarter of an hour.
#[derive(Clone, Debug, Default)]
pub(super) struct Misses {
    seconds: VecDeque<Past>,
    /// Totals at the last look.
    totals: Option<(u64, u64)>,
    /// Up to when arrivals were taken over.
    counted_until: Option<Duration>,
}

/// Slots and times of a fixed fleet that is tried on the past.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// How long a request holds a slot, seconds.
    pub(super) service_s: f64,
    /// How long it may wait for one, seconds.
    pub(super) wait_s: f64,
    /// Share that may miss.
    pub(super) budget: f64,
    /// Most slots tried.
    pub(super) slots_max: u32,
}

impl Misses {
    /// Takes in what the monitor says at `now`. A monitor that was started again counts from nothing.
    pub(super) fn see(&mut self, now: Duration, traffic: &Traffic) {
        let since = |total: u64, before: u64| if total < before { total } else { total - before };
        // What ended before the first look is not known to have ended lately.
        let (ended, missed) = self
            .totals
            .map_or((0, 0), |(ended, missed)| (since(traffic.ended, ended), since(traffic.missed, missed)));
        self.totals = Some((traffic.ended, traffic.missed));
        let counted_until = *self.counted_until.get_or_insert(now);
        let due = now.saturating_sub(counted_until).as_secs();
        self.counted_until = Some(counted_until + Duration::from_secs(due));
        let due = usize::try_from(due).unwrap_or(usize::MAX).min(traffic.arrivals.len());
        for age in (0..due).rev() {
            let past = Past { at: now, arrivals: traffic.arrivals[age], ended: 0, missed: 0 };
            self.seconds.push_back(past);
        }
        match self.seconds.back_mut() {
            Some(last) => {
                last.ended += ended;
                last.missed += missed;
            }
            None => self.seconds.push_back(Past { at: now, arrivals: traffic.arrivals[0], ended, missed }),
        }
        let excess = self.seconds.len().saturating_sub(SECONDS_MAX);
        self.seconds.drain(..excess);
        while self.seconds.front().is_some_and(|past| past.at + MEMORY < now) {
            self.seconds.pop_front();
        }
    }

    /// Requests that ended, and those of them that missed.
    fn counts(&self) -> (f64, f64) {
        let (ended, missed) = self
            .seconds
            .iter()
            .fold((0_u64, 0_u64), |(ended, missed), past| (ended + past.ended, missed + past.missed));
        (ended as f64, missed as f64)
    }

    /// Share of the requests that missed.
    pub(super) fn share(&self) -> f64 {
        let (ended, missed) = self.counts();
        missed / ended.max(1.0)
    }

    /// Where the budget is broken, and not by chance alone: the slots of the smallest fixed fleet that would have
    /// kept it, and half of what that is over the mean load again.
    pub(super) fn floor(&self, trial: &Trial) -> Option<u32> {
        let (ended, missed) = self.counts();
        let allowed = trial.budget * ended;
        if missed <= allowed + SURE_DEVIATIONS * allowed.sqrt() + SURE_REQUESTS {
            return None;
        }
        let arrived: f64 = self.seconds.iter().map(|past| f64::from(past.arrivals)).sum();
        let keeps = |slots: u32| self.lost(slots, trial) <= trial.budget * arrived;
        let (mut low, mut high) = (0, trial.slots_max.max(1));
        while high - low > 1 {
            let middle = u32::midpoint(low, high);
            if keeps(middle) { high = middle } else { low = middle }
        }
        let mean = arrived * trial.service_s / self.seconds.len().max(1) as f64;
        let larger = f64::from(high) + LARGER * (f64::from(high) - mean).max(0.0);
        Some((larger.ceil() as u32).min(trial.slots_max))
    }

    /// Requests that a fixed fleet would have lost: the backlog, in slot-seconds, second by second (D. V. Lindley,
    /// 1952); what is over the longest wait is lost.
    fn lost(&self, slots: u32, trial: &Trial) -> f64 {
        let slots = f64::from(slots);
        let backlog_max = slots * trial.wait_s.max(0.0);
        let mut backlog = 0.0_f64;
        let mut lost_s = 0.0;
        for past in &self.seconds {
            backlog = (backlog + f64::from(past.arrivals) * trial.service_s - slots).max(0.0);
            let over = (backlog - backlog_max).max(0.0);
            lost_s += over;
            backlog -= over;
        }
        lost_s / trial.service_s.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::ARRIVALS_S;
    use proptest::prelude::*;

    const TRIAL: Trial = Trial { service_s: 0.1, wait_s: 0.2, budget: 0.004, slots_max: 1000 };

    fn told(arrivals: u32, ended: u64, missed: u64) -> Traffic {
        Traffic {
            age_s: 0.0,
            samples: 0,
            p99_ms: None,
            arrivals: [arrivals; ARRIVALS_S],
            arrivals_known_s: 100.0,
            service: None,
            busy: 0.0,
            waiting: 0,
            slots: 1,
            ended,
            missed,
        }
    }

    fn second(now_s: u64) -> Duration {
        Duration::from_secs(now_s)
    }

    #[test]
    fn a_share_is_of_what_ended_since_the_first_look() {
        let mut misses = Misses::default();
        misses.see(second(0), &told(10, 5000, 900));
        assert!(misses.share() <= 0.0);
        misses.see(second(1), &told(10, 5100, 901));
        assert!((misses.share() - 0.01).abs() < 1e-12);
        // A monitor that was started again counts from nothing.
        misses.see(second(2), &told(10, 100, 3));
        assert!((misses.share() - 0.02).abs() < 1e-12);
        misses.see(second(903), &told(10, 100, 3));
        assert!(misses.share() <= 0.0);
    }

    #[test]
    fn the_floor_would_have_kept_the_budget() {
        let mut misses = Misses::default();
        misses.see(second(0), &told(0, 0, 0));
        for now_s in 1..=100 {
            let burst = now_s > 90;
            misses.see(
                second(now_s),
                &told(if burst { 100 } else { 10 }, now_s * 19, if burst { now_s } else { 0 }),
            );
        }
        // Ten slots carry the burst; nine fall behind by a slot-second each second and may lag 1.8 of them.
        assert!(misses.lost(10, &TRIAL) <= 0.0);
        assert!((misses.lost(9, &TRIAL) - 82.0).abs() < 1e-6);
        // A mean load of 1.9 slots: half of the other 8.1 is added.
        assert_eq!(misses.floor(&TRIAL), Some(15));
        assert_eq!(misses.floor(&Trial { slots_max: 12, ..TRIAL }), Some(12));
        assert_eq!(misses.floor(&Trial { budget: 0.2, ..TRIAL }), None);
    }

    #[test]
    fn a_few_misses_are_chance() {
        let mut misses = Misses::default();
        misses.see(second(0), &told(10, 0, 0));
        misses.see(second(1), &told(10, 10, 3));
        assert_eq!(misses.floor(&TRIAL), None);
        misses.see(second(2), &told(10, 20, 5));
        assert!(misses.floor(&TRIAL).is_some());
    }

    proptest! {
        #[test]
        fn memory_is_bounded(looks in proptest::collection::vec((0_u64..5000, 0_u32..1000, 0_u64..1000), 0..100)) {
            let mut misses = Misses::default();
            for (now_s, arrivals, ended) in looks {
                misses.see(second(now_s), &told(arrivals, ended, ended / 2));
                prop_assert!(misses.seconds.len() <= SECONDS_MAX);
                prop_assert!((0.0..=1.0).contains(&misses.share()));
            }
        }
    }
}
