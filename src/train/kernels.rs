//! The kernels that the model's time goes into, with backward passes of their own.
//!
//! [`Kernels`] is what [`crate::train::autodiff::Graph`] needs beyond the framework's operators. The defaults are composed of
//! framework operators and run on any backend; [`Flex`] (CPU) has fused loops, parallel over blocks whose size depends on the
//! shapes alone, so results do not depend on the number of threads.

use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;
use burn_flex::{Flex, FlexDevice};

use crate::train::precision::Precision;

pub use self::convolution::ConvGeometry;

mod attention;
mod bf16;
mod buffer;
mod composed;
mod convolution;
mod fused;
mod product;
mod recorded;
mod rows;
#[cfg(test)]
mod tests;

/// Fused operators of the model, forward and backward. Those with matrix products round the factors as a [`Precision`] says.
pub trait Kernels: Backend {
    /// Whether `device` computes products in `precision`. The operators may panic where it does not.
    fn computes_in(precision: Precision, device: &Self::Device) -> bool;
    /// Softmax over the last axis.
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::softmax_last::<Self>(x)
    }
    /// Gradient of [`Kernels::softmax_last`]: `y ⊙ (g − Σ g ⊙ y)`.
    fn softmax_last_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::softmax_last_backward::<Self>(y, grad)
    }
    /// `x·Wᵀ + b`: `x [R, I]`, `w [O, I]`, `b [O]` to `[R, O]`.
    fn affine(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::affine::<Self>(x, w, b, precision)
    }
    /// Gradient of [`Kernels::affine`] by `x`.
    fn affine_by_input(w: FloatTensor<Self>, grad: FloatTensor<Self>, precision: Precision) -> FloatTensor<Self> {
        composed::affine_by_input::<Self>(w, grad, precision)
    }
    /// Gradients of [`Kernels::affine`] by `w` and by `b`.
    fn affine_by_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::affine_by_parameters::<Self>(x, grad, precision)
    }
    /// Layer normalisation over the last axis: `(x − mean) / sqrt(var + epsilon) · w + b`, `w` and `b [E]`.
    fn layer_norm_last(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        composed::layer_norm_last::<Self>(x, w, b, epsilon)
    }
    /// Gradients of [`Kernels::layer_norm_last`] by `x`, `w` and `b`.
    fn layer_norm_last_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> [FloatTensor<Self>; 3] {
        composed::layer_norm_last_backward::<Self>(x, w, grad, epsilon)
    }
    /// Multi-head attention of tokens to each other: `qkv [B, N, 3 C]` to `[B, N, C]`. Queries, keys and values lie one
    /// after another, each with its heads one after another; `mask [N, N]` is added to the scores and has no gradient.
    fn self_attention(
        qkv: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::self_attention::<Self>(qkv, mask, heads, precision)
    }
    /// Gradient of [`Kernels::self_attention`] by `qkv`.
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::self_attention_backward::<Self>(qkv, mask, heads, grad, precision)
    }
    /// Multi-head attention of queries `[B, N, C]` to keys and values `[B, M, C]`: `[B, N, C]`.
    fn cross_attention(parts: [FloatTensor<Self>; 3], heads: usize, precision: Precision) -> FloatTensor<Self> {
        composed::cross_attention::<Self>(parts, heads, precision)
    }
    /// Gradients of [`Kernels::cross_attention`] by queries, keys and values.
    fn cross_attention_backward(
        parts: [FloatTensor<Self>; 3],
        heads: usize,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> [FloatTensor<Self>; 3] {
        composed::cross_attention_backward::<Self>(parts, heads, grad, precision)
    }
    /// GELU, erf form.
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_erf::<Self>(x)
    }
    /// Gradient of [`Kernels::gelu_erf`]: `g · (Φ(x) + x · φ(x))`. The framework's own is that of the tanh form, 5e-4 away.
    fn gelu_erf_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_erf_backward::<Self>(x, grad)
    }
    /// Convolution: `x [B, C, H, W]`, `w [O, C, k, k]`, `b [O]` to `[B, O, oh, ow]`.
    fn convolution(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::convolution::<Self>(x, w, b, geometry, precision)
    }
    /// Gradient of [`Kernels::convolution`] by `x`.
    fn convolution_by_input(
        w: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::convolution_by_input::<Self>(w, grad, geometry, precision)
    }
    /// Gradients of [`Kernels::convolution`] by `w` and by `b`.
    fn convolution_by_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::convolution_by_parameters::<Self>(x, grad, geometry, precision)
    }
}

impl Kernels for Flex {
    fn computes_in(precision: Precision, _: &FlexDevice) -> bool {
        precision != Precision::Fp16
    }
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::softmax(&x)
    }
    fn softmax_last_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::softmax_backward(&y, &grad)
    }
    fn affine(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        product::linear(&x, &w, b.as_ref(), precision)
    }
    fn affine_by_input(w: FloatTensor<Self>, grad: FloatTensor<Self>, precision: Precision) -> FloatTensor<Self> {
        product::linear_by_input(&w, &grad, precision)
    }
    fn affine_by_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        product::linear_by_parameters(&x, &grad, precision)
    }
    fn layer_norm_last(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        fused::layer_norm(&x, &w, &b, epsilon)
    }
    fn layer_norm_last_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> [FloatTensor<Self>; 3] {
        fused::layer_norm_backward(&x, &w, &grad, epsilon)
    }
    fn self_attention(
        qkv: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self> {
        attention::attention(composed::thirds::<Self>(&qkv), mask.as_ref(), heads, precision)
    }
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let parts = composed::thirds::<Self>(&qkv);
        // one result, so that nothing is copied to join three
        let [by_qkv] = attention::attention_backward(parts, mask.as_ref(), heads, grad, [&[0, 1, 2]], precision);
        by_qkv
    }
    fn cross_attention(parts: [FloatTensor<Self>; 3], heads: usize, precision: Precision) -> FloatTensor<Self> {
        attention::attention(parts, None, heads, precision)
    }
    fn cross_attention_backward(
        parts: [FloatTensor<Self>; 3],
        heads: usize,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> [FloatTensor<Self>; 3] {
        attention::attention_backward(parts, None, heads, grad, [&[0], &[1], &[2]], precision)
    }
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::gelu(&x)
    }
    fn gelu_erf_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::gelu_backward(&x, &grad)
    }
    fn convolution(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> FloatTensor<Self> {
        convolution::conv2d(&x, &w, b.as_ref(), geometry, precision)
    }
    fn convolution_by_input(
        w: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> FloatTensor<Self> {
        convolution::conv2d_by_input(&w, &grad, geometry, precision)
    }
    fn convolution_by_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        convolution::conv2d_by_parameters(&x, &grad, geometry, precision)
    }
}
