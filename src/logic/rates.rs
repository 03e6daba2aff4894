//! Arrivals and answers by the time at which they became known, for the last 16 seconds.
//!
//! **Invariant**: at most 160 buckets of 100 ms, however many reports come.
use crate::logic::policy::ARRIVALS_S;
use std::collections::VecDeque;
use std::time::Duration;

/// How far back rates look.
const SPAN: Duration = Duration::from_secs(15);
const BUCKET_MS: u64 = 100;
const BUCKETS_A_SECOND: u64 = 1000 / BUCKET_MS;
const BUCKETS: u64 = ARRIVALS_S as u64 * BUCKETS_A_SECOND;

/// What was counted in 100 ms.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    index: u64,
    arrivals: u64,
    answered: u64,
}

/// Counts by the time at which they became known.
#[derive(Debug, Default)]
pub struct Rates {
    buckets: VecDeque<Bucket>,
    first_at: Option<Duration>,
}

fn index(at: Duration) -> u64 {
    at.as_secs() * BUCKETS_A_SECOND + u64::from(at.subsec_millis()) / BUCKET_MS
}

impl Rates {
    /// Counts what a report brought at `now`.
    pub fn record(&mut self, now: Duration, arrivals: u64, answered: u64) {
        self.first_at.get_or_insert(now);
        let index = index(now);
        match self.buckets.back_mut() {
            Some(last) if last.index >= index => {
                last.arrivals = last.arrivals.saturating_add(arrivals);
                last.answered = last.answered.saturating_add(answered);
            }
            _ => self.buckets.push_back(Bucket { index, arrivals, answered }),
        }
        while self.buckets.front().is_some_and(|bucket| bucket.index + BUCKETS <= index) {
            self.buckets.pop_front();
        }
    }

    /// Arrivals and answers a second at `now`, each absent where there was none.
    ///
    /// They are over the last 15 s, or over the time since the first report where that is shorter (but no
    /// shorter than a second), so that a monitor that has just started does not tell too little.
    #[must_use]
    pub fn per_second(&self, now: Duration) -> (Option<f64>, Option<f64>) {
        let span_s = self.known(now).clamp(Duration::from_secs(1), SPAN).as_secs_f64();
        let index = index(now);
        let within =
            self.buckets.iter().filter(|bucket| bucket.index + SPAN.as_secs() * BUCKETS_A_SECOND > index);
        let (arrivals, answered) = within.fold((0_u64, 0_u64), |(a, b), bucket| {
            (a.saturating_add(bucket.arrivals), b.saturating_add(bucket.answered))
        });
        let rate = |count: u64| (count > 0).then(|| count as f64 / span_s);
        (rate(arrivals), rate(answered))
    }

    /// Requests that arrived in each of the last seconds at `now`, the latest first; its last 100 ms are those
    /// under way.
    #[must_use]
    pub fn arrivals(&self, now: Duration) -> [u32; ARRIVALS_S] {
        let mut arrivals = [0_u32; ARRIVALS_S];
        let index = index(now);
        for bucket in &self.buckets {
            let second = index.saturating_sub(bucket.index) / BUCKETS_A_SECOND;
            if let Some(count) = usize::try_from(second).ok().and_then(|second| arrivals.get_mut(second)) {
                *count = count.saturating_add(u32::try_from(bucket.arrivals).unwrap_or(u32::MAX));
            }
        }
        arrivals
    }

    /// Since the first report.
    #[must_use]
    pub fn known(&self, now: Duration) -> Duration {
        self.first_at.map_or(Duration::ZERO, |first_at| now.saturating_sub(first_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_fifteen_seconds_or_since_the_first_report() {
        let mut rates = Rates::default();
        assert_eq!(rates.per_second(Duration::ZERO), (None, None));
        for tenth in 0..600 {
            rates.record(Duration::from_millis(tenth * 100), 2, 1);
            assert!(rates.buckets.len() <= BUCKETS as usize);
        }
        assert_eq!(rates.per_second(Duration::from_millis(59_950)), (Some(20.0), Some(10.0)));
        assert_eq!(rates.per_second(Duration::from_secs(67)), (Some(79.0 * 2.0 / 15.0), Some(79.0 / 15.0)));
        assert_eq!(rates.per_second(Duration::from_secs(80)), (None, None));
    }

    #[test]
    fn a_young_monitor_does_not_tell_too_little() {
        let mut rates = Rates::default();
        rates.record(Duration::from_secs(100), 5, 0);
        assert_eq!(rates.per_second(Duration::from_secs(100)), (Some(5.0), None));
        rates.record(Duration::from_secs(102), 5, 0);
        assert_eq!(rates.per_second(Duration::from_secs(102)), (Some(5.0), None));
        assert_eq!(rates.known(Duration::from_secs(103)), Duration::from_secs(3));
    }

    #[test]
    fn seconds_slide() {
        let mut rates = Rates::default();
        for tenth in 0..300_u64 {
            rates.record(Duration::from_millis(tenth * 100), tenth / 10, 0);
        }
        assert_eq!(rates.arrivals(Duration::from_millis(29_900))[..3], [290, 280, 270]);
        // Where the clock went back, what is newer counts as of now.
        assert_eq!(rates.arrivals(Duration::from_millis(29_400))[..2], [285 + 145, 275]);
        assert_eq!(rates.arrivals(Duration::from_millis(30_400))[..2], [145, 285]);
        assert_eq!(rates.arrivals(Duration::from_secs(60)), [0; ARRIVALS_S]);
    }
}
