//! Synchronous inference: image bytes to the network's input, to logits, to named probabilities.
//!
//! [`network`] describes the networks as tables, [`weights`] reads and checks their tensors, [`forward`] runs
//! them on the operations of [`kernels`], [`image`] decodes photos, [`labels`] names the classes. [`zoo`] has
//! other networks, on candle's own kernels.
//!
//! **Invariant**: everything runs on the calling thread and on no other, so that whoever owns the threads
//! decides how many CPUs are used; a [`Model`] is shared between threads without locks.
pub mod forward;
pub mod image;
pub mod kernels;
pub mod labels;
pub mod network;
pub mod weights;
pub mod zoo;

pub use forward::Classifier;
pub use image::DecodeError;

use candle_core::{DType, Device, Tensor};
use forward::InvertedResiduals;
use network::{Description, EFFICIENTNET_LITE0, MOBILENET_V2, NETWORKS, Network};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use weights::WeightsError;

/// Folded weights of EfficientNet-Lite0, float16; `weights/README.md` tells how they were made.
const EMBEDDED: &[u8] = include_bytes!("../../weights/efficientnet_lite0.safetensors");

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
}

impl Default for ModelArgs {
    fn default() -> Self {
        Self { model: None, weights: None, weights_dir: "weights".into(), pixels_max: 50 }
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
    /// The class names do not fit.
    #[error(transparent)]
    Labels(#[from] labels::LabelsError),
    /// The input does not have the shape `[1, size, size, 3]`.
    #[error("the network's input is [1, {size}, {size}, 3], got {found:?}")]
    Input {
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

/// Where the weights come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Embedded,
}

/// A network with its weights and class names, ready to classify.
pub struct Model {
    description: Description,
    classifier: Box<dyn Classifier>,
    labels: Vec<String>,
    pixels_max: u64,
}

impl Model {
    /// Loads the network that `args` ask for, and logs which one it is and why.
    pub fn load(args: &ModelArgs) -> Result<Self, ModelError> {
        if let Some(name) = args.model.as_deref().and_then(zoo::named) {
            return Self::load_from_zoo(name, args);
        }
        let named = args
            .model
            .as_deref()
            .map(|name| Network::named(name).ok_or_else(|| ModelError::UnknownName(name.to_owned())));
        let named = named.transpose()?;
        let (network, source) = choose(named, args);
        let file = match &source {
            Source::File(path) => path.display().to_string(),
            Source::Embedded => "embedded".to_owned(),
        };
        let failed = |error| ModelError::Weights { file: file.clone(), error };
        let bytes = match &source {
            Source::File(path) => &weights::read_file(path).map_err(failed)?,
            Source::Embedded => EMBEDDED,
        };
        let tensors = weights::parse(bytes).map_err(failed)?;
        let network = match network {
            Some(network) => network,
            None => weights::recognise(&tensors).map_err(failed)?,
        };
        let classifier = Box::new(InvertedResiduals::new(network, &tensors).map_err(failed)?);
        let path = match &source {
            Source::File(path) => Some(path.as_path()),
            Source::Embedded => None,
        };
        let description = network.description();
        let labels = labels::load(&description, path)?;
        announce(network, named.is_some(), &source, args);
        let pixels_max = u64::from(args.pixels_max) * 1_000_000;
        Ok(Self { description, classifier, labels, pixels_max })
    }

    /// Loads one of [`zoo::NAMES`].
    #[cfg(feature = "zoo")]
    fn load_from_zoo(network: &'static str, args: &ModelArgs) -> Result<Self, ModelError> {
        let in_folder = || args.weights_dir.join(format!("{network}.safetensors"));
        let path = args.weights.clone().unwrap_or_else(in_folder);
        let (description, classifier) = zoo::load(network, &path).map_err(|error| {
            let file = path.display().to_string();
            ModelError::Zoo { network, file, error }
        })?;
        let labels = labels::load(&description, Some(&path))?;
        let classes = description.classes;
        tracing::info!(model = network, weights = %path.display(), classes, why = "--model names it", "model loaded");
        let pixels_max = u64::from(args.pixels_max) * 1_000_000;
        Ok(Self { description, classifier, labels, pixels_max })
    }

    /// Says what is missing.
    #[cfg(not(feature = "zoo"))]
    fn load_from_zoo(network: &'static str, _: &ModelArgs) -> Result<Self, ModelError> {
        Err(ModelError::NeedsZoo(network))
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

    /// Image bytes to the network's input, `[1, size, size, 3]`.
    pub fn decode(&self, bytes: &[u8]) -> Result<Tensor, DecodeError> {
        image::decode(bytes, &self.description.preprocessing, self.pixels_max)
    }

    /// Logits of one image `[1, size, size, 3]`, one a class, all finite.
    pub fn logits(&self, input: &Tensor) -> Result<Vec<f32>, ModelError> {
        let size = self.input_size();
        if input.dims() != [1, size, size, 3] {
            return Err(ModelError::Input { size, found: input.dims().to_vec() });
        }
        let logits = self.classifier.logits(input)?.squeeze(0)?.to_vec1::<f32>()?;
        if logits.iter().all(|logit| logit.is_finite()) { Ok(logits) } else { Err(ModelError::NotFinite) }
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

    /// Runs one inference on zeros, so that the first request finds memory and caches warm.
    pub fn warm_up(&self) -> Result<(), ModelError> {
        let size = self.input_size();
        self.logits(&Tensor::zeros((1, size, size, 3), DType::F32, &Device::Cpu)?).map(drop)
    }
}

/// The network, unless the file tells it, and where its weights are.
fn choose(named: Option<&'static Network>, args: &ModelArgs) -> (Option<&'static Network>, Source) {
    let in_folder = |network: &Network| args.weights_dir.join(network.file_name());
    match (named, &args.weights) {
        (named, Some(file)) => (named, Source::File(file.clone())),
        (Some(network), None) => {
            let file = in_folder(network);
            // A missing file of a network that is not embedded is an error that names the file.
            let embedded = network.name == EFFICIENTNET_LITE0.name && !file.exists();
            (Some(network), if embedded { Source::Embedded } else { Source::File(file) })
        }
        (None, None) => {
            let file = in_folder(&MOBILENET_V2);
            // A damaged file is not passed over: it was put there to be used.
            if file.exists() {
                (Some(&MOBILENET_V2), Source::File(file))
            } else {
                (Some(&EFFICIENTNET_LITE0), Source::Embedded)
            }
        }
    }
}

/// Logs which network runs and why. The embedded one by default is worth a warning: it is the fallback.
fn announce(network: &Network, named: bool, source: &Source, args: &ModelArgs) {
    let model = network.name;
    match source {
        Source::File(path) => {
            let why = match (named, &args.weights) {
                (true, _) => "--model names it",
                (false, Some(_)) => "--weights holds it",
                (false, None) => "its weights are in --weights-dir",
            };
            tracing::info!(model, weights = %path.display(), why, "model loaded");
        }
        Source::Embedded if named => {
            tracing::info!(model, weights = "embedded", why = "--model names it", "model loaded");
        }
        Source::Embedded => {
            let missing = args.weights_dir.join(MOBILENET_V2.file_name());
            tracing::warn!(
                model,
                weights = "embedded",
                missing = %missing.display(),
                "mobilenet_v2 has no weights here, running the embedded network; `make weights` or \
                 `elastic weights fetch` gets them"
            );
        }
    }
}

/// Index and softmax probability of the `k` largest logits.
fn most_probable(logits: &[f32], k: usize) -> Vec<(usize, f32)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let total: f64 = scaled.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // The sort is stable, so that equals stay in the order of their index.
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.into_iter().take(k).map(|index| (index, (scaled[index] / total) as f32)).collect()
}

/// The executable's own weights of a network, if it carries them.
#[must_use]
pub fn embedded(network: &Network) -> Option<&'static [u8]> {
    (network.name == EFFICIENTNET_LITE0.name).then_some(EMBEDDED)
}

/// Loads the network of a weights file once, to see that it is whole.
pub fn check_file(network: &'static Network, file: &Path) -> Result<(), WeightsError> {
    weights::check(network, &weights::parse(&weights::read_file(file)?)?)
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
    fn the_default_is_mobilenet_where_its_weights_are() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_path_buf();
        let mut args = ModelArgs { weights_dir: dir.clone(), ..ModelArgs::default() };
        let name = |network: Option<&'static Network>| network.map(|network| network.name);
        let chosen = |args: &ModelArgs| {
            let (network, source) = choose(args.model.as_deref().and_then(Network::named), args);
            (name(network), source)
        };
        assert_eq!(chosen(&args), (Some("efficientnet_lite0"), Source::Embedded));
        let file = dir.join("mobilenet_v2.safetensors");
        args.model = Some("mobilenet_v2".to_owned());
        assert_eq!(chosen(&args), (Some("mobilenet_v2"), Source::File(file.clone())));
        std::fs::write(&file, "damaged").unwrap();
        args.model = None;
        assert_eq!(chosen(&args), (Some("mobilenet_v2"), Source::File(file.clone())));
        let error = Model::load(&args).err().unwrap().to_string();
        assert!(error.contains("mobilenet_v2.safetensors") && error.contains("make weights"), "{error}");
        args.model = Some("efficientnet_lite0".to_owned());
        assert_eq!(chosen(&args), (Some("efficientnet_lite0"), Source::Embedded));
        args.weights = Some(file.clone());
        args.model = None;
        assert_eq!(chosen(&args), (None, Source::File(file)));
    }

    #[test]
    fn the_embedded_network_runs_and_refuses_wrong_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let args = ModelArgs { weights_dir: folder.path().into(), ..ModelArgs::default() };
        let model = Model::load(&args).unwrap();
        assert_eq!((model.name(), model.classes(), model.input_size()), ("efficientnet_lite0", 1000, 224));
        model.warm_up().unwrap();
        let batch = Tensor::zeros((2, 224, 224, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(model.logits(&batch), Err(ModelError::Input { .. })));
        assert_eq!(model.classifier().logits(&batch).unwrap().dims(), [2, 1000]);
        let poisoned = (batch.narrow(0, 0, 1).unwrap() / 0.0).unwrap();
        assert!(matches!(model.logits(&poisoned), Err(ModelError::NotFinite)));
    }
}
