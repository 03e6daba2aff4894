//! The `elastic` executable: reads the arguments, starts logging and hands over to the chosen mode.
use clap::Parser as _;
use elastic::cli::Cli;
use elastic::net::{shutdown::Shutdown, telemetry};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start(&cli.log);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(async { cli.command.run(Shutdown::on_signals()?).await }));
    outcome.unwrap_or_else(|error| {
        eprintln!("elastic: {error:#}");
        ExitCode::FAILURE
    })
}
