//! How far the runs are: a live line on a terminal, a log line every ten seconds elsewhere.
use crate::simulate::play::Progress;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

const BAR_WIDTH: usize = 20;
/// Short runs have no progress to show.
const FIRST: Duration = Duration::from_secs(1);
const LIVE_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Shows progress until it is dropped.
pub(super) async fn show(progress: &Progress) -> std::convert::Infallible {
    let live = std::io::stderr().is_terminal();
    let (first, every) = if live { (FIRST, LIVE_EVERY) } else { (LOG_EVERY, LOG_EVERY) };
    let started = Instant::now();
    let mut ticks = interval_at(started + first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let _line = Line { live };
    loop {
        ticks.tick().await;
        let share = progress.share();
        if live {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{}", line(share));
        } else {
            let percent = (share * 100.0).floor();
            tracing::info!(elapsed_s = started.elapsed().as_secs(), percent, "simulating");
        }
    }
}

/// Takes the live line away when it is dropped.
struct Line {
    live: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.live {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

fn line(share: f64) -> String {
    let full = (share * BAR_WIDTH as f64).floor() as usize;
    let what = if share < 1.0 { "simulating" } else { "looking for the bound" };
    format!("[{}{}] {:.0} %  {what}", "█".repeat(full), "·".repeat(BAR_WIDTH - full), (share * 100.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        assert_eq!(line(0.0), "[····················] 0 %  simulating");
        assert_eq!(line(0.509), "[██████████··········] 50 %  simulating");
        assert_eq!(line(1.0), "[████████████████████] 100 %  looking for the bound");
    }
}
