//! The replicas and the queue behind one lock: hands out slots, and takes them back when dropped.
//!
//! **Invariant**: the lock is never held across an await; whoever holds a [`Slot`] occupies exactly one
//! place of one replica until it is dropped.
use super::Config;
use super::wire::{ReplicaState, ReplicaStatus};
use crate::logic::queue::{Event, Full, Place, Queue, ReplicaId, Ticket};
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
    /// Registered itself: forgotten when it says goodbye or is away for too long.
    Registered,
}

#[derive(Debug)]
struct Replica {
    url: Arc<str>,
    source: Source,
    state: ReplicaState,
    slots: u32,
    /// Since when it has not been reachable.
    away_since: Option<Instant>,
}

struct Inner {
    queue: Queue,
    replicas: BTreeMap<ReplicaId, Replica>,
    waiters: HashMap<Ticket, oneshot::Sender<Result<Slot, Refusal>>>,
    next_id: u64,
}

/// Why a request got no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The waiting line is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// Its time ran out while it waited.
    #[error("no replica had a free slot in time")]
    Expired,
}

/// See the module's documentation.
pub(super) struct Pool {
    started: Instant,
    replicas_known_max: usize,
    inner: Mutex<Inner>,
}

/// A place on a replica.
pub(super) struct Slot {
    pool: Arc<Pool>,
    /// The replica's base URL.
    pub(super) url: Arc<str>,
    replica: ReplicaId,
    /// When the place was taken.
    pub(super) since: Instant,
    /// False once the place was given back by other means.
    held: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let now = self.pool.now();
        let mut inner = self.pool.lock();
        let events = inner.queue.finish(now, self.replica);
        self.pool.carry_out(&mut inner, events);
        inner.forget_if_drained(self.replica);
    }
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

/// What the pool looks like, for reports and people.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) in_flight: u32,
    pub(super) waiting: u32,
    pub(super) slots: u32,
    pub(super) replicas: Vec<ReplicaStatus>,
}

impl Pool {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let settings = &config.settings;
        let queue = Queue::new(config.policy, settings.waiting_max, settings.dispatch_seed);
        let inner = Inner { queue, replicas: BTreeMap::new(), waiters: HashMap::new(), next_id: 0 };
        let pool = Arc::new(Self {
            started: Instant::now(),
            replicas_known_max: settings.replicas_known_max,
            inner: Mutex::new(inner),
        });
        for url in &config.peers.replicas {
            pool.learn(url, Source::Listed);
        }
        pool
    }

    /// Waits for a slot until `expires_at`.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        expires_at: Instant,
        place: Place,
    ) -> Result<Slot, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let ticket = {
            let mut inner = self.lock();
            let ticket = inner.new_id();
            inner.waiters.insert(ticket, sender);
            let expires_at = expires_at.saturating_duration_since(self.started);
            match inner.queue.arrive(self.now(), ticket, expires_at, place) {
                Ok(events) => self.carry_out(&mut inner, events),
                Err(full) => {
                    inner.waiters.remove(&ticket);
                    return Err(full.into());
                }
            }
            ticket
        };
        // Dropped after `receiver` is: a slot that was sent but never received gives itself back.
        let _waiting = Waiting { pool: self, ticket };
        match tokio::time::timeout_at(expires_at, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Refusal::Expired),
        }
    }

    /// Makes a replica known, not ready yet. False when there are too many already.
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
        let id = inner.new_id();
        let state = ReplicaState::Starting;
        let away_since = Some(Instant::now());
        inner.replicas.insert(id, Replica { url: url.into(), source, state, slots: 0, away_since });
        true
    }

    /// A replica can take `slots` requests at once from now on.
    pub(super) fn ready(self: &Arc<Self>, url: &str, slots: u32) {
        let mut inner = self.lock();
        let Some(id) = inner.find(url) else { return };
        // A look at it may have begun before it said goodbye.
        if inner.said_goodbye(id) {
            return;
        }
        let Some(replica) = inner.replicas.get_mut(&id) else { return };
        if replica.state == ReplicaState::Ready && replica.slots == slots {
            replica.away_since = None;
            return;
        }
        tracing::info!(url, slots, "replica ready");
        (replica.state, replica.slots, replica.away_since) = (ReplicaState::Ready, slots, None);
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
        tracing::info!(url, ?state, "replica takes no requests");
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

    /// Every replica with its source, its state, and for how long it has not been reachable.
    pub(super) fn known(&self) -> Vec<(Arc<str>, Source, ReplicaState, Option<Duration>)> {
        let inner = self.lock();
        let known = inner.replicas.values();
        known
            .map(|replica| {
                let away = replica.away_since.map(|since| since.elapsed());
                (Arc::clone(&replica.url), replica.source, replica.state, away)
            })
            .collect()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let status = |(&id, replica): (&ReplicaId, &Replica)| ReplicaStatus {
            url: replica.url.to_string(),
            state: replica.state,
            slots: replica.slots,
            in_flight: inner.queue.in_flight_of(id),
            answered: 0,
            stages_ms: None,
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
                Event::Expire { ticket } => (ticket, Err(Refusal::Expired)),
                Event::Start { ticket, replica } => (ticket, Ok(self.slot(inner, replica))),
            };
            let unsent = match inner.waiters.remove(&ticket) {
                Some(waiter) => waiter.send(answer).err(),
                None => Some(answer),
            };
            // Its client went away between the choice and the answer: the slot is free again. It must not
            // take the lock, which is held here, to give itself back.
            if let Some(Ok(mut slot)) = unsent {
                slot.held = false;
                let events = inner.queue.finish(self.now(), slot.replica);
                self.carry_out(inner, events);
            }
        }
    }

    fn slot(self: &Arc<Self>, inner: &Inner, replica: ReplicaId) -> Slot {
        let url = inner.replicas.get(&replica).map_or_else(|| "".into(), |replica| Arc::clone(&replica.url));
        Slot { pool: Arc::clone(self), url, replica, since: Instant::now(), held: true }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
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
