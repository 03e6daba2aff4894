//! What the profile `restricted` of Kubernetes' Pod Security Standards (as of 1.36) asks of a pod, held against every
//! pod template. The cluster checks it too; here it is checked before there is a cluster.
use super::render::rendered;
use serde_json::{Value, json};

const ADDED_CAPABILITIES: [&str; 1] = ["NET_BIND_SERVICE"];
/// Of seccomp and of `AppArmor`.
const PROFILE_TYPES: [&str; 2] = ["RuntimeDefault", "Localhost"];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const VOLUME_TYPES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Elements of a list; none if it is not there.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_one_of(value: &Value, allowed: &[&str]) -> bool {
    value.as_str().is_some_and(|value| allowed.contains(&value))
}

fn is_absent_or_one_of(value: &Value, allowed: &[&str]) -> bool {
    value.is_null() || is_one_of(value, allowed)
}

fn containers(pod: &Value) -> Vec<&Value> {
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|kind| list(&pod[*kind]))
        .collect()
}

/// What the profile refuses about a pod template, by the names that the API server uses for its checks.
fn refused(template: &Value) -> Vec<&'static str> {
    let pod = &template["spec"];
    let containers = containers(pod);
    let contexts: Vec<&Value> = containers.iter().map(|container| &container["securityContext"]).collect();
    let everywhere = || contexts.iter().copied().chain([&pod["securityContext"]]);
    let is_host_process =
        |context: &Value| context["windowsOptions"]["hostProcess"].as_bool().unwrap_or_default();
    let is_shared = |namespace: &&str| pod[*namespace].as_bool().unwrap_or_default();
    let checks = [
        ("windowsHostProcess", !everywhere().any(is_host_process)),
        ("hostNamespaces", !["hostNetwork", "hostPID", "hostIPC"].iter().any(is_shared)),
        ("privileged", !contexts.iter().any(|context| context["privileged"] == true)),
        ("capabilities", contexts.iter().all(|context| are_capabilities_dropped(&context["capabilities"]))),
        ("volumes", list(&pod["volumes"]).all(is_volume_allowed)),
        ("hostPorts", containers.iter().all(|container| list(&container["ports"]).all(has_no_host_port))),
        ("hostProbesAndHostLifecycle", containers.iter().all(|container| names_no_host(container))),
        ("appArmorProfile", everywhere().all(|context| is_app_armor_on(&context["appArmorProfile"]))),
        ("appArmorAnnotation", are_annotations_allowed(&template["metadata"]["annotations"])),
        ("seLinuxOptions", everywhere().all(|context| is_se_linux_allowed(&context["seLinuxOptions"]))),
        (
            "procMount",
            contexts.iter().all(|context| is_absent_or_one_of(&context["procMount"], &["Default"])),
        ),
        ("seccompProfile", is_seccomp_on(&pod["securityContext"], &contexts)),
        (
            "sysctls",
            list(&pod["securityContext"]["sysctls"]).all(|sysctl| is_one_of(&sysctl["name"], &SYSCTLS)),
        ),
        (
            "allowPrivilegeEscalation",
            contexts.iter().all(|context| context["allowPrivilegeEscalation"] == false),
        ),
        ("runAsNonRoot", is_not_root(&pod["securityContext"], &contexts)),
        ("runAsUser", everywhere().all(|context| context["runAsUser"] != 0)),
    ];
    checks.into_iter().filter(|(_, passed)| !passed).map(|(name, _)| name).collect()
}

fn are_capabilities_dropped(capabilities: &Value) -> bool {
    list(&capabilities["drop"]).any(|dropped| dropped == "ALL")
        && list(&capabilities["add"]).all(|added| is_one_of(added, &ADDED_CAPABILITIES))
}

fn is_volume_allowed(volume: &Value) -> bool {
    volume
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, _)| key == "name" || VOLUME_TYPES.contains(&key.as_str()))
}

fn has_no_host_port(port: &Value) -> bool {
    port["hostPort"].as_i64().unwrap_or_default() == 0
}

/// A probe or a hook that names a host could make the kubelet ask somebody else.
fn names_no_host(container: &Value) -> bool {
    let lifecycle = &container["lifecycle"];
    let probes = ["startupProbe", "readinessProbe", "livenessProbe"].map(|probe| &container[probe]);
    let hooks = ["postStart", "preStop"].map(|hook| &lifecycle[hook]);
    let mut all = probes.iter().chain(&hooks);
    all.all(|asks| ["httpGet", "tcpSocket"].iter().all(|how| is_absent_or_one_of(&asks[*how]["host"], &[""])))
}

fn is_app_armor_on(profile: &Value) -> bool {
    is_absent_or_one_of(&profile["type"], &PROFILE_TYPES)
}

fn are_annotations_allowed(annotations: &Value) -> bool {
    let mut app_armor = annotations
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"));
    app_armor.all(|(_, value)| {
        value
            .as_str()
            .is_some_and(|value| ["", "runtime/default"].contains(&value) || value.starts_with("localhost/"))
    })
}

fn is_se_linux_allowed(options: &Value) -> bool {
    is_absent_or_one_of(&options["type"], &SELINUX_TYPES)
        && ["user", "role"].iter().all(|what| is_absent_or_one_of(&options[*what], &[""]))
}

/// The pod says it for all of its containers, or each says it itself; none says otherwise.
fn is_seccomp_on(pod: &Value, contexts: &[&Value]) -> bool {
    let kind = |context: &Value| context["seccompProfile"]["type"].clone();
    let by_pod = is_one_of(&kind(pod), &PROFILE_TYPES);
    is_absent_or_one_of(&kind(pod), &PROFILE_TYPES)
        && contexts.iter().all(|context| {
            let own = kind(context);
            is_one_of(&own, &PROFILE_TYPES) || (own.is_null() && by_pod)
        })
}

/// As [`is_seccomp_on`].
fn is_not_root(pod: &Value, contexts: &[&Value]) -> bool {
    let by_pod = pod["runAsNonRoot"] == true;
    contexts.iter().all(|context| context["runAsNonRoot"].as_bool().unwrap_or(by_pod))
}

#[test]
fn every_pod_is_admitted() {
    for objects in rendered() {
        for document in objects.documents.iter().filter(|document| !document["spec"]["template"].is_null()) {
            let template = &document["spec"]["template"];
            assert_eq!(refused(template), [""; 0], "{} {}", objects.folder, document["metadata"]["name"]);
            // The profile does not ask for these; we do.
            let context = &template["spec"]["securityContext"];
            assert_eq!((&context["runAsUser"], &context["runAsGroup"]), (&json!(65532), &json!(65532)));
            for container in containers(&template["spec"]) {
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            }
            assert_eq!(template["spec"]["enableServiceLinks"], false);
            assert_eq!(template["spec"]["volumes"], Value::Null, "nothing to write to");
        }
    }
}

/// A pod with two containers that is admitted.
fn good() -> Value {
    let context = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    json!({
        "metadata": {},
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "initContainers": [{ "name": "first", "securityContext": context.clone() }],
            "containers": [{ "name": "main", "securityContext": context }],
        },
    })
}

/// Sets what is at `path`, whose parts are separated by blanks; what is missing on the way is made.
fn set(value: &mut Value, path: &str, to: Value) {
    let mut at = value;
    for part in path.split(' ') {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    *at = to;
}

#[test]
fn a_bad_pod_is_refused() {
    assert_eq!(refused(&good()), [""; 0]);
    let main = "spec containers 0 securityContext";
    for (path, to, expected) in [
        ("spec securityContext windowsOptions hostProcess", json!(true), "windowsHostProcess"),
        ("spec hostNetwork", json!(true), "hostNamespaces"),
        ("spec hostPID", json!(true), "hostNamespaces"),
        ("spec hostIPC", json!(true), "hostNamespaces"),
        ("spec initContainers 0 securityContext privileged", json!(true), "privileged"),
        (&format!("{main} capabilities drop"), json!(["NET_RAW"]), "capabilities"),
        (&format!("{main} capabilities add"), json!(["NET_BIND_SERVICE", "SYS_ADMIN"]), "capabilities"),
        ("spec volumes", json!([{ "name": "a", "hostPath": { "path": "/" } }]), "volumes"),
        ("spec volumes", json!([{ "name": "a", "nfs": { "server": "b", "path": "/" } }]), "volumes"),
        ("spec containers 0 ports", json!([{ "containerPort": 80, "hostPort": 80 }]), "hostPorts"),
        ("spec containers 0 livenessProbe httpGet host", json!("10.0.0.1"), "hostProbesAndHostLifecycle"),
        ("spec containers 0 startupProbe tcpSocket host", json!("a"), "hostProbesAndHostLifecycle"),
        ("spec initContainers 0 lifecycle preStop httpGet host", json!("a"), "hostProbesAndHostLifecycle"),
        ("spec securityContext appArmorProfile type", json!("Unconfined"), "appArmorProfile"),
        (&format!("{main} appArmorProfile type"), json!("Unconfined"), "appArmorProfile"),
        (
            "metadata annotations",
            json!({ "container.apparmor.security.beta.kubernetes.io/main": "unconfined" }),
            "appArmorAnnotation",
        ),
        (&format!("{main} seLinuxOptions type"), json!("spc_t"), "seLinuxOptions"),
        ("spec securityContext seLinuxOptions user", json!("system_u"), "seLinuxOptions"),
        (&format!("{main} seLinuxOptions role"), json!("sysadm_r"), "seLinuxOptions"),
        (&format!("{main} procMount"), json!("Unmasked"), "procMount"),
        ("spec securityContext seccompProfile", Value::Null, "seccompProfile"),
        ("spec securityContext seccompProfile type", json!("Unconfined"), "seccompProfile"),
        (&format!("{main} seccompProfile type"), json!("Unconfined"), "seccompProfile"),
        ("spec securityContext sysctls", json!([{ "name": "kernel.msgmax", "value": "1" }]), "sysctls"),
        (
            "spec initContainers 0 securityContext allowPrivilegeEscalation",
            Value::Null,
            "allowPrivilegeEscalation",
        ),
        ("spec securityContext runAsNonRoot", Value::Null, "runAsNonRoot"),
        (&format!("{main} runAsNonRoot"), json!(false), "runAsNonRoot"),
        ("spec securityContext runAsUser", json!(0), "runAsUser"),
        (&format!("{main} runAsUser"), json!(0), "runAsUser"),
        (
            "spec ephemeralContainers",
            json!([{ "name": "late", "securityContext": { "allowPrivilegeEscalation": false } }]),
            "capabilities",
        ),
    ] {
        let mut bad = good();
        set(&mut bad, path, to.clone());
        assert_eq!(refused(&bad), [expected], "{path} = {to}");
    }
}

#[test]
fn what_is_allowed_is_not_refused() {
    let main = "spec containers 0 securityContext";
    for (path, to) in [
        ("spec hostNetwork", json!(false)),
        (&format!("{main} capabilities add"), json!(["NET_BIND_SERVICE"])),
        ("spec volumes", json!([{ "name": "a", "emptyDir": {} }, { "name": "b", "secret": {} }])),
        ("spec containers 0 ports", json!([{ "containerPort": 80, "hostPort": 0 }])),
        ("spec containers 0 readinessProbe httpGet host", json!("")),
        ("spec securityContext appArmorProfile type", json!("Localhost")),
        ("spec securityContext seLinuxOptions type", json!("container_t")),
        (&format!("{main} procMount"), json!("Default")),
        (&format!("{main} seccompProfile type"), json!("Localhost")),
        ("spec securityContext sysctls", json!([{ "name": "net.ipv4.tcp_syncookies", "value": "1" }])),
        ("spec securityContext runAsUser", json!(1000)),
    ] {
        let mut allowed = good();
        set(&mut allowed, path, to.clone());
        assert_eq!(refused(&allowed), [""; 0], "{path} = {to}");
    }
    // Each container for itself is as good as the pod for all.
    let mut each = good();
    for container in ["initContainers", "containers"] {
        each["spec"][container][0]["securityContext"]["runAsNonRoot"] = json!(true);
        each["spec"][container][0]["securityContext"]["seccompProfile"] = json!({ "type": "Localhost" });
    }
    each["spec"]["securityContext"] = json!({});
    assert_eq!(refused(&each), [""; 0]);
}
