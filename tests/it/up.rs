//! Everything on this machine, from the executable itself: traffic, scaling, killing, and leaving nothing.
use crate::support::{client, signal};
use elastic::net::wire::{ClassifyAnswer, Stats};
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

const PHOTO: &[u8] = include_bytes!("../photos/goldfish.jpg");

#[derive(Clone, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) dispatch: String,
    pub(crate) monitor: String,
    pub(crate) autoscale: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Replica {
    pid: u32,
    state: String,
    pub(crate) url: Option<String>,
}

pub(crate) struct Up {
    child: Child,
    pub(crate) at: Addresses,
    _stdout: BufReader<ChildStdout>,
}

impl Up {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("addresses.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_elastic"))
            .args(["up", "--port", "0", "--monitor-port", "0", "--autoscale-port", "0"])
            .args(["--model", "efficientnet_lite0", "--log", "warn", "--addresses"])
            .arg(&file)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        // The file is there when this line is.
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            assert!(stdout.read_line(&mut line).await.unwrap() > 0, "up ended early");
        }
        let at = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        Self { child, at, _stdout: stdout }
    }

    pub(crate) async fn replicas(&self) -> Vec<Replica> {
        let answer = client().get(format!("{}/replicas", self.at.autoscale)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    pub(crate) async fn classify(&self) -> ClassifyAnswer {
        classify(&self.at.dispatch).await
    }
}

async fn classify(dispatch: &str) -> ClassifyAnswer {
    let answer = client().post(format!("{dispatch}/predict")).body(PHOTO).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status.as_u16(), 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Resolves when nothing serves `url` any more: the kernel closes its connections then. Should another process have got
/// the port meanwhile, it has to go too.
async fn ended(url: &str) {
    let address = url.strip_prefix("http://").unwrap();
    let gone = async {
        while let Ok(mut stream) = TcpStream::connect(address).await {
            let mut nothing = [0];
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut nothing)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap_or_else(|_| panic!("{url} still serves"));
}

#[tokio::test]
async fn requests_survive_the_killing_of_replicas_and_are_all_counted() {
    let up =
        Up::start(&["--replicas-min", "2", "--replicas-max", "2", "--pace", "50ms", "--deadline", "10s"])
            .await;
    assert_eq!(up.classify().await.predictions[0].label, "goldfish");
    let mut asked = JoinSet::new();
    for _ in 0..60 {
        let dispatch = up.at.dispatch.clone();
        asked.spawn(async move { classify(&dispatch).await });
    }
    for _ in 0..10 {
        asked.join_next().await.unwrap().unwrap();
    }
    let victim = up.replicas().await.into_iter().find(|replica| replica.state == "ready").unwrap();
    signal("-KILL", victim.pid);
    assert_eq!(asked.join_all().await.len(), 50);
    // Another takes its place.
    ended(&victim.url.unwrap()).await;
    loop {
        let replicas = up.replicas().await;
        if replicas.iter().filter(|replica| replica.state == "ready").count() == 2 {
            assert!(replicas.iter().all(|replica| replica.pid != victim.pid));
            break;
        }
        tokio::task::yield_now().await;
    }
    loop {
        let stats = client().get(format!("{}/stats", up.at.monitor)).send().await.unwrap();
        let stats: Stats = stats.json().await.unwrap();
        assert_eq!((stats.shed, stats.errors), (0, 0));
        if stats.samples == 61 {
            break;
        }
    }
}

#[tokio::test]
async fn a_signal_drains_and_answers_what_is_under_way() {
    let mut up = Up::start(&["--replicas-min", "1", "--replicas-max", "1", "--pace", "300ms"]).await;
    up.classify().await;
    let replica = up.replicas().await.remove(0);
    let dispatch = up.at.dispatch.clone();
    let mut asked = JoinSet::new();
    asked.spawn(async move { classify(&dispatch).await });
    // Under way once the dispatcher says so.
    loop {
        let metrics = client().get(format!("{}/metrics", up.at.dispatch)).send().await.unwrap();
        if metrics.text().await.unwrap().contains("elastic_dispatch_in_flight 1") {
            break;
        }
    }
    signal("-TERM", up.child.id().unwrap());
    assert_eq!(asked.join_next().await.unwrap().unwrap().predictions[0].label, "goldfish");
    assert!(up.child.wait().await.unwrap().success());
    assert!(TcpStream::connect(replica.url.unwrap().strip_prefix("http://").unwrap()).await.is_err());
}

#[tokio::test]
async fn nothing_is_left_when_the_parent_is_killed() {
    let mut up = Up::start(&["--replicas-min", "2", "--replicas-max", "2"]).await;
    up.classify().await;
    let urls: Vec<_> = loop {
        let replicas = up.replicas().await;
        let urls: Vec<_> = replicas.into_iter().filter_map(|replica| replica.url).collect();
        if urls.len() == 2 {
            break urls;
        }
    };
    signal("-KILL", up.child.id().unwrap());
    up.child.wait().await.unwrap();
    for url in urls {
        ended(&url).await;
    }
}
