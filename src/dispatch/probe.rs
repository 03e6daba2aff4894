//! Looks at every known replica's readiness, and at the DNS name that lists them.
//!
//! **Invariant**: one look at a replica is under way at a time, and none lasts longer than a second.
use super::State;
use super::pool::Source;
use super::wire::{Readiness, ReplicaState};
use crate::net::shutdown::Shutdown;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks every `probe_interval` until `shutdown` drains.
pub(super) async fn watch(state: Arc<State>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(state.config.settings.probe_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.drained() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = shutdown.drained() => return,
            () = round(&state) => {}
        }
    }
}

async fn round(state: &Arc<State>) {
    if let Some(name) = &state.config.peers.replica_dns {
        resolve(state, name).await;
    }
    let mut looks = JoinSet::new();
    for (url, source, current, away) in state.pool.known() {
        let forget_after = state.config.settings.forget_after;
        if source == Source::Registered && away.is_some_and(|away| away > forget_after) {
            state.pool.forget(&url);
            continue;
        }
        // Who registered and said goodbye has no more to say.
        let asked = source != Source::Registered || current != ReplicaState::Draining;
        if asked {
            looks.spawn(look(Arc::clone(state), url));
        }
    }
    looks.join_all().await;
}

async fn look(state: Arc<State>, url: Arc<str>) {
    let answer = state.client.get(format!("{url}/readyz")).timeout(LOOK_TIMEOUT).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => match answer.json::<Readiness>().await {
            Ok(readiness) if readiness.ready => state.pool.ready(&url, readiness.slots),
            Ok(_) => state.pool.unready(&url, ReplicaState::Draining),
            Err(error) => tracing::warn!(%url, %error, "this is no elastic replica: its /readyz is not ours"),
        },
        // It runs and says that it takes nothing new.
        Ok(_) => state.pool.unready(&url, ReplicaState::Draining),
        // A busy replica may be slow to answer; a request that it fails will tell.
        Err(error) if error.is_timeout() && !error.is_connect() => {}
        Err(_) => state.pool.unready(&url, ReplicaState::Down),
    }
}

/// Learns the addresses that the name has and forgets those that it no longer has.
async fn resolve(state: &Arc<State>, name: &str) {
    let found = match tokio::time::timeout(LOOK_TIMEOUT, tokio::net::lookup_host(name)).await {
        Ok(Ok(addresses)) => addresses.map(|address| format!("http://{address}")).collect::<HashSet<_>>(),
        Ok(Err(error)) => {
            // A headless Service without ready pods has no addresses, which is an error too.
            tracing::debug!(name, %error, "the name of the replicas does not resolve");
            return;
        }
        Err(_) => {
            tracing::warn!(name, "resolving the name of the replicas timed out");
            return;
        }
    };
    for url in &found {
        if !state.pool.learn(url, Source::Dns) {
            tracing::warn!(url, "too many replicas; raise --replicas-known-max");
        }
    }
    for (url, source, state_now, _) in state.pool.known() {
        if source == Source::Dns && !found.contains(&*url) {
            // Requests under way finish: the address is only no longer offered.
            if state_now == ReplicaState::Ready {
                state.pool.unready(&url, ReplicaState::Draining);
            } else {
                state.pool.forget(&url);
            }
        }
    }
}
