//! The float network, run layer by layer so that every activation can be looked at.
//!
//! It is what calibration observes and what the integer network is compared with. It is slower than the network
//! that serves, and shares no code with that one's fast kernels: a fault there cannot hide in the calibration.
//!
//! **Invariant**: every activation is handed to the observer once an image, in the order of [`Plan`].
use crate::model::kernels::{Window, relu6, scalar};
use crate::model::network::{Convolution, Kind, Network, Plan};
use crate::model::weights::{self, Tensors, WeightsError, channels_last};

/// A float network.
pub struct Float {
    network: &'static Network,
    plan: Plan,
    /// Those of the plan's convolutions, then the classifier.
    layers: Vec<Layer>,
}

/// Weights of one layer, laid out for the loops below.
struct Layer {
    /// `[taps, input / groups, output]`.
    weight: Vec<f32>,
    /// `[output]`.
    bias: Vec<f32>,
}

/// Pixels by channels of one image.
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// Which one: 0 is the normalised image, then come the outputs of the plan's convolutions (of a block's last
    /// one with the block's input added), then the mean over the pixels.
    pub index: usize,
    /// Channels.
    pub channels: usize,
    /// `[pixels, channels]`.
    pub values: &'a [f32],
}

impl Float {
    /// Checks the tensors and lays them out.
    pub fn new(network: &'static Network, tensors: &Tensors) -> Result<Self, WeightsError> {
        weights::check(network, tensors)?;
        let plan = network.plan();
        let layer = |name: &str, shape: &[usize]| -> Result<Layer, WeightsError> {
            let weight = weights::expect(network, tensors, &format!("{name}.weight"), shape)?;
            let bias = weights::expect(network, tensors, &format!("{name}.bias"), &shape[..1])?;
            let taps = shape[2..].iter().product();
            Ok(Layer {
                weight: channels_last(&weight.values, shape[0], shape[1], taps),
                bias: bias.values.to_vec(),
            })
        };
        let mut layers =
            plan.convolutions().map(|c| layer(&c.name, &c.shape())).collect::<Result<Vec<_>, _>>()?;
        layers.push(layer(plan.classifier, &[network.classes, network.head_channels])?);
        Ok(Self { network, plan, layers })
    }

    /// Logits of one image, `[height, width, 3]` bytes in the network's size, red first.
    ///
    /// # Panics
    /// If the number of bytes is another.
    pub fn logits(&self, pixels: &[u8], observe: &mut dyn FnMut(Activation)) -> Vec<f32> {
        let mut see = |index, channels, values: &[f32]| observe(Activation { index, channels, values });
        let normal = normalise(self.network, pixels);
        see(0, 3, &normal);
        let side = self.network.input_size();
        let mut layers = self.layers.iter().enumerate();
        let mut next = |convolution: &Convolution, side: usize, input: &[f32], residual: Option<&[f32]>| {
            let (index, layer) = layers.next().expect("there is a layer for each convolution of the plan");
            let (output, side) = self.convolve(convolution, layer, side, input, residual);
            see(index + 1, convolution.output, &output);
            (output, side)
        };
        let (mut x, mut side) = next(&self.plan.stem, side, &normal, None);
        for block in &self.plan.blocks {
            let wide = match &block.expand {
                Some(expand) => &next(expand, side, &x, None).0,
                None => &x,
            };
            let (wide, narrow_side) = next(&block.depthwise, side, wide, None);
            (x, side) = next(&block.project, narrow_side, &wide, block.residual.then_some(&x[..]));
        }
        let (wide, _) = next(&self.plan.head, side, &x, None);
        let mut pooled = vec![0.0; self.network.head_channels];
        scalar::mean(&wide, &mut pooled);
        see(self.layers.len(), pooled.len(), &pooled);
        let mut logits = vec![0.0; self.network.classes];
        pointwise(&pooled, &self.layers[self.layers.len() - 1], &mut logits);
        logits
    }

    /// One convolution over a square image: its output and the side of that.
    fn convolve(
        &self,
        convolution: &Convolution,
        layer: &Layer,
        side: usize,
        input: &[f32],
        residual: Option<&[f32]>,
    ) -> (Vec<f32>, usize) {
        let window = Window::new(convolution.kernel, convolution.stride, self.network.padding, side, side);
        let channels = convolution.output;
        let mut output = vec![0.0; window.output_height * window.output_width * channels];
        match convolution.kind {
            Kind::Full => scalar::stem(&window, channels, input, &layer.weight, &layer.bias, &mut output),
            Kind::Depthwise => {
                scalar::depthwise(&window, channels, input, &layer.weight, &layer.bias, &mut output);
            }
            Kind::Pointwise => pointwise(input, layer, &mut output),
        }
        for (value, added) in output.iter_mut().zip(residual.unwrap_or_default()) {
            *value += added;
        }
        if convolution.activation {
            for value in &mut output {
                *value = relu6(*value);
            }
        }
        (output, window.output_height)
    }
}

/// Bytes to what the network was trained on.
fn normalise(network: &Network, pixels: &[u8]) -> Vec<f32> {
    let (mean, deviation) =
        (network.preprocessing.normalisation.mean, network.preprocessing.normalisation.deviation);
    pixels
        .iter()
        .enumerate()
        .map(|(at, value)| (f32::from(*value) - mean[at % 3]) / deviation[at % 3])
        .collect()
}

/// Pixels and outputs computed together, in registers.
const TILE_PIXELS: usize = 4;
const TILE_OUTPUTS: usize = 8;

/// A matrix product that starts from the bias: `input` `[pixels, inputs]` to `output` `[pixels, outputs]`.
fn pointwise(input: &[f32], layer: &Layer, output: &mut [f32]) {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let rows = output.chunks_mut(outputs * TILE_PIXELS).zip(input.chunks(inputs * TILE_PIXELS));
    for (to, from) in rows {
        let mut channel = 0;
        while channel + TILE_OUTPUTS <= outputs && to.len() == outputs * TILE_PIXELS {
            tile::<TILE_PIXELS, TILE_OUTPUTS>(from, layer, channel, to);
            channel += TILE_OUTPUTS;
        }
        for (to, from) in to.chunks_exact_mut(outputs).zip(from.chunks_exact(inputs)) {
            let mut channel = channel;
            while channel + TILE_OUTPUTS <= outputs {
                tile::<1, TILE_OUTPUTS>(from, layer, channel, to);
                channel += TILE_OUTPUTS;
            }
            (channel..outputs).for_each(|channel| tile::<1, 1>(from, layer, channel, to));
        }
    }
}

/// `P` pixels by `N` outputs of [`pointwise`], from `channel` on.
fn tile<const P: usize, const N: usize>(from: &[f32], layer: &Layer, channel: usize, to: &mut [f32]) {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let mut sums = [[0.0_f32; N]; P];
    for sums in &mut sums {
        sums.copy_from_slice(&layer.bias[channel..][..N]);
    }
    for input in 0..inputs {
        let weight = &layer.weight[input * outputs + channel..][..N];
        for (pixel, sums) in sums.iter_mut().enumerate() {
            let value = from[pixel * inputs + input];
            for lane in 0..N {
                sums[lane] += value * weight[lane];
            }
        }
    }
    for (pixel, sums) in sums.iter().enumerate() {
        to[pixel * outputs + channel..][..N].copy_from_slice(sums);
    }
}
