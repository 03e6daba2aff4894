//! Keeps a rolling window of latencies and a histogram of each second; serves `/stats`, `/history`, `/events`,
//! `/metrics` and the live page.
//!
//! Dispatchers post reports; everything else is read. In reading order: [`Args`] become a [`Config`], `state`
//! is the memory (`sources` and `history` are its parts), `routes` speaks HTTP, `exposition` is
//! `/metrics`, `page` the live page, `live` what it draws from and `decisions` its view of the autoscaler.
//!
//! **Invariant**: memory is bounded by the configuration, whatever is posted; what is not known reads as
//! `null`, never as 0.
mod decisions;
mod exposition;
mod history;
mod live;
mod page;
mod routes;
mod sources;
mod state;

pub use decisions::Decided;
pub use history::Point;
pub use live::Update;
pub use routes::{History, Taken};

use crate::net::serve::{self, Limits, duration};
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use axum::Router;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Flags of `elastic monitor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; 0.0.0.0 for every interface
    // Not ELASTIC_MONITOR_PORT: Kubernetes sets that to a URL beside a service called elastic-monitor.
    #[arg(long, env = "ELASTIC_MONITOR_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "ELASTIC_MONITOR_LISTEN_PORT", default_value_t = 8090, value_name = "PORT")]
    pub port: u16,
    #[command(flatten)]
    config: Config,
}

/// What the monitor runs with. `Default` is what the flags default to; [`serve()`] checks it.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "monitor_config")]
pub struct Config {
    /// Latencies in the rolling window
    #[arg(long, env = "ELASTIC_WINDOW", default_value_t = 1000, value_name = "N")]
    pub window: usize,
    /// Age after which a latency is forgotten
    #[arg(long, env = "ELASTIC_WINDOW_AGE", default_value = "600s", value_parser = duration, value_name = "TIME")]
    pub window_age: Duration,
    /// Latency that was promised; a request that was shed or failed counts as at least this slow
    #[arg(long, env = "ELASTIC_PROMISE", default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub promise: Duration,
    /// Latency that is aimed at: `missed` in /stats counts what is over it, the live page draws a line; the same as
    /// the autoscaler's --p99-target
    #[arg(long, env = "ELASTIC_TARGET_LATENCY", default_value = "330ms", value_parser = duration, value_name = "TIME")]
    pub target_latency: Duration,
    /// How far back `recent` in /stats looks, unless it is asked for more or less
    #[arg(long, env = "ELASTIC_RECENT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub recent: Duration,
    /// How far back a histogram of each second is kept: for /stats?since=, /history and the live page; each
    /// second takes 2 kB at 200 requests a second, and at most 49 kB
    #[arg(long, env = "ELASTIC_HISTORY_AGE", default_value = "10m", value_parser = duration, value_name = "TIME")]
    pub history_age: Duration,
    /// Dispatchers that may report at once
    #[arg(long, env = "ELASTIC_SOURCES_MAX", default_value_t = 64, value_name = "N")]
    pub sources_max: usize,
    /// Silence after which a dispatcher's slots, queue and replicas no longer count
    #[arg(long, env = "ELASTIC_SOURCE_AGE", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub source_age: Duration,
    /// Replicas that one report may name
    #[arg(long, env = "ELASTIC_REPLICAS_REPORTED_MAX", default_value_t = 1000, value_name = "N")]
    pub replicas_max: usize,
    /// Size of a report, bytes
    #[arg(long, env = "ELASTIC_REPORT_BYTES_MAX", default_value_t = 4 * 1024 * 1024, value_name = "BYTES")]
    pub report_bytes_max: usize,
    /// Longest time that a report's body may take to arrive
    #[arg(long, env = "ELASTIC_REPORT_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub report_timeout: Duration,
    /// Base URL of an autoscaler whose latest decisions the live page shows
    #[arg(long, env = "ELASTIC_DECISIONS", value_name = "URL")]
    pub decisions: Option<reqwest::Url>,
    /// Longest time that the autoscaler may take to tell its decisions
    #[arg(long, env = "ELASTIC_DECISIONS_TIMEOUT", default_value = "1s", value_parser = duration, value_name = "TIME")]
    pub decisions_timeout: Duration,
    /// Size of the autoscaler's answer, bytes
    #[arg(long, env = "ELASTIC_DECISIONS_BYTES_MAX", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub decisions_bytes_max: usize,
    /// Least time between two questions to the autoscaler, however many pages are open
    #[arg(long, env = "ELASTIC_DECISIONS_INTERVAL", default_value = "900ms", value_parser = duration, value_name = "TIME")]
    pub decisions_interval: Duration,
    /// Readers that may follow /events at once; every open live page is one
    #[arg(long, env = "ELASTIC_SUBSCRIBERS_MAX", default_value_t = 64, value_name = "N")]
    pub subscribers_max: usize,
    /// Time after which a reader of /events that takes nothing makes room for another
    #[arg(long, env = "ELASTIC_SUBSCRIBER_SILENCE_MAX", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub subscriber_silence_max: Duration,
    /// Limits on connections.
    #[command(flatten)]
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window: 1000,
            window_age: Duration::from_mins(10),
            promise: Duration::from_millis(500),
            target_latency: Duration::from_millis(330),
            recent: Duration::from_secs(10),
            history_age: Duration::from_mins(10),
            sources_max: 64,
            source_age: Duration::from_secs(10),
            replicas_max: 1000,
            report_bytes_max: 4 * 1024 * 1024,
            report_timeout: Duration::from_secs(5),
            decisions: None,
            decisions_timeout: Duration::from_secs(1),
            decisions_bytes_max: 1024 * 1024,
            decisions_interval: Duration::from_millis(900),
            subscribers_max: 64,
            subscriber_silence_max: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Refuses values that the monitor cannot run with, each with a sentence that says what to change.
    pub fn check(self) -> anyhow::Result<Self> {
        let counts = [
            ("--window", self.window),
            ("--sources-max", self.sources_max),
            ("--replicas-max", self.replicas_max),
            ("--report-bytes-max", self.report_bytes_max),
            ("--decisions-bytes-max", self.decisions_bytes_max),
            ("--subscribers-max", self.subscribers_max),
        ];
        for (flag, value) in counts {
            anyhow::ensure!(value > 0, "{flag} must be at least 1");
        }
        // A million latencies are sorted in tenths of a second, which is all the time a reader should wait.
        anyhow::ensure!(self.window <= 1_000_000, "--window must be at most 1000000, not {}", self.window);
        let times = [
            ("--window-age", self.window_age),
            ("--promise", self.promise),
            ("--target-latency", self.target_latency),
            ("--recent", self.recent),
            ("--source-age", self.source_age),
            ("--report-timeout", self.report_timeout),
            ("--decisions-timeout", self.decisions_timeout),
        ];
        for (flag, value) in times {
            anyhow::ensure!(!value.is_zero(), "{flag} must be longer than nothing");
        }
        let history_s = self.history_age.as_secs();
        // An hour of the busiest seconds is 176 MB; beyond that a time series database does better.
        anyhow::ensure!((1..=3600).contains(&history_s), "--history-age must be between 1s and 1h");
        if let Some(url) = &self.decisions {
            let spoken = matches!(url.scheme(), "http" | "https");
            anyhow::ensure!(spoken, "--decisions {url} must be an http or https address");
        }
        Ok(self)
    }
}

/// Runs the mode until `shutdown` drains.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let config = args.config.check()?;
    let listener = serve::bind(&args.host, args.port).await?;
    let url = serve::local_url(&listener).context("cannot read the address listened on")?;
    tracing::info!(url, window = config.window, "monitor ready; open the address for the live page");
    let shutdown = shutdown.delayed(config.limits.drain_delay);
    serve(listener, config, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// Serves on a bound listener until `shutdown` drains.
pub async fn serve(listener: TcpListener, config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let limits = config.limits;
    let router = router(config, shutdown.clone())?;
    serve::serve(listener, router, limits, shutdown).await;
    Ok(())
}

/// The monitor's routes over a fresh memory, for tests and for [`serve()`]. Time starts now.
pub fn router(config: Config, shutdown: Shutdown) -> anyhow::Result<Router> {
    let shared = routes::Shared::new(config.check()?, shutdown)?;
    Ok(routes::router(Arc::new(shared)))
}
