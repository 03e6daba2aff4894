//! An open-loop load generator: replays a workload file and judges the latency promise.
//!
//! **Invariant**: what is sent when follows from the flags alone, never from how the target answers.
mod photos;
mod progress;
mod record;
mod report;
mod send;
mod target;

use crate::logic::arrivals::{Pace, Plan, Spacing, Workload};
use crate::net::serve::duration;
use crate::net::shutdown::Shutdown;
use anyhow::{Context as _, ensure};
use report::{Judgement, Report};
use reqwest::Url;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use target::Target;
use tokio::sync::watch;

/// Largest workload file, bytes.
const WORKLOAD_BYTES_MAX: u64 = 64 << 20;

/// Flags of `elastic load`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 the promise held (or none was asked for), 1 it did not, the run cannot be \
trusted or was interrupted, or nothing was answered; 2 wrong flags.

Example: elastic load --workload workload.txt --target http://127.0.0.1:8080 --slo-p99 500ms"
)]
pub struct Args {
    /// File with one rate a line, requests per second
    #[arg(long, env = "ELASTIC_LOAD_WORKLOAD", default_value = "workload.txt", value_name = "FILE")]
    workload: PathBuf,
    /// URL of the service; /predict is added where it has no path
    #[arg(long, env = "ELASTIC_LOAD_TARGET", default_value = "http://127.0.0.1:8080", value_parser = target::url, value_name = "URL")]
    target: Url,
    /// How long a line of the workload lasts, seconds
    #[arg(long, env = "ELASTIC_LOAD_LINE_SECONDS", default_value_t = 1.0, value_name = "SECONDS")]
    line_seconds: f64,
    /// Divides how long a line lasts; rates stay
    #[arg(long, env = "ELASTIC_LOAD_SPEED", default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
    /// Multiplies every rate; how long a line lasts stays
    #[arg(long, env = "ELASTIC_LOAD_SCALE", default_value_t = 1.0, value_name = "FACTOR")]
    scale: f64,
    /// Random arrivals (a Poisson process) instead of evenly spaced ones
    #[arg(long, env = "ELASTIC_LOAD_POISSON")]
    poisson: bool,
    /// Seed of the random arrivals; the same seed gives the same instants
    #[arg(long, env = "ELASTIC_LOAD_SEED", default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Folder of the photos to send, in turn
    #[arg(long, env = "ELASTIC_LOAD_PHOTOS", default_value = "tests/photos", value_name = "DIR")]
    photos: PathBuf,
    /// Most bytes of photos held in memory
    #[arg(long, env = "ELASTIC_LOAD_PHOTOS_BYTES_MAX", default_value_t = 1 << 30, value_name = "BYTES")]
    photos_bytes_max: u64,
    /// Longest time to wait for an answer; then the request has failed
    #[arg(long, env = "ELASTIC_LOAD_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// Deadline told to the service with every request, counted from the scheduled instant [default: none]
    #[arg(long, env = "ELASTIC_LOAD_DEADLINE", value_parser = duration, value_name = "TIME")]
    deadline: Option<Duration>,
    /// Requests under way at once; one more fails as `cap`
    #[arg(long, env = "ELASTIC_LOAD_IN_FLIGHT_MAX", default_value_t = 4096, value_name = "N")]
    in_flight_max: usize,
    /// Largest answer to read, bytes
    #[arg(long, env = "ELASTIC_LOAD_ANSWER_BYTES_MAX", default_value_t = 1 << 20, value_name = "BYTES")]
    answer_bytes_max: usize,
    /// Most requests that a run may send
    #[arg(long, env = "ELASTIC_LOAD_REQUESTS_MAX", default_value_t = 10_000_000, value_name = "N")]
    requests_max: u64,
    /// How long to wait for the service to be ready before the first request; 0s does not look
    #[arg(long, env = "ELASTIC_LOAD_WAIT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    wait: Duration,
    /// Promise to judge: the 99th percentile from the scheduled instant must be at most this [default: none]
    #[arg(long, env = "ELASTIC_LOAD_SLO_P99", value_parser = duration, value_name = "TIME")]
    slo_p99: Option<Duration>,
    /// Lag of the generator itself (99th percentile) above which the run is not to be trusted
    #[arg(long, env = "ELASTIC_LOAD_LAG_MAX", default_value = "50ms", value_parser = duration, value_name = "TIME")]
    lag_max: Duration,
    /// Also write the report as JSON to this file; `-` writes it to standard output instead of the table
    #[arg(long, env = "ELASTIC_LOAD_JSON", value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress, only the report
    #[arg(long, short, env = "ELASTIC_LOAD_QUIET")]
    quiet: bool,
}

/// Replays the workload, prints the report and gives the verdict as exit code.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let plan = plan(&args)?;
    let photos = photos::read(&args.photos, args.photos_bytes_max)?;
    let settings = target::Settings {
        url: args.target.clone(),
        timeout: args.timeout,
        deadline: args.deadline,
        answer_bytes_max: args.answer_bytes_max,
        connections_max: args.in_flight_max,
    };
    let target = Target::new(settings, photos)?;
    if !args.wait.is_zero() {
        target.wait_until_ready(args.wait, &shutdown).await?;
    }
    let spacing = if args.poisson { Spacing::Poisson { seed: args.seed } } else { Spacing::Even };
    let (sender, receiver) = watch::channel(record::Snapshot::default());
    let run =
        send::Run { plan: &plan, spacing, in_flight_max: args.in_flight_max, shutdown, progress: sender };
    let progress = async {
        if !args.quiet {
            progress::show(receiver, plan.duration(), plan.requests_expected()).await;
        }
    };
    // Progress ends when the send loop drops its sender.
    let (sent, ()) = tokio::join!(send::send(run, target), progress);
    let (record, interrupted) = sent?;
    let judgement = Judgement {
        target: args.target.to_string(),
        workload: args.workload.display().to_string(),
        timeout: args.timeout,
        lag_max: args.lag_max,
        slo_p99: args.slo_p99,
        interrupted,
    };
    let report = Report::new(&record, &judgement);
    write(&report, args.json.as_deref())?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    ensure!(!args.timeout.is_zero(), "--timeout must be longer than 0");
    ensure!(args.in_flight_max > 0, "--in-flight-max must be at least 1");
    let file = args.workload.display();
    let size = std::fs::metadata(&args.workload)
        .with_context(|| format!("cannot read the workload {file}; name a file with --workload FILE"))?
        .len();
    ensure!(size <= WORKLOAD_BYTES_MAX, "the workload {file} is larger than {WORKLOAD_BYTES_MAX} bytes");
    let text = std::fs::read_to_string(&args.workload)
        .with_context(|| format!("cannot read the workload {file}"))?;
    let workload = Workload::parse(&text).with_context(|| format!("workload {file}"))?;
    let pace = Pace { line_s: args.line_seconds, speed: args.speed, scale: args.scale };
    Plan::new(&workload, pace, args.requests_max).with_context(|| format!("workload {file}"))
}

fn write(report: &Report, json: Option<&Path>) -> anyhow::Result<()> {
    if json == Some(Path::new("-")) {
        println!("{}", report.to_json()?);
        return Ok(());
    }
    print!("{report}");
    if let Some(path) = json {
        std::fs::write(path, report.to_json()? + "\n")
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    Ok(())
}
