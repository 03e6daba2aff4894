//! bfloat16 layers: weights laid out as the kernels read them, once, when a network is loaded.
use super::tiles::{self, Finish, Kernels, Output, Sliding};
use crate::model::kernels::matrix::{Matrix, Panels, Sizes};
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean, Product, Slide, Source, Target, of_shape};
use half::bf16;
use std::ops::Range;

/// A 1x1 convolution, a fully connected layer, or a full convolution seen as rows of input channels.
pub(in crate::model) struct Pointwise {
    matrix: Matrix<bf16, Finish>,
    bias: Buffer<f32>,
    activation: bool,
}

impl Pointwise {
    /// Rounds and packs weights, told by output and input channel, for `kernels`. One element after a run of input channels is read where their number is odd; it must be finite.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        sizes: Sizes,
        weight: impl Fn(usize, usize) -> f32,
        bias: &[f32],
        activation: bool,
    ) -> Self {
        let weight = |output: usize, input: usize| bf16::from_f32(weight(output, input));
        let matrix = Matrix::new(kernels.panels, kernels.block, sizes, weight);
        let bias = matrix.per_output(|output| bias[output]);
        Self { matrix, bias, activation }
    }

    /// # Safety
    /// As for [`Product::run`].
    unsafe fn call(
        &self,
        panels: Range<usize>,
        source: Source<bf16>,
        (offsets, padded): (&[u32], bool),
        output: impl Fn(usize) -> Output,
        residual: *const bf16,
    ) {
        let finish = |channel: usize| Finish {
            bias: self.bias[channel..].as_ptr(),
            output: output(channel),
            residual: if residual.is_null() { residual } else { residual.wrapping_add(channel) },
            activation: self.activation,
        };
        // SAFETY: the caller vouches for source and target.
        unsafe { self.matrix.run(panels, source, offsets, padded, finish) };
    }
}

impl Product for Pointwise {
    type Value = bf16;

    fn layout(&self) -> &Panels {
        self.matrix.panels()
    }

    unsafe fn run(&self, panels: Range<usize>, source: Source<bf16>, target: Target<'_, bf16>) {
        let Target { values, offsets, residual, padded } = target;
        let output = |channel| Output::Brains(values.wrapping_add(channel));
        // SAFETY: the caller vouches for source and target.
        unsafe { self.call(panels, source, (offsets, padded), output, residual) };
    }

    unsafe fn run_to_float(&self, panels: Range<usize>, source: Source<bf16>, target: Target<'_, f32>) {
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
    weights: Buffer<u32>,
    bias: Buffer<f32>,
}

impl Channelwise {
    /// Rounds and packs `weight`, `[side × side, channels]`, for `kernels`; `None` where they have no such side and
    /// stride.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        (side, stride): (usize, usize),
        weight: &[f32],
        bias: &[f32],
    ) -> Option<Self> {
        let sliding = of_shape(&kernels.depthwise, side, stride)?;
        let (block, channels, taps) = (kernels.block, bias.len(), side * side);
        let blocks = channels.div_ceil(block);
        let mut packed = Buffer::zeroed(blocks * sliding.words);
        let mut padded_bias = Buffer::zeroed(blocks * block);
        for channel in 0..channels {
            let (at, channel_of_block) = (channel / block, channel % block);
            padded_bias[at * block + (sliding.lane)(channel_of_block)] = bias[channel];
            let weight: Vec<f32> = (0..taps).map(|tap| weight[tap * channels + channel]).collect();
            let weight = rounded_together(&weight);
            (sliding.place)(&mut packed[at * sliding.words..][..sliding.words], channel_of_block, &weight);
        }
        Some(Self { sliding, block, blocks, weights: packed, bias: padded_bias })
    }
}

/// The weights of a channel, each rounded up or down so that their sum stays: neighbouring pixels are alike, so
/// that it is the error of the sum that shows. What rounding a weight leaves over goes to the next smaller one.
fn rounded_together(weight: &[f32]) -> Vec<bf16> {
    let mut order: Vec<usize> = (0..weight.len()).collect();
    order.sort_by(|a, b| weight[*b].abs().total_cmp(&weight[*a].abs()));
    let mut rounded = vec![bf16::ZERO; weight.len()];
    let mut left_over = 0.0;
    for at in order {
        let wanted = weight[at] + left_over;
        rounded[at] = bf16::from_f32(wanted);
        left_over = wanted - rounded[at].to_f32();
    }
    rounded
}

impl Slide for Channelwise {
    type Value = bf16;
    const TOGETHER: usize = 2;

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn lanes(&self) -> usize {
        self.block
    }

    unsafe fn run(&self, block: usize, rows: &[*const bf16], size: (usize, usize), output: *mut bf16) {
        let call = tiles::Depthwise {
            rows: rows.as_ptr(),
            row_count: size.0,
            columns: size.1,
            weights: self.weights[block * self.sliding.words..].as_ptr(),
            bias: self.bias[block * self.block..].as_ptr(),
            output,
        };
        // SAFETY: the caller vouches for rows and output; weights and bias were packed for this block; that
        // there are such kernels proves that the CPU has their instructions.
        unsafe { (self.sliding.run)(&call) };
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
    type Value = bf16;

    unsafe fn run(
        &self,
        _channel: usize,
        input: *const bf16,
        (pixels, width): (usize, usize),
        output: *mut bf16,
    ) {
        assert_eq!(width, self.0.block, "a mean is taken a block of channels at a time");
        // SAFETY: the caller vouches for input and output; that there are such kernels proves that the CPU has
        // their instructions.
        unsafe { (self.0.mean)(&tiles::Mean { input, pixels, output }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn weights_that_are_rounded_together_keep_their_sum(weight in prop::collection::vec(-2.0_f32..2.0, 1..26)) {
            let rounded = rounded_together(&weight);
            let sum: f64 = weight.iter().map(|weight| f64::from(*weight)).sum();
            let rounded_sum: f64 = rounded.iter().map(|weight| weight.to_f64()).sum();
            let smallest = weight.iter().fold(f32::INFINITY, |least, weight| least.min(weight.abs()));
            let largest = weight.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
            // Half a unit of the last one rounded, and what float32 loses on the way.
            let last = f64::from(smallest + largest / 128.0) / 256.0;
            prop_assert!((sum - rounded_sum).abs() <= last + 1e-5, "{sum} became {rounded_sum}");
            for (weight, rounded) in weight.iter().zip(&rounded) {
                prop_assert!((weight - rounded.to_f32()).abs() <= largest / 128.0, "{weight} became {rounded}");
            }
        }
    }
}
