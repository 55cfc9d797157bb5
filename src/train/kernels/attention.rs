//! Multi-head attention, forward and backward, without scores in memory.
//!
//! A task computes the scores of some queries of one head, which fit in its core's cache. The backward pass computes them
//! once more: what the tape keeps grows with the tokens, not with their square (as in FlashAttention, Dao et al.,
//! arXiv 2205.14135, section 3.1).

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::buffer::written;
use super::fused::{dims, tensor};
use super::product::{Matrix, Right, multiply, with_scratch};
use super::rows;
use crate::train::precision::Precision;

/// Queries, keys or values `[B, N, C]` in a slice; `C` holds the heads one after another.
struct Tokens<'a> {
    values: &'a [f32],
    offset: usize,
    batch_stride: usize,
    row_stride: usize,
    count: usize,
}

impl Tokens<'_> {
    /// `[N, d]` of head `head` of item `item`, from token `first` on.
    fn head(&self, item: usize, head: usize, width: usize, first: usize, count: usize) -> Matrix<'_> {
        let start = self.offset + item * self.batch_stride + first * self.row_stride + head * width;
        Matrix::new(&self.values[start..], count, width, self.row_stride)
    }
}

/// What attention reads.
struct Inputs<'a> {
    q: Tokens<'a>,
    k: Tokens<'a>,
    v: Tokens<'a>,
    /// Added to the scores, `[N, M]`.
    mask: Option<&'a [f32]>,
    batch: usize,
    heads: usize,
    /// Width of a head.
    width: usize,
    precision: Precision,
}

impl Inputs<'_> {
    /// Queries of one task: their scores take at most 256 KiB, but 16 queries at least.
    fn block(&self) -> usize {
        ((1 << 16) / self.k.count).clamp(16, 256)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    fn right<'a>(&self, factor: Matrix<'a>) -> Right<'a> {
        Right::new(factor, self.precision)
    }

    /// Softmax of the scores of queries `q [count, d]` from `first` on with keys `k [d, M]`: `[count, M]`.
    fn probabilities(&self, q: Matrix, k: &Right, first: usize, out: &mut [f32]) {
        let (keys, (count, _)) = (self.k.count, q.size());
        multiply(out, keys, false, self.scale(), q, k);
        let mask = self.mask.map_or(&[][..], |mask| &mask[first * keys..][..count * keys]);
        rows::softmax(out, mask, keys);
    }

    /// `[B, N, C]`.
    fn forward(&self) -> FlexTensor {
        let (queries, keys, width, block) = (self.q.count, self.k.count, self.width, self.block());
        let row = self.heads * width;
        let out = written(self.batch, queries * row, block * row, |item, first, out| {
            let (first, count) = (first / row, out.len() / row);
            with_scratch(count * keys, |scores| {
                for head in 0..self.heads {
                    let q = self.q.head(item, head, width, first, count);
                    let k = self.right(self.k.head(item, head, width, 0, keys).transposed());
                    self.probabilities(q, &k, first, scores);
                    let scores = Matrix::new(scores, count, keys, keys);
                    let v = self.right(self.v.head(item, head, width, 0, keys));
                    multiply(&mut out[head * width..], row, false, 1.0, scores, &v);
                }
            });
        });
        tensor(out, vec![self.batch, queries, row])
    }

    /// Gradients by queries, keys and values of each head of each item: `[B·heads]` of `[N + 2 M, d]`.
    fn backward(&self, grad: &Tokens) -> Vec<Vec<f32>> {
        let (queries, keys, width, block) = (self.q.count, self.k.count, self.width, self.block());
        let of_head = |task: usize| {
            let (item, head) = (task / self.heads, task % self.heads);
            let mut out = vec![0.0; (queries + 2 * keys) * width];
            let (by_q, rest) = out.split_at_mut(queries * width);
            let (by_k, by_v) = rest.split_at_mut(keys * width);
            let k = self.k.head(item, head, width, 0, keys);
            let v = self.v.head(item, head, width, 0, keys);
            let (k, k_transposed, v) = (self.right(k), self.right(k.transposed()), self.right(v.transposed()));
            with_scratch(2 * block * keys, |scratch| {
                let (scores, by_scores) = scratch.split_at_mut(block * keys);
                for (i, by_q) in by_q.chunks_mut(block * width).enumerate() {
                    let (first, count) = (i * block, by_q.len() / width);
                    let (scores, by_scores) = (&mut scores[..count * keys], &mut by_scores[..count * keys]);
                    let grad = grad.head(item, head, width, first, count);
                    let q = self.q.head(item, head, width, first, count);
                    self.probabilities(q, &k_transposed, first, scores);
                    let p = Matrix::new(scores, count, keys, keys);
                    multiply(by_v, width, true, 1.0, p.transposed(), &self.right(grad));
                    multiply(by_scores, keys, false, 1.0, grad, &v);
                    rows::softmax_backward(scores, by_scores, keys);
                    let by_scores = Matrix::new(by_scores, count, keys, keys);
                    multiply(by_q, width, false, self.scale(), by_scores, &k);
                    multiply(by_k, width, true, self.scale(), by_scores.transposed(), &self.right(q));
                }
            });
            out
        };
        (0..self.batch * self.heads).into_par_iter().map(of_head).collect()
    }
}

/// A tensor whose last axis lies in one piece.
fn packed(x: FlexTensor) -> FlexTensor {
    match x.layout().strides().last() {
        Some(1) if x.layout().strides().iter().all(|&stride| stride > 0) => x,
        _ => x.to_contiguous(),
    }
}

/// `x [B, N, C]`.
fn tokens(x: &FlexTensor) -> Tokens<'_> {
    let layout = x.layout();
    let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
    Tokens {
        values: x.storage::<f32>(),
        offset: layout.start_offset(),
        batch_stride: stride(0),
        row_stride: stride(1),
        count: dims(x)[1],
    }
}

fn inputs<'a>(
    [q, k, v]: [&'a FlexTensor; 3],
    mask: Option<&'a FlexTensor>,
    heads: usize,
    precision: Precision,
) -> Inputs<'a> {
    let [batch, _, c] = dims(q).try_into().expect("tokens are [B, N, C]");
    Inputs {
        q: tokens(q),
        k: tokens(k),
        v: tokens(v),
        mask: mask.map(|mask| mask.storage::<f32>()),
        batch,
        heads,
        width: c / heads,
        precision,
    }
}

/// Attention of queries `[B, N, C]` to keys and values `[B, M, C]`: `[B, N, C]`; `mask [N, M]` is added to the scores.
pub(super) fn attention(
    parts: [FlexTensor; 3],
    mask: Option<&FlexTensor>,
    heads: usize,
    precision: Precision,
) -> FlexTensor {
    let (parts, mask) = (parts.map(packed), mask.map(FlexTensor::to_contiguous));
    inputs(parts.each_ref(), mask.as_ref(), heads, precision).forward()
}

/// Gradients of [`attention`] by `N` results of as many tokens: each takes the rows of its `kinds` of 0 queries, 1 keys and
/// 2 values, one after the other in every token.
pub(super) fn attention_backward<const N: usize>(
    parts: [FlexTensor; 3],
    mask: Option<&FlexTensor>,
    heads: usize,
    grad: FlexTensor,
    kinds: [&[usize]; N],
    precision: Precision,
) -> [FlexTensor; N] {
    let (parts, mask, grad) = (parts.map(packed), mask.map(FlexTensor::to_contiguous), packed(grad));
    let inputs = inputs(parts.each_ref(), mask.as_ref(), heads, precision);
    let found = inputs.backward(&tokens(&grad));
    let (queries, keys, width) = (inputs.q.count, inputs.k.count, inputs.width);
    let (c, starts) = (heads * width, [0, queries, queries + keys]);
    kinds.map(|kinds| {
        let (row, count) = (kinds.len() * c, if kinds[0] == 0 { queries } else { keys });
        let out = written(inputs.batch, count * row, 64 * row, |item, first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                for (&kind, out) in kinds.iter().zip(out.chunks_exact_mut(c)) {
                    let from = (starts[kind] + first / row + i) * width;
                    for (head, out) in out.chunks_exact_mut(width).enumerate() {
                        out.copy_from_slice(&found[item * heads + head][from..][..width]);
                    }
                }
            }
        });
        tensor(out, vec![inputs.batch, count, row])
    })
}
