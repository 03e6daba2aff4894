//! The loop: observe, decide, write down, carry out.
//!
//! **Invariant**: what cannot be seen, asked or set leaves the fleet as it is; nothing is carried out by an autoscaler
//! that stands by.
use super::journal::{Journal, Record};
use super::{Config, Observed, Scaler};
use crate::logic::adoption::Adoption;
use crate::logic::policy::{Decision, Observation, Policy, Traffic};
use crate::logic::window::Service;
use crate::net::backoff::Backoff;
use crate::net::wire::{ReplicaStatus, Stats};
use crate::net::{client, clock, shutdown::Shutdown};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Longest time the monitor may take to answer.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause after rounds that failed.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Time between two looks for another autoscaler of the same target.
const RIVAL_PAUSE: Duration = Duration::from_secs(60);

/// Decides every `interval` until `shutdown` asks to leave.
pub(super) async fn run(
    config: Config,
    scaler: &Scaler,
    journal: &Journal,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(config.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut backoff = Backoff::new(config.interval, BACKOFF_MAX.max(config.interval));
    let mut control = Control::new(config, scaler, journal)?;
    loop {
        tokio::select! {
            () = shutdown.left() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let Err(error) = Box::pin(control.round(&shutdown)).await else {
            backoff.reset();
            continue;
        };
        journal.failed();
        let pause = backoff.failed();
        tracing::warn!(error = format!("{error:#}"), ?pause, "leaving the replicas as they are");
        tokio::select! {
            () = shutdown.left() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the loop remembers from round to round.
struct Control<'a> {
    config: Config,
    scaler: &'a Scaler,
    journal: &'a Journal,
    client: reqwest::Client,
    policy: Box<dyn Policy + Send>,
    started: Instant,
    adoption: Adoption,
    /// Another autoscaler of the same target, and when it was looked for.
    rival: Option<(Instant, Option<String>)>,
    complained: bool,
}

impl<'a> Control<'a> {
    fn new(config: Config, scaler: &'a Scaler, journal: &'a Journal) -> anyhow::Result<Self> {
        Ok(Self {
            client: client::client(MONITOR_TIMEOUT)?,
            policy: config.rule.policy(),
            started: Instant::now(),
            adoption: Adoption::new(config.hold),
            rival: None,
            complained: false,
            config,
            scaler,
            journal,
        })
    }

    /// One look, one decision. Whoever stands by looks and decides too, to know what is going on when its turn comes.
    async fn round(&mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let seen = self.scaler.observe().await?;
        let stats = self.stats().await;
        let (now, desired) = (self.started.elapsed(), seen.counts.desired);
        let traffic = stats.as_ref().map(told);
        let observation = Observation { now, replicas: seen.counts, traffic };
        let decision = self.policy.decide(&observation);
        let acts_for = self.scaler.acts_for();
        self.journal.leads(acts_for.is_some());
        if let Some(foreign) = self.adoption.observe(now, desired, acts_for.is_some()) {
            let (from, to, keep) = (foreign.from, foreign.to, self.config.hold);
            tracing::info!(from, to, ?keep, "someone else set the number of replicas; keeping theirs");
            self.scaler.tell_adopted(&seen, from, keep).await;
        }
        // Telling takes time, and so does looking: this one's turn may be over by now.
        if acts_for.is_none() || shutdown.is_leaving() {
            return Ok(());
        }
        let decision = self.overruled(decision, now, desired).await;
        let replicas = stats.map(|stats| stats.replicas).unwrap_or_default();
        let applied = self.carry_out(&seen, &decision, &replicas).await;
        self.journal.write(Record {
            at_unix_s: clock::unix_time().as_secs_f64(),
            age_s: 0.0,
            at: Instant::now(),
            replicas_before: desired,
            replicas: decision.replicas,
            reason: decision.reason,
            applied: matches!(applied, Ok(true)),
            inputs: observation,
        });
        applied.map(drop)
    }

    async fn stats(&mut self) -> Option<Stats> {
        let url = format!("{}/stats", self.config.monitor);
        let stats = async { self.client.get(url).send().await?.error_for_status()?.json().await };
        let stats: reqwest::Result<Stats> = stats.await;
        if let Err(error) = &stats
            && !self.complained
        {
            tracing::warn!(%error, "the monitor does not answer; leaving the replicas as they are");
        }
        self.complained = stats.is_err();
        stats.ok()
    }

    /// The decision, unless somebody else has a say in the matter.
    async fn overruled(&mut self, decision: Decision, now: Duration, desired: u32) -> Decision {
        if let Some(left) = self.adoption.kept_for(now) {
            let left_s = left.as_secs_f64().ceil();
            let reason = format!("someone else set {desired} replicas: kept for another {left_s} s");
            return Decision { replicas: desired, reason };
        }
        if let Some(rival) = self.rival().await {
            let reason =
                format!("the HorizontalPodAutoscaler {rival:?} scales the same Deployment: remove it");
            return Decision { replicas: desired, reason };
        }
        decision
    }

    async fn rival(&mut self) -> Option<String> {
        if let Some((at, rival)) = &self.rival
            && at.elapsed() < RIVAL_PAUSE
        {
            return rival.clone();
        }
        let before = self.rival.take().and_then(|(_, rival)| rival);
        let rival = match self.scaler.rival().await {
            Ok(rival) => rival,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "cannot look for another autoscaler");
                before.clone()
            }
        };
        if let Some(rival) = rival.as_ref().filter(|_| rival != before) {
            tracing::warn!(
                rival,
                "a HorizontalPodAutoscaler scales the same Deployment; leaving the replicas to it"
            );
        }
        self.rival = Some((Instant::now(), rival.clone()));
        rival
    }

    /// Whether the fleet is as decided. An error where the next round should wait.
    async fn carry_out(
        &mut self,
        seen: &Observed,
        decision: &Decision,
        told: &[ReplicaStatus],
    ) -> anyhow::Result<bool> {
        let Decision { replicas, reason } = decision;
        let (before, replicas) = (seen.counts.desired, *replicas);
        if replicas == before {
            return Ok(true);
        }
        if self.config.dry_run {
            tracing::info!(before, replicas, reason, "dry run: would scale");
            return Ok(false);
        }
        // What one does must end while one is still the one who does it.
        let Some(within) = self.scaler.acts_for() else { return Ok(false) };
        // Who has the least to do matters where some have to go.
        let in_flight = if replicas < before { in_flight(told) } else { HashMap::new() };
        self.adoption.ask(replicas);
        if !self.scaler.scale_to(seen, replicas, within, &in_flight).await? {
            tracing::info!(
                before,
                replicas,
                reason,
                "not scaled: someone else changed the Deployment meanwhile"
            );
            return Ok(false);
        }
        self.adoption.took_effect();
        tracing::info!(before, replicas, reason, "scaled");
        self.scaler.tell_scaled(seen, replicas, reason).await;
        Ok(true)
    }
}

/// Requests under way by a replica's host, over all dispatchers.
fn in_flight(replicas: &[ReplicaStatus]) -> HashMap<String, u32> {
    let mut all = HashMap::new();
    for replica in replicas {
        let host = reqwest::Url::parse(&replica.url)
            .ok()
            .and_then(|url| url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned()));
        if let Some(host) = host {
            *all.entry(host).or_default() += replica.in_flight;
        }
    }
    all
}

/// What a rule goes by of what the monitor tells.
fn told(stats: &Stats) -> Traffic {
    let service = stats.service_ms.map(|service| Service {
        mean_ms: service.mean,
        p95_ms: service.p95,
        cv: service.cv,
    });
    Traffic {
        // A monitor that never heard of a dispatcher knows nothing at all.
        age_s: stats.age_s.unwrap_or(f64::INFINITY),
        samples: stats.samples,
        p99_ms: stats.p99_ms,
        arrivals: stats.arrivals,
        arrivals_known_s: stats.arrivals_known_s,
        service,
        busy: f64::from(stats.in_flight),
        waiting: stats.queue_depth,
        slots: stats.slots,
        ended: stats.ended,
        missed: stats.missed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_has_heard_nothing_knows_nothing_of_now() {
        let told = told(&Stats::default());
        assert!(told.age_s.is_infinite() && told.service.is_none() && told.p99_ms.is_none(), "{told:?}");
    }

    #[test]
    fn what_is_under_way_is_told_by_the_replicas_address() {
        let replica = |url: &str, in_flight| ReplicaStatus {
            url: url.to_owned(),
            state: crate::net::wire::ReplicaState::Ready,
            slots: 1,
            in_flight,
            answered: 0,
            stages_ms: None,
        };
        let all = [replica("http://10.0.0.1:8081", 2), replica("http://[fd00::1]:8081", 1)];
        let expected = HashMap::from([("10.0.0.1".to_owned(), 2), ("fd00::1".to_owned(), 1)]);
        assert_eq!(in_flight(&all), expected);
    }
}
