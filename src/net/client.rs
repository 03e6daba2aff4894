//! The HTTP client every mode uses to speak to another.
use super::names::Names;
use bytes::{Bytes, BytesMut};
use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

/// Makes ring the process's TLS provider; harmless to call again.
pub fn install_tls() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that a provider is there already, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A pooled client whose whole exchanges take at most `timeout`.
///
/// It follows no proxy settings: its peers are named by the operator.
pub fn client(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    builder().timeout(timeout).build()
}

/// What clients of the operator's own peers have in common; callers add their own time-outs.
pub fn builder() -> reqwest::ClientBuilder {
    common().connect_timeout(Duration::from_secs(2)).no_proxy()
}

/// A client of a server on the web, which follows the proxy settings of the environment (`HTTPS_PROXY` and the
/// like), unless the server is on this machine.
pub fn of_the_web(url: &str, timeout: Duration) -> reqwest::Result<reqwest::Client> {
    let local = reqwest::Url::parse(url).ok().is_some_and(|url| {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    let client = common().connect_timeout(timeout.min(Duration::from_secs(15))).timeout(timeout);
    if local { client.no_proxy().build() } else { client.build() }
}

fn common() -> reqwest::ClientBuilder {
    install_tls();
    let name = concat!("elastic/", env!("CARGO_PKG_VERSION"));
    reqwest::Client::builder().user_agent(name).tcp_nodelay(true).dns_resolver(Names)
}

/// Checks a base URL and cuts the slash at its end: `http://host:port`.
pub fn base_url(text: &str) -> anyhow::Result<String> {
    let url = reqwest::Url::parse(text)
        .map_err(|error| anyhow::anyhow!("{text:?} is no URL ({error}); write http://HOST:PORT"))?;
    anyhow::ensure!(
        matches!(url.scheme(), "http" | "https") && url.has_host(),
        "{text:?} is no base URL; write http://HOST:PORT"
    );
    Ok(text.trim_end_matches('/').to_owned())
}

/// Reads an answer's body; `None` when it is larger than `bytes_max`, of which no more is held than that.
pub async fn read_answer(mut answer: reqwest::Response, bytes_max: usize) -> reqwest::Result<Option<Bytes>> {
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}
