//! `samclipd run`: one thread per camera, one pipeline for all of them, messages out; keeps going whatever fails.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::capture::{self, CaptureError, FrameSource, Scheme, SourceUri};
use crate::clock::{Clock, Moment};
use crate::message::payload::{CameraStats, DetectStatus, SCHEMA, StatsMessage};
use crate::message::topic::{CameraId, QueryId, Topics};
use crate::publish::mqtt::{Publisher, Settings};
use crate::runtime::{Backend, Provider, RuntimeOptions};
use crate::vision::frame::Frame;

use super::config::{self, Config};
use super::latest::{Latest, Taken};
use super::pipeline::{Detections, Pipeline, QuerySpec};
use super::report::{MaskOutput, frame_message};

/// First and longest pause before a source that failed is opened again; the pause doubles.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Pause between two looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// Distance of two stats messages.
const STATS_PERIOD: Duration = Duration::from_secs(10);

/// How long the last messages may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// Parses the sources of all cameras, so that nothing is opened before the whole configuration is valid.
///
/// # Errors
/// [`CaptureError::Uri`] for the first source that is not understood.
pub fn sources(config: &Config) -> Result<Vec<SourceUri>, CaptureError> {
    let parse = |camera: &config::Camera| {
        let mut uri = SourceUri::from_str(&camera.source)?;
        uri.fps = uri.fps.or(camera.fps.map(|f| f as f32));
        Ok(uri)
    };
    config.cameras.iter().map(parse).collect()
}

/// How the configuration wants the graphs opened.
#[must_use]
pub fn runtime_options(config: &Config) -> RuntimeOptions {
    RuntimeOptions {
        backend: match config.engine {
            config::Engine::Auto => Backend::Auto,
            config::Engine::Tract => Backend::Tract,
            config::Engine::Ort => Backend::Ort,
        },
        provider: match config.provider {
            config::Provider::Auto => Provider::Auto,
            config::Provider::Cpu => Provider::Cpu,
            config::Provider::Cuda => Provider::Cuda,
            config::Provider::TensorRt => Provider::TensorRt,
        },
        ort_library: config.library.clone(),
        ..RuntimeOptions::default()
    }
}

/// The queries of the configuration.
#[must_use]
pub fn query_specs(config: &Config) -> Vec<QuerySpec> {
    let spec = |q: &config::Query| QuerySpec {
        id: q.id.to_string(),
        prompts: q.prompts.clone(),
        threshold: q.threshold,
        min_area: usize::try_from(q.min_area).unwrap_or(usize::MAX),
    };
    config.queries.iter().map(spec).collect()
}

/// Runs until `stop` is set or every source has come to its end.
///
/// # Errors
/// What makes the daemon useless from the start: a model that cannot be opened, a query that is refused, credentials
/// that cannot be read. Cameras and the broker may come and go.
pub fn run(config: &Config, clock: &Arc<dyn Clock>, stop: &AtomicBool) -> anyhow::Result<()> {
    let sources = sources(config)?;
    let mut pipeline = Pipeline::open(&config.model, &runtime_options(config))?;
    pipeline.set_queries(&query_specs(config))?;
    for note in pipeline.notes() {
        info!(note, "runtime");
    }
    info!(model = pipeline.model(), provider = pipeline.provider(), cameras = sources.len(), "started");
    let outlet = Outlet::start(config)?;
    let latest = Latest::new(sources.len());
    let ended = std::thread::scope(|scope| {
        let cameras: Vec<_> = sources
            .iter()
            .enumerate()
            .map(|(slot, uri)| {
                let (latest, outlet, clock) = (&latest, &outlet, Arc::clone(clock));
                scope.spawn(move || watch(slot, uri, latest, outlet, &clock, stop))
            })
            .collect();
        let result = serve(&mut pipeline, config, &latest, &outlet, clock.as_ref(), stop, || {
            cameras.iter().all(std::thread::ScopedJoinHandle::is_finished)
        });
        // Cameras see the closed hand-off and end, whatever ended the pipeline.
        latest.close();
        result
    });
    outlet.stop();
    info!("stopped");
    ended
}

/// Feeds one slot from one source; opens it again after every failure, until the end of the source or `stop`.
fn watch(
    slot: usize,
    uri: &SourceUri,
    latest: &Latest<Frame>,
    outlet: &Outlet,
    clock: &Arc<dyn Clock>,
    stop: &AtomicBool,
) {
    let stopping = || stop.load(Ordering::Relaxed) || latest.is_closed();
    // A file without a rate is read as fast as it is processed; everything else is live and the newest frame wins.
    let mut pause = RETRY.0;
    while !stopping() {
        let error = match capture::open(uri, Arc::clone(clock)) {
            Err(error) => error,
            Ok(mut source) => {
                info!(source = source.description(), "source opened");
                match feed(slot, uri, source.as_mut(), latest, outlet, &stopping, &mut pause) {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
        };
        outlet.status(slot, DetectStatus::Offline);
        warn!(source = uri.text, %error, retry_s = pause.as_secs_f32(), "source failed");
        let until = clock.now().monotonic + pause;
        while !stopping() && clock.now().monotonic < until {
            clock.sleep(TICK);
        }
        pause = (pause * 2).min(RETRY.1);
    }
    outlet.status(slot, DetectStatus::Offline);
}

fn feed(
    slot: usize,
    uri: &SourceUri,
    source: &mut dyn FrameSource,
    latest: &Latest<Frame>,
    outlet: &Outlet,
    stopping: &dyn Fn() -> bool,
    pause: &mut Duration,
) -> Result<(), CaptureError> {
    let lossless = uri.scheme != Scheme::V4l2 && uri.fps.is_none();
    let mut online = false;
    while !stopping() {
        let Some(frame) = source.next_frame()? else {
            info!(source = uri.text, lost = source.lost(), "end of source");
            return Ok(());
        };
        if !online {
            (online, *pause) = (true, RETRY.0);
            outlet.status(slot, DetectStatus::Online);
        }
        if lossless {
            latest.put_when_empty(slot, frame);
        } else {
            latest.put(slot, frame);
        }
    }
    Ok(())
}

/// Takes frames through the pipeline and sends what it finds.
fn serve(
    pipeline: &mut Pipeline,
    config: &Config,
    latest: &Latest<Frame>,
    outlet: &Outlet,
    clock: &dyn Clock,
    stop: &AtomicBool,
    sources_ended: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let output = MaskOutput {
        polygon: config.output.polygon,
        tolerance: config.output.tolerance,
        rle: config.output.rle,
    };
    let mut health = Health::new(clock.now(), config.cameras.len());
    let mut failing = false;
    while !stop.load(Ordering::Relaxed) {
        // Asked before looking, so that the last frame of the last source is not missed.
        let ended = sources_ended();
        match latest.take(TICK) {
            Taken::Closed => break,
            Taken::Nothing if ended => break,
            Taken::Nothing => {}
            Taken::Item(slot, frame) => match pipeline.run(&frame) {
                Ok(found) => {
                    failing = false;
                    health.count(slot, &found);
                    log_detections(&config.cameras[slot].id, pipeline, &found);
                    match frame_message(config.cameras[slot].id.as_str(), pipeline, &found, clock.now(), output) {
                        Ok(message) => outlet.frame(slot, &message.encode()?, &mut health, &found),
                        Err(error) => warn!(%error, "frame not published"),
                    }
                }
                Err(error) if !failing => {
                    failing = true;
                    warn!(%error, "frame not processed; logged again after the next good frame");
                }
                Err(error) => debug!(%error, "frame not processed"),
            },
        }
        let now = clock.now();
        if now.since(health.since) >= STATS_PERIOD {
            outlet.stats(health.message(pipeline, config, latest, now, outlet.dropped()).encode()?);
            health.restart(now);
        }
    }
    Ok(())
}

fn log_detections(camera: &CameraId, pipeline: &Pipeline, found: &Detections) {
    for m in &found.masks {
        let query = pipeline.queries().get(m.query).map_or("", |q| &q.id);
        debug!(%camera, seq = found.sequence.0, query, score = m.score, area = m.mask.area(), "detection");
    }
}

/// The publisher, if the configuration has one, with the topics of every camera.
struct Outlet {
    mqtt: Option<(Publisher, Topics)>,
    cameras: Vec<CameraId>,
    queries: Vec<QueryId>,
}

impl Outlet {
    fn start(config: &Config) -> anyhow::Result<Self> {
        let mqtt = match &config.mqtt {
            None => None,
            Some(mqtt) => {
                let available = mqtt.topics.available();
                let mut settings = Settings::new(&mqtt.host, mqtt.port, &mqtt.client_id, available);
                settings.credentials = mqtt.read_credentials()?;
                Some((Publisher::start(settings)?, mqtt.topics.clone()))
            }
        };
        let cameras = config.cameras.iter().map(|c| c.id.clone()).collect();
        let queries = config.queries.iter().map(|q| q.id.clone()).collect();
        Ok(Self { mqtt, cameras, queries })
    }

    fn status(&self, slot: usize, status: DetectStatus) {
        if let (Some((publisher, topics)), Some(camera)) = (&self.mqtt, self.cameras.get(slot)) {
            publisher.publish(topics.detect_status(camera), status.as_str().into());
        }
    }

    /// Sends the frame message, and the retained count of every query whose count changed.
    fn frame(&self, slot: usize, message: &[u8], health: &mut Health, found: &Detections) {
        let (Some((publisher, topics)), Some(camera)) = (&self.mqtt, self.cameras.get(slot)) else { return };
        publisher.publish(topics.frame(camera), message.to_vec());
        for (index, query) in self.queries.iter().enumerate() {
            let count = found.masks.iter().filter(|m| m.query == index).count();
            if health.counts.insert((slot, index), count) != Some(count) {
                publisher.publish(topics.count(camera, query), count.to_string().into_bytes());
            }
        }
    }

    fn stats(&self, body: Vec<u8>) {
        if let Some((publisher, topics)) = &self.mqtt {
            publisher.publish(topics.stats(), body);
        }
    }

    fn dropped(&self) -> u64 {
        self.mqtt.as_ref().map_or(0, |(publisher, _)| publisher.stats().dropped)
    }

    fn stop(self) {
        if let Some((publisher, _)) = self.mqtt
            && !publisher.stop(GRACE)
        {
            warn!("the broker did not acknowledge the last messages");
        }
    }
}

/// Counters for the stats message.
struct Health {
    started: Moment,
    since: Moment,
    frames: Vec<u64>,
    frames_in_period: Vec<u64>,
    stages: BTreeMap<&'static str, Duration>,
    counts: BTreeMap<(usize, usize), usize>,
}

impl Health {
    fn new(now: Moment, cameras: usize) -> Self {
        let zeros = vec![0; cameras];
        Self {
            started: now,
            since: now,
            frames: zeros.clone(),
            frames_in_period: zeros,
            stages: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, slot: usize, found: &Detections) {
        self.frames[slot] += 1;
        self.frames_in_period[slot] += 1;
        for (stage, time) in found.times.by_name() {
            *self.stages.entry(stage).or_default() += time;
        }
    }

    fn restart(&mut self, now: Moment) {
        self.since = now;
        self.frames_in_period.fill(0);
        self.stages.clear();
    }

    fn message(
        &self,
        pipeline: &Pipeline,
        config: &Config,
        latest: &Latest<Frame>,
        now: Moment,
        dropped_messages: u64,
    ) -> StatsMessage {
        let seconds = now.since(self.since).as_secs_f32().max(1e-3);
        let all = self.frames_in_period.iter().sum::<u64>().max(1) as f32;
        let camera = |(slot, camera): (usize, &config::Camera)| {
            let stats = CameraStats {
                fps: self.frames_in_period[slot] as f32 / seconds,
                frames: self.frames[slot],
                skipped: latest.dropped(slot),
            };
            (camera.id.to_string(), stats)
        };
        StatsMessage {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: now.since(self.started).as_secs(),
            model: pipeline.model().into(),
            provider: pipeline.provider().into(),
            memory_bytes: resident_bytes(),
            dropped_messages,
            cameras: config.cameras.iter().enumerate().map(camera).collect(),
            stage_ms: self.stages.iter().map(|(s, t)| ((*s).to_owned(), t.as_secs_f32() * 1e3 / all)).collect(),
        }
    }
}

/// Resident memory of this process, where the kernel tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
