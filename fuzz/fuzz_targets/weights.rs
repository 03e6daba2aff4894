//! Any bytes are weights or an error: never a panic.
//!
//! `cargo +nightly fuzz run weights fuzz/corpus/weights`
#![no_main]
use elastic::model::network::NETWORKS;
use elastic::model::weights;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tensors) = weights::parse(bytes) {
        let _ = weights::recognise(&tensors);
        for network in NETWORKS {
            // So few bytes cannot hold a network.
            assert!(weights::check(network, &tensors).is_err());
        }
    }
});
