//! What the live page draws from: news since a cursor, streamed once a second or asked for.
//!
//! **Invariant**: at most `subscribers_max` streams; each holds one update at most, since the next is made only
//! when the last has left. Every stream ends when the monitor drains.
use crate::monitor::decisions::Decided;
use crate::monitor::history::Point;
use crate::monitor::routes::{Shared, fresh, unread};
use crate::net::error::ApiError;
use crate::net::wire::Stats;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extract};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Time between two events. An event comes also when nothing happened: it is the heartbeat.
const INTERVAL: Duration = Duration::from_secs(1);

/// How far a reader has come: the life of the monitor that it knows, its last point, its last decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cursor {
    /// When the monitor started, seconds since the Unix epoch.
    life: f64,
    /// The last point's second.
    point: Option<u64>,
    /// The last decision's time, seconds since the Unix epoch.
    decided: Option<f64>,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let known = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        let life = parts.next()?.parse().ok().filter(|life: &f64| life.is_finite())?;
        let point = known(parts.next()?).map(|part| part.parse()).transpose().ok()?;
        let decided = known(parts.next()?).map(|part| part.parse()).transpose().ok()?;
        parts.next().is_none().then_some(Self { life, point, decided })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |part: Option<String>| part.unwrap_or_default();
        let (point, decided) = (self.point.map(|t| t.to_string()), self.decided.map(|t| t.to_string()));
        write!(f, "{}_{}_{}", self.life, part(point), part(decided))
    }
}

/// Data of an event of `GET /events`, and answer to `GET /update`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Hand it back as `?after=` to get what is new since; it has no meaning otherwise.
    pub cursor: String,
    /// Whether the reader's earlier points are of another life of the monitor, or it had none: forget them.
    pub anew: bool,
    /// Seconds since the monitor's start.
    pub now_s: f64,
    /// How far back points go, seconds.
    pub history_s: u64,
    /// Latency that is aimed at, milliseconds.
    pub target_ms: f64,
    /// Latency that was promised, milliseconds.
    pub promise_ms: f64,
    /// The seconds that are over since the last update, oldest first.
    pub points: Vec<Point>,
    /// As `GET /stats`.
    pub stats: Stats,
    /// The autoscaler's decisions since the last update, the latest last.
    pub decisions: Vec<Decided>,
    /// Why the autoscaler tells no decisions.
    pub decisions_error: Option<String>,
}

/// Query of `GET /events` and `GET /update`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AfterQuery {
    after: Option<String>,
}

/// What is new after `cursor`, and the cursor that comes next.
async fn update(shared: &Shared, cursor: &Cursor) -> (Update, Cursor) {
    let told = shared.decisions.latest().await;
    let life = shared.started_unix.as_secs_f64();
    let anew = (cursor.life - life).abs() > 1e-3;
    let cursor = if anew { Cursor { life, ..Cursor::default() } } else { *cursor };
    let (points, stats) = shared.points_and_stats(cursor.point);
    let decisions = told.after(cursor.decided.unwrap_or(f64::NEG_INFINITY), shared.started);
    let next = Cursor {
        life,
        point: points.last().map(|point| point.t_s).or(cursor.point),
        decided: decisions.last().map(|decided| decided.at_unix_s).or(cursor.decided),
    };
    let update = Update {
        cursor: next.to_string(),
        anew,
        now_s: shared.started.elapsed().as_secs_f64(),
        history_s: shared.config.history_age.as_secs(),
        target_ms: shared.config.target_latency.as_secs_f64() * 1e3,
        promise_ms: shared.config.promise.as_secs_f64() * 1e3,
        points,
        stats,
        decisions,
        decisions_error: told.answer.err().map(|error| error.message),
    };
    (update, next)
}

fn parse(after: Option<&str>) -> Result<Cursor, ApiError> {
    let wrong = || ApiError::bad_request("after must be the cursor of an earlier update");
    after.map_or(Ok(Cursor::default()), |text| Cursor::parse(text).ok_or_else(wrong))
}

/// `GET /update`: what the page asks for each second where events do not get through.
pub(super) async fn get_update(
    Extract(shared): Extract<Arc<Shared>>,
    query: Result<Query<AfterQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| unread(&error, "?after=CURSOR"))?;
    let (update, _) = update(&shared, &parse(query.after.as_deref())?).await;
    Ok(fresh(update))
}

/// `GET /events`: an update each second as a server-sent event, its cursor as the event's id.
pub(super) async fn events(
    Extract(shared): Extract<Arc<Shared>>,
    query: Result<Query<AfterQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| unread(&error, "?after=CURSOR"))?;
    // A browser that connects again says how far it came; what it asked for at first is older.
    let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let cursor = parse(last_id.or(query.after.as_deref()))?;
    let config = &shared.config;
    let Some(seat) = shared.subscribers.join() else {
        let limit = config.subscribers_max;
        return Err(ApiError::unavailable(format!(
            "{limit} readers follow the events already; poll /update, or start the monitor with a larger \
             --subscribers-max"
        )));
    };
    let mut answer = Sse::new(stream(shared, seat, cursor)).into_response();
    // Proxies that collect an answer before they hand it on would make the page stand still.
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(answer)
}

fn stream(
    shared: Arc<Shared>,
    seat: Seat,
    cursor: Cursor,
) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((shared, seat, cursor, ticks), async |(shared, seat, cursor, mut ticks)| {
        let (event, next) = next_event(&shared, &seat, &cursor, &mut ticks).await?;
        Some((Ok(event), (shared, seat, next, ticks)))
    })
}

/// Waits for the next event; none when the monitor drains or the seat was taken.
async fn next_event(
    shared: &Shared,
    seat: &Seat,
    cursor: &Cursor,
    ticks: &mut Interval,
) -> Option<(Event, Cursor)> {
    let ticked = async {
        ticks.tick().await;
        update(shared, cursor).await
    };
    let (update, next) = tokio::select! {
        // A reader that comes while the monitor drains gets nothing, whichever is ready first.
        biased;
        () = shared.shutdown.drained() => return None,
        update = ticked => update,
    };
    if !seat.keep() {
        return None;
    }
    let event = Event::default().event("update").id(&update.cursor).json_data(&update);
    event.ok().map(|event| (event, next))
}

/// The streams that are open.
#[derive(Debug)]
pub(super) struct Subscribers {
    limit: usize,
    silence_max: Duration,
    seats: Arc<Mutex<Seats>>,
}

/// When each stream last took an event, by number.
#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, Instant>,
}

impl Subscribers {
    /// At most `limit` streams. One that took no event for `silence_max` makes room for another.
    pub(super) fn new(limit: usize, silence_max: Duration) -> Self {
        Self { limit, silence_max, seats: Arc::default() }
    }

    /// A seat for one more stream, given back when dropped.
    fn join(&self) -> Option<Seat> {
        let mut seats = lock(&self.seats);
        if seats.taken.len() >= self.limit {
            // Its reader stands still or is gone without a word; nobody polls its stream that could find out.
            let (&longest_silent, heard) = seats.taken.iter().min_by_key(|(_, heard)| **heard)?;
            if heard.elapsed() <= self.silence_max {
                return None;
            }
            seats.taken.remove(&longest_silent);
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, Instant::now());
        Some(Seat { number, seats: Arc::clone(&self.seats) })
    }

    /// Streams that are open.
    pub(super) fn count(&self) -> usize {
        lock(&self.seats).taken.len()
    }
}

/// A stream's place among the subscribers.
#[derive(Debug)]
struct Seat {
    number: u64,
    seats: Arc<Mutex<Seats>>,
}

impl Seat {
    /// Notes that the stream takes an event; false when its seat was given to another.
    fn keep(&self) -> bool {
        let mut seats = lock(&self.seats);
        seats.taken.get_mut(&self.number).is_some_and(|heard| {
            *heard = Instant::now();
            true
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.seats).taken.remove(&self.number);
    }
}

fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_as_they_were_written() {
        for cursor in [
            Cursor { life: 1_764_159_629.123_456, point: Some(12), decided: Some(1.5) },
            Cursor { life: 2.0, point: None, decided: None },
        ] {
            assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        }
        for wrong in ["", "NaN__", "inf__", "1", "1_2", "x__", "1_x_", "1_2_3_4", "1_-2_3"] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn seats_are_bounded_and_given_back() {
        let subscribers = Subscribers::new(2, Duration::from_secs(30));
        let (first, second) = (subscribers.join().unwrap(), subscribers.join().unwrap());
        assert!(subscribers.join().is_none());
        drop(second);
        let second = subscribers.join().unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(second.keep());
        tokio::time::advance(Duration::from_secs(11)).await;
        // The first has taken nothing for 31 s.
        let third = subscribers.join().unwrap();
        assert!(!first.keep() && second.keep() && third.keep());
        assert!(subscribers.join().is_none());
        drop(first);
        assert_eq!(subscribers.count(), 2);
    }
}
