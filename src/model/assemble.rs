//! From weights to layers that are packed for the kernels, in every number format along one plan.
//!
//! **Invariant**: built only from checked weights; a product that reads several input channels at once gets a
//! multiple of them wherever nothing follows its input in memory.
use crate::model::kernels::Padding;
use crate::model::kernels::block::{Block, Widen};
use crate::model::kernels::brain::{self, Brain};
use crate::model::kernels::byte::{self, Byte};
use crate::model::kernels::float::{self, Float};
use crate::model::kernels::head::Head;
use crate::model::kernels::isa::Isa;
use crate::model::kernels::matrix::Sizes;
use crate::model::kernels::precision::{Normalisation, Precision, Slide as _};
use crate::model::network::{self, Convolution, Network};
use crate::model::quantise::{Layer, Quantised};
use crate::model::weights::{self, Tensors, WeightsError, channels_last};

type Result<T> = std::result::Result<T, WeightsError>;

/// The layers of a network in one number format.
pub(super) struct Layers<P: Precision> {
    pub(super) blocks: Vec<Block<P>>,
    /// Kernel sides and strides of the depthwise convolutions.
    pub(super) windows: Vec<(usize, usize)>,
    /// Kernel side and stride of the stem.
    pub(super) stem: (usize, usize),
    pub(super) head: Head<P>,
    pub(super) classifier: P::Product,
    pub(super) padding: Padding,
    pub(super) normalisation: Normalisation,
}

/// Which of a network's products.
#[derive(Clone, Copy)]
enum Part {
    Stem,
    Expand(usize),
    Project(usize),
    Head,
    Classifier,
}

/// Where layers come from.
trait Source: Sync {
    type Format: Precision;
    /// Input channels that a product reads at once.
    const GROUP: usize;

    /// Channels in a block of the last convolution's output.
    fn lanes(&self) -> usize;
    /// A product; `shape` is its weight's in PyTorch's order.
    fn product(
        &self,
        part: Part,
        name: &str,
        shape: &[usize],
        activation: bool,
        depth: usize,
    ) -> Result<<Self::Format as Precision>::Product>;
    /// The depthwise convolution of a block; `None` where no kernel has its side and stride.
    fn slide(
        &self,
        block: usize,
        convolution: &Convolution,
    ) -> Result<Option<<Self::Format as Precision>::Slide>>;
    /// The mean before the classifier.
    fn mean(&self) -> <Self::Format as Precision>::Mean;
}

/// Walks the network's plan.
fn assemble<S: Source>(network: &'static Network, source: &S) -> Result<Layers<S::Format>> {
    let plan = network.plan();
    let unsupported = |name: &str| WeightsError::Unsupported(network.name, name.to_owned());
    let product = |part, convolution: &Convolution, depth| {
        source.product(part, &convolution.name, &convolution.shape(), convolution.activation, depth)
    };
    let whole_groups = |name: &str, inputs: usize| {
        if inputs.is_multiple_of(S::GROUP) { Ok(()) } else { Err(unsupported(name)) }
    };
    // Nothing follows the last pixel's last channel of what these read.
    let pointwise = |part, convolution: &Convolution| {
        whole_groups(&convolution.name, convolution.input)?;
        product(part, convolution, convolution.input)
    };
    let block = |(at, block): (usize, &network::Block)| {
        let widen = match &block.expand {
            Some(expand) => Widen::Expand(pointwise(Part::Expand(at), expand)?),
            None if at == 0 => {
                let depth = plan.stem.kernel * plan.stem.input;
                Widen::Stem { weights: product(Part::Stem, &plan.stem, depth)?, stride: plan.stem.stride }
            }
            None => return Err(unsupported(&block.depthwise.name)),
        };
        let depthwise =
            source.slide(at, &block.depthwise)?.ok_or_else(|| unsupported(&block.depthwise.name))?;
        Ok(Block {
            widen,
            project: product(Part::Project(at), &block.project, depthwise.lanes())?,
            depthwise,
            residual: block.residual,
        })
    };
    let end = || {
        let head =
            Head { weights: pointwise(Part::Head, &plan.head)?, mean: source.mean(), lanes: source.lanes() };
        let shape = [network.classes, network.head_channels];
        whole_groups(plan.classifier, shape[1])?;
        let classifier = source.product(Part::Classifier, plan.classifier, &shape, false, shape[1])?;
        Ok((head, classifier))
    };
    // Half of all weights are behind the blocks: two threads have the same to do.
    let (blocks, end) = std::thread::scope(|scope| {
        let end = scope.spawn(end);
        let blocks: Result<Vec<_>> = plan.blocks.iter().enumerate().map(block).collect();
        (blocks, end.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (blocks, (head, classifier)) = (blocks?, end?);
    Ok(Layers {
        blocks,
        windows: plan.blocks.iter().map(|b| (b.depthwise.kernel, b.depthwise.stride)).collect(),
        stem: (plan.stem.kernel, plan.stem.stride),
        head,
        classifier,
        padding: network.padding,
        normalisation: network.preprocessing.normalisation,
    })
}

/// Sizes of a product over whole windows, of which a 1x1 convolution's are one pixel, and where in PyTorch's
/// `[output, channel, k, k]` the weight of an output and an input lies: memory has the channels last.
fn unrolled(shape: &[usize], depth: usize) -> (Sizes, impl Fn(usize, usize) -> usize) {
    let (channels, area) = (shape[1], shape[2..].iter().product::<usize>());
    let sizes = Sizes { inputs: channels * area, outputs: shape[0], depth };
    // Most are pointwise, and a division takes longer than what it is for.
    let place = move |output, input| match area {
        1 => output * channels + input,
        _ => (output * channels + input % channels) * area + input / channels,
    };
    (sizes, place)
}

/// Number formats whose layers are made of folded float32 weights and nothing else.
pub(super) trait Folded: Precision {
    type Kernels: Sync + 'static;
    const GROUP: usize;

    fn kernels(isa: Isa) -> &'static Self::Kernels;
    fn lanes(kernels: &Self::Kernels) -> usize;
    fn product(
        kernels: &'static Self::Kernels,
        sizes: Sizes,
        weight: impl Fn(usize, usize) -> f32,
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

            fn lanes(kernels: &$module::Kernels) -> usize {
                kernels.block
            }

            fn product(
                kernels: &'static $module::Kernels,
                sizes: Sizes,
                weight: impl Fn(usize, usize) -> f32,
                bias: &[f32],
                activation: bool,
            ) -> $module::Pointwise {
                $module::Pointwise::new(kernels, sizes, weight, bias, activation)
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

/// A network's layers from folded tensors, which are checked first.
pub(super) fn folded<P: Folded>(network: &'static Network, tensors: &Tensors, isa: Isa) -> Result<Layers<P>> {
    weights::check(network, tensors)?;
    assemble(network, &Floats::<P> { network, tensors, kernels: P::kernels(isa) })
}

/// A file's tensors.
struct Floats<'a, P: Folded> {
    network: &'static Network,
    tensors: &'a Tensors<'a>,
    kernels: &'static P::Kernels,
}

impl<P: Folded> Floats<'_, P> {
    /// Weight and bias of a layer.
    fn layer(&self, name: &str, shape: &[usize]) -> Result<(&[f32], &[f32])> {
        let of = |part: &str, shape: &[usize]| {
            weights::find(self.network, self.tensors, &format!("{name}.{part}"), shape)
        };
        Ok((&of("weight", shape)?.values, &of("bias", &shape[..1])?.values))
    }
}

impl<P: Folded> Source for Floats<'_, P> {
    type Format = P;
    const GROUP: usize = P::GROUP;

    fn lanes(&self) -> usize {
        P::lanes(self.kernels)
    }

    fn product(
        &self,
        _part: Part,
        name: &str,
        shape: &[usize],
        activation: bool,
        depth: usize,
    ) -> Result<P::Product> {
        let (weight, bias) = self.layer(name, shape)?;
        let (sizes, place) = unrolled(shape, depth);
        Ok(P::product(self.kernels, sizes, |output, input| weight[place(output, input)], bias, activation))
    }

    fn slide(&self, _block: usize, convolution: &Convolution) -> Result<Option<P::Slide>> {
        let (shape, size) = (convolution.shape(), (convolution.kernel, convolution.stride));
        let (weight, bias) = self.layer(&convolution.name, &shape)?;
        let weight = channels_last(weight, shape[0], 1, shape[2] * shape[3]);
        Ok(P::slide(self.kernels, size, &weight, bias))
    }

    fn mean(&self) -> P::Mean {
        P::mean(self.kernels)
    }
}

/// A network's layers in 8-bit integers.
pub(super) fn integers(quantised: &Quantised, isa: Isa) -> Result<Layers<Byte>> {
    assemble(quantised.network, &Integers { quantised, kernels: byte::Kernels::of(isa) })
}

/// An integer network's layers, which fit its plan.
struct Integers<'a> {
    quantised: &'a Quantised,
    kernels: &'static byte::Kernels,
}

impl Integers<'_> {
    /// A product's weights, and the multipliers of what is added to it.
    fn part(&self, part: Part) -> (Option<&Layer>, Option<&[f32]>) {
        let Quantised { stem, blocks, head, classifier, .. } = self.quantised;
        match part {
            Part::Stem => (Some(stem), None),
            Part::Expand(at) => (blocks[at].expand.as_ref(), None),
            Part::Project(at) => (Some(&blocks[at].project), blocks[at].residual.as_deref()),
            Part::Head => (Some(head), None),
            Part::Classifier => (Some(classifier), None),
        }
    }
}

impl Source for Integers<'_> {
    type Format = Byte;
    const GROUP: usize = 4;

    fn lanes(&self) -> usize {
        self.kernels.block
    }

    fn product(
        &self,
        part: Part,
        name: &str,
        shape: &[usize],
        _activation: bool,
        depth: usize,
    ) -> Result<byte::Pointwise> {
        let (Some(layer), residual) = self.part(part) else {
            return Err(WeightsError::Unsupported(self.quantised.network.name, name.to_owned()));
        };
        let (sizes, place) = unrolled(shape, depth);
        let weight = |output, input| layer.weight[place(output, input)];
        Ok(byte::Pointwise::new(self.kernels, sizes, weight, layer.product(), residual))
    }

    fn slide(&self, block: usize, convolution: &Convolution) -> Result<Option<byte::Channelwise>> {
        let (layer, size) =
            (&self.quantised.blocks[block].depthwise, (convolution.kernel, convolution.stride));
        Ok(byte::Channelwise::new(self.kernels, size, layer.product()))
    }

    fn mean(&self) -> byte::Average {
        byte::Average::new(self.kernels, &self.quantised.pool)
    }
}
