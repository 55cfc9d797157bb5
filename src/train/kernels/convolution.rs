//! Convolution as matrix products on patches of a few output lines at a time, channels innermost.
//!
//! Tensors are `[B, C, H, W]` by their axes; results lie in memory as `[B, H, W, C]`, which is how the next layer reads them.

use burn_backend::Slice;
use burn_flex::FlexTensor;

use super::buffer::{written, written_onto};
use super::fused::{dims, tensor};
use super::product::{Matrix, Right, multiply, sum_over_parts, with_scratch};
use super::rows::add_rows;
use crate::train::precision::Precision;

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
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

impl ConvGeometry {
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
    /// Values of a patch.
    pub(super) fn patch(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }
    pub(super) fn all(size: usize) -> Slice {
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
            Self::all(self.batch),
            Self::all(self.channels),
            along(ky, self.out_height()),
            along(kx, self.out_width()),
        ]
    }
    /// Taps of the kernel that lie inside an axis of `size` at output position `out`, and where the first of them reads.
    fn inside(&self, out: usize, size: usize) -> (std::ops::Range<usize>, usize) {
        let first = out * self.stride;
        let start = self.padding.saturating_sub(first).min(self.kernel);
        let end = (size + self.padding).saturating_sub(first).clamp(start, self.kernel);
        (start..end, (first + start).saturating_sub(self.padding))
    }
    /// Output lines whose patches take about 256 KiB.
    fn lines(&self) -> usize {
        ((1 << 16) / (self.out_width() * self.patch())).clamp(1, self.out_height())
    }
    /// For every run of taps of output lines `lines`: calls `f` with its place among the patches and in the image.
    fn runs(&self, lines: std::ops::Range<usize>, mut f: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>)) {
        let (c, row) = (self.channels, self.kernel * self.channels);
        let mut patch = 0;
        for oy in lines {
            let (rows, top) = self.inside(oy, self.height);
            for ox in 0..self.out_width() {
                let (columns, left) = self.inside(ox, self.width);
                let length = columns.len() * c;
                for (i, ky) in rows.clone().enumerate() {
                    let to = patch + ky * row + columns.start * c;
                    let from = ((top + i) * self.width + left) * c;
                    f(to..to + length, from..from + length);
                }
                patch += self.patch();
            }
        }
    }
    /// Patches of output lines `lines` of an image `[H, W, C]`, as rows of taps and channels.
    fn gather(&self, image: &[f32], lines: std::ops::Range<usize>, patches: &mut [f32]) {
        if self.padding > 0 {
            patches.fill(0.0);
        }
        self.runs(lines, |to, from| patches[to].copy_from_slice(&image[from]));
    }
    /// Adds patches back to the pixels that they came from.
    fn scatter(&self, patches: &[f32], lines: std::ops::Range<usize>, image: &mut [f32]) {
        self.runs(lines, |from, to| {
            image[to]
                .iter_mut()
                .zip(&patches[from])
                .for_each(|(pixel, value)| *pixel += value);
        });
    }
}

/// `[A, B, C, D]` as `[A, C, D, B]`, contiguous.
fn channels_last(x: &FlexTensor) -> FlexTensor {
    x.clone().with_layout(x.layout().permute(&[0, 2, 3, 1])).to_contiguous()
}

/// Values `[A, C, D, B]` by axes `[A, B, C, D]`.
fn channels_second(values: Vec<f32>, shape: [usize; 4]) -> FlexTensor {
    let x = tensor(values, shape.to_vec());
    let layout = x.layout().permute(&[0, 3, 1, 2]);
    x.with_layout(layout)
}

/// `x [B, C, H, W]`, `w [O, C, k, k]`, `b [O]` to `[B, O, oh, ow]`.
pub(super) fn conv2d(
    x: &FlexTensor,
    w: &FlexTensor,
    b: Option<&FlexTensor>,
    g: ConvGeometry,
    precision: Precision,
) -> FlexTensor {
    let (outer, patch, ow) = (dims(w)[0], g.patch(), g.out_width());
    let (x, w, b) = (channels_last(x), channels_last(w), b.map(FlexTensor::to_contiguous));
    let (x, w, b) = (
        x.storage::<f32>(),
        w.storage::<f32>(),
        b.as_ref().map(|b| b.storage::<f32>()),
    );
    let w = Right::new(Matrix::new(w, outer, patch, patch).transposed(), precision);
    let (image, line) = (g.height * g.width * g.channels, ow * outer);
    let fill = |item: usize, first: usize, out: &mut [f32]| {
        let (first, count) = (first / line, out.len() / line);
        with_scratch(count * ow * patch, |patches| {
            g.gather(&x[item * image..][..image], first..first + count, patches);
            let patches = Matrix::new(patches, count * ow, patch, patch);
            multiply(out, outer, b.is_some(), 1.0, patches, &w);
        });
    };
    let (size, part) = (g.out_height() * line, g.lines() * line);
    let out = match b {
        Some(b) => written_onto(b, g.batch, size, part, fill),
        None => written(g.batch, size, part, fill),
    };
    channels_second(out, [g.batch, g.out_height(), ow, outer])
}

/// Gradient of [`conv2d`] by its input.
pub(super) fn conv2d_by_input(w: &FlexTensor, grad: &FlexTensor, g: ConvGeometry, precision: Precision) -> FlexTensor {
    let (outer, patch, ow) = (dims(w)[0], g.patch(), g.out_width());
    let (w, grad) = (channels_last(w), channels_last(grad));
    let (w, grad) = (
        Right::new(Matrix::new(w.storage::<f32>(), outer, patch, patch), precision),
        grad.storage::<f32>(),
    );
    let (image, line) = (g.height * g.width * g.channels, ow * outer);
    let out = written(g.batch, image, image, |item, _, out| {
        let grad = &grad[item * g.out_height() * line..][..g.out_height() * line];
        for (i, grad) in grad.chunks(g.lines() * line).enumerate() {
            let (first, count) = (i * g.lines(), grad.len() / line);
            with_scratch(count * ow * patch, |patches| {
                let grad = Matrix::new(grad, count * ow, outer, outer);
                multiply(patches, patch, false, 1.0, grad, &w);
                g.scatter(patches, first..first + count, out);
            });
        }
    });
    channels_second(out, [g.batch, g.height, g.width, g.channels])
}

/// Gradients of [`conv2d`] by weight and bias.
pub(super) fn conv2d_by_parameters(
    x: &FlexTensor,
    grad: &FlexTensor,
    g: ConvGeometry,
    precision: Precision,
) -> (FlexTensor, FlexTensor) {
    let (outer, patch, ow, oh) = (dims(grad)[1], g.patch(), g.out_width(), g.out_height());
    let (x, grad) = (channels_last(x), channels_last(grad));
    let (x, grad) = (x.storage::<f32>(), grad.storage::<f32>());
    let (image, line) = (g.height * g.width * g.channels, ow * outer);
    let least = 256_usize.div_ceil(ow);
    let (by_weight, by_bias) = sum_over_parts(g.batch * oh, least, [outer, patch], |lines, by_weight, by_bias| {
        let mut first = lines.start;
        while first < lines.end {
            let (item, top) = (first / oh, first % oh);
            let count = g.lines().min(oh - top).min(lines.end - first);
            let grad = &grad[first * line..][..count * line];
            with_scratch(count * ow * patch, |patches| {
                g.gather(&x[item * image..][..image], top..top + count, patches);
                let patches = Right::new(Matrix::new(patches, count * ow, patch, patch), precision);
                let grad = Matrix::new(grad, count * ow, outer, outer).transposed();
                multiply(by_weight, patch, true, 1.0, grad, &patches);
            });
            add_rows(grad, by_bias);
            first += count;
        }
    });
    (
        channels_second(by_weight, [outer, g.kernel, g.kernel, g.channels]),
        tensor(by_bias, vec![outer]),
    )
}
