//! Health, and what the server and its model are.
use super::request::OutputName;
use crate::serve_model::State as Server;
use crate::serve_model::ask::Shared;
use crate::serve_model::dialects::named::{Named, VERSION};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::Serialize;

#[derive(Serialize)]
struct About {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 2],
    model: &'static str,
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    ready: bool,
}

#[derive(Serialize)]
struct Models {
    models: [&'static str; 1],
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: [Tensor; 2],
    outputs: [Tensor; 2],
}

#[derive(Serialize)]
struct Tensor {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Preparation>,
}

/// How to make the FP32 input from a photo: `(value - mean) / deviation` on values from 0 to 255.
#[derive(Serialize)]
struct Preparation {
    resize: u32,
    crop: u32,
    channels: &'static str,
    mean: [f32; 3],
    deviation: [f32; 3],
}

#[derive(Serialize)]
struct Config {
    name: &'static str,
    platform: &'static str,
    backend: &'static str,
    max_batch_size: usize,
    input: [ConfigTensor; 2],
    output: [ConfigTensor; 2],
}

#[derive(Serialize)]
struct ConfigTensor {
    name: &'static str,
    data_type: String,
    dims: Vec<i64>,
    optional: bool,
}

#[derive(Serialize)]
struct Indexed {
    name: &'static str,
    version: &'static str,
    state: &'static str,
    reason: &'static str,
}

const PLATFORM: &str = "candle";

/// `GET /v2`: the server's metadata, plus the network that answers.
pub(in crate::serve_model) async fn server(State(state): Shared) -> Response {
    Json(About {
        name: "elastic",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "classification"],
        model: state.model.name(),
    })
    .into_response()
}

/// `GET /v2/health/live`.
pub(in crate::serve_model) async fn live() -> Response {
    Json(Live { live: true }).into_response()
}

/// `GET /v2/health/ready`.
pub(in crate::serve_model) async fn ready(State(state): Shared) -> Response {
    readiness(&state, None)
}

/// `GET /v2/models/{model}/ready`.
pub(in crate::serve_model) async fn model_ready(State(state): Shared, _: Named) -> Response {
    readiness(&state, Some(state.model.name()))
}

fn readiness(state: &Server, name: Option<&'static str>) -> Response {
    let ready = !state.shutdown.is_leaving();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { name, ready })).into_response()
}

/// `GET /v2/models`.
pub(in crate::serve_model) async fn models(State(state): Shared) -> Response {
    Json(Models { models: [state.model.name()] }).into_response()
}

/// `GET` or `POST /v2/repository/index`.
pub(in crate::serve_model) async fn index(State(state): Shared) -> Response {
    let name = state.model.name();
    Json([Indexed { name, version: VERSION, state: "READY", reason: "" }]).into_response()
}

/// `GET /v2/models/{model}`.
pub(in crate::serve_model) async fn model(State(state): Shared, _: Named) -> Response {
    let (inputs, outputs) = tensors(&state);
    let name = state.model.name();
    Json(Metadata { name, versions: [VERSION], platform: PLATFORM, inputs, outputs }).into_response()
}

/// `GET /v2/models/{model}/config`.
pub(in crate::serve_model) async fn config(State(state): Shared, _: Named) -> Response {
    let (inputs, outputs) = tensors(&state);
    // One of the two inputs comes with a request.
    let configured = |optional: bool| {
        move |Tensor { name, datatype, shape, .. }: Tensor| {
            let data_type =
                if datatype == "BYTES" { "TYPE_STRING".to_owned() } else { format!("TYPE_{datatype}") };
            let dims = if shape.len() == 1 { vec![1] } else { shape[1..].to_vec() };
            ConfigTensor { name, data_type, dims, optional }
        }
    };
    Json(Config {
        name: state.model.name(),
        platform: PLATFORM,
        backend: "elastic",
        max_batch_size: state.settings.instances_max,
        input: inputs.map(configured(true)),
        output: outputs.map(configured(false)),
    })
    .into_response()
}

fn tensors(state: &Server) -> ([Tensor; 2], [Tensor; 2]) {
    let length = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let (classes, side) = (length(state.model.classes()), length(state.model.input_size()));
    let preprocessing = state.model.preprocessing();
    let normalisation = preprocessing.normalisation;
    let preparation = Preparation {
        resize: preprocessing.resize,
        crop: preprocessing.crop,
        channels: "RGB",
        mean: normalisation.mean,
        deviation: normalisation.deviation,
    };
    let photo = Tensor { name: "image", datatype: "BYTES", shape: vec![-1], parameters: None };
    let shape = vec![-1, 3, side, side];
    let planes = Tensor { name: "pixels", datatype: "FP32", shape, parameters: Some(preparation) };
    let output = |name| Tensor { name, datatype: "FP32", shape: vec![-1, classes], parameters: None };
    let outputs = [OutputName::Probabilities, OutputName::Logits].map(|name| output(name.as_str()));
    ([photo, planes], outputs)
}
