//! Where replicas come from. Each way tells a [`Fleet`] and knows nothing of queues and slots.
//!
//! **Invariant**: a way of discovery changes the replicas of its own kind alone.
pub(super) mod dns;
pub(super) mod listed;
pub(super) mod registration;
pub(super) mod slices;

use super::pool::{Pool, Source};
use super::probe::Looks;
use super::wire::ReplicaState;
use crate::net::shutdown::Shutdown;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What runs until the shutdown.
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A way to learn of replicas.
pub(super) trait Discovery: Send {
    /// Which replicas are its own.
    fn source(&self) -> Source;

    /// Tells `fleet` of replicas as they come and go, until `shutdown` drains.
    fn run(self: Box<Self>, fleet: Fleet, shutdown: Shutdown) -> Running;
}

/// The replicas of one way of discovery, as it may change them.
#[derive(Clone)]
pub(super) struct Fleet {
    pool: Arc<Pool>,
    source: Source,
    looks: Arc<Looks>,
}

impl Fleet {
    pub(super) fn new(pool: Arc<Pool>, source: Source, looks: Arc<Looks>) -> Self {
        Self { pool, source, looks }
    }

    /// One is said to be ready: it is looked at now rather than at the next turn.
    pub(super) fn look(&self, url: &str) {
        self.looks.ask_for(url);
    }

    /// These are all: new ones are looked at, missing ones get nothing new and are forgotten once idle.
    pub(super) fn set(&self, urls: &BTreeSet<String>) {
        for url in urls {
            if !self.pool.learn(url, self.source) {
                tracing::warn!(
                    url,
                    "replica ignored; too many (--replicas-known-max), or its URL is of no use"
                );
            }
        }
        for known in self.pool.known() {
            if known.source == self.source && !urls.contains(&*known.url) {
                // Requests under way finish: the address is only no longer offered.
                if known.state == ReplicaState::Ready {
                    self.pool.unready(&known.url, ReplicaState::Draining);
                } else {
                    self.pool.forget(&known.url);
                }
            }
        }
    }

    /// One is ready for `slots` requests at once. False when there are too many.
    pub(super) fn join(&self, url: &str, slots: u32) -> bool {
        let learned = self.pool.learn(url, self.source);
        if learned {
            self.pool.ready(url, slots);
        }
        learned
    }

    /// One takes nothing new, and is forgotten once it has finished what it has.
    pub(super) fn leave(&self, url: &str) {
        self.pool.unready(url, ReplicaState::Draining);
    }

    /// Forgets those that have not been reachable for longer than `away_max`.
    pub(super) fn forget_away(&self, away_max: Duration) {
        for known in self.pool.known() {
            if known.source == self.source && known.away.is_some_and(|away| away > away_max) {
                self.pool.forget(&known.url);
            }
        }
    }
}
