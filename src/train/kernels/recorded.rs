//! [`super::Kernels`] with gradients: one node of the tape for each operator, in place of the framework's five to ten.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;

use super::Kernels;
use super::convolution::ConvGeometry;
use crate::train::precision::Precision;

/// What the backward pass of one node needs, and what it does; `N` inputs have gradients.
trait Operator<B: Kernels, const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs that are `wanted`.
    fn backward(self, grad: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

/// A node that does what its state says.
#[derive(Debug)]
struct Node<O>(PhantomData<O>);

impl<B: Kernels, O: Operator<B, N>, const N: usize> Backward<B, N> for Node<O> {
    type State = O;
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = ops.state.backward(grad, wanted);
        for (parent, found) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(found)) = (parent, found) {
                grads.register::<B>(parent.id, found);
            }
        }
    }
}

/// Records `operator`, which computed `output`, if any of its inputs is tracked.
fn record<B: Kernels, C: CheckpointStrategy, const N: usize>(
    inputs: [NodeGuard; N],
    operator: impl Operator<B, N>,
    output: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Node(PhantomData).prepare::<C>(inputs).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(operator, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// Defines the state of an operator.
macro_rules! operator {
    ($name:ident { $($field:ident: $type:ty),* }) => {
        #[derive(Clone, Debug)]
        struct $name<B: Backend> {
            $($field: $type,)*
        }
    };
}

operator!(Softmax { y: FloatTensor<B> });
operator!(Gelu { x: FloatTensor<B> });
operator!(Linear { x: FloatTensor<B>, w: FloatTensor<B>, precision: Precision });
operator!(LayerNorm { x: FloatTensor<B>, w: FloatTensor<B>, epsilon: f32 });
operator!(SelfAttention { qkv: FloatTensor<B>, mask: Option<FloatTensor<B>>, heads: usize, precision: Precision });
operator!(Attention { parts: [FloatTensor<B>; 3], heads: usize, precision: Precision });
operator!(Convolution { x: FloatTensor<B>, w: FloatTensor<B>, geometry: ConvGeometry, precision: Precision });

impl<B: Kernels> Operator<B, 1> for Softmax<B> {
    fn backward(self, grad: FloatTensor<B>, _: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::softmax_last_backward(self.y, grad))]
    }
}

impl<B: Kernels> Operator<B, 1> for Gelu<B> {
    fn backward(self, grad: FloatTensor<B>, _: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::gelu_erf_backward(self.x, grad))]
    }
}

/// Gradients by input, weight and, with three inputs, bias.
fn layer_gradients<B: Backend, const N: usize>(
    wanted: [bool; N],
    by_input: impl FnOnce() -> FloatTensor<B>,
    by_parameters: impl FnOnce() -> (FloatTensor<B>, FloatTensor<B>),
) -> [Option<FloatTensor<B>>; N] {
    let mut found = [const { None }; N];
    if wanted[0] {
        found[0] = Some(by_input());
    }
    if wanted[1..].contains(&true) {
        let (by_weight, by_bias) = by_parameters();
        for (slot, by) in found[1..].iter_mut().zip([by_weight, by_bias]) {
            *slot = Some(by);
        }
    }
    found
}

impl<B: Kernels, const N: usize> Operator<B, N> for Linear<B> {
    fn backward(self, grad: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N] {
        layer_gradients::<B, N>(
            wanted,
            || B::affine_by_input(self.w, grad.clone(), self.precision),
            || B::affine_by_parameters(self.x, grad.clone(), self.precision),
        )
    }
}

impl<B: Kernels, const N: usize> Operator<B, N> for Convolution<B> {
    fn backward(self, grad: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N] {
        layer_gradients::<B, N>(
            wanted,
            || B::convolution_by_input(self.w, grad.clone(), self.geometry, self.precision),
            || B::convolution_by_parameters(self.x, grad.clone(), self.geometry, self.precision),
        )
    }
}

impl<B: Kernels> Operator<B, 3> for LayerNorm<B> {
    fn backward(self, grad: FloatTensor<B>, _: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        B::layer_norm_last_backward(self.x, self.w, grad, self.epsilon).map(Some)
    }
}

impl<B: Kernels> Operator<B, 1> for SelfAttention<B> {
    fn backward(self, grad: FloatTensor<B>, _: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        let Self {
            qkv,
            mask,
            heads,
            precision,
        } = self;
        [Some(B::self_attention_backward(qkv, mask, heads, grad, precision))]
    }
}

impl<B: Kernels> Operator<B, 3> for Attention<B> {
    fn backward(self, grad: FloatTensor<B>, _: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        B::cross_attention_backward(self.parts, self.heads, grad, self.precision).map(Some)
    }
}

/// Records a layer with or without bias; `forward` gets the bias.
fn record_layer<B: Kernels, C: CheckpointStrategy>(
    [x, w]: [NodeGuard; 2],
    b: Option<FloatTensor<Autodiff<B, C>>>,
    operator: impl Operator<B, 2> + Operator<B, 3>,
    forward: impl FnOnce(Option<FloatTensor<B>>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match b {
        Some(b) => {
            let nodes = [x, w, b.node()];
            record::<B, C, 3>(nodes, operator, forward(Some(b.into_primitive())))
        }
        None => record::<B, C, 2>([x, w], operator, forward(None)),
    }
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn computes_in(precision: Precision, device: &Self::Device) -> bool {
        B::computes_in(precision, device)
    }
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = [x.node()];
        let y = B::softmax_last(x.into_primitive());
        record::<B, C, 1>(node, Softmax { y: y.clone() }, y)
    }
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (node, x) = ([x.node()], x.into_primitive());
        let y = B::gelu_erf(x.clone());
        record::<B, C, 1>(node, Gelu { x }, y)
    }
    fn affine(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), w.node()];
        let (x, w) = (x.into_primitive(), w.into_primitive());
        let operator = Linear {
            x: x.clone(),
            w: w.clone(),
            precision,
        };
        record_layer::<B, C>(nodes, b, operator, |b| B::affine(x, w, b, precision))
    }
    fn layer_norm_last(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), w.node(), b.node()];
        let (x, w) = (x.into_primitive(), w.into_primitive());
        let y = B::layer_norm_last(x.clone(), w.clone(), b.into_primitive(), epsilon);
        record::<B, C, 3>(nodes, LayerNorm { x, w, epsilon }, y)
    }
    fn self_attention(
        qkv: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let (node, qkv) = ([qkv.node()], qkv.into_primitive());
        let mask = mask.map(|x| x.into_primitive());
        let y = B::self_attention(qkv.clone(), mask.clone(), heads, precision);
        record::<B, C, 1>(
            node,
            SelfAttention {
                qkv,
                mask,
                heads,
                precision,
            },
            y,
        )
    }
    fn cross_attention(parts: [FloatTensor<Self>; 3], heads: usize, precision: Precision) -> FloatTensor<Self> {
        let nodes = parts.each_ref().map(|x| x.node());
        let parts = parts.map(|x| x.into_primitive());
        let y = B::cross_attention(parts.clone(), heads, precision);
        record::<B, C, 3>(
            nodes,
            Attention {
                parts,
                heads,
                precision,
            },
            y,
        )
    }
    fn convolution(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: Option<FloatTensor<Self>>,
        geometry: ConvGeometry,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), w.node()];
        let (x, w) = (x.into_primitive(), w.into_primitive());
        let operator = Convolution {
            x: x.clone(),
            w: w.clone(),
            geometry,
            precision,
        };
        record_layer::<B, C>(nodes, b, operator, |b| B::convolution(x, w, b, geometry, precision))
    }
}
