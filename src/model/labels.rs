//! Names of the classes: one line each, in the order of their index.
use crate::model::network::Description;
use std::path::Path;

/// Name of the labels file beside a weights file.
pub const FILE_NAME: &str = "imagenet_classes.txt";

/// Largest labels file that is read, bytes.
const BYTES_MAX: u64 = 1 << 20;

/// The names that are part of the executable.
const EMBEDDED: &str = include_str!("../../weights/imagenet_classes.txt");

/// What can be wrong with a labels file.
#[derive(Debug, thiserror::Error)]
pub enum LabelsError {
    /// The file is there and cannot be read.
    #[error("cannot read the class names {path}: {error}; remove the file to use the embedded names")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The file has too few or too many names.
    #[error(
        "{path} has {found} class names, {network} has {expected} classes; write one a line into {FILE_NAME} \
         beside the weights, or remove the file if the classes are ImageNet's"
    )]
    Count {
        /// The file.
        path: String,
        /// Lines in the file.
        found: usize,
        /// The network.
        network: &'static str,
        /// Its classes.
        expected: usize,
    },
}

/// The names beside a weights file, or the embedded ones where there is no such file.
pub fn load(network: &Description, weights: Option<&Path>) -> Result<Vec<String>, LabelsError> {
    let beside = weights.map(|file| file.with_file_name(FILE_NAME)).filter(|file| file.exists());
    let Some(file) = beside else { return parse(network, EMBEDDED, "the embedded list") };
    let path = file.display().to_string();
    let unreadable = |error| LabelsError::Unreadable { path: path.clone(), error };
    let length = std::fs::metadata(&file).map_err(unreadable)?.len();
    if length > BYTES_MAX {
        let error = std::io::Error::other(format!("it is larger than {BYTES_MAX} bytes"));
        return Err(unreadable(error));
    }
    parse(network, &std::fs::read_to_string(&file).map_err(unreadable)?, &path)
}

fn parse(network: &Description, text: &str, path: &str) -> Result<Vec<String>, LabelsError> {
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if names.len() != network.classes {
        let (path, found) = (path.to_owned(), names.len());
        return Err(LabelsError::Count { path, found, network: network.name, expected: network.classes });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::MOBILENET_V2;

    #[test]
    fn names_come_from_beside_the_weights_or_from_the_executable() {
        let network = MOBILENET_V2.description();
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("w.safetensors");
        let embedded = load(&network, Some(&weights)).unwrap();
        assert_eq!(
            (embedded.len(), embedded[1].as_str(), embedded[999].as_str()),
            (1000, "goldfish", "toilet tissue")
        );
        let file = folder.path().join(FILE_NAME);
        std::fs::write(&file, "one\ntwo\n").unwrap();
        let error = load(&network, Some(&weights)).unwrap_err().to_string();
        assert!(error.contains("has 2 class names, mobilenet_v2 has 1000 classes"), "{error}");
        std::fs::write(&file, "mine\n".repeat(1000)).unwrap();
        assert_eq!(load(&network, Some(&weights)).unwrap()[7], "mine");
        assert_eq!(load(&network, None).unwrap()[1], "goldfish");
    }
}
