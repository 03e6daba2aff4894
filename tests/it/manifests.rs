//! The manifests in `deploy/base`: they say what Kubernetes understands, and what we promise about them holds.
#![allow(clippy::unwrap_used)] // helpers of tests count as no tests to clippy
use clap::Parser as _;
use elastic::cli::Cli;
use elastic::net::serve::Limits;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec, Probe, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Port that a mode listens on, and that its Service has.
const PORTS: [(&str, i32); 4] = [("autoscale", 8083), ("dispatch", 8080), ("model", 8081), ("monitor", 8090)];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/base")
}

/// Names of the manifests, sorted.
fn files() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "kustomization.yaml");
    names.sort();
    names
}

fn documents_of(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Reads a document as a `T`. A field that `T` does not know, a misspelt one, would be lost on the way back.
fn read<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{e} in {document:#}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), document);
    object
}

/// Every object of one kind, sorted by name.
fn all<T>() -> Vec<T>
where
    T: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Serialize,
{
    let documents = files().into_iter().flat_map(|file| documents_of(&file));
    let of_the_kind = documents.filter(|document| document["kind"] == T::kind(&()).as_ref());
    let mut objects: Vec<T> = of_the_kind.map(|document| read(&document)).collect();
    objects.sort_by(|one, other| one.meta().name.cmp(&other.meta().name));
    for object in &objects {
        assert_eq!(object.meta().namespace.as_deref(), Some("elastic"), "{:?}", object.meta());
    }
    objects
}

fn name<T: Resource>(object: &T) -> &str {
    object.meta().name.as_deref().unwrap()
}

fn pod(deployment: &Deployment) -> &PodSpec {
    deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

/// The one container of a Deployment's pods.
fn container(deployment: &Deployment) -> &Container {
    let [container] = pod(deployment).containers.as_slice() else { panic!("{}", name(deployment)) };
    container
}

fn arguments(deployment: &Deployment) -> Vec<String> {
    container(deployment).args.clone().unwrap()
}

#[test]
fn every_document_is_of_a_known_kind_and_every_file_is_in_the_kustomization() {
    let mut kinds = Vec::new();
    for document in files().iter().flat_map(|file| documents_of(file)) {
        match document["kind"].as_str().unwrap() {
            "Namespace" => assert_eq!(name(&read::<Namespace>(&document)), "elastic"),
            // Read and checked field by field by `all`.
            "Deployment" | "Service" | "ServiceAccount" | "Role" | "RoleBinding" => {}
            kind => panic!("no check knows a {kind}"),
        }
        kinds.push(document["kind"].as_str().unwrap().to_owned());
    }
    let counted = |kind: &str| kinds.iter().filter(|other| *other == kind).count();
    let counts = ["Namespace", "Deployment", "Service", "ServiceAccount", "Role", "RoleBinding"].map(counted);
    assert_eq!(counts, [1, 4, 4, 4, 1, 1]);
    let mut listed: Vec<String> =
        serde_json::from_value(documents_of("kustomization.yaml")[0]["resources"].clone()).unwrap();
    assert_eq!(listed.first().map(String::as_str), Some("namespace.yaml"), "the rest needs the namespace");
    listed.sort();
    assert_eq!(listed, files());
}

#[test]
fn the_number_of_models_is_left_to_the_autoscaler_and_the_others_are_alone() {
    let replicas = |deployment: &Deployment| deployment.spec.as_ref().unwrap().replicas;
    let counts: Vec<_> = all::<Deployment>().iter().map(|d| (name(d).to_owned(), replicas(d))).collect();
    let expected = [("autoscale", Some(1)), ("dispatch", Some(1)), ("model", None), ("monitor", Some(1))];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn two_autoscalers_or_monitors_never_overlap() {
    for deployment in all::<Deployment>().iter().filter(|d| ["autoscale", "monitor"].contains(&name(*d))) {
        let strategy = deployment.spec.as_ref().unwrap().strategy.as_ref().unwrap();
        assert_eq!(strategy.type_.as_deref(), Some("Recreate"), "{}", name(deployment));
    }
}

#[test]
fn no_pod_has_rights_it_does_not_need() {
    for deployment in all::<Deployment>() {
        let pod_context = json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let container_context = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        let (pod, container) = (pod(&deployment), container(&deployment));
        assert_eq!(serde_json::to_value(&pod.security_context).unwrap(), pod_context);
        assert_eq!(serde_json::to_value(&container.security_context).unwrap(), container_context);
        assert_eq!(pod.enable_service_links, Some(false), "no need to know of every Service");
        assert_eq!(pod.service_account_name.as_deref(), Some(name(&deployment)));
        let needs_token = name(&deployment) == "autoscale";
        assert_eq!(pod.automount_service_account_token, Some(needs_token), "{}", name(&deployment));
    }
    let accounts = all::<ServiceAccount>();
    assert_eq!(accounts.iter().map(name).collect::<Vec<_>>(), PORTS.map(|(name, _)| name));
    assert!(accounts.iter().all(|account| account.automount_service_account_token == Some(false)));
}

#[test]
fn the_autoscaler_may_read_and_scale_the_model_and_nothing_else() {
    let role = all::<Role>().remove(0);
    let rules = json!([
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["model"],
         "verbs": ["get", "patch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["model"], "verbs": ["get"]},
    ]);
    assert_eq!(serde_json::to_value(&role.rules).unwrap(), rules);
    let binding = serde_json::to_value(all::<RoleBinding>().remove(0)).unwrap();
    let role_reference =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name(&role)});
    assert_eq!(binding["roleRef"], role_reference);
    let subject = json!({"kind": "ServiceAccount", "name": "autoscale", "namespace": "elastic"});
    assert_eq!(binding["subjects"], json!([subject]));
}

#[test]
fn every_container_is_probed_on_its_own_port() {
    let target = |probe: &Option<Probe>| {
        let get = probe.as_ref().unwrap().http_get.clone().unwrap();
        assert_eq!(get.port, IntOrString::String("http".into()));
        get.path.unwrap()
    };
    for deployment in all::<Deployment>() {
        let container = container(&deployment);
        assert_eq!(target(&container.readiness_probe), "/readyz");
        assert_eq!(target(&container.liveness_probe), "/healthz");
        // A model is not up before its warm-up. The others' readiness may hang on somebody else's.
        let startup = if name(&deployment) == "model" { "/readyz" } else { "/healthz" };
        assert_eq!(target(&container.startup_probe), startup, "{}", name(&deployment));
    }
}

/// A quantity as the manifests write it, in thousandths: `250m`, `2`, `128Mi`.
fn amount(quantity: &Quantity) -> u64 {
    let text = quantity.0.as_str();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits_end..] {
        "m" => 1,
        "" => 1000,
        "Mi" => 1000 << 20,
        unit => panic!("{text:?} has the unknown unit {unit:?}"),
    };
    unit * text[..digits_end].parse::<u64>().unwrap()
}

#[test]
fn every_container_is_bounded_and_a_model_has_one_cpu() {
    for deployment in all::<Deployment>() {
        let resources = container(&deployment).resources.clone().unwrap();
        let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount(&requests[resource]), amount(&limits[resource]));
            assert!(
                request > 0 && request <= limit,
                "{}: {request} of {limit} {resource}",
                name(&deployment)
            );
        }
        if name(&deployment) == "model" {
            assert_eq!((requests["cpu"].0.as_str(), limits["cpu"].0.as_str()), ("1", "1"));
        }
        assert_eq!(container(&deployment).image.as_deref(), Some("elastic:dev"));
        assert_eq!(container(&deployment).image_pull_policy.as_deref(), Some("IfNotPresent"));
    }
}

#[test]
fn pods_have_the_time_to_drain_before_they_are_killed() {
    for deployment in all::<Deployment>() {
        let lifecycle = container(&deployment).lifecycle.clone().unwrap_or_default();
        let sleep_s = lifecycle.pre_stop.and_then(|hook| hook.sleep).map_or(0, |sleep| sleep.seconds);
        let needed_s = sleep_s + i64::try_from(Limits::default().drain_timeout.as_secs()).unwrap();
        let grace_s = pod(&deployment).termination_grace_period_seconds.unwrap();
        assert!(grace_s > needed_s, "{}: {grace_s} s for {needed_s} s", name(&deployment));
        let behind_an_endpoint = ["model", "dispatch"].contains(&name(&deployment));
        assert_eq!(sleep_s > 0, behind_an_endpoint, "{}", name(&deployment));
    }
}

#[test]
fn every_service_leads_to_the_port_its_mode_listens_on() {
    let (deployments, services) = (all::<Deployment>(), all::<Service>());
    for ((deployment, service), (mode, port)) in deployments.iter().zip(&services).zip(PORTS) {
        assert_eq!((name(deployment), name(service)), (mode, mode));
        let spec = service.spec.as_ref().unwrap();
        let template = deployment.spec.as_ref().unwrap().template.metadata.as_ref().unwrap();
        let labels = template.labels.as_ref().unwrap();
        let selector = spec.selector.as_ref().unwrap();
        assert!(!selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
        assert_eq!(Some(selector), deployment.spec.as_ref().unwrap().selector.match_labels.as_ref());
        let ports = serde_json::to_value(&spec.ports).unwrap();
        assert_eq!(ports, json!([{"name": "http", "port": port, "targetPort": "http"}]));
        let container_ports = serde_json::to_value(&container(deployment).ports).unwrap();
        assert_eq!(container_ports, json!([{"name": "http", "containerPort": port}]));
        let listens = arguments(deployment).windows(2).any(|pair| pair == ["--port", &port.to_string()]);
        assert!(listens, "{mode} does not listen on {port}");
        assert!(arguments(deployment).windows(2).any(|pair| pair == ["--host", "0.0.0.0"]), "{mode}");
        // The dispatcher looks the replicas up by name and wants each one's own address.
        assert_eq!(spec.cluster_ip.as_deref(), (mode == "model").then_some("None"));
    }
}

#[test]
fn arguments_that_name_a_service_name_one_that_is_there() {
    let known = PORTS.map(|(name, port)| format!("{name}:{port}"));
    let mut found = 0;
    for argument in all::<Deployment>().iter().flat_map(arguments).filter(|argument| argument.contains(':')) {
        let address = argument.strip_prefix("http://").unwrap_or(&argument);
        assert!(known.iter().any(|known| known == address), "nobody is at {argument}");
        found += 1;
    }
    assert_eq!(found, 4, "monitor twice, the replicas, the decisions");
}

#[test]
fn the_executable_understands_every_containers_arguments() {
    for deployment in all::<Deployment>() {
        let line = std::iter::once("elastic".to_owned()).chain(arguments(&deployment));
        let parsed = Cli::try_parse_from(line);
        assert!(parsed.is_ok(), "{}: {}", name(&deployment), parsed.unwrap_err());
    }
}
