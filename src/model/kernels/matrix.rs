//! Weights of a matrix product, packed in panels as the tiles read them.
//!
//! **Invariant**: panels follow each other without gaps, and none straddles a block of output channels.
use crate::model::kernels::memory::{Buffer, Plain};
use crate::model::kernels::precision::Source;
use crate::model::kernels::tile::{Panel, Product, STEP};
use std::ops::Range;

/// A panel of a matrix.
#[derive(Clone, Copy)]
struct Placed {
    /// First output channel.
    channel: usize,
    /// Which of the kernels.
    kind: usize,
    /// Element where its weights start.
    at: usize,
}

/// Sizes of a matrix.
#[derive(Clone, Copy)]
pub(in crate::model) struct Sizes {
    /// Input channels.
    pub(in crate::model) inputs: usize,
    /// Output channels.
    pub(in crate::model) outputs: usize,
    /// Input channels that lie together in memory: all, or runs of them with a shorter last one.
    pub(in crate::model) depth: usize,
}

/// How a matrix is cut into panels.
pub(in crate::model) struct Panels {
    sizes: Sizes,
    block: usize,
    placed: Vec<Placed>,
}

impl Panels {
    pub(in crate::model) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Every panel.
    pub(in crate::model) fn all(&self) -> Range<usize> {
        0..self.placed.len()
    }

    /// The panels that compute a block of output channels.
    pub(in crate::model) fn of_block(&self, block: usize) -> Range<usize> {
        let before = |channel: usize| self.placed.partition_point(|placed| placed.channel < channel);
        before(block * self.block)..before((block + 1) * self.block)
    }
}

/// The packed weights, elements of type `W` that are multiplied with as wide ones of the pixels.
pub(in crate::model) struct Matrix<W, E: 'static> {
    kernels: &'static [Panel<E>],
    panels: Panels,
    weights: Buffer<W>,
}

impl<W: Plain, E> Matrix<W, E> {
    /// Packs weights, told by output and input channel, for `kernels`, widest first, of which each fits a whole
    /// number of times in `block` channels.
    pub(in crate::model) fn new(
        kernels: &'static [Panel<E>],
        block: usize,
        sizes: Sizes,
        weight: impl Fn(usize, usize) -> W,
    ) -> Self {
        let group = STEP / size_of::<W>();
        let rows: Vec<usize> = (0..sizes.inputs)
            .step_by(sizes.depth)
            .flat_map(|first| (first..(first + sizes.depth).min(sizes.inputs)).step_by(group))
            .collect();
        let mut all = Vec::new();
        let (mut channel, mut at) = (0, 0);
        while channel < sizes.outputs {
            // The widest panel that is filled, or the narrowest that takes all that is left, if only a quarter of
            // it stays empty: two panels read every pixel twice.
            let left = sizes.outputs - channel;
            let holds_all = kernels.iter().rposition(|panel| panel.width >= left);
            let kind = holds_all.filter(|kind| kernels[*kind].width * 3 <= left * 4);
            let filled = || kernels.iter().position(|panel| panel.width <= left);
            let kind = kind.or_else(filled).unwrap_or(kernels.len() - 1);
            all.push(Placed { channel, kind, at });
            channel += kernels[kind].width;
            at += kernels[kind].width * rows.len() * group;
        }
        let mut weights = Buffer::zeroed(at);
        for placed in &all {
            let Panel { width, lanes, channel, .. } = &kernels[placed.kind];
            let output = |column: usize| placed.channel + channel(column / lanes, column % lanes);
            let outputs: Vec<usize> = (0..*width).map(output).collect();
            let packed = weights[placed.at..].chunks_exact_mut(width * group);
            for (packed, first) in packed.zip(&rows) {
                let end = ((first / sizes.depth + 1) * sizes.depth).min(sizes.inputs);
                for (packed, output) in packed.chunks_exact_mut(group).zip(&outputs) {
                    if *output < sizes.outputs {
                        for (value, input) in packed.iter_mut().zip(*first..end) {
                            *value = weight(*output, input);
                        }
                    }
                }
            }
        }
        Self { kernels, panels: Panels { sizes, block, placed: all }, weights }
    }

    /// Values by output channel in the order of the panels' lanes, zero where a panel has no channel.
    pub(in crate::model) fn per_output<T: Plain>(&self, value: impl Fn(usize) -> T) -> Buffer<T> {
        let Panels { sizes, placed, .. } = &self.panels;
        let length = placed.iter().map(|placed| self.kernels[placed.kind].width).sum();
        let mut values = Buffer::zeroed(length);
        for placed in placed {
            let Panel { width, lanes, channel, .. } = &self.kernels[placed.kind];
            for at in 0..*width {
                let output = placed.channel + channel(at / lanes, at % lanes);
                if output < sizes.outputs {
                    values[placed.channel + at] = value(output);
                }
            }
        }
        values
    }

    pub(in crate::model) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Calls the kernel of each panel. `finish` is told the panel's first output channel, which is also where
    /// its values of [`Self::per_output`] start; `padded` tells whether channels beyond the last are written.
    ///
    /// # Safety
    /// The source must be good for reads of every pixel and input channel, and of up to [`STEP`] bytes beyond
    /// where `depth` is no multiple of the group; what `finish` gives, for every offset.
    pub(in crate::model) unsafe fn run<V: Plain>(
        &self,
        panels: Range<usize>,
        source: Source<V>,
        offsets: &[u32],
        padded: bool,
        finish: impl Fn(usize) -> E,
    ) {
        let Sizes { inputs, outputs, depth } = self.panels.sizes;
        let segments = inputs.div_ceil(depth);
        let steps = |channels: usize| (channels * size_of::<W>()).div_ceil(STEP);
        let (steps, steps_last) = (steps(depth), steps(inputs - (segments - 1) * depth));
        for placed in &self.panels.placed[panels] {
            let kernel = &self.kernels[placed.kind];
            let left = outputs - placed.channel;
            let call = Product {
                input: source.values.cast(),
                pixel_stride: source.pixel_stride * size_of::<V>(),
                segments,
                segment_stride: source.segment_stride * size_of::<V>(),
                steps,
                steps_last,
                weights: self.weights[placed.at..].as_ptr().cast(),
                offsets: offsets.as_ptr(),
                pixels: offsets.len(),
                ahead: ((segments - 1) * steps + steps_last) * kernel.width * STEP,
                valid: if padded { kernel.width } else { left.min(kernel.width) },
                finish: finish(placed.channel),
            };
            // SAFETY: the caller vouches for source and target; the weights were packed for this panel; that
            // there are such kernels proves that the CPU has their instructions.
            unsafe { (kernel.run)(&call) };
        }
    }
}
