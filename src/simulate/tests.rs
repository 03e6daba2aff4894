//! Tests of whole reports.
use super::*;
use args::tests::parse;
use summary::tests::{COMMON, outcome};

/// A report on what flags say of a workload.
async fn simulated(workload: &str, flags: &[&str]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.txt");
    std::fs::write(&path, workload).unwrap();
    let args = parse(&[&["--workload", path.to_str().unwrap()], flags].concat()).unwrap();
    let mut planned = Planned::read(&args).await.unwrap();
    // Its folder has a name of chance.
    planned.source = "w.txt".to_owned();
    simulate(planned, true).await.unwrap()
}

/// A report whose figures were made by hand.
async fn made() -> Report {
    let report = simulated("1\n", &["--policy", "slo"]).await;
    let run = Run::simulated("slo".to_owned(), "central".to_owned(), outcome(), &COMMON);
    Report { common: COMMON, runs: vec![run], ..report }
}

/// Ten seconds of nothing much, ten of four times as much.
const BURST: &str = "10\n10\n10\n10\n10\n10\n10\n10\n10\n10\n40\n40\n40\n40\n40\n40\n40\n40\n40\n40\n";

#[tokio::test]
async fn equal_flags_give_equal_output_whatever_runs_at_once() {
    let report = async |seed: &str, jobs: &str| {
        let flags = ["--policy", "step,hpa,kpa", "--dispatch", "central,p2c", "--seed", seed, "--jobs", jobs];
        let report = simulated(BURST, &flags).await;
        (table::text(&report), report.json().unwrap(), html::page(&report))
    };
    let one = report("7", "1").await;
    assert_eq!(one, report("7", "4").await);
    assert_ne!(one.1, report("8", "1").await.1);
}

#[tokio::test]
async fn the_table_as_people_see_it() {
    // Not `slo`, whose figures move whenever it gets better.
    let flags = [
        "--policy",
        "step,hpa-rps,ray",
        "--dispatch",
        "central,random",
        "--seed",
        "3",
        "--line-seconds",
        "9",
    ];
    insta::assert_snapshot!("table", table::text(&simulated(BURST, &flags).await));
}

#[tokio::test]
async fn programs_get_an_array_with_the_agreed_names() {
    let report = simulated(BURST, &["--policy", "slo,hpa-rps", "--dispatch", "random,p2c"]).await;
    let rows: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    let pairs: Vec<_> = rows.iter().map(|row| [&row["policy"], &row["dispatch"]]).collect();
    let expected =
        [["slo", "random"], ["slo", "power-of-two"], ["hpa-rps", "random"], ["hpa-rps", "power-of-two"]];
    assert_eq!(pairs, expected);
    for row in rows {
        for name in [
            "requests",
            "missed_share",
            "bad_minutes_share",
            "replicas_mean",
            "replica_seconds",
            "scale_actions_per_hour",
            "clairvoyant_ratio",
            "refused_share",
            "clairvoyant_replicas_mean",
            "replicas_max",
        ] {
            assert!(row[name].is_number(), "{name} of {row}");
        }
        // The same requests for all.
        assert_eq!(row["requests"], rows[0]["requests"]);
    }
}

#[tokio::test]
async fn without_requests_shares_are_null() {
    let report = simulated("0\n0\n", &["--policy", "step"]).await;
    let rows: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!((&rows[0]["requests"], &rows[0]["missed_share"]), (&0.into(), &serde_json::Value::Null));
    assert!(table::text(&report).contains(" –  "));
    let page = html::page(&report);
    assert!(page.contains("no request was over the promise"));
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[tokio::test]
async fn the_page_stands_alone_and_has_every_series() {
    let page = html::page(&made().await);
    for part in [
        "data-chart=\"rate-0\"",
        "data-chart=\"replicas-0\"",
        "data-chart=\"missed-0\"",
        "data-name=\"arrived\"",
        "data-name=\"ready\"",
        "data-name=\"asked for\"",
        "data-name=\"offered load\"",
        "data-name=\"missed\"",
        "<summary>2 changes of the number of replicas</summary>",
        "service time 100ms (cv 0.1)",
        "<td>0.667 %</td>",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    for asset in ["http:", "https:", "<link rel=\"stylesheet", "src=", "url(", "@import"] {
        assert!(!page.contains(asset), "{asset} loads something");
    }
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["points"], &data["step_s"]), (&150.into(), &1.into()));
    assert_eq!(data["missed-0"]["missed"][60], 6.0);
    assert_eq!(data["replicas-0"]["ready"].as_array().unwrap().len(), 150);
}

#[tokio::test]
async fn what_comes_from_outside_is_escaped() {
    let mut report = made().await;
    report.planned.source = "<b>.txt".to_owned();
    let page = html::page(&report);
    assert!(!page.contains("<b>.txt") && page.contains("&lt;b&gt;.txt"));
    assert!(!page.contains("<9>") && page.contains("rate &lt;9&gt; &amp; more"));
}

#[tokio::test]
async fn a_long_run_is_joined_to_a_thousand_points_and_few_changes() {
    let mut report = made().await;
    let run = &mut report.runs[0];
    run.seconds = run.seconds.iter().copied().cycle().take(7200).collect();
    run.changes = run.changes.iter().cloned().cycle().take(700).collect();
    let page = html::page(&report);
    assert!(page.contains("each point 8 s") && page.contains("\"points\":900"));
    assert!(page.contains("and 200 more") && page.contains("<summary>700 changes"));
    assert_eq!(page.matches("<td>5 → 2</td>").count(), 250);
}

#[tokio::test]
async fn a_record_is_shown_beside_what_would_have_been() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    let seconds: Vec<_> = (0..90).map(|t| (10, u64::from(t == 5), Some(3))).collect();
    std::fs::write(&path, record::tests::history(&seconds).to_string()).unwrap();
    let args = parse(&["--record", path.to_str().unwrap(), "--policy", "hpa,step"]).unwrap();
    let report = simulate(Planned::read(&args).await.unwrap(), true).await.unwrap();
    let text = table::text(&report);
    let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("policy")).skip(1).collect();
    assert!(rows.len() == 3 && rows[0].starts_with("recorded  –"), "{text}");
    assert!(rows[0].contains("0.111 %") && rows[0].contains("3.00"), "{text}");
    assert!(text.contains("900 requests in 1:30 as recorded"), "{text}");
    let page = html::page(&report);
    assert!(page.contains("<h2>recorded</h2>") && page.contains("data-chart=\"missed-0\""));
    // Programs get what was simulated.
    let rows: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!((&rows[0]["policy"], &rows[0]["requests"]), (&"hpa".into(), &900.into()));
}
