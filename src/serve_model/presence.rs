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
            register_at(register, &presence, shutdown).await?;
        }
        shutdown.drained().await;
        if let Some(register) = &presence.register {
            goodbye(register, &presence).await;
        }
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

/// Registers, trying again until the dispatcher takes it or the replica is asked to stop.
async fn register_at(register: &str, presence: &Presence, shutdown: &Shutdown) -> anyhow::Result<()> {
    let client = client::client(REGISTER_TIMEOUT)?;
    let body = Registration { url: presence.url.clone(), slots: presence.slots };
    let mut told = false;
    loop {
        let sent = client.post(format!("{register}/replicas")).json(&body).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => return Ok(()),
            Err(error) if !told => {
                tracing::warn!(%error, "cannot register at the dispatcher yet; trying on");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.drained() => return Ok(()),
            () = tokio::time::sleep(REGISTER_PAUSE) => {}
        }
    }
}

async fn goodbye(register: &str, presence: &Presence) {
    let body = Registration { url: presence.url.clone(), slots: presence.slots };
    let Ok(client) = client::client(REGISTER_TIMEOUT) else { return };
    if let Err(error) = client.delete(format!("{register}/replicas")).json(&body).send().await {
        tracing::debug!(%error, "the dispatcher did not hear the goodbye");
    }
}
