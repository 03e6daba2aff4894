//! The front door: one queue, late binding to free replica slots, retries, and a report of every outcome.
//!
//! **Invariant**: a request is answered once, counted once, and gives its slot back however it ends.
mod admin;
mod forward;
mod metrics;
mod pool;
mod probe;
mod report;

pub use crate::logic::balance::Policy;

use crate::net::serve::{self, Limits, duration};
use crate::net::{client, error};
use crate::net::{shutdown::Shutdown, wire};
use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::{get, post};
use pool::Pool;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Flags of `elastic dispatch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port to listen on (0 takes a free one)
    #[arg(long, env = "ELASTIC_LISTEN_PORT", default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Address to listen on; 0.0.0.0 for every interface
    #[arg(long, env = "ELASTIC_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// Base URL of the monitor that latencies are reported to
    #[arg(long, env = "ELASTIC_MONITOR", value_name = "URL")]
    monitor: Option<String>,
    /// Base URL of a replica; may be given several times, or separated by commas
    #[arg(long = "replica", env = "ELASTIC_REPLICAS", value_delimiter = ',', value_name = "URL")]
    replicas: Vec<String>,
    /// NAME:PORT whose DNS addresses are all replicas, as a headless Kubernetes Service's are
    #[arg(long, env = "ELASTIC_REPLICA_DNS", value_name = "NAME:PORT")]
    replica_dns: Option<String>,
    /// Port on which replicas register themselves (off without it; 0 takes a free one)
    #[arg(long, env = "ELASTIC_ADMIN_LISTEN_PORT", value_name = "PORT")]
    admin_port: Option<u16>,
    /// Address of the registration port; whoever reaches it can direct traffic
    #[arg(long, env = "ELASTIC_ADMIN_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    admin_host: String,
    /// How requests are bound to replicas
    #[arg(long, env = "ELASTIC_DISPATCH_POLICY", default_value = "central", value_name = "POLICY")]
    policy: Policy,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    limits: Limits,
}

/// How requests are routed; the same flags for `dispatch` and `up`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "dispatch_settings")]
pub struct Settings {
    /// Seed of the random policy
    #[arg(long, env = "ELASTIC_DISPATCH_SEED", default_value_t = 1, value_name = "N")]
    pub dispatch_seed: u64,
    /// Requests that may wait for a slot; further ones are answered 503 at once
    #[arg(long, env = "ELASTIC_WAITING_MAX", default_value_t = 1000, value_name = "N")]
    pub waiting_max: usize,
    /// Longest time a request may take in all; a shorter x-elastic-deadline-ms header wins
    #[arg(long, env = "ELASTIC_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Longest time a request's body may take to arrive
    #[arg(long, env = "ELASTIC_BODY_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub body_timeout: Duration,
    /// Largest request body, bytes
    #[arg(long, env = "ELASTIC_BODY_BYTES_MAX", default_value_t = 10 << 20, value_name = "BYTES")]
    pub body_bytes_max: usize,
    /// Largest answer of a replica, bytes
    #[arg(long, env = "ELASTIC_ANSWER_BYTES_MAX", default_value_t = 1 << 20, value_name = "BYTES")]
    pub answer_bytes_max: usize,
    /// How often a request is tried again when its replica breaks off or is too busy to take it
    #[arg(long, env = "ELASTIC_RETRIES_MAX", default_value_t = 3, value_name = "N")]
    pub retries_max: u32,
    /// Time between two looks at every replica's readiness
    #[arg(long, env = "ELASTIC_PROBE_INTERVAL", default_value = "250ms", value_parser = duration, value_name = "TIME")]
    pub probe_interval: Duration,
    /// A registered replica that has not been reachable for so long is forgotten
    #[arg(long, env = "ELASTIC_FORGET_AFTER", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub forget_after: Duration,
    /// Replicas known at once; further registrations are refused
    #[arg(long, env = "ELASTIC_REPLICAS_KNOWN_MAX", default_value_t = 1000, value_name = "N")]
    pub replicas_known_max: usize,
    /// Time between two reports to the monitor
    #[arg(long, env = "ELASTIC_REPORT_INTERVAL", default_value = "200ms", value_parser = duration, value_name = "TIME")]
    pub report_interval: Duration,
    /// Outcomes kept while the monitor is away; the oldest are dropped, and counted as lost
    #[arg(long, env = "ELASTIC_REPORT_BUFFER_MAX", default_value_t = 65_536, value_name = "N")]
    pub report_buffer_max: usize,
}

/// How long a connection to a replica is kept idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who a dispatcher works with.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Base URL of the monitor.
    pub monitor: Option<String>,
    /// Base URLs of replicas.
    pub replicas: Vec<String>,
    /// `NAME:PORT` whose DNS addresses are all replicas.
    pub replica_dns: Option<String>,
}

/// Checked settings of a dispatcher.
#[derive(Clone, Debug)]
pub struct Config {
    policy: Policy,
    settings: Settings,
    peers: Peers,
    limits: Limits,
}

impl Config {
    /// Checks what a dispatcher is told.
    pub fn new(policy: Policy, settings: Settings, peers: Peers, limits: Limits) -> anyhow::Result<Self> {
        ensure!(!settings.timeout.is_zero(), "--timeout must be longer than 0");
        ensure!(!settings.probe_interval.is_zero(), "--probe-interval must be longer than 0");
        ensure!(!settings.report_interval.is_zero(), "--report-interval must be longer than 0");
        ensure!(settings.report_buffer_max > 0, "--report-buffer-max must be at least 1");
        let base_url = |flag: &'static str, url: &str| client::base_url(url).context(flag);
        let monitor = peers.monitor.map(|url| base_url("--monitor", &url)).transpose()?;
        let replicas =
            peers.replicas.iter().map(|url| base_url("--replica", url)).collect::<Result<_, _>>()?;
        if let Some(name) = &peers.replica_dns {
            let port = name.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            ensure!(port.is_some(), "--replica-dns {name}: write NAME:PORT, as in model:8081");
        }
        let peers = Peers { monitor, replicas, replica_dns: peers.replica_dns };
        Ok(Self { policy, settings, peers, limits })
    }
}

/// Runs a dispatcher until `shutdown` asks it to stop.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let peers = Peers { monitor: args.monitor, replicas: args.replicas, replica_dns: args.replica_dns };
    ensure!(
        !peers.replicas.is_empty() || peers.replica_dns.is_some() || args.admin_port.is_some(),
        "no way to find replicas: give --replica URL, --replica-dns NAME:PORT or --admin-port PORT"
    );
    let config = Config::new(args.policy, args.settings, peers, args.limits)?;
    let listener = serve::bind(&args.host, args.port).await?;
    let admin = match args.admin_port {
        Some(port) => Some(serve::bind(&args.admin_host, port).await?),
        None => None,
    };
    serve(listener, admin, config, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// Dispatches what comes in at `listener`; replicas register at `admin`.
pub async fn serve(
    listener: TcpListener,
    admin: Option<TcpListener>,
    config: Config,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let url = serve::local_url(&listener)?;
    tracing::info!(url, policy = ?config.policy, "dispatching");
    let metrics = Arc::new(metrics::Metrics::new());
    let reporter = report::Reporter::new(&config, Arc::clone(&metrics))?;
    let pool = Pool::new(&config);
    let state = Arc::new(State {
        client: client::builder()
            // Well before a replica closes an idle connection: a request sent into the closing would look
            // like a replica that broke off.
            .pool_idle_timeout(IDLE_TIMEOUT)
            .connect_timeout(config.settings.probe_interval.max(Duration::from_secs(1)))
            .build()?,
        pool: Arc::clone(&pool),
        reporter: Arc::clone(&reporter),
        metrics,
        shutdown: shutdown.clone(),
        config,
    });
    let limits = state.config.limits;
    // What looks after replicas and reports goes on until the last answer is out, then reports once more.
    let background = Shutdown::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(probe::watch(Arc::clone(&state), background.clone()));
    tasks.spawn(reporter.run(pool, background.clone()));
    if let Some(admin) = admin {
        tracing::info!(url = serve::local_url(&admin)?, "replicas register here");
        tasks.spawn(serve::serve(admin, admin::router(Arc::clone(&state)), limits, background.clone()));
    }
    serve::serve(listener, router(state), limits, shutdown).await;
    background.drain();
    tasks.join_all().await;
    Ok(())
}

/// What the handlers share.
struct State {
    config: Config,
    client: reqwest::Client,
    pool: Arc<Pool>,
    reporter: Arc<report::Reporter>,
    metrics: Arc<metrics::Metrics>,
    shutdown: Shutdown,
}

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/predict", post(forward::forward))
        .route("/v2", get(forward::forward))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(admin::readyz))
        .route("/metrics", get(admin::metrics))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state)
}
