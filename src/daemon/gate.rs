//! The motion gate: which frames of a camera are handed on where `[camera.motion]` is set.
//!
//! It stands on the camera's thread, before the hand-off: a camera that sees nothing move costs the pipeline nothing. A frame
//! passes when something moves and for `hold` after that, when the light has changed, when `refresh` has passed since the last
//! one that did, and when the rest of the daemon wants one ([`Attention`]): something else is asked, somebody waits for a
//! picture, a track is in doubt, or there will be something to tell of. Where the frame loop chooses among sizes of the model,
//! it asks [`Attention`] too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::vision::frame::Frame;
use crate::vision::motion::{Background, Seen};

use super::config::Motion;

/// No frame is wanted, whatever the time.
const NEVER: u64 = u64::MAX;

/// What the daemon wants of a camera's frames, shared with the camera's thread.
#[derive(Debug)]
pub(super) struct Attention {
    /// `None` lets everything pass.
    rules: Mutex<Option<Motion>>,
    at_once: AtomicBool,
    /// The next frame is wanted at the full size.
    fully: AtomicBool,
    /// A frame of this time or later is wanted; microseconds on the monotonic clock.
    due: AtomicU64,
    /// No frame is processed: what waits for its frames to be taken stays where it is.
    paused: AtomicBool,
}

impl Attention {
    /// With the table of a camera's configuration.
    pub(super) fn new(rules: Option<Motion>) -> Self {
        Self {
            rules: Mutex::new(rules),
            at_once: AtomicBool::new(false),
            fully: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
            paused: AtomicBool::new(false),
        }
    }

    /// Other rules from the next frame on.
    pub(super) fn set_rules(&self, rules: Option<Motion>) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn rules(&self) -> Option<Motion> {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame is wanted, whatever it shows, and at the full size of the model.
    pub(super) fn want_next(&self) {
        self.at_once.store(true, Ordering::Relaxed);
        self.fully.store(true, Ordering::Relaxed);
    }

    /// A frame of this time on the monotonic clock, or the first one after it, is wanted, whatever it shows; `None` for none.
    /// Holds until something else is said, after a frame was processed.
    pub(super) fn want_at(&self, time: Option<Duration>) {
        let micros = time.map_or(NEVER, |time| u64::try_from(time.as_micros()).unwrap_or(NEVER));
        self.due.store(micros, Ordering::Relaxed);
    }

    /// Sets whether no frame is processed.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Whether no frame is processed.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether the frame at hand is wanted at the full size; it counts as given.
    pub(super) fn take_fully(&self) -> bool {
        self.fully.swap(false, Ordering::Relaxed)
    }

    /// Whether a frame of this time is wanted; it counts as given.
    fn take(&self, time: Duration) -> bool {
        let at_once = self.at_once.swap(false, Ordering::Relaxed);
        at_once || time.as_micros() >= u128::from(self.due.load(Ordering::Relaxed))
    }
}

/// The gate of a source, from its opening on.
#[derive(Debug, Default)]
pub(super) struct Gate {
    background: Background,
    /// When the last frame passed, and when something moved last; on the monotonic clock.
    passed: Option<Duration>,
    moved: Option<Duration>,
}

impl Gate {
    /// Whether a frame passes.
    pub(super) fn passes(&mut self, frame: &Frame, attention: &Attention) -> bool {
        let Some(rules) = attention.rules() else {
            // What it knows of the picture grows old.
            *self = Self::default();
            return true;
        };
        let now = frame.captured.monotonic;
        let seen = self.background.look(frame, &rules.motion);
        if seen == Ok(Seen::Motion) {
            self.moved = Some(now);
        }
        let within = |time: Option<Duration>, span| time.is_some_and(|time| now.saturating_sub(time) < span);
        // What is wrong with a frame that is too short is said where it is processed.
        let passes = attention.take(now)
            || !matches!(seen, Ok(Seen::Still))
            || within(self.moved, rules.hold)
            || !within(self.passed, rules.refresh);
        if passes {
            self.passed = Some(now);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::frame::{CaptureTime, PixelFormat, Sequence};
    use crate::vision::geometry::FrameSize;
    use crate::vision::motion::MotionRules;

    fn rules() -> Motion {
        Motion {
            motion: MotionRules {
                area: 0.002,
                change: 8.0,
            },
            refresh: Duration::from_secs(10),
            hold: Duration::from_secs(2),
        }
    }

    /// A frame at tenths of a second; `level` fills a corner of it.
    fn frame(tenth: u64, level: u8) -> Frame {
        let mut bytes = vec![90; 64 * 48];
        (0..16 * 64).filter(|i| i % 64 < 16).for_each(|i| bytes[i] = level);
        Frame {
            size: FrameSize::new(64, 48).unwrap(),
            format: PixelFormat::Grey,
            full_range: false,
            stride: 64,
            bytes,
            sequence: Sequence(tenth),
            captured: CaptureTime {
                monotonic: Duration::from_millis(100 * tenth),
                unix_micros: 0,
            },
        }
    }

    /// Ten frames a second over this time; those that pass.
    fn passed(gate: &mut Gate, attention: &Attention, tenths: std::ops::Range<u64>, level: u8) -> Vec<u64> {
        tenths.filter(|&t| gate.passes(&frame(t, level), attention)).collect()
    }

    #[test]
    fn a_still_camera_is_looked_at_once_per_refresh() {
        let (mut gate, attention) = (Gate::default(), Attention::new(Some(rules())));
        assert_eq!(passed(&mut gate, &attention, 0..350, 90), [0, 100, 200, 300]);
    }

    #[test]
    fn what_moves_passes_and_the_two_seconds_after_it() {
        let (mut gate, attention) = (Gate::default(), Attention::new(Some(rules())));
        passed(&mut gate, &attention, 0..10, 90);
        // There for one frame, so that the background has hardly changed.
        assert_eq!(passed(&mut gate, &attention, 10..11, 140), [10]);
        let after = passed(&mut gate, &attention, 11..200, 90);
        assert_eq!(after, (11..30).chain([129]).collect::<Vec<_>>());
    }

    #[test]
    fn one_frame_passes_whenever_the_daemon_wants_one() {
        let (mut gate, attention) = (Gate::default(), Attention::new(Some(rules())));
        passed(&mut gate, &attention, 0..10, 90);
        attention.want_next();
        assert_eq!(passed(&mut gate, &attention, 10..30, 90), [10]);
        attention.want_at(Some(Duration::from_secs(4)));
        assert_eq!(passed(&mut gate, &attention, 30..43, 90), [40, 41, 42]);
        attention.want_at(Some(Duration::ZERO));
        assert_eq!(passed(&mut gate, &attention, 43..45, 90), [43, 44]);
        attention.want_at(None);
        assert_eq!(passed(&mut gate, &attention, 45..60, 90), [0; 0]);
    }

    #[test]
    fn the_light_passes_once_and_a_frame_too_short_always() {
        let (mut gate, attention) = (Gate::default(), Attention::new(Some(rules())));
        passed(&mut gate, &attention, 0..10, 90);
        let lit = |t: u64| {
            let mut frame = frame(t, 90);
            frame.bytes.fill(160);
            frame
        };
        let passing: Vec<u64> = (10..40).filter(|&t| gate.passes(&lit(t), &attention)).collect();
        assert_eq!(passing, [10]);
        let mut short = lit(41);
        short.bytes.pop();
        assert!(gate.passes(&short, &attention) && gate.passes(&short, &attention));
    }

    #[test]
    fn without_rules_everything_passes_and_new_rules_begin_anew() {
        let (mut gate, attention) = (Gate::default(), Attention::new(None));
        assert_eq!(passed(&mut gate, &attention, 0..5, 90).len(), 5);
        attention.set_rules(Some(rules()));
        assert_eq!(passed(&mut gate, &attention, 5..60, 200), [5]);
    }
}
