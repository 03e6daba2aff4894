//! JPEG straight to the square that the network sees.
//!
//! Reads what nearly every photo is: baseline or extended sequential JPEG, 8 bits, Huffman-coded, grey or
//! `YCbCr`, any sampling, one scan. Blocks outside the crop are passed over; those inside are added to the
//! square as what they contribute to its pixels ([`axis`]), so that the full picture never exists.
//!
//! **Invariant**: a file that is not certain to be read right is left to the plain path, which alone decides
//! what is an error; memory grows with the file and the square, never with a stated size.
#![allow(clippy::inline_always)] // what is not inlined is not compiled for the wider instructions
mod axis;
mod bits;
#[cfg(test)]
mod encoder;
mod header;
mod huffman;
mod plane;
mod recent;
mod scan;
#[cfg(test)]
mod tests;

use crate::model::kernels::pixels::{Instructions, Work};
use crate::model::network::Preprocessing;
use axis::Geometry;
use header::Component;
use huffman::{Damaged, FirstTable, Table};
use image::metadata::Orientation;
use plane::Plane;
use recent::Recent;
use scan::{Axes, Lane, Scan};
use std::sync::Arc;

/// A photo read as far as its header.
pub(super) struct Jpeg<'a> {
    header: header::Header<'a>,
}

/// Buffers that are used again for the next photo.
pub(super) struct Buffers {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    planes: [Plane; 3],
    known: Known,
}

/// What was worked out for recent photos.
struct Known {
    first_tables: Recent<Vec<u8>, FirstTable>,
    tables: Recent<Vec<u8>, Table>,
    axes: Recent<(Geometry, Geometry), Axes>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        let known = Known { first_tables: Recent::new(), tables: Recent::new(), axes: Recent::new() };
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            planes: [Plane::new(), Plane::new(), Plane::new()],
            known,
        }
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
    pub(super) fn square(
        &self,
        preprocessing: &Preprocessing,
        buffers: &mut Buffers,
        instructions: Instructions,
    ) -> Option<Vec<u8>> {
        let header = &self.header;
        let Buffers { bytes, ends, planes, known } = buffers;
        bits::unstuff(header.scan, bytes, ends)?;
        let luma = header.components.first()?;
        let parts = header.components.iter().map(|component| {
            let dc =
                known.first_tables.get(component.dc.key(), |_| FirstTable::new(&component.dc).ok_or(Damaged));
            let ac = known.tables.get(component.ac.key(), |_| Table::new(&component.ac).ok_or(Damaged));
            Ok((self.axes(component, preprocessing, &mut known.axes)?, dc?, ac?))
        });
        let parts = parts.collect::<Result<Vec<_>, Damaged>>().ok()?;
        let mut lanes = Vec::with_capacity(3);
        for ((component, (axes, dc, ac)), plane) in header.components.iter().zip(&parts).zip(&mut *planes) {
            plane.reset(preprocessing.crop as usize);
            lanes.push(Lane { component, axes, dc, ac, plane, before: 0 });
        }
        let scan = Scan {
            bytes,
            ends,
            restart_interval: header.restart_interval,
            across: header.width.div_ceil(8 * luma.across),
            down: header.height.div_ceil(8 * luma.down),
            lanes,
        };
        instructions.run(scan).ok()?;
        Some(instructions.run(Colours(&planes[..header.components.len()])))
    }

    /// The axes of a component.
    fn axes(
        &self,
        component: &Component,
        preprocessing: &Preprocessing,
        known: &mut Recent<(Geometry, Geometry), Axes>,
    ) -> Result<Arc<Axes>, Damaged> {
        let header = &self.header;
        let luma = &header.components[0];
        let short = header.width.min(header.height) as f64;
        let side = short * f64::from(preprocessing.crop) / f64::from(preprocessing.resize);
        let geometry = |pixels: usize, ratio: usize| Geometry {
            samples: pixels.div_ceil(ratio),
            pixels,
            ratio,
            start: (pixels as f64 - side) / 2.0,
            side,
            outputs: preprocessing.crop as usize,
            filter: preprocessing.filter,
        };
        let rows = geometry(header.height, luma.down / component.down);
        let columns = geometry(header.width, luma.across / component.across);
        known.get((rows, columns), |(rows, columns)| Ok(Axes::new(rows, columns)))
    }
}

/// The conversion to colours.
struct Colours<'a>(&'a [Plane]);

impl Work for Colours<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run(self) -> Vec<u8> {
        plane::colours(self.0)
    }
}
