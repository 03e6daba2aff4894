//! Chromium without a window, driven over its `DevTools` protocol: messages of JSON on a pipe, each ended by a zero.
use base64::Engine as _;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Longest time that the browser may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page open.
pub(crate) struct Browser {
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Value,
    sent: u64,
    /// What the page wrote to its console, and what the browser complained about.
    pub(crate) complaints: Vec<String>,
    _child: Child,
    _profile: tempfile::TempDir,
}

/// How a page is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) phone: bool,
    pub(crate) dark: bool,
}

impl Browser {
    /// Starts `program` with an empty page.
    pub(crate) async fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The pipe is on descriptors 3 and 4, which the shell makes of standard input and output.
        // Its own sandbox does not work for root, nor in most containers; the page is our own.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
                      --disable-background-networking --disable-component-update --disable-sync \
                      --disable-dev-shm-usage --remote-debugging-pipe --user-data-dir=\"$1\" \
                      3<&0 4>&1 >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .args([program, profile.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Self {
            requests,
            answers,
            session: Value::Null,
            sent: 0,
            complaints: Vec::new(),
            _child: child,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", attach).await["sessionId"].take();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser
    }

    /// Opens a page on a screen.
    pub(crate) async fn open(&mut self, url: &str, screen: Screen) {
        let metrics = json!({
            "width": screen.width, "height": screen.height, "mobile": screen.phone,
            "deviceScaleFactor": if screen.phone { 2 } else { 1 },
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if screen.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// Value of an expression in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression in the page is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let wait = format!(
            "new Promise(done => {{ const look = () => ({expression}) ? done(true) : setTimeout(look, 20); look(); }})"
        );
        assert_eq!(self.value(&wait).await, json!(true));
    }

    /// Text of the element with an id.
    pub(crate) async fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').textContent")).await;
        text.as_str().unwrap_or_else(|| panic!("there is no {id}")).to_owned()
    }

    /// Moves the pointer to a place in the window.
    pub(crate) async fn point(&mut self, x: f64, y: f64) {
        self.call("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": x, "y": y})).await;
    }

    /// Taps a place in the window with a finger.
    pub(crate) async fn tap(&mut self, x: f64, y: f64) {
        self.call("Emulation.setTouchEmulationEnabled", json!({"enabled": true})).await;
        let touch = |kind: &str, points: Value| json!({"type": kind, "touchPoints": points});
        self.call("Input.dispatchTouchEvent", touch("touchStart", json!([{"x": x, "y": y}]))).await;
        self.call("Input.dispatchTouchEvent", touch("touchEnd", json!([]))).await;
    }

    /// Writes a picture of the window.
    pub(crate) async fn shoot(&mut self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", json!({})).await;
        let picture = base64::prelude::BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, picture).unwrap();
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.requests.write_all(&bytes).await.unwrap();
        loop {
            let mut bytes = Vec::new();
            let read = self.answers.read_until(0, &mut bytes);
            let length = tokio::time::timeout(PATIENCE, read).await.expect("the browser answers").unwrap();
            assert!(length > 0, "the browser ended");
            let mut answer: Value = serde_json::from_slice(&bytes[..length - 1]).unwrap();
            let event = answer["method"].as_str().unwrap_or_default();
            if ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"].contains(&event) {
                self.complaints.push(answer["params"].to_string());
            }
            if answer["id"] == self.sent {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }
}
