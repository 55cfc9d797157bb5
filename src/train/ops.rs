//! `trait Ops`: the operators that the model may use.
//!
//! The model ([`crate::train::model`]) is written once, as functions over this trait. Interpreters:
//! [`crate::train::autodiff::Graph`] computes (with gradients where asked),
//! [`crate::train::onnx::Recorder`] emits ONNX nodes, and [`crate::train::cost::Ledger`] lists the weights
//! that a model asks for and counts multiply-accumulates. All shapes are static and row-major.

/// The operators of the model. Shapes follow NumPy's rules; broadcasting is right-aligned.
///
/// Weights are looked up by the names of the reference checkpoints (`image_encoder.blocks.3.attn.qkv.weight`).
/// An interpreter that holds values is built from a set that was checked against the model's inventory
/// ([`crate::train::model::inventory`]), so a look-up cannot miss.
pub trait Ops {
    /// A tensor of `f32` values (or a node of the recorded graph).
    type Tensor: Clone;
    /// Token ids `[T, L]`: host values when computing, a graph input when recording.
    type Tokens;

    /// Shape of `x`.
    fn shape(&self, x: &Self::Tensor) -> Vec<usize>;
    /// The weight `name`, which has `shape`.
    fn weight(&self, name: &str, shape: &[usize]) -> Self::Tensor;
    /// A constant of the model's structure (never trained).
    fn constant(&self, values: Vec<f32>, shape: &[usize]) -> Self::Tensor;

    /// `x [.., I] · Wᵀ + b` with `{name}.weight [O, I]` and, if `bias`, `{name}.bias [O]`.
    fn linear(&self, x: &Self::Tensor, name: &str, out: usize, bias: bool) -> Self::Tensor {
        let shape = self.shape(x);
        let inner = shape[shape.len() - 1];
        let weight = self.weight(&format!("{name}.weight"), &[out, inner]);
        let bias = bias.then(|| self.weight(&format!("{name}.bias"), &[out]));
        self.linear_with(x, &weight, bias.as_ref())
    }
    /// `x [.., I] · Wᵀ + b` with `weight [O, I]`, `bias [O]`.
    fn linear_with(&self, x: &Self::Tensor, weight: &Self::Tensor, bias: Option<&Self::Tensor>) -> Self::Tensor;
    /// Batched matrix product `[.., M, K] · [.., K, N]`; leading axes broadcast.
    fn matmul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// 2-D convolution, NCHW, `{name}.weight [O, I, k, k]` and, if `bias`, `{name}.bias [O]`.
    fn conv2d(&self, x: &Self::Tensor, name: &str, conv: Conv) -> Self::Tensor;

    /// Multi-head attention of the tokens of an item to each other: `qkv [B, .., 3 C]`, three projections one after another,
    /// each with its heads one after another, to `[B, .., C]`. `mask [N, N]` is added to the scores.
    fn self_attention(&self, qkv: &Self::Tensor, heads: usize, mask: Option<&Self::Tensor>) -> Self::Tensor {
        attend(self, qkv, heads, |scores, _| match mask {
            Some(mask) => self.add(scores, mask),
            None => scores.clone(),
        })
    }
    /// Multi-head attention of queries `[B, N, C]` to keys and values `[B, M, C]`: `[B, N, C]`.
    fn attention(&self, q: &Self::Tensor, k: &Self::Tensor, v: &Self::Tensor, heads: usize) -> Self::Tensor {
        let [b, n, c] = <[usize; 3]>::try_from(self.shape(q)).expect("queries are [B, N, C]");
        let d = c / heads;
        let split = |x: &Self::Tensor| {
            let [b, n] = [self.shape(x)[0], self.shape(x)[1]];
            self.permute(&self.reshape(x, &[b, n, heads, d]), &[0, 2, 1, 3]) // [B, heads, N, d]
        };
        let (q, k, v) = (split(q), split(k), split(v));
        let scaled = self.scale(&q, 1.0 / (d as f32).sqrt());
        let scores = self.matmul(&scaled, &self.permute(&k, &[0, 1, 3, 2]));
        let out = self.matmul(&self.softmax(&scores), &v);
        self.reshape(&self.permute(&out, &[0, 2, 1, 3]), &[b, n, c])
    }

    /// `a + b`.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// `a - b`.
    fn sub(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// `a · b`, element by element.
    fn mul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// `a / b`, element by element.
    fn div(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// `x · factor`.
    fn scale(&self, x: &Self::Tensor, factor: f32) -> Self::Tensor;
    /// `x + offset`.
    fn shift(&self, x: &Self::Tensor, offset: f32) -> Self::Tensor;

    /// Same values, another shape.
    fn reshape(&self, x: &Self::Tensor, shape: &[usize]) -> Self::Tensor;
    /// Axes in a new order: output axis `i` is input axis `order[i]`.
    fn permute(&self, x: &Self::Tensor, order: &[usize]) -> Self::Tensor;
    /// Positions `start..end` of `axis`.
    fn slice(&self, x: &Self::Tensor, axis: usize, start: usize, end: usize) -> Self::Tensor;
    /// Tensors one after another along `axis`.
    fn concat(&self, parts: &[Self::Tensor], axis: usize) -> Self::Tensor;
    /// Zeros appended behind `axis`.
    fn pad_end(&self, x: &Self::Tensor, axis: usize, amount: usize) -> Self::Tensor;
    /// Broadcast to `shape`.
    fn expand(&self, x: &Self::Tensor, shape: &[usize]) -> Self::Tensor;
    /// Rows `indices` of `table [R, ..]`, in that order: `[indices.len(), ..]`.
    fn rows(&self, table: &Self::Tensor, indices: &[usize]) -> Self::Tensor;

    /// Softmax over the last axis.
    fn softmax(&self, x: &Self::Tensor) -> Self::Tensor;
    /// Layer normalisation over the last axis with `{name}.weight` and `{name}.bias`.
    fn layer_norm(&self, x: &Self::Tensor, name: &str, epsilon: f32) -> Self::Tensor;
    /// GELU in its exact (erf) form.
    fn gelu(&self, x: &Self::Tensor) -> Self::Tensor;
    /// max(x, 0).
    fn relu(&self, x: &Self::Tensor) -> Self::Tensor;
    /// 1 / (1 + e⁻ˣ).
    fn sigmoid(&self, x: &Self::Tensor) -> Self::Tensor;
    /// Sine, radians.
    fn sin(&self, x: &Self::Tensor) -> Self::Tensor;
    /// Cosine, radians.
    fn cos(&self, x: &Self::Tensor) -> Self::Tensor;
    /// Square root.
    fn sqrt(&self, x: &Self::Tensor) -> Self::Tensor;
    /// Natural logarithm.
    fn log(&self, x: &Self::Tensor) -> Self::Tensor;
    /// 1 where `x == value` (both whole numbers), else 0.
    fn equals(&self, x: &Self::Tensor, value: f32) -> Self::Tensor;
    /// Maximum over `axis`, which is kept with size 1.
    fn max(&self, x: &Self::Tensor, axis: usize) -> Self::Tensor;
    /// Sum over `axis`, which is kept with size 1.
    fn sum(&self, x: &Self::Tensor, axis: usize) -> Self::Tensor;

    /// Rows of `table [V, W]` for every token: `[T, L, W]`.
    fn embed(&self, table: &Self::Tensor, tokens: &Self::Tokens) -> Self::Tensor;
    /// `[T, 1, L]`: 1 at the end-of-text token (the largest id), else 0.
    fn end_of_text(&self, tokens: &Self::Tokens) -> Self::Tensor;

    /// QuickGELU, `x · σ(1.702 x)`: OpenAI's CLIP checkpoints ask for it.
    fn quick_gelu(&self, x: &Self::Tensor) -> Self::Tensor {
        self.mul(x, &self.sigmoid(&self.scale(x, 1.702)))
    }
    /// `x / ‖x‖₂` over the last axis.
    fn unit_norm(&self, x: &Self::Tensor) -> Self::Tensor {
        let axis = self.shape(x).len() - 1;
        let norm = self.sqrt(&self.shift(&self.sum(&self.mul(x, x), axis), 1e-12));
        self.div(x, &norm)
    }
    /// Layer normalisation over the channels of an NCHW map (SAM's `LayerNorm2d`, epsilon 1e-6).
    fn layer_norm_2d(&self, x: &Self::Tensor, name: &str) -> Self::Tensor {
        let last = self.permute(x, &[0, 2, 3, 1]);
        self.permute(&self.layer_norm(&last, name, 1e-6), &[0, 3, 1, 2])
    }
}

/// NumPy's broadcast of two shapes.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank).map(|i| at(a, i).max(at(b, i))).collect()
}

/// Shape of `[.., M, K] · [.., K, N]`, and its multiply-accumulates.
pub(super) fn product(a: &[usize], b: &[usize]) -> (Vec<usize>, usize) {
    let (ra, rb) = (a.len(), b.len());
    let (m, k, n) = (a[ra - 2], a[ra - 1], b[rb - 1]);
    let mut shape = broadcast(&a[..ra - 2], &b[..rb - 2]);
    let count = shape.iter().product::<usize>() * m * k * n;
    shape.extend([m, n]);
    (shape, count)
}

/// `shape` with another `size` along `axis`.
pub(super) fn resized(shape: &[usize], axis: usize, size: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[axis] = size;
    shape
}

/// Geometry of a convolution with a square kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Kernel side.
    pub kernel: usize,
    /// Stride, both directions.
    pub stride: usize,
    /// Zero padding, all sides.
    pub padding: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Conv {
    /// Output side for an input side.
    #[must_use]
    pub fn side(&self, input: usize) -> usize {
        (input + 2 * self.padding - self.kernel) / self.stride + 1
    }
}

/// [`Ops::self_attention`] of other operators; `adjust` makes the scores `[B·heads, N, N]` what the softmax takes, given
/// them and the queries `[B·heads, N, d]`.
pub fn attend<O: Ops + ?Sized>(
    ops: &O,
    qkv: &O::Tensor,
    heads: usize,
    adjust: impl FnOnce(&O::Tensor, &O::Tensor) -> O::Tensor,
) -> O::Tensor {
    let mut shape = ops.shape(qkv);
    let (b, c) = (shape[0], shape[shape.len() - 1] / 3);
    let (n, d) = (shape[1..shape.len() - 1].iter().product(), c / heads);
    let parts = ops.permute(&ops.reshape(qkv, &[b, n, 3, heads, d]), &[2, 0, 3, 1, 4]); // [3, B, heads, N, d]
    let [q, k, v] = [0, 1, 2].map(|i| ops.reshape(&ops.slice(&parts, 0, i, i + 1), &[b * heads, n, d]));
    let scaled = ops.scale(&q, 1.0 / (d as f32).sqrt());
    let scores = ops.matmul(&scaled, &ops.permute(&k, &[0, 2, 1])); // [B·heads, N, N]
    let out = ops.matmul(&ops.softmax(&adjust(&scores, &q)), &v); // [B·heads, N, d]
    let out = ops.permute(&ops.reshape(&out, &[b, heads, n, d]), &[0, 2, 1, 3]);
    *shape.last_mut().expect("tokens have an axis") = c;
    ops.reshape(&out, &shape)
}
