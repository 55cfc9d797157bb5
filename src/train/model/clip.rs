//! CLIP's image and text towers under OpenCLIP's names (`open_clip/transformer.py`, `model.py`).

use super::attention::four;
use super::{ClipConfig, TextConfig};
use crate::train::ops::{Conv, Ops};

/// Image features `[B, D]`, not normalised, of pixels `[B, 3, s, s]` (CLIP's own normalisation).
pub fn encode_image<O: Ops>(ops: &O, config: &ClipConfig, image: &O::Tensor) -> O::Tensor {
    pooled(ops, config, &image_tokens(ops, config, image))
}

/// Image features `[B, D]`, not normalised, of the tokens `[B, 1+N, W]` of the last block: the class token's.
pub fn pooled<O: Ops>(ops: &O, config: &ClipConfig, tokens: &O::Tensor) -> O::Tensor {
    let [b, _, width] = <[usize; 3]>::try_from(ops.shape(tokens)).expect("tokens are [B, N, W]");
    let class = ops.reshape(&ops.slice(tokens, 1, 0, 1), &[b, width]);
    let class = ops.layer_norm(&class, "visual.ln_post", 1e-5);
    ops.matmul(&class, &ops.weight("visual.proj", &[width, config.embed_dim]))
}

/// Tokens `[B, 1+N, W]` of the last block, the class token first, of pixels `[B, 3, s, s]`.
pub fn image_tokens<O: Ops>(ops: &O, config: &ClipConfig, image: &O::Tensor) -> O::Tensor {
    let vision = &config.vision_cfg;
    let (width, p) = (vision.width, vision.patch_size);
    let conv = Conv {
        out: width,
        kernel: p,
        stride: p,
        padding: 0,
        bias: false,
    };
    let x = ops.conv2d(image, "visual.conv1", conv);
    let [b, _, h, w] = four(&ops.shape(&x));
    let n = h * w;
    let x = ops.permute(&ops.reshape(&x, &[b, width, n]), &[0, 2, 1]);
    let class = ops.reshape(&ops.weight("visual.class_embedding", &[width]), &[1, 1, width]);
    let x = ops.concat(&[ops.expand(&class, &[b, 1, width]), x], 1); // [B, 1+N, W]
    let x = ops.add(
        &x,
        &ops.reshape(
            &ops.weight("visual.positional_embedding", &[n + 1, width]),
            &[1, n + 1, width],
        ),
    );
    let mut x = ops.layer_norm(&x, "visual.ln_pre", 1e-5);
    let heads = width / vision.head_width;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small positive product
    let mlp = (width as f32 * vision.mlp_ratio) as usize;
    for layer in 0..vision.layers {
        let name = format!("visual.transformer.resblocks.{layer}");
        x = block(ops, &name, &x, heads, mlp, None, config.quick_gelu);
    }
    x
}

/// Text features `[T, D]`, not normalised, of token ids `[T, L]` with `L ≤ context_length`. Attention is
/// causal and the end-of-text token is pooled, so tokens behind it never matter: a shorter L that
/// keeps every end-of-text token gives the same features.
pub fn encode_text<O: Ops>(
    ops: &O,
    text: &TextConfig,
    embed_dim: usize,
    quick_gelu: bool,
    tokens: &O::Tokens,
) -> O::Tensor {
    let width = text.width;
    let table = ops.weight("token_embedding.weight", &[text.vocab_size, width]);
    let x = ops.embed(&table, tokens); // [T, L, W]
    let [t, l] = [ops.shape(&x)[0], ops.shape(&x)[1]];
    let positions = ops.weight("positional_embedding", &[text.context_length, width]);
    let positions = if l == text.context_length {
        positions
    } else {
        ops.slice(&positions, 0, 0, l)
    };
    let mut x = ops.add(&x, &ops.reshape(&positions, &[1, l, width]));
    let causal = (0..l * l).map(|i| if i % l > i / l { -1e9 } else { 0.0 }).collect();
    let causal = ops.constant(causal, &[l, l]);
    for layer in 0..text.layers {
        let name = format!("transformer.resblocks.{layer}");
        x = block(ops, &name, &x, text.heads, 4 * width, Some(&causal), quick_gelu);
    }
    let x = ops.layer_norm(&x, "ln_final", 1e-5);
    let pooled = ops.reshape(&ops.matmul(&ops.end_of_text(tokens), &x), &[t, width]);
    ops.matmul(&pooled, &ops.weight("text_projection", &[width, embed_dim]))
}

/// `ResidualAttentionBlock` on `[B, N, W]`.
fn block<O: Ops>(
    ops: &O,
    name: &str,
    x: &O::Tensor,
    heads: usize,
    mlp: usize,
    mask: Option<&O::Tensor>,
    quick_gelu: bool,
) -> O::Tensor {
    let [_, _, width] = <[usize; 3]>::try_from(ops.shape(x)).expect("tokens are [B, N, W]");
    let normed = ops.layer_norm(x, &format!("{name}.ln_1"), 1e-5);
    let weight = ops.weight(&format!("{name}.attn.in_proj_weight"), &[3 * width, width]);
    let bias = ops.weight(&format!("{name}.attn.in_proj_bias"), &[3 * width]);
    let qkv = ops.linear_with(&normed, &weight, Some(&bias));
    let out = ops.self_attention(&qkv, heads, mask);
    let x = ops.add(x, &ops.linear(&out, &format!("{name}.attn.out_proj"), width, true));
    let hidden = ops.layer_norm(&x, &format!("{name}.ln_2"), 1e-5);
    let hidden = ops.linear(&hidden, &format!("{name}.mlp.c_fc"), mlp, true);
    let hidden = if quick_gelu {
        ops.quick_gelu(&hidden)
    } else {
        ops.gelu(&hidden)
    };
    ops.add(&x, &ops.linear(&hidden, &format!("{name}.mlp.c_proj"), width, true))
}
