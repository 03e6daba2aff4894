//! The replicas and the queue behind one lock: hands out slots and takes them back.
//!
//! **Invariant**: the lock is never held across an await, nor while a slot is dropped.
use super::slot::Slot;
use super::upstream::{ExchangeError, Upstream};
use super::wire::{ReplicaState, ReplicaStatus, TimingMs};
use super::{Config, HedgeAfter};
use crate::logic::budget::Budget;
use crate::logic::queue::{Ask, Event, Finish, Place, Queue, Refusal, ReplicaId, Ticket};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Where a replica was learned from decides how it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Named on the command line: never forgotten.
    Listed,
    /// An address of a DNS name: forgotten when the name no longer has it.
    Dns,
    /// An endpoint of a Kubernetes Service: forgotten when the Service no longer has it.
    Slices,
    /// Registered itself: forgotten when it says goodbye or is away for too long.
    Registered,
}

struct Replica {
    url: Arc<str>,
    upstream: Arc<Upstream>,
    source: Source,
    state: ReplicaState,
    slots: u32,
    /// Since when it has not been reachable.
    away_since: Option<Instant>,
    /// Until when it is not to be looked at, after it failed too often.
    ejected_until: Option<Instant>,
    answered: u64,
    stages_ms: Option<TimingMs>,
}

struct Inner {
    queue: Queue,
    budget: Budget,
    replicas: BTreeMap<ReplicaId, Replica>,
    waiters: HashMap<Ticket, oneshot::Sender<Result<Slot, Refusal>>>,
    next_id: u64,
    /// Whose turn it is to answer what needs no slot.
    turn: usize,
}

/// See the module's documentation.
pub(super) struct Pool {
    started: Instant,
    replicas_known_max: usize,
    connect_timeout: Duration,
    hedge_after: HedgeAfter,
    inner: Mutex<Inner>,
}

impl Replica {
    /// Whether it may be looked at and used.
    fn is_due(&self) -> bool {
        self.ejected_until.is_none_or(|until| until <= Instant::now())
    }
}

/// A moving mean over about the last sixteen answers.
fn smoothed(old: Option<TimingMs>, new: TimingMs) -> TimingMs {
    const WEIGHT: f64 = 1.0 / 16.0;
    let Some(old) = old else { return new };
    let mix = |old: f64, new: f64| old + WEIGHT * (new - old);
    TimingMs {
        queue: mix(old.queue, new.queue),
        decode: mix(old.decode, new.decode),
        infer: mix(old.infer, new.infer),
    }
}

/// What a request wants of the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Its deadline.
    pub(super) expires_at: Instant,
    /// Until when it waits if there is no replica at all.
    pub(super) patient_until: Instant,
    /// Where it joins the line.
    pub(super) place: Place,
    /// A replica that failed it.
    pub(super) avoid: Option<ReplicaId>,
}

/// Leaves the line when the request is given up while it waits.
struct Waiting<'a> {
    pool: &'a Pool,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        if inner.waiters.remove(&self.ticket).is_some() {
            inner.queue.cancel(self.ticket);
        }
    }
}

/// How often whoever waits looks again, at the least: pauses of busy replicas end without an event.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often it looks at the most.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Time that a last-chance copy has for the way, beyond the time of two services.
const HEDGE_SLACK: Duration = Duration::from_millis(5);

/// What the pool looks like, for reports and people.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) in_flight: u32,
    pub(super) waiting: u32,
    pub(super) slots: u32,
    pub(super) replicas: Vec<ReplicaStatus>,
}

/// Where and when a request was started.
#[derive(Clone, Copy)]
struct Started {
    replica: ReplicaId,
    at: Duration,
    expires_at: Duration,
}

/// A replica to be looked at.
pub(super) struct Known {
    pub(super) url: Arc<str>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) source: Source,
    pub(super) state: ReplicaState,
    /// For how long it has not been reachable.
    pub(super) away: Option<Duration>,
    /// It may be looked at: it neither said goodbye nor failed too often a moment ago.
    pub(super) due: bool,
}

impl Pool {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let settings = &config.settings;
        let queue =
            Queue::new(config.policy, settings.waiting_max, settings.health(), settings.dispatch_seed);
        let inner = Inner {
            queue,
            budget: Budget::new(settings.retry_share, settings.retry_reserve),
            replicas: BTreeMap::new(),
            waiters: HashMap::new(),
            next_id: 0,
            turn: 0,
        };
        Arc::new(Self {
            started: Instant::now(),
            replicas_known_max: settings.replicas_known_max,
            connect_timeout: settings.connect_timeout,
            hedge_after: settings.hedge_after,
            inner: Mutex::new(inner),
        })
    }

    /// Waits for a slot.
    pub(super) async fn acquire(self: &Arc<Self>, wanted: Wanted) -> Result<Slot, Refusal> {
        let (mut receiver, ticket, mut look_at) = {
            let mut inner = self.lock();
            let ticket = inner.new_id();
            if wanted.place == Place::Back {
                inner.budget.deposit();
            }
            let ask = self.ask(ticket, &wanted);
            let mut events = inner.queue.arrive(self.now(), ask);
            // Most requests get their slot at once and need not wait for a message.
            let own = |event: &Event| match *event {
                Event::Start { ticket: it, .. } | Event::Drop { ticket: it, .. } => it == ticket,
                Event::Eject { .. } => false,
            };
            if let Some(at) = events.iter().position(own) {
                let event = events.remove(at);
                self.carry_out(&mut inner, events);
                return match event {
                    Event::Start { replica, at, expires_at, .. } => {
                        self.slot(&mut inner, Started { replica, at, expires_at }).ok_or(Refusal::Expired)
                    }
                    Event::Drop { why, .. } => Err(why),
                    Event::Eject { .. } => Err(Refusal::Expired),
                };
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiters.insert(ticket, sender);
            self.carry_out(&mut inner, events);
            (receiver, ticket, self.look_at(&inner, &wanted))
        };
        // Dropped before `receiver` is: a slot that was sent but never received gives itself back.
        let _waiting = Waiting { pool: self, ticket };
        loop {
            if let Ok(answer) = tokio::time::timeout_at(look_at, &mut receiver).await {
                return answer.unwrap_or(Err(Refusal::Expired));
            }
            let mut inner = self.lock();
            let events = inner.queue.tick(self.now());
            self.carry_out(&mut inner, events);
            look_at = self.look_at(&inner, &wanted);
        }
    }

    /// A slot for a copy of a request, on another replica than `avoid`, if one has a slot to spare.
    pub(super) fn spare(self: &Arc<Self>, wanted: &Wanted) -> Option<Slot> {
        let mut inner = self.lock();
        let ticket = inner.new_id();
        match inner.queue.spare(self.now(), self.ask(ticket, wanted))? {
            Event::Start { replica, at, expires_at, .. } => {
                self.slot(&mut inner, Started { replica, at, expires_at })
            }
            Event::Drop { .. } | Event::Eject { .. } => None,
        }
    }

    /// Takes a slot back; [`Slot`] calls it.
    pub(super) fn give_back(self: &Arc<Self>, replica: ReplicaId, started: Duration, how: Finish) {
        let now = self.now();
        let mut inner = self.lock();
        let events = inner.queue.finish(now, replica, started, how);
        self.carry_out(&mut inner, events);
        inner.forget_if_drained(replica);
    }

    /// Counts an answer and where its time went.
    pub(super) fn note_answer(&self, replica: ReplicaId, stages: Option<TimingMs>) {
        let mut inner = self.lock();
        if let Some(replica) = inner.replicas.get_mut(&replica) {
            replica.answered += 1;
            replica.stages_ms = stages.map(|new| smoothed(replica.stages_ms, new)).or(replica.stages_ms);
        }
    }

    /// Whether a request may be sent once more.
    pub(super) fn may_send_again(&self) -> bool {
        let now = self.now();
        self.lock().budget.withdraw(now)
    }

    fn ask(&self, ticket: Ticket, wanted: &Wanted) -> Ask {
        let &Wanted { expires_at, patient_until, place, avoid } = wanted;
        let (expires_at, patient_until) = (self.since_start(expires_at), self.since_start(patient_until));
        Ask { ticket, expires_at, patient_until, place, avoid }
    }

    /// When a request that waits has to look again whether it still should.
    fn look_at(&self, inner: &Inner, wanted: &Wanted) -> Instant {
        let now = Instant::now();
        let latest = self.started + inner.queue.latest_start(self.since_start(wanted.expires_at));
        // Past it without having been dropped means that it is allowed to wait for a first replica.
        if latest < now { now + LOOK_AGAIN } else { latest.min(now + LOOK_AGAIN).max(now) + LOOK_PAUSE }
    }

    /// Makes a replica known, not ready yet. False when there are too many already or its URL is of no use.
    ///
    /// One that said goodbye and registers again is another, which took over its address.
    pub(super) fn learn(&self, url: &str, source: Source) -> bool {
        let mut inner = self.lock();
        if let Some(id) = inner.find(url) {
            if !inner.said_goodbye(id) || source != Source::Registered {
                return true;
            }
            inner.remove_closed(id);
        }
        if inner.replicas.len() >= self.replicas_known_max {
            return false;
        }
        let upstream = match Upstream::new(url, self.connect_timeout) {
            Ok(upstream) => Arc::new(upstream),
            Err(error) => {
                let error: &ExchangeError = &error;
                tracing::warn!(url, %error, "replica ignored");
                return false;
            }
        };
        let id = inner.new_id();
        let replica = Replica {
            url: url.into(),
            upstream,
            source,
            state: ReplicaState::Starting,
            slots: 0,
            away_since: (source == Source::Registered).then(Instant::now),
            ejected_until: None,
            answered: 0,
            stages_ms: None,
        };
        inner.replicas.insert(id, replica);
        true
    }

    /// A replica can take `slots` requests at once from now on.
    pub(super) fn ready(self: &Arc<Self>, url: &str, slots: u32) {
        let mut inner = self.lock();
        let Some(id) = inner.find(url) else { return };
        // A look at it may have begun before it said goodbye or failed.
        if inner.said_goodbye(id) {
            return;
        }
        let Some(replica) = inner.replicas.get_mut(&id).filter(|replica| replica.is_due()) else { return };
        if replica.state == ReplicaState::Ready && replica.slots == slots {
            replica.away_since = None;
            return;
        }
        tracing::info!(url, slots, "replica ready");
        (replica.state, replica.slots, replica.away_since) = (ReplicaState::Ready, slots, None);
        replica.ejected_until = None;
        let events = inner.queue.open(self.now(), id, slots);
        self.carry_out(&mut inner, events);
    }

    /// A replica takes nothing new: it drains, or it does not answer.
    pub(super) fn unready(self: &Arc<Self>, url: &str, state: ReplicaState) {
        let mut inner = self.lock();
        let Some(id) = inner.find(url) else { return };
        let Some(replica) = inner.replicas.get_mut(&id) else { return };
        // What never was ready is still starting, and what said goodbye stays so.
        if replica.state == state || replica.state == ReplicaState::Starting {
            return;
        }
        if state == ReplicaState::Down && replica.state == ReplicaState::Draining {
            return;
        }
        tracing::info!(url, state = state.name(), "replica takes no requests");
        replica.state = state;
        replica.away_since = Some(Instant::now());
        let events = inner.queue.close(self.now(), id);
        self.carry_out(&mut inner, events);
        inner.forget_if_drained(id);
    }

    /// Forgets a replica that is gone for good.
    pub(super) fn forget(self: &Arc<Self>, url: &str) {
        let mut inner = self.lock();
        let Some(id) = inner.find(url) else { return };
        tracing::info!(url, "replica forgotten");
        inner.replicas.remove(&id);
        let events = inner.queue.remove(self.now(), id);
        self.carry_out(&mut inner, events);
    }

    /// Every replica.
    pub(super) fn known(&self) -> Vec<Known> {
        let inner = self.lock();
        let known = inner.replicas.iter().map(|(&id, replica)| Known {
            url: Arc::clone(&replica.url),
            upstream: Arc::clone(&replica.upstream),
            source: replica.source,
            state: replica.state,
            away: replica.away_since.map(|since| since.elapsed()),
            due: replica.is_due() && !inner.said_goodbye(id),
        });
        known.collect()
    }

    /// The replicas that are ready, another one first each time.
    pub(super) fn ready_ones(&self) -> Vec<Arc<Upstream>> {
        let mut inner = self.lock();
        let ready = inner.replicas.values().filter(|replica| replica.state == ReplicaState::Ready);
        let mut ready: Vec<_> = ready.map(|replica| Arc::clone(&replica.upstream)).collect();
        inner.turn = inner.turn.wrapping_add(1);
        let first = inner.turn % ready.len().max(1);
        ready.rotate_left(first);
        ready
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let status = |(&id, replica): (&ReplicaId, &Replica)| ReplicaStatus {
            url: replica.url.to_string(),
            state: replica.state,
            slots: replica.slots,
            in_flight: inner.queue.in_flight_of(id),
            answered: replica.answered,
            stages_ms: replica.stages_ms,
        };
        Snapshot {
            in_flight: inner.queue.in_flight(),
            waiting: inner.queue.waiting() as u32,
            slots: inner.queue.slots(),
            replicas: inner.replicas.iter().map(status).collect(),
        }
    }

    fn carry_out(self: &Arc<Self>, inner: &mut Inner, events: Vec<Event>) {
        for event in events {
            let (ticket, answer) = match event {
                Event::Drop { ticket, why } => (ticket, Err(why)),
                Event::Start { ticket, replica, at, expires_at } => {
                    let slot = self.slot(inner, Started { replica, at, expires_at });
                    (ticket, slot.ok_or(Refusal::Expired))
                }
                Event::Eject { replica, until } => {
                    self.eject(inner, replica, until);
                    continue;
                }
            };
            let unsent = match inner.waiters.remove(&ticket) {
                Some(waiter) => waiter.send(answer).err(),
                None => Some(answer),
            };
            // Its client went away between the choice and the answer: the slot is free again. It must not
            // take the lock, which is held here, to give itself back.
            if let Some(Ok(mut slot)) = unsent {
                slot.ending = None;
                let events = inner.queue.finish(self.now(), slot.replica, slot.started, Finish::Abandoned);
                self.carry_out(inner, events);
            }
        }
    }

    fn eject(&self, inner: &mut Inner, id: ReplicaId, until: Duration) {
        let Some(replica) = inner.replicas.get_mut(&id) else { return };
        let backoff = until.saturating_sub(self.now());
        tracing::warn!(url = %replica.url, ?backoff, "replica ejected: it failed too often");
        replica.state = ReplicaState::Ejected;
        replica.ejected_until = Some(self.started + until);
    }

    /// The slot of an event that starts a request. The queue starts none on a replica that is not in the map.
    fn slot(self: &Arc<Self>, inner: &mut Inner, started: Started) -> Option<Slot> {
        let Started { replica, at, expires_at } = started;
        let known = inner.replicas.get(&replica)?;
        let (url, upstream) = (Arc::clone(&known.url), Arc::clone(&known.upstream));
        let (since, expires_at) = (self.started + at, self.started + expires_at);
        let (hedge_at, last_chance_at) = self.hedges(&mut inner.queue, since, expires_at);
        Some(Slot {
            pool: Arc::clone(self),
            url,
            upstream,
            replica,
            since,
            expires_at,
            hedge_at,
            last_chance_at,
            started: at,
            ending: Some(Finish::Abandoned),
        })
    }

    /// When a request that starts now is sent elsewhere too if it is not answered.
    fn hedges(
        &self,
        queue: &mut Queue,
        since: Instant,
        expires_at: Instant,
    ) -> (Option<Instant>, Option<Instant>) {
        let hedge_after = match self.hedge_after {
            HedgeAfter::Never => return (None, None),
            HedgeAfter::LastChance => None,
            HedgeAfter::Quantile(per_mille) => queue.service_quantile(per_mille),
            HedgeAfter::Time(time) => Some(time),
        };
        let last_chance_at = queue.estimate().zip(queue.unusual()).and_then(|(estimate, unusual)| {
            let needed = estimate.within(1.0) * 2 + HEDGE_SLACK;
            let at = expires_at.checked_sub(needed)?.max(since + unusual);
            (at < expires_at).then_some(at)
        });
        (hedge_after.map(|after| since + after), last_chance_at)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }

    /// No code panics while it holds the lock; should one, the data is still whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn find(&self, url: &str) -> Option<ReplicaId> {
        self.replicas.iter().find(|(_, replica)| &*replica.url == url).map(|(&id, _)| id)
    }

    fn said_goodbye(&self, id: ReplicaId) -> bool {
        self.replicas.get(&id).is_some_and(|replica| {
            replica.state == ReplicaState::Draining && replica.source == Source::Registered
        })
    }

    /// A registered replica that said goodbye is gone once it has finished what it had.
    fn forget_if_drained(&mut self, id: ReplicaId) {
        if self.said_goodbye(id) && self.queue.in_flight_of(id) == 0 {
            self.remove_closed(id);
        }
    }

    /// Removes a replica that is closed already, so that nothing can start.
    fn remove_closed(&mut self, id: ReplicaId) {
        self.replicas.remove(&id);
        self.queue.remove(Duration::ZERO, id);
    }
}
