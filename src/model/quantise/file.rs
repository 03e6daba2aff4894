//! The file of an integer network: safetensors that hold what runs, not what it was made from.
//!
//! For each convolution and the classifier `X.weight` (I8, PyTorch's shape), `X.multiplier` and `X.offset` (F32,
//! `[output]`), for a block's last convolution `X.residual` (F32, `[output]`) where the block's input is added,
//! and `pool.multiplier` (F32, `[head channels]`). Multipliers and offsets rather than scales: a reader has
//! nothing to compute, so every machine and every version runs the same bits.
//!
//! **Invariant**: what [`parse`] returns fits its network and its values are within the limits that
//! [`crate::model::quantise`] states; whatever is wrong with a file is found here and not while running.
use crate::model::network::{Convolution, Network, Plan};
use crate::model::quantise::{Block, Layer, Quantised};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What `precision` says in the metadata of a file that is read here.
const PRECISION: &str = "int8";

/// The value that is rounded stays below this for any input.
pub(super) const UNROUNDED_MAX: f64 = (1 << 30) as f64;

/// How a person gets a good file.
const HOW_TO_GET: &str = "`elastic weights quantize --calibrate DIR IN OUT` makes one";

/// What can be wrong with the file of an integer network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The bytes are not what they should be.
    #[error("the file is not a whole safetensors file ({0}); {HOW_TO_GET}")]
    Format(String),
    /// The file does not say that it holds integers.
    #[error("the file's metadata do not say `precision: int8`: it holds float weights; {HOW_TO_GET}")]
    Precision,
    /// The file names no network that is known.
    #[error(
        "the file's metadata name the network {0:?}; the networks are mobilenet_v2 and efficientnet_lite0"
    )]
    Network(String),
    /// A tensor is not there.
    #[error("the int8 file lacks the tensor {tensor} of shape {shape:?}; {HOW_TO_GET}")]
    Missing {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor has another type or shape.
    #[error("{tensor} is {found}, expected {expected}; {HOW_TO_GET}")]
    Kind {
        /// The tensor.
        tensor: String,
        /// Type and shape in the file.
        found: String,
        /// Type and shape of the network's.
        expected: String,
    },
    /// A tensor is not the network's.
    #[error("{network} has no tensor {tensor} in int8; {HOW_TO_GET}")]
    Unexpected {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// A value is outside its limits.
    #[error("{tensor} holds {problem}: the file is damaged; {HOW_TO_GET}")]
    Value {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Whether bytes start as the file of an integer network: a safetensors header that says so.
#[must_use]
pub fn is_quantised(bytes: &[u8]) -> bool {
    SafeTensors::read_metadata(bytes).is_ok_and(|(_, header)| says(&header, "precision") == Some(PRECISION))
}

fn says<'a>(header: &'a Metadata, key: &str) -> Option<&'a str> {
    header.metadata().as_ref()?.get(key).map(String::as_str)
}

/// Tensors of a file, by name and by type.
struct Reader<'a> {
    file: SafeTensors<'a>,
    /// Names that were asked for.
    read: BTreeSet<String>,
}

impl Reader<'_> {
    fn bytes(&mut self, tensor: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], FileError> {
        self.read.insert(tensor.to_owned());
        let Ok(view) = self.file.tensor(tensor) else {
            return Err(FileError::Missing { tensor: tensor.to_owned(), shape: shape.to_vec() });
        };
        if view.dtype() != dtype || view.shape() != shape {
            return Err(FileError::Kind {
                tensor: tensor.to_owned(),
                found: format!("{:?} {:?}", view.dtype(), view.shape()),
                expected: format!("{dtype:?} {shape:?}"),
            });
        }
        Ok(view.data())
    }

    fn integers(&mut self, tensor: &str, shape: &[usize]) -> Result<Vec<i8>, FileError> {
        let values: Vec<i8> =
            self.bytes(tensor, Dtype::I8, shape)?.iter().map(|byte| byte.cast_signed()).collect();
        refuse(tensor, "a weight of -128", values.contains(&i8::MIN))?;
        Ok(values)
    }

    fn floats(&mut self, tensor: &str, length: usize) -> Result<Vec<f32>, FileError> {
        let data = self.bytes(tensor, Dtype::F32, &[length])?;
        let values: Vec<f32> =
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        refuse(tensor, "infinities or NaN", values.iter().any(|value| !value.is_finite()))?;
        Ok(values)
    }

    /// Multipliers are ratios of scales, so that they are positive.
    fn multipliers(&mut self, tensor: &str, length: usize) -> Result<Vec<f32>, FileError> {
        let values = self.floats(tensor, length)?;
        refuse(tensor, "a multiplier below zero", values.iter().any(|value| *value < 0.0))?;
        Ok(values)
    }

    fn layer(&mut self, name: &str, shape: &[usize], residual: Option<&[f32]>) -> Result<Layer, FileError> {
        let made = Layer {
            weight: self.integers(&format!("{name}.weight"), shape)?,
            multiplier: self.multipliers(&format!("{name}.multiplier"), shape[0])?,
            offset: self.floats(&format!("{name}.offset"), shape[0])?,
        };
        let far = made.reach(residual) >= UNROUNDED_MAX;
        refuse(&format!("{name}.multiplier"), "values that overflow", far)?;
        Ok(made)
    }

    fn network(&mut self, network: &'static Network) -> Result<Quantised, FileError> {
        let Plan { stem, blocks: planned, head, classifier } = network.plan();
        let stem = self.layer(&stem.name, &stem.shape(), None)?;
        let mut blocks = Vec::with_capacity(planned.len());
        for block in &planned {
            let mut plain = |layer: &Convolution| self.layer(&layer.name, &layer.shape(), None);
            let expand = block.expand.as_ref().map(&mut plain).transpose()?;
            let depthwise = plain(&block.depthwise)?;
            let project = &block.project;
            let residual = block
                .residual
                .then(|| self.multipliers(&format!("{}.residual", project.name), project.output))
                .transpose()?;
            let project = self.layer(&project.name, &project.shape(), residual.as_deref())?;
            blocks.push(Block { expand, depthwise, project, residual });
        }
        let head = self.layer(&head.name, &head.shape(), None)?;
        let pool = self.multipliers("pool.multiplier", network.head_channels)?;
        let pixels = (network.input_size() * network.input_size()) as f64;
        let far = pool.iter().any(|multiplier| f64::from(*multiplier) * 255.0 * pixels >= UNROUNDED_MAX);
        refuse("pool.multiplier", "values that overflow", far)?;
        let classifier = self.layer(classifier, &[network.classes, network.head_channels], None)?;
        Ok(Quantised { network, stem, blocks, head, pool, classifier })
    }
}

fn refuse(tensor: &str, problem: &'static str, wrong: bool) -> Result<(), FileError> {
    if wrong { Err(FileError::Value { tensor: tensor.to_owned(), problem }) } else { Ok(()) }
}

impl Layer {
    /// Largest absolute value before rounding, whatever the input.
    pub(super) fn reach(&self, residual: Option<&[f32]>) -> f64 {
        let row = self.weight.len() / self.offset.len();
        let reach = |channel: usize| {
            let sum: u32 =
                self.weight[channel * row..][..row].iter().map(|w| u32::from(w.unsigned_abs())).sum();
            let added = residual.map_or(0.0, |residual| f64::from(residual[channel]));
            255.0 * (f64::from(sum) * f64::from(self.multiplier[channel]) + added)
                + f64::from(self.offset[channel].abs())
        };
        (0..self.offset.len()).map(reach).fold(0.0, f64::max)
    }
}

/// Reads the file of an integer network.
pub fn parse(bytes: &[u8]) -> Result<Quantised, FileError> {
    let format = |error: &dyn std::fmt::Display| FileError::Format(error.to_string());
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format(&error))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| format(&error))?;
    if says(&header, "precision") != Some(PRECISION) {
        return Err(FileError::Precision);
    }
    let name = says(&header, "model").unwrap_or_default();
    let network = Network::named(name).ok_or_else(|| FileError::Network(name.to_owned()))?;
    let mut reader = Reader { file, read: BTreeSet::new() };
    let quantised = reader.network(network)?;
    match reader.file.names().into_iter().find(|name| !reader.read.contains(*name)) {
        Some(tensor) => Err(FileError::Unexpected { network: network.name, tensor: tensor.to_owned() }),
        None => Ok(quantised),
    }
}

/// The bytes of a file. The metadata are the caller's, to which the network's name and the precision are added.
/// The same network and metadata give the same bytes.
#[must_use]
pub fn serialize(quantised: &Quantised, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let (mut floats, mut integers) = (Vec::new(), Vec::new());
    for (name, shape, layer) in layers(quantised) {
        integers.push((format!("{name}.weight"), shape, &layer.weight));
        floats.push((format!("{name}.multiplier"), &layer.multiplier));
        floats.push((format!("{name}.offset"), &layer.offset));
    }
    let plan = quantised.network.plan();
    for (block, planned) in quantised.blocks.iter().zip(&plan.blocks) {
        floats.extend(
            block.residual.iter().map(|residual| (format!("{}.residual", planned.project.name), residual)),
        );
    }
    floats.push(("pool.multiplier".to_owned(), &quantised.pool));
    let mut about: Map<String, Value> =
        metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    about.insert("model".to_owned(), json!(quantised.network.name));
    about.insert("precision".to_owned(), json!(PRECISION));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), Value::Object(about));
    // The floats first, where they are aligned.
    let mut data = Vec::new();
    let mut add = |name: String, dtype: &str, shape: &[usize], bytes: Vec<u8>, data: &mut Vec<u8>| {
        let end = data.len() + bytes.len();
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
    };
    for (name, values) in floats {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        add(name, "F32", &[values.len()], bytes, &mut data);
    }
    for (name, shape, values) in integers {
        add(name, "I8", &shape, values.iter().map(|value| value.cast_unsigned()).collect(), &mut data);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The format wants the data to start at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Every layer with its name and the shape of its weight.
fn layers(quantised: &Quantised) -> Vec<(String, Vec<usize>, &Layer)> {
    let plan = quantised.network.plan();
    let blocks = quantised
        .blocks
        .iter()
        .flat_map(|block| block.expand.iter().chain([&block.depthwise, &block.project]));
    let made = [&quantised.stem].into_iter().chain(blocks).chain([&quantised.head]);
    let mut layers: Vec<_> =
        plan.convolutions().zip(made).map(|(c, layer)| (c.name.clone(), c.shape(), layer)).collect();
    let shape = vec![quantised.network.classes, quantised.network.head_channels];
    layers.push((plan.classifier.to_owned(), shape, &quantised.classifier));
    layers
}

#[cfg(test)]
mod tests;
