//! Replicas that are the addresses of a DNS name, as a headless Kubernetes Service has them.
use super::{Discovery, Fleet, Running};
use crate::dispatch::pool::Source;
use crate::net::shutdown::Shutdown;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// Longest time to wait for an answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A `NAME:PORT` that is asked for every `interval`.
pub(in crate::dispatch) struct Dns {
    pub(in crate::dispatch) name: String,
    pub(in crate::dispatch) interval: Duration,
    /// For how long the addresses of before stay when the name does not resolve any more.
    pub(in crate::dispatch) keep: Duration,
}

impl Discovery for Dns {
    fn source(&self) -> Source {
        Source::Dns
    }

    fn run(self: Box<Self>, fleet: Fleet, shutdown: Shutdown) -> Running {
        Box::pin(async move {
            let mut ticks = tokio::time::interval(self.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut resolved_at = Instant::now();
            loop {
                tokio::select! {
                    () = shutdown.drained() => return,
                    _ = ticks.tick() => {}
                }
                match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(&self.name)).await {
                    Ok(Ok(addresses)) => {
                        resolved_at = Instant::now();
                        fleet.set(&addresses.map(|address| format!("http://{address}")).collect());
                    }
                    // A headless Service without ready pods has no addresses, which is an error too, as is a name
                    // server that is away: the replicas of before are looked at themselves meanwhile.
                    Ok(Err(error)) => {
                        tracing::debug!(name = self.name, %error, "the name of the replicas does not resolve");
                        if resolved_at.elapsed() > self.keep {
                            fleet.forget_away(self.keep);
                        }
                    }
                    Err(_) => {
                        tracing::warn!(name = self.name, "resolving the name of the replicas timed out");
                    }
                }
            }
        })
    }
}
