//! The pods: what runs in them, with which arguments, how they are looked at, and how they end.
use super::render::{FOLDER_MONITORED, Objects, PORTS, argument, arguments, container, name, pod, rendered};
use clap::{CommandFactory as _, Parser as _};
use elastic::cli::Cli;
use elastic::net::serve::{Limits, duration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{EnvVar, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use std::time::Duration;

/// The flag that a variable of the environment stands for, with its value.
fn flag_of(mode: &clap::Command, variable: &EnvVar, objects: &Objects) -> [String; 2] {
    let known =
        mode.get_arguments().find(|flag| flag.get_env().is_some_and(|env| env == variable.name.as_str()));
    let known = known.unwrap_or_else(|| panic!("{} reads no {}", mode.get_name(), variable.name));
    let deployment = if mode.get_name() == "serve-model" { "model" } else { mode.get_name() };
    let value = objects.setting(deployment, &variable.name);
    // Of a field of the pod nobody knows the value yet.
    [format!("--{}", known.get_long().unwrap()), value.unwrap_or_else(|| "10.0.0.1".to_owned())]
}

#[test]
fn the_executable_understands_every_containers_arguments_and_variables() {
    let cli = Cli::command();
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let mut line = vec!["elastic".to_owned()];
            line.extend(arguments(&deployment));
            let mode = cli.find_subcommand(&line[1]).unwrap();
            for variable in container(&deployment).env.iter().flatten() {
                line.extend(flag_of(mode, variable, objects));
            }
            // A flag that is given twice, as an argument and as a variable, is refused here.
            let parsed = Cli::try_parse_from(&line);
            assert!(parsed.is_ok(), "{} {line:?}: {}", objects.folder, parsed.unwrap_err());
        }
    }
}

#[test]
fn all_listen_on_every_address_at_the_port_of_their_mode() {
    for objects in rendered() {
        for (mode, port) in PORTS {
            let deployment = objects.one::<Deployment>(mode);
            assert_eq!(argument(&deployment, "--port"), Some(port.to_string()));
            // IPv4 and IPv6: a pod has whichever its cluster gives it.
            assert_eq!(argument(&deployment, "--host").as_deref(), Some("::"));
            let ports = serde_json::to_value(&container(&deployment).ports).unwrap();
            assert_eq!(ports, json!([{ "name": "http", "containerPort": port }]));
        }
    }
}

#[test]
fn the_number_of_models_is_left_to_the_autoscaler() {
    for objects in rendered() {
        let replicas = PORTS.map(|(mode, _)| objects.one::<Deployment>(mode).spec.unwrap().replicas);
        let twins = if objects.folder == FOLDER_MONITORED { 2 } else { 1 };
        assert_eq!(replicas, [Some(twins), Some(twins), None, Some(1)], "{}", objects.folder);
        let bound = |variable| objects.setting("autoscale", variable).unwrap().parse::<u32>().unwrap();
        assert!(bound("ELASTIC_REPLICAS_MIN") <= bound("ELASTIC_REPLICAS_MAX"));
    }
}

#[test]
fn all_go_by_the_same_promise() {
    for objects in rendered() {
        let told = |mode, variable| duration(&objects.setting(mode, variable).unwrap()).unwrap();
        let promise = told("monitor", "ELASTIC_PROMISE");
        assert_eq!(told("dispatch", "ELASTIC_DEADLINE"), promise);
        let p99 = told("autoscale", "ELASTIC_P99_TARGET");
        assert_eq!(told("monitor", "ELASTIC_TARGET_LATENCY"), p99);
        assert!(p99 < promise, "{p99:?} leaves no room to {promise:?}");
    }
}

#[test]
fn an_update_leaves_nobody_without_an_answer() {
    for objects in rendered() {
        let strategy =
            |mode| serde_json::to_value(objects.one::<Deployment>(mode).spec.unwrap().strategy).unwrap();
        let rolling = |surge: serde_json::Value| json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": 0 } });
        assert_eq!(strategy("model"), rolling(json!("25%")));
        assert_eq!(strategy("dispatch"), rolling(json!(1)));
        assert_eq!(strategy("autoscale"), rolling(json!(1)));
        assert_eq!(strategy("monitor"), json!({ "type": "Recreate" }), "never two windows at once");
        for deployment in objects.all::<Deployment>() {
            assert!(deployment.spec.unwrap().revision_history_limit.is_some_and(|limit| limit > 0));
        }
    }
}

#[test]
fn pods_have_the_time_to_drain_before_they_are_killed() {
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let delay = argument(&deployment, "--drain-delay");
            let delay = delay.map_or(Duration::ZERO, |delay| duration(&delay).unwrap());
            let needed = delay + Limits::default().drain_timeout;
            let grace_s = pod(&deployment).termination_grace_period_seconds.unwrap();
            let grace = Duration::from_secs(u64::try_from(grace_s).unwrap());
            assert!(
                grace >= needed + Duration::from_secs(5),
                "{}: {grace:?} for {needed:?}",
                name(&deployment)
            );
            // Nobody else answers while the monitor is replaced: it had better be quick.
            assert_eq!(delay.is_zero(), name(&deployment) == "monitor", "{}", name(&deployment));
            assert_eq!(container(&deployment).lifecycle, None, "--drain-delay does what a hook would");
        }
    }
}

#[test]
fn probes_find_what_hangs_and_spare_what_is_busy() {
    let read = |probe: &Option<Probe>| {
        let probe = probe.clone().unwrap();
        let get = probe.http_get.unwrap();
        assert_eq!(get.port, IntOrString::String("http".into()));
        // A probe that has to succeed again and again, or waits at first, would make a start slower.
        assert_eq!((probe.success_threshold, probe.initial_delay_seconds), (None, None));
        (get.path.unwrap(), probe.period_seconds.unwrap(), probe.failure_threshold.unwrap())
    };
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let container = container(&deployment);
            // A model is not up before its warm-up. The others' readiness may hang on somebody else's.
            let up = if name(&deployment) == "model" { "/readyz" } else { "/healthz" };
            let (path, period_s, failures) = read(&container.startup_probe);
            assert_eq!((path.as_str(), period_s), (up, 1), "{}", name(&deployment));
            assert!(period_s * failures >= 120, "a slow node needs more than {failures} s");
            let (path, period_s, failures) = read(&container.readiness_probe);
            assert_eq!((path.as_str(), period_s), ("/readyz", 1));
            assert!(failures >= 3, "one late answer is no failure");
            let (path, period_s, failures) = read(&container.liveness_probe);
            assert_eq!(path, "/healthz");
            assert!(period_s * failures >= 60, "busy for {} s is not dead", period_s * failures);
        }
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
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let resources = container(&deployment).resources.clone().unwrap();
            let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
            for resource in ["cpu", "memory"] {
                let (request, limit) = (amount(&requests[resource]), amount(&limits[resource]));
                assert!(request > 0 && request <= limit, "{}: {request} of {limit}", name(&deployment));
            }
            if name(&deployment) == "model" {
                assert_eq!(limits["cpu"].0, "1", "a worker a CPU: the scaling policy counts in these");
                assert_eq!(
                    requests == limits,
                    objects.folder != "overlays/minikube",
                    "the QoS class Guaranteed"
                );
            }
        }
    }
}

#[test]
fn the_image_is_the_one_that_the_folder_says() {
    for objects in rendered() {
        let expected = match objects.folder {
            "base" => ("elastic:dev", "IfNotPresent"),
            "overlays/minikube" => ("elastic:dev", "Never"),
            _ => ("registry.example.com/elastic:0.1.0", "IfNotPresent"),
        };
        for deployment in objects.all::<Deployment>() {
            let container = container(&deployment);
            let image =
                (container.image.as_deref().unwrap(), container.image_pull_policy.as_deref().unwrap());
            assert_eq!(image, expected, "{} {}", objects.folder, name(&deployment));
            assert_eq!(container.command, None, "the image's entry point is the executable");
        }
    }
}

#[test]
fn pods_of_a_kind_are_kept_apart() {
    for objects in rendered() {
        for deployment in objects.all::<Deployment>() {
            let labels = deployment.spec.as_ref().unwrap().template.metadata.as_ref().unwrap().labels.clone();
            let spread = pod(&deployment).topology_spread_constraints.clone().unwrap_or_default();
            let kept: Vec<_> = spread
                .iter()
                .map(|constraint| {
                    let selector = constraint.label_selector.as_ref().unwrap().match_labels.as_ref().unwrap();
                    let labels = labels.as_ref().unwrap();
                    assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
                    let keys = constraint.match_label_keys.as_deref().unwrap();
                    assert!(keys.contains(&"pod-template-hash".to_owned()), "an update counts its own pods");
                    let one_kind = selector.contains_key("app.kubernetes.io/name")
                        || keys.contains(&"app.kubernetes.io/name".to_owned());
                    assert!(one_kind, "{}", name(&deployment));
                    (constraint.topology_key.as_str(), constraint.when_unsatisfiable.as_str())
                })
                .collect();
            let (hosts, zones) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
            match name(&deployment) {
                "model" => assert_eq!(kept, [(hosts, "ScheduleAnyway"), (zones, "ScheduleAnyway")]),
                "dispatch" | "autoscale" if objects.folder == FOLDER_MONITORED => {
                    assert_eq!(kept, [(hosts, "DoNotSchedule"), (zones, "ScheduleAnyway")]);
                    let taints = spread[0].node_taints_policy.as_deref();
                    assert_eq!(taints, Some("Honor"), "a node that is being emptied would count otherwise");
                }
                _ => assert_eq!(kept, []),
            }
        }
    }
}
