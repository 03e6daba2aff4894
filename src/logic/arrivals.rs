//! A workload file's lines turned into the instants at which requests are due.
//!
//! Both spacings work in expected requests instead of seconds: the curve `E(t)` (requests expected up to `t`,
//! the integral of the rate) is inverted at targets that grow. Even spacing puts the targets at ½, 1½, 2½, …;
//! Poisson spacing puts them apart by exponential steps of mean 1, which gives a Poisson process of exactly
//! that rate (the time-rescaling theorem, e.g. Brown et al. 2002, *Neural Computation* 14:325). What is left
//! over of a request at the end of a line is carried into the next one for free.
//!
//! **Invariant**: instants never go back and never pass the plan's end; the same plan and seed give the same
//! instants.
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use std::time::Duration;

/// Most lines with a rate that a workload may have.
pub const LINES_MAX: usize = 1_000_000;
/// Highest rate of one line, requests a second, before and after scaling.
pub const RATE_RPS_MAX: f64 = 100_000.0;
/// Longest plan, seconds: a week.
pub const DURATION_S_MAX: f64 = 7.0 * 86_400.0;

/// Rates as a file states them, one a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    rates_rps: Vec<f64>,
}

/// Why a text is no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// A line is not a rate.
    #[error(
        "line {line_number}: {text:?} is no rate: write one number of requests a second from 0 to {RATE_RPS_MAX}"
    )]
    Line {
        /// Number of the line in the file, from 1.
        line_number: usize,
        /// The line, at most 40 characters of it.
        text: String,
    },
    /// No line has a rate.
    #[error("no line has a rate: write one number of requests a second on each")]
    Empty,
    /// More lines than [`LINES_MAX`].
    #[error("line {line_number}: over {LINES_MAX} rates: cut the file, or let each line last longer")]
    TooLong {
        /// Number of the first line over the limit, from 1.
        line_number: usize,
    },
}

impl Workload {
    /// Reads one rate in requests a second from each line; skips blank lines and what follows a `#`.
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        let mut rates_rps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let value = line.split('#').next().unwrap_or_default().trim();
            if value.is_empty() {
                continue;
            }
            let line_number = index + 1;
            if rates_rps.len() == LINES_MAX {
                return Err(WorkloadError::TooLong { line_number });
            }
            match value.parse::<f64>() {
                Ok(rate_rps) if (0.0..=RATE_RPS_MAX).contains(&rate_rps) => rates_rps.push(rate_rps),
                _ => {
                    return Err(WorkloadError::Line { line_number, text: value.chars().take(40).collect() });
                }
            }
        }
        if rates_rps.is_empty() { Err(WorkloadError::Empty) } else { Ok(Self { rates_rps }) }
    }

    /// The rates in requests a second, in the order of the file.
    #[must_use]
    pub fn rates_rps(&self) -> &[f64] {
        &self.rates_rps
    }
}

/// How a workload is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// How long a line lasts at speed 1, seconds.
    pub line_s: f64,
    /// Divides how long a line lasts; rates stay, so at 2 the plan takes half as long and sends half as much.
    pub speed: f64,
    /// Multiplies every rate; how long a line lasts stays.
    pub scale: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { line_s: 1.0, speed: 1.0, scale: 1.0 }
    }
}

/// How requests are spread over a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly, each in the middle of its share of time.
    Even,
    /// As a Poisson process of the line's rate.
    Poisson {
        /// Picks one of the possible runs.
        seed: u64,
    },
}

/// Why a workload cannot be played at a pace.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A factor is zero, negative or not finite.
    #[error("how long a line lasts, speed and scale must each be above 0 and finite")]
    Pace,
    /// It would last longer than [`DURATION_S_MAX`].
    #[error(
        "the plan would last {duration_s:.0} s, over {DURATION_S_MAX} s: raise the speed or cut the file"
    )]
    TooLong {
        /// How long it would last, seconds.
        duration_s: f64,
    },
    /// A scaled rate is over [`RATE_RPS_MAX`].
    #[error("the scale raises a rate to {rate_rps} requests a second, over {RATE_RPS_MAX}: lower the scale")]
    TooFast {
        /// The highest scaled rate, requests a second.
        rate_rps: f64,
    },
    /// It would send more requests than allowed.
    #[error("the plan would send {requests:.0} requests, over the limit of {requests_max}: raise the limit")]
    TooMany {
        /// Requests expected.
        requests: f64,
        /// Requests allowed.
        requests_max: u64,
    },
}

/// A workload at a pace, checked against the limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    rates_rps: Vec<f64>,
    line_s: f64,
    requests_expected: f64,
}

impl Plan {
    /// Plays `workload` at `pace`; refuses what would send over `requests_max` requests (expected ones, for
    /// Poisson spacing).
    pub fn new(workload: &Workload, pace: Pace, requests_max: u64) -> Result<Self, PlanError> {
        let line_s = pace.line_s / pace.speed;
        let usable = |factor: f64| factor.is_finite() && factor > 0.0;
        if ![pace.line_s, pace.speed, pace.scale, line_s].into_iter().all(usable) {
            return Err(PlanError::Pace);
        }
        let duration_s = line_s * workload.rates_rps.len() as f64;
        if duration_s > DURATION_S_MAX {
            return Err(PlanError::TooLong { duration_s });
        }
        let rates_rps: Vec<f64> = workload.rates_rps.iter().map(|rate_rps| rate_rps * pace.scale).collect();
        let rate_rps = rates_rps.iter().copied().fold(0.0, f64::max);
        if rate_rps > RATE_RPS_MAX {
            return Err(PlanError::TooFast { rate_rps });
        }
        let requests_expected = rates_rps.iter().sum::<f64>() * line_s;
        if requests_expected > requests_max as f64 {
            return Err(PlanError::TooMany { requests: requests_expected, requests_max });
        }
        Ok(Self { rates_rps, line_s, requests_expected })
    }

    /// How long the plan lasts, lines without requests included.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.line_s * self.rates_rps.len() as f64)
    }

    /// The integral of the rate: how many requests the plan is expected to send.
    #[must_use]
    pub fn requests_expected(&self) -> f64 {
        self.requests_expected
    }

    /// The rate planned at `elapsed` since the start, requests a second; 0 after the end.
    #[must_use]
    pub fn rate_rps_at(&self, elapsed: Duration) -> f64 {
        let line = (elapsed.as_secs_f64() / self.line_s) as usize;
        self.rates_rps.get(line).copied().unwrap_or(0.0)
    }

    /// The instants at which requests are due, since the start, made one at a time.
    #[must_use]
    pub fn instants(&self, spacing: Spacing) -> Instants<'_> {
        let (step, target) = match spacing {
            Spacing::Even => (Step::One, 0.5),
            Spacing::Poisson { seed } => {
                let mut random = Pcg64::seed_from_u64(seed);
                let target = exponential(&mut random);
                (Step::Exponential(random), target)
            }
        };
        Instants { plan: self, step, target, line: 0, before_line: 0.0 }
    }
}

/// A step of an exponential distribution of mean 1.
fn exponential(random: &mut Pcg64) -> f64 {
    // `random` is below 1, so the logarithm is finite.
    -(1.0 - random.random::<f64>()).ln()
}

/// How far apart targets are, in expected requests.
#[derive(Clone, Debug)]
enum Step {
    One,
    Exponential(Pcg64),
}

/// Instants at which requests are due; made by [`Plan::instants`].
#[derive(Clone, Debug)]
pub struct Instants<'a> {
    plan: &'a Plan,
    step: Step,
    /// Expected requests at which the next one is due.
    target: f64,
    /// The line that is played.
    line: usize,
    /// Expected requests before that line.
    before_line: f64,
}

impl Iterator for Instants<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let line_s = self.plan.line_s;
        loop {
            let rate_rps = *self.plan.rates_rps.get(self.line)?;
            let after_line = self.before_line + rate_rps * line_s;
            if self.target < after_line {
                let line_start_s = line_s * self.line as f64;
                let instant_s = line_start_s + (self.target - self.before_line) / rate_rps;
                // Rounding may reach past the line by a hair; the next line must not look earlier then.
                let line_end_s = line_s * (self.line + 1) as f64;
                self.target += match &mut self.step {
                    Step::One => 1.0,
                    Step::Exponential(random) => exponential(random),
                };
                return Some(Duration::from_secs_f64(instant_s.min(line_end_s)));
            }
            self.before_line = after_line;
            self.line += 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, clippy::unchecked_time_subtraction)] // exact by construction; instants only grow
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(rates_rps: &[f64], line_s: f64) -> Plan {
        let workload = Workload { rates_rps: rates_rps.to_vec() };
        Plan::new(&workload, Pace { line_s, ..Pace::default() }, u64::MAX).unwrap()
    }

    fn instants_ms(plan: &Plan) -> Vec<u128> {
        plan.instants(Spacing::Even).map(|instant| instant.as_millis()).collect()
    }

    #[test]
    fn a_file_is_one_rate_a_line() {
        let text = "# a day\n5\n\n 2.5 # lunch\r\n0\n  \n1e3\n";
        assert_eq!(Workload::parse(text).unwrap().rates_rps(), [5.0, 2.5, 0.0, 1000.0]);
    }

    #[test]
    fn what_is_no_rate_is_refused_with_its_line() {
        for bad in ["-1", "NaN", "inf", "1e9", "1e400", "5 6", "5,5", "fast", "100000.1"] {
            let error = Workload::parse(&format!("# head\n1\n{bad}\n2\n")).unwrap_err();
            assert_eq!(error, WorkloadError::Line { line_number: 3, text: bad.to_owned() });
            assert!(error.to_string().starts_with("line 3: "), "{error}");
        }
        assert_eq!(Workload::parse("# nothing\n\n"), Err(WorkloadError::Empty));
        let long = "1\n".repeat(LINES_MAX + 1);
        assert_eq!(Workload::parse(&long), Err(WorkloadError::TooLong { line_number: LINES_MAX + 1 }));
    }

    #[test]
    fn fractions_of_a_request_are_carried_across_lines() {
        assert_eq!(instants_ms(&plan(&[0.5; 6], 1.0)), [1000, 3000, 5000]);
        assert_eq!(instants_ms(&plan(&[2.0, 0.0, 4.0], 1.0)), [250, 750, 2125, 2375, 2625, 2875]);
        assert_eq!(instants_ms(&plan(&[0.0, 0.0], 1.0)), [] as [u128; 0]);
    }

    #[test]
    fn speed_shortens_lines_and_scale_multiplies_rates() {
        let workload = Workload::parse("10\n20\n").unwrap();
        let fast = Plan::new(&workload, Pace { speed: 2.0, ..Pace::default() }, 100).unwrap();
        assert_eq!((fast.duration(), fast.requests_expected()), (Duration::from_secs(1), 15.0));
        assert_eq!(fast.rate_rps_at(Duration::from_millis(600)), 20.0);
        let scaled = Plan::new(&workload, Pace { scale: 2.0, ..Pace::default() }, 100).unwrap();
        assert_eq!((scaled.duration(), scaled.requests_expected()), (Duration::from_secs(2), 60.0));
        assert_eq!(scaled.rate_rps_at(Duration::from_millis(600)), 20.0);
        assert_eq!(scaled.rate_rps_at(Duration::from_secs(2)), 0.0);
    }

    #[test]
    fn plans_over_a_limit_are_refused() {
        let workload = Workload::parse("1000\n").unwrap();
        let refused = |pace, requests_max| Plan::new(&workload, pace, requests_max).unwrap_err();
        assert_eq!(refused(Pace::default(), 999), PlanError::TooMany { requests: 1000.0, requests_max: 999 });
        let scaled = Pace { scale: 1000.0, ..Pace::default() };
        assert_eq!(refused(scaled, u64::MAX), PlanError::TooFast { rate_rps: 1e6 });
        let slow = Pace { line_s: 1e6, ..Pace::default() };
        assert_eq!(refused(slow, u64::MAX), PlanError::TooLong { duration_s: 1e6 });
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(Pace { speed: bad, ..Pace::default() }, u64::MAX), PlanError::Pace);
        }
    }

    #[test]
    fn poisson_counts_have_the_mean_and_the_variance_of_the_rate() {
        let plan = plan(&[30.0, 0.0, 50.0], 2.0);
        let counts: Vec<f64> =
            (0..400).map(|seed| plan.instants(Spacing::Poisson { seed }).count() as f64).collect();
        let mean = counts.iter().sum::<f64>() / 400.0;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 399.0;
        // 160 expected; the mean of 400 counts has a standard deviation of 0.63, their variance one of 11.
        assert!((mean - 160.0).abs() < 2.5, "{mean}");
        assert!((variance - 160.0).abs() < 45.0, "{variance}");
        let idle = |instant: &Duration| (2.0..4.0).contains(&instant.as_secs_f64());
        assert!((0..400).all(|seed| !plan.instants(Spacing::Poisson { seed }).any(|at| idle(&at))));
    }

    fn rates() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![Just(0.0), 0.0..3.0, 0.0..200.0], 1..40)
    }

    proptest! {
        #[test]
        fn instants_never_go_back_and_stay_within_the_plan(
            rates_rps in rates(), line_s in 0.01..5.0, poisson: bool, seed: u64,
        ) {
            let plan = plan(&rates_rps, line_s);
            let spacing = if poisson { Spacing::Poisson { seed } } else { Spacing::Even };
            let mut last = Duration::ZERO;
            for instant in plan.instants(spacing) {
                prop_assert!(instant >= last && instant <= plan.duration());
                last = instant;
            }
            prop_assert!(plan.instants(spacing).eq(plan.instants(spacing)));
        }

        #[test]
        fn even_counts_follow_the_integral_of_the_rate_at_every_line(
            rates_rps in rates(), line_s in 0.01..5.0,
        ) {
            let plan = plan(&rates_rps, line_s);
            let instants: Vec<f64> = plan.instants(Spacing::Even).map(|at| at.as_secs_f64()).collect();
            let mut expected = 0.0;
            for (line, rate_rps) in rates_rps.iter().enumerate() {
                expected += rate_rps * line_s;
                let end_s = line_s * (line + 1) as f64;
                let count = instants.iter().filter(|at| **at < end_s).count() as f64;
                prop_assert!((count - expected).abs() <= 1.0, "{} sent of {}", count, expected);
            }
        }

        #[test]
        fn even_gaps_are_one_over_the_rate_whatever_the_line(rate_rps in 0.1..500.0, line_s in 0.01..3.0) {
            let plan = plan(&[rate_rps; 20], line_s);
            let instants: Vec<Duration> = plan.instants(Spacing::Even).collect();
            for pair in instants.windows(2) {
                let gap_s = (pair[1] - pair[0]).as_secs_f64();
                prop_assert!((gap_s * rate_rps - 1.0).abs() < 1e-3, "{}", gap_s);
            }
        }

        #[test]
        fn other_seeds_give_other_instants(seed in 0..u64::MAX) {
            let plan = plan(&[50.0], 1.0);
            let (one, other) = (Spacing::Poisson { seed }, Spacing::Poisson { seed: seed + 1 });
            prop_assert!(!plan.instants(one).eq(plan.instants(other)));
        }
    }
}
