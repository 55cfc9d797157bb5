//! `train`: makes a bundle from photos and drawn scenes, or from other people's checkpoints.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use samclip::text::tokenizer::Tokenizer;
use samclip::train::dataset::{Dataset, Split};
use samclip::train::feed::Feed;
use samclip::train::model::{ClipConfig, SamConfig};
use samclip::train::onnx::Storage;
use samclip::train::recipe::Recipe;
use samclip::train::session::Identity;
use samclip::train::text_bank::TextBank;
use samclip::train::{distill, import, quantize, teachers, weights};

/// Merges a SAM and a CLIP checkpoint into one encoder, and makes small teachers where there are none.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All stages of a recipe, from teachers to the exported bundle; goes on where it was stopped.
    Run(RunArguments),
    /// The SAM and the CLIP teacher of a recipe, from labelled data.
    Teachers(RunArguments),
    /// Stage 1: the CLIP head on the frozen backbone.
    Probe(RunArguments),
    /// Stage 2: backbone, CLIP head and SAM head together.
    Distill(RunArguments),
    /// Writes the bundle of a finished run.
    Export(ExportArguments),
    /// Reads a published checkpoint, checks every tensor and stores it as .safetensors.
    Import(ImportArguments),
    /// Writes drawn scenes as a WebDataset tar with its classes.json.
    Synth(SynthArguments),
    /// Measures a bundle on the validation tenth of labelled photos.
    Eval(EvalArguments),
    /// Adds fp16 and int8 variants to a bundle, with what they lose; refuses one that loses too much.
    Quantize(quantize::Options),
    /// Prints the peak memory in MiB of running one encoder; `quantize` asks a child process for it.
    #[command(hide = true)]
    PeakMemory(PeakMemoryArguments),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Checkpoint {
    /// SAM checkpoint (.pth), ViT-B unless --config says otherwise.
    #[arg(long)]
    sam: Option<PathBuf>,
    /// OpenCLIP checkpoint (.pt, .bin, .safetensors), ViT-L/14 unless --config says otherwise.
    #[arg(long)]
    clip: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ImportArguments {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// Architecture as JSON, in the form of segment-anything's or OpenCLIP's configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to store it; without, the checkpoint is only checked.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct SynthArguments {
    /// The tar; classes.json is written beside it.
    #[arg(long)]
    out: PathBuf,
    /// Number of scenes.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Side of a scene in pixels.
    #[arg(long, default_value_t = 320)]
    side: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(clap::Args)]
struct EvalArguments {
    /// Bundle folder.
    #[arg(long)]
    bundle: PathBuf,
    /// WebDataset tars or globs of them.
    #[arg(long, num_args = 1.., required = true)]
    data: Vec<String>,
    /// At most this many photos.
    #[arg(long, default_value_t = usize::MAX)]
    limit: usize,
}

#[derive(clap::Args)]
struct PeakMemoryArguments {
    /// Bundle folder.
    #[arg(long)]
    bundle: PathBuf,
    /// Encoder file.
    #[arg(long)]
    encoder: PathBuf,
    /// On tract.
    #[arg(long)]
    tract: bool,
}

#[derive(clap::Args)]
struct ExportArguments {
    /// Recipe file of the run.
    #[arg(long)]
    recipe: PathBuf,
    /// Checkpoint, for example runs/nano/distill.safetensors.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder of the bundle.
    #[arg(long)]
    out: PathBuf,
    /// How weights are stored: fp16, or fp32 for a reference that `quantize` compares with.
    #[arg(long, default_value = "fp16")]
    storage: Storage,
}

#[derive(clap::Args)]
struct RunArguments {
    /// Recipe file, for example models/nano/recipe.toml.
    #[arg(long)]
    recipe: PathBuf,
    /// WebDataset tars or globs of them; drawn scenes alone without any.
    #[arg(long, num_args = 1..)]
    data: Vec<String>,
    /// Folder of the run's checkpoints.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match Arguments::parse().command {
        Command::Run(arguments) => {
            let run = Run::open(&arguments)?;
            let weights = run.distill()?;
            export(&run.recipe, &weights, &arguments.out.join("bundle"), Storage::Half)
        }
        Command::Distill(arguments) => Run::open(&arguments)?.distill().map(|_| ()),
        Command::Export(arguments) => {
            let weights = without_moments(weights::read(&arguments.checkpoint)?);
            let recipe = Recipe::read(&arguments.recipe)?;
            export(&recipe, &weights, &arguments.out, arguments.storage)
        }
        Command::Eval(arguments) => eval(&arguments),
        Command::Quantize(options) => quantize(&options),
        Command::PeakMemory(arguments) => {
            let bundle = samclip::contract::Manifest::read(&arguments.bundle)?;
            let peak = quantize::timing::peak_memory(&bundle, &arguments.encoder, arguments.tract, 0)?;
            println!("{peak}");
            Ok(())
        }
        Command::Import(arguments) => import(&arguments),
        Command::Synth(arguments) => synth(&arguments),
        Command::Teachers(arguments) => Run::open(&arguments)?.teachers().map(|_| ()),
        Command::Probe(arguments) => Run::open(&arguments)?.probe().map(|_| ()),
    }
}

/// A recipe with its data and its folder.
struct Run {
    recipe: Recipe,
    feed: Feed,
    tokenizer: Tokenizer,
    identity: Identity,
    out: PathBuf,
}

impl Run {
    fn open(arguments: &RunArguments) -> Result<Self> {
        let recipe = Recipe::read(&arguments.recipe)?;
        std::fs::create_dir_all(&arguments.out)
            .with_context(|| format!("cannot create {}", arguments.out.display()))?;
        let dataset = match arguments.data.as_slice() {
            [] => None,
            patterns => Some(open_data(patterns)?),
        };
        let data = dataset
            .as_ref()
            .map_or_else(|| "drawn scenes".into(), Dataset::fingerprint);
        let identity = Identity {
            recipe: toml::to_string(&recipe).context("the recipe is valid TOML")?,
            data,
        };
        let tokenizer = Tokenizer::shortened(recipe.merges)?;
        let feed = Feed::new(dataset, recipe.synth_share, recipe.seed);
        Ok(Self {
            recipe,
            feed,
            tokenizer,
            identity,
            out: arguments.out.clone(),
        })
    }

    /// The teachers, and the student that they make.
    fn teachers(&self) -> Result<(distill::Teachers, weights::Weights)> {
        let Self {
            recipe,
            feed,
            identity,
            out,
            ..
        } = self;
        let sam = teachers::sam(recipe, feed, out, identity)?;
        let clip = teachers::clip(recipe, feed, &self.tokenizer, out, identity)?;
        let text = TextBank::new(&clip, &recipe.text, recipe.clip_head.text_dim, self.tokenizer.clone());
        let student = distill::student(recipe, &sam, &clip);
        Ok((
            distill::Teachers::new(&sam, &clip, text, self.tokenizer.clone()),
            student,
        ))
    }

    fn probe(&self) -> Result<(distill::Teachers, weights::Weights)> {
        let Self {
            recipe,
            feed,
            identity,
            out,
            ..
        } = self;
        let (mut teachers, student) = self.teachers()?;
        let probed = distill::probe(recipe, feed, &mut teachers, || student, out, identity)?;
        Ok((teachers, probed))
    }

    fn distill(&self) -> Result<weights::Weights> {
        let Self {
            recipe,
            feed,
            identity,
            out,
            ..
        } = self;
        let (mut teachers, probed) = self.probe()?;
        Ok(distill::distill(recipe, feed, &mut teachers, || probed, out, identity)?)
    }
}

/// A checkpoint's weights without the optimiser's state.
fn without_moments(weights: weights::Weights) -> weights::Weights {
    weights
        .into_iter()
        .filter(|(n, _)| !n.starts_with("first.") && !n.starts_with("second."))
        .collect()
}

fn export(recipe: &Recipe, weights: &weights::Weights, out: &Path, storage: Storage) -> Result<()> {
    let bundle = samclip::train::export::bundle(recipe, weights, out, storage)?;
    tracing::info!(folder = %out.display(), id = bundle.id(), "bundle written");
    Ok(())
}

fn open_data(patterns: &[String]) -> Result<Dataset> {
    let mut dataset = Dataset::open(patterns)?;
    dataset.skip_corrupt();
    for error in dataset.skipped() {
        tracing::warn!(%error, "sample skipped");
    }
    tracing::info!(
        samples = dataset.len(),
        skipped = dataset.skipped().len(),
        "data opened"
    );
    ensure!(!dataset.is_empty(), "{patterns:?}: no readable sample; check the paths");
    Ok(dataset)
}

fn eval(arguments: &EvalArguments) -> Result<()> {
    let bundle = samclip::contract::Manifest::read(&arguments.bundle)?;
    let options = samclip::runtime::RuntimeOptions::default();
    let dataset = open_data(&arguments.data)?;
    let result = samclip::train::eval::semantic(&bundle, &options, &dataset, arguments.limit, Split::Validation)?;
    println!("{}", result.markdown());
    Ok(())
}

fn quantize(options: &quantize::Options) -> Result<()> {
    let report = quantize::run(options)?;
    println!("{}", report.markdown());
    if let Some(refusal) = report.refusal() {
        anyhow::bail!(refusal);
    }
    Ok(())
}

/// The configuration in a JSON file, or the usual one.
fn configuration<T: serde::de::DeserializeOwned>(file: Option<&Path>, usual: T) -> Result<T> {
    let Some(file) = file else { return Ok(usual) };
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not such a configuration", file.display()))
}

fn import(arguments: &ImportArguments) -> Result<()> {
    let config = arguments.config.as_deref();
    let weights = match (&arguments.checkpoint.sam, &arguments.checkpoint.clip) {
        (Some(path), _) => import::sam(path, &configuration(config, SamConfig::vit_b())?)?,
        (None, Some(path)) => import::clip(path, &configuration(config, ClipConfig::vit_l_14())?)?,
        (None, None) => anyhow::bail!("neither --sam nor --clip given"),
    };
    let parameters: usize = weights.values().map(|v| v.data.len()).sum();
    println!(
        "{} tensors, {parameters} parameters, all as the architecture asks",
        weights.len()
    );
    if let Some(out) = &arguments.out {
        weights::write(out, &weights, &std::collections::BTreeMap::new())?;
    }
    Ok(())
}

fn synth(arguments: &SynthArguments) -> Result<()> {
    let out = &arguments.out;
    let file = std::fs::File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let writer = std::io::BufWriter::new(file);
    samclip::train::synth::shard::write(writer, arguments.seed, 0, arguments.count, arguments.side)?;
    let names = samclip::train::synth::names();
    let table: std::collections::BTreeMap<usize, &str> = names.iter().enumerate().collect();
    let classes = out.with_file_name("classes.json");
    std::fs::write(&classes, serde_json::to_vec_pretty(&table)?)
        .with_context(|| format!("cannot write {}", classes.display()))?;
    println!(
        "{} scenes in {}, names in {}",
        arguments.count,
        out.display(),
        classes.display()
    );
    Ok(())
}
