//! A network of inverted residual blocks, ready to run.
//!
//! **Invariant**: built only from checked tensors, packed for the kernels once; a session owns all memory that
//! inference needs, so that running allocates nothing.
use crate::model::kernels::block::{Block, Geometry, Scratch, Widen};
use crate::model::kernels::brain::{self, Brain};
use crate::model::kernels::byte::{self, Byte};
use crate::model::kernels::float::{self, Float};
use crate::model::kernels::head::{Head, HeadScratch};
use crate::model::kernels::isa::Isa;
use crate::model::kernels::matrix::Sizes;
use crate::model::kernels::ops::{ClassifierOp, Crew, FirstBlock, HeadOp, LaterBlock, Padded};
use crate::model::kernels::precision::{Normalisation, Precision, Product as _};
use crate::model::kernels::team::Team;
use crate::model::kernels::{Padding, Window};
use crate::model::network::{Convolution, Kind, Network};
use crate::model::quantise::{Layer, Quantised};
use crate::model::weights::{self, Tensors, WeightsError};
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

/// The layers of a network in one number format.
struct Layers<P: Precision> {
    blocks: Vec<Block<P>>,
    /// Strides and kernel sides of the depthwise convolutions.
    windows: Vec<(usize, usize)>,
    /// Kernel side and stride of the stem.
    stem: (usize, usize),
    head: Head<P>,
    classifier: P::Product,
    padding: Padding,
    normalisation: Normalisation,
}

/// MobileNetV2, EfficientNet-Lite and whatever else a [`Network`] describes.
struct InvertedResiduals<P: Precision>(Arc<Layers<P>>);

/// A network in float32, from folded tensors, which are checked first.
pub fn float32(
    network: &'static Network,
    tensors: &Tensors,
    isa: Isa,
) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals::<Float>::from_folded(network, tensors, isa)?))
}

/// A network in bfloat16, from folded tensors, which are checked first. Fast where the CPU multiplies bfloat16.
pub fn bfloat16(
    network: &'static Network,
    tensors: &Tensors,
    isa: Isa,
) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals::<Brain>::from_folded(network, tensors, isa)?))
}

/// Number formats whose layers are made of folded float32 weights and nothing else.
trait Folded: Precision {
    type Kernels: 'static;
    /// Input channels that a product reads at once.
    const GROUP: usize;

    fn kernels(isa: Isa) -> &'static Self::Kernels;
    /// Channels in a block of the middle tensors.
    fn block(kernels: &Self::Kernels) -> usize;
    /// `weight` is `[inputs, outputs]`.
    fn product(
        kernels: &'static Self::Kernels,
        depth: usize,
        weight: &[f32],
        bias: &[f32],
        activation: bool,
    ) -> Self::Product;
    /// `weight` is `[side × side, channels]`, `size` side and stride.
    fn slide(
        kernels: &'static Self::Kernels,
        size: (usize, usize),
        weight: &[f32],
        bias: &[f32],
    ) -> Option<Self::Slide>;
    fn mean(kernels: &'static Self::Kernels) -> Self::Mean;
}

macro_rules! folded {
    ($format:ty, $module:ident, $group:literal) => {
        impl Folded for $format {
            type Kernels = $module::Kernels;
            const GROUP: usize = $group;

            fn kernels(isa: Isa) -> &'static $module::Kernels {
                $module::Kernels::of(isa)
            }

            fn block(kernels: &$module::Kernels) -> usize {
                kernels.block
            }

            fn product(
                kernels: &'static $module::Kernels,
                depth: usize,
                weight: &[f32],
                bias: &[f32],
                activation: bool,
            ) -> $module::Pointwise {
                $module::Pointwise::new(kernels, depth, weight, bias, activation)
            }

            fn slide(
                kernels: &'static $module::Kernels,
                size: (usize, usize),
                weight: &[f32],
                bias: &[f32],
            ) -> Option<$module::Channelwise> {
                $module::Channelwise::new(kernels, size, weight, bias)
            }

            fn mean(kernels: &'static $module::Kernels) -> $module::Average {
                $module::Average::new(kernels)
            }
        }
    };
}
folded!(Float, float, 1);
folded!(Brain, brain, 2);

impl<P: Folded> InvertedResiduals<P> {
    fn from_folded(
        network: &'static Network,
        tensors: &Tensors,
        isa: Isa,
    ) -> std::result::Result<Self, WeightsError> {
        weights::check(network, tensors)?;
        let plan = network.plan();
        let reader = Reader::<P> { network, tensors, kernels: P::kernels(isa) };
        let lanes = P::block(reader.kernels);
        let mut blocks = Vec::new();
        for (at, block) in plan.blocks.iter().enumerate() {
            let widen = match &block.expand {
                Some(expand) => Widen::Expand(reader.pointwise(expand)?),
                None if at == 0 => {
                    let depth = plan.stem.kernel * plan.stem.input;
                    Widen::Stem { weights: reader.product(&plan.stem, depth)?, stride: plan.stem.stride }
                }
                None => return Err(WeightsError::Unsupported(network.name, block.depthwise.name.clone())),
            };
            blocks.push(Block {
                widen,
                depthwise: reader.slide(&block.depthwise)?,
                project: reader.product(&block.project, lanes)?,
                residual: block.residual,
            });
        }
        let shape = [network.classes, network.head_channels];
        if !shape[1].is_multiple_of(P::GROUP) {
            return Err(WeightsError::Unsupported(network.name, plan.classifier.to_owned()));
        }
        Ok(Self(Arc::new(Layers {
            blocks,
            windows: plan.blocks.iter().map(|b| (b.depthwise.kernel, b.depthwise.stride)).collect(),
            stem: (plan.stem.kernel, plan.stem.stride),
            head: Head { weights: reader.pointwise(&plan.head)?, mean: P::mean(reader.kernels), lanes },
            classifier: reader.matrix(plan.classifier, &shape, shape[1], false)?,
            padding: network.padding,
            normalisation: network.preprocessing.normalisation,
        })))
    }
}

/// A network in 8-bit integers.
pub fn int8(quantised: &Quantised, isa: Isa) -> std::result::Result<Box<dyn Classifier>, WeightsError> {
    Ok(Box::new(InvertedResiduals::<Byte>::new(quantised, isa)?))
}

impl InvertedResiduals<Byte> {
    fn new(quantised: &Quantised, isa: Isa) -> std::result::Result<Self, WeightsError> {
        let network = quantised.network;
        let plan = network.plan();
        let kernels = byte::Kernels::of(isa);
        let unsupported = |name: &str| WeightsError::Unsupported(network.name, name.to_owned());
        // A product reads its input four channels at a time.
        let product = |convolution: &Convolution, layer: &Layer, residual: Option<&[f32]>| {
            let sizes =
                Sizes { inputs: convolution.input, outputs: convolution.output, depth: convolution.input };
            let weight = |output: usize, input: usize| layer.weight[output * convolution.input + input];
            if convolution.input.is_multiple_of(4) {
                Ok(byte::Pointwise::new(kernels, sizes, weight, layer.product(), residual))
            } else {
                Err(unsupported(&convolution.name))
            }
        };
        let mut blocks = Vec::new();
        for (at, (block, layers)) in plan.blocks.iter().zip(&quantised.blocks).enumerate() {
            let widen = match (&block.expand, &layers.expand) {
                (Some(expand), Some(layer)) => Widen::Expand(product(expand, layer, None)?),
                (None, None) if at == 0 => {
                    let (kernel, layer) = (plan.stem.kernel, &quantised.stem);
                    let sizes =
                        Sizes { inputs: kernel * kernel * 3, outputs: plan.stem.output, depth: kernel * 3 };
                    // Pixels lie channels last, the weights channels first.
                    let weight = |output: usize, input: usize| {
                        layer.weight[(output * 3 + input % 3) * kernel * kernel + input / 3]
                    };
                    let weights = byte::Pointwise::new(kernels, sizes, weight, layer.product(), None);
                    Widen::Stem { weights, stride: plan.stem.stride }
                }
                _ => return Err(unsupported(&block.depthwise.name)),
            };
            let (depthwise, project) = (&block.depthwise, &block.project);
            let sizes = Sizes { inputs: project.input, outputs: project.output, depth: kernels.block };
            let weight = |output: usize, input: usize| layers.project.weight[output * project.input + input];
            let residual = layers.residual.as_deref();
            let size = (depthwise.kernel, depthwise.stride);
            blocks.push(Block {
                widen,
                depthwise: byte::Channelwise::new(kernels, size, layers.depthwise.product())
                    .ok_or_else(|| unsupported(&depthwise.name))?,
                project: byte::Pointwise::new(kernels, sizes, weight, layers.project.product(), residual),
                residual: block.residual,
            });
        }
        let (head, classes) = (network.head_channels, network.classes);
        let sizes = Sizes { inputs: head, outputs: classes, depth: head };
        let weight = |output: usize, input: usize| quantised.classifier.weight[output * head + input];
        Ok(Self(Arc::new(Layers {
            blocks,
            windows: plan.blocks.iter().map(|b| (b.depthwise.kernel, b.depthwise.stride)).collect(),
            stem: (plan.stem.kernel, plan.stem.stride),
            head: Head {
                weights: product(&plan.head, &quantised.head, None)?,
                mean: byte::Average::new(&quantised.pool),
                lanes: kernels.block,
            },
            classifier: byte::Pointwise::new(kernels, sizes, weight, quantised.classifier.product(), None),
            padding: network.padding,
            normalisation: network.preprocessing.normalisation,
        })))
    }
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
        let (mut height, mut width) = (stem.output_height, stem.output_width);
        let mut geometries = Vec::new();
        for (block, (kernel, stride)) in layers.blocks.iter().zip(&layers.windows) {
            let window = Window::new(*kernel, *stride, layers.padding, height, width);
            (height, width) = (window.output_height, window.output_width);
            geometries.push(Geometry::new(block, window, Some(padded.lengths()), images_max, None));
        }
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

/// Turns a file's tensors into layers.
struct Reader<'a, P: Folded> {
    network: &'static Network,
    tensors: &'a Tensors,
    kernels: &'static P::Kernels,
}

impl<P: Folded> Reader<'_, P> {
    /// A 1x1 convolution, whose input has no element after the last pixel's last channel.
    fn pointwise(&self, convolution: &Convolution) -> std::result::Result<P::Product, WeightsError> {
        if convolution.input.is_multiple_of(P::GROUP) {
            self.product(convolution, convolution.input)
        } else {
            Err(WeightsError::Unsupported(self.network.name, convolution.name.clone()))
        }
    }

    /// A full convolution as a product over the rows of its windows, or a 1x1 one:
    /// `[output, input, k, k]` becomes `[k × k × input, output]`.
    fn product(
        &self,
        convolution: &Convolution,
        depth: usize,
    ) -> std::result::Result<P::Product, WeightsError> {
        self.matrix(&convolution.name, &convolution.shape(), depth, convolution.activation)
    }

    fn matrix(
        &self,
        name: &str,
        shape: &[usize],
        depth: usize,
        activation: bool,
    ) -> std::result::Result<P::Product, WeightsError> {
        let weight = &weights::expect(self.network, self.tensors, &format!("{name}.weight"), shape)?.values;
        let taps = shape[2..].iter().product();
        let weight = channels_last(weight, shape[0], shape[1], taps);
        Ok(P::product(self.kernels, depth, &weight, self.bias(name, shape[0])?, activation))
    }

    /// A depthwise convolution: `[channels, 1, k, k]` becomes `[k × k, channels]`.
    fn slide(&self, convolution: &Convolution) -> std::result::Result<P::Slide, WeightsError> {
        debug_assert_eq!(convolution.kind, Kind::Depthwise);
        let (name, shape) = (&convolution.name, convolution.shape());
        let weight = &weights::expect(self.network, self.tensors, &format!("{name}.weight"), &shape)?.values;
        let weight = channels_last(weight, shape[0], 1, shape[2] * shape[3]);
        let bias = self.bias(name, shape[0])?;
        P::slide(self.kernels, (convolution.kernel, convolution.stride), &weight, bias)
            .ok_or_else(|| WeightsError::Unsupported(self.network.name, name.clone()))
    }

    fn bias(&self, name: &str, length: usize) -> std::result::Result<&[f32], WeightsError> {
        Ok(&weights::expect(self.network, self.tensors, &format!("{name}.bias"), &[length])?.values)
    }
}

/// `[output, input, taps]` to `[taps, input, output]`.
pub(in crate::model) fn channels_last(weight: &[f32], output: usize, input: usize, taps: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    for (from_output, weight) in weight.chunks_exact(input * taps).enumerate() {
        for (at, value) in weight.iter().enumerate() {
            turned[(at % taps * input + at / taps) * output + from_output] = *value;
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_turned_channels_last() {
        // Two outputs, three inputs, two taps; the value tells its place.
        let weight: Vec<f32> = (0..12).map(|at| (at / 6 * 100 + at / 2 % 3 * 10 + at % 2) as f32).collect();
        let turned = channels_last(&weight, 2, 3, 2);
        assert_eq!(turned, [0., 100., 10., 110., 20., 120., 1., 101., 11., 111., 21., 121.]);
    }
}
