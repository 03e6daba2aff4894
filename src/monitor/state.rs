//! Everything the monitor knows, as a function of the reports and the time.
//!
//! **Invariant**: no method reads a clock; each takes `now`, the time since the monitor's start. Memory is
//! bounded by the limits in [`Config`].
use crate::logic::rates::Rates;
use crate::logic::window::{self, Sample, Service, Summary, Window};
use crate::monitor::Config;
use crate::monitor::history::{self, History, Point};
use crate::monitor::sources::{Admission, Sources};
use crate::net::wire::{Ended, Missing, Outcome, Report, ServiceMs, Since, Span, Stats};
use std::collections::BTreeSet;
use std::time::Duration;

/// Longest name of a dispatcher, bytes.
const SOURCE_BYTES_MAX: usize = 256;
/// Longest URL of a replica, bytes.
const URL_BYTES_MAX: usize = 2048;

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReportError {
    /// The report says something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There are enough dispatchers already.
    #[error("{0} dispatchers report already; stop one, or start the monitor with a larger --sources-max")]
    TooManySources(usize),
}

/// What a reader of [`State::stats`] wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Question {
    /// Restricts window and recent seconds to the last so long.
    pub(super) recent: Option<Duration>,
    /// Asks for everything since a time.
    pub(super) since: Option<AskedSince>,
}

/// A time since which everything is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedSince {
    /// The time, since the monitor's start.
    pub(super) at: Duration,
    /// Whether it was counted from another start than this monitor's.
    pub(super) other_life: bool,
}

/// The monitor's memory.
#[derive(Debug)]
pub(super) struct State {
    sources_max: usize,
    replicas_max: usize,
    recent: Duration,
    target_ms: f64,
    window: Window,
    history: History,
    sources: Sources,
    rates: Rates,
    ended: u64,
    missed: u64,
    shed: u64,
    errors: u64,
    lost: u64,
    epoch: u64,
    ready: BTreeSet<String>,
}

impl State {
    /// Knows nothing yet.
    pub(super) fn new(config: &Config) -> Self {
        let promise_ms = config.promise.as_secs_f64() * 1e3;
        Self {
            sources_max: config.sources_max,
            replicas_max: config.replicas_max,
            recent: config.recent,
            target_ms: config.target_latency.as_secs_f64() * 1e3,
            window: Window::new(window::Limits {
                samples_max: config.window,
                age_max: config.window_age,
                promise_ms,
            }),
            history: History::new(history::Limits {
                seconds_max: config.history_age.as_secs() as usize,
                promise_ms,
            }),
            sources: Sources::new(config.sources_max, config.source_age),
            rates: Rates::default(),
            ended: 0,
            missed: 0,
            shed: 0,
            errors: 0,
            lost: 0,
            epoch: 0,
            ready: BTreeSet::new(),
        }
    }

    /// Counts a report; false when its sequence was seen before and it changed nothing.
    pub(super) fn record(&mut self, now: Duration, report: &Report) -> Result<bool, ReportError> {
        self.check(report)?;
        // Seconds that are over, and dispatchers that fell silent, get their due before the news.
        self.advance(now);
        match self.sources.admit(now, report) {
            Admission::New => {}
            Admission::Repeated => return Ok(false),
            Admission::TooManySources => return Err(ReportError::TooManySources(self.sources_max)),
        }
        for ended in &report.ended {
            self.window.record(now, sample(ended));
        }
        self.history.record(report);
        let count = |wanted: fn(Outcome) -> bool| {
            report.ended.iter().filter(|ended| wanted(ended.outcome)).count() as u64
        };
        let (answered, shed) = (count(|o| o == Outcome::Ok), count(|o| o == Outcome::Shed));
        self.rates.record(now, report.arrivals, answered);
        let missed = |ended: &&Ended| sample(ended).is_preventable_miss(self.target_ms);
        self.missed += report.ended.iter().filter(missed).count() as u64;
        self.ended += report.ended.len() as u64;
        self.shed += shed;
        self.errors += report.ended.len() as u64 - answered - shed;
        self.lost = self.lost.saturating_add(report.lost);
        self.note_ready(now);
        Ok(true)
    }

    /// `GET /stats`, but for the time at which the monitor started.
    pub(super) fn stats(&mut self, now: Duration, question: &Question) -> Stats {
        self.advance(now);
        let age_max = question.recent.unwrap_or(Duration::MAX);
        let recent =
            self.history.span(now, now.saturating_sub(question.recent.unwrap_or(self.recent)).as_secs());
        let totals = self.sources.totals(now);
        let (arrival_rps, throughput_rps) = self.rates.per_second(now);
        let stats = Stats {
            now_s: now.as_secs_f64(),
            age_s: self.sources.age(now).map(|age| age.as_secs_f64()),
            arrival_rps,
            throughput_rps,
            arrivals: self.rates.arrivals(now),
            arrivals_known_s: self.rates.known(now).as_secs_f64(),
            ended: self.ended,
            missed: self.missed,
            shed: self.shed,
            errors: self.errors,
            in_flight: totals.in_flight,
            queue_depth: totals.queue_depth,
            slots: totals.slots,
            replicas: totals.replicas,
            epoch: self.epoch,
            lost: self.lost,
            service_ms: self.window.service(now).map(service_ms),
            recent: Some(recent).filter(|span: &Span| span.samples > 0 || span.arrivals > 0),
            since: question.since.map(|asked| self.since(now, asked)),
            ..Stats::default()
        };
        let Some(summary) = self.window.recent(now, age_max) else { return stats };
        let window_s = self.window.oldest_age(now, age_max).map(|age| age.as_secs_f64());
        with_summary(Stats { window_s, ..stats }, &summary)
    }

    /// Everything since a time; [`State::advance`] comes first.
    fn since(&self, now: Duration, asked: AskedSince) -> Since {
        // A time to come can only have been told by another life of the monitor.
        let other_life = asked.other_life || asked.at > now;
        let from_s = if other_life { 0 } else { asked.at.as_secs() };
        let missing = match (other_life, from_s < self.history.oldest_s()) {
            (true, _) => Some(Missing::Restart),
            (false, true) => Some(Missing::Horizon),
            (false, false) => None,
        };
        Since {
            asked_s: asked.at.as_secs_f64(),
            complete: missing.is_none(),
            missing,
            span: self.history.span(now, from_s),
            worst: self.history.worst(from_s),
        }
    }

    /// The points of the seconds after `since`, or all of them, oldest first.
    pub(super) fn history(&mut self, now: Duration, since: Option<u64>) -> Vec<Point> {
        self.advance(now);
        self.history.since(since)
    }

    /// Lets time pass: closes seconds, forgets old latencies, notices dispatchers that fell silent.
    fn advance(&mut self, now: Duration) {
        self.history.advance(now, |at| self.sources.totals(at));
        self.window.forget(now);
        self.note_ready(now);
    }

    fn note_ready(&mut self, now: Duration) {
        let totals = self.sources.totals(now);
        let ready = totals.ready();
        if !ready.iter().copied().eq(self.ready.iter().map(String::as_str)) {
            self.epoch += 1;
            self.ready = ready.into_iter().map(str::to_owned).collect();
        }
    }

    /// Refuses what cannot be before any of it is counted.
    fn check(&self, report: &Report) -> Result<(), ReportError> {
        let invalid = |message: String| Err(ReportError::Invalid(message));
        if report.source.is_empty() || report.source.len() > SOURCE_BYTES_MAX {
            return invalid(format!("source must be a name of 1 to {SOURCE_BYTES_MAX} bytes"));
        }
        if report.replicas.len() > self.replicas_max {
            let (count, limit) = (report.replicas.len(), self.replicas_max);
            return invalid(format!("{count} replicas are more than --replicas-max {limit}"));
        }
        if let Some(replica) = report.replicas.iter().find(|replica| replica.url.len() > URL_BYTES_MAX) {
            return invalid(format!("a replica's url of {} bytes is too long", replica.url.len()));
        }
        let possible = |ms: f64| ms.is_finite() && ms >= 0.0;
        let wrong = |ended: &Ended| {
            let others = [ended.service_ms, ended.waited_ms];
            !possible(ended.latency_ms) || !others.into_iter().flatten().all(possible)
        };
        if let Some(at) = report.ended.iter().position(wrong) {
            return invalid(format!(
                "ended[{at}]: latency_ms, waited_ms and service_ms must be finite and not negative"
            ));
        }
        let mut stages = report.replicas.iter().filter_map(|replica| replica.stages_ms);
        if !stages.all(|stages| [stages.queue, stages.decode, stages.infer].into_iter().all(possible)) {
            return invalid("a replica's stages_ms must be finite and not negative".to_owned());
        }
        Ok(())
    }
}

/// An ended request as the window takes it.
pub(super) fn sample(ended: &Ended) -> Sample {
    Sample { latency_ms: ended.latency_ms, miss: ended.outcome.is_miss(), service_ms: ended.service_ms }
}

fn with_summary(stats: Stats, summary: &Summary) -> Stats {
    Stats {
        samples: summary.samples,
        p50_ms: Some(summary.p50_ms),
        p90_ms: Some(summary.p90_ms),
        p95_ms: Some(summary.p95_ms),
        p99_ms: Some(summary.p99_ms),
        p99_ci_ms: summary.p99_ci_ms,
        max_ms: Some(summary.max_ms),
        mean_ms: Some(summary.mean_ms),
        ..stats
    }
}

fn service_ms(service: Service) -> ServiceMs {
    ServiceMs { mean: service.mean_ms, p95: service.p95_ms, cv: service.cv }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::wire::{ReplicaState, ReplicaStatus, TimingMs};

    fn at_s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn last_s(seconds: u64) -> Question {
        Question { recent: Some(at_s(seconds)), since: None }
    }

    fn since_s(seconds: f64, other_life: bool) -> Question {
        let at = Duration::from_secs_f64(seconds);
        Question { recent: None, since: Some(AskedSince { at, other_life }) }
    }

    fn state() -> State {
        State::new(&Config { sources_max: 1, replicas_max: 2, ..Config::default() })
    }

    fn ended(outcome: Outcome, latency_ms: f64) -> Ended {
        Ended { outcome, latency_ms, waited_ms: None, service_ms: None }
    }

    fn report(sequence: u64, ended: Vec<Ended>) -> Report {
        Report { source: "d".into(), sequence, arrivals: ended.len() as u64, ended, ..Report::default() }
    }

    fn with_replicas(sequence: u64, urls: &[&str]) -> Report {
        let ready = |url: &&str| ReplicaStatus {
            url: (*url).into(),
            state: ReplicaState::Ready,
            slots: 2,
            in_flight: 0,
            answered: 0,
            stages_ms: None,
        };
        let slots = 2 * urls.len() as u32;
        Report { slots, replicas: urls.iter().map(ready).collect(), ..report(sequence, vec![]) }
    }

    #[test]
    fn nothing_is_known_before_the_first_report_and_after_the_window_has_aged() {
        let mut state = state();
        assert_eq!(state.stats(at_s(3), &Question::default()), Stats { now_s: 3.0, ..Stats::default() });
        state.record(at_s(4), &report(1, vec![ended(Outcome::Ok, 20.0)])).unwrap();
        assert_eq!(state.stats(at_s(5), &Question::default()).p99_ms, Some(20.0));
        let idle = state.stats(at_s(700), &Question::default());
        assert_eq!((idle.samples, idle.p99_ms, idle.window_s, idle.arrival_rps), (0, None, None, None));
        assert_eq!(idle.age_s, Some(696.0));
    }

    #[test]
    fn sheds_count_over_the_promise() {
        let mut state = state();
        let mut requests = vec![ended(Outcome::Ok, 20.0); 50];
        requests.extend(vec![ended(Outcome::Shed, 0.2); 50]);
        requests.push(ended(Outcome::Aborted, 30.0));
        state.record(at_s(1), &report(1, requests)).unwrap();
        let seen = state.stats(at_s(1), &Question::default());
        assert_eq!((seen.p90_ms, seen.p99_ms, seen.shed, seen.errors), (Some(500.0), Some(500.0), 50, 1));
        assert_eq!((seen.arrival_rps, seen.throughput_rps), (Some(101.0), Some(50.0)));
    }

    #[test]
    fn totals_and_the_seconds_of_arrivals_add_up_over_dispatchers() {
        let mut state =
            State::new(&Config { target_latency: Duration::from_millis(330), ..Config::default() });
        let latencies =
            [(Outcome::Ok, 330.0), (Outcome::Ok, 330.1), (Outcome::Shed, 0.1), (Outcome::Aborted, 2.0)];
        let ended = || latencies.map(|(outcome, latency_ms)| ended(outcome, latency_ms)).to_vec();
        state.record(at_s(100), &report(1, ended())).unwrap();
        state.record(at_s(102), &Report { source: "e".into(), ..report(1, ended()) }).unwrap();
        state.record(at_s(102), &Report { lost: 7, ..report(2, vec![]) }).unwrap();
        let seen = state.stats(Duration::from_millis(102_500), &Question::default());
        assert_eq!((seen.ended, seen.missed, seen.lost), (8, 6, 7));
        assert_eq!((seen.arrivals[..4].to_vec(), seen.arrivals_known_s), (vec![4, 0, 4, 0], 2.5));
        // One that was slow by itself would have missed with any number of replicas.
        let slow = |service_ms: f64| Ended {
            outcome: Outcome::Ok,
            latency_ms: 500.0,
            waited_ms: None,
            service_ms: Some(service_ms),
        };
        state.record(at_s(102), &report(3, vec![slow(400.0), slow(330.0)])).unwrap();
        let seen = state.stats(Duration::from_millis(102_500), &Question::default());
        assert_eq!((seen.ended, seen.missed), (10, 7));
        // Totals stay when the window has aged and nobody comes any more.
        let idle = state.stats(at_s(800), &Question::default());
        assert_eq!((idle.ended, idle.missed, idle.samples, idle.arrivals), (10, 7, 0, [0; 16]));
    }

    #[test]
    fn service_times_are_over_the_whole_window_however_few_seconds_are_asked_about() {
        let mut state = state();
        let served = |service_ms: f64| Ended { service_ms: Some(service_ms), ..ended(Outcome::Ok, 200.0) };
        state.record(at_s(1), &report(1, vec![served(100.0)])).unwrap();
        state.record(at_s(9), &report(2, vec![served(140.0)])).unwrap();
        let recent = state.stats(at_s(10), &last_s(5));
        assert_eq!((recent.samples, recent.service_ms.unwrap().mean), (1, 120.0));
        let aged = state.stats(at_s(20), &last_s(5));
        assert_eq!((aged.samples, aged.service_ms.unwrap().mean), (0, 120.0));
        assert_eq!(state.stats(at_s(700), &last_s(5)).service_ms, None);
    }

    #[test]
    fn a_report_sent_again_is_counted_once() {
        let mut state = state();
        let first = report(5, vec![ended(Outcome::Shed, 1.0)]);
        assert_eq!(state.record(at_s(1), &first), Ok(true));
        assert_eq!(state.record(at_s(2), &first), Ok(false));
        assert_eq!(state.record(at_s(2), &report(4, vec![ended(Outcome::Shed, 1.0)])), Ok(false));
        // A gap is no reason to refuse: the monitor may have missed reports, or been restarted.
        assert_eq!(state.record(at_s(3), &report(9, vec![ended(Outcome::Shed, 1.0)])), Ok(true));
        let seen = state.stats(at_s(3), &Question::default());
        assert_eq!((seen.samples, seen.shed, seen.age_s), (2, 2, Some(0.0)));
    }

    #[test]
    fn the_epoch_follows_the_set_of_ready_replicas() {
        let mut state = state();
        assert_eq!(state.stats(at_s(0), &Question::default()).epoch, 0);
        state.record(at_s(0), &with_replicas(1, &["a"])).unwrap();
        state.record(at_s(1), &with_replicas(2, &["a"])).unwrap();
        assert_eq!(state.stats(at_s(1), &Question::default()).epoch, 1);
        state.record(at_s(2), &with_replicas(3, &["b"])).unwrap();
        assert_eq!(state.stats(at_s(2), &Question::default()).epoch, 2);
        let silent = state.stats(at_s(13), &Question::default());
        assert_eq!((silent.epoch, silent.slots, silent.replicas.len()), (3, 0, 0));
        // Gone and back again between two looks is two changes.
        state.record(at_s(14), &with_replicas(4, &["b"])).unwrap();
        state.record(at_s(40), &with_replicas(5, &["b"])).unwrap();
        assert_eq!(state.stats(at_s(40), &Question::default()).epoch, 6);
    }

    #[test]
    fn impossible_reports_are_refused_whole() {
        let mut state = state();
        let nameless = Report { source: String::new(), ..report(1, vec![]) };
        let negative = report(1, vec![ended(Outcome::Ok, 1.0), ended(Outcome::Ok, -1.0)]);
        let infinite = report(1, vec![ended(Outcome::Ok, f64::INFINITY)]);
        let mut waited = report(1, vec![ended(Outcome::Ok, 1.0)]);
        waited.ended[0].waited_ms = Some(-0.1);
        let mut stages = with_replicas(1, &["a"]);
        stages.replicas[0].stages_ms = Some(TimingMs { infer: f64::NAN, ..TimingMs::default() });
        let crowded = with_replicas(1, &["a", "b", "c"]);
        for wrong in [nameless, negative, infinite, waited, stages, crowded] {
            let refused = state.record(at_s(1), &wrong);
            assert!(matches!(refused, Err(ReportError::Invalid(_))), "{refused:?}");
        }
        assert_eq!(state.stats(at_s(1), &Question::default()), Stats { now_s: 1.0, ..Stats::default() });
    }

    #[test]
    fn dispatchers_are_bounded() {
        let mut state = state();
        state.record(at_s(1), &report(1, vec![])).unwrap();
        let other = Report { source: "e".into(), ..report(1, vec![]) };
        assert_eq!(state.record(at_s(2), &other), Err(ReportError::TooManySources(1)));
        assert_eq!(state.record(at_s(12), &other), Ok(true));
    }

    #[test]
    fn the_last_seconds_can_be_looked_at_alone() {
        let mut state = state();
        state.record(at_s(1), &report(1, vec![ended(Outcome::Ok, 900.0)])).unwrap();
        state.record(at_s(9), &report(2, vec![ended(Outcome::Ok, 10.0)])).unwrap();
        let all = state.stats(at_s(10), &Question::default());
        let recent = state.stats(at_s(10), &last_s(5));
        assert_eq!((all.p99_ms, all.window_s), (Some(900.0), Some(9.0)));
        assert_eq!((recent.p99_ms, recent.samples, recent.window_s), (Some(10.0), 1, Some(1.0)));
        assert_eq!(state.stats(at_s(20), &last_s(5)).p99_ms, None);
    }

    #[test]
    fn the_histograms_reach_back_further_than_the_window() {
        let mut state = State::new(&Config { window: 10, ..Config::default() });
        for second in 0..20 {
            let slow = if second == 12 { 800.0 } else { 20.0 };
            let ended = [vec![ended(Outcome::Ok, slow)], vec![ended(Outcome::Ok, 10.0); 99]].concat();
            state.record(at_s(second), &report(second + 1, ended)).unwrap();
        }
        let seen = state.stats(at_s(20), &Question::default());
        assert_eq!((seen.samples, seen.max_ms), (10, Some(10.0)));
        let recent = seen.recent.unwrap();
        assert_eq!((recent.from_s, recent.seconds, recent.samples), (10, 10.0, 1000));
        assert_eq!((recent.max_ms, recent.over_promise), (Some(800.0), 1));
        assert!(recent.p99_ms.is_some_and(|p99_ms| (10.0..10.1).contains(&p99_ms)), "{recent:?}");
        assert!(recent.p99_ci_ms.is_some());
        // The last seconds can be fewer, and are null when nothing happened in them.
        assert_eq!(state.stats(at_s(20), &last_s(3)).recent.unwrap().samples, 300);
        assert_eq!(state.stats(at_s(40), &Question::default()).recent, None);
    }

    #[test]
    fn polls_in_a_row_miss_no_bad_second() {
        let mut state = state();
        state.record(Duration::from_millis(1200), &report(1, vec![ended(Outcome::Ok, 900.0)])).unwrap();
        let first = state.stats(Duration::from_millis(1500), &Question::default());
        // The bad second comes between two polls, and is long over at the later one.
        state.record(Duration::from_millis(1700), &report(2, vec![ended(Outcome::Timeout, 2000.0)])).unwrap();
        for second in 2..100 {
            state.record(at_s(second), &report(second + 1, vec![ended(Outcome::Ok, 10.0); 50])).unwrap();
        }
        let since = state.stats(at_s(100), &since_s(first.now_s, false)).since.unwrap();
        assert_eq!((since.asked_s, since.complete, since.missing), (1.5, true, None));
        assert_eq!((since.span.from_s, since.span.seconds, since.span.samples), (1, 99.0, 4902));
        let worst = since.worst.unwrap();
        assert_eq!((worst.t_s, worst.p99_ms, worst.over_promise), (1, 2000.0, 2));
        let later = state.stats(at_s(100), &since_s(2.0, false)).since.unwrap();
        assert_eq!((later.span.max_ms, later.span.over_promise), (Some(10.0), 0));
    }

    #[test]
    fn a_time_that_is_not_known_any_more_is_said_to_be_so() {
        let mut state = state();
        state.record(at_s(1), &report(1, vec![ended(Outcome::Ok, 900.0)])).unwrap();
        let told = |state: &mut State, now_s: u64, question: Question| {
            let since = state.stats(at_s(now_s), &question).since.unwrap();
            (since.complete, since.missing, since.span.from_s, since.span.samples)
        };
        assert_eq!(told(&mut state, 600, since_s(0.0, false)), (true, None, 0, 1));
        assert_eq!(told(&mut state, 601, since_s(1.9, false)), (true, None, 1, 1));
        assert_eq!(told(&mut state, 601, since_s(0.9, false)), (false, Some(Missing::Horizon), 1, 1));
        assert_eq!(told(&mut state, 602, since_s(1.9, false)), (false, Some(Missing::Horizon), 2, 0));
        // Another life: all that is known is told.
        assert_eq!(told(&mut state, 602, since_s(602.1, false)), (false, Some(Missing::Restart), 2, 0));
        assert_eq!(told(&mut state, 602, since_s(602.0, true)), (false, Some(Missing::Restart), 2, 0));
        assert_eq!(told(&mut state, 602, since_s(602.0, false)), (true, None, 602, 0));
    }
}
