//! Layer by layer in plain Rust, float32: what calibration for int8 runs on, apart from the kernels that serve.
//!
//! Channels are innermost in memory, and every inner loop runs over a fixed number of them held in
//! registers, so that the compiler vectorises the loops with whatever the target has.
//!
//! **Invariant**: no kernel allocates, and none looks at a pixel outside the input.
use crate::model::kernels::{Window, relu6};
use std::ops::Range;

/// Channels held in registers at once; what is left over goes by eights and then one by one.
const LANES: usize = 32;

/// Depthwise convolution with bias and ReLU6 over one image.
///
/// `input` is `[height, width, channels]`, `weight` `[kernel, kernel, channels]`, `bias` `[channels]`,
/// `output` `[window.output_height, window.output_width, channels]`.
pub fn depthwise(
    window: &Window,
    channels: usize,
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    output: &mut [f32],
) {
    let pixels = output.chunks_exact_mut(channels);
    for (at, pixel) in pixels.enumerate() {
        let (rows, columns) = window.taps(at / window.output_width, at % window.output_width);
        let taps = Taps { window, channels, input, weight, rows, columns };
        let mut channel = 0;
        while channel + LANES <= channels {
            taps.lanes::<LANES>(channel, bias, pixel);
            channel += LANES;
        }
        while channel + 8 <= channels {
            taps.lanes::<8>(channel, bias, pixel);
            channel += 8;
        }
        for channel in channel..channels {
            taps.lanes::<1>(channel, bias, pixel);
        }
    }
}

/// The kernel positions that fall inside the image for one output pixel.
struct Taps<'a> {
    window: &'a Window,
    channels: usize,
    input: &'a [f32],
    weight: &'a [f32],
    /// Input row and kernel row of each tap.
    rows: (usize, Range<usize>),
    /// Input column and kernel column of each tap.
    columns: (usize, Range<usize>),
}

impl Taps<'_> {
    /// Computes `N` channels of the output pixel, from `channel` on.
    #[inline(always)]
    #[allow(clippy::inline_always)] // the accumulators stay in registers only where N is known and inlined
    fn lanes<const N: usize>(&self, channel: usize, bias: &[f32], pixel: &mut [f32]) {
        let mut sums = [0.0_f32; N];
        sums.copy_from_slice(&bias[channel..channel + N]);
        let (row_first, kernel_rows) = self.rows.clone();
        let (column_first, kernel_columns) = self.columns.clone();
        for (row, kernel_row) in kernel_rows.enumerate() {
            let mut from = ((row_first + row) * self.window.width + column_first) * self.channels + channel;
            let mut tap = (kernel_row * self.window.kernel + kernel_columns.start) * self.channels + channel;
            for _ in kernel_columns.clone() {
                let values = &self.input[from..from + N];
                let weights = &self.weight[tap..tap + N];
                for lane in 0..N {
                    sums[lane] += values[lane] * weights[lane];
                }
                from += self.channels;
                tap += self.channels;
            }
        }
        for (value, sum) in pixel[channel..channel + N].iter_mut().zip(sums) {
            *value = relu6(sum);
        }
    }
}

/// Full convolution of a three-channel image with bias and ReLU6.
///
/// `input` is `[height, width, 3]`, `weight` `[kernel, kernel, 3, channels]`, `bias` `[channels]`, `output`
/// `[window.output_height, window.output_width, channels]`.
pub fn stem(
    window: &Window,
    channels: usize,
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    output: &mut [f32],
) {
    for (at, pixel) in output.chunks_exact_mut(channels).enumerate() {
        let taps = window.taps(at / window.output_width, at % window.output_width);
        let mut channel = 0;
        while channel + LANES <= channels {
            stem_lanes::<LANES>(window, &taps, input, weight, bias, channel, pixel);
            channel += LANES;
        }
        for channel in channel..channels {
            stem_lanes::<1>(window, &taps, input, weight, bias, channel, pixel);
        }
    }
}

type Span = ((usize, Range<usize>), (usize, Range<usize>));

/// Computes `N` channels of one output pixel of [`stem`], from `channel` on.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn stem_lanes<const N: usize>(
    window: &Window,
    taps: &Span,
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    channel: usize,
    pixel: &mut [f32],
) {
    let channels = bias.len();
    let mut sums = [0.0_f32; N];
    sums.copy_from_slice(&bias[channel..channel + N]);
    let ((row_first, kernel_rows), (column_first, kernel_columns)) = taps.clone();
    for (row, kernel_row) in kernel_rows.enumerate() {
        // A kernel row touches neighbouring pixels, three values each, in both tensors.
        let from = ((row_first + row) * window.width + column_first) * 3;
        let tap = (kernel_row * window.kernel + kernel_columns.start) * 3;
        for step in 0..kernel_columns.len() * 3 {
            let value = input[from + step];
            let weights = &weight[(tap + step) * channels + channel..][..N];
            for lane in 0..N {
                sums[lane] += value * weights[lane];
            }
        }
    }
    for (value, sum) in pixel[channel..channel + N].iter_mut().zip(sums) {
        *value = relu6(sum);
    }
}

/// Mean over the pixels: `input` `[pixels, channels]`, `output` `[channels]`.
pub fn mean(input: &[f32], output: &mut [f32]) {
    let channels = output.len();
    output.fill(0.0);
    for pixel in input.chunks_exact(channels) {
        for (sum, value) in output.iter_mut().zip(pixel) {
            *sum += value;
        }
    }
    let scale = channels as f32 / input.len().max(1) as f32;
    for sum in output {
        *sum *= scale;
    }
}
