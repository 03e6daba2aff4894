//! Replicas as child processes on this machine.
//!
//! **Invariant**: no child outlives this process: each drains when its standard input closes, which the
//! kernel sees to however this process ends. A child that ends unasked is replaced; one that ends before it
//! was ever ready is replaced ever more slowly.
use crate::logic::policy::ReplicaCounts;
use crate::net::shutdown::Shutdown;
use crate::net::wire::Announcement;
use anyhow::Context as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest line a child may announce itself with, bytes.
const ANNOUNCEMENT_BYTES_MAX: u64 = 4096;
const BACK_OFF_MIN: Duration = Duration::from_millis(200);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// What a child may take over its own drain time-out before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How a replica is started.
#[derive(Clone, Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    drain_timeout: Duration,
}

impl Spawn {
    /// Starts `elastic serve-model` with `args`, as a child of this very executable.
    pub fn this_executable(args: Vec<OsString>, drain_timeout: Duration) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell which executable this is")?;
        Ok(Self::executable(program, args, drain_timeout))
    }

    /// Starts `serve-model` of another executable.
    #[must_use]
    pub fn executable(program: PathBuf, args: Vec<OsString>, drain_timeout: Duration) -> Self {
        Self { program, args, drain_timeout }
    }

    fn start(&self) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(["serve-model", "--child", "--port", "0"])
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C in a terminal goes to the whole group: children must not drain before the dispatcher has.
            .process_group(0)
            .spawn()
    }
}

/// State of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Not ready yet.
    Starting,
    /// Takes requests.
    Ready,
    /// Finishes what it has.
    Draining,
}

/// One child, as `GET /replicas` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Replica {
    /// Process id.
    pub pid: Option<u32>,
    /// Its state.
    pub state: ReplicaState,
    /// Its base URL, once it is ready.
    pub url: Option<String>,
    /// From its start to its readiness, milliseconds.
    pub startup_ms: Option<u64>,
}

struct Member {
    replica: Replica,
    started_at: Instant,
    /// Whether it stands in for one that ended before it was ready.
    again: bool,
    drain: CancellationToken,
}

#[derive(Default)]
struct Fleet {
    desired: u32,
    next_id: u64,
    /// By age: the youngest is last.
    members: BTreeMap<u64, Member>,
    /// Children that ended before they were ready, in a row.
    failures: u32,
    /// Of the children still to be started, those that ended before they were ready.
    broken: u32,
    not_before: Option<Instant>,
}

/// See the module's documentation.
pub struct ProcessScaler {
    spawn: Spawn,
    fleet: Mutex<Fleet>,
    changed: Notify,
}

impl ProcessScaler {
    /// A scaler that will run `replicas` children once it is supervised.
    #[must_use]
    pub fn new(spawn: Spawn, replicas: u32) -> Arc<Self> {
        let fleet = Fleet { desired: replicas, ..Fleet::default() };
        Arc::new(Self { spawn, fleet: Mutex::new(fleet), changed: Notify::new() })
    }

    /// Children asked for, ready, on their way up, and failing: a child that ended before it was ever ready
    /// counts as failing until another has become ready in its place.
    #[must_use]
    pub fn observe(&self) -> ReplicaCounts {
        let fleet = self.fleet();
        let (mut ready, mut starting, mut again) = (0_u32, 0_u32, 0_u32);
        for member in fleet.members.values() {
            match member.replica.state {
                ReplicaState::Ready => ready += 1,
                ReplicaState::Starting if member.again => again += 1,
                ReplicaState::Starting => starting += 1,
                ReplicaState::Draining => {}
            }
        }
        let not_started = fleet.desired.saturating_sub(ready + starting + again);
        let broken = fleet.broken.min(not_started);
        starting += not_started - broken;
        ReplicaCounts { desired: fleet.desired, ready, starting, failing: again + broken }
    }

    /// Asks for a number of children; [`ProcessScaler::supervise`] sees to it.
    pub fn scale_to(&self, replicas: u32) {
        self.fleet().desired = replicas;
        self.changed.notify_one();
    }

    /// Every child, the oldest first.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        self.fleet().members.values().map(|member| member.replica.clone()).collect()
    }

    /// Starts, replaces and drains children until `shutdown` drains and the last of them has ended.
    pub async fn supervise(self: &Arc<Self>, shutdown: Shutdown) {
        let mut children = JoinSet::new();
        loop {
            let retry_at = self.reconcile(&mut children, shutdown.is_draining());
            if shutdown.is_draining() && children.is_empty() {
                return;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Some(_) = children.join_next() => {}
                () = shutdown.drained(), if !shutdown.is_draining() => {}
                () = shutdown.aborted() => return, // the children are killed when they are dropped
                () = until(retry_at) => {}
            }
        }
    }

    /// Brings the children nearer to what is asked for. When to come back, if the next start must wait.
    fn reconcile(self: &Arc<Self>, children: &mut JoinSet<()>, stopping: bool) -> Option<Instant> {
        let mut fleet = self.fleet();
        let desired = if stopping { 0 } else { fleet.desired as usize };
        let staying = |fleet: &Fleet| {
            let stays = |(_, member): &(&u64, &Member)| member.replica.state != ReplicaState::Draining;
            fleet
                .members
                .iter()
                .filter(stays)
                .map(|(&id, member)| (id, member.replica.state))
                .collect::<Vec<_>>()
        };
        let mut present = staying(&fleet);
        // Those that are starting go first, then the youngest.
        present.sort_by_key(|&(id, state)| (state == ReplicaState::Starting, id));
        for (id, _) in present.split_off(present.len().min(desired)) {
            if let Some(member) = fleet.members.get_mut(&id) {
                member.replica.state = ReplicaState::Draining;
                member.drain.cancel();
            }
        }
        let missing = desired.saturating_sub(present.len()) as u32;
        fleet.broken = fleet.broken.min(missing);
        for still_missing in (1..=missing).rev() {
            if let Some(at) = fleet.not_before.filter(|at| *at > Instant::now()) {
                return Some(at);
            }
            if !self.start(&mut fleet, children) {
                // Where one cannot be started, none can.
                fleet.broken = still_missing;
                return fleet.not_before;
            }
        }
        None
    }

    /// Starts a child and a task that stays with it. False when the system refuses another process.
    fn start(self: &Arc<Self>, fleet: &mut Fleet, children: &mut JoinSet<()>) -> bool {
        let child = match self.spawn.start() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, program = %self.spawn.program.display(), "cannot start a replica");
                fleet.failed();
                return false;
            }
        };
        fleet.next_id += 1;
        let id = fleet.next_id;
        let replica = Replica { pid: child.id(), state: ReplicaState::Starting, url: None, startup_ms: None };
        let drain = CancellationToken::new();
        let again = fleet.broken > 0;
        fleet.broken = fleet.broken.saturating_sub(1);
        let member = Member { replica, started_at: Instant::now(), again, drain: drain.clone() };
        fleet.members.insert(id, member);
        let scaler = Arc::clone(self);
        children.spawn(async move {
            let status = scaler.stay_with(id, child, &drain).await;
            scaler.ended(id, status);
        });
        true
    }

    /// Reads the child's announcement, waits for its end, and sees that it ends when it is asked to.
    async fn stay_with(
        &self,
        id: u64,
        mut child: Child,
        drain: &CancellationToken,
    ) -> std::io::Result<ExitStatus> {
        let mut stdin = child.stdin.take();
        let announced = child.stdout.take().map(|stdout| async move {
            let mut line = String::new();
            let mut stdout = BufReader::new(stdout).take(ANNOUNCEMENT_BYTES_MAX);
            let _ = stdout.read_line(&mut line).await;
            (line, stdout)
        });
        let announced = async {
            match announced {
                Some(announced) => announced.await,
                None => std::future::pending().await,
            }
        };
        // Held open: a closed pipe would break the child's next write.
        let mut stdout = None;
        tokio::pin!(announced);
        loop {
            tokio::select! {
                status = child.wait() => return status,
                (line, rest) = &mut announced, if stdout.is_none() => {
                    stdout = Some(rest);
                    self.announced(id, &line);
                }
                () = drain.cancelled(), if stdin.is_some() => {
                    drop(stdin.take());
                    break;
                }
            }
        }
        if let Ok(status) = tokio::time::timeout(self.spawn.drain_timeout + GRACE, child.wait()).await {
            return status;
        }
        tracing::warn!(pid = child.id(), "a replica did not drain in time; killing it");
        child.kill().await?;
        child.wait().await
    }

    fn announced(&self, id: u64, line: &str) {
        let mut fleet = self.fleet();
        let Ok(announcement) = serde_json::from_str::<Announcement>(line) else {
            if !line.is_empty() {
                tracing::warn!(line, "a replica said something else than that it is ready");
            }
            return;
        };
        fleet.failures = 0;
        fleet.not_before = None;
        if let Some(member) = fleet.members.get_mut(&id) {
            member.replica.startup_ms = Some(member.started_at.elapsed().as_millis() as u64);
            member.replica.url = Some(announcement.ready);
            if member.replica.state == ReplicaState::Starting {
                member.replica.state = ReplicaState::Ready;
            }
        }
    }

    fn ended(&self, id: u64, status: std::io::Result<ExitStatus>) {
        let mut fleet = self.fleet();
        let Some(member) = fleet.members.remove(&id) else { return };
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let pid = member.replica.pid;
        match member.replica.state {
            ReplicaState::Draining => tracing::info!(pid, "replica drained"),
            ReplicaState::Ready => tracing::warn!(pid, status, "a replica ended unasked; starting another"),
            ReplicaState::Starting => {
                tracing::error!(pid, status, "a replica ended before it was ready");
                fleet.broken = fleet.broken.saturating_add(1);
                fleet.failed();
            }
        }
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet {
    /// Doubles the pause before the next start.
    fn failed(&mut self) {
        let pause = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(10)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
