//! JPEG straight to the square that the network sees.
//!
//! Reads what nearly every photo is: baseline or extended sequential JPEG, 8 bits, Huffman-coded, grey or
//! Y'CbCr, any sampling, one scan. Blocks outside the crop are passed over; those inside are added to the
//! square as what they contribute to its pixels ([`axis`]), so that the full picture never exists.
//!
//! **Invariant**: a file that is not certain to be read right is left to the plain path, which alone decides
//! what is an error; memory grows with the file and the square, never with a stated size.
mod axis;
mod bits;
mod header;
mod huffman;
mod plane;
mod scan;

use crate::model::kernels::pixels;
use crate::model::network::Preprocessing;
use axis::{Axis, Geometry, Transposed};
use huffman::{FirstTable, Table};
use image::metadata::Orientation;
use plane::Plane;
use scan::{Axes, Lane, Scan};

/// A photo read as far as its header.
pub(super) struct Jpeg<'a> {
    header: header::Header<'a>,
}

/// Buffers that are used again for the next photo.
pub(super) struct Buffers {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    planes: [Plane; 3],
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), planes: [Plane::new(), Plane::new(), Plane::new()] }
    }
}

impl<'a> Jpeg<'a> {
    /// Reads the header. `None`: not a file for this decoder.
    pub(super) fn read(file: &'a [u8]) -> Option<Self> {
        header::read(file).map(|header| Self { header })
    }

    /// Width and height, pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.header.width as u32, self.header.height as u32)
    }

    /// How the picture is to be turned.
    pub(super) fn orientation(&self) -> Orientation {
        self.header.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
    }

    /// The square, not yet turned: 8-bit RGB, row by row. `None`: the pixels are damaged, or there is more to
    /// the file than this decoder knows.
    pub(super) fn square(&self, preprocessing: &Preprocessing, buffers: &mut Buffers) -> Option<Vec<u8>> {
        let header = &self.header;
        bits::unstuff(header.scan, &mut buffers.bytes, &mut buffers.ends)?;
        let luma = header.components.first()?;
        let axes = self.axes(preprocessing);
        let tables = header.components.iter().map(|component| {
            Some((FirstTable::new(&component.dc)?, Table::new(&component.ac)?))
        });
        let tables = tables.collect::<Option<Vec<_>>>()?;
        let mut lanes = Vec::with_capacity(3);
        let parts = header.components.iter().zip(&axes).zip(&tables).zip(&mut buffers.planes);
        for (((component, axes), (dc, ac)), plane) in parts {
            plane.reset(preprocessing.crop as usize);
            lanes.push(Lane { component, axes, dc, ac, plane, before: 0 });
        }
        let scan = Scan {
            bytes: &buffers.bytes,
            ends: &buffers.ends,
            restart_interval: header.restart_interval,
            across: header.width.div_ceil(8 * luma.across),
            down: header.height.div_ceil(8 * luma.down),
            lanes,
        };
        pixels::run(scan).ok()?;
        Some(pixels::run(Colours(&buffers.planes[..header.components.len()])))
    }

    /// The axes of each component.
    fn axes(&self, preprocessing: &Preprocessing) -> Vec<Axes> {
        let header = &self.header;
        let luma = &header.components[0];
        let side = header.width.min(header.height) as f64 * f64::from(preprocessing.crop) / f64::from(preprocessing.resize);
        let axis = |pixels: usize, ratio: usize| {
            Axis::new(&Geometry {
                samples: pixels.div_ceil(ratio),
                pixels,
                ratio,
                start: (pixels as f64 - side) / 2.0,
                side,
                outputs: preprocessing.crop as usize,
                filter: preprocessing.filter,
            })
        };
        let axes = |component: &header::Component| Axes {
            rows: axis(header.height, luma.down / component.down),
            columns: Transposed::new(axis(header.width, luma.across / component.across)),
        };
        header.components.iter().map(axes).collect()
    }
}

/// The conversion to colours.
struct Colours<'a>(&'a [Plane]);

impl pixels::Work for Colours<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run(self) -> Vec<u8> {
        plane::colours(self.0)
    }
}
