//! Plays every run, some of them at once, each on a thread of its own.
//!
//! Threads are not waited for where nobody wants their result any more: they end with the process, since nothing
//! that they do leaves it.
//!
//! **Invariant**: results come in the order of the runs, whatever thread was first.
use crate::logic::balance;
use crate::logic::policy::{Decision, Name, Observation, Policy, Scaled};
use crate::sim::{self, Outcome, Requests, Settings, clairvoyant};
use anyhow::Context as _;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// What is played.
#[derive(Clone, Debug)]
pub(super) struct Playing {
    /// The same for all runs, but for `dispatch` and `interval`.
    pub(super) settings: Settings,
    pub(super) service: Scaled,
    pub(super) requests: Requests,
    pub(super) pairs: Vec<(Name, balance::Policy)>,
    /// Between two looks of a rule, instead of its own.
    pub(super) interval: Option<Duration>,
    /// Threads.
    pub(super) jobs: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Played {
    /// One for each pair, in their order.
    pub(super) outcomes: Vec<Outcome>,
    /// Replica-seconds of the bound.
    pub(super) clairvoyant_replica_s: f64,
}

/// How far the runs are, in simulated time.
#[derive(Debug)]
pub(super) struct Progress {
    played_s: AtomicU64,
    whole_s: u64,
}

impl Progress {
    pub(super) fn new(playing: &Playing) -> Arc<Self> {
        let duration_s = playing.requests.duration().as_secs();
        Arc::new(Self { played_s: AtomicU64::new(0), whole_s: duration_s * playing.pairs.len() as u64 })
    }

    /// Share that is done, from 0 to 1.
    pub(super) fn share(&self) -> f64 {
        (self.played_s.load(Ordering::Relaxed) as f64 / (self.whole_s as f64).max(1.0)).min(1.0)
    }
}

/// A rule that tells how far it is.
struct Watched {
    rule: Box<dyn Policy + Send>,
    progress: Arc<Progress>,
    told_s: u64,
}

impl Policy for Watched {
    fn decide(&mut self, observation: &Observation) -> Decision {
        let now_s = observation.now.as_secs();
        self.progress.played_s.fetch_add(now_s - self.told_s.min(now_s), Ordering::Relaxed);
        self.told_s = now_s;
        self.rule.decide(observation)
    }
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Bound,
    Run(usize),
}

enum Done {
    Bound(f64),
    Run(usize, Outcome),
}

/// Plays all.
pub(super) async fn all(playing: Playing, progress: Arc<Progress>) -> anyhow::Result<Played> {
    let runs = playing.pairs.len();
    // The bound first: it takes longest where the fleet is large.
    let jobs: VecDeque<Job> = std::iter::once(Job::Bound).chain((0..runs).map(Job::Run)).collect();
    let threads = playing.jobs.clamp(1, jobs.len());
    let (jobs, playing) = (Arc::new(Mutex::new(jobs)), Arc::new(playing));
    let (sender, mut results) = mpsc::channel(runs + 1);
    for index in 0..threads {
        let (jobs, playing, progress) = (Arc::clone(&jobs), Arc::clone(&playing), Arc::clone(&progress));
        let sender = sender.clone();
        let work = move || {
            let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            while let Some(job) = next() {
                if sender.blocking_send(playing.play(job, &progress)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("simulate-{index}"));
        thread.spawn(work).context("cannot start a thread for a simulation")?;
    }
    drop(sender);
    let (mut bound, mut outcomes) = (None, vec![None; runs]);
    while let Some(done) = results.recv().await {
        match done {
            Done::Bound(replica_s) => bound = Some(replica_s),
            Done::Run(index, outcome) => outcomes[index] = Some(outcome),
        }
    }
    let outcomes: Option<Vec<Outcome>> = outcomes.into_iter().collect();
    let all = outcomes.zip(bound);
    let (outcomes, clairvoyant_replica_s) = all.context("a simulation did not end by itself")?;
    Ok(Played { outcomes, clairvoyant_replica_s })
}

impl Playing {
    fn play(&self, job: Job, progress: &Arc<Progress>) -> Done {
        let Job::Run(index) = job else {
            return Done::Bound(clairvoyant::replica_seconds(&self.settings, &self.requests));
        };
        let (name, dispatch) = self.pairs[index];
        let interval = self.interval.unwrap_or(name.interval());
        let settings = Settings { dispatch, interval, ..self.settings };
        let rule = name.policy(&self.service);
        let mut rule = Watched { rule, progress: Arc::clone(progress), told_s: 0 };
        Done::Run(index, sim::run(&settings, &self.requests, &mut rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::Bounds;

    fn playing(seconds: usize) -> Playing {
        let second = Duration::from_secs(1);
        let settings = Settings {
            service_time: second / 10,
            cv: 0.1,
            start_up: second,
            slots: 1,
            dispatch: balance::Policy::Central,
            waiting_max: 100,
            promise: second,
            deadline: second,
            interval: second,
            replicas_start: 2,
            seed: 1,
            window: 1000,
        };
        let service = Scaled {
            bounds: Bounds { min: 1, max: 10 },
            promise: second,
            service_time: settings.service_time,
            slots: 1,
        };
        let requests = Requests::Counted { seconds: vec![5; seconds], seed: 1 };
        let pairs = vec![(Name::Ray, balance::Policy::Central), (Name::Hpa, balance::Policy::Random)];
        Playing { settings, service, requests, pairs, interval: None, jobs: 2 }
    }

    #[tokio::test]
    async fn progress_goes_from_nothing_to_all() {
        let playing = playing(40);
        let progress = Progress::new(&playing);
        assert_eq!(progress.share().to_bits(), 0.0_f64.to_bits());
        let played = all(playing, Arc::clone(&progress)).await.unwrap();
        assert_eq!(progress.share().to_bits(), 1.0_f64.to_bits());
        assert!(played.outcomes.iter().all(|outcome| outcome.requests == 200), "{played:?}");
    }

    #[tokio::test]
    async fn rules_look_at_their_own_interval_unless_told_another() {
        let first_change_s = async |interval| {
            let playing =
                Playing { pairs: vec![(Name::Step, balance::Policy::Central)], interval, ..playing(40) };
            let progress = Progress::new(&playing);
            let played = all(playing, progress).await.unwrap();
            played.outcomes[0].changes.first().map(|change| change.at.as_secs())
        };
        assert_eq!(first_change_s(None).await, Some(10));
        assert_eq!(first_change_s(Some(Duration::from_secs(5))).await, Some(5));
    }
}
