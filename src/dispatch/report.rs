//! Tells the monitor how every request ended, in batches that serving never waits for.
//!
//! **Invariant**: at most `report_buffer_max` outcomes are held; what is dropped is counted as lost, and
//! a report that was sent in vain is sent again with its number, so that it is counted once. No report is larger than
//! a monitor takes.
use super::Config;
use super::metrics::Metrics;
use super::pool::Pool;
use super::wire::{Ended, Report};
use crate::net::{client, clock, shutdown::Shutdown};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Most outcomes in one report, about 90 bytes each: a monitor refuses reports that are too large, and one that holds
/// all that was kept during its absence would be refused for ever.
const REPORT_ENDED_MAX: usize = 8192;

#[derive(Debug, Default)]
struct Buffer {
    arrivals: u64,
    ended: VecDeque<Ended>,
    lost: u64,
}

/// See the module's documentation.
pub(super) struct Reporter {
    monitor: Option<String>,
    interval: Duration,
    buffer_max: usize,
    source: String,
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    buffer: Mutex<Buffer>,
}

impl Reporter {
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            monitor: config.peers.monitor.clone(),
            interval: config.settings.report_interval,
            buffer_max: config.settings.report_buffer_max,
            // The time tells a dispatcher from its predecessor, the number from its neighbours.
            source: format!("dispatch-{}-{:08x}", clock::unix_time().as_micros(), rand_suffix()),
            client: client::client(SEND_TIMEOUT)?,
            metrics,
            buffer: Mutex::default(),
        }))
    }

    pub(super) fn arrived(&self) {
        self.with_buffer(|buffer| buffer.arrivals += 1);
    }

    pub(super) fn ended(&self, ended: Ended) {
        self.metrics.ended(&ended);
        if self.monitor.is_none() {
            return;
        }
        self.with_buffer(|buffer| {
            if buffer.ended.len() >= self.buffer_max {
                buffer.ended.pop_front();
                buffer.lost += 1;
                self.metrics.lost(1);
            }
            buffer.ended.push_back(ended);
        });
    }

    /// Reports every `interval` until `shutdown` drains, and then once more.
    pub(super) async fn run(self: Arc<Self>, pool: Arc<Pool>, shutdown: Shutdown) {
        let Some(monitor) = &self.monitor else { return };
        let url = format!("{monitor}/report");
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut unsent: Option<Report> = None;
        let mut sequence = 0;
        let mut reachable = true;
        loop {
            let last = tokio::select! {
                () = shutdown.drained() => true,
                _ = ticks.tick() => false,
            };
            let report = unsent.take().unwrap_or_else(|| {
                sequence += 1;
                self.report(&pool, sequence)
            });
            match self.send(&url, &report).await {
                Ok(()) => {
                    if !reachable {
                        tracing::info!(url, "the monitor answers again");
                    }
                    reachable = true;
                }
                Err(error) => {
                    if reachable {
                        tracing::warn!(url, %error, "cannot report to the monitor; serving goes on");
                    }
                    reachable = false;
                    unsent = Some(report);
                }
            }
            if last && (!reachable || self.with_buffer(|buffer| buffer.ended.is_empty())) {
                return;
            }
        }
    }

    fn report(&self, pool: &Pool, sequence: u64) -> Report {
        let buffer = self.with_buffer(|buffer| {
            let later = buffer.ended.split_off(buffer.ended.len().min(REPORT_ENDED_MAX));
            std::mem::replace(buffer, Buffer { ended: later, ..Buffer::default() })
        });
        let snapshot = pool.snapshot();
        Report {
            source: self.source.clone(),
            sequence,
            arrivals: buffer.arrivals,
            ended: buffer.ended.into(),
            lost: buffer.lost,
            in_flight: snapshot.in_flight,
            queue_depth: snapshot.waiting,
            slots: snapshot.slots,
            replicas: snapshot.replicas,
        }
    }

    async fn send(&self, url: &str, report: &Report) -> reqwest::Result<()> {
        self.client.post(url).json(report).send().await?.error_for_status().map(drop)
    }

    fn with_buffer<T>(&self, change: impl FnOnce(&mut Buffer) -> T) -> T {
        change(&mut self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A number that differs between two dispatchers started in the same microsecond.
fn rand_suffix() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tests::config;
    use crate::dispatch::wire::Outcome;

    #[test]
    fn what_was_kept_for_a_monitor_that_was_away_goes_out_in_reports_that_it_takes() {
        let (config, metrics) = (config(), Arc::new(Metrics::new()));
        let pool = Pool::new(&config);
        let mut reporter = Reporter::new(&config, metrics).unwrap();
        let outcome = Ended {
            outcome: Outcome::Timeout,
            latency_ms: 12_345.678_901,
            waited_ms: Some(12_345.678_901),
            service_ms: Some(12_345.678_901),
        };
        let all = REPORT_ENDED_MAX * 2 + 3;
        let reporter_mut = Arc::get_mut(&mut reporter).unwrap();
        reporter_mut.monitor = Some("http://monitor".to_owned());
        (0..all).for_each(|_| {
            reporter.arrived();
            reporter.ended(outcome);
        });
        let reports: Vec<Report> = (1..=4).map(|sequence| reporter.report(&pool, sequence)).collect();
        let ended: Vec<usize> = reports.iter().map(|report| report.ended.len()).collect();
        assert_eq!(ended, [REPORT_ENDED_MAX, REPORT_ENDED_MAX, 3, 0]);
        assert_eq!(reports.iter().map(|report| report.arrivals).sum::<u64>(), all as u64);
        // The monitor's --report-bytes-max is four times as much.
        assert!(serde_json::to_vec(&reports[0]).unwrap().len() < 1 << 20);
    }
}
