//! Exchanges with one replica over kept HTTP/1.1 connections.
//!
//! A connection has no task of its own: whoever has an exchange on it drives it, so that a request passes the
//! dispatcher without a change of task.
//!
//! **Invariant**: a connection carries one exchange at a time and is kept only after a whole answer; an answer is
//! read whole before any of it is passed on, so that a replica that dies in the middle of it can be replaced.
use crate::net::names;
use crate::net::pieces::Pieces;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a connection is kept idle: well less than a replica keeps it, since a request sent into the closing
/// looks like a replica that broke off.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept to one replica. More are only ever open when more requests are under way.
const IDLE_MAX: usize = 256;

/// Headers that concern one connection alone (RFC 9110, section 7.6.1), and those that each side makes itself.
const HOP_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
];

/// Removes what is not for the next hop.
pub(super) fn end_to_end(headers: &mut HeaderMap) {
    // Headers that the connection header names are of the connection too.
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        for name in named.to_str().unwrap_or("").split(',') {
            headers.remove(name.trim());
        }
    }
    for name in &HOP_HEADERS {
        headers.remove(name);
    }
}

/// A replica's address and the idle connections to it.
pub(super) struct Upstream {
    /// `host:port`.
    authority: String,
    host: HeaderValue,
    /// Stands before every path; empty for most.
    base_path: String,
    connect_timeout: Duration,
    idle: Mutex<Vec<Connection>>,
}

/// A whole answer.
pub(super) type Answer = Response<Pieces>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The base URL is none for HTTP.
    #[error("the replica's address cannot be used: {0}")]
    Address(String),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke.
    #[error("the connection broke: {}", causes(.0))]
    Broken(#[from] hyper::Error),
    /// The answer is larger than allowed.
    #[error("the replica's answer is larger than --answer-bytes-max")]
    TooLarge,
}

/// A whole chain of causes; hyper's own text names only the kind.
fn causes(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Upstream {
    /// The replica at an http base URL.
    pub(super) fn new(url: &str, connect_timeout: Duration) -> Result<Self, ExchangeError> {
        let wrong = |why: &str| ExchangeError::Address(format!("{url}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("replicas are reached over plain http"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("it names no host"))?;
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        let base_path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { authority, host, base_path, connect_timeout, idle: Mutex::default() })
    }

    /// Sends a request, whose URI is a path and a query, and reads the whole answer.
    ///
    /// A kept connection may have been closed by the replica just now: then the request is made and sent once more on a
    /// new one, which is no failure of the replica.
    pub(super) async fn exchange(
        &self,
        request: impl Fn() -> Request<Pieces>,
        answer_bytes_max: usize,
    ) -> Result<Answer, ExchangeError> {
        if let Some(mut kept) = self.take() {
            match kept.exchange(self.addressed(request())?, answer_bytes_max).await {
                Err(ExchangeError::Broken(_)) => {}
                ended => return self.keep(kept, ended),
            }
        }
        let mut connection = self.connect().await?;
        let ended = connection.exchange(self.addressed(request())?, answer_bytes_max).await;
        self.keep(connection, ended)
    }

    fn addressed(&self, mut request: Request<Pieces>) -> Result<Request<Pieces>, ExchangeError> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        if !self.base_path.is_empty() {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let uri = format!("{}{path}", self.base_path).parse();
            *request.uri_mut() =
                uri.map_err(|_| ExchangeError::Address("its path cannot be joined".to_owned()))?;
        }
        Ok(request)
    }

    async fn connect(&self) -> Result<Connection, ExchangeError> {
        let stream = tokio::time::timeout(self.connect_timeout, names::connect(&self.authority))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, driver, idle_since: Instant::now() })
    }

    /// An idle connection that is still open.
    fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.is_usable() {
                return Some(connection);
            }
        }
    }

    fn keep(
        &self,
        mut connection: Connection,
        ended: Result<Answer, ExchangeError>,
    ) -> Result<Answer, ExchangeError> {
        let answer = ended?;
        connection.idle_since = Instant::now();
        let mut idle = self.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Connection {
    sender: SendRequest<Pieces>,
    driver: http1::Connection<TokioIo<TcpStream>, Pieces>,
    idle_since: Instant,
}

impl Connection {
    /// Whether it can carry an exchange: it was not closed, and has not been idle for too long.
    fn is_usable(&mut self) -> bool {
        // The last exchange's end, or the replica's closing, may not have been taken in yet.
        let driven = Pin::new(&mut self.driver).poll(&mut Context::from_waker(Waker::noop()));
        driven.is_pending() && self.sender.is_ready() && self.idle_since.elapsed() < IDLE_TIMEOUT
    }

    async fn exchange(
        &mut self,
        request: Request<Pieces>,
        answer_bytes_max: usize,
    ) -> Result<Answer, ExchangeError> {
        let answer = drive(&mut self.driver, self.sender.send_request(request)).await?;
        let (mut head, mut body) = answer.into_parts();
        let mut pieces = Pieces::default();
        while let Some(piece) = self.next_piece(&mut body).await? {
            if pieces.len() + piece.len() > answer_bytes_max {
                return Err(ExchangeError::TooLarge);
            }
            pieces.push(piece);
        }
        end_to_end(&mut head.headers);
        Ok(Response::from_parts(head, pieces))
    }

    async fn next_piece(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            if body.is_end_stream() {
                return Ok(None);
            }
            let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context).map(Option::transpose));
            match drive(&mut self.driver, frame).await?.map(http_body::Frame::into_data) {
                Some(Ok(data)) => return Ok(Some(data)),
                Some(Err(_)) => {}
                None => return Ok(None),
            }
        }
    }
}

/// Waits for `wanted` and works on the connection meanwhile.
async fn drive<T>(
    driver: &mut http1::Connection<TokioIo<TcpStream>, Pieces>,
    wanted: impl Future<Output = Result<T, hyper::Error>>,
) -> Result<T, hyper::Error> {
    let mut wanted = pin!(wanted);
    poll_fn(|context| {
        if let Poll::Ready(ready) = wanted.as_mut().poll(context) {
            return Poll::Ready(ready);
        }
        match Pin::new(&mut *driver).poll(context) {
            // It may have ended with the very thing that is wanted; and what is wanted knows best why it failed.
            Poll::Pending | Poll::Ready(Ok(())) => wanted.as_mut().poll(context),
            Poll::Ready(Err(error)) => match wanted.as_mut().poll(context) {
                Poll::Pending => Poll::Ready(Err(error)),
                ready @ Poll::Ready(_) => ready,
            },
        }
    })
    .await
}

/// A request without a body.
pub(super) fn get(path: &'static str) -> Request<Pieces> {
    let mut request = Request::new(Pieces::default());
    *request.uri_mut() = Uri::from_static(path);
    request
}

/// Whether a replica that gave this status failed: another might do better.
pub(super) fn is_failure(status: StatusCode) -> bool {
    let answered = [
        StatusCode::NOT_IMPLEMENTED,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
        StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    ];
    status.is_server_error() && !answered.contains(&status)
}
