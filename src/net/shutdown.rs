//! Shutdown in stages: the first signal asks to leave, which leads to a drain, at once or after a delay; the second
//! aborts.
//!
//! **Invariant**: a later stage is never set without those before it.
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tells a mode to say that it leaves, then to drain, then to stop at once.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    leaving: CancellationToken,
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
        self.leaving.cancel();
        self.draining.cancel();
    }

    /// Asks for a stop at once.
    pub fn abort(&self) {
        self.drain();
        self.aborting.cancel();
    }

    /// A shutdown that leaves when this one drains, and drains `delay` later: whoever looks up endpoints needs that
    /// long to see that this process goes, and what it still sends until then must be served.
    #[must_use]
    pub fn delayed(&self, delay: Duration) -> Self {
        if delay.is_zero() {
            return self.clone();
        }
        let delayed = Self {
            leaving: self.draining.child_token(),
            draining: CancellationToken::new(),
            aborting: CancellationToken::new(),
        };
        let (before, after) = (self.clone(), delayed.clone());
        spawn_detached(async move {
            before.drained().await;
            tracing::info!(?delay, "no longer ready; serving on until the drain");
            tokio::select! {
                () = tokio::time::sleep(delay) => after.drain(),
                () = before.aborted() => {}
            }
            before.aborted().await;
            after.abort();
        });
        delayed
    }

    /// Whether this process was asked to end: it should no longer be given anything, and still serves what it is given.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Resolves when this process is asked to end, before the drain begins.
    pub fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        self.leaving.clone().cancelled_owned()
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
        Self {
            leaving: self.leaving.child_token(),
            draining: self.draining.child_token(),
            aborting: self.aborting.child_token(),
        }
    }
}

/// What listens for signals and waits for them lives as long as the process and holds nothing that a shutdown must wait for.
#[allow(clippy::disallowed_methods)]
fn spawn_detached(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delayed_shutdown_leaves_first_and_drains_later() {
        let shutdown = Shutdown::new();
        let delayed = shutdown.delayed(Duration::from_secs(5)).child();
        assert!(!delayed.is_leaving());
        let asked = tokio::time::Instant::now();
        shutdown.drain();
        delayed.left().await;
        assert!(asked.elapsed().is_zero() && delayed.is_leaving() && !delayed.is_draining());
        delayed.drained().await;
        assert_eq!(asked.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_the_delay_and_one_after_it_ends_the_drain() {
        for wait in [Duration::from_secs(1), Duration::from_secs(9)] {
            let shutdown = Shutdown::new();
            let delayed = shutdown.delayed(Duration::from_secs(5));
            let asked = tokio::time::Instant::now();
            shutdown.drain();
            tokio::time::sleep(wait).await;
            shutdown.abort();
            delayed.aborted().await;
            assert!(delayed.is_draining());
            assert_eq!(asked.elapsed(), wait);
        }
    }

    #[tokio::test]
    async fn without_a_delay_all_begins_at_once() {
        let shutdown = Shutdown::new();
        let same = shutdown.delayed(Duration::ZERO);
        shutdown.drain();
        assert!(same.is_leaving() && same.is_draining());
    }
}
