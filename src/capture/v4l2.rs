//! `v4l2://`: cameras, by memory-mapped streaming with a poll timeout.
//!
//! The driver is never waited for without end: a silent camera is [`CaptureError::Timeout`] and the caller opens it
//! anew. Cards are found by path, number, stable name below `/dev/v4l`, or the name the kernel shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};
use v4l::buffer::{Flags, Type};
use v4l::framesize::FrameSizeEnum;
use v4l::io::traits::CaptureStream;
use v4l::prelude::MmapStream;
use v4l::video::Capture;
use v4l::{Device, FourCC, Timestamp};

use super::{CaptureError, FrameSource, SourceUri, capture_time, jpeg, picture};
use crate::clock::{Clock, Moment};
use crate::vision::frame::{Frame, PixelFormat, Sequence};
use crate::vision::geometry::FrameSize;

/// A camera that delivers nothing for this long hangs.
const SILENCE: Duration = Duration::from_secs(5);

/// Kernel buffers per camera: one being filled, one waiting, one being read, one to spare.
const BUFFERS: u32 = 4;

/// Four-cc codes in order of preference (`None`: motion JPEG): cheap to convert first, JPEG only if there is nothing else in
/// colour.
const FORMATS: [(&[u8; 4], Option<PixelFormat>); 6] = [
    (b"YUYV", Some(PixelFormat::Yuyv)),
    (b"UYVY", Some(PixelFormat::Uyvy)),
    (b"NV12", Some(PixelFormat::Nv12)),
    (b"RGB3", Some(PixelFormat::Rgb24)),
    (b"MJPG", None),
    (b"GREY", Some(PixelFormat::Grey)),
];

/// A format that a camera offers.
#[derive(Clone, Debug)]
pub struct CameraFormat {
    /// Four-cc code.
    pub four_cc: String,
    /// Whether this program reads it.
    pub supported: bool,
    /// Frame sizes as text, e.g. `640x480`.
    pub sizes: Vec<String>,
}

/// A video device of this machine.
#[derive(Clone, Debug)]
pub struct CameraListing {
    /// Device node.
    pub path: PathBuf,
    /// Card name the kernel shows.
    pub card: String,
    /// What it offers, or why it could not be asked.
    pub formats: Result<Vec<CameraFormat>, String>,
}

/// Lists the video devices in `/dev`, by number.
#[must_use]
pub fn list_cameras() -> Vec<CameraListing> {
    let mut nodes = nodes();
    nodes.sort_by_key(|(path, _)| (path.as_os_str().len(), path.clone()));
    let list = nodes.into_iter().map(|(path, card)| {
        let formats = Device::with_path(&path).and_then(|device| {
            let known = |code: FourCC| FORMATS.iter().any(|(c, _)| **c == code.repr);
            let describe = |format: v4l::format::Description| CameraFormat {
                four_cc: format.fourcc.to_string(),
                supported: known(format.fourcc),
                sizes: sizes(&device, format.fourcc),
            };
            Ok(device.enum_formats()?.into_iter().map(describe).collect())
        });
        CameraListing {
            path,
            card,
            formats: formats.map_err(|e| e.to_string()),
        }
    });
    list.collect()
}

/// Device nodes and the card names that sysfs shows for them.
fn nodes() -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let videos = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with("video"));
    let named = videos.map(|name| {
        let card = std::fs::read_to_string(format!("/sys/class/video4linux/{name}/name")).unwrap_or_default();
        (Path::new("/dev").join(name), card.trim().to_owned())
    });
    named.collect()
}

fn sizes(device: &Device, code: FourCC) -> Vec<String> {
    let found = device.enum_framesizes(code).unwrap_or_default();
    let text = |size: v4l::FrameSize| match size.size {
        FrameSizeEnum::Discrete(d) => format!("{}x{}", d.width, d.height),
        FrameSizeEnum::Stepwise(s) => {
            format!("{}x{} to {}x{}", s.min_width, s.min_height, s.max_width, s.max_height)
        }
    };
    found.into_iter().map(text).collect()
}

/// The device node of what a camera's URI names: a path, number, serial or card name. It need not exist.
#[must_use]
pub fn resolve(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_owned();
    }
    let text = name.to_string_lossy();
    if text.parse::<u32>().is_ok() {
        return PathBuf::from(format!("/dev/video{text}"));
    }
    for directory in ["/dev/v4l/by-id", "/dev/v4l/by-path"] {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut links: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        links.sort();
        // Entries end in "-video-indexN"; a serial number is a part of the by-id name.
        let fits = |link: &&PathBuf| link.file_name().is_some_and(|n| n.to_string_lossy().contains(&*text));
        if let Some(link) = links.iter().find(fits) {
            return link.clone();
        }
    }
    let card = nodes().into_iter().find(|(_, card)| card.as_str() == text);
    card.map_or_else(|| Path::new("/dev").join(name), |(path, _)| path)
}

/// A streaming camera.
pub(super) struct Camera {
    path: PathBuf,
    stream: MmapStream<'static>,
    size: FrameSize,
    four_cc: FourCC,
    format: Option<PixelFormat>,
    stride: usize,
    clock: Arc<dyn Clock>,
    last_sequence: Option<u32>,
    sequence: u64,
    lost: u64,
}

impl Camera {
    pub(super) fn open(uri: &SourceUri, clock: Arc<dyn Clock>) -> Result<Self, CaptureError> {
        let path = resolve(&uri.path);
        let io = |source| CaptureError::Io {
            path: path.clone(),
            source,
        };
        let device = Device::with_path(&path).map_err(io)?;
        let offered: Vec<FourCC> = device
            .enum_formats()
            .map_err(io)?
            .into_iter()
            .map(|f| f.fourcc)
            .collect();
        let (code, _) = choose(&offered).ok_or_else(|| format_error(&path, &offered))?;
        let mut wanted = device.format().map_err(io)?;
        wanted.fourcc = code;
        if let Some((width, height)) = uri.size {
            (wanted.width, wanted.height) = (width, height);
        }
        (wanted.stride, wanted.size) = (0, 0);
        // The driver may answer with something else; what it answers is what it will send.
        let given = device.set_format(&wanted).map_err(io)?;
        let (_, format) = choose(&[given.fourcc]).ok_or_else(|| format_error(&path, &[given.fourcc]))?;
        let size = FrameSize::new(given.width, given.height).map_err(|e| CaptureError::Content {
            path: path.clone(),
            message: e.to_string(),
        })?;
        if let Some(fps) = uri.fps {
            let interval = v4l::video::capture::Parameters::with_fps(fps.round().max(1.0) as u32);
            if let Err(error) = device.set_params(&interval) {
                warn!(device = %path.display(), fps, %error, "frame rate not accepted, the driver's is used");
            }
        }
        let mut stream = MmapStream::with_buffers(&device, Type::VideoCapture, BUFFERS).map_err(io)?;
        stream.set_timeout(SILENCE);
        let row = format.map_or(0, |f| f.row_bytes(size.width()));
        let stride = (given.stride as usize).max(row);
        let four_cc = given.fourcc;
        Ok(Self {
            path,
            stream,
            size,
            four_cc,
            format,
            stride,
            clock,
            last_sequence: None,
            sequence: 0,
            lost: 0,
        })
    }
}

fn format_error(path: &Path, offered: &[FourCC]) -> CaptureError {
    let expected = FORMATS
        .map(|(code, _)| String::from_utf8_lossy(code).into_owned())
        .join(", ");
    let found = offered.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    CaptureError::Format {
        path: path.to_owned(),
        found,
        expected,
    }
}

/// The preferred one of the offered formats.
fn choose(offered: &[FourCC]) -> Option<(FourCC, Option<PixelFormat>)> {
    let find = |(code, format): &(&[u8; 4], Option<PixelFormat>)| {
        offered.iter().find(|o| o.repr == **code).map(|&o| (o, *format))
    };
    FORMATS.iter().find_map(find)
}

/// How long ago the driver stamped the frame, if it uses the monotonic clock.
#[allow(clippy::useless_conversion, reason = "seconds are 32 bits wide on some boards")]
#[allow(unsafe_code)] // one system call, see below
fn age(stamp: Timestamp, flags: Flags) -> Duration {
    if flags & Flags::TIMESTAMP_MASK != Flags::TIMESTAMP_MONOTONIC {
        return Duration::ZERO;
    }
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid, exclusively borrowed timespec for the whole call.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return Duration::ZERO;
    }
    let micros = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000).saturating_add(rest);
    let difference =
        micros(now.tv_sec.into(), (now.tv_nsec / 1000).into()) - micros(stamp.sec.into(), stamp.usec.into());
    // A stamp of the future or of long ago comes from a broken driver.
    u64::try_from(difference)
        .ok()
        .map(Duration::from_micros)
        .filter(|d| *d < SILENCE * 2)
        .unwrap_or_default()
}

impl FrameSource for Camera {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let next = self.stream.next().map_err(|source| match source.kind() {
                std::io::ErrorKind::TimedOut => CaptureError::Timeout {
                    path: self.path.clone(),
                    seconds: SILENCE.as_secs(),
                },
                _ => CaptureError::Io {
                    path: self.path.clone(),
                    source,
                },
            });
            let (bytes, meta) = next?;
            let moment: Moment = self.clock.now().earlier_by(age(meta.timestamp, meta.flags));
            if let Some(last) = self.last_sequence.replace(meta.sequence) {
                let step = u64::from(meta.sequence.wrapping_sub(last)).max(1);
                self.lost += step - 1;
                self.sequence += step;
            }
            let used = bytes.get(..meta.bytesused as usize).unwrap_or(bytes);
            let decoded = if meta.flags.contains(Flags::ERROR) {
                Err("driver marks the buffer as damaged".to_owned())
            } else if let Some(format) = self.format {
                let needed = format.frame_bytes(self.stride, self.size.height());
                if used.len() < needed.min(self.stride * self.size.height()) {
                    Err(format!("buffer holds {} bytes, a frame has {needed}", used.len()))
                } else {
                    let mut frame = picture::rgb_frame(self.size, used.to_vec());
                    (frame.format, frame.stride) = (format, self.stride);
                    Ok(frame)
                }
            } else {
                jpeg::decode(used).map(|(size, pixels)| picture::rgb_frame(size, pixels))
            };
            match decoded {
                Ok(mut frame) => {
                    frame.captured = capture_time(moment);
                    frame.sequence = Sequence(self.sequence);
                    return Ok(Some(frame));
                }
                Err(damage) => {
                    self.lost += 1;
                    debug!(device = %self.path.display(), damage, "frame skipped");
                }
            }
        }
    }

    fn description(&self) -> String {
        format!("{} ({} {})", self.path.display(), self.four_cc, self.size)
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn raw_formats_win_over_jpeg_and_unknown_ones_are_named() {
        let codes = |names: &[&[u8; 4]]| names.iter().map(|n| FourCC::new(n)).collect::<Vec<_>>();
        let (code, format) = choose(&codes(&[b"MJPG", b"H264", b"NV12"])).unwrap();
        assert_eq!((code.repr, format), (*b"NV12", Some(PixelFormat::Nv12)));
        assert_eq!(choose(&codes(&[b"GREY", b"MJPG"])).unwrap().1, None);
        let offered = codes(&[b"H264", b"HEVC"]);
        assert!(choose(&offered).is_none());
        let error = format_error(Path::new("/dev/video0"), &offered).to_string();
        assert_eq!(
            error,
            "/dev/video0: driver offers H264, HEVC; samclip needs one of YUYV, UYVY, NV12, RGB3, MJPG, GREY"
        );
    }

    #[test]
    fn ages_of_foreign_clocks_are_zero() {
        assert_eq!(age(Timestamp::new(1, 0), Flags::TIMESTAMP_COPY), Duration::ZERO);
        assert_eq!(
            age(Timestamp::new(i64::MAX, 0), Flags::TIMESTAMP_MONOTONIC),
            Duration::ZERO
        );
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let uri = "v4l2:///dev/video-none".parse().unwrap();
        let error = Camera::open(&uri, Arc::new(SystemClock::new()))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/dev/video-none"), "{error}");
        assert_eq!(resolve(Path::new("7")), PathBuf::from("/dev/video7"));
        assert_eq!(resolve(Path::new("no such card")), PathBuf::from("/dev/no such card"));
    }

    #[test]
    #[ignore = "needs /dev/video0"]
    fn the_first_camera_delivers_three_frames() {
        let uri = "v4l2:///dev/video0".parse().unwrap();
        let mut camera = Camera::open(&uri, Arc::new(SystemClock::new())).unwrap();
        let sequences: Vec<_> = (0..3).map(|_| camera.next_frame().unwrap().unwrap().sequence).collect();
        assert!(sequences.is_sorted());
    }
}
