//! A network in 8-bit integers, made from its float weights and the ranges its activations had on photos.
//!
//! Every channel of every activation has a scale and a zero point of its own: `real = scale·(q − zero)`. That
//! costs nothing while running, since a layer's input scales fold into its weights and its output scales into
//! its multipliers. It generalises the equalisation of channels across layers (Nagel et al. 2019, "Data-free
//! quantization through weight equalization and bias correction"), and leaves ReLU6 as it is: a ReLU6 output
//! has the zero point 0, and one whose channel reaches 6 has the scale 6/255, so that the limit of the byte is
//! the limit of the activation. Weights are symmetric, with a scale for each output channel.
//!
//! [`float`] runs the float network, [`statistics`] observes its activations, [`Quantised::new`] makes the
//! integers, [`mod@reference`] runs them, [`mod@file`] writes and reads them. The arithmetic is told in [`crate::model::kernels::integer`].
//!
//! **Invariant**: a [`Quantised`] fits its network, and for no input at all does a sum reach 2^31 or the value
//! that is rounded 2^30, so that kernels need no checks of their own.
pub mod file;
pub mod float;
mod make;
pub mod reference;
mod rounding;
pub mod statistics;

use crate::model::network::Network;

/// Weights of one layer and how its sums become its output.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Signed weights within −127..=127 in PyTorch's order: `[output, input / groups, kernel, kernel]`.
    pub weight: Vec<i8>,
    /// Multiplies a sum: `[output]`.
    pub multiplier: Vec<f32>,
    /// Added afterwards; holds the bias and the zero points of input, output and residual: `[output]`.
    pub offset: Vec<f32>,
}

/// One inverted residual block.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The widening 1x1 convolution; absent where the expansion is 1.
    pub expand: Option<Layer>,
    /// The depthwise convolution; pixels beyond the edge are 0.
    pub depthwise: Layer,
    /// The narrowing 1x1 convolution.
    pub project: Layer,
    /// Multiplies the block's input where that is added to the output of `project`: `[output]`.
    pub residual: Option<Vec<f32>>,
}

/// A whole network in integers.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// The network.
    pub network: &'static Network,
    /// The first convolution, over raw bytes; beyond the edge they are [`padding`].
    pub stem: Layer,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The last 1x1 convolution.
    pub head: Layer,
    /// Multiplies the sums over the pixels, `[head channels]`; `1/pixels` is part of it.
    pub pool: Vec<f32>,
    /// The fully connected layer, weight `[classes, head channels]`; its output is the logits as they are.
    pub classifier: Layer,
}

/// What the stem reads beyond the edge of the image: the bytes that normalisation turns into nearly zero.
#[must_use]
pub fn padding(network: &Network) -> [u8; 3] {
    network.preprocessing.normalisation.mean.map(crate::model::kernels::integer::round)
}

#[cfg(test)]
mod tests;
