//! The double against what a real API server answered: every recorded request is made again, in order, and the answer
//! compared field by field.
//!
//! What must differ is matched up instead: versions, uids and names that the server makes up may be others, but the
//! same ones have to come back wherever the recording has the same ones, and different ones where it has different ones.
//! Where a controller wrote something meanwhile, the test writes what the recording shows of it.
use super::tests::Watch;
use super::*;
use std::collections::HashMap;

/// One recording.
struct Recording(Value);

impl Recording {
    fn read(scenario: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
        let text = std::fs::read(folder.join(format!("{scenario}.json"))).unwrap();
        Self(serde_json::from_slice(&text).unwrap())
    }

    fn steps(&self) -> &[Value] {
        self.0["steps"].as_array().unwrap()
    }

    fn answer(&self, step: usize) -> &Value {
        &self.steps()[step]["response_body"]
    }

    /// An item of the list that a step was answered, as the object that it is.
    fn item(&self, step: usize, item: usize) -> Value {
        let list = self.answer(step);
        let mut object = list["items"][item].clone();
        assert!(object.is_object(), "no item {item} in step {step}");
        object["apiVersion"] = list["apiVersion"].clone();
        object["kind"] = list["kind"].as_str().unwrap().trim_end_matches("List").into();
        object
    }
}

/// What stands for what: the recorded word for the double's, and back.
#[derive(Default)]
struct Pairs {
    ours: HashMap<String, String>,
    recorded: HashMap<String, String>,
}

impl Pairs {
    /// Pairs the two, which must have no other partner.
    fn pair(&mut self, class: &str, recorded: &str, ours: &str, at: &str) {
        let (recorded, ours) = (format!("{class} {recorded}"), format!("{class} {ours}"));
        let known = self.ours.entry(recorded.clone()).or_insert_with(|| ours.clone());
        assert_eq!(*known, ours, "{at}: {recorded} was another one before");
        let known = self.recorded.entry(ours.clone()).or_insert_with(|| recorded.clone());
        assert_eq!(*known, recorded, "{at}: {ours} stood for another one before");
    }

    fn ours(&self, class: &str, recorded: &str) -> Option<&str> {
        let found = self.ours.get(&format!("{class} {recorded}"))?;
        found.split_once(' ').map(|(_, found)| found)
    }
}

/// A recording that is played against a double.
struct Replay {
    server: ApiServer,
    recording: Recording,
    token: Option<String>,
    pairs: Pairs,
    /// The double's version for a recorded one, whatever has it.
    versions: HashMap<String, String>,
    /// How far the generations are apart, by recorded uid.
    generations: HashMap<String, i64>,
}

impl Replay {
    fn start(scenario: &str) -> Self {
        Self {
            server: ApiServer::start(),
            recording: Recording::read(scenario),
            token: Some(ADMIN.to_owned()),
            pairs: Pairs::default(),
            versions: HashMap::default(),
            generations: HashMap::default(),
        }
    }

    /// Puts a recorded object there, under a new uid.
    fn adopt(&mut self, object: &Value) {
        let mut object = self.translated_body(object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            object["metadata"].as_object_mut().unwrap().remove(field);
        }
        let adopted = self.server.apply(object.clone());
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
        self.pairs.pair("uid", &uid(&object), &uid(&adopted), "adopted");
    }

    fn adopt_deployment(&mut self, replicas: u32) {
        let mut deployment = Recording::read("deployment_get").answer(0).clone();
        deployment["spec"]["replicas"] = replicas.into();
        deployment["status"]["replicas"] = replicas.into();
        self.adopt(&deployment);
    }

    /// Makes an object look like a recorded one, as a controller would have.
    fn resemble(&self, recorded: &Value) {
        let plural = kinds::of(recorded).plural;
        let name = recorded["metadata"]["name"].as_str().unwrap();
        let found = self.server.edit(plural, name, |object| {
            let kept = object["metadata"].clone();
            *object = self.translated_body(recorded);
            for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"] {
                if !kept[field].is_null() {
                    object["metadata"][field] = kept[field].clone();
                }
            }
        });
        assert!(found.is_some(), "there is no {plural} {name}");
    }

    fn status(&self, deployment: &str, edit: impl FnOnce(&mut Value)) {
        self.server.edit("deployments", deployment, |deployment| edit(&mut deployment["status"]));
    }

    /// The words that the double has for recorded ones in a text.
    fn translated(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (recorded, ours) in &self.pairs.ours {
            if let (Some(("uid" | "name", recorded)), Some((_, ours))) =
                (recorded.split_once(' '), ours.split_once(' '))
            {
                text = text.replace(recorded, ours);
            }
        }
        text
    }

    /// A recorded body with the double's words.
    fn translated_body(&self, body: &Value) -> Value {
        match body {
            Value::Object(fields) => {
                let translated = fields.iter().map(|(name, value)| {
                    let version = value.as_str().filter(|_| name == "resourceVersion");
                    let ours = version.and_then(|version| self.versions.get(version));
                    (
                        name.clone(),
                        ours.map_or_else(|| self.translated_body(value), |ours| ours.as_str().into()),
                    )
                });
                Value::Object(translated.collect())
            }
            Value::Array(items) => items.iter().map(|item| self.translated_body(item)).collect(),
            Value::String(text) => self.translated(text).into(),
            other => other.clone(),
        }
    }

    async fn send(&self, step: &Value, lasts_s: Option<u32>) -> reqwest::Result<reqwest::Response> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut query = Vec::new();
        for (name, value) in step["query"].as_object().unwrap() {
            let value = text(value);
            let ours = match name.as_str() {
                "resourceVersion" => self.versions.get(&value).cloned(),
                "continue" => self.pairs.ours("continue", &value).map(ToOwned::to_owned),
                "timeoutSeconds" => lasts_s.map(|seconds| seconds.to_string()),
                _ => None,
            };
            query.push((name.clone(), ours.unwrap_or(value)));
        }
        let url = reqwest::Url::parse_with_params(
            &format!("{}{}", self.server.url(), self.translated(step["path"].as_str().unwrap())),
            &query,
        );
        let method = text(&step["method"]).parse().unwrap();
        let mut request = crate::support::client().request(method, url.unwrap());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in step["request_headers"].as_object().unwrap() {
            request = request.header(name, text(value));
        }
        if !step["request_body"].is_null() {
            request = request.body(self.translated_body(&step["request_body"]).to_string());
        }
        request.send().await
    }

    /// Makes the request of a step that is no watch, and compares the answer.
    async fn step(&mut self, number: usize) {
        let step = self.recording.steps()[number].clone();
        let body = self.exchange(&step, &format!("step {number}")).await;
        self.compare(&step["response_body"], &body, &format!("step {number}"));
    }

    /// Makes a request and returns the body of the answer, whose head has been compared.
    async fn exchange(&self, step: &Value, at: &str) -> Value {
        let answer = self.send(step, None).await.unwrap();
        let status = answer.status().as_u16();
        let content_type = answer.headers()[http::header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = answer.text().await.unwrap();
        assert_eq!(status, step["status"], "{at}: {body}");
        assert_eq!(content_type, step["response_headers"]["content-type"], "{at}");
        serde_json::from_str(&body).unwrap()
    }

    async fn open(&self, number: usize, lasts_s: Option<u32>) -> Watch {
        let step = &self.recording.steps()[number];
        let answer = self.send(step, lasts_s).await.unwrap();
        assert_eq!(answer.status().as_u16(), step["status"], "step {number}");
        assert_eq!(answer.headers()[http::header::CONTENT_TYPE], "application/json", "step {number}");
        Watch::new(answer)
    }

    /// Plays a watch: before the event with a number in `during`, the requests that were made meanwhile; then what the
    /// event shows is written, unless it has come of a request.
    async fn watch(&mut self, number: usize, during: &[(usize, usize)]) {
        let step = self.recording.steps()[number].clone();
        let mut watch = self.open(number, Some(60)).await;
        for (index, wanted) in step["watch"].as_array().unwrap().iter().enumerate() {
            let (wanted, at) = (&wanted["event"], format!("step {number}, event {index}"));
            for (_, request) in during.iter().filter(|(before, _)| *before == index) {
                let request = &step["during"][*request];
                let body = self.exchange(request, &at).await;
                self.compare(&request["response_body"], &body, &at);
            }
            let ends_a_list =
                !wanted["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"].is_null();
            match wanted["type"].as_str().unwrap() {
                "BOOKMARK" if !ends_a_list => self.server.bookmark(),
                "MODIFIED" => self.resemble(&wanted["object"]),
                _ => {}
            }
            let event = watch.next().await.unwrap().unwrap_or_else(|| panic!("{at}: the watch has ended"));
            self.compare(wanted, &event, &at);
        }
        self.server.end_watches();
        assert_eq!(watch.next().await.unwrap(), None, "step {number}");
    }

    /// A watch that ends by itself; bookmarks at its end are best effort.
    async fn watch_to_its_end(&mut self, number: usize) {
        let step = self.recording.steps()[number].clone();
        let mut watch = self.open(number, Some(1)).await;
        let is_about_an_object = |event: &Value| event["type"] != "BOOKMARK";
        for wanted in step["watch"].as_array().unwrap().iter().map(|wanted| &wanted["event"]) {
            if is_about_an_object(wanted) || !wanted["object"]["metadata"]["annotations"].is_null() {
                let event = watch.next().await.unwrap().unwrap();
                self.compare(wanted, &event, &format!("step {number}"));
            }
        }
        while let Some(event) = watch.next().await.unwrap() {
            assert!(!is_about_an_object(&event) && step["query"]["allowWatchBookmarks"] == "true", "{event}");
        }
    }

    fn compare(&mut self, recorded: &Value, ours: &Value, at: &str) {
        match (recorded, ours) {
            (Value::Object(fields), Value::Object(our_fields)) => {
                let names =
                    |fields: &serde_json::Map<String, Value>| fields.keys().cloned().collect::<Vec<_>>();
                let (mut wanted, mut found) = (names(fields), names(our_fields));
                wanted.sort();
                found.sort();
                assert_eq!(found, wanted, "{at}: fields");
                for name in wanted {
                    self.compare_field(&name, recorded, ours, &format!("{at}/{name}"));
                }
            }
            (Value::Array(items), Value::Array(our_items)) => {
                assert_eq!(our_items.len(), items.len(), "{at}: items");
                for (index, (item, our_item)) in items.iter().zip(our_items).enumerate() {
                    self.compare(item, our_item, &format!("{at}/{index}"));
                }
            }
            _ => assert_eq!(ours, recorded, "{at}"),
        }
    }

    fn compare_field(&mut self, name: &str, recorded_in: &Value, ours_in: &Value, at: &str) {
        let (recorded, ours) = (&recorded_in[name], &ours_in[name]);
        let (Some(text), Some(our_text)) = (recorded.as_str(), ours.as_str()) else {
            if name == "generation" {
                let apart = ours.as_i64().unwrap() - recorded.as_i64().unwrap();
                let uid = recorded_in["uid"].as_str().unwrap().to_owned();
                let known = *self.generations.entry(uid).or_insert(apart);
                assert_eq!(apart, known, "{at}: a new generation on one side only");
                return;
            }
            return self.compare(recorded, ours, at);
        };
        match name {
            "uid" | "continue" => self.pairs.pair(name, text, our_text, at),
            "resourceVersion" => {
                // A list's may be anybody's.
                if recorded_in["uid"].is_string() {
                    self.pairs.pair("version", text, our_text, at);
                }
                assert!(our_text.parse::<u64>().is_ok(), "{at}: {our_text}");
                self.versions.insert(text.to_owned(), our_text.to_owned());
            }
            "creationTimestamp" | "deletionTimestamp" => {
                assert_eq!(our_text.len(), text.len(), "{at}: {our_text}")
            }
            // Five characters made up by the server.
            "name" if text != our_text && text[..text.len() - 5] == our_text[..our_text.len() - 5] => {
                self.pairs.pair(name, text, our_text, at);
            }
            "message" if text.starts_with("too old resource version: ") => {
                let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
                assert_eq!(words(our_text), words(text), "{at}");
            }
            "message" => assert_eq!(our_text, self.translated(text), "{at}"),
            _ => assert_eq!(our_text, text, "{at}"),
        }
    }

    fn count(&self) -> usize {
        self.recording.steps().len()
    }
}

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
    slices.iter().for_each(|slice| replay.adopt(slice));
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
    pods.iter().for_each(|pod| replay.adopt(pod));
    let going = replay.recording.steps()[9]["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    for step in 0..replay.count() {
        match step {
            5 => {
                let pods = replay.server.list("pods");
                let first = pods.iter().min_by_key(|pod| crate::kubelet::first_to_go(pod)).unwrap();
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
            names.iter().for_each(|name| replay.server.remove("horizontalpodautoscalers", name));
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
    pods.iter().for_each(|pod| replay.adopt(pod));
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
