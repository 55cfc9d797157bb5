//! `v4l2://`: cameras, by memory-mapped streaming with a poll timeout.
//!
//! The driver is never waited for without end: a camera that hangs, was unplugged or refuses is an error, and the caller
//! opens it anew, by its name. Damaged frames are counted and passed over; only a camera that delivers nothing else for
//! its timeout is given up.
//!
//! Both capture interfaces of the kernel are used; of the multi-planar one only formats with one buffer per frame (NV12,
//! not NM12).

mod choice;
mod colour;
mod control;
mod device;
mod find;
mod listing;
mod negotiate;
mod pace;
mod pulse;
mod stamp;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};
use v4l::buffer::Flags;

pub use control::Control;
pub use listing::{CameraFormat, CameraListing, CameraSize, list_cameras, look_at};

use device::{Device, FourCC, code_text};
use find::Places;
use negotiate::{agree, ask_rate, readable, refusal, tell_flaws};
use pace::{Numbering, Pace};
use pulse::Pulse;
use stream::{Filled, Stream};

use super::{CaptureError, FrameSource, Losses, SourceUri, capture_time, jpeg, picture};
use crate::clock::{Clock, Moment};
use crate::vision::frame::{Frame, PixelFormat, Sequence};
use crate::vision::geometry::FrameSize;

/// A camera that delivers no good frame for this long hangs, unless its own rate is slower.
const SILENCE: Duration = Duration::from_secs(5);

/// Kernel buffers per camera: one being filled, one waiting, one being read, one to spare.
const BUFFERS: u32 = 4;

/// The device node of what a camera's URI names: a path, number, serial or card name. A path need not exist.
///
/// # Errors
/// [`CaptureError::NoCamera`], [`CaptureError::SeveralCameras`].
pub fn camera_node(name: &Path) -> Result<PathBuf, CaptureError> {
    Places::default().resolve(name)
}

/// A streaming camera.
pub(super) struct Camera {
    path: PathBuf,
    card: String,
    stream: Stream,
    size: FrameSize,
    code: FourCC,
    /// `None`: motion JPEG.
    format: Option<PixelFormat>,
    full_range: bool,
    stride: usize,
    /// Frames per second as the driver says.
    rate: Option<f32>,
    clock: Arc<dyn Clock>,
    numbering: Numbering,
    pace: Pace,
    losses: Losses,
    silence: Duration,
    pulse: Pulse,
    ready: Option<Frame>,
}

impl Camera {
    pub(super) fn open(uri: &SourceUri, clock: Arc<dyn Clock>) -> Result<Self, CaptureError> {
        let path = camera_node(&uri.path)?;
        let refused = |source| refusal(&path, source);
        let device = Device::open(&path).map_err(refused)?;
        let identity = device.identity().map_err(refused)?;
        let interface = identity.interface.ok_or_else(|| CaptureError::Content {
            path: path.clone(),
            message: format!("is no camera: driver {} captures no pictures here", identity.driver),
        })?;
        let layout = agree(&device, interface, uri, &path)?;
        let (size, format) = readable(&layout, &path)?;
        tell_flaws(&layout, format, &path);
        let rate = ask_rate(&device, interface, uri, &layout, &path);
        for problem in control::set(&device, &uri.controls) {
            warn!(device = %path.display(), problem, "control not set");
        }
        let stream = Stream::start(device, interface, BUFFERS).map_err(refused)?;
        let row = format.map_or(0, |f| f.row_bytes(size.width()));
        let slowest = rate.map_or(Duration::ZERO, |r| Duration::from_secs_f32(3.0 / r.max(1e-3)));
        let pulse = Pulse::new(clock.now().monotonic);
        Ok(Self {
            path,
            card: identity.card,
            stream,
            size,
            code: layout.code,
            format,
            full_range: layout.colour.full_range(),
            stride: (layout.stride as usize).max(row),
            rate,
            clock,
            numbering: Numbering::default(),
            pace: Pace::new(uri.fps, rate),
            losses: Losses::default(),
            silence: uri.timeout.unwrap_or(SILENCE.max(slowest)),
            pulse,
            ready: None,
        })
    }

    /// Takes one frame from the driver.
    fn take(&mut self) -> Result<(), CaptureError> {
        let filled = match self.stream.take() {
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(source) => return Err(self.gone(source)),
        };
        let moment = self.clock.now().earlier_by(stamp::age(filled.stamp, filled.flags));
        self.losses.lost += self.numbering.count(filled.sequence);
        let early = self.pace.too_early(moment.monotonic);
        // A frame that nobody waits for costs nothing; of several that wait only the newest is worth decoding.
        let frame = if filled.flags.contains(Flags::ERROR) {
            Err("driver marks the buffer as damaged".into())
        } else if early {
            Ok(None)
        } else if self.stream.wait(Duration::ZERO).unwrap_or(false) && !self.pace.is_slow() {
            self.losses.passed += 1;
            Ok(None)
        } else {
            self.decode(&filled).map(Some)
        };
        self.stream.give_back(filled.index).map_err(|e| self.gone(e))?;
        match frame {
            Ok(Some(frame)) => self.keep(frame, moment),
            // Had the last one that was due been damaged, this one would be due.
            Ok(None) if early => self.pulse.good(self.clock.now().monotonic),
            Ok(None) => self.pulse.unseen(self.clock.now().monotonic),
            Err(damage) => {
                if !early {
                    self.pace.give_back();
                }
                self.count_damage(damage);
            }
        }
        Ok(())
    }

    fn keep(&mut self, mut frame: Frame, moment: Moment) {
        self.pulse.good(self.clock.now().monotonic);
        frame.captured = capture_time(moment);
        frame.sequence = Sequence(self.numbering.number);
        self.ready = Some(frame);
    }

    fn count_damage(&mut self, damage: String) {
        self.losses.corrupt += 1;
        if self.pulse.damaged(damage.clone()) {
            debug!(device = %self.path.display(), damage, "frame skipped");
        }
    }

    fn decode(&self, filled: &Filled) -> Result<Frame, String> {
        let bytes = self.stream.bytes(filled);
        let Some(format) = self.format else {
            let (size, pixels) = jpeg::decode(bytes)?;
            return Ok(picture::rgb_frame(size, pixels));
        };
        let needed = format.frame_bytes(self.stride, self.size.height());
        if bytes.len() < needed {
            return Err(format!("buffer holds {} bytes, a frame has {needed}", bytes.len()));
        }
        let mut frame = picture::rgb_frame(self.size, bytes[..needed].to_vec());
        (frame.format, frame.full_range, frame.stride) = (format, self.full_range, self.stride);
        Ok(frame)
    }

    /// The driver does not deliver any more. Unplugging shows as any of several error codes.
    fn gone(&self, source: io::Error) -> CaptureError {
        CaptureError::Gone {
            path: self.path.clone(),
            source,
        }
    }
}

impl FrameSource for Camera {
    fn wait(&mut self, at_most: Duration) -> Result<bool, CaptureError> {
        if self.ready.is_none() {
            if self.stream.wait(at_most).map_err(|e| self.gone(e))? {
                self.take()?;
            }
            let silent = self.pulse.silent(self.clock.now().monotonic);
            if silent >= self.silence {
                return Err(CaptureError::Timeout {
                    path: self.path.clone(),
                    seconds: silent.as_secs_f32(),
                    damage: self.pulse.take_damage(),
                });
            }
        }
        Ok(self.ready.is_some())
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            if let Some(frame) = self.ready.take() {
                return Ok(Some(frame));
            }
            self.wait(self.silence)?;
        }
    }

    fn description(&self) -> String {
        let rate = self
            .rate
            .map(|r| format!(", {} frames per second", (r * 100.0).round() / 100.0));
        let rate = rate.unwrap_or_default();
        format!(
            "{} {:?}: {} {}{rate}",
            self.path.display(),
            self.card,
            code_text(self.code),
            self.size
        )
    }

    fn losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let uri = "v4l2:///dev/video-none".parse().unwrap();
        let error = Camera::open(&uri, Arc::new(SystemClock::new()))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/dev/video-none"), "{error}");
    }
}
