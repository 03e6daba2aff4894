//! Replicas: asked for, starting, ready, draining, gone; and what they cost.
use crate::logic::policy::ReplicaCounts;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Draining,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    since: Duration,
    state: State,
}

/// The fleet. Names of replicas grow with their age, so that the youngest is the last.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    members: BTreeMap<u64, Member>,
    next_id: u64,
    desired: u32,
    /// Paid for and gone.
    gone_replica_s: f64,
}

impl Fleet {
    /// Asks for one more, at `now`; its name.
    fn start(&mut self, now: Duration, state: State) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.members.insert(id, Member { since: now, state });
        id
    }

    /// A fleet that is ready at the start; the names of its replicas.
    pub(super) fn ready_at_start(&mut self, replicas: u32) -> Vec<u64> {
        self.desired = replicas;
        (0..replicas).map(|_| self.start(Duration::ZERO, State::Ready)).collect()
    }

    /// Asks for `desired` replicas. Which ones start, and which ready ones are to drain; those that are starting
    /// go first, then the youngest, as in production.
    pub(super) fn scale(&mut self, now: Duration, desired: u32) -> (Vec<u64>, Vec<u64>) {
        self.desired = desired;
        let mut present: Vec<(bool, u64)> = self
            .members
            .iter()
            .filter(|(_, member)| member.state != State::Draining)
            .map(|(&id, member)| (member.state == State::Starting, id))
            .collect();
        present.sort_unstable();
        let desired = desired as usize;
        let mut draining = Vec::new();
        for (starting, id) in present.split_off(present.len().min(desired)) {
            if starting {
                self.ended(now, id);
            } else if let Some(member) = self.members.get_mut(&id) {
                member.state = State::Draining;
                draining.push(id);
            }
        }
        let starting = (present.len()..desired).map(|_| self.start(now, State::Starting)).collect();
        (starting, draining)
    }

    /// The start-up time of a replica is over. Whether it is still wanted.
    pub(super) fn is_up(&mut self, id: u64) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        member.state = State::Ready;
        true
    }

    /// Whether a replica finishes what it has.
    pub(super) fn is_draining(&self, id: u64) -> bool {
        self.members.get(&id).is_some_and(|member| member.state == State::Draining)
    }

    /// A replica is gone.
    pub(super) fn ended(&mut self, now: Duration, id: u64) {
        if let Some(member) = self.members.remove(&id) {
            self.gone_replica_s += now.saturating_sub(member.since).as_secs_f64();
        }
    }

    pub(super) fn counts(&self) -> ReplicaCounts {
        let count = |state| self.members.values().filter(|member| member.state == state).count() as u32;
        ReplicaCounts {
            desired: self.desired,
            ready: count(State::Ready),
            starting: count(State::Starting),
            failing: 0,
        }
    }

    /// Replica-seconds up to `now`: from the moment a replica was asked for until it was gone.
    pub(super) fn replica_s(&self, now: Duration) -> f64 {
        let present = self.members.values().map(|member| now.saturating_sub(member.since).as_secs_f64());
        self.gone_replica_s + present.sum::<f64>()
    }
}
