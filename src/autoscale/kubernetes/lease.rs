//! Several autoscalers of one Deployment: a Lease says which of them acts; the others stand by.
//!
//! **Invariant**: whoever acts asks [`Leadership::acts_for`] first and ends within that time (see `logic::election`).
use super::events::now;
use crate::logic::election::{Election, Lease as Held, Moment, Step};
use crate::net::backoff::Backoff;
use crate::net::clock;
use crate::net::kubernetes::{Asked, Cluster, ClusterError};
use crate::net::shutdown::Shutdown;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Where the holder answers, written to the Lease beside its name.
const URL: &str = "elastic/url";
/// Longest time to wait for the Lease to be given back before the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who holds the Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    /// Its identity.
    pub identity: String,
    /// Its base URL, if it has told one.
    pub url: Option<String>,
}

/// One autoscaler's part in the election.
pub struct Leadership {
    cluster: Arc<Cluster>,
    name: String,
    me: Leader,
    duration: Duration,
    started: Instant,
    election: Mutex<Election>,
    leader: Mutex<Option<Leader>>,
}

impl Leadership {
    /// A candidate for the Lease `name`, held for `duration` after each renewal.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, name: String, duration: Duration, me: Leader) -> Self {
        // The API has whole seconds.
        let duration = Duration::from_secs(duration.as_secs_f64().ceil() as u64);
        let election = Mutex::new(Election::new(me.identity.clone(), duration));
        Self { cluster, name, me, duration, started: Instant::now(), election, leader: Mutex::default() }
    }

    /// For how long this one may act without looking again; `None` while another does.
    #[must_use]
    pub fn acts_for(&self) -> Option<Duration> {
        self.election().acts_for(self.now())
    }

    /// Who held the Lease when it was last looked at.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this one's identity is the holder's.
    #[must_use]
    pub fn is_me(&self, leader: &Leader) -> bool {
        leader.identity == self.me.identity
    }

    /// Takes part until `shutdown` asks to leave; gives the Lease back then, so that another need not wait.
    pub async fn run(&self, shutdown: Shutdown) {
        let pause = self.election().pause();
        let mut backoff = Backoff::new(pause / 4, pause);
        let mut acted = false;
        loop {
            let looked = tokio::select! {
                () = shutdown.left() => break,
                looked = Box::pin(self.look()) => looked,
            };
            let pause = match looked {
                Ok(pause) => {
                    backoff.reset();
                    pause
                }
                // Another was faster: look who.
                Err(ClusterError::Conflict { .. }) => {
                    self.election().lost();
                    backoff.failed()
                }
                Err(error) => {
                    let pause = backoff.failed();
                    tracing::warn!(
                        lease = self.name,
                        error = error.whole(),
                        ?pause,
                        "cannot look after the lease"
                    );
                    pause
                }
            };
            let acts = self.acts_for().is_some();
            if acts != acted {
                let leader = self.leader().unwrap_or_default().identity;
                tracing::info!(lease = self.name, leader, acts, "leadership changed");
                acted = acts;
            }
            tokio::select! {
                () = shutdown.left() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        if acted {
            Box::pin(self.release()).await;
        }
    }

    /// Reads the Lease and writes it where it is this one's turn. When to look again.
    async fn look(&self) -> Result<Duration, ClusterError> {
        let lease = self.read().await?;
        let held = lease.as_ref().map(held);
        let step = self.election().look(self.now(), held.as_ref());
        self.note(lease.as_ref());
        let pause = self.election().pause();
        if let Step::Wait(wait) = step {
            return Ok(wait);
        }
        let asked = self.now();
        let written = self.write(lease, step == Step::Take).await?;
        self.election().renewed(asked);
        self.note(Some(&written));
        Ok(pause)
    }

    async fn read(&self) -> Result<Option<Lease>, ClusterError> {
        let call = self.cluster.api::<Lease>();
        match self.call("get", call.get(&self.name)).await {
            Ok(lease) => Ok(Some(lease)),
            Err(ClusterError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the Lease as this one's own, if it is still as it was read.
    async fn write(&self, read: Option<Lease>, take: bool) -> Result<Lease, ClusterError> {
        let leases = self.cluster.api::<Lease>();
        let parameters = PostParams::default();
        let Some(mut lease) = read else {
            let metadata = ObjectMeta {
                name: Some(self.name.clone()),
                annotations: self.me.url.clone().map(|url| BTreeMap::from([(URL.to_owned(), url)])),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(self.spec(LeaseSpec::default(), true)) };
            return self.call("create", leases.create(&parameters, &lease)).await;
        };
        lease.spec = Some(self.spec(lease.spec.unwrap_or_default(), take));
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.remove(URL);
        annotations.extend(self.me.url.clone().map(|url| (URL.to_owned(), url)));
        lease.metadata.managed_fields = None;
        self.call("update", leases.replace(&self.name, &parameters, &lease)).await
    }

    /// The Lease's content as this one writes it, over what it was.
    fn spec(&self, before: LeaseSpec, take: bool) -> LeaseSpec {
        let now = now();
        let handed_over = take && before.holder_identity.is_some();
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.me.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| !take).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(handed_over))),
            ..before
        }
    }

    async fn release(&self) {
        self.election().lost();
        let released = async {
            let Some(mut lease) = self.read().await? else { return Ok(()) };
            if held(&lease).holder != self.me.identity {
                return Ok(());
            }
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(now());
            lease.metadata.managed_fields = None;
            let leases = self.cluster.api::<Lease>();
            self.call("update", leases.replace(&self.name, &PostParams::default(), &lease)).await.map(drop)
        };
        match tokio::time::timeout(RELEASE_TIMEOUT, released).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "gave the lease back"),
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, error = error.whole(), "cannot give the lease back");
            }
            Err(_) => tracing::warn!(lease = self.name, "cannot give the lease back in time"),
        }
    }

    async fn call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        let asked =
            Asked { verb, group: "coordination.k8s.io", resource: "leases", name: Some(self.name.clone()) };
        // A call that takes longer leaves too little of the lease to be of use.
        self.cluster.call_within(self.duration / 4, &asked, call).await
    }

    fn note(&self, lease: Option<&Lease>) {
        let leader = lease.map(|lease| Leader {
            identity: held(lease).holder,
            url: lease.metadata.annotations.as_ref().and_then(|all| all.get(URL)).cloned(),
        });
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) =
            leader.filter(|leader| !leader.identity.is_empty());
    }

    fn now(&self) -> Moment {
        Moment { steady: self.started.elapsed(), wall: clock::unix_time() }
    }

    fn election(&self) -> MutexGuard<'_, Election> {
        self.election.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What matters of a Lease.
fn held(lease: &Lease) -> Held {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    Held {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
