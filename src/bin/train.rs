//! `train`: makes a bundle from photos and drawn scenes, or from other people's checkpoints.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn_flex::{Flex, FlexDevice};
use clap::{Parser, Subcommand};
use samclip::train::dataset::Layout;
use samclip::train::device::Device;
#[cfg(feature = "train-vulkan")]
use samclip::train::device::gpu::{self, Gpu};
use samclip::train::eval::wise_ft;
use samclip::train::kernels::Kernels;
use samclip::train::model::{ClipConfig, SamConfig, architecture as names};
use samclip::train::onnx::Storage;
use samclip::train::processes::Processes;
use samclip::train::recipe::{Recipe, StageName};
use samclip::train::run::{Run, RunOptions, untrained};
use samclip::train::weights::{self, Weights};
use samclip::train::{eval, import, quantize};

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
    /// Stage 3: the heads at the size of the bundle.
    Adapt(RunArguments),
    /// After stage 3: the text tower learns other words for the names of the photos.
    Words(RunArguments),
    /// After the words, or from a bundle: backbone and both heads go on learning from labelled photos.
    Finetune(StartArguments),
    /// At the end: neck and mask decoder learn to answer the prompts that the daemon makes.
    Sharpen(StartArguments),
    /// Writes the bundle of a finished run.
    Export(ExportArguments),
    /// Reads a published checkpoint, checks every tensor and stores it as .safetensors.
    Import(ImportArguments),
    /// Writes drawn scenes as a WebDataset tar with its classes.json.
    Synth(SynthArguments),
    /// Parameters and multiply-accumulates of a recipe's model, part by part.
    Cost(CostArguments),
    /// Measures bundles, checkpoints and teachers side by side.
    Eval(eval::Options),
    /// Chooses a bundle's score threshold on training photos, so that queries for absent things stay silent.
    Calibrate(eval::calibrate::Options),
    /// Tests the paper's claims on a small model, from training to a report with verdicts and plots.
    Study(eval::claims::Options),
    /// Adds fp16 and int8 variants to a bundle, with what they lose; refuses one that loses too much.
    Quantize(quantize::Options),
    /// Prints the peak memory in KiB of running graphs; `quantize` and `study` ask a child process for it.
    #[command(hide = true)]
    PeakMemory(eval::peak_memory::Graphs),
}

/// Somebody's checkpoints, in the place of teachers that the recipe trains.
#[derive(clap::Args)]
struct TeacherArguments {
    /// SAM checkpoint (.pth, .safetensors) of the recipe's architecture.
    #[arg(long, value_name = "FILE")]
    sam: Option<PathBuf>,
    /// OpenCLIP checkpoint (.pt, .bin, .safetensors) of the recipe's architecture, or the CLIP teacher of a run.
    #[arg(long, value_name = "FILE")]
    clip: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Checkpoint {
    /// SAM checkpoint (.pth, .safetensors).
    #[arg(long, value_name = "FILE")]
    sam: Option<PathBuf>,
    /// OpenCLIP checkpoint (.pt, .bin, .safetensors).
    #[arg(long, value_name = "FILE")]
    clip: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ImportArguments {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// Published architecture by name, such as vit_h or ViT-B-16-quickgelu; recognised by its shapes if not given.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    arch: Option<String>,
    /// Any other architecture as JSON, in the form of segment-anything's or OpenCLIP's configuration.
    #[arg(long, value_name = "FILE")]
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
struct ExportArguments {
    /// Recipe file of the run.
    #[arg(long)]
    recipe: PathBuf,
    /// Checkpoint of the run's last stage, for example runs/nano/sharpen.safetensors, or the folder of a bundle that the
    /// recipe made. Without one, --sam and --clip make
    /// the student before any training: its SAM head is SAM's, its CLIP head means nothing yet.
    #[arg(long, value_name = "FILE", required_unless_present_all = ["sam", "clip"], conflicts_with_all = ["sam", "clip"])]
    checkpoint: Option<PathBuf>,
    /// A second checkpoint or bundle: the weights lie between both (WiSE-FT), which is often better than either after a stage
    /// that moved far. `eval --between` measures several shares.
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    between: Option<PathBuf>,
    /// Share of the second checkpoint, 0-1.
    #[arg(long, requires = "between", default_value_t = 0.5, value_parser = wise_ft::share)]
    alpha: f32,
    #[command(flatten)]
    teachers: TeacherArguments,
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
    /// WebDataset tars, globs of them, or folders of published data sets (FOLDER@SET for one of its sets); drawn scenes
    /// alone without any.
    #[arg(long, num_args = 1..)]
    data: Vec<String>,
    /// Layout of the folders; recognised by what is in them if not given.
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Folder of the run's checkpoints.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    teachers: TeacherArguments,
    /// What computes: cpu, gpu, gpu:NUMBER for one of several, or gpu:software for a Vulkan driver on the processor. A GPU needs
    /// a build with `--features train-vulkan`.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// One of several processes that `mpirun` started: every step averages the gradients of all of them.
    #[cfg(feature = "mpi")]
    #[arg(long)]
    mpi: bool,
}

#[derive(clap::Args)]
struct StartArguments {
    /// Weights to begin with, in place of all earlier stages: a checkpoint of the recipe's last stage before, or the folder of
    /// a bundle that the recipe made.
    #[arg(long, value_name = "PATH")]
    start: Option<PathBuf>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(clap::Args)]
struct CostArguments {
    /// Recipe file, for example models/nano/recipe.toml.
    #[arg(long)]
    recipe: PathBuf,
}

impl StartArguments {
    /// A stage that may begin with somebody's weights, and that the recipe must have: `has` tells.
    fn run(self, stage: StageName, has: impl Fn(&Recipe) -> bool) -> Result<()> {
        let recipe = Recipe::read(&self.run.recipe)?;
        ensure!(
            has(&recipe),
            "{}: the recipe has no [{}]",
            self.run.recipe.display(),
            stage.section()
        );
        self.run.run_from(self.start, stage).map(|_| ())
    }
}

impl RunArguments {
    /// Recipe and weights of `stage`, once all processes have done it; none in a process that is not the first.
    fn run(self, stage: StageName) -> Result<Option<(Recipe, Weights)>> {
        self.run_from(None, stage)
    }

    /// As [`Self::run`], from weights in place of the stages before.
    fn run_from(self, start: Option<PathBuf>, stage: StageName) -> Result<Option<(Recipe, Weights)>> {
        #[cfg(feature = "mpi")]
        let processes = match self.mpi {
            true => Processes::of_mpirun().context("MPI was started before")?,
            false => Processes::alone(),
        };
        #[cfg(not(feature = "mpi"))]
        let processes = Processes::alone();
        let options = RunOptions {
            processes: processes.clone(),
            recipe: self.recipe,
            data: self.data,
            layout: self.layout,
            out: self.out,
            sam: self.teachers.sam,
            clip: self.teachers.clip,
            start,
        };
        let done = match self.device {
            Device::Cpu => done::<Flex>(options, FlexDevice, stage)?,
            #[cfg(feature = "train-vulkan")]
            Device::Gpu(index) => {
                let index = index.unwrap_or_else(|| processes.rank_on_host());
                done::<Gpu>(options, gpu::open(index)?, stage)?
            }
            #[cfg(feature = "train-vulkan")]
            Device::SoftwareGpu => done::<Gpu>(options, gpu::open_software()?, stage)?,
            #[cfg(not(feature = "train-vulkan"))]
            Device::Gpu(_) | Device::SoftwareGpu => anyhow::bail!(
                "--device: found a GPU, expected cpu: this build has no GPU backend; build with \
                 `cargo build --release --features train-vulkan --bin train`"
            ),
        };
        let first = processes.is_first();
        processes.finish();
        Ok(first.then_some(done))
    }
}

/// Recipe and weights of a stage of a run on `device`.
fn done<B: Kernels>(options: RunOptions, device: B::Device, stage: StageName) -> Result<(Recipe, Weights)> {
    let run = Run::<B>::open(options, device)?;
    let weights = run.through(stage)?;
    Ok((run.recipe, weights))
}

fn main() -> Result<()> {
    samclip::runtime::forbid_telemetry();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Said on standard error too, and a thread that cannot write there would end.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    // Colours on a terminal only; `NO_COLOR` switches them off there as well.
    let colours = std::io::stderr().is_terminal();
    (if colours { logs } else { logs.with_ansi(false) }).init();
    match Arguments::parse().command {
        Command::Run(arguments) => {
            let out = arguments.out.join("bundle");
            let done = arguments.run(StageName::Sharpen)?;
            done.map_or(Ok(()), |(recipe, weights)| {
                export(&recipe, &weights, &out, Storage::Half)
            })
        }
        Command::Distill(arguments) => arguments.run(StageName::Distill).map(|_| ()),
        Command::Adapt(arguments) => arguments.run(StageName::Adapt).map(|_| ()),
        Command::Words(arguments) => arguments.run(StageName::Words).map(|_| ()),
        Command::Finetune(arguments) => arguments.run(StageName::Finetune, |recipe| recipe.finetune.is_some()),
        Command::Sharpen(arguments) => arguments.run(StageName::Sharpen, |recipe| recipe.sharpen.is_some()),
        Command::Export(arguments) => {
            let recipe = Recipe::read(&arguments.recipe)?;
            let weights = match (arguments.checkpoint, arguments.teachers) {
                (Some(checkpoint), _) => {
                    let trained = |path: &Path| import::trained(path, &recipe.exported().merged());
                    let weights = trained(&checkpoint)?;
                    match arguments.between {
                        Some(second) => wise_ft::interpolate(&weights, &trained(&second)?, arguments.alpha)?,
                        None => weights,
                    }
                }
                (
                    None,
                    TeacherArguments {
                        sam: Some(sam),
                        clip: Some(clip),
                    },
                ) => untrained(&recipe, &sam, &clip)?,
                (None, _) => anyhow::bail!("neither --checkpoint nor both --sam and --clip given"),
            };
            export(&recipe, &weights, &arguments.out, arguments.storage)
        }
        Command::Cost(arguments) => {
            println!("{}", samclip::train::cost::table(&Recipe::read(&arguments.recipe)?));
            Ok(())
        }
        Command::Calibrate(options) => {
            let (threshold, sweep) = eval::calibrate::run(&options)?;
            println!(
                "{sweep}\nthreshold {threshold:.2} written to {}",
                options.bundle.display()
            );
            Ok(())
        }
        Command::Study(options) => {
            println!("{}", eval::claims::run(&options)?.display());
            Ok(())
        }
        Command::Eval(options) => {
            println!("{}", eval::study::run(&options)?.markdown());
            Ok(())
        }
        Command::Quantize(options) => quantize(&options),
        Command::PeakMemory(arguments) => {
            println!("{}", eval::peak_memory::of_graphs(&arguments)?);
            Ok(())
        }
        Command::Import(arguments) => import(&arguments),
        Command::Synth(arguments) => synth(&arguments),
        Command::Teachers(arguments) => arguments.run(StageName::TeachClip).map(|_| ()),
        Command::Probe(arguments) => arguments.run(StageName::Probe).map(|_| ()),
    }
}

fn export(recipe: &Recipe, weights: &Weights, out: &Path, storage: Storage) -> Result<()> {
    let bundle = samclip::train::export::bundle(recipe, weights, out, storage)?;
    tracing::info!(folder = %out.display(), id = bundle.id(), "bundle written");
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

/// The architecture that the user asks for: by name, by file, or none, to be recognised.
fn architecture<T: serde::de::DeserializeOwned>(
    arguments: &ImportArguments,
    named: impl Fn(&str) -> Option<T>,
    names: &[&str],
) -> Result<Option<T>> {
    if let Some(name) = &arguments.arch {
        let found = named(name);
        let config = found.with_context(|| format!("--arch: found {name:?}, expected one of {}", names.join(", ")))?;
        return Ok(Some(config));
    }
    let Some(file) = &arguments.config else { return Ok(None) };
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not such a configuration", file.display()))
}

fn import(arguments: &ImportArguments) -> Result<()> {
    if let Some(out) = &arguments.out {
        let named = out.extension().is_some_and(|e| e == "safetensors");
        anyhow::ensure!(named, "--out {}: expected a name ending in .safetensors", out.display());
    }
    let (weights, kind, config) = match (&arguments.checkpoint.sam, &arguments.checkpoint.clip) {
        (Some(path), _) => {
            let wanted = architecture(arguments, SamConfig::named, &names::SAM)?;
            let (weights, config) = import::sam(path, wanted.as_ref())?;
            (weights, "SAM", serde_json::to_string(&config)?)
        }
        (None, Some(path)) => {
            let wanted = architecture(arguments, ClipConfig::named, &names::CLIP)?;
            let (weights, config) = import::clip(path, wanted.as_ref())?;
            (weights, "OpenCLIP", serde_json::to_string(&config)?)
        }
        (None, None) => anyhow::bail!("neither --sam nor --clip given"),
    };
    let parameters: usize = weights.values().map(|v| v.data.len()).sum();
    println!(
        "{} tensors, {parameters} values, all as the architecture asks\n{kind} {config}",
        weights.len()
    );
    if let Some(out) = &arguments.out {
        weights::write(out, &weights, &BTreeMap::from([("architecture".to_owned(), config)]))?;
    }
    Ok(())
}

fn synth(arguments: &SynthArguments) -> Result<()> {
    let out = &arguments.out;
    let classes = samclip::train::synth::shard::write_files(out, arguments.seed, arguments.count, arguments.side)?;
    println!(
        "{} scenes in {}, names in {}",
        arguments.count,
        out.display(),
        classes.display()
    );
    Ok(())
}
