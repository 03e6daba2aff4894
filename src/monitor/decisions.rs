//! Hands the autoscaler's latest decisions on to the live page, which may speak to its own origin only.
//!
//! **Invariant**: an answer is at most `bytes_max` long, came within the time-out, and is an object with a
//! list of decisions.
use crate::net::client;
use crate::net::error::ApiError;
use anyhow::Context as _;
use http::StatusCode;
use reqwest::Url;
use serde_json::{Value, json};
use std::time::Duration;

/// The autoscaler whose decisions are shown, if there is one.
#[derive(Debug)]
pub(super) struct Decisions {
    upstream: Option<(reqwest::Client, Url)>,
    bytes_max: usize,
}

impl Decisions {
    /// Decisions of the autoscaler at `base`.
    pub(super) fn new(base: Option<&Url>, timeout: Duration, bytes_max: usize) -> anyhow::Result<Self> {
        let upstream = base.map(|base| {
            // A base may end in a path of its own: http://host/scaler -> http://host/scaler/decisions.
            let mut url = base.clone();
            url.set_path(&format!("{}/decisions", base.path().trim_end_matches('/')));
            let client = client::builder().timeout(timeout).build();
            client.map(|client| (client, url)).context("cannot make the client for --decisions")
        });
        Ok(Self { upstream: upstream.transpose()?, bytes_max })
    }

    /// The autoscaler's answer to `GET /decisions`; an empty list when none is configured.
    pub(super) async fn fetch(&self) -> Result<Value, ApiError> {
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
