//! A bounded HTTP server, HTTP/1.1 and HTTP/2 without TLS (h2c with prior knowledge): takes a bound listener, a
//! router and a shutdown.
//!
//! **Invariant**: at most `connections_max` connections are open, and none may take longer than
//! `header_timeout` to send a request's head. Bodies are the handlers' business ([`read_body`]).
use crate::net::error::ApiError;
use crate::net::names;
use crate::net::pieces::Pieces;
use crate::net::shutdown::Shutdown;
use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CONNECTIONS_MAX: u32 = 16_384;
const STREAMS_MAX: u32 = 250;
/// Connections that the kernel holds before they are accepted: a burst of new clients must not wait for their second
/// SYN. The kernel cuts it to its own limit (net.core.somaxconn).
const BACKLOG: u32 = 4096;
/// How an HTTP/2 connection begins (RFC 9113, section 3.4); no HTTP/1.1 method does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest head of a request, bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Limits on the connections of one listener.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Limits {
    /// Connections open at once; further ones wait in the kernel's queue
    #[arg(long, env = "ELASTIC_CONNECTIONS_MAX", default_value_t = CONNECTIONS_MAX, value_name = "N")]
    pub connections_max: u32,
    /// Requests under way at once on one HTTP/2 connection
    #[arg(long, env = "ELASTIC_STREAMS_MAX", default_value_t = STREAMS_MAX, value_name = "N")]
    pub streams_max: u32,
    /// Longest time a client may take to send a request's head (also closes idle connections)
    #[arg(long, env = "ELASTIC_HEADER_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub header_timeout: Duration,
    /// Time for which all is served on once the mode was asked to stop and says that it is not ready: give those who
    /// look up endpoints time to see it
    #[arg(long, env = "ELASTIC_DRAIN_DELAY", default_value = "0s", value_parser = duration, value_name = "TIME")]
    pub drain_delay: Duration,
    /// Longest time that answers under way may take after that
    #[arg(long, env = "ELASTIC_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            streams_max: STREAMS_MAX,
            header_timeout: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Parses a duration as people write it: `250ms`, `1.5s`, `2m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit_s = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => {
            return Err(format!(
                "{text:?} is no duration: write a number and us, ms, s, m or h, as in 250ms"
            ));
        }
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not start with a number"))?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|_| format!("{text:?} is too long"))
}

/// Lets this process open as many connections as the system allows it, not as many as it is given at first.
pub fn raise_open_files_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files_max) => tracing::debug!(files_max, "limit on open files"),
        Err(error) => tracing::debug!(%error, "the limit on open files stays as it is"),
    }
}

/// Binds `host:port`; port 0 takes a free one. `::` takes IPv4 as well, and IPv4 alone where there is no IPv6.
pub async fn bind(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let listener = async {
        let mut refused = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        for address in names::addresses(host, port).await? {
            match listen(address) {
                Ok(listener) => return Ok(listener),
                Err(error) => refused = error,
            }
        }
        // A kernel without IPv6 cannot even make the socket.
        if host == "::" && refused.kind() != std::io::ErrorKind::AddrInUse {
            return listen((std::net::Ipv4Addr::UNSPECIFIED, port).into());
        }
        Err(refused)
    };
    listener.await.with_context(|| {
        format!("cannot listen on {host}:{port}; is another process using the port? --port picks another")
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for the connections of before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The URL under which a listener can be reached from this machine.
pub fn local_url(listener: &TcpListener) -> std::io::Result<String> {
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(format!("http://{address}"))
}

/// Serves `router` until `shutdown` drains, then finishes the answers under way within `drain_timeout`.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown) {
    serve_with(listener, TowerToHyperService::new(router), limits, shutdown).await;
}

/// What answers requests; a router is one.
pub trait Answers: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> {}

impl<S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>> Answers for S {}

/// [`serve`] for what is no router.
pub async fn serve_with<S>(listener: TcpListener, service: S, limits: Limits, shutdown: Shutdown)
where
    S: Answers + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.connections_max as usize));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.drained() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: give the open connections time to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (service, watcher) = (service.clone(), graceful.watcher());
        let waiting_ends = shutdown.drained();
        connections.spawn(async move {
            // One that says nothing costs no more than its socket.
            let is_http2 = tokio::select! {
                spoke = tokio::time::timeout(limits.header_timeout, speaks_http2(&stream)) => spoke,
                () = waiting_ends => return,
            };
            if let Ok(Ok(is_http2)) = is_http2 {
                // Boxed, so that a connection that says nothing stays small.
                let ended = if is_http2 {
                    Box::pin(http2(stream, service, &limits, watcher)).await
                } else {
                    Box::pin(http1(stream, service, &limits, watcher)).await
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                }
            }
            drop(slot);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(limits.drain_timeout) => {
            tracing::warn!(connections = connections.len(), "drain time-out: closing connections");
        }
        () = shutdown.aborted() => {}
    }
}

/// Looks at the first bytes without taking them. An error means that the client closed the connection.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut begin = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut begin).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if begin[..read] != PREFACE[..read] {
            return Ok(false);
        }
        if read == PREFACE.len() {
            return Ok(true);
        }
        // A part of it, as one packet hardly ever is: what was looked at cannot be awaited a second time.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn http1<S>(stream: TcpStream, service: S, limits: &Limits, watcher: Watcher) -> hyper::Result<()>
where
    S: Answers + Send,
    S::Future: Send + 'static,
{
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        // Answers are small: one copy costs less than a second buffer in the system call.
        .writev(false);
    watcher.watch(server.serve_connection(TokioIo::new(stream), service)).await
}

async fn http2<S>(stream: TcpStream, service: S, limits: &Limits, watcher: Watcher) -> hyper::Result<()>
where
    S: Answers + Send,
    S::Future: Send + 'static,
{
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        // A client that is gone without a word is noticed by its silence.
        .keep_alive_interval(limits.header_timeout)
        .keep_alive_timeout(limits.header_timeout);
    watcher.watch(server.serve_connection(TokioIo::new(stream), service)).await
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

/// Reads a whole body of at most `bytes_max`, which must arrive within `timeout`, in one piece.
///
/// Answers 413 above the limit, 408 after the time-out and 400 when the client breaks off.
pub async fn read_body(body: Body, bytes_max: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    read_pieces(body, bytes_max, timeout).await.map(Pieces::into_bytes)
}

/// [`read_body`] without joining the pieces, which copies them.
pub async fn read_pieces<B>(body: B, bytes_max: usize, timeout: Duration) -> Result<Pieces, ApiError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {bytes_max} bytes"));
    // A stated length over the limit is refused before a byte of it is read.
    if http_body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let read = async {
        let mut body = body;
        let mut pieces = Pieces::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad_request("the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if pieces.len() + data.len() > bytes_max {
                return Err(too_large());
            }
            pieces.push(data);
        }
        Ok(pieces)
    };
    tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| {
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {timeout:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, expected_us) in
            [("250ms", 250_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("1h", 3_600_000_000), ("7us", 7)]
        {
            assert_eq!(duration(text), Ok(Duration::from_micros(expected_us)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.2.3s", "99999999999999999999h", "5 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn every_address_takes_in_both_families() {
        let listener = bind("::", 0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // IPv6 alone would leave clusters with IPv4 addresses out.
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let taken = bind("::", port).await.unwrap_err();
        assert!(format!("{taken:#}").contains("is another process using the port?"), "{taken:#}");
    }

    #[tokio::test]
    async fn bodies_are_bounded_in_size_and_time() {
        let whole = read_body(Body::from("four"), 4, Duration::from_secs(1)).await.unwrap();
        assert_eq!(whole, "four");
        let error = read_body(Body::from("five!"), 4, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        let pieces = futures_util::stream::iter(["ab", "cd", "ef"].map(Ok::<_, std::io::Error>));
        let joined = read_body(Body::from_stream(pieces), 6, Duration::from_secs(1)).await.unwrap();
        assert_eq!(joined, "abcdef");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_times_out() {
        let stalled = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let error = read_body(Body::from_stream(stalled), 4, Duration::from_secs(9)).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
    }
}
