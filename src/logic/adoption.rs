//! Somebody else sets the number of replicas: a person, or a program that is not ours.
//!
//! **Invariant**: their number is the new state, and is kept for a while: an autoscaler that took it back at once would
//! fight whoever has a reason that it cannot see.
use std::time::Duration;

/// A number that somebody else set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it was before.
    pub from: u32,
    /// What they set.
    pub to: u32,
}

/// Tells one's own changes from others'.
#[derive(Clone, Debug)]
pub struct Adoption {
    keep: Duration,
    known: Option<u32>,
    /// Asked for by ourselves; it may take effect later than its answer is waited for.
    asked: Option<u32>,
    until: Option<Duration>,
}

impl Adoption {
    /// Others' numbers are kept for `keep`.
    #[must_use]
    pub fn new(keep: Duration) -> Self {
        Self { keep, known: None, asked: None, until: None }
    }

    /// We ask for `replicas`; whether it took effect is not known yet.
    pub fn ask(&mut self, replicas: u32) {
        self.asked = Some(replicas);
    }

    /// What we asked for took effect: any other number from now on is somebody else's, the one of before too.
    pub fn took_effect(&mut self) {
        if let Some(replicas) = self.asked.take() {
            self.known = Some(replicas);
        }
    }

    /// So many are wanted now. What somebody else set since the last look, where we are the one who decides
    /// (`acting`); nobody's change is foreign to one who stands by.
    pub fn observe(&mut self, now: Duration, desired: u32, acting: bool) -> Option<Foreign> {
        let known = self.known.replace(desired);
        if self.asked == Some(desired) {
            self.asked = None;
            return None;
        }
        let from = known.filter(|known| *known != desired && acting)?;
        self.asked = None;
        self.until = Some(now + self.keep);
        Some(Foreign { from, to: desired })
    }

    /// For how long somebody else's number is still kept.
    #[must_use]
    pub fn kept_for(&self, now: Duration) -> Option<Duration> {
        self.until.map(|until| until.saturating_sub(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(40);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_asked_for_is_not_foreign_whenever_it_takes_effect() {
        let mut adoption = Adoption::new(KEEP);
        assert_eq!(adoption.observe(s(0), 2, true), None, "the first look is where we start from");
        adoption.ask(4);
        assert_eq!(adoption.observe(s(1), 2, true), None, "not yet");
        assert_eq!(adoption.observe(s(2), 4, true), None);
        assert_eq!(adoption.kept_for(s(2)), None);
    }

    #[test]
    fn somebody_elses_number_is_kept_and_then_no_more() {
        let mut adoption = Adoption::new(KEEP);
        adoption.observe(s(0), 2, true);
        adoption.ask(3);
        assert_eq!(adoption.observe(s(1), 8, true), Some(Foreign { from: 2, to: 8 }));
        assert_eq!(adoption.kept_for(s(2)), Some(s(39)));
        assert_eq!(adoption.observe(s(2), 8, true), None, "it is said once");
        assert_eq!(adoption.observe(s(30), 3, true), Some(Foreign { from: 8, to: 3 }), "ours was long gone");
        assert_eq!(adoption.kept_for(s(70)), None);
    }

    #[test]
    fn a_number_that_is_set_back_at_once_is_foreign_too() {
        let mut adoption = Adoption::new(KEEP);
        adoption.observe(s(0), 3, true);
        adoption.ask(2);
        adoption.took_effect();
        assert_eq!(adoption.observe(s(1), 3, true), Some(Foreign { from: 2, to: 3 }));
        assert_eq!(adoption.kept_for(s(1)), Some(KEEP));
    }

    #[test]
    fn one_who_stands_by_takes_every_change_as_it_comes() {
        let mut adoption = Adoption::new(KEEP);
        adoption.observe(s(0), 2, false);
        assert_eq!(adoption.observe(s(1), 5, false), None);
        assert_eq!(adoption.observe(s(2), 5, true), None, "taking over changes nothing");
        assert_eq!(adoption.observe(s(3), 6, true), Some(Foreign { from: 5, to: 6 }));
    }
}
