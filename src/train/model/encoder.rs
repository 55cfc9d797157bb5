//! SAM's image encoder (`modeling/image_encoder.py`): patch projection, positions, blocks, neck.

use super::SamConfig;
use super::attention::{Block, four};
use super::position::bicubic_matrix;
use crate::train::ops::{Conv, Ops};
use crate::train::weights::Weights;

/// Backbone tokens `[B, g, g, E]` of normalised pixels `[B, 3, S, S]`; S may differ from the native
/// size, the position tables are resized then.
pub fn tokens<O: Ops>(ops: &O, config: &SamConfig, image: &O::Tensor) -> O::Tensor {
    let mut x = embed_patches(ops, config, image);
    for index in 0..config.depth {
        x = block(config, index).forward(ops, &format!("image_encoder.blocks.{index}"), &x);
    }
    x
}

/// Patch projection plus absolute positions: `[B, g, g, E]`.
pub fn embed_patches<O: Ops>(ops: &O, config: &SamConfig, image: &O::Tensor) -> O::Tensor {
    let x = if config.stem.is_empty() {
        let p = config.patch_size;
        let conv = Conv {
            out: config.embed_dim,
            kernel: p,
            stride: p,
            padding: 0,
            bias: true,
        };
        ops.conv2d(image, "image_encoder.patch_embed.proj", conv)
    } else {
        let mut x = image.clone();
        for (i, &out) in config.stem.iter().enumerate() {
            x = ops.conv2d(&x, &format!("image_encoder.patch_embed.stem.{i}"), halving(out));
            if i + 1 < config.stem.len() {
                x = ops.gelu(&ops.layer_norm_2d(&x, &format!("image_encoder.patch_embed.norm.{i}")));
            }
        }
        x
    };
    let tokens = ops.permute(&x, &[0, 2, 3, 1]); // [B, g, g, E]
    let [_, h, w, e] = four(&ops.shape(&tokens));
    let native = config.grid();
    let mut table = ops.weight("image_encoder.pos_embed", &[1, native, native, e]);
    if (h, w) != (native, native) {
        table = resize_table(ops, &table, native, h, w, e);
    }
    ops.add(&tokens, &table)
}

/// A convolution of 3×3 that halves the side.
fn halving(out: usize) -> Conv {
    Conv {
        out,
        kernel: 3,
        stride: 2,
        padding: 1,
        bias: true,
    }
}

/// Bicubic resize of `[1, s, s, E]` to `[1, h, w, E]`.
fn resize_table<O: Ops>(ops: &O, table: &O::Tensor, s: usize, h: usize, w: usize, e: usize) -> O::Tensor {
    let rows = ops.constant(bicubic_matrix(s, h), &[h, s]);
    let columns = ops.constant(bicubic_matrix(s, w), &[w, s]);
    let table = ops.matmul(&rows, &ops.reshape(table, &[s, s * e])); // [h, s·E]
    let table = ops.matmul(&columns, &ops.reshape(&table, &[h, s, e])); // [h, w, E]
    ops.reshape(&table, &[1, h, w, e])
}

/// Geometry of block `index`.
#[must_use]
pub fn block(config: &SamConfig, index: usize) -> Block {
    let global = config.global_attn_indexes.contains(&index);
    let side = if global { config.grid() } else { config.window_size };
    Block {
        dim: config.embed_dim,
        heads: config.num_heads,
        mlp: config.embed_dim * config.mlp_ratio,
        window: if global { 0 } else { config.window_size },
        rel_pos: if config.rel_pos { 2 * side - 1 } else { 0 },
    }
}

/// The neck: `[B, g, g, E]` to image embeddings `[B, C, g, g]`.
pub fn neck<O: Ops>(ops: &O, config: &SamConfig, tokens: &O::Tensor) -> O::Tensor {
    let x = ops.permute(tokens, &[0, 3, 1, 2]);
    let out = config.out_chans;
    let x = ops.conv2d(
        &x,
        "image_encoder.neck.0",
        Conv {
            out,
            kernel: 1,
            stride: 1,
            padding: 0,
            bias: false,
        },
    );
    let x = ops.layer_norm_2d(&x, "image_encoder.neck.1");
    let x = ops.conv2d(
        &x,
        "image_encoder.neck.2",
        Conv {
            out,
            kernel: 3,
            stride: 1,
            padding: 1,
            bias: false,
        },
    );
    ops.layer_norm_2d(&x, "image_encoder.neck.3")
}

/// Prefix of the weights that [`detail`] has.
pub const DETAIL: &str = "image_encoder.detail.";

/// Whether `weights` are those of a model with the detail path.
#[must_use]
pub fn has_detail(weights: &Weights) -> bool {
    weights.keys().any(|name| name.starts_with(DETAIL))
}

/// What the mask decoder sees: the neck's output, and the detail of the pixels where the model has that; `[B, C, g, g]`.
pub fn embeddings<O: Ops>(ops: &O, config: &SamConfig, image: &O::Tensor, tokens: &O::Tensor) -> O::Tensor {
    let neck = neck(ops, config, tokens);
    if config.detail.is_empty() {
        return neck;
    }
    ops.add(&neck, &detail(ops, config, image))
}

/// Convolutions on the pixels, each patch of the last one folded into one cell: `[B, 3, S, S]` to `[B, C, g, g]`.
fn detail<O: Ops>(ops: &O, config: &SamConfig, image: &O::Tensor) -> O::Tensor {
    let mut x = image.clone();
    for (i, &out) in config.detail.iter().enumerate() {
        x = ops.conv2d(&x, &format!("{DETAIL}conv.{i}"), halving(out));
        x = ops.gelu(&ops.layer_norm_2d(&x, &format!("{DETAIL}norm.{i}")));
    }
    let cell = config.patch_size >> config.detail.len();
    let fold = Conv {
        out: config.out_chans,
        kernel: cell,
        stride: cell,
        padding: 0,
        bias: false,
    };
    ops.conv2d(&x, &format!("{DETAIL}fold"), fold)
}
