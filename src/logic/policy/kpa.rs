//! The rule of Knative's pod autoscaler (KPA).
//!
//! Sources: Knative documentation, "Additional autoscaling configuration for Knative Pod Autoscaler" and
//! "Configuring concurrency" (serving/autoscaling, as of 1.14), "Configuring scale bounds"
//! (`scale-down-delay`, 0 s); the comments of the `config-autoscaler` map in knative/serving; there too
//! docs/scaling/DEVELOPMENT.md, on the two modes.
//!
//! **Invariant**: in panic mode, and until a stable window has been seen, the fleet never shrinks.
use super::rivals::{Samples, direction, is_due, ongoing, round_up};
use super::{Bounds, Decision, Observation, Policy, elapsed, fresh};
use std::time::Duration;

/// Settings of [`Kpa`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KpaConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Requests that a replica serves at once, `containerConcurrency`.
    pub slots_per_replica: u32,
    /// Share of these that is aimed at, `container-concurrency-target-percentage`.
    pub target_utilisation: f64,
    /// Time over which the concurrency is a mean, `stable-window`.
    pub stable_window: Duration,
    /// The same in panic mode, `panic-window-percentage` of the stable window.
    pub panic_window: Duration,
    /// Times the concurrency aimed at from which there is panic, `panic-threshold-percentage`.
    pub panic_threshold: f64,
    /// Most times as many replicas as are ready after a decision, `max-scale-up-rate`.
    pub up_rate_max: f64,
    /// Fewest replicas after a decision: those that are ready, divided by this, `max-scale-down-rate`.
    pub down_rate_max: f64,
    /// Time between two decisions, `tick-interval`.
    pub tick: Duration,
    /// Age from which a report counts as missing.
    pub stale_after: Duration,
}

impl KpaConfig {
    /// The documented defaults for replicas that serve `slots_per_replica` requests at once: 70 % of these
    /// over 60 s, or over 6 s from twice as much on; each 2 s.
    #[must_use]
    pub const fn documented(bounds: Bounds, slots_per_replica: u32) -> Self {
        Self {
            bounds,
            slots_per_replica,
            target_utilisation: 0.7,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            up_rate_max: 1000.0,
            down_rate_max: 2.0,
            tick: Duration::from_secs(2),
            stale_after: Duration::from_secs(30),
        }
    }
}

/// Panic mode.
#[derive(Clone, Copy, Debug)]
struct Panic {
    /// When there last was a reason for it.
    reason_at: Duration,
    /// Most replicas asked for meanwhile.
    replicas_max: u32,
}

/// As many replicas as bring the concurrency (requests that are served or wait) to the target, on the mean of
/// a minute or, once 6 s show twice what the ready replicas should carry, on that of these 6 s.
///
/// Steps are limited in relation to the replicas that are ready, not to those asked for. Panic mode ends when
/// for a stable window there was neither such a load nor an increase. What a mean over a window that is not
/// full yet is good for is not documented: here it never shrinks the fleet.
#[derive(Debug)]
pub struct Kpa {
    config: KpaConfig,
    seen_at: Option<Duration>,
    known_since: Duration,
    ticked_at: Option<Duration>,
    samples: Samples,
    panic: Option<Panic>,
}

impl Kpa {
    /// A rule that remembers nothing yet.
    #[must_use]
    pub fn new(config: KpaConfig) -> Self {
        let (known_since, samples) = (Duration::ZERO, Samples::default());
        Self { config, seen_at: None, known_since, ticked_at: None, samples, panic: None }
    }

    fn wanted(&mut self, observation: &Observation) -> (u32, String) {
        let (now, desired, config) = (observation.now, observation.replicas.desired, self.config);
        if elapsed(self.seen_at, now).is_none() {
            *self = Self { known_since: now, ..Self::new(config) };
        }
        self.seen_at = Some(now);
        let due = is_due(&mut self.ticked_at, now, config.tick);
        let traffic = match fresh(observation, config.stale_after.as_secs_f64()) {
            Ok(traffic) => traffic,
            Err(why) => {
                self.known_since = now;
                return (desired, format!("hold: {why}"));
            }
        };
        self.samples.record(now, ongoing(&traffic), config.stable_window);
        if !due {
            return (desired, "hold: the next tick is not due yet".to_owned());
        }
        let means =
            (self.samples.mean(now, config.stable_window), self.samples.mean(now, config.panic_window));
        let (Some(stable), Some(brief)) = means else {
            return (desired, "hold: there are no numbers yet".to_owned());
        };
        let ready = observation.replicas.ready.max(1);
        match self.panicking(now, ready, desired, brief) {
            Some(replicas) => {
                let why =
                    format!("panic, {brief:.1} requests at once over {} s", config.panic_window.as_secs());
                (replicas, format!("{}: {why}", direction(replicas, desired)))
            }
            None => self.calm(now, ready, desired, stable),
        }
    }

    /// What panic mode asks for, where it is on after what was seen now.
    fn panicking(&mut self, now: Duration, ready: u32, desired: u32, brief: f64) -> Option<u32> {
        let config = self.config;
        let carried = target(&config) * f64::from(ready);
        if brief >= config.panic_threshold * carried {
            let replicas_max = self.panic.map_or(desired, |panic| panic.replicas_max);
            self.panic = Some(Panic { reason_at: now, replicas_max });
        }
        self.panic = self.panic.filter(|panic| now.saturating_sub(panic.reason_at) < config.stable_window);
        let panic = self.panic.as_mut()?;
        let wanted = limited(&config, ready, brief);
        if wanted > panic.replicas_max {
            panic.reason_at = now;
        }
        panic.replicas_max = panic.replicas_max.max(wanted).max(desired);
        Some(panic.replicas_max)
    }

    fn calm(&self, now: Duration, ready: u32, desired: u32, stable: f64) -> (u32, String) {
        let window_s = self.config.stable_window.as_secs();
        let wanted = limited(&self.config, ready, stable);
        let why = format!("{stable:.1} requests at once over {window_s} s");
        if wanted < desired && now.saturating_sub(self.known_since) < self.config.stable_window {
            return (desired, format!("hold: {why}, which are not all known yet"));
        }
        (wanted, format!("{}: {why}", direction(wanted, desired)))
    }
}

impl Policy for Kpa {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let (wanted, reason) = self.wanted(observation);
        self.config.bounds.apply(Decision { replicas: wanted, reason })
    }
}

/// Requests at once that a replica should have.
fn target(config: &KpaConfig) -> f64 {
    (f64::from(config.slots_per_replica) * config.target_utilisation).max(f64::MIN_POSITIVE)
}

/// Replicas for a concurrency, within what one decision may change and the most there may be.
fn limited(config: &KpaConfig, ready: u32, concurrency: f64) -> u32 {
    let most = round_up(f64::from(ready) * config.up_rate_max);
    let fewest = (f64::from(ready) / config.down_rate_max) as u32;
    round_up(concurrency / target(config)).min(most).max(fewest).min(config.bounds.max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::rivals::Story;

    const BOUNDS: Bounds = Bounds { min: 1, max: 100 };

    /// Two minutes of seven requests at once on ten replicas, which is what they should have.
    fn calm() -> Story<Kpa> {
        let mut story = Story::new(Kpa::new(KpaConfig::documented(BOUNDS, 1)), 10);
        story.ongoing = Some(7);
        assert_eq!(story.seconds(120), []);
        story
    }

    #[test]
    fn a_slow_rise_is_followed_on_the_mean_of_a_minute() {
        let mut story = calm();
        story.ongoing = Some(13);
        // Each second adds 0.1 to the mean, and each 0.7 of it takes a replica.
        let ups = [(0, 11), (8, 12), (14, 13), (22, 14), (28, 15), (36, 16), (42, 17), (50, 18), (56, 19)];
        assert_eq!(story.seconds(120), ups);
        assert!(story.reason.contains("13.0 requests at once over 60 s"), "{}", story.reason);
    }

    #[test]
    fn a_burst_is_panic_within_seconds_and_for_a_minute() {
        let mut story = calm();
        story.ongoing = Some(28);
        // The mean of 6 s is 10.5, then 17.5, 24.5 and 28, and from 2 × 0.7 × 11 = 15.4 on there is panic.
        assert_eq!(story.seconds(60), [(0, 11), (2, 25), (4, 35), (6, 40)]);
        assert!(story.reason.contains("panic, 28.0 requests at once over 6 s"), "{}", story.reason);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(6), []);
        // A minute after the last increase; the minute's mean still is 53 × 28 / 60.
        assert_eq!(story.seconds(1), [(0, 36)]);
    }

    #[test]
    fn what_the_bounds_refuse_does_not_prolong_the_panic() {
        let mut story = Story::new(Kpa::new(KpaConfig::documented(Bounds { min: 1, max: 20 }, 1)), 10);
        story.ongoing = Some(7);
        story.seconds(120);
        story.ongoing = Some(27);
        assert_eq!(story.seconds(10), [(0, 11), (2, 20)]);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(53), [(52, 10)]);
    }

    #[test]
    fn load_that_vanishes_is_forgotten_over_a_minute() {
        let mut story = calm();
        story.ongoing = Some(0);
        let downs = [(6, 9), (12, 8), (18, 7), (24, 6), (30, 5), (36, 4), (42, 3), (48, 2), (54, 1)];
        assert_eq!(story.seconds(90), downs);
    }

    #[test]
    fn steps_are_in_relation_to_the_ready_replicas() {
        let config = KpaConfig { up_rate_max: 3.0, ..KpaConfig::documented(BOUNDS, 4) };
        // 2.8 requests a replica.
        assert_eq!(
            [28.0, 28.1, 84.1, 900.0, 0.0].map(|concurrency| limited(&config, 10, concurrency)),
            [10, 11, 30, 30, 5]
        );
        assert_eq!(limited(&config, 1, 0.0), 0);
    }

    #[test]
    fn it_does_not_shrink_before_it_has_seen_a_minute() {
        let mut story = Story::new(Kpa::new(KpaConfig::documented(BOUNDS, 1)), 8);
        assert_eq!(story.seconds(70), [(60, 4), (62, 2), (64, 1)]);
    }

    #[test]
    fn silence_holds_and_the_minute_starts_anew() {
        let mut story = calm();
        story.ongoing = None;
        assert_eq!(story.seconds(300), []);
        assert!(story.reason.contains("the monitor does not answer"), "{}", story.reason);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(66), [(60, 5), (62, 2), (64, 1)]);
    }

    #[test]
    fn a_clock_that_jumps_starts_the_minute_anew() {
        let mut story = calm();
        story.ongoing = Some(0);
        story.at_s = 1_000_000;
        assert_eq!(story.seconds(59), []);
        story.at_s = 0;
        assert_eq!(story.seconds(61), [(60, 5)]);
    }
}
