//! Fused CPU loops over contiguous `f32` slices.
//!
//! Rows are independent, so every loop is parallel over blocks of rows. `erf` and `exp` are polynomial
//! forms that the compiler vectorises; their error is below 2e-7 absolute.

use burn_backend::{Slice, TensorData, TensorMetadata};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Geometry of a convolution as rows of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Im2col {
    /// Images.
    pub batch: usize,
    /// Input channels.
    pub channels: usize,
    /// Input height.
    pub height: usize,
    /// Input width.
    pub width: usize,
    /// Kernel side.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Zero padding on all sides.
    pub padding: usize,
}

impl Im2col {
    /// Output height.
    #[must_use]
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }
    /// Output width.
    #[must_use]
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }
    /// `[B·oh·ow, C·k·k]`.
    #[must_use]
    pub fn columns_shape(&self) -> [usize; 2] {
        [
            self.batch * self.out_height() * self.out_width(),
            self.channels * self.kernel * self.kernel,
        ]
    }
    pub(super) fn all(&self, size: usize) -> Slice {
        Slice::new(0, Some(size as isize), 1)
    }
    pub(super) fn inner(&self, size: usize) -> Slice {
        Slice::new(self.padding as isize, Some((self.padding + size) as isize), 1)
    }
    /// Where tap `tap` of the kernel reads in the padded image.
    pub(super) fn tap(&self, tap: usize) -> [Slice; 4] {
        let along = |start: usize, count: usize| {
            Slice::new(
                start as isize,
                Some((start + (count - 1) * self.stride + 1) as isize),
                self.stride as isize,
            )
        };
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        [
            self.all(self.batch),
            self.all(self.channels),
            along(ky, self.out_height()),
            along(kx, self.out_width()),
        ]
    }
    /// Input positions covered by output position `out` along one axis, as (tap, input) pairs.
    fn taps(&self, out: usize, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (first, padding) = (out * self.stride, self.padding);
        (0..self.kernel).filter_map(move |k| (first + k).checked_sub(padding).filter(|&i| i < size).map(|i| (k, i)))
    }
}

/// Rows per parallel task: enough work to pay for the hand-over.
const BLOCK: usize = 1 << 15;

fn tensor(values: Vec<f32>, shape: Vec<usize>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn dims(x: &FlexTensor) -> Vec<usize> {
    let shape = x.shape();
    (0..shape.num_dims()).map(|i| shape[i]).collect()
}

/// Applies `f(row inputs, row output)` to every row of the last axis.
fn by_rows(a: &FlexTensor, b: Option<&FlexTensor>, f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> FlexTensor {
    let shape = dims(a);
    let width = *shape.last().expect("a row has an axis");
    let a = a.to_contiguous();
    let b = b.map(FlexTensor::to_contiguous);
    let a = a.storage::<f32>();
    let b = b.as_ref().map_or(a, |b| b.storage::<f32>());
    let mut out = vec![0.0_f32; a.len()];
    let chunk = (BLOCK / width).max(1) * width;
    out.par_chunks_mut(chunk)
        .zip(a.par_chunks(chunk))
        .zip(b.par_chunks(chunk))
        .for_each(|((out, a), b)| {
            for ((out, a), b) in out.chunks_mut(width).zip(a.chunks(width)).zip(b.chunks(width)) {
                f(a, b, out);
            }
        });
    tensor(out, shape)
}

/// Gradient of softmax over rows.
pub(super) fn softmax_backward(y: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    by_rows(y, Some(grad), |y, g, out| {
        let inner = dot(y, g);
        for ((o, &y), &g) in out.iter_mut().zip(y).zip(g) {
            *o = y * (g - inner);
        }
    })
}

/// Sum of products in eight lanes, so that it vectorises.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let chunks = a.chunks_exact(8);
    let tail: f32 = chunks.remainder().iter().sum();
    for x in chunks {
        for i in 0..8 {
            lanes[i] += x[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Writes `x − mean` to `out`; returns 1 / standard deviation.
fn centre(x: &[f32], out: &mut [f32], epsilon: f32) -> f32 {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    for (o, &x) in out.iter_mut().zip(x) {
        *o = x - mean;
    }
    1.0 / (dot(out, out) / n + epsilon).sqrt()
}

/// `(x − mean) / sqrt(var + epsilon)` over rows.
pub(super) fn standardise(x: &FlexTensor, epsilon: f32) -> FlexTensor {
    by_rows(x, None, |x, _, out| {
        let inverse = centre(x, out, epsilon);
        out.iter_mut().for_each(|o| *o *= inverse);
    })
}

/// Gradient of [`standardise`].
pub(super) fn standardise_backward(x: &FlexTensor, grad: &FlexTensor, epsilon: f32) -> FlexTensor {
    by_rows(x, Some(grad), |x, g, out| {
        let n = x.len() as f32;
        let inverse = centre(x, out, epsilon);
        let mean = sum(g) / n;
        let along = dot(out, g) * inverse * inverse / n;
        for (o, &g) in out.iter_mut().zip(g) {
            *o = (g - mean - *o * along) * inverse;
        }
    })
}

/// eˣ for x ≤ 0 (Cody-Waite reduction, degree-6 polynomial).
#[inline]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer without a library call.
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_66 + r * (0.041_666_7 + r * (0.008_333_4 + r * 0.001_389)))));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // n is in −126..=0
    let power = f32::from_bits((((n as i32) + 127) as u32) << 23);
    p * power
}

/// erf(x) (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7), and e^(−x²).
#[inline]
fn erf_and_gauss(x: f32) -> (f32, f32) {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let gauss = exp(-a * a);
    let p = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    ((1.0 - p * gauss).copysign(x), gauss)
}

/// Exact-form GELU.
pub(super) fn gelu(x: &FlexTensor) -> FlexTensor {
    by_rows(x, None, |x, _, out| {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = 0.5 * x * (1.0 + erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2).0);
        }
    })
}

/// Gradient of [`gelu`]: `g · (Φ(x) + x φ(x))`.
pub(super) fn gelu_backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    by_rows(x, Some(grad), |x, g, out| {
        for ((o, &x), &g) in out.iter_mut().zip(x).zip(g) {
            let (erf, gauss) = erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2);
            *o = g * (0.5 * (1.0 + erf) + x * INVERSE_SQRT_2PI * gauss);
        }
    })
}

/// Patches as rows; columns ordered channel, kernel row, kernel column, like the weight `[O, C, k, k]`.
pub(super) fn im2col(x: &FlexTensor, g: Im2col) -> FlexTensor {
    let x = x.to_contiguous();
    let x = x.storage::<f32>();
    let [rows, width] = g.columns_shape();
    let (oh, ow, k) = (g.out_height(), g.out_width(), g.kernel);
    let mut out = vec![0.0_f32; rows * width];
    out.par_chunks_mut(ow * width).enumerate().for_each(|(line, out)| {
        let (b, oy) = (line / oh, line % oh);
        for (ox, out) in out.chunks_mut(width).enumerate() {
            for (ky, iy) in g.taps(oy, g.height) {
                for (kx, ix) in g.taps(ox, g.width) {
                    let mut from = (b * g.channels * g.height + iy) * g.width + ix;
                    let mut to = ky * k + kx;
                    for _ in 0..g.channels {
                        out[to] = x[from];
                        to += k * k;
                        from += g.height * g.width;
                    }
                }
            }
        }
    });
    tensor(out, vec![rows, width])
}

/// Adds every patch back to its pixels.
pub(super) fn col2im(columns: &FlexTensor, g: Im2col) -> FlexTensor {
    let columns = columns.to_contiguous();
    let columns = columns.storage::<f32>();
    let [_, width] = g.columns_shape();
    let (oh, ow, k) = (g.out_height(), g.out_width(), g.kernel);
    let image = g.channels * g.height * g.width;
    let mut out = vec![0.0_f32; g.batch * image];
    out.par_chunks_mut(image).enumerate().for_each(|(b, out)| {
        for oy in 0..oh {
            for ox in 0..ow {
                let row = &columns[((b * oh + oy) * ow + ox) * width..][..width];
                for (ky, iy) in g.taps(oy, g.height) {
                    for (kx, ix) in g.taps(ox, g.width) {
                        let mut to = iy * g.width + ix;
                        let mut from = ky * k + kx;
                        for _ in 0..g.channels {
                            out[to] += row[from];
                            from += k * k;
                            to += g.height * g.width;
                        }
                    }
                }
            }
        }
    });
    tensor(out, vec![g.batch, g.channels, g.height, g.width])
}
