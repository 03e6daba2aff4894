//! What several tests need: servers on free ports that stop with the test, and flags without a command line.
use clap::Parser;
use elastic::net::serve::{Limits, local_url};
use elastic::net::shutdown::Shutdown;
use std::ffi::OsStr;
use std::future::Future;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A server that runs until it is stopped or dropped.
pub(crate) struct Running {
    /// Its base URL.
    pub(crate) url: String,
    /// Stops it.
    pub(crate) shutdown: Shutdown,
    tasks: JoinSet<()>,
}

impl Running {
    /// Runs `serve` on a free port of loopback.
    pub(crate) async fn start<F>(serve: impl FnOnce(TcpListener, Shutdown) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    /// Runs `serve` on `listener`.
    pub(crate) fn at<F>(listener: TcpListener, serve: impl FnOnce(TcpListener, Shutdown) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let url = local_url(&listener).unwrap();
        let shutdown = Shutdown::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, shutdown.clone()));
        Self { url, shutdown, tasks }
    }

    /// Serves a router.
    pub(crate) async fn router(router: axum::Router) -> Self {
        Self::start(|listener, shutdown| {
            elastic::net::serve::serve(listener, router, Limits::default(), shutdown)
        })
        .await
    }

    /// Drains it and waits until it has ended.
    pub(crate) async fn stop(self) {
        self.shutdown.drain();
        self.tasks.join_all().await;
    }
}

/// Parses a group of flags as the command line would.
pub(crate) fn flags<A: clap::Args>(flags: &[&str]) -> A {
    #[derive(Parser)]
    struct Wrapped<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    Wrapped::<A>::parse_from(std::iter::once(&"test").chain(flags)).args
}

/// A mode in a process of its own, which ends with this value.
pub(crate) struct Process {
    pub(crate) child: Child,
    /// Where it listens.
    pub(crate) url: String,
    log: Arc<Mutex<Vec<String>>>,
    _reader: JoinSet<()>,
}

impl Process {
    /// Starts a mode on a free port; returns once it says where.
    pub(crate) async fn start(args: &[&str], environment: &[(&str, &OsStr)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_elastic"))
            .args(args)
            .args(["--port", "0", "--log-format", "json", "--log", "info"])
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (told, url) = oneshot::channel();
        let mut reader = JoinSet::new();
        let written = Arc::clone(&log);
        // To the end: a closed pipe would break its next line.
        reader.spawn(async move {
            let mut told = Some(told);
            while let Ok(Some(line)) = lines.next_line().await {
                let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(url) = fields["url"].as_str()
                    && let Some(told) = told.take()
                {
                    let _ = told.send(url.to_owned());
                }
                written.lock().unwrap().push(line);
            }
        });
        let url = tokio::time::timeout(Duration::from_secs(60), url).await.unwrap();
        let log_so_far = log.lock().unwrap().join("\n");
        let url = url.unwrap_or_else(|_| panic!("{args:?} ended before it was ready:\n{log_so_far}"));
        Self { child, url, log, _reader: reader }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn end(mut self) {
        signal("-TERM", self.child.id().unwrap());
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(0), "{}", self.url);
    }
}

impl Drop for Process {
    /// What it said, for whoever looks into a test that fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.url, self.log.lock().unwrap().join("\n"));
        }
    }
}

/// Sends a process a signal, such as `-TERM`.
pub(crate) fn signal(name: &str, pid: u32) {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A client as tests use it.
pub(crate) fn client() -> reqwest::Client {
    elastic::net::client::client(Duration::from_secs(20)).unwrap()
}

/// Where a program that only some tests need is installed. Without it the test is left out, unless
/// `ELASTIC_TEST_REQUIRE`, a list of names, says that it must be there: so that it is never left out unnoticed.
#[allow(clippy::disallowed_methods)] // where programs are is the environment's business
pub(crate) fn program(name: &str) -> Option<std::path::PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    let required = std::env::var("ELASTIC_TEST_REQUIRE").unwrap_or_default();
    let required = required.split_whitespace().any(|required| required == name);
    assert!(found.is_some() || !required, "{name} is not installed, and ELASTIC_TEST_REQUIRE names it");
    if found.is_none() {
        eprintln!("{name} is not installed: left out");
    }
    found
}
