//! Threads that work on one image together.
//!
//! A layer takes less time than waking a thread, so that helpers go on looking for work for a while before they
//! sleep. A team of one is the calling thread and costs nothing.
//!
//! **Invariant**: a job is over when [`Team::run`] returns or panics: no helper touches what it borrowed afterwards.
use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, yield_now};

/// Looks for work before a helper sleeps: some tens of microseconds, longer than what lies between two layers.
const LOOKS: usize = 20_000;

/// Looks before whoever waits lets another thread run: helpers may have no CPU of their own.
const LOOKS_BEFORE_YIELDING: usize = 2_000;

type Job = dyn Fn(usize) + Sync;

/// What members share.
struct Shared {
    /// Rises with every job.
    generation: AtomicUsize,
    /// Helpers that are not done yet.
    pending: AtomicUsize,
    stopping: AtomicBool,
    panicked: AtomicBool,
    /// The job; written only while no helper is at work.
    job: UnsafeCell<Option<*const Job>>,
}

// SAFETY: the job is Sync; the cell is written by the caller while `pending` is zero and read by helpers after
// they saw the generation that was published after the write.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// The calling thread and its helpers.
pub(in crate::model) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `members`, the calling thread among them; at least one.
    pub(in crate::model) fn new(members: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        let mut team = Self { shared, helpers: Vec::new() };
        for member in 1..members {
            let shared = Arc::clone(&team.shared);
            let helper = std::thread::Builder::new().name(format!("team-{member}"));
            team.helpers.push(helper.spawn(move || help(&shared, member))?);
        }
        Ok(team)
    }

    /// Calls `job` with 0, 1, … up to the number of members, each on a thread of its own, and waits for all.
    ///
    /// # Panics
    /// If a member did.
    pub(in crate::model) fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        #[allow(clippy::transmute_ptr_to_ptr)] // a cast cannot make a lifetime longer
        // SAFETY: only the lifetime changes; the job is not used after this function has waited for all helpers.
        let job_forever = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Job>(job) };
        // SAFETY: no helper is at work: the last job is over and `self` is borrowed mutably.
        unsafe { *shared.job.get() = Some(job_forever) };
        shared.pending.store(self.helpers.len(), Ordering::Relaxed);
        shared.generation.fetch_add(1, Ordering::Release);
        for helper in &self.helpers {
            helper.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut looks = 0;
        while shared.pending.load(Ordering::Acquire) != 0 {
            looks += 1;
            if looks < LOOKS_BEFORE_YIELDING { spin_loop() } else { yield_now() }
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            let panic: Box<dyn Any + Send> = Box::new("a helper panicked");
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper's panic was told when it happened.
            let _ = helper.join();
        }
    }
}

/// A helper's life.
fn help(shared: &Shared, member: usize) {
    let mut seen = 0;
    loop {
        let mut looks = 0;
        while shared.generation.load(Ordering::Acquire) == seen {
            looks += 1;
            if looks < LOOKS { spin_loop() } else { std::thread::park() }
        }
        seen = shared.generation.load(Ordering::Acquire);
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the generation was published after the job was written, and the job lives until this helper
        // is no longer pending.
        let done = catch_unwind(AssertUnwindSafe(|| unsafe {
            if let Some(job) = *shared.job.get() {
                (*job)(member);
            }
        }));
        if done.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.pending.fetch_sub(1, Ordering::Release);
    }
}

/// The share of a member in `total` things.
pub(in crate::model) fn share(total: usize, member: usize, members: usize) -> std::ops::Range<usize> {
    total * member / members..total * (member + 1) / members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_does_every_job_once() {
        for members in 1..4 {
            let mut team = Team::new(members).unwrap();
            let counts: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..500 {
                team.run(&|member| {
                    counts[member].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 500), "{counts:?}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(2).unwrap();
        for culprit in 0..2 {
            let job = |member: usize| assert_ne!(member, culprit, "on purpose");
            assert!(catch_unwind(AssertUnwindSafe(|| team.run(&job))).is_err());
            team.run(&|_| ());
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for (total, members) in [(7, 2), (1, 3), (0, 2), (14, 4)] {
            let all: Vec<usize> = (0..members).flat_map(|member| share(total, member, members)).collect();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
    }
}
