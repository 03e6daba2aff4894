//! How requests are routed: the flags that `dispatch` and `up` share.
use crate::logic::health;
use crate::net::serve::duration;
use anyhow::ensure;
use std::str::FromStr;
use std::time::Duration;

/// How requests are routed; the same flags for `dispatch` and `up`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "dispatch_settings")]
pub struct Settings {
    /// Seed of the policies that draw lots
    #[arg(long, env = "ELASTIC_DISPATCH_SEED", default_value_t = 1, value_name = "N")]
    pub dispatch_seed: u64,
    /// Requests that may wait for a slot; further ones are answered 503 at once
    #[arg(long, env = "ELASTIC_WAITING_MAX", default_value_t = 1000, value_name = "N")]
    pub waiting_max: usize,
    /// Time within which a request is answered, or told at once with 503 that it cannot be. A client names
    /// its own in the header x-elastic-deadline-ms
    #[arg(long, env = "ELASTIC_DEADLINE", default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub deadline: Duration,
    /// Longest deadline that a client may name, and longest time that a request waits for a first replica
    #[arg(long, env = "ELASTIC_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Longest time a request's body may take to arrive
    #[arg(long, env = "ELASTIC_BODY_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub body_timeout: Duration,
    /// Largest request body, bytes
    #[arg(long, env = "ELASTIC_BODY_BYTES_MAX", default_value_t = 10 << 20, value_name = "BYTES")]
    pub body_bytes_max: usize,
    /// Largest answer of a replica, bytes
    #[arg(long, env = "ELASTIC_ANSWER_BYTES_MAX", default_value_t = 1 << 20, value_name = "BYTES")]
    pub answer_bytes_max: usize,
    /// How often one request is tried again when its replica fails it
    #[arg(long, env = "ELASTIC_RETRIES_MAX", default_value_t = 3, value_name = "N")]
    pub retries_max: u32,
    /// Share of the requests that may be sent again, retries and hedges together
    #[arg(long, env = "ELASTIC_RETRY_SHARE", default_value_t = 0.2, value_name = "SHARE")]
    pub retry_share: f64,
    /// Requests a second that may be sent again beyond that share
    #[arg(long, env = "ELASTIC_RETRY_RESERVE", default_value_t = 10.0, value_name = "RATE")]
    pub retry_reserve: f64,
    /// When a request that is not answered is sent to another replica too: `never`; `last-chance`, when it
    /// could not be answered in time otherwise; a percentile of the service time, as in p95, if another
    /// replica is idle; or a time, as in 50ms. The latter two have their last chance as well
    #[arg(long, env = "ELASTIC_HEDGE_AFTER", default_value = "last-chance", value_name = "WHEN")]
    pub hedge_after: HedgeAfter,
    /// Failures in a row after which a replica gets no requests for a while, unless it is the only one
    #[arg(long, env = "ELASTIC_EJECT_AFTER", default_value_t = 3, value_name = "N")]
    pub eject_after: u32,
    /// How long that is the first time; twice as long each further time
    #[arg(long, env = "ELASTIC_EJECT_BACKOFF", default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub eject_backoff: Duration,
    /// The longest that it is
    #[arg(long, env = "ELASTIC_EJECT_BACKOFF_MAX", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub eject_backoff_max: Duration,
    /// Longest time to wait for a connection to a replica
    #[arg(long, env = "ELASTIC_CONNECT_TIMEOUT", default_value = "250ms", value_parser = duration, value_name = "TIME")]
    pub connect_timeout: Duration,
    /// Time between two looks at every replica's readiness
    #[arg(long, env = "ELASTIC_PROBE_INTERVAL", default_value = "250ms", value_parser = duration, value_name = "TIME")]
    pub probe_interval: Duration,
    /// Time that a replica has to say whether it is ready; after two looks in vain it is down
    #[arg(long, env = "ELASTIC_PROBE_TIMEOUT", default_value = "1s", value_parser = duration, value_name = "TIME")]
    pub probe_timeout: Duration,
    /// A registered replica that has not been reachable for so long is forgotten
    #[arg(long, env = "ELASTIC_FORGET_AFTER", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub forget_after: Duration,
    /// Replicas known at once; further registrations are refused
    #[arg(long, env = "ELASTIC_REPLICAS_KNOWN_MAX", default_value_t = 1000, value_name = "N")]
    pub replicas_known_max: usize,
    /// Time between two reports to the monitor
    #[arg(long, env = "ELASTIC_REPORT_INTERVAL", default_value = "200ms", value_parser = duration, value_name = "TIME")]
    pub report_interval: Duration,
    /// Outcomes kept while the monitor is away; the oldest are dropped, and counted as lost
    #[arg(long, env = "ELASTIC_REPORT_BUFFER_MAX", default_value_t = 65_536, value_name = "N")]
    pub report_buffer_max: usize,
}

impl Settings {
    /// Refuses values that a dispatcher cannot run with.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let times = [
            ("--deadline", self.deadline),
            ("--timeout", self.timeout),
            ("--body-timeout", self.body_timeout),
            ("--eject-backoff", self.eject_backoff),
            ("--connect-timeout", self.connect_timeout),
            ("--probe-interval", self.probe_interval),
            ("--probe-timeout", self.probe_timeout),
            ("--report-interval", self.report_interval),
        ];
        for (flag, time) in times {
            ensure!(!time.is_zero(), "{flag} must be longer than 0");
        }
        ensure!(self.report_buffer_max > 0, "--report-buffer-max must be at least 1");
        ensure!(self.eject_after > 0, "--eject-after must be at least 1");
        ensure!((0.0..=1.0).contains(&self.retry_share), "--retry-share must be from 0 to 1");
        ensure!(
            (0.0..=1e6).contains(&self.retry_reserve),
            "--retry-reserve must be from 0 to 1000000 requests a second"
        );
        Ok(())
    }

    /// When a replica is put aside.
    pub(super) fn health(&self) -> health::Limits {
        health::Limits {
            failures_max: self.eject_after,
            backoff: self.eject_backoff,
            backoff_max: self.eject_backoff_max,
        }
    }
}

/// When a request that is not answered yet is sent to another replica too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// Never.
    Never,
    /// When it could not be answered in time otherwise.
    LastChance,
    /// After a percentile of the service time, in thousandths.
    Quantile(u16),
    /// After a time.
    Time(Duration),
}

impl FromStr for HedgeAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percentile = text.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok());
        match (text, percentile) {
            ("never", _) => Ok(Self::Never),
            ("last-chance", _) => Ok(Self::LastChance),
            (_, Some(percent)) if (50.0..=99.5).contains(&percent) => {
                Ok(Self::Quantile((percent * 10.0).round() as u16))
            }
            (_, Some(_)) => Err("a percentile must be from p50 to p99.5".to_owned()),
            _ => duration(text).map(Self::Time).map_err(|_| {
                "write never, last-chance, a percentile as in p95, or a time as in 50ms".to_owned()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedging_reads_as_people_write_it() {
        for (text, expected) in [
            ("never", HedgeAfter::Never),
            ("last-chance", HedgeAfter::LastChance),
            ("p95", HedgeAfter::Quantile(950)),
            ("p99.5", HedgeAfter::Quantile(995)),
            ("50ms", HedgeAfter::Time(Duration::from_millis(50))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for wrong in ["", "p", "p10", "p100", "pNaN", "always", "50"] {
            assert!(wrong.parse::<HedgeAfter>().is_err(), "{wrong}");
        }
    }
}
