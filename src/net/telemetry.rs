//! Logging to standard error, as text for people or JSON for machines.
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Logging flags, valid before or after the mode's name.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to log: a level (error, warn, info, debug, trace) or a filter such as `elastic=debug,hyper=info`
    #[arg(
        long,
        global = true,
        help_heading = "Logging",
        env = "ELASTIC_LOG",
        default_value = "info,kube_client=off,hickory=off",
        value_name = "FILTER"
    )]
    pub log: String,
    /// How to write log lines to standard error
    #[arg(
        long,
        global = true,
        help_heading = "Logging",
        env = "ELASTIC_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: Format,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// One line for a person
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging for the whole process. A filter that does not parse falls back to `info`, and says so.
pub fn start(args: &Args) {
    use std::io::IsTerminal as _;
    let (filter, complaint) = match EnvFilter::try_new(&args.log) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start (several modes in one test process) keeps the first subscriber.
    let _ = match args.log_format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Some(error) = complaint {
        tracing::warn!(filter = args.log, %error, "log filter does not parse; using info");
    }
}
