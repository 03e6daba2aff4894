//! Two-stage shutdown: the first signal drains, the second aborts.
//!
//! **Invariant**: `aborting` is never set without `draining`.
use std::future::Future;
use tokio_util::sync::CancellationToken;

/// Tells a mode to drain, then to stop at once.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    aborting: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::drain`] and [`Shutdown::abort`] trigger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Drains on the first SIGINT or SIGTERM and aborts on the second.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::new();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let requested = shutdown.clone();
        spawn_detached(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::info!("shutting down; a second signal stops at once");
            requested.drain();
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::warn!("second signal: stopping at once");
            requested.abort();
        });
        Ok(shutdown)
    }

    /// Asks for a drain: take nothing new, finish what is under way.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Asks for a stop at once.
    pub fn abort(&self) {
        self.draining.cancel();
        self.aborting.cancel();
    }

    /// Whether a drain was asked for.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when a drain is asked for.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        self.draining.clone().cancelled_owned()
    }

    /// Resolves when a stop at once is asked for.
    pub fn aborted(&self) -> impl Future<Output = ()> + Send + 'static {
        self.aborting.clone().cancelled_owned()
    }

    /// A shutdown that follows this one but can also be triggered alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { draining: self.draining.child_token(), aborting: self.aborting.child_token() }
    }
}

/// The signal listener lives as long as the process and holds nothing that a shutdown must wait for.
#[allow(clippy::disallowed_methods)]
fn spawn_detached(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
