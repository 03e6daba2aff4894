//! Float32 layers: weights laid out as the kernels read them, once, when a network is loaded.
use super::tiles::{self, Finish, Kernels};
use crate::model::kernels::matrix::{Matrix, Panels, Sizes};
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean, Product, Slide, Source, Target, of_shape};
use std::ops::Range;

/// A 1x1 convolution, a fully connected layer, or a full convolution seen as rows of input channels.
pub(in crate::model) struct Pointwise {
    matrix: Matrix<f32, Finish>,
    bias: Buffer<f32>,
    activation: bool,
}

impl Pointwise {
    /// Packs weights, told by output and input channel, for `kernels`.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        sizes: Sizes,
        weight: impl Fn(usize, usize) -> f32,
        bias: &[f32],
        activation: bool,
    ) -> Self {
        let matrix = Matrix::new(kernels.panels, kernels.block, sizes, weight);
        let bias = matrix.per_output(|output| bias[output]);
        Self { matrix, bias, activation }
    }
}

impl Product for Pointwise {
    type Value = f32;

    fn layout(&self) -> &Panels {
        self.matrix.panels()
    }

    unsafe fn run(&self, panels: Range<usize>, source: Source<f32>, target: Target<'_, f32>) {
        let Target { values, offsets, residual, padded } = target;
        let finish = |channel: usize| Finish {
            bias: self.bias[channel..].as_ptr(),
            output: values.wrapping_add(channel),
            residual: if residual.is_null() { residual } else { residual.wrapping_add(channel) },
            activation: self.activation,
        };
        // SAFETY: the caller vouches for source and target.
        unsafe { self.matrix.run(panels, source, offsets, padded, finish) };
    }

    unsafe fn run_to_float(&self, panels: Range<usize>, source: Source<f32>, target: Target<'_, f32>) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run(panels, source, target) };
    }
}

/// A depthwise convolution in blocks of channels.
pub(in crate::model) struct Channelwise {
    run: unsafe fn(&tiles::Depthwise),
    block: usize,
    narrowest: usize,
    channels: usize,
    side: usize,
    weights: Buffer<f32>,
    bias: Buffer<f32>,
}

impl Channelwise {
    /// Packs `weight`, `[side × side, channels]`, for `kernels`; `None` where they have no such side and stride.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        (side, stride): (usize, usize),
        weight: &[f32],
        bias: &[f32],
    ) -> Option<Self> {
        let run = of_shape(&kernels.depthwise, side, stride)?;
        let (block, channels, taps) = (kernels.block, bias.len(), side * side);
        let blocks = channels.div_ceil(block);
        let mut packed = Buffer::zeroed(blocks * taps * block);
        let mut padded_bias = Buffer::zeroed(blocks * block);
        padded_bias[..channels].copy_from_slice(bias);
        for at in 0..blocks * taps {
            let (first, tap) = (at / taps * block, at % taps);
            let filled = block.min(channels - first);
            packed[at * block..][..filled].copy_from_slice(&weight[tap * channels + first..][..filled]);
        }
        let narrowest = kernels.panels.last().map_or(1, |panel| panel.width);
        Some(Self { run, block, narrowest, channels, side, weights: packed, bias: padded_bias })
    }
}

impl Slide for Channelwise {
    type Value = f32;

    fn blocks(&self) -> usize {
        self.channels.div_ceil(self.block)
    }

    fn lanes(&self) -> usize {
        self.block
    }

    unsafe fn run(&self, block: usize, rows: &[*const f32], size: (usize, usize), output: *mut f32) {
        let taps = self.side * self.side;
        let channels = (self.channels - block * self.block).min(self.block).next_multiple_of(self.narrowest);
        // SAFETY: the caller vouches for rows and output; weights and bias were packed for this block; that
        // there are such kernels proves that the CPU has their instructions.
        unsafe {
            (self.run)(&tiles::Depthwise {
                rows: rows.as_ptr(),
                row_count: size.0,
                columns: size.1,
                pixel_stride: self.block,
                weights: self.weights.as_ptr().add(block * taps * self.block),
                bias: self.bias.as_ptr().add(block * self.block),
                output,
                channels,
            });
        }
    }
}

/// The mean over the pixels.
pub(in crate::model) struct Average(&'static Kernels);

impl Average {
    pub(in crate::model) fn new(kernels: &'static Kernels) -> Self {
        Self(kernels)
    }
}

impl Mean for Average {
    type Value = f32;

    unsafe fn run(&self, _channel: usize, input: *const f32, size: (usize, usize), output: *mut f32) {
        let (pixels, width) = size;
        // SAFETY: the caller vouches for input and output; that there are such kernels proves that the CPU has
        // their instructions.
        unsafe { (self.0.mean)(&tiles::Mean { input, pixels, width, output }) }
    }
}
