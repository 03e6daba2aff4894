//! Any bytes are a picture or an error: never a panic, never more pixels than asked for.
//!
//! `cargo +nightly fuzz run decode fuzz/corpus/decode tests/photos tests/photos/odd`
#![no_main]
use elastic::model::image::Decoder;
use elastic::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// Small, so that time goes into many files and not into large ones.
const PIXELS_MAX: u64 = 1 << 20;

thread_local! {
    /// One for all inputs, as in the service, where one photo must not harm the next.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new());
}

fuzz_target!(|bytes: &[u8]| {
    DECODER.with_borrow_mut(|decoder| {
        for network in [&MOBILENET_V2, &EFFICIENTNET_LITE0] {
            let preprocessing = &network.preprocessing;
            if let Ok(pixels) = decoder.pixels(bytes, preprocessing, PIXELS_MAX) {
                assert_eq!(pixels.len(), (preprocessing.crop * preprocessing.crop * 3) as usize);
            }
        }
    });
});
