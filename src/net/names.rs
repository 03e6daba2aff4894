//! Host names to addresses, for every connection that this process opens.
//!
//! The order is that of the C library: an address as it is written, `/etc/hosts`, the name servers of
//! `/etc/resolv.conf` with its `search` and `ndots`. It is not the C library that asks, since its `getaddrinfo` holds a
//! thread for as long as it takes, which is 20 seconds where one name server is silent: neither the caller's time-out nor
//! a shutdown can end it, and callers pile up.
//!
//! **Invariant**: a look-up ends within [`LOOKUP_TIMEOUT`], and at once when it is dropped. Nothing is kept from one to
//! the next: both files are read anew, so that a change counts with the next connection, and callers keep connections.
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest time that a look-up takes, with all names of the search list.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time to wait for one name server, whatever `/etc/resolv.conf` says. A datagram that is lost is sent again
/// several times within it.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of `HOST:PORT`, IPv4 first; never an empty list.
pub async fn resolve(authority: &str) -> std::io::Result<Vec<SocketAddr>> {
    let (host, port) = split(authority)?;
    addresses(host, port).await
}

/// The addresses of a host with a port, IPv4 first; never an empty list.
pub async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = match tokio::time::timeout(LOOKUP_TIMEOUT, Source::of_the_system().look_up(host)).await {
        Ok(found) => found?,
        Err(_) => return Err(no_answer(host)),
    };
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// Connects to `HOST:PORT`, at the first of its addresses that accepts.
pub async fn connect(authority: &str) -> std::io::Result<TcpStream> {
    // The way of nearly every connection: replicas are known by their addresses.
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return TcpStream::connect(address).await;
    }
    TcpStream::connect(&*resolve(authority).await?).await
}

fn split(authority: &str) -> std::io::Result<(&str, u16)> {
    authority
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("{authority:?} is not HOST:PORT")))
}

/// Resolves for reqwest's clients.
#[derive(Clone, Copy, Debug)]
pub struct Names;

impl reqwest::dns::Resolve for Names {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            // Port 0 is reqwest's sign for the port of the URL.
            let found = addresses(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// Where names come from.
struct Source {
    hosts: Hosts,
    servers: Result<(ResolverConfig, ResolverOpts), NetError>,
}

impl Source {
    fn of_the_system() -> Self {
        Self {
            // Without the file there are no such names.
            hosts: Hosts::from_system().unwrap_or_default(),
            servers: hickory_resolver::system_conf::read_system_conf(),
        }
    }

    async fn look_up(self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        let name = Name::from_utf8(host).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("{host:?} is no host name: {error}"))
        })?;
        let listed = self.listed(&name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        if name.is_localhost() {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let (config, options) = self.servers.map_err(|error| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "{host} is not in /etc/hosts, and /etc/resolv.conf names no DNS server to ask ({error})"
                ),
            )
        })?;
        let candidates = candidates(&name, &config, options.ndots);
        let resolver =
            stub(config, options).map_err(|error| Error::other(format!("cannot resolve {host}: {error}")))?;
        let mut refusal = None;
        for candidate in candidates {
            match ask(&resolver, candidate).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                // A server that cannot say is no reason to leave the rest of the list out: another domain of it may
                // be another server's.
                Err(NetError::Dns(error)) => refusal = Some(error),
                // But one that is silent may have known this very name; the next in the list could be somebody else.
                Err(NetError::Timeout) => return Err(no_answer(host)),
                Err(error) => return Err(Error::other(format!("cannot resolve {host}: {error}"))),
            }
        }
        Err(match refusal {
            Some(error) => Error::other(format!("cannot resolve {host} now: {error}")),
            None => Error::new(ErrorKind::NotFound, format!("no host has the name {host}")),
        })
    }

    /// What the hosts file says.
    fn listed(&self, name: &Name) -> Vec<IpAddr> {
        [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|found| {
                found.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// The whole names to ask for, in turn: with the domains of the search list, and as it is; the latter first where the
/// name has as many dots as `ndots`.
fn candidates(name: &Name, config: &ResolverConfig, dots_min: usize) -> Vec<Name> {
    let mut whole = name.clone();
    whole.set_fqdn(true);
    if name.is_fqdn() {
        return vec![whole];
    }
    // A domain with which the name would be too long is left out.
    let mut names: Vec<Name> =
        config.search().iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
    let place = if usize::from(name.num_labels()) > dots_min { 0 } else { names.len() };
    names.insert(place, whole);
    names
}

/// Asks the servers for one whole name, and nothing else.
fn stub(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
    // Within the time-out a datagram is sent again anyway.
    options.attempts = options.attempts.saturating_sub(1).min(1);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// The addresses of a whole name; an empty list when it has none or does not exist.
async fn ask(resolver: &TokioResolver, name: Name) -> Result<Vec<IpAddr>, NetError> {
    let (four, six) =
        tokio::join!(resolver.lookup(name.clone(), RecordType::A), resolver.lookup(name, RecordType::AAAA));
    let mut found = Vec::new();
    let mut failure = None;
    for answer in [four, six] {
        match answer {
            Ok(answer) => found.extend(answer.answers().iter().filter_map(|record| record.data.ip_addr())),
            Err(NetError::Dns(DnsError::NoRecordsFound(_))) => {}
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn no_answer(host: &str) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!("no DNS server of /etc/resolv.conf answered in time when asked for {host}"),
    )
}

#[cfg(test)]
mod tests;
