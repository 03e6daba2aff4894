use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const NOW: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(9);
const LIMITS: Limits =
    Limits { failures_max: 3, backoff: Duration::from_millis(250), backoff_max: Duration::from_secs(30) };
const POLICIES: [Policy; 5] =
    [Policy::Central, Policy::Random, Policy::RoundRobin, Policy::LeastOutstanding, Policy::PowerOfTwo];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn queue(policy: Policy, waiting_max: usize) -> Queue {
    Queue::new(policy, waiting_max, LIMITS, 3)
}

fn ask(ticket: Ticket, expires_at: Duration) -> Ask {
    Ask { ticket, expires_at, patient_until: expires_at, place: Place::Back, avoid: None }
}

fn again(ticket: Ticket, avoid: ReplicaId) -> Ask {
    Ask { place: Place::Front, avoid: Some(avoid), ..ask(ticket, LATER) }
}

fn started(events: &[Event]) -> Vec<(Ticket, ReplicaId)> {
    let start = |event: &Event| match *event {
        Event::Start { ticket, replica, .. } => Some((ticket, replica)),
        Event::Drop { .. } | Event::Eject { .. } => None,
    };
    events.iter().filter_map(start).collect()
}

fn refused(ticket: Ticket, why: Refusal) -> [Event; 1] {
    [Event::Drop { ticket, why }]
}

fn is_drop_of(event: &Event, wanted: Ticket) -> bool {
    matches!(event, Event::Drop { ticket, .. } if *ticket == wanted)
}

/// A replica that has proved itself, so that all of its slots are used.
fn open(queue: &mut Queue, now: Duration, replica: ReplicaId, slots: u32) -> Vec<Event> {
    let events = queue.open(now, replica, slots);
    for _ in 0..8 {
        queue.replicas.get_mut(&replica).unwrap().health.answered(slots);
    }
    [events, queue.tick(now)].concat()
}

/// A queue that has seen so many answers, each after `service`.
fn experienced(policy: Policy, waiting_max: usize, service: Duration) -> Queue {
    let mut queue = queue(policy, waiting_max);
    (0..50).for_each(|_| queue.times.record(service));
    queue
}

#[test]
fn requests_wait_for_a_replica_and_then_for_a_slot_in_order() {
    let mut queue = queue(Policy::Central, 10);
    for ticket in 0..4 {
        assert_eq!(queue.arrive(NOW, ask(ticket, LATER)), []);
    }
    assert_eq!(started(&open(&mut queue, NOW, 70, 1)), [(0, 70)]);
    assert_eq!(started(&open(&mut queue, NOW, 71, 2)), [(1, 71), (2, 71)]);
    assert_eq!((queue.waiting(), queue.in_flight(), queue.slots()), (1, 3, 3));
    assert_eq!(started(&queue.finish(NOW, 70, NOW, Finish::Answered)), [(3, 70)]);
}

#[test]
fn a_request_that_comes_back_goes_first_even_when_the_line_is_full() {
    let mut queue = queue(Policy::Central, 1);
    queue.arrive(NOW, ask(0, LATER));
    assert_eq!(queue.arrive(NOW, ask(1, LATER)), refused(1, Refusal::Full { waiting: 1 }));
    queue.arrive(NOW, again(2, 99));
    assert_eq!(started(&open(&mut queue, NOW, 7, 2)), [(2, 7), (0, 7)]);
}

#[test]
fn a_request_goes_to_another_replica_than_the_one_that_failed_it() {
    for policy in POLICIES {
        let mut queue = queue(policy, 9);
        open(&mut queue, NOW, 1, 1);
        open(&mut queue, NOW, 2, 1);
        assert_eq!(started(&queue.arrive(NOW, again(0, 1))), [(0, 2)], "{policy:?}");
        // The only one is better than none.
        queue.remove(NOW, 2);
        assert_eq!(started(&queue.arrive(NOW, again(1, 1))), [(1, 1)], "{policy:?}");
    }
    // While it waits for the other, those behind it may use the one that it avoids.
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 1);
    open(&mut queue, NOW, 2, 1);
    queue.arrive(NOW, again(0, 1));
    assert_eq!(started(&queue.arrive(NOW, again(1, 1))), []);
    assert_eq!(started(&queue.arrive(NOW, ask(2, LATER))), [(2, 1)]);
    assert_eq!(started(&queue.finish(NOW, 2, NOW, Finish::Answered)), [(1, 2)]);
}

#[test]
fn a_request_whose_time_ran_out_is_not_started() {
    let mut queue = queue(Policy::Central, 9);
    queue.arrive(NOW, ask(0, NOW * 2));
    queue.arrive(NOW, ask(1, LATER));
    let events = queue.open(NOW * 3, 7, 1);
    let start = Event::Start { ticket: 1, replica: 7, at: NOW * 3, expires_at: LATER };
    assert_eq!(events, [Event::Drop { ticket: 0, why: Refusal::Expired }, start]);
}

#[test]
fn who_cannot_be_served_in_time_is_told_on_arrival() {
    // 100 ms each, one slot: three fit into 300 ms, the one on the replica among them.
    let mut queue = experienced(Policy::Central, 99, ms(100));
    open(&mut queue, NOW, 1, 1);
    let within = NOW + ms(300);
    let answers: Vec<_> = (0..5).flat_map(|ticket| queue.arrive(NOW, ask(ticket, within))).collect();
    assert_eq!(started(&answers), [(0, 1)]);
    assert_eq!(answers[1..], [3, 4].map(|ticket| Event::Drop { ticket, why: Refusal::Hopeless }));
    assert_eq!(queue.arrive(NOW, ask(9, LATER)), [], "it has time");
    // Half-way through the first, the line is shorter by half a service time.
    let now = NOW + ms(50);
    assert_eq!(queue.arrive(now, ask(10, now + ms(449))), refused(10, Refusal::Hopeless));
    assert_eq!(queue.arrive(now, ask(11, now + ms(450))), []);
}

#[test]
fn a_free_slot_takes_a_request_whatever_the_estimate_says() {
    let mut queue = experienced(Policy::Central, 99, ms(700));
    open(&mut queue, NOW, 1, 1);
    assert_eq!(started(&queue.arrive(NOW, ask(0, NOW + ms(500)))), [(0, 1)]);
    assert_eq!(queue.arrive(NOW, ask(1, NOW + ms(500))), refused(1, Refusal::Hopeless));
}

#[test]
fn the_hopeless_leave_before_a_newcomer_is_refused() {
    let mut queue = experienced(Policy::Central, 2, ms(100));
    open(&mut queue, NOW, 1, 1);
    open(&mut queue, NOW, 2, 1);
    for ticket in 0..4 {
        queue.arrive(NOW, ask(ticket, NOW + ms(210)));
    }
    // Both replicas were expected back at 100 ms. One is gone, so that one of those that wait is lost.
    queue.remove(NOW + ms(100), 2);
    let events = queue.arrive(NOW + ms(100), ask(4, LATER));
    assert_eq!(events, [Event::Drop { ticket: 3, why: Refusal::Hopeless }]);
    assert_eq!(queue.waiting(), 2);
}

#[test]
fn time_drops_what_waited_too_long() {
    let mut queue = experienced(Policy::Central, 99, ms(100));
    open(&mut queue, NOW, 1, 1);
    queue.arrive(NOW, ask(0, LATER));
    queue.arrive(NOW, ask(1, NOW + ms(250)));
    assert_eq!(queue.latest_start(NOW + ms(250)), NOW + ms(150));
    assert_eq!(queue.tick(NOW + ms(150)), []);
    assert_eq!(queue.tick(NOW + ms(151)), [Event::Drop { ticket: 1, why: Refusal::Hopeless }]);
}

#[test]
fn waiting_for_a_first_replica_takes_patience_and_no_errors() {
    let patient = |ticket| Ask { patient_until: NOW + LATER, ..ask(ticket, NOW + ms(500)) };
    let mut queue = experienced(Policy::Central, 99, ms(100));
    queue.arrive(NOW, patient(0));
    queue.arrive(NOW, ask(1, NOW + ms(500)));
    let events = queue.open(NOW + ms(3000), 1, 1);
    let start = Event::Start { ticket: 0, replica: 1, at: NOW + ms(3000), expires_at: NOW + LATER };
    assert_eq!(events, [start, Event::Drop { ticket: 1, why: Refusal::Expired }]);
    // The last replica goes while one waits: it waits on.
    let now = NOW + ms(3000);
    queue.arrive(now, Ask { patient_until: now + LATER, ..ask(2, now + ms(500)) });
    queue.remove(now, 1);
    assert_eq!(queue.tick(now + ms(2000)), []);
    assert_eq!(started(&queue.open(now + ms(2000), 2, 1)), [(2, 2)]);
}

#[test]
fn a_replica_that_fails_is_the_last_choice_and_then_none() {
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 2);
    open(&mut queue, NOW, 2, 2);
    assert_eq!(started(&queue.arrive(NOW, ask(0, LATER))), [(0, 1)]);
    queue.finish(NOW, 1, NOW, Finish::Failed);
    // Though it is the first, and idle.
    assert_eq!(started(&queue.arrive(NOW, ask(1, LATER))), [(1, 2)]);
    assert_eq!(started(&queue.arrive(NOW, ask(2, LATER))), [(2, 2)]);
    for ticket in 3..5 {
        assert_eq!(started(&queue.arrive(NOW, ask(ticket, LATER))), [(ticket, 1)]);
    }
    assert_eq!(queue.finish(NOW, 1, NOW, Finish::Failed), []);
    let eject = Event::Eject { replica: 1, until: NOW + ms(250) };
    assert_eq!(queue.finish(NOW, 1, NOW, Finish::Failed), [eject]);
    assert_eq!(queue.slots(), 2);
    assert_eq!(queue.arrive(NOW, ask(6, LATER)), [], "it waits for the good one");
    // Back after its time, on trial: one request, and one failure is enough.
    assert_eq!(started(&queue.open(NOW + ms(250), 1, 2)), [(6, 1)]);
    assert_eq!(queue.arrive(NOW + ms(250), ask(7, LATER)), []);
    let eject = Event::Eject { replica: 1, until: NOW + ms(300) + ms(500) };
    assert_eq!(queue.finish(NOW + ms(300), 1, NOW + ms(250), Finish::Failed), [eject]);
}

#[test]
fn the_only_replica_is_not_ejected() {
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 1);
    for ticket in 0..9 {
        assert_eq!(started(&queue.arrive(NOW, ask(ticket, LATER))), [(ticket, 1)]);
        assert_eq!(queue.finish(NOW, 1, NOW, Finish::Failed), []);
    }
}

#[test]
fn a_busy_replica_gets_nothing_for_a_moment() {
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 4);
    queue.arrive(NOW, ask(0, LATER));
    assert_eq!(queue.finish(NOW, 1, NOW, Finish::Refused), []);
    assert_eq!(queue.arrive(NOW, Ask { place: Place::Front, ..ask(0, LATER) }), []);
    assert_eq!(queue.tick(NOW + ms(1)), []);
    assert_eq!(started(&queue.tick(NOW + ms(2))), [(0, 1)]);
}

#[test]
fn an_unanswered_request_counts_against_its_replica_only_if_it_took_unusually_long() {
    let mut queue = experienced(Policy::Central, 9, ms(10));
    open(&mut queue, NOW, 1, 4);
    let mut give_up = |after: Duration| {
        queue.arrive(NOW, ask(0, LATER));
        queue.finish(NOW + after, 1, NOW, Finish::Abandoned);
        queue.replicas[&1].health.is_suspect()
    };
    assert!(!give_up(ms(11)));
    assert!(give_up(ms(12)));
}

#[test]
fn a_copy_goes_to_a_slot_to_spare_and_never_to_the_same_replica() {
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 2);
    open(&mut queue, NOW, 2, 1);
    queue.arrive(NOW, ask(0, LATER));
    let copy = |ticket| Ask { avoid: Some(1), ..ask(ticket, LATER) };
    assert_eq!(
        queue.spare(NOW, copy(1)),
        Some(Event::Start { ticket: 1, replica: 2, at: NOW, expires_at: LATER })
    );
    assert_eq!(queue.spare(NOW, copy(2)), None, "only the replica that has it is free");
    assert_eq!(queue.in_flight(), 2);
}

#[test]
fn a_closed_replica_hands_on_what_was_bound_to_it() {
    let mut queue = queue(Policy::RoundRobin, 9);
    open(&mut queue, NOW, 1, 1);
    open(&mut queue, NOW, 2, 1);
    for ticket in 0..4 {
        queue.arrive(NOW, ask(ticket, LATER));
    }
    assert_eq!(queue.waiting(), 2);
    assert_eq!(queue.close(NOW, 1), []);
    let mut finish = |replica| started(&queue.finish(NOW, replica, NOW, Finish::Answered)).len();
    assert_eq!(finish(1), 0, "it takes nothing new");
    assert_eq!((finish(2), finish(2)), (1, 1));
}

#[test]
fn a_late_finish_of_a_removed_replica_is_harmless() {
    let mut queue = queue(Policy::Central, 9);
    open(&mut queue, NOW, 1, 1);
    queue.arrive(NOW, ask(0, LATER));
    queue.remove(NOW, 1);
    open(&mut queue, NOW, 2, 1);
    queue.arrive(NOW, ask(1, LATER));
    assert_eq!(queue.finish(NOW, 1, NOW, Finish::Answered), []);
    assert_eq!(queue.in_flight(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Arrive { lasts_ms: u64, patient: bool },
    Finish { which: usize, how: Finish },
    Cancel { which: usize },
    Open { replica: u64, slots: u32 },
    Close { replica: u64 },
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        6 => Just(Finish::Answered),
        2 => Just(Finish::Failed),
        1 => Just(Finish::Refused),
        1 => Just(Finish::Abandoned),
    ];
    let step = prop_oneof![
        5 => (1_u64..60, any::<bool>()).prop_map(|(lasts_ms, patient)| Step::Arrive { lasts_ms, patient }),
        5 => (any::<usize>(), how).prop_map(|(which, how)| Step::Finish { which, how }),
        1 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        1 => (0_u64..4, 1_u32..4).prop_map(|(replica, slots)| Step::Open { replica, slots }),
        1 => (0_u64..4).prop_map(|replica| Step::Close { replica }),
        1 => Just(Step::Tick),
    ];
    proptest::collection::vec(step, 1..250)
}

/// The world outside the queue: who runs where, who waits, what was promised.
#[derive(Default)]
struct World {
    next_ticket: Ticket,
    running: Vec<(Ticket, ReplicaId, Duration)>,
    waiting: Vec<Ticket>,
    asks: HashMap<Ticket, Ask>,
    done: HashSet<Ticket>,
    open: HashMap<ReplicaId, u32>,
}

impl World {
    fn stop_waiting(&mut self, ticket: Ticket) -> usize {
        let at = self.waiting.iter().position(|&waiting| waiting == ticket);
        let at = at.expect("started or dropped while not waiting");
        self.waiting.remove(at);
        at
    }

    fn take(&mut self, now: Duration, events: &[Event], central: bool) {
        for event in events {
            match *event {
                Event::Start { ticket, replica, at, expires_at } => {
                    assert_eq!(at, now);
                    assert!(self.open.contains_key(&replica), "started on a closed replica");
                    assert!(expires_at > now, "started after its time");
                    assert!(expires_at <= self.asks[&ticket].patient_until);
                    let at = self.stop_waiting(ticket);
                    let avoids = |ticket: &Ticket| self.asks[ticket].avoid == Some(replica);
                    let overtaken = &self.waiting[..at];
                    assert!(!central || overtaken.iter().all(avoids), "overtook {overtaken:?}");
                    self.running.push((ticket, replica, now));
                }
                Event::Drop { ticket, why } => {
                    assert!(
                        why != Refusal::Expired || self.asks[&ticket].expires_at <= now,
                        "before its time"
                    );
                    self.stop_waiting(ticket);
                    assert!(self.done.insert(ticket), "ended twice");
                }
                Event::Eject { replica, until } => {
                    assert!(until > now);
                    assert!(self.open.remove(&replica).is_some(), "ejected twice");
                    assert!(!self.open.is_empty(), "the last one was ejected");
                }
            }
        }
    }

    fn step(&mut self, queue: &mut Queue, now: Duration, step: &Step, waiting_max: usize, central: bool) {
        let events = match *step {
            Step::Arrive { lasts_ms, patient } => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                let expires_at = now + ms(lasts_ms);
                let patient_until = if patient { expires_at + ms(100) } else { expires_at };
                let ask = Ask { patient_until, ..ask(ticket, expires_at) };
                self.asks.insert(ticket, ask);
                self.waiting.push(ticket);
                let events = queue.arrive(now, ask);
                if let Some(Event::Drop { why, .. }) = events.iter().find(|event| is_drop_of(event, ticket)) {
                    let full = matches!(why, Refusal::Full { .. });
                    assert!(!full || self.waiting.len() > waiting_max, "refused with room");
                    assert_eq!(hopeless(queue, now), 0, "refused while a lost one waits");
                }
                events
            }
            Step::Finish { which, how } if !self.running.is_empty() => {
                let (ticket, replica, started) = self.running.remove(which % self.running.len());
                let events = queue.finish(now, replica, started, how);
                self.take(now, &events, central);
                if matches!(how, Finish::Failed | Finish::Refused) {
                    let avoid = (how == Finish::Failed).then_some(replica);
                    let ask = Ask { place: Place::Front, avoid, ..self.asks[&ticket] };
                    self.asks.insert(ticket, ask);
                    self.waiting.insert(0, ticket);
                    queue.arrive(now, ask)
                } else {
                    assert!(self.done.insert(ticket), "ended twice");
                    vec![]
                }
            }
            Step::Cancel { which } if !self.waiting.is_empty() => {
                let ticket = self.waiting.remove(which % self.waiting.len());
                assert!(queue.cancel(ticket), "a waiting request was lost");
                self.done.insert(ticket);
                vec![]
            }
            Step::Open { replica, slots } => {
                self.open.insert(replica, slots);
                queue.open(now, replica, slots)
            }
            Step::Close { replica } => {
                self.open.remove(&replica);
                queue.close(now, replica)
            }
            Step::Tick => queue.tick(now),
            Step::Finish { .. } | Step::Cancel { .. } => vec![],
        };
        self.take(now, &events, central);
    }
}

/// How many of those that wait in the central line cannot make their deadline, by the module's own formula but
/// worked out by playing the slots through.
fn hopeless(queue: &Queue, now: Duration) -> usize {
    let Some(estimate) = queue.estimate() else { return 0 };
    let mut frees = queue.frees(now, |_| true);
    if frees.is_empty() || queue.balancer.policy() != Policy::Central {
        return 0;
    }
    let mut turns = vec![0_u32; frees.len()];
    let mut lost = 0;
    for request in &queue.line {
        let slot = (0..frees.len()).min_by_key(|&slot| (frees[slot], turns[slot], slot)).unwrap();
        let ends_at = frees[slot] + estimate.mean;
        let uncertain = estimate.deviation.mul_f64(f64::from(turns[slot] + 1).sqrt());
        // Nanoseconds are rounded differently on the two ways.
        if ends_at + uncertain > request.expires_at + Duration::from_micros(1) {
            lost += 1;
        } else {
            (frees[slot], turns[slot]) = (ends_at, turns[slot] + 1);
        }
    }
    lost
}

fn run(policy: Policy, waiting_max: usize, steps: &[Step]) {
    let central = policy == Policy::Central;
    let mut queue = queue(policy, waiting_max);
    let mut world = World::default();
    for (at, step) in steps.iter().enumerate() {
        let now = ms(at as u64);
        // A pause may be over, which only time tells.
        let events = queue.tick(now);
        world.take(now, &events, central);
        world.step(&mut queue, now, step, waiting_max, central);
        assert_eq!(queue.waiting(), world.waiting.len());
        assert_eq!(queue.in_flight() as usize, world.running.len());
        if central {
            let usable = |id: &ReplicaId| queue.replicas[id].usable(now);
            let idle: Vec<_> =
                world.open.keys().filter(|id| queue.in_flight_of(**id) < usable(id)).copied().collect();
            let wanted = |ticket: &Ticket| {
                let avoid = world.asks[ticket].avoid;
                idle.iter().any(|id| Some(*id) != avoid || world.open.len() == 1)
            };
            let kept = world.waiting.iter().any(wanted);
            assert!(!kept, "a slot is free while requests wait");
        }
    }
    let known = world.running.len() + world.waiting.len() + world.done.len();
    assert_eq!(known as u64, world.next_ticket, "a request was lost or served twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_request_is_lost_served_twice_or_overtaken(steps in steps(), waiting_max in 0_usize..20) {
        for policy in POLICIES {
            run(policy, waiting_max, &steps);
        }
    }

    #[test]
    fn never_more_in_flight_than_slots(slots in 1_u32..5, requests in 1_u64..40) {
        let mut queue = queue(Policy::Central, 100);
        open(&mut queue, NOW, 1, slots);
        for ticket in 0..requests {
            queue.arrive(NOW, ask(ticket, LATER));
            prop_assert!(queue.in_flight() <= slots);
        }
    }
}
