//! An open-loop load generator: plays a schedule, judges the latency promise, and finds the highest rate.
//!
//! In reading order: `args` are the flags; `plan` reads the schedule; `pacer` waits for its instants; `send` is
//! the one loop; `target` one exchange; `record`, `latencies` and `outcome` what became of them; `report` what
//! a run found, `html` the same as a page, `fleet` what the monitor and the autoscaler say about it; `find`
//! searches; `compare` sets two reports beside each other.
//!
//! **Invariant**: what is sent when follows from the flags alone, never from how the target answers.
mod args;
mod compare;
mod find;
mod fleet;
mod html;
mod latencies;
mod outcome;
mod pacer;
mod photos;
mod plan;
mod progress;
mod record;
mod report;
mod send;
mod target;

pub use args::Args;

use crate::logic::arrivals::{Plan, Spacing};
use crate::net::clock::unix_time;
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use args::Verb;
use fleet::Fleet;
use pacer::ThreadPacer;
use record::{Counting, Record, Snapshot};
use report::{Judgement, Report};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use target::Target;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Exit code where flags contradict each other; the same as clap's.
const USAGE: u8 = 2;
/// Exit code of a run that a signal ended, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Plays the schedule, prints the report and gives the verdict as exit code.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    if let Some(Verb::Compare(args)) = &args.verb {
        return Ok(compare::run(args));
    }
    if let Err(error) = args.check() {
        eprintln!("elastic: {error:#}");
        return Ok(ExitCode::from(USAGE));
    }
    if args.find.find_max {
        let target = ready_target(&args, &shutdown).await?;
        return find::run(&args, target, shutdown).await;
    }
    let plan = plan::read(&args)?;
    let target = ready_target(&args, &shutdown).await?;
    let report = replay(&args, plan, target, shutdown).await?;
    write(&report, args.json.as_deref())?;
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&report))
            .with_context(|| format!("cannot write the page to {}", path.display()))?;
    }
    Ok(match () {
        () if report.interrupted => ExitCode::from(INTERRUPTED),
        () if report.is_good() => ExitCode::SUCCESS,
        () => ExitCode::FAILURE,
    })
}

/// The target, once it is ready.
async fn ready_target(args: &Args, shutdown: &Shutdown) -> anyhow::Result<Arc<Target>> {
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
        target.wait_until_ready(args.wait, shutdown).await?;
    }
    Ok(Arc::new(target))
}

async fn replay(args: &Args, plan: Plan, target: Arc<Target>, shutdown: Shutdown) -> anyhow::Result<Report> {
    let (progress, snapshots) = watch::channel(Snapshot::default());
    let mut fleet = Fleet::new(args)?;
    // Last of all: what takes time from here on is lag.
    let (start, started_unix_s) = (Instant::now(), unix_time().as_secs_f64());
    let shown = async {
        if !args.quiet {
            progress::show(snapshots.clone(), plan.duration(), plan.requests_expected()).await;
        }
    };
    let playing = Playing {
        plan: &plan,
        spacing: args.spacing(),
        start,
        counting: Counting::ALL,
        in_flight_max: args.in_flight_max,
        shutdown,
    };
    // Both of the others end when the send loop drops its sender.
    let (sent, (), ()) =
        tokio::join!(play(playing, progress, target), shown, fleet.watch(start, snapshots.clone()));
    let (record, interrupted) = sent?;
    let judgement = Judgement {
        target: args.target.to_string(),
        plan: report::Planned::new(args, &plan),
        seconds_planned: plan.expected_by_second(),
        started_unix_s,
        timeout: args.timeout,
        lag_max: args.lag_max,
        slo_p99: args.slo_p99,
        failed_max: args.failed_max,
        interrupted,
        fleet: fleet.seen(),
    };
    Ok(Report::new(&record, judgement))
}

/// What is played on which target.
struct Playing<'a> {
    plan: &'a Plan,
    spacing: Spacing,
    start: Instant,
    counting: Counting,
    in_flight_max: usize,
    shutdown: Shutdown,
}

/// Plays a plan on a worker of the runtime. The flag tells whether it was stopped before the end.
async fn play(
    playing: Playing<'_>,
    progress: watch::Sender<Snapshot>,
    target: Arc<Target>,
) -> anyhow::Result<(Record, bool)> {
    let run = send::Run {
        plan: playing.plan.clone(),
        pacer: ThreadPacer::new(playing.plan, playing.spacing, playing.start)?,
        start: playing.start,
        counting: playing.counting,
        in_flight_max: playing.in_flight_max,
        shutdown: playing.shutdown,
        progress,
    };
    let mut loops = JoinSet::new();
    loops.spawn(send::send(run, target));
    loops
        .join_next()
        .await
        .context("the send loop is gone")?
        .context("the send loop did not end by itself")?
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
