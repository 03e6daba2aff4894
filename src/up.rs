//! Everything on this machine: dispatcher, monitor and autoscaler in this process, replicas as its children.
//!
//! **Invariant**: nothing is left running when this process ends, however it ends.
use crate::autoscale::processes::{ProcessScaler, Spawn};
use crate::autoscale::{self, Scaler};
use crate::dispatch;
use crate::model::ModelArgs;
use crate::monitor;
use crate::net::files::write_atomically;
use crate::net::serve::{self, Limits, duration};
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Flags of `elastic up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Ctrl-C drains: requests under way are answered, then replicas and all end.")]
pub struct Args {
    /// Port of the dispatcher (0 takes a free one)
    #[arg(long, env = "ELASTIC_LISTEN_PORT", default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Port of the monitor and its live page (0 takes a free one)
    #[arg(long, env = "ELASTIC_MONITOR_LISTEN_PORT", default_value_t = 8090, value_name = "PORT")]
    monitor_port: u16,
    /// Port of the autoscaler's /decisions (0 takes a free one)
    #[arg(long, env = "ELASTIC_AUTOSCALE_LISTEN_PORT", default_value_t = 8083, value_name = "PORT")]
    autoscale_port: u16,
    /// Address that dispatcher, monitor and autoscaler listen on; 0.0.0.0 for every interface
    #[arg(long, env = "ELASTIC_LISTEN_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// File to write the addresses to, as JSON, once everything listens
    #[arg(long, env = "ELASTIC_ADDRESSES", value_name = "FILE")]
    addresses: Option<PathBuf>,
    /// Worker threads of a replica
    #[arg(long, env = "ELASTIC_THREADS", default_value_t = 1, value_name = "N")]
    threads: usize,
    /// Most images that a worker of a replica infers together
    #[arg(long, env = "ELASTIC_BATCH_MAX", default_value_t = 1, value_name = "N")]
    batch_max: usize,
    /// Hold every answer of a replica until its image has been worked on for so long, as if the CPU were
    /// slower: lets a small machine carry enough replicas to show the scaling [default: off]
    #[arg(long, env = "ELASTIC_PACE", value_parser = duration, value_name = "TIME")]
    pace: Option<Duration>,
    #[command(flatten)]
    model: ModelArgs,
    /// How the dispatcher binds requests to replicas
    #[arg(long, env = "ELASTIC_DISPATCH_POLICY", default_value = "central", value_name = "POLICY")]
    dispatch_policy: dispatch::Policy,
    #[command(flatten)]
    dispatch: dispatch::Settings,
    #[command(flatten)]
    autoscale: autoscale::Settings,
    #[command(flatten)]
    limits: Limits,
}

/// Where everything is reached.
#[derive(Debug, Serialize)]
struct Addresses {
    dispatch: String,
    monitor: String,
    autoscale: String,
}

/// Runs everything until `shutdown` asks it to stop.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let limits = args.limits;
    let shutdown = shutdown.delayed(limits.drain_delay);
    let front = serve::bind(&args.host, args.port).await.context("dispatcher")?;
    let watch = serve::bind(&args.host, args.monitor_port)
        .await
        .context("monitor (--monitor-port picks its port)")?;
    let decide = serve::bind(&args.host, args.autoscale_port)
        .await
        .context("autoscaler (--autoscale-port picks its port)")?;
    // Whoever reaches this one can direct traffic: never on an outside interface.
    let registration = serve::bind("127.0.0.1", 0).await?;
    let addresses = Addresses {
        dispatch: serve::local_url(&front)?,
        monitor: serve::local_url(&watch)?,
        autoscale: serve::local_url(&decide)?,
    };

    let replica_args = replica_args(&args, &serve::local_url(&registration)?);
    let scaler = ProcessScaler::new(
        Spawn::this_executable(replica_args, limits.drain_timeout)?,
        args.autoscale.replicas_min,
    );
    let autoscaler = autoscale::Config::new(&args.autoscale, &addresses.monitor, false, limits)?;
    let peers = dispatch::Peers { monitor: Some(addresses.monitor.clone()), ..dispatch::Peers::default() };
    let dispatcher = dispatch::Config::new(args.dispatch_policy, args.dispatch, peers, limits)?;
    let monitor = monitor::Config {
        decisions: Some(addresses.autoscale.parse()?),
        target_latency: args.autoscale.p99_target,
        limits,
        ..monitor::Config::default()
    };
    announce(&addresses, args.addresses.as_deref())?;

    // The dispatcher drains first, while replicas still answer; then the replicas; the monitor hears it all.
    let (front_stop, replicas_stop, watch_stop) = (shutdown.child(), Shutdown::new(), Shutdown::new());
    let dispatching = async {
        let ended = dispatch::serve(front, Some(registration), dispatcher, front_stop.clone()).await;
        replicas_stop.drain();
        ended
    };
    let scaling = async {
        let ended =
            autoscale::serve(decide, autoscaler, Scaler::Processes(scaler), replicas_stop.clone()).await;
        watch_stop.drain();
        ended
    };
    let everything =
        async { tokio::try_join!(dispatching, scaling, monitor::serve(watch, monitor, watch_stop.clone())) };
    tokio::select! {
        ended = everything => ended.map(drop)?,
        () = shutdown.aborted() => tracing::warn!("stopped before everything had drained"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Flags of `serve-model` for every child.
fn replica_args(args: &Args, registration: &str) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["--host".into(), "127.0.0.1".into()];
    let mut flag = |name: &str, value: OsString| flags.extend([name.into(), value]);
    flag("--register", registration.into());
    flag("--threads", args.threads.to_string().into());
    flag("--batch-max", args.batch_max.to_string().into());
    flag("--timeout", format!("{}us", args.dispatch.timeout.as_micros()).into());
    flag("--body-bytes-max", args.dispatch.body_bytes_max.to_string().into());
    flag("--drain-timeout", format!("{}us", args.limits.drain_timeout.as_micros()).into());
    if let Some(pace) = args.pace {
        flag("--pace", format!("{}us", pace.as_micros()).into());
    }
    let ModelArgs { model, weights, weights_dir, pixels_max, isa, precision, threads_per_image } =
        &args.model;
    flag("--weights-dir", weights_dir.into());
    flag("--pixels-max", pixels_max.to_string().into());
    flag("--threads-per-image", threads_per_image.to_string().into());
    if let Some(model) = model {
        flag("--model", model.into());
    }
    if let Some(weights) = weights {
        flag("--weights", weights.into());
    }
    if let Some(isa) = isa {
        flag("--isa", isa.to_string().into());
    }
    if let Some(precision) = precision {
        flag("--precision", precision.to_string().into());
    }
    flags
}

/// Tells people and programs where everything is; the line that starts with `ready` is the last.
fn announce(addresses: &Addresses, file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = file {
        // Whoever waits for the file must never read half of it.
        write_atomically(path, &serde_json::to_vec(addresses)?)?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "live page   {}/", addresses.monitor)?;
    writeln!(out, "decisions   {}/decisions", addresses.autoscale)?;
    writeln!(out, "ready for   curl --data-binary @photo.jpg {}/predict", addresses.dispatch)?;
    Ok(out.flush()?)
}
