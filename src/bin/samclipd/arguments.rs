//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use samclip::contract::Manifest;
use samclip::daemon::config::{Config, DEFAULT_PATH as DEFAULT_CONFIG, Engine, Provider};
use samclip::daemon::demo::DemoOptions;
use samclip::daemon::directories::cache_dir;
use samclip::daemon::models::{DEFAULT_MODEL, NoModel, find_model};
use samclip::daemon::pipeline::Pipeline;
use samclip::daemon::run::{backend, provider, runtime_options};
use samclip::runtime::RuntimeOptions;

use super::OnTerminal;
use super::model::ModelCommand;
#[cfg(feature = "dbus")]
use super::query::QueryArgs;

/// Where ONNX Runtime's library is looked for; below the help of every command that may load it.
pub(crate) const SEARCH: &str = "ONNX Runtime's library (1.17 or newer) is looked for in this order:
  1. library under [runtime] of the configuration, and then nowhere else
  2. $SAMCLIP_ORT_LIB, $ORT_DYLIB_PATH
  3. libonnxruntime.so beside the program
  4. libonnxruntime.so, libonnxruntime.so.1 where the loader looks (LD_LIBRARY_PATH, ld.so.conf)
  5. /usr/local/lib, /usr/lib, /usr/lib/<machine>-linux-gnu, /opt/onnxruntime/lib, /usr/lib64
Without one, tract runs the model on the CPU.";

/// Text in, masks out, on the camera.
#[derive(Parser)]
#[command(name = "samclipd", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
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
        #[command(flatten)]
        size: SizeArgs,
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
        /// Configuration file: its model, runtime and queries instead of the options below, of which only --cache-dir and --threads
        /// hold beside it.
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
        /// Configuration file, beside which only --cache-dir and --threads hold; without one and without the options below, the
        /// default file if it exists.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "runtime", "provider", "precision"])]
        config: Option<PathBuf>,
        #[command(flatten)]
        model: ModelArgs,
    },
    /// Measure what a frame costs on this machine, stage by stage, and what a further query adds.
    #[command(after_help = SEARCH)]
    Bench {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        size: SizeArgs,
        /// A text to look for; may be given several times [default: the demo's].
        #[arg(long = "query", value_name = "TEXT")]
        queries: Vec<String>,
        /// Rounds over the built-in pictures.
        #[arg(long, value_name = "N", default_value_t = 5)]
        rounds: usize,
        /// Print the figures as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how a text scores on pictures with and without the thing, and propose a threshold.
    #[command(after_help = SEARCH)]
    Tune {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        size: SizeArgs,
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
    /// Install model bundles, list them, go back to the version before.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Check a configuration file and say what is wrong with it.
    CheckConfig {
        /// Configuration file.
        #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Look at the queries of the running daemon, and change them.
    #[cfg(feature = "dbus")]
    Query(QueryArgs),
    /// List cameras and their formats.
    #[cfg(feature = "v4l2")]
    Cameras,
    /// Print the completions of a shell: bash, zsh, fish and others.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages and completions for a package.
    #[command(hide = true)]
    Manual {
        /// Directory for the files.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Model bundle: a directory with manifest.toml.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
}

#[derive(Args)]
pub(crate) struct SizeArgs {
    /// Side in pixels of the bundle's size to use; the bundle's own if not given.
    #[arg(long, value_name = "PIXELS")]
    pub(crate) side: Option<usize>,
}

#[derive(Args)]
pub(crate) struct RuntimeArgs {
    /// What runs the model.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub(crate) runtime: Engine,
    /// ONNX Runtime's provider; what is named must do the work, auto falls back and says why.
    #[arg(long, value_enum, default_value_t = Provider::Auto)]
    pub(crate) provider: Provider,
    /// Variant of the bundle's graphs; the best for the provider if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) precision: Option<String>,
    /// Directory for engines and text embeddings [default: $CACHE_DIRECTORY, $XDG_CACHE_HOME/samclip, ~/.cache/samclip].
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Threads of one inference; 0 means as many as the machine has.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
}

impl ModelArgs {
    pub(crate) fn bundle(&self) -> Result<PathBuf, NoModel> {
        match &self.model {
            Some(dir) => Ok(dir.clone()),
            None => find_model(DEFAULT_MODEL),
        }
    }

    /// Whether the model or what runs it is named, so that no configuration is meant.
    pub(crate) fn says_how(&self) -> bool {
        let RuntimeArgs {
            runtime,
            provider,
            precision,
            ..
        } = &self.runtime;
        self.model.is_some() || precision.is_some() || *runtime != Engine::Auto || *provider != Provider::Auto
    }

    pub(crate) fn open(&self) -> anyhow::Result<Pipeline> {
        self.open_at(&SizeArgs { side: None })
    }

    pub(crate) fn open_at(&self, size: &SizeArgs) -> anyhow::Result<Pipeline> {
        let mut bundle = Manifest::read(&self.bundle()?)?;
        if let Some(side) = size.side {
            bundle = bundle.at(side)?;
        }
        Ok(Pipeline::open_bundle(&bundle, &self.runtime.options(), &OnTerminal)?)
    }
}

impl RuntimeArgs {
    /// What a configuration says, but for the cache and the threads, which the command line may say beside it.
    pub(crate) fn over(&self, config: &Config) -> RuntimeOptions {
        let said = runtime_options(config);
        RuntimeOptions {
            cache: self.cache_dir.clone().or(said.cache),
            threads: self.threads,
            ..said
        }
    }

    pub(crate) fn options(&self) -> RuntimeOptions {
        RuntimeOptions {
            backend: backend(self.runtime),
            provider: provider(self.provider),
            ort_library: None,
            threads: self.threads,
            precision: self.precision.clone(),
            sides: Vec::new(),
            cache: cache_dir(self.cache_dir.as_deref()),
        }
    }
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
