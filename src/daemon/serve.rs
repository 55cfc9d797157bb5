//! The frame loop: takes frames of all cameras through the pipeline in turn, tells what was found, and between two frames
//! carries out what was asked of it (`desk`).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::clock::Clock;
use crate::message::topic::CameraId;
use crate::vision::frame::Frame;

use super::board::Phase;
use super::cameras::{Delivery, Feed};
use super::commands::Requests;
use super::config::Config;
use super::desk::Task;
use super::health::Health;
use super::latest::{Latest, Taken};
use super::live::LiveState;
use super::notify::Notifier;
use super::outlet::Outlet;
use super::pipeline::{Detections, Pipeline};
use super::station::{Prepared, Station};
use super::texts::TextWorker;
use super::view::View;

/// Longest wait for a frame before commands and the stop flag are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Distance of two stats messages.
const STATS_PERIOD: Duration = Duration::from_secs(10);

/// Distance of two looks at counters that others keep.
const COUNTERS_PERIOD: Duration = Duration::from_secs(1);

/// How long the texts' thread may go on after the last frame.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the loop starts with.
pub(super) struct Start<'a> {
    pub(super) pipeline: Pipeline,
    pub(super) config: Config,
    /// What its cameras are asked, in their order.
    pub(super) prepared: Vec<Prepared>,
    pub(super) live: LiveState,
    pub(super) outlet: Outlet,
    pub(super) requests: Requests,
    /// Where the configuration was read.
    pub(super) file: Option<PathBuf>,
    pub(super) notifier: &'a Notifier,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) view: View,
}

/// A camera with its thread.
pub(super) struct Watched {
    pub(super) station: Station,
    pub(super) feed: Feed,
}

/// The loop's parts.
pub(super) struct Service<'a> {
    pub(super) pipeline: Pipeline,
    pub(super) config: Arc<Config>,
    pub(super) file: Option<PathBuf>,
    /// In the order of the configuration.
    pub(super) cameras: Vec<Watched>,
    pub(super) latest: Arc<Latest<Delivery>>,
    /// Threads of cameras that the configuration has no more.
    pub(super) ending: Vec<JoinHandle<()>>,
    pub(super) live: LiveState,
    pub(super) outlet: Outlet,
    pub(super) requests: Requests,
    pub(super) worker: TextWorker,
    /// Commands that need the worker, in order.
    pub(super) waiting: VecDeque<Task>,
    /// The one it is at.
    pub(super) in_work: Option<Task>,
    pub(super) health: Health,
    pub(super) notifier: &'a Notifier,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) view: View,
    counted: Instant,
    /// Slot of the camera whose frame was the last one, if that could not be processed.
    failing: Option<usize>,
}

impl<'a> Service<'a> {
    /// Starts the cameras and says what they are asked.
    pub(super) fn start(start: Start<'a>) -> anyhow::Result<Self> {
        let worker = TextWorker::start(start.pipeline.embedder())?;
        let mut service = Self {
            pipeline: start.pipeline,
            config: Arc::new(start.config),
            file: start.file,
            cameras: Vec::new(),
            latest: Arc::new(Latest::new(0)),
            ending: Vec::new(),
            live: start.live,
            outlet: start.outlet,
            requests: start.requests,
            worker,
            waiting: VecDeque::new(),
            in_work: None,
            health: Health::new(start.clock.now()),
            notifier: start.notifier,
            clock: start.clock,
            view: start.view,
            counted: Instant::now(),
            failing: None,
        };
        let config = Arc::clone(&service.config);
        for (camera, prepared) in config.cameras.iter().zip(start.prepared) {
            let watched = service.open_camera(camera, &config, prepared)?;
            service.cameras.push(watched);
        }
        // From now on frames are expected.
        service.view.turn(true);
        service.outlet.board().phase(Phase::Running);
        Ok(service)
    }

    /// What the daemon does, as one line.
    pub(super) fn summary(&self) -> String {
        format!("{} on {}", self.pipeline.model(), self.pipeline.provider())
    }

    /// Runs until `stop` is set or every source has come to its end; `hangup` asks for a reload.
    pub(super) fn run(&mut self, stop: &AtomicBool, hangup: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.serve_commands(hangup);
            // Asked before looking, so that the last frame of the last source is not missed.
            let ended = self.cameras.iter().all(|camera| camera.feed.is_finished());
            let taken = self.latest.take(TICK);
            let gave = self.cameras.iter_mut().map(|camera| camera.feed.gave());
            self.view.turn(gave.fold(false, |any, gave| any | gave));
            match taken {
                Taken::Closed => break,
                Taken::Nothing if ended && self.in_work.is_none() => break,
                Taken::Nothing => {}
                Taken::Item(slot, delivery) => self.deliver(slot, delivery),
            }
            if self.failing.is_none() {
                self.notifier.alive(Instant::now());
            }
            self.tell_counters();
            self.tell_health()?;
        }
        Ok(())
    }

    fn deliver(&mut self, slot: usize, delivery: Delivery) {
        let Some(index) = self.cameras.iter().position(|camera| camera.feed.slot() == slot) else {
            return;
        };
        let station = &mut self.cameras[index].station;
        match delivery {
            Delivery::Gone => {
                station.gone(&self.outlet);
                self.expect_nothing(slot);
            }
            Delivery::Frame(..) if !station.detects() => station.idle(&self.outlet),
            Delivery::Frame(frame, still) => self.look(index, &frame, still),
        }
    }

    /// No frame of a camera is processed next: that its last one could not be says nothing any more.
    pub(super) fn expect_nothing(&mut self, slot: usize) {
        if self.failing == Some(slot) {
            self.failing = None;
            self.view.expect_nothing();
        }
    }

    /// Takes one frame through the pipeline and tells what was found; `still` frames were left out before it, since start.
    fn look(&mut self, index: usize, frame: &Frame, still: u64) {
        let Watched { station, feed } = &mut self.cameras[index];
        let fully = feed.attention().take_fully();
        match station.look(&mut self.pipeline, frame, fully) {
            Ok(found) => {
                self.failing = None;
                self.health.count(feed.slot(), &found);
                log_detections(station.id(), &self.pipeline, &found);
                let before = self.clock.now();
                let age = before.monotonic.saturating_sub(found.captured.monotonic);
                let picture = self.view.saw(station.id().as_str(), &self.pipeline, &found, age);
                station.skip_still(&found, still);
                station.observe(&self.pipeline, &found, before, &self.outlet);
                feed.attention()
                    .want_at(station.wants().into_iter().chain(picture).min());
                let report = self.clock.now().since(before);
                self.health.add("report", report);
                self.view.add("report", report);
            }
            Err(error) => {
                self.view.failed(station.id().as_str());
                feed.attention().want_next();
                if self.failing.replace(feed.slot()).is_some() {
                    debug!(%error, "frame not processed");
                } else {
                    warn!(%error, "frame not processed; logged again after the next good frame");
                }
            }
        }
    }

    /// Shows the counters of sources and broker once a second.
    fn tell_counters(&mut self) {
        if self.counted.elapsed() < COUNTERS_PERIOD {
            return;
        }
        self.counted = Instant::now();
        let publisher = self.outlet.is_open().then(|| self.outlet.counters());
        let sources = self.cameras.iter().map(|camera| {
            let counts = camera.feed.counts(&self.latest);
            (camera.station.id().as_str(), counts)
        });
        self.view.counters(publisher, sources);
    }

    fn tell_health(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now();
        if now.since(self.health.since) < STATS_PERIOD {
            return Ok(());
        }
        let cameras = self.cameras.iter();
        let cameras = cameras.map(|c| (c.station.id(), c.feed.slot(), c.feed.counts(&self.latest)));
        let counters = self.outlet.counters();
        let message = self.health.message(&self.pipeline, cameras, now, &counters);
        for (camera, stats) in &message.cameras {
            self.outlet.rate(camera, stats.fps);
        }
        self.outlet.stats(message.encode()?);
        self.health.restart(now);
        Ok(())
    }

    /// Ends the cameras' threads and all things, and says goodbye.
    pub(super) fn stop(mut self) {
        self.latest.close();
        for Watched { mut station, feed } in self.cameras {
            // Nobody waits for the end of a thing that nobody looks at any more.
            station.gone(&self.outlet);
            self.ending.push(feed.end(&self.latest));
        }
        let until = Instant::now() + PATIENCE;
        let ends = |thread: &JoinHandle<()>| {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(TICK / 10);
            }
            thread.is_finished()
        };
        for thread in self.ending {
            // Opening a pipe that nobody writes into, or a file of a server that is away, has no end.
            if !ends(&thread) {
                warn!("the thread of a camera does not end; left alone");
            } else if thread.join().is_err() {
                warn!("the thread of a camera has panicked");
            }
        }
        ends(&self.worker.end());
        self.outlet.stop();
    }
}

fn log_detections(camera: &CameraId, pipeline: &Pipeline, found: &Detections) {
    for m in &found.masks {
        let query = pipeline.queries().get(m.query).map_or("", |q| &q.id);
        debug!(%camera, seq = found.sequence.0, query, score = m.score, area = m.mask.area(), "detection");
    }
}
