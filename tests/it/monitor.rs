//! The monitor beside a dispatcher that outlives it.
use crate::dispatch::{dispatcher, predict, replica};
use crate::support::{Running, client};
use elastic::monitor::{self, Config};
use elastic::net::wire::Stats;
use tokio::net::TcpListener;

async fn stats(url: &str) -> Stats {
    client().get(format!("{url}/stats")).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_monitor_that_is_started_again_loses_its_window_and_nothing_else() {
    let (replica, _arrived) = replica("r", 1000);
    let replica = replica.start().await;
    let before = Running::start(|listener, shutdown| async move {
        monitor::serve(listener, Config::default(), shutdown).await.unwrap();
    })
    .await;
    let url = before.url.clone();
    let door = dispatcher(&["--report-interval", "10ms"], &[&replica.url], Some(&url)).await;
    assert_eq!(predict(&door.url, "x").await.status().as_u16(), 200);
    while stats(&url).await.samples < 1 {}
    before.stop().await;

    // Requests are answered as if nothing had happened.
    for _ in 0..3 {
        assert_eq!(predict(&door.url, "x").await.status().as_u16(), 200);
    }
    let listener = TcpListener::bind(url.strip_prefix("http://").unwrap()).await.unwrap();
    let shutdown = elastic::net::shutdown::Shutdown::new();
    let serving = monitor::serve(listener, Config::default(), shutdown.clone());
    let looking = async {
        while stats(&url).await.samples < 3 {}
        let told = stats(&url).await;
        assert_eq!((told.samples, told.shed, told.errors, told.lost), (3, 0, 0, 0));
        assert_eq!((told.slots, told.replicas.len(), told.epoch), (1, 1, 1));
        assert_eq!(predict(&door.url, "x").await.status().as_u16(), 200);
        while stats(&url).await.samples < 4 {}
        shutdown.drain();
    };
    let (served, ()) = tokio::join!(serving, looking);
    served.unwrap();
}
