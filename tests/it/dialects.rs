//! The dialects of other model servers, as their clients speak them, and the document that describes all paths.
#![allow(clippy::needless_pass_by_value)] // what `json!` makes is handed on as it is
use crate::serve_model::{GOLDFISH, photo, refusal, replica};
use crate::support::{Running, client, flags};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use elastic::model::{Model, ModelArgs};
use elastic::net::wire::DEADLINE_HEADER;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const JSON_LENGTH: &str = "inference-header-content-length";

fn base64(name: &str) -> String {
    STANDARD.encode(photo(name))
}

async fn get(replica: &Running, path: &str) -> Value {
    let answer = client().get(format!("{}{path}", replica.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.json().await.unwrap()
}

async fn send(replica: &Running, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    client().post(format!("{}{path}", replica.url)).body(body).send().await.unwrap()
}

async fn answered(answer: reqwest::Response) -> Value {
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// An inference request with one input of V2.
fn v2(datatype: &str, shape: Value, data: Value) -> Value {
    json!({ "inputs": [{ "name": "x", "datatype": datatype, "shape": shape, "data": data }] })
}

async fn infer(replica: &Running, request: &Value) -> reqwest::Response {
    send(replica, "/v2/models/default/infer", request.to_string()).await
}

/// Sends JSON with bytes behind it; the JSON of the answer and the bytes behind that.
async fn infer_binary(replica: &Running, request: &Value, bytes: &[u8]) -> (Value, Vec<u8>) {
    let json = request.to_string();
    let url = format!("{}/v2/models/efficientnet_lite0/versions/1/infer", replica.url);
    let body = [json.as_bytes(), bytes].concat();
    let answer = client().post(url).header(JSON_LENGTH, json.len()).body(body).send().await.unwrap();
    let length = answer.headers().get(JSON_LENGTH).map(|length| length.to_str().unwrap().parse().unwrap());
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let (json, rest) = body.split_at(length.unwrap_or(body.len()));
    (serde_json::from_slice(json).unwrap(), rest.to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn largest(values: &[f32]) -> usize {
    values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

/// The photo as a client would prepare it: `[3, 224, 224]`, normalised.
fn pixels(name: &str) -> Vec<f32> {
    let model = Model::load(&flags::<ModelArgs>(&["--model", "efficientnet_lite0"])).unwrap();
    let bytes: Vec<u8> = model.decode(&photo(name)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let normalisation = model.preprocessing().normalisation;
    let value = |channel: usize, at: usize| {
        (f32::from(bytes[at * 3 + channel]) - normalisation.mean[channel]) / normalisation.deviation[channel]
    };
    (0..3)
        .flat_map(|channel| (0..224 * 224).map(move |at| (channel, at)))
        .map(|(c, at)| value(c, at))
        .collect()
}

#[tokio::test]
async fn every_described_path_is_there_and_takes_exactly_the_described_methods() {
    let replica = replica(&["--threads", "1"]).await;
    let document = get(&replica, "/openapi.json").await;
    for (path, described) in document["paths"].as_object().unwrap() {
        let url = format!("{}{path}", replica.url).replace("{model}", "default").replace("{version}", "1");
        let described: BTreeSet<String> =
            described.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = client().request(method.clone(), &url).send().await.unwrap();
            let status = answer.status();
            if described.contains(method.as_str()) {
                assert!(
                    status == StatusCode::OK || status == StatusCode::BAD_REQUEST,
                    "{method} {path}: {status}"
                );
                continue;
            }
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            let allowed =
                answer.headers()["allow"].to_str().unwrap().replace(",HEAD", "").replace("HEAD,", "");
            let allowed: BTreeSet<String> = allowed.split(',').map(str::to_owned).collect();
            assert_eq!(allowed, described, "{path}");
            assert!(refusal(answer).await.1.contains("does not take"), "{path}");
        }
    }
}

#[tokio::test]
async fn metadata_is_what_clients_of_other_servers_expect() {
    let replica = replica(&["--threads", "1"]).await;
    let mut told = serde_json::Map::new();
    for path in [
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/repository/index",
        "/v2/models",
        "/v2/models/default",
        "/v2/models/default/ready",
        "/v2/models/default/config",
        "/v1/models",
        "/v1/models/default",
        "/ping",
    ] {
        told.insert(path.to_owned(), get(&replica, path).await);
    }
    insta::assert_json_snapshot!(told);
}

#[tokio::test]
async fn photos_are_classified_in_every_dialect() {
    let replica = replica(&["--threads", "2"]).await;
    let (goldfish, dam) = (base64("goldfish.jpg"), base64("dam.jpg"));
    let instances = json!({ "instances": [{ "b64": goldfish }, { "image_bytes": { "b64": dam } }] });
    let answer = send(&replica, "/v1/models/default:predict?top_k=2", instances.to_string()).await;
    assert!(answer.headers()["server-timing"].to_str().unwrap().starts_with("queue;dur="));
    let answer = answered(answer).await;
    let labels = answer["predictions"].as_array().unwrap().iter().map(|best| best[0]["label"].clone());
    assert_eq!(labels.collect::<Vec<_>>(), ["goldfish", "dam"]);
    assert_eq!(answer["predictions"][1].as_array().unwrap().len(), 2);

    for path in ["/predictions/default", "/predictions/efficientnet_lite0/1"] {
        for method in [Method::POST, Method::PUT] {
            let request = client().request(method, format!("{}{path}", replica.url));
            let text = request.body(photo("goldfish.jpg")).send().await.unwrap().text().await.unwrap();
            assert!(text.starts_with("{\"goldfish\":0."), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap().as_object().unwrap().len(), 5);
        }
    }

    let mut request = v2("BYTES", json!([2, 1]), json!([goldfish, dam]));
    request["id"] = json!("42");
    request["outputs"] = json!([{ "name": "logits", "parameters": { "classification": 2 } }]);
    let mut answer = answered(infer(&replica, &request).await).await;
    for class in answer["outputs"][0]["data"].as_array_mut().unwrap() {
        // The last digits depend on the CPU.
        let text = class.as_str().unwrap();
        assert!(text.split(':').next().unwrap().parse::<f32>().unwrap() > 1.0, "{text}");
        *class = json!(text.split_once(':').unwrap().1);
    }
    insta::assert_json_snapshot!(answer);
}

#[tokio::test]
async fn binary_tensors_go_both_ways() {
    let replica = replica(&["--threads", "1"]).await;
    let goldfish = photo("goldfish.jpg");
    let bytes = [&(goldfish.len() as u32).to_le_bytes(), &goldfish[..]].concat();
    let mut request = v2("BYTES", json!([1]), json!(null));
    request["inputs"][0]["parameters"] = json!({ "binary_data_size": bytes.len() });
    request["parameters"] = json!({ "binary_data_output": true });
    let (json, rest) = infer_binary(&replica, &request, &bytes).await;
    insta::assert_json_snapshot!(json);
    let (probabilities, logits) = rest.split_at(4000);
    let (probabilities, logits) = (floats(probabilities), floats(logits));
    assert_eq!((probabilities.len(), logits.len()), (1000, 1000));
    assert_eq!((largest(&probabilities), largest(&logits)), (GOLDFISH, GOLDFISH));
    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-4);

    // The same photo, prepared by the client.
    let pixels: Vec<u8> = pixels("goldfish.jpg").iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut request = v2("FP32", json!([1, 3, 224, 224]), json!(null));
    request["inputs"][0]["parameters"] = json!({ "binary_data_size": pixels.len() });
    request["outputs"] = json!([
        { "name": "probabilities", "parameters": { "classification": 1, "binary_data": true } },
        { "name": "logits" },
    ]);
    let (json, rest) = infer_binary(&replica, &request, &pixels).await;
    let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
    assert_eq!(rest.len(), 4 + length);
    assert!(rest.ends_with(b":1:goldfish"), "{}", String::from_utf8_lossy(&rest));
    for (at, value) in json["outputs"][1]["data"].as_array().unwrap().iter().enumerate() {
        assert!((value.as_f64().unwrap() - f64::from(logits[at])).abs() < 1e-3, "logit {at}");
    }

    // The body as it is.
    let url = format!("{}/v2/models/default/infer", replica.url);
    let answer = client().post(url).header(JSON_LENGTH, 0).body(goldfish).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn tensors_come_as_json_too() {
    let replica = replica(&["--threads", "1"]).await;
    let pixels = pixels("goldfish.jpg");
    let request = v2("FP32", json!([1, 3, 224, 224]), json!(pixels));
    let answer = answered(infer(&replica, &request).await).await;
    let probability = |at: usize| answer["outputs"][0]["data"][at].as_f64().unwrap();
    assert!((0..1000).all(|at| probability(at) <= probability(GOLDFISH)));

    let planes: Vec<Vec<&[f32]>> =
        pixels.chunks(224 * 224).map(|plane| plane.chunks(224).collect()).collect();
    let request = json!({ "instances": [planes] }).to_string();
    let answer = answered(send(&replica, "/v1/models/default:predict", request).await).await;
    assert_eq!(answer["predictions"][0][0]["label"], "goldfish");

    // What one client sends must not fail the images of others.
    let mut poisoned = pixels;
    poisoned[7] = 1e30;
    let (status, error) =
        refusal(infer(&replica, &v2("FP32", json!([1, 3, 224, 224]), json!(poisoned))).await).await;
    assert_eq!(status, 400);
    assert!(error.contains("value 7"), "{error}");
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_reason() {
    let replica = replica(&["--threads", "1", "--instances-max", "3", "--model-alias", "photos"]).await;
    let goldfish = base64("goldfish.jpg");
    let one = v2("BYTES", json!([1]), json!([goldfish])).to_string();
    let three = json!({ "instances": [{ "b64": goldfish }, { "b64": "" }, { "b64": goldfish }] }).to_string();
    let many = v2("BYTES", json!([4]), json!(["", "", "", ""])).to_string();
    for (path, body, status, says) in [
        ("/v2/models/default/infer", &one, 404, "the model is \"efficientnet_lite0\", which \"photos\""),
        ("/v2/models/photos/versions/2/infer", &one, 404, "its version is \"1\""),
        ("/v1/models/photos:explain", &one, 405, "does not take POST"),
        ("/v1/models/default:predict", &one, 404, "no model \"default\""),
        ("/predictions/default", &one, 404, "no model \"default\""),
        ("/v1/models/photos:predict", &one, 400, "instances"),
        ("/v2/models/photos/infer", &three, 400, "inputs"),
        ("/v2/models/photos/infer", &many, 400, "send 1 to 3"),
        ("/v1/models/photos:predict?top_k=0", &three, 400, "top_k"),
        ("/v1/models/photos:predict", &three, 400, "image 1 of 3, counted from 0: the image is empty"),
        ("/predictions/photos", &one, 415, "not an image"),
        ("/v2/models/%ff/infer", &one, 400, "UTF-8"),
    ] {
        let (got, error) = refusal(send(&replica, path, body.clone()).await).await;
        assert_eq!(got, status, "{path}: {error}");
        assert!(error.contains(says), "{path}: {error}");
    }
    let get = client().get(format!("{}/v1/models/photos:predict", replica.url)).send().await.unwrap();
    assert_eq!((get.status().as_u16(), &get.headers()["allow"]), (405, &"POST".parse().unwrap()));
    let missing = client().get(format!("{}/v2/models/x/ready", replica.url)).send().await.unwrap();
    assert_eq!(refusal(missing).await.0, 404);
}

#[tokio::test]
async fn headers_mean_the_same_in_every_dialect() {
    let replica = replica(&["--threads", "1"]).await;
    let goldfish = base64("goldfish.jpg");
    let v2 = v2("BYTES", json!([1]), json!([goldfish])).to_string();
    let v1 = json!({ "instances": [{ "b64": goldfish }] }).to_string();
    for (path, body) in [
        ("/v2/models/default/infer", v2.into_bytes()),
        ("/v1/models/default:predict", v1.into_bytes()),
        ("/predictions/default", photo("goldfish.jpg")),
        ("/predict", photo("goldfish.jpg")),
    ] {
        let request = |name: &'static str, value: &'static str| {
            client().post(format!("{}{path}", replica.url)).header(name, value).body(body.clone()).send()
        };
        let late = request(DEADLINE_HEADER, "0").await.unwrap();
        assert!(late.headers()["server-timing"].to_str().unwrap().starts_with("total;dur="), "{path}");
        assert_eq!(refusal(late).await.0, 504, "{path}");
        assert_eq!(refusal(request(DEADLINE_HEADER, "soon").await.unwrap()).await.0, 400, "{path}");
        assert_eq!(refusal(request("content-encoding", "gzip").await.unwrap()).await.0, 415, "{path}");
        let traced = request("traceparent", "no trace at all").await.unwrap();
        assert_eq!(traced.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn images_of_a_request_are_taken_all_or_none() {
    // Each image is worked on for a while, so that of two requests at once the later finds no room for three.
    let replica = replica(&["--threads", "1", "--queue-max", "3", "--pace", "100ms"]).await;
    let goldfish = base64("goldfish.jpg");
    let request = v2("BYTES", json!([3]), json!([goldfish, goldfish, goldfish]));
    let (a, b) = tokio::join!(infer(&replica, &request), infer(&replica, &request));
    let (taken, refused) = if a.status() == StatusCode::OK { (a, b) } else { (b, a) };
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refusal(refused).await.0, 503);
    assert_eq!(answered(taken).await["outputs"][0]["shape"], json!([3, 1000]));
    // Nothing of the refused one was left in the line.
    let one = v2("BYTES", json!([1]), json!([goldfish]));
    answered(infer(&replica, &one).await).await;
    let metrics =
        client().get(format!("{}/metrics", replica.url)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains(r#"elastic_replica_stage_duration_seconds_count{stage="infer"} 4"#),
        "{metrics}"
    );
}
