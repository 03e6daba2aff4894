//! Labels image files from the command line.
//!
//! **Invariant**: every file named gets an answer, in the order given: its classes, or why there are none.
use crate::model::{Model, ModelArgs, ModelSession, Prediction};
use anyhow::ensure;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Image files (JPEG, PNG, WebP, GIF, BMP); `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Classes to show for each file, most probable first
    #[arg(
        long,
        short = 'k',
        env = "ELASTIC_CLASSIFY_TOP_K",
        default_value_t = 5,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    top_k: u16,
    /// Print a JSON array instead of a table
    #[arg(long, env = "ELASTIC_CLASSIFY_JSON")]
    json: bool,
    /// Largest file read, bytes
    #[arg(long, env = "ELASTIC_CLASSIFY_BYTES_MAX", default_value_t = 20_000_000, value_name = "BYTES")]
    bytes_max: u64,
    /// The network.
    #[command(flatten)]
    model: ModelArgs,
}

/// What is said of one file.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Answer {
    Labelled { file: String, model: &'static str, predictions: Vec<Prediction> },
    Failed { file: String, error: String },
}

/// Runs the mode. The exit code is 1 where a file could not be labelled.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let answers = tokio::task::spawn_blocking({
        let args = args.clone();
        move || label_all(&args)
    });
    let answers = answers.await??;
    let text =
        if args.json { format!("{}\n", serde_json::to_string_pretty(&answers)?) } else { table(&answers) };
    std::io::stdout().write_all(text.as_bytes())?;
    let mut code = ExitCode::SUCCESS;
    for answer in &answers {
        if let Answer::Failed { file, error } = answer {
            code = ExitCode::FAILURE;
            // JSON carries the error itself.
            if !args.json {
                eprintln!("elastic: {file}: {error}");
            }
        }
    }
    Ok(code)
}

fn label_all(args: &Args) -> anyhow::Result<Vec<Answer>> {
    let model = Model::load(&args.model)?;
    let mut session = model.session(1)?;
    let mut label = |path: &PathBuf| {
        let file = path.display().to_string();
        match read(path, args.bytes_max)
            .and_then(|bytes| label(&model, &mut session, &bytes, args.top_k.into()))
        {
            Ok(predictions) => Answer::Labelled { file, model: model.name(), predictions },
            Err(error) => Answer::Failed { file, error: format!("{error:#}") },
        }
    };
    Ok(args.files.iter().map(&mut label).collect())
}

fn label(
    model: &Model,
    session: &mut ModelSession,
    bytes: &[u8],
    top_k: usize,
) -> anyhow::Result<Vec<Prediction>> {
    let logits = session.logits(&model.decode(bytes)?)?;
    Ok(model.top_k(&logits[0], top_k))
}

/// Reads a file, or standard input for `-`, of at most `bytes_max` bytes.
fn read(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        return read_bounded(std::io::stdin().lock(), bytes_max);
    }
    let file = std::fs::File::open(path)?;
    ensure!(!file.metadata()?.is_dir(), "this is a folder; name the image files in it");
    read_bounded(file, bytes_max)
}

fn read_bounded(reader: impl Read, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= bytes_max,
        "the file is larger than {bytes_max} bytes; --bytes-max allows more"
    );
    Ok(bytes)
}

/// An aligned table: the file's name stands beside its first class only.
fn table(answers: &[Answer]) -> String {
    let labelled = || {
        answers.iter().filter_map(|answer| match answer {
            Answer::Labelled { file, predictions, .. } => Some((file, predictions)),
            Answer::Failed { .. } => None,
        })
    };
    if labelled().next().is_none() {
        return String::new();
    }
    let width = labelled().map(|(file, _)| file.chars().count()).chain([4]).max().unwrap_or(4);
    let mut text = format!("{:<width$}  rank  probability  label\n", "file");
    for (file, predictions) in labelled() {
        for (rank, prediction) in predictions.iter().enumerate() {
            let name = if rank == 0 { file.as_str() } else { "" };
            let percent = f64::from(prediction.probability) * 100.0;
            let _ = writeln!(text, "{name:<width$}  {:>4}  {percent:>9.2} %  {}", rank + 1, prediction.label);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(file: &str) -> Answer {
        let prediction =
            |label: &str, index, probability| Prediction { label: label.into(), index, probability };
        let predictions = vec![prediction("goldfish", 1, 0.75), prediction("tench", 0, 0.0625)];
        Answer::Labelled { file: file.to_owned(), model: "efficientnet_lite0", predictions }
    }

    fn failed() -> Answer {
        Answer::Failed { file: "b.txt".to_owned(), error: "it is text".to_owned() }
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table(&[labelled("a.jpg"), failed(), labelled("longer.jpg")]);
        let expected = "\
file        rank  probability  label
a.jpg          1      75.00 %  goldfish
               2       6.25 %  tench
longer.jpg     1      75.00 %  goldfish
               2       6.25 %  tench
";
        assert_eq!(text, expected);
        assert_eq!(table(&[failed()]), "");
    }

    #[test]
    fn the_json_has_exactly_its_keys() {
        let json = serde_json::to_value([labelled("a.jpg"), failed()]).unwrap();
        let expected = serde_json::json!([
            {"file": "a.jpg", "model": "efficientnet_lite0", "predictions": [
                {"label": "goldfish", "index": 1, "probability": 0.75},
                {"label": "tench", "index": 0, "probability": 0.0625},
            ]},
            {"file": "b.txt", "error": "it is text"},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn reading_is_bounded_and_folders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), 10).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
        assert!(read(&folder.path().join("absent"), 10).is_err());
        assert_eq!(read_bounded(&b"0123456789"[..], 10).unwrap().len(), 10);
        let error = read_bounded(std::io::repeat(0), 10).unwrap_err().to_string();
        assert!(error.contains("larger than 10 bytes; --bytes-max"), "{error}");
    }
}
