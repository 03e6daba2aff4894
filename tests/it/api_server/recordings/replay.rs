//! Plays a recording against a double, and matches up what must differ.
use super::super::tests::Watch;
use super::super::{ADMIN, ApiServer, kinds};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// One recording.
pub(super) struct Recording(pub(super) Value);

impl Recording {
    pub(super) fn read(scenario: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
        let text = std::fs::read(folder.join(format!("{scenario}.json"))).unwrap();
        Self(serde_json::from_slice(&text).unwrap())
    }

    pub(super) fn steps(&self) -> &[Value] {
        self.0["steps"].as_array().unwrap()
    }

    pub(super) fn answer(&self, step: usize) -> &Value {
        &self.steps()[step]["response_body"]
    }

    /// An item of the list that a step was answered, as the object that it is.
    pub(super) fn item(&self, step: usize, item: usize) -> Value {
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
pub(super) struct Replay {
    pub(super) server: ApiServer,
    pub(super) recording: Recording,
    pub(super) token: Option<String>,
    pairs: Pairs,
    /// The double's version for a recorded one, whatever has it.
    pub(super) versions: HashMap<String, String>,
    /// How far the generations are apart, by recorded uid.
    generations: HashMap<String, i64>,
}

impl Replay {
    pub(super) fn start(scenario: &str) -> Self {
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
    pub(super) fn adopt(&mut self, object: &Value) {
        let mut object = self.translated_body(object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            object["metadata"].as_object_mut().unwrap().remove(field);
        }
        let adopted = self.server.apply(object.clone());
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
        self.pairs.pair("uid", &uid(&object), &uid(&adopted), "adopted");
    }

    pub(super) fn adopt_deployment(&mut self, replicas: u32) {
        let mut deployment = Recording::read("deployment_get").answer(0).clone();
        deployment["spec"]["replicas"] = replicas.into();
        deployment["status"]["replicas"] = replicas.into();
        self.adopt(&deployment);
    }

    /// Makes an object look like a recorded one, as a controller would have.
    pub(super) fn resemble(&self, recorded: &Value) {
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

    pub(super) fn status(&self, deployment: &str, edit: impl FnOnce(&mut Value)) {
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

    pub(super) async fn send(
        &self,
        step: &Value,
        lasts_s: Option<u32>,
    ) -> reqwest::Result<reqwest::Response> {
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
    pub(super) async fn step(&mut self, number: usize) {
        let step = self.recording.steps()[number].clone();
        let body = self.exchange(&step, &format!("step {number}")).await;
        self.compare(&step["response_body"], &body, &format!("step {number}"));
    }

    /// Makes a request and returns the body of the answer, whose head has been compared.
    pub(super) async fn exchange(&self, step: &Value, at: &str) -> Value {
        let answer = self.send(step, None).await.unwrap();
        let status = answer.status().as_u16();
        let content_type = answer.headers()[http::header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = answer.text().await.unwrap();
        assert_eq!(status, step["status"], "{at}: {body}");
        assert_eq!(content_type, step["response_headers"]["content-type"], "{at}");
        serde_json::from_str(&body).unwrap()
    }

    pub(super) async fn open(&self, number: usize, lasts_s: Option<u32>) -> Watch {
        let step = &self.recording.steps()[number];
        let answer = self.send(step, lasts_s).await.unwrap();
        assert_eq!(answer.status().as_u16(), step["status"], "step {number}");
        assert_eq!(answer.headers()[http::header::CONTENT_TYPE], "application/json", "step {number}");
        Watch::new(answer)
    }

    /// Plays a watch: before the event with a number in `during`, the requests that were made meanwhile; then what the
    /// event shows is written, unless it has come of a request.
    pub(super) async fn watch(&mut self, number: usize, during: &[(usize, usize)]) {
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
    pub(super) async fn watch_to_its_end(&mut self, number: usize) {
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

    pub(super) fn compare(&mut self, recorded: &Value, ours: &Value, at: &str) {
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
                assert_eq!(our_text.len(), text.len(), "{at}: {our_text}");
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

    pub(super) fn count(&self) -> usize {
        self.recording.steps().len()
    }
}
