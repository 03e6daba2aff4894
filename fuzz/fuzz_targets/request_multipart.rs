//! Any bytes are a form with a photo, or an error: never a panic, never more than arrived.
//!
//! An input is a `Content-Type` up to the first line feed, then the body.
//!
//! `cargo +nightly fuzz run request_multipart fuzz/corpus/request_multipart`
#![no_main]
use bytes::Bytes;
use elastic::serve_model::dialects::photo;
use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let (content_type, body) = match line {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&b"multipart/form-data; boundary=x"[..], bytes),
    };
    let Ok(content_type) = HeaderValue::from_bytes(content_type) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, content_type);
    let body = Bytes::copy_from_slice(body);
    let found = RUNTIME.with(|runtime| runtime.block_on(photo::find(&headers, body.clone(), body.len())));
    match found {
        Ok(photo) => assert!(photo.len() <= body.len()),
        Err(error) => assert!(error.status.is_client_error()),
    }
});
