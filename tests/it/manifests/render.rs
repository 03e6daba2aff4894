//! Renders the folders of `deploy` and reads what comes out.
#![allow(clippy::unwrap_used)] // helpers of tests count as no tests to clippy
use crate::support::program;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec};
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The modes that are deployed, and the port that each listens on.
pub(super) const PORTS: [(&str, i32); 4] =
    [("autoscale", 8083), ("dispatch", 8080), ("model", 8081), ("monitor", 8090)];

/// What a cluster is given, and what `cluster.sh` chooses from.
/// The one folder that Prometheus' operator is told of.
pub(super) const FOLDER_MONITORED: &str = "overlays/production";

const FOLDERS: [&str; 3] = ["base", "overlays/minikube", "overlays/production"];

/// The oldest kubectl whose kustomize renders the overlays, as 1.N.
const KUBECTL_MINOR_MIN: u32 = 27;

/// Everything that one folder renders to.
pub(super) struct Objects {
    /// Its path in `deploy`.
    pub(super) folder: &'static str,
    /// In the order in which they are applied.
    pub(super) documents: Vec<Value>,
}

/// Every folder, rendered once; none where there is no kubectl that can.
pub(super) fn rendered() -> &'static [Objects] {
    static RENDERED: OnceLock<Vec<Objects>> = OnceLock::new();
    RENDERED.get_or_init(|| {
        let Some(kubectl) = program("kubectl") else { return Vec::new() };
        let minor = minor_version(&kubectl);
        assert!(
            minor >= KUBECTL_MINOR_MIN,
            "kubectl is 1.{minor}; 1.{KUBECTL_MINOR_MIN} or newer is needed, or none at all to leave these tests out"
        );
        FOLDERS.map(|folder| Objects { folder, documents: render(&kubectl, folder) }).into()
    })
}

fn minor_version(kubectl: &Path) -> u32 {
    let told = Command::new(kubectl).args(["version", "--client", "--output", "json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let minor = told["clientVersion"]["minor"].as_str().unwrap();
    minor.trim_end_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap()
}

/// What the folder renders to. A warning, as of a field that will go, is an error here.
fn render(kubectl: &Path, folder: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(folder);
    let output = Command::new(kubectl).arg("kustomize").arg(path).output().unwrap();
    let says = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && says.is_empty(), "{folder}: {says}");
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap())
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
}

/// Reads a document as a `T`. A field that `T` does not know, a misspelt one, would be lost on the way back.
pub(super) fn read<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{e} in {document:#}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), document);
    object
}

impl Objects {
    /// Every object of one kind, sorted by name.
    pub(super) fn all<T>(&self) -> Vec<T>
    where
        T: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Serialize,
    {
        let of_the_kind = self.documents.iter().filter(|document| document["kind"] == T::kind(&()).as_ref());
        let mut objects: Vec<T> = of_the_kind.map(read).collect();
        objects.sort_by(|one, other| one.meta().name.cmp(&other.meta().name));
        objects
    }

    /// The object of a kind with this name.
    pub(super) fn one<T>(&self, wanted: &str) -> T
    where
        T: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Serialize,
    {
        let found = self.all::<T>().into_iter().find(|object| name(object) == wanted);
        found.unwrap_or_else(|| panic!("{}: no {} {wanted}", self.folder, T::kind(&())))
    }

    /// A setting of a mode: the value of one of its container's environment variables.
    pub(super) fn setting(&self, mode: &str, variable: &str) -> Option<String> {
        let deployment = self.one::<Deployment>(mode);
        let variables = container(&deployment).env.clone().unwrap_or_default();
        let variable = variables.into_iter().find(|known| known.name == variable)?;
        if let Some(key) = variable.value_from.and_then(|from| from.config_map_key_ref) {
            let config = self.one::<ConfigMap>(&key.name);
            return Some(config.data.unwrap_or_default()[&key.key].clone());
        }
        variable.value
    }
}

pub(super) fn name<T: Resource>(object: &T) -> &str {
    object.meta().name.as_deref().unwrap()
}

pub(super) fn pod(deployment: &Deployment) -> &PodSpec {
    deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

/// The one container of a Deployment's pods.
pub(super) fn container(deployment: &Deployment) -> &Container {
    let [container] = pod(deployment).containers.as_slice() else { panic!("{}", name(deployment)) };
    container
}

pub(super) fn arguments(deployment: &Deployment) -> Vec<String> {
    container(deployment).args.clone().unwrap()
}

/// What follows a flag.
pub(super) fn argument(deployment: &Deployment, flag: &str) -> Option<String> {
    let arguments = arguments(deployment);
    let at = arguments.iter().position(|argument| argument == flag)?;
    Some(arguments[at + 1].clone())
}
