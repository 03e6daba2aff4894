//! The command line: one variant and one match arm per mode.
use crate::net::shutdown::Shutdown;
use crate::net::telemetry;
use crate::{autoscale, classify, dispatch, load, monitor, serve_model, simulate, up, weights};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;

/// Serves image classification and keeps its latency promise by itself.
#[derive(Debug, Parser)]
#[command(name = "elastic", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Logging, the same for every mode.
    #[command(flatten)]
    pub log: telemetry::Args,
    /// The mode to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The modes of the executable.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: dispatcher, monitor, autoscaler, and replicas as child processes
    Up(up::Args),
    /// Serve one model replica over HTTP
    ServeModel(serve_model::Args),
    /// Route requests to model replicas through one queue
    Dispatch(dispatch::Args),
    /// Keep a rolling window of latencies; serve /stats, /metrics and the live page
    Monitor(monitor::Args),
    /// Watch the monitor and change the number of replicas
    Autoscale(autoscale::Args),
    /// Replay a workload against a dispatcher, open loop, and judge the latency promise
    Load(Box<load::Args>),
    /// Play a workload or a recorded run in simulated time: what would rules that scale cost and miss?
    Simulate(Box<simulate::Args>),
    /// Label image files from the command line
    Classify(classify::Args),
    /// Fetch and convert weights
    Weights(weights::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Runs the mode until it is done or `shutdown` asks it to stop.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
        crate::net::serve::raise_open_files_limit();
        match self {
            Self::Up(args) => Box::pin(up::run(args, shutdown)).await,
            Self::ServeModel(args) => serve_model::run(args, shutdown).await,
            Self::Dispatch(args) => dispatch::run(args, shutdown).await,
            Self::Monitor(args) => monitor::run(args, shutdown).await,
            Self::Autoscale(args) => autoscale::run(args, shutdown).await,
            Self::Load(args) => load::run(*args, shutdown).await,
            Self::Simulate(args) => simulate::run(*args, shutdown).await,
            Self::Classify(args) => classify::run(args).await,
            Self::Weights(args) => weights::run(args).await,
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "elastic", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
