//! A machine with a checkout, and with stand-ins for the programs that the script calls.
#![allow(clippy::unwrap_used)] // helpers of tests count as no tests to clippy
use crate::support::program;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Ordinary programs that the script and the stand-ins use.
const TOOLS: [&str; 22] = [
    "awk",
    "bash",
    "cat",
    "chmod",
    "cp",
    "cut",
    "dirname",
    "env",
    "find",
    "getconf",
    "grep",
    "head",
    "mkdir",
    "mktemp",
    "rm",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "touch",
    "tr",
    "kill",
];
const FAKES: [&str; 5] = ["minikube", "kind", "docker", "kubectl", "elastic"];

/// What `kubectl kustomize` answers here.
const OBJECTS: &str = "apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
      - args: [monitor]
        image: elastic:dev
        imagePullPolicy: Never
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
---
apiVersion: v1
kind: Service
";

/// A machine with a checkout and the programs that the script calls.
pub(super) struct Machine {
    pub(super) folder: tempfile::TempDir,
}

/// What a run of the script came to.
pub(super) struct Ran {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) says: String,
    pub(super) calls: Vec<String>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["bin", "fake", "checkout/scripts", "checkout/src", "checkout/deploy/overlays/minikube"]
        {
            std::fs::create_dir_all(machine.path(folder)).unwrap();
        }
        std::fs::create_dir_all(machine.path("checkout/deploy/overlays/production")).unwrap();
        for tool in TOOLS {
            symlink(program(tool).unwrap(), machine.path("bin").join(tool)).unwrap();
        }
        let fake = own.join("tests/it/cluster_script/fake.sh");
        for name in FAKES {
            let path = machine.path("bin").join(name);
            std::fs::copy(&fake, &path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for file in ["scripts/cluster.sh", "Dockerfile", ".dockerignore"] {
            std::fs::copy(own.join(file), machine.path("checkout").join(file)).unwrap();
        }
        for (file, text) in
            [("src/main.rs", "fn main() {}"), ("Cargo.toml", "[package]"), ("workload.txt", "5\n")]
        {
            machine.write(&format!("checkout/{file}"), text);
        }
        for (file, text) in [
            ("calls", ""),
            ("images", "registry.k8s.io/pause:3.10\n"),
            ("clusters", ""),
            ("docker-images", ""),
            ("contexts", "minikube\nkind-elastic\nmine\n"),
            ("current-context", "mine\n"),
            ("cpus", "16\n"),
            ("memory", "34359738368\n"),
            ("kubectl-minor", "32"),
            ("objects", OBJECTS),
            ("namespace", "elastic."),
            ("verdict", "0"),
        ] {
            machine.write(&format!("fake/{file}"), text);
        }
        machine
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    /// With one more file for the stand-ins.
    pub(super) fn with(self, file: &str, text: &str) -> Self {
        self.write(&format!("fake/{file}"), text);
        self
    }

    /// Where a program is not installed.
    pub(super) fn without(self, name: &str) -> Self {
        std::fs::remove_file(self.path("bin").join(name)).unwrap();
        self
    }

    pub(super) fn command(&self, what: &str, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(self.path("bin/bash"));
        command.arg(self.path("checkout/scripts/cluster.sh")).arg(what).env_clear();
        command
            .env("PATH", self.path("bin"))
            .env("FAKE", self.path("fake"))
            .env("TMPDIR", self.folder.path());
        command.env("ELASTIC", self.path("bin/elastic")).envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(super) fn run(&self, what: &str, settings: &[(&str, &str)]) -> Ran {
        let output = self.command(what, settings).output().unwrap();
        self.ran(&output)
    }

    /// Takes what was called away, so that the next run begins anew.
    pub(super) fn ran(&self, output: &Output) -> Ran {
        let calls = self.read("fake/calls").lines().map(str::to_owned).collect();
        self.write("fake/calls", "");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ran { code: output.status.code(), out: text(&output.stdout), says: text(&output.stderr), calls }
    }
}

impl Ran {
    /// The one call that begins so.
    pub(super) fn call(&self, begin: &str) -> &str {
        let found: Vec<_> = self.calls.iter().filter(|call| call.starts_with(begin)).collect();
        let [found] = found.as_slice() else { panic!("{begin}: {:#?}\n{}", self.calls, self.says) };
        found
    }

    pub(super) fn position(&self, begin: &str) -> usize {
        self.calls
            .iter()
            .position(|call| call.starts_with(begin))
            .unwrap_or_else(|| panic!("{begin}: {:#?}", self.calls))
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.calls.iter().any(|call| call.contains(part))
    }

    /// Every call to a cluster names its context.
    pub(super) fn only(&self, context: &str) {
        for call in self.calls.iter().filter(|call| call.starts_with("kubectl ")) {
            let local = ["kubectl version", "kubectl config", "kubectl kustomize"]
                .iter()
                .any(|own| call.starts_with(own));
            assert!(local || call.starts_with(&format!("kubectl --context {context} ")), "{call}");
        }
    }
}
