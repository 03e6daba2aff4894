//! The dispatchers that report, and what they know together.
//!
//! **Invariant**: at most `limit` sources; of each only its latest report's gauges count, and those only
//! while it is no older than `age_max`.
use crate::net::wire::{ReplicaState, ReplicaStatus, Report, TimingMs};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one dispatcher said last.
#[derive(Debug)]
struct Source {
    sequence: u64,
    reported_at: Duration,
    in_flight: u32,
    queue_depth: u32,
    slots: u32,
    replicas: Vec<ReplicaStatus>,
}

/// Every dispatcher that reports, by name.
#[derive(Debug)]
pub(super) struct Sources {
    limit: usize,
    age_max: Duration,
    by_name: BTreeMap<String, Source>,
    reported_at: Option<Duration>,
}

/// What the dispatchers that still report know together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals {
    /// Dispatchers that still report.
    pub(super) sources: usize,
    /// Requests on replicas.
    pub(super) in_flight: u32,
    /// Requests waiting for a slot.
    pub(super) queue_depth: u32,
    /// Slots of ready replicas; those of a replica that several dispatchers share count once.
    pub(super) slots: u32,
    /// Every replica, by URL.
    pub(super) replicas: Vec<ReplicaStatus>,
}

impl Totals {
    /// Replicas in a state.
    pub(super) fn replicas_in(&self, state: ReplicaState) -> u32 {
        self.replicas.iter().filter(|replica| replica.state == state).count() as u32
    }

    /// URLs of the replicas that take requests.
    pub(super) fn ready(&self) -> BTreeSet<&str> {
        let ready = self.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready);
        ready.map(|replica| replica.url.as_str()).collect()
    }
}

/// What to do with a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is new: count it.
    New,
    /// Its sequence was seen before: count nothing.
    Repeated,
    /// It comes from one dispatcher too many.
    TooManySources,
}

impl Sources {
    /// No dispatcher yet.
    pub(super) fn new(limit: usize, age_max: Duration) -> Self {
        Self { limit, age_max, by_name: BTreeMap::new(), reported_at: None }
    }

    /// Takes over the gauges of a report, unless its sequence was seen before.
    ///
    /// A silent source's sequence is remembered, so that a report sent again after an outage is still counted
    /// once, until a new dispatcher needs the room.
    pub(super) fn admit(&mut self, now: Duration, report: &Report) -> Admission {
        match self.by_name.get(&report.source) {
            Some(known) if report.sequence <= known.sequence => return Admission::Repeated,
            Some(_) => {}
            None if self.by_name.len() < self.limit => {}
            None => match self.longest_silent(now) {
                Some(name) => drop(self.by_name.remove(&name)),
                None => return Admission::TooManySources,
            },
        }
        let source = Source {
            sequence: report.sequence,
            reported_at: now,
            in_flight: report.in_flight,
            queue_depth: report.queue_depth,
            slots: report.slots,
            replicas: report.replicas.clone(),
        };
        self.by_name.insert(report.source.clone(), source);
        self.reported_at = Some(now);
        Admission::New
    }

    /// Time since any dispatcher's last report.
    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        self.reported_at.map(|at| now.saturating_sub(at))
    }

    /// What the dispatchers that still report at `now` know together.
    pub(super) fn totals(&self, now: Duration) -> Totals {
        let mut totals = Totals::default();
        let mut replicas: BTreeMap<&str, ReplicaStatus> = BTreeMap::new();
        let mut shared_slots: u32 = 0;
        for source in self.by_name.values().filter(|source| !self.is_silent(source, now)) {
            totals.sources += 1;
            totals.in_flight = totals.in_flight.saturating_add(source.in_flight);
            totals.queue_depth = totals.queue_depth.saturating_add(source.queue_depth);
            totals.slots = totals.slots.saturating_add(source.slots);
            for seen in &source.replicas {
                let Some(known) = replicas.get_mut(seen.url.as_str()) else {
                    replicas.insert(&seen.url, seen.clone());
                    continue;
                };
                if known.state == ReplicaState::Ready && seen.state == ReplicaState::Ready {
                    shared_slots = shared_slots.saturating_add(known.slots.min(seen.slots));
                }
                merge(known, seen);
            }
        }
        totals.slots = totals.slots.saturating_sub(shared_slots);
        totals.replicas = replicas.into_values().collect();
        totals
    }

    fn is_silent(&self, source: &Source, now: Duration) -> bool {
        now.saturating_sub(source.reported_at) > self.age_max
    }

    fn longest_silent(&self, now: Duration) -> Option<String> {
        let silent = self.by_name.iter().filter(|(_, source)| self.is_silent(source, now));
        silent.min_by_key(|(_, source)| source.reported_at).map(|(name, _)| name.clone())
    }
}

/// Adds what another dispatcher sees of the same replica. Where they disagree, the one that gets further with
/// it is right: it has an answer that the other has not had yet.
fn merge(known: &mut ReplicaStatus, seen: &ReplicaStatus) {
    let rank = |state: ReplicaState| match state {
        ReplicaState::Ready => 3,
        ReplicaState::Starting => 2,
        ReplicaState::Draining => 1,
        ReplicaState::Ejected | ReplicaState::Down => 0,
    };
    if rank(seen.state) > rank(known.state) {
        known.state = seen.state;
    }
    known.slots = known.slots.max(seen.slots);
    known.in_flight = known.in_flight.saturating_add(seen.in_flight);
    known.stages_ms = match (known.stages_ms, seen.stages_ms) {
        (Some(a), Some(b)) => Some(mean_stages((a, known.answered), (b, seen.answered))),
        (a, b) => a.or(b),
    };
    known.answered = known.answered.saturating_add(seen.answered);
}

/// The mean of what two dispatchers saw, each weighted by how many answers it had.
fn mean_stages((a, a_answered): (TimingMs, u64), (b, b_answered): (TimingMs, u64)) -> TimingMs {
    let (a_answered, b_answered) = (a_answered as f64, b_answered as f64);
    let total = a_answered + b_answered;
    let share = if total > 0.0 { b_answered / total } else { 0.5 };
    let mean = |a: f64, b: f64| a + (b - a) * share;
    TimingMs {
        queue: mean(a.queue, b.queue),
        decode: mean(a.decode, b.decode),
        infer: mean(a.infer, b.infer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(url: &str, state: ReplicaState, in_flight: u32) -> ReplicaStatus {
        ReplicaStatus { url: url.into(), state, slots: 2, in_flight, answered: 0, stages_ms: None }
    }

    fn report(source: &str, sequence: u64, replicas: Vec<ReplicaStatus>) -> Report {
        let ready = replicas.iter().filter(|r| r.state == ReplicaState::Ready);
        Report {
            source: source.into(),
            sequence,
            in_flight: replicas.iter().map(|r| r.in_flight).sum(),
            queue_depth: 3,
            slots: ready.map(|r| r.slots).sum(),
            replicas,
            ..Report::default()
        }
    }

    fn sources() -> Sources {
        Sources::new(2, Duration::from_secs(10))
    }

    fn at_s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn dispatchers_add_up_and_a_shared_replica_counts_once() {
        use ReplicaState::{Down, Ready, Starting};
        let mut sources = sources();
        sources.admit(at_s(0), &report("a", 1, vec![replica("r1", Ready, 1), replica("r2", Starting, 0)]));
        sources.admit(at_s(0), &report("b", 1, vec![replica("r1", Ready, 1), replica("r3", Down, 0)]));
        let totals = sources.totals(at_s(1));
        assert_eq!((totals.sources, totals.in_flight, totals.queue_depth, totals.slots), (2, 2, 6, 2));
        assert_eq!(
            totals.replicas,
            [replica("r1", Ready, 2), replica("r2", Starting, 0), replica("r3", Down, 0)]
        );
        assert_eq!(totals.replicas_in(Starting), 1);
        assert_eq!(totals.ready().into_iter().collect::<Vec<_>>(), ["r1"]);
    }

    #[test]
    fn the_dispatcher_that_gets_further_with_a_replica_is_right() {
        let mut sources = sources();
        sources.admit(at_s(0), &report("a", 1, vec![replica("r", ReplicaState::Down, 0)]));
        sources.admit(at_s(0), &report("b", 1, vec![replica("r", ReplicaState::Ready, 1)]));
        let totals = sources.totals(at_s(0));
        assert_eq!((totals.replicas[0].state, totals.slots), (ReplicaState::Ready, 2));
    }

    #[test]
    fn the_time_of_a_shared_replica_is_weighted_by_answers() {
        let stages = |ms: f64| Some(TimingMs { queue: ms, decode: 2.0 * ms, infer: 3.0 * ms });
        let seen = |answered: u64, stages_ms: Option<TimingMs>| ReplicaStatus {
            answered,
            stages_ms,
            ..replica("r", ReplicaState::Ready, 0)
        };
        let merged = |a: ReplicaStatus, b: ReplicaStatus| {
            let mut sources = sources();
            sources.admit(at_s(0), &report("a", 1, vec![a]));
            sources.admit(at_s(0), &report("b", 1, vec![b]));
            let known = sources.totals(at_s(0)).replicas.remove(0);
            (known.answered, known.stages_ms)
        };
        assert_eq!(merged(seen(30, stages(10.0)), seen(10, stages(50.0))), (40, stages(20.0)));
        assert_eq!(merged(seen(0, None), seen(10, stages(50.0))), (10, stages(50.0)));
        assert_eq!(merged(seen(5, stages(8.0)), seen(7, None)), (12, stages(8.0)));
        assert_eq!(merged(seen(0, stages(10.0)), seen(0, stages(20.0))), (0, stages(15.0)));
    }

    #[test]
    fn a_silent_dispatcher_is_left_out_but_its_sequence_is_kept() {
        let mut sources = sources();
        let first = report("a", 7, vec![replica("r", ReplicaState::Ready, 1)]);
        assert_eq!(sources.admit(at_s(0), &first), Admission::New);
        assert_eq!(sources.totals(at_s(10)).slots, 2);
        assert_eq!(sources.totals(at_s(11)), Totals::default());
        assert_eq!(sources.age(at_s(11)), Some(at_s(11)));
        assert_eq!(sources.admit(at_s(11), &first), Admission::Repeated);
        assert_eq!(sources.admit(at_s(11), &report("a", 8, vec![])), Admission::New);
        assert_eq!(sources.totals(at_s(11)).sources, 1);
    }

    #[test]
    fn one_dispatcher_too_many_is_refused_until_another_is_silent() {
        let mut sources = sources();
        assert_eq!(sources.age(at_s(0)), None);
        sources.admit(at_s(0), &report("a", 1, vec![]));
        sources.admit(at_s(5), &report("b", 1, vec![]));
        assert_eq!(sources.admit(at_s(9), &report("c", 1, vec![])), Admission::TooManySources);
        assert_eq!(sources.admit(at_s(11), &report("c", 1, vec![])), Admission::New);
        assert_eq!(sources.admit(at_s(12), &report("b", 1, vec![])), Admission::Repeated);
    }
}
