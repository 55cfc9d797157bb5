//! Camera byte layouts → packed RGB, 8 bits.
//!
//! YCbCr is BT.601, of limited range unless the frame says full, rounded to nearest; subsampled chroma is repeated
//! (nearest), as V4L2 drivers without colour metadata mean it. Arithmetic is fixed point with 40 fractional bits, which equals the reference
//! in double precision on every input.

use super::frame::{Frame, PixelFormat};

/// A frame whose bytes do not fill its size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {width}x{height} {format:?} needs {expected} bytes with {stride} bytes per row, found {found}")]
pub struct PixelError {
    /// Frame width.
    pub width: usize,
    /// Frame height.
    pub height: usize,
    /// Frame layout.
    pub format: PixelFormat,
    /// Bytes per row.
    pub stride: usize,
    /// Bytes found.
    pub found: usize,
    /// Bytes needed.
    pub expected: usize,
}

const BITS: u32 = 40;

/// Contribution of each of the 256 values of Y, U and V to the three colours, fixed point.
struct Tables {
    luma: [i64; 256],
    red_v: [i64; 256],
    green_u: [i64; 256],
    green_v: [i64; 256],
    blue_u: [i64; 256],
}

impl Tables {
    /// Tables for black at luma `black` with `luma` steps up to white, and `chroma` steps from end to end.
    const fn new(black: f64, luma: f64, chroma: f64) -> Self {
        let mut t = Self {
            luma: [0; 256],
            red_v: [0; 256],
            green_u: [0; 256],
            green_v: [0; 256],
            blue_u: [0; 256],
        };
        let one = (1u64 << BITS) as f64;
        let mut i = 0;
        while i < 256 {
            let y = (i as f64 - black) * 255.0 / luma;
            let c = (i as f64 - 128.0) * 255.0 / chroma;
            // Half a unit is added once, here, so that the shift below rounds to nearest.
            t.luma[i] = ((y + 0.5) * one) as i64;
            t.red_v[i] = (c * 1.402 * one) as i64;
            t.green_u[i] = (c * -0.344_136_286 * one) as i64;
            t.green_v[i] = (c * -0.714_136_286 * one) as i64;
            t.blue_u[i] = (c * 1.772 * one) as i64;
            i += 1;
        }
        t
    }

    #[inline]
    fn rgb(&self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let (y, u, v) = (self.luma[y as usize], u as usize, v as usize);
        let clip = |x: i64| (x >> BITS).clamp(0, 255) as u8;
        [
            clip(y + self.red_v[v]),
            clip(y + self.green_u[u] + self.green_v[v]),
            clip(y + self.blue_u[u]),
        ]
    }
}

static LIMITED: Tables = Tables::new(16.0, 219.0, 224.0);
static FULL: Tables = Tables::new(0.0, 255.0, 255.0);

/// Refuses a frame whose bytes do not fill its size.
pub(super) fn check(frame: &Frame) -> Result<(), PixelError> {
    let (width, height, stride) = (frame.size.width(), frame.size.height(), frame.stride);
    let row_bytes = frame.format.row_bytes(width);
    let expected = frame.format.frame_bytes(stride.max(row_bytes), height);
    // The last row may end at its last pixel.
    let enough = match frame.format {
        PixelFormat::Rgb24 | PixelFormat::Grey | PixelFormat::Yuyv | PixelFormat::Uyvy => {
            stride * (height - 1) + row_bytes
        }
        _ => expected,
    };
    let found = frame.bytes.len();
    if found >= enough && stride >= row_bytes {
        return Ok(());
    }
    Err(PixelError {
        width,
        height,
        format: frame.format,
        stride,
        found,
        expected,
    })
}

/// Writes the frame as packed RGB, `[height, width, 3]`, reusing `out`.
///
/// # Errors
/// [`PixelError`] if the frame has too few bytes.
pub fn to_rgb8(frame: &Frame, out: &mut Vec<u8>) -> Result<(), PixelError> {
    check(frame)?;
    let (width, height, stride) = (frame.size.width(), frame.size.height(), frame.stride);
    let row_bytes = frame.format.row_bytes(width);
    out.resize(3 * width * height, 0);
    let tables = if frame.full_range { &FULL } else { &LIMITED };
    let (luma, chroma) = frame.bytes.split_at((stride * height).min(frame.bytes.len()));
    for (y, rgb) in out.chunks_exact_mut(3 * width).enumerate() {
        let row = &frame.bytes[y * stride..][..row_bytes];
        match frame.format {
            PixelFormat::Rgb24 => rgb.copy_from_slice(row),
            PixelFormat::Grey => rgb.chunks_exact_mut(3).zip(row).for_each(|(p, &g)| p.fill(g)),
            PixelFormat::Yuyv => packed(tables, row, rgb, |q| [q[0], q[2], q[1], q[3]]),
            PixelFormat::Uyvy => packed(tables, row, rgb, |q| [q[1], q[3], q[0], q[2]]),
            PixelFormat::Nv12 => {
                let uv = &chroma[y / 2 * 2 * stride.div_ceil(2)..];
                planar(tables, &luma[y * stride..], rgb, |x| (uv[x / 2 * 2], uv[x / 2 * 2 + 1]));
            }
            PixelFormat::I420 | PixelFormat::I422 | PixelFormat::I444 => {
                let (step_x, step_y) = match frame.format {
                    PixelFormat::I420 => (2, 2),
                    PixelFormat::I422 => (2, 1),
                    _ => (1, 1),
                };
                let chroma_stride = stride.div_ceil(step_x);
                let (us, vs) = chroma.split_at(chroma_stride * height.div_ceil(step_y));
                let at = y / step_y * chroma_stride;
                let chroma = |x| (us[at + x / step_x], vs[at + x / step_x]);
                planar(tables, &luma[y * stride..], rgb, chroma);
            }
        }
    }
    Ok(())
}

/// 4:2:2 packed: `order` yields `Y0 Y1 U V` of a group of four bytes.
fn packed(tables: &Tables, row: &[u8], rgb: &mut [u8], order: impl Fn(&[u8]) -> [u8; 4]) {
    for (pair, quad) in rgb.chunks_mut(6).zip(row.chunks_exact(4)) {
        let [y0, y1, u, v] = order(quad);
        for (pixel, y) in pair.chunks_exact_mut(3).zip([y0, y1]) {
            pixel.copy_from_slice(&tables.rgb(y, u, v));
        }
    }
}

fn planar(tables: &Tables, luma: &[u8], rgb: &mut [u8], chroma: impl Fn(usize) -> (u8, u8)) {
    for (x, (pixel, &y)) in rgb.chunks_exact_mut(3).zip(luma).enumerate() {
        let (u, v) = chroma(x);
        pixel.copy_from_slice(&tables.rgb(y, u, v));
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::vision::frame::{CaptureTime, Sequence};
    use crate::vision::geometry::FrameSize;

    // segment-anything-independent vectors: BT.601 in NumPy double precision, seed 20231023
    static GOLDEN: &[u8] = include_bytes!("../../tests/data/golden/pixels.safetensors");

    fn frame(width: u32, height: u32, format: PixelFormat, bytes: Vec<u8>) -> Frame {
        let size = FrameSize::new(width, height).unwrap();
        let stride = format.row_bytes(size.width());
        Frame {
            size,
            format,
            full_range: false,
            stride,
            bytes,
            sequence: Sequence(0),
            captured: CaptureTime::default(),
        }
    }

    fn rgb(frame: &Frame) -> Vec<u8> {
        let mut out = vec![9; 5];
        to_rgb8(frame, &mut out).unwrap();
        out
    }

    #[test]
    fn packed_and_planar_layouts_equal_the_reference_bit_for_bit() {
        let golden = SafeTensors::deserialize(GOLDEN).unwrap();
        let get = |name: &str| golden.tensor(name).unwrap().data().to_vec();
        assert_eq!(rgb(&frame(34, 18, PixelFormat::Yuyv, get("yuyv"))), get("rgb_from_422"));
        assert_eq!(rgb(&frame(34, 18, PixelFormat::Uyvy, get("uyvy"))), get("rgb_from_422"));
        assert_eq!(
            rgb(&frame(34, 18, PixelFormat::Nv12, get("nv12"))),
            get("rgb_from_nv12")
        );
        let nv12 = get("nv12");
        let (luma, uv) = nv12.split_at(34 * 18);
        let split = |i: usize| uv.iter().skip(i).step_by(2).copied();
        let i420: Vec<u8> = luma.iter().copied().chain(split(0)).chain(split(1)).collect();
        assert_eq!(rgb(&frame(34, 18, PixelFormat::I420, i420)), get("rgb_from_nv12"));
    }

    #[test]
    fn every_luma_and_chroma_value_equals_double_precision() {
        let reference = |[black, luma, chroma]: [f64; 3], y: u8, u: u8, v: u8| {
            let c = (f64::from(y) - black) * 255.0 / luma;
            let (d, e) = (
                (f64::from(u) - 128.0) * 255.0 / chroma,
                (f64::from(v) - 128.0) * 255.0 / chroma,
            );
            let round = |x: f64| (x + 0.5).floor().clamp(0.0, 255.0) as u8;
            [
                round(c + 1.402 * e),
                round(c - 0.344_136_286 * d - 0.714_136_286 * e),
                round(c + 1.772 * d),
            ]
        };
        for y in 0..=255 {
            for c in 0..=255u8 {
                for (u, v) in [(c, c), (c, 255 - c), (c.wrapping_mul(31), c)] {
                    let limited = reference([16.0, 219.0, 224.0], y, u, v);
                    assert_eq!(LIMITED.rgb(y, u, v), limited, "limited {y} {u} {v}");
                    let full = reference([0.0, 255.0, 255.0], y, u, v);
                    assert_eq!(FULL.rgb(y, u, v), full, "full {y} {u} {v}");
                }
            }
        }
    }

    #[test]
    fn odd_sizes_and_padded_rows_are_read_where_they_lie() {
        let mut padded = frame(3, 2, PixelFormat::Rgb24, (0..22).collect());
        padded.stride = 13;
        assert_eq!(
            rgb(&padded),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 19, 20, 21]
        );
        assert_eq!(
            rgb(&frame(3, 1, PixelFormat::Grey, vec![0, 7, 255])),
            [0, 0, 0, 7, 7, 7, 255, 255, 255]
        );
        for format in [
            PixelFormat::Yuyv,
            PixelFormat::Nv12,
            PixelFormat::I420,
            PixelFormat::I422,
            PixelFormat::I444,
        ] {
            let bytes = format.frame_bytes(format.row_bytes(5), 3);
            // Luma 235 and chroma 128 is white.
            let mut white = vec![128; bytes];
            match format {
                PixelFormat::Yuyv => white.iter_mut().step_by(2).for_each(|y| *y = 235),
                _ => white[..15].fill(235),
            }
            let mut white = frame(5, 3, format, white);
            assert_eq!(rgb(&white), vec![255; 45], "{format:?}");
            white.full_range = true;
            assert_eq!(rgb(&white), vec![235; 45], "{format:?} of full range");
        }
    }

    #[test]
    fn too_few_bytes_are_refused_with_both_counts() {
        for format in [
            PixelFormat::Rgb24,
            PixelFormat::Nv12,
            PixelFormat::Uyvy,
            PixelFormat::I444,
        ] {
            let mut f = frame(5, 3, format, vec![0; format.frame_bytes(format.row_bytes(5), 3) - 1]);
            let error = to_rgb8(&f, &mut Vec::new()).unwrap_err();
            assert_eq!(error.expected, error.found + 1, "{error}");
            f.stride = 1;
            assert!(to_rgb8(&f, &mut Vec::new()).is_err());
        }
    }
}
