//! Tests of the request's parser.
#![allow(clippy::needless_pass_by_value)] // what `json!` makes is handed on as it is
use super::*;
use http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

const BOUNDS: Bounds = Bounds { instances_max: 3, side: 1 };

fn parsed(json: &Value, binary: &[u8]) -> Result<InferRequest, ApiError> {
    let json = serde_json::to_vec(json).unwrap();
    let length = (!binary.is_empty()).then_some(json.len());
    parse([&json, binary].concat().into(), length, BOUNDS)
}

fn refused(json: &Value, binary: &[u8], says: &str) {
    let error = parsed(json, binary).expect_err(says);
    assert_eq!(error.status, StatusCode::BAD_REQUEST);
    assert!(error.message.contains(says), "{} does not say {says}", error.message);
}

fn with_input(input: Value) -> Value {
    json!({ "inputs": [input] })
}

fn strings(shape: Value, data: Value) -> Value {
    with_input(json!({ "name": "image", "datatype": "BYTES", "shape": shape, "data": data }))
}

fn binary(datatype: &str, shape: Value, size: usize) -> Value {
    let parameters = json!({ "binary_data_size": size });
    with_input(json!({ "name": "x", "datatype": datatype, "shape": shape, "parameters": parameters }))
}

fn encoded_as(elements: &[&[u8]]) -> Vec<u8> {
    elements.iter().flat_map(|element| [&(element.len() as u32).to_le_bytes(), *element].concat()).collect()
}

fn photo(bytes: &'static [u8]) -> Input {
    Input::Encoded(Bytes::from_static(bytes))
}

#[test]
fn json_holds_strings_or_numbers() {
    let request = parsed(&strings(json!([2]), json!(["SU1H", "Rk9P"])), b"").unwrap();
    assert_eq!(request.inputs, [photo(b"IMG"), photo(b"FOO")]);
    let whole = |name| Output { name, classes: None, binary: false };
    assert_eq!(request.outputs, [whole(OutputName::Probabilities), whole(OutputName::Logits)]);
    assert_eq!(parsed(&strings(json!([1, 1]), json!([["SU1H"]])), b"").unwrap().inputs, [photo(b"IMG")]);
    let pixels =
        json!({ "datatype": "FP32", "shape": [2, 3, 1, 1], "data": [[[[1]], [[2]], [[3]]], 4, 5, 6] });
    let bytes =
        |values: [f32; 3]| Input::Planes(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    let request = parsed(&with_input(pixels), b"").unwrap();
    assert_eq!(request.inputs, [bytes([1.0, 2.0, 3.0]), bytes([4.0, 5.0, 6.0])]);
}

#[test]
fn parameters_choose_the_form_of_the_outputs() {
    let mut request = strings(json!([1]), json!(["SU1H"]));
    request["id"] = json!("42");
    request["parameters"] = json!({ "binary_data_output": true, "sequence_id": 7 });
    request["outputs"] = json!([
        { "name": "logits", "parameters": { "classification": 3, "binary_data": false } },
        { "name": "probabilities" },
    ]);
    let request = parsed(&request, b"").unwrap();
    assert_eq!(request.id.as_deref(), Some("42"));
    let logits = Output { name: OutputName::Logits, classes: Some(3), binary: false };
    let probabilities = Output { name: OutputName::Probabilities, classes: None, binary: true };
    assert_eq!(request.outputs, [logits, probabilities]);
}

#[test]
fn a_body_without_json_is_one_image() {
    let request = parse("IMG".into(), Some(0), BOUNDS).unwrap();
    assert_eq!(request.inputs, [photo(b"IMG")]);
    assert!(request.outputs.iter().all(|output| output.binary));
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_reason() {
    let one = || strings(json!([1]), json!(["SU1H"]));
    refused(&json!([]), b"", "cannot be read");
    refused(&json!({ "inputs": [] }), b"", "0 inputs");
    refused(&json!({ "inputs": [one()["inputs"][0], one()["inputs"][0]] }), b"", "2 inputs");
    refused(&strings(json!([2]), json!(["SU1H"])), b"", "2 base64 strings");
    refused(&strings(json!([1]), json!([1])), b"", "1 base64 strings");
    refused(&strings(json!([1]), json!(["*"])), b"", "not base64");
    refused(&strings(json!([0]), json!([])), b"", "0 images: send 1 to 3");
    refused(&strings(json!([4]), json!(["", "", "", ""])), b"", "4 images: send 1 to 3");
    refused(&strings(json!([u64::MAX]), json!([])), b"", "send 1 to 3");
    refused(&strings(json!([1, 2]), json!([])), b"", "must be [N] or [N, 1]");
    refused(&strings(json!([-1]), json!([])), b"", "cannot be read");
    refused(&with_input(json!({ "datatype": "INT8", "shape": [1], "data": [1] })), b"", "send BYTES or FP32");
    refused(&with_input(json!({ "datatype": "BYTES", "shape": [1] })), b"", "no data");
    let nhwc = json!({ "datatype": "FP32", "shape": [1, 1, 1, 3], "data": [1, 2, 3] });
    refused(&with_input(nhwc), b"", "must be [N, 3, 1, 1]");
    let short = json!({ "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [1, 2] });
    refused(&with_input(short), b"", "has 2 values, its shape says 3");
    refused(&one(), b"more", "4 bytes follow the JSON, binary_data_size says 0");
    refused(&binary("BYTES", json!([1]), 4), b"", "0 bytes follow");
    let mut both = binary("BYTES", json!([1]), 4);
    both["inputs"][0]["data"] = json!(["SU1H"]);
    refused(&both, b"more", "both data and binary_data_size");
    for (outputs, says) in [
        (json!([{ "name": "classes" }]), "unknown variant"),
        (json!([{ "name": "logits" }, { "name": "logits" }]), "asked for twice"),
        (json!([{ "name": "logits", "parameters": { "classification": 0 } }]), "at least 1"),
    ] {
        let mut request = one();
        request["outputs"] = outputs;
        refused(&request, b"", says);
    }
    let error = parse("{}".into(), Some(3), BOUNDS).unwrap_err();
    assert!(error.message.contains("said to have 3"), "{}", error.message);
}

#[test]
fn lengths_before_elements_are_checked() {
    let elements = encoded_as(&[b"IMG", b"", b"x"]);
    let check = |bytes: &[u8], count: usize| parsed(&binary("BYTES", json!([count]), bytes.len()), bytes);
    assert_eq!(check(&elements, 3).unwrap().inputs, [photo(b"IMG"), photo(b""), photo(b"x")]);
    assert!(check(&elements, 2).unwrap_err().message.contains("5 bytes follow the last"));
    assert!(check(&[0xff; 8], 1).unwrap_err().message.contains("element 0 of 1"));
}

proptest! {
    #[test]
    fn binary_images_survive_the_way(images in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..4)) {
        let elements: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let bytes = encoded_as(&elements);
        let request = parsed(&binary("BYTES", json!([images.len()]), bytes.len()), &bytes).unwrap();
        let expected: Vec<Input> = images.into_iter().map(|image| Input::Encoded(image.into())).collect();
        prop_assert_eq!(request.inputs, expected);
    }

    #[test]
    fn binary_and_json_numbers_are_the_same(values in prop::collection::vec(-1e6_f32..1e6, 6)) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = json!([2, 3, 1, 1]);
        let as_bytes = parsed(&binary("FP32", shape.clone(), bytes.len()), &bytes).unwrap();
        let input = json!({ "datatype": "FP32", "shape": shape, "data": values });
        prop_assert_eq!(as_bytes, parsed(&with_input(input), b"").unwrap());
    }

    #[test]
    fn a_cut_body_is_an_error_and_never_a_panic(share in 0.0..1.0_f64) {
        let elements = encoded_as(&[b"IMG", b"FOO"]);
        let json = serde_json::to_vec(&binary("BYTES", json!([2]), elements.len())).unwrap();
        let whole = [&json[..], &elements].concat();
        prop_assert!(parse(whole.clone().into(), Some(json.len()), BOUNDS).is_ok());
        let cut = Bytes::from(whole).slice(..((json.len() + elements.len()) as f64 * share) as usize);
        prop_assert!(parse(cut.clone(), Some(json.len()), BOUNDS).is_err());
        prop_assert!(parse(cut, None, BOUNDS).is_err());
    }
}
