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
        .and_then(|runtime| {
            let outcome = runtime.block_on(async { cli.command.run(Shutdown::on_signals()?).await });
            // All that matters has been waited for. What else holds a thread, as the C library does that kube's client
            // asks for names, does not hold the end.
            runtime.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|error| {
        eprintln!("elastic: {error:#}");
        ExitCode::FAILURE
    })
}
