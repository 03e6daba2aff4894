//! A workload turned into the instants at which requests are due.
//!
//! Both spacings work in expected requests instead of seconds: the curve `E(t)` (requests expected up to `t`,
//! the integral of the rate) is inverted at targets that grow. Even spacing puts the targets at ½, 1½, 2½, …;
//! Poisson spacing puts them apart by exponential steps of mean 1, which gives a Poisson process of exactly
//! that rate (the time-rescaling theorem, e.g. Brown et al. 2002, *Neural Computation* 14:325). The rate is
//! made of straight pieces, so `E` is a parabola on each. What is left over of a request at the end of a piece
//! is carried into the next one for free.
//!
//! **Invariant**: instants never go back and never pass the plan's end; the same plan and seed give the same
//! instants.
mod workload;

pub use workload::{Workload, WorkloadError};

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use std::sync::Arc;
use std::time::Duration;

/// Most lines with a rate that a workload may have.
pub const LINES_MAX: usize = 1_000_000;
/// Highest rate of one line, requests a second, before and after scaling.
pub const RATE_RPS_MAX: f64 = 100_000.0;
/// Longest plan, seconds: a week.
pub const DURATION_S_MAX: f64 = 7.0 * 86_400.0;

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

/// How requests are spread over the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly, each in the middle of its share of time.
    Even,
    /// As a Poisson process of the planned rate.
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

/// A straight piece of the rate. It starts where the one before ends.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    end_s: f64,
    rate_rps_start: f64,
    rate_rps_end: f64,
}

impl Piece {
    /// Requests expected in the first `after_s` of the piece, which lasts `length_s`.
    fn expected(&self, after_s: f64, length_s: f64) -> f64 {
        let slope = (self.rate_rps_end - self.rate_rps_start) / length_s;
        after_s * (self.rate_rps_start + slope * after_s / 2.0)
    }

    /// How long after its start that many requests are expected, seconds: the inverse of [`Piece::expected`].
    fn after_s(&self, expected: f64, length_s: f64) -> f64 {
        let slope = (self.rate_rps_end - self.rate_rps_start) / length_s;
        // The root that loses no digits, and that works where the slope or the first rate is 0.
        let root = (self.rate_rps_start.powi(2) + 2.0 * slope * expected).max(0.0).sqrt();
        2.0 * expected / (self.rate_rps_start + root)
    }
}

/// A workload at a pace, checked against the limits. Clones share their pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pieces: Arc<[Piece]>,
    duration_s: f64,
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
        let duration_s = line_s * workload.lines() as f64;
        if duration_s > DURATION_S_MAX {
            return Err(PlanError::TooLong { duration_s });
        }
        let rate_rps = workload.rates_rps().iter().map(|rate_rps| rate_rps * pace.scale).fold(0.0, f64::max);
        if rate_rps > RATE_RPS_MAX {
            return Err(PlanError::TooFast { rate_rps });
        }
        let piece = |(end_lines, from, to): (f64, f64, f64)| Piece {
            end_s: line_s * end_lines,
            rate_rps_start: from * pace.scale,
            rate_rps_end: to * pace.scale,
        };
        let pieces: Arc<[Piece]> = workload.pieces().into_iter().map(piece).collect();
        let (mut requests_expected, mut start_s) = (0.0, 0.0);
        for piece in pieces.iter() {
            let length_s = piece.end_s - start_s;
            requests_expected += piece.expected(length_s, length_s);
            start_s = piece.end_s;
        }
        if requests_expected > requests_max as f64 {
            return Err(PlanError::TooMany { requests: requests_expected, requests_max });
        }
        Ok(Self { pieces, duration_s, requests_expected })
    }

    /// How long the plan lasts, times without requests included.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.duration_s)
    }

    /// The integral of the rate: how many requests the plan is expected to send.
    #[must_use]
    pub fn requests_expected(&self) -> f64 {
        self.requests_expected
    }

    /// The rate planned at `elapsed` since the start, requests a second; 0 after the end.
    #[must_use]
    pub fn rate_rps_at(&self, elapsed: Duration) -> f64 {
        let at_s = elapsed.as_secs_f64();
        let index = self.pieces.partition_point(|piece| piece.end_s <= at_s);
        let Some(piece) = self.pieces.get(index) else { return 0.0 };
        let start_s = self.start_s(index);
        let share = (at_s - start_s) / (piece.end_s - start_s);
        piece.rate_rps_start + (piece.rate_rps_end - piece.rate_rps_start) * share
    }

    /// Requests expected in each second of the plan, the last one cut where the plan ends.
    #[must_use]
    pub fn expected_by_second(&self) -> Vec<f64> {
        let seconds = self.duration_s.ceil() as usize;
        let mut expected = vec![0.0; seconds];
        let mut start_s = 0.0;
        for piece in self.pieces.iter() {
            let length_s = piece.end_s - start_s;
            let mut from_s: f64 = start_s;
            while from_s < piece.end_s {
                let second = from_s.floor();
                let to_s = (second + 1.0).min(piece.end_s);
                let within =
                    piece.expected(to_s - start_s, length_s) - piece.expected(from_s - start_s, length_s);
                if let Some(count) = expected.get_mut(second as usize) {
                    *count += within;
                }
                from_s = to_s;
            }
            start_s = piece.end_s;
        }
        expected
    }

    /// The instants at which requests are due, since the start, made one at a time.
    #[must_use]
    pub fn instants(&self, spacing: Spacing) -> Instants {
        let (step, target) = match spacing {
            Spacing::Even => (Step::One, 0.5),
            Spacing::Poisson { seed } => {
                let mut random = Pcg64::seed_from_u64(seed);
                let target = exponential(&mut random);
                (Step::Exponential(random), target)
            }
        };
        Instants { pieces: Arc::clone(&self.pieces), step, target, piece: 0, start_s: 0.0, before_piece: 0.0 }
    }

    fn start_s(&self, index: usize) -> f64 {
        if index == 0 { 0.0 } else { self.pieces[index - 1].end_s }
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
pub struct Instants {
    pieces: Arc<[Piece]>,
    step: Step,
    /// Expected requests at which the next one is due.
    target: f64,
    /// The piece that is played, and when it starts.
    piece: usize,
    start_s: f64,
    /// Expected requests before that piece.
    before_piece: f64,
}

impl Iterator for Instants {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        loop {
            let piece = *self.pieces.get(self.piece)?;
            let length_s = piece.end_s - self.start_s;
            let after_piece = self.before_piece + piece.expected(length_s, length_s);
            if self.target < after_piece {
                let instant_s = self.start_s + piece.after_s(self.target - self.before_piece, length_s);
                self.target += match &mut self.step {
                    Step::One => 1.0,
                    Step::Exponential(random) => exponential(random),
                };
                // Rounding may reach past the piece by a hair; the next one must not look earlier then.
                return Some(Duration::from_secs_f64(instant_s.min(piece.end_s)));
            }
            self.before_piece = after_piece;
            self.start_s = piece.end_s;
            self.piece += 1;
        }
    }
}

#[cfg(test)]
mod tests;
