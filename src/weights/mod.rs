//! Weights: fetch them, convert them, list what is there.
//!
//! **Invariant**: a weights file appears whole and checked, or not at all.
pub mod checkpoint;
pub mod convert;
#[cfg(test)]
mod equivalence;
mod fetch;
pub mod pickle;
mod quantize;
#[cfg(test)]
mod sample;

use crate::model::network::{EFFICIENTNET_LITE0, NETWORKS, Network};
use crate::model::{self, network_name, weights};
use crate::net::files::write_atomically;
use anyhow::Context as _;
use candle_core::DType;
use clap::{Subcommand, ValueEnum};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put `mobilenet_v2.safetensors` in place: from a folder, else from torchvision's public checkpoint
    Fetch(fetch::Args),
    /// Make a weights file from a PyTorch checkpoint (.pth) or a safetensors file, folding batch norm
    Convert(ConvertArgs),
    /// Make an int8 weights file from a float one, calibrated on a folder of photos
    Quantize(quantize::Args),
    /// List the networks and their weights files
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// Checkpoint or safetensors file to read
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Safetensors file to write; one that is there is replaced
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Network that IN must hold; without it, the network is recognised by its tensors
    #[arg(long, env = "ELASTIC_CONVERT_MODEL", value_name = "NAME", value_parser = network_name())]
    model: Option<String>,
    /// Type of the values written
    #[arg(long, env = "ELASTIC_CONVERT_DTYPE", value_name = "TYPE", default_value = "f32")]
    dtype: Type,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    /// 32-bit floating point: exact
    F32,
    /// 16-bit floating point: half the size, three significant digits
    F16,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Folder of the weights files
    #[arg(long, env = "ELASTIC_WEIGHTS_DIR", default_value = "weights", value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the mode.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Fetch(args) => fetch::run(args).await?,
        Command::Convert(args) => tokio::task::spawn_blocking(move || convert_file(&args)).await??,
        Command::Quantize(args) => tokio::task::spawn_blocking(move || quantize::run(&args)).await??,
        Command::List(args) => std::io::stdout().write_all(list(&args).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn convert_file(args: &ConvertArgs) -> anyhow::Result<()> {
    let dtype = match args.dtype {
        Type::F32 => DType::F32,
        Type::F16 => DType::F16,
    };
    let model = args.model.as_deref().and_then(Network::named);
    let (network, written) = weights::read_file(&args.input)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| convert::convert(&bytes, model, dtype))
        .with_context(|| format!("cannot convert {}", args.input.display()))?;
    write_atomically(&args.output, &written)?;
    let (output, bytes) = (args.output.display(), written.len());
    tracing::info!(model = network.name, %output, bytes, sha256 = convert::sha256(&written), "weights written");
    Ok(())
}

/// A table of the networks and the state of their files.
fn list(args: &ListArgs) -> String {
    let mut table = format!("{:<20}{:>6}  {:<9}{}\n", "network", "input", "embedded", "weights file");
    for network in NETWORKS {
        let file = args.dir.join(network.file_name());
        let state = match model::check_file(network, &file) {
            Ok(()) => format!("{} (whole)", file.display()),
            Err(_) if !file.exists() => format!("{} (not there)", file.display()),
            Err(error) => format!("{} ({error})", file.display()),
        };
        let embedded = match model::embedded(network) {
            Some(_) => "yes",
            None if network.name == EFFICIENTNET_LITE0.name => "int8",
            None => "no",
        };
        let size = network.input_size();
        let _ = writeln!(table, "{:<20}{size:>6}  {embedded:<9}{state}", network.name);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::MOBILENET_V2;

    #[test]
    fn the_list_tells_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let args = ListArgs { dir: folder.path().into() };
        let lines = |table: String| table.lines().map(str::to_owned).collect::<Vec<_>>();
        let before = lines(list(&args));
        assert!(before[1].starts_with("mobilenet_v2") && before[1].ends_with("(not there)"), "{before:?}");
        assert!(before[2].contains("224  yes"), "{before:?}");
        let checkpoint = folder.path().join("a.pth");
        std::fs::write(&checkpoint, sample::pickles(&sample::unfolded(&MOBILENET_V2, 5))).unwrap();
        let output = folder.path().join("mobilenet_v2.safetensors");
        let convert =
            ConvertArgs { input: checkpoint, output: output.clone(), model: None, dtype: Type::F16 };
        convert_file(&convert).unwrap();
        assert!(list(&args).contains("mobilenet_v2.safetensors (whole)"));
        std::fs::write(output, "damaged").unwrap();
        assert!(list(&args).contains("not a whole safetensors file"));
    }
}
