//! What float32, bfloat16 and int8 have in common: layers that run on raw memory, one block of channels or
//! some panels of output channels at a time.
//!
//! **Invariant**: a layer owns its packed weights and knows its kernels, which its existence proves the CPU to
//! have; whoever runs it vouches for the memory alone.
use crate::model::kernels::matrix::Panels;
use crate::model::kernels::memory::Plain;
use candle_core::{CpuStorage, Result};
use std::ops::Range;

/// Where a product's input lies.
#[derive(Clone, Copy)]
pub(in crate::model) struct Source<V> {
    /// First pixel's first input channel.
    pub(in crate::model) values: *const V,
    /// Elements from a pixel to the next.
    pub(in crate::model) pixel_stride: usize,
    /// Elements from one run of input channels that lie together to the next.
    pub(in crate::model) segment_stride: usize,
}

/// Where a product's output goes.
#[derive(Clone, Copy)]
pub(in crate::model) struct Target<'a, V> {
    /// What the offsets count from, at output channel 0.
    pub(in crate::model) values: *mut V,
    /// For each pixel, where its output starts.
    pub(in crate::model) offsets: &'a [u32],
    /// Added before the activation, at the same offsets; or null.
    pub(in crate::model) residual: *const V,
    /// Whether channels beyond the last may be written, where a panel has them.
    pub(in crate::model) padded: bool,
}

/// A 1x1 convolution, a fully connected layer, or a full convolution seen as rows of input channels.
pub(in crate::model) trait Product: Send + Sync {
    /// Element of the activations.
    type Value: Plain;

    /// How its output channels are cut into panels.
    fn layout(&self) -> &Panels;

    /// Input channels.
    fn inputs(&self) -> usize {
        self.layout().sizes().inputs
    }

    /// Output channels.
    fn outputs(&self) -> usize {
        self.layout().sizes().outputs
    }

    /// Computes some panels for as many pixels as there are offsets.
    ///
    /// # Safety
    /// The source must be good for reads of every pixel and input channel; target and residual for every
    /// offset plus the panels' output channels, and nobody else may write these meanwhile.
    unsafe fn run(&self, panels: Range<usize>, source: Source<Self::Value>, target: Target<'_, Self::Value>);

    /// As [`run`](Self::run), to float32 whatever the activations are, without residual.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn run_to_float(&self, panels: Range<usize>, source: Source<Self::Value>, target: Target<'_, f32>);
}

/// A depthwise convolution with ReLU6, in blocks of channels.
pub(in crate::model) trait Slide: Send + Sync {
    /// Element of the activations.
    type Value: Plain;
    /// Output rows that are made at once and sum in another order than alone. Work is cut at multiples of it, so
    /// that a row has the same bits however many threads and images there are.
    const TOGETHER: usize = 1;

    /// Blocks of channels.
    fn blocks(&self) -> usize;

    /// Channels in a block, all of them present in memory.
    fn lanes(&self) -> usize;

    /// Computes rows of one block. `rows` holds `kernel` input rows for each output row, where the next output
    /// row's start `stride` further on; each starts at the first tap of the first output.
    ///
    /// # Safety
    /// Every row must be good for reads of its taps, and `output` for writes of `[row_count, columns, lanes]`.
    unsafe fn run(
        &self,
        block: usize,
        rows: &[*const Self::Value],
        size: (usize, usize),
        output: *mut Self::Value,
    );
}

/// The mean over the pixels of an image.
pub(in crate::model) trait Mean: Send + Sync {
    /// Element of the activations.
    type Value: Plain;

    /// Channels from `channel` on of one image: `[pixels, width]` to `width` elements.
    ///
    /// # Safety
    /// Input and output must be good for that many elements.
    unsafe fn run(
        &self,
        channel: usize,
        input: *const Self::Value,
        size: (usize, usize),
        output: *mut Self::Value,
    );
}

/// Photos as the network is given them.
#[derive(Clone, Copy)]
pub(in crate::model) enum Pixels<'a> {
    /// Red, green and blue in 0..255.
    Bytes(&'a [u8]),
    /// The same, normalised.
    Floats(&'a [f32]),
}

/// How bytes become the numbers that a network was trained on: `(value - mean) / deviation`, by channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Subtracted from each of red, green, blue on 0..255.
    pub mean: [f32; 3],
    /// Divides each of red, green, blue afterwards.
    pub deviation: [f32; 3],
}

/// The number format of a network's activations and weights, with its layers.
pub(in crate::model) trait Precision: Sized + Send + Sync + 'static {
    /// Element of the activations.
    type Value: Plain;
    /// 1x1 convolutions.
    type Product: Product<Value = Self::Value>;
    /// Depthwise convolutions.
    type Slide: Slide<Value = Self::Value>;
    /// The mean before the classifier.
    type Mean: Mean<Value = Self::Value>;

    /// A tensor's memory, zeroed.
    fn zeros(length: usize) -> CpuStorage;

    /// The elements of a tensor's memory.
    fn values(storage: &CpuStorage) -> Result<&[Self::Value]>;

    /// The elements of a tensor's memory, to be written.
    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [Self::Value]>;

    /// Writes one row of pixels as the stem reads it.
    fn pack(pixels: Pixels<'_>, normalisation: &Normalisation, row: &mut [Self::Value]);

    /// What the stem reads of a channel outside the image.
    fn outside(normalisation: &Normalisation, channel: usize) -> Self::Value;
}

/// The entry of a side (3 or 5) and a stride (1 or 2) in a table of depthwise kernels, if there is one.
pub(in crate::model) fn of_shape<T: Copy>(table: &[[T; 2]; 2], side: usize, stride: usize) -> Option<T> {
    let row = [3, 5].iter().position(|known| *known == side)?;
    table[row].get(stride.wrapping_sub(1)).copied()
}

/// The output pixel that sees input pixel `input` through tap `tap` of a row of a window, if there is one.
pub(in crate::model) const fn reached(input: usize, tap: usize, side: usize, stride: usize) -> usize {
    if tap < side && input >= tap && (input - tap).is_multiple_of(stride) {
        (input - tap) / stride
    } else {
        usize::MAX
    }
}

/// Values normalised at once: whole vectors of whole pixels, so that the compiler need not shuffle channels.
const NORMALISED: usize = 48;

/// Bytes to what the network was trained on, in another format. Inlined, for callers that enable instructions.
#[inline(always)]
pub(in crate::model) fn normalise<V>(
    pixels: &[u8],
    normalisation: &Normalisation,
    row: &mut [V],
    format: impl Fn(f32) -> V,
) {
    let Normalisation { mean, deviation } = normalisation;
    let mean: [f32; NORMALISED] = std::array::from_fn(|at| mean[at % 3]);
    let scale: [f32; NORMALISED] = std::array::from_fn(|at| 1.0 / deviation[at % 3]);
    for (pixels, row) in pixels.chunks(NORMALISED).zip(row.chunks_mut(NORMALISED)) {
        for (at, (value, byte)) in row.iter_mut().zip(pixels).enumerate() {
            *value = format((f32::from(*byte) - mean[at]) * scale[at]);
        }
    }
}
