//! `samclipd`: arguments → logging → daemon → exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::config::{Config, DEFAULT_PATH as DEFAULT_CONFIG, Engine, Provider};
use samclip::daemon::demo::{DemoOptions, demo};
use samclip::daemon::directories::cache_dir;
use samclip::daemon::doctor::{DoctorOptions, doctor};
use samclip::daemon::models::{DEFAULT_MODEL, NoModel, find_model};
use samclip::daemon::pipeline::{Pipeline, QuerySpec};
use samclip::daemon::prepare::{PrepareOptions, prepare};
use samclip::daemon::report::MaskOutput;
use samclip::daemon::run::{backend, provider, query_specs, run as daemon, runtime_options, sources};
use samclip::daemon::segment::{SegmentOptions, segment};
use samclip::daemon::tune::{TuneOptions, tune};
use samclip::runtime::progress::{Progress, Stage};
use samclip::runtime::{RuntimeOptions, forbid_telemetry};
use tracing_subscriber::EnvFilter;

/// Exit code for a configuration that is refused (`sysexits.h`).
const EX_CONFIG: u8 = 78;

/// Exit code of a command that a signal ended.
const INTERRUPTED: i32 = 130;

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
    #[command(after_help = SEARCH)]
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
    #[command(after_help = SEARCH)]
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
    #[command(after_help = SEARCH)]
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Build ahead what the first start would build: TensorRT engines and text embeddings. May be killed and run again.
    #[command(after_help = SEARCH)]
    Prepare {
        /// Configuration file: its model, runtime and queries; instead of the options below.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "runtime", "provider", "precision", "query"])]
        config: Option<PathBuf>,
        #[command(flatten)]
        model: ModelArgs,
        /// A text that will be looked for; may be given several times.
        #[arg(long = "query", id = "query", value_name = "TEXT")]
        queries: Vec<String>,
    },
    /// Say what was found of what the configured job needs, what is missing and what helps; exit code 0 if it can run.
    #[command(after_help = SEARCH)]
    Doctor {
        /// Configuration file; without one and without the options below, the default file if it exists.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "runtime", "provider", "precision"])]
        config: Option<PathBuf>,
        #[command(flatten)]
        model: ModelArgs,
    },
    /// Show how a text scores on pictures with and without the thing, and propose a threshold.
    #[command(after_help = SEARCH)]
    Tune {
        #[command(flatten)]
        model: ModelArgs,
        /// The text.
        #[arg(long = "query", id = "query", value_name = "TEXT")]
        query: String,
        /// A text that is looked for at the same time and competes; may be given several times.
        #[arg(long, value_name = "TEXT")]
        against: Vec<String>,
        /// Pictures that show it, PNG or JPEG.
        #[arg(long, value_name = "PICTURE", num_args = 1..)]
        with: Vec<PathBuf>,
        /// Pictures that do not.
        #[arg(long, value_name = "PICTURE", num_args = 1..)]
        without: Vec<PathBuf>,
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
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    runtime: Engine,
    /// ONNX Runtime's provider; what is named must do the work, auto falls back and says why.
    #[arg(long, value_enum, default_value_t = Provider::Auto)]
    provider: Provider,
    /// Variant of the bundle's graphs; the best for the provider if not given.
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,
    /// Directory for engines and text embeddings [default: $CACHE_DIRECTORY, $XDG_CACHE_HOME/samclip, ~/.cache/samclip].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Threads of one inference; 0 means as many as the machine has.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl ModelArgs {
    fn bundle(&self) -> Result<PathBuf, NoModel> {
        match &self.model {
            Some(dir) => Ok(dir.clone()),
            None => find_model(DEFAULT_MODEL),
        }
    }

    /// Whether the model or what runs it is named, so that no configuration is meant.
    fn says_how(&self) -> bool {
        self.model.is_some()
            || self.precision.is_some()
            || self.runtime != Engine::Auto
            || self.provider != Provider::Auto
    }

    fn options(&self) -> RuntimeOptions {
        RuntimeOptions {
            backend: backend(self.runtime),
            provider: provider(self.provider),
            ort_library: None,
            threads: self.threads,
            precision: self.precision.clone(),
            cache: cache_dir(self.cache_dir.as_deref()),
        }
    }

    fn open(&self) -> anyhow::Result<Pipeline> {
        Ok(Pipeline::open_watched(&self.bundle()?, &self.options(), &OnTerminal)?)
    }
}

/// Says on the terminal what takes long: building an engine looks like a hang otherwise.
struct OnTerminal;

impl Progress for OnTerminal {
    fn stage(&self, stage: &Stage) {
        let _ = writeln!(std::io::stderr(), "samclipd: {stage}");
    }
}

/// Where ONNX Runtime's library is looked for; below the help of every command that may load it.
const SEARCH: &str = "ONNX Runtime's library (1.17 or newer) is looked for in this order:
  1. library under [runtime] of the configuration, and then nowhere else
  2. $SAMCLIP_ORT_LIB, $ORT_DYLIB_PATH
  3. libonnxruntime.so beside the program
  4. libonnxruntime.so, libonnxruntime.so.1 where the loader looks (LD_LIBRARY_PATH, ld.so.conf)
  5. /usr/local/lib, /usr/lib, /usr/lib/<machine>-linux-gnu, /opt/onnxruntime/lib, /usr/lib64
Without one, tract runs the model on the CPU.";

fn main() -> ExitCode {
    forbid_telemetry();
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
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

/// Whether the answer is yes; all commands but `doctor` say so by not failing.
fn run(command: Command) -> anyhow::Result<bool> {
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
            demo(&mut model.open()?, &options, &clock, &stop, &mut table)?;
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
            segment(&mut model.open()?, &options, &clock, &mut table)?;
        }
        Command::Run { config } => {
            let config = read_config(&config)?;
            let stop = stop_on_signal()?;
            let clock: Arc<dyn Clock> = Arc::new(clock);
            daemon(&config, &clock, &stop)?;
        }
        Command::Prepare { config, model, queries } => {
            let options = match config {
                Some(path) => {
                    let config = read_config(&path)?;
                    let mut runtime = runtime_options(&config);
                    runtime.cache = model.cache_dir.or(runtime.cache);
                    PrepareOptions {
                        queries: query_specs(&config.queries),
                        background: config.background,
                        model: config.model,
                        runtime,
                    }
                }
                None => PrepareOptions {
                    model: model.bundle()?,
                    runtime: model.options(),
                    queries: queries.iter().map(|q| QuerySpec::from_text(q)).collect(),
                    background: None,
                },
            };
            // May be killed at any moment: what is finished is kept, and nothing else counts.
            watch_signals(|| std::process::exit(INTERRUPTED))?;
            prepare(&options, &clock, &AtomicBool::new(false), &mut table)?;
        }
        Command::Doctor { config, model } => return Ok(doctor(&symptoms(config, &model), &mut table)?),
        Command::Tune {
            model,
            query,
            against,
            with,
            without,
        } => {
            let options = TuneOptions {
                query,
                against,
                with,
                without,
            };
            tune(&mut model.open()?, &options, &mut table)?;
        }
        Command::CheckConfig { config: path } => {
            let config = read_config(&path)?;
            let (cameras, queries) = (config.cameras.len(), config.queries.len());
            writeln!(table, "{}: valid; {cameras} cameras, {queries} queries", path.display())?;
        }
        #[cfg(feature = "v4l2")]
        Command::Cameras => samclip::daemon::camera_list::list(&mut table)?,
    }
    Ok(true)
}

/// What `doctor` looks at: the configuration named, else the command line if it says anything, else the default file.
fn symptoms(config: Option<PathBuf>, model: &ModelArgs) -> DoctorOptions {
    let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists() && !model.says_how());
    let config = config.or_else(default).map(|path| {
        let read = read_config(&path).map_err(|e| format!("{e:#}"));
        (path, read)
    });
    let (bundle, runtime) = match &config {
        Some((_, Ok(config))) => {
            let mut runtime = runtime_options(config);
            runtime.cache = model.cache_dir.clone().or(runtime.cache);
            (Ok(config.model.clone()), runtime)
        }
        _ => (model.bundle().map_err(|e| e.to_string()), model.options()),
    };
    DoctorOptions {
        config,
        model: bundle,
        runtime,
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
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    watch_signals(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(stop)
}

/// Calls `act` on a thread of its own at every SIGINT and SIGTERM; the first process of a container would get neither.
fn watch_signals(mut act: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("signal handling")?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                act();
            }
        });
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_says_what_runs_the_model_is_not_overruled_by_the_default_file() {
        for (arguments, says_how) in [
            (&["doctor"][..], false),
            (&["doctor", "--threads", "2"], false),
            (&["doctor", "--provider", "tensorrt"], true),
            (&["doctor", "--runtime", "tract"], true),
            (&["doctor", "--precision", "int8"], true),
            (&["doctor", "--model", "x"], true),
        ] {
            let cli = Cli::try_parse_from([&["samclipd"], arguments].concat()).unwrap();
            let Command::Doctor { model, .. } = cli.command else {
                panic!("{arguments:?}");
            };
            assert_eq!(model.says_how(), says_how, "{arguments:?}");
        }
    }
}
