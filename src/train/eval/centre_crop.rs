//! A whole photo as the published CLIP models saw it: shortest side to the tower's size, bicubic, centre crop.
//!
//! Open_clip's `image_transform` on 8-bit RGB: torchvision's `Resize` and `CenterCrop` on a Pillow picture. The filter is
//! Pillow's `BICUBIC` (a = -0.5, widened where it shrinks, weights of 22 bits, 8-bit rounding after each pass), so that
//! the pixels are the same to the bit. Only what the crop shows is computed.

use crate::train::dataset::Photo;
use crate::train::dataset::augment::Normalisation;

/// Bits behind the point of a weight, as in Pillow.
const PRECISION: u32 = 22;

/// The crop, `[3, side, side]`, normalised.
pub(super) fn centre_crop(photo: &Photo, side: usize, normalisation: &Normalisation) -> Vec<f32> {
    let cut = pixels(photo, side);
    let mut planes = Vec::with_capacity(cut.len());
    for channel in 0..3 {
        let (mean, factor) = (normalisation.mean[channel], 1.0 / normalisation.std[channel]);
        let values = cut.iter().skip(channel).step_by(3);
        planes.extend(values.map(|&v| (f32::from(v) - mean) * factor));
    }
    planes
}

/// The crop, `[side, side, 3]`; black for a photo without pixels.
fn pixels(photo: &Photo, side: usize) -> Vec<u8> {
    let (width, height) = (photo.width, photo.height);
    if width == 0 || height == 0 {
        return vec![0; 3 * side * side];
    }
    let short = width.min(height);
    let resized = |length: usize| side * length / short;
    let columns = taps(width, resized(width), side);
    let rows = taps(height, resized(height), side);
    let top = rows.iter().map(|tap| tap.first).min().unwrap_or(0);
    let bottom = rows.iter().map(|tap| tap.first + tap.weights.len()).max().unwrap_or(0);
    let mut narrow = Vec::with_capacity((bottom - top) * side * 3);
    for row in photo.rgb.chunks_exact(3 * width).take(bottom).skip(top) {
        for tap in &columns {
            for channel in 0..3 {
                narrow.push(tap.sum(|i| row[3 * i + channel]));
            }
        }
    }
    let mut cut = Vec::with_capacity(3 * side * side);
    for tap in &rows {
        for value in 0..3 * side {
            cut.push(tap.sum(|i| narrow[(i - top) * 3 * side + value]));
        }
    }
    cut
}

/// Where one output pixel reads: first source pixel and the weights from there, in units of 2^-22.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

impl Taps {
    fn sum(&self, source: impl Fn(usize) -> u8) -> u8 {
        let terms = self.weights.iter().zip(self.first..);
        let sum: i64 = terms.map(|(weight, at)| weight * i64::from(source(at))).sum();
        let rounded = (sum + (1 << (PRECISION - 1))) >> PRECISION;
        rounded.clamp(0, 255) as u8
    }
}

/// Taps of the middle `side` of `resized` pixels over `length` source pixels.
fn taps(length: usize, resized: usize, side: usize) -> Vec<Taps> {
    let scale = length as f64 / resized as f64;
    let widened = scale.max(1.0);
    let support = 2.0 * widened;
    // Python rounds halves to the even neighbour
    let start = ((resized - side) as f64 / 2.0).round_ties_even() as usize;
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(length);
        let weights: Vec<f64> = (first..end)
            .map(|x| cubic((x as f64 - centre + 0.5) / widened))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION)).round() as i64;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (start..start + side).map(tap).collect()
}

/// Keys' cubic with a = -0.5.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(width: usize, height: usize) -> Photo {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb =
            places.flat_map(|(x, y)| [x * 37 + y * 91, x * x * 5 + y * 13, x * y * 7 + 3].map(|v| (v % 256) as u8));
        Photo {
            width,
            height,
            rgb: rgb.collect(),
        }
    }

    // Pillow 13.0: `Image.resize((int(s * w / m), int(s * h / m)), BICUBIC)`, m = min(w, h), then torchvision's crop:
    // first 6 bytes, last 3, their sum, their sum weighted by place modulo 251, plus 1.
    #[test]
    fn the_crop_is_pillows_to_the_bit() {
        let golden = [
            (
                (44, 24, 6),
                ([119, 114, 106, 123, 144, 108], [120, 137, 130], 13_630, 742_625),
            ),
            (
                (9, 16, 5),
                ([140, 60, 17, 123, 83, 70], [132, 199, 133], 9_557, 380_184),
            ),
            ((3, 7, 8), ([164, 20, 2, 170, 21, 3], [127, 79, 67], 11_781, 1_220_014)),
        ];
        for ((width, height, side), (first, last, sum, weighted)) in golden {
            let found = pixels(&photo(width, height), side);
            let total =
                |weight: fn(usize) -> u64| -> u64 { (0..).zip(&found).map(|(i, &v)| weight(i) * u64::from(v)).sum() };
            assert_eq!(
                (&found[..6], &found[found.len() - 3..]),
                (&first[..], &last[..]),
                "{width}x{height}"
            );
            assert_eq!(
                (total(|_| 1), total(|i| i as u64 % 251 + 1)),
                (sum, weighted),
                "{width}x{height}"
            );
        }
    }

    #[test]
    fn what_lies_beside_the_middle_square_is_not_seen() {
        let mut wide = photo(30, 10);
        for (i, value) in wide.rgb.iter_mut().enumerate() {
            *value = if (6..24).contains(&(i / 3 % 30)) { 90 } else { 255 };
        }
        let unit = Normalisation {
            mean: [80.0, 90.0, 100.0],
            std: [10.0; 3],
        };
        let found = centre_crop(&wide, 4, &unit);
        let expected: Vec<f32> = [1.0, 0.0, -1.0].iter().flat_map(|&v| [v; 16]).collect();
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?}"
        );
        assert_eq!(pixels(&photo(0, 0), 2), [0; 12]);
    }
}
