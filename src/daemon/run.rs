//! `samclipd run`: one thread per camera, one pipeline for all of them, messages out; keeps going whatever fails.
//!
//! The broker is connected before the model is opened: where an engine must be built first, which may take minutes, every
//! camera says `building_engine` meanwhile.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::capture::{self, CaptureError, FrameSource, Scheme, SourceUri};
use crate::clock::Clock;
use crate::message::payload::DetectStatus;
use crate::message::topic::CameraId;
use crate::runtime::progress::{Progress, Stage};
use crate::runtime::{Backend, Provider, RuntimeError, RuntimeOptions};
use crate::vision::frame::Frame;

use super::commands::{carry_out, restore};
use super::config::{self, Config};
use super::directories::{cache_dir, state_dir};
use super::health::Health;
use super::intake::Intake;
use super::latest::{Latest, Taken};
use super::live::LiveState;
use super::notify::Notifier;
use super::outlet::Outlet;
use super::pipeline::{Detections, Pipeline, PipelineError, QuerySpec};
use super::station::Station;

/// First and longest pause before a source that failed is opened again; the pause doubles. Somebody who plugs a camera in
/// again waits that long for it.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Pause between two looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// How long opening the model may go on after the daemon was stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// Distance of two stats messages.
const STATS_PERIOD: Duration = Duration::from_secs(10);

/// What a camera's thread hands to the pipeline.
#[derive(Debug)]
pub(super) enum Delivery {
    /// The newest frame.
    Frame(Frame),
    /// There will be none for a while.
    Gone,
}

/// Parses the sources of all cameras, so that nothing is opened before the whole configuration is valid.
///
/// # Errors
/// [`CaptureError::Uri`] for the first source that is not understood.
pub fn sources(config: &Config) -> Result<Vec<SourceUri>, CaptureError> {
    let parse = |camera: &config::Camera| {
        let mut uri = SourceUri::from_str(&camera.source)?;
        uri.fps = uri.fps.or(camera.fps.map(|f| f as f32));
        uri.controls.clone_from(&camera.controls);
        Ok(uri)
    };
    config.cameras.iter().map(parse).collect()
}

/// How the configuration wants the graphs opened.
#[must_use]
pub fn runtime_options(config: &Config) -> RuntimeOptions {
    RuntimeOptions {
        backend: backend(config.engine),
        provider: provider(config.provider),
        ort_library: config.library.clone(),
        threads: 0,
        precision: config.precision.clone(),
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

/// Queries as the pipeline knows them.
#[must_use]
pub fn query_specs(queries: &[config::Query]) -> Vec<QuerySpec> {
    let spec = |q: &config::Query| QuerySpec {
        id: q.id.to_string(),
        prompts: q.prompts.clone(),
        threshold: q.threshold,
        min_area: usize::try_from(q.min_area).unwrap_or(usize::MAX),
        max_area: q.max_area.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        color: q.color,
    };
    queries.iter().map(spec).collect()
}

/// Tells every camera's subscribers that an engine is being built.
struct Announce<'a> {
    outlet: &'a Outlet,
    notifier: &'a Notifier,
    stop: &'a AtomicBool,
}

impl Progress for Announce<'_> {
    fn stage(&self, stage: &Stage) {
        info!(%stage, "model");
        self.notifier.status(&stage.to_string());
        self.notifier
            .set_building(matches!(stage, Stage::BuildEngine(_) | Stage::WaitForBuild(_)));
        match stage {
            Stage::BuildEngine(_) | Stage::WaitForBuild(_) => self.outlet.status_of_all(DetectStatus::BuildingEngine),
            Stage::VerifyEngine(_) | Stage::LoadEngine(_) => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Runs until `stop` is set or every source has come to its end.
///
/// # Errors
/// What makes the daemon useless from the start: a model that cannot be opened, a query that is refused, credentials
/// that cannot be read. Cameras and the broker may come and go.
pub fn run(config: &Config, clock: &Arc<dyn Clock>, stop: &AtomicBool) -> anyhow::Result<()> {
    let options = runtime_options(config);
    if options.cache.is_none() {
        warn!("no cache directory: neither CACHE_DIRECTORY nor HOME is set; set cache under [runtime]");
    }
    run_with(config, clock, stop, &Notifier::from_env(), |progress| {
        Pipeline::open_watched(&config.model, &options, progress)
    })
}

/// As [`run`], with a model that `open` opens and a service manager of its own.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    config: &Config,
    clock: &Arc<dyn Clock>,
    stop: &AtomicBool,
    notifier: &Notifier,
    open: impl FnOnce(&dyn Progress) -> Result<Pipeline, PipelineError>,
) -> anyhow::Result<()> {
    let mut sources = sources(config)?;
    let outlet = Outlet::start(config)?;
    let announce = Announce {
        outlet: &outlet,
        notifier,
        stop,
    };
    notifier.status("opening the model");
    let opened = ending_if_stopped(stop, &outlet, notifier, || {
        let mut pipeline = open(&announce)?;
        notifier.set_building(false);
        let asked = pipeline.prepare_queries(&query_specs(&config.queries), config.background.as_deref())?;
        pipeline.ask(&asked);
        Ok(pipeline)
    });
    let mut pipeline = match opened {
        Ok(pipeline) => pipeline,
        Err(error) => {
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
    for note in pipeline.notes() {
        info!(note, "runtime");
    }
    info!(
        model = pipeline.model(),
        provider = pipeline.provider(),
        precision = pipeline.precision(),
        cameras = sources.len(),
        "started"
    );
    for uri in &mut sources {
        uri.side = u32::try_from(pipeline.manifest().encoder.side).ok();
    }
    let latest = Latest::new(sources.len());
    let intakes: Vec<Intake> = sources.iter().map(|_| Intake::default()).collect();
    let ended = std::thread::scope(|scope| {
        let cameras: Vec<_> = sources
            .iter()
            .enumerate()
            .map(|(slot, uri)| {
                let (latest, intake, clock) = (&latest, &intakes[slot], Arc::clone(clock));
                scope.spawn(move || watch(slot, uri, latest, intake, &clock, stop))
            })
            .collect();
        notifier.ready(&format!("{} on {}", pipeline.model(), pipeline.provider()));
        let result = serve(
            &mut pipeline,
            config,
            &latest,
            &intakes,
            &outlet,
            notifier,
            clock.as_ref(),
            stop,
            || cameras.iter().all(std::thread::ScopedJoinHandle::is_finished),
        );
        // Cameras see the closed hand-off and end, whatever ended the pipeline.
        latest.close();
        notifier.stopping();
        result
    });
    outlet.stop();
    info!("stopped");
    ended
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

/// Feeds one slot from one source; opens it again after every failure, until the end of the source or `stop`.
fn watch(
    slot: usize,
    uri: &SourceUri,
    latest: &Latest<Delivery>,
    intake: &Intake,
    clock: &Arc<dyn Clock>,
    stop: &AtomicBool,
) {
    let stopping = || stop.load(Ordering::Relaxed) || latest.is_closed();
    // A file without a rate is read as fast as it is processed; everything else is live and the newest frame wins.
    let mut progress = Watched {
        pause: RETRY.0,
        next_number: 0,
    };
    let (mut opened, mut told) = (false, String::new());
    while !stopping() {
        let error = match capture::open(uri, Arc::clone(clock)) {
            Err(error) => error,
            Ok(mut source) => {
                info!(source = source.description(), "source opened");
                if std::mem::replace(&mut opened, true) {
                    intake.count_reopening();
                }
                told.clear();
                let outcome = feed(slot, uri, source.as_mut(), latest, intake, &stopping, &mut progress);
                intake.add(source.losses());
                match outcome {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
        };
        latest.put_when_empty(slot, Delivery::Gone);
        let (pause, text) = (progress.pause, error.to_string());
        if text == told {
            debug!(source = uri.text, error = text, "source failed again");
        } else {
            warn!(
                source = uri.text,
                error = text,
                "source failed; tried again until it works"
            );
            told = text;
        }
        let until = clock.now().monotonic + pause;
        while !stopping() && clock.now().monotonic < until {
            clock.sleep(TICK);
        }
        progress.pause = (pause * 2).min(RETRY.1);
    }
    latest.put_when_empty(slot, Delivery::Gone);
}

/// What holds across openings of a source.
struct Watched {
    /// Until the next opening.
    pause: Duration,
    /// Number of the next frame: numbers rise, however often the source starts anew.
    next_number: u64,
}

fn feed(
    slot: usize,
    uri: &SourceUri,
    source: &mut dyn FrameSource,
    latest: &Latest<Delivery>,
    intake: &Intake,
    stopping: &dyn Fn() -> bool,
    progress: &mut Watched,
) -> Result<(), CaptureError> {
    let first = progress.next_number;
    let lossless = uri.scheme != Scheme::V4l2 && uri.fps.is_none();
    while !stopping() {
        let there = source.wait(TICK)?;
        intake.add(source.losses());
        if !there {
            continue;
        }
        let Some(mut frame) = source.next_frame()? else {
            intake.add(source.losses());
            info!(source = uri.text, damaged = intake.losses().corrupt, "end of source");
            return Ok(());
        };
        frame.sequence.0 += first;
        progress.next_number = frame.sequence.0 + 1;
        progress.pause = RETRY.0;
        if lossless {
            latest.put_when_empty(slot, Delivery::Frame(frame));
        } else {
            latest.put(slot, Delivery::Frame(frame));
        }
    }
    Ok(())
}

/// Whether queries may be changed over MQTT.
fn commands(config: &Config) -> bool {
    config.mqtt.as_ref().is_some_and(|mqtt| mqtt.commands)
}

/// Takes frames through the pipeline and sends what it finds.
#[allow(clippy::too_many_arguments)] // called once; each is another part of the daemon
fn serve(
    pipeline: &mut Pipeline,
    config: &Config,
    latest: &Latest<Delivery>,
    intakes: &[Intake],
    outlet: &Outlet,
    notifier: &Notifier,
    clock: &dyn Clock,
    stop: &AtomicBool,
    sources_ended: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let asked = pipeline.asked();
    let station = |camera| Station::new(camera, config, Arc::clone(&asked));
    let mut stations: Vec<Station> = config.cameras.iter().map(station).collect();
    let mut live = LiveState::read(
        state_dir(config.state.as_deref())
            .as_deref()
            .filter(|_| commands(config)),
    );
    for station in &mut stations {
        restore(station, pipeline, &live, outlet);
    }
    let mut health = Health::new(clock.now(), config.cameras.len());
    let mut failing = false;
    while !stop.load(Ordering::Relaxed) {
        if let Some((messages, topics)) = outlet.incoming() {
            for message in &messages {
                if outlet.is_birth(message) {
                    stations.iter().for_each(|station| station.say_queries(outlet));
                }
                carry_out(message, topics, &mut stations, pipeline, &mut live, outlet);
            }
        }
        // Asked before looking, so that the last frame of the last source is not missed.
        let ended = sources_ended();
        match latest.take(TICK) {
            Taken::Closed => break,
            Taken::Nothing if ended => break,
            Taken::Nothing => {}
            Taken::Item(slot, Delivery::Gone) => stations[slot].gone(outlet),
            Taken::Item(slot, Delivery::Frame(_)) if !stations[slot].detects() => stations[slot].idle(outlet),
            Taken::Item(slot, Delivery::Frame(frame)) => {
                let station = &mut stations[slot];
                pipeline.ask(station.asked());
                match pipeline.run(&frame) {
                    Ok(found) => {
                        failing = false;
                        health.count(slot, &found);
                        log_detections(station.id(), pipeline, &found);
                        let before = clock.now();
                        station.observe(pipeline, &found, before, outlet);
                        health.add("report", clock.now().since(before));
                    }
                    Err(error) if !failing => {
                        failing = true;
                        warn!(%error, "frame not processed; logged again after the next good frame");
                    }
                    Err(error) => debug!(%error, "frame not processed"),
                }
            }
        }
        if !failing {
            notifier.alive(Instant::now());
        }
        let now = clock.now();
        if now.since(health.since) >= STATS_PERIOD {
            outlet.stats(
                health
                    .message(pipeline, config, latest, intakes, now, &outlet.counters())
                    .encode()?,
            );
            health.restart(now);
        }
    }
    // Nobody waits for the end of a thing that nobody looks at any more.
    stations.iter_mut().for_each(|station| station.gone(outlet));
    Ok(())
}

fn log_detections(camera: &CameraId, pipeline: &Pipeline, found: &Detections) {
    for m in &found.masks {
        let query = pipeline.queries().get(m.query).map_or("", |q| &q.id);
        debug!(%camera, seq = found.sequence.0, query, score = m.score, area = m.mask.area(), "detection");
    }
}
