//! Checkpoint in, folded weights file out.
//!
//! **Invariant**: the output depends on the input's bytes and the options alone, and holds exactly the tensors
//! that [`crate::model::weights::check`] asks for.
use crate::model::network::{Convolution, Network};
use crate::model::weights::{self, Stored, Tensors, WeightsError};
use crate::weights::checkpoint;
use anyhow::{Context as _, bail};
use candle_core::DType;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// SHA-256 in lower-case hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Converts a checkpoint or a safetensors file, folded or not, into the bytes of a folded weights file.
pub fn convert(
    bytes: &[u8],
    model: Option<&'static Network>,
    dtype: DType,
) -> anyhow::Result<(&'static Network, Vec<u8>)> {
    let tensors = if checkpoint::is_checkpoint(bytes) {
        checkpoint::parse(bytes)?
    } else {
        weights::parse(bytes).context("the input is neither a PyTorch checkpoint nor a safetensors file")?
    };
    let found = weights::recognise(&tensors)?;
    let network = model.unwrap_or(found);
    if network.name != found.name {
        bail!(WeightsError::Other { expected: network.name, found: found.name });
    }
    let folded = fold(network, &tensors)?;
    weights::check(network, &folded)?;
    let source = sha256(bytes);
    let mut metadata = Map::new();
    metadata.insert("format".to_owned(), json!("pt"));
    metadata.insert("model".to_owned(), json!(network.name));
    if source.starts_with(network.origin.sha256_prefix) {
        // Only the public checkpoint is known to be under its licence.
        metadata.insert("license".to_owned(), json!(network.origin.licence));
        metadata.insert("source".to_owned(), json!(network.origin.source));
    }
    metadata.insert("source_sha256".to_owned(), json!(source));
    metadata.insert("batch_norm".to_owned(), json!("folded into weight and bias"));
    Ok((network, serialize(&folded, dtype, metadata)?))
}

/// Folds batch norm into the convolutions; tensors that are folded already pass through.
pub fn fold<'a>(network: &'static Network, tensors: &'a Tensors<'_>) -> Result<Tensors<'a>, WeightsError> {
    let plan = network.plan();
    let mut folded = Tensors::new();
    for convolution in plan.convolutions() {
        let (weight, bias) = fold_one(network, tensors, convolution)?;
        folded.insert(format!("{}.weight", convolution.name), weight);
        folded.insert(format!("{}.bias", convolution.name), bias);
    }
    let shape = [network.classes, network.head_channels];
    for (name, shape) in [
        (format!("{}.weight", plan.classifier), &shape[..]),
        (format!("{}.bias", plan.classifier), &shape[..1]),
    ] {
        let stored = weights::expect(network, tensors, &name, shape)?.clone();
        folded.insert(name, stored);
    }
    Ok(folded)
}

/// Weight and bias of one convolution: `scale = gamma / sqrt(variance + epsilon)` goes into the weight, and
/// `beta + (bias - mean) * scale` becomes the bias.
fn fold_one<'a>(
    network: &'static Network,
    tensors: &'a Tensors<'_>,
    convolution: &Convolution,
) -> Result<(Stored<'a>, Stored<'a>), WeightsError> {
    let output = convolution.output;
    let vector = |name: &str| weights::expect(network, tensors, name, &[output]);
    let mut weight =
        weights::expect(network, tensors, &format!("{}.weight", convolution.name), &convolution.shape())?
            .clone();
    let bias_name = format!("{}.bias", convolution.name);
    let norm = |part: &str| format!("{}.{part}", convolution.batch_norm);
    if !tensors.contains_key(&norm("running_mean")) {
        return Ok((weight, vector(&bias_name)?.clone()));
    }
    let (gamma, beta) = (&vector(&norm("weight"))?.values, &vector(&norm("bias"))?.values);
    let (mean, variance) = (&vector(&norm("running_mean"))?.values, &vector(&norm("running_var"))?.values);
    let before = match tensors.get(&bias_name) {
        Some(_) => vector(&bias_name)?.values.clone(),
        None => vec![0.0; output].into(),
    };
    let taps = weight.values.len() / output;
    let mut bias = Vec::with_capacity(output);
    for (channel, weights) in weight.values.to_mut().chunks_exact_mut(taps).enumerate() {
        // In f64, so that folding adds one rounding and no more.
        let spread = (f64::from(variance[channel]) + f64::from(network.batch_norm_epsilon)).sqrt();
        let scale = f64::from(gamma[channel]) / spread;
        for weight in weights {
            *weight = (f64::from(*weight) * scale) as f32;
        }
        let shift = f64::from(before[channel]) - f64::from(mean[channel]);
        bias.push((f64::from(beta[channel]) + shift * scale) as f32);
    }
    Ok((weight, Stored { shape: vec![output], dtype: "f32".to_owned(), values: bias.into() }))
}

/// Writes a safetensors file. The library's own writer orders its metadata at random.
fn serialize(tensors: &Tensors, dtype: DType, metadata: Map<String, Value>) -> anyhow::Result<Vec<u8>> {
    let name = match dtype {
        DType::F16 => "F16",
        DType::F32 => "F32",
        other => bail!("weights are written as f32 or f16, not as {other:?}"),
    };
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut data = Vec::new();
    for (tensor, stored) in tensors {
        let start = data.len();
        data.extend(weights::raw(&stored.values, dtype)?);
        let about = json!({"dtype": name, "shape": stored.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.clone(), about);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The format wants the data to start at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2};
    use crate::weights::sample;

    #[test]
    fn converting_is_deterministic_and_gives_what_loading_asks_for() {
        for network in [&MOBILENET_V2, &EFFICIENTNET_LITE0] {
            let unfolded = sample::unfolded(network, 7);
            let (found, old) = convert(&sample::pickles(&unfolded), None, DType::F16).unwrap();
            assert_eq!(found.name, network.name);
            assert_eq!(old, convert(&sample::pickles(&unfolded), None, DType::F16).unwrap().1);
            let (_, new) = convert(&sample::zip(&unfolded), Some(network), DType::F16).unwrap();
            let (old, new) = (weights::parse(&old).unwrap(), weights::parse(&new).unwrap());
            assert_eq!(old, new, "both forms of checkpoint give the same tensors");
            weights::check(network, &old).unwrap();
            assert!(old.values().all(|stored| stored.dtype == "f16"));
        }
    }

    #[test]
    fn a_folded_file_passes_through() {
        let unfolded = sample::unfolded(&MOBILENET_V2, 3);
        let folded = fold(&MOBILENET_V2, &unfolded).unwrap();
        let bytes = serialize(&folded, DType::F32, Map::new()).unwrap();
        let (_, again) = convert(&bytes, None, DType::F32).unwrap();
        assert_eq!(weights::parse(&again).unwrap(), folded);
        let metadata = safetensors::SafeTensors::read_metadata(&again).unwrap().1;
        let metadata = metadata.metadata().clone().unwrap();
        assert_eq!(metadata["model"], "mobilenet_v2");
        assert_eq!(metadata["source_sha256"], sha256(&bytes));
        assert!(!metadata.contains_key("license"), "nobody knows the licence of this file");
    }

    #[test]
    fn folding_equals_convolution_then_batch_norm() {
        // One input pixel of ones through the stem's centre tap: convolution = the tap's sum over the inputs.
        let tensors = sample::unfolded(&EFFICIENTNET_LITE0, 11);
        let folded = fold(&EFFICIENTNET_LITE0, &tensors).unwrap();
        let value = |tensors: &Tensors, name: &str, at: usize| tensors[name].values[at];
        for channel in 0..32 {
            let sum = |tensors: &Tensors| {
                (0..3)
                    .map(|input| value(tensors, "_conv_stem.weight", (channel * 3 + input) * 9 + 4))
                    .sum::<f32>()
            };
            let norm = |part: &str| value(&tensors, &format!("_bn0.{part}"), channel);
            let scaled = (sum(&tensors) - norm("running_mean")) / (norm("running_var") + 1e-3).sqrt();
            let expected = scaled * norm("weight") + norm("bias");
            let got = sum(&folded) + value(&folded, "_conv_stem.bias", channel);
            assert!((got - expected).abs() < 1e-5, "channel {channel}: {got} instead of {expected}");
        }
    }

    #[test]
    fn wrong_inputs_are_named() {
        let error = |bytes: &[u8], model| format!("{:#}", convert(bytes, model, DType::F32).unwrap_err());
        assert!(error(b"text", None).contains("neither a PyTorch checkpoint nor a safetensors file"));
        let mut tensors = sample::unfolded(&MOBILENET_V2, 1);
        let other = error(&sample::pickles(&tensors), Some(&EFFICIENTNET_LITE0));
        assert!(other.contains("holds mobilenet_v2, expected efficientnet_lite0"), "{other}");
        tensors.remove("features.0.1.running_var");
        let missing = error(&sample::pickles(&tensors), None);
        assert!(missing.contains("needs the tensor features.0.1.running_var of shape [32]"), "{missing}");
    }
}
