//! The photos that requests carry, read once.
//!
//! **Invariant**: at least one photo, none empty, in the order of their names, so that two runs send the same.
use anyhow::Context as _;
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// File extensions of the images that a model server takes, with their media types.
const MEDIA_TYPES: [(&str, &str); 6] = [
    ("bmp", "image/bmp"),
    ("gif", "image/gif"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("png", "image/png"),
    ("webp", "image/webp"),
];

/// One photo as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Photo {
    /// The file's bytes.
    pub(crate) bytes: Bytes,
    /// Its media type, from the extension.
    pub(crate) media_type: &'static str,
}

/// Reads the photos directly in `folder`, together at most `bytes_max`.
pub(crate) fn read(folder: &Path, bytes_max: u64) -> anyhow::Result<Vec<Photo>> {
    let advice = "name a folder of BMP, GIF, JPEG, PNG or WebP files with --photos DIR";
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the photos in {}: {advice}", folder.display()))?;
    let mut files: Vec<(PathBuf, &'static str)> = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if let Some(media_type) = media_type(&path).filter(|_| path.is_file()) {
            files.push((path, media_type));
        }
    }
    anyhow::ensure!(!files.is_empty(), "no photo in {}: {advice}", folder.display());
    files.sort();
    let mut photos = Vec::with_capacity(files.len());
    let mut bytes_total = 0;
    for (path, media_type) in files {
        let size = std::fs::metadata(&path).map(|metadata| metadata.len());
        bytes_total += size.with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::ensure!(
            bytes_total <= bytes_max,
            "the photos in {} are larger than {bytes_max} bytes together: use fewer, or raise --photos-bytes-max",
            folder.display()
        );
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::ensure!(!bytes.is_empty(), "{} is empty: remove it", path.display());
        photos.push(Photo { bytes: bytes.into(), media_type });
    }
    Ok(photos)
}

fn media_type(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    MEDIA_TYPES.iter().find(|(known, _)| *known == extension).map(|(_, media_type)| *media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_come_in_the_order_of_their_names_and_other_files_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("b.JPG", "bee"), ("a.png", "ay"), ("notes.txt", "no"), ("c", "no")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        std::fs::create_dir(folder.path().join("folder.png")).unwrap();
        let photos = read(folder.path(), 5).unwrap();
        let seen: Vec<_> = photos.iter().map(|photo| (&photo.bytes[..], photo.media_type)).collect();
        assert_eq!(seen, [(&b"ay"[..], "image/png"), (&b"bee"[..], "image/jpeg")]);
        let error = read(folder.path(), 4).unwrap_err().to_string();
        assert!(error.contains("larger than 4 bytes") && error.contains("--photos-bytes-max"), "{error}");
    }

    #[test]
    fn a_folder_that_is_missing_or_has_no_photo_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing")] {
            let error = read(&path, 100).unwrap_err().to_string();
            assert!(error.contains("--photos DIR") && error.contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::write(folder.path().join("a.jpg"), "").unwrap();
        assert!(read(folder.path(), 100).unwrap_err().to_string().contains("is empty"));
    }
}
