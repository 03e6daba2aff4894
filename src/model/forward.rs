//! A network of inverted residual blocks, ready to run.
//!
//! **Invariant**: a session owns all memory that inference needs, so that running allocates nothing.
use crate::model::assemble::{self, Layers};
use crate::model::kernels::Window;
use crate::model::kernels::block::{Geometry, Scratch};
use crate::model::kernels::brain::Brain;
use crate::model::kernels::float::Float;
use crate::model::kernels::head::HeadScratch;
use crate::model::kernels::isa::Isa;
use crate::model::kernels::ops::{ClassifierOp, Crew, FirstBlock, HeadOp, LaterBlock, Padded};
use crate::model::kernels::precision::{Precision, Product as _};
use crate::model::kernels::team::Team;
use crate::model::network::Network;
use crate::model::quantise::Quantised;
use crate::model::weights::{Tensors, WeightsError};
use candle_core::{CpuStorage, Device, InplaceOp2 as _, Layout, Result, Storage, Tensor, bail};
use std::cell::RefCell;
use std::sync::Arc;

/// Something that classifies photos.
pub trait Classifier: Send + Sync {
    /// Memory and state for one thread that classifies photos.
    fn session(&self, size: SessionSize) -> Result<Box<dyn Session>>;

    /// Logits `[N, classes]` of photos `[N, height, width, 3]`, in a session of their own.
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let (count, height, width, _) = images.dims4()?;
        let size = SessionSize { images_max: count, height, width, threads: 1 };
        let mut session = self.session(size)?;
        let logits = session.logits(images)?;
        Tensor::from_slice(logits, (count, logits.len() / count), &Device::Cpu)
    }
}

/// What a [`Session`] has room for.
#[derive(Clone, Copy, Debug)]
pub struct SessionSize {
    /// Most photos at once.
    pub images_max: usize,
    /// Height of the photos, pixels.
    pub height: usize,
    /// Width of the photos, pixels.
    pub width: usize,
    /// Threads that work on a photo together, the calling one among them.
    pub threads: usize,
}

/// A thread's memory for running a [`Classifier`].
pub trait Session: Send {
    /// Logits `[N, classes]` of photos `[N, height, width, 3]`, red first: bytes, or float32 that is normalised
    /// already.
    fn logits(&mut self, images: &Tensor) -> Result<&[f32]>;
}

/// MobileNetV2, EfficientNet-Lite and whatever else a [`Network`] describes.
struct InvertedResiduals<P: Precision>(Arc<Layers<P>>);

/// A network in float32, from folded tensors, which are checked first.
pub fn float32(
    network: &'static Network,
    tensors: &Tensors,
    isa: Isa,
) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals(Arc::new(assemble::folded::<Float>(network, tensors, isa)?))))
}

/// A network in bfloat16, from folded tensors, which are checked first. Fast where the CPU multiplies bfloat16.
pub fn bfloat16(
    network: &'static Network,
    tensors: &Tensors,
    isa: Isa,
) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals(Arc::new(assemble::folded::<Brain>(network, tensors, isa)?))))
}

/// A network in 8-bit integers.
pub fn int8(quantised: &Quantised, isa: Isa) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals(Arc::new(assemble::integers(quantised, isa)?))))
}

impl<P: Precision> Classifier for InvertedResiduals<P> {
    fn session(&self, size: SessionSize) -> Result<Box<dyn Session>> {
        Ok(Box::new(Running::new(Arc::clone(&self.0), size)?))
    }
}

/// Shapes of the tensors of a number of images.
struct Shapes {
    blocks: Vec<Layout>,
    pooled: Layout,
    logits: Layout,
}

impl Shapes {
    fn new<P: Precision>(layers: &Layers<P>, geometries: &[Geometry], images: usize) -> Self {
        let blocks = layers.blocks.iter().zip(geometries).map(|(block, Geometry { window, .. })| {
            let channels = block.project.outputs();
            Layout::contiguous((images, window.output_height, window.output_width, channels))
        });
        Self {
            blocks: blocks.collect(),
            pooled: Layout::contiguous((images, layers.head.weights.outputs())),
            logits: Layout::contiguous((images, layers.classifier.outputs())),
        }
    }
}

/// The blocks' sizes for up to `images_max` photos seen through `stem`, padded to rows and images of so many
/// elements; then height and width of what the head reads.
pub(super) fn geometries<P: Precision>(
    layers: &Layers<P>,
    stem: &Window,
    padded: (usize, usize),
    images_max: usize,
) -> (Vec<Geometry>, (usize, usize)) {
    let (mut height, mut width) = (stem.output_height, stem.output_width);
    let mut geometries = Vec::new();
    for (block, (kernel, stride)) in layers.blocks.iter().zip(&layers.windows) {
        let window = Window::new(*kernel, *stride, layers.padding, height, width);
        (height, width) = (window.output_height, window.output_width);
        geometries.push(Geometry::new(block, window, Some(padded), images_max, None));
    }
    (geometries, (height, width))
}

/// A session of [`InvertedResiduals`].
struct Running<P: Precision> {
    layers: Arc<Layers<P>>,
    size: (usize, usize),
    geometries: Vec<Geometry>,
    padded: Padded<P>,
    crew: Crew<P>,
    /// Where each image's logits start.
    offsets: Vec<u32>,
    /// By number of images, from one.
    shapes: Vec<Shapes>,
    /// What the blocks write in turns: none writes the memory that it reads.
    halves: [CpuStorage; 2],
    pooled: CpuStorage,
    logits: CpuStorage,
}

impl<P: Precision> Running<P> {
    fn new(layers: Arc<Layers<P>>, size: SessionSize) -> Result<Self> {
        let SessionSize { images_max, height, width, threads } = size;
        if [images_max, height, width, threads].contains(&0) {
            bail!("a session needs photos, pixels and threads: {size:?}");
        }
        let (kernel, stride) = layers.stem;
        let stem = Window::new(kernel, stride, layers.padding, height, width);
        let padded = Padded::new(&stem, layers.normalisation, images_max);
        let (geometries, (height, width)) = geometries(&layers, &stem, padded.lengths(), images_max);
        let scratch = || Scratch::new(layers.blocks.iter().zip(&geometries));
        let head = || HeadScratch::new(images_max, height * width, layers.head.lanes);
        let crew = Crew {
            team: Team::new(threads)?,
            blocks: (0..threads).map(|_| scratch()).collect(),
            heads: (0..threads).map(|_| head()).collect(),
        };
        let classes = layers.classifier.outputs();
        let offsets = (0..images_max).map(|image| (image * classes) as u32).collect();
        let longest = geometries.iter().map(|geometry| geometry.output_length).max().unwrap_or(0);
        let pooled = layers.head.weights.outputs();
        Ok(Self {
            size: (stem.height, stem.width),
            shapes: (1..=images_max).map(|images| Shapes::new(&layers, &geometries, images)).collect(),
            halves: [P::zeros(images_max * longest), P::zeros(images_max * longest)],
            pooled: P::zeros(images_max * pooled),
            logits: CpuStorage::F32(vec![0.0; images_max * classes]),
            layers,
            geometries,
            padded,
            crew,
            offsets,
        })
    }
}

impl<P: Precision> Session for Running<P> {
    fn logits(&mut self, images: &Tensor) -> Result<&[f32]> {
        let (count, height, width, channels) = images.dims4()?;
        if (height, width) != self.size || channels != 3 || count == 0 || count > self.shapes.len() {
            let (most, (height, width)) = (self.shapes.len(), self.size);
            bail!("a session for 1 to {most} photos [{height}, {width}, 3] got {:?}", images.dims());
        }
        let (photos, photos_layout) = images.storage_and_layout();
        let Storage::Cpu(photos) = &*photos else { bail!("the photos are not in the CPU's memory") };
        let Self { layers, geometries, padded, crew, offsets, halves, pooled, logits, .. } = self;
        let shapes = &self.shapes[count - 1];
        let [mut to, mut from] = halves.each_mut();
        let mut from_layout = photos_layout;
        // The operations are candle's, called as `Tensor::inplace_op2` does, which allocates on every call.
        for (at, (block, geometry)) in layers.blocks.iter().zip(geometries).enumerate() {
            let layout = &shapes.blocks[at];
            if at == 0 {
                let memory = RefCell::new((&mut *padded, &mut *crew));
                let op = FirstBlock { block, geometry, images: count, memory };
                op.cpu_fwd(to, layout, photos, photos_layout)?;
            } else {
                let op = LaterBlock { block, geometry, images: count, crew: RefCell::new(&mut *crew) };
                op.cpu_fwd(to, layout, from, from_layout)?;
            }
            std::mem::swap(&mut to, &mut from);
            from_layout = layout;
        }
        let (_, height, width, _) = from_layout.shape().dims4()?;
        let size = (count, height * width);
        HeadOp { head: &layers.head, size, crew: RefCell::new(&mut *crew) }.cpu_fwd(
            pooled,
            &shapes.pooled,
            from,
            from_layout,
        )?;
        let op = ClassifierOp::<P> {
            weights: &layers.classifier,
            images: count,
            offsets,
            crew: RefCell::new(crew),
        };
        op.cpu_fwd(logits, &shapes.logits, pooled, &shapes.pooled)?;
        Ok(&logits.as_slice::<f32>()?[..count * layers.classifier.outputs()])
    }
}
