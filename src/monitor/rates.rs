//! Arrivals and answers a second over the last 15 seconds.
//!
//! **Invariant**: at most [`BUCKETS`] buckets of 100 ms, however many reports come.
use std::collections::VecDeque;
use std::time::Duration;

/// How far back the rates look.
const SPAN: Duration = Duration::from_secs(15);
const BUCKET_MS: u128 = 100;
const BUCKETS: u128 = SPAN.as_millis() / BUCKET_MS;

/// What was counted in 100 ms.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    index: u128,
    arrivals: u64,
    answered: u64,
}

/// Counts by the time at which they became known.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: VecDeque<Bucket>,
    first_at: Option<Duration>,
}

impl Rates {
    /// Counts what a report brought at `now`.
    pub(super) fn record(&mut self, now: Duration, arrivals: u64, answered: u64) {
        self.first_at.get_or_insert(now);
        let index = now.as_millis() / BUCKET_MS;
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
    pub(super) fn per_second(&self, now: Duration) -> (Option<f64>, Option<f64>) {
        let Some(first_at) = self.first_at else { return (None, None) };
        let span_s = now.saturating_sub(first_at).clamp(Duration::from_secs(1), SPAN).as_secs_f64();
        let index = now.as_millis() / BUCKET_MS;
        let within = self.buckets.iter().filter(|bucket| bucket.index + BUCKETS > index);
        let (arrivals, answered) = within.fold((0_u64, 0_u64), |(a, b), bucket| {
            (a.saturating_add(bucket.arrivals), b.saturating_add(bucket.answered))
        });
        let rate = |count: u64| (count > 0).then(|| count as f64 / span_s);
        (rate(arrivals), rate(answered))
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
    }
}
