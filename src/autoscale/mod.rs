//! Watches the monitor and changes the number of replicas.
//!
//! **Invariant**: one decision is under way at a time; what cannot be asked or changed leaves the fleet as
//! it is.
mod control;
mod journal;
pub mod kubernetes;
pub mod processes;
mod routes;
mod target;

use target::Observed;
pub use target::Scaler;

use crate::logic::policy::{Bounds, Name, Policy, Slo, SloConfig, Step, StepConfig};
use crate::net::kubernetes::Cluster;
use crate::net::serve::{self, Limits, duration};
use crate::net::{client, shutdown::Shutdown};
use anyhow::{Context as _, bail, ensure};
use journal::Journal;
use kubernetes::{DeploymentScaler, Leader, Leadership};
use processes::{ProcessScaler, Spawn};
use serde::Serialize;
use std::ffi::OsString;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Flags of `elastic autoscale`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  elastic autoscale --monitor http://monitor:8090 --target deployment/model --replicas-max 10
  elastic autoscale --monitor http://127.0.0.1:8090 --target processes -- --register http://127.0.0.1:8082")]
pub struct Args {
    /// Base URL of the monitor
    #[arg(long, env = "ELASTIC_MONITOR", value_name = "URL")]
    monitor: String,
    /// What to scale: deployment/NAME in Kubernetes, or `processes` for children on this machine
    #[arg(long, env = "ELASTIC_TARGET", value_name = "TARGET")]
    target: String,
    /// Namespace of the Deployment [default: the one of the pod or of the kubeconfig]
    #[arg(long, env = "ELASTIC_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Longest time a call to Kubernetes may take
    #[arg(long, env = "ELASTIC_KUBERNETES_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "TIME")]
    kubernetes_timeout: Duration,
    /// Name of a Lease that says which of several autoscalers acts; the others stand by (one alone needs none)
    #[arg(long, env = "ELASTIC_LEASE", value_name = "NAME")]
    lease: Option<String>,
    /// Time after which a leader that is heard of no more is replaced, in whole seconds
    #[arg(long, env = "ELASTIC_LEASE_DURATION", default_value = "10s", value_parser = duration, value_name = "TIME")]
    lease_duration: Duration,
    /// Name of this autoscaler in the Lease and in Events, no other's [default: the host's name and the process id]
    #[arg(long, env = "ELASTIC_IDENTITY", value_name = "NAME")]
    identity: Option<String>,
    /// Address or base URL under which other autoscalers reach this one, to hand on /decisions of the leader
    #[arg(long, env = "ELASTIC_ADVERTISE", value_name = "ADDRESS")]
    advertise: Option<String>,
    /// Decide and explain, but change nothing
    #[arg(long, env = "ELASTIC_DRY_RUN")]
    dry_run: bool,
    /// Port of /decisions, /replicas, /healthz and /readyz (0 takes a free one)
    #[arg(long, env = "ELASTIC_LISTEN_PORT", default_value_t = 8083, value_name = "PORT")]
    port: u16,
    /// Address to listen on; 0.0.0.0 for every interface
    #[arg(long, env = "ELASTIC_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    limits: Limits,
    /// With `--target processes`: flags of `elastic serve-model` for every child
    #[arg(last = true, value_name = "SERVE-MODEL FLAGS")]
    children: Vec<OsString>,
}

/// A rule that may decide on a real fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// Fewest replicas that keep p99 under the target, from arrivals, service times and queueing theory
    Slo,
    /// ×1.2 up unless p99 is under the target, else −1 down
    Step,
}

impl From<PolicyName> for Name {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Slo => Self::Slo,
            PolicyName::Step => Self::Step,
        }
    }
}

/// How decisions are made; the same flags for `autoscale` and `up`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "autoscale_settings")]
pub struct Settings {
    /// Rule that decides; those of other autoscalers are for comparison, in `elastic simulate` alone
    #[arg(long, env = "ELASTIC_POLICY", default_value = "slo", value_name = "POLICY")]
    pub policy: PolicyName,
    /// Time between two decisions [default: 1s with slo, 10s with step]
    #[arg(long, env = "ELASTIC_INTERVAL", value_parser = duration, value_name = "TIME")]
    pub interval: Option<Duration>,
    /// Fewest replicas
    #[arg(long, env = "ELASTIC_REPLICAS_MIN", default_value_t = 1, value_name = "N")]
    pub replicas_min: u32,
    /// Most replicas
    #[arg(long, env = "ELASTIC_REPLICAS_MAX", default_value_t = 4, value_name = "N")]
    pub replicas_max: u32,
    /// The 99th percentile of the latency to stay under
    #[arg(long, env = "ELASTIC_P99_TARGET", default_value = "330ms", value_parser = duration, value_name = "TIME")]
    pub p99_target: Duration,
    /// With slo: share of requests that may be over the target or unanswered, over 15 minutes
    #[arg(long, env = "ELASTIC_MISS_BUDGET", default_value_t = slo_defaults().miss_budget, value_name = "SHARE")]
    pub miss_budget: f64,
    /// With slo: time for which fewer replicas must have been enough before any is given up; at least twice the
    /// start-up time. With every rule: time for which a number that someone else sets is kept
    #[arg(long, env = "ELASTIC_HOLD", default_value = "40s", value_parser = duration, value_name = "TIME")]
    pub hold: Duration,
    /// With step: factor by which the fleet grows unless p99 is under the target, rounded up
    #[arg(long, env = "ELASTIC_UP_FACTOR", default_value_t = 1.2, value_name = "FACTOR")]
    pub up_factor: f64,
    /// A report of the dispatchers older than this counts as missing
    #[arg(long, env = "ELASTIC_STALE_AFTER", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub stale_after: Duration,
    /// Decisions remembered for /decisions; a row of decisions to hold counts as one
    #[arg(long, env = "ELASTIC_DECISIONS_MAX", default_value_t = 500, value_name = "N")]
    pub decisions_max: usize,
}

/// What the flags of slo default to.
fn slo_defaults() -> SloConfig {
    SloConfig::new(Bounds { min: 1, max: 1 }, 1.0)
}

/// A rule with its checked settings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Slo(SloConfig),
    Step(StepConfig),
}

impl Rule {
    fn name(self) -> PolicyName {
        match self {
            Self::Slo(_) => PolicyName::Slo,
            Self::Step(_) => PolicyName::Step,
        }
    }

    fn bounds(self) -> Bounds {
        match self {
            Self::Slo(config) => config.bounds,
            Self::Step(config) => config.bounds,
        }
    }

    /// The rule before its first decision.
    fn policy(self) -> Box<dyn Policy + Send> {
        match self {
            Self::Slo(config) => Box::new(Slo::new(config)),
            Self::Step(config) => Box::new(Step::new(config)),
        }
    }
}

/// Checked settings of an autoscaler.
#[derive(Clone, Debug)]
pub struct Config {
    monitor: String,
    rule: Rule,
    interval: Duration,
    hold: Duration,
    decisions_max: usize,
    dry_run: bool,
    limits: Limits,
}

impl Config {
    /// Checks what an autoscaler is told; `monitor` is a base URL.
    pub fn new(settings: &Settings, monitor: &str, dry_run: bool, limits: Limits) -> anyhow::Result<Self> {
        let &Settings { policy, replicas_min: min, replicas_max: max, .. } = settings;
        let &Settings { miss_budget, hold, up_factor, .. } = settings;
        let interval = settings.interval.unwrap_or_else(|| Name::from(policy).interval());
        ensure!(!interval.is_zero(), "--interval must be longer than 0");
        let seen = policy != PolicyName::Slo || interval <= Duration::from_secs(15);
        ensure!(seen, "--interval must be at most 15s with --policy slo, which sees no further back");
        ensure!(!settings.p99_target.is_zero(), "--p99-target must be longer than 0");
        ensure!(min >= 1, "--replicas-min must be at least 1");
        ensure!(min <= max, "--replicas-min {min} is more than --replicas-max {max}");
        ensure!(up_factor > 1.0 && up_factor <= 100.0, "--up-factor must be over 1 and at most 100");
        ensure!(miss_budget > 0.0 && miss_budget < 1.0, "--miss-budget must be over 0 and below 1");
        ensure!(settings.decisions_max > 0, "--decisions-max must be at least 1");
        let (bounds, target_ms) = (Bounds { min, max }, settings.p99_target.as_secs_f64() * 1000.0);
        let stale_after_s = settings.stale_after.as_secs_f64();
        let rule = match policy {
            PolicyName::Slo => {
                Rule::Slo(SloConfig { miss_budget, hold, stale_after_s, ..SloConfig::new(bounds, target_ms) })
            }
            PolicyName::Step => Rule::Step(StepConfig { bounds, target_ms, up_factor, stale_after_s }),
        };
        Ok(Self {
            monitor: client::base_url(monitor).context("--monitor")?,
            rule,
            interval,
            hold,
            decisions_max: settings.decisions_max,
            dry_run,
            limits,
        })
    }
}

/// Runs an autoscaler until `shutdown` asks it to stop.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let shutdown = shutdown.delayed(args.limits.drain_delay);
    let config = Config::new(&args.settings, &args.monitor, args.dry_run, args.limits)?;
    let deployment = args.target.strip_prefix("deployment/").filter(|name| !name.is_empty());
    let listener = serve::bind(&args.host, args.port).await?;
    let scaler = if let Some(name) = deployment {
        ensure!(args.children.is_empty(), "flags after -- go with --target processes alone");
        of_a_deployment(&args, name, listener.local_addr()?.port()).await?
    } else if args.target == "processes" {
        ensure!(args.lease.is_none(), "--lease goes with --target deployment/NAME alone");
        let spawn = Spawn::this_executable(args.children, args.limits.drain_timeout)?;
        Scaler::Processes(ProcessScaler::new(spawn, args.settings.replicas_min))
    } else {
        bail!("--target {:?}: write deployment/NAME or processes", args.target);
    };
    serve(listener, config, scaler, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// The scaler of a Deployment, and this autoscaler's part in who scales it.
async fn of_a_deployment(args: &Args, name: &str, port: u16) -> anyhow::Result<Scaler> {
    let lease_s = args.lease_duration.as_secs_f64();
    ensure!((3.0..=3600.0).contains(&lease_s), "--lease-duration must be from 3s to 1h");
    let identity = args.identity.clone().unwrap_or_else(identity);
    let url = args.advertise.as_deref().map(|address| advertised(address, port)).transpose()?;
    let cluster = Arc::new(Cluster::infer(args.namespace.clone(), args.kubernetes_timeout).await?);
    let scaler = DeploymentScaler::new(Arc::clone(&cluster), name.to_owned(), identity.clone());
    match scaler.rival().await {
        Ok(None) => {}
        Ok(Some(rival)) => bail!(
            "the HorizontalPodAutoscaler {rival:?} scales deployment {name:?} already, and two that scale it would \
             overrule each other; delete it (kubectl delete horizontalpodautoscaler {rival}) or do not run this"
        ),
        // It is looked for again, once the API server answers.
        Err(error) => {
            tracing::warn!(
                error = error.whole(),
                "cannot tell yet whether a HorizontalPodAutoscaler scales the same Deployment"
            );
        }
    }
    let leadership = args.lease.clone().map(|lease| {
        let me = Leader { identity, url };
        Arc::new(Leadership::new(cluster, lease, args.lease_duration, me))
    });
    Ok(Scaler::Deployment { scaler: Arc::new(scaler), leadership })
}

/// The URL that `--advertise` stands for.
fn advertised(address: &str, port: u16) -> anyhow::Result<String> {
    let url = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("http://[{address}]:{port}"),
        _ if address.contains("://") => address.to_owned(),
        _ => format!("http://{address}:{port}"),
    };
    client::base_url(&url).context("--advertise")
}

/// A name that no other process has at the same time.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", if host.trim().is_empty() { "elastic" } else { host.trim() }, std::process::id())
}

/// Decides and scales until `shutdown` drains; then, with children, until the last of them has ended.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    scaler: Scaler,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Bounds { min, max } = config.rule.bounds();
    let policy = config.rule.name();
    let url = serve::local_url(&listener)?;
    tracing::info!(url, ?policy, min, max, dry_run = config.dry_run, "autoscaling");
    let journal = Arc::new(Journal::new(policy, config.decisions_max));
    let limits = config.limits;
    let router = routes::router(Arc::clone(&journal), scaler.clone(), shutdown.clone())?;
    let supervised = async {
        match &scaler {
            Scaler::Processes(scaler) => scaler.supervise(shutdown.clone()).await,
            Scaler::Deployment { leadership: Some(leadership), .. } => leadership.run(shutdown.clone()).await,
            Scaler::Deployment { leadership: None, .. } => {}
        }
    };
    let ((), control, ()) = tokio::join!(
        serve::serve(listener, router, limits, shutdown.clone()),
        control::run(config, &scaler, &journal, shutdown.clone()),
        supervised,
    );
    control
}
