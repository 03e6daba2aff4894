//! The answer to an inference request: JSON, and behind it the outputs that are wanted as bytes.
use super::INFERENCE_HEADER_CONTENT_LENGTH;
use super::request::{Output, OutputName};
use crate::model::Prediction;
use crate::net::error::ApiError;
use crate::serve_model::dialects::named::VERSION;
use crate::serve_model::job::{Classified, Scores};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer};

#[derive(Serialize)]
struct Answer<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: OutputName,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

/// Elements in their order, an image after the other.
enum Data<'a> {
    Numbers(Vec<&'a [f32]>),
    Strings(Vec<String>),
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Numbers(images) => serializer.collect_seq(images.iter().copied().flatten()),
            Self::Strings(strings) => serializer.collect_seq(strings),
        }
    }
}

impl Data<'_> {
    /// Appends the elements as the binary extension has them.
    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Numbers(images) => {
                bytes.extend(images.iter().copied().flatten().flat_map(|value| value.to_le_bytes()));
            }
            Self::Strings(strings) => {
                for string in strings {
                    bytes.extend_from_slice(&(string.len() as u32).to_le_bytes());
                    bytes.extend_from_slice(string.as_bytes());
                }
            }
        }
    }
}

/// The answer for images that were all classified with their scores and with as many predictions as the outputs
/// ask for.
pub(super) fn respond(
    model: &str,
    id: Option<&str>,
    outputs: &[Output],
    images: &[Classified],
) -> Result<Response, ApiError> {
    let mut bytes = Vec::new();
    let tensors = outputs.iter().map(|output| tensor(*output, images, &mut bytes)).collect();
    let answer = Answer { model_name: model, model_version: VERSION, id, outputs: tensors };
    let mut body = serde_json::to_vec(&answer).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written")
    })?;
    if outputs.iter().all(|output| !output.binary) {
        return Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response());
    }
    let json_length = HeaderValue::from(body.len());
    body.append(&mut bytes);
    let content_type = HeaderValue::from_static("application/octet-stream");
    let headers = [(header::CONTENT_TYPE, content_type), (INFERENCE_HEADER_CONTENT_LENGTH, json_length)];
    Ok((headers, Body::from(body)).into_response())
}

/// One output, whose bytes go behind those of the outputs before it where they are wanted.
fn tensor<'a>(output: Output, images: &'a [Classified], bytes: &mut Vec<u8>) -> Tensor<'a> {
    let Output { name, classes, binary } = output;
    let scores = images.iter().filter_map(|image| image.scores.as_ref());
    let scores: Vec<&[f32]> = scores.map(|scores| of(name, scores)).collect();
    let (datatype, columns, data) = match classes {
        None => ("FP32", scores.first().map_or(0, |scores| scores.len()), Data::Numbers(scores)),
        Some(classes) => {
            let of_image = |(image, scores): (&'a Classified, &&[f32])| -> Vec<String> {
                let best = image.predictions.iter().take(classes);
                best.map(|prediction| class(prediction, scores)).collect()
            };
            let columns = images.first().map_or(0, |image| image.predictions.len().min(classes));
            let strings = images.iter().zip(&scores).flat_map(of_image).collect();
            ("BYTES", columns, Data::Strings(strings))
        }
    };
    let shape = [images.len(), columns];
    if !binary {
        return Tensor { name, datatype, shape, parameters: None, data: Some(data) };
    }
    let before = bytes.len();
    data.write(bytes);
    let parameters = Some(Parameters { binary_data_size: bytes.len() - before });
    Tensor { name, datatype, shape, parameters, data: None }
}

fn of(name: OutputName, scores: &Scores) -> &[f32] {
    match name {
        OutputName::Probabilities => &scores.probabilities,
        OutputName::Logits => &scores.logits,
    }
}

/// `value:index:label`, the value with six decimals as Triton writes it.
fn class(prediction: &Prediction, scores: &[f32]) -> String {
    let Prediction { index, label, .. } = prediction;
    format!("{:.6}:{index}:{label}", scores.get(*index).copied().unwrap_or_default())
}
