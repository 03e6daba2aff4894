//! The rule that keeps a latency promise with few replicas; docs/autoscaling.md derives it.
//!
//! The rate of arrivals, with its trend and bursts, times the service time is the load; Erlang's formula gives the
//! fewest slots with which few enough requests wait too long. How many are few enough follows from how much of the
//! budget of misses is spent. The fleet grows at once and shrinks to the most that was wanted for a while.
//!
//! **Invariant**: what is asked for depends on traffic and time alone, not on how many replicas there are, but for
//! the caps on one step: the same latencies cannot cause a second step.
use super::demand::Demand;
use super::erlang::Load;
use super::misses::{Misses, Trial};
use super::start_up::StartUp;
use super::{Bounds, Decision, Observation, Policy, ReplicaCounts, Traffic, elapsed, fresh, hold};
use crate::logic::window::Service;
use std::collections::VecDeque;
use std::time::Duration;

/// Share of requests that may wait too long by the formula, while the whole budget of misses is left. The formula is
/// an upper bound of what shedding dispatchers really lose, and few of the seconds run so close to full.
const LATE_MOST: f64 = 0.25;
/// The same when the budget is spent.
const LATE_LEAST: f64 = 0.03;
/// The fleet shrinks to what was wanted at most for so many start-up times, if that is longer than `hold`.
const HOLD_START_UPS: f64 = 2.0;
/// Replicas that a step may always add.
const GROW_ALWAYS: u32 = 10;

/// Time after which the numbers of replicas and slots are taken to belong together.
const STEADY_MIN: Duration = Duration::from_secs(3);

/// Settings of [`Slo`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SloConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Latency that is promised, milliseconds.
    pub promise_ms: f64,
    /// Share of requests that may miss it, over a quarter of an hour; from 0 to 1.
    pub miss_budget: f64,
    /// The fleet shrinks to the most that was wanted for so long.
    pub hold: Duration,
    /// Start-up time that is reckoned with until one was seen.
    pub start_up: Duration,
    /// Most times as many replicas after a step; ten more are always allowed.
    pub grow_max: f64,
    /// Age from which a report counts as missing, seconds.
    pub stale_after_s: f64,
}

impl SloConfig {
    /// The settings that everything was measured with.
    #[must_use]
    pub const fn new(bounds: Bounds, promise_ms: f64) -> Self {
        Self {
            bounds,
            promise_ms,
            miss_budget: 0.004,
            hold: Duration::from_secs(40),
            start_up: Duration::from_secs(5),
            grow_max: 2.0,
            stale_after_s: 30.0,
        }
    }
}

/// What was wanted at a time.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    at: Duration,
    replicas: u32,
}

/// The rule and what it remembers.
#[derive(Clone, Debug)]
pub struct Slo {
    config: SloConfig,
    start_up: StartUp,
    misses: Misses,
    service: Option<Service>,
    /// Slots of a replica, where they were as many for a while.
    slots_learned: Option<f64>,
    /// Ready replicas and their slots, and since when they are as many.
    steady: Option<((u32, u32), Duration)>,
    wanted: VecDeque<Wanted>,
    /// Since when every decision knew the traffic.
    known_since: Option<Duration>,
    decided_at: Option<Duration>,
}

/// What is wanted, and why.
struct Want {
    replicas: u32,
    reason: String,
}

impl Slo {
    /// The rule before its first decision.
    #[must_use]
    pub fn new(config: SloConfig) -> Self {
        Self {
            config,
            start_up: StartUp::default(),
            misses: Misses::default(),
            service: None,
            slots_learned: None,
            steady: None,
            wanted: VecDeque::new(),
            known_since: None,
            decided_at: None,
        }
    }

    /// How long the most that was wanted is held, with the start-up time as it is known.
    fn hold(&self) -> Duration {
        self.config.hold.max(self.start_up().mul_f64(HOLD_START_UPS))
    }

    fn start_up(&self) -> Duration {
        self.start_up.slowest().unwrap_or(self.config.start_up)
    }

    /// Forgets what a clock that jumped, or a long silence, makes worthless.
    fn mind_the_clock(&mut self, now: Duration) {
        let jumped = self.decided_at.is_some() && elapsed(self.decided_at, now).is_none();
        self.decided_at = Some(now);
        if jumped {
            self.start_up.forget_those_on_their_way();
            self.misses = Misses::default();
            self.unknown();
        }
    }

    /// Nothing is known of the traffic for now.
    fn unknown(&mut self) {
        self.known_since = None;
        self.wanted.clear();
    }

    fn idle(&self) -> Want {
        Want { replicas: self.config.bounds.min, reason: "no request in 15 s".to_owned() }
    }

    /// Slots of a replica. They are told by dispatchers and replicas by the scaler, a moment apart: only what stays
    /// says anything.
    fn learn_slots(&mut self, now: Duration, ready: u32, slots: u32) -> f64 {
        match self.steady {
            Some((pair, since)) if pair == (ready, slots) => {
                if now.saturating_sub(since) >= STEADY_MIN && ready > 0 && slots > 0 {
                    self.slots_learned = Some(f64::from(slots) / f64::from(ready));
                }
            }
            _ => self.steady = Some(((ready, slots), now)),
        }
        // At first what is told must do.
        let told = (ready > 0 && slots > 0).then(|| f64::from(slots) / f64::from(ready));
        self.slots_learned.or(told).unwrap_or(1.0)
    }

    /// Replicas for the traffic as it is.
    fn want(&mut self, now: Duration, replicas: ReplicaCounts, traffic: &Traffic) -> Result<Want, String> {
        self.misses.see(now, traffic);
        if traffic.service.is_some() {
            self.service = traffic.service;
        }
        let slots_a_replica = self.learn_slots(now, replicas.ready, traffic.slots);
        let demand = Demand::of(&traffic.arrivals, traffic.arrivals_known_s, self.start_up().as_secs_f64());
        let rate_rps = demand.rate_rps();
        let idle = rate_rps <= 0.0 && traffic.waiting == 0;
        let Some(service) = self.service else {
            return if idle { Ok(self.idle()) } else { Err("no request was answered yet".to_owned()) };
        };
        let load = Load { rate_rps, service_s: service.mean_ms / 1e3, cv: service.cv };
        let wait_s = ((self.config.promise_ms - service.p95_ms) / 1e3).max(0.0);
        let missed_share = self.misses.share();
        let late = (LATE_MOST * (1.0 - missed_share / self.config.miss_budget)).max(LATE_LEAST);
        // More slots than the bounds allow need no telling apart.
        let slots_max = (f64::from(self.config.bounds.max) * slots_a_replica).ceil() as u32 + 1;
        let slots = load.slots(wait_s, late, slots_max);
        let trial = Trial { service_s: load.service_s, wait_s, budget: self.config.miss_budget, slots_max };
        let floor = self.misses.floor(&trial).unwrap_or(0);
        let replicas = (f64::from(slots.max(floor)) / slots_a_replica).ceil() as u32;
        if idle && floor == 0 {
            return Ok(self.idle());
        }
        let reason = if floor > slots {
            format!(
                "{:.1} % missed in 15 min, which {floor} slots would have kept within {:.1} %",
                missed_share * 100.0,
                self.config.miss_budget * 100.0
            )
        } else {
            let offered = load.offered();
            format!(
                "{} hold {offered:.1} slots in the mean; {slots} keep waits under {:.0} ms",
                Rate(&demand),
                wait_s * 1e3
            )
        };
        Ok(Want { replicas, reason })
    }

    /// Replicas to have when `want` is wanted now.
    fn settle(&mut self, now: Duration, replicas: ReplicaCounts, want: Want) -> Decision {
        let desired = replicas.desired;
        let known_since = *self.known_since.get_or_insert(now);
        let hold_time = self.hold();
        while self.wanted.front().is_some_and(|wanted| wanted.at + hold_time < now) {
            self.wanted.pop_front();
        }
        // Only what was wanted at most from some time on matters: keep the falling maxima.
        while self.wanted.back().is_some_and(|wanted| wanted.replicas <= want.replicas) {
            self.wanted.pop_back();
        }
        self.wanted.push_back(Wanted { at: now, replicas: want.replicas });
        let most = self.wanted.front().map_or(want.replicas, |wanted| wanted.replicas);
        // Replicas that come up and die are no capacity; a quarter more is asked for in their stead at most, since
        // what kills them may kill the others too.
        let instead = |wanted: u32| wanted.saturating_add(replicas.failing.min(wanted.div_ceil(4)));
        if instead(want.replicas) > desired {
            let grow_max = (f64::from(desired) * self.config.grow_max) as u32;
            let replicas = instead(want.replicas).min(grow_max.max(desired.saturating_add(GROW_ALWAYS)));
            return Decision { replicas, reason: format!("up: {}", want.reason) };
        }
        if instead(most) >= desired {
            let reason = if instead(want.replicas) == desired {
                want.reason
            } else {
                format!("{most} were wanted within {:.0} s", hold_time.as_secs_f64())
            };
            return hold(desired, &reason);
        }
        let known = now.saturating_sub(known_since);
        if known < hold_time {
            let (known_s, hold_s) = (known.as_secs_f64(), hold_time.as_secs_f64());
            return hold(
                desired,
                &format!("the traffic is known for {known_s:.0} s, less than {hold_s:.0} s"),
            );
        }
        let reason =
            format!("down: at most {most} were wanted in {:.0} s; {}", hold_time.as_secs_f64(), want.reason);
        Decision { replicas: instead(most).max(desired / 2), reason }
    }
}

impl Policy for Slo {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let &Observation { now, replicas, .. } = observation;
        self.mind_the_clock(now);
        self.start_up.see(now, replicas);
        let want = fresh(observation, self.config.stale_after_s)
            .and_then(|traffic| self.want(now, replicas, &traffic));
        let decision = match want {
            Ok(want) => self.settle(now, replicas, want),
            Err(why) => {
                self.unknown();
                hold(replicas.desired, &why)
            }
        };
        self.config.bounds.apply(decision)
    }
}

/// A demand in words.
struct Rate<'a>(&'a Demand);

impl std::fmt::Display for Rate<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Demand { mean_rps, trend_rps, burst_rps } = *self.0;
        if burst_rps > mean_rps + trend_rps {
            write!(formatter, "a burst of {burst_rps:.0} requests/s")
        } else if trend_rps >= 0.05 {
            write!(formatter, "{mean_rps:.1} requests/s, growing by {trend_rps:.1},")
        } else {
            write!(formatter, "{mean_rps:.1} requests/s")
        }
    }
}

#[cfg(test)]
mod tests;
