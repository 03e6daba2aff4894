//! A name server on loopback, over UDP and TCP, and what a look-up makes of its answers.
use super::*;
use hickory_resolver::config::NameServerConfig;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record};
use hickory_resolver::system_conf::parse_resolv_conf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// As the kubelet writes it.
const POD: &str = "search elastic.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n";

/// What the server answers.
#[derive(Clone)]
enum Reply {
    Addresses(Vec<IpAddr>),
    Code(ResponseCode),
    Silence,
}

type Answers = dyn Fn(&str) -> Reply + Send + Sync;

struct Server {
    port: u16,
    /// `udp A monitor.svc.`, in the order in which they came.
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answers: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let answers: Arc<Answers> = Arc::new(answers);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        let (asked_udp, answers_udp) = (asked.clone(), answers.clone());
        tasks.spawn(async move {
            let mut datagram = [0; 1500];
            loop {
                let (length, from) = udp.recv_from(&mut datagram).await.unwrap();
                if let Some(reply) = answer(&datagram[..length], "udp", &asked_udp, &*answers_udp) {
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        let asked_tcp = asked.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(length)];
                    stream.read_exact(&mut query).await.unwrap();
                    if let Some(reply) = answer(&query, "tcp", &asked_tcp, &*answers) {
                        stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&reply).await.unwrap();
                    }
                }
            }
        });
        Self { port, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup();
        asked
    }

    fn source(&self, hosts: &str, resolv_conf: &str) -> Source {
        let servers = parse_resolv_conf(resolv_conf).map(|(config, options)| {
            let at_port = |server: &NameServerConfig| {
                let mut server = server.clone();
                server.connections.iter_mut().for_each(|connection| connection.port = self.port);
                server
            };
            let servers = config.name_servers().iter().map(at_port).collect();
            (ResolverConfig::from_parts(None, config.search().to_vec(), servers), options)
        });
        let mut listed = Hosts::default();
        listed.read_hosts_conf(hosts.as_bytes()).unwrap();
        Source { hosts: listed, servers }
    }
}

fn answer(query: &[u8], over: &str, asked: &Mutex<Vec<String>>, answers: &Answers) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries[0].clone();
    let (name, kind) = (question.name().clone(), question.query_type());
    let text = format!("{over} {kind} {name}");
    asked.lock().unwrap().push(text.clone());
    let mut reply = query.into_response();
    match answers(&text) {
        Reply::Silence => return None,
        Reply::Code(code) => reply.metadata.response_code = code,
        Reply::Addresses(addresses) => {
            let wanted = addresses.into_iter().filter(|address| address.is_ipv4() == (kind == RecordType::A));
            reply.insert_answers(
                wanted.map(|address| Record::from_rdata(name.clone(), 5, RData::from(address))).collect(),
            );
        }
    }
    let bytes = reply.to_vec().unwrap();
    if over == "udp" && bytes.len() > 512 {
        reply.answers.clear();
        reply.metadata.truncation = true;
        return Some(reply.to_vec().unwrap());
    }
    Some(bytes)
}

/// A server that knows some names with their addresses, and says of all others that they do not exist.
fn zone(known: &'static [(&'static str, &'static [&'static str])]) -> impl Fn(&str) -> Reply + Send + Sync {
    move |asked| {
        let name = asked.rsplit(' ').next().unwrap();
        known.iter().find(|(known, _)| *known == name).map_or(
            Reply::Code(ResponseCode::NXDomain),
            |(_, addresses)| {
                Reply::Addresses(addresses.iter().map(|address| address.parse().unwrap()).collect())
            },
        )
    }
}

async fn look_up(server: &Server, host: &str) -> std::io::Result<Vec<String>> {
    let found = server.source("", POD).look_up(host).await?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn an_address_is_what_it_says() {
    for (host, address) in
        [("192.0.2.7", "192.0.2.7:80"), ("::1", "[::1]:80"), ("[2001:db8::1]", "[2001:db8::1]:80")]
    {
        assert_eq!(addresses(host, 80).await.unwrap(), [address.parse().unwrap()]);
    }
    assert_eq!(resolve("[::1]:8081").await.unwrap(), ["[::1]:8081".parse().unwrap()]);
    for wrong in ["monitor", ":80", "monitor:http", "monitor:70000"] {
        assert_eq!(resolve(wrong).await.unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong}");
    }
}

#[tokio::test]
async fn the_hosts_file_comes_before_any_server() {
    let server = Server::start(zone(&[("listed.elastic.svc.cluster.local.", &["192.0.2.1"])])).await;
    let source = server.source("203.0.113.9 listed other\n# 203.0.113.1 listed\n203.0.113.10 listed\n", POD);
    let found = source.look_up("listed").await.unwrap();
    assert_eq!(found, [IpAddr::from([203, 0, 113, 9]), IpAddr::from([203, 0, 113, 10])]);
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn localhost_needs_neither_file_nor_server() {
    let server = Server::start(zone(&[])).await;
    let found = server.source("", "").look_up("localhost").await.unwrap();
    assert_eq!(found, [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    let error = server.source("", "").look_up("monitor").await.unwrap_err();
    assert!(
        error.to_string().starts_with("monitor is not in /etc/hosts, and /etc/resolv.conf names no"),
        "{error}"
    );
}

#[tokio::test]
async fn names_of_a_cluster_are_completed_from_the_search_list() {
    let known = zone(&[
        ("monitor.elastic.svc.cluster.local.", &["10.96.0.7"]),
        ("dns.kube-system.svc.cluster.local.", &["10.96.0.10"]),
        ("kubernetes.default.svc.cluster.local.", &["10.96.0.1"]),
        ("example.test.", &["192.0.2.7"]),
    ]);
    let server = Server::start(known).await;
    assert_eq!(look_up(&server, "monitor").await.unwrap(), ["10.96.0.7"]);
    let mut asked = server.asked();
    asked.sort();
    assert_eq!(
        asked,
        ["udp A monitor.elastic.svc.cluster.local.", "udp AAAA monitor.elastic.svc.cluster.local."],
        "the first of the list is it: nothing else is asked"
    );
    assert_eq!(look_up(&server, "dns.kube-system").await.unwrap(), ["10.96.0.10"]);
    assert_eq!(look_up(&server, "kubernetes.default.svc").await.unwrap(), ["10.96.0.1"]);
    assert_eq!(look_up(&server, "monitor.elastic.svc.cluster.local").await.unwrap(), ["10.96.0.7"]);
    assert_eq!(look_up(&server, "example.test").await.unwrap(), ["192.0.2.7"]);
    assert_eq!(look_up(&server, "example.test.").await.unwrap(), ["192.0.2.7"]);
}

#[tokio::test]
async fn a_name_with_enough_dots_is_asked_for_as_it_is_first() {
    let server =
        Server::start(zone(&[("a.b.", &["192.0.2.1"]), ("a.b.elastic.svc.cluster.local.", &["192.0.2.2"])]))
            .await;
    for (ndots, address) in [(1, "192.0.2.1"), (2, "192.0.2.2")] {
        let source = server.source("", &POD.replace("ndots:5", &format!("ndots:{ndots}")));
        assert_eq!(
            source.look_up("a.b").await.unwrap(),
            [address.parse::<IpAddr>().unwrap()],
            "ndots:{ndots}"
        );
    }
}

#[tokio::test]
async fn all_addresses_of_both_kinds_are_found() {
    let server = Server::start(zone(&[
        ("model.elastic.svc.cluster.local.", &["10.1.0.1", "fd00::1", "10.1.0.2"]),
        ("six.elastic.svc.cluster.local.", &["fd00::6"]),
    ]))
    .await;
    let mut found = look_up(&server, "model").await.unwrap();
    assert_eq!(found.pop().unwrap(), "fd00::1", "IPv6 comes last");
    found.sort();
    assert_eq!(found, ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(look_up(&server, "six").await.unwrap(), ["fd00::6"]);
}

#[tokio::test]
async fn an_answer_too_large_for_a_datagram_comes_over_tcp() {
    let many = |_: &str| Reply::Addresses((0..100).map(|last| IpAddr::from([10, 1, 0, last])).collect());
    let server = Server::start(many).await;
    assert_eq!(look_up(&server, "model").await.unwrap().len(), 100);
    assert!(
        server.asked().contains(&"tcp A model.elastic.svc.cluster.local.".to_owned()),
        "{:?}",
        server.asked()
    );
}

#[tokio::test]
async fn a_name_that_nobody_has_is_not_found() {
    let server = Server::start(zone(&[])).await;
    let error = look_up(&server, "nobody").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "no host has the name nobody")
    );
    assert!(
        server.asked().iter().any(|asked| asked.ends_with(" nobody.")),
        "as it is, last: {:?}",
        server.asked()
    );
}

#[tokio::test]
async fn a_domain_whose_server_fails_does_not_hide_the_next() {
    let known = zone(&[("monitor.svc.cluster.local.", &["10.96.0.7"])]);
    let server = Server::start(move |asked| {
        if asked.contains(".elastic.") { Reply::Code(ResponseCode::ServFail) } else { known(asked) }
    })
    .await;
    assert_eq!(look_up(&server, "monitor").await.unwrap(), ["10.96.0.7"]);
    let error = look_up(&server, "nobody").await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "nobody knows whether it exists: {error}");
    assert!(error.to_string().starts_with("cannot resolve nobody now"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_and_no_other_name_taken_instead() {
    let known = zone(&[("monitor.svc.cluster.local.", &["192.0.2.66"])]);
    let server =
        Server::start(move |asked| if asked.contains(".elastic.") { Reply::Silence } else { known(asked) })
            .await;
    let start = Instant::now();
    let error = look_up(&server, "monitor").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(start.elapsed() < LOOKUP_TIMEOUT, "{:?}", start.elapsed());
    assert!(server.asked().iter().all(|asked| asked.contains(".elastic.")), "{:?}", server.asked());
}

#[tokio::test(start_paused = true)]
async fn a_datagram_that_is_lost_is_sent_again() {
    let lost = Mutex::new(0);
    let server = Server::start(move |_| {
        let mut lost = lost.lock().unwrap();
        *lost += 1;
        if *lost <= 2 { Reply::Silence } else { Reply::Addresses(vec![IpAddr::from([10, 96, 0, 7])]) }
    })
    .await;
    let start = Instant::now();
    assert_eq!(look_up(&server, "monitor").await.unwrap(), ["10.96.0.7"]);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "well within a caller's two seconds: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_second_server_stands_in_for_the_first() {
    let server = Server::start(zone(&[("monitor.elastic.svc.cluster.local.", &["10.96.0.7"])])).await;
    // Nobody listens at 127.0.0.9.
    let conf = POD.replace("nameserver 127.0.0.1\n", "nameserver 127.0.0.9\nnameserver 127.0.0.1\n");
    assert_eq!(server.source("", &conf).look_up("monitor").await.unwrap(), [IpAddr::from([10, 96, 0, 7])]);
}
