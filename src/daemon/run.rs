//! `samclipd run`: one thread per camera, one pipeline for all of them, messages out; keeps going whatever fails.
//!
//! The broker is connected before the model is opened: where an engine must be built first, which may take minutes, every
//! camera says `building_engine` meanwhile. D-Bus and HTTP are there from the beginning too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::clock::Clock;
use crate::message::payload::DetectStatus;
use crate::runtime::progress::{Progress, Stage};
use crate::runtime::{Backend, Provider, RuntimeError, RuntimeOptions};

use super::board::{Board, Phase};
use super::cameras::sources;
use super::commands::{Door, Requests, door};
use super::config::{self, Config};
use super::directories::{cache_dir, state_dir};
use super::live::LiveState;
use super::notify::Notifier;
use super::outlet::Outlet;
use super::pipeline::{Pipeline, PipelineError};
use super::reload::takes_commands;
use super::schedule;
use super::serve::{Service, Start};
use super::texts::prepare_cameras;
use super::view::View;

/// Pause between two looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// How long opening the model may go on after the daemon was stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the configuration wants the graphs opened.
#[must_use]
pub fn runtime_options(config: &Config) -> RuntimeOptions {
    RuntimeOptions {
        backend: backend(config.engine),
        provider: provider(config.provider),
        ort_library: config.library.clone(),
        threads: 0,
        precision: config.precision.clone(),
        sides: schedule::sides(config),
        cache: cache_dir(config.cache.as_deref()),
    }
}

/// The configuration's word for a back end, as the runtime knows it.
#[must_use]
pub fn backend(engine: config::Engine) -> Backend {
    match engine {
        config::Engine::Auto => Backend::Auto,
        config::Engine::Tract => Backend::Tract,
        config::Engine::Ort => Backend::Ort,
    }
}

/// The configuration's word for a provider, as the runtime knows it.
#[must_use]
pub fn provider(provider: config::Provider) -> Provider {
    match provider {
        config::Provider::Auto => Provider::Auto,
        config::Provider::Cpu => Provider::Cpu,
        config::Provider::Cuda => Provider::Cuda,
        config::Provider::TensorRt => Provider::TensorRt,
    }
}

/// What is around the daemon: who is told, and who may ask.
#[derive(Debug)]
pub struct Surroundings {
    /// The service manager.
    pub notifier: Notifier,
    /// The file that the configuration was read from; a reload reads it again, and is refused without one.
    pub file: Option<PathBuf>,
    /// Set to ask for a reload, as SIGHUP does.
    pub hangup: Arc<AtomicBool>,
    /// What anybody may know.
    pub board: Board,
    /// What is seen of the frames.
    pub view: View,
    door: Door,
    requests: Requests,
}

impl Surroundings {
    /// A service manager, and nobody who asks yet.
    #[must_use]
    pub fn new(notifier: Notifier) -> Self {
        let (door, requests) = door();
        Self {
            notifier,
            file: None,
            hangup: Arc::default(),
            board: Board::new(),
            view: View::new(),
            door,
            requests,
        }
    }

    /// Where commands are handed in.
    #[must_use]
    pub fn door(&self) -> Door {
        self.door.clone()
    }
}

/// Tells of what the start waits for, and every camera's subscribers that an engine is being built.
struct Announce<'a> {
    outlet: &'a Outlet,
    notifier: &'a Notifier,
    stop: &'a AtomicBool,
}

impl Progress for Announce<'_> {
    fn stage(&self, stage: &Stage) {
        info!(%stage, "model");
        self.notifier.status(&stage.to_string());
        let builds = matches!(stage, Stage::BuildEngine(_) | Stage::WaitForBuild(_));
        self.notifier.set_long(builds || *stage == Stage::EmbedTexts);
        if builds {
            self.outlet.board().phase(Phase::BuildingEngine);
            self.outlet.status_of_all(DetectStatus::BuildingEngine);
        } else {
            if self.outlet.board().now().phase == Phase::BuildingEngine {
                self.outlet.await_frames();
            }
            self.outlet.board().phase(Phase::Opening);
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Runs until `stop` is set or every source has come to its end, with the service manager that started the process.
///
/// # Errors
/// What makes the daemon useless from the start: a model that cannot be opened, a query that is refused, credentials
/// that cannot be read. Cameras and the broker may come and go.
pub fn run(config: &Config, clock: &Arc<dyn Clock>, stop: &AtomicBool) -> anyhow::Result<()> {
    run_in(config, clock, stop, Surroundings::new(Notifier::from_env()))
}

/// As [`run`], in surroundings of one's own.
///
/// # Errors
/// As [`run`].
pub fn run_in(
    config: &Config,
    clock: &Arc<dyn Clock>,
    stop: &AtomicBool,
    surroundings: Surroundings,
) -> anyhow::Result<()> {
    let options = runtime_options(config);
    if options.cache.is_none() {
        warn!("no cache directory: neither CACHE_DIRECTORY nor HOME is set; set cache under [runtime]");
    }
    run_with(config, clock, stop, surroundings, |progress| {
        Pipeline::open_watched(&config.model, &options, progress)
    })
}

/// As [`run_in`], with a model that `open` opens.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    config: &Config,
    clock: &Arc<dyn Clock>,
    stop: &AtomicBool,
    surroundings: Surroundings,
    open: impl FnOnce(&dyn Progress) -> Result<Pipeline, PipelineError>,
) -> anyhow::Result<()> {
    sources(config)?;
    let Surroundings {
        notifier,
        file,
        hangup,
        board,
        view,
        door,
        requests,
    } = surroundings;
    let mut live = LiveState::read(state_dir(config.state.as_deref()).as_deref());
    live.set_open(takes_commands(config));
    let outlet = Outlet::start(config, board.clone(), &live)?;
    let _http = open_http(config, &board, &view, &door)?;
    let _bus = open_bus(config, &board, &door);
    let announce = Announce {
        outlet: &outlet,
        notifier: &notifier,
        stop,
    };
    notifier.status("opening the model");
    let opened = ending_if_stopped(stop, &outlet, &notifier, || {
        let pipeline = open(&announce)?;
        schedule::check(config, &pipeline.sides())?;
        let embedder = pipeline.embedder();
        let mut embedder = embedder.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = prepare_cameras(&mut embedder, config, &live)?;
        drop(embedder);
        notifier.set_long(false);
        Ok((pipeline, prepared))
    });
    let (pipeline, prepared) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            board.phase(Phase::Stopping);
            notifier.stopping();
            outlet.give_up();
            return match error {
                PipelineError::Runtime(RuntimeError::Cancelled { .. }) if stop.load(Ordering::Relaxed) => {
                    info!("stopped");
                    Ok(())
                }
                other => Err(other.into()),
            };
        }
    };
    tell_model(&pipeline, config, &board);
    let mut service = Service::start(Start {
        pipeline,
        config: config.clone(),
        prepared,
        live,
        outlet,
        requests,
        file,
        notifier: &notifier,
        clock,
        view,
    })?;
    notifier.ready(&service.summary());
    let ended = service.run(stop, &hangup);
    board.phase(Phase::Stopping);
    notifier.stopping();
    service.stop();
    info!("stopped");
    ended
}

fn tell_model(pipeline: &Pipeline, config: &Config, board: &Board) {
    for note in pipeline.notes() {
        info!(note, "runtime");
    }
    info!(
        model = pipeline.model(),
        provider = pipeline.provider(),
        precision = pipeline.precision(),
        cameras = config.cameras.len(),
        "started"
    );
    board.change(|state| {
        (state.model, state.provider) = (pipeline.model().into(), pipeline.provider().into());
    });
}

/// The daemon on D-Bus, if the configuration wants it there, until this is dropped.
#[cfg(feature = "dbus")]
fn open_bus(config: &Config, board: &Board, door: &Door) -> Option<super::dbus::Bus> {
    let started = config
        .dbus
        .enabled
        .then(|| super::dbus::Bus::start(&config.dbus, board, door.named("D-Bus")))?;
    started.inspect_err(|error| warn!(%error, "nothing is on D-Bus")).ok()
}

/// This build has no D-Bus.
#[cfg(not(feature = "dbus"))]
fn open_bus(_: &Config, _: &Board, _: &Door) -> Option<std::convert::Infallible> {
    None
}

/// The daemon over HTTP, if the configuration wants it there, until this is dropped.
#[cfg(feature = "http")]
fn open_http(config: &Config, board: &Board, view: &View, door: &Door) -> anyhow::Result<Option<super::http::Server>> {
    let http = config.http.as_ref();
    http.map(|http| super::http::Server::start(http, board, view, door.named("HTTP")))
        .transpose()
}

/// This build has no HTTP; a configuration that asks for it is refused.
#[cfg(not(feature = "http"))]
fn open_http(_: &Config, _: &Board, _: &View, _: &Door) -> anyhow::Result<Option<std::convert::Infallible>> {
    Ok(None)
}

/// Opens the model; if `stop` is set meanwhile and that is not noticed soon, says so and ends the program.
///
/// A build of engines and the text encoder cannot be interrupted, and whoever stops the daemon kills it in the end.
/// Nothing is lost: unfinished engines do not count, and every embedding is a file of its own.
fn ending_if_stopped<T>(stop: &AtomicBool, outlet: &Outlet, notifier: &Notifier, open: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (opening, opened) = channel::<()>();
        scope.spawn(move || {
            while opened.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                notifier.opening(Instant::now());
                if stop.load(Ordering::Relaxed) && opened.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    info!("stopped while the model was being opened");
                    notifier.stopping();
                    outlet.say_offline();
                    std::process::exit(0);
                }
            }
        });
        let result = open();
        drop(opening);
        result
    })
}
