//! Not built yet.
use std::process::ExitCode;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the mode.
pub async fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
