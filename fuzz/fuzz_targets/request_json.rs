//! Any bytes are a request of each JSON dialect, or an error: never a panic, never more than was asked for.
//!
//! `cargo +nightly fuzz run request_json fuzz/corpus/request_json`
#![no_main]
use bytes::Bytes;
use elastic::serve_model::Input;
use elastic::serve_model::dialects::{Bounds, photo, v1, v2};
use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds { instances_max: 4, side: 2 };

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
}

fn check(inputs: &[Input], body: &Bytes) {
    assert!((1..=BOUNDS.instances_max).contains(&inputs.len()));
    let mut held = 0;
    for input in inputs {
        match input {
            Input::Encoded(bytes) => held += bytes.len(),
            Input::Planes(bytes) => assert_eq!(bytes.len(), 3 * 2 * 2 * 4),
        }
    }
    assert!(held <= body.len());
}

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(inputs) = v1::parse(&body, BOUNDS) {
        check(&inputs, &body);
    }
    if let Ok(request) = v2::request::parse(body.clone(), None, BOUNDS) {
        check(&request.inputs, &body);
        assert!((1..=2).contains(&request.outputs.len()));
        assert!(request.outputs.iter().all(|output| output.classes != Some(0)));
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let found = RUNTIME.with(|runtime| runtime.block_on(photo::find(&headers, body.clone(), body.len())));
    if let Ok(photo) = found {
        assert!(photo.len() <= body.len());
    }
});
