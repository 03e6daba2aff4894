//! The requests that are played.
use super::world::nanos;
use crate::logic::arrivals::{Plan, Spacing};
use crate::logic::queue::Ticket;
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use std::time::Duration;

/// Most requests that were counted in one second.
pub const COUNTED_MAX: u32 = 100_000;

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Requests {
    /// A workload at a pace, spread over its time in one of two ways.
    Planned(Plan, Spacing),
    /// So many in each second, as they were counted; within the second anywhere, which `seed` picks. Given its
    /// count that is how a Poisson process spreads a second's arrivals.
    Counted {
        /// Requests of each second.
        seconds: Vec<u32>,
        /// Picks one of the possible runs.
        seed: u64,
    },
}

impl Requests {
    /// How long they come for.
    #[must_use]
    pub fn duration(&self) -> Duration {
        match self {
            Self::Planned(plan, _) => plan.duration(),
            Self::Counted { seconds, .. } => Duration::from_secs(seconds.len() as u64),
        }
    }

    /// The rate at the start, requests a second; of counted ones the mean of the first ten seconds.
    #[must_use]
    pub fn rate_rps_at_start(&self) -> f64 {
        match self {
            Self::Planned(plan, _) => plan.rate_rps_at(Duration::ZERO),
            Self::Counted { seconds, .. } => {
                let first = &seconds[..seconds.len().min(10)];
                f64::from(first.iter().sum::<u32>()) / first.len().max(1) as f64
            }
        }
    }

    /// Their names, each the nanosecond at which it arrives, so that nothing else must be remembered of it; in
    /// order, none twice.
    pub(super) fn tickets(&self) -> Box<dyn Iterator<Item = Ticket> + '_> {
        let mut last: Option<Ticket> = None;
        let distinct = move |at: Ticket| {
            let ticket = last.map_or(at, |last| at.max(last + 1));
            last = Some(ticket);
            ticket
        };
        match self {
            Self::Planned(plan, spacing) => Box::new(plan.instants(*spacing).map(nanos).map(distinct)),
            Self::Counted { seconds, seed } => {
                let mut random = Pcg64::seed_from_u64(*seed);
                let within = move |(second, &count): (usize, &u32)| {
                    let start = second as u64 * 1_000_000_000;
                    let mut at: Vec<Ticket> = (0..count.min(COUNTED_MAX))
                        .map(|_| start + random.random_range(0..1_000_000_000))
                        .collect();
                    at.sort_unstable();
                    at
                };
                Box::new(seconds.iter().enumerate().flat_map(within).map(distinct))
            }
        }
    }
}
