//! Which replica takes a request.
//!
//! **Invariant**: a choice is always one of the candidates it was given.
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

/// When, and by which rule, a request is bound to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// One queue; a request is bound to a replica only when a slot is free (late binding)
    Central,
    /// Bound on arrival to any replica
    Random,
    /// Bound on arrival to each replica in turn
    RoundRobin,
    /// Bound on arrival to the replica with the fewest requests waiting or in flight
    LeastOutstanding,
    /// Bound on arrival to the one of two drawn at random that has fewer requests waiting or in flight
    PowerOfTwo,
}

/// What a choice is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<Id> {
    /// Names the replica.
    pub id: Id,
    /// Takes requests at all.
    pub open: bool,
    /// Requests it may have at once now.
    pub slots: u32,
    /// Requests it has.
    pub in_flight: u32,
    /// Requests bound to it that wait for a slot.
    pub waiting: u32,
    /// Its last request failed.
    pub suspect: bool,
}

impl<Id> Candidate<Id> {
    fn outstanding(&self) -> u32 {
        self.in_flight + self.waiting
    }
}

/// The replica with a free slot that is least occupied, the choice of [`Policy::Central`].
///
/// Those whose last request failed come last, so that failing fast attracts no work. Among equals the first is
/// taken: requests gather on the first replicas when there are few of them, so that the last ones are idle when
/// the fleet shrinks.
pub fn least_occupied<Id: Copy>(candidates: impl Iterator<Item = Candidate<Id>>) -> Option<Id> {
    let occupancy =
        |c: &Candidate<Id>| (c.suspect, (f64::from(c.in_flight) / f64::from(c.slots.max(1))).to_bits());
    candidates.filter(|c| c.open && c.in_flight < c.slots).min_by_key(occupancy).map(|c| c.id)
}

/// Chooses replicas; remembers whose turn it is and its random state.
#[derive(Clone, Debug)]
pub struct Balancer {
    policy: Policy,
    turn: usize,
    random: Pcg64Mcg,
}

impl Balancer {
    /// A balancer whose random choices follow from `seed`.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self { policy, turn: 0, random: Pcg64Mcg::seed_from_u64(seed) }
    }

    /// The rule in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The replica that takes the next request; `None` without candidates, or, under [`Policy::Central`],
    /// when none has a free slot.
    pub fn choose<Id: Copy>(&mut self, candidates: &[Candidate<Id>]) -> Option<Id> {
        let count = candidates.len();
        if count == 0 {
            return None;
        }
        match self.policy {
            Policy::Central => least_occupied(candidates.iter().copied()),
            Policy::Random => Some(candidates[self.random.random_range(0..count)].id),
            Policy::RoundRobin => {
                let next = self.turn % count;
                self.turn = self.turn.wrapping_add(1);
                Some(candidates[next].id)
            }
            Policy::LeastOutstanding => candidates.iter().min_by_key(|c| c.outstanding()).map(|c| c.id),
            Policy::PowerOfTwo => {
                // Mitzenmacher, "The power of two choices in randomized load balancing", 2001.
                let one = self.random.random_range(0..count);
                // Another than the first, where there is one.
                let step = if count > 1 { self.random.random_range(1..count) } else { 0 };
                let (one, other) = (&candidates[one], &candidates[(one + step) % count]);
                Some(if other.outstanding() < one.outstanding() { other.id } else { one.id })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    fn candidate(id: u8, in_flight: u32, waiting: u32) -> Candidate<u8> {
        Candidate { id, open: true, slots: 2, in_flight, waiting, suspect: false }
    }

    fn check(policy: Policy, candidates: &[Candidate<u8>], expected: &[Option<u8>]) {
        let mut balancer = Balancer::new(policy, 7);
        let chosen: Vec<_> = expected.iter().map(|_| balancer.choose(candidates)).collect();
        assert_eq!(chosen, expected, "{policy:?}");
    }

    #[test]
    fn each_rule_chooses_as_its_name_says() {
        let (a, b, c) = (candidate(0, 2, 0), candidate(1, 1, 5), candidate(2, 1, 0));
        check(Policy::Central, &[a, b, c], &[Some(1), Some(1)]);
        check(Policy::Central, &[a], &[None]);
        check(Policy::RoundRobin, &[a, b, c], &[Some(0), Some(1), Some(2), Some(0)]);
        check(Policy::LeastOutstanding, &[a, b, c], &[Some(2)]);
        // Of two, both are drawn.
        check(Policy::PowerOfTwo, &[b, c], &[Some(2); 20]);
        check(Policy::PowerOfTwo, &[b], &[Some(1)]);
        check(Policy::Central, &[Candidate { suspect: true, ..c }, Candidate { slots: 9, ..a }], &[Some(0)]);
        check(Policy::Central, &[Candidate { open: false, ..c }], &[None]);
        for policy in Policy::value_variants() {
            check(*policy, &[], &[None]);
        }
    }

    #[test]
    fn random_reaches_every_replica_and_repeats_with_its_seed() {
        let candidates = [candidate(0, 0, 0), candidate(1, 0, 0), candidate(2, 0, 0)];
        let run = |seed| {
            let mut balancer = Balancer::new(Policy::Random, seed);
            (0..60).filter_map(|_| balancer.choose(&candidates)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert!((0..3).all(|id| run(1).contains(&id)));
    }
}
