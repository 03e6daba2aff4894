//! The kernels as candle operations: each writes into a tensor that is there already.
//!
//! **Invariant**: an operation checks the lengths of both tensors before a kernel sees their memory.
use crate::model::kernels::block::{Block, Geometry, Pass, Scratch};
use crate::model::kernels::head::{Head, HeadScratch, classify};
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::precision::{Normalisation, Pixels, Precision, Product as _, Slide as _};
use crate::model::kernels::team::{Team, share};
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};
use std::cell::RefCell;
use std::ops::Range;

/// Where a contiguous tensor of `length` elements lies in its storage.
fn range(layout: &Layout, length: usize) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if end - start == length => Ok(start..end),
        Some((start, end)) => bail!("a kernel for {length} elements got a tensor of {}", end - start),
        None => bail!("the kernels take contiguous tensors only"),
    }
}

/// Photos with what lies outside them, as the stem reads them.
pub(in crate::model) struct Padded<P: Precision> {
    values: Buffer<P::Value>,
    /// Rows and columns of the photo, and of what lies before it.
    height: usize,
    width: usize,
    before_rows: usize,
    before_columns: usize,
    /// Rows and elements in a row of the padded photo.
    rows: usize,
    row_length: usize,
    normalisation: Normalisation,
}

impl<P: Precision> Padded<P> {
    /// Room for `images` photos seen through the stem's `window`.
    pub(in crate::model) fn new(window: &super::Window, normalisation: Normalisation, images: usize) -> Self {
        let reach = |outputs: usize| (outputs - 1) * window.stride + window.kernel;
        let columns = reach(window.output_width).max(window.before_columns + window.width);
        let rows = reach(window.output_height).max(window.before_rows + window.height);
        let outside: [P::Value; 3] = std::array::from_fn(|channel| P::outside(&normalisation, channel));
        // A kernel may read a vector more than it uses.
        let mut values = Buffer::zeroed(images * rows * columns * 3 + 64);
        for (at, value) in values.iter_mut().enumerate() {
            *value = outside[at % 3];
        }
        Self {
            values,
            height: window.height,
            width: window.width,
            before_rows: window.before_rows,
            before_columns: window.before_columns,
            rows,
            row_length: columns * 3,
            normalisation,
        }
    }

    /// Elements in a row, and in an image.
    pub(in crate::model) fn lengths(&self) -> (usize, usize) {
        (self.row_length, self.rows * self.row_length)
    }

    fn fill(&mut self, images: usize, pixels: Pixels<'_>) {
        let length = self.width * 3;
        for row in 0..images * self.height {
            let (image, image_row) = (row / self.height, row % self.height);
            let at = (image * self.rows + self.before_rows + image_row) * self.row_length
                + self.before_columns * 3;
            let from = row * length..(row + 1) * length;
            let pixels = match pixels {
                Pixels::Bytes(bytes) => Pixels::Bytes(&bytes[from]),
                Pixels::Floats(floats) => Pixels::Floats(&floats[from]),
            };
            P::pack(pixels, &self.normalisation, &mut self.values[at..at + length]);
        }
    }
}

/// The stem and the first block: photos `[images, height, width, 3]`, bytes or normalised float32, to
/// `[images, height', width', channels]`.
pub(in crate::model) struct FirstBlock<'a, P: Precision> {
    pub(in crate::model) block: &'a Block<P>,
    pub(in crate::model) geometry: &'a Geometry,
    pub(in crate::model) images: usize,
    pub(in crate::model) memory: RefCell<(&'a mut Padded<P>, &'a mut Crew<P>)>,
}

impl<P: Precision> InplaceOp2 for FirstBlock<'_, P> {
    fn name(&self) -> &'static str {
        "elastic-first-block"
    }

    fn cpu_fwd(&self, output: &mut CpuStorage, to: &Layout, input: &CpuStorage, from: &Layout) -> Result<()> {
        let memory = &mut *self.memory.borrow_mut();
        let (padded, crew) = (&mut *memory.0, &mut *memory.1);
        let from = range(from, self.images * padded.height * padded.width * 3)?;
        let pixels = match input {
            CpuStorage::U8(bytes) => Pixels::Bytes(&bytes[from]),
            CpuStorage::F32(floats) => Pixels::Floats(&floats[from]),
            _ => bail!("photos are bytes or float32"),
        };
        padded.fill(self.images, pixels);
        let output = &mut P::values_mut(output)?[range(to, self.images * self.geometry.output_length)?];
        run(self.block, self.geometry, self.images, &padded.values, output, crew);
        Ok(())
    }
}

/// Any later block: `[images, height, width, channels]` to `[images, height', width', channels']`.
pub(in crate::model) struct LaterBlock<'a, P: Precision> {
    pub(in crate::model) block: &'a Block<P>,
    pub(in crate::model) geometry: &'a Geometry,
    pub(in crate::model) images: usize,
    pub(in crate::model) crew: RefCell<&'a mut Crew<P>>,
}

impl<P: Precision> InplaceOp2 for LaterBlock<'_, P> {
    fn name(&self) -> &'static str {
        "elastic-block"
    }

    fn cpu_fwd(&self, output: &mut CpuStorage, to: &Layout, input: &CpuStorage, from: &Layout) -> Result<()> {
        let input = &P::values(input)?[range(from, self.images * self.geometry.input_length)?];
        let output = &mut P::values_mut(output)?[range(to, self.images * self.geometry.output_length)?];
        run(self.block, self.geometry, self.images, input, output, &mut self.crew.borrow_mut());
        Ok(())
    }
}

/// Threads that work on an image, each with its memory.
pub(in crate::model) struct Crew<P: Precision> {
    pub(in crate::model) team: Team,
    /// One a member.
    pub(in crate::model) blocks: Vec<Scratch<P>>,
    /// One a member.
    pub(in crate::model) heads: Vec<HeadScratch<P>>,
}

/// What a job shares although it holds pointers.
struct Together<T>(T);

// SAFETY: whoever makes one gives each member a part of what is pointed at that no other member touches.
unsafe impl<T> Sync for Together<T> {}

impl<T> Together<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

fn run<P: Precision>(
    block: &Block<P>,
    geometry: &Geometry,
    images: usize,
    input: &[P::Value],
    output: &mut [P::Value],
    crew: &mut Crew<P>,
) {
    assert!(input.len() >= images * geometry.input_length && output.len() >= images * geometry.output_length);
    let members = crew.blocks.len();
    let pass = Pass { block, geometry, input: input.as_ptr(), output: output.as_mut_ptr() };
    let shared = Together((pass, crew.blocks.as_mut_ptr()));
    let rows = geometry.window.output_height;
    crew.team.run(&|member| {
        let (pass, scratch) = shared.get();
        let (images, rows) = if images >= members {
            (share(images, member, members), 0..rows)
        } else {
            let together = P::Slide::TOGETHER;
            let share = share(rows.div_ceil(together), member, members);
            (0..images, share.start * together..rows.min(share.end * together))
        };
        // SAFETY: the assertion makes input and output hold every image, of which each member has a share of
        // its own; there is a scratch for each member, made for every block of the network that it comes with.
        unsafe { pass.run(images, rows, &mut *scratch.add(member)) };
    });
}

/// The last convolution and the mean: `[images, height, width, channels]` to `[images, channels']`.
pub(in crate::model) struct HeadOp<'a, P: Precision> {
    pub(in crate::model) head: &'a Head<P>,
    /// Images, and pixels in each.
    pub(in crate::model) size: (usize, usize),
    pub(in crate::model) crew: RefCell<&'a mut Crew<P>>,
}

impl<P: Precision> InplaceOp2 for HeadOp<'_, P> {
    fn name(&self) -> &'static str {
        "elastic-head"
    }

    fn cpu_fwd(&self, output: &mut CpuStorage, to: &Layout, input: &CpuStorage, from: &Layout) -> Result<()> {
        let (images, pixels) = self.size;
        let (inputs, outputs) = (self.head.weights.inputs(), self.head.weights.outputs());
        let input = &P::values(input)?[range(from, images * pixels * inputs)?];
        let output = &mut P::values_mut(output)?[range(to, images * outputs)?];
        let crew = &mut **self.crew.borrow_mut();
        let members = crew.heads.len();
        let (head, size) = (self.head, self.size);
        let blocks = outputs.div_ceil(head.lanes);
        let shared = Together((output.as_mut_ptr(), crew.heads.as_mut_ptr()));
        crew.team.run(&|member| {
            let (output, scratch) = shared.get();
            // SAFETY: input and output hold every image; each member has blocks of channels and memory of its own.
            unsafe {
                let scratch = &mut *scratch.add(member);
                head.run(size, input, *output, share(blocks, member, members), scratch);
            }
        });
        Ok(())
    }
}

/// The classifier: `[images, channels]` to float32 `[images, classes]`.
pub(in crate::model) struct ClassifierOp<'a, P: Precision> {
    pub(in crate::model) weights: &'a P::Product,
    pub(in crate::model) images: usize,
    /// Where each image's logits start.
    pub(in crate::model) offsets: &'a [u32],
    pub(in crate::model) crew: RefCell<&'a mut Crew<P>>,
}

impl<P: Precision> InplaceOp2 for ClassifierOp<'_, P> {
    fn name(&self) -> &'static str {
        "elastic-classifier"
    }

    fn cpu_fwd(&self, output: &mut CpuStorage, to: &Layout, input: &CpuStorage, from: &Layout) -> Result<()> {
        let input = &P::values(input)?[range(from, self.images * self.weights.inputs())?];
        let CpuStorage::F32(output) = output else { bail!("logits are float32") };
        let output = &mut output[range(to, self.images * self.weights.outputs())?];
        let crew = &mut **self.crew.borrow_mut();
        let members = crew.heads.len();
        let weights = self.weights;
        let panels = weights.layout().all().len();
        let offsets = &self.offsets[..self.images];
        assert!(offsets.iter().all(|offset| *offset as usize + self.weights.outputs() <= output.len()));
        let shared = Together(output.as_mut_ptr());
        crew.team.run(&|member| {
            let panels = share(panels, member, members);
            // SAFETY: input and output hold every image, as was asserted; each member has panels of its own.
            unsafe { classify::<P>(weights, panels, input, *shared.get(), offsets) };
        });
        Ok(())
    }
}
