//! ViT-Det blocks: windows with padding, multi-head attention, decomposed relative positions.
//!
//! After segment-anything's `modeling/image_encoder.py` (`Block`, `Attention`, `window_partition`,
//! `get_rel_pos`, `add_decomposed_rel_pos`). MatMul in place of einsum: half the time in tract.

use super::position::linear_matrix;
use crate::train::ops::{Ops, attend};

/// One block of the encoder or of the CLIP head.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Width of the tokens.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub mlp: usize,
    /// Window side in tokens, 0 for global attention.
    pub window: usize,
    /// Length of the relative position tables, `2·side − 1`; 0 for none.
    pub rel_pos: usize,
}

impl Block {
    /// Runs the block `prefix` on tokens `[B, h, w, C]`.
    pub fn forward<O: Ops>(&self, ops: &O, prefix: &str, x: &O::Tensor) -> O::Tensor {
        let [b, h, w, c] = four(&ops.shape(x));
        let normed = ops.layer_norm(x, &format!("{prefix}.norm1"), 1e-6);
        let attended = if self.window > 0 && (h > self.window || w > self.window || h != w || h != self.window) {
            let s = self.window;
            let (ph, pw) = (h.next_multiple_of(s), w.next_multiple_of(s));
            let padded = ops.pad_end(&ops.pad_end(&normed, 1, ph - h), 2, pw - w);
            let windows = ops.reshape(&padded, &[b, ph / s, s, pw / s, s, c]);
            let windows = ops.permute(&windows, &[0, 1, 3, 2, 4, 5]); // [B, nh, nw, s, s, C]
            let windows = ops.reshape(&windows, &[b * (ph / s) * (pw / s), s, s, c]);
            let attended = self.attention(ops, prefix, &windows);
            let attended = ops.reshape(&attended, &[b, ph / s, pw / s, s, s, c]);
            let attended = ops.permute(&attended, &[0, 1, 3, 2, 4, 5]); // [B, nh, s, nw, s, C]
            let attended = ops.reshape(&attended, &[b, ph, pw, c]);
            ops.slice(&ops.slice(&attended, 1, 0, h), 2, 0, w)
        } else {
            self.attention(ops, prefix, &normed)
        };
        let x = ops.add(x, &attended);
        let hidden = ops.layer_norm(&x, &format!("{prefix}.norm2"), 1e-6);
        let hidden = ops.gelu(&ops.linear(&hidden, &format!("{prefix}.mlp.lin1"), self.mlp, true));
        ops.add(&x, &ops.linear(&hidden, &format!("{prefix}.mlp.lin2"), c, true))
    }

    /// Multi-head attention over the `h·w` tokens of each `[B, h, w, C]`.
    fn attention<O: Ops>(&self, ops: &O, prefix: &str, x: &O::Tensor) -> O::Tensor {
        let [_, h, w, c] = four(&ops.shape(x));
        let qkv = ops.linear(x, &format!("{prefix}.attn.qkv"), 3 * c, true);
        let out = if self.rel_pos == 0 {
            ops.self_attention(&qkv, self.heads, None)
        } else {
            attend(ops, &qkv, self.heads, |scores, q| {
                self.add_relative_positions(ops, prefix, scores, q, h, w)
            })
        };
        ops.linear(&out, &format!("{prefix}.attn.proj"), c, true)
    }

    /// Adds `q·R_h` and `q·R_w` to the scores (`add_decomposed_rel_pos`).
    fn add_relative_positions<O: Ops>(
        &self,
        ops: &O,
        prefix: &str,
        scores: &O::Tensor,
        q: &O::Tensor,
        h: usize,
        w: usize,
    ) -> O::Tensor {
        let d = self.dim / self.heads;
        let bh = ops.shape(q)[0];
        let table = |axis: &str, side: usize| {
            let rows = self.table(ops, &format!("{prefix}.attn.rel_pos_{axis}"), d, side);
            ops.permute(&rows, &[0, 2, 1]) // [side(q), d, side(k)]
        };
        let q = ops.reshape(q, &[bh, h, w, d]);
        let by_row = ops.matmul(&q, &table("h", h)); // [bh, h, w, h(k)]
        let by_column = ops.matmul(&ops.permute(&q, &[0, 2, 1, 3]), &table("w", w)); // [bh, w, h, w(k)]
        let by_column = ops.permute(&by_column, &[0, 2, 1, 3]); // [bh, h, w, w(k)]
        let n = h * w;
        let scores = ops.reshape(scores, &[bh, n, h, w]);
        let scores = ops.add(&scores, &ops.reshape(&by_row, &[bh, n, h, 1]));
        let scores = ops.add(&scores, &ops.reshape(&by_column, &[bh, n, 1, w]));
        ops.reshape(&scores, &[bh, n, n])
    }

    /// Relative position vectors `[side(q), side(k), d]` (`get_rel_pos`), the table resized if need be.
    fn table<O: Ops>(&self, ops: &O, name: &str, d: usize, side: usize) -> O::Tensor {
        let mut table = ops.weight(name, &[self.rel_pos, d]);
        let wanted = 2 * side - 1;
        if wanted != self.rel_pos {
            let resize = ops.constant(linear_matrix(self.rel_pos, wanted), &[wanted, self.rel_pos]);
            table = ops.matmul(&resize, &table);
        }
        let indices: Vec<usize> = (0..side * side).map(|i| i / side + side - 1 - i % side).collect();
        ops.reshape(&ops.rows(&table, &indices), &[side, side, d])
    }
}

/// The four sizes of a rank-4 shape.
pub(super) fn four(shape: &[usize]) -> [usize; 4] {
    shape.try_into().expect("the model passes rank 4 here")
}
