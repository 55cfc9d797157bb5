//! One thread per camera: opens its source, hands frames over, and opens it again after every failure.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::capture::{self, CaptureError, FrameSource, SourceUri};
use crate::clock::Clock;
use crate::vision::frame::Frame;

use super::config::{self, Config};
use super::gate::{Attention, Gate};
use super::intake::Intake;
use super::latest::Latest;
use super::view::SourceCounts;

/// First and longest pause before a source that failed is opened again; the pause doubles. Somebody who plugs a camera in
/// again waits that long for it.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// How long a source that was replaced may take to end.
const HANGS: Duration = Duration::from_secs(5);

/// Pause between two looks at whether to end.
const TICK: Duration = Duration::from_millis(100);

/// What a camera's thread hands to the pipeline.
#[derive(Debug)]
pub(super) enum Delivery {
    /// The newest frame, and how many were left out before it, since start, because nothing moved.
    Frame(Frame, u64),
    /// There will be none for a while.
    Gone,
}

/// Parses the source of a camera.
fn source(camera: &config::Camera) -> Result<SourceUri, CaptureError> {
    let mut uri = SourceUri::from_str(&camera.source)?;
    // The slower one of both.
    let rates = [uri.fps, camera.fps.map(|fps| fps as f32)];
    uri.fps = rates.into_iter().flatten().reduce(f32::min);
    uri.controls.clone_from(&camera.controls);
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
    intake: Arc<Intake>,
    attention: Arc<Attention>,
    /// Number of the next frame when this was looked at last.
    looked: u64,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Feed {
    /// Starts the thread of a camera for a model that looks at `side` pixels; what is wanted of its frames is said to
    /// `attention`. It goes on counting what `before` counted, and waits for its thread to end, but not for ever.
    pub(super) fn start(
        camera: &config::Camera,
        side: usize,
        latest: &Arc<Latest<Delivery>>,
        clock: &Arc<dyn Clock>,
        attention: Arc<Attention>,
        before: Option<(JoinHandle<()>, Arc<Intake>)>,
    ) -> anyhow::Result<Self> {
        let mut uri = source(camera)?;
        uri.side = u32::try_from(side).ok();
        let (before, intake) = before.unzip();
        let intake = intake.unwrap_or_default();
        let slot = latest.add();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name(format!("camera {}", camera.id))
            .spawn({
                let (latest, clock, ended) = (Arc::clone(latest), Arc::clone(clock), Arc::clone(&ended));
                let (intake, attention) = (Arc::clone(&intake), Arc::clone(&attention));
                move || {
                    let freed = before.is_none_or(|before| frees(&before, &latest, clock.as_ref(), &ended));
                    if !freed {
                        warn!(source = uri.text, "the source before this one hangs; opened beside it");
                    }
                    watch(slot, &uri, &latest, (&intake, &attention), &clock, &ended);
                }
            })?;
        Ok(Self {
            slot,
            looked: intake.next_number(),
            intake,
            attention,
            ended,
            thread,
        })
    }

    /// Its slot of the hand-off.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// What its thread counts.
    pub(super) fn intake(&self) -> &Arc<Intake> {
        &self.intake
    }

    /// What is wanted of its frames.
    pub(super) fn attention(&self) -> &Arc<Attention> {
        &self.attention
    }

    /// Whether its source has given a frame since this was asked last, whether or not it was handed on.
    pub(super) fn gave(&mut self) -> bool {
        let next = self.intake.next_number();
        std::mem::replace(&mut self.looked, next) != next
    }

    /// What its source did so far.
    pub(super) fn counts(&self, latest: &Latest<Delivery>) -> SourceCounts {
        self.intake.counts(latest.dropped(self.slot))
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

/// Waits for the thread of the source before, which may hold the same device; `false` if it does not end, as when a pipe has no
/// writer or a file is on a server that is away. What became of it was its own to tell.
fn frees(before: &JoinHandle<()>, latest: &Latest<Delivery>, clock: &dyn Clock, ended: &AtomicBool) -> bool {
    let until = clock.now().monotonic + HANGS;
    while !before.is_finished() {
        if clock.now().monotonic >= until {
            return false;
        }
        if ended.load(Ordering::Relaxed) || latest.is_closed() {
            break;
        }
        clock.sleep(TICK);
    }
    true
}

/// Feeds one slot from one source; opens it again after every failure, until the end of the source or of the feed.
fn watch(
    slot: usize,
    uri: &SourceUri,
    latest: &Latest<Delivery>,
    (intake, attention): (&Intake, &Attention),
    clock: &Arc<dyn Clock>,
    ended: &AtomicBool,
) {
    let stopping = || ended.load(Ordering::Relaxed) || latest.is_closed();
    let mut pause = RETRY.0;
    let (mut opened, mut told) = (false, String::new());
    while !stopping() {
        let error = match capture::open(uri, Arc::clone(clock)) {
            Err(error) => error,
            Ok(mut source) => {
                if told.is_empty() {
                    info!(source = source.description(), "source opened");
                }
                intake.count_opening(std::mem::replace(&mut opened, true));
                let shared = (intake, attention, clock.as_ref());
                let outcome = feed(
                    slot,
                    uri,
                    source.as_mut(),
                    latest,
                    shared,
                    &stopping,
                    (&mut pause, &mut told),
                );
                intake.add(source.losses());
                match outcome {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
        };
        latest.put_when_empty(slot, Delivery::Gone);
        let text = error.to_string();
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
        // Its next frame does not take the place of the news that it was away.
        while !stopping() && (clock.now().monotonic < until || latest.holds(slot)) {
            clock.sleep(TICK);
        }
        pause = (pause * 2).min(RETRY.1);
    }
    latest.put_when_empty(slot, Delivery::Gone);
}

fn feed(
    slot: usize,
    uri: &SourceUri,
    source: &mut dyn FrameSource,
    latest: &Latest<Delivery>,
    (intake, attention, clock): (&Intake, &Attention, &dyn Clock),
    stopping: &dyn Fn() -> bool,
    (pause, told): (&mut Duration, &mut String),
) -> Result<(), CaptureError> {
    // Numbers rise, however often the source starts anew.
    let first = intake.next_number();
    let mut gate = Gate::default();
    while !stopping() {
        if uri.waits() && attention.is_paused() {
            clock.sleep(TICK);
            continue;
        }
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
        intake.set_next_number(frame.sequence.0 + 1);
        *pause = RETRY.0;
        if !told.is_empty() {
            info!(source = uri.text, "source gives frames again");
            told.clear();
        }
        if !gate.passes(&frame, attention) {
            intake.count_still();
            continue;
        }
        let delivery = Delivery::Frame(frame, intake.still());
        if uri.waits() {
            latest.put_when_empty(slot, delivery);
        } else {
            latest.put(slot, delivery);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_rates_the_slower_one_holds() {
        let config = |source: &str, fps: &str| {
            let text = format!("model = \"m\"\n[[camera]]\nid = \"yard\"\nsource = \"{source}\"\n{fps}\n");
            Config::parse(&text, "test.toml".as_ref()).unwrap()
        };
        for (source, fps, expected) in [
            ("dir:///f?fps=10", "fps = 2", Some(2.0)),
            ("dir:///f?fps=2", "fps = 10", Some(2.0)),
            ("dir:///f", "fps = 10", Some(10.0)),
            ("dir:///f?fps=2", "", Some(2.0)),
            ("dir:///f", "", None),
        ] {
            assert_eq!(
                sources(&config(source, fps)).unwrap()[0].fps,
                expected,
                "{source} {fps}"
            );
        }
    }
}
