//! The whole way from a small HTTP server on loopback to a weights file, and every way it can fail.
use super::*;
use crate::weights::sample;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Answers every request with the same bytes, headers included, and closes the connection.
struct Server {
    url: String,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(head: String, body: Arc<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, _tasks: tasks }
    }

    /// 200 with the body.
    async fn serving(body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        Self::start(head, Arc::new(body.to_vec())).await
    }
}

fn args(folder: &Path, url: String) -> Args {
    Args {
        dir: folder.join("weights"),
        from: None,
        url,
        sha256_prefix: None,
        timeout: Duration::from_secs(20),
        bytes_max: 64 << 20,
        force: false,
    }
}

/// Runs a fetch that must fail, and sees that it left nothing behind.
async fn failure(args: Args) -> String {
    let folder = args.dir.clone();
    let error = format!("{:#}", run(args).await.unwrap_err());
    let left = std::fs::read_dir(folder).map_or(0, Iterator::count);
    assert_eq!(left, 0, "after: {error}");
    error
}

#[tokio::test]
async fn a_checkpoint_is_downloaded_checked_converted_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (form, checkpoint) in [
        ("pickles", sample::pickles(&sample::unfolded(NETWORK, 21))),
        ("zip", sample::zip(&sample::unfolded(NETWORK, 21))),
    ] {
        let server = Server::serving(&checkpoint).await;
        let name = format!("mobilenet_v2-{}.pth", &convert::sha256(&checkpoint)[..8]);
        let args = args(&folder.path().join(form), format!("{}/models/{name}", server.url));
        run(args.clone()).await.unwrap();
        let file = args.dir.join("mobilenet_v2.safetensors");
        check_file(NETWORK, &file).unwrap();
        let bytes = read_file(&file).unwrap();
        let unfolded = sample::unfolded(NETWORK, 21);
        assert_eq!(weights::parse(&bytes).unwrap(), convert::fold(NETWORK, &unfolded).unwrap());
        drop(server);
        // Now that the weights are there, nobody needs the server; damaged, they are fetched again.
        run(args.clone()).await.unwrap();
        std::fs::write(&file, "damaged").unwrap();
        assert!(format!("{:#}", run(args).await.unwrap_err()).contains("cannot download"));
        assert_eq!(std::fs::read(&file).unwrap(), b"damaged");
    }
}

#[tokio::test]
async fn a_wrong_download_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let body = sample::pickles(&sample::unfolded(NETWORK, 4));
    let good = convert::sha256(&body);
    let server = Server::serving(&body).await;
    let named = |name: &str| args(folder.path(), format!("{}/{name}", server.url));

    let wrong = failure(named("m-00000000.pth")).await;
    assert!(wrong.contains(&format!("SHA-256 is {good}, expected one that starts with 00000000")), "{wrong}");
    assert!(wrong.contains("embedded efficientnet_lite0"), "{wrong}");
    let too_large = failure(Args { bytes_max: 1000, ..named(&format!("m-{good}.pth")) }).await;
    assert!(too_large.contains("larger than 1000 bytes; --bytes-max"), "{too_large}");
    let nameless = failure(named("model.pth")).await;
    assert!(nameless.contains("--sha256-prefix"), "{nameless}");
    let odd = failure(Args { sha256_prefix: Some("not hexadecimal".to_owned()), ..named("m.pth") }).await;
    assert!(odd.contains("not the start of a SHA-256"), "{odd}");

    let text = Server::serving(b"not a checkpoint").await;
    let prefix = Some(convert::sha256(b"not a checkpoint"));
    let text = failure(Args { sha256_prefix: prefix, ..args(folder.path(), text.url.clone()) }).await;
    assert!(text.contains("neither a PyTorch checkpoint nor"), "{text}");
}

#[tokio::test]
async fn servers_that_fail_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let answering = async |head: &str, body: &[u8], change: fn(&mut Args)| {
        let server = Server::start(head.to_owned(), Arc::new(body.to_vec())).await;
        let mut args = args(folder.path(), format!("{}/m-12345678.pth", server.url));
        change(&mut args);
        failure(args).await
    };
    let keep = |_: &mut Args| ();
    let absent = answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b"", keep).await;
    assert!(absent.contains("404") && absent.contains("embedded efficientnet_lite0"), "{absent}");
    let truncated = answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", b"half", keep).await;
    assert!(truncated.contains("the download broke off"), "{truncated}");
    // Without a stated length, the limit holds while reading.
    let endless = answering("HTTP/1.1 200 OK\r\n\r\n", &[0; 5000], |args| args.bytes_max = 1000).await;
    assert!(endless.contains("larger than 1000 bytes"), "{endless}");

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = failure(args(folder.path(), format!("http://{free}/m-12345678.pth"))).await;
    assert!(nobody.contains("cannot download") && nobody.contains("embedded efficientnet_lite0"), "{nobody}");
}

#[tokio::test]
async fn a_folder_that_has_the_weights_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let nowhere = Args {
        from: Some(source.clone()),
        ..args(folder.path(), "http://127.0.0.1:1/m-12345678.pth".into())
    };
    // The folder is empty: it is the server's turn.
    assert!(failure(nowhere.clone()).await.contains("cannot download"));
    let file = source.join("mobilenet_v2.safetensors");
    std::fs::write(&file, "damaged").unwrap();
    assert!(failure(nowhere.clone()).await.contains("cannot use"));
    let checkpoint = sample::zip(&sample::unfolded(NETWORK, 9));
    let converted = convert::convert(&checkpoint, None, DType::F32).unwrap().1;
    std::fs::write(&file, &converted).unwrap();
    run(nowhere.clone()).await.unwrap();
    assert_eq!(std::fs::read(nowhere.dir.join("mobilenet_v2.safetensors")).unwrap(), converted);
}
