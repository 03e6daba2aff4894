//! Files that a mode reads and writes on its user's behalf.
use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::path::Path;

/// Reads a text of at most `bytes_max`; `what` names it in errors.
pub fn read_text(what: &str, path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let file = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read the {what} {file}"))?.len();
    ensure!(size <= bytes_max, "the {what} {file} is larger than {bytes_max} bytes");
    std::fs::read_to_string(path).with_context(|| format!("cannot read the {what} {file}"))
}

/// Writes a file by way of a temporary one beside it, so that it is there whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).context("the output is no file name")?;
    // The process's number keeps two runs apart.
    let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = write_through(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
        .with_context(|| format!("cannot write {}; is there room, and may this user write?", path.display()))
}

fn write_through(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_atomically(&folder.path().join("absent/w"), b"three").unwrap_err();
        assert!(format!("{error:#}").contains("absent/w"), "{error:#}");
    }

    #[test]
    fn a_text_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.txt");
        let error = read_text("workload", &path, 4).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the workload"), "{error}");
        std::fs::write(&path, "5\n6\n").unwrap();
        assert_eq!(read_text("workload", &path, 4).unwrap(), "5\n6\n");
        let error = read_text("workload", &path, 3).unwrap_err().to_string();
        assert!(error.ends_with("is larger than 3 bytes"), "{error}");
    }
}
