//! The operators of [`super::Kernels`] by the framework's own: what runs on backends that have no faster ones.

use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, FloatDType, Shape, Slice, TensorMetadata};

use super::convolution::ConvGeometry;
use crate::train::precision::Precision;

/// Largest inner size whose sums stay below fp16's largest value, 65,504, whatever factors of at most 1 are.
const FP16_SUM: usize = 1 << 15;

/// `a · b` over the last two axes, the factors rounded as `precision` says.
fn product<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>, precision: Precision) -> FloatTensor<B> {
    match precision {
        Precision::Fp32 => B::float_matmul(a, b),
        Precision::Bf16 => {
            let round = |x| B::float_cast(B::float_cast(x, FloatDType::BF16), FloatDType::F32);
            B::float_matmul(round(a), round(b))
        }
        Precision::Fp16 => {
            let inner = a.shape()[a.shape().num_dims() - 1];
            let (a, a_largest) = in_fp16::<B>(a, (inner as f32 / FP16_SUM as f32).max(1.0));
            let (b, b_largest) = in_fp16::<B>(b, 1.0);
            let y = B::float_cast(B::float_matmul(a, b), FloatDType::F32);
            B::float_mul(B::float_mul(y, a_largest), b_largest)
        }
    }
}

/// `x` over `spare` times its largest absolute value, as fp16; and what it was divided by, with axes of 1.
fn in_fp16<B: Backend>(x: FloatTensor<B>, spare: f32) -> (FloatTensor<B>, FloatTensor<B>) {
    let ones = Shape::from(vec![1; x.shape().num_dims()]);
    let largest = B::float_reshape(B::float_max_abs(x.clone()), ones);
    // Above fp32's subnormal numbers, so that nothing divided by nothing is nothing.
    let largest = B::float_clamp_min(B::float_mul_scalar(largest, spare.into()), 1e-30_f32.into());
    let x = B::float_cast(B::float_div(x, largest.clone()), FloatDType::F16);
    (x, largest)
}

/// See [`super::Kernels::softmax_last`].
pub(super) fn softmax_last<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let axis = x.shape().num_dims() - 1;
    B::softmax(x, axis)
}

/// See [`super::Kernels::softmax_last_backward`].
pub(super) fn softmax_last_backward<B: Backend>(y: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let axis = y.shape().num_dims() - 1;
    let inner = B::float_sum_dim(B::float_mul(grad.clone(), y.clone()), axis);
    B::float_mul(y, B::float_sub(grad, inner))
}

/// See [`super::Kernels::affine`].
pub(super) fn affine<B: Backend>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    b: Option<FloatTensor<B>>,
    precision: Precision,
) -> FloatTensor<B> {
    let y = product::<B>(x, B::float_swap_dims(w, 0, 1), precision);
    match b {
        Some(b) => {
            let row = Shape::from(vec![1, b.shape()[0]]);
            B::float_add(y, B::float_reshape(b, row))
        }
        None => y,
    }
}

/// See [`super::Kernels::affine_by_input`].
pub(super) fn affine_by_input<B: Backend>(
    w: FloatTensor<B>,
    grad: FloatTensor<B>,
    precision: Precision,
) -> FloatTensor<B> {
    product::<B>(grad, w, precision)
}

/// See [`super::Kernels::affine_by_parameters`].
pub(super) fn affine_by_parameters<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    precision: Precision,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let by_bias = column_sums::<B>(grad.clone());
    (product::<B>(B::float_swap_dims(grad, 0, 1), x, precision), by_bias)
}

/// See [`super::Kernels::layer_norm_last`].
pub(super) fn layer_norm_last<B: Backend>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    b: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    let (y, _) = standardise::<B>(x, epsilon);
    let (w, b) = (lifted::<B>(w, &y), lifted::<B>(b, &y));
    B::float_add(B::float_mul(y, w), b)
}

/// See [`super::Kernels::layer_norm_last_backward`].
pub(super) fn layer_norm_last_backward<B: Backend>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f32,
) -> [FloatTensor<B>; 3] {
    let axis = x.shape().num_dims() - 1;
    let width = x.shape()[axis];
    let (y, deviation) = standardise::<B>(x, epsilon);
    let rows = |x: FloatTensor<B>| {
        let count = x.shape().num_elements() / width;
        B::float_reshape(x, Shape::from(vec![count, width]))
    };
    let by_weight = column_sums::<B>(rows(B::float_mul(grad.clone(), y.clone())));
    let by_bias = column_sums::<B>(rows(grad.clone()));
    let grad = B::float_mul(grad, lifted::<B>(w, &y));
    let mean = B::float_mean_dim(grad.clone(), axis);
    let along = B::float_mean_dim(B::float_mul(grad.clone(), y.clone()), axis);
    let inner = B::float_sub(B::float_sub(grad, mean), B::float_mul(y, along));
    [B::float_div(inner, deviation), by_weight, by_bias]
}

/// See [`super::Kernels::self_attention`].
pub(super) fn self_attention<B: Backend>(
    qkv: FloatTensor<B>,
    mask: Option<FloatTensor<B>>,
    heads: usize,
    precision: Precision,
) -> FloatTensor<B> {
    attend::<B>(thirds::<B>(&qkv), mask, heads, precision).0
}

/// See [`super::Kernels::self_attention_backward`].
pub(super) fn self_attention_backward<B: Backend>(
    qkv: FloatTensor<B>,
    mask: Option<FloatTensor<B>>,
    heads: usize,
    grad: FloatTensor<B>,
    precision: Precision,
) -> FloatTensor<B> {
    let parts = attend_backward::<B>(thirds::<B>(&qkv), mask, heads, grad, precision);
    B::float_cat(parts.to_vec(), 2)
}

/// See [`super::Kernels::cross_attention`].
pub(super) fn cross_attention<B: Backend>(
    parts: [FloatTensor<B>; 3],
    heads: usize,
    precision: Precision,
) -> FloatTensor<B> {
    attend::<B>(parts, None, heads, precision).0
}

/// See [`super::Kernels::cross_attention_backward`].
pub(super) fn cross_attention_backward<B: Backend>(
    parts: [FloatTensor<B>; 3],
    heads: usize,
    grad: FloatTensor<B>,
    precision: Precision,
) -> [FloatTensor<B>; 3] {
    attend_backward::<B>(parts, None, heads, grad, precision)
}

/// See [`super::Kernels::gelu_erf`].
pub(super) fn gelu_erf<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::gelu(x)
}

/// See [`super::Kernels::gelu_erf_backward`].
pub(super) fn gelu_erf_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    use std::f32::consts::{FRAC_1_SQRT_2, PI};
    let erf = B::float_erf(B::float_mul_scalar(x.clone(), FRAC_1_SQRT_2.into()));
    let cumulative = B::float_mul_scalar(B::float_add_scalar(erf, 1.0_f32.into()), 0.5_f32.into());
    let square = B::float_mul_scalar(B::float_mul(x.clone(), x.clone()), (-0.5_f32).into());
    let density = B::float_mul_scalar(B::float_exp(square), (1.0 / (2.0 * PI).sqrt()).into());
    B::float_mul(grad, B::float_add(cumulative, B::float_mul(x, density)))
}

/// See [`super::Kernels::convolution`].
pub(super) fn convolution<B: Backend>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    b: Option<FloatTensor<B>>,
    geometry: ConvGeometry,
    precision: Precision,
) -> FloatTensor<B> {
    let out = w.shape()[0];
    let w = B::float_reshape(w, Shape::from(vec![out, geometry.patch()]));
    let y = affine::<B>(im2col::<B>(x, geometry), w, b, precision);
    let shape = vec![geometry.batch, geometry.out_height(), geometry.out_width(), out];
    B::float_permute(B::float_reshape(y, Shape::from(shape)), &[0, 3, 1, 2])
}

/// See [`super::Kernels::convolution_by_input`].
pub(super) fn convolution_by_input<B: Backend>(
    w: FloatTensor<B>,
    grad: FloatTensor<B>,
    geometry: ConvGeometry,
    precision: Precision,
) -> FloatTensor<B> {
    let w = B::float_reshape(w.clone(), Shape::from(vec![w.shape()[0], geometry.patch()]));
    let columns = affine_by_input::<B>(w, pixel_rows::<B>(grad), precision);
    col2im::<B>(columns, geometry)
}

/// See [`super::Kernels::convolution_by_parameters`].
pub(super) fn convolution_by_parameters<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    geometry: ConvGeometry,
    precision: Precision,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (out, k) = (grad.shape()[1], geometry.kernel);
    let (by_weight, by_bias) = affine_by_parameters::<B>(im2col::<B>(x, geometry), pixel_rows::<B>(grad), precision);
    let shape = Shape::from(vec![out, geometry.channels, k, k]);
    (B::float_reshape(by_weight, shape), by_bias)
}

/// `(x − mean) / sqrt(var + epsilon)` over the last axis, and the denominator.
fn standardise<B: Backend>(x: FloatTensor<B>, epsilon: f32) -> (FloatTensor<B>, FloatTensor<B>) {
    let axis = x.shape().num_dims() - 1;
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, axis));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), axis);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    (B::float_div(centred, deviation.clone()), deviation)
}

/// `[E]` with leading ones, at the rank of `like`.
fn lifted<B: Backend>(x: FloatTensor<B>, like: &FloatTensor<B>) -> FloatTensor<B> {
    let mut shape = vec![1; like.shape().num_dims()];
    *shape.last_mut().expect("a row has an axis") = x.shape()[0];
    B::float_reshape(x, Shape::from(shape))
}

/// `[R, E]` to `[E]`.
fn column_sums<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let width = x.shape()[1];
    B::float_reshape(B::float_sum_dim(x, 0), Shape::from(vec![width]))
}

/// `[B, C, H, W]` as rows of pixels `[B·H·W, C]`.
fn pixel_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let (count, channels) = (x.shape().num_elements() / x.shape()[1], x.shape()[1]);
    let last = B::float_permute(x, &[0, 2, 3, 1]);
    B::float_reshape(last, Shape::from(vec![count, channels]))
}

/// Queries, keys and values `[B, N, C]` of `[B, N, 3 C]`.
pub(super) fn thirds<B: Backend>(qkv: &FloatTensor<B>) -> [FloatTensor<B>; 3] {
    let shape = qkv.shape();
    let c = shape[2] / 3;
    [0, 1, 2].map(|i| {
        let part = [
            ConvGeometry::all(shape[0]),
            ConvGeometry::all(shape[1]),
            Slice::new((i * c) as isize, Some(((i + 1) * c) as isize), 1),
        ];
        B::float_slice(qkv.clone(), &part)
    })
}

/// `[B, N, C]` as `[B, heads, N, d]`.
fn by_head<B: Backend>(x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let split = Shape::from(vec![shape[0], shape[1], heads, shape[2] / heads]);
    B::float_permute(B::float_reshape(x, split), &[0, 2, 1, 3])
}

/// `[B, heads, N, d]` as `[B, N, C]`.
fn heads_together<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let joined = Shape::from(vec![shape[0], shape[2], shape[1] * shape[3]]);
    B::float_reshape(B::float_permute(x, &[0, 2, 1, 3]), joined)
}

/// Attention of framework operators, and its probabilities.
fn attend<B: Backend>(
    parts: [FloatTensor<B>; 3],
    mask: Option<FloatTensor<B>>,
    heads: usize,
    precision: Precision,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [q, k, v] = parts.map(|x| by_head::<B>(x, heads));
    let scale = 1.0 / (q.shape()[3] as f32).sqrt();
    let q = B::float_mul_scalar(q, scale.into());
    let mut scores = product::<B>(q, B::float_swap_dims(k, 2, 3), precision);
    if let Some(mask) = mask {
        let shape = Shape::from(vec![1, 1, mask.shape()[0], mask.shape()[1]]);
        scores = B::float_add(scores, B::float_reshape(mask, shape));
    }
    let p = softmax_last::<B>(scores);
    (heads_together::<B>(product::<B>(p.clone(), v, precision)), p)
}

/// Gradients of [`attend`].
fn attend_backward<B: Backend>(
    parts: [FloatTensor<B>; 3],
    mask: Option<FloatTensor<B>>,
    heads: usize,
    grad: FloatTensor<B>,
    precision: Precision,
) -> [FloatTensor<B>; 3] {
    let (_, p) = attend::<B>(parts.clone(), mask, heads, precision);
    let [q, k, v] = parts.map(|x| by_head::<B>(x, heads));
    let scale = 1.0 / (q.shape()[3] as f32).sqrt();
    let grad = by_head::<B>(grad, heads);
    let by_v = product::<B>(B::float_swap_dims(p.clone(), 2, 3), grad.clone(), precision);
    let by_scores = softmax_last_backward::<B>(p, product::<B>(grad, B::float_swap_dims(v, 2, 3), precision));
    let by_scores = B::float_mul_scalar(by_scores, scale.into());
    let by_q = product::<B>(by_scores.clone(), k, precision);
    let by_k = product::<B>(B::float_swap_dims(by_scores, 2, 3), q, precision);
    [by_q, by_k, by_v].map(heads_together::<B>)
}

/// Patches of `x [B, C, H, W]` as rows: `[B·oh·ow, C·k·k]`.
fn im2col<B: Backend>(x: FloatTensor<B>, g: ConvGeometry) -> FloatTensor<B> {
    let (ph, pw) = (g.height + 2 * g.padding, g.width + 2 * g.padding);
    let device = x.device();
    let zeros = B::float_zeros(Shape::from(vec![g.batch, g.channels, ph, pw]), &device, FloatDType::F32);
    let (items, channels) = (ConvGeometry::all(g.batch), ConvGeometry::all(g.channels));
    let padded = B::float_slice_assign(zeros, &[items, channels, g.inner(g.height), g.inner(g.width)], x);
    let taps = (0..g.kernel * g.kernel).map(|tap| {
        let part = B::float_slice(padded.clone(), &g.tap(tap));
        B::float_reshape(
            part,
            Shape::from(vec![g.batch, g.channels, 1, g.out_height(), g.out_width()]),
        )
    });
    let columns = B::float_cat(taps.collect(), 2); // [B, C, k·k, oh, ow]
    let columns = B::float_permute(columns, &[0, 3, 4, 1, 2]);
    let rows = g.batch * g.out_height() * g.out_width();
    B::float_reshape(columns, Shape::from(vec![rows, g.patch()]))
}

/// Gradient of [`im2col`]: adds every row back to the pixels it came from.
fn col2im<B: Backend>(columns: FloatTensor<B>, g: ConvGeometry) -> FloatTensor<B> {
    let (ph, pw) = (g.height + 2 * g.padding, g.width + 2 * g.padding);
    let device = columns.device();
    let (oh, ow, taps) = (g.out_height(), g.out_width(), g.kernel * g.kernel);
    let columns = B::float_reshape(columns, Shape::from(vec![g.batch, oh, ow, g.channels, taps]));
    let columns = B::float_permute(columns, &[4, 0, 3, 1, 2]); // [k·k, B, C, oh, ow]
    let shape = Shape::from(vec![g.batch, g.channels, ph, pw]);
    let mut sum = B::float_zeros(shape, &device, FloatDType::F32);
    for tap in 0..taps {
        let part = B::float_slice(columns.clone(), &[Slice::new(tap as isize, Some(tap as isize + 1), 1)]);
        let part = B::float_reshape(part, Shape::from(vec![g.batch, g.channels, oh, ow]));
        let before = B::float_slice(sum.clone(), &g.tap(tap));
        sum = B::float_slice_assign(sum, &g.tap(tap), B::float_add(before, part));
    }
    let (items, channels) = (ConvGeometry::all(g.batch), ConvGeometry::all(g.channels));
    B::float_slice(sum, &[items, channels, g.inner(g.height), g.inner(g.width)])
}
