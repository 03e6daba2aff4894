//! Puts MobileNetV2's weights in place: copied from a folder that has them, else downloaded and converted.
//!
//! **Invariant**: a download is used only if it is whole, within its limits, and has the SHA-256 expected.
use crate::model::network::{MOBILENET_V2, Network};
use crate::model::weights::read_file;
use crate::model::{check_file, weights};
use crate::net::files::write_atomically;
use crate::net::{client, serve};
use crate::weights::convert;
use anyhow::{Context as _, bail, ensure};
use candle_core::DType;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The network that is fetched; the other one is embedded.
const NETWORK: &Network = &MOBILENET_V2;

/// What to say when there is no way to the weights.
const WITHOUT: &str = "elastic runs without them on the embedded efficientnet_lite0; to try again later, run \
    `elastic weights fetch`, or give a folder that has mobilenet_v2.safetensors with --from";

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to put the weights in; made if it is not there
    #[arg(long, env = "ELASTIC_FETCH_DIR", default_value = "weights", value_name = "DIR")]
    dir: PathBuf,
    /// Folder that may have `mobilenet_v2.safetensors`; where it does, the file is copied and nothing downloaded
    #[arg(long, env = "ELASTIC_WEIGHTS_DIR", value_name = "DIR")]
    from: Option<PathBuf>,
    /// Checkpoint to download
    #[arg(long, env = "ELASTIC_FETCH_URL", default_value = NETWORK.origin.source, value_name = "URL")]
    url: String,
    /// First hexadecimal digits of the checkpoint's SHA-256; without it, those in its file name (`…-b0353104.pth`)
    #[arg(long, env = "ELASTIC_FETCH_SHA256_PREFIX", value_name = "HEX")]
    sha256_prefix: Option<String>,
    /// Longest time the download may take
    #[arg(
        long,
        env = "ELASTIC_FETCH_TIMEOUT",
        default_value = "10m",
        value_name = "TIME",
        value_parser = serve::duration
    )]
    timeout: Duration,
    /// Largest download accepted, bytes
    #[arg(
        long,
        env = "ELASTIC_FETCH_BYTES_MAX",
        default_value_t = 64 << 20,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(1..=weights::FILE_BYTES_MAX)
    )]
    bytes_max: u64,
    /// Fetch also where good weights are there already
    #[arg(long, env = "ELASTIC_FETCH_FORCE")]
    force: bool,
}

/// Runs the mode.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let output = args.dir.join(NETWORK.file_name());
    if !args.force && output.exists() {
        match check_file(NETWORK, &output) {
            Ok(()) => {
                tracing::info!(weights = %output.display(), "the weights are there already");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%error, "the weights that are there cannot be used, fetching them again");
            }
        }
    }
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make the folder {}", args.dir.display()))?;
    if let Some(folder) = &args.from {
        if copy(folder, &output)? {
            return Ok(());
        }
        tracing::warn!(folder = %folder.display(), "the folder has no other copy of the weights, downloading them");
    }
    let prefix = expected_prefix(&args)?;
    let bytes = download(&args).await.with_context(|| format!("cannot download {}; {WITHOUT}", args.url))?;
    let sha256 = convert::sha256(&bytes);
    ensure!(
        sha256.starts_with(&prefix),
        "the download's SHA-256 is {sha256}, expected one that starts with {prefix}: it was damaged on the way, \
         or it is another file; nothing was written; {WITHOUT}"
    );
    let converted = move || convert::convert(&bytes, Some(NETWORK), DType::F32);
    let (_, converted) =
        tokio::task::spawn_blocking(converted).await?.context("cannot convert the download")?;
    write_atomically(&output, &converted)?;
    tracing::info!(weights = %output.display(), source = args.url, sha256, "weights fetched");
    Ok(())
}

/// Copies the weights from `folder` if it has them; false where it does not.
fn copy(folder: &Path, output: &Path) -> anyhow::Result<bool> {
    let source = folder.join(NETWORK.file_name());
    if !source.exists() || same_file(&source, output) {
        return Ok(false);
    }
    let bytes = read_file(&source)?;
    weights::parse(&bytes)
        .and_then(|tensors| weights::check(NETWORK, &tensors))
        .with_context(|| format!("cannot use {}", source.display()))?;
    write_atomically(output, &bytes)?;
    tracing::info!(weights = %output.display(), source = %source.display(), "weights copied");
    Ok(true)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The hexadecimal digits that the download's SHA-256 must start with, at least eight.
fn expected_prefix(args: &Args) -> anyhow::Result<String> {
    let file_name = args.url.rsplit('/').next().unwrap_or_default();
    let in_name = || file_name.split_once('.')?.0.rsplit_once('-').map(|(_, digits)| digits);
    let prefix = match args.sha256_prefix.as_deref().or_else(in_name) {
        Some(prefix) if prefix.len() >= 8 => prefix.to_lowercase(),
        _ => bail!(
            "the file name {file_name:?} has no SHA-256 prefix of 8 digits or more, as in name-b0353104.pth; \
             give one with --sha256-prefix"
        ),
    };
    ensure!(
        prefix.len() <= 64 && prefix.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "{prefix:?} is not the start of a SHA-256; give one with --sha256-prefix"
    );
    Ok(prefix)
}

/// Downloads the whole checkpoint into memory, within the time and the size allowed.
async fn download(args: &Args) -> anyhow::Result<Vec<u8>> {
    let client = client::of_the_web(&args.url, args.timeout)?;
    let mut response = client.get(&args.url).send().await?.error_for_status()?;
    let length = response.content_length();
    let too_large = || anyhow::anyhow!("it is larger than {} bytes; --bytes-max allows more", args.bytes_max);
    if length.is_some_and(|length| length > args.bytes_max) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut progress = Progress::new(length);
    while let Some(chunk) = response.chunk().await.context("the download broke off")? {
        if (bytes.len() + chunk.len()) as u64 > args.bytes_max {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
        progress.show(bytes.len() as u64);
    }
    progress.end();
    Ok(bytes)
}

/// A line on standard error that grows, for a person who waits.
struct Progress {
    length: Option<u64>,
    shown_mib: u64,
    on: bool,
}

impl Progress {
    fn new(length: Option<u64>) -> Self {
        Self { length, shown_mib: u64::MAX, on: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, bytes: u64) {
        let mib = bytes >> 20;
        if !self.on || mib == self.shown_mib {
            return;
        }
        self.shown_mib = mib;
        let of = self.length.map(|length| format!(" of {}", length >> 20)).unwrap_or_default();
        let _ = write!(std::io::stderr(), "\rdownloaded {mib}{of} MiB");
    }

    fn end(&self) {
        if self.on {
            let _ = writeln!(std::io::stderr());
        }
    }
}

#[cfg(test)]
mod tests;
