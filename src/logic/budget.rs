//! How many requests may be sent twice: retries and hedges together.
//!
//! A token bucket (as Finagle's retry budget): every request adds a share of a token, every second a few, and
//! whoever sends a request again takes one. So retries are at most that share of the traffic, however bad
//! things are, and the odd failure of a quiet service is still retried.
//!
//! **Invariant**: the tokens taken never exceed `share` × requests + `reserve_per_s` × seconds + `tokens_max`.
use std::time::Duration;

/// The tokens. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Budget {
    share: f64,
    reserve_per_s: f64,
    tokens_max: f64,
    tokens: f64,
    filled_at: Duration,
}

/// Seconds of reserve that a quiet service saves up.
const SAVED_S: f64 = 10.0;

impl Budget {
    /// A budget with its reserve saved up: `share` of the requests, and `reserve_per_s` a second beyond.
    #[must_use]
    pub fn new(share: f64, reserve_per_s: f64) -> Self {
        let reserve = reserve_per_s * SAVED_S;
        // Without a reserve the share alone must be able to save up a token.
        let tokens_max = reserve.max(share.ceil());
        Self { share, reserve_per_s, tokens_max, tokens: reserve, filled_at: Duration::ZERO }
    }

    /// A request came in.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + self.share).min(self.tokens_max);
    }

    /// Takes a token, if there is one.
    pub fn withdraw(&mut self, now: Duration) -> bool {
        let passed_s = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        self.tokens = (self.tokens + passed_s * self.reserve_per_s).min(self.tokens_max);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_sent_again() {
        let mut budget = Budget::new(0.2, 1.0);
        while budget.withdraw(Duration::ZERO) {}
        let mut granted = 0;
        for _ in 0..1000 {
            budget.deposit();
            granted += u32::from(budget.withdraw(Duration::ZERO));
        }
        assert_eq!(granted, 200);
    }

    #[test]
    fn the_share_alone_is_a_budget_too() {
        let mut budget = Budget::new(0.5, 0.0);
        let mut send = |_| {
            budget.deposit();
            budget.withdraw(Duration::ZERO)
        };
        assert_eq!((0..5).map(&mut send).collect::<Vec<_>>(), [false, true, false, true, false]);
    }

    #[test]
    fn a_quiet_service_has_its_reserve_and_none_has_more_than_that() {
        let mut budget = Budget::new(0.2, 1.0);
        let drain = |budget: &mut Budget, now| (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(drain(&mut budget, Duration::ZERO), 10);
        assert_eq!(drain(&mut budget, Duration::from_secs(3)), 3);
        assert_eq!(drain(&mut budget, Duration::from_hours(1)), 10);
        assert_eq!(drain(&mut budget, Duration::from_secs(1)), 0, "the clock went back");
        assert_eq!(drain(&mut Budget::new(0.0, 0.0), Duration::from_secs(9)), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_promised(steps in proptest::collection::vec((0_u64..500, 0_u32..5, 0_u32..5), 1..200)) {
            let (share, reserve_per_s) = (0.2, 2.0);
            let mut budget = Budget::new(share, reserve_per_s);
            let (mut now, mut requests, mut taken) = (Duration::ZERO, 0_u32, 0_u32);
            for (passed_ms, arrivals, wanted) in steps {
                now += Duration::from_millis(passed_ms);
                (0..arrivals).for_each(|_| budget.deposit());
                requests += arrivals;
                taken += (0..wanted).filter(|_| budget.withdraw(now)).count() as u32;
                let most = share * f64::from(requests) + reserve_per_s * (now.as_secs_f64() + SAVED_S);
                prop_assert!(f64::from(taken) <= most + 1e-6, "{taken} of {most}");
            }
        }
    }
}
