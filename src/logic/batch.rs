//! How many of the waiting images a free worker infers together, and whether it waits for more.
//!
//! Nothing here is a constant that somebody tuned: the wait follows from deadlines and from service times that
//! are measured all the time.
//!
//! - A batch is the head of the line. It is cut where a further image would make one of it miss its deadline.
//! - Workers that are idle share the line: an image that another CPU could take at once is never batched.
//! - A worker waits for more only while its batch has room, no other worker is idle, every image that waits
//!   would still be in time in a batch that is one larger, and the wait can pay off. Of `k` images and one that
//!   comes `w` later, the last is answered after `s(k) + s(1)` if the `k` run at once, and after `w + s(k + 1)`
//!   if they wait for it. So waiting pays off only for `w < s(k) + s(1) - s(k + 1)`, the *gain*, which is never
//!   more than the service time `s(1)` of one image. Where batches are no cheaper than their images one by one,
//!   or nobody has seen that they are, the gain is 0 and nothing waits. A worker that has waited in vain for as
//!   long as it could have gained has lost at most as much: the break-even rule for renting or buying (Karlin,
//!   Manasse, Rudolph and Sleator, "Competitive snoopy caching", 1988).
//!
//! The wait counts from the arrival of the image at the head, so that time in the line while the worker was
//! busy counts too, and several arrivals in a row do not draw it out beyond `s(1)`.
//!
//! **Invariant**: [`Decision::Run`] names at least one image and never more than there are or than the maximum;
//! [`Decision::WaitUntil`] names an instant after now, at which, if nothing else happens, the decision is to run.
use std::time::Duration;

/// An image in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// When it joined the line.
    pub arrived_at: Duration,
    /// When its answer is of no use any more.
    pub expires_at: Duration,
}

/// What a free worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is nothing to do.
    Idle,
    /// Decide again at this instant, or earlier when the line changes.
    WaitUntil(Duration),
    /// Infer so many images from the head of the line now.
    Run(usize, Reason),
}

/// Why a batch is no larger, or does not wait any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is as large as it may be.
    Full,
    /// The rest of the line, or the next image, is for a worker that is idle.
    Shared,
    /// One image more could cost an image its deadline.
    Deadline,
    /// Waiting costs more than a larger batch could save.
    NoGain,
}

impl Reason {
    /// Its name in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Shared => "shared",
            Self::Deadline => "deadline",
            Self::NoGain => "no-gain",
        }
    }
}

/// A running mean and mean deviation, in seconds, as TCP keeps of its round trips: Jacobson, "Congestion
/// avoidance and control", 1988, with the gains of RFC 6298.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    mean: f64,
    deviation: f64,
}

impl Estimate {
    fn first(sample: Duration) -> Self {
        let mean = sample.as_secs_f64();
        Self { mean, deviation: mean / 2.0 }
    }

    fn update(&mut self, sample: Duration) {
        let error = sample.as_secs_f64() - self.mean;
        self.deviation += (error.abs() - self.deviation) / 4.0;
        self.mean += error / 8.0;
    }

    /// Hardly ever exceeded.
    fn bound(&self) -> f64 {
        self.mean + 4.0 * self.deviation
    }
}

fn observe(estimate: &mut Option<Estimate>, sample: Duration) {
    match estimate {
        Some(estimate) => estimate.update(sample),
        None => *estimate = Some(Estimate::first(sample)),
    }
}

/// Decides over batches and keeps the service times that this needs. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Batcher {
    /// Time to decode one image.
    decode: Option<Estimate>,
    /// Time to infer a batch, by its number of images, from one up to the maximum.
    infer: Vec<Option<Estimate>>,
}

impl Batcher {
    /// Decides over batches of up to `images_max` images, at least one.
    #[must_use]
    pub fn new(images_max: usize) -> Self {
        Self { decode: None, infer: vec![None; images_max.max(1)] }
    }

    /// Most images in a batch.
    #[must_use]
    pub fn images_max(&self) -> usize {
        self.infer.len()
    }

    /// Decoding one image took so long.
    pub fn decoded(&mut self, took: Duration) {
        observe(&mut self.decode, took);
    }

    /// Inferring `images` images together took so long. A size that no batch can have is ignored.
    pub fn inferred(&mut self, images: usize, took: Duration) {
        if let Some(estimate) = images.checked_sub(1).and_then(|at| self.infer.get_mut(at)) {
            observe(estimate, took);
        }
    }

    /// What a free worker does with the line, oldest image first, while `others_idle` further workers are free
    /// too.
    #[must_use]
    pub fn decide(
        &self,
        now: Duration,
        line: impl ExactSizeIterator<Item = Waiting> + Clone,
        others_idle: usize,
    ) -> Decision {
        let Some(head) = line.clone().next() else { return Decision::Idle };
        let share = line.len().div_ceil(others_idle.saturating_add(1));
        let images = share.min(self.images_max());
        let in_time = self.in_time(now, line.clone().take(images));
        if in_time < images {
            return Decision::Run(in_time, Reason::Deadline);
        }
        if images == self.images_max() {
            return Decision::Run(images, Reason::Full);
        }
        if others_idle > 0 {
            return Decision::Run(images, Reason::Shared);
        }
        let pays_until = head.arrived_at.saturating_add(self.gain(images));
        if pays_until <= now {
            return Decision::Run(images, Reason::NoGain);
        }
        let larger = self.service_bound(images + 1);
        let latest = line.map(|waiting| waiting.expires_at.saturating_sub(larger)).min();
        match latest.unwrap_or(now) {
            latest if latest <= now => Decision::Run(images, Reason::Deadline),
            latest => Decision::WaitUntil(latest.min(pays_until)),
        }
    }

    /// How many images from the head can run together so that all keep their deadlines; at least one. An image
    /// that would be late even alone has no say: a smaller batch would not save it and would delay the rest.
    fn in_time(&self, now: Duration, line: impl Iterator<Item = Waiting>) -> usize {
        let alone = now.saturating_add(seconds(self.decode_mean() + self.infer_mean(1)));
        let mut earliest = Duration::MAX;
        let mut images = 0;
        for waiting in line {
            if waiting.expires_at >= alone {
                earliest = earliest.min(waiting.expires_at);
            }
            if images > 0 && now.saturating_add(self.service_bound(images + 1)) > earliest {
                break;
            }
            images += 1;
        }
        images
    }

    /// What is saved if one image more joins a batch of `images`, against running it alone afterwards.
    fn gain(&self, images: usize) -> Duration {
        let alone = self.infer_mean(1);
        let saved = self.infer_mean(images) + alone - self.infer_mean(images + 1);
        // Noise can make a larger batch look quicker than a smaller one.
        seconds(saved.min(alone))
    }

    /// Time from taking `images` images until they are answered that is hardly ever exceeded.
    fn service_bound(&self, images: usize) -> Duration {
        let decode = self.decode.as_ref().map_or(0.0, Estimate::bound);
        seconds(decode * images as f64 + self.infer_time(images, Estimate::bound))
    }

    fn decode_mean(&self) -> f64 {
        self.decode.map_or(0.0, |estimate| estimate.mean)
    }

    fn infer_mean(&self, images: usize) -> f64 {
        self.infer_time(images, |estimate| estimate.mean)
    }

    /// Time to infer `images` images: as measured, else on the line between the neighbours that were measured,
    /// else in proportion to the nearest one: an image more costs what those cost on average. 0 while nothing is
    /// known.
    fn infer_time(&self, images: usize, of: impl Fn(&Estimate) -> f64) -> f64 {
        let time = |at: usize| Some((at as f64, of(self.infer.get(at - 1)?.as_ref()?)));
        let below = (1..=images).rev().find_map(time);
        let above = (images.max(1)..=self.images_max()).find_map(time);
        let images = images as f64;
        match (below, above) {
            (Some((below, shorter)), Some((above, longer))) if above > below => {
                shorter + (longer - shorter) * (images - below) / (above - below)
            }
            (Some((known, time)), _) | (None, Some((known, time))) => time * images / known,
            (None, None) => 0.0,
        }
    }
}

/// Of a number that rounding may have made negative.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A batcher that has seen every size often: decoding takes 1 ms, a batch `fixed_ms + each_ms` an image.
    fn experienced(images_max: usize, fixed_ms: u64, each_ms: u64) -> Batcher {
        let mut batcher = Batcher::new(images_max);
        for _ in 0..60 {
            batcher.decoded(ms(1));
            for images in 1..=images_max {
                batcher.inferred(images, ms(fixed_ms + each_ms * images as u64));
            }
        }
        batcher
    }

    fn check(batcher: &Batcher, now_ms: u64, line_ms: &[(u64, u64)], others_idle: usize, expected: Decision) {
        let line = line_ms
            .iter()
            .map(|(arrived, expires)| Waiting { arrived_at: ms(*arrived), expires_at: ms(*expires) });
        assert_eq!(batcher.decide(ms(now_ms), line, others_idle), expected, "{line_ms:?} at {now_ms} ms");
    }

    const FAR: u64 = 10_000;

    #[test]
    fn a_quiet_evening() {
        // Five of the ten milliseconds of one image are saved by joining another.
        let batcher = experienced(4, 5, 5);
        check(&batcher, 0, &[], 0, Decision::Idle);
        check(&batcher, 0, &[(0, FAR)], 0, Decision::WaitUntil(ms(5)));
        check(&batcher, 3, &[(0, FAR), (3, FAR)], 0, Decision::WaitUntil(ms(5)));
        check(&batcher, 5, &[(0, FAR), (3, FAR)], 0, Decision::Run(2, Reason::NoGain));
        // It waited while the worker was busy: no more.
        check(&batcher, 9, &[(0, FAR)], 0, Decision::Run(1, Reason::NoGain));
        check(&batcher, 0, &[(0, FAR)], 1, Decision::Run(1, Reason::Shared));
    }

    #[test]
    fn a_rush() {
        let batcher = experienced(4, 5, 5);
        let line = [(0, FAR); 9];
        check(&batcher, 0, &line[..4], 0, Decision::Run(4, Reason::Full));
        check(&batcher, 0, &line, 0, Decision::Run(4, Reason::Full));
        check(&batcher, 0, &line, 1, Decision::Run(4, Reason::Full));
        check(&batcher, 0, &line, 2, Decision::Run(3, Reason::Shared));
        check(&batcher, 0, &line, usize::MAX, Decision::Run(1, Reason::Shared));
    }

    #[test]
    fn deadlines_cut_batches_and_waits() {
        let batcher = experienced(4, 5, 5);
        // Three take 23 ms, two 17 ms.
        check(&batcher, 0, &[(0, 20), (0, FAR), (0, FAR)], 0, Decision::Run(2, Reason::Deadline));
        check(&batcher, 0, &[(0, 12), (0, FAR), (0, FAR)], 0, Decision::Run(1, Reason::Deadline));
        // One that is lost already does not make the rest go one by one.
        check(&batcher, 6, &[(0, 8), (0, FAR), (0, FAR)], 0, Decision::Run(3, Reason::NoGain));
        // In time alone, and too late if another joins: it waits for nobody.
        check(&batcher, 0, &[(0, 14)], 0, Decision::Run(1, Reason::Deadline));
        // The wait ends where the deadline says so, before it stops to pay off.
        let line = [Waiting { arrived_at: ms(0), expires_at: ms(20) }];
        let Decision::WaitUntil(until) = batcher.decide(ms(0), line.into_iter(), 0) else { panic!() };
        assert!(until > ms(2) && until <= ms(3), "{until:?}");
    }

    #[test]
    fn without_evidence_that_batches_are_cheaper_nothing_waits() {
        let mut batcher = Batcher::new(8);
        check(&batcher, 0, &[(0, FAR); 3], 0, Decision::Run(3, Reason::NoGain));
        batcher.inferred(1, ms(10));
        check(&batcher, 0, &[(0, FAR)], 0, Decision::Run(1, Reason::NoGain));
        batcher.inferred(4, ms(40));
        check(&batcher, 0, &[(0, FAR); 3], 0, Decision::Run(3, Reason::NoGain));
        let linear = experienced(8, 0, 10);
        check(&linear, 0, &[(0, FAR)], 0, Decision::Run(1, Reason::NoGain));
        // What is known of one and four tells about two and three.
        let mut batcher = Batcher::new(8);
        batcher.inferred(1, ms(10));
        batcher.inferred(4, ms(25));
        check(&batcher, 0, &[(0, FAR); 3], 0, Decision::WaitUntil(ms(5)));
        // The fifth is taken to cost what the four cost on average, no less.
        check(&batcher, 3, &[(0, FAR); 4], 0, Decision::WaitUntil(Duration::from_micros(3750)));
    }

    #[test]
    fn one_odd_measurement_does_not_make_anything_wait_longer_than_one_image_takes() {
        let mut batcher = Batcher::new(2);
        batcher.inferred(1, ms(10));
        batcher.inferred(2, Duration::ZERO);
        check(&batcher, 0, &[(0, FAR)], 0, Decision::WaitUntil(ms(10)));
        // And the other way round there is nothing to gain.
        batcher.inferred(2, ms(10_000));
        check(&batcher, 0, &[(0, FAR)], 0, Decision::Run(1, Reason::NoGain));
        for images in [0, 3, usize::MAX] {
            batcher.inferred(images, Duration::MAX);
        }
        assert!(Batcher::new(0).images_max() == 1);
    }

    #[test]
    fn what_may_be_late_even_alone_runs_alone() {
        // One measurement is believed, and not more: 10 ms are likely, 30 ms are possible.
        let mut batcher = Batcher::new(4);
        batcher.inferred(1, ms(10));
        check(&batcher, 0, &[(0, 20)], 0, Decision::Run(1, Reason::NoGain));
        check(&batcher, 0, &[(0, 20), (0, FAR)], 0, Decision::Run(1, Reason::Deadline));
    }

    #[derive(Clone, Debug)]
    struct Scene {
        images_max: usize,
        decode: Duration,
        fixed: Duration,
        each: Duration,
        now: Duration,
        line: Vec<Waiting>,
        others_idle: usize,
    }

    impl Scene {
        fn batcher(&self) -> Batcher {
            let mut batcher = Batcher::new(self.images_max);
            for _ in 0..20 {
                batcher.decoded(self.decode);
                for images in 1..=self.images_max {
                    batcher.inferred(images, self.infer(images));
                }
            }
            batcher
        }

        fn infer(&self, images: usize) -> Duration {
            self.fixed + self.each * images as u32
        }

        /// What a batch really takes; the batcher's bound has a margin on top.
        fn service(&self, images: usize) -> Duration {
            self.decode * images as u32 + self.infer(images)
        }

        fn decide(&self, now: Duration) -> Decision {
            self.batcher().decide(now, self.line.iter().copied(), self.others_idle)
        }
    }

    prop_compose! {
        fn scene()(
            images_max in 1_usize..9,
            [decode, fixed, each] in [0_u64..10, 0..30, 0..30],
            now in 100_u64..200,
            line in prop::collection::vec((0_u64..25, 0_u64..200), 0..12),
            others_idle in 0_usize..3,
        ) -> Scene {
            let mut line: Vec<Waiting> = line
                .into_iter()
                .map(|(ago, left)| Waiting { arrived_at: ms(now - ago), expires_at: ms(now + left) })
                .collect();
            line.sort_by_key(|waiting| waiting.arrived_at);
            let [decode, fixed, each] = [decode, fixed, each].map(ms);
            Scene { images_max, decode, fixed, each, now: ms(now), line, others_idle }
        }
    }

    proptest! {
        #[test]
        fn a_batch_is_never_larger_than_allowed_and_never_empty(scene in scene()) {
            match scene.decide(scene.now) {
                Decision::Idle => prop_assert!(scene.line.is_empty()),
                Decision::WaitUntil(_) => prop_assert!(scene.line.len() < scene.images_max),
                Decision::Run(images, reason) => {
                    prop_assert!((1..=scene.images_max.min(scene.line.len())).contains(&images));
                    prop_assert_eq!(reason == Reason::Full, images == scene.images_max);
                }
            }
        }

        #[test]
        fn a_line_that_fills_the_batch_runs_at_once(scene in scene()) {
            prop_assume!(scene.line.len() >= scene.images_max * (scene.others_idle + 1));
            prop_assert!(matches!(scene.decide(scene.now), Decision::Run(..)));
        }

        #[test]
        fn a_wait_leaves_every_image_the_time_for_a_larger_batch(scene in scene()) {
            if let Decision::WaitUntil(until) = scene.decide(scene.now) {
                prop_assert!(until > scene.now);
                prop_assert_eq!(scene.others_idle, 0);
                let larger = scene.service(scene.line.len() + 1);
                for waiting in &scene.line {
                    prop_assert!(until + larger <= waiting.expires_at + Duration::from_micros(1));
                }
            }
        }

        #[test]
        fn a_wait_is_never_longer_than_it_can_gain_and_ends(scene in scene()) {
            if let Decision::WaitUntil(until) = scene.decide(scene.now) {
                let waited = until.saturating_sub(scene.line[0].arrived_at);
                prop_assert!(waited <= scene.fixed + Duration::from_micros(1));
                prop_assert!(waited <= scene.infer(1) + Duration::from_micros(1));
                prop_assert!(matches!(scene.decide(until), Decision::Run(images, _) if images == scene.line.len()));
            }
        }

        #[test]
        fn a_batch_keeps_the_deadlines_that_can_be_kept(scene in scene()) {
            if let Decision::Run(images @ 2.., _) = scene.decide(scene.now) {
                let slack = Duration::from_micros(1);
                for waiting in &scene.line[..images] {
                    let lost = scene.now + scene.service(1) > waiting.expires_at;
                    let kept = scene.now + scene.service(images) <= waiting.expires_at + slack;
                    // At the border the estimate may see it either way.
                    let border = scene.now + scene.service(1) + slack >= waiting.expires_at;
                    prop_assert!(lost || kept || border);
                }
            }
        }
    }
}
