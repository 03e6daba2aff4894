//! Tests of workloads, plans and instants.
#![allow(clippy::float_cmp, clippy::unchecked_time_subtraction)] // exact by construction; instants only grow
use super::*;
use proptest::prelude::*;

fn step(rates_rps: &[f64]) -> Workload {
    let lines: Vec<String> = rates_rps.iter().map(f64::to_string).collect();
    Workload::parse(&lines.join("\n")).unwrap()
}

fn played(workload: &Workload, line_s: f64) -> Plan {
    Plan::new(workload, Pace { line_s, ..Pace::default() }, u64::MAX).unwrap()
}

fn shape(text: &str) -> Workload {
    Workload::shape(text).unwrap().unwrap()
}

fn plan(rates_rps: &[f64], line_s: f64) -> Plan {
    played(&step(rates_rps), line_s)
}

fn instants_ms(plan: &Plan) -> Vec<u128> {
    plan.instants(Spacing::Even).map(|instant| instant.as_millis()).collect()
}

#[test]
fn a_file_is_one_rate_a_line() {
    let text = "# a day\n5\n\n 2.5 # lunch\r\n0\n  \n1e3\n";
    assert_eq!(Workload::parse(text).unwrap().rates_rps(), [5.0, 2.5, 0.0, 1000.0]);
}

#[test]
fn what_is_no_rate_is_refused_with_its_line() {
    for bad in ["-1", "NaN", "inf", "1e9", "1e400", "5 6", "5,5", "fast", "100000.1"] {
        let error = Workload::parse(&format!("# head\n1\n{bad}\n2\n")).unwrap_err();
        assert_eq!(error, WorkloadError::Line { line_number: 3, text: bad.to_owned() });
        assert!(error.to_string().starts_with("line 3: "), "{error}");
    }
    assert_eq!(Workload::parse("# nothing\n\n"), Err(WorkloadError::Empty));
    let long = "1\n".repeat(LINES_MAX + 1);
    assert_eq!(Workload::parse(&long), Err(WorkloadError::TooLong { line_number: LINES_MAX + 1 }));
}

#[test]
fn fractions_of_a_request_are_carried_across_lines() {
    assert_eq!(instants_ms(&plan(&[0.5; 6], 1.0)), [1000, 3000, 5000]);
    assert_eq!(instants_ms(&plan(&[2.0, 0.0, 4.0], 1.0)), [250, 750, 2125, 2375, 2625, 2875]);
    assert_eq!(instants_ms(&plan(&[0.0, 0.0], 1.0)), [] as [u128; 0]);
}

#[test]
fn speed_shortens_lines_and_scale_multiplies_rates() {
    let workload = Workload::parse("10\n20\n").unwrap();
    let fast = Plan::new(&workload, Pace { speed: 2.0, ..Pace::default() }, 100).unwrap();
    assert_eq!((fast.duration(), fast.requests_expected()), (Duration::from_secs(1), 15.0));
    assert_eq!(fast.rate_rps_at(Duration::from_millis(600)), 20.0);
    let scaled = Plan::new(&workload, Pace { scale: 2.0, ..Pace::default() }, 100).unwrap();
    assert_eq!((scaled.duration(), scaled.requests_expected()), (Duration::from_secs(2), 60.0));
    assert_eq!(scaled.rate_rps_at(Duration::from_millis(600)), 20.0);
    assert_eq!(scaled.rate_rps_at(Duration::from_secs(2)), 0.0);
}

#[test]
fn plans_over_a_limit_are_refused() {
    let workload = Workload::parse("1000\n").unwrap();
    let refused = |pace, requests_max| Plan::new(&workload, pace, requests_max).unwrap_err();
    assert_eq!(refused(Pace::default(), 999), PlanError::TooMany { requests: 1000.0, requests_max: 999 });
    let scaled = Pace { scale: 1000.0, ..Pace::default() };
    assert_eq!(refused(scaled, u64::MAX), PlanError::TooFast { rate_rps: 1e6 });
    let slow = Pace { line_s: 1e6, ..Pace::default() };
    assert_eq!(refused(slow, u64::MAX), PlanError::TooLong { duration_s: 1e6 });
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(Pace { speed: bad, ..Pace::default() }, u64::MAX), PlanError::Pace);
    }
}

#[test]
fn a_shape_is_a_word() {
    let plan = played(&shape("constant:50"), 10.0);
    assert_eq!((plan.duration(), plan.requests_expected()), (Duration::from_secs(10), 500.0));
    let plan = played(&shape("ramp:10..100"), 10.0);
    assert_eq!((plan.duration(), plan.requests_expected()), (Duration::from_secs(10), 550.0));
    assert_eq!([0, 5, 10].map(|at_s| plan.rate_rps_at(Duration::from_secs(at_s))), [10.0, 55.0, 0.0]);
    let plan = played(&shape("ramp:0..20..0"), 5.0);
    assert_eq!((plan.duration(), plan.requests_expected()), (Duration::from_secs(10), 100.0));
    assert_eq!([1, 5, 9].map(|at_s| plan.rate_rps_at(Duration::from_secs(at_s))), [4.0, 20.0, 4.0]);
    let workload = shape("step:10, 50,10");
    assert_eq!((workload.rates_rps(), workload.lines()), (&[10.0, 50.0, 10.0][..], 3));
}

#[test]
fn what_only_starts_like_a_shape_is_refused_and_a_file_s_name_is_none() {
    for bad in ["constant:", "constant:5,5", "constant:-1", "ramp:10", "ramp:1..two", "step:1,,2", "step:1e9"]
    {
        let error = Workload::shape(bad).unwrap().unwrap_err();
        assert_eq!(error, WorkloadError::Shape { text: bad.to_owned() });
        assert!(error.to_string().contains("ramp:FROM..TO"), "{error}");
    }
    for file in ["workload.txt", "traces/a:b.txt", "", "constant"] {
        assert_eq!(Workload::shape(file), None, "{file}");
    }
}

#[test]
fn interpolation_reaches_each_rate_in_the_middle_of_its_line() {
    let plan = played(&step(&[10.0, 20.0, 0.0]).interpolated(), 60.0);
    let rates = [0, 29, 30, 60, 90, 120, 150, 179].map(|at_s| plan.rate_rps_at(Duration::from_secs(at_s)));
    assert_eq!(rates, [10.0, 10.0, 10.0, 15.0, 20.0, 10.0, 0.0, 0.0]);
    assert_eq!(plan.requests_expected(), 1800.0);
    let one = played(&step(&[5.0]).interpolated(), 2.0);
    assert_eq!((one.duration(), one.requests_expected()), (Duration::from_secs(2), 10.0));
    assert_eq!(shape("ramp:1..2").interpolated(), shape("ramp:1..2"));
}

#[test]
fn a_ramp_from_nothing_starts_slowly() {
    // Expected requests are t^2: the ones at 0.5, 1.5, 2.5, 3.5 are due at their square roots.
    let plan = played(&shape("ramp:0..4"), 2.0);
    assert_eq!(instants_ms(&plan), [707, 1224, 1581, 1870]);
    let down = played(&shape("ramp:4..0"), 2.0);
    assert_eq!(instants_ms(&down), [129, 418, 775, 1292]);
}

#[test]
fn seconds_add_up_to_the_plan() {
    let plan = played(&shape("ramp:0..4"), 2.5);
    let by_second = plan.expected_by_second();
    assert_eq!(by_second.len(), 3);
    for (count, expected) in by_second.iter().zip([0.8, 2.4, 1.8]) {
        assert!((count - expected).abs() < 1e-9, "{by_second:?}");
    }
}

#[test]
fn poisson_counts_have_the_mean_and_the_variance_of_the_rate() {
    let plan = plan(&[30.0, 0.0, 50.0], 2.0);
    let counts: Vec<f64> =
        (0..400).map(|seed| plan.instants(Spacing::Poisson { seed }).count() as f64).collect();
    let mean = counts.iter().sum::<f64>() / 400.0;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 399.0;
    // 160 expected; the mean of 400 counts has a standard deviation of 0.63, their variance one of 11.
    assert!((mean - 160.0).abs() < 2.5, "{mean}");
    assert!((variance - 160.0).abs() < 45.0, "{variance}");
    let idle = |instant: &Duration| (2.0..4.0).contains(&instant.as_secs_f64());
    assert!((0..400).all(|seed| !plan.instants(Spacing::Poisson { seed }).any(|at| idle(&at))));
}

fn rates() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(prop_oneof![Just(0.0), 0.0..3.0, 0.0..200.0], 1..40)
}

/// Lines that are held, lines that are joined, and ramps.
fn workloads() -> impl Strategy<Value = Workload> {
    (rates(), 0..3).prop_map(|(rates_rps, form)| {
        let corners = rates_rps.iter().map(f64::to_string).collect::<Vec<_>>().join("..");
        match form {
            0 => step(&rates_rps),
            1 => step(&rates_rps).interpolated(),
            // One rate is no ramp.
            _ => shape(&format!("ramp:{corners}..1")),
        }
    })
}

/// Requests expected until `at_s`, from many small steps of the rate.
fn integral(plan: &Plan, at_s: f64) -> f64 {
    let steps = 20_000;
    let width_s = at_s / f64::from(steps);
    let middle = |index: i32| Duration::from_secs_f64(width_s * (f64::from(index) + 0.5));
    (0..steps).map(|index| plan.rate_rps_at(middle(index)) * width_s).sum()
}

proptest! {
    #[test]
    fn instants_never_go_back_and_stay_within_the_plan(
        workload in workloads(), line_s in 0.01..5.0, poisson: bool, seed: u64,
    ) {
        let plan = played(&workload, line_s);
        let spacing = if poisson { Spacing::Poisson { seed } } else { Spacing::Even };
        let mut last = Duration::ZERO;
        for instant in plan.instants(spacing) {
            prop_assert!(instant >= last && instant <= plan.duration());
            last = instant;
        }
        prop_assert!(plan.instants(spacing).eq(plan.instants(spacing)));
    }

    #[test]
    fn even_counts_follow_the_integral_of_the_rate_at_every_instant(
        workload in workloads(), line_s in 0.01..5.0, share in 0.0..1.0,
    ) {
        let plan = played(&workload, line_s);
        let at_s = plan.duration().as_secs_f64() * share;
        let count = plan.instants(Spacing::Even).filter(|at| at.as_secs_f64() < at_s).count() as f64;
        let expected = integral(&plan, at_s);
        // Even spacing rounds to the nearest request; the sum of small steps misses a little at jumps.
        prop_assert!((count - expected).abs() <= 0.55 + expected * 1e-3, "{} sent of {}", count, expected);
    }

    #[test]
    fn the_whole_is_the_sum_of_its_seconds(workload in workloads(), line_s in 0.01..5.0) {
        let plan = played(&workload, line_s);
        let sum: f64 = plan.expected_by_second().iter().sum();
        prop_assert!((sum - plan.requests_expected()).abs() < 1e-6 * (1.0 + sum));
        let count = plan.instants(Spacing::Even).count() as f64;
        prop_assert!((count - sum).abs() <= 0.5 + 1e-6, "{} sent of {}", count, sum);
    }

    #[test]
    fn interpolation_is_continuous_and_keeps_the_number_of_requests(
        rates_rps in rates(), line_s in 0.01..5.0, share in 0.0..1.0,
    ) {
        let plan = played(&step(&rates_rps).interpolated(), line_s);
        let held = played(&step(&rates_rps), line_s);
        prop_assert!((plan.requests_expected() - held.requests_expected()).abs() < 1e-6 * (1.0 + held.requests_expected()));
        prop_assert_eq!(plan.duration(), held.duration());
        // From one rate to another, at most 200 apart, takes a whole line.
        let at_s = plan.duration().as_secs_f64() * share;
        let step_s = line_s * 1e-4;
        if at_s + step_s < plan.duration().as_secs_f64() {
            let [before, after] = [at_s, at_s + step_s].map(|at_s| plan.rate_rps_at(Duration::from_secs_f64(at_s)));
            prop_assert!((after - before).abs() <= 200.0 * 1e-4 + 1e-3, "{} to {}", before, after);
        }
    }

    #[test]
    fn even_gaps_are_one_over_the_rate_whatever_the_line(rate_rps in 0.1..500.0, line_s in 0.01..3.0) {
        let plan = plan(&[rate_rps; 20], line_s);
        let instants: Vec<Duration> = plan.instants(Spacing::Even).collect();
        for pair in instants.windows(2) {
            let gap_s = (pair[1] - pair[0]).as_secs_f64();
            prop_assert!((gap_s * rate_rps - 1.0).abs() < 1e-3, "{}", gap_s);
        }
    }

    #[test]
    fn other_seeds_give_other_instants(seed in 0..u64::MAX) {
        let plan = plan(&[50.0], 1.0);
        let (one, other) = (Spacing::Poisson { seed }, Spacing::Poisson { seed: seed + 1 });
        prop_assert!(!plan.instants(one).eq(plan.instants(other)));
    }
}
