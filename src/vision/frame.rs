//! A camera frame as it leaves the source: bytes, layout, number and time.

use std::time::Duration;

use super::geometry::FrameSize;

/// Byte layouts that [`super::pixels`] turns into RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// 3 bytes per pixel: red, green, blue.
    Rgb24,
    /// 1 byte per pixel, full range.
    Grey,
    /// 4:2:2 packed, `Y0 U Y1 V`.
    Yuyv,
    /// 4:2:2 packed, `U Y0 V Y1`.
    Uyvy,
    /// 4:2:0, luma plane then interleaved `U V` plane.
    Nv12,
    /// 4:2:0, three planes.
    I420,
    /// 4:2:2, three planes.
    I422,
    /// 4:4:4, three planes.
    I444,
}

/// Running number of a frame of one camera; gaps are frames that were lost or not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// When the sensor (or the file reader) delivered the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaptureTime {
    /// On the daemon's monotonic clock; ages are differences of it.
    pub monotonic: Duration,
    /// Microseconds since 1970-01-01 UTC; only printed.
    pub unix_micros: i64,
}

/// One frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Width and height.
    pub size: FrameSize,
    /// Byte layout.
    pub format: PixelFormat,
    /// YCbCr from 0 to 255, as in JPEG, not luma from 16 to 235 and chroma from 16 to 240. RGB and grey always are.
    pub full_range: bool,
    /// Bytes from one row to the next in the first plane; chroma planes of planar formats are packed without gaps
    /// when this equals the row length, and follow the same stride (halved for subsampled planes) otherwise.
    pub stride: usize,
    /// The pixels.
    pub bytes: Vec<u8>,
    /// Running number.
    pub sequence: Sequence,
    /// Capture time.
    pub captured: CaptureTime,
}

impl PixelFormat {
    /// Bytes of one row of the first plane without gaps.
    #[must_use]
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::Rgb24 => 3 * width,
            Self::Yuyv | Self::Uyvy => 4 * width.div_ceil(2),
            Self::Grey | Self::Nv12 | Self::I420 | Self::I422 | Self::I444 => width,
        }
    }

    /// Bytes of a whole frame whose first plane has `stride` bytes per row.
    #[must_use]
    pub fn frame_bytes(self, stride: usize, height: usize) -> usize {
        let (half_row, half_height) = (stride.div_ceil(2), height.div_ceil(2));
        let chroma = match self {
            Self::Rgb24 | Self::Grey | Self::Yuyv | Self::Uyvy => 0,
            Self::Nv12 | Self::I420 => 2 * half_row * half_height,
            Self::I422 => 2 * half_row * height,
            Self::I444 => 2 * stride * height,
        };
        stride * height + chroma
    }
}
