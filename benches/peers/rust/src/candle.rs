//! candle's own operations, `conv2d` above all: what a user gets who writes the network down as it is.
//!
//! **Invariant**: the layers are those of `network.json`, in its order.
use crate::{Engine, Prepared, SIDE};
use anyhow::{Context as _, Result};
use candle_core::{D, Device, Tensor};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// One convolution of `network.json`.
#[derive(Deserialize)]
struct Layer {
    name: String,
    depthwise: bool,
    stride: usize,
    input: usize,
    relu6: bool,
    padding: [usize; 2],
    opens_block: bool,
    adds_block_input: bool,
}

#[derive(Deserialize)]
struct Network {
    classifier: String,
    layers: Vec<Layer>,
}

struct Convolution {
    layer: Layer,
    weight: Tensor,
    /// `[1, output, 1, 1]`.
    bias: Tensor,
}

struct Loaded {
    convolutions: Vec<Convolution>,
    /// `[features, classes]`.
    classifier: Tensor,
    classifier_bias: Tensor,
}

/// candle on the CPU; its threads are rayon's, which `RAYON_NUM_THREADS` sets.
pub struct Candle {
    loaded: Arc<Loaded>,
}

impl Candle {
    /// Reads the layers and the weights.
    pub fn load(models: &Path, weights: &Path) -> Result<Self> {
        let path = models.join("network.json");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let network: Network = serde_json::from_str(&text)?;
        let tensors = candle_core::safetensors::load(weights, &Device::Cpu)?;
        let convolutions = network.layers.into_iter().map(|layer| {
            let weight = tensor(&tensors, &format!("{}.weight", layer.name))?;
            let bias = tensor(&tensors, &format!("{}.bias", layer.name))?;
            Ok(Convolution { weight, bias: bias.reshape((1, (), 1, 1))?, layer })
        });
        let loaded = Loaded {
            convolutions: convolutions.collect::<Result<_>>()?,
            classifier: tensor(&tensors, &format!("{}.weight", network.classifier))?.t()?.contiguous()?,
            classifier_bias: tensor(&tensors, &format!("{}.bias", network.classifier))?,
        };
        Ok(Self { loaded: Arc::new(loaded) })
    }
}

impl Engine for Candle {
    fn version(&self) -> &'static str {
        env!("VERSION_CANDLE_CORE")
    }

    fn what(&self) -> &'static str {
        "conv2d as it comes"
    }

    fn prepare(&self, images: Vec<f32>, batch: usize) -> Result<Prepared> {
        let images = Tensor::from_vec(images, (batch, 3, SIDE, SIDE), &Device::Cpu)?;
        let loaded = Arc::clone(&self.loaded);
        Ok(Box::new(move || Ok(loaded.logits(&images)?.flatten_all()?.to_vec1()?)))
    }
}

impl Loaded {
    fn logits(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = images.clone();
        let mut block_input = images.clone();
        for Convolution { layer, weight, bias } in &self.convolutions {
            if layer.opens_block {
                block_input = x.clone();
            }
            let [before, after] = layer.padding;
            let groups = if layer.depthwise { layer.input } else { 1 };
            let padding = if before == after {
                before
            } else {
                x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
                0
            };
            x = x.conv2d(weight, padding, layer.stride, 1, groups)?.broadcast_add(bias)?;
            if layer.relu6 {
                x = x.clamp(0.0, 6.0)?;
            }
            if layer.adds_block_input {
                x = (x + &block_input)?;
            }
        }
        let features = x.mean((D::Minus2, D::Minus1))?;
        features.matmul(&self.classifier)?.broadcast_add(&self.classifier_bias)
    }
}

fn tensor(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    let tensor = tensors.get(name).with_context(|| format!("the weights lack {name}"))?;
    Ok(tensor.to_dtype(candle_core::DType::F32)?)
}
