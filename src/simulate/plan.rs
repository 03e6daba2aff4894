//! From flags to what is played.
use crate::draw::chart::clock;
use crate::logic::arrivals::{Plan, Workload};
use crate::logic::balance;
use crate::logic::policy::Scaled;
use crate::net::files::read_text;
use crate::sim::{Requests, Settings};
use crate::simulate::args::{Args, Arrivals};
use crate::simulate::play::Playing;
use crate::simulate::record::Record;
use anyhow::{Context as _, ensure};
use std::num::NonZero;
use std::path::Path;
use std::time::Duration;

/// Largest workload file, bytes.
const WORKLOAD_BYTES_MAX: u64 = 64 << 20;

/// What is played, and how people call it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) playing: Playing,
    /// What really happened, where that is played again.
    pub(super) record: Option<Record>,
    /// Where the requests come from.
    pub(super) source: String,
    /// How they are spread over the time.
    pub(super) spread: &'static str,
}

impl Planned {
    /// Checks the flags and reads what they name.
    pub(super) async fn read(args: &Args) -> anyhow::Result<Self> {
        args.check()?;
        if let Some(folder) = args.html.as_deref().and_then(Path::parent) {
            // Better said before the runs than after them.
            let is_there = folder.as_os_str().is_empty() || folder.is_dir();
            ensure!(is_there, "--html: there is no folder {}; make it first", folder.display());
        }
        let (requests, record, source, spread) = if let Some(place) = &args.record {
            let record = Record::read(place).await?;
            let arrivals = record.arrivals();
            ensure!(
                arrivals <= args.requests_max,
                "the record has {arrivals} requests, over the limit of {}: raise --requests-max",
                args.requests_max
            );
            let spread = "as recorded, at random within each second";
            (record.requests(args.seed), Some(record), format!("record {place}"), spread)
        } else {
            let spread = match args.arrivals {
                Arrivals::Poisson => "as a Poisson process",
                Arrivals::Even => "evenly",
            };
            let requests = Requests::Planned(workload(args)?, args.spacing());
            (requests, None, args.workload.display().to_string(), spread)
        };
        let playing = playing(args, requests, record.as_ref());
        Ok(Self { playing, record, source, spread })
    }

    /// What is simulated, in sentences without a full stop.
    pub(super) fn sentences(&self, requests: u64) -> [String; 3] {
        let Playing { settings, service, requests: planned, .. } = &self.playing;
        let duration = planned.duration();
        let rate_rps = requests as f64 / duration.as_secs_f64();
        let replicas = match (service.bounds.min, service.bounds.max) {
            (min, max) if min == max => format!("{min} replicas"),
            (min, max) => format!("{min} to {max} replicas, {} at the start", settings.replicas_start),
        };
        let slots =
            if settings.slots == 1 { "1 slot".to_owned() } else { format!("{} slots", settings.slots) };
        [
            format!(
                "{}: {requests} requests in {} {}, {rate_rps:.1} a second on average",
                self.source,
                clock(duration.as_secs_f64()),
                self.spread
            ),
            format!(
                "service time {:?} (cv {}), {slots} a replica, start-up {:?}, promise {:?}, deadline {:?}",
                settings.service_time, settings.cv, settings.start_up, settings.promise, settings.deadline
            ),
            format!(
                "{replicas}; at most {} wait; percentiles over the last {}; seed {}",
                settings.waiting_max, settings.window, settings.seed
            ),
        ]
    }
}

fn workload(args: &Args) -> anyhow::Result<Plan> {
    let path = &args.workload;
    let text = read_text("workload", path, WORKLOAD_BYTES_MAX).context("name a file with --workload FILE")?;
    let name = || format!("workload {}", path.display());
    let workload = Workload::parse(&text).with_context(name)?;
    let workload = if args.interpolate { workload.interpolated() } else { workload };
    Plan::new(&workload, args.pace(), args.requests_max).with_context(name)
}

fn playing(args: &Args, requests: Requests, record: Option<&Record>) -> Playing {
    let promise = args.promise(record.map(|record| record.promise));
    let bounds = args.bounds();
    let recorded = record.and_then(Record::replicas_start);
    let start = args.replicas_start.or(recorded).unwrap_or_else(|| {
        let offered = requests.rate_rps_at_start() * args.service_time.as_secs_f64() / f64::from(args.slots);
        enough(offered)
    });
    let settings = Settings {
        service_time: args.service_time,
        cv: args.cv,
        start_up: args.start_up,
        slots: args.slots,
        dispatch: balance::Policy::Central,
        waiting_max: args.waiting_max,
        promise,
        deadline: args.deadline.unwrap_or(promise),
        interval: Duration::from_secs(1),
        replicas_start: start.clamp(bounds.min, bounds.max),
        seed: args.seed,
        window: args.window,
    };
    let service = Scaled { bounds, promise, service_time: args.service_time, slots: args.slots };
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let (pairs, jobs) = (args.pairs(), args.jobs.unwrap_or_else(cores));
    Playing { settings, service, requests, pairs, interval: args.interval, jobs }
}

/// Replicas for an offered load, with a square root of it to spare (square-root staffing, Halfin and Whitt, 1981).
fn enough(offered: f64) -> u32 {
    (offered + offered.sqrt()).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::args::tests::parse;
    use crate::simulate::record::tests::history;

    async fn planned(workload: &str, flags: &[&str]) -> Result<Planned, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.txt");
        std::fs::write(&path, workload).unwrap();
        let flags = [&["--workload", path.to_str().unwrap()], flags].concat();
        Planned::read(&parse(&flags)?).await.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn the_start_is_enough_for_the_first_rate_within_the_bounds() {
        for (flags, expected) in [
            // 4 slots are busy on average: 4 + 2.
            (&[][..], 6),
            (&["--slots", "4"], 2),
            (&["--service-time", "10ms"], 2),
            (&["--replicas-max", "5"], 5),
            (&["--replicas-min", "9"], 9),
            (&["--replicas-start", "3"], 3),
            (&["--scale", "0.000001"], 1),
        ] {
            let planned = planned("40\n80\n", flags).await.unwrap();
            assert_eq!(planned.playing.settings.replicas_start, expected, "{flags:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_played_says_what_to_do() {
        for (workload, flags, says) in [
            ("40\nmany\n", &[][..], "line 2"),
            ("", &[], "no line has a rate"),
            ("40\n", &["--requests-max", "39"], "raise the limit"),
            ("40\n", &["--speed", "0"], "above 0 and finite"),
            ("40\n", &["--line-seconds", "1e9"], "raise the speed"),
        ] {
            let error = planned(workload, flags).await.unwrap_err();
            assert!(error.contains(says) && error.contains("w.txt"), "{error} does not say {says}");
        }
        let args = parse(&["--workload", "absent.txt"]).unwrap();
        let error = format!("{:#}", Planned::read(&args).await.unwrap_err());
        assert!(error.contains("--workload FILE") && error.contains("absent.txt"), "{error}");
    }

    #[tokio::test]
    async fn a_record_brings_its_promise_and_its_replicas() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        std::fs::write(&path, history(&[(5, 0, None), (7, 0, Some(4))]).to_string()).unwrap();
        let place = path.to_str().unwrap();
        let read = async |flags: &[&str]| {
            let args = parse(&[&["--record", place], flags].concat()).unwrap();
            Planned::read(&args).await.map_err(|error| format!("{error:#}"))
        };
        let settings = read(&[]).await.unwrap().playing.settings;
        assert_eq!((settings.replicas_start, settings.promise), (4, Duration::from_millis(500)));
        assert_eq!(settings.deadline, settings.promise);
        let settings = read(&["--replicas-start", "2", "--promise", "1s"]).await.unwrap().playing.settings;
        assert_eq!((settings.replicas_start, settings.promise), (2, Duration::from_secs(1)));
        let error = read(&["--requests-max", "11"]).await.unwrap_err();
        assert!(error.contains("12 requests") && error.contains("--requests-max"), "{error}");
    }
}
