//! The photos of a folder, decoded as the network wants them.
//!
//! **Invariant**: at least one photo, in the order of their names; none beyond the limit is opened.
use crate::model::image;
use crate::model::network::Network;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File extensions of the photos that are looked at.
const EXTENSIONS: [&str; 6] = ["bmp", "gif", "jpeg", "jpg", "png", "webp"];

/// Largest photo read, bytes.
const PHOTO_BYTES_MAX: u64 = 64 << 20;

/// Largest table of labels read, bytes.
const LABELS_BYTES_MAX: u64 = 16 << 20;

/// How much is read.
pub(super) struct Limits {
    /// Photos from one folder.
    pub(super) photos_max: usize,
    /// Pixels of one photo.
    pub(super) pixels_max: u64,
}

/// One decoded photo.
pub(super) struct Photo {
    /// File name.
    pub(super) name: String,
    /// `[size, size, 3]` bytes, red first.
    pub(super) pixels: Vec<u8>,
    /// Classes that are right, by index; empty where nobody said.
    pub(super) accepted: Vec<usize>,
}

/// Decodes the photos directly in `folder`. Those that cannot be decoded are named in the log and skipped.
pub(super) fn read(folder: &Path, network: &Network, limits: &Limits) -> anyhow::Result<Vec<Photo>> {
    let advice = "name a folder of BMP, GIF, JPEG, PNG or WebP files";
    let files =
        list(folder).with_context(|| format!("cannot read the photos in {}: {advice}", folder.display()))?;
    let (found, labels) = (files.len(), labels(folder)?);
    let (mut photos, mut skipped) = (Vec::new(), 0);
    for file in files.into_iter().take(limits.photos_max) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match pixels(&file, network, limits.pixels_max) {
            Ok(pixels) => {
                let accepted = labels.get(&name).cloned().unwrap_or_default();
                photos.push(Photo { name, pixels, accepted });
            }
            Err(error) => {
                skipped += 1;
                tracing::warn!(file = %file.display(), error = format!("{error:#}"), "photo skipped");
            }
        }
    }
    let left_out = found.saturating_sub(limits.photos_max);
    tracing::info!(folder = %folder.display(), photos = photos.len(), skipped, left_out, "photos read");
    ensure!(
        !photos.is_empty(),
        "no photo in {} could be read ({found} files with an image's name, {skipped} skipped): {advice}",
        folder.display()
    );
    Ok(photos)
}

/// Image files directly in `folder`, by name.
fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&&*extension)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The classes accepted for each file in the folder's `labels.tsv`; none without such a file. The first line
/// names the columns.
fn labels(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<usize>>> {
    let path = folder.join("labels.tsv");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let context = || format!("cannot read {}", path.display());
    let text = String::from_utf8(bounded(&path, LABELS_BYTES_MAX)?).with_context(context)?;
    let line = |line: &str| -> anyhow::Result<(String, Vec<usize>)> {
        let mut columns = line.split('\t');
        let (file, classes) =
            columns.next().zip(columns.next()).context("a line has fewer than two columns")?;
        let classes = classes.split(',').map(|index| index.trim().parse());
        let classes = classes.collect::<Result<_, _>>().with_context(|| format!("classes of {file}"))?;
        Ok((file.to_owned(), classes))
    };
    text.lines()
        .skip(1)
        .filter(|text| !text.is_empty())
        .map(line)
        .collect::<Result<_, _>>()
        .with_context(context)
}

fn bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= bytes_max, "{} is larger than {bytes_max} bytes", path.display());
    Ok(bytes)
}

/// The bytes that the network sees of a photo.
fn pixels(file: &Path, network: &Network, pixels_max: u64) -> anyhow::Result<Vec<u8>> {
    Ok(image::pixels(&bounded(file, PHOTO_BYTES_MAX)?, &network.preprocessing, pixels_max)?)
}
