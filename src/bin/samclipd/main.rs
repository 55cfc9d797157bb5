//! `samclipd`: arguments → logging → daemon → exit code.

mod arguments;
mod logging;
mod manual;
mod model;
#[cfg(feature = "dbus")]
mod query;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use anyhow::Context;
use clap::Parser;
use samclip::clock::{Clock, SystemClock};
use samclip::daemon::asking::query_specs;
use samclip::daemon::bench::{BenchOptions, bench};
use samclip::daemon::cameras::sources;
use samclip::daemon::config::{Config, DEFAULT_PATH as DEFAULT_CONFIG};
use samclip::daemon::demo::{DemoOptions, demo};
use samclip::daemon::doctor::{DoctorOptions, doctor};
use samclip::daemon::notify::Notifier;
use samclip::daemon::pipeline::QuerySpec;
use samclip::daemon::prepare::{PrepareOptions, prepare};
use samclip::daemon::report::MaskOutput;
use samclip::daemon::run::{Surroundings, run_in};
use samclip::daemon::segment::{SegmentOptions, segment};
use samclip::daemon::tune::{TuneOptions, tune};
use samclip::runtime::forbid_telemetry;
use samclip::runtime::progress::{Progress, Stage};
use tokio::signal::unix::{SignalKind, signal};

use arguments::{Cli, Command, ModelArgs};
use logging::Log;

/// Exit code for a configuration that is refused (`sysexits.h`).
const EX_CONFIG: u8 = 78;

/// Exit code of a command that a signal ended.
const INTERRUPTED: i32 = 130;

/// Says on the terminal what takes minutes: building an engine looks like a hang otherwise.
struct OnTerminal;

impl Progress for OnTerminal {
    fn stage(&self, stage: &Stage) {
        if *stage != Stage::EmbedTexts {
            let _ = writeln!(std::io::stderr(), "samclipd: {stage}");
        }
    }
}

fn main() -> ExitCode {
    forbid_telemetry();
    let cli = Cli::parse();
    let log = Log::start(if matches!(cli.command, Command::Run { .. }) {
        "info"
    } else {
        "warn"
    });
    match run(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log.last_words(&with_causes(&error));
            if error.is::<BadConfig>() {
                ExitCode::from(EX_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// An error and its causes, each said once: many errors name their cause themselves.
fn with_causes(error: &anyhow::Error) -> String {
    let causes = error.chain().skip(1).map(ToString::to_string);
    causes.fold(error.to_string(), |said, cause| {
        if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
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
            size,
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
            segment(&mut model.open_at(&size)?, &options, &clock, &mut table)?;
        }
        Command::Run { config } => {
            let mut surroundings = Surroundings::new(Notifier::from_env());
            let hangup = Arc::clone(&surroundings.hangup);
            watch_signals(&[SignalKind::hangup()], move || hangup.store(true, Ordering::Relaxed))?;
            // As an absolute path: a reload must read the same file.
            surroundings.file = Some(std::path::absolute(&config)?);
            let config = read_config(&config)?;
            let stop = stop_on_signal()?;
            let clock: Arc<dyn Clock> = Arc::new(clock);
            run_in(&config, &clock, &stop, surroundings)?;
        }
        Command::Prepare { config, model, queries } => {
            let options = match config {
                Some(path) => {
                    let config = read_config(&path)?;
                    PrepareOptions {
                        runtime: model.runtime.over(&config),
                        queries: query_specs(&config.queries),
                        background: config.background,
                        model: config.model,
                    }
                }
                None => PrepareOptions {
                    model: model.bundle()?,
                    runtime: model.runtime.options(),
                    queries: queries.iter().map(|q| QuerySpec::from_text(q)).collect(),
                    background: None,
                },
            };
            // May be killed at any moment: what is finished is kept, and nothing else counts.
            watch_signals(&ENDING, || std::process::exit(INTERRUPTED))?;
            prepare(&options, &clock, &AtomicBool::new(false), &mut table)?;
        }
        Command::Doctor { config, model } => return Ok(doctor(&symptoms(config, &model), &mut table)?),
        Command::Bench {
            model,
            size,
            queries,
            rounds,
            json,
        } => {
            let queries = if queries.is_empty() {
                DemoOptions::default().queries
            } else {
                queries
            };
            let options = BenchOptions { queries, rounds, json };
            bench(&mut model.open_at(&size)?, &options, &clock, &mut table)?;
        }
        Command::Tune {
            model,
            size,
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
            tune(&mut model.open_at(&size)?, &options, &mut table)?;
        }
        Command::Model(command) => model::run(command, &mut table)?,
        Command::CheckConfig { config: path } => {
            let config = read_config(&path)?;
            let (cameras, queries) = (config.cameras.len(), config.queries.len());
            writeln!(table, "{}: valid; {cameras} cameras, {queries} queries", path.display())?;
        }
        #[cfg(feature = "dbus")]
        Command::Query(arguments) => query::run(arguments, &mut table)?,
        #[cfg(feature = "v4l2")]
        Command::Cameras => samclip::daemon::camera_list::list(&mut table)?,
        Command::Completions { shell } => manual::completions(shell, &mut table)?,
        Command::Manual { dir } => manual::write(&dir)?,
    }
    Ok(true)
}

/// Whether a file is there, or nobody can tell: a link that leads nowhere and a directory that may not be read are no reason to do
/// without what it says.
fn may_be_there(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// What `doctor` looks at: the configuration named, else the command line if it says anything, else the default file.
fn symptoms(config: Option<PathBuf>, model: &ModelArgs) -> DoctorOptions {
    let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| may_be_there(path) && !model.says_how());
    let config = config.or_else(default).map(|path| {
        let read = read_config(&path).map_err(|e| format!("{e:#}"));
        (path, read)
    });
    let (bundle, runtime) = match &config {
        Some((_, Ok(config))) => (Ok(config.model.clone()), model.runtime.over(config)),
        _ => (model.bundle().map_err(|e| e.to_string()), model.runtime.options()),
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
    watch_signals(&ENDING, move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(stop)
}

/// Signals that end a command.
const ENDING: [SignalKind; 2] = [SignalKind::interrupt(), SignalKind::terminate()];

/// Calls `act` on a thread of its own at every one of some signals; the first process of a container would not get them.
fn watch_signals(kinds: &[SignalKind], mut act: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("signal handling")?;
    let mut signals = {
        let _guard = runtime.enter();
        kinds.iter().map(|kind| signal(*kind)).collect::<Result<Vec<_>, _>>()?
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                std::future::poll_fn(|context| {
                    let received = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
                    if received { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
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
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no space")
            .context("file f: no space")
            .context("cannot install");
        assert_eq!(with_causes(&error), "cannot install: file f: no space");
    }
}
