//! The Rust engines that elastic is compared with: tract, and candle with its own `conv2d`.
//!
//! Each is a child process that speaks the line protocol of `../README.md`.
//!
//! **Invariant**: only the network is timed; reading, laying out and answering happen outside the clock.
mod candle;
mod onnx;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

/// Most images in a batch.
const BATCH_MAX: usize = 8;
/// Most runs a command may ask for.
const RUNS_MAX: usize = 10_000;
/// Side of the input, pixels.
const SIDE: usize = 224;

/// Flags.
#[derive(Debug, Parser)]
struct Args {
    /// `tract` or `candle-conv2d`
    engine: String,
    /// Threads on one image
    #[arg(long)]
    threads: usize,
    /// Folder that export.py wrote
    #[arg(long)]
    models: PathBuf,
    /// Folded weights, safetensors
    #[arg(long)]
    weights: PathBuf,
    /// The network, for the record: its layers are in the models' folder
    #[arg(long)]
    network: String,
}

#[derive(Deserialize)]
struct Command {
    batch: usize,
    runs: usize,
    #[serde(default)]
    logits: bool,
}

#[derive(Serialize)]
struct Hello<'a> {
    name: &'a str,
    version: &'a str,
    what: &'a str,
}

#[derive(Serialize)]
struct Reply {
    durations_ns: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<f32>>,
}

#[derive(Serialize)]
struct Failure {
    error: String,
}

/// One batch size, ready: runs the network once and gives back the logits.
type Prepared = Box<dyn FnMut() -> Result<Vec<f32>>>;

/// An engine with its model loaded.
trait Engine {
    /// The library's version.
    fn version(&self) -> &'static str;
    /// What the row is.
    fn what(&self) -> &'static str;
    /// Prepares images `[batch, 3, 224, 224]`.
    fn prepare(&self, images: Vec<f32>, batch: usize) -> Result<Prepared>;
}

fn main() -> Result<()> {
    let args = Args::parse();
    let served = serve(&args);
    if let Err(error) = &served {
        say(&Failure { error: format!("{error:#}") })?;
    }
    served
}

fn serve(args: &Args) -> Result<()> {
    let engine: Box<dyn Engine> = match args.engine.as_str() {
        "tract" => {
            ensure!(args.threads == 1, "tract runs an image on one thread");
            Box::new(onnx::Tract::new(args.models.join("f32.onnx")))
        }
        "candle-conv2d" => Box::new(candle::Candle::load(&args.models, &args.weights)?),
        other => bail!("there is no engine {other}"),
    };
    let inputs = inputs(args)?;
    say(&Hello { name: &args.engine, version: engine.version(), what: engine.what() })?;
    let mut prepared: Vec<Option<Prepared>> = (0..=BATCH_MAX).map(|_| None).collect();
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?).context("a command is a line of JSON")?;
        ensure!((1..=BATCH_MAX).contains(&command.batch), "batch must be 1 to {BATCH_MAX}");
        ensure!((1..=RUNS_MAX).contains(&command.runs), "runs must be 1 to {RUNS_MAX}");
        let run = match &mut prepared[command.batch] {
            Some(run) => run,
            empty => empty.insert(engine.prepare(channels_first(&inputs, command.batch), command.batch)?),
        };
        say(&measure(run, &command)?)?;
    }
    Ok(())
}

fn measure(run: &mut Prepared, command: &Command) -> Result<Reply> {
    let mut durations_ns = Vec::with_capacity(command.runs);
    let mut logits = Vec::new();
    for _ in 0..command.runs {
        let started = Instant::now();
        logits = run()?;
        durations_ns.push(started.elapsed().as_nanos() as u64);
    }
    Ok(Reply { durations_ns, logits: command.logits.then_some(logits) })
}

/// The photos, `[8, 224, 224, 3]`.
fn inputs(args: &Args) -> Result<Vec<f32>> {
    let path = args.models.join("inputs.f32");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() == BATCH_MAX * SIDE * SIDE * 3 * 4, "{} is of another size", path.display());
    Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// The first `batch` images of `[8, 224, 224, 3]` as `[batch, 3, 224, 224]`.
fn channels_first(images: &[f32], batch: usize) -> Vec<f32> {
    let pixels = SIDE * SIDE;
    let mut turned = vec![0.0; batch * 3 * pixels];
    for (at, value) in images.iter().take(turned.len()).enumerate() {
        let (image, pixel, channel) = (at / (3 * pixels), at / 3 % pixels, at % 3);
        turned[(image * 3 + channel) * pixels + pixel] = *value;
    }
    turned
}

/// One line on standard output.
fn say(line: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
