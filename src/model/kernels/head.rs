//! The end of a network: the last 1x1 convolution with the mean over the pixels, and the classifier.
//!
//! **Invariant**: the widest tensor of the network, the last convolution's output, exists one block of channels
//! at a time.
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean as _, Precision, Product as _, Source, Target};
use std::ops::Range;

/// Memory that the head works in.
pub(in crate::model) struct HeadScratch<P: Precision> {
    /// One block of the last convolution's output: `[images × pixels, lanes]`.
    wide: Buffer<P::Value>,
    /// Its means over the pixels.
    means: Buffer<P::Value>,
    /// Where each pixel of the block goes.
    offsets: Vec<u32>,
}

impl<P: Precision> HeadScratch<P> {
    /// Memory for up to `images` images of `pixels` pixels, `lanes` channels at a time.
    pub(in crate::model) fn new(images: usize, pixels: usize, lanes: usize) -> Self {
        Self {
            wide: Buffer::zeroed(images * pixels * lanes),
            means: Buffer::zeroed(lanes),
            offsets: (0..images * pixels).map(|pixel| (pixel * lanes) as u32).collect(),
        }
    }
}

/// The last convolution and the mean, `lanes` channels at a time.
pub(in crate::model) struct Head<P: Precision> {
    /// The 1x1 convolution.
    pub(in crate::model) weights: P::Product,
    /// The mean over its pixels.
    pub(in crate::model) mean: P::Mean,
    /// Channels in a block.
    pub(in crate::model) lanes: usize,
}

impl<P: Precision> Head<P> {
    /// Runs some blocks of output channels for `images` images of `pixels` pixels: `[images, pixels, inputs]` to
    /// `[images, outputs]`.
    ///
    /// # Safety
    /// `output` must be good for writes of every image and channel, and nobody else may write these blocks.
    ///
    /// # Panics
    /// If the input or the scratch is shorter than that.
    pub(in crate::model) unsafe fn run(
        &self,
        (images, pixels): (usize, usize),
        input: &[P::Value],
        output: *mut P::Value,
        blocks: Range<usize>,
        scratch: &mut HeadScratch<P>,
    ) {
        let (inputs, outputs, lanes) = (self.weights.inputs(), self.weights.outputs(), self.lanes);
        assert!(input.len() >= images * pixels * inputs && blocks.end <= outputs.div_ceil(lanes));
        assert!(scratch.wide.len() >= images * pixels * lanes && scratch.means.len() >= lanes);
        for block in blocks {
            let channel = block * lanes;
            let source = Source { values: input.as_ptr(), pixel_stride: inputs, segment_stride: 0 };
            let target = Target {
                // The product counts channels from the first, the scratch from the block's.
                values: scratch.wide.as_mut_ptr().wrapping_sub(channel),
                offsets: &scratch.offsets[..images * pixels],
                residual: std::ptr::null(),
                padded: true,
            };
            // SAFETY: the assertions above make the input hold every pixel; the scratch holds a block of
            // channels for each, and is borrowed mutably.
            unsafe { self.weights.run(self.weights.layout().of_block(block), source, target) };
            let filled = lanes.min(outputs - channel);
            for image in 0..images {
                // SAFETY: as above; the caller vouches for the output.
                unsafe {
                    let wide = scratch.wide.as_ptr().add(image * pixels * lanes);
                    self.mean.run(channel, wide, (pixels, lanes), scratch.means.as_mut_ptr());
                    let output = output.add(image * outputs + channel);
                    std::ptr::copy_nonoverlapping(scratch.means.as_ptr(), output, filled);
                }
            }
        }
    }
}

/// Some panels of the classifier: `[images, inputs]` to float32, each image's logits at its offset.
///
/// # Safety
/// `output` must be good for writes of all classes at every offset, and nobody else may write these panels.
///
/// # Panics
/// If the input is shorter than that.
pub(in crate::model) unsafe fn classify<P: Precision>(
    weights: &P::Product,
    panels: Range<usize>,
    input: &[P::Value],
    output: *mut f32,
    offsets: &[u32],
) {
    let inputs = weights.inputs();
    assert!(input.len() >= offsets.len() * inputs);
    let source = Source { values: input.as_ptr(), pixel_stride: inputs, segment_stride: 0 };
    let target = Target { values: output, offsets, residual: std::ptr::null(), padded: false };
    // SAFETY: the assertion makes the input hold every image; the caller vouches for the output.
    unsafe { weights.run_to_float(panels, source, target) };
}
