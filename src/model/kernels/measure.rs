//! Each kernel of a network alone, for benchmarks: the same layers, strips and memory as when a photo is
//! classified, on made-up weights and pixels.
//!
//! What a case leaves out is what lies between the kernels: packing the photo, the edges of the ring, finding
//! caches as another layer left them.
//!
//! **Invariant**: the multiply-adds of all cases of a network, each as often as it occurs, are the network's.
use crate::model::assemble::{self, Layers};
use crate::model::forward::{self, Classifier, SessionSize};
use crate::model::kernels::Window;
use crate::model::kernels::block::{Geometry, Pass, Scratch, Stage, Widen};
use crate::model::kernels::brain::{self, Brain};
use crate::model::kernels::byte::{self, Byte};
use crate::model::kernels::float::{self, Float};
use crate::model::kernels::head::{HeadScratch, classify};
use crate::model::kernels::isa::Isa;
use crate::model::kernels::memory::Buffer;
use crate::model::kernels::ops::Padded;
use crate::model::kernels::peak::{BYTES, Peak, ROUNDS};
use crate::model::kernels::precision::{Normalisation, Pixels, Precision, Product as _};
use crate::model::network::{Convolution, Network};
use crate::model::quantise::{self, Layer, Quantised};
use crate::model::weights::{self, Tensors, WeightsError};
use crate::model::{ModelError, Precision as Format};
use candle_core::{Device, Tensor};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use std::hint::black_box;
use std::sync::Arc;

/// A kernel over one image, with memory of its own.
pub struct Case {
    /// Which of a network's layers: `stem`, `expand`, `depthwise 3x3/1` (side and stride), `project`, `head`,
    /// `classifier`; or `peak`, or `inference`.
    pub class: String,
    /// The class with the shape: height and width of the input in pixels, input and output channels, as in
    /// `expand 14x14 64-384`.
    pub name: String,
    /// How often the shape occurs in the network.
    pub count: usize,
    /// Multiply-adds of one run.
    pub multiply_adds: u64,
    work: Box<dyn FnMut()>,
}

impl Case {
    /// Runs the kernel over the image.
    pub fn run(&mut self) {
        (self.work)();
    }
}

/// The product of a number format and an instruction set in registers, some millions of times: what no kernel
/// can exceed.
#[must_use]
pub fn peak(isa: Isa, format: Format) -> Case {
    let mut random = random();
    let peak: &'static Peak = match format {
        Format::F32 => &float::Kernels::of(isa).peak,
        Format::Bf16 => &brain::Kernels::of(isa).peak,
        Format::Int8 => &byte::Kernels::of(isa).peak,
    };
    let mut float = || random.random_range(-1.0_f32..1.0);
    let bytes: Vec<u8> = match format {
        Format::F32 => (0..BYTES / 4).flat_map(|_| float().to_le_bytes()).collect(),
        Format::Bf16 => (0..BYTES / 2).flat_map(|_| half::bf16::from_f32(float()).to_le_bytes()).collect(),
        Format::Int8 => (0..BYTES).map(|_| random.random()).collect(),
    };
    Case {
        class: "peak".to_owned(),
        name: "peak".to_owned(),
        count: 1,
        multiply_adds: (ROUNDS * peak.multiply_adds) as u64,
        // SAFETY: there are as many bytes as it reads; that there are kernels of an instruction set proves that the
        // CPU has it.
        work: Box::new(move || unsafe { (peak.run)(bytes.as_ptr()) }),
    }
}

/// A whole inference of one photo of bytes, as it is served, on one thread.
pub fn inference(isa: Isa, format: Format, network: &'static Network) -> Result<Case, ModelError> {
    let classifier: Box<dyn Classifier> = match format {
        Format::F32 => forward::float32(network, &tensors(network), isa),
        Format::Bf16 => forward::bfloat16(network, &tensors(network), isa),
        Format::Int8 => forward::int8(&quantised(network), isa),
    }
    .map_err(failed)?;
    let side = network.input_size();
    let size = SessionSize { images_max: 1, height: side, width: side, threads: 1 };
    let mut session = classifier.session(size)?;
    let photo = Tensor::from_vec(noise(side * side * 3, &mut random()), (1, side, side, 3), &Device::Cpu)?;
    // The memory is right from the first run on, or never.
    session.logits(&photo)?;
    Ok(Case {
        class: "inference".to_owned(),
        name: "inference".to_owned(),
        count: 1,
        multiply_adds: multiply_adds(network),
        work: Box::new(move || {
            let _ = black_box(session.logits(&photo));
        }),
    })
}

/// Multiply-adds of one inference, from the network's plan: what lies outside the image counts too.
#[must_use]
pub fn multiply_adds(network: &Network) -> u64 {
    let plan = network.plan();
    let mut side = network.input_size();
    let mut total = network.classes * network.head_channels;
    for convolution in plan.convolutions() {
        side = side.div_ceil(convolution.stride);
        total += side * side * convolution.shape().iter().product::<usize>();
    }
    total as u64
}

/// Every kernel of a network in the order in which they first run. What occurs several times is one case.
pub fn cases(isa: Isa, format: Format, network: &'static Network) -> Result<Vec<Case>, ModelError> {
    let side = network.input_size();
    match format {
        Format::F32 => assemble::folded::<Float>(network, &tensors(network), isa).map(|l| all(l, side)),
        Format::Bf16 => assemble::folded::<Brain>(network, &tensors(network), isa).map(|l| all(l, side)),
        Format::Int8 => assemble::integers(&quantised(network), isa).map(|l| all::<Byte>(l, side)),
    }
    .map_err(failed)
}

fn failed(error: WeightsError) -> ModelError {
    ModelError::Weights { file: "made up".to_owned(), error }
}

/// Cases that become more.
#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    /// Counts a kernel, and makes a case of it if it is the first of its shape.
    fn add(
        &mut self,
        class: &str,
        shape: &str,
        multiply_adds: usize,
        work: impl FnOnce() -> Box<dyn FnMut()>,
    ) {
        let name = format!("{class} {shape}");
        if let Some(case) = self.0.iter_mut().find(|case| case.name == name) {
            case.count += 1;
            return;
        }
        let multiply_adds = multiply_adds as u64;
        self.0.push(Case { class: class.to_owned(), name, count: 1, multiply_adds, work: work() });
    }
}

/// Every kernel for a photo of `side` pixels.
fn all<P: Precision>(layers: Layers<P>, side: usize) -> Vec<Case> {
    let layers = Arc::new(layers);
    let mut cases = Cases::default();
    let (kernel, stride) = layers.stem;
    let stem = Window::new(kernel, stride, layers.padding, side, side);
    let padded = Padded::<P>::new(&stem, layers.normalisation, 1).lengths();
    let (geometries, (height, width)) = forward::geometries(&layers, &stem, padded, 1);
    for (at, geometry) in geometries.iter().enumerate() {
        let Window { height, width, output_height, output_width, .. } = geometry.window;
        let (block, (kernel, stride)) = (&layers.blocks[at], layers.windows[at]);
        let alone = |stage| {
            let layers = Arc::clone(&layers);
            move || -> Box<dyn FnMut()> {
                let mut alone = Alone::new(layers, at, geometry);
                Box::new(move || alone.run(Some(stage)))
            }
        };
        let middle = match &block.widen {
            Widen::Stem { weights, .. } => {
                let shape = format!("{side}x{side} 3-{}", weights.outputs());
                let products = height * width * weights.inputs() * weights.outputs();
                cases.add("stem", &shape, products, alone(Stage::Expand));
                weights.outputs()
            }
            Widen::Expand(weights) => {
                let (inputs, outputs) = (weights.inputs(), weights.outputs());
                let shape = format!("{height}x{width} {inputs}-{outputs}");
                cases.add("expand", &shape, height * width * inputs * outputs, alone(Stage::Expand));
                outputs
            }
        };
        let pixels = output_height * output_width;
        let class = format!("depthwise {kernel}x{kernel}/{stride}");
        let products = pixels * kernel * kernel * middle;
        cases.add(&class, &format!("{height}x{width} {middle}"), products, alone(Stage::Slide));
        let outputs = block.project.outputs();
        let shape = format!("{output_height}x{output_width} {middle}-{outputs}");
        cases.add("project", &shape, pixels * middle * outputs, alone(Stage::Project));
    }
    let (inputs, outputs) = (layers.head.weights.inputs(), layers.head.weights.outputs());
    let shape = format!("{height}x{width} {inputs}-{outputs}");
    let products = height * width * inputs * outputs;
    cases.add("head", &shape, products, || head(Arc::clone(&layers), height * width));
    let (inputs, outputs) = (layers.classifier.inputs(), layers.classifier.outputs());
    let shape = format!("{inputs}-{outputs}");
    cases.add("classifier", &shape, inputs * outputs, || classifier(Arc::clone(&layers)));
    cases.0
}

/// A block with memory of its own.
struct Alone<P: Precision> {
    layers: Arc<Layers<P>>,
    at: usize,
    geometry: Geometry,
    input: Buffer<P::Value>,
    output: Buffer<P::Value>,
    scratch: Scratch<P>,
}

impl<P: Precision> Alone<P> {
    /// The block number `at`, which has run once: what its layers read are values that they give each other.
    fn new(layers: Arc<Layers<P>>, at: usize, geometry: &Geometry) -> Self {
        let geometry = geometry.clone();
        let scratch = Scratch::new([(&layers.blocks[at], &geometry)].into_iter());
        // A kernel may read a vector more of a photo than it uses.
        let input = filled::<P>(geometry.input_length + 64, &layers.normalisation);
        let output = Buffer::zeroed(geometry.output_length);
        let mut alone = Self { layers, at, geometry, input, output, scratch };
        alone.run(None);
        alone
    }

    /// One layer, or all of them.
    fn run(&mut self, stage: Option<Stage>) {
        let pass = Pass {
            block: &self.layers.blocks[self.at],
            geometry: &self.geometry,
            input: self.input.as_ptr(),
            output: self.output.as_mut_ptr(),
        };
        let rows = 0..self.geometry.window.output_height;
        // SAFETY: input, output and scratch were made for one image of this geometry and are borrowed mutably.
        unsafe {
            match stage {
                Some(stage) => pass.run_only(stage, &mut self.scratch),
                None => pass.run(0..1, rows, &mut self.scratch),
            }
        }
    }
}

/// The last convolution with the mean, over an image of `pixels`.
fn head<P: Precision>(layers: Arc<Layers<P>>, pixels: usize) -> Box<dyn FnMut()> {
    let input = filled::<P>(pixels * layers.head.weights.inputs(), &layers.normalisation);
    let outputs = layers.head.weights.outputs();
    let mut output = Buffer::<P::Value>::zeroed(outputs);
    let mut scratch = HeadScratch::new(1, pixels, layers.head.lanes);
    Box::new(move || {
        let blocks = 0..outputs.div_ceil(layers.head.lanes);
        // SAFETY: the output holds every channel of one image and is borrowed mutably.
        unsafe { layers.head.run((1, pixels), &input, output.as_mut_ptr(), blocks, &mut scratch) };
    })
}

fn classifier<P: Precision>(layers: Arc<Layers<P>>) -> Box<dyn FnMut()> {
    let input = filled::<P>(layers.classifier.inputs(), &layers.normalisation);
    let mut output = Buffer::<f32>::zeroed(layers.classifier.outputs());
    Box::new(move || {
        let panels = layers.classifier.layout().all();
        // SAFETY: the output holds every class of one image and is borrowed mutably.
        unsafe { classify::<P>(&layers.classifier, panels, &input, output.as_mut_ptr(), &[0]) };
    })
}

/// The same values for everyone.
fn random() -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(1)
}

fn noise(length: usize, random: &mut Pcg64Mcg) -> Vec<u8> {
    (0..length).map(|_| random.random()).collect()
}

/// Activations: the bytes of a photo as the stem reads them, which are of about the size that layers give.
fn filled<P: Precision>(length: usize, normalisation: &Normalisation) -> Buffer<P::Value> {
    let mut values = Buffer::zeroed(length);
    P::pack(Pixels::Bytes(&noise(length, &mut random())), normalisation, &mut values);
    values
}

/// Folded weights that keep the size of the activations.
fn tensors(network: &Network) -> Tensors<'static> {
    weights::made_up(network, &mut random())
}

/// Root of the mean square of a byte, and of a weight, that is any with equal chance.
const BYTE_SIZE: f32 = 147.0;
const WEIGHT_SIZE: f32 = 73.0;

/// An integer network whose activations fill the range of a byte.
fn quantised(network: &'static Network) -> Quantised {
    let mut random = random();
    let mut layer = |shape: &[usize]| {
        let (outputs, inputs) = (shape[0], shape[1..].iter().product::<usize>());
        let sum = (inputs as f32).sqrt() * BYTE_SIZE * WEIGHT_SIZE;
        Layer {
            weight: (0..outputs * inputs).map(|_| random.random_range(-127..=127)).collect(),
            multiplier: vec![64.0 / sum; outputs],
            offset: vec![127.5; outputs],
        }
    };
    let plan = network.plan();
    let side = plan.convolutions().fold(network.input_size(), |side, layer| side.div_ceil(layer.stride));
    let mut of = |convolution: &Convolution| layer(&convolution.shape());
    let stem = of(&plan.stem);
    let blocks = plan.blocks.iter().map(|block| quantise::Block {
        expand: block.expand.as_ref().map(&mut of),
        depthwise: of(&block.depthwise),
        project: of(&block.project),
        residual: block.residual.then(|| vec![0.5; block.project.output]),
    });
    let blocks = blocks.collect();
    Quantised {
        network,
        stem,
        blocks,
        head: of(&plan.head),
        pool: vec![1.0 / (side * side) as f32; network.head_channels],
        classifier: layer(&[network.classes, network.head_channels]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2};

    const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

    #[test]
    fn the_cases_are_the_whole_network() {
        // Published as 300 million.
        assert_eq!(multiply_adds(&MOBILENET_V2), 300_774_272);
        for (network, format) in [(&MOBILENET_V2, Format::F32), (&EFFICIENTNET_LITE0, Format::Int8)] {
            let cases = cases(Isa::best(), format, network).unwrap();
            let total: u64 = cases.iter().map(|case| case.multiply_adds * case.count as u64).sum();
            assert_eq!(total, multiply_adds(network), "{}", network.name);
            let kernels: usize = cases.iter().map(|case| case.count).sum();
            assert_eq!(kernels, network.plan().convolutions().count() + 1);
        }
    }

    #[test]
    fn every_case_runs_on_every_instruction_set() {
        for (isa, format) in Isa::all().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
            let mut cases = cases(isa, format, &MOBILENET_V2).unwrap();
            cases.push(peak(isa, format));
            cases.push(inference(isa, format, &MOBILENET_V2).unwrap());
            let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            assert!(
                names.contains(&"expand 14x14 64-384") && names.contains(&"project 7x7 960-320"),
                "{names:?}"
            );
            assert!(cases.iter().all(|case| case.multiply_adds > 0 && case.name.starts_with(&case.class)));
            cases.iter_mut().for_each(Case::run);
        }
    }

    #[test]
    fn a_layer_alone_writes_what_it_writes_in_the_block() {
        let layers =
            Arc::new(assemble::folded::<Float>(&MOBILENET_V2, &tensors(&MOBILENET_V2), Isa::best()).unwrap());
        let stem = Window::new(3, 2, layers.padding, 224, 224);
        let padded = Padded::<Float>::new(&stem, layers.normalisation, 1).lengths();
        let (geometries, _) = forward::geometries(&layers, &stem, padded, 1);
        // Of a block that is one strip the scratch holds everything.
        let at = geometries.len() - 1;
        let mut alone = Alone::new(Arc::clone(&layers), at, &geometries[at]);
        let expected = alone.output.to_vec();
        for stage in [Stage::Expand, Stage::Slide, Stage::Project] {
            alone.output.fill(f32::NAN);
            alone.run(Some(stage));
            assert_eq!(alone.output.iter().all(|value| value.is_nan()), !matches!(stage, Stage::Project));
        }
        assert_eq!(*alone.output, expected);
    }
}
