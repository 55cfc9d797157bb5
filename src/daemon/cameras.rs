//! One thread per camera: opens its source, hands frames over, and opens it again after every failure.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{info, warn};

use crate::capture::{self, CaptureError, FrameSource, Scheme, SourceUri};
use crate::clock::Clock;
use crate::vision::frame::Frame;

use super::config::{self, Config};
use super::latest::Latest;
use super::view::SourceCounts;

/// First and longest pause before a source that failed is opened again; the pause doubles.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Pause between two looks at whether to end.
const TICK: Duration = Duration::from_millis(100);

/// What a camera's thread hands to the pipeline.
#[derive(Debug)]
pub(super) enum Delivery {
    /// The newest frame.
    Frame(Frame),
    /// There will be none for a while.
    Gone,
}

/// Parses the source of a camera.
fn source(camera: &config::Camera) -> Result<SourceUri, CaptureError> {
    let mut uri = SourceUri::from_str(&camera.source)?;
    uri.fps = uri.fps.or(camera.fps.map(|f| f as f32));
    Ok(uri)
}

/// Parses the sources of all cameras, so that nothing is opened before the whole configuration is valid.
///
/// # Errors
/// [`CaptureError::Uri`] for the first source that is not understood.
pub fn sources(config: &Config) -> Result<Vec<SourceUri>, CaptureError> {
    config.cameras.iter().map(source).collect()
}

/// A camera's thread.
#[derive(Debug)]
pub(super) struct Feed {
    slot: usize,
    ended: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

/// What a camera's thread counts.
#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    lost: AtomicU64,
}

impl Feed {
    /// Starts the thread of a camera; it waits for `before`, which may hold the same device, to end.
    pub(super) fn start(
        camera: &config::Camera,
        latest: &Arc<Latest<Delivery>>,
        clock: &Arc<dyn Clock>,
        before: Option<JoinHandle<()>>,
    ) -> anyhow::Result<Self> {
        let uri = source(camera)?;
        let slot = latest.add();
        let (ended, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let thread = std::thread::Builder::new()
            .name(format!("camera {}", camera.id))
            .spawn({
                let (latest, clock) = (Arc::clone(latest), Arc::clone(clock));
                let (ended, counts) = (Arc::clone(&ended), Arc::clone(&counts));
                move || {
                    // What became of it was its own to tell.
                    let _ = before.map(JoinHandle::join);
                    watch(slot, &uri, &latest, &clock, &ended, &counts);
                }
            })?;
        Ok(Self {
            slot,
            ended,
            counts,
            thread,
        })
    }

    /// Its slot of the hand-off.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// What its source did so far.
    pub(super) fn counts(&self, latest: &Latest<Delivery>) -> SourceCounts {
        SourceCounts {
            opened: self.counts.opened.load(Ordering::Relaxed),
            lost: self.counts.lost.load(Ordering::Relaxed),
            skipped: latest.dropped(self.slot),
        }
    }

    /// Whether its source has come to its end.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Lets the thread end and gives its slot back; does not wait.
    pub(super) fn end(self, latest: &Latest<Delivery>) -> JoinHandle<()> {
        self.ended.store(true, Ordering::Relaxed);
        latest.remove(self.slot);
        self.thread
    }
}

/// Feeds one slot from one source; opens it again after every failure, until the end of the source or of the feed.
fn watch(
    slot: usize,
    uri: &SourceUri,
    latest: &Latest<Delivery>,
    clock: &Arc<dyn Clock>,
    ended: &AtomicBool,
    counts: &Counts,
) {
    let stopping = || ended.load(Ordering::Relaxed) || latest.is_closed();
    // A file without a rate is read as fast as it is processed; everything else is live and the newest frame wins.
    let mut pause = RETRY.0;
    while !stopping() {
        let error = match capture::open(uri, Arc::clone(clock)) {
            Err(error) => error,
            Ok(source) => {
                info!(source = source.description(), "source opened");
                counts.opened.fetch_add(1, Ordering::Relaxed);
                let mut source = Counted::new(source, counts);
                match feed(slot, uri, &mut source, latest, &stopping, &mut pause) {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
        };
        latest.put_when_empty(slot, Delivery::Gone);
        warn!(source = uri.text, %error, retry_s = pause.as_secs_f32(), "source failed");
        let until = clock.now().monotonic + pause;
        while !stopping() && clock.now().monotonic < until {
            clock.sleep(TICK);
        }
        pause = (pause * 2).min(RETRY.1);
    }
    latest.put_when_empty(slot, Delivery::Gone);
}

/// A source whose lost frames are added to those of the sources before it.
struct Counted<'a> {
    source: Box<dyn FrameSource>,
    counts: &'a Counts,
    told: u64,
}

impl<'a> Counted<'a> {
    fn new(source: Box<dyn FrameSource>, counts: &'a Counts) -> Self {
        Self {
            source,
            counts,
            told: 0,
        }
    }
}

impl FrameSource for Counted<'_> {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        let frame = self.source.next_frame();
        let lost = self.source.lost();
        self.counts
            .lost
            .fetch_add(lost.saturating_sub(self.told), Ordering::Relaxed);
        self.told = lost;
        frame
    }

    fn description(&self) -> String {
        self.source.description()
    }

    fn lost(&self) -> u64 {
        self.source.lost()
    }
}

fn feed(
    slot: usize,
    uri: &SourceUri,
    source: &mut dyn FrameSource,
    latest: &Latest<Delivery>,
    stopping: &dyn Fn() -> bool,
    pause: &mut Duration,
) -> Result<(), CaptureError> {
    let lossless = uri.scheme != Scheme::V4l2 && uri.fps.is_none();
    while !stopping() {
        let Some(frame) = source.next_frame()? else {
            info!(source = uri.text, lost = source.lost(), "end of source");
            return Ok(());
        };
        *pause = RETRY.0;
        if lossless {
            latest.put_when_empty(slot, Delivery::Frame(frame));
        } else {
            latest.put(slot, Delivery::Frame(frame));
        }
    }
    Ok(())
}
