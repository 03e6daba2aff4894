//! From flags to what is played.
use crate::load::Args;
use crate::logic::arrivals::{Pace, Plan, Workload};
use crate::net::files::read_text;
use anyhow::Context as _;
use std::path::Path;
use std::time::Duration;

/// Largest workload file, bytes.
const WORKLOAD_BYTES_MAX: u64 = 64 << 20;
/// How long a shape lasts unless told otherwise.
const DURATION: Duration = Duration::from_mins(1);

/// Reads the schedule: a shape, or a file.
pub(crate) fn read(args: &Args) -> anyhow::Result<Plan> {
    let shape = args.schedule.as_deref().and_then(Workload::shape).transpose().context("--schedule")?;
    let (workload, line_s) = match shape {
        Some(shape) => {
            let line_s = args.duration.unwrap_or(DURATION).as_secs_f64() / shape.lines() as f64;
            (shape, line_s)
        }
        None => (file(args.file())?, args.line_seconds),
    };
    let workload = if args.interpolate { workload.interpolated() } else { workload };
    let pace = Pace { line_s, speed: args.speed, scale: args.scale };
    Plan::new(&workload, pace, args.requests_max).with_context(|| format!("schedule {}", args.played()))
}

fn file(path: &Path) -> anyhow::Result<Workload> {
    let text = read_text("workload", path, WORKLOAD_BYTES_MAX).context("name a file with --workload FILE")?;
    Workload::parse(&text).with_context(|| format!("workload {}", path.display()))
}
