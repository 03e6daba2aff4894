//! Which request runs where, which waits, and which is told at once that it cannot be served in time.
//!
//! Under [`Policy::Central`] there is one first-in-first-out line and a request is bound to a replica only
//! when that replica has a free slot (late binding, the M/G/c queue). The other rules bind on arrival and
//! keep a line a replica, as the proxies do that they stand for.
//!
//! A request that has to wait is refused on arrival if, by its place in the line and the service times so far,
//! it would be served too late; what became hopeless meanwhile leaves the line before a newcomer is refused.
//! One that finds a free slot always starts, so that a wrong estimate corrects itself.
//!
//! **Invariant**: a replica never has more requests than slots, but for those it had before its slots were
//! cut; every ticket is started or dropped exactly once, unless it is cancelled or refused on arrival; each line
//! keeps its order, except that a request is passed over by a replica that it avoids; a request that can make
//! its deadline is never refused while one that cannot stays in the line.
use crate::logic::balance::{Balancer, Candidate, Policy, least_occupied};
use crate::logic::health::{Health, Limits};
use crate::logic::service::{Estimate, ServiceTimes};
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
        /// Now, for [`Queue::finish`].
        at: Duration,
        /// When its time runs out; later than it asked for if it had to wait for a first replica.
        expires_at: Duration,
    },
    /// Tell the client that it will not be served.
    Drop {
        /// The request.
        ticket: Ticket,
        /// Why not.
        why: Refusal,
    },
    /// The replica failed too often: it takes nothing until it is opened again, at `until` at the earliest.
    Eject {
        /// The replica.
        replica: ReplicaId,
        /// When it may be looked at again.
        until: Duration,
    },
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many wait already.
    #[error("the waiting line is full ({waiting} requests)")]
    Full {
        /// Requests that wait.
        waiting: usize,
    },
    /// It would be answered after its deadline.
    #[error("too busy to answer within the deadline")]
    Hopeless,
    /// Its time ran out while it waited.
    #[error("no replica was ready in time")]
    Expired,
}

/// Where a request joins the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the end, as a new request does; refused when the line is full or its deadline cannot be made.
    Back,
    /// At the head, as a request does whose replica failed it: it has waited already and is never refused.
    Front,
}

/// A request that asks for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its name.
    pub ticket: Ticket,
    /// Its deadline.
    pub expires_at: Duration,
    /// Until when it waits if no replica takes requests at all, as while the first one starts.
    pub patient_until: Duration,
    /// Where it joins the line.
    pub place: Place,
    /// A replica that failed it: it goes elsewhere if there is anywhere else.
    pub avoid: Option<ReplicaId>,
}

/// How a request left its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With an answer.
    Answered,
    /// The replica failed it.
    Failed,
    /// The replica was too busy to take it.
    Refused,
    /// Nobody waited for the answer any longer. Counts as failed if it took far longer than usual.
    Abandoned,
}

/// Service times further from the mean than so many standard deviations are not usual.
const UNUSUAL_DEVIATIONS: f64 = 4.0;
/// Certainty with which a newcomer must make its deadline, in standard deviations.
const ADMIT_DEVIATIONS: f64 = 2.0;
/// The same for one that waits already.
const STAY_DEVIATIONS: f64 = 1.0;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    since: Duration,
    expires_at: Duration,
    patient_until: Duration,
    avoid: Option<ReplicaId>,
}

#[derive(Debug, Default)]
struct Replica {
    slots: u32,
    /// When each request that it has was started.
    started: Vec<Duration>,
    /// Takes new requests.
    open: bool,
    health: Health,
    /// Requests bound to it on arrival.
    line: VecDeque<Waiting>,
}

impl Replica {
    fn in_flight(&self) -> u32 {
        self.started.len() as u32
    }

    /// Requests that it may have at once.
    fn usable(&self, now: Duration) -> u32 {
        if self.open { self.health.slots(now, self.slots) } else { 0 }
    }
}

/// The dispatcher's queue. See the module's documentation.
#[derive(Debug)]
pub struct Queue {
    waiting_max: usize,
    limits: Limits,
    balancer: Balancer,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Requests that are bound to no replica yet.
    line: VecDeque<Waiting>,
    times: ServiceTimes,
}

impl Queue {
    /// An empty queue in which at most `waiting_max` requests wait; `seed` is for the policies that draw lots.
    #[must_use]
    pub fn new(policy: Policy, waiting_max: usize, limits: Limits, seed: u64) -> Self {
        Self {
            waiting_max,
            limits,
            balancer: Balancer::new(policy, seed),
            replicas: BTreeMap::new(),
            line: VecDeque::new(),
            times: ServiceTimes::default(),
        }
    }

    /// A request arrives, or comes back from a replica that failed it.
    pub fn arrive(&mut self, now: Duration, ask: Ask) -> Vec<Event> {
        let Ask { ticket, expires_at, patient_until, place, avoid } = ask;
        let mut request = Waiting { ticket, since: now, expires_at, patient_until, avoid };
        if !self.is_open() {
            request.expires_at = expires_at.max(patient_until);
        }
        match place {
            Place::Front => self.line.push_front(request),
            Place::Back => self.line.push_back(request),
        }
        let mut events = self.assign(now);
        if place == Place::Back && self.refusal(now, ticket).is_some() {
            // Not if it waits behind those that cannot be served anyway.
            self.drop_hopeless(now, &mut events);
            if let Some(why) = self.refusal(now, ticket) {
                self.cancel(ticket);
                events.push(Event::Drop { ticket, why });
            }
        }
        events
    }

    /// Starts a copy of a request on a replica other than `avoid` if one has a slot to spare, and nowhere else.
    pub fn spare(&mut self, now: Duration, ask: Ask) -> Option<Event> {
        if self.waiting() > 0 {
            return None;
        }
        let free = self.candidates(now).filter(|c| Some(c.id) != ask.avoid && !c.suspect);
        let id = least_occupied(free)?;
        let replica = self.replicas.get_mut(&id)?;
        replica.started.push(now);
        Some(Event::Start { ticket: ask.ticket, replica: id, at: now, expires_at: ask.expires_at })
    }

    /// A request that was started at `started` left its replica.
    pub fn finish(&mut self, now: Duration, id: ReplicaId, started: Duration, how: Finish) -> Vec<Event> {
        let service = now.saturating_sub(started);
        let unusual = self.unusual();
        let others_open = self.replicas.iter().any(|(&other, replica)| other != id && replica.open);
        let mut ejected = None;
        if let Some(replica) = self.replicas.get_mut(&id) {
            if let Some(at) = replica.started.iter().position(|&at| at == started) {
                replica.started.swap_remove(at);
            }
            let failed = match how {
                Finish::Answered => {
                    replica.health.answered(replica.slots);
                    false
                }
                Finish::Failed => true,
                Finish::Refused => {
                    replica.health.refused(now);
                    false
                }
                Finish::Abandoned => unusual.is_some_and(|unusual| service > unusual),
            };
            // Where there is no other, a bad replica is better than none.
            if failed && let Some(backoff) = replica.health.failed(&self.limits) {
                ejected = (replica.open && others_open).then_some(now + backoff);
            }
        }
        if how == Finish::Answered {
            self.times.record(service);
        }
        let mut events = Vec::new();
        if let Some(until) = ejected {
            events.push(Event::Eject { replica: id, until });
            events.extend(self.close(now, id));
        }
        events.extend(self.assign(now));
        events
    }

    /// Time passed: what can no longer be served in time is dropped, replicas whose pause is over go on.
    pub fn tick(&mut self, now: Duration) -> Vec<Event> {
        let mut events = self.assign(now);
        let least = self.served_within(STAY_DEVIATIONS);
        let lines = std::iter::once(&mut self.line)
            .chain(self.replicas.values_mut().map(|replica| &mut replica.line));
        for line in lines {
            line.retain(|request| {
                let why = lost(request, now, least);
                events.extend(why.map(|why| Event::Drop { ticket: request.ticket, why }));
                why.is_none()
            });
        }
        events
    }

    /// The last instant at which a request with this deadline may still wait.
    #[must_use]
    pub fn latest_start(&self, expires_at: Duration) -> Duration {
        expires_at.saturating_sub(self.served_within(STAY_DEVIATIONS))
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
        if !entry.open {
            entry.open = true;
            entry.health.opened();
        }
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
        if !self.is_open() {
            // What waits for a replica to come waits longer than what waits for its turn.
            for request in &mut self.line {
                request.expires_at = request.expires_at.max(request.patient_until);
            }
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
        self.replicas.values().map(Replica::in_flight).sum()
    }

    /// Slots of the replicas that take requests.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.replicas.values().filter(|replica| replica.open).map(|replica| replica.slots).sum()
    }

    /// Requests that one replica has.
    #[must_use]
    pub fn in_flight_of(&self, replica: ReplicaId) -> u32 {
        self.replicas.get(&replica).map_or(0, Replica::in_flight)
    }

    /// Mean and deviation of the service time; nothing before the first answer.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.times.estimate()
    }

    /// A service time that is far from usual; nothing before the first answer.
    #[must_use]
    pub fn unusual(&self) -> Option<Duration> {
        self.estimate().map(|estimate| estimate.within(UNUSUAL_DEVIATIONS) + Duration::from_millis(1))
    }

    /// A quantile of the latest service times, in thousandths; nothing before there are enough of them.
    pub fn service_quantile(&mut self, per_mille: u16) -> Option<Duration> {
        self.times.quantile(per_mille)
    }

    fn is_open(&self) -> bool {
        self.replicas.values().any(|replica| replica.open)
    }

    fn served_within(&self, deviations: f64) -> Duration {
        self.estimate().map_or(Duration::ZERO, |estimate| estimate.within(deviations))
    }

    /// Binds and starts whatever can be.
    fn assign(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        let least = self.served_within(STAY_DEVIATIONS);
        if self.balancer.policy() == Policy::Central {
            self.assign_central(now, least, &mut events);
            return events;
        }
        self.bind(now);
        for (&id, replica) in &mut self.replicas {
            while replica.in_flight() < replica.usable(now) {
                let Some(request) = replica.line.pop_front() else { break };
                match lost(&request, now, least) {
                    Some(why) => events.push(Event::Drop { ticket: request.ticket, why }),
                    None => start(&request, now, id, replica, &mut events),
                }
            }
        }
        events
    }

    fn assign_central(&mut self, now: Duration, least: Duration, events: &mut Vec<Event>) {
        let mut at = 0;
        while let Some(&request) = self.line.get(at) {
            if let Some(why) = lost(&request, now, least) {
                self.line.remove(at);
                events.push(Event::Drop { ticket: request.ticket, why });
                continue;
            }
            // One that failed it is taken again only where there is no other.
            let elsewhere = request.avoid.is_some()
                && self.replicas.iter().any(|(&id, replica)| replica.open && Some(id) != request.avoid);
            let avoid = request.avoid.filter(|_| elsewhere);
            match least_occupied(self.candidates(now).filter(|c| Some(c.id) != avoid)) {
                Some(id) => {
                    self.line.remove(at);
                    if let Some(replica) = self.replicas.get_mut(&id) {
                        start(&request, now, id, replica, events);
                    }
                }
                // Free slots are not for it, but may be for those behind it.
                None if avoid.is_some() => at += 1,
                None => return,
            }
        }
    }

    /// Binds every unbound request to a replica, where there is one.
    fn bind(&mut self, now: Duration) {
        while let Some(request) = self.line.front() {
            let open = self.candidates(now).filter(|c| c.open);
            let all: Vec<_> = open.collect();
            let others: Vec<_> = all.iter().copied().filter(|c| Some(c.id) != request.avoid).collect();
            let Some(id) = self.balancer.choose(if others.is_empty() { &all } else { &others }) else {
                return;
            };
            if let (Some(request), Some(replica)) = (self.line.pop_front(), self.replicas.get_mut(&id)) {
                replica.line.push_back(request);
            }
        }
    }

    fn candidates(&self, now: Duration) -> impl Iterator<Item = Candidate<ReplicaId>> {
        self.replicas.iter().map(move |(&id, replica)| Candidate {
            id,
            open: replica.open,
            slots: replica.usable(now),
            in_flight: replica.in_flight(),
            waiting: replica.line.len() as u32,
            suspect: replica.health.is_suspect(),
        })
    }

    /// Why the request should not wait at the end of its line; nothing if it does not.
    fn refusal(&self, now: Duration, ticket: Ticket) -> Option<Refusal> {
        let is_last = |line: &VecDeque<Waiting>| line.back().is_some_and(|last| last.ticket == ticket);
        let (line, bound_to) = if is_last(&self.line) {
            (&self.line, None)
        } else {
            let (&id, replica) = self.replicas.iter().find(|(_, replica)| is_last(&replica.line))?;
            (&replica.line, Some(id))
        };
        let waiting = self.waiting();
        if waiting > self.waiting_max {
            return Some(Refusal::Full { waiting: waiting - 1 });
        }
        let frees = self.frees(now, |id| bound_to.is_none_or(|bound_to| bound_to == id));
        let ends_at = self.ends_at(&frees, line.len() - 1, ADMIT_DEVIATIONS)?;
        (ends_at > line.back()?.expires_at).then_some(Refusal::Hopeless)
    }

    /// Drops whatever waits and would be served too late at its place in the line.
    fn drop_hopeless(&mut self, now: Duration, events: &mut Vec<Event>) {
        let frees = self.frees(now, |_| true);
        let mut line = std::mem::take(&mut self.line);
        self.keep_hopeful(&mut line, &frees, events);
        self.line = line;
        let ids: Vec<ReplicaId> = self.replicas.keys().copied().collect();
        for id in ids {
            let frees = self.frees(now, |other| other == id);
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            let mut line = std::mem::take(&mut replica.line);
            self.keep_hopeful(&mut line, &frees, events);
            if let Some(replica) = self.replicas.get_mut(&id) {
                replica.line = line;
            }
        }
    }

    fn keep_hopeful(&self, line: &mut VecDeque<Waiting>, frees: &[Duration], events: &mut Vec<Event>) {
        let mut ahead = 0;
        line.retain(|request| {
            let ends_at = self.ends_at(frees, ahead, STAY_DEVIATIONS);
            let hopeful = ends_at.is_none_or(|ends_at| ends_at <= request.expires_at);
            if hopeful {
                ahead += 1;
            } else {
                events.push(Event::Drop { ticket: request.ticket, why: Refusal::Hopeless });
            }
            hopeful
        });
    }

    /// When each usable slot of the replicas asked for is expected to be free, soonest first.
    fn frees(&self, now: Duration, wanted: impl Fn(ReplicaId) -> bool) -> Vec<Duration> {
        let mean = self.served_within(0.0);
        let mut frees = Vec::new();
        for (&id, replica) in &self.replicas {
            let usable = if wanted(id) { replica.usable(now) as usize } else { 0 };
            let busy = replica.started.iter().map(|&started| (started + mean).max(now));
            frees.extend(busy.chain(std::iter::repeat(now)).take(usable));
        }
        frees.sort_unstable();
        frees
    }

    /// When a request with so many ahead of it in its line is expected to be answered; nothing where no
    /// answer was seen yet or no slot is usable.
    ///
    /// With a service time of m and slots that are free at `f₁ ≤ … ≤ f_c`, all within m, the k-th in line starts
    /// at `f_(k mod c) + ⌊k/c⌋·m`. The service times on its way are taken as independent.
    fn ends_at(&self, frees: &[Duration], ahead: usize, deviations: f64) -> Option<Duration> {
        let Estimate { mean, deviation } = self.estimate()?;
        let turns = (ahead / frees.len().max(1)) as u32;
        let free_at = *frees.get(ahead % frees.len().max(1))?;
        let uncertain = deviation.mul_f64(deviations * f64::from(turns + 1).sqrt());
        Some(free_at + mean.saturating_mul(turns + 1) + uncertain)
    }
}

/// Why a waiting request is not to be started, if so. `least` is the time that it needs.
fn lost(request: &Waiting, now: Duration, least: Duration) -> Option<Refusal> {
    if request.expires_at <= now {
        return Some(Refusal::Expired);
    }
    // One that has not waited is tried whatever the estimate says: there is a slot to spare.
    (request.since < now && now + least > request.expires_at).then_some(Refusal::Hopeless)
}

fn start(request: &Waiting, now: Duration, id: ReplicaId, replica: &mut Replica, events: &mut Vec<Event>) {
    replica.started.push(now);
    let &Waiting { ticket, expires_at, .. } = request;
    events.push(Event::Start { ticket, replica: id, at: now, expires_at });
}

#[cfg(test)]
mod tests;
