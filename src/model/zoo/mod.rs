//! Other networks: candle-transformers' image classifiers, for users who have one already.
//!
//! They run on candle's own kernels, many times slower than the two networks of [`crate::model::network`], from
//! a safetensors file as timm or candle publish it: batch norm unfolded, as many classes as its last layer has.
//! A build has them with the Cargo feature `zoo`; without it, only their names are known, so that `--model` can
//! say what is missing.
//!
//! **Invariant**: a network from here is only built from a file that holds each of its tensors, and no other.
use crate::model::ModelError;
use crate::model::network::NETWORKS;
use clap::builder::{PossibleValue, TypedValueParser};

#[cfg(feature = "zoo")]
mod catalogue;
#[cfg(feature = "zoo")]
mod classifier;
#[cfg(feature = "zoo")]
mod names;
#[cfg(feature = "zoo")]
mod tensors;

#[cfg(feature = "zoo")]
pub use classifier::load;
#[cfg(feature = "zoo")]
pub use tensors::{FILE_BYTES_MAX, TensorsError};

/// The names of the networks here, by family.
pub const NAMES: [&str; 52] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "efficientnet-b5",
    "efficientnet-b6",
    "efficientnet-b7",
    "mobilenetv4-conv-small",
    "mobilenetv4-conv-medium",
    "mobilenetv4-conv-large",
    "mobilenetv4-hybrid-medium",
    "mobilenetv4-hybrid-large",
    "mobileone-s1",
    "mobileone-s2",
    "mobileone-s3",
    "mobileone-s4",
    "convnext-atto",
    "convnext-femto",
    "convnext-pico",
    "convnext-nano",
    "convnext-tiny",
    "convnext-small",
    "convnext-base",
    "convnext-large",
    "convnextv2-atto",
    "convnextv2-femto",
    "convnextv2-pico",
    "convnextv2-nano",
    "convnextv2-tiny",
    "convnextv2-base",
    "convnextv2-large",
    "convmixer-1536-20",
    "convmixer-1024-20-ks9-p14",
    "repvgg-a0",
    "repvgg-a1",
    "repvgg-a2",
    "repvgg-b0",
    "repvgg-b1",
    "repvgg-b2",
    "repvgg-b3",
    "repvgg-b1g4",
    "repvgg-b2g4",
    "repvgg-b3g4",
    "fastvit-t8",
    "fastvit-t12",
    "fastvit-s12",
];

/// The name as it stands in [`NAMES`], if there is such a network here; timm's underscores are understood.
#[must_use]
pub fn named(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    NAMES.into_iter().find(|known| *known == name)
}

/// Whether this build can run the network of a name.
fn check(name: &str) -> Result<(), ModelError> {
    match named(name) {
        _ if NETWORKS.iter().any(|network| network.name == name) => Ok(()),
        Some(_) if cfg!(feature = "zoo") => Ok(()),
        Some(name) => Err(ModelError::NeedsZoo(name)),
        None => Err(ModelError::UnknownName(name.to_owned())),
    }
}

/// Every name that `--model` takes in this build, for people.
pub(super) fn known_names() -> String {
    let own = NETWORKS.iter().map(|network| network.name);
    let others = NAMES.into_iter().filter(|_| cfg!(feature = "zoo"));
    own.chain(others).collect::<Vec<_>>().join(", ")
}

/// Parses `--model`: the name of a network that this build can run.
#[derive(Clone)]
pub struct ModelName;

impl TypedValueParser for ModelName {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        let name = value.to_string_lossy().into_owned();
        match check(&name) {
            Ok(()) => Ok(name),
            Err(error) => {
                Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{error}\n"))
                    .with_cmd(command))
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        // Shell completion offers all of them; help shows the two that are always there.
        let own = NETWORKS.iter().map(|network| PossibleValue::new(network.name));
        let others = NAMES.into_iter().filter(|_| cfg!(feature = "zoo"));
        Some(Box::new(own.chain(others.map(|name| PossibleValue::new(name).hide(true)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `--model` makes of a name.
    fn parse(name: &str) -> Result<String, String> {
        let model = clap::Arg::new("model").long("model").value_parser(ModelName);
        let arguments = ["elastic", "--model", name];
        let matches = clap::Command::new("elastic").arg(model).try_get_matches_from(arguments);
        let parsed = matches.map_err(|error| error.to_string())?;
        Ok(parsed.get_one::<String>("model").cloned().unwrap_or_default())
    }

    #[test]
    fn names_are_taken_with_hyphens_or_underscores() {
        assert_eq!(named("mobilenetv4_conv_small"), Some("mobilenetv4-conv-small"));
        assert_eq!(named("mobilenetv4-conv-small"), Some("mobilenetv4-conv-small"));
        assert_eq!(named("mobilenet_v2"), None);
    }

    #[test]
    fn a_name_that_cannot_be_run_is_refused_with_what_can() {
        assert_eq!(parse("mobilenet_v2"), Ok("mobilenet_v2".to_owned()));
        let unknown = parse("resnet19").unwrap_err();
        assert!(
            unknown.contains("\"resnet19\"; the networks are mobilenet_v2, efficientnet_lite0"),
            "{unknown}"
        );
        assert_eq!(unknown.contains("resnet18"), cfg!(feature = "zoo"), "{unknown}");
        match parse("resnet18") {
            Ok(name) => assert!(cfg!(feature = "zoo") && name == "resnet18"),
            Err(error) => assert!(!cfg!(feature = "zoo") && error.contains("--features zoo"), "{error}"),
        }
    }
}
