//! `/metrics` of every mode, as Prometheus' own checker reads it.
use crate::support::{client, program};
use crate::up::Up;
use http::header;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What `promtool check metrics` says about a text; nothing when it is content.
async fn lint(promtool: &Path, text: &str) -> String {
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

/// `/metrics` in the format that `accept` asks for: its content type and its text.
async fn metrics(url: &str, accept: &str) -> (String, String) {
    let answer = client().get(format!("{url}/metrics")).header(header::ACCEPT, accept).send().await.unwrap();
    let kind = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    (kind, answer.text().await.unwrap())
}

#[tokio::test]
async fn every_mode_is_read_by_prometheus_without_complaint() {
    let Some(promtool) = program("promtool") else { return };
    let up = Up::start(&["--replicas-min", "1", "--replicas-max", "1"]).await;
    up.classify().await;
    let replica = up.replicas().await.into_iter().find_map(|replica| replica.url).unwrap();
    // The monitor hears of the request a moment later; percentiles are there from then on.
    while !metrics(&up.at.monitor, "*/*").await.1.contains("elastic_request_p99_seconds{") {}
    for (url, expected) in [
        (&up.at.monitor, "elastic_request_duration_seconds_bucket{le=\"0.33\",outcome=\"ok\"}"),
        (&up.at.dispatch, "elastic_dispatch_duration_seconds_bucket{le=\"0.5\",outcome=\"ok\"}"),
        (&up.at.autoscale, "elastic_autoscale_changes_total"),
        (&replica, "elastic_replica_stage_duration_seconds_bucket{le=\"0.33\",stage=\"infer\"}"),
    ] {
        let (kind, text) = metrics(url, "text/plain;version=0.0.4;q=0.9,*/*;q=0.1").await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        assert!(text.contains(expected), "{expected} is not in\n{text}");
        let said = lint(&promtool, &text).await;
        assert!(said.is_empty(), "{said}\n{text}");
        let (kind, open) = metrics(url, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(open.ends_with("# EOF\n"), "{open}");
    }
    // The check can fail.
    assert!(lint(&promtool, "elastic_requests 1\n").await.contains("no help text"));
}

const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/alerts.yaml");

#[tokio::test]
async fn alerts_are_on_metrics_that_there_are() {
    let alerts = std::fs::read_to_string(ALERTS).unwrap();
    let words = alerts.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("elastic_")).collect();
    assert!(asked.len() > 5, "{asked:?}");
    let up = Up::start(&["--replicas-min", "1", "--replicas-max", "1"]).await;
    up.classify().await;
    let told = [metrics(&up.at.monitor, "*/*").await.1, metrics(&up.at.autoscale, "*/*").await.1].concat();
    let samples: BTreeSet<&str> = told.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let unknown: Vec<_> = asked.difference(&samples).collect();
    assert!(unknown.is_empty(), "{unknown:?} is not in\n{told}");
}

#[tokio::test]
async fn alerts_come_when_they_should() {
    let Some(promtool) = program("promtool") else { return };
    let stories = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/alerts.yaml");
    let output = Command::new(promtool).args(["test", "rules", stories]).output().await.unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}
