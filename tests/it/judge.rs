//! `scripts/test-cluster.sh`, as far as it can be judged without a cluster: what it reads, asks and removes.
use crate::support::{Running, program};
use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use http::StatusCode;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/test-cluster.sh");

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// The script or, with `functions`, a piece of shell that has its functions and a folder of its own.
async fn ran(mut command: Command) -> Ran {
    let output = command.current_dir(ROOT).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

async fn script(flags: &[&str], settings: &[(&str, &str)]) -> Ran {
    let mut command = Command::new("bash");
    command.arg(SCRIPT).args(flags).envs(settings.iter().copied());
    ran(command).await
}

async fn functions(folder: &Path, shell: &str) -> Ran {
    let mut command = Command::new("bash");
    let text = format!("source {SCRIPT}; folder={}; check_settings; MAX=6; {shell}", folder.display());
    command.args(["-c", &text]).env("NAMESPACE", format!("elastic-test-{}", std::process::id()));
    ran(command).await
}

#[tokio::test]
async fn wrong_usage_is_told_apart_from_failure() {
    let listed = script(&["--list"], &[]).await;
    assert_eq!((listed.code, listed.out.lines().count()), (0, 13), "{}", listed.out);
    assert!(script(&["--help"], &[]).await.out.contains("IMAGE_PULL_POLICY"));
    for (flags, settings, said) in [
        (&["--nope"][..], ("KEEP", "0"), "unknown argument '--nope'"),
        (&["--only", "kil"], ("KEEP", "0"), "there is no scenario 'kil'"),
        (&["--only"], ("KEEP", "0"), "--only needs names"),
        (&[], ("PACE_MS", "400"), "PACE_MS is 20 to 150"),
        (&[], ("TIMEOUT", "10m"), "TIMEOUT must be a whole number"),
        (&[], ("IMAGE_PULL_POLICY", "Always"), "IMAGE_PULL_POLICY is IfNotPresent or Never"),
        (&[], ("NAMESPACE", "Not_a_name"), "cannot be a namespace's name"),
    ] {
        let refused = script(flags, &[settings]).await;
        assert_eq!(refused.code, 2, "{said}: {}", refused.err);
        assert!(refused.err.contains(said), "{said}: {}", refused.err);
    }
}

/// Answers most of what the script asks before it deploys anything; the nodes do not have the image. Every call
/// is written down.
const KUBECTL: &str = r#"#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
*"config current-context"*) echo test ;;
*"config view"*) echo https://cluster.test:6443 ;;
*version*) printf '{\n  "clientVersion": {\n    "gitVersion": "v1.27.1"\n  },\n  "serverVersion": {\n    "gitVersion": "v1.36.2"\n  }\n}\n' ;;
*can-i*) echo yes ;;
*"get namespace "*) exit 1 ;;
*"get nodes"*) printf 'true\t64\n\t1500m\n\t2\n' ;;
*state.waiting.reason*) echo ErrImageNeverPull ;;
*"apply --filename -"*) cat >/dev/null ;;
esac
"#;

#[tokio::test]
async fn an_image_that_the_nodes_lack_is_told_and_everything_is_removed() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (kubectl, calls) = (folder.path().join("kubectl"), folder.path().join("calls"));
    std::fs::write(&kubectl, KUBECTL).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("bash");
    command
        .arg(SCRIPT)
        .env("CALLS", &calls)
        .env("ARTIFACTS", folder.path())
        .env("NAMESPACE", "elastic-test-x");
    command
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .env("IMAGE", "r.test/elastic:v1");
    let ran = ran(command).await;
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("context test, server https://cluster.test:6443"), "{}", ran.out);
    assert!(ran.out.contains("Kubernetes v1.36.2, kubectl v1.27.1"), "{}", ran.out);
    // One node takes nothing, the others have 3.5 CPUs together.
    assert!(ran.out.contains("3500m CPU to give"), "{}", ran.out);
    let said =
        "the nodes cannot get the image 'r.test/elastic:v1' (ErrImageNeverPull): load it into the cluster";
    assert!(ran.err.contains(said), "{}", ran.err);
    let calls = std::fs::read_to_string(&calls).unwrap();
    assert!(calls.lines().last().unwrap().starts_with("delete namespace elastic-test-x"), "{calls}");
}

#[tokio::test]
async fn reports_are_read_as_the_load_generator_writes_them() {
    let count = Arc::new(AtomicU64::new(0));
    let answer = post(move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        async move {
            match number {
                3 => StatusCode::SERVICE_UNAVAILABLE,
                5 | 6 => StatusCode::BAD_GATEWAY,
                _ => StatusCode::OK,
            }
        }
    });
    let router = Router::new().route("/readyz", get(|| async { "ready" })).route("/predict", answer);
    let service = Running::router(router).await;
    let folder = tempfile::tempdir().unwrap();
    let mut load = Command::new(env!("CARGO_BIN_EXE_elastic"));
    load.args([
        "load",
        "--target",
        &service.url,
        "--schedule",
        "constant:20",
        "--duration",
        "1s",
        "--json",
        "-",
    ]);
    let output = load.env("ELASTIC_LOAD_PHOTOS", format!("{ROOT}/tests/photos")).output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Logs of a pod have both streams.
    let log = [b"2026-01-01T00:00:00Z  INFO load elapsed_s=10 sent=9\n", &*output.stdout].concat();
    std::fs::write(folder.path().join("load.json"), log).unwrap();
    let shell = r#"read_report "$folder/load.json"; echo "$sent|$failed|$shed|$failures_by_kind|$p50|$p99""#;
    let read = functions(folder.path(), shell).await;
    let latency = &report["latency_ms"];
    let expected = format!("20|2|1|http_502 2|{}|{}\n", latency["p50"], latency["p99"]);
    assert_eq!((read.out, read.code), (expected, 0), "{}", read.err);
    // Without failures there is nothing to tell.
    let none = r#"printf '  "sent": 4,\n  "failures": {},\n  "models": {\n' >"$folder/n"; report_failures "$folder/n""#;
    assert_eq!(functions(folder.path(), none).await.out, "");
    service.stop().await;
}

#[tokio::test]
async fn it_speaks_http_by_itself() {
    let echo = post(|body: Bytes| async move { (StatusCode::IM_A_TEAPOT, format!("{} bytes", body.len())) });
    let service = Running::router(Router::new().route("/echo", echo)).await;
    let port = service.url.rsplit(':').next().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let shell = format!(
        r#"http POST {port} /echo tests/photos/goldfish.jpg image/jpeg; echo "$status $(cat "$reply")"
        http GET {port} /none; echo "$status"
        http GET 1 /; echo "$status""#
    );
    let bytes = std::fs::metadata(format!("{ROOT}/tests/photos/goldfish.jpg")).unwrap().len();
    let asked = functions(folder.path(), &shell).await;
    assert_eq!((asked.out, asked.code), (format!("418 {bytes} bytes\n404\n000\n"), 0), "{}", asked.err);
    service.stop().await;
}

#[tokio::test]
async fn two_holders_of_a_lease_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let judged = async |lines: &str| {
        std::fs::write(folder.path().join("leases"), lines).unwrap();
        functions(folder.path(), r"leases=$folder/leases; lease_s=10; one_at_a_time").await
    };
    // Renewed, given back, taken at once; then taken after it had run out.
    let good = "0|a|0\n2000|a|0\n4000||0\n4100|b|1\n16000|c|2\n";
    let passed = judged(good).await;
    assert_eq!(passed.code, 0, "{}", passed.out);
    assert!(
        passed.out.contains("3 holders in a row, 1 of them after the Lease had run out"),
        "{}",
        passed.out
    );
    let stolen = judged("0|a|0\n2000|a|0\n5000|b|1\n").await;
    assert_eq!(stolen.code, 1);
    assert!(stolen.out.contains("b took the Lease 3.0 s after a renewed it"), "{}", stolen.out);
    assert_eq!(judged("0|a|0\n12000|b|0\n").await.code, 1, "a change of hands that is not counted");
}

#[tokio::test]
async fn the_manifests_are_rendered_for_a_namespace_and_a_pace_of_their_own() {
    if program("kubectl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shell = r#"IMAGE=r.test:5000/a/elastic:v1@sha256:1234; write_overlay; kubectl kustomize "$overlay"; rm -r "$overlay""#;
    let rendered = functions(folder.path(), shell).await;
    assert_eq!(rendered.code, 0, "{}", rendered.err);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered.out).unwrap();
    assert!(objects.iter().all(|object| object["kind"] != "Namespace"));
    let namespace = format!("elastic-test-{}", std::process::id());
    assert!(objects.iter().all(|object| object["metadata"]["namespace"] == *namespace), "{}", rendered.out);
    let deployment = |name: &str| {
        let named = |object: &&Value| object["kind"] == "Deployment" && object["metadata"]["name"] == name;
        objects.iter().find(named).unwrap()["spec"]["template"]["spec"]["containers"][0].clone()
    };
    for (name, variable, value) in [
        ("model", "ELASTIC_PACE", "100ms"),
        ("model", "ELASTIC_THREADS", "1"),
        ("autoscale", "ELASTIC_REPLICAS_MIN", "2"),
        ("autoscale", "ELASTIC_REPLICAS_MAX", "6"),
        ("autoscale", "ELASTIC_HOLD", "10s"),
    ] {
        let container = deployment(name);
        assert_eq!(container["image"], "r.test:5000/a/elastic@sha256:1234");
        let set = container["env"].as_array().unwrap().iter().find(|set| set["name"] == variable).unwrap();
        assert_eq!(set["value"], value, "{variable}");
    }
    let binding = objects.iter().find(|object| object["kind"] == "RoleBinding").unwrap();
    assert_eq!(binding["subjects"][0]["namespace"], *namespace);
}
