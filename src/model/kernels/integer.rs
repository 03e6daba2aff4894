//! Integer kernels in plain Rust: the reference that the fast ones are compared with, bit for bit.
//!
//! An activation is a `u8` `q` that stands for `scale[c]·(q − zero[c])`, with a scale and a zero point per
//! channel that no kernel sees: they are folded into the weights, multipliers and offsets (see
//! [`crate::model::quantise`]). Every layer computes
//!
//! ```text
//! acc = Σ weight·q                          i32, exact: Σ |weight|·255 < 2^31
//! f   = fma(acc as f32, multiplier, offset) one rounding; `as f32` rounds to nearest even
//! f   = fma(r as f32, residual, f)          where the block's input r is added
//! q'  = clamp(round_ties_even(f), 0, 255)
//! ```
//!
//! so that any order of summation gives the same bits. What lies beyond the edge of an image is `q = 0` for a
//! depthwise convolution, whose input always has the zero point 0.
//!
//! **Invariant**: no kernel allocates, and the result depends on the arguments alone, not on the CPU.
use crate::model::kernels::Window;

/// Weights of one layer and how its sums become its output.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[outputs, taps]`, where the taps are `inputs`, or `kernel · kernel` for a depthwise convolution, or
    /// `3 · kernel · kernel` for the stem: PyTorch's order.
    pub weight: &'a [i8],
    /// `[outputs]`; multiplies a sum.
    pub multiplier: &'a [f32],
    /// `[outputs]`; added afterwards.
    pub offset: &'a [f32],
}

/// What a block adds to its output: its input.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Shaped as the output.
    pub values: &'a [u8],
    /// `[outputs]`; the input's scale over the output's. Its zero point is in [`Product::offset`].
    pub multiplier: &'a [f32],
}

/// The output before it is rounded.
#[inline]
#[must_use]
pub fn scale(sum: i32, multiplier: f32, offset: f32) -> f32 {
    (sum as f32).mul_add(multiplier, offset)
}

/// Rounds half to even and limits to 0..=255, which is ReLU as well where the zero point is 0.
#[inline]
#[must_use]
pub fn round(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

fn dot(input: &[u8], weight: &[i8]) -> i32 {
    input.iter().zip(weight).map(|(value, weight)| i32::from(*value) * i32::from(*weight)).sum()
}

/// 1x1 convolution, with the block's input added where there is a `residual`.
///
/// `input` is `[pixels, inputs]`, `output` `[pixels, outputs]`.
pub fn pointwise(input: &[u8], product: Product, residual: Option<Residual>, output: &mut [u8]) {
    let outputs = product.offset.len();
    let inputs = product.weight.len() / outputs;
    for (pixel, (from, to)) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(outputs)).enumerate() {
        for (channel, value) in to.iter_mut().enumerate() {
            let sum = dot(from, &product.weight[channel * inputs..][..inputs]);
            let mut real = scale(sum, product.multiplier[channel], product.offset[channel]);
            if let Some(residual) = residual {
                let added = residual.values[pixel * outputs + channel];
                real = f32::from(added).mul_add(residual.multiplier[channel], real);
            }
            *value = round(real);
        }
    }
}

/// Depthwise convolution; pixels beyond the edge count as 0.
///
/// `input` is `[window.height, window.width, channels]`, `output` `[window.output_height,
/// window.output_width, channels]`.
pub fn depthwise(window: &Window, input: &[u8], product: Product, output: &mut [u8]) {
    let channels = product.offset.len();
    let kernel = window.kernel;
    for (at, pixel) in output.chunks_exact_mut(channels).enumerate() {
        let ((row_first, kernel_rows), (column_first, kernel_columns)) =
            window.taps(at / window.output_width, at % window.output_width);
        for (channel, value) in pixel.iter_mut().enumerate() {
            let weight = &product.weight[channel * kernel * kernel..][..kernel * kernel];
            let mut sum = 0;
            for (row, kernel_row) in kernel_rows.clone().enumerate() {
                for (column, kernel_column) in kernel_columns.clone().enumerate() {
                    let from =
                        ((row_first + row) * window.width + column_first + column) * channels + channel;
                    sum += i32::from(input[from]) * i32::from(weight[kernel_row * kernel + kernel_column]);
                }
            }
            *value = round(scale(sum, product.multiplier[channel], product.offset[channel]));
        }
    }
}

/// Full convolution of an image's raw bytes; pixels beyond the edge count as `padding`, which is what
/// normalisation would turn into zero.
///
/// `input` is `[window.height, window.width, 3]`, `product.weight` `[outputs, 3, kernel, kernel]`, `output`
/// `[window.output_height, window.output_width, outputs]`.
pub fn stem(window: &Window, padding: [u8; 3], input: &[u8], product: Product, output: &mut [u8]) {
    let outputs = product.offset.len();
    let area = window.kernel * window.kernel;
    for (at, pixel) in output.chunks_exact_mut(outputs).enumerate() {
        let (row, column) = (at / window.output_width, at % window.output_width);
        for (channel, value) in pixel.iter_mut().enumerate() {
            let weight = &product.weight[channel * 3 * area..][..3 * area];
            let mut sum = 0;
            for (tap, weights) in (0..area).map(|tap| (tap, weight.iter().skip(tap).step_by(area))) {
                let values = tapped(window, row, column, tap, input).unwrap_or(padding);
                sum += values.iter().zip(weights).map(|(v, w)| i32::from(*v) * i32::from(*w)).sum::<i32>();
            }
            *value = round(scale(sum, product.multiplier[channel], product.offset[channel]));
        }
    }
}

/// The three values under a tap of the stem's kernel, if it lies inside the image.
fn tapped(window: &Window, row: usize, column: usize, tap: usize, input: &[u8]) -> Option<[u8; 3]> {
    let along = |at: usize, tap: usize, before: usize, size: usize| {
        (at * window.stride + tap).checked_sub(before).filter(|at| *at < size)
    };
    let row = along(row, tap / window.kernel, window.before_rows, window.height)?;
    let column = along(column, tap % window.kernel, window.before_columns, window.width)?;
    input.get((row * window.width + column) * 3..)?.first_chunk().copied()
}

/// Mean over the pixels: `input` is `[pixels, channels]`, `output` `[channels]`. The multiplier holds the
/// number of pixels.
pub fn mean(input: &[u8], multiplier: &[f32], output: &mut [u8]) {
    let channels = multiplier.len();
    for (channel, (value, multiplier)) in output.iter_mut().zip(multiplier).enumerate() {
        let sum: i32 = input.iter().skip(channel).step_by(channels).map(|value| i32::from(*value)).sum();
        *value = round(scale(sum, *multiplier, 0.0));
    }
}

/// Fully connected layer of one image whose output stays real: `input` is `[inputs]`, `output` `[outputs]`.
pub fn classifier(input: &[u8], product: Product, output: &mut [f32]) {
    for (channel, value) in output.iter_mut().enumerate() {
        let sum = dot(input, &product.weight[channel * input.len()..][..input.len()]);
        *value = scale(sum, product.multiplier[channel], product.offset[channel]);
    }
}

#[cfg(test)]
mod tests;
