//! Looks at every known replica's readiness.
//!
//! **Invariant**: one look at a replica is under way at a time, and one more where it was asked for; none lasts longer
//! than `probe_timeout`, and a replica that hangs delays the looks at no other.
use super::State;
use super::pool::Known;
use super::upstream::{ExchangeError, get};
use super::wire::{Readiness, ReplicaState};
use crate::net::shutdown::Shutdown;
use http::StatusCode;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Largest answer to a look, bytes.
const READINESS_BYTES_MAX: usize = 16 << 10;
/// Looks in vain after which a replica is down: one may fall into a moment in which its CPU was taken away.
const SILENCES_MAX: u32 = 2;

/// What a look found.
enum Seen {
    /// It answered, or refused to.
    Something,
    /// It took the connection and said nothing.
    Silence,
}

/// Looks that are asked for out of turn.
#[derive(Default)]
pub(super) struct Looks {
    urls: Mutex<BTreeSet<String>>,
    asked: Notify,
}

impl Looks {
    pub(super) fn ask_for(&self, url: &str) {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner).insert(url.to_owned());
        self.asked.notify_one();
    }

    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.urls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks every `probe_interval`, and when it is asked to, until `shutdown` drains.
pub(super) async fn watch(state: Arc<State>, wanted: Arc<Looks>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(state.config.settings.probe_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = JoinSet::new();
    // Silences in a row of those that are being looked at (nothing while one is under way) and of the others.
    let mut silences: HashMap<Arc<str>, Option<u32>> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.drained() => return,
            Some(looked) = looks.join_next() => {
                let Ok((url, before, seen)): Result<(Arc<str>, u32, Seen), _> = looked else { continue };
                let silent = match seen {
                    Seen::Something => 0,
                    Seen::Silence => before + 1,
                };
                if silent >= SILENCES_MAX {
                    state.pool.unready(&url, ReplicaState::Down);
                }
                silences.insert(url, Some(silent));
            }
            () = wanted.asked.notified() => {
                let urls = wanted.take();
                let known = state.pool.known().into_iter();
                for replica in known.filter(|replica| replica.due && urls.contains(&*replica.url)) {
                    // One that is under way may have begun before the replica listened, and may hang.
                    looks.spawn(look(Arc::clone(&state), replica, 0));
                }
            }
            _ = ticks.tick() => {
                let known = state.pool.known();
                silences.retain(|url, _| known.iter().any(|replica| replica.url == *url));
                for replica in known.into_iter().filter(|replica| replica.due) {
                    let under_way = silences.entry(Arc::clone(&replica.url)).or_insert(Some(0));
                    if let Some(before) = under_way.take() {
                        looks.spawn(look(Arc::clone(&state), replica, before));
                    }
                }
            }
        }
    }
}

async fn look(state: Arc<State>, replica: Known, before: u32) -> (Arc<str>, u32, Seen) {
    let url = replica.url;
    let asked = replica.upstream.exchange(|| get("/readyz"), READINESS_BYTES_MAX);
    let seen = match tokio::time::timeout(state.config.settings.probe_timeout, asked).await {
        Err(_) => Seen::Silence,
        Ok(answer) => {
            judge(&state, &url, answer.map(|answer| (answer.status(), answer.into_body().into_bytes())));
            Seen::Something
        }
    };
    (url, before, seen)
}

fn judge(state: &State, url: &str, answer: Result<(StatusCode, bytes::Bytes), ExchangeError>) {
    match answer {
        Ok((status, body)) if status.is_success() => match serde_json::from_slice::<Readiness>(&body) {
            Ok(readiness) if readiness.ready => state.pool.ready(url, readiness.slots),
            Ok(_) => state.pool.unready(url, ReplicaState::Draining),
            Err(error) => tracing::warn!(url, %error, "this is no elastic replica: its /readyz is not ours"),
        },
        // It runs and says that it takes nothing new.
        Ok(_) => state.pool.unready(url, ReplicaState::Draining),
        Err(_) => state.pool.unready(url, ReplicaState::Down),
    }
}
