//! The CLIP head: transformer layers on the backbone's tokens, then per token LayerNorm and MLP into
//! the text space; max-pooling over tokens gives the image embedding (paper section 3, appendix A);
//! average-pooling is there to be compared with.

use super::attention::{Block, four};
use super::{MergedConfig, Pooling};
use crate::train::ops::Ops;

/// Patch embeddings `[B, D, n, n]` and image embedding `[B, D]`, both of unit norm, from backbone
/// tokens `[B, g, g, E]` taken before the neck.
pub fn embed<O: Ops>(ops: &O, config: &MergedConfig, tokens: &O::Tensor) -> (O::Tensor, O::Tensor) {
    embed_pooled(ops, config, &pooled(ops, config, tokens))
}

/// Backbone tokens `[B, g, g, E]` as the head takes them: `[B, n, n, E]`, halved where g is above `max_grid`.
pub fn pooled<O: Ops>(ops: &O, config: &MergedConfig, tokens: &O::Tensor) -> O::Tensor {
    if four(&ops.shape(tokens))[1] > config.clip_head.max_grid {
        average_pool_2x2(ops, tokens)
    } else {
        tokens.clone()
    }
}

/// [`embed`] after [`pooled`].
pub fn embed_pooled<O: Ops>(ops: &O, config: &MergedConfig, tokens: &O::Tensor) -> (O::Tensor, O::Tensor) {
    let (sam, head) = (&config.sam, &config.clip_head);
    let mut x = tokens.clone();
    let [b, h, w, e] = four(&ops.shape(&x));
    // A copy of the last backbone block, tables included, so that it can be initialised from it.
    let block = Block {
        dim: sam.embed_dim,
        heads: sam.num_heads,
        mlp: sam.embed_dim * sam.mlp_ratio,
        window: 0,
        rel_pos: if sam.rel_pos { 2 * sam.grid() - 1 } else { 0 },
    };
    for layer in 0..head.layers {
        x = block.forward(ops, &format!("clip_head.blocks.{layer}"), &x);
    }
    let x = ops.reshape(&x, &[b, h * w, e]);
    let patches = ops.unit_norm(&project(ops, config, &x)); // [B, N, D]
    let pooled = match head.pooling {
        Pooling::Max => ops.max(&x, 1),
        Pooling::Average => ops.scale(&ops.sum(&x, 1), 1.0 / (h * w) as f32),
    };
    let pooled = ops.reshape(&pooled, &[b, e]);
    let image = ops.unit_norm(&project(ops, config, &pooled)); // [B, D]
    let patches = ops.permute(&ops.reshape(&patches, &[b, h, w, head.text_dim]), &[0, 3, 1, 2]);
    (patches, image)
}

/// LayerNorm, then an MLP with two hidden layers, into the text space: `[.., E]` to `[.., D]`.
fn project<O: Ops>(ops: &O, config: &MergedConfig, x: &O::Tensor) -> O::Tensor {
    let head = &config.clip_head;
    let x = ops.layer_norm(x, "clip_head.norm", 1e-6);
    let x = ops.gelu(&ops.linear(&x, "clip_head.mlp.0", head.mlp_dim, true));
    let x = ops.gelu(&ops.linear(&x, "clip_head.mlp.1", head.mlp_dim, true));
    ops.linear(&x, "clip_head.mlp.2", head.text_dim, true)
}

/// Mean of each 2×2 cell of `[B, g, g, E]`; g must be even.
fn average_pool_2x2<O: Ops>(ops: &O, x: &O::Tensor) -> O::Tensor {
    let [b, h, w, e] = four(&ops.shape(x));
    let cells = ops.reshape(x, &[b, h / 2, 2, w / 2, 2, e]);
    let pooled = ops.scale(&ops.sum(&ops.sum(&cells, 2), 4), 0.25); // [B, h/2, 1, w/2, 1, E]
    ops.reshape(&pooled, &[b, h / 2, w / 2, e])
}
