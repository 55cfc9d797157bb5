//! Stored frames at the rate that they are to have: what clips and folders have in common.

use std::sync::Arc;
use std::time::Duration;

use super::{CaptureError, FrameSource, Losses, capture_time};
use crate::clock::{Clock, Moment};
use crate::vision::frame::{CaptureTime, Frame, Sequence};

/// Frames that are there already.
pub(super) trait Stored: Send {
    /// The next frame that can be read, over the end if they loop; `None` at the end.
    ///
    /// # Errors
    /// [`CaptureError`] if there is none at all, or the file system refuses.
    fn read_on(&mut self) -> Result<Option<Frame>, CaptureError>;

    /// As [`FrameSource::description`].
    fn description(&self) -> String;

    /// As [`FrameSource::losses`].
    fn losses(&mut self) -> Losses;
}

/// Stored frames as a source: numbered, each at its time.
pub(super) struct Replay<S> {
    stored: S,
    pace: Pace,
    sequence: u64,
    /// Read before it is due.
    ready: Option<Frame>,
}

impl<S: Stored> Replay<S> {
    /// `frames_per_second` frames of `stored`, or as many as are taken.
    pub(super) fn new(stored: S, clock: Arc<dyn Clock>, frames_per_second: Option<f32>) -> Self {
        Self {
            stored,
            pace: Pace::new(clock, frames_per_second),
            sequence: 0,
            ready: None,
        }
    }
}

impl<S: Stored> FrameSource for Replay<S> {
    fn wait(&mut self, at_most: Duration) -> Result<bool, CaptureError> {
        if self.ready.is_none() {
            self.ready = self.stored.read_on()?;
        }
        // The end is told at once.
        Ok(self.ready.is_none() || self.pace.wait_at_most(at_most))
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        let frame = match self.ready.take() {
            None => self.stored.read_on()?,
            ready => ready,
        };
        let Some(mut frame) = frame else { return Ok(None) };
        frame.captured = self.pace.wait();
        frame.sequence = Sequence(self.sequence);
        self.sequence += 1;
        Ok(Some(frame))
    }

    fn description(&self) -> String {
        self.stored.description()
    }

    fn losses(&mut self) -> Losses {
        self.stored.losses()
    }
}

/// Delivers frames of a file at a steady rate, or as fast as they are taken.
struct Pace {
    clock: Arc<dyn Clock>,
    period: Option<Duration>,
    due: Option<Moment>,
}

impl Pace {
    fn new(clock: Arc<dyn Clock>, frames_per_second: Option<f32>) -> Self {
        Self {
            clock,
            period: frames_per_second.map(|f| Duration::from_secs_f32(1.0 / f)),
            due: None,
        }
    }

    /// How long it is until the next frame is due.
    fn early(&self) -> Duration {
        let since = |last| self.clock.now().since(last);
        let due = self.period.zip(self.due);
        due.map_or(Duration::ZERO, |(period, last)| period.saturating_sub(since(last)))
    }

    /// Waits until the next frame is due, at most so long; whether it is.
    fn wait_at_most(&self, at_most: Duration) -> bool {
        let early = self.early();
        self.clock.sleep(early.min(at_most));
        early <= at_most
    }

    /// Waits until the next frame is due and returns that moment. A reader that is late is not made to catch up.
    fn wait(&mut self) -> CaptureTime {
        self.clock.sleep(self.early());
        let now = self.clock.now();
        self.due = Some(now);
        capture_time(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;

    #[test]
    fn frames_of_a_file_keep_their_distance() {
        let clock = Arc::new(SimulatedClock::default());
        let mut pace = Pace::new(clock.clone(), Some(4.0));
        let times: Vec<_> = (0..3).map(|_| pace.wait().monotonic.as_millis()).collect();
        assert_eq!(times, [0, 250, 500]);
        clock.advance(Duration::from_secs(3));
        assert_eq!(pace.wait().monotonic.as_millis(), 3500);
    }
}
