//! The service under load: whether it answers, and one exchange with it.
//!
//! **Invariant**: an exchange takes at most `timeout` and reads at most `answer_bytes_max`; a success whose
//! answer did not arrive whole in that is a failure.
use crate::load::outcome::{Failure, Outcome};
use crate::load::photos::Photo;
use crate::load::send::Exchange;
use crate::net::client;
use crate::net::shutdown::Shutdown;
use crate::net::wire::DEADLINE_HEADER;
use anyhow::Context as _;
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Request, Url};
use serde::Deserialize;
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::Instant;

/// Pause between two looks at whether the target is ready.
const READY_PAUSE: Duration = Duration::from_millis(250);
/// Servers close idle connections after half a minute or more; this side lets go of them before.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Reads a target's URL; one without a path is asked for `/predict`.
pub(crate) fn url(text: &str) -> Result<Url, String> {
    let advice = "write one as in http://127.0.0.1:8080";
    let mut url = Url::parse(text).map_err(|error| format!("{text:?} is no URL ({error}): {advice}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{text:?} is not an http or https URL: {advice}"));
    }
    if url.path() == "/" {
        url.set_path("/predict");
    }
    Ok(url)
}

/// How requests are made.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where they go.
    pub(crate) url: Url,
    /// Longest that a whole exchange may take.
    pub(crate) timeout: Duration,
    /// From the scheduled instant; what is left of it at the send is told to the target.
    pub(crate) deadline: Option<Duration>,
    /// Largest answer that is read, bytes.
    pub(crate) answer_bytes_max: usize,
    /// Connections kept.
    pub(crate) connections_max: usize,
}

/// A client with one request ready for each photo.
pub(crate) struct Target {
    client: Client,
    settings: Settings,
    requests: Vec<Request>,
}

impl Target {
    /// Prepares one request for each photo.
    pub(crate) fn new(settings: Settings, photos: Vec<Photo>) -> anyhow::Result<Self> {
        let client = client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(settings.connections_max)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        let prepare = |photo: Photo| {
            let mut request = Request::new(Method::POST, settings.url.clone());
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(photo.media_type));
            *request.body_mut() = Some(photo.bytes.into());
            request
        };
        let requests = photos.into_iter().map(prepare).collect();
        Ok(Self { client, settings, requests })
    }

    /// Polls `/readyz` at the target until it answers 200, for at most `wait`.
    pub(crate) async fn wait_until_ready(&self, wait: Duration, shutdown: &Shutdown) -> anyhow::Result<()> {
        let mut url = self.settings.url.clone();
        url.set_path("/readyz");
        url.set_query(None);
        let give_up = Instant::now() + wait;
        loop {
            let look = self.client.get(url.clone()).timeout(self.settings.timeout.min(wait)).send();
            let seen = match look.await {
                Ok(answer) if answer.status() == StatusCode::OK => return Ok(()),
                Ok(answer) => format!("it answers {}", answer.status()),
                Err(error) => format!("{:#}", anyhow::Error::from(error)),
            };
            anyhow::ensure!(
                Instant::now() + READY_PAUSE < give_up,
                "{url} was not ready within {wait:?} ({seen}): start a service there, for example with \
                 `elastic up`, wait longer with --wait, or skip this check with --wait 0s",
            );
            tokio::select! {
                () = tokio::time::sleep(READY_PAUSE) => {}
                () = shutdown.drained() => anyhow::bail!("stopped before {url} was ready; nothing was sent"),
            }
        }
    }

    /// A request with the next photo in turn; `None` never happens with bodies that are whole in memory.
    fn request(&self, index: u64, lag: Duration) -> Option<Request> {
        let mut request = self.requests.get(index as usize % self.requests.len())?.try_clone()?;
        if let Some(deadline) = self.settings.deadline {
            let left_ms = deadline.saturating_sub(lag).as_millis() as u64;
            request.headers_mut().insert(DEADLINE_HEADER, HeaderValue::from(left_ms));
        }
        Some(request)
    }

    async fn answer(&self, request: Request) -> Outcome {
        let response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Outcome::Failed(Failure::Connect),
            Err(_) => return Outcome::Failed(Failure::Transport),
        };
        let status = response.status();
        let body = match client::read_answer(response, self.settings.answer_bytes_max).await {
            Ok(Some(body)) => body,
            Ok(None) => return Outcome::Failed(Failure::AnswerTooLarge),
            Err(_) => return Outcome::Failed(Failure::Transport),
        };
        match status {
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Shed,
            status if status.is_success() => Outcome::Ok { model: model(&body) },
            status => Outcome::Failed(Failure::Status(status.as_u16())),
        }
    }
}

impl Exchange for Target {
    async fn exchange(&self, index: u64, lag: Duration) -> Outcome {
        let Some(request) = self.request(index, lag) else {
            return Outcome::Failed(Failure::Transport);
        };
        tokio::time::timeout(self.settings.timeout, self.answer(request))
            .await
            .unwrap_or(Outcome::Failed(Failure::Timeout))
    }
}

/// The network that an answer names.
fn model(body: &[u8]) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        // The second is what the Open Inference Protocol calls it.
        #[serde(borrow, alias = "model_name")]
        model: Cow<'a, str>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    Some(named.model.chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_is_asked_for_predict() {
        for (text, expected) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/predict"),
            ("http://h/", "http://h/predict"),
            ("http://h?top_k=1", "http://h/predict?top_k=1"),
            ("https://h/v2/models/m/infer", "https://h/v2/models/m/infer"),
        ] {
            assert_eq!(url(text).unwrap().as_str(), expected);
        }
        for text in ["", "127.0.0.1:8080", "localhost:8080", "ftp://h/", "/predict"] {
            assert!(url(text).unwrap_err().contains("http://127.0.0.1:8080"), "{text}");
        }
    }

    #[test]
    fn the_model_is_read_from_what_the_answer_says() {
        assert_eq!(model(br#"{"predictions":[],"model":"a\"b"}"#).as_deref(), Some("a\"b"));
        assert_eq!(model(br#"{"model_name":"m","outputs":[]}"#).as_deref(), Some("m"));
        for text in [&b"{}"[..], b"hello", b"", br#"{"model":5}"#, b"\xff"] {
            assert_eq!(model(text), None);
        }
    }

    fn target(deadline_ms: Option<u64>) -> Target {
        let photo = |text: &'static str| Photo { bytes: text.into(), media_type: "image/png" };
        let settings = Settings {
            url: url("http://127.0.0.1:1").unwrap(),
            timeout: Duration::from_secs(1),
            deadline: deadline_ms.map(Duration::from_millis),
            answer_bytes_max: 10,
            connections_max: 1,
        };
        Target::new(settings, vec![photo("a"), photo("b")]).unwrap()
    }

    #[test]
    fn photos_go_round_and_the_deadline_counts_from_the_scheduled_instant() {
        let target = target(Some(500));
        for (index, lag_ms, body, left_ms) in [(0, 0, "a", "500"), (1, 20, "b", "480"), (2, 600, "a", "0")] {
            let request = target.request(index, Duration::from_millis(lag_ms)).unwrap();
            assert_eq!(request.body().unwrap().as_bytes(), Some(body.as_bytes()));
            assert_eq!(request.headers()[DEADLINE_HEADER], left_ms);
            assert_eq!(request.headers()[header::CONTENT_TYPE], "image/png");
        }
    }

    #[test]
    fn without_a_deadline_the_target_is_told_none() {
        let request = target(None).request(0, Duration::ZERO).unwrap();
        assert!(!request.headers().contains_key(DEADLINE_HEADER));
    }
}
