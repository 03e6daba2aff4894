//! What inference spends its time in: layers whose weights are packed for one instruction set, blocks that
//! run them strip by strip, and the candle operations that carry them.
//!
//! [`isa`] says what the CPU has; `precision` what float32, bfloat16 and int8 layers have in common; `float`
//! holds the float32 layers over the vectors of `simd`, `brain` the bfloat16 ones, `byte` the int8 ones; `block`
//! and `head` put layers together; `ops` makes candle operations of them; [`pixels`] is for decoding photos;
//! [`scalar`] is for calibration; [`integer`] is the reference that int8 must equal; with the feature `measure`,
//! `measure` runs each kernel alone and `peak` what none can exceed.
//!
//! **Invariant**: a kernel runs on the thread that calls it and on no other, and allocates nothing; only `team`
//! knows other threads; `unsafe` lives below this module only.
#![allow(unsafe_code)]
#![allow(clippy::inline_always)] // what runs inside a function that enables instructions must be inlined there
#![allow(clippy::wildcard_imports)] // the intrinsics of an architecture have names of their own
pub(in crate::model) mod block;
pub(in crate::model) mod brain;
pub(in crate::model) mod byte;
pub(in crate::model) mod float;
pub(in crate::model) mod head;
pub mod integer;
pub mod isa;
pub(in crate::model) mod matrix;
#[cfg(feature = "measure")]
pub mod measure;
pub(in crate::model) mod memory;
pub(in crate::model) mod ops;
#[cfg(feature = "measure")]
mod peak;
pub mod pixels;
pub(in crate::model) mod precision;
pub mod scalar;
mod simd;
pub(in crate::model) mod team;
mod tile;

pub use precision::Normalisation;

use std::ops::Range;

/// How a convolution sees the pixels beyond the edge, which count as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `kernel / 2` on each side, as PyTorch's models do.
    Symmetric,
    /// As little as gives `ceil(size / stride)` outputs, the odd one after the end, as TensorFlow's `SAME`.
    Same,
}

/// Limits a value to 0..6.
#[inline]
#[must_use]
pub fn relu6(value: f32) -> f32 {
    // NaN stays NaN, so that a poisoned input is found at the end.
    value.clamp(0.0, 6.0)
}

/// How a square kernel slides over an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side of the kernel, pixels.
    pub kernel: usize,
    /// Step, pixels.
    pub stride: usize,
    /// Input height, pixels.
    pub height: usize,
    /// Input width, pixels.
    pub width: usize,
    /// Rows of zeros before the first.
    pub before_rows: usize,
    /// Columns of zeros before the first.
    pub before_columns: usize,
    /// Output height, pixels.
    pub output_height: usize,
    /// Output width, pixels.
    pub output_width: usize,
}

impl Window {
    /// A window over `height` x `width` pixels. `kernel` is odd; `stride`, `height` and `width` are positive.
    #[must_use]
    pub fn new(kernel: usize, stride: usize, padding: Padding, height: usize, width: usize) -> Self {
        let before = |size: usize| match padding {
            Padding::Symmetric => kernel / 2,
            Padding::Same => ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size) / 2,
        };
        Self {
            kernel,
            stride,
            height,
            width,
            before_rows: before(height),
            before_columns: before(width),
            // With an odd kernel both paddings give the same number of outputs.
            output_height: height.div_ceil(stride),
            output_width: width.div_ceil(stride),
        }
    }

    /// The taps inside the image for an output pixel: for rows and for columns, the first input position and
    /// the kernel positions.
    #[must_use]
    pub fn taps(&self, row: usize, column: usize) -> ((usize, Range<usize>), (usize, Range<usize>)) {
        let along = |at: usize, before: usize, size: usize| {
            let start = at * self.stride;
            let first = before.saturating_sub(start).min(self.kernel);
            let end = (size + before).saturating_sub(start).min(self.kernel).max(first);
            ((start + first).saturating_sub(before), first..end)
        };
        (along(row, self.before_rows, self.height), along(column, self.before_columns, self.width))
    }
}

#[cfg(test)]
mod tests;
