//! Float weights and observed ranges to integers.
//!
//! **Invariant**: whatever the weights and ranges, each channel's scale is wide enough for the limits that
//! [`crate::model::quantise`] states.
use crate::model::network::{Convolution, Kind, Network};
use crate::model::quantise::rounding::{Metric, WEIGHT_MAX, nearest};
use crate::model::quantise::statistics::{Channels, Statistics};
use crate::model::quantise::{Block, Layer, Quantised};
use crate::model::weights::{self, Tensors, WeightsError};

/// Smallest range a channel is given, as a part of the widest channel's of the same activation. It bounds the
/// multipliers of channels that were silent on the photos.
const RANGE_PART_MIN: f64 = 1e-3;

/// How much wider than observed a range is made: other photos go beyond the calibration's. Measured on
/// `MobileNetV2`, calibrated on one half of 131 photos: on the other half 1.1 has a fifth less divergence from the
/// float network than 1.0, though on the calibration's own half a little more. Clipping the ranges where that
/// makes the least squared error gained nothing.
const ROOM: f64 = 1.1;

/// The same for the mean over the pixels, of which a photo shows one value a channel where it shows hundreds of
/// the others. Its bits are plenty.
const POOL_ROOM: f64 = 2.0;

/// What ReLU6 ends at.
const RELU6_MAX: f64 = 6.0;

/// Largest value before rounding, with room below the 2^30 of [`crate::model::quantise`]'s invariant.
const UNROUNDED_MAX: f64 = (1 << 29) as f64;

/// How the channels of an activation are read: `real = scale·(q − zero)`.
struct Scales {
    scale: Vec<f64>,
    zero: Vec<f64>,
    /// Mean of the real values, photos over.
    mean: Vec<f64>,
    /// How errors of the weights that read the channels weigh together, in steps of `q`.
    metric: Option<Metric>,
}

impl Scales {
    /// Of raw bytes, which normalisation makes real.
    fn of_image(network: &Network, channels: &Channels) -> Self {
        let (mean, deviation) =
            (network.preprocessing.normalisation.mean, network.preprocessing.normalisation.deviation);
        Self {
            scale: deviation.map(|deviation| 1.0 / f64::from(deviation)).into(),
            zero: mean.map(f64::from).into(),
            mean: means(channels),
            metric: None,
        }
    }

    /// Of observed channels: the range, widened to hold 0 and by `room`, but not beyond `limit`, spans 0..=255.
    fn of(channels: &Channels, room: f64, limit: f64) -> Self {
        let range = |at: usize| {
            let (low, high) = (channels.low[at].min(0.0), channels.high[at].max(0.0));
            (room * f64::from(low), (room * f64::from(high)).min(limit))
        };
        let length = channels.low.len();
        let widest = (0..length).map(|at| range(at).1 - range(at).0).fold(0.0, f64::max);
        let floor = if widest > 0.0 { widest * RANGE_PART_MIN } else { 1.0 };
        let scale: Vec<f64> = (0..length).map(|at| (range(at).1 - range(at).0).max(floor) / 255.0).collect();
        let zero = |at: usize| (-range(at).0 / scale[at]).round_ties_even().min(255.0);
        let in_steps = |a: usize, b: usize| channels.covariance(a, b) / (scale[a] * scale[b]);
        Self {
            zero: (0..length).map(zero).collect(),
            mean: means(channels),
            metric: channels.has_covariance().then(|| Metric::new(length, in_steps)).flatten(),
            scale,
        }
    }

    /// Widens a channel so that `real` is no more than [`UNROUNDED_MAX`] steps.
    fn limit(&mut self, channel: usize, real: f64) {
        let scale = real / UNROUNDED_MAX;
        if scale > self.scale[channel] {
            self.zero[channel] = (self.zero[channel] * self.scale[channel] / scale).round_ties_even();
            self.scale[channel] = scale;
        }
    }
}

fn means(channels: &Channels) -> Vec<f64> {
    (0..channels.low.len()).map(|at| channels.mean(at)).collect()
}

/// Float weight and bias of one layer.
struct Source<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    depthwise: bool,
}

impl Quantised {
    /// Makes the integers of `network` from its folded float tensors and what its activations were on photos.
    ///
    /// # Panics
    /// If the statistics are of another network.
    pub fn new(
        network: &'static Network,
        tensors: &Tensors,
        statistics: &Statistics,
    ) -> Result<Self, WeightsError> {
        weights::check(network, tensors)?;
        let plan = network.plan();
        let source = |name: &str, shape: &[usize], depthwise: bool| -> Result<Source, WeightsError> {
            let weight = &weights::expect(network, tensors, &format!("{name}.weight"), shape)?.values;
            let bias = &weights::expect(network, tensors, &format!("{name}.bias"), &shape[..1])?.values;
            Ok(Source { weight, bias, depthwise })
        };
        let mut activations = statistics.activations.iter();
        let mut x = Scales::of_image(network, activations.next().expect("the image is observed"));
        let mut next = |convolution: &Convolution, input: &Scales, residual: Option<&Scales>| {
            let channels = activations.next().expect("every convolution is observed");
            if !channels.is_finite() {
                let tensor = format!("{}.weight", convolution.name);
                return Err(WeightsError::NotFinite { network: network.name, tensor });
            }
            let limit = if convolution.activation { RELU6_MAX } else { f64::INFINITY };
            let mut output = Scales::of(channels, ROOM, limit);
            let depthwise = convolution.kind == Kind::Depthwise;
            let source = source(&convolution.name, &convolution.shape(), depthwise)?;
            let made = layer(&source, input, residual, &mut output);
            Ok((made, output))
        };
        let (stem, output) = next(&plan.stem, &x, None)?;
        x = output;
        let mut blocks = Vec::new();
        for block in &plan.blocks {
            let expanded = block.expand.as_ref().map(|expand| next(expand, &x, None)).transpose()?;
            let (expand, wide) = expanded.map_or((None, None), |(layer, wide)| (Some(layer), Some(wide)));
            let (depthwise, wide) = next(&block.depthwise, wide.as_ref().unwrap_or(&x), None)?;
            let residual = block.residual.then_some(&x);
            let (project, output) = next(&block.project, &wide, residual)?;
            let residual = residual.map(|input| ratios(input, &output));
            blocks.push(Block { expand, depthwise, project, residual });
            x = output;
        }
        let (head, wide) = next(&plan.head, &x, None)?;
        let mut pooled = Scales::of(activations.next().expect("the mean is observed"), POOL_ROOM, RELU6_MAX);
        (0..wide.scale.len()).for_each(|channel| pooled.limit(channel, 255.0 * wide.scale[channel]));
        let side = plan.convolutions().fold(network.input_size(), |side, layer| side.div_ceil(layer.stride));
        let pool = ratios(&wide, &pooled).into_iter().map(|ratio| ratio / (side * side) as f32);
        let shape = [network.classes, network.head_channels];
        let (scale, zero) = (vec![1.0; network.classes], vec![0.0; network.classes]);
        let mut logits = Scales { scale, zero, mean: Vec::new(), metric: None };
        let classifier = layer(&source(plan.classifier, &shape, false)?, &pooled, None, &mut logits);
        Ok(Self { network, stem, blocks, head, pool: pool.collect(), classifier })
    }
}

/// Integers of one layer between two activations.
fn layer(source: &Source, input: &Scales, residual: Option<&Scales>, output: &mut Scales) -> Layer {
    let outputs = source.bias.len();
    let row = source.weight.len() / outputs;
    let mut made = Layer { weight: Vec::new(), multiplier: Vec::new(), offset: Vec::new() };
    // Taps of one input channel lie side by side.
    let taps = row / if source.depthwise { 1 } else { input.scale.len() };
    for channel in 0..outputs {
        let from = |at: usize| if source.depthwise { channel } else { at / taps };
        let folded: Vec<f64> = source.weight[channel * row..][..row]
            .iter()
            .enumerate()
            .map(|(at, weight)| f64::from(*weight) * input.scale[from(at)])
            .collect();
        let largest = folded.iter().fold(0.0_f64, |largest, weight| largest.max(weight.abs()));
        let step = if largest > 0.0 { largest / WEIGHT_MAX } else { 1.0 };
        let rounded: Vec<f64> = match &input.metric {
            Some(metric) if taps == 1 && !source.depthwise => metric.round(&folded, step),
            _ => folded.iter().map(|weight| nearest(weight / step)).collect(),
        };
        // Mean error that rounding the weights makes, taken out of the bias (Nagel et al. 2019, section 4.2).
        let error: f64 = (0..row)
            .map(|at| (folded[at] - rounded[at] * step) * input.mean[from(at)] / input.scale[from(at)])
            .sum();
        let bias = f64::from(source.bias[channel]) + error;
        let zero: f64 = (0..row).map(|at| rounded[at] * input.zero[from(at)]).sum();
        let added = residual.map_or((0.0, 0.0), |x| (x.scale[channel], x.zero[channel]));
        let reach: f64 = rounded.iter().map(|weight| weight.abs() * 255.0 * step).sum();
        output.limit(channel, reach + bias.abs() + added.0 * 255.0);
        let scale = output.scale[channel];
        let (multiplier, ratio) = ((step / scale) as f32, (added.0 / scale) as f32);
        // The zero points are multiplied by what the kernels multiply by, so that they cancel.
        let zeros = zero * f64::from(multiplier) + added.1 * f64::from(ratio);
        made.weight.extend(rounded.iter().map(|weight| *weight as i8));
        made.multiplier.push(multiplier);
        made.offset.push((bias / scale + output.zero[channel] - zeros) as f32);
    }
    made
}

/// Scales over scales.
fn ratios(from: &Scales, to: &Scales) -> Vec<f32> {
    from.scale.iter().zip(&to.scale).map(|(from, to)| (from / to) as f32).collect()
}
