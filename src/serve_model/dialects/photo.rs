//! The forms in which one photo may come: the body itself, a multipart field, or base64 in JSON.
use super::tensor::Base64;
use crate::net::error::ApiError;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

/// Names of the multipart fields in which clients send an image.
const FIELDS: [&str; 4] = ["image", "file", "data", "body"];

#[derive(Deserialize)]
struct JsonForm {
    image: Base64,
}

/// The photo in a request's body, by its `Content-Type`. What is no form is the photo itself.
///
/// A photo beyond `bytes_max` is refused with 413, whatever else is wrong with 400.
pub async fn find(headers: &HeaderMap, body: Bytes, bytes_max: usize) -> Result<Bytes, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match essence.as_str() {
        "multipart/form-data" => multipart(content_type, body, bytes_max).await,
        "application/json" => json(&body),
        _ if body.is_empty() => Err(ApiError::bad_request(
            "the body is empty: send the bytes of a JPEG, PNG, WebP, GIF or BMP image",
        )),
        _ => Ok(body),
    }
}

async fn multipart(content_type: &str, body: Bytes, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut request = Request::post("/")
        .header(header::CONTENT_TYPE, content_type)
        .body(Body::from(body))
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    // The body is here already, within its own limit; axum's would be smaller.
    DefaultBodyLimit::disable().apply(&mut request);
    let wrong = |error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("the multipart body cannot be read: {error}"))
    };
    let mut fields =
        Multipart::from_request(request, &()).await.map_err(|error| wrong(&error.body_text()))?;
    while let Some(field) = fields.next_field().await.map_err(|error| wrong(&error.body_text()))? {
        if field.name().is_some_and(|name| FIELDS.contains(&name)) {
            let image = field.bytes().await.map_err(|error| wrong(&error.body_text()))?;
            if image.len() > bytes_max {
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the image is too large"));
            }
            return Ok(image);
        }
    }
    Err(ApiError::bad_request("the form has no field image, file, data or body"))
}

fn json(body: &[u8]) -> Result<Bytes, ApiError> {
    let form: JsonForm = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!("the JSON body must be {{\"image\":\"<base64>\"}}: {error}"))
    })?;
    Ok(form.image.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(content_type: &str, body: &str, expected: Result<&str, &str>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        match (find(&headers, Bytes::from(body.to_owned()), 100).await, expected) {
            (Ok(image), Ok(expected)) => assert_eq!(image, expected),
            (Err(error), Err(says)) => {
                assert_eq!(error.status, StatusCode::BAD_REQUEST);
                assert!(error.message.contains(says), "{} does not say {says}", error.message);
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[tokio::test]
    async fn every_form_yields_the_image() {
        let form = |name: &str| {
            format!(
                "--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a\"\r\n\r\nIMG\r\n--x--\r\n"
            )
        };
        check("image/jpeg", "IMG", Ok("IMG")).await;
        check("application/octet-stream", "IMG", Ok("IMG")).await;
        check("application/json; charset=utf-8", r#"{"image":"SU1H"}"#, Ok("IMG")).await;
        for name in FIELDS {
            check("multipart/form-data; boundary=x", &form(name), Ok("IMG")).await;
        }
        check("multipart/form-data; boundary=x", &form("photo"), Err("no field image")).await;
        check("multipart/form-data", &form("image"), Err("boundary")).await;
        check("multipart/form-data; boundary=x", "--x\r\nbroken", Err("cannot be read")).await;
        check("application/json", r#"{"image":"***"}"#, Err("not base64")).await;
        check("application/json", "{}", Err("must be {\"image\"")).await;
        check("image/png", "", Err("the body is empty")).await;
    }

    #[tokio::test]
    async fn a_form_may_be_as_long_as_a_body() {
        let photo = "x".repeat(5 << 20);
        let form =
            format!("--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{photo}\r\n--x--\r\n");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "multipart/form-data; boundary=x".parse().unwrap());
        let found = find(&headers, form.clone().into(), 10 << 20).await.unwrap();
        assert_eq!(found.len(), photo.len());
        let refused = find(&headers, form.into(), 1 << 20).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
