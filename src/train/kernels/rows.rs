//! Loops over rows of `f32` values in cache, compiled for the widest vectors of the processor.
//!
//! `pulp` chooses at run time; what it compiles anew must be inlined, so every loop is a function of its own. `erf` and `exp`
//! are polynomial forms that the compiler vectorises; their error is below 2e-7 absolute.
#![allow(clippy::needless_lifetimes)] // `pulp::with_simd` names them

use pulp::{Arch, Simd};

/// Values that a loop adds up side by side, so that it vectorises.
const LANES: usize = 16;

/// Folds `a` lane by lane, then the lanes and what is left over.
#[inline(always)]
fn fold(a: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = a.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(start, |x, &y| f(x, y));
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], x[i]);
        }
    }
    lanes.iter().fold(tail, |x, &y| f(x, y))
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (x, y) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = x.remainder().iter().zip(y.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x.zip(y) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

#[inline(always)]
fn sum(a: &[f32]) -> f32 {
    fold(a, 0.0, |x, y| x + y)
}

#[inline(always)]
fn max(a: &[f32]) -> f32 {
    fold(a, f32::NEG_INFINITY, |x, y| if y > x { y } else { x })
}

#[inline(always)]
fn dot_of_three(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (x, y, z) = (a.chunks_exact(LANES), b.chunks_exact(LANES), c.chunks_exact(LANES));
    let tails = x.remainder().iter().zip(y.remainder()).zip(z.remainder());
    let tail: f32 = tails.map(|((x, y), z)| x * y * z).sum();
    for ((x, y), z) in x.zip(y).zip(z) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i] * z[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Writes `x − mean` to `out`; returns 1 / standard deviation.
#[inline(always)]
fn centre(x: &[f32], out: &mut [f32], epsilon: f32) -> f32 {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    for (o, &x) in out.iter_mut().zip(x) {
        *o = x - mean;
    }
    1.0 / (dot(out, out) / n + epsilon).sqrt()
}

/// eˣ for x ≤ 0 (Cody-Waite reduction, degree-6 polynomial). Below −87 it is 0: what a mask hides must have no weight at all, or
/// products with it are subnormal numbers, which a core multiplies some twenty times slower.
#[inline(always)]
fn exp(exponent: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    // A comparison and not `max`, which would hide NaN.
    let x = if exponent < LEAST { LEAST } else { exponent };
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer without a library call.
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_66 + r * (0.041_666_7 + r * (0.008_333_4 + r * 0.001_389)))));
    // The lowest bits of what was rounded are n, in −126..=0; moved up they are an exponent.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if exponent < LEAST { 0.0 } else { p * power }
}

/// erf(x) (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7), and e^(−x²).
#[inline(always)]
fn erf_and_gauss(x: f32) -> (f32, f32) {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let gauss = exp(-a * a);
    let p = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    ((1.0 - p * gauss).copysign(x), gauss)
}

/// Softmax of rows of `width` values in place, after adding `mask`, which is empty or as long.
#[pulp::with_simd(softmax = Arch::new())]
#[inline(always)]
pub(super) fn softmax_any<'a, S: Simd>(_simd: S, rows: &'a mut [f32], mask: &'a [f32], width: usize) {
    rows.iter_mut().zip(mask).for_each(|(score, mask)| *score += mask);
    for row in rows.chunks_exact_mut(width) {
        let largest = max(row);
        for value in row.iter_mut() {
            *value = exp(*value - largest);
        }
        let inverse = 1.0 / sum(row);
        for value in row.iter_mut() {
            *value *= inverse;
        }
    }
}

/// `grad := y ⊙ (grad − Σ y ⊙ grad)` by rows of `width` values.
#[pulp::with_simd(softmax_backward = Arch::new())]
#[inline(always)]
pub(super) fn softmax_backward_any<'a, S: Simd>(_simd: S, y: &'a [f32], grad: &'a mut [f32], width: usize) {
    for (y, g) in y.chunks_exact(width).zip(grad.chunks_exact_mut(width)) {
        let inner = dot(y, g);
        for (g, &y) in g.iter_mut().zip(y) {
            *g = y * (*g - inner);
        }
    }
}

/// Exact-form GELU.
#[pulp::with_simd(gelu = Arch::new())]
#[inline(always)]
pub(super) fn gelu_any<'a, S: Simd>(_simd: S, x: &'a [f32], out: &'a mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = 0.5 * x * (1.0 + erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2).0);
    }
}

/// Gradient of [`gelu`]: `g · (Φ(x) + x φ(x))`.
#[pulp::with_simd(gelu_backward = Arch::new())]
#[inline(always)]
pub(super) fn gelu_backward_any<'a, 'b, 'c, S: Simd>(_simd: S, x: &'a [f32], grad: &'b [f32], out: &'c mut [f32]) {
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    for ((o, &x), &g) in out.iter_mut().zip(x).zip(grad) {
        let (erf, gauss) = erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2);
        *o = g * (0.5 * (1.0 + erf) + x * INVERSE_SQRT_2PI * gauss);
    }
}

/// `(x − mean) / sqrt(var + epsilon) · w + b` of rows as long as `w`.
#[pulp::with_simd(layer_norm = Arch::new())]
#[inline(always)]
pub(super) fn layer_norm_any<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
) {
    for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
        let inverse = centre(x, out, epsilon);
        for ((o, &w), &b) in out.iter_mut().zip(w).zip(b) {
            *o = *o * inverse * w + b;
        }
    }
}

/// Gradient of [`layer_norm`] by its input to `out`; those by weight and bias are added to `by_parameters`, one after the other.
#[pulp::with_simd(layer_norm_backward = Arch::new())]
#[inline(always)]
pub(super) fn layer_norm_backward_any<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    w: &'a [f32],
    grad: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
    by_parameters: &'a mut [f32],
) {
    let width = w.len();
    let (by_weight, by_bias) = by_parameters.split_at_mut(width);
    for ((x, g), out) in x
        .chunks_exact(width)
        .zip(grad.chunks_exact(width))
        .zip(out.chunks_exact_mut(width))
    {
        let n = width as f32;
        let inverse = centre(x, out, epsilon);
        for (((by_weight, by_bias), &x), &g) in by_weight.iter_mut().zip(by_bias.iter_mut()).zip(out.iter()).zip(g) {
            *by_weight += g * x * inverse;
            *by_bias += g;
        }
        let mean = dot(g, w) / n;
        let along = dot_of_three(g, w, out) * inverse * inverse / n;
        for ((o, &g), &w) in out.iter_mut().zip(g).zip(w) {
            *o = (g * w - mean - *o * along) * inverse;
        }
    }
}

/// Adds rows as long as `sum` to it.
#[pulp::with_simd(add_rows = Arch::new())]
#[inline(always)]
pub(super) fn add_rows_any<'a, S: Simd>(_simd: S, rows: &'a [f32], sum: &'a mut [f32]) {
    for row in rows.chunks_exact(sum.len()) {
        for (sum, &value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
