//! Waits for the instants of a schedule on a thread of its own.
//!
//! The runtime's timer counts whole milliseconds, which is as much as a run may lag. The kernel's timer, behind
//! `park_timeout`, is some 60 µs late on a quiet machine. The thread hands an instant over when it has come and
//! sleeps till the next: it never spins, so it costs two switches a request and no core.
//!
//! **Invariant**: an instant is never handed over early, none is left out, and they come in order.
use crate::logic::arrivals::{Instants, Plan, Spacing};
use anyhow::Context as _;
use std::future::Future;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Instants that have come and are not taken yet. Beyond, the thread waits; they are as late as they are.
const DUE_MAX: usize = 4096;

/// Tells when requests are due.
pub(crate) trait Pacer: Send + 'static {
    /// The next instant, once it has come; `None` once the plan is over. Nothing is lost when it is dropped.
    fn next(&mut self) -> impl Future<Output = Option<Duration>> + Send;
}

/// The thread that waits.
pub(crate) struct ThreadPacer {
    due: mpsc::Receiver<Duration>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadPacer {
    /// Plays `plan` from `start` on.
    pub(crate) fn new(plan: &Plan, spacing: Spacing, start: Instant) -> anyhow::Result<Self> {
        let (sender, due) = mpsc::channel(DUE_MAX);
        let (instants, end) = (plan.instants(spacing), start + plan.duration());
        let thread = std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || play(instants, start, end, &sender))
            .context("cannot start the thread that waits for the schedule")?;
        Ok(Self { due, thread: Some(thread) })
    }
}

impl Pacer for ThreadPacer {
    async fn next(&mut self) -> Option<Duration> {
        self.due.recv().await
    }
}

impl Drop for ThreadPacer {
    fn drop(&mut self) {
        self.due.close();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that waits for the schedule did not end by itself");
            }
        }
    }
}

fn play(instants: Instants, start: Instant, end: Instant, sender: &mpsc::Sender<Duration>) {
    for due in instants {
        if !wait_until(start + due, sender) || sender.blocking_send(due).is_err() {
            return;
        }
    }
    // Quiet times at the end are part of the plan: the target is watched while it has nothing to do.
    wait_until(end, sender);
}

/// Sleeps; false when nobody listens any more.
fn wait_until(due: Instant, sender: &mpsc::Sender<Duration>) -> bool {
    loop {
        if sender.is_closed() {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        // It may return early for no reason, and does when the listener goes.
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::arrivals::{Pace, Workload};

    fn plan(shape: &str, line_s: f64) -> Plan {
        let workload = Workload::shape(shape).unwrap().unwrap();
        Plan::new(&workload, Pace { line_s, ..Pace::default() }, 100_000).unwrap()
    }

    #[tokio::test]
    async fn every_instant_comes_in_order_and_never_early() {
        let plan = plan("step:2000,0,2000,0", 0.02);
        let spacing = Spacing::Poisson { seed: 7 };
        let start = Instant::now();
        let mut pacer = ThreadPacer::new(&plan, spacing, start).unwrap();
        let mut seen = Vec::new();
        while let Some(due) = pacer.next().await {
            assert!(start.elapsed() >= due, "{due:?} is early");
            seen.push(due);
        }
        assert!(seen.into_iter().eq(plan.instants(spacing)));
        assert!(start.elapsed() >= plan.duration());
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_listener_however_far_the_next_instant() {
        let start = Instant::now();
        let mut pacer = ThreadPacer::new(&plan("step:100,0", 600.0), Spacing::Even, start).unwrap();
        assert_eq!(pacer.next().await, Some(Duration::from_millis(5)));
        drop(pacer);
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
