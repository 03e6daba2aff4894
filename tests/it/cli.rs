//! The command line as a whole.
use clap::{CommandFactory as _, Parser as _};
use elastic::cli::Cli;

#[test]
fn every_mode_s_flags_fit_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_help_and_an_environment_variable() {
    for mode in Cli::command().get_subcommands() {
        for flag in mode.get_arguments().filter(|flag| flag.get_long().is_some()) {
            let name = format!("{} --{}", mode.get_name(), flag.get_long().unwrap());
            if ["help", "version"].contains(&flag.get_long().unwrap()) {
                continue;
            }
            assert!(flag.get_help().is_some(), "{name} has no help");
            // How a child is run is for its parent to say, and a verb's own flags are not settings.
            let exempt = ["child", "json", "quiet", "force", "top-k"].contains(&flag.get_long().unwrap());
            let variable = flag.get_env().map(|variable| variable.to_string_lossy().into_owned());
            let named = variable.as_deref().is_some_and(|variable| variable.starts_with("ELASTIC_"));
            assert!(exempt || named, "{name} has no ELASTIC_ variable but {variable:?}");
        }
    }
}

#[test]
fn wrong_flags_are_refused_with_a_hint() {
    let error = Cli::try_parse_from(["elastic", "dispatch", "--prot", "1"]).unwrap_err().to_string();
    assert!(error.contains("--port"), "{error}");
    let error = Cli::try_parse_from(["elastic", "dispatch", "--timeout", "5"]).unwrap_err().to_string();
    assert!(error.contains("as in 250ms"), "{error}");
}
