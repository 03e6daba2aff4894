//! Who among several acts: leader election over a lease that all of them read and write, as Kubernetes' own
//! controllers do it (its `client-go/tools/leaderelection`).
//!
//! **Invariant**: two never act at once while their clocks run at about the same speed. The holder stops two thirds of
//! the lease's duration after it *asked* for its last renewal; another takes over once it has *seen* no renewal for
//! the whole duration. Nobody reads a time that another wrote, so that clocks which differ or jump do no harm.
use std::time::Duration;

/// A moment by two clocks. A machine that was suspended shows in the second alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since this process's start, by a clock that never jumps.
    pub steady: Duration,
    /// Since the Unix epoch.
    pub wall: Duration,
}

/// A lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it; empty when nobody does.
    pub holder: String,
    /// For how long after a renewal it is held.
    pub duration: Duration,
    /// Changes with every write.
    pub version: String,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the lease as one's own: nobody holds it, or its holder has gone.
    Take,
    /// Write one's own lease again.
    Renew,
    /// Another holds it: look again after this long.
    Wait(Duration),
}

/// One candidate's view.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    duration: Duration,
    /// Another's lease, and when it was first seen as it is.
    other: Option<(Lease, Duration)>,
    /// When the last renewal that succeeded was asked for.
    renewed: Option<Moment>,
}

impl Election {
    /// A candidate whose own leases last for `duration`.
    #[must_use]
    pub fn new(identity: String, duration: Duration) -> Self {
        Self { identity, duration, other: None, renewed: None }
    }

    /// Time between two looks at the lease, and between two renewals.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.duration / 5
    }

    /// What to do about the lease, which does not exist yet where it is `None`.
    pub fn look(&mut self, now: Moment, lease: Option<&Lease>) -> Step {
        match lease {
            Some(lease) if lease.holder == self.identity => {
                self.other = None;
                return Step::Renew;
            }
            Some(lease) if lease.holder.is_empty() => self.other = None,
            Some(lease) if self.other.as_ref().is_none_or(|(seen, _)| seen != lease) => {
                self.other = Some((lease.clone(), now.steady));
            }
            // Unchanged; or somebody removed it, and its holder may not have noticed yet.
            Some(_) | None => {}
        }
        self.renewed = None;
        let Some((seen, since)) = &self.other else { return Step::Take };
        let left = seen.duration.max(self.duration).saturating_sub(now.steady.saturating_sub(*since));
        if left.is_zero() { Step::Take } else { Step::Wait(left.min(self.pause())) }
    }

    /// The lease that was asked for at `asked` is one's own.
    pub fn renewed(&mut self, asked: Moment) {
        self.renewed = Some(asked);
        self.other = None;
    }

    /// The lease is one's own no more.
    pub fn lost(&mut self) {
        self.renewed = None;
    }

    /// For how long one may still act without another renewal; `None` when not at all.
    #[must_use]
    pub fn acts_for(&self, now: Moment) -> Option<Duration> {
        let asked = self.renewed?;
        let steady = now.steady.saturating_sub(asked.steady);
        let wall = now.wall.saturating_sub(asked.wall);
        let left = (self.duration * 2 / 3).saturating_sub(steady.max(wall));
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DURATION: Duration = Duration::from_secs(10);

    fn at(steady_s: f64) -> Moment {
        let steady = Duration::from_secs_f64(steady_s);
        Moment { steady, wall: Duration::from_secs(1_000_000) + steady }
    }

    fn lease(holder: &str, version: u32) -> Lease {
        Lease { holder: holder.to_owned(), duration: DURATION, version: version.to_string() }
    }

    fn candidate() -> Election {
        Election::new("b".to_owned(), DURATION)
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_at_once() {
        assert_eq!(candidate().look(at(0.0), None), Step::Take);
        assert_eq!(candidate().look(at(0.0), Some(&lease("", 1))), Step::Take);
    }

    #[test]
    fn another_is_waited_for_as_long_as_it_renews_and_for_a_whole_duration_after() {
        let mut election = candidate();
        for second in 0..30 {
            let renewed = lease("a", second / 2);
            let step = election.look(at(f64::from(second)), Some(&renewed));
            assert_eq!(step, Step::Wait(Duration::from_secs(2)), "{second}");
        }
        // First seen at 28 s as it is; the last look lands on the very end.
        assert_eq!(election.look(at(37.5), Some(&lease("a", 14))), Step::Wait(Duration::from_millis(500)));
        assert_eq!(election.look(at(38.0), Some(&lease("a", 14))), Step::Take);
    }

    #[test]
    fn a_lease_that_vanished_is_still_its_holders_for_a_while() {
        let mut election = candidate();
        election.look(at(0.0), Some(&lease("a", 1)));
        assert!(matches!(election.look(at(2.0), None), Step::Wait(_)));
        assert_eq!(election.look(at(10.0), None), Step::Take);
    }

    #[test]
    fn the_holder_stops_by_itself_before_another_may_begin() {
        let mut election = candidate();
        assert_eq!(election.acts_for(at(0.0)), None);
        election.renewed(at(1.0));
        assert_eq!(election.acts_for(at(1.0)), Some(DURATION * 2 / 3));
        assert!(election.acts_for(at(7.6)).is_some());
        assert_eq!(election.acts_for(at(7.7)), None);
        election.renewed(at(8.0));
        assert!(election.acts_for(at(9.0)).is_some());
        election.lost();
        assert_eq!(election.acts_for(at(9.0)), None);
    }

    #[test]
    fn a_holder_that_sees_another_in_its_place_stops() {
        let mut election = candidate();
        election.renewed(at(1.0));
        election.look(at(2.0), Some(&lease("a", 7)));
        assert_eq!(election.acts_for(at(2.0)), None);
    }

    #[test]
    fn a_holder_that_was_suspended_does_not_act_before_it_has_renewed() {
        let mut election = candidate();
        election.renewed(at(1.0));
        let woken = Moment { wall: at(1.0).wall + Duration::from_secs(3600), ..at(1.1) };
        assert_eq!(election.acts_for(woken), None);
        let set_back = Moment { wall: Duration::from_secs(5), ..at(1.1) };
        assert!(election.acts_for(set_back).is_some(), "a clock that is set back takes nothing away");
    }

    proptest! {
        /// Candidates with random pauses, crashes, lost answers and clocks that differ, over one lease with
        /// compare-and-set: at no time do two act, and a lease without a holder finds one within 15 s.
        #[test]
        fn two_never_act_at_once(
            events in proptest::collection::vec((0..3_usize, 0..4_u8, 1..2500_u64), 1..200),
            skews_s in [0..10_000_u64, 0..10_000, 0..10_000],
        ) {
            let name = |who: usize| ["a", "b", "c"][who].to_owned();
            let mut all: Vec<_> = (0..3).map(|who| Election::new(name(who), DURATION)).collect();
            let mut stored: Option<Lease> = None;
            let (mut version, mut now) = (0_u32, Duration::ZERO);
            for (who, kind, pause_ms) in events {
                now += Duration::from_millis(pause_ms);
                let moment = |who: usize| {
                    let skew = Duration::from_secs(skews_s[who]);
                    Moment { steady: now + skew, wall: now + skew * 3 }
                };
                match kind {
                    // Dead: another process takes its place.
                    0 => all[who] = Election::new(name(who), DURATION),
                    // Cut off: it neither reads nor writes.
                    1 => {}
                    _ => {
                        let read = stored.clone();
                        let step = all[who].look(moment(who), read.as_ref());
                        if step == Step::Take || step == Step::Renew {
                            version += 1;
                            stored = Some(Lease { version: version.to_string(), ..lease(&name(who), 0) });
                            // The write may land and its answer be lost.
                            if kind == 2 {
                                all[who].renewed(moment(who));
                            }
                        }
                    }
                }
                let acting = (0..3).filter(|&who| all[who].acts_for(moment(who)).is_some()).count();
                prop_assert!(acting <= 1, "{acting} act at {now:?}");
            }
        }
    }
}
