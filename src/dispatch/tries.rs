//! Getting a request answered: a slot, a try on its replica, and others elsewhere while time and budget last.
//!
//! **Invariant**: a request is on at most two replicas at once; whatever sends it again, a failure or a hedge, takes
//! from one budget; a replica that is merely busy costs the request its turn nowhere.
use super::State;
use super::pool::Wanted;
use super::request::{Forwarded, Spent};
use super::slot::Slot;
use super::upstream::{Answer, ExchangeError, is_failure};
use super::wire::{ReplicaState, SERVER_TIMING, TimingMs};
use crate::logic::queue::{Finish, Place, Refusal, ReplicaId};
use crate::net::error::ApiError;
use http::{HeaderMap, StatusCode};
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::time::Instant;

/// How a request ended.
pub(super) enum Ended {
    /// With a replica's answer.
    Answered(Answer),
    /// With a replica's answer that says that it failed.
    Failed(Answer),
    /// No replica gave an answer.
    Unanswered(ApiError),
    /// Its time ran out on a replica.
    TimedOut,
    /// It got no slot.
    Refused(Refusal),
}

/// How one try on one replica ended.
enum Try {
    Answered {
        answer: Answer,
        /// How long it held the slot of the replica that answered.
        service: Duration,
    },
    /// The replica was too busy or is draining.
    Busy,
    /// The replica failed.
    Failed(Failure),
    /// There was no slot for it.
    NoSlot(Refusal),
}

struct Failure {
    replica: ReplicaId,
    /// What it said, if it said something.
    answer: Option<Answer>,
    why: String,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        match failure.answer {
            Some(answer) => Self::Failed(answer),
            None => Self::Unanswered(ApiError::new(
                StatusCode::BAD_GATEWAY,
                format!("no replica could answer: {}", failure.why),
            )),
        }
    }
}

/// Has a request answered. What it spent is told as it goes, so that it is known however it ends.
pub(super) async fn answer(state: &State, forwarded: &Forwarded, spent: &mut Spent) -> Ended {
    let arrived_at = Instant::now();
    let mut wanted = Wanted {
        expires_at: forwarded.expires_at,
        patient_until: forwarded.patient_until,
        place: Place::Back,
        avoid: None,
    };
    let mut last: Option<Failure> = None;
    let mut retries = 0;
    loop {
        let slot = match state.pool.acquire(wanted).await {
            Ok(slot) => slot,
            // What it failed of first says more than that there is no time left.
            Err(refusal) => return last.map_or(Ended::Refused(refusal), Ended::from),
        };
        spent.waited = Some(slot.since.saturating_duration_since(arrived_at));
        // It may have been given more time, to wait for a first replica.
        wanted.expires_at = slot.expires_at;
        wanted.place = Place::Front;
        let since = slot.since;
        let tried = Race { state, forwarded, wanted }.run(slot).await;
        spent.service = Some(since.elapsed());
        match tried {
            None => return Ended::TimedOut,
            Some(Try::Answered { answer, service }) => {
                spent.service = Some(service);
                return Ended::Answered(answer);
            }
            // It goes back to the head of the line; the replica is left alone for a moment.
            Some(Try::Busy) => continue,
            Some(Try::NoSlot(refusal)) => return last.map_or(Ended::Refused(refusal), Ended::from),
            Some(Try::Failed(failure)) => {
                tracing::warn!(why = failure.why, retries, "a replica failed a request");
                if retries >= state.config.settings.retries_max || !state.pool.may_send_again() {
                    return failure.into();
                }
                wanted.avoid = Some(failure.replica);
                last = Some(failure);
            }
        }
        retries += 1;
        state.metrics.retried();
    }
}

/// A try, and a copy of it on another replica if it takes too long; the first answer wins.
struct Race<'a> {
    state: &'a State,
    forwarded: &'a Forwarded,
    wanted: Wanted,
}

impl Race<'_> {
    /// How it ended; nothing if the time ran out.
    async fn run(self, slot: Slot) -> Option<Try> {
        let wanted = Wanted { avoid: Some(slot.replica), ..self.wanted };
        let (expires_at, mut hedge_at, last_chance_at) =
            (slot.expires_at, slot.hedge_at, slot.last_chance_at);
        let mut first = pin!(attempt(self.state, slot, self.forwarded));
        loop {
            let mark = hedge_at.into_iter().chain(last_chance_at).fold(expires_at, Instant::min);
            match tokio::time::timeout_at(mark, first.as_mut()).await {
                Ok(tried) => return Some(tried),
                Err(_) if Instant::now() >= expires_at => return None,
                Err(_) => {}
            }
            let is_last_chance = last_chance_at.is_some_and(|at| at <= mark);
            if is_last_chance {
                if !self.state.pool.may_send_again() {
                    return tokio::time::timeout_at(expires_at, first).await.ok();
                }
                self.state.metrics.hedged();
                let second = async {
                    match self.state.pool.acquire(wanted).await {
                        Ok(slot) => attempt(self.state, slot, self.forwarded).await,
                        Err(refusal) => Try::NoSlot(refusal),
                    }
                };
                return tokio::time::timeout_at(expires_at, first_answer(first, pin!(second))).await.ok();
            }
            hedge_at = None;
            if let Some(slot) = self.state.pool.spare(&wanted)
                && self.state.pool.may_send_again()
            {
                self.state.metrics.hedged();
                let second = pin!(attempt(self.state, slot, self.forwarded));
                return tokio::time::timeout_at(expires_at, first_answer(first, second)).await.ok();
            }
        }
    }
}

/// The first of two tries that has an answer; if neither has, how the one failed that got furthest.
async fn first_answer(
    mut first: Pin<&mut impl Future<Output = Try>>,
    mut second: Pin<&mut impl Future<Output = Try>>,
) -> Try {
    let (tried, other_is_first) = tokio::select! {
        tried = first.as_mut() => (tried, false),
        tried = second.as_mut() => (tried, true),
    };
    if matches!(tried, Try::Answered { .. }) {
        return tried;
    }
    let other = if other_is_first { first.await } else { second.await };
    match (&tried, &other) {
        (Try::Failed(_), Try::Busy | Try::NoSlot(_)) => tried,
        _ => other,
    }
}

/// Sends the request to the slot's replica.
async fn attempt(state: &State, slot: Slot, forwarded: &Forwarded) -> Try {
    let request = || forwarded.request(slot.expires_at);
    let exchanged = slot.upstream.exchange(request, state.config.settings.answer_bytes_max).await;
    let failed = |slot: Slot, answer, why| {
        let replica = slot.replica;
        slot.finish(Finish::Failed);
        Try::Failed(Failure { replica, answer, why })
    };
    match exchanged {
        Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
            slot.finish(Finish::Refused);
            Try::Busy
        }
        Ok(answer) if is_failure(answer.status()) => {
            let why = format!("it answered {}", answer.status());
            failed(slot, Some(answer), why)
        }
        Ok(answer) => {
            let service = slot.since.elapsed();
            // A time-out there says nothing about how long a request takes.
            if answer.status() == StatusCode::GATEWAY_TIMEOUT {
                slot.finish(Finish::Abandoned);
            } else {
                slot.answered(stages(answer.headers()));
            }
            Try::Answered { answer, service }
        }
        Err(error @ (ExchangeError::TooLarge | ExchangeError::Address(_))) => {
            let why = error.to_string();
            failed(slot, None, why)
        }
        Err(error) => {
            // Not to be used until it is seen ready again.
            state.pool.unready(&slot.url, ReplicaState::Down);
            let why = error.to_string();
            failed(slot, None, why)
        }
    }
}

/// Where a replica's time went, by its `Server-Timing`.
fn stages(headers: &HeaderMap) -> Option<TimingMs> {
    let text = headers.get(SERVER_TIMING)?.to_str().ok()?;
    let of = |name: &str| {
        let entry = text
            .split(',')
            .map(str::trim)
            .find(|entry| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with(";dur=")))?;
        let ms: f64 = entry.get(name.len() + ";dur=".len()..)?.parse().ok()?;
        (ms.is_finite() && ms >= 0.0).then_some(ms)
    };
    Some(TimingMs { queue: of("queue")?, decode: of("decode")?, infer: of("infer")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_tells_where_its_time_went() {
        let stages_of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(SERVER_TIMING, text.parse().unwrap());
            stages(&headers)
        };
        let expected = TimingMs { queue: 0.1, decode: 0.4, infer: 3.0 };
        assert_eq!(stages_of("queue;dur=0.1, decode;dur=0.4, infer;dur=3.0"), Some(expected));
        assert_eq!(stages_of("infer;dur=3.0,queue;dur=0.1,x;dur=9,decode;dur=0.4"), Some(expected));
        for wrong in [
            "",
            "queue;dur=0.1",
            "queue;dur=x, decode;dur=1, infer;dur=1",
            "queue;dur=-1, decode;dur=1, infer;dur=1",
        ] {
            assert_eq!(stages_of(wrong), None, "{wrong}");
        }
        assert_eq!(stages(&HeaderMap::new()), None);
    }
}
