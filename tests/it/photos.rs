//! Right answers: recorded logits, labelled photos, odd images, and images that must be refused.
#![allow(clippy::unwrap_used)] // helpers of tests are tests
use candle_core::Device;
use elastic::model::kernels::isa::{Isa, Level};
use elastic::model::{DecodeError, Model, ModelArgs, Precision, SessionSize};
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, Rgba};
use std::io::Cursor;
use std::path::{Path, PathBuf};

fn photos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos")
}

fn photo(name: &str) -> Vec<u8> {
    std::fs::read(photos().join(name)).unwrap()
}

/// The network that is always there.
fn embedded() -> Model {
    let args = ModelArgs {
        model: Some("efficientnet_lite0".to_owned()),
        weights_dir: "/nonexistent".into(),
        ..ModelArgs::default()
    };
    Model::load(&args).unwrap()
}

/// A file of the folder that is shared between checkouts, or `None` with a reason printed.
fn shared(name: &str) -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/weights").join(name);
    if !file.exists() {
        println!("skipped: {} is not there", file.display());
        return None;
    }
    Some(file)
}

fn mobilenet() -> Option<Model> {
    let weights = shared("mobilenet_v2.safetensors")?;
    Some(Model::load(&ModelArgs { weights: Some(weights), ..ModelArgs::default() }).unwrap())
}

/// Indices of the most probable classes.
fn best(model: &Model, bytes: &[u8], count: usize) -> Vec<usize> {
    let input = model.decode(bytes).unwrap();
    let predictions = model.top_k(&model.logits(&input).unwrap(), count);
    predictions.into_iter().map(|prediction| prediction.index).collect()
}

/// How many labelled photos are right at top 1 and at top 5, of how many.
fn score(model: &Model) -> (usize, usize, usize) {
    let labels = String::from_utf8(photo("labels.tsv")).unwrap();
    let (mut first, mut among_five, mut all) = (0, 0, 0);
    for line in labels.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let accepted: Vec<usize> = columns[1].split(',').map(|index| index.trim().parse().unwrap()).collect();
        let best = best(model, &photo(columns[0]), 5);
        let hit = |indices: &[usize]| usize::from(indices.iter().any(|index| accepted.contains(index)));
        println!("{} {}: {best:?}, accepted {accepted:?}", model.name(), columns[0]);
        first += hit(&best[..1]);
        among_five += hit(&best);
        all += 1;
    }
    (first, among_five, all)
}

#[test]
fn the_embedded_network_knows_the_photos() {
    let (first, among_five, all) = score(&embedded());
    assert_eq!((among_five, all), (11, 11));
    // On plate.jpg `cup` and `mixing bowl` are a hundredth apart: the last bit of a pixel decides.
    assert!(first >= 9, "{first} of {all} right at top 1");
}

#[test]
fn mobilenet_knows_the_photos() {
    let Some(model) = mobilenet() else { return };
    let (first, among_five, all) = score(&model);
    assert_eq!((among_five, all), (11, 11));
    assert!(first >= 8, "{first} of {all} right at top 1");
}

#[test]
fn mobilenet_gives_the_recorded_logits() {
    let (Some(model), Some(vectors)) = (mobilenet(), shared("reference_vectors.safetensors")) else { return };
    let vectors = candle_core::safetensors::load(vectors, &Device::Cpu).unwrap();
    for case in 0..3 {
        // Recorded channels first; the network takes channels last.
        let input = vectors[&format!("input_{case}")].permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let expected = vectors[&format!("output_{case}")].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = model.logits(&input).unwrap();
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let apart = expected.iter().zip(&got).fold(0.0_f32, |apart, (a, b)| apart.max((a - b).abs()));
        println!("case {case}: {apart} apart of {largest}");
        assert!(apart / largest < 0.005, "case {case}: {apart} apart of {largest}");
    }
}

#[test]
fn a_batch_is_its_images() {
    let model = embedded();
    let inputs = ["goldfish.jpg", "dam.jpg"].map(|name| model.decode(&photo(name)).unwrap());
    let batch = candle_core::Tensor::cat(&inputs, 0).unwrap();
    let together = model.classifier().logits(&batch).unwrap().to_vec2::<f32>().unwrap();
    for (input, together) in inputs.iter().zip(together) {
        for (alone, together) in model.logits(input).unwrap().iter().zip(together) {
            assert!((alone - together).abs() < 1e-3, "{alone} alone, {together} in a batch");
        }
    }
}

/// The goldfish, small, to be saved in other ways.
fn goldfish() -> DynamicImage {
    image::load_from_memory(&photo("goldfish.jpg")).unwrap().thumbnail(300, 300)
}

fn save(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn odd_images_are_classified() {
    let model = embedded();
    for name in ["cmyk.jpg", "progressive.jpg", "lossy.webp", "palette.png", "animated.gif", "animated.webp"]
    {
        assert_eq!(best(&model, &photo(&format!("odd/{name}")), 1), [1], "{name}");
    }
    let fish = goldfish();
    let rgba = DynamicImage::ImageRgba8(fish.to_rgba8());
    for (name, bytes) in [
        ("16-bit PNG", save(&DynamicImage::ImageRgb16(fish.to_rgb16()), ImageFormat::Png)),
        ("16-bit PNG with alpha", save(&DynamicImage::ImageRgba16(fish.to_rgba16()), ImageFormat::Png)),
        ("PNG with alpha", save(&rgba, ImageFormat::Png)),
        ("WebP with alpha", save(&rgba, ImageFormat::WebP)),
        ("GIF", save(&rgba, ImageFormat::Gif)),
        ("BMP", save(&fish, ImageFormat::Bmp)),
    ] {
        assert_eq!(best(&model, &bytes, 1), [1], "{name}");
    }
    // Without its colour a goldfish is hard to tell; that there is an answer is what counts.
    let grey = DynamicImage::ImageLuma8(fish.to_luma8());
    let grey_alpha = DynamicImage::ImageLumaA16(fish.to_luma_alpha16());
    for bytes in
        [save(&grey, ImageFormat::Jpeg), save(&grey, ImageFormat::Png), save(&grey_alpha, ImageFormat::Png)]
    {
        assert_eq!(best(&model, &bytes, 5).len(), 5);
    }
}

#[test]
fn transparency_is_blended_onto_white() {
    let model = embedded();
    // A fish cut out on a transparent ground whose hidden colour is black.
    let mut cut = goldfish().to_rgba8();
    let mut onto_white = cut.clone();
    let (width, height) = cut.dimensions();
    for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
        if x.abs_diff(width / 2) > width / 3 || y.abs_diff(height / 2) > height / 3 {
            cut.put_pixel(x, y, Rgba([0, 0, 0, 0]));
            onto_white.put_pixel(x, y, Rgba([255; 4]));
        }
    }
    let decode = |image: image::RgbaImage| {
        let tensor = model.decode(&save(&image.into(), ImageFormat::Png)).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap()
    };
    assert_eq!(decode(cut), decode(onto_white));
}

/// A JPEG with an EXIF block that states `orientation`.
fn with_orientation(jpeg: &[u8], orientation: Orientation) -> Vec<u8> {
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation.to_exif(), 0, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &exif, &jpeg[2..]].concat()
}

fn fine_jpeg(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 97)).unwrap();
    bytes
}

#[test]
fn photos_are_turned_as_their_exif_says() {
    let model = embedded();
    let upright = image::load_from_memory(&photo("dam.jpg")).unwrap();
    let expected = best(&model, &save(&upright, ImageFormat::Png), 1);
    let decode = |bytes: &[u8]| model.decode(bytes).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let straight = decode(&fine_jpeg(&upright));
    for exif in 1..=8 {
        let orientation = Orientation::from_exif(exif).unwrap();
        let undo = match orientation {
            Orientation::Rotate90 => Orientation::Rotate270,
            Orientation::Rotate270 => Orientation::Rotate90,
            own_inverse => own_inverse,
        };
        let mut stored = upright.clone();
        stored.apply_orientation(undo);
        let bytes = with_orientation(&fine_jpeg(&stored), orientation);
        assert_eq!(best(&model, &bytes, 1), expected, "orientation {exif}");
        // The same picture but for what JPEG loses; turned another way it would be far off.
        let pixels = decode(&bytes);
        let apart: u32 = pixels.iter().zip(&straight).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let apart = f64::from(apart) / pixels.len() as f64;
        assert!(apart < 1.2, "orientation {exif}: {apart} apart on average");
    }
}

/// A PNG of which only the header is there, stating a size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 6, 0, 0, 0]);
    let crc = chunk.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    });
    let data = [&[0, 0, 0, 0][..], b"IDAT", &0x35AF_061E_u32.to_be_bytes()].concat();
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0D", &chunk[..], &(!crc).to_be_bytes(), &data].concat()
}

#[test]
fn what_is_no_image_is_refused() {
    let model = embedded();
    let refused = |bytes: &[u8]| model.decode(bytes).unwrap_err();
    assert_eq!(refused(b""), DecodeError::Empty);
    assert_eq!(refused(b"just some text"), DecodeError::UnknownFormat);
    assert_eq!(refused(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>"), DecodeError::UnknownFormat);
    // Formats that are recognised but not built in.
    assert_eq!(refused(b"II*\0\x08\0\0\0\0\0\0\0\0\0"), DecodeError::UnknownFormat);
    let bomb = refused(&png_header(50_000, 50_000));
    assert_eq!(bomb, DecodeError::TooLarge { width: 50_000, height: 50_000, pixels_max: 50_000_000 });
    assert!(matches!(refused(&png_header(500, 500)), DecodeError::Corrupt(_)));
    assert!(matches!(refused(&png_header(0, 500)), DecodeError::Corrupt(_)));
}

#[test]
fn truncated_images_are_refused() {
    let model = embedded();
    let fish = goldfish();
    let gif = photo("odd/animated.gif");
    for (name, whole) in [
        ("JPEG", photo("goldfish.jpg")),
        ("progressive JPEG", photo("odd/progressive.jpg")),
        ("PNG", save(&fish, ImageFormat::Png)),
        ("WebP", photo("odd/lossy.webp")),
        ("GIF", gif[..gif.len() / 2].to_vec()),
        ("BMP", save(&fish, ImageFormat::Bmp)),
    ] {
        for percent in [1, 10, 50, 90] {
            let part = &whole[..whole.len() * percent / 100];
            let error = model.decode(part).err();
            let refused = matches!(error, Some(DecodeError::Corrupt(_) | DecodeError::UnknownFormat));
            assert!(refused, "{percent} % of a {name}: {error:?}");
        }
    }
}

#[test]
fn the_pixel_limit_is_the_operators() {
    let args =
        ModelArgs { pixels_max: 1, model: Some("efficientnet_lite0".to_owned()), ..ModelArgs::default() };
    let model = Model::load(&args).unwrap();
    let large = DynamicImage::new_rgb8(1001, 1000);
    let error = model.decode(&save(&large, ImageFormat::Png)).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { width: 1001, height: 1000, pixels_max: 1_000_000 });
    assert!(model.decode(&save(&DynamicImage::new_rgb8(1000, 1000), ImageFormat::Png)).is_ok());
}

#[test]
fn inference_allocates_nothing_once_it_is_warm() {
    let model = embedded();
    let photo = model.decode(&photo("goldfish.jpg")).unwrap();
    let batch = candle_core::Tensor::cat(&[&photo, &photo], 0).unwrap();
    let size = model.input_size();
    let mut session = model
        .classifier()
        .session(SessionSize { images_max: 2, height: size, width: size, threads: 1 })
        .unwrap();
    let first = session.logits(&photo).unwrap().to_vec();
    for images in [&photo, &batch] {
        let allocations = allocation_counter::measure(|| {
            session.logits(images).unwrap();
        });
        assert_eq!(allocations.count_total, 0, "{:?}", images.dims());
    }
    // And the memory that is used again does not show in the answer.
    assert_eq!(session.logits(&photo).unwrap(), first);
}

#[test]
fn every_instruction_set_gives_the_same_logits() {
    let args = |isa| ModelArgs { weights_dir: "/nonexistent".into(), isa: Some(isa), ..ModelArgs::default() };
    let bytes = photo("goldfish.jpg");
    let logits = |isa: Isa| {
        let model = Model::load(&args(isa.level())).unwrap();
        model.logits(&model.decode(&bytes).unwrap()).unwrap()
    };
    let expected = logits(Isa::new(Level::Scalar).unwrap());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for isa in Isa::all() {
        for (got, expected) in logits(isa).iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4 * largest, "{isa}: {got} instead of {expected}");
        }
    }
}

#[test]
fn an_instruction_set_that_the_cpu_lacks_is_refused() {
    let missing = if cfg!(target_arch = "aarch64") { Level::Avx2 } else { Level::Neon };
    let args = ModelArgs { weights_dir: "/nonexistent".into(), isa: Some(missing), ..ModelArgs::default() };
    let error = Model::load(&args).err().unwrap().to_string();
    assert!(error.contains("does not have") && error.contains("scalar"), "{error}");
}

#[test]
fn threads_and_number_formats_change_little_or_nothing() {
    let args = ModelArgs { weights_dir: "/nonexistent".into(), ..ModelArgs::default() };
    let photos: Vec<Vec<u8>> = ["goldfish.jpg", "dam.jpg", "solar-dish.jpg"].map(photo).into();
    let logits = |args: ModelArgs| {
        let model = Model::load(&args).unwrap();
        let mut session = model.session(3).unwrap();
        let inputs: Vec<_> = photos.iter().map(|bytes| model.decode(bytes).unwrap()).collect();
        let together = session.logits(&candle_core::Tensor::cat(&inputs, 0).unwrap()).unwrap();
        let alone: Vec<_> = inputs.iter().flat_map(|input| session.logits(input).unwrap()).collect();
        assert_eq!(alone, together);
        alone
    };
    let precise = logits(args.clone());
    for (precision, tolerance) in [(Precision::F32, 0.0), (Precision::Bf16, 0.1), (Precision::Int8, 0.3)] {
        let of = |threads_per_image| {
            logits(ModelArgs { precision: Some(precision), threads_per_image, ..args.clone() })
        };
        let (one, three) = (of(1), of(3));
        assert_eq!(one, three, "{precision}");
        for (one, precise) in one.iter().zip(&precise) {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let apart =
                norm(&mut one.iter().zip(precise).map(|(a, b)| a - b)) / norm(&mut precise.iter().copied());
            assert!(apart <= tolerance, "{precision}: {apart} apart");
        }
    }
}
