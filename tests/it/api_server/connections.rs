//! The listener and the connections, which can be refused, closed and cut.
//!
//! **Invariant**: the port stays the double's own while nothing listens on it: a socket that is bound but does not
//! listen holds it.
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// How the server behaves towards connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Door {
    /// New ones are taken.
    Open,
    /// New ones are refused, kept ones closed as soon as nothing is under way on them.
    Closing,
    /// New ones are refused, kept ones cut.
    Shut,
}

type Order = (Door, oneshot::Sender<()>);

/// The one who opens and closes.
pub(super) struct Connections {
    pub(super) address: SocketAddr,
    orders: mpsc::Sender<Order>,
    _keeper: JoinSet<()>,
}

impl Connections {
    /// Serves `router` on a free port of loopback.
    pub(super) fn start(router: Router) -> Self {
        let hold = socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let address = hold.local_addr().unwrap();
        let listener = listen(address);
        let (orders, received) = mpsc::channel(1);
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            keep(address, listener, router, received).await;
            drop(hold);
        });
        Self { address, orders, _keeper: keeper }
    }

    /// Returns once it is so.
    pub(super) async fn set(&self, door: Door) {
        let (done, is_done) = oneshot::channel();
        self.orders.send((door, done)).await.unwrap();
        is_done.await.unwrap();
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    // The port is bound a second time, to listen on.
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    socket(address).listen(1024).unwrap()
}

async fn keep(address: SocketAddr, listener: TcpListener, router: Router, mut orders: mpsc::Receiver<Order>) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let (mut close, _) = watch::channel(());
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.unwrap().0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            order = orders.recv() => {
                let Some((door, done)) = order else { return };
                match door {
                    Door::Open => {
                        listener.get_or_insert_with(|| listen(address));
                    }
                    Door::Closing => {
                        listener = None;
                        close = watch::channel(()).0;
                    }
                    Door::Shut => {
                        listener = None;
                        connections.shutdown().await;
                    }
                }
                let _ = done.send(());
            }
            Some(_) = connections.join_next() => {}
            stream = accepted => {
                connections.spawn(serve(stream, router.clone(), close.subscribe()));
            }
        }
    }
}

/// Answers the requests of one connection. It closes once `close`, whose sender is dropped then, says so.
async fn serve(stream: TcpStream, router: Router, mut close: watch::Receiver<()>) {
    let _ = stream.set_nodelay(true);
    let server = hyper::server::conn::http1::Builder::new();
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = close.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
