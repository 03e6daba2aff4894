//! KServe's V1 protocol: `/v1/models/{model}:predict` with a list of instances.
use super::Bounds;
use super::named;
use super::predict::Parameters;
use super::tensor::Base64;
use crate::model::{Prediction, planes};
use crate::net::error::{self, ApiError};
use crate::serve_model::ask::{self, Shared};
use crate::serve_model::job::{Input, Wanted};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State, rejection::PathRejection};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Ends the path of an inference.
const PREDICT: &str = ":predict";

#[derive(Serialize)]
struct Models {
    models: [&'static str; 1],
}

#[derive(Serialize)]
struct Status {
    name: &'static str,
    ready: bool,
}

#[derive(Serialize)]
struct Predictions<'a> {
    predictions: Vec<&'a [Prediction]>,
}

/// `GET /v1/models`.
pub(in crate::serve_model) async fn models(State(state): Shared) -> Response {
    Json(Models { models: [state.model.name()] }).into_response()
}

/// `GET /v1/models/{model}`.
pub(in crate::serve_model) async fn model(
    State(state): Shared,
    path: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
) -> Result<Response, ApiError> {
    let Path(name) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    if name.ends_with(PREDICT) {
        return Ok(not_allowed(method, uri, "POST").await);
    }
    named::check(&state, &name)?;
    let ready = !state.shutdown.is_leaving();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(Status { name: state.model.name(), ready })).into_response())
}

/// `POST /v1/models/{model}:predict`. The router cannot tell this path from the model's own.
pub(in crate::serve_model) async fn predict(
    State(state): Shared,
    path: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Path(path) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let Some(name) = path.strip_suffix(PREDICT) else {
        return Ok(not_allowed(request.method().clone(), request.uri().clone(), "GET,HEAD").await);
    };
    named::check(&state, name)?;
    let Query(parameters) = parameters.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let wanted = Wanted { top_k: ask::top_k(&state, parameters.top_k)?, scores: false };
    let asked = ask::read(&state, request).await?;
    let (body, bounds) = (asked.body, state.bounds());
    let inputs = ask::parse(body.len(), move || parse(&body, bounds)).await?;
    let found = ask::classify(&state, inputs, wanted, asked.expires_at).await?;
    let predictions = found.iter().map(|classified| &*classified.predictions).collect();
    let response = Json(Predictions { predictions }).into_response();
    Ok(ask::with_timing(response, ask::longest(&found)))
}

/// Every other method, at either path.
pub(in crate::serve_model) async fn other(method: Method, uri: Uri) -> Response {
    let allowed = if uri.path().ends_with(PREDICT) { "POST" } else { "GET,HEAD" };
    not_allowed(method, uri, allowed).await
}

async fn not_allowed(method: Method, uri: Uri, allowed: &'static str) -> Response {
    let mut response = error::method_not_allowed(method, uri).await.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

#[derive(Deserialize)]
struct Body {
    instances: Vec<Instance>,
}

enum Instance {
    Photo(Bytes),
    Planes(Vec<u8>, [usize; 3]),
}

/// The images of a body: `{"instances":[{"b64":"…"} | {"image_bytes":{"b64":"…"}} | [[[…]]]]}`.
pub fn parse(body: &[u8], bounds: Bounds) -> Result<Vec<Input>, ApiError> {
    let Body { instances } = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "the body must be {{\"instances\":[{{\"b64\":\"<base64>\"}}]}}: {error}"
        ))
    })?;
    let Bounds { instances_max, side } = bounds;
    if instances.is_empty() || instances.len() > instances_max {
        let found = instances.len();
        let message = format!("instances has {found} images: send 1 to {instances_max} in a request");
        return Err(ApiError::bad_request(message));
    }
    let input = |(at, instance)| match instance {
        Instance::Photo(bytes) => Ok(Input::Encoded(bytes)),
        Instance::Planes(bytes, shape) if shape == [3, side, side] && bytes.len() == planes::length(side) => {
            Ok(Input::Planes(bytes.into()))
        }
        Instance::Planes(_, shape) => {
            let message =
                format!("instance {at} has the shape {shape:?}, the network takes [3, {side}, {side}]");
            Err(ApiError::bad_request(message))
        }
    };
    instances.into_iter().enumerate().map(input).collect()
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InstanceVisitor)
    }
}

struct InstanceVisitor;

impl<'de> Visitor<'de> for InstanceVisitor {
    type Value = Instance;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("{\"b64\":\"…\"}, {\"image_bytes\":{\"b64\":\"…\"}} or three planes of numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Instance, A::Error> {
        let mut photo = None;
        while let Some(name) = fields.next_key::<String>()? {
            let found = match name.as_str() {
                "b64" => fields.next_value::<Base64>()?,
                "image_bytes" => fields.next_value::<ImageBytes>()?.b64,
                _ => {
                    fields.next_value::<serde::de::IgnoredAny>()?;
                    continue;
                }
            };
            if photo.replace(found.0).is_some() {
                return Err(A::Error::custom("an instance has two images"));
            }
        }
        photo
            .map(Instance::Photo)
            .ok_or_else(|| A::Error::custom("an instance has neither b64 nor image_bytes"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Instance, A::Error> {
        let (mut bytes, mut shape) = (Vec::new(), [0; 3]);
        while let Some(rows) = items.next_element::<Vec<Vec<f32>>>()? {
            shape[0] += 1;
            for row in &rows {
                if shape[2] != 0 && shape[2] != row.len() {
                    return Err(A::Error::custom("the rows of an instance have different lengths"));
                }
                shape[2] = row.len();
                bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            }
            if shape[1] != 0 && shape[1] != rows.len() {
                return Err(A::Error::custom("the planes of an instance have different heights"));
            }
            shape[1] = rows.len();
        }
        Ok(Instance::Planes(bytes, shape))
    }
}

#[derive(Deserialize)]
struct ImageBytes {
    b64: Base64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { instances_max: 2, side: 2 };
    const PLANES: &str = "[[[0,1],[2,3]],[[4,5],[6,7]],[[8,9],[10,11.5]]]";

    fn photo() -> Input {
        Input::Encoded("IMG".into())
    }

    fn check(instances: &str, expected: Result<&[Input], &str>) {
        let body = format!(r#"{{"instances":[{instances}]}}"#);
        match (parse(body.as_bytes(), BOUNDS), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{instances}"),
            (Err(error), Err(says)) => {
                assert_eq!(error.status, StatusCode::BAD_REQUEST);
                assert!(error.message.contains(says), "{instances}: {}", error.message);
            }
            (found, expected) => panic!("{instances}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn instances_are_photos_or_planes() {
        let values: Vec<f32> = (0..11).map(|value| value as f32).chain([11.5]).collect();
        let planes = Input::Planes(values.iter().flat_map(|value| value.to_le_bytes()).collect());
        check(r#"{"b64":"SU1H"}"#, Ok(&[photo()]));
        check(r#"{"image_bytes":{"b64":"SU1H"},"key":[1]}, {"b64":"SU1H"}"#, Ok(&[photo(), photo()]));
        check(&format!(r#"{PLANES}, {{"b64":"SU1H"}}"#), Ok(&[planes, photo()]));
    }

    #[test]
    fn other_instances_are_refused_with_a_reason() {
        check("", Err("0 images: send 1 to 2"));
        check(r#"{"b64":""}, {"b64":""}, {"b64":""}"#, Err("3 images: send 1 to 2"));
        check(r#"{"b64":"*"}"#, Err("not base64"));
        check(r#"{"b64":"SU1H","image_bytes":{"b64":"SU1H"}}"#, Err("two images"));
        check(r#"{"data":"SU1H"}"#, Err("neither b64 nor image_bytes"));
        check(r#""SU1H""#, Err("three planes of numbers"));
        check("[[[0,1],[2,3]]]", Err("[1, 2, 2], the network takes [3, 2, 2]"));
        check("[[[0,1],[2]]]", Err("rows of an instance have different lengths"));
        check("[[[0,1]],[[2,3],[4,5]]]", Err("planes of an instance have different heights"));
        check("[]", Err("[0, 0, 0]"));
        // Planes without any numbers before ones that have some.
        check("[[],[[0,1],[2,3]],[[4,5],[6,7]]]", Err("the network takes"));
    }

    proptest! {
        #[test]
        fn a_cut_body_is_an_error_and_never_a_panic(cut in 0..90_usize) {
            let body = format!(r#"{{"instances":[{{"b64":"SU1H"}},{PLANES}]}}"#);
            prop_assert!(parse(body.as_bytes(), BOUNDS).is_ok());
            prop_assert!(parse(&body.as_bytes()[..cut.min(body.len() - 1)], BOUNDS).is_err());
        }
    }
}
