//! The fewest replica-seconds with which somebody could keep the promise who knows the future.
//!
//! A lower bound, not a rule that anyone could follow: it knows every arrival and every service time, may change the
//! fleet at every whole second, and needs a request's work done only by the end of its promise, as if all slots
//! worked on it together. Like everyone else it pays for a replica while it starts, has whole replicas, and at
//! least one. It is the cheapest way through a graph (dynamic programming, R. Bellman, 1957) whose nodes are
//! (second, replicas, work left over); work left over is rounded down, in its favour.
use super::requests::Requests;
use super::service::ServiceTimes;
use super::world::Settings;
use std::time::Duration;

/// Steps in which a second is played.
const STEPS: usize = 20;
/// Classes of the work that is left over from one second to the next: ever wider ones.
const CLASSES: usize = 128;
/// The first class ends there, slot-seconds.
const CLASS_FIRST: f64 = 0.01;

/// The ways to have so many replicas and about so much work left: the least that any of them cost, and the least
/// that any of them left. A way with both is at least as good as each of them.
#[derive(Clone, Copy, Debug)]
struct Way {
    replica_s: f64,
    left: f64,
}

const NO_WAY: Way = Way { replica_s: f64::INFINITY, left: f64::INFINITY };

impl Way {
    fn join(&mut self, other: Self) {
        if other.replica_s.is_finite() {
            self.replica_s = self.replica_s.min(other.replica_s);
            self.left = self.left.min(other.left);
        }
    }
}

/// Replica-seconds of the cheapest fleet that answers every request within the promise.
#[must_use]
pub fn replica_seconds(settings: &Settings, requests: &Requests) -> f64 {
    let seconds = requests.duration().as_secs_f64().ceil() as usize;
    let mut work = vec![[0.0_f64; STEPS]; seconds];
    let times = ServiceTimes::new(settings.service_time, settings.cv, settings.seed);
    for ticket in requests.tickets() {
        let step = (Duration::from_nanos(ticket).as_secs_f64() * STEPS as f64) as usize;
        if let Some(second) = work.get_mut(step / STEPS) {
            second[step % STEPS] += times.of(ticket).as_secs_f64();
        }
    }
    let levels = enough(settings, &work);
    let start_up_s = settings.start_up.as_secs_f64();
    let start = (settings.replicas_start.max(1) as usize).min(levels);
    let left_max = levels as f64 * f64::from(settings.slots) * settings.promise.as_secs_f64();
    let growth = (left_max / CLASS_FIRST).max(1.0).ln() / (CLASSES - 2) as f64;
    let class_of = |left: f64| {
        let class = ((left / CLASS_FIRST).max(1.0).ln() / growth.max(f64::MIN_POSITIVE)).ceil() as usize;
        class.min(CLASSES - 1)
    };
    // The cheapest ways to each number of replicas and class of work left.
    let mut ways = vec![[NO_WAY; CLASSES]; levels + 1];
    ways[start][0] = Way { replica_s: 0.0, left: 0.0 };
    let mut next = ways.clone();
    for second in &work {
        change(&mut ways, start_up_s);
        next.fill([NO_WAY; CLASSES]);
        for replicas in 1..=levels {
            let mut least_s = f64::INFINITY;
            for way in &ways[replicas] {
                // With more work left it must have been cheaper to be worth a look.
                if way.replica_s >= least_s {
                    continue;
                }
                least_s = way.replica_s;
                if let Some(left) = play(settings, second, replicas, way.left) {
                    next[replicas][class_of(left)]
                        .join(Way { replica_s: way.replica_s + replicas as f64, left });
                }
            }
        }
        std::mem::swap(&mut ways, &mut next);
    }
    ways.iter().flatten().map(|way| way.replica_s).fold(f64::INFINITY, f64::min)
}

/// Lets the fleet change: replicas are given up for nothing, and gained at the price of their start-up.
fn change(ways: &mut [[Way; CLASSES]], start_up_s: f64) {
    for class in 0..CLASSES {
        let mut best = NO_WAY;
        for replicas in (1..ways.len()).rev() {
            best.join(ways[replicas][class]);
            ways[replicas][class] = best;
        }
        let mut best = NO_WAY;
        for ways in ways.iter_mut().skip(1) {
            best.replica_s += start_up_s;
            best.join(ways[class]);
            ways[class] = best;
        }
    }
}

/// Plays a second; the work that is left at its end, or nothing if a promise is broken.
fn play(settings: &Settings, second: &[f64; STEPS], replicas: usize, left: f64) -> Option<f64> {
    let slots = replicas as f64 * f64::from(settings.slots);
    let left_max = slots * settings.promise.as_secs_f64();
    let mut left = left;
    for work in second {
        left = (left + work - slots / STEPS as f64).max(0.0);
        if left > left_max {
            return None;
        }
    }
    Some(left)
}

/// The fewest replicas that never need a change.
fn enough(settings: &Settings, work: &[[f64; STEPS]]) -> usize {
    let suffices = |replicas: usize| {
        work.iter().try_fold(0.0, |left, second| play(settings, second, replicas, left)).is_some()
    };
    let mut high = 1;
    while !suffices(high) {
        high *= 2;
    }
    let mut low = high / 2;
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if suffices(middle) { high = middle } else { low = middle }
    }
    high
}
