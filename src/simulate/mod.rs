//! What a rule would have cost and missed: the code of [`crate::logic`] in simulated time, on a workload or on what
//! a monitor recorded.
//!
//! In reading order: `args` are the flags; `plan` what is played; `record` what a monitor recorded; `play` runs it;
//! `summary` the figures of a run; `table` and `html` show them; `progress` says how far it is.
//!
//! **Invariant**: equal flags, files and seeds give equal output.
mod args;
mod html;
mod plan;
mod play;
mod progress;
mod record;
mod summary;
mod table;

pub use args::Args;

use crate::net::files::write_atomically;
use crate::net::shutdown::Shutdown;
use plan::Planned;
use play::Progress;
use std::io::Write as _;
use std::process::ExitCode;
use summary::{Common, Row, Run};

/// Exit code where flags, workload or record are wrong; the same as clap's.
const USAGE: u8 = 2;
/// Exit code where a signal came first, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// What was simulated and what came of it.
#[derive(Debug)]
struct Report {
    planned: Planned,
    common: Common,
    /// What really happened comes first, where that is known.
    runs: Vec<Run>,
}

/// Plays every rule with every way to dispatch and prints what came of it.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let planned = tokio::select! {
        planned = Planned::read(&args) => planned,
        () = shutdown.drained() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(error) => {
            eprintln!("elastic: {error:#}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let report = tokio::select! {
        report = simulate(planned, args.quiet) => report?,
        () = shutdown.drained() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let text = if args.json { report.json()? } else { table::text(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    if let Some(path) = &args.html {
        write_atomically(path, html::page(&report).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn simulate(planned: Planned, quiet: bool) -> anyhow::Result<Report> {
    let progress = Progress::new(&planned.playing);
    let playing = play::all(planned.playing.clone(), progress.clone());
    let played = if quiet {
        playing.await?
    } else {
        tokio::select! { played = playing => played?, never = progress::show(&progress) => match never {} }
    };
    let common = Common {
        duration: planned.playing.requests.duration(),
        replicas_start: planned.playing.settings.replicas_start,
        clairvoyant_replica_s: played.clairvoyant_replica_s,
    };
    let recorded = planned.record.as_ref().map(Run::recorded);
    let simulated = planned.playing.pairs.iter().zip(played.outcomes).map(|((policy, dispatch), outcome)| {
        Run::simulated(policy.to_string(), args::dispatch_name(*dispatch), outcome, &common)
    });
    let runs = recorded.into_iter().chain(simulated).collect();
    Ok(Report { planned, common, runs })
}

impl Report {
    /// The simulated runs as programs read them: an array with an object for each.
    fn json(&self) -> anyhow::Result<String> {
        let rows: Vec<&Row> = self.runs.iter().filter(|run| !run.recorded).map(|run| &run.row).collect();
        Ok(serde_json::to_string_pretty(&rows)? + "\n")
    }
}

#[cfg(test)]
mod tests;
