//! One model replica over HTTP.
//!
//! **Invariant**: inference runs on the worker threads alone; a handler only reads, waits and writes.
mod ask;
pub mod dialects;
mod job;
mod line;
mod metrics;
mod observe;
mod presence;
mod routes;
mod worker;

pub use job::Input;

use crate::model::{Model, ModelArgs};
use crate::net::serve::{self, Limits, duration};
use crate::net::{client, shutdown::Shutdown};
use anyhow::{Context as _, ensure};
use dialects::Bounds;
use routes::router;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;
use worker::Workers;

/// Flags of `elastic serve-model`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port to listen on (0 takes a free one)
    #[arg(long, env = "ELASTIC_LISTEN_PORT", default_value_t = 8081, value_name = "PORT")]
    port: u16,
    /// Address to listen on; 0.0.0.0 for every interface
    #[arg(long, env = "ELASTIC_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    settings: Settings,
    /// Base URL of a dispatcher's registration port, where this replica says that it is ready
    #[arg(long, env = "ELASTIC_REGISTER", value_name = "URL")]
    register: Option<String>,
    /// Base URL under which the dispatcher reaches this replica, if it is not the address listened on
    #[arg(long, env = "ELASTIC_ADVERTISE", value_name = "URL", requires = "register")]
    advertise: Option<String>,
    /// Run as a child: write a line of JSON to standard output when ready; drain when standard input closes
    #[arg(long, hide_short_help = true)]
    child: bool,
    #[command(flatten)]
    limits: Limits,
}

/// How a replica works.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "serve_model_settings")]
pub struct Settings {
    /// Worker threads, each with one batch at a time [default: the CPUs that the cgroup allows]
    #[arg(long, env = "ELASTIC_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Most images that a worker infers together. With more than 1, an image may wait for others while its
    /// deadline and the measured service times say that this pays off
    #[arg(long, env = "ELASTIC_BATCH_MAX", default_value_t = 1, value_name = "N")]
    pub batch_max: usize,
    /// Slots announced beyond those of the workers. One hides the way to the dispatcher and back, but binds a request to
    /// this replica before it is free
    #[arg(long, env = "ELASTIC_SLOTS_EXTRA", default_value_t = 0, value_name = "N")]
    pub slots_extra: usize,
    /// Images that may wait for a worker; further ones are answered 503 at once
    #[arg(long, env = "ELASTIC_QUEUE_MAX", default_value_t = 64, value_name = "N")]
    pub queue_max: usize,
    /// Most images in one request of the dialects that take several; never more than --queue-max, or one
    #[arg(long, env = "ELASTIC_INSTANCES_MAX", default_value_t = 16, value_name = "N")]
    pub instances_max: usize,
    /// Name that stands for the network in paths, beside its own
    #[arg(long, env = "ELASTIC_MODEL_ALIAS", default_value = "default", value_name = "NAME")]
    pub model_alias: String,
    /// Largest request body, bytes
    #[arg(long, env = "ELASTIC_BODY_BYTES_MAX", default_value_t = 10 << 20, value_name = "BYTES")]
    pub body_bytes_max: usize,
    /// Longest time a request's body may take to arrive
    #[arg(long, env = "ELASTIC_BODY_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub body_timeout: Duration,
    /// Longest time an image may wait and be worked on; a shorter x-elastic-deadline-ms header wins
    #[arg(long, env = "ELASTIC_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Hold every answer until its image has been worked on for so long, as if the CPU were slower: lets a
    /// small machine carry enough replicas to show the scaling [default: off]
    #[arg(long, env = "ELASTIC_PACE", value_parser = duration, value_name = "TIME")]
    pub pace: Option<Duration>,
}

/// What the handlers share.
struct State {
    model: Arc<Model>,
    workers: Workers,
    settings: Settings,
    metrics: Arc<metrics::Metrics>,
    shutdown: Shutdown,
}

impl State {
    /// What the parsers have to know.
    fn bounds(&self) -> Bounds {
        Bounds { instances_max: self.settings.instances_max, side: self.model.input_size() }
    }
}

/// Runs a replica until `shutdown` asks it to stop.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let shutdown = shutdown.delayed(args.limits.drain_delay);
    let register = args.register.as_deref().map(client::base_url).transpose().context("--register")?;
    let advertise = args.advertise.as_deref().map(client::base_url).transpose().context("--advertise")?;
    if args.child {
        presence::drain_with_parent(&shutdown)?;
    }
    let listener = serve::bind(&args.host, args.port).await?;
    let url = serve::local_url(&listener)?;
    let model_args = args.model.clone();
    let (settings, draining) = (args.settings.clone(), shutdown.clone());
    let state = tokio::task::spawn_blocking(move || state(Model::load(&model_args)?, settings, draining));
    let state = state.await??;
    let slots = state.workers.slots();
    let startup_ms = started.elapsed().as_millis() as u64;
    tracing::info!(url, model = state.model.name(), slots, startup_ms, "replica ready");
    if let Some(pace) = args.settings.pace {
        tracing::warn!(?pace, "answers are held back: this replica is slower than its CPU");
    }
    let presence = presence::Presence {
        register,
        url: advertise.unwrap_or(url),
        slots: slots as u32,
        announce: args.child,
        startup_ms,
    };
    presence::with(presence, &shutdown, |until| serve::serve(listener, router(state), args.limits, until))
        .await?;
    Ok(ExitCode::SUCCESS)
}

/// Serves a loaded model; `run` does the same from flags.
pub async fn serve(
    listener: TcpListener,
    model: Model,
    settings: Settings,
    limits: Limits,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let state = state(model, settings, shutdown.clone())?;
    serve::serve(listener, router(state), limits, shutdown).await;
    Ok(())
}

fn state(model: Model, mut settings: Settings, shutdown: Shutdown) -> anyhow::Result<Arc<State>> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = settings.threads.unwrap_or((cpus / model.threads_per_image()).max(1));
    ensure!((1..=1024).contains(&threads), "--threads must be from 1 to 1024");
    ensure!((1..=64).contains(&settings.batch_max), "--batch-max must be from 1 to 64");
    ensure!(settings.slots_extra <= 1024, "--slots-extra must be at most 1024");
    ensure!((1..=1024).contains(&settings.instances_max), "--instances-max must be from 1 to 1024");
    // A request of more images than may ever wait could never be taken.
    settings.instances_max = settings.instances_max.min(settings.queue_max.max(1));
    ensure!(!settings.timeout.is_zero(), "--timeout must be longer than 0");
    let model = Arc::new(model);
    let metrics = Arc::new(metrics::Metrics::new(model.name()));
    let workers = Workers::start(threads, &settings, &model, &metrics)?;
    Ok(Arc::new(State { model, workers, settings, metrics, shutdown }))
}
