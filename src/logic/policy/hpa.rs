//! The rule of the Kubernetes `HorizontalPodAutoscaler`, and of KEDA, which feeds one.
//!
//! Sources: Kubernetes documentation, "Horizontal Pod Autoscaling" (autoscaling/v2, stable since 1.23), its
//! sections *Algorithm details*, *Default Behavior* and *Stabilization window*; metrics-server 0.5 and later
//! (FAQ, release notes and `components.yaml`): CPU at a resolution of 15 s; prometheus-adapter,
//! "Configuration Walkthroughs"; KEDA 2.15, "`ScaledObject` specification" and "Scaling Deployments"; KEDA
//! HTTP add-on 0.14, "Scaling".
//!
//! **Invariant**: it acts once a sync period; it never shrinks below the most that it recommended within the
//! stabilisation window, nor below what it found when it started or while numbers were missing.
use super::rivals::{Samples, direction, is_close, is_due, round_up};
use super::{ARRIVALS_S, Bounds, Decision, Observation, Policy, ReplicaCounts, Traffic, elapsed, fresh};
use std::time::Duration;

/// What the rule goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Share of the CPU that is used, here of the ready replicas' slots that are busy, 0 to 1.
    ///
    /// It cannot exceed 1, however many requests wait: with a target of 0.8 the rule never asks for more than
    /// 1.25 times as many replicas at once. (Real CPU use is over the *requested* CPU and may exceed it.)
    /// Replicas that are not ready yet are set aside: on the way up they count as idle, on the way down not
    /// at all.
    Cpu,
    /// Requests a second of each replica, as prometheus-adapter tells for pods: the mean over those that are
    /// ready. The others have no such number: they count as 0 on the way up and as the target on the way
    /// down.
    RequestsPerReplica,
    /// Requests a second of all together, an external metric with a target of type `AverageValue`: it is
    /// divided by the target, whichever replicas are ready.
    Requests,
}

/// Settings of [`Hpa`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HpaConfig {
    /// Fewest and most replicas.
    pub bounds: Bounds,
    /// What the rule goes by.
    pub metric: Metric,
    /// What the metric should be: a share of the CPU, or requests a second of each replica.
    pub target: f64,
    /// Time over which the metric is a mean.
    pub window: Duration,
    /// For how long a value of the metric is used again; `None` asks for a fresh one at each sync.
    pub cached_for: Option<Duration>,
    /// Time between two decisions.
    pub sync_period: Duration,
    /// How far from 1 the ratio of metric and target may be without a change.
    pub tolerance: f64,
    /// Most times as many replicas after a step up, unless `up_replicas_max` allows more.
    pub up_factor_max: f64,
    /// Most replicas more after a step up, unless `up_factor_max` allows more.
    pub up_replicas_max: u32,
    /// Time whose highest recommendation counts on the way down.
    pub down_window: Duration,
    /// Age from which a report counts as missing.
    pub stale_after: Duration,
}

impl HpaConfig {
    /// 80 % of the CPU, over metrics-server's 15 s; all else as it is when nobody changes it.
    ///
    /// The value is taken to be of the 15 s just before the sync. Really, kubelet and metrics-server add a
    /// delay of up to 15 s each: this is the rule at its best.
    #[must_use]
    pub const fn cpu(bounds: Bounds) -> Self {
        Self {
            bounds,
            metric: Metric::Cpu,
            target: 0.8,
            window: Duration::from_secs(15),
            cached_for: None,
            sync_period: Duration::from_secs(15),
            tolerance: 0.1,
            up_factor_max: 2.0,
            up_replicas_max: 4,
            down_window: Duration::from_secs(300),
            stale_after: Duration::from_secs(30),
        }
    }

    /// `target` requests a second of each replica, over 60 s.
    ///
    /// The adapter's walkthrough takes `rate(…[2m])`; a minute serves the rule better, and is about the
    /// shortest that gives a dependable rate where Prometheus scrapes each 15 s.
    #[must_use]
    pub const fn requests_per_replica(bounds: Bounds, target: f64) -> Self {
        let (metric, window) = (Metric::RequestsPerReplica, Duration::from_secs(60));
        Self { metric, target, window, ..Self::cpu(bounds) }
    }

    /// KEDA with `target` requests a second of each replica.
    ///
    /// The metric is the request rate of KEDA's own HTTP add-on, by default over a window of 1 min in steps
    /// of 1 s. (The example of KEDA's Prometheus trigger takes `rate(…[2m])`, which reacts later.) Between
    /// one replica and many an HPA with default behaviour decides. At each of its syncs KEDA asks the source
    /// afresh; `pollingInterval` (30 s) then matters to scaling from and to 0 alone, as `cooldownPeriod` (300
    /// s) does. With `useCachedMetrics: true`, which is not the default, values are as old as the last poll:
    /// `cached_for: Some(30 s)`.
    #[must_use]
    pub const fn keda(bounds: Bounds, target: f64) -> Self {
        Self { metric: Metric::Requests, ..Self::requests_per_replica(bounds, target) }
    }
}

/// `desired = ceil(current × metric / target)` each 15 s, up at most 100 % or 4 replicas at a time, down to
/// the most that was recommended within 5 min.
///
/// The limits of a step up are for 15 s, as long as a sync period, so that each sync has them to itself.
#[derive(Debug)]
pub struct Hpa {
    config: HpaConfig,
    seen_at: Option<Duration>,
    synced_at: Option<Duration>,
    cached_at: Option<Duration>,
    cached: Option<f64>,
    samples: Samples,
    recommendations: Samples,
}

impl Hpa {
    /// A rule that remembers nothing yet.
    #[must_use]
    pub fn new(config: HpaConfig) -> Self {
        let (samples, recommendations) = (Samples::default(), Samples::default());
        Self {
            config,
            seen_at: None,
            synced_at: None,
            cached_at: None,
            cached: None,
            samples,
            recommendations,
        }
    }

    fn wanted(&mut self, observation: &Observation) -> (u32, String) {
        let (now, replicas, config) = (observation.now, observation.replicas, self.config);
        let since_last = elapsed(self.seen_at, now);
        if since_last.is_none() {
            *self = Self::new(config);
            self.recommendations.record(now, f64::from(replicas.desired), config.down_window);
        }
        self.seen_at = Some(now);
        let due = is_due(&mut self.synced_at, now, config.sync_period);
        let traffic = match fresh(observation, config.stale_after.as_secs_f64()) {
            Ok(traffic) => traffic,
            Err(why) => {
                self.recommendations.record(now, f64::from(replicas.desired), config.down_window);
                return (replicas.desired, format!("hold: {why}"));
            }
        };
        if let Some(value) = sample(config.metric, &traffic, since_last) {
            self.samples.record(now, value, config.window);
        }
        let value = self.value(now);
        if !due {
            return (replicas.desired, "hold: the next sync is not due yet".to_owned());
        }
        let Some(value) = value else {
            return (replicas.desired, "hold: there are no numbers yet".to_owned());
        };
        let (recommended, why) = recommend(&config, value, replicas);
        self.recommendations.record(now, f64::from(recommended), config.down_window);
        self.limited(now, replicas.desired, recommended, &why)
    }

    /// The metric as it is told now.
    fn value(&mut self, now: Duration) -> Option<f64> {
        let Some(period) = self.config.cached_for else {
            return self.samples.mean(now, self.config.window);
        };
        if is_due(&mut self.cached_at, now, period) {
            self.cached = self.samples.mean(now, self.config.window);
        }
        self.cached
    }

    /// What is left of a recommendation by the limits of a step up and by the stabilisation of steps down.
    fn limited(&self, now: Duration, desired: u32, recommended: u32, why: &str) -> (u32, String) {
        let config = self.config;
        if recommended > desired {
            let most = round_up(f64::from(desired) * config.up_factor_max)
                .max(desired.saturating_add(config.up_replicas_max));
            return (recommended.min(most), format!("up: {why}"));
        }
        let highest = self.recommendations.max(now, config.down_window).map_or(recommended, round_up);
        let wanted = highest.clamp(recommended, desired);
        if recommended < wanted {
            let window_s = config.down_window.as_secs();
            let limit = format!("the most recommended in {window_s} s is {highest}");
            return (wanted, format!("{}: {why}, but {limit}", direction(wanted, desired)));
        }
        (wanted, format!("{}: {why}", direction(wanted, desired)))
    }
}

impl Policy for Hpa {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let (wanted, reason) = self.wanted(observation);
        self.config.bounds.apply(Decision { replicas: wanted, reason })
    }
}

/// What one observation adds to the metric.
fn sample(metric: Metric, traffic: &Traffic, since_last: Option<Duration>) -> Option<f64> {
    match metric {
        Metric::Cpu => (traffic.slots > 0).then(|| (traffic.busy / f64::from(traffic.slots)).clamp(0.0, 1.0)),
        Metric::RequestsPerReplica | Metric::Requests => Some(arrival_rps(traffic, since_last)),
    }
}

/// Requests a second since the last observation, by whole seconds, as far back as the monitor tells.
fn arrival_rps(traffic: &Traffic, since_last: Option<Duration>) -> f64 {
    let known_s = traffic.arrivals_known_s.max(1.0).min(ARRIVALS_S as f64);
    let seconds =
        since_last.map_or(1.0, |elapsed| elapsed.as_secs_f64().round()).clamp(1.0, known_s) as usize;
    let arrivals: u64 = traffic.arrivals.iter().take(seconds).copied().map(u64::from).sum();
    arrivals as f64 / seconds as f64
}

/// How many replicas the metric speaks for, and why.
fn recommend(config: &HpaConfig, value: f64, replicas: ReplicaCounts) -> (u32, String) {
    let desired = replicas.desired;
    let current = f64::from(desired.max(1));
    let target = config.target.max(f64::MIN_POSITIVE);
    let ready = f64::from(replicas.ready.min(desired));
    if config.metric == Metric::Requests {
        let a_replica = value / current;
        let wanted =
            if is_close(a_replica / target, config.tolerance) { desired } else { round_up(value / target) };
        return (wanted, why(config, a_replica));
    }
    if ready <= 0.0 {
        return (desired, "no replica is ready".to_owned());
    }
    let a_replica = if config.metric == Metric::Cpu { value } else { value / ready };
    let seen = a_replica / target;
    let set_aside = current - ready;
    // What the replicas set aside are taken to add, in targets.
    let assumed = match config.metric {
        _ if seen > 1.0 => 0.0,
        Metric::Cpu => set_aside * seen,
        Metric::RequestsPerReplica | Metric::Requests => set_aside,
    };
    let of =
        if set_aside > 0.0 { format!(" on the {ready} of {current} that are ready") } else { String::new() };
    let why = why(config, a_replica) + &of;
    let ratio = (seen * ready + assumed) / current;
    if (ratio > 1.0) != (seen > 1.0) || is_close(ratio, config.tolerance) {
        return (desired, why);
    }
    (round_up(current * ratio), why)
}

/// How metric and target compare, in words.
fn why(config: &HpaConfig, a_replica: f64) -> String {
    let side = if is_close(a_replica / config.target, config.tolerance) {
        "close to"
    } else if a_replica > config.target {
        "over"
    } else {
        "under"
    };
    if config.metric == Metric::Cpu {
        return format!("{:.0} % of CPU is {side} {:.0} %", a_replica * 100.0, config.target * 100.0);
    }
    format!("{a_replica:.1} requests/s a replica is {side} {:.1}", config.target)
}

#[cfg(test)]
mod tests {
    // Quarters of whole numbers are exact.
    #![allow(clippy::float_cmp)]
    use super::*;
    use crate::logic::policy::rivals::Story;

    const BOUNDS: Bounds = Bounds { min: 1, max: 40 };

    fn cpu(replicas: u32, ongoing: u32) -> Story<Hpa> {
        let mut story = Story::new(Hpa::new(HpaConfig::cpu(BOUNDS)), replicas);
        story.ongoing = Some(ongoing);
        story
    }

    fn requests(config: HpaConfig, replicas: u32, rps: u32) -> Story<Hpa> {
        let mut story = Story::new(Hpa::new(config), replicas);
        story.rps = rps;
        story.seconds(60);
        story
    }

    #[test]
    fn overload_is_seen_as_full_cpu_and_answered_by_a_quarter_more_each_15_seconds() {
        let mut story = cpu(10, 8);
        assert_eq!(story.seconds(60), []);
        assert!(story.reason.contains("hold: 80 % of CPU is close to 80 %"), "{}", story.reason);
        story.ongoing = Some(20);
        // 100 % / 80 % of 10 is 12.5, of 13 is 16.25, of 17 is 21.25; 20 of 22 are 91 %, and of 25 they are
        // 80 %.
        assert_eq!(story.seconds(61), [(15, 13), (30, 17), (45, 22), (60, 25)]);
        assert!(story.reason.contains("up: 91 % of CPU is over 80 %"), "{}", story.reason);
        assert_eq!(story.seconds(60), []);
    }

    #[test]
    fn a_tenth_more_is_tolerated() {
        let mut story = Story::new(Hpa::new(HpaConfig::cpu(Bounds { min: 1, max: 500 })), 100);
        story.ongoing = Some(88);
        assert_eq!(story.seconds(40), []);
        story.ongoing = Some(89);
        // Nine seconds at 88 % and six at 89 %.
        assert_eq!(story.seconds(6), [(5, 111)]);
    }

    #[test]
    fn load_that_vanishes_is_believed_after_five_minutes() {
        let mut story = cpu(10, 8);
        story.seconds(301);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(320), [(299, 1)]);
    }

    #[test]
    fn a_dip_of_four_minutes_changes_nothing() {
        let mut story = cpu(10, 8);
        story.seconds(301);
        story.ongoing = Some(2);
        assert_eq!(story.seconds(240), []);
        assert!(story.reason.contains("but the most recommended in 300 s is 10"), "{}", story.reason);
        story.ongoing = Some(8);
        assert_eq!(story.seconds(900), []);
    }

    #[test]
    fn a_step_up_doubles_or_adds_four() {
        let mut story = requests(HpaConfig::keda(BOUNDS, 8.0), 1, 8);
        story.rps = 300;
        // By the minute's rate it would be 2, 11, 20, 29 and 38.
        assert_eq!(story.seconds(61), [(0, 2), (15, 6), (30, 12), (45, 24), (60, 38)]);
    }

    #[test]
    fn replicas_not_ready_yet_count_as_idle_on_the_way_up() {
        // 8 ready ones at 100 % and 2 to come are at 80 %.
        let mut story = cpu(10, 8);
        story.stuck = 2;
        assert_eq!(story.seconds(60), []);
        let says = "hold: 100 % of CPU is over 80 % on the 8 of 10 that are ready";
        assert_eq!(story.reason, says);
        // 9 of 10 would be 90 %: a ratio of 1.125.
        story.stuck = 1;
        story.ongoing = Some(9);
        assert_eq!(story.seconds(16).first().map(|(_, replicas)| *replicas), Some(12));
        // Eight to come would turn the direction: 2 / 10 / 80 % is under 1.
        let mut story = cpu(10, 30);
        story.stuck = 8;
        assert_eq!(story.seconds(600), []);
    }

    #[test]
    fn replicas_set_aside_hold_back_a_step_down_by_requests_only() {
        let down = |config: HpaConfig, value, stuck| {
            let replicas = ReplicaCounts { desired: 10, ready: 10 - stuck, starting: stuck, failing: 0 };
            recommend(&config, value, replicas).0
        };
        // 24 requests/s are 3 targets: 3 of 6 replicas, and 4 more that are assumed to be on target.
        let requests = HpaConfig::requests_per_replica(BOUNDS, 8.0);
        assert_eq!([0, 4].map(|stuck| down(requests, 24.0, stuck)), [3, 7]);
        assert_eq!([0, 4].map(|stuck| down(HpaConfig::keda(BOUNDS, 8.0), 24.0, stuck)), [3, 3]);
        assert_eq!([0, 4].map(|stuck| down(HpaConfig::cpu(BOUNDS), 0.4, stuck)), [5, 5]);
    }

    #[test]
    fn arrivals_are_counted_since_the_last_observation_as_far_as_they_are_known() {
        let mut story = cpu(1, 0);
        story.rps = 7;
        let mut traffic = story.observation().traffic.unwrap();
        traffic.arrivals[0] = 3;
        let rps = |traffic, elapsed_s: Option<u64>| arrival_rps(&traffic, elapsed_s.map(Duration::from_secs));
        let seen = [None, Some(0), Some(1), Some(4), Some(60)].map(|elapsed_s| rps(traffic, elapsed_s));
        assert_eq!(seen, [3.0, 3.0, 3.0, 6.0, 6.75]);
        traffic.arrivals_known_s = 2.3;
        assert_eq!(rps(traffic, Some(4)), 5.0);
        traffic.arrivals_known_s = f64::NAN;
        assert_eq!(rps(traffic, Some(4)), 3.0);
    }

    #[test]
    fn twice_the_requests_are_believed_as_the_minute_fills() {
        let mut story = requests(HpaConfig::requests_per_replica(BOUNDS, 8.0), 10, 80);
        story.rps = 160;
        // The minute's rate is 101, 121, 141 and 160 then.
        assert_eq!(story.seconds(120), [(15, 13), (30, 16), (45, 18), (60, 20)]);
        assert!(story.reason.contains("8.0 requests/s a replica is close to 8.0"), "{}", story.reason);
    }

    #[test]
    fn a_cached_value_is_as_old_as_the_last_poll() {
        let ups = |cached_for| {
            let config = HpaConfig { cached_for, ..HpaConfig::keda(BOUNDS, 8.0) };
            let mut story = requests(config, 10, 80);
            story.seconds(1);
            story.rps = 160;
            story.seconds(60)
        };
        assert_eq!(ups(None), [(14, 13), (29, 15), (44, 18), (59, 20)]);
        assert_eq!(ups(Some(Duration::from_secs(30))), [(29, 15), (59, 20)]);
    }

    #[test]
    fn silence_holds_and_five_minutes_start_after_it() {
        let mut story = cpu(10, 8);
        story.seconds(60);
        story.ongoing = None;
        assert_eq!(story.seconds(900), []);
        assert!(story.reason.contains("the monitor does not answer"), "{}", story.reason);
        story.ongoing = Some(0);
        assert_eq!(story.seconds(400), [(300, 1)]);
    }

    #[test]
    fn a_clock_that_jumps_starts_the_five_minutes_anew() {
        let mut story = cpu(10, 8);
        story.seconds(400);
        story.ongoing = Some(0);
        story.at_s = 100_000;
        assert_eq!(story.seconds(200), []);
        story.at_s = 50;
        assert_eq!(story.seconds(310), [(300, 1)]);
    }
}
