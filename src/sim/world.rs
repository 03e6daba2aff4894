//! The loop over events.
use super::fleet::Fleet;
use super::monitor::{Gauges, Monitor};
use super::requests::Requests;
use super::service::ServiceTimes;
use crate::logic::policy::{Observation, Policy};
use crate::logic::queue::{Ask, Event, Finish, Place, Queue, ReplicaId, Ticket};
use crate::logic::window::{Limits, Sample};
use crate::logic::{balance, health};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// How often the dispatcher reports to the monitor.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// When the first report comes: rules decide at whole seconds, and know what was reported before.
const REPORT_FIRST: Duration = Duration::from_millis(130);

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Mean time that a request holds a slot.
    pub service_time: Duration,
    /// Its coefficient of variation.
    pub cv: f64,
    /// From asking for a replica to its first request.
    pub start_up: Duration,
    /// Requests that a replica takes at once.
    pub slots: u32,
    /// How requests are bound to replicas.
    pub dispatch: balance::Policy,
    /// Requests that may wait.
    pub waiting_max: usize,
    /// Latency that is promised.
    pub promise: Duration,
    /// When a request that waits is given up.
    pub deadline: Duration,
    /// Time between two decisions.
    pub interval: Duration,
    /// Replicas that are ready when the plan starts.
    pub replicas_start: u32,
    /// Picks service times and the lots that dispatching draws.
    pub seed: u64,
    /// Latencies that percentiles are over.
    pub window: usize,
}

/// A second of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Requests that arrived in it.
    pub arrivals: u32,
    /// Of these, over the promise: answered too late or refused.
    pub missed: u32,
    /// Replicas asked for at its end.
    pub desired: u32,
    /// Replicas that took requests at its end.
    pub ready: u32,
}

/// A change of the number of replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// When.
    pub at: Duration,
    /// Replicas asked for until then.
    pub from: u32,
    /// And from then on.
    pub to: u32,
    /// Why.
    pub reason: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests that arrived.
    pub requests: u64,
    /// Of these, over the promise.
    pub missed: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Replica-seconds, from asking for a replica to its end.
    pub replica_s: f64,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// Every change of the number of replicas.
    pub changes: Vec<Change>,
}

/// What happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Answer { ticket: Ticket, replica: ReplicaId, started: Duration },
    Up(ReplicaId),
    Report,
    Decide,
}

struct World<'a> {
    settings: &'a Settings,
    end: Duration,
    times: ServiceTimes,
    queue: Queue,
    fleet: Fleet,
    monitor: Monitor,
    due: BinaryHeap<Reverse<(Duration, Due)>>,
    busy: u32,
    busy_since: Duration,
    outcome: Outcome,
}

/// Plays `requests` with `policy` at the scales.
pub fn run(settings: &Settings, requests: &Requests, policy: &mut dyn Policy) -> Outcome {
    let end = requests.duration();
    let promise_ms = settings.promise.as_secs_f64() * 1e3;
    let health = health::Limits {
        failures_max: u32::MAX,
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(1),
    };
    let window = Limits { samples_max: settings.window, age_max: Duration::from_secs(600), promise_ms };
    let mut world = World {
        settings,
        end,
        times: ServiceTimes::new(settings.service_time, settings.cv, settings.seed),
        queue: Queue::new(settings.dispatch, settings.waiting_max, health, settings.seed),
        fleet: Fleet::default(),
        monitor: Monitor::new(window),
        due: BinaryHeap::new(),
        busy: 0,
        busy_since: Duration::ZERO,
        outcome: Outcome {
            seconds: vec![Second::default(); end.as_secs_f64().ceil() as usize],
            ..Outcome::default()
        },
    };
    for id in world.fleet.ready_at_start(settings.replicas_start) {
        let events = world.queue.open(Duration::ZERO, id, settings.slots);
        world.carry_out(Duration::ZERO, events);
    }
    world.later(REPORT_FIRST, Due::Report);
    world.later(settings.interval, Due::Decide);
    world.play(requests, policy);
    world.outcome
}

impl World<'_> {
    fn later(&mut self, at: Duration, due: Due) {
        self.due.push(Reverse((at, due)));
    }

    fn play(&mut self, requests: &Requests, policy: &mut dyn Policy) {
        let mut arrivals = requests.tickets().peekable();
        loop {
            let due_at = self.due.peek().map(|Reverse((at, _))| *at);
            let arrival = arrivals.peek().copied();
            match (arrival, due_at) {
                (Some(ticket), due_at) if due_at.is_none_or(|at| Duration::from_nanos(ticket) < at) => {
                    arrivals.next();
                    self.arrive(ticket);
                }
                (_, Some(_)) => {
                    let Some(Reverse((at, due))) = self.due.pop() else { return };
                    self.happen(at, due, policy);
                }
                (_, None) => break,
            }
        }
        self.outcome.replica_s = self.fleet.replica_s(self.end);
    }

    fn arrive(&mut self, ticket: Ticket) {
        let now = Duration::from_nanos(ticket);
        self.outcome.requests += 1;
        self.second(ticket, |second| second.arrivals += 1);
        self.monitor.arrived();
        let expires_at = now + self.settings.deadline;
        let ask = Ask { ticket, expires_at, patient_until: expires_at, place: Place::Back, avoid: None };
        let events = self.queue.arrive(now, ask);
        self.carry_out(now, events);
    }

    fn happen(&mut self, now: Duration, due: Due, policy: &mut dyn Policy) {
        match due {
            Due::Answer { ticket, replica, started } => self.answer(now, ticket, replica, started),
            Due::Up(id) => {
                if self.fleet.is_up(id) {
                    let events = self.queue.open(now, id, self.settings.slots);
                    self.carry_out(now, events);
                }
            }
            Due::Report => {
                if self.queue.waiting() > 0 {
                    let events = self.queue.tick(now);
                    self.carry_out(now, events);
                }
                let gauges = Gauges { waiting: self.queue.waiting() as u32, slots: self.queue.slots() };
                self.monitor.report(now, gauges);
                self.note_replicas(nanos(now));
                if now < self.end {
                    self.later(now + REPORT_EVERY, Due::Report);
                }
            }
            Due::Decide => {
                self.count_busy(now);
                self.decide(now, policy);
                let next = now + self.settings.interval;
                if next <= self.end {
                    self.later(next, Due::Decide);
                }
            }
        }
    }

    fn answer(&mut self, now: Duration, ticket: Ticket, replica: ReplicaId, started: Duration) {
        self.count_busy(now);
        self.busy -= 1;
        self.ended(now, ticket, Some(now.saturating_sub(started)));
        let events = self.queue.finish(now, replica, started, Finish::Answered);
        if self.fleet.is_draining(replica) && self.queue.in_flight_of(replica) == 0 {
            self.remove(now, replica);
        }
        self.carry_out(now, events);
    }

    fn ended(&mut self, now: Duration, ticket: Ticket, service: Option<Duration>) {
        let latency = now.saturating_sub(Duration::from_nanos(ticket));
        let refused = service.is_none();
        if refused || latency > self.settings.promise {
            self.outcome.missed += 1;
            self.outcome.refused += u64::from(refused);
            self.second(ticket, |second| second.missed += 1);
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.monitor.ended(Sample { latency_ms: ms(latency), miss: refused, service_ms: service.map(ms) });
    }

    fn carry_out(&mut self, now: Duration, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Start { ticket, replica, .. } => {
                    self.count_busy(now);
                    self.busy += 1;
                    let due = Due::Answer { ticket, replica, started: now };
                    self.later(now + self.times.of(ticket), due);
                }
                Event::Drop { ticket, .. } => self.ended(now, ticket, None),
                Event::Eject { .. } => {}
            }
        }
    }

    fn decide(&mut self, now: Duration, policy: &mut dyn Policy) {
        let traffic = self.monitor.traffic(now);
        let replicas = self.fleet.counts();
        let decision = policy.decide(&Observation { now, replicas, traffic: Some(traffic) });
        if decision.replicas != replicas.desired {
            self.outcome.changes.push(Change {
                at: now,
                from: replicas.desired,
                to: decision.replicas,
                reason: decision.reason,
            });
            let (starting, draining) = self.fleet.scale(now, decision.replicas);
            for id in starting {
                self.later(now + self.settings.start_up, Due::Up(id));
            }
            for id in draining {
                let events = self.queue.close(now, id);
                self.carry_out(now, events);
                if self.queue.in_flight_of(id) == 0 {
                    self.remove(now, id);
                }
            }
        }
        self.note_replicas(nanos(now).saturating_sub(1));
    }

    fn note_replicas(&mut self, at_nanos: u64) {
        let counts = self.fleet.counts();
        self.second(at_nanos, |second| (second.desired, second.ready) = (counts.desired, counts.ready));
    }

    fn remove(&mut self, now: Duration, replica: ReplicaId) {
        let events = self.queue.remove(now, replica);
        self.fleet.ended(now, replica);
        self.carry_out(now, events);
    }

    fn count_busy(&mut self, now: Duration) {
        let time_s = now.saturating_sub(self.busy_since).as_secs_f64();
        self.monitor.busy(self.busy, time_s);
        self.busy_since = now;
    }

    fn second(&mut self, at_nanos: u64, change: impl FnOnce(&mut Second)) {
        let index = usize::try_from(at_nanos / 1_000_000_000).ok();
        if let Some(second) = index.and_then(|index| self.outcome.seconds.get_mut(index)) {
            change(second);
        }
    }
}

pub(super) fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}
