//! This engine as one of the engines that `benches/peers/bench.py` times: a child process that answers lines
//! on standard input with lines on standard output (`benches/peers/README.md` has the protocol).
//!
//! **Invariant**: only the network is timed; reading, preparing and answering happen outside the clock.
use anyhow::{Context as _, ensure};
use candle_core::{Device, Tensor};
use clap::{Parser, ValueEnum as _};
use elastic::model::kernels::isa::{Isa, Level};
use elastic::model::{Model, ModelArgs, Precision, Session, SessionSize};
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;

/// Most images in a batch.
const BATCH_MAX: usize = 8;
/// Most runs a command may ask for.
const RUNS_MAX: usize = 10_000;

/// Flags; what `cargo bench` adds is let through.
#[derive(Debug, Parser)]
struct Args {
    /// Name of the row: `elastic-f32`, `elastic-bf16` or `elastic-int8`, with `@avx2` and the like to force an
    /// instruction set
    engine: String,
    /// Threads on one image
    #[arg(long)]
    threads: usize,
    /// Folder of `inputs.u8`, the photos as bytes `[8, 224, 224, 3]`
    #[arg(long)]
    models: PathBuf,
    /// Folded weights, safetensors
    #[arg(long)]
    weights: PathBuf,
    /// Weights of `elastic-int8`, as `elastic weights quantize` makes them
    #[arg(long)]
    weights_int8: PathBuf,
    /// The network
    #[arg(long)]
    network: String,
    #[arg(long, hide = true)]
    bench: bool,
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
    what: String,
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

/// The engine under test. Everything that depends on its interface is in this block.
struct Engine {
    model: Model,
    session: Box<dyn Session>,
    what: String,
}

impl Engine {
    fn load(args: &Args) -> anyhow::Result<Self> {
        let name = args.engine.strip_prefix("elastic-").unwrap_or(&args.engine);
        let (name, isa) = name.split_once('@').map_or((name, None), |(name, isa)| (name, Some(isa)));
        let parse = |error: String| anyhow::anyhow!("{} is not an engine here: {error}", args.engine);
        let precision = Precision::from_str(name, true).map_err(parse)?;
        let isa = isa.map(|isa| Level::from_str(isa, true).map_err(parse)).transpose()?;
        let weights = if precision == Precision::Int8 { &args.weights_int8 } else { &args.weights };
        let load = ModelArgs {
            model: Some(args.network.clone()),
            weights: Some(weights.clone()),
            precision: Some(precision),
            isa,
            ..ModelArgs::default()
        };
        let model = Model::load(&load)?;
        let size = model.input_size();
        let session = model.classifier().session(SessionSize {
            images_max: BATCH_MAX,
            height: size,
            width: size,
            threads: args.threads,
        })?;
        let what = format!("{}, {precision}, {}", model.name(), isa.map_or(Isa::best().level(), |isa| isa));
        Ok(Self { model, session, what })
    }

    /// Images `[N, 224, 224, 3]` to logits `[N, 1000]`.
    fn run(&mut self, images: &Tensor) -> anyhow::Result<&[f32]> {
        Ok(self.session.logits(images)?)
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let served = serve(&args);
    if let Err(error) = &served {
        say(&Failure { error: format!("{error:#}") })?;
    }
    served
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let mut engine = Engine::load(args)?;
    let inputs = inputs(args, engine.model.input_size())?;
    say(&Hello { name: &args.engine, version: env!("CARGO_PKG_VERSION"), what: engine.what.clone() })?;
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?).context("a command is a line of JSON")?;
        ensure!((1..=BATCH_MAX).contains(&command.batch), "batch must be 1 to {BATCH_MAX}");
        ensure!((1..=RUNS_MAX).contains(&command.runs), "runs must be 1 to {RUNS_MAX}");
        let images = inputs.narrow(0, 0, command.batch)?.contiguous()?;
        say(&measure(&mut engine, &images, &command)?)?;
    }
    Ok(())
}

// A monotonic clock is what a benchmark is for; nothing here is paused in tests.
#[allow(clippy::disallowed_types, clippy::disallowed_methods)]
fn measure(engine: &mut Engine, images: &Tensor, command: &Command) -> anyhow::Result<Reply> {
    let mut durations_ns = Vec::with_capacity(command.runs);
    let mut logits = None;
    for _ in 0..command.runs {
        let started = std::time::Instant::now();
        let answer = engine.run(images)?;
        durations_ns.push(started.elapsed().as_nanos() as u64);
        logits = command.logits.then(|| answer.to_vec());
    }
    Ok(Reply { durations_ns, logits })
}

/// The photos as bytes, `[8, side, side, 3]`: normalising them is part of what is timed.
fn inputs(args: &Args, side: usize) -> anyhow::Result<Tensor> {
    let path = args.models.join("inputs.u8");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Tensor::from_vec(bytes, (BATCH_MAX, side, side, 3), &Device::Cpu)
        .context("the inputs are of another size")
}

/// One line on standard output.
fn say(line: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
