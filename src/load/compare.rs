//! Two reports beside each other: is the second better, the same or worse?
//!
//! **Invariant**: the verdict is that of the worst figure; what makes two runs hard to compare is said, and
//! changes no verdict.
use crate::load::USAGE;
use crate::load::args::share;
use crate::load::report::{percent, show};
use anyhow::Context as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest report that is read, bytes.
const REPORT_BYTES_MAX: u64 = 512 << 20;
/// Latencies closer than this are the same, milliseconds: a machine that does nothing else jitters as much.
const LATENCY_MS_NOISE: f64 = 1.0;
/// Shares of missed requests closer than this are the same.
const SHARE_NOISE: f64 = 0.0005;
/// Durations that differ by more than this share are of different runs.
const DURATION_TOLERANCE: f64 = 0.01;

/// Flags of `elastic load compare`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 the same or better, 1 worse, 2 wrong flags or a file that is no report.

Example: elastic load compare before.json after.json --tolerance 10%"
)]
pub(crate) struct Args {
    /// Report of the first run, from --json
    before: PathBuf,
    /// Report of the second run
    after: PathBuf,
    /// How much a figure may change and still be the same
    #[arg(long, env = "ELASTIC_LOAD_TOLERANCE", default_value = "5%", value_parser = share, value_name = "SHARE")]
    tolerance: f64,
}

/// Reads both, prints the comparison and gives the verdict as exit code.
pub(super) fn run(args: &Args) -> ExitCode {
    let read = || anyhow::Ok(Comparison::new(&read(&args.before)?, &read(&args.after)?, args.tolerance)?);
    match read() {
        Ok(comparison) => {
            print!("{comparison}");
            if comparison.verdict() == Change::Worse { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("elastic: {error:#}");
            ExitCode::from(USAGE)
        }
    }
}

/// A report as far as it is compared; of a run, or of a search.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Report {
    Search(Search),
    Run(Box<Run>),
}

#[derive(Clone, Debug, Deserialize)]
struct Search {
    // Tells a search's report from a run's.
    #[serde(rename = "kind")]
    _kind: Kind,
    target: String,
    slo_p99_ms: f64,
    rate_rps: Option<f64>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    FindMax,
}

#[derive(Clone, Debug, Deserialize)]
struct Run {
    workload: String,
    plan: Option<Planned>,
    sent: u64,
    ok: u64,
    failed: u64,
    shed: u64,
    latency_ms: LatencyMs,
    duration_s: f64,
    valid: bool,
    interrupted: bool,
    #[serde(default)]
    models: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Planned {
    arrivals: String,
    seed: Option<u64>,
    interpolate: bool,
    speed: f64,
    scale: f64,
    duration_s: f64,
    requests_expected: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct LatencyMs {
    p50: Option<f64>,
    p99: Option<f64>,
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let file = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {file}"))?.len();
    anyhow::ensure!(size <= REPORT_BYTES_MAX, "{file} is larger than {REPORT_BYTES_MAX} bytes");
    let text = std::fs::read(path).with_context(|| format!("cannot read {file}"))?;
    let advice = "it is no report; make one with elastic load --json FILE";
    serde_json::from_slice(&text).with_context(|| format!("{file}: {advice}"))
}

/// How a figure changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Better,
    Same,
    Worse,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Same => "the same",
            Self::Worse => "worse",
        }
    }
}

/// One figure of both runs.
struct Figure {
    name: &'static str,
    before: Option<f64>,
    after: Option<f64>,
    /// Whether less of it is better.
    less_is_better: bool,
    /// Differences up to this are noise, whatever their share.
    noise: f64,
    show: fn(Option<f64>) -> String,
}

impl Figure {
    fn change(&self, tolerance: f64) -> Change {
        let (before, after) = match (self.before, self.after) {
            (Some(before), Some(after)) => (before, after),
            (None, None) => return Change::Same,
            // What is not there any more was lost, what is there now was won.
            (Some(_), None) => return Change::Worse,
            (None, Some(_)) => return Change::Better,
        };
        let difference = if self.less_is_better { before - after } else { after - before };
        match difference {
            _ if difference.abs() <= self.noise.max(tolerance * before.abs()) => Change::Same,
            _ if difference > 0.0 => Change::Better,
            _ => Change::Worse,
        }
    }

    /// By how much it changed, in words.
    fn difference(&self) -> String {
        match (self.before, self.after) {
            (Some(before), Some(after)) if before > 0.0 => {
                format!("{:+.1} %", (after / before - 1.0) * 100.0)
            }
            _ => "–".to_owned(),
        }
    }
}

/// Two reports beside each other.
struct Comparison {
    figures: Vec<Figure>,
    warnings: Vec<String>,
    tolerance: f64,
}

impl Comparison {
    fn new(before: &Report, after: &Report, tolerance: f64) -> anyhow::Result<Self> {
        let (figures, warnings) = match (before, after) {
            (Report::Run(before), Report::Run(after)) => {
                (run_figures(before, after), run_warnings(before, after))
            }
            (Report::Search(before), Report::Search(after)) => {
                (vec![search_figure(before, after)], search_warnings(before, after))
            }
            _ => anyhow::bail!("one report is of a run and the other of a search (--find-max)"),
        };
        Ok(Self { figures, warnings, tolerance })
    }

    fn verdict(&self) -> Change {
        let changes = || self.figures.iter().map(|figure| figure.change(self.tolerance));
        match () {
            () if changes().any(|change| change == Change::Worse) => Change::Worse,
            () if changes().any(|change| change == Change::Better) => Change::Better,
            () => Change::Same,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20}{:>12}{:>12}{:>12}", "", "before", "after", "change")?;
        for figure in &self.figures {
            let (before, after) = ((figure.show)(figure.before), (figure.show)(figure.after));
            let change = figure.change(self.tolerance).name();
            writeln!(f, "{:<20}{before:>12}{after:>12}{:>12}  {change}", figure.name, figure.difference())?;
        }
        writeln!(f)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        let verdict = self.verdict();
        let decisive: Vec<&str> = self
            .figures
            .iter()
            .filter(|figure| verdict != Change::Same && figure.change(self.tolerance) == verdict)
            .map(|figure| figure.name)
            .collect();
        let tolerance = percent(self.tolerance);
        match decisive[..] {
            [] => writeln!(f, "the second run is the same, within {tolerance}"),
            _ => writeln!(
                f,
                "the second run is {}, by over {tolerance}: {}",
                verdict.name(),
                decisive.join(", ")
            ),
        }
    }
}

fn run_figures(before: &Run, after: &Run) -> Vec<Figure> {
    let latency = |name, of: fn(&LatencyMs) -> Option<f64>| Figure {
        name,
        before: of(&before.latency_ms),
        after: of(&after.latency_ms),
        less_is_better: true,
        noise: LATENCY_MS_NOISE,
        show,
    };
    let share = |run: &Run| (run.sent > 0).then(|| (run.failed + run.shed) as f64 / run.sent as f64);
    let rate = |run: &Run| (run.duration_s > 0.0).then(|| run.ok as f64 / run.duration_s);
    vec![
        latency("p50 in ms", |latency| latency.p50),
        latency("p99 in ms", |latency| latency.p99),
        Figure {
            name: "failed or shed",
            before: share(before),
            after: share(after),
            less_is_better: true,
            noise: SHARE_NOISE,
            show: |share| share.map_or_else(|| "–".to_owned(), percent),
        },
        Figure {
            name: "answered a second",
            before: rate(before),
            after: rate(after),
            less_is_better: false,
            noise: 0.0,
            show,
        },
    ]
}

fn search_figure(before: &Search, after: &Search) -> Figure {
    let (before, after) = (before.rate_rps, after.rate_rps);
    Figure { name: "highest rate in rps", before, after, less_is_better: false, noise: 0.0, show }
}

/// What differs, in words.
fn differs(warnings: &mut Vec<String>, what: &str, before: impl fmt::Display, after: impl fmt::Display) {
    let (before, after) = (before.to_string(), after.to_string());
    if before != after {
        warnings.push(format!("not the same {what}: {before} and {after}"));
    }
}

fn run_warnings(before: &Run, after: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, run) in [("first", before), ("second", after)] {
        if run.interrupted {
            warnings.push(format!("the {name} run was interrupted"));
        } else if !run.valid {
            warnings.push(format!("the {name} run is not to be trusted: the generator itself lagged"));
        }
    }
    differs(&mut warnings, "schedule", &before.workload, &after.workload);
    let models = |run: &Run| run.models.keys().cloned().collect::<Vec<_>>().join(", ");
    differs(&mut warnings, "network", models(before), models(after));
    let (Some(before), Some(after)) = (&before.plan, &after.plan) else {
        warnings.push("an older report does not say how it was played".to_owned());
        return warnings;
    };
    let seed = |plan: &Planned| plan.seed.map_or_else(|| "none".to_owned(), |seed| seed.to_string());
    differs(&mut warnings, "arrivals", &before.arrivals, &after.arrivals);
    if before.arrivals == after.arrivals {
        differs(&mut warnings, "seed", seed(before), seed(after));
    }
    differs(&mut warnings, "interpolation", before.interpolate, after.interpolate);
    differs(&mut warnings, "speed", before.speed, after.speed);
    differs(&mut warnings, "scale", before.scale, after.scale);
    if (before.duration_s - after.duration_s).abs() > DURATION_TOLERANCE * before.duration_s {
        differs(&mut warnings, "duration, seconds", before.duration_s, after.duration_s);
    } else {
        differs(&mut warnings, "number of requests", before.requests_expected, after.requests_expected);
    }
    warnings
}

fn search_warnings(before: &Search, after: &Search) -> Vec<String> {
    let mut warnings = Vec::new();
    differs(&mut warnings, "promise, ms", before.slo_p99_ms, after.slo_p99_ms);
    differs(&mut warnings, "seed", before.seed, after.seed);
    for (name, search) in [("first", before), ("second", after)] {
        if search.rate_rps.is_none() {
            warnings.push(format!("the {name} search, at {}, confirmed no rate", search.target));
        }
    }
    warnings
}

#[cfg(test)]
mod tests;
