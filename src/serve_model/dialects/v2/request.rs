//! The body of an inference request: JSON, JSON followed by binary tensors, or one bare image.
//!
//! **Invariant**: the images of a binary request share the body's memory; nothing is allocated for a size that the
//! request states before the bytes for it are there.
use crate::model::planes;
use crate::net::error::ApiError;
use crate::serve_model::dialects::Bounds;
use crate::serve_model::dialects::tensor::Elements;
use crate::serve_model::job::Input;
use bytes::{Buf as _, Bytes};
use serde::Deserialize;

/// A request that can be answered.
#[derive(Debug, PartialEq)]
pub struct InferRequest {
    /// To be echoed.
    pub id: Option<String>,
    /// At least one.
    pub inputs: Vec<Input>,
    /// At least one, each once.
    pub outputs: Vec<Output>,
}

/// An output that the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Which.
    pub name: OutputName,
    /// So many `value:index:label` strings instead of the numbers of every class.
    pub classes: Option<usize>,
    /// As bytes behind the JSON.
    pub binary: bool,
}

/// The outputs that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputName {
    /// Softmax probabilities.
    Probabilities,
    /// What they are made from.
    Logits,
}

impl OutputName {
    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Probabilities => "probabilities",
            Self::Logits => "logits",
        }
    }
}

#[derive(Deserialize)]
struct Body {
    id: Option<String>,
    parameters: Option<BodyParameters>,
    inputs: Vec<BodyInput>,
    outputs: Option<Vec<BodyOutput>>,
}

#[derive(Deserialize)]
struct BodyParameters {
    binary_data_output: Option<bool>,
}

/// Its name is not looked at: the data type tells which input it is, and servers that this one stands in for give
/// theirs all kinds of names.
#[derive(Deserialize)]
struct BodyInput {
    #[serde(rename = "name")]
    _name: Option<String>,
    shape: Vec<u64>,
    datatype: String,
    parameters: Option<InputParameters>,
    data: Option<Elements>,
}

#[derive(Deserialize)]
struct InputParameters {
    binary_data_size: Option<u64>,
}

#[derive(Deserialize)]
struct BodyOutput {
    name: OutputName,
    parameters: Option<OutputParameters>,
}

#[derive(Deserialize)]
struct OutputParameters {
    classification: Option<u64>,
    binary_data: Option<bool>,
}

enum Data {
    Elements(Elements),
    Binary(Bytes),
}

/// Parses a body whose first `json_length` bytes, or all, are JSON. With 0 of them the body is one encoded image.
pub fn parse(mut body: Bytes, json_length: Option<usize>, bounds: Bounds) -> Result<InferRequest, ApiError> {
    if json_length == Some(0) {
        let outputs = outputs(None, true)?;
        return Ok(InferRequest { id: None, inputs: vec![Input::Encoded(body)], outputs });
    }
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        let message = format!("the body has {} bytes, its JSON is said to have {length}", body.len());
        return Err(ApiError::bad_request(message));
    }
    let json = body.split_to(length);
    let Body { id, parameters, inputs, outputs: wanted } = serde_json::from_slice(&json)
        .map_err(|error| ApiError::bad_request(format!("the request cannot be read: {error}")))?;
    let binary = parameters.and_then(|parameters| parameters.binary_data_output).unwrap_or(false);
    let outputs = outputs(wanted, binary)?;
    let found = inputs.len();
    let Ok([input]) = <[BodyInput; 1]>::try_from(inputs) else {
        let message = format!("there are {found} inputs: send one, of datatype BYTES or FP32");
        return Err(ApiError::bad_request(message));
    };
    let binary_size = input.parameters.and_then(|parameters| parameters.binary_data_size);
    let data = match (input.data, binary_size) {
        (Some(elements), None) if body.is_empty() => Data::Elements(elements),
        (None, Some(size)) if size == body.len() as u64 => Data::Binary(body),
        (None, None) => return Err(ApiError::bad_request("the input has no data")),
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("the input has both data and binary_data_size"));
        }
        (_, size) => {
            let (size, found) = (size.unwrap_or(0), body.len());
            let message = format!("{found} bytes follow the JSON, binary_data_size says {size}");
            return Err(ApiError::bad_request(message));
        }
    };
    Ok(InferRequest { id, inputs: images(&input.datatype, &input.shape, data, bounds)?, outputs })
}

fn outputs(wanted: Option<Vec<BodyOutput>>, binary: bool) -> Result<Vec<Output>, ApiError> {
    let wanted = wanted.unwrap_or_default();
    if wanted.is_empty() {
        let whole = |name| Output { name, classes: None, binary };
        return Ok([OutputName::Probabilities, OutputName::Logits].map(whole).into());
    }
    let mut outputs: Vec<Output> = Vec::new();
    for BodyOutput { name, parameters } in wanted {
        if outputs.iter().any(|output| output.name == name) {
            return Err(ApiError::bad_request("an output is asked for twice"));
        }
        let classes = parameters.as_ref().and_then(|parameters| parameters.classification);
        if classes == Some(0) {
            return Err(ApiError::bad_request("classification must be at least 1"));
        }
        let classes = classes.map(|classes| usize::try_from(classes).unwrap_or(usize::MAX));
        let binary = parameters.and_then(|parameters| parameters.binary_data).unwrap_or(binary);
        outputs.push(Output { name, classes, binary });
    }
    Ok(outputs)
}

fn images(datatype: &str, shape: &[u64], data: Data, bounds: Bounds) -> Result<Vec<Input>, ApiError> {
    let Bounds { instances_max, side } = bounds;
    let wrong_shape = |takes: String| {
        let message = format!("the {datatype} input has the shape {shape:?}, it must be {takes}");
        Err(ApiError::bad_request(message))
    };
    let sides = [3, side as u64, side as u64];
    let count = match (datatype, shape) {
        ("BYTES", [count] | [count, 1]) => *count,
        ("FP32", [count, rest @ ..]) if rest == sides => *count,
        ("BYTES", _) => return wrong_shape("[N] or [N, 1]".to_owned()),
        ("FP32", _) => return wrong_shape(format!("[N, 3, {side}, {side}]")),
        _ => {
            let message = format!("the datatype {datatype:?} is not read: send BYTES or FP32");
            return Err(ApiError::bad_request(message));
        }
    };
    let count = usize::try_from(count).ok().filter(|count| (1..=instances_max).contains(count));
    let Some(count) = count else {
        let message = format!("the shape says {} images: send 1 to {instances_max} in a request", shape[0]);
        return Err(ApiError::bad_request(message));
    };
    match (datatype, data) {
        ("BYTES", Data::Binary(bytes)) => encoded(bytes, count),
        ("BYTES", Data::Elements(Elements::Strings(strings))) if strings.len() == count => {
            Ok(strings.into_iter().map(Input::Encoded).collect())
        }
        ("FP32", Data::Binary(bytes)) => cut(bytes, count, side),
        ("FP32", Data::Elements(Elements::Numbers(bytes))) => cut(bytes.into(), count, side),
        ("BYTES", _) => Err(ApiError::bad_request(format!("data must be {count} base64 strings"))),
        _ => Err(ApiError::bad_request(format!("data must be {count} x 3 x {side} x {side} numbers"))),
    }
}

/// Elements that are preceded by their length, four bytes each, the lowest first.
fn encoded(mut bytes: Bytes, count: usize) -> Result<Vec<Input>, ApiError> {
    let broken = |at: usize| {
        let message = format!("the bytes end within element {at} of {count}, or a length before it is wrong");
        ApiError::bad_request(message)
    };
    let mut inputs = Vec::with_capacity(count);
    for at in 0..count {
        let length = bytes.try_get_u32_le().map_err(|_| broken(at))? as usize;
        if length > bytes.len() {
            return Err(broken(at));
        }
        inputs.push(Input::Encoded(bytes.split_to(length)));
    }
    if !bytes.is_empty() {
        let message = format!("{} bytes follow the last of {count} elements", bytes.len());
        return Err(ApiError::bad_request(message));
    }
    Ok(inputs)
}

/// Tensors one after the other.
fn cut(mut bytes: Bytes, count: usize, side: usize) -> Result<Vec<Input>, ApiError> {
    let length = planes::length(side);
    if bytes.len() != count * length {
        let (found, expected) = (bytes.len() / size_of::<f32>(), count * length / size_of::<f32>());
        let message = format!("the FP32 input has {found} values, its shape says {expected}");
        return Err(ApiError::bad_request(message));
    }
    Ok((0..count).map(|_| Input::Planes(bytes.split_to(length))).collect())
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
