//! Where a run is: a live line on a terminal, a log line every ten seconds elsewhere.
use crate::load::latencies::Quantile;
use crate::load::record::Snapshot;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tokio::sync::watch;

const BAR_WIDTH: usize = 20;
/// Seconds between two lines where nobody watches.
const LOG_EVERY_S: u64 = 10;

/// Shows snapshots until the sender is gone.
pub(crate) async fn show(mut snapshots: watch::Receiver<Snapshot>, duration: Duration, expected: f64) {
    let live = std::io::stderr().is_terminal();
    let mut logged_s = 0;
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        if live {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{}", line(&snapshot, duration));
        } else if snapshot.elapsed.as_secs() >= logged_s + LOG_EVERY_S {
            logged_s = snapshot.elapsed.as_secs();
            tracing::info!(
                elapsed_s = logged_s,
                sent = snapshot.counts.sent,
                expected = expected.round(),
                ok = snapshot.counts.ok,
                failed = snapshot.counts.failed(),
                shed = snapshot.counts.shed,
                rate_rps = snapshot.rate_rps_planned,
                p99 = milliseconds(snapshot.p99),
                "load"
            );
        }
    }
    if live {
        let _ = writeln!(std::io::stderr());
    }
}

/// One line of at most about 110 columns.
fn line(snapshot: &Snapshot, duration: Duration) -> String {
    let share = (snapshot.elapsed.as_secs_f64() / duration.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
    let full = (share * BAR_WIDTH as f64).round() as usize;
    format!(
        "[{}{}] {}/{} s  {:.0} rps  {} in flight  ok {}  failed {}  shed {}  p50 {}  p99 {}",
        "█".repeat(full),
        "·".repeat(BAR_WIDTH - full),
        snapshot.elapsed.as_secs(),
        duration.as_secs(),
        snapshot.rate_rps_planned,
        snapshot.in_flight,
        snapshot.counts.ok,
        snapshot.counts.failed(),
        snapshot.counts.shed,
        milliseconds(snapshot.p50),
        milliseconds(snapshot.p99),
    )
}

fn milliseconds(quantile: Option<Quantile>) -> String {
    match quantile {
        None => "–".to_owned(),
        Some(Quantile::Missed) => "missed".to_owned(),
        Some(Quantile::Answered(us)) => format!("{:.0} ms", us as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::outcome::Failure;

    #[test]
    fn the_line_says_where_the_run_is() {
        let mut snapshot =
            Snapshot { elapsed: Duration::from_secs(30), rate_rps_planned: 12.4, ..Snapshot::default() };
        (snapshot.counts.ok, snapshot.counts.shed) = (97, 2);
        snapshot.counts.failures.insert(Failure::Connect, 1);
        let line = line(&snapshot, Duration::from_secs(60));
        assert!(line.starts_with("[██████████··········] 30/60 s  12 rps"), "{line}");
        assert!(line.contains("ok 97  failed 1  shed 2  p50 –"), "{line}");
    }
}
