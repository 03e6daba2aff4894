//! A replica with the embedded network: every form of a request, and everything that can be wrong with one.
use crate::support::{Running, client, flags};
use elastic::model::{Model, ModelArgs};
use elastic::net::serve::Limits;
use elastic::net::wire::{ClassifyAnswer, DEADLINE_HEADER, Readiness};
use elastic::serve_model::{self, Settings};
use http::StatusCode;
use std::io::Cursor;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const GOLDFISH: usize = 1;

pub(crate) fn photo(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/photos/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

async fn replica_with(settings: &[&str], limits: Limits) -> Running {
    let model_args: ModelArgs = flags(&["--model", "efficientnet_lite0"]);
    let model = Model::load(&model_args).unwrap();
    let settings: Settings = flags(settings);
    Running::start(|listener, shutdown| async move {
        serve_model::serve(listener, model, settings, limits, shutdown).await.unwrap();
    })
    .await
}

pub(crate) async fn replica(settings: &[&str]) -> Running {
    replica_with(settings, Limits::default()).await
}

async fn post(url: &str, body: Vec<u8>) -> reqwest::Response {
    client().post(format!("{url}/predict")).body(body).send().await.unwrap()
}

async fn best(answer: reqwest::Response) -> usize {
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: ClassifyAnswer = serde_json::from_str(&text).unwrap();
    assert_eq!(answer.model, "efficientnet_lite0");
    answer.predictions[0].index
}

pub(crate) async fn refusal(answer: reqwest::Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let error: elastic::net::error::ErrorBody =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} without an error body: {text}"));
    (status, error.error)
}

#[tokio::test]
async fn every_form_of_a_request_is_answered() {
    use base64::Engine as _;
    let replica = replica(&["--threads", "1"]).await;
    let goldfish = photo("goldfish.jpg");
    let answer = post(&replica.url, goldfish.clone()).await;
    let timing = answer.headers()["server-timing"].to_str().unwrap().to_owned();
    for stage in ["queue;dur=", "decode;dur=", "infer;dur="] {
        assert!(timing.contains(stage), "{timing}");
    }
    assert_eq!(best(answer).await, GOLDFISH);

    let base64 = base64::engine::general_purpose::STANDARD.encode(&goldfish);
    let json = serde_json::json!({ "image": base64 });
    let url = format!("{}/predict?top_k=2", replica.url);
    let answer = client().post(&url).json(&json).send().await.unwrap();
    let answer: ClassifyAnswer = answer.json().await.unwrap();
    assert_eq!(answer.predictions.len(), 2);
    assert_eq!((answer.predictions[0].index, answer.predictions[0].label.as_str()), (GOLDFISH, "goldfish"));

    let mut form =
        b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jpg\"\r\n\r\n".to_vec();
    form.extend_from_slice(&goldfish);
    form.extend_from_slice(b"\r\n--b--\r\n");
    let request = client().post(&url).header("content-type", "multipart/form-data; boundary=b").body(form);
    assert_eq!(best(request.send().await.unwrap()).await, GOLDFISH);
}

#[tokio::test]
async fn health_readiness_metadata_and_metrics_tell_what_runs() {
    let replica = replica(&["--threads", "2"]).await;
    let get = |path: &str| client().get(format!("{}{path}", replica.url)).send();
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    let readiness: Readiness = get("/readyz").await.unwrap().json().await.unwrap();
    assert_eq!(readiness, Readiness { ready: true, model: "efficientnet_lite0".into(), slots: 2 });
    assert!(get("/v2").await.unwrap().text().await.unwrap().contains("efficientnet_lite0"));
    post(&replica.url, photo("dam.jpg")).await;
    let metrics = get("/metrics").await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains(r#"elastic_replica_stage_duration_seconds_count{stage="infer"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"elastic_replica_info{model="efficientnet_lite0"} 1"#), "{metrics}");
    replica.shutdown.drain();
}

/// The photo, written again in another format.
fn written(
    format: image::ImageFormat,
    change: impl Fn(image::DynamicImage) -> image::DynamicImage,
) -> Vec<u8> {
    let decoded = change(image::load_from_memory(&photo("goldfish.jpg")).unwrap());
    let mut bytes = Cursor::new(Vec::new());
    decoded.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[tokio::test]
async fn odd_images_are_classified() {
    use image::ImageFormat::{Bmp, Gif, Png, WebP};
    let replica = replica(&["--threads", "1"]).await;
    for (what, bytes) in [
        ("16-bit PNG", written(Png, |photo| photo.to_rgb16().into())),
        ("PNG with alpha", written(Png, |photo| photo.to_rgba8().into())),
        ("WebP", written(WebP, |photo| photo)),
        ("GIF", written(Gif, |photo| photo)),
        ("BMP", written(Bmp, |photo| photo)),
    ] {
        assert_eq!(best(post(&replica.url, bytes).await).await, GOLDFISH, "{what}");
    }
    let grey = written(Png, |photo| photo.to_luma8().into());
    assert_eq!(post(&replica.url, grey).await.status(), StatusCode::OK);
}

/// A PNG whose header promises 50,000 × 50,000 pixels.
fn bomb() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xc3\x50\0\0\xc3\x50\x08\x02\0\0\0".to_vec();
    let crc = png[12..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    png.extend_from_slice(&(!crc).to_be_bytes());
    png.extend_from_slice(b"\0\0\0\x08IDAT\x78\x9c\0\0\0\0\0\0\0\0\0\0");
    png
}

#[tokio::test]
async fn bad_input_is_refused_with_a_reason_and_serving_goes_on() {
    let replica = replica(&["--threads", "1", "--body-bytes-max", "1000000"]).await;
    let goldfish = photo("goldfish.jpg");
    let cut = goldfish[..300].to_vec();
    for (what, body, status, says) in [
        ("nothing", vec![], 400, "empty"),
        ("text", b"this is no image, it is a sentence".to_vec(), 415, ""),
        ("a cut JPEG", cut, 422, ""),
        ("a bomb", bomb(), 413, "50000"),
        ("a large body", vec![0; 1_000_001], 413, "1000000"),
    ] {
        let (got, error) = refusal(post(&replica.url, body).await).await;
        assert_eq!(got, status, "{what}: {error}");
        assert!(error.contains(says), "{what}: {error}");
    }
    let request = |path: &str| client().post(format!("{}{path}", replica.url)).body(goldfish.clone());
    for (path, status) in [("/predict?top_k=0", 400), ("/predict?top_k=1001", 400), ("/predict?top_k=x", 400)]
    {
        assert_eq!(refusal(request(path).send().await.unwrap()).await.0, status, "{path}");
    }
    assert_eq!(refusal(request("/nothing").send().await.unwrap()).await.0, 404);
    assert_eq!(refusal(request("/healthz").send().await.unwrap()).await.0, 405);
    let late = request("/predict").header(DEADLINE_HEADER, "0").send().await.unwrap();
    assert_eq!(refusal(late).await.0, 504);
    assert_eq!(best(request("/predict").send().await.unwrap()).await, GOLDFISH);
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let limits = Limits { header_timeout: Duration::from_millis(100), ..Limits::default() };
    let replica = replica_with(&["--threads", "1", "--body-timeout", "100ms"], limits).await;
    let address = replica.url.strip_prefix("http://").unwrap();
    // A head that never ends.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /predict HTTP/1.1\r\nHost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    // A body that never ends.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc";
    stream.write_all(head).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_full_queue_is_a_503_with_retry_after() {
    // One image is worked on for a second, none may wait: of three at once at least one is refused.
    let replica = replica(&["--threads", "1", "--queue-max", "0", "--pace", "1s"]).await;
    let goldfish = photo("goldfish.jpg");
    let (a, b, c) = tokio::join!(
        post(&replica.url, goldfish.clone()),
        post(&replica.url, goldfish.clone()),
        post(&replica.url, goldfish.clone())
    );
    let refused: Vec<_> =
        [a, b, c].into_iter().filter(|answer| answer.status() == StatusCode::SERVICE_UNAVAILABLE).collect();
    assert!((1..=3).contains(&refused.len()));
    assert!(refused.iter().all(|answer| answer.headers()["retry-after"] == "1"));
}

/// Sum and count of a replica's batch sizes, over all limits.
async fn batches(url: &str) -> (f64, f64) {
    let metrics = client().get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    let total = |of: &str| -> f64 {
        let lines =
            metrics.lines().filter(|line| line.starts_with(&format!("elastic_replica_batch_images_{of}{{")));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    (total("sum"), total("count"))
}

#[tokio::test]
async fn images_in_a_batch_are_answered_as_if_alone() {
    // While the first is held for its pace, the others come and wait.
    let replica = replica(&["--threads", "1", "--batch-max", "4", "--pace", "150ms"]).await;
    let readiness: Readiness =
        client().get(format!("{}/readyz", replica.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(readiness.slots, 4);
    let photos = ["goldfish.jpg", "dam.jpg"].map(photo);
    let mut alone = Vec::new();
    for photo in &photos {
        alone.push(post(&replica.url, photo.clone()).await.json::<ClassifyAnswer>().await.unwrap());
    }
    assert_eq!(batches(&replica.url).await, (2.0, 2.0));

    let good = (0..8).map(|at| post(&replica.url, photos[at % 2].clone()));
    let request = || client().post(format!("{}/predict", replica.url));
    let bad = request().body("this is no image, it is a sentence").send();
    let late = request().header(DEADLINE_HEADER, "0").body(photos[0].clone()).send();
    let (good, bad, late) = tokio::join!(futures_util::future::join_all(good), bad, late);
    for (at, answer) in good.into_iter().enumerate() {
        let answer: ClassifyAnswer = answer.json().await.unwrap();
        let expected = &alone[at % 2].predictions;
        assert_eq!(answer.predictions.len(), expected.len());
        for (got, expected) in answer.predictions.iter().zip(expected) {
            assert_eq!((got.index, &got.label), (expected.index, &expected.label));
            assert!((got.probability - expected.probability).abs() < 1e-4, "{got:?} is not {expected:?}");
        }
        let timing = answer.timing_ms;
        assert!(timing.queue >= 0.0 && timing.decode > 0.0 && timing.infer > 0.0, "{timing:?}");
    }
    assert_eq!(refusal(bad.unwrap()).await.0, 415);
    assert_eq!(refusal(late.unwrap()).await.0, 504);
    let (images, batches) = batches(&replica.url).await;
    // Two alone, eight good ones and the bad one; the late one was in none.
    assert!((images - 11.0).abs() < 0.5 && batches < images, "{images} images in {batches} batches");
}
