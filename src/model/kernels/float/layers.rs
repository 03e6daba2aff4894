//! Float32 layers: weights laid out as the kernels read them, once, when a network is loaded.
use super::tiles::{self, Kernels};
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Mean, Product, Slide, Source, Target};
use std::ops::Range;

/// A run of output channels that a kernel computes at once.
#[derive(Clone, Copy, Debug)]
struct Panel {
    /// First output channel.
    channel: usize,
    /// Which of the kernels' panels.
    kind: usize,
    /// Where its weights start.
    at: usize,
}

/// A 1x1 convolution, a fully connected layer, or a full convolution seen as rows of input channels.
pub(in crate::model) struct Pointwise {
    kernels: &'static Kernels,
    inputs: usize,
    outputs: usize,
    activation: bool,
    panels: Vec<Panel>,
    weights: Buffer<f32>,
    bias: Buffer<f32>,
}

impl Pointwise {
    /// Packs `weight`, `[inputs, outputs]`, for `kernels`.
    pub(in crate::model) fn new(
        kernels: &'static Kernels,
        weight: &[f32],
        bias: &[f32],
        activation: bool,
    ) -> Self {
        let outputs = bias.len();
        let inputs = weight.len() / outputs.max(1);
        let mut panels = Vec::new();
        let (mut channel, mut at) = (0, 0);
        while channel < outputs {
            // The widest panel that is filled, else the narrowest.
            let fits = kernels.panels.iter().position(|panel| panel.width <= outputs - channel);
            let kind = fits.unwrap_or(kernels.panels.len() - 1);
            panels.push(Panel { channel, kind, at });
            channel += kernels.panels[kind].width;
            at += kernels.panels[kind].width * inputs;
        }
        let mut packed = Buffer::zeroed(at);
        let mut padded_bias = Buffer::zeroed(channel);
        padded_bias[..outputs].copy_from_slice(bias);
        for panel in &panels {
            let width = kernels.panels[panel.kind].width;
            let filled = width.min(outputs - panel.channel);
            for input in 0..inputs {
                let from = input * outputs + panel.channel;
                packed[panel.at + input * width..][..filled].copy_from_slice(&weight[from..from + filled]);
            }
        }
        Self { kernels, inputs, outputs, activation, panels, weights: packed, bias: padded_bias }
    }

    /// Calls the kernel of each panel.
    ///
    /// # Safety
    /// As for [`Product::run`].
    unsafe fn call(&self, panels: Range<usize>, source: Source<f32>, target: Target<'_, f32>) {
        let segments = self.inputs.div_ceil(source.depth);
        for panel in &self.panels[panels] {
            let kernel = self.kernels.panels[panel.kind];
            // SAFETY: the caller vouches for source and target, of which a residual that is not null reaches
            // the panel's channels as the target does; weights and bias were packed for this panel; that
            // there are such kernels proves that the CPU has their instructions.
            unsafe {
                let residual = target.residual;
                (kernel.run)(&tiles::Product {
                    input: source.values,
                    pixel_stride: source.pixel_stride,
                    segments,
                    segment_stride: source.segment_stride,
                    depth: source.depth,
                    depth_last: self.inputs - (segments - 1) * source.depth,
                    weights: self.weights.as_ptr().add(panel.at),
                    bias: self.bias.as_ptr().add(panel.channel),
                    output: target.values.wrapping_add(panel.channel),
                    offsets: target.offsets.as_ptr(),
                    residual: if residual.is_null() { residual } else { residual.add(panel.channel) },
                    activation: self.activation,
                    pixels: target.offsets.len(),
                    valid: if target.padded { kernel.width } else { self.outputs - panel.channel },
                });
            }
        }
    }
}

impl Product for Pointwise {
    type Value = f32;

    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn panels(&self) -> Range<usize> {
        0..self.panels.len()
    }

    fn panels_of_block(&self, block: usize) -> Range<usize> {
        let before = |channel: usize| self.panels.partition_point(|panel| panel.channel < channel);
        before(block * self.kernels.block)..before((block + 1) * self.kernels.block)
    }

    unsafe fn run(&self, panels: Range<usize>, source: Source<f32>, target: Target<'_, f32>) {
        // SAFETY: the caller vouches for it.
        unsafe { self.call(panels, source, target) }
    }

    unsafe fn run_to_float(&self, panels: Range<usize>, source: Source<f32>, target: Target<'_, f32>) {
        // SAFETY: the caller vouches for it.
        unsafe { self.call(panels, source, target) }
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
        let run = kernels.depthwise(side, stride)?;
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
