//! SAM's mask decoder (`modeling/mask_decoder.py`, `modeling/transformer.py`), up to the low-resolution
//! logits: upscaling and cropping belong to the host.

use super::SamConfig;
use super::attention::four;
use super::prompt_encoder::{self, Prompts};
use crate::train::ops::Ops;

/// Mask tokens: one for the single-mask output (index 0) and three for ambiguity.
const MASK_TOKENS: usize = 4;

/// Low-resolution logits `[Q, 4, 4g, 4g]` and predicted IoU `[Q, 4]` for image embeddings
/// `[1, C, g, g]` (or `[Q, C, g, g]`, one image per prompt).
pub fn decode<O: Ops>(
    ops: &O,
    config: &SamConfig,
    image_embeddings: &O::Tensor,
    prompts: &Prompts<O::Tensor>,
) -> (O::Tensor, O::Tensor) {
    let (sparse, dense) = prompt_encoder::encode(ops, config, prompts);
    predict(ops, config, image_embeddings, &sparse, &dense)
}

/// `MaskDecoder.predict_masks` on sparse `[Q, N, C]` and dense `[Q or 1, C, g, g]` prompt embeddings.
pub fn predict<O: Ops>(
    ops: &O,
    config: &SamConfig,
    image_embeddings: &O::Tensor,
    sparse: &O::Tensor,
    dense: &O::Tensor,
) -> (O::Tensor, O::Tensor) {
    let c = config.out_chans;
    let q = ops.shape(sparse)[0];
    let [_, _, g, _] = four(&ops.shape(image_embeddings));
    let iou_token = ops.weight("mask_decoder.iou_token.weight", &[1, c]);
    let mask_tokens = ops.weight("mask_decoder.mask_tokens.weight", &[MASK_TOKENS, c]);
    let tokens = ops.reshape(&ops.concat(&[iou_token, mask_tokens], 0), &[1, 1 + MASK_TOKENS, c]);
    let tokens = ops.concat(&[ops.expand(&tokens, &[q, 1 + MASK_TOKENS, c]), sparse.clone()], 1); // [Q, 5+N, C]

    let source = ops.add(image_embeddings, dense);
    let source = ops.expand(&source, &[q, c, g, g]);
    let to_tokens = |x: &O::Tensor, n: usize| ops.permute(&ops.reshape(x, &[n, c, g * g]), &[0, 2, 1]);
    let keys = to_tokens(&source, q); // [Q, g·g, C]
    let positions = to_tokens(&prompt_encoder::dense_positions(ops, config), 1); // [1, g·g, C]
    let (tokens, keys) = two_way_transformer(ops, config, &tokens, &keys, &positions);

    let source = ops.reshape(&ops.permute(&keys, &[0, 2, 1]), &[q, c, g, g]);
    let up = transposed_conv_2x2(ops, &source, "mask_decoder.output_upscaling.0", c / 4);
    let up = ops.gelu(&ops.layer_norm_2d(&up, "mask_decoder.output_upscaling.1"));
    let up = ops.gelu(&transposed_conv_2x2(ops, &up, "mask_decoder.output_upscaling.3", c / 8));
    let side = 4 * g;
    let up = ops.reshape(&up, &[q, c / 8, side * side]);
    let token = |i: usize| ops.reshape(&ops.slice(&tokens, 1, i, i + 1), &[q, c]);
    let hyper: Vec<_> = (0..MASK_TOKENS)
        .map(|i| {
            let name = format!("mask_decoder.output_hypernetworks_mlps.{i}");
            ops.reshape(&mlp(ops, &token(1 + i), &name, c, c / 8), &[q, 1, c / 8])
        })
        .collect();
    let masks = ops.matmul(&ops.concat(&hyper, 1), &up); // [Q, 4, side·side]
    let iou = mlp(ops, &token(0), "mask_decoder.iou_prediction_head", c, MASK_TOKENS);
    (ops.reshape(&masks, &[q, MASK_TOKENS, side, side]), iou)
}

/// Three linear layers with ReLU between.
fn mlp<O: Ops>(ops: &O, x: &O::Tensor, name: &str, hidden: usize, out: usize) -> O::Tensor {
    let x = ops.relu(&ops.linear(x, &format!("{name}.layers.0"), hidden, true));
    let x = ops.relu(&ops.linear(&x, &format!("{name}.layers.1"), hidden, true));
    ops.linear(&x, &format!("{name}.layers.2"), out, true)
}

/// Transposed convolution, kernel 2, stride 2: cells do not overlap, so it is a matrix product and a
/// rearrangement. `{name}.weight [I, O, 2, 2]`, `{name}.bias [O]`.
fn transposed_conv_2x2<O: Ops>(ops: &O, x: &O::Tensor, name: &str, out: usize) -> O::Tensor {
    let [b, c, h, w] = four(&ops.shape(x));
    let weight = ops.reshape(&ops.weight(&format!("{name}.weight"), &[c, out, 2, 2]), &[c, out * 4]);
    let bias = ops.reshape(&ops.weight(&format!("{name}.bias"), &[out]), &[1, out, 1, 1]);
    let x = ops.reshape(&ops.permute(x, &[0, 2, 3, 1]), &[b * h * w, c]);
    let x = ops.reshape(&ops.matmul(&x, &weight), &[b, h, w, out, 2, 2]);
    let x = ops.permute(&x, &[0, 3, 1, 4, 2, 5]); // [B, O, h, 2, w, 2]
    ops.add(&ops.reshape(&x, &[b, out, 2 * h, 2 * w]), &bias)
}

/// `TwoWayTransformer`: tokens `[Q, T, C]` and image keys `[Q, g·g, C]` attend to each other.
fn two_way_transformer<O: Ops>(
    ops: &O,
    config: &SamConfig,
    tokens: &O::Tensor,
    keys: &O::Tensor,
    positions: &O::Tensor,
) -> (O::Tensor, O::Tensor) {
    let c = config.out_chans;
    let attend = |name: &str, q: &O::Tensor, k: &O::Tensor, v: &O::Tensor, inner: usize| {
        attention(ops, name, config.decoder_heads, inner, [q, k, v])
    };
    let prefix = "mask_decoder.transformer";
    let (mut queries, mut keys) = (tokens.clone(), keys.clone());
    for layer in 0..config.decoder_depth {
        let p = format!("{prefix}.layers.{layer}");
        let norm = |x: &O::Tensor, i: usize| ops.layer_norm(x, &format!("{p}.norm{i}"), 1e-5);
        queries = if layer == 0 {
            attend(&format!("{p}.self_attn"), &queries, &queries, &queries, c)
        } else {
            let q = ops.add(&queries, tokens);
            ops.add(&queries, &attend(&format!("{p}.self_attn"), &q, &q, &queries, c))
        };
        queries = norm(&queries, 1);
        let q = ops.add(&queries, tokens);
        let k = ops.add(&keys, positions);
        let out = attend(&format!("{p}.cross_attn_token_to_image"), &q, &k, &keys, c / 2);
        queries = norm(&ops.add(&queries, &out), 2);
        let hidden = ops.relu(&ops.linear(&queries, &format!("{p}.mlp.lin1"), config.decoder_mlp_dim, true));
        queries = norm(
            &ops.add(&queries, &ops.linear(&hidden, &format!("{p}.mlp.lin2"), c, true)),
            3,
        );
        let q = ops.add(&queries, tokens);
        let out = attend(&format!("{p}.cross_attn_image_to_token"), &k, &q, &queries, c / 2);
        keys = norm(&ops.add(&keys, &out), 4);
    }
    let q = ops.add(&queries, tokens);
    let k = ops.add(&keys, positions);
    let out = attend(&format!("{prefix}.final_attn_token_to_image"), &q, &k, &keys, c / 2);
    let queries = ops.layer_norm(&ops.add(&queries, &out), &format!("{prefix}.norm_final_attn"), 1e-5);
    (queries, keys)
}

/// `Attention` of `modeling/transformer.py`: projections to `inner`, heads, projection back.
fn attention<O: Ops>(ops: &O, name: &str, heads: usize, inner: usize, [q, k, v]: [&O::Tensor; 3]) -> O::Tensor {
    let project = |x: &O::Tensor, part: &str| ops.linear(x, &format!("{name}.{part}_proj"), inner, true);
    let c = ops.shape(q)[2];
    let out = ops.attention(&project(q, "q"), &project(k, "k"), &project(v, "v"), heads);
    ops.linear(&out, &format!("{name}.out_proj"), c, true)
}
