//! The kernels that the model's time goes into, with backward passes of their own.
//!
//! [`Kernels`] is what [`crate::train::autodiff::Graph`] needs beyond the framework's operators. The defaults are
//! composed of framework operators and run on any backend; [`Flex`] (CPU) overrides them with fused loops.
//! [`Autodiff`] records one node for each instead of the framework's five to ten.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, Shape, Slice, TensorMetadata};
use burn_flex::Flex;

use self::fused::Im2col;

mod fused;

/// Fused operators of the model, forward and backward.
pub trait Kernels: Backend {
    /// Softmax over the last axis.
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let axis = x.shape().num_dims() - 1;
        Self::softmax(x, axis)
    }
    /// Gradient of [`Kernels::softmax_last`]: `y ⊙ (g − Σ g ⊙ y)`.
    fn softmax_last_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let axis = y.shape().num_dims() - 1;
        let inner = Self::float_sum_dim(Self::float_mul(grad.clone(), y.clone()), axis);
        Self::float_mul(y, Self::float_sub(grad, inner))
    }
    /// Standardises the last axis: `(x − mean) / sqrt(var + epsilon)`.
    fn standardise(x: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let axis = x.shape().num_dims() - 1;
        let centred = Self::float_sub(x.clone(), Self::float_mean_dim(x, axis));
        let variance = Self::float_mean_dim(Self::float_mul(centred.clone(), centred.clone()), axis);
        let deviation = Self::float_sqrt(Self::float_add_scalar(variance, epsilon.into()));
        Self::float_div(centred, deviation)
    }
    /// Gradient of [`Kernels::standardise`] by its input `x`.
    fn standardise_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let axis = x.shape().num_dims() - 1;
        let centred = Self::float_sub(x.clone(), Self::float_mean_dim(x, axis));
        let variance = Self::float_mean_dim(Self::float_mul(centred.clone(), centred.clone()), axis);
        let deviation = Self::float_sqrt(Self::float_add_scalar(variance, epsilon.into()));
        let y = Self::float_div(centred, deviation.clone());
        let mean = Self::float_mean_dim(grad.clone(), axis);
        let along = Self::float_mean_dim(Self::float_mul(grad.clone(), y.clone()), axis);
        let inner = Self::float_sub(Self::float_sub(grad, mean), Self::float_mul(y, along));
        Self::float_div(inner, deviation)
    }
    /// GELU, erf form.
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(x)
    }
    /// Gradient of [`Kernels::gelu_erf`]: `g · (Φ(x) + x · φ(x))`. The framework's own is that of the tanh form, 5e-4 away.
    fn gelu_erf_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        use std::f32::consts::{FRAC_1_SQRT_2, PI};
        let erf = Self::float_erf(Self::float_mul_scalar(x.clone(), FRAC_1_SQRT_2.into()));
        let cumulative = Self::float_mul_scalar(Self::float_add_scalar(erf, 1.0_f32.into()), 0.5_f32.into());
        let square = Self::float_mul_scalar(Self::float_mul(x.clone(), x.clone()), (-0.5_f32).into());
        let density = Self::float_mul_scalar(Self::float_exp(square), (1.0 / (2.0 * PI).sqrt()).into());
        Self::float_mul(grad, Self::float_add(cumulative, Self::float_mul(x, density)))
    }
    /// Patches of `x [B, C, H, W]` as rows: `[B·oh·ow, C·k·k]`.
    fn im2col(x: FloatTensor<Self>, geometry: Im2col) -> FloatTensor<Self> {
        let g = geometry;
        let (ph, pw) = (g.height + 2 * g.padding, g.width + 2 * g.padding);
        let device = x.device();
        let zeros = Self::float_zeros(
            Shape::from(vec![g.batch, g.channels, ph, pw]),
            &device,
            burn_backend::FloatDType::F32,
        );
        let inside = [g.all(g.batch), g.all(g.channels), g.inner(g.height), g.inner(g.width)];
        let padded = Self::float_slice_assign(zeros, &inside, x);
        let taps = (0..g.kernel * g.kernel).map(|tap| {
            let part = Self::float_slice(padded.clone(), &g.tap(tap));
            Self::float_reshape(
                part,
                Shape::from(vec![g.batch, g.channels, 1, g.out_height(), g.out_width()]),
            )
        });
        let columns = Self::float_cat(taps.collect(), 2); // [B, C, k·k, oh, ow]
        let columns = Self::float_permute(columns, &[0, 3, 4, 1, 2]);
        Self::float_reshape(columns, Shape::from(g.columns_shape().to_vec()))
    }
    /// Gradient of [`Kernels::im2col`]: adds every row back to the pixels it came from.
    fn col2im(columns: FloatTensor<Self>, geometry: Im2col) -> FloatTensor<Self> {
        let g = geometry;
        let (ph, pw) = (g.height + 2 * g.padding, g.width + 2 * g.padding);
        let device = columns.device();
        let (oh, ow, taps) = (g.out_height(), g.out_width(), g.kernel * g.kernel);
        let columns = Self::float_reshape(columns, Shape::from(vec![g.batch, oh, ow, g.channels, taps]));
        let columns = Self::float_permute(columns, &[4, 0, 3, 1, 2]); // [k·k, B, C, oh, ow]
        let shape = Shape::from(vec![g.batch, g.channels, ph, pw]);
        let mut sum = Self::float_zeros(shape, &device, burn_backend::FloatDType::F32);
        for tap in 0..taps {
            let part = Self::float_slice(columns.clone(), &[Slice::new(tap as isize, Some(tap as isize + 1), 1)]);
            let part = Self::float_reshape(part, Shape::from(vec![g.batch, g.channels, oh, ow]));
            let before = Self::float_slice(sum.clone(), &g.tap(tap));
            sum = Self::float_slice_assign(sum, &g.tap(tap), Self::float_add(before, part));
        }
        Self::float_slice(
            sum,
            &[g.all(g.batch), g.all(g.channels), g.inner(g.height), g.inner(g.width)],
        )
    }
}

impl Kernels for Flex {
    fn softmax_last_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::softmax_backward(&y, &grad)
    }
    fn standardise(x: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        fused::standardise(&x, epsilon)
    }
    fn standardise_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        fused::standardise_backward(&x, &grad, epsilon)
    }
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::gelu(&x)
    }
    fn gelu_erf_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        fused::gelu_backward(&x, &grad)
    }
    fn im2col(x: FloatTensor<Self>, geometry: Im2col) -> FloatTensor<Self> {
        fused::im2col(&x, geometry)
    }
    fn col2im(columns: FloatTensor<Self>, geometry: Im2col) -> FloatTensor<Self> {
        fused::col2im(&columns, geometry)
    }
}

/// Records one node whose backward pass needs `saved` (the input or the output) and `$argument`.
macro_rules! recorded {
    ($x:expr, $strategy:ty, $name:ident, $argument:expr, $argument_type:ty,
     |$primitive:ident, $forward_argument:ident| $forward:expr, $save_output:literal,
     |$saved:ident, $grad:ident, $backward_argument:ident| $backward:expr) => {{
        #[derive(Debug)]
        struct $name;
        impl<B: Kernels> Backward<B, 1> for $name {
            type State = (FloatTensor<B>, $argument_type);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let ($saved, $backward_argument) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |$grad| $backward);
            }
        }
        let x = $x;
        let $forward_argument = $argument;
        let prepared = $name.prepare::<$strategy>([x.node()]).compute_bound();
        match prepared.stateful() {
            OpsKind::Tracked(prep) => {
                let input = x.into_primitive();
                let $primitive = input.clone();
                let output = $forward;
                let saved = if $save_output { output.clone() } else { input };
                prep.finish((saved, $argument), output)
            }
            OpsKind::UnTracked(prep) => {
                let $primitive = x.into_primitive();
                prep.finish($forward)
            }
        }
    }};
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        recorded!(
            x,
            C,
            Softmax,
            (),
            (),
            |p, _a| B::softmax_last(p),
            true,
            |y, grad, _a| { B::softmax_last_backward(y, grad) }
        )
    }
    fn standardise(x: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        recorded!(
            x,
            C,
            Standardise,
            epsilon,
            f32,
            |p, e| B::standardise(p, e),
            false,
            |x, grad, e| { B::standardise_backward(x, grad, e) }
        )
    }
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        recorded!(x, C, Gelu, (), (), |p, _a| B::gelu_erf(p), false, |x, grad, _a| {
            B::gelu_erf_backward(x, grad)
        })
    }
    fn im2col(x: FloatTensor<Self>, geometry: Im2col) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Columns;
        impl<B: Kernels> Backward<B, 1> for Columns {
            type State = Im2col;
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let geometry = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::col2im(grad, geometry));
            }
        }
        match Columns.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(geometry, B::im2col(x.into_primitive(), geometry)),
            OpsKind::UnTracked(prep) => prep.finish(B::im2col(x.into_primitive(), geometry)),
        }
    }
}

pub use fused::Im2col as ConvGeometry;
