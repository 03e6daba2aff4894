//! Synchronous inference: image bytes to the network's input, to logits, to named probabilities.
//!
//! [`network`] describes the networks as tables, [`weights`] reads and checks their tensors, `assemble` makes
//! layers of them, [`forward`] runs them on the operations of [`kernels`], [`image`] decodes photos, [`planes`] takes
//! tensors instead, [`labels`] names the classes. [`zoo`] has
//! other networks, on candle's own kernels.
//!
//! **Invariant**: everything runs on the calling thread and on no other, so that whoever owns the threads
//! decides how many CPUs are used; a [`Model`] is shared between threads without locks.
mod assemble;
pub mod forward;
pub mod image;
pub mod kernels;
pub mod labels;
mod load;
pub mod network;
pub mod planes;
pub mod quantise;
pub mod weights;
pub mod zoo;

pub use forward::{Classifier, Session, SessionSize};
pub use image::{DecodeError, Decoder};
pub use load::{Precision, check_file, embedded};
pub use planes::PlanesError;

use candle_core::{DType, Device, Tensor};
use kernels::isa::Level;
use network::{Description, NETWORKS, Preprocessing};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use weights::WeightsError;

/// One class with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Name of the class.
    pub label: String,
    /// Index of the class, from 0.
    pub index: usize,
    /// Softmax probability.
    pub probability: f32,
}

/// Which network runs, and on what.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Network to run: `mobilenet_v2` or `efficientnet_lite0`. Without it, the network of --weights; without that
    /// too, `mobilenet_v2` where its weights are in --weights-dir, else the embedded `efficientnet_lite0`. A build
    /// with the feature `zoo` runs other networks too, see docs/other-networks.md
    #[arg(long, env = "ELASTIC_MODEL", value_name = "NAME", value_parser = zoo::ModelName)]
    pub model: Option<String>,
    /// Weights of the network: a safetensors file, with batch norm folded (see `elastic weights`) for the two
    /// networks above, as published for others
    #[arg(long, env = "ELASTIC_WEIGHTS", value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Folder that holds `NAME.safetensors` and, if other than ImageNet's, the class names
    #[arg(long, env = "ELASTIC_WEIGHTS_DIR", default_value = "weights", value_name = "DIR")]
    pub weights_dir: PathBuf,
    /// Most pixels an image may have, in millions; larger ones are refused before they are decoded
    #[arg(
        long,
        env = "ELASTIC_PIXELS_MAX",
        default_value_t = 50,
        value_name = "MEGAPIXELS",
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub pixels_max: u32,
    /// Instruction set to use, for comparison [default: the best that the CPU has]
    #[arg(long, env = "ELASTIC_ISA", value_enum, value_name = "NAME")]
    pub isa: Option<Level>,
    /// Number format to compute in. int8 takes `NAME.int8.safetensors`, which `elastic weights quantize` makes
    /// [default: what the weights are: int8, else f32]
    #[arg(long, env = "ELASTIC_PRECISION", value_enum, value_name = "FORMAT")]
    pub precision: Option<Precision>,
    /// Threads that work on one image together: lower latency, at some cost in images per second
    #[arg(
        long,
        env = "ELASTIC_THREADS_PER_IMAGE",
        default_value_t = 1,
        value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64)
    )]
    pub threads_per_image: usize,
}

impl Default for ModelArgs {
    fn default() -> Self {
        Self {
            model: None,
            weights: None,
            weights_dir: "weights".into(),
            pixels_max: 50,
            isa: None,
            precision: None,
            threads_per_image: 1,
        }
    }
}

/// Accepts the names of the networks.
#[must_use]
pub fn network_name() -> clap::builder::PossibleValuesParser {
    NETWORKS.map(|network| network.name).into()
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `--model` names no network.
    #[error("there is no network {0:?}; the networks are {names}", names = zoo::known_names())]
    UnknownName(String),
    /// `--model` names a network that this build does not have.
    #[error("the network {0} needs a build of elastic with `cargo build --release --features zoo`")]
    NeedsZoo(&'static str),
    /// The weights are missing, damaged or of another network.
    #[error("weights {file}: {error}")]
    Weights {
        /// The file, or what stands for it.
        file: String,
        /// What is wrong.
        error: WeightsError,
    },
    /// The weights of a network from the zoo are missing, damaged or of another network.
    #[cfg(feature = "zoo")]
    #[error("weights {file} of {network}: {error}")]
    Zoo {
        /// The network.
        network: &'static str,
        /// The file.
        file: String,
        /// What is wrong.
        error: zoo::TensorsError,
    },
    /// The int8 weights are missing, damaged or of another network.
    #[error("weights {file}: {error}")]
    Integers {
        /// The file, or what stands for it.
        file: String,
        /// What is wrong.
        error: quantise::file::FileError,
    },
    /// The weights are of another number format than asked for.
    #[error("weights {file} are {found}, --precision asks for {wanted}; {hint}")]
    Format {
        /// The file, or what stands for it.
        file: String,
        /// What it holds.
        found: &'static str,
        /// What was asked for.
        wanted: Precision,
        /// What to do.
        hint: &'static str,
    },
    /// The class names do not fit.
    #[error(transparent)]
    Labels(#[from] labels::LabelsError),
    /// The CPU does not have what `--isa` names.
    #[error("this CPU does not have {0}; it has {1}")]
    Isa(Level, String),
    /// The input does not have the shape `[N, size, size, 3]`, or N is too large.
    #[error("the network's input is 1 to {images_max} images of [{size}, {size}, 3], got {found:?}")]
    Input {
        /// Most images at once.
        images_max: usize,
        /// Side of the input, pixels.
        size: usize,
        /// Shape given.
        found: Vec<usize>,
    },
    /// The network gave infinities or NaN.
    #[error("the network's answer is not a number: the input or the weights hold infinities or NaN")]
    NotFinite,
    /// An operation failed.
    #[error("inference failed: {0}")]
    Inference(#[from] candle_core::Error),
}

/// A network with its weights and class names, ready to classify.
pub struct Model {
    description: Description,
    classifier: Box<dyn Classifier>,
    labels: Vec<String>,
    pixels_max: u64,
    threads_per_image: usize,
}

impl Model {
    /// Loads the network that `args` ask for, and logs which one it is and why.
    pub fn load(args: &ModelArgs) -> Result<Self, ModelError> {
        load::load(args)
    }

    /// Name of the network.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.description.name
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.description.classes
    }

    /// Side of the square input, pixels.
    #[must_use]
    pub fn input_size(&self) -> usize {
        self.description.preprocessing.crop as usize
    }

    /// How a photo becomes the network's input.
    #[must_use]
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.description.preprocessing
    }

    /// Threads that work on one image together.
    #[must_use]
    pub fn threads_per_image(&self) -> usize {
        self.threads_per_image
    }

    /// Names of the classes, by index.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The bare network, for batches: `[N, size, size, 3]` to `[N, classes]`.
    #[must_use]
    pub fn classifier(&self) -> &dyn Classifier {
        &*self.classifier
    }

    /// Image bytes to the network's input, bytes `[1, size, size, 3]`.
    pub fn decode(&self, bytes: &[u8]) -> Result<Tensor, DecodeError> {
        self.decode_with(&mut Decoder::new(), bytes)
    }

    /// As [`decode`](Self::decode), with a decoder that keeps its buffers from photo to photo.
    pub fn decode_with(&self, decoder: &mut Decoder, bytes: &[u8]) -> Result<Tensor, DecodeError> {
        decoder.tensor(bytes, &self.description.preprocessing, self.pixels_max)
    }

    /// A tensor that a client has prepared itself, see [`planes`], to the network's input.
    pub fn planes(&self, planes: &[u8]) -> Result<Tensor, PlanesError> {
        planes::tensor(planes, self.input_size())
    }

    /// Memory for one thread that classifies up to `images_max` images at once.
    pub fn session(&self, images_max: usize) -> Result<ModelSession, ModelError> {
        let size = self.input_size();
        let threads = self.threads_per_image;
        let session = SessionSize { images_max, height: size, width: size, threads };
        Ok(ModelSession { session: self.classifier.session(session)?, images_max, size })
    }

    /// Logits of one image `[1, size, size, 3]`, in a session of its own.
    pub fn logits(&self, input: &Tensor) -> Result<Vec<f32>, ModelError> {
        self.session(1)?.logits(input).map(|mut logits| logits.swap_remove(0))
    }

    /// The `k` most probable classes by softmax, best first; of equals, the one with the lower index first.
    #[must_use]
    pub fn top_k(&self, logits: &[f32], k: usize) -> Vec<Prediction> {
        let label = |index: usize| self.labels.get(index).cloned().unwrap_or_default();
        most_probable(logits, k)
            .into_iter()
            .map(|(index, probability)| Prediction { label: label(index), index, probability })
            .collect()
    }
}

/// A thread's memory for running a [`Model`].
pub struct ModelSession {
    session: Box<dyn Session>,
    images_max: usize,
    size: usize,
}

impl ModelSession {
    /// Logits of each image of `[N, size, size, 3]`, one a class, all finite.
    pub fn logits(&mut self, input: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let (images_max, size) = (self.images_max, self.size);
        match input.dims() {
            [images, height, width, 3]
                if (1..=images_max).contains(images) && [*height, *width] == [size; 2] => {}
            found => return Err(ModelError::Input { images_max, size, found: found.to_vec() }),
        }
        let logits = self.session.logits(input)?;
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(ModelError::NotFinite);
        }
        Ok(logits.chunks_exact(logits.len() / input.dims()[0]).map(<[f32]>::to_vec).collect())
    }

    /// Runs one inference on black pixels, so that the first request finds memory and caches warm.
    pub fn warm_up(&mut self) -> Result<(), ModelError> {
        self.logits(&Tensor::zeros((1, self.size, self.size, 3), DType::U8, &Device::Cpu)?).map(drop)
    }
}

/// Softmax probability of each logit.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let total: f64 = scaled.iter().sum();
    scaled.into_iter().map(|value| (value / total) as f32).collect()
}

/// Index and softmax probability of the `k` largest logits.
fn most_probable(logits: &[f32], k: usize) -> Vec<(usize, f32)> {
    let probabilities = softmax(logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // The sort is stable, so that equals stay in the order of their index.
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.into_iter().take(k).map(|index| (index, probabilities[index])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_logits_come_in_the_order_of_their_index() {
        let best = most_probable(&[1.0, 3.0, 3.0, -2.0], 3);
        assert_eq!(best.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2, 0]);
        assert!(most_probable(&[], 5).is_empty());
        assert_eq!(most_probable(&[0.0; 4], 9), [(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_fall(logits in prop::collection::vec(-500.0_f32..500.0, 1..50)) {
            let best = most_probable(&logits, logits.len());
            prop_assert!((best.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-4);
            prop_assert!(best.is_sorted_by(|a, b| a.1 >= b.1));
        }
    }

    #[test]
    fn the_embedded_network_runs_and_refuses_wrong_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let args = ModelArgs { weights_dir: folder.path().into(), ..ModelArgs::default() };
        let model = Model::load(&args).unwrap();
        assert_eq!((model.name(), model.classes(), model.input_size()), ("efficientnet_lite0", 1000, 224));
        model.session(1).unwrap().warm_up().unwrap();
        let batch = Tensor::zeros((2, 224, 224, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(model.logits(&batch), Err(ModelError::Input { .. })));
        assert_eq!(model.classifier().logits(&batch).unwrap().dims(), [2, 1000]);
        let poisoned = (batch.narrow(0, 0, 1).unwrap() / 0.0).unwrap();
        assert!(matches!(model.logits(&poisoned), Err(ModelError::NotFinite)));
    }
}
