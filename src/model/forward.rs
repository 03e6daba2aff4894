//! A network of inverted residual blocks, ready to run.
//!
//! **Invariant**: built only from checked tensors; weights are laid out for the kernels once, here.
use crate::model::kernels::{Mean, Pointwise, Spatial};
use crate::model::network::{Convolution, Kind, Network};
use crate::model::weights::{self, Tensors, WeightsError};
use candle_core::{Result, Tensor};

/// Something that classifies preprocessed images.
pub trait Classifier: Send + Sync {
    /// Logits `[N, classes]` of images `[N, height, width, 3]`, float32, preprocessed, red first.
    fn logits(&self, images: &Tensor) -> Result<Tensor>;
}

/// One block's operations.
struct Block {
    expand: Option<Pointwise>,
    depthwise: Spatial,
    project: Pointwise,
    residual: bool,
}

/// MobileNetV2, EfficientNet-Lite and whatever else a [`Network`] describes.
pub struct InvertedResiduals {
    stem: Spatial,
    blocks: Vec<Block>,
    head: Pointwise,
    classifier: Pointwise,
}

impl InvertedResiduals {
    /// Builds `network` from folded tensors, which are checked first.
    pub fn new(network: &'static Network, tensors: &Tensors) -> std::result::Result<Self, WeightsError> {
        weights::check(network, tensors)?;
        let plan = network.plan();
        let spatial = |convolution: &Convolution| spatial(network, tensors, convolution);
        let pointwise = |convolution: &Convolution| {
            let (name, shape) = (&convolution.name, [convolution.output, convolution.input, 1, 1]);
            matrix(network, tensors, name, &shape, convolution.activation)
        };
        let blocks = plan.blocks.iter().map(|block| {
            Ok(Block {
                expand: block.expand.as_ref().map(pointwise).transpose()?,
                depthwise: spatial(&block.depthwise)?,
                project: pointwise(&block.project)?,
                residual: block.residual,
            })
        });
        let shape = [network.classes, network.head_channels];
        Ok(Self {
            stem: spatial(&plan.stem)?,
            blocks: blocks.collect::<std::result::Result<_, WeightsError>>()?,
            head: pointwise(&plan.head)?,
            classifier: matrix(network, tensors, plan.classifier, &shape, false)?,
        })
    }
}

impl Classifier for InvertedResiduals {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.apply_op1_no_bwd(&self.stem)?;
        for block in &self.blocks {
            let wide = match &block.expand {
                Some(expand) => x.apply_op1_no_bwd(expand)?,
                None => x.clone(),
            };
            let wide = wide.apply_op1_no_bwd(&block.depthwise)?;
            x = if block.residual {
                wide.apply_op2_no_bwd(&x, &block.project)?
            } else {
                wide.apply_op1_no_bwd(&block.project)?
            };
        }
        x.apply_op1_no_bwd(&self.head)?.apply_op1_no_bwd(&Mean)?.apply_op1_no_bwd(&self.classifier)
    }
}

/// A windowed convolution: `[output, input / groups, k, k]` becomes `[k, k, input / groups, output]`.
fn spatial(
    network: &'static Network,
    tensors: &Tensors,
    convolution: &Convolution,
) -> std::result::Result<Spatial, WeightsError> {
    let shape = convolution.shape();
    let weight = &weights::expect(network, tensors, &format!("{}.weight", convolution.name), &shape)?.values;
    Ok(Spatial {
        kernel: convolution.kernel,
        stride: convolution.stride,
        padding: network.padding,
        depthwise: convolution.kind == Kind::Depthwise,
        weight: channels_last(weight, shape[0], shape[1], shape[2] * shape[3]),
        bias: bias(network, tensors, &convolution.name, convolution.output)?,
    })
}

/// A matrix product: `[output, input, …1]` becomes `[input, output]`.
fn matrix(
    network: &'static Network,
    tensors: &Tensors,
    name: &str,
    shape: &[usize],
    activation: bool,
) -> std::result::Result<Pointwise, WeightsError> {
    let weight = &weights::expect(network, tensors, &format!("{name}.weight"), shape)?.values;
    Ok(Pointwise {
        weight: channels_last(weight, shape[0], shape[1], 1),
        bias: bias(network, tensors, name, shape[0])?,
        activation,
    })
}

fn bias(
    network: &'static Network,
    tensors: &Tensors,
    name: &str,
    length: usize,
) -> std::result::Result<Vec<f32>, WeightsError> {
    Ok(weights::expect(network, tensors, &format!("{name}.bias"), &[length])?.values.clone())
}

/// `[output, input, taps]` to `[taps, input, output]`.
fn channels_last(weight: &[f32], output: usize, input: usize, taps: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    for (at, value) in weight.iter().enumerate() {
        let (to, from, tap) = (at / (input * taps), at / taps % input, at % taps);
        turned[(tap * input + from) * output + to] = *value;
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
