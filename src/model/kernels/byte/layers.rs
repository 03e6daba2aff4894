//! Integer layers: weights laid out as the kernels read them, once, when a network is loaded.
use super::tiles::{self, Depthwise, Finish, Kernels, Output, Sliding};
use crate::model::kernels::integer;
use crate::model::kernels::matrix::{Matrix, Panels, Sizes};
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean, Product, Slide, Source, Target, of_shape};
use std::ops::Range;

/// A 1x1 convolution, a fully connected layer, or a full convolution seen as rows of input channels.
pub(in crate::model) struct Pointwise {
    matrix: Matrix<i8, Finish>,
    multiplier: Buffer<f32>,
    offset: Buffer<f32>,
    residual: Option<Buffer<f32>>,
}

impl Pointwise {
    /// Packs weights, told by output and input channel, for `kernels`. `residual` multiplies what is added. Up to three bytes after a run of input channels are read
    /// where their number is no multiple of four.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        sizes: Sizes,
        weight: impl Fn(usize, usize) -> i8,
        product: integer::Product<'_>,
        residual: Option<&[f32]>,
    ) -> Self {
        let matrix = Matrix::new(kernels.panels, kernels.block, sizes, weight);
        Self {
            multiplier: matrix.per_output(|output| product.multiplier[output]),
            offset: matrix.per_output(|output| product.offset[output]),
            residual: residual.map(|residual| matrix.per_output(|output| residual[output])),
            matrix,
        }
    }

    /// # Safety
    /// As for [`Product::run`].
    unsafe fn call(
        &self,
        panels: Range<usize>,
        source: Source<u8>,
        (offsets, padded): (&[u32], bool),
        output: impl Fn(usize) -> Output,
        residual: *const u8,
    ) {
        let finish = |channel: usize| Finish {
            multiplier: self.multiplier[channel..].as_ptr(),
            offset: self.offset[channel..].as_ptr(),
            output: output(channel),
            residual: match &self.residual {
                Some(multiplier) if !residual.is_null() => {
                    (residual.wrapping_add(channel), multiplier[channel..].as_ptr())
                }
                _ => (std::ptr::null(), std::ptr::null()),
            },
        };
        // SAFETY: the caller vouches for source and target.
        unsafe { self.matrix.run(panels, source, offsets, padded, finish) };
    }
}

impl Product for Pointwise {
    type Value = u8;

    fn layout(&self) -> &Panels {
        self.matrix.panels()
    }

    unsafe fn run(&self, panels: Range<usize>, source: Source<u8>, target: Target<'_, u8>) {
        let Target { values, offsets, residual, padded } = target;
        let output = |channel| Output::Bytes(values.wrapping_add(channel));
        // SAFETY: the caller vouches for source and target.
        unsafe { self.call(panels, source, (offsets, padded), output, residual) };
    }

    unsafe fn run_to_float(&self, panels: Range<usize>, source: Source<u8>, target: Target<'_, f32>) {
        let Target { values, offsets, padded, .. } = target;
        let output = |channel| Output::Floats(values.wrapping_add(channel));
        // SAFETY: the caller vouches for source and target.
        unsafe { self.call(panels, source, (offsets, padded), output, std::ptr::null()) };
    }
}

/// A depthwise convolution in blocks of channels.
pub(in crate::model) struct Channelwise {
    sliding: Sliding,
    block: usize,
    blocks: usize,
    weights: Buffer<i8>,
    multiplier: Buffer<f32>,
    offset: Buffer<f32>,
}

impl Channelwise {
    /// Packs a layer for `kernels`; `None` where they have no such side and stride.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        (side, stride): (usize, usize),
        product: integer::Product<'_>,
    ) -> Option<Self> {
        let (lanes, channels) = (kernels.block, product.offset.len());
        let narrow = of_shape(&kernels.narrow, side, stride)?;
        let narrow = narrow.filter(|narrow| channels * narrow.pixels <= lanes);
        let sliding = narrow.or(of_shape(&kernels.depthwise, side, stride))?;
        let block = lanes / sliding.pixels;
        let blocks = channels.div_ceil(block);
        let mut weights = Buffer::zeroed(blocks * sliding.length);
        let (mut multiplier, mut offset) = (Buffer::zeroed(blocks * lanes), Buffer::zeroed(blocks * lanes));
        for (channel, weight) in product.weight.chunks_exact(side * side).enumerate() {
            let at = channel / block;
            let weights = &mut weights[at * sliding.length..][..sliding.length];
            for pixel in 0..sliding.pixels {
                let as_placed = pixel * block + channel % block;
                (sliding.place)(weights, as_placed, weight);
                let lane = at * lanes + (sliding.lane)(as_placed);
                multiplier[lane] = product.multiplier[channel];
                offset[lane] = product.offset[channel];
            }
        }
        Some(Self { sliding, block, blocks, weights, multiplier, offset })
    }
}

impl Slide for Channelwise {
    type Value = u8;

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn lanes(&self) -> usize {
        self.block
    }

    unsafe fn run(&self, block: usize, rows: &[*const u8], size: (usize, usize), output: *mut u8) {
        let lane = block * self.block * self.sliding.pixels;
        let call = Depthwise {
            rows: rows.as_ptr(),
            row_count: size.0,
            columns: size.1,
            weights: self.weights[block * self.sliding.length..].as_ptr(),
            multiplier: self.multiplier[lane..].as_ptr(),
            offset: self.offset[lane..].as_ptr(),
            output,
            block: self.block,
        };
        // SAFETY: the caller vouches for rows and output; the weights were packed for this block; that there
        // are such kernels proves that the CPU has their instructions.
        unsafe { (self.sliding.run)(&call) };
    }
}

/// The mean over the pixels.
pub(in crate::model) struct Average {
    kernels: &'static Kernels,
    multiplier: Vec<f32>,
}

impl Average {
    /// `multiplier` holds for each channel what its sum is multiplied with.
    pub(in crate::model) fn new(kernels: &'static Kernels, multiplier: &[f32]) -> Self {
        Self { kernels, multiplier: multiplier.to_vec() }
    }
}

impl Mean for Average {
    type Value = u8;

    unsafe fn run(&self, channel: usize, input: *const u8, (pixels, width): (usize, usize), output: *mut u8) {
        let multiplier = &self.multiplier[channel..self.multiplier.len().min(channel + width)];
        // SAFETY: the caller vouches for input and output; that there are such kernels proves that the CPU has
        // their instructions.
        unsafe { (self.kernels.mean)(&tiles::Mean { input, pixels, width, multiplier, output }) };
    }
}
