//! A safetensors file as candle-nn's source of tensors, which keeps account of what was asked for.
//!
//! candle-transformers builds optional parts (squeeze and excite, layer scale, one of two depthwise convolutions)
//! by trying: a tensor that is not there silently means a network without the part. The account tells such a
//! network from one whose file is damaged or another network's.
//!
//! **Invariant**: every tensor handed out is float32 and finite, and has the shape asked for.
use candle_core::safetensors::BufferedSafetensors;
use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest weights file that is read, bytes.
pub const FILE_BYTES_MAX: u64 = 2 << 30;

/// Ends the name of a counter that training leaves in files and inference does not need.
const COUNTER: &str = "num_batches_tracked";

/// What can be wrong with a weights file.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// The file cannot be read at all.
    #[error("cannot read the file: {0}; name another one with --weights")]
    Unreadable(#[from] std::io::Error),
    /// The file is too large.
    #[error("the file is larger than {FILE_BYTES_MAX} bytes, which no network here needs")]
    TooLarge,
    /// The bytes are not what they should be.
    #[error("the file is not a whole safetensors file ({0})")]
    Format(String),
    /// A tensor is not there.
    #[error("the file lacks the tensor {tensor}{}", shape_words(.shape.as_ref()))]
    Missing {
        /// Its name, as timm has it.
        tensor: String,
        /// Its shape, where the network knows it.
        shape: Option<Vec<usize>>,
    },
    /// A tensor has another shape.
    #[error("{tensor} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The network's.
        expected: Vec<usize>,
    },
    /// A tensor has elements of a type that is not read.
    #[error("{tensor} has elements of type {found}, expected f32, f16 or bf16")]
    Type {
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor has values that are no numbers.
    #[error("{0} holds infinities or NaN: the file is damaged")]
    NotFinite(String),
    /// A tensor is not the network's.
    #[error("the network has no tensor {0}, which the file holds: it is of another network")]
    Unexpected(String),
    /// A whole part of the network is not in the file.
    #[error("the file holds {found} of the network's {expected} tensors: it is damaged or of a variant")]
    Incomplete {
        /// Tensors of the network in the file.
        found: usize,
        /// Tensors of the network.
        expected: usize,
    },
    /// candle refused to build the network.
    #[error("the network cannot be built: {0}")]
    Build(candle_core::Error),
}

fn shape_words(shape: Option<&Vec<usize>>) -> String {
    shape.map(|shape| format!(" of shape {shape:?}")).unwrap_or_default()
}

/// See the module's documentation.
pub(super) struct Tensors {
    file: BufferedSafetensors,
    /// From the name asked for to the name in the file.
    translate: fn(&str) -> String,
    account: Mutex<Account>,
}

#[derive(Default)]
struct Account {
    /// Names in the file that were handed out.
    used: BTreeSet<String>,
    /// Names in the file, if they are there, that were refused, and why; in order.
    refused: Vec<(String, TensorsError)>,
}

impl Tensors {
    /// Reads a file; `timm_name` translates the names asked for if `head` is in the file under its timm name only.
    pub(super) fn read(
        path: &Path,
        head: &str,
        timm_name: fn(&str) -> String,
    ) -> Result<Arc<Self>, TensorsError> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(TensorsError::TooLarge);
        }
        let file =
            BufferedSafetensors::new(bytes).map_err(|error| TensorsError::Format(error.to_string()))?;
        let as_asked = file.get(&format!("{head}.weight")).is_ok();
        let translate = if as_asked { super::names::same } else { timm_name };
        Ok(Arc::new(Self { file, translate, account: Mutex::default() }))
    }

    /// First dimension of a tensor.
    pub(super) fn rows(&self, name: &str) -> Result<usize, TensorsError> {
        let tensor = (self.translate)(name);
        let rows = self.file.get(&tensor).ok().and_then(|view| view.shape().first().copied());
        rows.ok_or(TensorsError::Missing { tensor, shape: None })
    }

    /// The tensors as candle-nn takes them.
    pub(super) fn builder(self: &Arc<Self>) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Source(Arc::clone(self))), DType::F32, Device::Cpu)
    }

    /// What to say of a network that was built, or not, from these tensors, if it has so many.
    pub(super) fn judge<T>(&self, built: candle_core::Result<T>, expected: usize) -> Result<T, TensorsError> {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let network = match built {
            Ok(network) => network,
            // A refusal that mattered ended the building, hence is the latest.
            Err(error) => {
                return Err(account.refused.pop().map_or(TensorsError::Build(error), |(_, why)| why));
            }
        };
        let names = self.file.tensors().into_iter().map(|(name, _)| name);
        let unused: Vec<String> =
            names.filter(|name| !name.ends_with(COUNTER) && !account.used.contains(name)).collect();
        // A tensor of the wrong shape or type was refused and, being optional, passed over.
        if let Some(at) = account.refused.iter().position(|(name, _)| unused.contains(name)) {
            return Err(account.refused.swap_remove(at).1);
        }
        let found = account.used.len();
        match unused.into_iter().next() {
            Some(unused) => Err(TensorsError::Unexpected(unused)),
            None if found != expected => Err(TensorsError::Incomplete { found, expected }),
            None => Ok(network),
        }
    }

    fn look_up(&self, name: &str, shape: Option<&Shape>) -> Result<Tensor, TensorsError> {
        let tensor = (self.translate)(name);
        let Ok(view) = self.file.get(&tensor) else {
            return Err(TensorsError::Missing { tensor, shape: shape.map(|shape| shape.dims().to_vec()) });
        };
        let dtype = format!("{:?}", view.dtype()).to_lowercase();
        if !matches!(dtype.as_str(), "f32" | "f16" | "bf16") {
            return Err(TensorsError::Type { tensor, found: dtype });
        }
        if let Some(shape) = shape.filter(|shape| shape.dims() != view.shape()) {
            let (found, expected) = (view.shape().to_vec(), shape.dims().to_vec());
            return Err(TensorsError::Shape { tensor, found, expected });
        }
        let values = self.file.load(&tensor, &Device::Cpu).and_then(|values| values.to_dtype(DType::F32));
        let values = values.map_err(|error| TensorsError::Format(error.to_string()))?;
        if !finite(&values) {
            return Err(TensorsError::NotFinite(tensor));
        }
        Ok(values)
    }
}

/// Whether a float32 tensor fresh from a file has only numbers in it.
fn finite(tensor: &Tensor) -> bool {
    let (storage, _) = tensor.storage_and_layout();
    matches!(&*storage, Storage::Cpu(CpuStorage::F32(values)) if values.iter().all(|value| value.is_finite()))
}

/// The handle that candle-nn holds.
struct Source(Arc<Tensors>);

impl Source {
    fn hand_out(&self, name: &str, shape: Option<&Shape>) -> candle_core::Result<Tensor> {
        let looked_up = self.0.look_up(name, shape);
        let mut account = self.0.account.lock().unwrap_or_else(PoisonError::into_inner);
        match looked_up {
            Ok(tensor) => {
                account.used.insert((self.0.translate)(name));
                Ok(tensor)
            }
            Err(error) => {
                let message = candle_core::Error::msg(&error);
                account.refused.push(((self.0.translate)(name), error));
                Err(message)
            }
        }
    }
}

impl SimpleBackend for Source {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.hand_out(name, Some(&shape))
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.hand_out(name, None)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.file.get(&(self.0.translate)(name)).is_ok()
    }
}
