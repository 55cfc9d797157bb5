//! `v4l2://`: cameras, by memory-mapped streaming with a poll timeout.
//!
//! The driver is never waited for without end: a camera that hangs, was unplugged or refuses is an error, and the caller
//! opens it anew, by its name. Damaged frames are counted and passed over; only a camera that delivers nothing else for
//! its timeout is given up.
//!
//! Both capture interfaces of the kernel are used; of the multi-planar one only formats with one buffer per frame (NV12,
//! not NM12).

mod choice;
mod control;
mod device;
mod find;
mod listing;
mod stamp;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};
use v4l::buffer::Flags;

pub use control::Control;
pub use listing::{CameraFormat, CameraListing, CameraSize, list_cameras, look_at};

use choice::{Offer, Wanted};
use device::{Device, FourCC, Interface, Layout, code_text};
use find::Places;
use stream::{Filled, Stream};

use super::{CaptureError, FrameSource, Losses, SourceUri, capture_time, jpeg, picture};
use crate::clock::{Clock, Moment};
use crate::vision::frame::{Frame, PixelFormat, Sequence};
use crate::vision::geometry::FrameSize;

/// A camera that delivers no good frame for this long hangs, unless its own rate is slower.
const SILENCE: Duration = Duration::from_secs(5);

/// Kernel buffers per camera: one being filled, one waiting, one being read, one to spare.
const BUFFERS: u32 = 4;

/// Longest side of the model's input where nobody says.
const SIDE: u32 = 640;

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
    stride: usize,
    /// Frames per second as the driver says.
    rate: Option<f32>,
    clock: Arc<dyn Clock>,
    numbering: Numbering,
    pace: Pace,
    losses: Losses,
    silence: Duration,
    /// When the last good frame came, or the camera was opened, on the monotonic clock.
    heard: Duration,
    /// Damage since the last good frame.
    damage: Option<String>,
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
        let rate = ask_rate(&device, interface, uri, &layout, &path);
        for problem in control::set(&device, &uri.controls) {
            warn!(device = %path.display(), problem, "control not set");
        }
        let stream = Stream::start(device, interface, BUFFERS).map_err(refused)?;
        let row = format.map_or(0, |f| f.row_bytes(size.width()));
        let slowest = rate.map_or(Duration::ZERO, |r| Duration::from_secs_f32(3.0 / r.max(1e-3)));
        let heard = clock.now().monotonic;
        Ok(Self {
            path,
            card: identity.card,
            stream,
            size,
            code: layout.code,
            format,
            stride: (layout.stride as usize).max(row),
            rate,
            clock,
            numbering: Numbering::default(),
            pace: Pace::new(uri.fps, rate),
            losses: Losses::default(),
            silence: uri.timeout.unwrap_or(SILENCE.max(slowest)),
            heard,
            damage: None,
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
        // A frame that nobody waits for costs nothing; of several that wait only the newest is worth decoding.
        let frame = if self.pace.too_early(moment.monotonic) {
            Ok(None)
        } else if self.stream.wait(Duration::ZERO).unwrap_or(false) && !self.pace.is_slow() {
            self.losses.passed += 1;
            Ok(None)
        } else {
            self.decode(&filled).map(Some)
        };
        self.stream.give_back(filled.index).map_err(|e| self.gone(e))?;
        match frame {
            Ok(frame) => self.keep(frame, moment),
            Err(damage) => self.count_damage(damage),
        }
        Ok(())
    }

    fn keep(&mut self, frame: Option<Frame>, moment: Moment) {
        self.heard = self.clock.now().monotonic;
        self.damage = None;
        self.ready = frame.map(|mut frame| {
            frame.captured = capture_time(moment);
            frame.sequence = Sequence(self.numbering.number);
            frame
        });
    }

    fn count_damage(&mut self, damage: String) {
        self.losses.corrupt += 1;
        if self.damage.is_none() {
            debug!(device = %self.path.display(), damage, "frame skipped");
        }
        self.damage = Some(damage);
    }

    fn decode(&self, filled: &Filled) -> Result<Frame, String> {
        if filled.flags.contains(Flags::ERROR) {
            return Err("driver marks the buffer as damaged".into());
        }
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
        (frame.format, frame.stride) = (format, self.stride);
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

/// The driver's refusal at opening, with a remedy where there is one.
fn refusal(path: &Path, source: io::Error) -> CaptureError {
    let remedy = match source.raw_os_error() {
        Some(libc::EBUSY) => "another program uses the camera; end it",
        Some(libc::ENOSPC) => "the USB bus has no room left; add format=MJPG, a smaller size or another port",
        Some(libc::EACCES) => "the user is not in group video",
        _ => {
            return CaptureError::Io {
                path: path.into(),
                source,
            };
        }
    };
    CaptureError::Refused {
        path: path.into(),
        source,
        remedy,
    }
}

/// Everything the camera offers in formats that are read.
fn offers(device: &Device, codes: &[FourCC], now: (u32, u32), side: u32) -> Vec<Offer> {
    let known = codes.iter().copied().filter(|&c| choice::find(c).is_some());
    let offers = known.flat_map(|code| {
        let sizes = choice::sizes(device.sizes(code), now, side);
        let offer = move |(width, height)| Offer {
            code,
            width,
            height,
            fastest: device.rates(code, width, height).last().copied(),
        };
        sizes.into_iter().map(offer)
    });
    offers.collect()
}

/// Agrees on format and size with the driver: those configured, else those that cost the least.
fn agree(device: &Device, interface: Interface, uri: &SourceUri, path: &Path) -> Result<Layout, CaptureError> {
    let refused = |source| refusal(path, source);
    let offered = device.formats(interface);
    let codes = match uri.format {
        None => offered.clone(),
        Some(code) => offered.iter().copied().filter(|c| c.repr == code).collect(),
    };
    let now = device.layout(interface).map_err(refused)?;
    let side = uri.side.unwrap_or(SIDE);
    let mut offers = offers(device, &codes, (now.width, now.height), side);
    if let Some((width, height)) = uri.size {
        // What is not listed may be possible all the same; the driver decides.
        let exact: Vec<Offer> = offers
            .iter()
            .copied()
            .filter(|o| (o.width, o.height) == (width, height))
            .collect();
        let anyway = |o: Offer| Offer {
            width,
            height,
            fastest: None,
            ..o
        };
        offers = if exact.is_empty() {
            offers.into_iter().map(anyway).collect()
        } else {
            exact
        };
    }
    let wanted = Wanted { side, rate: uri.fps };
    let best = choice::cheapest(&offers, &wanted).ok_or_else(|| format_error(path, &offered, uri.format))?;
    let layout = device
        .set_layout(interface, best.code, (best.width, best.height))
        .map_err(refused)?;
    if (layout.width, layout.height) != (best.width, best.height) && uri.size.is_some() {
        let (wanted, given) = (
            format!("{}x{}", best.width, best.height),
            format!("{}x{}", layout.width, layout.height),
        );
        warn!(device = %path.display(), wanted, given, "the camera has no such size");
    }
    Ok(layout)
}

/// The size and layout of what the driver will deliver, if that can be read.
fn readable(layout: &Layout, path: &Path) -> Result<(FrameSize, Option<PixelFormat>), CaptureError> {
    let content = |message| CaptureError::Content {
        path: path.into(),
        message,
    };
    let format = choice::find(layout.code).ok_or_else(|| format_error(path, &[layout.code], None))?;
    if layout.planes != 1 {
        return Err(content(format!(
            "driver delivers {} in {} buffers per frame, samclip reads formats with one; name another with format=",
            code_text(layout.code),
            layout.planes
        )));
    }
    let size = FrameSize::new(layout.width, layout.height).map_err(|e| content(e.to_string()))?;
    Ok((size, format.layout))
}

fn format_error(path: &Path, offered: &[FourCC], asked: Option<[u8; 4]>) -> CaptureError {
    let found = offered.iter().map(|&c| code_text(c)).collect::<Vec<_>>().join(", ");
    let expected = match asked {
        None => format!("samclip needs one of {}", choice::codes()),
        Some(code) => format!("format={} was asked for", String::from_utf8_lossy(&code)),
    };
    CaptureError::Format {
        path: path.into(),
        found: if found.is_empty() { "nothing".into() } else { found },
        expected,
    }
}

/// Asks for a rate that the driver has; its answer.
fn ask_rate(device: &Device, interface: Interface, uri: &SourceUri, layout: &Layout, path: &Path) -> Option<f32> {
    let rate = choice::rate(&device.rates(layout.code, layout.width, layout.height), uri.fps);
    device.set_rate(interface, rate).unwrap_or_else(|error| {
        info!(device = %path.display(), %error, "the driver has no frame rates");
        None
    })
}

/// The driver's frame numbers, made rising for ever.
#[derive(Debug, Default)]
struct Numbering {
    last: Option<u32>,
    number: u64,
}

impl Numbering {
    /// Takes the number of the next frame; how many were left out before it. The driver's numbers wrap around.
    fn count(&mut self, sequence: u32) -> u64 {
        let Some(last) = self.last.replace(sequence) else {
            return 0;
        };
        // Drivers that do not count, or start again, lose nothing.
        let step = match sequence.wrapping_sub(last) {
            0 | 0x8000_0000.. => 1,
            step => u64::from(step),
        };
        self.number += step;
        step - 1
    }
}

/// Keeps a camera that delivers faster than asked down to the wanted rate.
#[derive(Debug)]
struct Pace {
    period: Option<Duration>,
    /// Frames this much early are taken.
    slack: Duration,
    due: Duration,
}

impl Pace {
    fn new(wanted: Option<f32>, delivered: Option<f32>) -> Self {
        let slower = wanted.filter(|w| delivered.is_none_or(|d| d > w * 1.02));
        Self {
            period: slower.map(|w| Duration::from_secs_f32(1.0 / w)),
            slack: delivered.map_or(Duration::ZERO, |d| Duration::from_secs_f32(0.5 / d)),
            due: Duration::ZERO,
        }
    }

    fn is_slow(&self) -> bool {
        self.period.is_some()
    }

    /// Whether a frame comes before its time.
    fn too_early(&mut self, at: Duration) -> bool {
        let Some(period) = self.period else { return false };
        if at + self.slack < self.due {
            return true;
        }
        self.due = if at > self.due + period { at } else { self.due } + period;
        false
    }
}

impl FrameSource for Camera {
    fn wait(&mut self, at_most: Duration) -> Result<bool, CaptureError> {
        if self.ready.is_none() {
            if self.stream.wait(at_most).map_err(|e| self.gone(e))? {
                self.take()?;
            }
            let silent = self.clock.now().monotonic.saturating_sub(self.heard);
            if silent >= self.silence {
                return Err(CaptureError::Timeout {
                    path: self.path.clone(),
                    seconds: silent.as_secs_f32(),
                    damage: self.damage.take(),
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
    fn formats_that_are_not_read_are_named() {
        let offered = [FourCC::new(b"H264"), FourCC::new(b"HEVC")];
        let error = format_error(Path::new("/dev/video0"), &offered, None).to_string();
        assert_eq!(
            error,
            "/dev/video0: driver offers H264, HEVC; samclip needs one of YUYV, UYVY, NV12, RGB3, MJPG, GREY"
        );
        let error = format_error(Path::new("/dev/video0"), &offered, Some(*b"MJPG")).to_string();
        assert_eq!(
            error,
            "/dev/video0: driver offers H264, HEVC; format=MJPG was asked for"
        );
        let layout = Layout {
            code: FourCC::new(b"NV12"),
            width: 641,
            height: 359,
            stride: 704,
            planes: 2,
        };
        let error = readable(&layout, Path::new("/dev/video0")).unwrap_err().to_string();
        assert!(error.contains("NV12 in 2 buffers per frame"), "{error}");
    }

    #[test]
    fn gaps_in_the_drivers_numbers_are_lost_frames() {
        let mut numbering = Numbering::default();
        let lost: Vec<_> = [7, 8, 11, 11, 3, 4].map(|s| numbering.count(s)).to_vec();
        assert_eq!((lost, numbering.number), (vec![0, 0, 2, 0, 0, 0], 7));
        let mut numbering = Numbering::default();
        assert_eq!([u32::MAX, 1, 2].map(|s| numbering.count(s)), [0, 1, 0]);
        assert_eq!(numbering.number, 3);
    }

    #[test]
    fn a_camera_that_is_too_fast_is_kept_down_to_the_wanted_rate() {
        let taken = |wanted, delivered: f32| {
            let mut pace = Pace::new(Some(wanted), Some(delivered));
            let times = (0..300).map(|i| Duration::from_secs(9) + Duration::from_secs_f32(i as f32 / delivered));
            times.filter(|t| !pace.too_early(*t)).count() as f32 * delivered / 300.0
        };
        assert!((taken(12.0, 30.0) - 12.0).abs() < 0.2);
        assert!((taken(29.0, 30.0) - 29.0).abs() < 0.2);
        assert_eq!((taken(30.0, 30.0), taken(60.0, 30.0)), (30.0, 30.0));
        // After a silence nothing is made up for.
        let mut pace = Pace::new(Some(1.0), Some(10.0));
        let times = [0.0, 5.0, 5.1, 5.9, 6.0].map(Duration::from_secs_f32);
        assert_eq!(times.map(|t| pace.too_early(t)), [false, false, true, true, false]);
    }

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
