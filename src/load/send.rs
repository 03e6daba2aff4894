//! The open loop: sends every request when it is due, whatever became of the ones before.
//!
//! Schedule, stop and latency clock are values: a [`Pacer`], a [`Shutdown`], and the instant of the start from
//! which all three of a request's instants (due, sent, ended) are counted.
//!
//! **Invariant**: a request is never held back. It is sent when due, or, over `in_flight_max`, failed on the
//! spot; what the pacer, the loop or the runtime adds on the way shows as lag.
use crate::load::outcome::{Ended, Failure, Outcome};
use crate::load::pacer::Pacer;
use crate::load::record::{Counting, Record, Snapshot};
use crate::logic::arrivals::Plan;
use crate::net::shutdown::Shutdown;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How often the live line is told where the run is.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

/// One exchange with the target.
pub(crate) trait Exchange: Send + Sync + 'static {
    /// Sends request number `index`, which is `lag` late, and waits for its answer.
    fn exchange(&self, index: u64, lag: Duration) -> impl Future<Output = Outcome> + Send;
}

/// What a run needs to know.
pub(crate) struct Run<P> {
    /// What is planned, for the live line.
    pub(crate) plan: Plan,
    /// When requests are due.
    pub(crate) pacer: P,
    /// When the plan starts.
    pub(crate) start: Instant,
    /// What of it is counted.
    pub(crate) counting: Counting,
    /// Requests under way at once; one more fails.
    pub(crate) in_flight_max: usize,
    /// Draining stops sending, aborting also gives up what is under way.
    pub(crate) shutdown: Shutdown,
    /// Where the live line reads.
    pub(crate) progress: watch::Sender<Snapshot>,
}

/// Sends what the plan says and waits for every answer. The flag tells whether it was stopped before the end.
///
/// Best spawned: the loop then runs on a worker of the runtime, which goes on with the request itself, without
/// another thread to wake.
pub(crate) async fn send<P: Pacer, E: Exchange>(
    run: Run<P>,
    exchange: Arc<E>,
) -> anyhow::Result<(Record, bool)> {
    let mut state = Loop {
        plan: run.plan,
        pacer: run.pacer,
        start: run.start,
        record: Record::new(run.counting)?,
        requests: JoinSet::new(),
        progress: run.progress,
        ticks: tokio::time::interval(SNAPSHOT_EVERY),
    };
    state.ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (drained, aborted) = (run.shutdown.drained(), run.shutdown.aborted());
    tokio::pin!(drained, aborted);
    let mut index = 0;
    let interrupted = loop {
        match state.collect_until_due(drained.as_mut()).await {
            Wake::Due(due) => state.request(index, due, run.in_flight_max, &exchange),
            Wake::Over => break false,
            Wake::Stopped => break true,
        }
        index += 1;
    };
    // Each exchange has its own time-out, so this ends.
    state.collect_all(aborted).await;
    state.record.finish(state.start.elapsed());
    Ok((state.record, interrupted))
}

/// Why the loop stopped waiting.
enum Wake {
    Due(Duration),
    Over,
    Stopped,
}

struct Loop<P> {
    plan: Plan,
    pacer: P,
    start: Instant,
    record: Record,
    requests: JoinSet<Ended>,
    progress: watch::Sender<Snapshot>,
    ticks: Interval,
}

impl<P: Pacer> Loop<P> {
    /// Takes in answers until a request is due, the plan is over or `stop` resolves.
    async fn collect_until_due(&mut self, mut stop: Pin<&mut (impl Future<Output = ()> + Send)>) -> Wake {
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Wake::Stopped,
                _ = self.ticks.tick() => self.tell(),
                due = self.pacer.next() => return due.map_or(Wake::Over, Wake::Due),
                Some(ended) = self.requests.join_next() => self.take(ended),
            }
        }
    }

    /// Takes in the answers still to come; gives them up when `stop` resolves.
    async fn collect_all(&mut self, mut stop: Pin<&mut (impl Future<Output = ()> + Send)>) {
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return self.requests.abort_all(),
                ended = self.requests.join_next() => match ended {
                    Some(ended) => self.take(ended),
                    None => return,
                },
                _ = self.ticks.tick() => self.tell(),
            }
        }
    }

    /// Sends a request that is due now.
    fn request<E: Exchange>(&mut self, index: u64, due: Duration, in_flight_max: usize, exchange: &Arc<E>) {
        // When the loop runs late it is always due again at once: answers must not wait for a pause.
        while let Some(ended) = self.requests.try_join_next() {
            self.take(ended);
        }
        self.record.came_due(due);
        let start = self.start;
        if self.requests.len() >= in_flight_max {
            let now = start.elapsed();
            let outcome = Outcome::Failed(Failure::Cap);
            self.record.ended(Ended { due, sent: now, ended: now, outcome });
            return;
        }
        let exchange = Arc::clone(exchange);
        self.requests.spawn(async move {
            let sent = start.elapsed();
            let outcome = exchange.exchange(index, sent.saturating_sub(due)).await;
            Ended { due, sent, ended: start.elapsed(), outcome }
        });
    }

    fn take(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(ended) => self.record.ended(ended),
            // Counted as aborted when the record is finished.
            Err(error) => tracing::error!(%error, "a request did not end by itself"),
        }
    }

    fn tell(&mut self) {
        let elapsed = self.start.elapsed();
        let rate_rps = self.plan.rate_rps_at(elapsed);
        self.progress.send_replace(self.record.snapshot(elapsed, self.requests.len(), rate_rps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latencies::Quantile;
    use crate::logic::arrivals::{Instants, Pace, Spacing, Workload};
    use std::iter::Peekable;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers every request after `service`, one at a time where `queued`, and stands still until `stall`.
    struct Target {
        service: Duration,
        start: Instant,
        stall: Duration,
        queue: Option<tokio::sync::Mutex<()>>,
        called: Arc<AtomicUsize>,
    }

    impl Target {
        fn new(service_ms: u64) -> Self {
            Self {
                service: Duration::from_millis(service_ms),
                start: Instant::now(),
                stall: Duration::ZERO,
                queue: None,
                called: Arc::default(),
            }
        }
    }

    impl Exchange for Target {
        async fn exchange(&self, _index: u64, _lag: Duration) -> Outcome {
            self.called.fetch_add(1, Ordering::Relaxed);
            let turn = match &self.queue {
                Some(queue) => Some(queue.lock().await),
                None => None,
            };
            tokio::time::sleep_until(self.start + self.stall).await;
            tokio::time::sleep(self.service).await;
            drop(turn);
            Outcome::Ok { model: None }
        }
    }

    fn plan(text: &str) -> Plan {
        Plan::new(&Workload::parse(text).unwrap(), Pace::default(), 1_000_000).unwrap()
    }

    /// Waits by the runtime's clock, which these tests pause.
    struct RuntimePacer {
        instants: Peekable<Instants>,
        start: Instant,
        end: Duration,
    }

    impl Pacer for RuntimePacer {
        async fn next(&mut self) -> Option<Duration> {
            let due = self.instants.peek().copied().unwrap_or(self.end);
            tokio::time::sleep_until(self.start + due).await;
            self.instants.next()
        }
    }

    fn run(plan: &Plan, in_flight_max: usize, shutdown: Shutdown) -> Run<RuntimePacer> {
        let start = Instant::now();
        let instants = plan.instants(Spacing::Even).peekable();
        let pacer = RuntimePacer { instants, start, end: plan.duration() };
        let progress = watch::channel(Snapshot::default()).0;
        let counting = Counting::ALL;
        Run { plan: plan.clone(), pacer, start, counting, in_flight_max, shutdown, progress }
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_is_sent_when_due_and_answered() {
        let plan = plan("10\n0\n20\n0\n");
        let begun = Instant::now();
        let (record, interrupted) =
            send(run(&plan, 64, Shutdown::new()), Arc::new(Target::new(50))).await.unwrap();
        assert_eq!((record.counts.sent, record.counts.ok, interrupted), (30, 30, false));
        assert_eq!(record.rows.iter().map(|row| row.counts.ok).collect::<Vec<_>>(), [10, 0, 20]);
        assert_eq!(record.latency.quantile(500), record.latency.quantile(990));
        // Quiet lines at the end are played too.
        assert_eq!(begun.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_shows_in_the_latency_of_everything_that_was_due_meanwhile() {
        let plan = plan("10\n5\n");
        let stalled = Target { stall: Duration::from_secs(1), ..Target::new(5) };
        let (record, _) = send(run(&plan, 64, Shutdown::new()), Arc::new(stalled)).await.unwrap();
        let Some(Quantile::Answered(p99_us)) = record.latency.quantile(990) else { panic!() };
        assert!((950_000..1_000_000).contains(&p99_us), "{p99_us}");
        // A closed loop would have sent one request in the first second and seen one slow answer.
        let Some(Quantile::Answered(p50_us)) = record.latency.quantile(500) else { panic!() };
        assert!(p50_us > 50_000, "{p50_us}");
        assert_eq!(record.rows[0].counts.sent, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_target_does_not_slow_the_schedule() {
        let plan = plan("10\n10\n");
        let queued = Target { queue: Some(tokio::sync::Mutex::new(())), ..Target::new(200) };
        let (record, _) = send(run(&plan, 64, Shutdown::new()), Arc::new(queued)).await.unwrap();
        assert_eq!(record.rows.iter().map(|row| row.counts.sent).collect::<Vec<_>>(), [10, 10]);
        // Twenty requests of 0.2 s one after the other: the last, due at 1.95 s, ends at 4.05 s.
        let Some(Quantile::Answered(slowest_us)) = record.latency.slowest() else { panic!() };
        assert!((2_090_000..2_120_000).contains(&slowest_us), "{slowest_us}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_over_the_cap_fails_at_once_and_is_not_sent() {
        let plan = plan("10\n");
        let target = Target::new(5_000);
        let called = Arc::clone(&target.called);
        let (record, _) = send(run(&plan, 3, Shutdown::new()), Arc::new(target)).await.unwrap();
        assert_eq!((record.counts.sent, record.counts.ok, record.counts.failed()), (10, 3, 7));
        assert_eq!(record.counts.failures[&Failure::Cap], 7);
        assert_eq!(called.load(Ordering::Relaxed), 3);
        assert!(record.missed_us_max < 2_000, "{}", record.missed_us_max);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_stops_sending_and_waits_the_second_gives_up() {
        for second_signal in [false, true] {
            let plan = plan(&"10\n".repeat(60));
            let shutdown = Shutdown::new();
            let asked = shutdown.clone();
            let signals = async move {
                tokio::time::sleep(Duration::from_millis(1001)).await;
                asked.drain();
                tokio::time::sleep(Duration::from_millis(1)).await;
                if second_signal {
                    asked.abort();
                }
            };
            let (outcome, ()) =
                tokio::join!(send(run(&plan, 64, shutdown), Arc::new(Target::new(300))), signals);
            let (record, interrupted) = outcome.unwrap();
            assert!(interrupted);
            assert_eq!(record.counts.sent, 10);
            let (ok, aborted) = if second_signal { (7, 3) } else { (10, 0) };
            assert_eq!((record.counts.ok, record.counts.failed()), (ok, aborted));
            assert_eq!(record.counts.failures.get(&Failure::Aborted).copied().unwrap_or(0), aborted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_live_line_is_told_every_second_even_when_requests_are_always_due() {
        let plan = plan("2000\n2000\n2000\n");
        let (progress, mut seen) = watch::channel(Snapshot::default());
        let watching = async move {
            let mut count = 0;
            while seen.changed().await.is_ok() {
                count += 1;
            }
            count
        };
        let run = Run { progress, ..run(&plan, 64, Shutdown::new()) };
        let (outcome, count) = tokio::join!(send(run, Arc::new(Target::new(1))), watching);
        assert_eq!(outcome.unwrap().0.counts.sent, 6000);
        assert!((3..=5).contains(&count), "{count}");
    }
}
