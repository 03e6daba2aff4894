//! The front door: one queue, late binding to free replica slots, retries, and a report of every outcome.
//!
//! **Invariant**: a request is answered once, counted once, and gives its slot back however it ends.
mod discovery;
mod forward;
mod metrics;
mod pool;
mod probe;
mod report;
mod request;
mod routes;
mod settings;
mod slot;
mod tries;
mod upstream;

pub use crate::logic::balance::Policy;
pub use settings::{HedgeAfter, Settings};

use crate::net::client;
use crate::net::serve::{self, Limits};
use crate::net::{shutdown::Shutdown, wire};
use anyhow::{Context as _, ensure};
use discovery::{Discovery, Fleet, dns::Dns, listed::Listed, registration::Registrations, slices::Slices};
use pool::Pool;
use std::process::ExitCode;
use std::sync::Arc;
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
    /// Name of the Kubernetes Service whose endpoints are all replicas
    #[arg(long, env = "ELASTIC_REPLICA_SERVICE", value_name = "NAME")]
    replica_service: Option<String>,
    /// Namespace of that Service [default: the one of the pod or of the kubeconfig]
    #[arg(long, env = "ELASTIC_NAMESPACE", value_name = "NAME", requires = "replica_service")]
    namespace: Option<String>,
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

/// Who a dispatcher works with.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Base URL of the monitor.
    pub monitor: Option<String>,
    /// Base URLs of replicas.
    pub replicas: Vec<String>,
    /// `NAME:PORT` whose DNS addresses are all replicas.
    pub replica_dns: Option<String>,
    /// Kubernetes Service whose endpoints are all replicas.
    pub replica_service: Option<Service>,
}

/// A Kubernetes Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace; the one of the pod or of the kubeconfig without it.
    pub namespace: Option<String>,
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
        settings.check()?;
        let base_url = |flag: &'static str, url: &str| client::base_url(url).context(flag);
        let monitor = peers.monitor.map(|url| base_url("--monitor", &url)).transpose()?;
        let replica = |url: &String| {
            ensure!(!url.starts_with("https:"), "--replica {url}: replicas are reached over plain http");
            base_url("--replica", url)
        };
        let replicas = peers.replicas.iter().map(replica).collect::<Result<_, _>>()?;
        if let Some(name) = &peers.replica_dns {
            let port = name.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            ensure!(port.is_some(), "--replica-dns {name}: write NAME:PORT, as in model:8081");
        }
        let peers = Peers { monitor, replicas, ..peers };
        Ok(Self { policy, settings, peers, limits })
    }
}

/// Runs a dispatcher until `shutdown` asks it to stop.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let namespace = args.namespace;
    let peers = Peers {
        monitor: args.monitor,
        replicas: args.replicas,
        replica_dns: args.replica_dns,
        replica_service: args.replica_service.map(|name| Service { name, namespace }),
    };
    ensure!(
        !peers.replicas.is_empty()
            || peers.replica_dns.is_some()
            || peers.replica_service.is_some()
            || args.admin_port.is_some(),
        "no way to find replicas: give --replica URL, --replica-dns NAME:PORT, --replica-service NAME or \
         --admin-port PORT"
    );
    let config = Config::new(args.policy, args.settings, peers, args.limits)?;
    let listener = serve::bind(&args.host, args.port).await?;
    let admin = match args.admin_port {
        Some(port) => Some(serve::bind(&args.admin_host, port).await?),
        None => None,
    };
    let shutdown = shutdown.delayed(args.limits.drain_delay);
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
    let looks = Arc::new(probe::Looks::default());
    for discovery in discoveries(&state, admin).await? {
        let fleet = Fleet::new(Arc::clone(&pool), discovery.source(), Arc::clone(&looks));
        tasks.spawn(discovery.run(fleet, background.clone()));
    }
    tasks.spawn(probe::watch(Arc::clone(&state), looks, background.clone()));
    tasks.spawn(reporter.run(pool, background.clone()));
    serve::serve_with(listener, routes::Door::new(state), limits, shutdown).await;
    background.drain();
    tasks.join_all().await;
    Ok(())
}

/// Every way of discovery that the configuration names.
async fn discoveries(
    state: &Arc<State>,
    admin: Option<TcpListener>,
) -> anyhow::Result<Vec<Box<dyn Discovery>>> {
    let Peers { replicas, replica_dns, replica_service, .. } = &state.config.peers;
    let settings = &state.config.settings;
    let mut all: Vec<Box<dyn Discovery>> = vec![Box::new(Listed(replicas.iter().cloned().collect()))];
    if let Some(name) = replica_dns.clone() {
        let (interval, keep) = (settings.probe_interval, settings.forget_after);
        all.push(Box::new(Dns { name, interval, keep }));
    }
    if let Some(Service { name, namespace }) = replica_service.clone() {
        all.push(Box::new(Slices::connect(namespace, name).await?));
    }
    if let Some(listener) = admin {
        tracing::info!(url = serve::local_url(&listener)?, "replicas register here");
        all.push(Box::new(Registrations { listener, state: Arc::clone(state) }));
    }
    Ok(all)
}

/// What the handlers share.
struct State {
    config: Config,
    pool: Arc<Pool>,
    reporter: Arc<report::Reporter>,
    metrics: Arc<metrics::Metrics>,
    shutdown: Shutdown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    /// What the flags default to.
    pub(super) fn config() -> Config {
        let settings = Flags::parse_from(["test"]).settings;
        Config::new(Policy::Central, settings, Peers::default(), Limits::default()).unwrap()
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        let refused = |flags: &[&str], peers: Peers| {
            let settings = Flags::parse_from([&["test"], flags].concat()).settings;
            Config::new(Policy::Central, settings, peers, Limits::default()).unwrap_err().to_string()
        };
        for (flags, says) in [
            (["--deadline", "0s"], "--deadline must be longer than 0"),
            (["--retry-share", "1.5"], "--retry-share must be from 0 to 1"),
            (["--eject-after", "0"], "--eject-after must be at least 1"),
        ] {
            assert_eq!(refused(&flags, Peers::default()), says);
        }
        let listed = |url: &str| Peers { replicas: vec![url.to_owned()], ..Peers::default() };
        assert!(refused(&[], listed("https://a:1")).contains("plain http"));
        let named = Peers { replica_dns: Some("model".to_owned()), ..Peers::default() };
        assert!(refused(&[], named).contains("NAME:PORT"));
    }
}
