//! The double against what a real API server answered: every recorded request is made again, in order, and the answer
//! compared field by field.
//!
//! What must differ is matched up instead: versions, uids and names that the server makes up may be others, but the
//! same ones have to come back wherever the recording has the same ones, and different ones where it has different ones.
//! Where a controller wrote something meanwhile, the test writes what the recording shows of it.
mod replay;

use super::{Duration, Value, json};
use replay::Replay;

#[tokio::test]
async fn the_scale_is_read_and_patched() {
    let mut replay = Replay::start("scale_get_patch");
    replay.adopt_deployment(2);
    for step in 0..replay.count() {
        match step {
            6 => replay.status("model", |status| status["observedGeneration"] = 4.into()),
            7 => replay.status("model", |status| status["replicas"] = 3.into()),
            15 => replay.status("model", |status| status["replicas"] = 2.into()),
            _ => {}
        }
        replay.step(step).await;
    }
}

#[tokio::test]
async fn a_deployment_is_read_and_watched() {
    let mut replay = Replay::start("deployment_get");
    replay.adopt_deployment(2);
    replay.step(0).await;
    replay.watch(1, &[(0, 0), (5, 1)]).await;
    // Read between the events.
    let object = replay.recording.answer(2).clone();
    let version = object["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(replay.versions.contains_key(version));
    replay.step(3).await;
}

#[tokio::test]
async fn slices_are_listed_and_watched() {
    let mut replay = Replay::start("endpointslice_list_watch");
    replay.adopt_deployment(2);
    let deleted = replay.recording.steps()[1]["during"][1]["response_body"].clone();
    replay.adopt(&deleted);
    let slices = [replay.recording.item(0, 0), replay.recording.item(11, 0)];
    for slice in &slices {
        replay.adopt(slice);
    }
    for step in 0..replay.count() {
        match step {
            1 => {
                replay.status("model", |status| status["replicas"] = 2.into());
                replay.watch(step, &[(0, 0)]).await;
            }
            2 | 3 | 4 | 10 => replay.watch_to_its_end(step).await,
            5 => {
                replay.server.compact();
                replay.watch_to_its_end(step).await;
            }
            6 => replay.watch(step, &[]).await,
            8 => {
                replay.server.old_storage(true);
                replay.watch_to_its_end(step).await;
                replay.server.old_storage(false);
            }
            _ => {
                if step == 14 {
                    replay.status("model", |status| status["replicas"] = 1.into());
                    replay.server.compact();
                }
                replay.step(step).await;
            }
        }
    }
    // A pod that is removed by hand.
    let step = replay.recording.steps()[1]["during"][1].clone();
    let body = replay.exchange(&step, "removal").await;
    replay.compare(&step["response_body"], &body, "removal");
}

#[tokio::test]
async fn a_lease_changes_hands() {
    let mut replay = Replay::start("lease");
    for step in 0..replay.count() {
        replay.step(step).await;
    }
}

#[tokio::test]
async fn events_are_written() {
    let mut replay = Replay::start("event_create");
    let last = replay.count() - 1;
    for step in 0..last {
        replay.step(step).await;
    }
    // Listed in order of the names, which the server makes up.
    let step = replay.recording.steps()[last].clone();
    let by_time = |mut list: Value| {
        let items = list["items"].as_array_mut().unwrap();
        items.sort_by_key(|event| event["eventTime"].to_string());
        list
    };
    let body = by_time(replay.exchange(&step, "core").await);
    replay.compare(&by_time(step["response_body"].clone()), &body, "core");
}

#[tokio::test]
async fn the_pod_that_costs_least_goes_first() {
    let mut replay = Replay::start("pod_deletion_cost");
    replay.adopt_deployment(3);
    let pods: Vec<Value> = (0..3).map(|item| replay.recording.item(0, item)).collect();
    for pod in &pods {
        replay.adopt(pod);
    }
    let going = replay.recording.steps()[9]["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    for step in 0..replay.count() {
        match step {
            5 => {
                let pods = replay.server.list("pods");
                // From behind, where it is the last: of equals the first would be taken.
                let first = pods.iter().rev().min_by_key(|pod| crate::kubelet::first_to_go(pod)).unwrap();
                assert_eq!(first["metadata"]["name"], going);
            }
            6 => replay.server.terminate_pod(&going),
            7 => replay.server.remove("pods", &going),
            _ => {}
        }
        for item in 0..replay.recording.answer(step)["items"].as_array().map_or(0, Vec::len) {
            let pod = replay.recording.item(step, item);
            if step > 0 {
                replay.resemble(&pod);
            }
        }
        replay.step(step).await;
    }
}

#[tokio::test]
async fn autoscalers_of_the_cluster_are_listed() {
    let mut replay = Replay::start("hpa_list");
    for step in 0..replay.count() {
        if step == 5 {
            (0..3).for_each(|item| replay.resemble(&replay.recording.item(step, item)));
        }
        if step == 6 {
            let names = ["other", "model", "model-statefulset"];
            for name in names {
                replay.server.remove("horizontalpodautoscalers", name);
            }
        }
        replay.step(step).await;
    }
}

#[tokio::test]
async fn an_account_may_do_what_its_role_says() {
    let mut replay = Replay::start("rbac");
    for step in replay.recording.0["setup"].as_array().unwrap().clone() {
        let body = replay.exchange(&step, "setup").await;
        replay.compare(&step["response_body"], &body, "setup");
    }
    replay.adopt_deployment(2);
    let pods = replay.recording.answer(8)["items"].as_array().unwrap().len();
    let pods: Vec<Value> = (0..pods).map(|item| replay.recording.item(8, item)).collect();
    for pod in &pods {
        replay.adopt(pod);
    }
    let slice = replay.recording.item(2, 0);
    replay.adopt(&slice);
    let token = replay.server.token("elastic");
    for step in 0..replay.count() {
        replay.token = match step {
            24 | 25 => None,
            26 | 27 => Some("nobody's".to_owned()),
            _ => Some(token.clone()),
        };
        match step {
            3 => replay.watch_to_its_end(step).await,
            28 => {
                replay.server.revoke(&token);
                replay.step(step).await;
            }
            _ => replay.step(step).await,
        }
    }
}

#[tokio::test]
async fn a_server_that_goes_down_takes_its_watches_along_or_not() {
    let mut replay = Replay::start("server_down");
    replay.adopt_deployment(2);
    let slice = replay.recording.item(0, 0);
    replay.adopt(&slice);
    // SIGTERM: the watch stays open, silent.
    replay.step(0).await;
    let mut watch = replay.open(1, None).await;
    replay.server.terminate().await;
    assert!(replay.send(&replay.recording.steps()[2], None).await.unwrap_err().is_connect());
    replay.status("model", |status| status["observedGeneration"] = 9.into());
    assert!(tokio::time::timeout(Duration::from_millis(50), watch.next()).await.is_err());
    replay.server.restart().await;
    // Something was written, so the watch cannot go on from where it was.
    replay.step(2).await;
    replay.watch_to_its_end(3).await;
    replay.step(4).await;
    // Both had changed meanwhile, the slice three times.
    let slice = replay.recording.item(5, 0);
    let name = slice["metadata"]["name"].as_str().unwrap();
    for endpoints in [json!(null), json!([])] {
        replay.server.edit("endpointslices", name, |slice| slice["endpoints"] = endpoints);
    }
    replay.resemble(&slice);
    replay.status("model", |status| status["observedGeneration"] = 10.into());
    replay.step(5).await;
    // SIGKILL: the watch breaks.
    let mut watch = replay.open(6, None).await;
    replay.server.kill().await;
    assert!(watch.next().await.is_err());
    assert!(replay.send(&replay.recording.steps()[7], None).await.unwrap_err().is_connect());
    replay.server.restart().await;
    // Nothing was written, so it goes on.
    replay.step(7).await;
    replay.watch_to_its_end(8).await;
    replay.step(9).await;
}
