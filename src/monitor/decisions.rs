//! Hands the autoscaler's latest decisions on to the live page, which may speak to its own origin only.
//!
//! **Invariant**: the autoscaler is asked at most once in `age_max`, however many readers there are. Its answer is
//! at most `bytes_max` long, came within the time-out, and is an object with a list of decisions.
use crate::monitor::Config;
use crate::net::client;
use crate::net::error::ApiError;
use anyhow::Context as _;
use http::StatusCode;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The autoscaler whose decisions are shown, if there is one.
#[derive(Debug)]
pub(super) struct Decisions {
    upstream: Option<(reqwest::Client, Url)>,
    bytes_max: usize,
    age_max: Duration,
    told: Mutex<Option<Told>>,
}

/// What the autoscaler told, or why it told nothing.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// When.
    pub(super) at: Instant,
    /// Its answer to `GET /decisions`.
    pub(super) answer: Result<Arc<Value>, ApiError>,
}

/// A decision as the live page draws it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// When, seconds since the monitor's start; negative when it was before.
    #[serde(default)]
    pub t_s: f64,
    /// When, seconds since the Unix epoch, by the autoscaler's clock.
    pub at_unix_s: f64,
    /// How many replicas there were to be until then.
    pub replicas_before: u32,
    /// How many there are to be.
    pub replicas: u32,
    /// Why.
    pub reason: String,
    /// Whether it was carried out.
    pub applied: bool,
    #[serde(skip_serializing, default)]
    age_s: f64,
}

impl Decisions {
    /// The decisions of the autoscaler that `config` names.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let upstream = config.decisions.as_ref().map(|base| {
            // A base may end in a path of its own: http://host/scaler -> http://host/scaler/decisions.
            let mut url = base.clone();
            url.set_path(&format!("{}/decisions", base.path().trim_end_matches('/')));
            let client = client::builder().timeout(config.decisions_timeout).build();
            client.map(|client| (client, url)).context("cannot make the client for --decisions")
        });
        Ok(Self {
            upstream: upstream.transpose()?,
            bytes_max: config.decisions_bytes_max,
            age_max: config.decisions_interval,
            told: Mutex::new(None),
        })
    }

    /// The autoscaler's answer to `GET /decisions`, of now or a moment ago; an empty list when none is configured.
    ///
    /// Readers at the same moment wait for one answer. An error is kept as long as an answer, so that an
    /// autoscaler in trouble is not asked more often.
    pub(super) async fn latest(&self) -> Told {
        let mut told = self.told.lock().await;
        if let Some(told) = told.as_ref().filter(|told| told.at.elapsed() < self.age_max) {
            return told.clone();
        }
        let answer = self.fetch().await.map(Arc::new);
        let latest = Told { at: Instant::now(), answer };
        *told = Some(latest.clone());
        latest
    }

    async fn fetch(&self) -> Result<Value, ApiError> {
        let Some((client, url)) = &self.upstream else { return Ok(json!({ "decisions": [] })) };
        let failed =
            |why: String| ApiError::new(StatusCode::BAD_GATEWAY, format!("no decisions from {url}: {why}"));
        let answer = client.get(url.clone()).send().await.and_then(reqwest::Response::error_for_status);
        let unread = |error: reqwest::Error| failed(error.without_url().to_string());
        let body = client::read_answer(answer.map_err(unread)?, self.bytes_max).await.map_err(unread)?;
        let too_large = || failed(format!("the answer is larger than {} bytes", self.bytes_max));
        let body = body.ok_or_else(too_large)?;
        let value: Value =
            serde_json::from_slice(&body).map_err(|error| failed(format!("it is no JSON: {error}")))?;
        if value.get("decisions").is_some_and(Value::is_array) {
            Ok(value)
        } else {
            Err(failed("it has no list of decisions".to_owned()))
        }
    }
}

impl Told {
    /// The decisions after a Unix time, by the time since `started`; those that do not read as one are left out.
    pub(super) fn after(&self, after_unix_s: f64, started: Instant) -> Vec<Decided> {
        let told_s = self.at.saturating_duration_since(started).as_secs_f64();
        let list = self.answer.as_ref().ok().and_then(|answer| answer["decisions"].as_array());
        let decided = list.into_iter().flatten().filter_map(|value| Decided::deserialize(value).ok());
        decided
            .filter(|decided| decided.at_unix_s > after_unix_s)
            .map(|decided| Decided { t_s: told_s - decided.age_s, ..decided })
            .collect()
    }
}
