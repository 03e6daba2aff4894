//! An inverted residual block in one pass: expand, depthwise and project, strip by strip.
//!
//! The middle tensor is six times wider than input and output. It is never written out: some rows of it, one
//! block of channels after the other, are expanded into a ring of rows, go through the depthwise convolution
//! while they are in cache, and end in the project convolution's input, of which only a strip exists. The
//! first block of a network has the stem in place of the expanding convolution.
//!
//! **Invariant**: all memory is sized by [`Geometry`] before anything runs; running allocates nothing.
use crate::model::kernels::Window;
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Precision, Product as _, Slide as _, Source, Target};
use std::ops::Range;

/// What makes the middle tensor.
pub(in crate::model) enum Widen<P: Precision> {
    /// A full convolution over a padded three-channel image.
    Stem {
        /// The convolution; its input channels are the rows of a window.
        weights: P::Product,
        /// Step, pixels.
        stride: usize,
    },
    /// A 1x1 convolution.
    Expand(P::Product),
}

/// The layers of a block.
pub(in crate::model) struct Block<P: Precision> {
    /// What makes the middle tensor.
    pub(in crate::model) widen: Widen<P>,
    /// What slides over it.
    pub(in crate::model) depthwise: P::Slide,
    /// What narrows it.
    pub(in crate::model) project: P::Product,
    /// Whether the input is added to the output.
    pub(in crate::model) residual: bool,
}

/// Sizes of a block's tensors and scratch for one size of image.
#[derive(Clone, Debug)]
pub(in crate::model) struct Geometry {
    /// The depthwise convolution's.
    pub(in crate::model) window: Window,
    /// Elements of one input image.
    pub(in crate::model) input_length: usize,
    /// Elements of one output image.
    pub(in crate::model) output_length: usize,
    /// Elements in a row of the padded image, where the block starts with the stem.
    padded_row: usize,
    /// Pixels in a row of the ring: the input's and the zeros around.
    columns: usize,
    /// Output rows made at once.
    strip: usize,
    /// Images that go through together, where a strip is a whole image.
    group: usize,
    /// Rows in the ring.
    slots: usize,
}

/// Bytes of new rows of one block of channels that a strip expands: they stay in the first- or second-level
/// cache until the depthwise convolution has read them.
const STRIP_BYTES: usize = 64 << 10;

/// Bytes of a strip's middle tensor that stay in the second-level cache beside the weights.
const MIDDLE_BYTES: usize = 384 << 10;

impl Geometry {
    /// Sizes for up to `images` images seen through `window`; `padded` is the padded image's row and whole
    /// length in elements, where the block starts with the stem; `strip` the output rows made at once, if they
    /// are not to be chosen by the size of the caches.
    pub(in crate::model) fn new<P: Precision>(
        block: &Block<P>,
        window: Window,
        padded: Option<(usize, usize)>,
        images: usize,
        strip: Option<usize>,
    ) -> Self {
        let size = size_of::<P::Value>();
        let lanes = block.depthwise.lanes();
        let reach = (window.output_width - 1) * window.stride + window.kernel;
        let columns = reach.max(window.before_columns + window.width);
        let whole = window.height * columns * lanes * size;
        let strip = match strip {
            Some(strip) => strip,
            None if whole <= 2 * STRIP_BYTES => window.output_height,
            None => {
                let rows = STRIP_BYTES / (columns * lanes * size * window.stride);
                rows - rows % P::Slide::TOGETHER
            }
        };
        let strip = strip.clamp(1, window.output_height);
        let pixels = window.output_height * window.output_width;
        let middle = pixels * block.depthwise.blocks() * lanes * size;
        let group = if strip == window.output_height { (MIDDLE_BYTES / middle).clamp(1, images) } else { 1 };
        let (padded_row, input_length) = match (&block.widen, padded) {
            (Widen::Expand(weights), _) => (0, window.height * window.width * weights.inputs()),
            (Widen::Stem { .. }, padded) => padded.unwrap_or_default(),
        };
        Self {
            columns,
            strip,
            group,
            slots: (strip - 1) * window.stride + window.kernel,
            padded_row,
            input_length,
            output_length: pixels * block.project.outputs(),
            window,
        }
    }

    /// The strips that make some output rows of some images, in their order: each takes the input rows that the
    /// strips before it did not.
    fn strips(&self, images: Range<usize>, rows: Range<usize>) -> impl Iterator<Item = Strip> {
        let Self { window, strip, group, .. } = self;
        // Images lie one after the other only as a whole.
        let group = if rows.len() == window.output_height { *group } else { 1 };
        // The input row after the last that the output rows before `row` see.
        let reach =
            |row: usize| ((row - 1) * window.stride + window.kernel - window.before_rows).min(window.height);
        images.clone().step_by(group).flat_map(move |image| {
            let rows = rows.clone();
            let group = group.min(images.end - image);
            rows.clone().step_by(*strip).map(move |start| {
                let first = if start == rows.start {
                    (start * window.stride).saturating_sub(window.before_rows)
                } else {
                    reach(start)
                };
                let output = start..(start + strip).min(rows.end);
                Strip { image, group, input: first..reach(output.end), output }
            })
        })
    }
}

/// Memory that one thread works in.
pub(in crate::model) struct Scratch<P: Precision> {
    /// Expanded rows: `[blocks, group, slots, columns, lanes]`.
    ring: Buffer<P::Value>,
    /// The depthwise convolution's output: `[blocks, group × strip × output_width, lanes]`.
    middle: Buffer<P::Value>,
    /// A row of zeros.
    zeros: Buffer<P::Value>,
    /// Where each expanded pixel goes.
    offsets: Vec<u32>,
    /// Where each output pixel goes.
    dense: Vec<u32>,
    /// Input rows of the depthwise convolution.
    rows: Vec<*const P::Value>,
}

// SAFETY: the pointers in `rows` are only used while the call that wrote them runs.
unsafe impl<P: Precision> Send for Scratch<P> {}

impl<P: Precision> Scratch<P> {
    /// Memory for every one of the blocks.
    pub(in crate::model) fn new<'a>(blocks: impl Iterator<Item = (&'a Block<P>, &'a Geometry)>) -> Self {
        let (mut ring, mut middle, mut zeros, mut offsets, mut dense, mut rows) = (0, 0, 0, 0, 0, 0);
        for (block, geometry) in blocks {
            let width = block.depthwise.blocks() * block.depthwise.lanes();
            let Geometry { window, columns, strip, group, slots, .. } = geometry;
            ring = ring.max(group * slots * columns * width);
            middle = middle.max(group * strip * window.output_width * width);
            zeros = zeros.max(columns * block.depthwise.lanes());
            offsets = offsets.max(group * slots * window.width);
            dense = dense.max(group * strip * window.output_width);
            rows = rows.max(*slots);
        }
        // A kernel may read a vector more than it uses.
        let slack = 64;
        Self {
            ring: Buffer::zeroed(ring + slack),
            middle: Buffer::zeroed(middle + slack),
            zeros: Buffer::zeroed(zeros + slack),
            offsets: Vec::with_capacity(offsets),
            dense: Vec::with_capacity(dense),
            rows: Vec::with_capacity(rows),
        }
    }
}

/// A block at work on some images.
pub(in crate::model) struct Pass<'a, P: Precision> {
    pub(in crate::model) block: &'a Block<P>,
    pub(in crate::model) geometry: &'a Geometry,
    /// First element of the first input image, padded for the stem.
    pub(in crate::model) input: *const P::Value,
    /// First element of the first output image.
    pub(in crate::model) output: *mut P::Value,
}

/// The part of a pass that is worked on: input rows to expand, output rows to make.
#[derive(Clone)]
struct Strip {
    /// First image.
    image: usize,
    /// Images.
    group: usize,
    /// Input rows that are expanded now.
    input: Range<usize>,
    /// Output rows that are made now.
    output: Range<usize>,
}

/// One layer of a block.
#[cfg(feature = "measure")]
#[derive(Clone, Copy)]
pub(in crate::model) enum Stage {
    /// What makes the middle tensor.
    Expand,
    /// What slides over it.
    Slide,
    /// What narrows it.
    Project,
}

impl<P: Precision> Pass<'_, P> {
    /// Makes some output rows of some images.
    ///
    /// # Safety
    /// Input and output must be good for as many images, nobody else may write these rows meanwhile, and
    /// `scratch` must have been made for this geometry.
    pub(in crate::model) unsafe fn run(
        &self,
        images: Range<usize>,
        rows: Range<usize>,
        scratch: &mut Scratch<P>,
    ) {
        for strip in self.geometry.strips(images, rows.clone()) {
            if strip.output.start == rows.start {
                self.clear_edges(strip.group, scratch);
            }
            // SAFETY: the caller vouches for input, output and scratch.
            unsafe {
                self.widen::<true, true>(&strip, scratch);
                self.project(&strip, scratch);
            }
        }
    }

    /// Runs one layer alone over a whole image, on what earlier runs left in the scratch.
    ///
    /// # Safety
    /// As for [`Self::run`], for one image.
    #[cfg(feature = "measure")]
    pub(in crate::model) unsafe fn run_only(&self, stage: Stage, scratch: &mut Scratch<P>) {
        for strip in self.geometry.strips(0..1, 0..self.geometry.window.output_height) {
            // SAFETY: the caller vouches for input, output and scratch.
            unsafe {
                match stage {
                    Stage::Expand => self.widen::<true, false>(&strip, scratch),
                    Stage::Slide => self.widen::<false, true>(&strip, scratch),
                    Stage::Project => self.project(&strip, scratch),
                }
            }
        }
    }

    /// Elements of one image in the ring.
    fn ring_length(&self) -> usize {
        self.geometry.slots * self.geometry.columns * self.block.depthwise.lanes()
    }

    /// Zeroes what lies before and after the pixels of every row of the ring.
    fn clear_edges(&self, group: usize, scratch: &mut Scratch<P>) {
        let Geometry { window, columns, .. } = self.geometry;
        let lanes = self.block.depthwise.lanes();
        let (before, after) = (window.before_columns * lanes, (window.before_columns + window.width) * lanes);
        let used = group * self.ring_length() * self.block.depthwise.blocks();
        let zero = scratch.zeros[0];
        for row in scratch.ring[..used].chunks_exact_mut(columns * lanes) {
            row[..before].fill(zero);
            row[after..].fill(zero);
        }
    }

    /// Expands the strip's input rows and slides over them, block by block of channels; or does one of the two.
    ///
    /// # Safety
    /// As for [`Self::run`].
    unsafe fn widen<const EXPAND: bool, const SLIDE: bool>(&self, strip: &Strip, scratch: &mut Scratch<P>) {
        if EXPAND {
            self.place(strip, scratch);
        }
        for block in 0..self.block.depthwise.blocks() {
            // SAFETY: the scratch holds this many blocks; the caller vouches for the rest.
            unsafe {
                let ring = scratch.ring.as_mut_ptr().add(block * strip.group * self.ring_length());
                if EXPAND {
                    self.expand(strip, block, ring, &scratch.offsets);
                }
                if SLIDE {
                    self.slide(strip, block, ring, scratch);
                }
            }
        }
    }

    /// Tells where in a block of the ring each pixel of the strip's input rows goes.
    fn place(&self, strip: &Strip, scratch: &mut Scratch<P>) {
        let Geometry { window, columns, slots, .. } = self.geometry;
        let lanes = self.block.depthwise.lanes();
        let row_length = columns * lanes;
        scratch.offsets.clear();
        for image in 0..strip.group {
            for row in strip.input.clone() {
                let first =
                    image * self.ring_length() + row % slots * row_length + window.before_columns * lanes;
                scratch.offsets.extend((0..window.width).map(|column| (first + column * lanes) as u32));
            }
        }
    }

    /// Expands the strip's input rows of one block of channels.
    ///
    /// # Safety
    /// As for [`Self::run`]; `ring` holds the block's rows.
    unsafe fn expand(&self, strip: &Strip, block: usize, ring: *mut P::Value, offsets: &[u32]) {
        let Geometry { window, input_length, padded_row, .. } = self.geometry;
        // The product counts channels from the tensor's first, the ring from the block's.
        let values = ring.wrapping_sub(block * self.block.depthwise.lanes());
        let target = |offsets| Target { values, offsets, residual: std::ptr::null(), padded: true };
        let first = strip.image * input_length;
        match &self.block.widen {
            Widen::Expand(weights) => {
                let inputs = weights.inputs();
                let at = first + strip.input.start * window.width * inputs;
                // SAFETY: the caller vouches for the input; several images are whole, hence one after another.
                unsafe {
                    let values = self.input.add(at);
                    let source = Source { values, pixel_stride: inputs, segment_stride: 0 };
                    weights.run(weights.layout().of_block(block), source, target(offsets));
                }
            }
            Widen::Stem { weights, stride } => {
                let rows = strip.input.len();
                for (at, offsets) in offsets.chunks_exact(window.width).enumerate() {
                    let (image, row) = (at / rows, strip.input.start + at % rows);
                    let at = first + image * input_length + row * stride * padded_row;
                    // SAFETY: the caller vouches for the input, which is padded to hold every window.
                    unsafe {
                        let source = Source {
                            values: self.input.add(at),
                            pixel_stride: stride * 3,
                            segment_stride: *padded_row,
                        };
                        weights.run(weights.layout().of_block(block), source, target(offsets));
                    }
                }
            }
        }
    }

    /// The depthwise convolution of one block of channels.
    ///
    /// # Safety
    /// As for [`Self::expand`].
    unsafe fn slide(&self, strip: &Strip, block: usize, ring: *const P::Value, scratch: &mut Scratch<P>) {
        let Geometry { window, columns, slots, .. } = self.geometry;
        let lanes = self.block.depthwise.lanes();
        let size = (strip.output.len(), window.output_width);
        for image in 0..strip.group {
            scratch.rows.clear();
            for at in 0..(size.0 - 1) * window.stride + window.kernel {
                let row = (strip.output.start * window.stride + at).wrapping_sub(window.before_rows);
                scratch.rows.push(if row < window.height {
                    ring.wrapping_add(image * self.ring_length() + row % slots * columns * lanes)
                } else {
                    scratch.zeros.as_ptr()
                });
            }
            let at = (block * strip.group + image) * size.0 * size.1;
            // SAFETY: the scratch's middle tensor holds every block, image and row of a strip.
            unsafe {
                let output = scratch.middle.as_mut_ptr().add(at * lanes);
                self.block.depthwise.run(block, &scratch.rows, size, output);
            }
        }
    }

    /// Narrows the strip's middle tensor to the output.
    ///
    /// # Safety
    /// As for [`Self::run`].
    unsafe fn project(&self, strip: &Strip, scratch: &mut Scratch<P>) {
        let Geometry { window, output_length, .. } = self.geometry;
        let (lanes, outputs) = (self.block.depthwise.lanes(), self.block.project.outputs());
        let pixels = strip.group * strip.output.len() * window.output_width;
        scratch.dense.clear();
        scratch.dense.extend((0..pixels).map(|pixel| (pixel * outputs) as u32));
        let at = strip.image * output_length + strip.output.start * window.output_width * outputs;
        let values = scratch.middle.as_ptr();
        let source = Source { values, pixel_stride: lanes, segment_stride: pixels * lanes };
        // SAFETY: the caller vouches for input and output; where there is a residual they have one shape.
        unsafe {
            let target = Target {
                values: self.output.add(at),
                offsets: &scratch.dense,
                residual: if self.block.residual { self.input.add(at) } else { std::ptr::null() },
                padded: false,
            };
            self.block.project.run(self.block.project.layout().all(), source, target);
        }
    }
}
