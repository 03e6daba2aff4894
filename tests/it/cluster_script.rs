//! `scripts/cluster.sh`, with stand-ins for the programs that it calls (`cluster_script/fake.sh`): which calls it makes,
//! in which order, and what it says when something is missing or fails.
mod machine;

use machine::Machine;
use std::process::Command;

/// The tag under which the image is deployed.
fn applied_image(machine: &Machine) -> String {
    let applied = machine.read("fake/applied");
    let line = applied.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
    line.to_owned()
}

#[test]
fn minikube_is_started_gets_the_image_and_the_objects() {
    let machine = Machine::new();
    let ran = machine.run("up", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    assert_eq!(
        ran.call("minikube --profile minikube start"),
        "minikube --profile minikube start --driver docker --cpus 12 --memory 14336m"
    );
    let order = [
        "minikube --profile minikube start",
        "minikube --profile minikube image build",
        "kubectl --context minikube apply",
        "kubectl --context minikube --namespace elastic rollout status deployment/monitor",
    ];
    assert!(order.map(|call| ran.position(call)).is_sorted(), "{:#?}", ran.calls);
    for mode in ["monitor", "dispatch", "model", "autoscale"] {
        ran.call(&format!(
            "kubectl --context minikube --namespace elastic rollout status deployment/{mode} --timeout 300s"
        ));
    }
    // What the node gets is what the Dockerfile may copy and no more.
    assert_eq!(machine.read("fake/staged"), "./.dockerignore\n./Cargo.toml\n./Dockerfile\n./src/main.rs\n");
    let image = applied_image(&machine);
    assert!(image.starts_with("elastic:") && image.len() == "elastic:".len() + 12, "{image}");
    assert!(ran.call("minikube --profile minikube image build").contains(&format!("--tag {image} ")));
    assert!(machine.read("fake/applied").contains("imagePullPolicy: Never"));
    assert!(
        ran.out.contains("kubectl --context minikube --namespace elastic port-forward service/dispatch 8080")
    );
    assert!(ran.out.contains("http://127.0.0.1:8090/"), "{}", ran.out);
    ran.only("minikube");
    // It leaves nothing behind.
    let left = std::fs::read_dir(machine.folder.path()).unwrap().count();
    assert_eq!(left, 3, "bin, fake, checkout");
}

#[test]
fn pods_start_anew_when_the_sources_changed_and_only_then() {
    let machine = Machine::new();
    machine.run("up", &[]);
    let first = applied_image(&machine);
    let again = machine.run("up", &[]);
    assert_eq!((again.code, applied_image(&machine)), (Some(0), first.clone()));
    assert!(!again.has(" image build ") && !again.has(" start "), "{:#?}", again.calls);
    machine.write("checkout/src/main.rs", "fn main() { println!(); }");
    // Nothing that the image has: its tag stays.
    machine.write("checkout/workload.txt", "6\n");
    let changed = machine.run("up", &[]);
    assert!(changed.has(" image build "));
    let second = applied_image(&machine);
    assert_ne!(first, second, "another image in the pods' template makes them start anew");
    machine.write("checkout/src/main.rs", "fn main() {}");
    machine.run("up", &[]);
    assert_eq!(applied_image(&machine), first);
}

#[test]
fn kind_gets_an_image_that_docker_built() {
    let machine = Machine::new();
    let kind = [("CLUSTER", "kind")];
    let ran = machine.run("up", &kind);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    let image = applied_image(&machine);
    ran.call("kind create cluster --name elastic");
    assert!(ran.call("docker build").contains(&format!("--tag {image} ")));
    ran.call(&format!("kind load docker-image {image} --name elastic"));
    assert!(!ran.calls.iter().any(|call| call.starts_with("minikube ")));
    ran.only("kind-elastic");
    let again = machine.run("up", &kind);
    assert!(!again.has("docker build") && !again.has("create cluster"), "{:#?}", again.calls);
}

#[test]
fn another_cluster_pulls_the_image_that_it_is_told() {
    let machine = Machine::new();
    let settings =
        [("CLUSTER", "current"), ("IMAGE", "registry.example.com/elastic:v1"), ("OVERLAY", "production")];
    let ran = machine.run("up", &settings);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    assert!(ran.calls.iter().all(|call| call.starts_with("kubectl ")), "{:#?}", ran.calls);
    ran.call("kubectl kustomize deploy/overlays/production");
    assert_eq!(applied_image(&machine), "registry.example.com/elastic:v1");
    let applied = machine.read("fake/applied");
    assert!(applied.contains("imagePullPolicy: IfNotPresent"), "{applied}");
    assert!(!applied.contains("ServiceMonitor") && applied.contains("kind: Service\n"), "{applied}");
    assert!(ran.says.contains("context mine") && ran.says.contains("no Prometheus operator"), "{}", ran.says);
    assert!(ran.out.contains("'make minikube-load CLUSTER=current'"), "{}", ran.out);
    ran.only("mine");
    let machine = machine.with("crd", "");
    machine.run("up", &settings);
    assert!(machine.read("fake/applied").contains("kind: ServiceMonitor"));
}

#[test]
fn an_image_that_docker_has_is_loaded_under_a_tag_of_its_own() {
    let machine =
        Machine::new().with("docker-images", "elastic:mine\n").with("image-id", "sha256:0123456789abcdef\n");
    let mine = ("IMAGE", "elastic:mine");
    for (cluster, load) in [
        ("minikube", "minikube --profile minikube image load elastic:0123456789ab"),
        ("kind", "kind load docker-image elastic:0123456789ab --name elastic"),
    ] {
        let ran = machine.run("up", &[("CLUSTER", cluster), mine]);
        assert_eq!(ran.code, Some(0), "{}", ran.says);
        ran.call("docker tag elastic:mine elastic:0123456789ab");
        ran.call(load);
        assert!(!ran.has(" build "));
        assert_eq!(applied_image(&machine), "elastic:0123456789ab");
        let absent = machine.run("up", &[("CLUSTER", cluster), ("IMAGE", "elastic:absent")]);
        assert_eq!(absent.code, Some(1));
        assert!(absent.says.contains("Docker here has no image elastic:absent"), "{}", absent.says);
        assert!(!absent.has("apply"));
    }
}

#[test]
fn everything_that_is_missing_is_said_at_once() {
    let machine = Machine::new().without("minikube").without("docker").with("kubectl-minor", "20");
    let ran = machine.run("up", &[]);
    assert_eq!(ran.code, Some(1));
    for says in [
        "minikube is not installed, see https://",
        "docker is not installed, see https://",
        "kubectl is version 1.20, too old",
    ] {
        assert!(ran.says.contains(says), "{}", ran.says);
    }
    assert!(!ran.has(" start ") && !ran.has("apply"));
    let ran = Machine::new()
        .without("kind")
        .without("kubectl")
        .with("no-engine", "")
        .run("up", &[("CLUSTER", "kind")]);
    assert_eq!(ran.code, Some(1));
    for says in ["kind is not installed", "kubectl is not installed", "no Docker engine answers"] {
        assert!(ran.says.contains(says), "{}", ran.says);
    }
    // Another driver needs no Docker.
    let machine = Machine::new().without("docker");
    let ran = machine.run("up", &[("DRIVER", "kvm2"), ("CPUS", "1"), ("MEMORY", "4g")]);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    assert!(ran.call("minikube --profile minikube start").ends_with("--driver kvm2 --cpus 1 --memory 4096m"));
}

#[test]
fn a_small_machine_is_said() {
    let small = || Machine::new().with("cpus", "4\n").with("memory", "8589934592\n");
    let ran = small().run("up", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    assert!(ran.call("minikube --profile minikube start").ends_with("--cpus 4 --memory 6553m"));
    assert!(
        ran.says.contains("this machine has 4 CPUs") && ran.says.contains("this machine has 8192m"),
        "{}",
        ran.says
    );
    let ran = small().run("up", &[("CPUS", "8")]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.says.contains("CPUS=8 is more than the 4 of this machine"), "{}", ran.says);
    let ran = small().run("up", &[("MEMORY", "12Gi")]);
    assert!(ran.says.contains("MEMORY=12Gi is more than the 8192m"), "{}", ran.says);
    assert!(!ran.has(" start "));
    let ran = small().run("up", &[("MEMORY", "much")]);
    assert!(ran.says.contains("MEMORY=much is no size"), "{}", ran.says);
}

#[test]
fn a_build_that_fails_deploys_nothing() {
    for cluster in ["minikube", "kind"] {
        let machine = Machine::new().with("build-fails", "");
        let ran = machine.run("up", &[("CLUSTER", cluster)]);
        assert_eq!(ran.code, Some(1));
        assert!(ran.says.contains("the image was not built"), "{}", ran.says);
        assert!(!ran.has("apply") && !ran.has("kind load"), "{:#?}", ran.calls);
    }
}

#[test]
fn what_does_not_become_ready_is_named_with_where_to_look() {
    let ran = Machine::new().with("not-ready", "dispatch").run("up", &[("ROLLOUT_TIMEOUT", "7s")]);
    assert_eq!(ran.code, Some(1));
    ran.call(
        "kubectl --context minikube --namespace elastic rollout status deployment/dispatch --timeout 7s",
    );
    ran.call("kubectl --context minikube --namespace elastic get pods");
    for hint in [
        "dispatch is not ready",
        "describe pods --selector app.kubernetes.io/name=dispatch",
        "logs deployment/dispatch",
    ] {
        assert!(ran.says.contains(hint), "{}", ran.says);
    }
    assert!(!ran.out.contains("elastic runs"));
}

#[test]
fn settings_that_make_no_sense_are_refused_before_anything_is_called() {
    for (settings, says) in [
        (vec![("CLUSTER", "eks")], "CLUSTER=eks is unknown"),
        (vec![("OVERLAY", "staging")], "OVERLAY=staging is unknown"),
        (vec![("CLUSTER", "current")], "CLUSTER=current needs IMAGE="),
        (vec![("CLUSTER", "current"), ("IMAGE", "a b|c")], "is no name of an image"),
    ] {
        let ran = Machine::new().run("up", &settings);
        assert_eq!(ran.code, Some(1));
        assert!(ran.says.contains(says), "{}", ran.says);
        assert!(!ran.has("--context") && !ran.has(" start "), "{:#?}", ran.calls);
    }
    let ran = Machine::new().run("sideways", &[]);
    assert!(ran.code == Some(1) && ran.says.contains("say up, load or down"), "{}", ran.says);
}

#[test]
fn a_cluster_that_does_not_answer_is_said() {
    let current = [("CLUSTER", "current"), ("IMAGE", "a:b")];
    let ran = Machine::new().with("unreachable", "").run("up", &current);
    assert_eq!(ran.code, Some(1));
    assert!(ran.says.contains("the cluster of context mine does not answer"), "{}", ran.says);
    let machine = Machine::new();
    std::fs::remove_file(machine.path("fake/current-context")).unwrap();
    let ran = machine.run("up", &current);
    assert!(ran.says.contains("kubectl has no current context"), "{}", ran.says);
    // A cluster that runs but that kubectl was never told of.
    let machine = Machine::new().with("contexts", "mine\n").with("running", "");
    machine.run("up", &[]).call("minikube --profile minikube update-context");
    let machine = Machine::new().with("contexts", "mine\n").with("clusters", "elastic\n");
    machine.run("up", &[("CLUSTER", "kind")]).call("kind export kubeconfig --name elastic");
}

#[test]
fn the_load_goes_through_port_forwards_that_end_with_it() {
    let machine = Machine::new().with("running", "");
    let ran = machine.run("load", &[("DISPATCH_PORT", "18080"), ("SPEED", "10")]);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    let context = "kubectl --context minikube --namespace elastic port-forward --address 127.0.0.1";
    ran.call(&format!("{context} service/dispatch 18080:8080"));
    ran.call(&format!("{context} service/monitor :8090"));
    ran.call(&format!("{context} service/autoscale :8083"));
    let load = ran.call("elastic load");
    for flag in [
        "--workload workload.txt",
        "--speed 10",
        "--slo-p99 500ms",
        "--target http://127.0.0.1:18080 ",
        "--monitor http://127.0.0.1:4",
        "--autoscaler http://127.0.0.1:4",
    ] {
        assert!(load.contains(flag), "{flag}: {load}");
    }
    assert!(ran.out.contains("the promise held") && ran.out.contains("live page"), "{}", ran.out);
    assert_eq!(ran.calls.iter().filter(|call| *call == "forward ended").count(), 3);
    ran.only("minikube");
    let ran = machine.with("verdict", "3").run("load", &[]);
    assert_eq!(ran.code, Some(3));
    assert!(ran.out.contains("not shown to hold (exit code 3)"), "{}", ran.out);
    assert_eq!(ran.calls.iter().filter(|call| *call == "forward ended").count(), 3);
}

#[test]
fn a_signal_ends_the_load_and_its_port_forwards() {
    let machine = Machine::new().with("running", "");
    let started = machine.path("fake/started");
    assert!(Command::new("mkfifo").arg(&started).status().unwrap().success());
    let running = machine.command("load", &[]).spawn().unwrap();
    // Blocks until the load runs, or never does.
    let load = Command::new("timeout").arg("60").arg("cat").arg(&started).output().unwrap();
    assert_eq!(String::from_utf8(load.stdout).unwrap(), "elastic started\n");
    let told = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
    assert!(told.success());
    let ran = machine.ran(&running.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(143));
    assert_eq!(ran.calls.iter().filter(|call| *call == "forward ended").count(), 3);
}

#[test]
fn a_load_without_a_service_says_so() {
    let ran = Machine::new().run("load", &[]);
    assert!(ran.code == Some(1) && ran.says.contains("the cluster is not running"), "{}", ran.says);
    let ran = Machine::new().with("running", "").with("no-pods", "").run("load", &[]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.says.contains("error: no pods") && ran.says.contains("cannot reach dispatch"),
        "{}",
        ran.says
    );
    let ran = Machine::new().with("running", "").run("load", &[("ELASTIC", "target/absent")]);
    assert!(ran.says.contains("target/absent is not there; run 'make build' first"), "{}", ran.says);
    let ran = Machine::new().with("running", "").run("load", &[("WORKLOAD", "absent.txt")]);
    assert!(ran.says.contains("absent.txt is not there"), "{}", ran.says);
}

#[test]
fn down_removes_the_namespace_that_is_ours() {
    let machine = Machine::new().with("running", "").without("docker");
    let ran = machine.run("down", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.says);
    ran.call("kubectl --context minikube delete namespace elastic");
    ran.only("minikube");
    for (namespace, code, says) in [(".", 1, "was not made here"), ("", 0, "nothing to remove")] {
        let ran = Machine::new().with("namespace", namespace).run("down", &[("CLUSTER", "current")]);
        assert_eq!(ran.code, Some(code), "{}", ran.says);
        assert!(ran.says.contains(says) || ran.out.contains(says), "{}{}", ran.says, ran.out);
        assert!(!ran.has("delete"), "{:#?}", ran.calls);
    }
    let ran = Machine::new().run("down", &[("CLUSTER", "kind")]);
    assert!(ran.code == Some(0) && ran.out.contains("the cluster is not running"), "{}", ran.says);
    assert!(!ran.has("--context"));
}
