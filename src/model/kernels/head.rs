//! The end of a network: the last 1x1 convolution with the mean over the pixels, and the classifier.
//!
//! **Invariant**: the widest tensor of the network, the last convolution's output, exists one block of channels
//! at a time.
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean as _, Precision, Product as _, Source, Target};

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
    /// Runs `images` images of `pixels` pixels: `[images, pixels, inputs]` to `[images, outputs]`.
    ///
    /// # Panics
    /// If the slices or the scratch are shorter than that.
    pub(in crate::model) fn run(
        &self,
        (images, pixels): (usize, usize),
        input: &[P::Value],
        output: &mut [P::Value],
        scratch: &mut HeadScratch<P>,
    ) {
        let (inputs, outputs, lanes) = (self.weights.inputs(), self.weights.outputs(), self.lanes);
        assert!(input.len() >= images * pixels * inputs && output.len() >= images * outputs);
        assert!(scratch.wide.len() >= images * pixels * lanes && scratch.means.len() >= lanes);
        for block in 0..outputs.div_ceil(lanes) {
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
            unsafe { self.weights.run(self.weights.panels_of_block(block), source, target) };
            let filled = lanes.min(outputs - channel);
            for image in 0..images {
                // SAFETY: as above.
                unsafe {
                    let wide = scratch.wide.as_ptr().add(image * pixels * lanes);
                    self.mean.run(channel, wide, (pixels, lanes), scratch.means.as_mut_ptr());
                }
                output[image * outputs + channel..][..filled].copy_from_slice(&scratch.means[..filled]);
            }
        }
    }
}

/// The classifier: `[images, inputs]` to float32 `[images, classes]`.
///
/// # Panics
/// If a slice is shorter than that.
pub(in crate::model) fn classify<P: Precision>(
    weights: &P::Product,
    images: usize,
    input: &[P::Value],
    output: &mut [f32],
    offsets: &[u32],
) {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    assert!(input.len() >= images * inputs && output.len() >= images * outputs);
    assert!(offsets[..images].iter().all(|offset| *offset as usize + outputs <= output.len()));
    let source = Source { values: input.as_ptr(), pixel_stride: inputs, segment_stride: 0 };
    let target = Target {
        values: output.as_mut_ptr(),
        offsets: &offsets[..images],
        residual: std::ptr::null(),
        padded: false,
    };
    // SAFETY: the assertions above make input and output hold every image and channel.
    unsafe { weights.run_to_float(weights.panels(), source, target) };
}
