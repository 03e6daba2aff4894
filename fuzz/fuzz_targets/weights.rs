//! Any bytes are weights, float or int8, or a checkpoint, or an error: never a panic.
//!
//! `cargo +nightly fuzz run weights fuzz/corpus/weights`
#![no_main]
use candle_core::DType;
use elastic::model::network::NETWORKS;
use elastic::model::{quantise, weights};
use elastic::weights::convert;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // So few bytes cannot hold a network, be they int8 weights, a checkpoint of PyTorch's or float weights.
    assert!(quantise::file::parse(bytes).is_err());
    assert!(convert::convert(bytes, None, DType::F16).is_err());
    if let Ok(tensors) = weights::parse(bytes) {
        let _ = weights::recognise(&tensors);
        for network in NETWORKS {
            assert!(weights::check(network, &tensors).is_err());
        }
    }
});
