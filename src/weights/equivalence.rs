//! Test code: a checkpoint that was folded, written, read and run on our kernels gives what the unfolded network
//! gives on candle's own convolutions, layer by layer as the papers describe it.
use crate::model::forward;
use crate::model::kernels::Padding;
use crate::model::kernels::isa::Isa;
use crate::model::network::{Convolution, EFFICIENTNET_LITE0, Kind, MOBILENET_V2, Network, Stage};
use crate::model::weights::{self, Tensors};
use crate::weights::{convert, sample};
use candle_core::{DType, Device, Result, Tensor};

/// Small stages with everything in them: both kernels, both strides, no expansion, residuals.
static STAGES: [Stage; 3] = [
    Stage { kernel: 3, stride: 1, expansion: 1, channels: 5, repeats: 1 },
    Stage { kernel: 5, stride: 2, expansion: 3, channels: 6, repeats: 2 },
    Stage { kernel: 3, stride: 2, expansion: 2, channels: 9, repeats: 2 },
];

const fn small(of: &Network) -> Network {
    Network {
        name: of.name,
        stages: &STAGES,
        stem_channels: 7,
        head_channels: 11,
        classes: 4,
        padding: of.padding,
        preprocessing: of.preprocessing,
        naming: of.naming,
        batch_norm_epsilon: of.batch_norm_epsilon,
        origin: of.origin,
    }
}

static SMALL_MOBILENET: Network = small(&MOBILENET_V2);
static SMALL_EFFICIENTNET: Network = small(&EFFICIENTNET_LITE0);

struct Unfolded<'a> {
    network: &'static Network,
    tensors: &'a Tensors<'a>,
}

impl Unfolded<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let stored = &self.tensors[name];
        Tensor::from_slice(&stored.values, stored.shape.as_slice(), &Device::Cpu)
    }

    /// `[N, input, H, W]` through convolution, batch norm and activation.
    fn layer(&self, x: &Tensor, layer: &Convolution) -> Result<Tensor> {
        let size = x.dim(2)?;
        let (before, after) = match self.network.padding {
            Padding::Symmetric => (layer.kernel / 2, layer.kernel / 2),
            Padding::Same => {
                let outputs = size.div_ceil(layer.stride);
                let total = ((outputs - 1) * layer.stride + layer.kernel).saturating_sub(size);
                (total / 2, total - total / 2)
            }
        };
        let x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        let groups = if layer.kind == Kind::Depthwise { layer.input } else { 1 };
        let x = x.conv2d(&self.tensor(&format!("{}.weight", layer.name))?, 0, layer.stride, 1, groups)?;
        let norm = |part: &str| {
            self.tensor(&format!("{}.{part}", layer.batch_norm))?.reshape((1, layer.output, 1, 1))
        };
        let spread = (norm("running_var")? + f64::from(self.network.batch_norm_epsilon))?.sqrt()?;
        let x = x.broadcast_sub(&norm("running_mean")?)?.broadcast_div(&spread)?;
        let x = x.broadcast_mul(&norm("weight")?)?.broadcast_add(&norm("bias")?)?;
        if layer.activation { x.clamp(0.0, 6.0) } else { Ok(x) }
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let plan = self.network.plan();
        let mut x = self.layer(images, &plan.stem)?;
        for block in &plan.blocks {
            let before = x.clone();
            if let Some(expand) = &block.expand {
                x = self.layer(&x, expand)?;
            }
            x = self.layer(&self.layer(&x, &block.depthwise)?, &block.project)?;
            if block.residual {
                x = (x + before)?;
            }
        }
        let pooled = self.layer(&x, &plan.head)?.mean((2, 3))?;
        let weight = self.tensor(&format!("{}.weight", plan.classifier))?;
        pooled.matmul(&weight.t()?)?.broadcast_add(&self.tensor(&format!("{}.bias", plan.classifier))?)
    }
}

#[test]
fn folded_networks_equal_unfolded_ones() {
    for network in [&SMALL_MOBILENET, &SMALL_EFFICIENTNET] {
        let unfolded = sample::unfolded(network, 17);
        let (_, file) = convert::convert(&sample::pickles(&unfolded), Some(network), DType::F32).unwrap();
        let tensors = weights::parse(&file).unwrap();
        for (isa, size) in Isa::all().flat_map(|isa| [16, 21, 30].map(|size| (isa, size))) {
            let folded = forward::float32(network, &tensors, isa).unwrap();
            let values: Vec<f32> = (0..2 * size * size * 3).map(|at| (at as f32 * 0.7).sin()).collect();
            let images = Tensor::from_vec(values, (2, size, size, 3), &Device::Cpu).unwrap();
            let got = folded.logits(&images).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let channels_first = images.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
            let reference = Unfolded { network, tensors: &unfolded };
            let expected = reference.logits(&channels_first).unwrap().flatten_all().unwrap();
            let expected = expected.to_vec1::<f32>().unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                assert!(
                    (got - expected).abs() < 1e-4,
                    "{} with {isa} at {size}: {got}, not {expected}",
                    network.name
                );
            }
            assert!(expected.iter().any(|logit| logit.abs() > 1e-2), "the comparison is of more than zeros");
        }
    }
}

/// The same with even numbers of channels, which bfloat16 products read in twos.
static EVEN_STAGES: [Stage; 3] = [
    Stage { channels: 6, ..STAGES[0] },
    Stage { channels: 8, ..STAGES[1] },
    Stage { channels: 10, ..STAGES[2] },
];
static EVEN: Network =
    Network { stages: &EVEN_STAGES, stem_channels: 8, head_channels: 12, ..small(&MOBILENET_V2) };

/// The file of a network's folded tensors, with reproducible values.
fn folded(network: &'static Network) -> Vec<u8> {
    let unfolded = sample::unfolded(network, 17);
    convert::convert(&sample::pickles(&unfolded), Some(network), DType::F32).unwrap().1
}

#[test]
fn bfloat16_is_near_float32_on_every_instruction_set() {
    let file = folded(&EVEN);
    let tensors = weights::parse(&file).unwrap();
    let bytes: Vec<u8> = (0..2 * 21 * 21 * 3).map(|at| (at * 7919 % 251) as u8).collect();
    let images = Tensor::from_vec(bytes, (2, 21, 21, 3), &Device::Cpu).unwrap();
    for isa in Isa::all() {
        let logits = [forward::float32, forward::bfloat16].map(|network| {
            let logits = network(&EVEN, &tensors, isa).unwrap().logits(&images).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        let largest = logits[0].iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        for (float, brain) in logits[0].iter().zip(&logits[1]) {
            assert!((float - brain).abs() < 0.02 * largest, "{isa}: {logits:?}");
        }
    }
}

#[test]
fn bfloat16_refuses_odd_numbers_of_channels() {
    static ODD_HEAD: Network =
        Network { stages: &EVEN_STAGES, stem_channels: 8, head_channels: 11, ..small(&MOBILENET_V2) };
    for (network, layer) in [
        (&SMALL_MOBILENET, "features.2.conv.0.0"),
        (&SMALL_EFFICIENTNET, "_expand_conv"),
        (&ODD_HEAD, "classifier"),
    ] {
        let file = folded(network);
        let tensors = weights::parse(&file).unwrap();
        let error = forward::bfloat16(network, &tensors, Isa::best()).err().unwrap();
        assert!(error.to_string().contains(layer), "{error}");
    }
}
