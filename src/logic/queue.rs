//! Which request runs where and which waits: admission, the waiting line, and slots.
//!
//! Under [`Policy::Central`] there is one first-in-first-out line and a request is bound to a replica only
//! when that replica has a free slot (late binding, the M/G/c queue). The other rules bind on arrival and
//! keep a line a replica, as the proxies do that they stand for.
//!
//! **Invariant**: a replica never has more requests than slots, but for those it had before its slots were
//! cut; every ticket is started, expired, refused or cancelled exactly once; each line keeps its order.
use crate::logic::balance::{Balancer, Candidate, Policy};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Names a request while the queue knows it; the caller never uses one twice.
pub type Ticket = u64;
/// Names a replica; the caller never uses one twice, so that a late [`Queue::finish`] of a replica that was
/// removed cannot free a slot of another.
pub type ReplicaId = u64;

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send the request to the replica: it holds a slot there until [`Queue::finish`].
    Start {
        /// The request.
        ticket: Ticket,
        /// Where it goes.
        replica: ReplicaId,
    },
    /// Tell the client that its time ran out while it waited.
    Expire {
        /// The request.
        ticket: Ticket,
    },
}

/// The waiting line is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the waiting line is full ({waiting} requests)")]
pub struct Full {
    /// Requests that wait.
    pub waiting: usize,
}

/// Where a request joins the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the end, as a new request does; refused when the line is full.
    Back,
    /// At the head, as a request does whose replica failed: it has waited already and is never refused.
    Front,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    expires_at: Duration,
}

#[derive(Debug, Default)]
struct Replica {
    slots: u32,
    in_flight: u32,
    /// Takes new requests.
    open: bool,
    /// Requests bound to it on arrival.
    line: VecDeque<Waiting>,
}

/// The dispatcher's queue. See the module's documentation.
#[derive(Debug)]
pub struct Queue {
    waiting_max: usize,
    balancer: Balancer,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Requests that are bound to no replica yet.
    line: VecDeque<Waiting>,
}

impl Queue {
    /// An empty queue in which at most `waiting_max` requests wait; `seed` is for [`Policy::Random`].
    #[must_use]
    pub fn new(policy: Policy, waiting_max: usize, seed: u64) -> Self {
        Self {
            waiting_max,
            balancer: Balancer::new(policy, seed),
            replicas: BTreeMap::new(),
            line: VecDeque::new(),
        }
    }

    /// A request arrives, or comes back from a replica that failed it.
    pub fn arrive(
        &mut self,
        now: Duration,
        ticket: Ticket,
        expires_at: Duration,
        place: Place,
    ) -> Result<Vec<Event>, Full> {
        let request = Waiting { ticket, expires_at };
        match place {
            Place::Front => self.line.push_front(request),
            Place::Back => self.line.push_back(request),
        }
        let events = self.assign(now);
        // Full only if the newcomer itself would have to wait beyond the limit: one that a free slot takes
        // at once does not lengthen the line.
        let waiting = self.waiting();
        if place == Place::Back && waiting > self.waiting_max && self.cancel(ticket) {
            return Err(Full { waiting: waiting - 1 });
        }
        Ok(events)
    }

    /// A request left its replica, answered or not.
    pub fn finish(&mut self, now: Duration, replica: ReplicaId) -> Vec<Event> {
        if let Some(replica) = self.replicas.get_mut(&replica) {
            replica.in_flight = replica.in_flight.saturating_sub(1);
        }
        self.assign(now)
    }

    /// A waiting request was given up. Whether it was waiting.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let lines = std::iter::once(&mut self.line)
            .chain(self.replicas.values_mut().map(|replica| &mut replica.line));
        for line in lines {
            // The youngest are cancelled most often (refusals), so search from the back.
            if let Some(at) = line.iter().rposition(|waiting| waiting.ticket == ticket) {
                line.remove(at);
                return true;
            }
        }
        false
    }

    /// A replica is ready for `slots` requests at once.
    pub fn open(&mut self, now: Duration, replica: ReplicaId, slots: u32) -> Vec<Event> {
        let entry = self.replicas.entry(replica).or_default();
        entry.slots = slots.max(1);
        entry.open = true;
        self.assign(now)
    }

    /// A replica takes nothing new; what it has may finish, what was bound to it goes elsewhere.
    pub fn close(&mut self, now: Duration, replica: ReplicaId) -> Vec<Event> {
        let Some(entry) = self.replicas.get_mut(&replica) else { return Vec::new() };
        entry.open = false;
        let bound = std::mem::take(&mut entry.line);
        for request in bound.into_iter().rev() {
            self.line.push_front(request);
        }
        self.assign(now)
    }

    /// A replica is gone for good.
    pub fn remove(&mut self, now: Duration, replica: ReplicaId) -> Vec<Event> {
        let events = self.close(now, replica);
        self.replicas.remove(&replica);
        events
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.len() + self.replicas.values().map(|replica| replica.line.len()).sum::<usize>()
    }

    /// Requests on replicas.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.replicas.values().map(|replica| replica.in_flight).sum()
    }

    /// Slots of the replicas that take requests.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.replicas.values().filter(|replica| replica.open).map(|replica| replica.slots).sum()
    }

    /// Requests that one replica has.
    #[must_use]
    pub fn in_flight_of(&self, replica: ReplicaId) -> u32 {
        self.replicas.get(&replica).map_or(0, |replica| replica.in_flight)
    }

    /// Binds and starts whatever can be.
    fn assign(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if self.balancer.policy() != Policy::Central {
            self.bind();
            for (&id, replica) in &mut self.replicas {
                while replica.open && replica.in_flight < replica.slots {
                    match next(&mut replica.line, now, &mut events) {
                        Some(ticket) => start(ticket, id, replica, &mut events),
                        None => break,
                    }
                }
            }
            return events;
        }
        while !self.line.is_empty() {
            let candidates = self.candidates();
            let Some(id) = self.balancer.choose(&candidates) else { break };
            let Some(ticket) = next(&mut self.line, now, &mut events) else { break };
            if let Some(replica) = self.replicas.get_mut(&id) {
                start(ticket, id, replica, &mut events);
            }
        }
        events
    }

    /// Binds every unbound request to a replica, where there is one.
    fn bind(&mut self) {
        while !self.line.is_empty() {
            let candidates = self.candidates();
            let Some(id) = self.balancer.choose(&candidates) else { return };
            if let (Some(request), Some(replica)) = (self.line.pop_front(), self.replicas.get_mut(&id)) {
                replica.line.push_back(request);
            }
        }
    }

    fn candidates(&self) -> Vec<Candidate<ReplicaId>> {
        let open = self.replicas.iter().filter(|(_, replica)| replica.open);
        open.map(|(&id, replica)| Candidate {
            id,
            slots: replica.slots,
            in_flight: replica.in_flight,
            waiting: replica.line.len() as u32,
        })
        .collect()
    }
}

/// The first request of a line whose time has not run out; those before it expire.
fn next(line: &mut VecDeque<Waiting>, now: Duration, events: &mut Vec<Event>) -> Option<Ticket> {
    while let Some(request) = line.pop_front() {
        if request.expires_at > now {
            return Some(request.ticket);
        }
        events.push(Event::Expire { ticket: request.ticket });
    }
    None
}

fn start(ticket: Ticket, id: ReplicaId, replica: &mut Replica, events: &mut Vec<Event>) {
    replica.in_flight += 1;
    events.push(Event::Start { ticket, replica: id });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    const NOW: Duration = Duration::from_secs(1);
    const LATER: Duration = Duration::from_secs(9);

    fn started(events: &[Event]) -> Vec<(Ticket, ReplicaId)> {
        let start = |event: &Event| match *event {
            Event::Start { ticket, replica } => Some((ticket, replica)),
            Event::Expire { .. } => None,
        };
        events.iter().filter_map(start).collect()
    }

    #[test]
    fn requests_wait_for_a_replica_and_then_for_a_slot_in_order() {
        let mut queue = Queue::new(Policy::Central, 10, 0);
        for ticket in 0..4 {
            assert_eq!(queue.arrive(NOW, ticket, LATER, Place::Back), Ok(vec![]));
        }
        assert_eq!(started(&queue.open(NOW, 70, 1)), [(0, 70)]);
        assert_eq!(started(&queue.open(NOW, 71, 2)), [(1, 71), (2, 71)]);
        assert_eq!((queue.waiting(), queue.in_flight(), queue.slots()), (1, 3, 3));
        assert_eq!(started(&queue.finish(NOW, 70)), [(3, 70)]);
    }

    #[test]
    fn a_request_that_comes_back_goes_first_even_when_the_line_is_full() {
        let mut queue = Queue::new(Policy::Central, 1, 0);
        queue.arrive(NOW, 0, LATER, Place::Back).unwrap();
        assert_eq!(queue.arrive(NOW, 1, LATER, Place::Back), Err(Full { waiting: 1 }));
        queue.arrive(NOW, 2, LATER, Place::Front).unwrap();
        assert_eq!(started(&queue.open(NOW, 7, 2)), [(2, 7), (0, 7)]);
    }

    #[test]
    fn a_request_whose_time_ran_out_is_not_started() {
        let mut queue = Queue::new(Policy::Central, 9, 0);
        queue.arrive(NOW, 0, NOW * 2, Place::Back).unwrap();
        queue.arrive(NOW, 1, LATER, Place::Back).unwrap();
        let events = queue.open(NOW * 3, 7, 1);
        assert_eq!(events, [Event::Expire { ticket: 0 }, Event::Start { ticket: 1, replica: 7 }]);
    }

    #[test]
    fn a_closed_replica_hands_on_what_was_bound_to_it() {
        let mut queue = Queue::new(Policy::RoundRobin, 9, 0);
        queue.open(NOW, 1, 1);
        queue.open(NOW, 2, 1);
        for ticket in 0..4 {
            queue.arrive(NOW, ticket, LATER, Place::Back).unwrap();
        }
        assert_eq!(queue.waiting(), 2);
        assert_eq!(queue.close(NOW, 1), []);
        assert_eq!(started(&queue.finish(NOW, 1)), [], "it takes nothing new");
        assert_eq!(started(&queue.finish(NOW, 2)).len(), 1);
        assert_eq!(started(&queue.finish(NOW, 2)).len(), 1);
    }

    #[test]
    fn a_late_finish_of_a_removed_replica_is_harmless() {
        let mut queue = Queue::new(Policy::Central, 9, 0);
        queue.open(NOW, 1, 1);
        queue.arrive(NOW, 0, LATER, Place::Back).unwrap();
        queue.remove(NOW, 1);
        queue.open(NOW, 2, 1);
        queue.arrive(NOW, 1, LATER, Place::Back).unwrap();
        assert_eq!(queue.finish(NOW, 1), []);
        assert_eq!(queue.in_flight(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive { lasts_ms: u64 },
        Finish { which: usize },
        Cancel { which: usize },
        Open { replica: u64, slots: u32 },
        Close { replica: u64 },
        Fail { which: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_u64..60).prop_map(|lasts_ms| Step::Arrive { lasts_ms }),
            3 => any::<usize>().prop_map(|which| Step::Finish { which }),
            1 => any::<usize>().prop_map(|which| Step::Cancel { which }),
            1 => (0_u64..4, 1_u32..4).prop_map(|(replica, slots)| Step::Open { replica, slots }),
            1 => (0_u64..4).prop_map(|replica| Step::Close { replica }),
            1 => any::<usize>().prop_map(|which| Step::Fail { which }),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// The world outside the queue: who runs where, who waits, what was promised.
    #[derive(Default)]
    struct World {
        next_ticket: Ticket,
        running: Vec<(Ticket, ReplicaId)>,
        waiting: Vec<Ticket>,
        expires_at: HashMap<Ticket, Duration>,
        done: HashSet<Ticket>,
        open: HashMap<ReplicaId, u32>,
    }

    impl World {
        fn take(&mut self, now: Duration, events: &[Event], central: bool) {
            for event in events {
                match *event {
                    Event::Start { ticket, replica } => {
                        assert!(self.open.contains_key(&replica), "started on a closed replica");
                        assert!(self.expires_at[&ticket] > now, "started after its time");
                        let at = self.waiting.iter().position(|&waiting| waiting == ticket);
                        let at = at.expect("started while not waiting");
                        assert!(!central || at == 0, "overtook {:?}", &self.waiting[..at]);
                        self.waiting.remove(at);
                        self.running.push((ticket, replica));
                    }
                    Event::Expire { ticket } => {
                        assert!(self.expires_at[&ticket] <= now, "expired before its time");
                        let at = self.waiting.iter().position(|&waiting| waiting == ticket);
                        self.waiting.remove(at.expect("expired while not waiting"));
                        assert!(self.done.insert(ticket), "ended twice");
                    }
                }
            }
        }
    }

    fn run(policy: Policy, waiting_max: usize, steps: &[Step]) {
        let mut queue = Queue::new(policy, waiting_max, 3);
        let mut world = World::default();
        for (at, step) in steps.iter().enumerate() {
            let now = Duration::from_millis(at as u64);
            let events = match *step {
                Step::Arrive { lasts_ms } => {
                    let ticket = world.next_ticket;
                    world.next_ticket += 1;
                    world.expires_at.insert(ticket, now + Duration::from_millis(lasts_ms));
                    world.waiting.push(ticket);
                    let answer = queue.arrive(now, ticket, world.expires_at[&ticket], Place::Back);
                    answer.unwrap_or_else(|full| {
                        assert!(full.waiting >= waiting_max, "refused with room");
                        world.waiting.pop();
                        world.done.insert(ticket);
                        vec![]
                    })
                }
                Step::Finish { which } | Step::Fail { which } if !world.running.is_empty() => {
                    let (ticket, replica) = world.running.remove(which % world.running.len());
                    let mut events = Vec::new();
                    if matches!(step, Step::Fail { .. }) {
                        world.waiting.insert(0, ticket);
                        let expires_at = world.expires_at[&ticket];
                        events.extend(queue.arrive(now, ticket, expires_at, Place::Front).unwrap());
                        world.take(now, &events, policy == Policy::Central);
                        events.clear();
                    } else {
                        assert!(world.done.insert(ticket), "ended twice");
                    }
                    events.extend(queue.finish(now, replica));
                    events
                }
                Step::Cancel { which } if !world.waiting.is_empty() => {
                    let ticket = world.waiting.remove(which % world.waiting.len());
                    assert!(queue.cancel(ticket), "a waiting request was lost");
                    world.done.insert(ticket);
                    vec![]
                }
                Step::Open { replica, slots } => {
                    world.open.insert(replica, slots);
                    queue.open(now, replica, slots)
                }
                Step::Close { replica } => {
                    world.open.remove(&replica);
                    queue.close(now, replica)
                }
                Step::Finish { .. } | Step::Fail { .. } | Step::Cancel { .. } => vec![],
            };
            world.take(now, &events, policy == Policy::Central);
            assert_eq!(queue.waiting(), world.waiting.len());
            assert_eq!(queue.in_flight() as usize, world.running.len());
            if policy == Policy::Central {
                let free = world.open.iter().any(|(id, &slots)| queue.in_flight_of(*id) < slots);
                assert!(!free || world.waiting.is_empty(), "a slot is free while requests wait");
            }
        }
        let known = world.running.len() + world.waiting.len() + world.done.len();
        assert_eq!(known as u64, world.next_ticket, "a request was lost or served twice");
    }

    proptest! {
        #[test]
        fn no_request_is_lost_served_twice_or_overtaken(steps in steps(), waiting_max in 0_usize..20) {
            for policy in [Policy::Central, Policy::Random, Policy::RoundRobin, Policy::LeastOutstanding] {
                run(policy, waiting_max, &steps);
            }
        }

        #[test]
        fn never_more_in_flight_than_slots(slots in 1_u32..5, requests in 1_u64..40) {
            let mut queue = Queue::new(Policy::Central, 100, 0);
            queue.open(NOW, 1, slots);
            for ticket in 0..requests {
                queue.arrive(NOW, ticket, LATER, Place::Back).unwrap();
                prop_assert!(queue.in_flight() <= slots);
            }
        }
    }
}
