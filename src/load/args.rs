//! The flags of `elastic load`.
//!
//! **Invariant**: what [`Args::check`] passes contradicts itself nowhere; files are looked at later.
use crate::load::{compare, target};
use crate::logic::arrivals::{Spacing, Workload};
use crate::net::serve::duration;
use anyhow::{Context as _, ensure};
use reqwest::Url;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Flags of `elastic load`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 the promise held (or none was asked for), 1 it did not, the run cannot be \
trusted, or nothing was answered; 2 wrong flags; 130 interrupted.

Examples:
  elastic load --workload workload.txt --target http://127.0.0.1:8080 --slo-p99 500ms
  elastic load --schedule ramp:10..100 --duration 5m --arrivals poisson --html report.html
  elastic load --find-max --slo-p99 330ms
  elastic load compare before.json after.json"
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// File with one rate a line, requests per second
    #[arg(long, env = "ELASTIC_LOAD_WORKLOAD", default_value = "workload.txt", value_name = "FILE")]
    pub(crate) workload: PathBuf,
    /// Instead of --workload: constant:RATE, ramp:FROM..TO, step:RATE,RATE,… (requests per second) or a file
    #[arg(long, env = "ELASTIC_LOAD_SCHEDULE", conflicts_with = "workload", value_name = "SCHEDULE")]
    pub(crate) schedule: Option<String>,
    /// How long a constant, ramp or step schedule lasts at speed 1 [default: 1m]
    #[arg(long, env = "ELASTIC_LOAD_DURATION", value_parser = duration, value_name = "TIME")]
    pub(crate) duration: Option<Duration>,
    /// How long a line of the workload lasts, seconds
    #[arg(long, env = "ELASTIC_LOAD_LINE_SECONDS", default_value_t = 1.0, value_name = "SECONDS")]
    pub(crate) line_seconds: f64,
    /// Straight lines from the middle of a line or step to the next, instead of jumps; the number of requests stays
    #[arg(long, env = "ELASTIC_LOAD_INTERPOLATE")]
    pub(crate) interpolate: bool,
    /// Divides how long a line or a schedule lasts; rates stay
    #[arg(long, env = "ELASTIC_LOAD_SPEED", default_value_t = 1.0, value_name = "FACTOR")]
    pub(crate) speed: f64,
    /// Multiplies every rate; how long a line lasts stays
    #[arg(long, env = "ELASTIC_LOAD_SCALE", default_value_t = 1.0, value_name = "FACTOR")]
    pub(crate) scale: f64,
    /// How requests are spread: evenly, or at random as a Poisson process [default: even]
    #[arg(long, env = "ELASTIC_LOAD_ARRIVALS", value_enum, value_name = "HOW")]
    pub(crate) arrivals: Option<Arrivals>,
    /// The same as --arrivals poisson
    #[arg(long, env = "ELASTIC_LOAD_POISSON", conflicts_with = "arrivals")]
    pub(crate) poisson: bool,
    /// Seed of the random arrivals; the same seed gives the same instants
    #[arg(long, env = "ELASTIC_LOAD_SEED", default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// URL of the service; /predict is added where it has no path
    #[arg(long, env = "ELASTIC_LOAD_TARGET", default_value = "http://127.0.0.1:8080", value_parser = target::url, value_name = "URL")]
    pub(crate) target: Url,
    /// Folder of the photos to send, in turn
    #[arg(long, env = "ELASTIC_LOAD_PHOTOS", default_value = "tests/photos", value_name = "DIR")]
    pub(crate) photos: PathBuf,
    /// Most bytes of photos held in memory
    #[arg(long, env = "ELASTIC_LOAD_PHOTOS_BYTES_MAX", default_value_t = 1 << 30, value_name = "BYTES")]
    pub(crate) photos_bytes_max: u64,
    /// Longest time to wait for an answer; then the request has failed
    #[arg(long, env = "ELASTIC_LOAD_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Deadline told to the service with every request, counted from the scheduled instant [default: none]
    #[arg(long, env = "ELASTIC_LOAD_DEADLINE", value_parser = duration, value_name = "TIME")]
    pub(crate) deadline: Option<Duration>,
    /// Requests under way at once; one more fails as `cap`
    #[arg(long, env = "ELASTIC_LOAD_IN_FLIGHT_MAX", default_value_t = 4096, value_name = "N")]
    pub(crate) in_flight_max: usize,
    /// Largest answer to read, bytes
    #[arg(long, env = "ELASTIC_LOAD_ANSWER_BYTES_MAX", default_value_t = 1 << 20, value_name = "BYTES")]
    pub(crate) answer_bytes_max: usize,
    /// Most requests that a run may send
    #[arg(long, env = "ELASTIC_LOAD_REQUESTS_MAX", default_value_t = 10_000_000, value_name = "N")]
    pub(crate) requests_max: u64,
    /// How long to wait for the service to be ready before the first request; 0s does not look
    #[arg(long, env = "ELASTIC_LOAD_WAIT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub(crate) wait: Duration,
    /// Promise to judge: the 99th percentile from the scheduled instant must be at most this [default: none]
    #[arg(long, env = "ELASTIC_LOAD_SLO_P99", value_parser = duration, value_name = "TIME")]
    pub(crate) slo_p99: Option<Duration>,
    /// Promise to judge: the share of failed and shed requests must be at most this, as in 0.1% or 0.001
    /// [default: none; a 99th percentile that holds leaves at most 1%]
    #[arg(long, env = "ELASTIC_LOAD_FAILED_MAX", value_parser = share, value_name = "SHARE")]
    pub(crate) failed_max: Option<f64>,
    /// Lag of the generator itself (99th percentile) above which the run is not to be trusted
    #[arg(long, env = "ELASTIC_LOAD_LAG_MAX", default_value = "1ms", value_parser = duration, value_name = "TIME")]
    pub(crate) lag_max: Duration,
    /// URL of a monitor; the report then has the replicas, and the decisions that it knows of
    #[arg(long, env = "ELASTIC_LOAD_MONITOR", value_name = "URL")]
    pub(crate) monitor: Option<Url>,
    /// URL of an autoscaler, to read the decisions from itself
    #[arg(long, env = "ELASTIC_LOAD_AUTOSCALER", value_name = "URL")]
    pub(crate) autoscaler: Option<Url>,
    /// Also write the report as JSON to this file; `-` writes it to standard output instead of the table
    #[arg(long, env = "ELASTIC_LOAD_JSON", value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also write the report as a page to this file
    #[arg(long, env = "ELASTIC_LOAD_HTML", conflicts_with = "find_max", value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No progress, only the report
    #[arg(long, short, env = "ELASTIC_LOAD_QUIET")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) find: FindArgs,
}

/// Flags of the search for the highest rate.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Search for the highest rate")]
#[allow(clippy::struct_field_names)] // clap knows a flag by its field's name, and `start` says too little there
pub(crate) struct FindArgs {
    /// Search for the highest rate of Poisson arrivals at which --slo-p99 holds
    #[arg(long, env = "ELASTIC_LOAD_FIND_MAX", requires = "slo_p99", conflicts_with = "schedule")]
    pub(crate) find_max: bool,
    /// First rate that is tried, requests per second
    #[arg(long, env = "ELASTIC_LOAD_FIND_START", default_value_t = 16.0, value_name = "RATE")]
    pub(crate) find_start: f64,
    /// Highest rate that is tried, requests per second
    #[arg(long, env = "ELASTIC_LOAD_FIND_RATE_MAX", default_value_t = 10_000.0, value_name = "RATE")]
    pub(crate) find_rate_max: f64,
    /// How close the answer is to a rate that does not hold, as in 3% or 0.03
    #[arg(long, env = "ELASTIC_LOAD_FIND_RESOLUTION", default_value = "3%", value_parser = share, value_name = "SHARE")]
    pub(crate) find_resolution: f64,
    /// How long a trial lasts at least, after its warm-up
    #[arg(long, env = "ELASTIC_LOAD_FIND_TRIAL", default_value = "20s", value_parser = duration, value_name = "TIME")]
    pub(crate) find_trial: Duration,
    /// How many requests a trial counts at least; a trial lasts longer for them
    #[arg(long, env = "ELASTIC_LOAD_FIND_SAMPLES", default_value_t = 1000, value_name = "N")]
    pub(crate) find_samples: u64,
    /// Requests that are due in the first so long of a trial are not counted
    #[arg(long, env = "ELASTIC_LOAD_FIND_WARM_UP", default_value = "3s", value_parser = duration, value_name = "TIME")]
    pub(crate) find_warm_up: Duration,
    /// How long the whole search may take
    #[arg(long, env = "ELASTIC_LOAD_FIND_TIME", default_value = "15m", value_parser = duration, value_name = "TIME")]
    pub(crate) find_time: Duration,
}

/// What else than to send load.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Compare two reports: is the second better, the same or worse?
    Compare(compare::Args),
}

/// How requests are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arrivals {
    /// Evenly
    Even,
    /// At random, as a Poisson process
    Poisson,
}

impl Arrivals {
    /// Its name in flags and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Even => "even",
            Self::Poisson => "poisson",
        }
    }
}

impl Args {
    /// How requests are spread.
    pub(crate) fn arrivals(&self) -> Arrivals {
        if self.poisson { Arrivals::Poisson } else { self.arrivals.unwrap_or(Arrivals::Even) }
    }

    /// The same, with its seed.
    pub(crate) fn spacing(&self) -> Spacing {
        match self.arrivals() {
            Arrivals::Even => Spacing::Even,
            Arrivals::Poisson => Spacing::Poisson { seed: self.seed },
        }
    }

    /// What is played, in words.
    pub(crate) fn played(&self) -> String {
        self.schedule.clone().unwrap_or_else(|| self.workload.display().to_string())
    }

    /// The file of rates, where no shape is played.
    pub(crate) fn file(&self) -> &Path {
        self.schedule.as_deref().map_or(&self.workload, Path::new)
    }

    /// Refuses flags that contradict each other, each with a sentence that says what to change.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.timeout.is_zero(), "--timeout must be longer than 0");
        ensure!(self.in_flight_max > 0, "--in-flight-max must be at least 1");
        if let Some(slo_p99) = self.slo_p99 {
            ensure!(
                slo_p99 <= self.timeout,
                "--slo-p99 {slo_p99:?} is above --timeout {:?}: a request that slow has failed already; raise \
                 --timeout",
                self.timeout
            );
        }
        let seconds = self.duration.is_none_or(|duration| !duration.is_zero());
        ensure!(seconds, "--duration must be longer than 0");
        let shape = self.schedule.as_deref().and_then(Workload::shape).transpose().context("--schedule")?;
        ensure!(
            shape.is_some() || self.find.find_max || self.duration.is_none(),
            "the lines of {} say how long it lasts: leave --duration out, or set --line-seconds or --speed",
            self.played()
        );
        if !self.find.find_max {
            return Ok(());
        }
        let find = &self.find;
        let rates = find.find_start > 0.0 && find.find_start <= find.find_rate_max;
        ensure!(
            rates && find.find_rate_max <= 100_000.0,
            "--find-start must be above 0 and at most --find-rate-max, which must be at most 100000"
        );
        ensure!(find.find_resolution > 0.0, "--find-resolution must be above 0");
        ensure!(
            find.find_samples >= 100,
            "--find-samples must be at least 100: fewer requests have no 99th percentile"
        );
        ensure!(!find.find_trial.is_zero(), "--find-trial must be longer than 0");
        Ok(())
    }
}

/// Reads a share: `0.5%` or `0.005`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().ok().map(|number| number / unit);
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("{text:?} is no share: write one from 0% to 100%, as in 0.5% or 0.005"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &[&str]) -> Result<Args, String> {
        let parsed = Cli::try_parse_from(std::iter::once(&"load").chain(flags));
        let args = parsed.map_err(|error| error.to_string())?.args;
        args.check().map(|()| args).map_err(|error| error.to_string())
    }

    #[test]
    fn shares_read_as_people_write_them() {
        for (text, expected) in [("0%", 0.0), ("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), ("1", 1.0)] {
            assert_eq!(share(text), Ok(expected), "{text}");
        }
        for text in ["", "%", "5", "-1%", "101%", "NaN", "one"] {
            assert!(share(text).unwrap_err().contains("0.5%"), "{text}");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for (flags, says) in [
            (&["--slo-p99", "6s"][..], "raise --timeout"),
            (&["--timeout", "0s"], "--timeout"),
            (&["--duration", "0s"], "--duration"),
            (&["--duration", "1s"], "leave --duration out"),
            (&["--schedule", "constant:5", "--workload", "w.txt"], "cannot be used with"),
            (&["--poisson", "--arrivals", "even"], "cannot be used with"),
            (&["--find-max"], "--slo-p99"),
            (&["--find-max", "--slo-p99", "1s", "--html", "x.html"], "cannot be used with"),
            (&["--find-max", "--slo-p99", "1s", "--find-samples", "99"], "no 99th percentile"),
            (&["--find-max", "--slo-p99", "1s", "--find-start", "0"], "--find-start"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(says), "{error} does not say {says}");
        }
        let args = parse(&["--slo-p99", "6s", "--timeout", "6s"]).unwrap();
        assert_eq!((args.arrivals(), args.played().as_str()), (Arrivals::Even, "workload.txt"));
        assert_eq!(parse(&["--poisson", "--seed", "7"]).unwrap().spacing(), Spacing::Poisson { seed: 7 });
        assert_eq!(parse(&["--arrivals", "poisson"]).unwrap().spacing(), Spacing::Poisson { seed: 1 });
    }
}
