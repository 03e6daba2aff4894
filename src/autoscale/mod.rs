//! Not built yet.
pub mod kubernetes;

use crate::net::shutdown::Shutdown;
use std::process::ExitCode;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the mode.
pub async fn run(_args: Args, _shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
