//! Weights files: tensors by name out of safetensors, checked against the network they are for.
//!
//! **Invariant**: tensors that passed [`check`] are exactly those of the network, each with its shape, as
//! finite float32 values; whatever is wrong with a file is found here and not while running.
pub use crate::model::kernels::memory::FileBytes;
use crate::model::network::{NETWORKS, Naming, Network};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest weights file or checkpoint that is read, bytes: ten times the largest network here.
pub const FILE_BYTES_MAX: u64 = 256 << 20;

/// How a person gets a good file.
pub const HOW_TO_GET: &str = "`make weights` or `elastic weights fetch` puts mobilenet_v2.safetensors in \
    place, `elastic weights convert` makes a file from a PyTorch checkpoint, and `--model \
    efficientnet_lite0` runs the embedded network without any file";

/// One tensor as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// The elements' type in the file, as people write it: `f32`, `f16`, `i64`, …
    pub dtype: String,
    /// The elements in row-major order, in the file's own memory where they lie there as f32; empty where the
    /// type is neither f32 nor f16.
    pub values: Cow<'a, [f32]>,
}

/// A file's tensors by name.
pub type Tensors<'a> = BTreeMap<String, Stored<'a>>;

/// What can be wrong with a weights file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read at all.
    #[error("cannot read the weights {path}: {error}; {HOW_TO_GET}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The file is too large to be weights of a network here.
    #[error("the file is larger than {FILE_BYTES_MAX} bytes, which no network here needs; {HOW_TO_GET}")]
    TooLarge,
    /// The bytes are not what they should be.
    #[error("the file is not a whole safetensors file ({0}); {HOW_TO_GET}")]
    Format(String),
    /// The tensors belong to no network here.
    #[error(
        "the tensors' names belong to neither mobilenet_v2 nor efficientnet_lite0; name another network with \
         --model (see docs/other-networks.md); {HOW_TO_GET}"
    )]
    Unknown,
    /// The tensors belong to another network.
    #[error("the file holds {found}, expected {expected}; leave --model out or name {found}")]
    Other {
        /// The network asked for.
        expected: &'static str,
        /// The network in the file.
        found: &'static str,
    },
    /// Batch norm is still in the file.
    #[error(
        "the file of {0} has batch norm that is not folded into the convolutions; \
         `elastic weights convert IN OUT` folds it"
    )]
    Unfolded(&'static str),
    /// A tensor is not there.
    #[error("{network} needs the tensor {tensor} of shape {shape:?}, which the file lacks; {HOW_TO_GET}")]
    Missing {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor has another shape.
    #[error("{tensor} of {network} has shape {found:?}, expected {expected:?}; {HOW_TO_GET}")]
    Shape {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The network's.
        expected: Vec<usize>,
    },
    /// A tensor has elements of a type that is not read.
    #[error("{tensor} of {network} has elements of type {found}, expected f32 or f16; {HOW_TO_GET}")]
    Type {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor is not the network's.
    #[error("{network} has no tensor {tensor}, which the file holds; {HOW_TO_GET}")]
    Unexpected {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// The kernels have no such layer.
    #[error("{0} has the layer {1}, which the kernels cannot run")]
    Unsupported(&'static str, String),
    /// A tensor has values that are no numbers.
    #[error("{tensor} of {network} holds infinities or NaN: the file is damaged; {HOW_TO_GET}")]
    NotFinite {
        /// The network.
        network: &'static str,
        /// The tensor.
        tensor: String,
    },
}

/// A whole file of at most [`FILE_BYTES_MAX`] bytes. It is mapped, so that nothing is copied; whoever replaces it
/// must put another in its place, as `elastic weights` does, and not write into it.
pub fn read_file(path: &Path) -> Result<FileBytes, WeightsError> {
    let unreadable = |error| WeightsError::Unreadable { path: path.display().to_string(), error };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let bytes = FileBytes::new(file, FILE_BYTES_MAX + 1).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(WeightsError::TooLarge) } else { Ok(bytes) }
}

/// Reads the tensors of a safetensors file.
pub fn parse(bytes: &[u8]) -> Result<Tensors<'_>, WeightsError> {
    let format = |error: &dyn std::fmt::Display| WeightsError::Format(error.to_string());
    let file = SafeTensors::deserialize(bytes).map_err(|error| format(&error))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let (dtype, values) = match view.dtype() {
            Dtype::F32 => ("f32".to_owned(), floats(view.data(), DType::F32)),
            Dtype::F16 => ("f16".to_owned(), floats(view.data(), DType::F16)),
            other => (format!("{other:?}").to_lowercase(), Ok(Cow::default())),
        };
        let values = values.map_err(|error| format(&error))?;
        tensors.insert(name.to_owned(), Stored { shape: view.shape().to_vec(), dtype, values });
    }
    Ok(tensors)
}

/// Little-endian elements of type f32 or f16 as f32: the very same memory, where it is aligned and holds such.
pub fn floats(data: &[u8], dtype: DType) -> candle_core::Result<Cow<'_, [f32]>> {
    if dtype == DType::F32
        && cfg!(target_endian = "little")
        && let Ok(values) = bytemuck::try_cast_slice(data)
    {
        return Ok(Cow::Borrowed(values));
    }
    let length = data.len() / dtype.size_in_bytes();
    let tensor = Tensor::from_raw_buffer(data, dtype, &[length], &Device::Cpu)?;
    Ok(Cow::Owned(tensor.to_dtype(DType::F32)?.to_vec1()?))
}

/// Little-endian elements of type f32 or f16 from f32.
pub fn raw(values: &[f32], dtype: DType) -> candle_core::Result<Vec<u8>> {
    let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_dtype(dtype)?;
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Storage::Cpu(CpuStorage::F16(values)) => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        _ => candle_core::bail!("only f32 and f16 are written"),
    }
}

/// `[output, input, taps]` to `[taps, input, output]`.
pub(in crate::model) fn channels_last(weight: &[f32], output: usize, input: usize, taps: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    for (from_output, weight) in weight.chunks_exact(input * taps).enumerate() {
        for (at, value) in weight.iter().enumerate() {
            turned[(at % taps * input + at / taps) * output + from_output] = *value;
        }
    }
    turned
}

/// The network whose tensors these are.
pub fn recognise(tensors: &Tensors) -> Result<&'static Network, WeightsError> {
    let stem = |network: &Network| match network.naming {
        Naming::Torchvision => "features.0.0.weight",
        Naming::EfficientNetLite => "_conv_stem.weight",
    };
    NETWORKS.into_iter().find(|network| tensors.contains_key(stem(network))).ok_or(WeightsError::Unknown)
}

/// Whether these are exactly the folded tensors of `network`.
pub fn check(network: &'static Network, tensors: &Tensors) -> Result<(), WeightsError> {
    let found = recognise(tensors)?;
    if found.name != network.name {
        return Err(WeightsError::Other { expected: network.name, found: found.name });
    }
    if tensors.keys().any(|name| name.ends_with(".running_mean")) {
        return Err(WeightsError::Unfolded(network.name));
    }
    let expected: BTreeMap<_, _> = network.tensors().into_iter().collect();
    for (name, shape) in &expected {
        expect(network, tensors, name, shape)?;
    }
    match tensors.keys().find(|name| !expected.contains_key(*name)) {
        Some(tensor) => Err(WeightsError::Unexpected { network: network.name, tensor: tensor.clone() }),
        None => Ok(()),
    }
}

/// The tensor of a name, if it has the shape, a type that is read, and only finite values.
pub fn expect<'a>(
    network: &'static Network,
    tensors: &'a Tensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<&'a Stored<'a>, WeightsError> {
    let stored = find(network, tensors, name, shape)?;
    if stored.values.iter().any(|value| !value.is_finite()) {
        return Err(WeightsError::NotFinite { network: network.name, tensor: name.to_owned() });
    }
    Ok(stored)
}

/// The tensor of a name, if it has the shape and a type that is read. For tensors that passed [`check`]: to look at
/// every value again would take as long as packing them.
pub(in crate::model) fn find<'a>(
    network: &'static Network,
    tensors: &'a Tensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<&'a Stored<'a>, WeightsError> {
    let (network, tensor) = (network.name, name.to_owned());
    let Some(stored) = tensors.get(name) else {
        return Err(WeightsError::Missing { network, tensor, shape: shape.to_vec() });
    };
    if !matches!(stored.dtype.as_str(), "f32" | "f16") {
        return Err(WeightsError::Type { network, tensor, found: stored.dtype.clone() });
    }
    if stored.shape != shape || stored.values.len() != shape.iter().product::<usize>() {
        let (found, expected) = (stored.shape.clone(), shape.to_vec());
        return Err(WeightsError::Shape { network, tensor, found, expected });
    }
    Ok(stored)
}

/// Folded tensors of a network with random values that keep the size of the activations.
#[cfg(any(test, feature = "measure"))]
pub(in crate::model) fn made_up(network: &Network, random: &mut impl rand::Rng) -> Tensors<'static> {
    let mut stored = |shape: Vec<usize>| {
        let inputs: usize = shape[1..].iter().product();
        let spread = if shape.len() == 1 { 0.5 } else { (4.0 / inputs as f32).sqrt() };
        let values = (0..shape.iter().product()).map(|_| random.random_range(-spread..spread)).collect();
        Stored { shape, dtype: "f32".to_owned(), values }
    };
    network.tensors().into_iter().map(|(name, shape)| (name, stored(shape))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2};

    /// Zeros in the shape of a network.
    fn zeros(network: &Network) -> Tensors<'static> {
        let stored = |shape: Vec<usize>| {
            let values = vec![0.0; shape.iter().product()];
            Stored { shape, dtype: "f32".to_owned(), values: values.into() }
        };
        network.tensors().into_iter().map(|(name, shape)| (name, stored(shape))).collect()
    }

    /// What `check` says of MobileNetV2's tensors after `damage`.
    fn complaint(damage: impl FnOnce(&mut Tensors<'static>)) -> String {
        let mut tensors = zeros(&MOBILENET_V2);
        damage(&mut tensors);
        check(&MOBILENET_V2, &tensors).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        assert_eq!(complaint(|_| ()), "fine");
        let bias = "classifier.1.bias";
        let says = |complaint: &str, words: &[&str]| {
            for word in words {
                assert!(complaint.contains(word), "{complaint:?} does not say {word:?}");
            }
        };
        let lacks = complaint(|t| drop(t.remove(bias)));
        says(&lacks, &["needs the tensor classifier.1.bias of shape [1000]", "make weights"]);
        let shape = complaint(|t| t.get_mut(bias).unwrap().shape = vec![10, 100]);
        says(&shape, &["has shape [10, 100], expected [1000]", "elastic weights fetch"]);
        let dtype = complaint(|t| t.get_mut(bias).unwrap().dtype = "i64".to_owned());
        says(&dtype, &["type i64, expected f32 or f16"]);
        let nan = complaint(|t| t.get_mut(bias).unwrap().values.to_mut()[7] = f32::NAN);
        says(&nan, &["infinities or NaN"]);
        let extra = complaint(|t| drop(t.insert("extra".to_owned(), t[bias].clone())));
        says(&extra, &["has no tensor extra"]);
        let unfolded = complaint(|t| drop(t.insert("features.0.1.running_mean".to_owned(), t[bias].clone())));
        says(&unfolded, &["elastic weights convert"]);
        says(&complaint(Tensors::clear), &["neither mobilenet_v2 nor efficientnet_lite0"]);
        says(&complaint(|t| *t = zeros(&EFFICIENTNET_LITE0)), &["holds efficientnet_lite0"]);
    }

    #[test]
    fn weights_are_turned_channels_last() {
        // Two outputs, three inputs, two taps; the value tells its place.
        let weight: Vec<f32> = (0..12).map(|at| (at / 6 * 100 + at / 2 % 3 * 10 + at % 2) as f32).collect();
        let turned = channels_last(&weight, 2, 3, 2);
        assert_eq!(turned, [0., 100., 10., 110., 20., 120., 1., 101., 11., 111., 21., 121.]);
    }

    #[test]
    fn files_that_are_not_whole_are_refused() {
        let missing = read_file(Path::new("/nonexistent/weights.safetensors")).err().unwrap().to_string();
        assert!(missing.contains("/nonexistent/weights.safetensors") && missing.contains("make weights"));
        for bytes in [&b""[..], b"garbage that is no header at all", &u64::MAX.to_le_bytes()] {
            assert!(matches!(parse(bytes), Err(WeightsError::Format(_))), "{bytes:?}");
        }
        let tensor = safetensors::tensor::TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap();
        let whole = safetensors::serialize([("a", tensor)], None).unwrap();
        assert_eq!(parse(&whole).unwrap()["a"].values[..], [0.0, 0.0]);
        for length in 0..whole.len() {
            assert!(matches!(parse(&whole[..length]), Err(WeightsError::Format(_))), "{length}");
        }
    }

    #[test]
    fn floats_survive_the_trip_through_bytes() {
        let values = [0.0, -1.5, 6.0, 1024.0];
        for dtype in [DType::F32, DType::F16] {
            assert_eq!(floats(&raw(&values, dtype).unwrap(), dtype).unwrap()[..], values);
        }
    }
}
