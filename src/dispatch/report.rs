//! Tells the monitor how every request ended, in batches that serving never waits for.
//!
//! **Invariant**: at most `report_buffer_max` outcomes are held; what is dropped is counted as lost, and
//! a report that was sent in vain is sent again with its number, so that it is counted once.
use super::Config;
use super::metrics::Metrics;
use super::pool::Pool;
use super::wire::{Ended, Report};
use crate::net::{client, clock, shutdown::Shutdown};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SEND_TIMEOUT: Duration = Duration::from_secs(2);

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
            if last {
                return;
            }
        }
    }

    fn report(&self, pool: &Pool, sequence: u64) -> Report {
        let buffer = self.with_buffer(std::mem::take);
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
