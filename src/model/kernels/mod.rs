//! The operations that networks are made of, as candle operations over NHWC tensors.
//!
//! This is the seam for faster kernels: an operation owns its weights in the layout its kernel wants, and
//! picks the kernel when it runs.
//!
//! **Invariant**: an operation runs on the thread that calls it and on no other.
mod gemm;
pub mod pixels;
pub mod scalar;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, bail};
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

/// The values of a contiguous float32 tensor.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the kernels take contiguous tensors only"),
    }
}

/// A convolution over windows of pixels with bias and ReLU6: `[N, H, W, input]` to `[N, H', W', output]`.
#[derive(Debug)]
pub struct Spatial {
    /// Side of the kernel, pixels.
    pub kernel: usize,
    /// Step, pixels.
    pub stride: usize,
    /// What lies beyond the edge.
    pub padding: Padding,
    /// Whether each channel is convolved with itself only; otherwise the input has three channels.
    pub depthwise: bool,
    /// `[kernel, kernel, output]` depthwise, else `[kernel, kernel, 3, output]`.
    pub weight: Vec<f32>,
    /// `[output]`.
    pub bias: Vec<f32>,
}

impl CustomOp1 for Spatial {
    fn name(&self) -> &'static str {
        "elastic-spatial-convolution"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (images, height, width, input) = layout.shape().dims4()?;
        let output = self.bias.len();
        if input != if self.depthwise { output } else { 3 } || height == 0 || width == 0 {
            bail!("a convolution to {output} channels got [{images}, {height}, {width}, {input}]");
        }
        let window = Window::new(self.kernel, self.stride, self.padding, height, width);
        let (from, to) = (height * width * input, window.output_height * window.output_width * output);
        let mut values = vec![0.0; images * to];
        let kernel = if self.depthwise { scalar::depthwise } else { scalar::stem };
        for (image, values) in floats(storage, layout)?.chunks_exact(from).zip(values.chunks_exact_mut(to)) {
            kernel(&window, output, image, &self.weight, &self.bias, values);
        }
        let shape = (images, window.output_height, window.output_width, output);
        Ok((CpuStorage::F32(values), Shape::from(shape)))
    }
}

/// A 1x1 convolution or a fully connected layer: the last dimension goes from `input` to `output`. As a
/// binary operation it adds its second argument, shaped as the result, before the activation.
#[derive(Debug)]
pub struct Pointwise {
    /// `[input, output]`.
    pub weight: Vec<f32>,
    /// `[output]`.
    pub bias: Vec<f32>,
    /// Whether ReLU6 follows.
    pub activation: bool,
}

impl Pointwise {
    fn forward(
        &self,
        input: &[f32],
        layout: &Layout,
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let mut shape = layout.shape().dims().to_vec();
        let outputs = self.bias.len();
        let inputs = self.weight.len() / outputs;
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => bail!("a product from {inputs} to {outputs} channels got {shape:?}"),
        }
        let mut output = vec![0.0; shape.iter().product()];
        if residual.is_some_and(|residual| residual.len() != output.len()) {
            bail!("the residual does not have the shape {shape:?} of the product");
        }
        gemm::pointwise(input, &self.weight, &self.bias, residual, self.activation, &mut output);
        Ok((CpuStorage::F32(output), Shape::from(shape)))
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "elastic-pointwise"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(floats(storage, layout)?, layout, None)
    }
}

impl CustomOp2 for Pointwise {
    fn name(&self) -> &'static str {
        "elastic-pointwise-residual"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(floats(storage, layout)?, layout, Some(floats(residual, residual_layout)?))
    }
}

/// Mean over the pixels: `[N, H, W, C]` to `[N, C]`.
#[derive(Debug)]
pub struct Mean;

impl CustomOp1 for Mean {
    fn name(&self) -> &'static str {
        "elastic-mean"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (images, height, width, channels) = layout.shape().dims4()?;
        let mut values = vec![0.0; images * channels];
        let image_length = (height * width * channels).max(1);
        for (image, mean) in
            floats(storage, layout)?.chunks_exact(image_length).zip(values.chunks_exact_mut(channels.max(1)))
        {
            scalar::mean(image, mean);
        }
        Ok((CpuStorage::F32(values), Shape::from((images, channels))))
    }
}

#[cfg(test)]
mod tests;
