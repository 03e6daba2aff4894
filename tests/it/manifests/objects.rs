//! Every object: known to Kubernetes, there once, and what it refers to is there too.
use super::render::{FOLDER_MONITORED, Objects, container, name, pod, read, rendered};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What Prometheus' operator calls a `ServiceMonitor`, as far as we use it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    pub(super) spec: ServiceMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceMonitorSpec {
    job_label: String,
    pub(super) selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) port: String,
    pub(super) path: String,
    interval: String,
}

/// Reads a document as the kind that it says it is.
fn check_schema(document: &Value) {
    let kind = (document["apiVersion"].as_str().unwrap(), document["kind"].as_str().unwrap());
    match kind {
        ("v1", "Namespace") => drop(read::<Namespace>(document)),
        ("v1", "ConfigMap") => drop(read::<ConfigMap>(document)),
        ("v1", "Service") => drop(read::<Service>(document)),
        ("v1", "ServiceAccount") => drop(read::<ServiceAccount>(document)),
        ("apps/v1", "Deployment") => drop(read::<Deployment>(document)),
        ("networking.k8s.io/v1", "NetworkPolicy") => drop(read::<NetworkPolicy>(document)),
        ("policy/v1", "PodDisruptionBudget") => drop(read::<PodDisruptionBudget>(document)),
        ("rbac.authorization.k8s.io/v1", "Role") => drop(read::<Role>(document)),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => drop(read::<RoleBinding>(document)),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => drop(read::<ServiceMonitor>(document)),
        _ => panic!("no check knows {kind:?}"),
    }
}

#[test]
fn every_object_is_one_that_kubernetes_knows_and_there_once() {
    for objects in rendered() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for document in &objects.documents {
            check_schema(document);
            let kind = document["kind"].as_str().unwrap();
            let metadata = &document["metadata"];
            let own = metadata["name"].as_str().unwrap();
            assert!(seen.insert((kind, own)), "{}: {kind} {own} twice", objects.folder);
            *counts.entry(kind).or_default() += 1;
            // Nothing outside the one namespace.
            let place = if kind == "Namespace" { &metadata["name"] } else { &metadata["namespace"] };
            assert_eq!(place, "elastic", "{kind} {own}");
        }
        let monitored = usize::from(objects.folder == FOLDER_MONITORED);
        let mut expected = BTreeMap::from([
            ("ConfigMap", 1),
            ("Deployment", 4),
            ("Namespace", 1),
            ("NetworkPolicy", 5 + monitored),
            ("PodDisruptionBudget", 4),
            ("Role", 2),
            ("RoleBinding", 2),
            ("Service", 4),
            ("ServiceAccount", 4),
        ]);
        if monitored == 1 {
            expected.insert("ServiceMonitor", 1);
        }
        assert_eq!(counts, expected, "{}", objects.folder);
        assert_eq!(objects.documents[0]["kind"], "Namespace", "the rest needs the namespace");
    }
}

#[test]
fn a_misspelt_field_is_noticed() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "monitor" },
        "spec": { "clusterIp": "None" },
    });
    assert!(std::panic::catch_unwind(|| check_schema(&service)).is_err());
    let monitor = json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": { "name": "elastic" },
        "spec": { "jobLabel": "a", "selector": {}, "endpoints": [{ "port": "http", "paths": "/metrics" }] },
    });
    assert!(std::panic::catch_unwind(|| check_schema(&monitor)).is_err());
}

#[test]
fn pods_in_the_namespace_have_to_be_restricted() {
    for objects in rendered() {
        let namespace: Namespace = read(&objects.documents[0]);
        let labels = namespace.metadata.labels.unwrap();
        for mode in ["enforce", "audit", "warn"] {
            assert_eq!(labels[&format!("pod-security.kubernetes.io/{mode}")], "restricted");
        }
    }
}

#[test]
fn what_an_object_refers_to_is_there() {
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let mode = name(&deployment);
            let account = pod(&deployment).service_account_name.clone().unwrap();
            assert_eq!(account, mode);
            objects.one::<ServiceAccount>(&account);
            for variable in container(&deployment).env.iter().flatten() {
                let value = variable.value_from.is_none() || variable.value.is_none();
                assert!(value, "{mode}: {} has a value twice", variable.name);
                let Some(key) =
                    variable.value_from.as_ref().and_then(|from| from.config_map_key_ref.as_ref())
                else {
                    continue;
                };
                let data = objects.one::<ConfigMap>(&key.name).data.unwrap();
                assert!(data.contains_key(&key.key), "{mode}: {} has no key {}", key.name, key.key);
            }
        }
        for binding in objects.all::<RoleBinding>() {
            let role = objects.one::<Role>(&binding.role_ref.name);
            assert_eq!((binding.role_ref.kind.as_str(), name(&role)), ("Role", name(&binding)));
            let subjects = serde_json::to_value(binding.subjects).unwrap();
            assert_eq!(
                subjects,
                json!([{ "kind": "ServiceAccount", "name": name(&role), "namespace": "elastic" }])
            );
            objects.one::<ServiceAccount>(name(&role));
        }
    }
}

/// A rule as `groups/resources names verbs`.
fn rules(objects: &Objects, role: &str) -> Vec<String> {
    let rules = objects.one::<Role>(role).rules.unwrap();
    let told = rules.iter().map(|rule| {
        assert_eq!(rule.non_resource_urls, None);
        let [groups, resources, names] = [&rule.api_groups, &rule.resources, &rule.resource_names]
            .map(|list| list.clone().unwrap_or_default().join(","));
        format!("{groups}/{resources} {names} {}", rule.verbs.join(","))
    });
    told.collect()
}

#[test]
fn the_autoscaler_and_the_dispatcher_may_do_what_they_need_and_no_more() {
    for objects in rendered() {
        assert_eq!(
            rules(objects, "autoscale"),
            [
                "apps/deployments/scale model get,patch",
                "apps/deployments model get",
                "/pods  list,patch",
                "events.k8s.io/events  create",
                "coordination.k8s.io/leases  create",
                "coordination.k8s.io/leases autoscale get,update",
                "autoscaling/horizontalpodautoscalers  list",
            ]
        );
        assert_eq!(rules(objects, "dispatch"), ["discovery.k8s.io/endpointslices  list,watch"]);
        for deployment in objects.all::<Deployment>() {
            let speaks = ["autoscale", "dispatch"].contains(&name(&deployment));
            let mounted = pod(&deployment).automount_service_account_token;
            assert_eq!(mounted, Some(speaks), "{}", name(&deployment));
            let account = objects.one::<ServiceAccount>(name(&deployment));
            assert_eq!(account.automount_service_account_token, Some(false));
        }
    }
}
