//! `samclipd`: arguments → logging → daemon → exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::config::Config;
use samclip::daemon::demo::{DemoOptions, demo};
use samclip::daemon::models::{DEFAULT_MODEL, find_model};
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::report::MaskOutput;
use samclip::daemon::run::{run as daemon, sources};
use samclip::daemon::segment::{SegmentOptions, segment};
use samclip::runtime::{Backend, Provider, RuntimeOptions};
use tracing_subscriber::EnvFilter;

/// Where packages put the configuration.
const DEFAULT_CONFIG: &str = "/etc/samclip/samclipd.toml";

/// Exit code for a configuration that is refused (`sysexits.h`).
const EX_CONFIG: u8 = 78;

/// Text in, masks out, on the camera.
#[derive(Parser)]
#[command(name = "samclipd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the built-in pictures: detections as a table, over MQTT and as annotated pictures; needs nothing.
    Demo {
        #[command(flatten)]
        model: ModelArgs,
        /// A text to look for; may be given several times.
        #[arg(long = "query", value_name = "TEXT")]
        queries: Vec<String>,
        /// Directory for the annotated pictures.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Frames of the pan-and-zoom clip.
        #[arg(long, value_name = "N", default_value_t = DemoOptions::default().clip_frames)]
        clip_frames: usize,
        /// Play again until interrupted.
        #[arg(long = "loop")]
        looped: bool,
    },
    /// Segment pictures once: annotated PNG, one mask PNG per query, JSON.
    Segment {
        #[command(flatten)]
        model: ModelArgs,
        /// Pictures, PNG or JPEG.
        #[arg(required = true, value_name = "PICTURE")]
        pictures: Vec<PathBuf>,
        /// A text to look for; may be given several times.
        #[arg(long = "query", required = true, value_name = "TEXT")]
        queries: Vec<String>,
        /// Directory for the results.
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
        /// Score from which on a query is present, between 0 and 1; the model's own if not given.
        #[arg(long, value_name = "SCORE")]
        threshold: Option<f32>,
        /// Write COCO run-length codes into the JSON, beside polygons.
        #[arg(long)]
        rle: bool,
    },
    /// Run the daemon.
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Check a configuration file and say what is wrong with it.
    CheckConfig {
        /// Configuration file.
        #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// List cameras and their formats.
    #[cfg(feature = "v4l2")]
    Cameras,
}

#[derive(Args)]
struct ModelArgs {
    /// Model bundle: a directory with manifest.toml.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t = RuntimeChoice::Auto)]
    runtime: RuntimeChoice,
    /// ONNX Runtime's provider.
    #[arg(long, value_enum, default_value_t = ProviderChoice::Auto)]
    provider: ProviderChoice,
    /// Threads of one inference; 0 means as many as the machine has.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum RuntimeChoice {
    Auto,
    Tract,
    Ort,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProviderChoice {
    Auto,
    Cpu,
    Cuda,
    Tensorrt,
}

impl ModelArgs {
    fn open(&self) -> anyhow::Result<Pipeline> {
        let bundle = match &self.model {
            Some(dir) => dir.clone(),
            None => find_model(DEFAULT_MODEL)?,
        };
        let options = RuntimeOptions {
            backend: match self.runtime {
                RuntimeChoice::Auto => Backend::Auto,
                RuntimeChoice::Tract => Backend::Tract,
                RuntimeChoice::Ort => Backend::Ort,
            },
            provider: match self.provider {
                ProviderChoice::Auto => Provider::Auto,
                ProviderChoice::Cpu => Provider::Cpu,
                ProviderChoice::Cuda => Provider::Cuda,
                ProviderChoice::Tensorrt => Provider::TensorRt,
            },
            threads: self.threads,
            ..RuntimeOptions::default()
        };
        Ok(Pipeline::open(&bundle, &options)?)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(if matches!(cli.command, Command::Run { .. }) {
            "info"
        } else {
            "warn"
        })
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "samclipd: {error:#}");
            if error.is::<BadConfig>() {
                ExitCode::from(EX_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    let mut table = std::io::stdout();
    match command {
        Command::Demo {
            model,
            queries,
            out,
            clip_frames,
            looped,
        } => {
            let standard = DemoOptions::default();
            let options = DemoOptions {
                queries: if queries.is_empty() { standard.queries } else { queries },
                out: out.unwrap_or(standard.out),
                clip_frames,
                looped,
            };
            let stop = stop_on_signal()?;
            demo(&mut model.open()?, &options, &clock, &stop, &mut table)
        }
        Command::Segment {
            model,
            pictures,
            queries,
            out,
            threshold,
            rle,
        } => {
            let masks = MaskOutput {
                rle,
                ..MaskOutput::default()
            };
            let options = SegmentOptions {
                pictures,
                queries,
                out,
                threshold,
                masks,
            };
            segment(&mut model.open()?, &options, &clock, &mut table)
        }
        Command::Run { config } => {
            let config = read_config(&config)?;
            let stop = stop_on_signal()?;
            let clock: Arc<dyn Clock> = Arc::new(clock);
            daemon(&config, &clock, &stop)
        }
        Command::CheckConfig { config: path } => {
            let config = read_config(&path)?;
            let (cameras, queries) = (config.cameras.len(), config.queries.len());
            writeln!(table, "{}: valid; {cameras} cameras, {queries} queries", path.display())?;
            Ok(())
        }
        #[cfg(feature = "v4l2")]
        Command::Cameras => list_cameras(&mut table),
    }
}

/// A configuration that is refused; its own exit code, as `sysexits.h` has it.
#[derive(Debug)]
struct BadConfig(anyhow::Error);

impl std::fmt::Display for BadConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for BadConfig {}

fn read_config(path: &Path) -> anyhow::Result<Config> {
    let config = Config::read(path).map_err(|e| BadConfig(e.into()))?;
    sources(&config).map_err(|e| BadConfig(e.into()))?;
    Ok(config)
}

/// Becomes true at the first SIGINT or SIGTERM; a second one ends the program at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("signal handling")?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let flag = Arc::clone(&stop);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(stop)
}

#[cfg(feature = "v4l2")]
fn list_cameras(table: &mut dyn Write) -> anyhow::Result<()> {
    let cameras = samclip::capture::list_cameras();
    if cameras.is_empty() {
        writeln!(table, "no video devices in /dev")?;
    }
    for camera in cameras {
        writeln!(table, "{}  {}", camera.path.display(), camera.card)?;
        match camera.formats {
            Err(error) => writeln!(table, "  {error}")?,
            Ok(formats) => {
                for format in formats {
                    let note = if format.supported {
                        ""
                    } else {
                        "  (not read by samclip)"
                    };
                    writeln!(table, "  {}{note}  {}", format.four_cc, format.sizes.join(" "))?;
                }
            }
        }
    }
    Ok(())
}
