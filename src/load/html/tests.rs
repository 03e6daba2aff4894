//! Tests of the page.
use super::*;
use crate::load::report::tests::full;

#[test]
fn the_page_stands_alone_and_has_every_part() {
    let page = page(&full());
    for part in [
        "data-chart=\"rate\"",
        "data-chart=\"latency\"",
        "data-chart=\"misses\"",
        "data-chart=\"replicas\"",
        "class=\"verdict bad\"",
        "p99 5000.0 ms is over 500 ms",
        "class=\"mark up\"",
        "class=\"mark down\"",
        "data-name=\"http_500\"",
        "2023-11-14 22:13:20 UTC",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    // The target's own address is the only one.
    assert_eq!(page.matches("http://").count(), page.matches("http://t/predict").count());
    for asset in ["https://", "<link rel=\"stylesheet", "src=", "url(", "@import"] {
        assert!(!page.contains(asset), "{asset} loads something");
    }
}

#[test]
fn what_comes_from_outside_is_escaped() {
    let mut report = full();
    report.target = "http://t/\"><script>alert(1)</script>".into();
    report.plan.schedule = "<b>&'".into();
    report.models = [("<img>".to_owned(), 1)].into();
    report.failures = [("</script><i>".to_owned(), 1)].into();
    report.fleet.as_mut().unwrap().problems = vec!["<u>".into()];
    let page = page(&report);
    for raw in ["<script>alert", "<b>&", "<img>", "</script><i>", "<i>\"", "<u>", "<410"] {
        assert!(!page.contains(raw), "{raw}");
    }
    assert!(page.contains("p99 &lt;410 ms&gt; &amp; over the target"));
    // The script's data is JSON all the same.
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert!(data["misses"].get("</script><i>").is_some());
}

#[test]
fn a_report_of_next_to_nothing_still_makes_a_page() {
    let mut report = full();
    report.seconds.clear();
    report.fleet = None;
    (report.latency_ms.p99, report.shed) = (None, 0);
    report.failures.clear();
    let page = page(&report);
    assert!(page.contains("no request failed or was shed") && page.contains("--monitor URL"));
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn a_long_run_is_joined_to_some_hundred_points() {
    let mut report = full();
    let second = report.seconds[0].clone();
    report.seconds = (0..7200).map(|t| series::tests::second(&second, t)).collect();
    report.plan.duration_s = 7200.0;
    let series = Series::new(&report);
    assert_eq!((series.step_s, series.len()), (8, 900));
    assert!(series.sent.iter().all(|sent| (sent - second.sent as f64).abs() < 1e-9));
    // The slowest of the eight.
    assert_eq!(series.p99_ms[0], Some(7.0));
    assert!(page(&report).contains("each point 8 s"));
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (unix_s, expected) in [
        (0.0, "1970-01-01 00:00:00 UTC"),
        (951_782_399.9, "2000-02-28 23:59:59 UTC"),
        (951_782_400.0, "2000-02-29 00:00:00 UTC"),
        (1_735_689_599.0, "2024-12-31 23:59:59 UTC"),
    ] {
        assert_eq!(utc(unix_s), expected);
    }
}
