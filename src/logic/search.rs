//! Which rate to try next, to find the highest one that holds a promise.
//!
//! Doubling until a rate breaks the promise, halving until one holds it, then bisection (by the geometric mean,
//! since rates are compared by ratio) until the two are close. The one that held is then tried once more; where
//! it breaks, it counts as broken and the search goes on below.
//!
//! **Invariant**: a rate is only [`Next::Found`] after it held twice, the second time as [`Purpose::Confirm`],
//! and no trial starts that may not end in time.

/// Lowest rate that is tried, requests a second.
pub const RATE_RPS_MIN: f64 = 0.1;

/// Where a search looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// First rate, requests a second.
    pub start_rps: f64,
    /// Highest rate, requests a second.
    pub rate_rps_max: f64,
    /// How close the answer is to a rate that does not hold, as a share of it.
    pub resolution: f64,
}

/// Why a rate is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing broke yet: twice as much.
    Double,
    /// Nothing held yet: half as much.
    Halve,
    /// Between one that held and one that did not.
    Bisect,
    /// Once more, to be sure.
    Confirm,
}

impl Purpose {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Double => "double",
            Self::Halve => "halve",
            Self::Bisect => "bisect",
            Self::Confirm => "confirm",
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Try a rate, requests a second.
    Try(f64, Purpose),
    /// The highest rate that held, twice.
    Found(f64),
    /// Not even [`RATE_RPS_MIN`] holds.
    NothingHolds,
    /// No trial fits into the time that is left. The highest rate that held, once, if one did.
    OutOfTime(Option<f64>),
}

/// What was tried so far.
#[derive(Clone, Debug)]
pub struct Search {
    limits: Limits,
    held: Vec<f64>,
    broken_rps_min: Option<f64>,
    confirmed: Option<f64>,
}

impl Search {
    /// Nothing tried yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, held: Vec::new(), broken_rps_min: None, confirmed: None }
    }

    /// The lowest rate that broke the promise.
    #[must_use]
    pub fn broken_rps_min(&self) -> Option<f64> {
        self.broken_rps_min
    }

    /// The next step, with `left_s` seconds left and trials that take `trial_s` at a rate. Trials at higher
    /// rates must not take longer.
    #[must_use]
    pub fn next(&self, left_s: f64, trial_s: impl Fn(f64) -> f64) -> Next {
        if let Some(rate_rps) = self.confirmed {
            return Next::Found(rate_rps);
        }
        let held = self.held_rps_max();
        let (mut rate_rps, mut purpose) = match (held, self.broken_rps_min) {
            (None, None) => (self.limits.start_rps, Purpose::Double),
            (None, Some(broken)) if broken / 2.0 < RATE_RPS_MIN => return Next::NothingHolds,
            (None, Some(broken)) => (broken / 2.0, Purpose::Halve),
            (Some(held), None) if held >= self.limits.rate_rps_max => (held, Purpose::Confirm),
            (Some(held), None) => ((held * 2.0).min(self.limits.rate_rps_max), Purpose::Double),
            (Some(held), Some(broken)) => self.between(held, broken),
        };
        if let Some(held) = held
            && purpose != Purpose::Confirm
            && trial_s(rate_rps) + trial_s(held) > left_s
        {
            // The time that is left is for being sure of what is known.
            (rate_rps, purpose) = (held, Purpose::Confirm);
        }
        if trial_s(rate_rps) > left_s { Next::OutOfTime(held) } else { Next::Try(rate_rps, purpose) }
    }

    /// Notes how a trial went.
    pub fn record(&mut self, rate_rps: f64, purpose: Purpose, held: bool) {
        match (held, purpose) {
            (true, Purpose::Confirm) => self.confirmed = Some(rate_rps),
            (true, _) => self.held.push(rate_rps),
            (false, _) => {
                self.broken_rps_min = Some(self.broken_rps_min.map_or(rate_rps, |low| low.min(rate_rps)));
            }
        }
    }

    /// The highest rate that held, below all that broke.
    fn held_rps_max(&self) -> Option<f64> {
        let below = |rate_rps: &f64| self.broken_rps_min.is_none_or(|broken| *rate_rps < broken);
        self.held.iter().copied().filter(below).reduce(f64::max)
    }

    fn between(&self, held: f64, broken: f64) -> (f64, Purpose) {
        // To hundredths, so that the rate that is printed is the rate that was tried.
        let middle = ((held * broken).sqrt() * 100.0).round() / 100.0;
        let close = broken <= held * (1.0 + self.limits.resolution);
        if close || middle <= held || middle >= broken {
            (held, Purpose::Confirm)
        } else {
            (middle, Purpose::Bisect)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(start_rps: f64, rate_rps_max: f64) -> Search {
        Search::new(Limits { start_rps, rate_rps_max, resolution: 0.05 })
    }

    /// Plays a search on a service that holds below `capacity_rps`; also returns what was tried.
    fn play(mut search: Search, mut left_s: f64, holds: impl Fn(f64, Purpose) -> bool) -> (Next, Vec<f64>) {
        let trial_s = |rate_rps: f64| f64::max(20.0, 1000.0 / rate_rps);
        let mut tried = Vec::new();
        for _ in 0..10_000 {
            match search.next(left_s, trial_s) {
                Next::Try(rate_rps, purpose) => {
                    left_s -= trial_s(rate_rps);
                    tried.push(rate_rps);
                    search.record(rate_rps, purpose, holds(rate_rps, purpose));
                }
                end => return (end, tried),
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn it_doubles_bisects_and_confirms() {
        let (end, tried) = play(search(10.0, 1000.0), 1e6, |rate_rps, _| rate_rps <= 50.0);
        assert_eq!(tried, [10.0, 20.0, 40.0, 80.0, 56.57, 47.57, 51.88, 49.68, 49.68]);
        assert_eq!(end, Next::Found(49.68));
    }

    #[test]
    fn it_halves_where_the_first_rate_is_too_much_and_gives_up_where_nothing_holds() {
        let (end, tried) = play(search(64.0, 1000.0), 1e6, |rate_rps, _| rate_rps <= 17.0);
        assert_eq!(tried[..4], [64.0, 32.0, 16.0, 22.63]);
        assert_eq!(end, Next::Found(16.71));
        let (end, tried) = play(search(1.0, 1000.0), 1e6, |_, _| false);
        assert_eq!((end, tried.len()), (Next::NothingHolds, 4));
    }

    #[test]
    fn a_rate_that_breaks_when_repeated_is_not_the_answer() {
        let flaky = |rate_rps, purpose| rate_rps <= 50.0 && (purpose != Purpose::Confirm || rate_rps <= 45.0);
        let (end, tried) = play(search(10.0, 1000.0), 1e6, flaky);
        let Next::Found(found) = end else { panic!("{end:?}") };
        assert!((40.0..=45.0).contains(&found), "{found} after {tried:?}");
    }

    #[test]
    fn what_holds_at_the_highest_rate_is_confirmed_there() {
        let (end, tried) = play(search(10.0, 30.0), 1e6, |_, _| true);
        assert_eq!((end, tried), (Next::Found(30.0), vec![10.0, 20.0, 30.0, 30.0]));
    }

    #[test]
    fn the_last_of_the_time_is_for_the_confirmation() {
        // 35 s are left after 56.57 broke: too few for 47.57 and, where that breaks, for 40 again.
        let (end, tried) = play(search(10.0, 1000.0), 250.0, |rate_rps, _| rate_rps <= 50.0);
        assert_eq!((end, tried), (Next::Found(40.0), vec![10.0, 20.0, 40.0, 80.0, 56.57, 40.0]));
        let (end, tried) = play(search(10.0, 1000.0), 150.0, |_, _| true);
        assert_eq!((end, tried), (Next::OutOfTime(Some(10.0)), vec![10.0]));
        assert_eq!(play(search(10.0, 1000.0), 50.0, |_, _| true).0, Next::OutOfTime(None));
    }

    proptest! {
        #[test]
        fn it_finds_the_capacity_to_the_resolution(capacity_rps in 0.5..5000.0, start_rps in 0.5..500.0) {
            let (end, tried) = play(search(start_rps, 100_000.0), 1e9, |rate_rps, _| rate_rps <= capacity_rps);
            let Next::Found(found) = end else { panic!("{end:?}") };
            prop_assert!(found <= capacity_rps);
            // Rates are told apart to hundredths.
            prop_assert!(found * 1.05 + 0.01 >= capacity_rps, "{} of {}", found, capacity_rps);
            prop_assert!(tried.len() < 40);
        }

        #[test]
        fn it_never_takes_more_time_than_it_has(
            left_s in 0.0..3000.0, capacity_rps in 0.5..500.0, answers: u64,
        ) {
            // Also where the answers make no sense.
            let holds = |rate_rps: f64, _| rate_rps <= capacity_rps || answers >> (rate_rps as u64 % 64) & 1 == 1;
            let (_, tried) = play(search(16.0, 10_000.0), left_s, holds);
            let taken_s: f64 = tried.iter().map(|rate_rps| f64::max(20.0, 1000.0 / rate_rps)).sum();
            prop_assert!(taken_s <= left_s);
        }
    }
}
