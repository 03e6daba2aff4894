//! Replicas that are the addresses of a DNS name, as a headless Kubernetes Service has them.
use super::{Discovery, Fleet, Running};
use crate::dispatch::pool::Source;
use crate::net::names;
use crate::net::shutdown::Shutdown;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};

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
                let found = tokio::select! {
                    () = shutdown.drained() => return,
                    found = next(&mut ticks, &self.name) => found,
                };
                match found {
                    Ok(addresses) => {
                        resolved_at = Instant::now();
                        fleet.set(&addresses.iter().map(|address| format!("http://{address}")).collect());
                    }
                    // A headless Service without ready pods has no addresses, which is an error too, as is a name
                    // server that is away: the replicas of before are looked at themselves meanwhile.
                    Err(error) => {
                        if error.kind() == ErrorKind::NotFound {
                            tracing::debug!(name = self.name, %error, "the name of the replicas does not resolve");
                        } else {
                            tracing::warn!(name = self.name, %error, "the name of the replicas cannot be asked for");
                        }
                        if resolved_at.elapsed() > self.keep {
                            fleet.forget_away(self.keep);
                        }
                    }
                }
            }
        })
    }
}

/// The addresses at the next tick.
async fn next(ticks: &mut Interval, name: &str) -> std::io::Result<Vec<SocketAddr>> {
    ticks.tick().await;
    names::resolve(name).await
}
