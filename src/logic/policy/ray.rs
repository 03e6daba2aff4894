//! The rule of Ray Serve.
//!
//! Sources: Ray documentation (2.32 and later), "Advanced Ray Serve Autoscaling", "Ray Serve Autoscaling" and
//! the API reference of `AutoscalingConfig` and `replica_queue_length_autoscaling_policy`.
//!
//! **Invariant**: the fleet changes only after the same direction was right for a whole delay without a
//! break; missing numbers are a break.
use super::rivals::{Samples, direction, is_due, ongoing, round_up};
use super::{Bounds, Decision, Observation, Policy, ReplicaCounts, elapsed, fresh};
use std::cmp::Ordering;
use std::time::Duration;

/// Settings of [`Ray`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RayConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// Requests that are served by or wait for a replica, as aimed at on the mean.
    pub target_ongoing_requests: f64,
    /// Time between two samples.
    pub metrics_interval: Duration,
    /// Time over which the samples' mean is taken.
    pub look_back_period: Duration,
    /// For how long more replicas must have been right.
    pub upscale_delay: Duration,
    /// For how long fewer replicas must have been right.
    pub downscale_delay: Duration,
    /// Gain on the way up; 1 is none.
    pub upscaling_factor: f64,
    /// Gain on the way down; 1 is none.
    pub downscaling_factor: f64,
    /// Age from which a report counts as missing.
    pub stale_after: Duration,
}

impl RayConfig {
    /// The documented defaults, but for the target (2 by default), which is for the user to choose: see
    /// [`RayConfig::target_for`].
    #[must_use]
    pub const fn documented(bounds: Bounds, target_ongoing_requests: f64) -> Self {
        Self {
            bounds,
            target_ongoing_requests,
            metrics_interval: Duration::from_secs(10),
            look_back_period: Duration::from_secs(30),
            upscale_delay: Duration::from_secs(30),
            downscale_delay: Duration::from_secs(600),
            upscaling_factor: 1.0,
            downscaling_factor: 1.0,
            stale_after: Duration::from_secs(30),
        }
    }

    /// The target for replicas that serve `slots_per_replica` requests at once.
    ///
    /// The guide says to set `max_ongoing_requests` 20 to 50 % over the target. Here that maximum is the
    /// number of slots, as a replica takes no more, so that the target is the slots over 1.2. The default of
    /// 2 would have a request wait for each that is served by a replica with one slot; 1, which the guide's
    /// example takes for such replicas, would have them busy all the time.
    #[must_use]
    pub fn target_for(slots_per_replica: u32) -> f64 {
        f64::from(slots_per_replica) / 1.2
    }
}

/// As many replicas as bring the ongoing requests to the target on the mean of 30 s, once that was more than
/// there are for 30 s, or fewer for 10 min.
///
/// The real control loop runs each 0.1 s, this one at each observation; both see new numbers each 10 s.
#[derive(Debug)]
pub struct Ray {
    config: RayConfig,
    seen_at: Option<Duration>,
    sampled_at: Option<Duration>,
    samples: Samples,
    /// Since when the wanted number has been on the same side of the present one.
    since: Option<(Ordering, Duration)>,
}

impl Ray {
    /// A rule that remembers nothing yet.
    #[must_use]
    pub fn new(config: RayConfig) -> Self {
        Self { config, seen_at: None, sampled_at: None, samples: Samples::default(), since: None }
    }

    fn wanted(&mut self, observation: &Observation) -> (u32, String) {
        let (now, replicas, config) = (observation.now, observation.replicas, self.config);
        if elapsed(self.seen_at, now).is_none() {
            *self = Self::new(config);
        }
        self.seen_at = Some(now);
        let traffic = match fresh(observation, config.stale_after.as_secs_f64()) {
            Ok(traffic) => traffic,
            Err(why) => {
                self.since = None;
                return (replicas.desired, format!("hold: {why}"));
            }
        };
        if is_due(&mut self.sampled_at, now, config.metrics_interval) {
            self.samples.record(now, ongoing(&traffic), config.look_back_period);
        }
        let Some(mean) = self.samples.mean(now, config.look_back_period).filter(|_| replicas.ready > 0)
        else {
            self.since = None;
            return (replicas.desired, "hold: there are no numbers or no replicas yet".to_owned());
        };
        self.delayed(now, replicas, mean)
    }

    /// The replicas that a mean of ongoing requests asks for, once it did for long enough.
    fn delayed(&mut self, now: Duration, replicas: ReplicaCounts, mean: f64) -> (u32, String) {
        let Bounds { min, max } = self.config.bounds;
        let desired = replicas.desired;
        let wanted = scaled(&self.config, replicas.ready, mean).min(max).max(min);
        let a_replica = mean / f64::from(replicas.ready);
        let why = format!(
            "{a_replica:.2} ongoing requests a replica, {:.2} wanted",
            self.config.target_ongoing_requests
        );
        let side = wanted.cmp(&desired);
        let delay = match side {
            Ordering::Equal => {
                self.since = None;
                return (desired, format!("hold: {why}"));
            }
            Ordering::Greater => self.config.upscale_delay,
            Ordering::Less => self.config.downscale_delay,
        };
        let since = self.since.filter(|(before, _)| *before == side).map_or(now, |(_, since)| since);
        let lasted = now.saturating_sub(since);
        if lasted < delay {
            self.since = Some((side, since));
            let (lasted_s, delay_s) = (lasted.as_secs(), delay.as_secs());
            return (desired, format!("hold: {why}, for {lasted_s} s of {delay_s} s"));
        }
        self.since = None;
        (wanted, format!("{}: {why}, for {} s", direction(wanted, desired), delay.as_secs()))
    }
}

impl Policy for Ray {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let (wanted, reason) = self.wanted(observation);
        self.config.bounds.apply(Decision { replicas: wanted, reason })
    }
}

/// Replicas for a mean of ongoing requests, in relation to those that serve them.
fn scaled(config: &RayConfig, ready: u32, mean: f64) -> u32 {
    let running = f64::from(ready.max(1));
    let excess = mean / (running * config.target_ongoing_requests.max(f64::MIN_POSITIVE)) - 1.0;
    let factor = if excess > 0.0 { config.upscaling_factor } else { config.downscaling_factor };
    round_up(running * (1.0 + excess * factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::rivals::Story;

    const BOUNDS: Bounds = Bounds { min: 1, max: 40 };

    /// Two minutes of ten requests at once on twelve replicas, which is what they should have.
    fn steady() -> Story<Ray> {
        let mut story = Story::new(Ray::new(RayConfig::documented(BOUNDS, RayConfig::target_for(1))), 12);
        story.ongoing = Some(10);
        assert_eq!(story.seconds(120), []);
        story
    }

    #[test]
    fn twice_the_load_is_followed_after_30_seconds() {
        let mut story = steady();
        story.ongoing = Some(20);
        // The first sample shows more at once; when the delay is over, all samples of the last 30 s have 20
        // requests.
        assert_eq!(story.seconds(120), [(30, 24)]);
        assert!(story.reason.contains("0.83 ongoing requests a replica, 0.83 wanted"), "{}", story.reason);
    }

    #[test]
    fn a_burst_of_ten_seconds_passes_unnoticed() {
        let mut story = steady();
        story.ongoing = Some(30);
        assert_eq!(story.seconds(10), []);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(60), []);
    }

    #[test]
    fn load_that_vanishes_is_believed_after_ten_minutes() {
        let mut story = steady();
        story.ongoing = Some(0);
        assert_eq!(story.seconds(599), []);
        assert!(story.reason.contains("for 598 s of 600 s"), "{}", story.reason);
        assert_eq!(story.seconds(10), [(1, 1)]);
    }

    #[test]
    fn a_moment_of_load_starts_the_ten_minutes_anew() {
        let mut story = steady();
        story.ongoing = Some(0);
        story.seconds(500);
        story.ongoing = Some(30);
        story.seconds(20);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(590), []);
        // The last of the 30 requests leaves the 30 s that are looked back upon after 20 more.
        assert_eq!(story.seconds(60), [(30, 1)]);
    }

    #[test]
    fn time_in_one_direction_does_not_count_for_the_other() {
        let mut story = steady();
        story.ongoing = Some(0);
        story.seconds(200);
        story.ongoing = Some(40);
        assert_eq!(story.seconds(60), [(30, 40)]);
    }

    #[test]
    fn without_a_ready_replica_it_waits() {
        let mut story = steady();
        (story.stuck, story.ongoing) = (12, Some(30));
        assert_eq!(story.seconds(100), []);
        assert!(story.reason.contains("no replicas yet"), "{}", story.reason);
    }

    #[test]
    fn factors_are_gains() {
        let config = RayConfig {
            upscaling_factor: 0.5,
            downscaling_factor: 0.3,
            ..RayConfig::documented(BOUNDS, 2.0)
        };
        assert_eq!([20.0, 40.0, 0.0].map(|mean| scaled(&config, 10, mean)), [10, 15, 7]);
        assert_eq!(
            [20.0, 21.0, 0.0].map(|mean| scaled(&RayConfig::documented(BOUNDS, 2.0), 10, mean)),
            [10, 11, 0]
        );
    }

    #[test]
    fn silence_is_a_break() {
        let mut story = steady();
        story.ongoing = Some(0);
        story.seconds(500);
        story.ongoing = None;
        assert_eq!(story.seconds(300), []);
        assert!(story.reason.contains("the monitor does not answer"), "{}", story.reason);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(601), [(600, 1)]);
    }

    #[test]
    fn a_clock_that_jumps_is_a_break() {
        let mut story = steady();
        story.ongoing = Some(0);
        story.seconds(500);
        story.at_s = 1_000_000;
        assert_eq!(story.seconds(599), []);
        story.at_s = 0;
        assert_eq!(story.seconds(601), [(600, 1)]);
    }
}
