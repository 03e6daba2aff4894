//! The flags of `elastic simulate`.
//!
//! **Invariant**: what [`Args::check`] passes contradicts itself nowhere and lies within what the simulator can
//! play; files are looked at later.
use crate::logic::arrivals::{Pace, Spacing};
use crate::logic::balance;
use crate::logic::policy::{Bounds, Name};
use crate::net::serve::duration;
use anyhow::ensure;
use clap::ValueEnum as _;
use std::path::PathBuf;
use std::time::Duration;

/// Most replicas of a simulated fleet.
const REPLICAS_MAX: u32 = 100_000;
/// Most requests that a simulated replica takes at once.
const SLOTS_MAX: u32 = 1024;
/// Longest service time, promise, deadline or start-up: beyond it nothing here is a service any more.
const TIME_MAX: Duration = Duration::from_hours(24);
/// Widest spread of service times: a coefficient of variation.
const CV_MAX: f64 = 10.0;
/// Shortest time between two decisions.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The promise unless the flag or the record says otherwise.
const PROMISE: Duration = Duration::from_millis(330);

/// Flags of `elastic simulate`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 the page could not be written; 2 wrong flags, or no workload or record \
that can be played; 130 interrupted.

Examples:
  elastic simulate --workload workload.txt
  elastic simulate --workload day.txt --line-seconds 60 --policy slo,step --dispatch central,p2c
  elastic simulate --policy slo,hpa,kpa --start-up 20s --html simulated.html
  elastic simulate --record http://127.0.0.1:9090 --policy slo --start-up 1s
  curl -s http://127.0.0.1:9090/history > run.json; elastic simulate --record run.json --service-time 80ms"
)]
pub struct Args {
    /// File with one rate a line, requests per second
    #[arg(long, env = "ELASTIC_SIMULATE_WORKLOAD", default_value = "workload.txt", value_name = "FILE")]
    pub(super) workload: PathBuf,
    /// Instead of --workload: what a monitor recorded, as the URL of the monitor or a file with its answer to
    /// GET /history
    #[arg(long, env = "ELASTIC_SIMULATE_RECORD", conflicts_with_all = ["workload", "line_seconds", "interpolate", "speed", "scale", "arrivals"], value_name = "FILE|URL")]
    pub(super) record: Option<String>,
    /// How long a line of the workload lasts, seconds
    #[arg(long, env = "ELASTIC_SIMULATE_LINE_SECONDS", default_value_t = 1.0, value_name = "SECONDS")]
    pub(super) line_seconds: f64,
    /// Straight lines from the middle of a line to the next, instead of jumps; the number of requests stays
    #[arg(long, env = "ELASTIC_SIMULATE_INTERPOLATE")]
    pub(super) interpolate: bool,
    /// Divides how long a line lasts; rates stay
    #[arg(long, env = "ELASTIC_SIMULATE_SPEED", default_value_t = 1.0, value_name = "FACTOR")]
    pub(super) speed: f64,
    /// Multiplies every rate; how long a line lasts stays
    #[arg(long, env = "ELASTIC_SIMULATE_SCALE", default_value_t = 1.0, value_name = "FACTOR")]
    pub(super) scale: f64,
    /// How requests are spread: at random as a Poisson process, or evenly
    #[arg(long, env = "ELASTIC_SIMULATE_ARRIVALS", value_enum, default_value_t = Arrivals::Poisson, value_name = "HOW")]
    pub(super) arrivals: Arrivals,
    /// Rules that scale, one run each
    #[arg(long, env = "ELASTIC_SIMULATE_POLICY", value_enum, value_delimiter = ',', default_values_t = Name::ALL, value_name = "NAME,…")]
    pub(super) policy: Vec<Name>,
    /// How requests are bound to replicas, one run of every rule each: central, random, round-robin,
    /// least-outstanding, power-of-two (or p2c)
    #[arg(long, env = "ELASTIC_SIMULATE_DISPATCH", value_parser = dispatch, value_delimiter = ',', default_value = "central", value_name = "NAME,…")]
    pub(super) dispatch: Vec<balance::Policy>,
    /// Mean time that a request holds a slot
    #[arg(long, env = "ELASTIC_SIMULATE_SERVICE_TIME", default_value = "100ms", value_parser = duration, value_name = "TIME")]
    pub(super) service_time: Duration,
    /// Its coefficient of variation: standard deviation over mean
    #[arg(long, env = "ELASTIC_SIMULATE_CV", default_value_t = 0.1, value_name = "RATIO")]
    pub(super) cv: f64,
    /// From asking for a replica to its first request
    #[arg(long, env = "ELASTIC_SIMULATE_START_UP", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub(super) start_up: Duration,
    /// Latency that is promised [default: 330ms, or the record's]
    #[arg(long, env = "ELASTIC_SIMULATE_PROMISE", value_parser = duration, value_name = "TIME")]
    pub(super) promise: Option<Duration>,
    /// When a request that waits is given up [default: the promise]
    #[arg(long, env = "ELASTIC_SIMULATE_DEADLINE", value_parser = duration, value_name = "TIME")]
    pub(super) deadline: Option<Duration>,
    /// Requests that a replica takes at once
    #[arg(long, env = "ELASTIC_SIMULATE_SLOTS", default_value_t = 1, value_name = "N")]
    pub(super) slots: u32,
    /// Fewest replicas
    #[arg(long, env = "ELASTIC_SIMULATE_REPLICAS_MIN", default_value_t = 1, value_name = "N")]
    pub(super) replicas_min: u32,
    /// Most replicas
    #[arg(long, env = "ELASTIC_SIMULATE_REPLICAS_MAX", default_value_t = 1000, value_name = "N")]
    pub(super) replicas_max: u32,
    /// Replicas that are ready at the start [default: what the record says; else enough for the first rate]
    #[arg(long, env = "ELASTIC_SIMULATE_REPLICAS_START", value_name = "N")]
    pub(super) replicas_start: Option<u32>,
    /// Picks one of the possible runs; the same seed gives the same result
    #[arg(long, env = "ELASTIC_SIMULATE_SEED", default_value_t = 1, value_name = "N")]
    pub(super) seed: u64,
    /// Requests that may wait; one more is refused
    #[arg(long, env = "ELASTIC_SIMULATE_WAITING_MAX", default_value_t = 1000, value_name = "N")]
    pub(super) waiting_max: usize,
    /// Latencies that the monitor's percentiles are over
    #[arg(long, env = "ELASTIC_SIMULATE_WINDOW", default_value_t = 1000, value_name = "N")]
    pub(super) window: usize,
    /// Time between two looks of a rule at the service [default: 10s for step, 1s for the others]
    #[arg(long, env = "ELASTIC_SIMULATE_INTERVAL", value_parser = duration, value_name = "TIME")]
    pub(super) interval: Option<Duration>,
    /// Most requests of a run
    #[arg(long, env = "ELASTIC_SIMULATE_REQUESTS_MAX", default_value_t = 100_000_000, value_name = "N")]
    pub(super) requests_max: u64,
    /// Runs at once [default: one a core]
    #[arg(long, env = "ELASTIC_SIMULATE_JOBS", value_name = "N")]
    pub(super) jobs: Option<usize>,
    /// Print JSON instead of the table
    #[arg(long, env = "ELASTIC_SIMULATE_JSON")]
    pub(super) json: bool,
    /// Also write a page with charts to this file
    #[arg(long, env = "ELASTIC_SIMULATE_HTML", value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// No progress
    #[arg(long, short, env = "ELASTIC_SIMULATE_QUIET")]
    pub(super) quiet: bool,
}

/// How requests are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Arrivals {
    /// At random, as a Poisson process
    Poisson,
    /// Evenly
    Even,
}

impl Args {
    /// Refuses what cannot be played, each with a sentence that says what to change.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let limits = [
            ("--service-time", Some(self.service_time), Duration::from_micros(1)),
            ("--start-up", Some(self.start_up), Duration::ZERO),
            ("--promise", self.promise, Duration::from_millis(1)),
            ("--deadline", self.deadline, Duration::from_millis(1)),
            ("--interval", self.interval, INTERVAL_MIN),
        ];
        for (flag, time, least) in limits {
            let within = time.is_none_or(|time| (least..=TIME_MAX).contains(&time));
            ensure!(within, "{flag} must be from {least:?} to 24h");
        }
        ensure!((0.0..=CV_MAX).contains(&self.cv), "--cv must be from 0 to {CV_MAX}");
        ensure!((1..=SLOTS_MAX).contains(&self.slots), "--slots must be from 1 to {SLOTS_MAX}");
        ensure!(self.replicas_min >= 1, "--replicas-min must be at least 1: no rule here scales to zero");
        ensure!(
            (self.replicas_min..=REPLICAS_MAX).contains(&self.replicas_max),
            "--replicas-max must be at least --replicas-min ({}) and at most {REPLICAS_MAX}",
            self.replicas_min
        );
        let bounds = self.replicas_min..=self.replicas_max;
        ensure!(
            self.replicas_start.is_none_or(|start| bounds.contains(&start)),
            "--replicas-start must lie within --replicas-min and --replicas-max, {} to {}",
            self.replicas_min,
            self.replicas_max
        );
        ensure!((1..=1_000_000).contains(&self.waiting_max), "--waiting-max must be from 1 to 1000000");
        ensure!((1..=1_000_000).contains(&self.window), "--window must be from 1 to 1000000");
        ensure!(self.jobs.is_none_or(|jobs| (1..=1024).contains(&jobs)), "--jobs must be from 1 to 1024");
        Ok(())
    }

    /// How long the lines last and how high they are.
    pub(super) fn pace(&self) -> Pace {
        Pace { line_s: self.line_seconds, speed: self.speed, scale: self.scale }
    }

    /// How requests are spread.
    pub(super) fn spacing(&self) -> Spacing {
        match self.arrivals {
            Arrivals::Even => Spacing::Even,
            Arrivals::Poisson => Spacing::Poisson { seed: self.seed },
        }
    }

    /// Fewest and most replicas.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { min: self.replicas_min, max: self.replicas_max }
    }

    /// The promise, where a record may have one of its own.
    pub(super) fn promise(&self, recorded: Option<Duration>) -> Duration {
        self.promise.or(recorded).unwrap_or(PROMISE)
    }

    /// Every rule with every way to dispatch, each once.
    pub(super) fn pairs(&self) -> Vec<(Name, balance::Policy)> {
        let mut pairs = Vec::new();
        for policy in &self.policy {
            for dispatch in &self.dispatch {
                if !pairs.contains(&(*policy, *dispatch)) {
                    pairs.push((*policy, *dispatch));
                }
            }
        }
        pairs
    }
}

/// Reads a way to dispatch, also by the names that people give to them.
fn dispatch(text: &str) -> Result<balance::Policy, String> {
    let name = text.trim().to_lowercase().replace('_', "-");
    let name = match name.as_str() {
        "p2c" | "power-of-two-choices" => "power-of-two",
        name => name,
    };
    balance::Policy::from_str(name, false).map_err(|_| {
        format!("{text:?} is none of central, random, round-robin, least-outstanding, power-of-two (or p2c)")
    })
}

/// The name of a way to dispatch.
pub(super) fn dispatch_name(dispatch: balance::Policy) -> String {
    dispatch.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    /// Reads and checks flags as the command line does.
    pub(in crate::simulate) fn parse(flags: &[&str]) -> Result<Args, String> {
        let parsed = Cli::try_parse_from(std::iter::once(&"simulate").chain(flags));
        let args = parsed.map_err(|error| error.to_string())?.args;
        args.check().map(|()| args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_that_cannot_be_played_are_refused() {
        for (flags, says) in [
            (&["--service-time", "0s"][..], "--service-time must be from 1µs to 24h"),
            (&["--start-up", "25h"], "--start-up"),
            (&["--promise", "0ms"], "--promise"),
            (&["--deadline", "0ms"], "--deadline"),
            (&["--interval", "10ms"], "--interval must be from 100ms"),
            (&["--cv=-1"], "--cv"),
            (&["--cv", "NaN"], "--cv"),
            (&["--slots", "0"], "--slots"),
            (&["--replicas-min", "0"], "scales to zero"),
            (&["--replicas-min", "5", "--replicas-max", "4"], "at least --replicas-min (5)"),
            (&["--replicas-start", "5", "--replicas-max", "4"], "1 to 4"),
            (&["--waiting-max", "0"], "--waiting-max"),
            (&["--window", "0"], "--window"),
            (&["--jobs", "0"], "--jobs"),
            (&["--policy", "slo,magic"], "magic"),
            (&["--dispatch", "central,magic"], "least-outstanding"),
            (&["--record", "r.json", "--workload", "w.txt"], "cannot be used with"),
            (&["--record", "r.json", "--scale", "2"], "cannot be used with"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(says), "{error} does not say {says}");
        }
    }

    #[test]
    fn every_rule_meets_every_way_to_dispatch_once() {
        use balance::Policy::{Central, PowerOfTwo, Random};
        let args = parse(&["--policy", "slo,step,slo", "--dispatch", "p2c,random,power-of-two"]).unwrap();
        let expected =
            [(Name::Slo, PowerOfTwo), (Name::Slo, Random), (Name::Step, PowerOfTwo), (Name::Step, Random)];
        assert_eq!(args.pairs(), expected);
        let all = parse(&[]).unwrap().pairs();
        assert_eq!(all, Name::ALL.map(|policy| (policy, Central)));
        for name in ["central", "random", "round-robin", "least-outstanding", "power-of-two"] {
            assert_eq!(dispatch(name).map(dispatch_name).as_deref(), Ok(name));
        }
        assert_eq!(dispatch("least_outstanding"), Ok(balance::Policy::LeastOutstanding));
    }

    #[test]
    fn a_record_has_a_promise_unless_the_flag_does() {
        let recorded = Some(Duration::from_millis(500));
        assert_eq!(parse(&[]).unwrap().promise(None), PROMISE);
        assert_eq!(parse(&[]).unwrap().promise(recorded), Duration::from_millis(500));
        assert_eq!(parse(&["--promise", "1s"]).unwrap().promise(recorded), Duration::from_secs(1));
    }
}
