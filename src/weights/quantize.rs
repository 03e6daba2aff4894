//! Float weights file in, integer one out, calibrated on a folder of photos.
//!
//! **Invariant**: the output depends on the input's bytes, the photos and the options alone.
mod photos;
mod verify;

use crate::model::kernels::isa::Isa;
use crate::model::network::Network;
use crate::model::quantise::Quantised;
use crate::model::quantise::file;
use crate::model::quantise::float::Float;
use crate::model::quantise::statistics::Statistics;
use crate::model::weights::{self, Tensors, WeightsError};
use crate::model::{ModelArgs, SessionSize, forward, network_name};
use crate::net::files::write_atomically;
use crate::weights::convert;
use anyhow::{Context as _, bail};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Float weights to read: a safetensors file with batch norm folded
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Integer weights to write, by custom `NAME.int8.safetensors`; a file that is there is replaced
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Folder of photos like those to be classified, on which the ranges of the activations are observed: 100 do
    #[arg(long, env = "ELASTIC_QUANTIZE_CALIBRATE", value_name = "DIR")]
    calibrate: PathBuf,
    /// Folder of photos on which the integers are compared with the floats afterwards; `labels.tsv` in it
    /// (file, tab, accepted classes by index with commas between) adds how many labels each gets right
    #[arg(long, env = "ELASTIC_QUANTIZE_VERIFY", value_name = "DIR")]
    verify: Vec<PathBuf>,
    /// Network that IN must hold; without it, the network is recognised by its tensors
    #[arg(long, env = "ELASTIC_QUANTIZE_MODEL", value_name = "NAME", value_parser = network_name())]
    model: Option<String>,
    /// Most photos taken from a folder, the first by name
    #[arg(
        long,
        env = "ELASTIC_QUANTIZE_PHOTOS_MAX",
        default_value_t = 512,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    photos_max: u16,
    /// Most pixels a photo may have, in millions; larger ones are skipped
    #[arg(
        long,
        env = "ELASTIC_PIXELS_MAX",
        default_value_t = ModelArgs::default().pixels_max,
        value_name = "MEGAPIXELS",
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pixels_max: u32,
}

/// Runs the mode: writes the file, then tells on standard output how it does on the photos of `--verify`.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let report = quantize(args)?;
    Ok(std::io::stdout().write_all(report.as_bytes())?)
}

/// Writes the file; returns what is to be told.
fn quantize(args: &Args) -> anyhow::Result<String> {
    let bytes = weights::read_file(&args.input)?;
    let (network, tensors) =
        source(args, &bytes).with_context(|| format!("cannot quantize {}", args.input.display()))?;
    let float = Float::new(network, &tensors)?;
    let limits = photos::Limits {
        photos_max: args.photos_max.into(),
        pixels_max: u64::from(args.pixels_max) * 1_000_000,
    };
    let photos = photos::read(&args.calibrate, network, &limits)?;
    let mut statistics = Statistics::new(network);
    let mut progress = Progress::new("observed", photos.len());
    for photo in &photos {
        float.logits(&photo.pixels, &mut |activation| statistics.observe(activation));
        progress.step();
    }
    let quantised = Quantised::new(network, &tensors, &statistics)?;
    let written = file::serialize(&quantised, &metadata(&bytes, photos.len()));
    write_atomically(&args.output, &written)?;
    let (output, bytes, photos) = (args.output.display(), written.len(), photos.len());
    tracing::info!(model = network.name, %output, bytes, photos, sha256 = convert::sha256(&written), "integers written");
    let mut report = String::new();
    // What serves, which equals the reference bit for bit and takes a hundredth of its time.
    let side = network.input_size();
    let size = SessionSize { images_max: 1, height: side, width: side, threads: 1 };
    let mut session = forward::int8(&quantised, Isa::best())?.session(size)?;
    for folder in &args.verify {
        let photos = photos::read(folder, network, &limits)?;
        let mut progress = Progress::new("compared", photos.len());
        let mut score = verify::Score::default();
        for photo in &photos {
            let expected = float.logits(&photo.pixels, &mut |_| ());
            let image = Tensor::from_slice(&photo.pixels, (1, side, side, 3), &Device::Cpu)?;
            score.add(photo, &expected, session.logits(&image)?);
            progress.step();
        }
        report += &score.report(folder);
    }
    Ok(report)
}

/// The network of a weights file and its checked tensors.
fn source<'a>(args: &Args, bytes: &'a [u8]) -> anyhow::Result<(&'static Network, Tensors<'a>)> {
    if file::is_quantised(bytes) {
        bail!("the file holds integers already; give the float weights that it was made from");
    }
    let tensors = weights::parse(bytes)?;
    let found = weights::recognise(&tensors)?;
    let network = args.model.as_deref().and_then(Network::named).unwrap_or(found);
    if network.name != found.name {
        bail!(WeightsError::Other { expected: network.name, found: found.name });
    }
    weights::check(network, &tensors)?;
    Ok((network, tensors))
}

/// What a file says of its origin. The licence of float weights that name one is that of their integers.
fn metadata(source: &[u8], photos: usize) -> BTreeMap<String, String> {
    let about = safetensors::SafeTensors::read_metadata(source)
        .ok()
        .and_then(|(_, header)| header.metadata().clone())
        .unwrap_or_default();
    let inherited = ["license", "source"].into_iter().filter_map(|key| Some((key, about.get(key)?.clone())));
    let own = [
        ("calibration_photos", photos.to_string()),
        ("elastic_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("float_sha256", convert::sha256(source)),
    ];
    inherited.chain(own).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A line on standard error that counts, for a person who waits.
struct Progress {
    verb: &'static str,
    done: usize,
    all: usize,
    on: bool,
}

impl Progress {
    fn new(verb: &'static str, all: usize) -> Self {
        Self { verb, done: 0, all, on: std::io::stderr().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.on {
            let end = if self.done == self.all { "\n" } else { "" };
            let _ = write!(std::io::stderr(), "\r{} {} of {} photos{end}", self.verb, self.done, self.all);
        }
    }
}

#[cfg(test)]
mod tests;
