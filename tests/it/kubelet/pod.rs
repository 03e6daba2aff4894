//! One pod: its process, started again when it ends, and what the node says about it.
use super::controllers::plain_condition;
use super::{Ended, Node, Order};
use crate::api_server::now;
use crate::support::{client, signal};
use elastic::net::wire::Announcement;
use serde_json::{Value, json};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc::UnboundedReceiver;

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the pod `name` until it is told to end, and removes it then.
pub(super) async fn run(node: Arc<Node>, name: String, number: u32, mut orders: UnboundedReceiver<Order>) {
    let pod = Pod { node, name, address: address(number) };
    pod.say(|status| {
        status["startTime"] = now().into();
        status["containerStatuses"] =
            json!([container(false, 0, &waiting("ContainerCreating", ""), &json!({}))]);
    });
    let mut restarts = 0;
    let code = loop {
        match pod.live(restarts, &mut orders).await {
            Life::Terminated(code) => break code,
            Life::Crashed(exit) => {
                restarts += 1;
                if pod.back_off(restarts, exit, &mut orders).await.is_break() {
                    break None;
                }
            }
        }
    };
    let ended = Ended { pod: pod.name.clone(), code };
    pod.node.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
    pod.node.server.remove("pods", &pod.name);
}

/// An address of loopback that no other pod has.
fn address(number: u32) -> String {
    if cfg!(target_os = "linux") {
        format!("127.0.{}.{}", 1 + number / 250, 1 + number % 250)
    } else {
        "127.0.0.1".to_owned()
    }
}

/// How the process of a container ended.
enum Life {
    /// As it was told to, with this code if it was not killed.
    Terminated(Option<i32>),
    /// By itself, or killed by somebody.
    Crashed(ExitStatus),
}

struct Pod {
    node: Arc<Node>,
    name: String,
    address: String,
}

impl Pod {
    fn start(&self) -> Child {
        let options = &self.node.options;
        let is_failing = self.node.is_failing.load(Ordering::Relaxed);
        Command::new(env!("CARGO_BIN_EXE_elastic"))
            .args(["serve-model", "--child", "--host", &self.address, "--port", "0"])
            .args(if is_failing { &options.failing_flags } else { &options.flags })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if is_failing { Stdio::null() } else { Stdio::inherit() })
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// One process from its start to its end.
    async fn live(&self, restarts: u32, orders: &mut UnboundedReceiver<Order>) -> Life {
        let mut child = self.start();
        // It would end if this were closed, which waiting for it does.
        let _tie = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        self.say(|status| {
            status["phase"] = "Running".into();
            status["podIP"] = self.address.as_str().into();
            status["podIPs"] = json!([{"ip": self.address}]);
        });
        self.say_ready(false, restarts);
        let probed = self.probe(stdout, restarts);
        tokio::pin!(probed);
        loop {
            tokio::select! {
                exit = child.wait() => return Life::Crashed(exit.unwrap()),
                () = &mut probed => unreachable!("it is probed until it ends"),
                order = orders.recv() => match order {
                    Some(Order::Kill) => child.start_kill().unwrap(),
                    Some(Order::Terminate) | None => break,
                },
            }
        }
        signal("-TERM", child.id().unwrap());
        let pod = self.node.server.get("pods", &self.name).unwrap_or_default();
        let grace_s = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
        tokio::select! {
            ended = tokio::time::timeout(Duration::from_secs(grace_s), child.wait()) => {
                if let Ok(exit) = ended {
                    return Life::Terminated(exit.unwrap().code());
                }
            }
            () = &mut probed => unreachable!("it is probed until it ends"),
        }
        child.kill().await.unwrap();
        Life::Terminated(None)
    }

    /// Learns where the process listens, then asks again and again whether it is ready.
    async fn probe(&self, mut stdout: BufReader<ChildStdout>, restarts: u32) {
        let mut line = String::new();
        if stdout.read_line(&mut line).await.unwrap() == 0 {
            std::future::pending::<()>().await;
        }
        let announced: Announcement = serde_json::from_str(&line).unwrap();
        let port: u16 = announced.ready.rsplit(':').next().unwrap().parse().unwrap();
        self.node.server.edit("pods", &self.name, |pod| {
            let ports = json!([{"name": "http", "containerPort": port, "protocol": "TCP"}]);
            pod["spec"]["containers"][0]["ports"] = ports;
        });
        let client = client();
        loop {
            let answer =
                client.get(format!("{}/readyz", announced.ready)).timeout(PROBE_TIMEOUT).send().await;
            let is_ready = answer.is_ok_and(|answer| answer.status().is_success());
            self.say_ready(is_ready, restarts);
            tokio::time::sleep(self.node.options.probe_period).await;
        }
    }

    /// Waits before the next start; breaks when told to end meanwhile.
    async fn back_off(
        &self,
        restarts: u32,
        exit: ExitStatus,
        orders: &mut UnboundedReceiver<Order>,
    ) -> std::ops::ControlFlow<()> {
        use std::os::unix::process::ExitStatusExt as _;
        let pause = self.node.options.back_off * 2_u32.pow((restarts - 1).min(5));
        let code = exit.code().or_else(|| exit.signal().map(|signal| 128 + signal));
        let last = json!({"terminated": {"exitCode": code, "reason": "Error", "finishedAt": now()}});
        let message = format!("back-off {pause:?} restarting failed container=model pod={}", self.name);
        self.say(|status| {
            let state = waiting("CrashLoopBackOff", &message);
            status["containerStatuses"] = json!([container(false, restarts, &state, &last)]);
        });
        self.say_conditions(false);
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return std::ops::ControlFlow::Continue(()),
                order = orders.recv() => match order {
                    Some(Order::Kill) => {}
                    Some(Order::Terminate) | None => return std::ops::ControlFlow::Break(()),
                },
            }
        }
    }

    fn say_ready(&self, is_ready: bool, restarts: u32) {
        self.say(|status| {
            let known = &status["containerStatuses"][0];
            let started_at = &known["state"]["running"]["startedAt"];
            let started_at = if started_at.is_null() { now().into() } else { started_at.clone() };
            let last = known["lastState"].clone();
            let state = json!({"running": {"startedAt": started_at}});
            status["containerStatuses"] = json!([container(is_ready, restarts, &state, &last)]);
        });
        self.say_conditions(is_ready);
    }

    fn say_conditions(&self, is_ready: bool) {
        let holds = [
            ("Initialized", true),
            ("Ready", is_ready),
            ("ContainersReady", is_ready),
            ("PodScheduled", true),
        ];
        self.node.server.edit("pods", &self.name, |pod| {
            let conditions: Vec<Value> =
                holds.iter().map(|(kind, holds)| plain_condition(pod, kind, *holds)).collect();
            pod["status"]["conditions"] = conditions.into();
        });
    }

    fn say(&self, say: impl FnOnce(&mut Value)) {
        self.node.server.edit("pods", &self.name, |pod| say(&mut pod["status"]));
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut waiting = json!({"reason": reason});
    if !message.is_empty() {
        waiting["message"] = message.into();
    }
    json!({"waiting": waiting})
}

fn container(is_ready: bool, restarts: u32, state: &Value, last: &Value) -> Value {
    json!({
        "name": "model", "ready": is_ready, "started": is_ready, "restartCount": restarts,
        "state": state, "lastState": last,
    })
}
