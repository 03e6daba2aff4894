//! How long a photo takes to become the network's square: this decoder against the path of every other format.
//!
//! `cargo bench --bench decode -- photo.jpg …`; without files, the photos of the tests. Every round runs each
//! way once, so that what else the machine does falls on all of them alike.
#![allow(clippy::unwrap_used)] // what cannot be measured is reported as it is
use elastic::model::image::{Decoder, pixels, plain};
use elastic::model::network::MOBILENET_V2;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

const ROUNDS: usize = 101;
const PIXELS_MAX: u64 = 50_000_000;

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The files to read: those named, or the photos of the tests.
fn files() -> Vec<PathBuf> {
    // Cargo adds a flag of its own.
    let named: Vec<PathBuf> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").map(PathBuf::from).collect();
    if !named.is_empty() {
        return named;
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/photos");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut photos: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "jpg")).collect();
    photos.sort_unstable();
    photos
}

fn main() {
    println!("{:>8} {:>10} {:>10} {:>10} {:>6}", "kB", "kept, ms", "new, ms", "plain, ms", "ratio");
    for file in files() {
        let bytes = std::fs::read(&file).unwrap();
        let preprocessing = &MOBILENET_V2.preprocessing;
        let mut decoder = Decoder::new();
        let (mut kept, mut new, mut every) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            kept.push(timed(|| decoder.pixels(&bytes, preprocessing, PIXELS_MAX).unwrap()));
            new.push(timed(|| pixels(&bytes, preprocessing, PIXELS_MAX).unwrap()));
            every.push(timed(|| plain(&bytes, preprocessing, PIXELS_MAX).unwrap()));
        }
        let (kilobytes, kept, new, every) =
            (bytes.len() as f64 / 1e3, median(kept), median(new), median(every));
        let ratio = kept / every;
        println!("{kilobytes:8.0} {kept:10.3} {new:10.3} {every:10.3} {ratio:6.2}  {}", file.display());
    }
}
