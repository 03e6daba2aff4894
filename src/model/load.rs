//! From flags to a network that runs: which file, which number format, which instruction set.
//!
//! **Invariant**: what a person named is never replaced by something else; what nobody named is chosen by what is
//! there, and the log says why.
use crate::model::kernels::isa::{Isa, Level};
use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2, Network};
use crate::model::weights::{self, WeightsError};
use crate::model::{Classifier, Model, ModelArgs, ModelError, forward, labels, quantise, zoo};
use std::fmt;
use std::path::{Path, PathBuf};

/// Folded weights of EfficientNet-Lite0, float16; `weights/README.md` tells how they were made. The container image
/// does without them, since it has the default network's weights in a file.
#[cfg(feature = "embed-float")]
const EMBEDDED: &[u8] = include_bytes!("../../weights/efficientnet_lite0.safetensors");
#[cfg(not(feature = "embed-float"))]
const EMBEDDED: &[u8] = EMBEDDED_INT8;

/// The same in 8-bit integers.
const EMBEDDED_INT8: &[u8] = include_bytes!("../../weights/efficientnet_lite0.int8.safetensors");

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floating point
    F32,
    /// bfloat16, rounded from f32 weights; fast where the CPU has AVX-512-BF16
    Bf16,
    /// 8-bit integers
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// Where the weights come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Embedded,
}

impl Source {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Embedded => None,
        }
    }

    fn name(&self) -> String {
        self.path().map_or_else(|| "embedded".to_owned(), |path| path.display().to_string())
    }
}

/// See [`Model::load`].
pub(super) fn load(args: &ModelArgs) -> Result<Model, ModelError> {
    if let Some(name) = args.model.as_deref().and_then(zoo::named) {
        return load_from_zoo(name, args);
    }
    let unknown = |name: &str| ModelError::UnknownName(name.to_owned());
    let named = args.model.as_deref().map(|name| Network::named(name).ok_or_else(|| unknown(name)));
    let named = named.transpose()?;
    let (network, source) = choose(named, args);
    let isa = isa(args.isa)?;
    let failed = |error| ModelError::Weights { file: source.name(), error };
    let bytes = match &source {
        Source::File(path) => &weights::read_file(path).map_err(failed)?,
        Source::Embedded if args.precision == Some(Precision::Int8) => EMBEDDED_INT8,
        Source::Embedded => EMBEDDED,
    };
    let precision = precision(args.precision, bytes, &source)?;
    let (network, classifier) = match precision {
        Precision::F32 | Precision::Bf16 => floats(network, bytes, isa, precision).map_err(failed)?,
        Precision::Int8 => integers(network, bytes, isa, &source)?,
    };
    let description = network.description();
    let labels = labels::load(&description, source.path())?;
    announce(network, named.is_some(), (precision, isa), &source, args);
    if let Some(lacking) = slower_than_float(precision, isa) {
        let (precision, isa) = (precision.to_string(), isa.to_string());
        tracing::warn!(precision, isa, lacking, "this number format is slower than --precision f32 here");
    }
    let pixels_max = u64::from(args.pixels_max) * 1_000_000;
    Ok(Model { description, classifier, labels, pixels_max, threads_per_image: args.threads_per_image })
}

type Loaded = (&'static Network, Box<dyn Classifier>);

fn floats(
    network: Option<&'static Network>,
    bytes: &[u8],
    isa: Isa,
    precision: Precision,
) -> Result<Loaded, WeightsError> {
    let tensors = weights::parse(bytes)?;
    let network = match network {
        Some(network) => network,
        None => weights::recognise(&tensors)?,
    };
    let build = if precision == Precision::Bf16 { forward::bfloat16 } else { forward::float32 };
    Ok((network, build(network, &tensors, isa)?))
}

fn integers(
    network: Option<&'static Network>,
    bytes: &[u8],
    isa: Isa,
    source: &Source,
) -> Result<Loaded, ModelError> {
    let failed = |error| ModelError::Weights { file: source.name(), error };
    let quantised =
        quantise::file::parse(bytes).map_err(|error| ModelError::Integers { file: source.name(), error })?;
    let found = quantised.network;
    match network {
        Some(network) if network.name != found.name => {
            Err(failed(WeightsError::Other { expected: network.name, found: found.name }))
        }
        _ => Ok((found, forward::int8(&quantised, isa).map_err(failed)?)),
    }
}

/// Loads one of [`zoo::NAMES`].
#[cfg(feature = "zoo")]
fn load_from_zoo(network: &'static str, args: &ModelArgs) -> Result<Model, ModelError> {
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
    Ok(Model { description, classifier, labels, pixels_max, threads_per_image: args.threads_per_image })
}

/// Says what is missing.
#[cfg(not(feature = "zoo"))]
fn load_from_zoo(network: &'static str, _: &ModelArgs) -> Result<Model, ModelError> {
    Err(ModelError::NeedsZoo(network))
}

/// The network, unless the file tells it, and where its weights are.
fn choose(named: Option<&'static Network>, args: &ModelArgs) -> (Option<&'static Network>, Source) {
    let in_folder = |network: &Network| args.weights_dir.join(file_name(network, args.precision));
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

/// Name of a network's weights file in a number format.
fn file_name(network: &Network, precision: Option<Precision>) -> String {
    match precision {
        Some(Precision::Int8) => format!("{}.int8.safetensors", network.name),
        _ => network.file_name(),
    }
}

/// The number format: what was asked for, if the weights can give it, else what they are.
fn precision(asked: Option<Precision>, bytes: &[u8], source: &Source) -> Result<Precision, ModelError> {
    let refuse = |found, wanted, hint| Err(ModelError::Format { file: source.name(), found, wanted, hint });
    match (asked, quantise::file::is_quantised(bytes)) {
        (None, true) => Ok(Precision::Int8),
        (None, false) => Ok(Precision::F32),
        (Some(Precision::Int8), false) => {
            let hint = "`elastic weights quantize --calibrate DIR IN OUT` makes int8 weights";
            refuse("floating point", Precision::Int8, hint)
        }
        (Some(wanted @ (Precision::F32 | Precision::Bf16)), true) => {
            refuse("int8", wanted, "name the weights they were made from")
        }
        (Some(precision), _) => Ok(precision),
    }
}

/// The instruction set asked for, or the best.
fn isa(named: Option<Level>) -> Result<Isa, ModelError> {
    match named {
        None => Ok(Isa::best()),
        Some(level) => Isa::new(level).ok_or_else(|| {
            let has: Vec<String> = Isa::all().map(|isa| isa.to_string()).collect();
            ModelError::Isa(level, has.join(", "))
        }),
    }
}

/// What the instruction set lacks, if a number format takes longer than float32 without it.
fn slower_than_float(precision: Precision, isa: Isa) -> Option<&'static str> {
    match precision {
        Precision::Int8 if isa.level() < Level::Avx512Vnni => Some("products of bytes (avx512-vnni)"),
        Precision::Bf16 if isa.level() < Level::Avx512Bf16 => Some("products of bfloat16 (avx512-bf16)"),
        _ => None,
    }
}

/// Logs which network runs and why. The embedded one by default is worth a warning: it is the fallback.
fn announce(
    network: &Network,
    named: bool,
    (precision, isa): (Precision, Isa),
    source: &Source,
    args: &ModelArgs,
) {
    let model = network.name;
    let (precision, isa) = (precision.to_string(), isa.to_string());
    match source {
        Source::File(path) => {
            let why = match (named, &args.weights) {
                (true, _) => "--model names it",
                (false, Some(_)) => "--weights holds it",
                (false, None) => "its weights are in --weights-dir",
            };
            tracing::info!(model, precision, isa, weights = %path.display(), why, "model loaded");
        }
        Source::Embedded if named => {
            let why = "--model names it";
            tracing::info!(model, precision, isa, weights = "embedded", why, "model loaded");
        }
        Source::Embedded => {
            let missing = args.weights_dir.join(file_name(&MOBILENET_V2, args.precision));
            tracing::warn!(
                model,
                precision,
                isa,
                weights = "embedded",
                missing = %missing.display(),
                "mobilenet_v2 has no weights here, running the embedded network; `make weights` or \
                 `elastic weights fetch` gets them, `elastic weights quantize` makes int8 ones"
            );
        }
    }
}

/// The executable's own float weights of a network, if it carries them.
#[must_use]
pub fn embedded(network: &Network) -> Option<&'static [u8]> {
    (cfg!(feature = "embed-float") && network.name == EFFICIENTNET_LITE0.name).then_some(EMBEDDED)
}

/// Loads the network of a weights file once, to see that it is whole.
pub fn check_file(network: &'static Network, file: &Path) -> Result<(), WeightsError> {
    weights::check(network, &weights::parse(&weights::read_file(file)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_number_format_is_what_was_asked_for_or_what_the_weights_are() {
        let folder = tempfile::tempdir().unwrap();
        let integers = folder.path().join("w.safetensors");
        std::fs::write(&integers, EMBEDDED_INT8).unwrap();
        let load = |weights: Option<&Path>, precision| {
            let weights_dir = folder.path().to_path_buf();
            let args = ModelArgs {
                weights_dir,
                weights: weights.map(Path::to_path_buf),
                precision,
                ..ModelArgs::default()
            };
            Model::load(&args).map(|model| model.name()).map_err(|error| error.to_string())
        };
        assert_eq!(load(Some(&integers), None), Ok("efficientnet_lite0"));
        assert_eq!(load(None, Some(Precision::Int8)), Ok("efficientnet_lite0"));
        let refused = load(Some(&integers), Some(Precision::F32)).unwrap_err();
        assert!(refused.contains("are int8, --precision asks for f32"), "{refused}");
        std::fs::write(&integers, EMBEDDED).unwrap();
        let refused = load(Some(&integers), Some(Precision::Int8)).unwrap_err();
        assert!(refused.contains("floating point") && refused.contains("weights quantize"), "{refused}");
        std::fs::write(folder.path().join("mobilenet_v2.int8.safetensors"), EMBEDDED_INT8).unwrap();
        let refused = load(None, Some(Precision::Int8)).unwrap_err();
        assert!(refused.contains("expected mobilenet_v2"), "{refused}");
    }

    #[test]
    fn number_formats_that_lack_their_instructions_are_told_apart() {
        for isa in Isa::all() {
            let slower = |precision| slower_than_float(precision, isa).is_some();
            assert!(!slower(Precision::F32));
            assert_eq!(slower(Precision::Int8), isa.level() < Level::Avx512Vnni, "{isa}");
            assert_eq!(slower(Precision::Bf16), isa.level() != Level::Avx512Bf16, "{isa}");
        }
    }
}
