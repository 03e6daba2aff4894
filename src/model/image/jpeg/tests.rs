//! The decoder against the library that reads everything else.
use super::encoder::Picture;
use super::*;
use crate::model::image::{Decoder, plain};
use crate::model::network::{EFFICIENTNET_LITE0, Filter, MOBILENET_V2};
use proptest::prelude::*;
use std::path::Path;

const PIXELS_MAX: u64 = 1 << 24;

const SAMPLINGS: [&[(u8, u8)]; 9] = [
    &[(1, 1)],
    &[(2, 2)],
    &[(1, 1), (1, 1), (1, 1)],
    &[(2, 1), (1, 1), (1, 1)],
    &[(2, 2), (1, 1), (1, 1)],
    &[(1, 2), (1, 1), (1, 1)],
    &[(4, 1), (1, 1), (1, 1)],
    &[(2, 2), (1, 2), (1, 2)],
    &[(2, 2), (2, 1), (2, 1)],
];

/// The whole of a square, pixel by pixel.
fn unchanged(side: usize) -> Preprocessing {
    let side = side as u32;
    Preprocessing { resize: side, crop: side, filter: Filter::Bilinear, ..MOBILENET_V2.preprocessing }
}

/// Soft shades with some texture, far enough from black, white and grey that nothing is cut off.
fn shade(component: usize, x: usize, y: usize) -> f64 {
    let wave = |period: f64, shift: f64| ((x as f64 + shift) / period).sin() * (y as f64 / period).cos();
    let texture = ((x * 7 + y * 13 + component * 5) % 11) as f64;
    match component {
        0 => 125.0 + 45.0 * wave(9.0, 0.0) + texture,
        _ => 128.0 + 25.0 * wave(11.0, component as f64 * 9.0),
    }
}

/// What this decoder makes of a file, or `None` if it leaves it to the library.
fn own(file: &[u8], preprocessing: &Preprocessing) -> Option<Vec<u8>> {
    Jpeg::read(file)?.square(preprocessing, &mut Buffers::new(), Instructions::best())
}

fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

fn picture(width: usize, height: usize, sampling: &[(u8, u8)]) -> Picture {
    Picture { width, height, sampling: sampling.to_vec(), restart_interval: 0, step: 3, long_codes: false }
}

#[test]
fn every_size_and_sampling_is_read_as_the_library_reads_it() {
    for sampling in SAMPLINGS {
        for (width, height) in
            (1..=34).map(|side| (side, 35 - side)).chain([(16, 16), (48, 48), (1, 1), (33, 33)])
        {
            let file = picture(width, height, sampling).write(shade);
            let preprocessing = unchanged(width.min(height));
            let own = own(&file, &preprocessing).unwrap();
            let expected = plain(&file, &preprocessing, PIXELS_MAX).unwrap();
            let apart = largest_difference(&own, &expected);
            assert!(apart <= 3, "{width} x {height}, {sampling:?}: {apart} apart");
        }
    }
}

#[test]
fn photos_are_read_as_the_library_reads_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos");
    let mut decoder = Decoder::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let file = std::fs::read(&path).unwrap();
        for network in [&MOBILENET_V2, &EFFICIENTNET_LITE0] {
            let own = own(&file, &network.preprocessing).unwrap();
            let expected = plain(&file, &network.preprocessing, PIXELS_MAX).unwrap();
            // The library rounds and cuts off at every step, which shows where contrasts are hard.
            let apart = mean_difference(&own, &expected);
            assert!(apart < 0.8, "{}: {apart} apart on average", path.display());
            assert_eq!(own, decoder.pixels(&file, &network.preprocessing, PIXELS_MAX).unwrap());
        }
        count += 1;
    }
    assert_eq!(count, 11);
}

#[test]
fn all_instructions_give_the_same_pixels() {
    let file =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos/goldfish.jpg")).unwrap();
    for preprocessing in [&MOBILENET_V2.preprocessing, &EFFICIENTNET_LITE0.preprocessing, &unchanged(100)] {
        let square = |instructions| {
            Jpeg::read(&file).unwrap().square(preprocessing, &mut Buffers::new(), instructions).unwrap()
        };
        assert_eq!(square(Instructions::best()), square(Instructions::PORTABLE));
    }
}

#[test]
fn what_is_not_for_this_decoder_is_left_to_the_library() {
    let odd = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos/odd");
    for name in ["progressive.jpg", "cmyk.jpg"] {
        let file = std::fs::read(odd.join(name)).unwrap();
        assert!(Jpeg::read(&file).is_none(), "{name}");
    }
    let mut file = picture(64, 64, SAMPLINGS[4]).write(shade);
    let preprocessing = &MOBILENET_V2.preprocessing;
    assert!(own(&file, preprocessing).is_some());
    let library = plain(&file, preprocessing, PIXELS_MAX).unwrap();
    // Components that name themselves red, green and blue.
    let frame = file.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    for (at, id) in b"RGB".iter().enumerate() {
        file[frame + 10 + at * 3] = *id;
        let scan = file.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        file[scan + 5 + at * 2] = *id;
    }
    assert!(Jpeg::read(&file).is_none());
    let coloured = Decoder::new().pixels(&file, preprocessing, PIXELS_MAX).unwrap();
    assert!(mean_difference(&coloured, &library) > 10.0);
}

#[test]
fn missing_and_misplaced_parts_are_noticed() {
    let whole = Picture { restart_interval: 3, ..picture(64, 64, SAMPLINGS[4]) }.write(shade);
    let preprocessing = unchanged(64);
    assert!(own(&whole, &preprocessing).is_some());
    assert!((0..whole.len()).all(|length| own(&whole[..length], &preprocessing).is_none()));
    let restart =
        whole.windows(2).rposition(|pair| pair[0] == 0xFF && matches!(pair[1], 0xD0..=0xD7)).unwrap();
    let mut misplaced = whole.clone();
    misplaced[restart + 1] ^= 1;
    assert_eq!(own(&misplaced, &preprocessing), None);
    // A restart interval's end cut off.
    let mut short = whole.clone();
    short.drain(restart - 4..restart);
    assert_eq!(own(&short, &preprocessing), None);
    // The same without restart markers, with the end of the image where it belongs.
    let mut short = picture(64, 64, SAMPLINGS[4]).write(shade);
    let length = short.len();
    short.drain(length - 40..length - 2);
    assert_eq!(own(&short, &preprocessing), None);
}

/// Pictures of any shape.
fn any_picture() -> impl Strategy<Value = Picture> {
    let size = prop_oneof![1_usize..40, 1_usize..200];
    let sampling = prop::sample::select(&SAMPLINGS[..]);
    (size.clone(), size, sampling, 0_u16..20, 1_u8..40, any::<bool>()).prop_map(
        |(width, height, sampling, restart_interval, step, long_codes)| Picture {
            width,
            height,
            sampling: sampling.to_vec(),
            restart_interval,
            step,
            long_codes,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_picture_is_resized_as_the_library_does(
        picture in any_picture(),
        resize in 8_u32..80,
        crop_percent in 10_u32..=100,
        bicubic in any::<bool>(),
    ) {
        let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
        let crop = (resize * crop_percent / 100).max(1);
        let preprocessing = Preprocessing { resize, crop, filter, ..MOBILENET_V2.preprocessing };
        let file = picture.write(shade);
        let own = own(&file, &preprocessing).unwrap();
        let expected = plain(&file, &preprocessing, PIXELS_MAX).unwrap();
        let apart = largest_difference(&own, &expected);
        prop_assert!(apart <= 4, "{} apart", apart);
    }

    #[test]
    fn noise_of_every_strength_comes_through(
        side in 8_usize..40,
        sampling in prop::sample::select(&SAMPLINGS[..]),
        long_codes in any::<bool>(),
        seed in any::<u32>(),
        strength in 1_u32..80,
    ) {
        let noise = |component: usize, x: usize, y: usize| {
            let mut state = ((component * 40 + y) * 40 + x) as u32 ^ seed;
            for _ in 0..3 {
                state = (state ^ state >> 15).wrapping_mul(0x2C1B_3C6D);
            }
            // Chroma keeps to itself what would be cut off in the colours.
            let strength = if component == 0 { strength } else { strength / 4 };
            128.0 + f64::from((state >> 8) % (strength + 1)) - f64::from(strength) / 2.0
        };
        let picture = Picture { long_codes, step: 1, ..picture(side, side, sampling) };
        let file = picture.write(noise);
        let own = own(&file, &unchanged(side)).unwrap();
        let expected = plain(&file, &unchanged(side), PIXELS_MAX).unwrap();
        let apart = largest_difference(&own, &expected);
        prop_assert!(apart <= 3, "{} apart", apart);
    }

    #[test]
    fn damage_is_never_a_panic(
        picture in any_picture(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = picture.write(shade);
        for (at, bit) in flips {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let preprocessing = &MOBILENET_V2.preprocessing;
        if let Ok(pixels) = Decoder::new().pixels(&file, preprocessing, 1 << 20) {
            prop_assert_eq!(pixels.len(), 224 * 224 * 3);
        }
    }
}
