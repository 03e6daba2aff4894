//! How long replicas take from being asked for to being ready, learned from what they took.
//!
//! Nobody says which replica became ready, only how many are: replicas are taken to become ready in the order in
//! which they were asked for.
//!
//! **Invariant**: an estimate is never longer than [`START_UP_MAX`], whatever the clock does.
use super::ReplicaCounts;
use std::collections::VecDeque;
use std::time::Duration;

/// Replicas that are followed on their way up, and start-up times remembered.
const FOLLOWED_MAX: usize = 4096;
const REMEMBERED: usize = 16;
/// Longest start-up time believed: beyond it a replica is stuck.
pub(super) const START_UP_MAX: Duration = Duration::from_secs(600);

/// Start-up times so far.
#[derive(Clone, Debug, Default)]
pub(super) struct StartUp {
    /// When each replica that is on its way was first seen to be.
    asked_at: VecDeque<Duration>,
    /// Ready replicas at the last look, and when that was.
    ready: Option<(u32, Duration)>,
    took: VecDeque<Duration>,
}

impl StartUp {
    /// Takes in how many replicas are ready and on their way at `now`.
    pub(super) fn see(&mut self, now: Duration, replicas: ReplicaCounts) {
        if let Some((ready, looked_at)) = self.ready {
            for _ in 0..replicas.ready.saturating_sub(ready).min(FOLLOWED_MAX as u32) {
                // One that was never seen to start was asked for after the last look.
                let asked_at = self.asked_at.pop_front().unwrap_or(looked_at);
                if self.took.len() == REMEMBERED {
                    self.took.pop_front();
                }
                self.took.push_back(now.saturating_sub(asked_at).min(START_UP_MAX));
            }
        }
        self.ready = Some((replicas.ready, now));
        // Those that were given up were the last to be asked for.
        let starting = (replicas.starting as usize).min(FOLLOWED_MAX);
        self.asked_at.truncate(starting);
        self.asked_at.resize(starting, now);
    }

    /// After a jump of the clock it is not known when those on their way were asked for.
    pub(super) fn forget_those_on_their_way(&mut self) {
        self.asked_at.clear();
        self.ready = None;
    }

    /// The slowest of the latest start-up times; `None` before the first.
    pub(super) fn slowest(&self) -> Option<Duration> {
        self.took.iter().max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(ready: u32, starting: u32) -> ReplicaCounts {
        ReplicaCounts { desired: ready + starting, ready, starting, failing: 0 }
    }

    fn seen(story: &[(u64, u32, u32)]) -> Option<Duration> {
        let mut start_up = StartUp::default();
        for &(now_s, ready, starting) in story {
            start_up.see(Duration::from_secs(now_s), counts(ready, starting));
        }
        start_up.slowest()
    }

    #[test]
    fn it_is_from_being_asked_for_to_being_ready() {
        assert_eq!(seen(&[(0, 2, 0), (10, 2, 1), (14, 2, 1)]), None);
        assert_eq!(seen(&[(0, 2, 0), (10, 2, 1), (17, 3, 0)]), Some(Duration::from_secs(7)));
        // Two asked for three seconds apart: the first to be ready is the first that was asked for.
        let story = [(0, 2, 0), (10, 2, 1), (13, 2, 2), (15, 3, 1), (19, 4, 0)];
        assert_eq!(seen(&story), Some(Duration::from_secs(6)));
        // The second was given up before it was ready.
        assert_eq!(
            seen(&[(0, 2, 0), (10, 2, 1), (13, 2, 2), (14, 2, 1), (15, 3, 0)]),
            Some(Duration::from_secs(5))
        );
        // One that is up at the next look took no longer than from look to look.
        assert_eq!(seen(&[(0, 2, 0), (10, 2, 0), (11, 4, 0)]), Some(Duration::from_secs(1)));
        // One that was there at first says nothing.
        assert_eq!(seen(&[(5, 1, 0), (6, 1, 0)]), None);
    }

    #[test]
    fn the_latest_sixteen_are_remembered() {
        let mut start_up = StartUp::default();
        let mut now_s = 0;
        for round in 0..17_u32 {
            let took_s = if round == 0 { 50 } else { 3 };
            start_up.see(Duration::from_secs(now_s), counts(round, 1));
            now_s += took_s;
            start_up.see(Duration::from_secs(now_s), counts(round + 1, 0));
            assert_eq!(start_up.slowest(), Some(Duration::from_secs(if round < 16 { 50 } else { 3 })));
        }
    }

    proptest! {
        #[test]
        fn estimates_and_memory_are_bounded(
            story in proptest::collection::vec((0_u64..10_000, 0_u32..10_000, 0_u32..10_000), 0..60),
        ) {
            let mut start_up = StartUp::default();
            for (now_s, ready, starting) in story {
                start_up.see(Duration::from_secs(now_s), counts(ready, starting));
                prop_assert!(start_up.asked_at.len() <= FOLLOWED_MAX && start_up.took.len() <= REMEMBERED);
                prop_assert!(start_up.slowest().is_none_or(|slowest| slowest <= START_UP_MAX));
            }
        }
    }
}
