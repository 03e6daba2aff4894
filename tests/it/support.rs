//! What several tests need: servers on free ports that stop with the test, and flags without a command line.
use clap::Parser;
use elastic::net::serve::{Limits, local_url};
use elastic::net::shutdown::Shutdown;
use std::future::Future;
use tokio::net::TcpListener;
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

/// Sends a process a signal, such as `-TERM`.
pub(crate) fn signal(name: &str, pid: u32) {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A client as tests use it.
pub(crate) fn client() -> reqwest::Client {
    elastic::net::client::client(std::time::Duration::from_secs(20)).unwrap()
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
