//! A place on a replica, which gives itself back.
//!
//! **Invariant**: whoever holds a [`Slot`] occupies exactly one place of one replica until it is dropped.
use super::pool::Pool;
use super::upstream::Upstream;
use super::wire::TimingMs;
use crate::logic::queue::{Finish, ReplicaId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// See the module's documentation.
pub(super) struct Slot {
    pub(super) pool: Arc<Pool>,
    /// The replica's base URL.
    pub(super) url: Arc<str>,
    /// The way to it.
    pub(super) upstream: Arc<Upstream>,
    /// The replica.
    pub(super) replica: ReplicaId,
    /// When the place was taken.
    pub(super) since: Instant,
    /// The same as the queue counts time.
    pub(super) started: Duration,
    /// When the request's time runs out; later than it asked for if it waited for a first replica.
    pub(super) expires_at: Instant,
    /// When a copy of the request is sent elsewhere if there is a slot to spare.
    pub(super) hedge_at: Option<Instant>,
    /// When the request has to go elsewhere to be answered in time.
    pub(super) last_chance_at: Option<Instant>,
    /// How it was used; nothing once the place was given back by other means.
    pub(super) ending: Option<Finish>,
}

impl Slot {
    /// Gives the place back after a try that ended so.
    pub(super) fn finish(mut self, how: Finish) {
        self.ending = Some(how);
    }

    /// Gives the place back after an answer that says where its time went.
    pub(super) fn answered(self, stages: Option<TimingMs>) {
        self.pool.note_answer(self.replica, stages);
        self.finish(Finish::Answered);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(how) = self.ending {
            self.pool.give_back(self.replica, self.started, how);
        }
    }
}
