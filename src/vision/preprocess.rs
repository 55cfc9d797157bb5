//! Frame → image tensor: colour conversion, Pillow-bilinear resize, normalisation, zero padding, HWC → CHW.
//!
//! The resize is Pillow's (`Image.resize(..., BILINEAR)`): an antialiased triangle filter in two passes, horizontal
//! first, with 22-bit coefficients and 8-bit intermediate values; it equals Pillow bit for bit. Padding is zero
//! *after* normalising, as SAM does.

use super::frame::Frame;
use super::geometry::{FrameSize, Letterbox};
use super::pixels::{PixelError, to_rgb8};
use crate::contract::EncoderSpec;

/// Fractional bits of a filter coefficient (Pillow: 32 − 8 − 2).
const PRECISION_BITS: u32 = 22;

/// Filter of one axis: for each destination sample the first source sample and its coefficients.
struct Axis {
    bounds: Vec<(usize, usize)>,
    coefficients: Vec<i32>,
    width: usize,
}

impl Axis {
    fn new(source: usize, target: usize) -> Self {
        let scale = source as f64 / target as f64;
        let filter_scale = scale.max(1.0);
        let width = filter_scale.ceil() as usize * 2 + 1;
        let (mut bounds, mut coefficients) = (Vec::with_capacity(target), vec![0; target * width]);
        for (i, row) in coefficients.chunks_exact_mut(width).enumerate() {
            let centre = (i as f64 + 0.5) * scale;
            // `as` truncates toward zero and saturates at 0, as Pillow's cast and clamp do.
            let first = (centre - filter_scale + 0.5) as usize;
            let count = ((centre + filter_scale + 0.5) as usize).min(source) - first;
            let weight = |x: usize| {
                let distance = ((x + first) as f64 - centre + 0.5) / filter_scale;
                (1.0 - distance.abs()).max(0.0)
            };
            let sum: f64 = (0..count).map(weight).sum();
            for (x, c) in row.iter_mut().enumerate().take(count) {
                *c = (weight(x) / sum * f64::from(1 << PRECISION_BITS) + 0.5) as i32;
            }
            bounds.push((first, count));
        }
        Self {
            bounds,
            coefficients,
            width,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds
            .iter()
            .zip(self.coefficients.chunks_exact(self.width))
            .map(|(&(first, n), c)| (first, &c[..n]))
    }
}

/// Scales packed RGB (or any 3-channel bytes) as Pillow does; buffers and filters are kept between calls.
pub struct Resizer {
    source: FrameSize,
    target: FrameSize,
    horizontal: Axis,
    vertical: Axis,
    between: Vec<u8>,
    accumulators: Vec<i32>,
}

impl Resizer {
    /// A resizer from one size to another.
    #[must_use]
    pub fn new(source: FrameSize, target: FrameSize) -> Self {
        Self {
            source,
            target,
            horizontal: Axis::new(source.width(), target.width()),
            vertical: Axis::new(source.height(), target.height()),
            between: Vec::new(),
            accumulators: Vec::new(),
        }
    }

    /// Hands every finished row (`target.width × 3` bytes) to `row`, top to bottom.
    ///
    /// `rgb` is `[source.height, source.width, 3]`; a shorter slice yields no rows.
    pub fn rows(&mut self, rgb: &[u8], mut row: impl FnMut(usize, &[u8])) {
        let (source_row, target_row) = (3 * self.source.width(), 3 * self.target.width());
        if rgb.len() < source_row * self.source.height() {
            return;
        }
        let half = 1 << (PRECISION_BITS - 1);
        let clip = |sum: i32| (sum >> PRECISION_BITS).clamp(0, 255) as u8;
        let narrowed = if source_row == target_row {
            rgb
        } else {
            self.between.resize(target_row * self.source.height(), 0);
            for (from, to) in rgb
                .chunks_exact(source_row)
                .zip(self.between.chunks_exact_mut(target_row))
            {
                for ((first, coefficients), pixel) in self.horizontal.iter().zip(to.chunks_exact_mut(3)) {
                    let mut sum = [half; 3];
                    for (p, &k) in from[3 * first..].chunks_exact(3).zip(coefficients) {
                        for (s, &p) in sum.iter_mut().zip(p) {
                            *s += i32::from(p) * k;
                        }
                    }
                    for (p, s) in pixel.iter_mut().zip(sum) {
                        *p = clip(s);
                    }
                }
            }
            &self.between
        };
        if self.source.height() == self.target.height() {
            narrowed
                .chunks_exact(target_row)
                .enumerate()
                .for_each(|(y, r)| row(y, r));
            return;
        }
        let mut finished = vec![0; target_row];
        for (y, (first, coefficients)) in self.vertical.iter().enumerate() {
            self.accumulators.clear();
            self.accumulators.resize(target_row, half);
            for (from, &k) in narrowed[first * target_row..]
                .chunks_exact(target_row)
                .zip(coefficients)
            {
                for (s, &p) in self.accumulators.iter_mut().zip(from) {
                    *s += i32::from(p) * k;
                }
            }
            for (f, &s) in finished.iter_mut().zip(&self.accumulators) {
                *f = clip(s);
            }
            row(y, &finished);
        }
    }

    /// Scales into `out`, `[target.height, target.width, 3]`.
    pub fn run(&mut self, rgb: &[u8], out: &mut Vec<u8>) {
        out.clear();
        self.rows(rgb, |_, r| out.extend_from_slice(r));
    }
}

/// Turns frames into encoder inputs, keeping every buffer between frames.
pub struct Preprocessor {
    side: usize,
    place: fn(FrameSize, usize) -> Letterbox,
    /// Normalised value of each of the 256 levels, per channel.
    levels: [Box<[f32; 256]>; 3],
    rgb: Vec<u8>,
    tensor: Vec<f32>,
    resizer: Option<Resizer>,
}

impl Preprocessor {
    /// A preprocessor for one model.
    #[must_use]
    pub fn new(spec: &EncoderSpec) -> Self {
        let level = |c: usize| Box::new(std::array::from_fn(|i| (i as f32 - spec.mean[c]) / spec.std[c]));
        Self {
            side: spec.side,
            place: Letterbox::fit,
            levels: [level(0), level(1), level(2)],
            rgb: Vec::new(),
            tensor: vec![0.0; 3 * spec.side * spec.side],
            resizer: None,
        }
    }

    /// The same, but frames are stretched to the square ([`Letterbox::stretched`]).
    #[must_use]
    pub fn stretching(self) -> Self {
        Self {
            place: Letterbox::stretched,
            ..self
        }
    }

    /// Prepares one frame; [`Self::tensor`] and [`Self::rgb`] then hold it.
    ///
    /// # Errors
    /// [`PixelError`] if the frame has too few bytes.
    pub fn run(&mut self, frame: &Frame) -> Result<Letterbox, PixelError> {
        to_rgb8(frame, &mut self.rgb)?;
        let letterbox = (self.place)(frame.size, self.side);
        let target = letterbox.scaled();
        if self
            .resizer
            .as_ref()
            .is_none_or(|r| (r.source, r.target) != (frame.size, target))
        {
            self.resizer = Some(Resizer::new(frame.size, target));
            self.tensor.fill(0.0);
        }
        let (side, plane) = (self.side, self.side * self.side);
        if let Some(resizer) = &mut self.resizer {
            let (tensor, levels) = (&mut self.tensor, &self.levels);
            resizer.rows(&self.rgb, |y, row| {
                for (channel, level) in levels.iter().enumerate() {
                    let to = &mut tensor[channel * plane + y * side..][..target.width()];
                    for (t, &v) in to.iter_mut().zip(row.iter().skip(channel).step_by(3)) {
                        *t = level[usize::from(v)];
                    }
                }
            });
        }
        Ok(letterbox)
    }

    /// The encoder input of the last frame, `[1, 3, S, S]`, normalised.
    #[must_use]
    pub fn tensor(&self) -> &[f32] {
        &self.tensor
    }

    /// The last frame at its own size, `[height, width, 3]`.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::sha256_hex;
    use crate::vision::frame::{CaptureTime, PixelFormat, Sequence};

    // Pillow through torchvision, as segment_anything's ResizeLongestSide uses it; 641x359 input
    static INPUT: &[u8] = include_bytes!("../../tests/data/golden/resize_input.png");
    static LONGEST_192: &[u8] = include_bytes!("../../tests/data/golden/resize_longest_192.png");

    fn decode(png: &[u8]) -> (FrameSize, Vec<u8>) {
        let picture = image::load_from_memory(png).unwrap().into_rgb8();
        (
            FrameSize::new(picture.width(), picture.height()).unwrap(),
            picture.into_raw(),
        )
    }

    fn resized(side: usize) -> Vec<u8> {
        let (size, rgb) = decode(INPUT);
        let mut out = Vec::new();
        Resizer::new(size, Letterbox::fit(size, side).scaled()).run(&rgb, &mut out);
        out
    }

    #[test]
    fn shrinking_and_enlarging_equal_pillow_bit_for_bit() {
        assert_eq!(resized(192), decode(LONGEST_192).1);
        // SHA-256 of the pixels of resize_longest_512.png and resize_longest_1024.png
        assert_eq!(
            sha256_hex(&resized(512)),
            "396c9b3471c6503bf9c18cdd4c6c1fa1408e28d33a1546e95da208ca887ea3be"
        );
        assert_eq!(
            sha256_hex(&resized(1024)),
            "1d00a13dce66b07a13fd651ea8faaa20eae407c7b6d93e358d4185de0a5d32cd"
        );
    }

    #[test]
    fn the_tensor_is_normalised_planar_and_zero_in_the_padding() {
        let spec = EncoderSpec {
            side: 192,
            stride: 16,
            neck_channels: 1,
            embed_dim: 1,
            patch_grid: 12,
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
        };
        let (size, bytes) = decode(INPUT);
        let (format, stride) = (PixelFormat::Rgb24, 3 * size.width());
        let frame = Frame {
            size,
            format,
            full_range: false,
            stride,
            bytes,
            sequence: Sequence(0),
            captured: CaptureTime::default(),
        };
        let mut preprocessor = Preprocessor::new(&spec);
        let letterbox = preprocessor.run(&frame).unwrap();
        let expected = decode(LONGEST_192).1;
        assert_eq!(letterbox.scaled().height(), 108);
        for c in 0..3 {
            for y in 0..192 {
                for x in 0..192 {
                    let found = preprocessor.tensor()[(c * 192 + y) * 192 + x];
                    let level = |i: usize| (f32::from(expected[i]) - spec.mean[c]) / spec.std[c];
                    let want = if y < 108 { level((y * 192 + x) * 3 + c) } else { 0.0 };
                    assert!((found - want).abs() < 1e-6, "{c} {y} {x}: {found} {want}");
                }
            }
        }
        assert_eq!(preprocessor.rgb(), frame.bytes);
    }

    #[test]
    fn a_smaller_frame_after_a_larger_one_leaves_nothing_behind() {
        let spec = EncoderSpec {
            side: 32,
            stride: 16,
            neck_channels: 1,
            embed_dim: 1,
            patch_grid: 2,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        let white = |width, height| {
            let size = FrameSize::new(width, height).unwrap();
            let bytes = vec![255; 3 * size.pixels()];
            let (stride, captured) = (3 * size.width(), CaptureTime::default());
            Frame {
                size,
                format: PixelFormat::Rgb24,
                full_range: false,
                stride,
                bytes,
                sequence: Sequence(0),
                captured,
            }
        };
        let mut preprocessor = Preprocessor::new(&spec);
        preprocessor.run(&white(31, 33)).unwrap();
        preprocessor.run(&white(65, 1)).unwrap();
        let filled = |preprocessor: &Preprocessor| preprocessor.tensor().iter().filter(|&&v| v != 0.0).count();
        assert_eq!(filled(&preprocessor), 3 * 32);
        let mut stretching = Preprocessor::new(&spec).stretching();
        let placed = stretching.run(&white(65, 1)).unwrap();
        assert_eq!(placed, Letterbox::stretched(FrameSize::new(65, 1).unwrap(), 32));
        assert_eq!(filled(&stretching), 3 * 32 * 32, "nothing of the square is padding");
    }
}
