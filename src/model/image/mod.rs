//! Image bytes to the network's input.
//!
//! JPEG, PNG, WebP, GIF (first frame) and BMP, of any colour type, become 8-bit RGB. Transparent pixels are
//! blended onto white, the page that most such images are drawn for. EXIF orientation is applied.
//!
//! Nearly every photo is a baseline JPEG, which `jpeg` turns into the square without making the full picture.
//! All else, and every damaged file, takes the [`plain`] path, which alone decides what is refused and why.
//!
//! **Invariant**: no buffer is allocated before the stated number of pixels was compared with the limit.
mod jpeg;

use crate::model::kernels::pixels::Instructions;
use crate::model::network::{Filter, Preprocessing};
use candle_core::{Device, Tensor};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;

/// Why bytes did not become an input. None is the server's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the image is empty: send the bytes of a JPEG, PNG, WebP, GIF or BMP file")]
    Empty,
    /// The bytes do not start as an image that is read.
    #[error("the bytes are not an image that can be read: send a JPEG, PNG, WebP, GIF or BMP file")]
    UnknownFormat,
    /// The bytes start as an image and do not go on as one.
    #[error("the image is damaged: {0}")]
    Corrupt(String),
    /// The format is known, this use of it is not.
    #[error("the image uses a feature that cannot be read: {0}; save it as a plain JPEG or PNG")]
    Unsupported(String),
    /// The image has too many pixels.
    #[error(
        "the image has {width} x {height} pixels, more than the {pixels_max} allowed: send a smaller one"
    )]
    TooLarge {
        /// Stated width, pixels.
        width: u32,
        /// Stated height, pixels.
        height: u32,
        /// The limit, pixels.
        pixels_max: u64,
    },
    /// Decoding would take too much memory.
    #[error("decoding the image would take too much memory: send a smaller one")]
    TooMuchMemory,
}

/// The formats that are read.
const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// Most bytes an image decoder may hold for each pixel allowed: 16-bit RGBA, and as much again to work in.
const BYTES_PER_PIXEL_MAX: u64 = 16;

/// Decodes, turns, resizes and crops: 8-bit pixels, `crop * crop * 3` bytes, row by row, red first.
///
/// A [`Decoder`] does the same without allocating its buffers anew for every photo.
pub fn pixels(bytes: &[u8], preprocessing: &Preprocessing, pixels_max: u64) -> Result<Vec<u8>, DecodeError> {
    Decoder::new().pixels(bytes, preprocessing, pixels_max)
}

/// A decoder that keeps its buffers from photo to photo: one for each worker thread.
///
/// It holds as many bytes as the largest photo that it was given, and three planes of the square.
pub struct Decoder {
    buffers: jpeg::Buffers,
    instructions: Instructions,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder without buffers yet.
    #[must_use]
    pub fn new() -> Self {
        Self { buffers: jpeg::Buffers::new(), instructions: Instructions::best() }
    }

    /// Decodes, turns, resizes and crops: bytes `[1, crop, crop, 3]`, red first.
    pub fn tensor(
        &mut self,
        bytes: &[u8],
        preprocessing: &Preprocessing,
        pixels_max: u64,
    ) -> Result<Tensor, DecodeError> {
        let side = preprocessing.crop as usize;
        Tensor::from_vec(self.pixels(bytes, preprocessing, pixels_max)?, (1, side, side, 3), &Device::Cpu)
            .map_err(|error| DecodeError::Corrupt(error.to_string()))
    }

    /// Decodes, turns, resizes and crops, as [`pixels`].
    pub fn pixels(
        &mut self,
        bytes: &[u8],
        preprocessing: &Preprocessing,
        pixels_max: u64,
    ) -> Result<Vec<u8>, DecodeError> {
        let read = jpeg::Jpeg::read(bytes).filter(|jpeg| {
            let (width, height) = jpeg.dimensions();
            u64::from(width) * u64::from(height) <= pixels_max
        });
        let square = read.and_then(|jpeg| {
            let square = jpeg.square(preprocessing, &mut self.buffers, self.instructions)?;
            Some((square, jpeg.orientation()))
        });
        match square {
            Some((square, Orientation::NoTransforms)) => Ok(square),
            Some((square, orientation)) => {
                let square = RgbImage::from_raw(preprocessing.crop, preprocessing.crop, square);
                Ok(turned(square.ok_or_else(lost)?.into(), orientation))
            }
            None => plain(bytes, preprocessing, pixels_max),
        }
    }
}

/// The path of every format: all pixels, then the square.
pub fn plain(bytes: &[u8], preprocessing: &Preprocessing, pixels_max: u64) -> Result<Vec<u8>, DecodeError> {
    let (image, orientation) = read(bytes, pixels_max)?;
    Ok(turned(resize(&image, preprocessing)?, orientation))
}

/// The pixels of the turned square. The crop is square and centred, so that turning it equals turning the
/// photo, at a fraction of the cost.
fn turned(mut square: DynamicImage, orientation: Orientation) -> Vec<u8> {
    square.apply_orientation(orientation);
    square.into_rgb8().into_raw()
}

fn lost() -> DecodeError {
    DecodeError::Corrupt("resizing lost pixels".to_owned())
}

/// Reads the pixels and how they are to be turned.
fn read(bytes: &[u8], pixels_max: u64) -> Result<(DynamicImage, Orientation), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = image::guess_format(bytes).ok().filter(|format| FORMATS.contains(format));
    let format = format.ok_or(DecodeError::UnknownFormat)?;
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        // The decoder would fill the missing part with grey and call it a success.
        return Err(DecodeError::Corrupt("the JPEG data ends too early".to_owned()));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels_max.saturating_mul(BYTES_PER_PIXEL_MAX));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(DecodeError::TooLarge { width, height, pixels_max });
    }
    if width == 0 || height == 0 {
        return Err(DecodeError::Corrupt(format!("it has {width} x {height} pixels")));
    }
    // A wrong EXIF block does not make the pixels wrong.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    decoder.set_limits(limits).map_err(refused)?;
    Ok((DynamicImage::from_decoder(decoder).map_err(refused)?, orientation))
}

/// What the caller is told of a decoder's error.
fn refused(error: ImageError) -> DecodeError {
    match error {
        ImageError::Limits(_) => DecodeError::TooMuchMemory,
        ImageError::Unsupported(error) => DecodeError::Unsupported(error.to_string()),
        error => DecodeError::Corrupt(error.to_string()),
    }
}

/// Whether a JPEG goes on to its end-of-image marker. Segments are skipped by their length, so that the
/// marker of an embedded thumbnail does not count.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Entropy-coded data: 0xFF is followed by 0x00 or a restart marker. Fill bytes repeat 0xFF.
        let Some(marker_at) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xFF))
        else {
            return false;
        };
        at += marker_at + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xD9) => return true,
            Some(0xFF) => {}
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

/// Resizes and crops in one step: only the pixels of the crop are computed.
fn resize(image: &DynamicImage, preprocessing: &Preprocessing) -> Result<DynamicImage, DecodeError> {
    let failed = |error: &dyn std::fmt::Display| DecodeError::Corrupt(error.to_string());
    let (width, height) = (image.width(), image.height());
    let short = f64::from(width.min(height));
    let side = short * f64::from(preprocessing.crop) / f64::from(preprocessing.resize);
    let filter = match preprocessing.filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    // A hair narrower: where the first output's outermost weight is exactly zero, the library takes the second
    // output's pixels to start after the first's, and reads outside the image where they do not.
    let side = side * (1.0 - 2e-6);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
        (f64::from(width) - side) / 2.0,
        (f64::from(height) - side) / 2.0,
        side,
        side,
    );
    let held;
    let source = match image {
        DynamicImage::ImageRgb8(image) => image.as_raw(),
        image if image.color().has_alpha() => {
            // Before resizing, so that sharp edges of the transparency ring as they would on a white page.
            held = onto_white(&image.to_rgba8());
            &held
        }
        image => {
            held = image.to_rgb8().into_raw();
            &held
        }
    };
    // Typed, so that only the code for this one kind of pixel is compiled: all kinds take minutes.
    let source = TypedImageRef::<U8x3>::from_buffer(width, height, source).map_err(|error| failed(&error))?;
    let mut square = TypedImage::<U8x3>::new(preprocessing.crop, preprocessing.crop);
    Resizer::new().resize_typed(&source, &mut square, &options).map_err(|error| failed(&error))?;
    let bytes = square.pixels().iter().flat_map(|pixel| pixel.0).collect();
    RgbImage::from_raw(preprocessing.crop, preprocessing.crop, bytes)
        .map(DynamicImage::ImageRgb8)
        .ok_or_else(lost)
}

/// Blends RGBA pixels onto white.
fn onto_white(rgba: &[u8]) -> Vec<u8> {
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    rgba.chunks_exact(4).flat_map(|p| [blend(p[0], p[3]), blend(p[1], p[3]), blend(p[2], p[3])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::MOBILENET_V2;
    use proptest::prelude::*;

    fn square(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let tensor = Decoder::new().tensor(bytes.get_ref(), &MOBILENET_V2.preprocessing, 1 << 20).unwrap();
        assert_eq!(tensor.dims(), [1, 224, 224, 3]);
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn one_colour_stays_one_colour_whatever_the_shape() {
        let colour = image::Rgb([255, 0, 51]);
        for (width, height) in [(1, 1), (3, 500), (500, 3), (1000, 1), (224, 224), (256, 256), (300, 200)] {
            let values = square(&RgbImage::from_pixel(width, height, colour).into());
            for (at, value) in values.iter().enumerate() {
                assert_eq!(*value, colour.0[at % 3], "{width} x {height}, value {at}");
            }
        }
    }

    #[test]
    fn transparent_pixels_turn_white() {
        let hidden = image::RgbaImage::from_pixel(40, 40, image::Rgba([9, 9, 9, 0]));
        let white = RgbImage::from_pixel(40, 40, image::Rgb([255; 3]));
        assert_eq!(square(&hidden.into()), square(&white.into()));
        assert_eq!(onto_white(&[100, 0, 255, 128, 1, 2, 3, 255]), [177, 127, 255, 1, 2, 3]);
    }

    #[test]
    fn the_crop_is_the_middle() {
        // The middle 224 of 256 pixels; red tells the column and green the row.
        let image = RgbImage::from_fn(300, 256, |x, y| image::Rgb([(x % 256) as u8, y as u8, 0]));
        let values = square(&image.into());
        let channel = |row: usize, column: usize, channel: usize| values[(row * 224 + column) * 3 + channel];
        assert_eq!((channel(0, 0, 0), channel(0, 0, 1)), (38, 16));
        assert_eq!((channel(223, 200, 0), channel(223, 200, 1)), (238, 239));
    }

    #[test]
    fn a_jpeg_must_reach_its_end() {
        let mut whole = Cursor::new(Vec::new());
        let noise = RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * y) as u8, (x * 7) as u8, y as u8]));
        noise.write_to(&mut whole, ImageFormat::Jpeg).unwrap();
        let whole = whole.into_inner();
        assert!(jpeg_ends(&whole));
        assert!(jpeg_ends(&[&whole[..], b"trailing bytes are common"].concat()));
        assert!((0..whole.len()).all(|length| !jpeg_ends(&whole[..length])));
        // A thumbnail's end inside a segment is not the end of the photo.
        let thumbnail = [0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x06, 0x00, 0xFF, 0xD9, 0x00];
        assert!(!jpeg_ends(&thumbnail));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            start in prop_oneof![
                Just(&b""[..]), Just(&b"\xFF\xD8\xFF"[..]), Just(&b"\x89PNG\r\n\x1a\n"[..]), Just(&b"GIF89a"[..]),
                Just(&b"BM"[..]), Just(&b"RIFF\x40\0\0\0WEBPVP8L"[..]),
            ],
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            // Some garbage is a picture; what matters is that it comes back.
            let _ = pixels(&[start, &rest].concat(), &MOBILENET_V2.preprocessing, 10_000);
        }
    }
}
