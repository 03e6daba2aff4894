//! Any bytes are an inference request with binary tensors, or an error: never a panic, never more than arrived.
//!
//! The first byte says what the rest is: an arbitrary body behind the length of its JSON (two bytes), or the
//! binary part of a request whose JSON is right.
//!
//! `cargo +nightly fuzz run request_v2_binary fuzz/corpus/request_v2_binary`
#![no_main]
use bytes::Bytes;
use elastic::serve_model::Input;
use elastic::serve_model::dialects::{Bounds, v2::request::parse};
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds { instances_max: 4, side: 1 };

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let (body, json_length) = if kind & 1 == 0 {
        let Some((length, body)) = rest.split_first_chunk::<2>() else { return };
        (body.to_vec(), usize::from(u16::from_le_bytes(*length)))
    } else {
        let (count, size) = (kind >> 2 & 7, rest.len());
        let (datatype, shape) =
            if kind & 2 == 0 { ("BYTES", format!("[{count}]")) } else { ("FP32", format!("[{count},3,1,1]")) };
        let json = format!(
            r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"parameters":{{"binary_data_size":{size}}}}}]}}"#
        );
        ([json.as_bytes(), rest].concat(), json.len())
    };
    let body = Bytes::from(body);
    let Ok(request) = parse(body.clone(), Some(json_length), BOUNDS) else { return };
    assert!((1..=BOUNDS.instances_max).contains(&request.inputs.len()));
    let held: usize = request
        .inputs
        .iter()
        .map(|input| match input {
            Input::Encoded(bytes) | Input::Planes(bytes) => bytes.len(),
        })
        .sum();
    // JSON takes two characters for a number, which is held in four bytes.
    assert!(held <= 2 * body.len());
});
