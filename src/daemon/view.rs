//! What somebody who looks at the daemon sees of its frames: scores, times, counters, pictures.
//!
//! Beside the board, which changes only when something happens: this changes with every frame. The frame loop writes it,
//! which costs it a few small copies; a picture is drawn only while somebody waits for one, and made a JPEG by whoever
//! takes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::publish::mqtt::PublishStats;
use crate::vision::frame::{CaptureTime, Sequence};
use crate::vision::geometry::FrameSize;

use super::embedder::QuerySet;
use super::gate::Attention;
use super::pictures::{annotated, jpeg_within};
use super::pipeline::{Detections, Pipeline, StageTimes};
use super::tally::Histogram;

/// Shortest time between two pictures of a camera.
const PICTURE_PERIOD: Duration = Duration::from_millis(200);

/// Longest side of a picture in pixels.
const PICTURE_SIDE: u32 = 1280;

/// Where what is seen is shown; clones show the same.
#[derive(Debug, Clone)]
pub struct View {
    seen: Arc<Mutex<Seen>>,
}

/// All that is seen.
#[derive(Debug)]
pub struct Seen {
    /// Cameras by id.
    pub cameras: BTreeMap<String, CameraSeen>,
    /// Times of all frames by stage.
    pub stages: BTreeMap<&'static str, Histogram>,
    /// Counters of the connection to the broker, if there is one; about a second old.
    pub publisher: Option<PublishStats>,
    /// Whether the last frame could not be processed, and more of its camera are expected.
    pub failing: bool,
    /// When the program started.
    pub started: Instant,
    /// When the frame loop turned last.
    pub turned: Instant,
    /// When a camera gave a frame last; before the first one, when the program started.
    pub delivered: Instant,
}

/// One camera's frames.
#[derive(Debug)]
pub struct CameraSeen {
    /// Frames that were processed.
    pub frames: u64,
    /// Looks at them by side of the model's input, pixels; a frame that was looked at twice is counted in both.
    pub looks: BTreeMap<usize, u64>,
    /// Frames that could not be processed.
    pub failed: u64,
    /// What its source did; about a second old.
    pub source: SourceCounts,
    /// Masks found so far, by query in force.
    pub detections: BTreeMap<String, u64>,
    /// Times from capture to the end of processing.
    pub age: Histogram,
    /// Its last frame that was processed.
    pub glance: Option<Glance>,
    pictures: Pictures,
    attention: Arc<Attention>,
}

/// Counters of a camera's source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Times it was opened.
    pub opened: u64,
    /// Times it was opened after it had failed.
    pub reopened: u64,
    /// Frames that the driver left out.
    pub lost: u64,
    /// Frames that were damaged.
    pub corrupt: u64,
    /// Frames skipped for a newer one.
    pub skipped: u64,
    /// Frames left out because nothing moved.
    pub still: u64,
}

/// What the last frame of a camera showed.
#[derive(Debug, Clone)]
pub struct Glance {
    /// Its size.
    pub size: FrameSize,
    /// Its number.
    pub sequence: Sequence,
    /// When it was captured.
    pub captured: CaptureTime,
    /// Time from capture to the end of processing.
    pub age: Duration,
    /// Time of each stage.
    pub times: StageTimes,
    /// What was asked.
    pub asked: Arc<QuerySet>,
    /// Best score of each query anywhere on the frame.
    pub best: Vec<f32>,
    /// Score from which on each query was present.
    pub thresholds: Vec<f32>,
    /// Side of the model's input that it went through, pixels.
    pub side: usize,
}

/// A frame with its masks and labels.
#[derive(Debug)]
pub struct Picture {
    rgb: Vec<u8>,
    size: FrameSize,
    jpeg: OnceLock<Result<Bytes, String>>,
}

impl Picture {
    /// As JPEG, at most 1,280 pixels wide and high; made by the first who asks, which takes milliseconds.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn jpeg(&self) -> Result<Bytes, String> {
        let encode = || jpeg_within(&self.rgb, self.size, PICTURE_SIDE).map(Bytes::from);
        let made = self.jpeg.get_or_init(|| encode().map_err(|error| error.to_string()));
        made.clone()
    }
}

/// The newest picture of a camera, while somebody waits for one.
#[derive(Debug)]
struct Pictures {
    sender: Arc<watch::Sender<Option<Arc<Picture>>>>,
    /// When the next one may be drawn, on the monotonic clock.
    next: Duration,
}

impl Default for Pictures {
    fn default() -> Self {
        let (sender, next) = (Arc::new(watch::Sender::new(None)), Duration::ZERO);
        Self { sender, next }
    }
}

impl Pictures {
    /// When the next picture may be drawn, if somebody waits.
    fn next(&self) -> Option<Duration> {
        (self.sender.receiver_count() > 0).then_some(self.next)
    }

    /// Where a picture of this frame goes, if somebody waits and the last one is old enough.
    fn wanted(&mut self, captured: CaptureTime) -> Option<Arc<watch::Sender<Option<Arc<Picture>>>>> {
        if self.sender.receiver_count() == 0 {
            self.sender.send_if_modified(|picture| picture.take().is_some());
            return None;
        }
        if captured.monotonic < self.next {
            return None;
        }
        self.next = captured.monotonic + PICTURE_PERIOD;
        Some(Arc::clone(&self.sender))
    }
}

impl Default for View {
    fn default() -> Self {
        Self::new()
    }
}

impl View {
    /// Of a daemon that starts now, without cameras.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        let seen = Seen {
            cameras: BTreeMap::new(),
            stages: BTreeMap::new(),
            publisher: None,
            failing: false,
            started: now,
            turned: now,
            delivered: now,
        };
        let seen = Arc::new(Mutex::new(seen));
        Self { seen }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // every critical section leaves it whole
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all of it; the frame loop may wait meanwhile, so `look` takes copies and nothing else.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.lock())
    }

    /// Pictures of a camera from now on; they are drawn as long as somebody has this. `None` for an unknown camera.
    #[must_use]
    pub fn pictures(&self, camera: &str) -> Option<watch::Receiver<Option<Arc<Picture>>>> {
        let seen = self.lock();
        let camera = seen.cameras.get(camera)?;
        let pictures = camera.pictures.sender.subscribe();
        camera.attention.want_next();
        Some(pictures)
    }

    /// A camera of whose frames something can be wanted.
    pub(super) fn open(&self, camera: &str, attention: &Arc<Attention>) {
        let seen = CameraSeen::new(Arc::clone(attention));
        self.lock().cameras.entry(camera.to_owned()).or_insert(seen);
    }

    pub(super) fn forget(&self, camera: &str) {
        self.lock().cameras.remove(camera);
    }

    /// The frame loop turns; `delivered` says whether a camera gave a frame.
    pub(super) fn turn(&self, delivered: bool) {
        let mut seen = self.lock();
        seen.turned = Instant::now();
        if delivered {
            seen.delivered = seen.turned;
        }
    }

    /// A frame was processed; when the next one is wanted by those who wait for pictures, on the monotonic clock.
    pub(super) fn saw(&self, camera: &str, pipeline: &Pipeline, found: &Detections, age: Duration) -> Option<Duration> {
        let (wanted, next) = {
            let mut seen = self.lock();
            seen.failing = false;
            for (stage, time) in found.times.by_name() {
                seen.stages.entry(stage).or_default().observe(time);
            }
            let camera = seen.cameras.get_mut(camera)?;
            camera.count(pipeline, found, age);
            (camera.pictures.wanted(found.captured), camera.pictures.next())
        };
        if let Some(sender) = wanted {
            let (rgb, size, jpeg) = (annotated(pipeline, found), found.size, OnceLock::new());
            sender.send_replace(Some(Arc::new(Picture { rgb, size, jpeg })));
        }
        next
    }

    /// Time of a stage that is not the pipeline's.
    pub(super) fn add(&self, stage: &'static str, time: Duration) {
        self.lock().stages.entry(stage).or_default().observe(time);
    }

    /// A frame could not be processed.
    pub(super) fn failed(&self, camera: &str) {
        let mut seen = self.lock();
        seen.failing = true;
        if let Some(camera) = seen.cameras.get_mut(camera) {
            camera.failed += 1;
        }
    }

    /// The camera whose frame could not be processed gives none for now, or none is wanted of it.
    pub(super) fn expect_nothing(&self) {
        self.lock().failing = false;
    }

    /// Counters that others keep.
    pub(super) fn counters<'a>(
        &self,
        publisher: Option<PublishStats>,
        sources: impl Iterator<Item = (&'a str, SourceCounts)>,
    ) {
        let mut seen = self.lock();
        seen.publisher = publisher;
        for (camera, counts) in sources {
            if let Some(camera) = seen.cameras.get_mut(camera) {
                camera.source = counts;
            }
        }
    }
}

impl CameraSeen {
    fn new(attention: Arc<Attention>) -> Self {
        Self {
            frames: 0,
            looks: BTreeMap::new(),
            failed: 0,
            source: SourceCounts::default(),
            detections: BTreeMap::new(),
            age: Histogram::default(),
            glance: None,
            pictures: Pictures::default(),
            attention,
        }
    }

    fn count(&mut self, pipeline: &Pipeline, found: &Detections, age: Duration) {
        self.frames += 1;
        for side in found.looks() {
            *self.looks.entry(side).or_default() += 1;
        }
        self.age.observe(age);
        let asked = pipeline.asked();
        if !self
            .glance
            .as_ref()
            .is_some_and(|last| Arc::ptr_eq(&last.asked, &asked))
        {
            // What is asked no more is counted no more, so that the number of counters stays bounded.
            let specs = asked.specs().iter().map(|spec| spec.id.clone());
            let before = std::mem::take(&mut self.detections);
            self.detections = specs
                .map(|id| (id.clone(), before.get(&id).copied().unwrap_or(0)))
                .collect();
        }
        for mask in &found.masks {
            let spec = asked.specs().get(mask.query);
            if let Some(count) = spec.and_then(|spec| self.detections.get_mut(&spec.id)) {
                *count += 1;
            }
        }
        self.glance = Some(Glance {
            size: found.size,
            sequence: found.sequence,
            captured: found.captured,
            age,
            times: found.times,
            asked,
            best: found.best.clone(),
            thresholds: found.thresholds.clone(),
            side: found.side,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> CaptureTime {
        CaptureTime {
            monotonic: Duration::from_millis(milliseconds),
            unix_micros: 0,
        }
    }

    #[test]
    fn pictures_are_wanted_only_while_somebody_waits_and_five_times_a_second_at_most() {
        let view = View::new();
        view.open("yard", &Arc::new(Attention::new(None)));
        let wanted = |milliseconds| {
            let mut seen = view.lock();
            let pictures = &mut seen.cameras.get_mut("yard").unwrap().pictures;
            pictures.wanted(at(milliseconds)).is_some()
        };
        assert!(!wanted(1_000));
        let waiting = view.pictures("yard").unwrap();
        assert!(wanted(1_010) && !wanted(1_209) && wanted(1_210));
        drop(waiting);
        assert!(!wanted(9_000));
        assert!(view.pictures("moon").is_none());
    }

    #[test]
    fn a_frame_that_could_not_be_processed_says_nothing_once_no_more_are_expected() {
        let view = View::new();
        view.open("yard", &Arc::new(Attention::new(None)));
        let failing = || view.look(|seen| (seen.failing, seen.cameras["yard"].failed));
        view.failed("yard");
        assert_eq!(failing(), (true, 1));
        view.expect_nothing();
        assert_eq!(failing(), (false, 1));
    }

    #[test]
    fn a_picture_that_nobody_waits_for_any_more_is_let_go() {
        let view = View::new();
        view.open("yard", &Arc::new(Attention::new(None)));
        let waiting = view.pictures("yard").unwrap();
        let sender = Arc::clone(&view.lock().cameras["yard"].pictures.sender);
        let picture = Picture {
            rgb: vec![7; 3 * 5 * 3],
            size: FrameSize::new(5, 3).unwrap(),
            jpeg: OnceLock::new(),
        };
        sender.send_replace(Some(Arc::new(picture)));
        let kept = waiting.borrow().clone().unwrap();
        drop(waiting);
        let mut seen = view.lock();
        assert!(seen.cameras.get_mut("yard").unwrap().pictures.wanted(at(0)).is_none());
        assert!(sender.borrow().is_none());
        assert_eq!(kept.jpeg().unwrap()[..2], [0xFF, 0xD8]);
    }
}
