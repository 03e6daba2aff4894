//! How others learn that a replica is there: registration at a dispatcher, and the ties to a parent process.
//!
//! **Invariant**: a child never outlives its parent: the kernel closes the pipe to its standard input
//! however the parent ends, and the child drains and exits then.
use crate::net::wire::{Announcement, Registration};
use crate::net::{client, shutdown::Shutdown};
use anyhow::Context as _;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::time::Duration;

/// Who is to be told, and what.
pub(super) struct Presence {
    pub(super) register: Option<String>,
    pub(super) url: String,
    pub(super) slots: u32,
    pub(super) announce: bool,
    pub(super) startup_ms: u64,
}

const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);
const REGISTER_PAUSE: Duration = Duration::from_millis(200);
/// Time between two heartbeats: a dispatcher that was restarted knows the replica again after that long.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Drains when standard input closes; a thread of its own, since a pipe cannot be awaited portably.
///
/// Every step of the drain has a time-out of its own, so that nothing is left behind.
pub(super) fn drain_with_parent(shutdown: &Shutdown) -> std::io::Result<()> {
    let shutdown = shutdown.clone();
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        let mut sink = [0; 64];
        loop {
            match std::io::stdin().lock().read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        shutdown.drain();
    })?;
    Ok(())
}

/// Runs `serve` while others know of it: registers first, says goodbye before it stops.
///
/// `serve` gets a shutdown of its own, which drains only after the dispatcher was told, so that no request
/// is sent to a listener that is closed.
pub(super) async fn with<F: Future<Output = ()>>(
    presence: Presence,
    shutdown: &Shutdown,
    serve: impl FnOnce(Shutdown) -> F,
) -> anyhow::Result<()> {
    let until = Shutdown::new();
    let serving = serve(until.clone());
    tokio::pin!(serving);
    let present = async {
        if presence.announce {
            announce(&presence)?;
        }
        if let Some(register) = &presence.register {
            let registry = Registry::new(register, &presence)?;
            registry.stay_registered(shutdown).await;
            registry.goodbye().await;
        }
        shutdown.drained().await;
        anyhow::Ok(())
    };
    tokio::pin!(present);
    tokio::select! {
        () = &mut serving => return Ok(()),
        outcome = &mut present => outcome?,
    }
    until.drain();
    tokio::select! {
        () = &mut serving => {}
        () = shutdown.aborted() => {}
    }
    Ok(())
}

fn announce(presence: &Presence) -> anyhow::Result<()> {
    let line = Announcement { ready: presence.url.clone(), startup_ms: presence.startup_ms };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&line)?).context("cannot tell the parent")?;
    out.flush().context("cannot tell the parent")
}

/// A dispatcher's registration port.
struct Registry {
    client: reqwest::Client,
    url: String,
    registration: Registration,
}

impl Registry {
    fn new(register: &str, presence: &Presence) -> anyhow::Result<Self> {
        Ok(Self {
            client: client::client(REGISTER_TIMEOUT)?,
            url: format!("{register}/replicas"),
            registration: Registration { url: presence.url.clone(), slots: presence.slots },
        })
    }

    /// Registers, and again with every heartbeat, until the replica is asked to stop.
    async fn stay_registered(&self, shutdown: &Shutdown) {
        let mut registered = None;
        loop {
            let sent = self.client.post(&self.url).json(&self.registration).send().await;
            let pause = match sent.and_then(reqwest::Response::error_for_status) {
                Ok(_) => {
                    if registered == Some(false) {
                        tracing::info!(url = self.url, "registered at the dispatcher");
                    }
                    registered = Some(true);
                    HEARTBEAT
                }
                Err(error) => {
                    if registered != Some(false) {
                        tracing::warn!(%error, "cannot register at the dispatcher; trying on");
                    }
                    registered = Some(false);
                    REGISTER_PAUSE
                }
            };
            tokio::select! {
                () = shutdown.left() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn goodbye(&self) {
        if let Err(error) = self.client.delete(&self.url).json(&self.registration).send().await {
            tracing::debug!(%error, "the dispatcher did not hear the goodbye");
        }
    }
}
