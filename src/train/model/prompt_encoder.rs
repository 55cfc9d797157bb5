//! SAM's prompt encoder (`modeling/prompt_encoder.py`), in the fixed-size form of `utils/onnx.py`:
//! boxes are two points with labels 2 and 3, and label −1 pads.

use std::f32::consts::TAU;

use super::SamConfig;
use crate::train::ops::{Conv, Ops};

/// Prompts of one image, as the decoder graph takes them.
#[derive(Clone, Debug)]
pub struct Prompts<T> {
    /// `[Q, N, 2]`: x, y in pixels of the square model input.
    pub coords: T,
    /// `[Q, N]`: 1 foreground, 0 background, 2 and 3 box corners, −1 padding.
    pub labels: T,
    /// `[Q, 1, 4g, 4g]` mask logits, and `[Q]` saying where there is one.
    pub mask: Option<(T, T)>,
}

/// Sparse embeddings `[Q, N, C]` and dense embeddings `[Q or 1, C, g, g]`.
pub fn encode<O: Ops>(ops: &O, config: &SamConfig, prompts: &Prompts<O::Tensor>) -> (O::Tensor, O::Tensor) {
    (
        sparse(ops, config, &prompts.coords, &prompts.labels),
        dense(ops, config, prompts.mask.as_ref()),
    )
}

fn sparse<O: Ops>(ops: &O, config: &SamConfig, coords: &O::Tensor, labels: &O::Tensor) -> O::Tensor {
    let c = config.out_chans;
    let [q, n] = <[usize; 2]>::try_from(ops.shape(labels)).expect("labels are [Q, N]");
    let unit = ops.scale(&ops.shift(coords, 0.5), 1.0 / config.image_size as f32);
    let labels = ops.reshape(labels, &[q, n, 1]);
    let padding = ops.equals(&labels, -1.0); // [Q, N, 1]
    let real = ops.shift(&ops.scale(&padding, -1.0), 1.0);
    let not_a_point = ops.weight("prompt_encoder.not_a_point_embed.weight", &[1, c]);
    let mut x = ops.mul(&fourier(ops, config, &unit), &real);
    x = ops.add(&x, &ops.mul(&padding, &not_a_point));
    for kind in 0..4_usize {
        let table = ops.weight(&format!("prompt_encoder.point_embeddings.{kind}.weight"), &[1, c]);
        x = ops.add(&x, &ops.mul(&ops.equals(&labels, kind as f32), &table));
    }
    x
}

/// Random Fourier features `[.., C]` of coordinates `[.., 2]` in 0..1 (`PositionEmbeddingRandom`).
fn fourier<O: Ops>(ops: &O, config: &SamConfig, unit: &O::Tensor) -> O::Tensor {
    let half = config.out_chans / 2;
    let matrix = ops.weight(
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        &[2, half],
    );
    let centred = ops.shift(&ops.scale(unit, 2.0), -1.0);
    let shape = ops.shape(&centred);
    let flat: usize = shape[..shape.len() - 1].iter().product();
    let phase = ops.scale(&ops.matmul(&ops.reshape(&centred, &[flat, 2]), &matrix), TAU);
    let features = ops.concat(&[ops.sin(&phase), ops.cos(&phase)], 1); // [flat, C]
    let mut out = shape;
    *out.last_mut().expect("coordinates have an axis") = config.out_chans;
    ops.reshape(&features, &out)
}

/// Positions of the image tokens, `[1, C, g, g]` (`get_dense_pe`).
pub fn dense_positions<O: Ops>(ops: &O, config: &SamConfig) -> O::Tensor {
    let g = config.grid();
    let centre = |i: usize| (i as f32 + 0.5) / g as f32;
    let grid = (0..g * g).flat_map(|i| [centre(i % g), centre(i / g)]).collect();
    let features = fourier(ops, config, &ops.constant(grid, &[g * g, 2]));
    ops.reshape(&ops.permute(&features, &[1, 0]), &[1, config.out_chans, g, g])
}

fn dense<O: Ops>(ops: &O, config: &SamConfig, mask: Option<&(O::Tensor, O::Tensor)>) -> O::Tensor {
    let c = config.out_chans;
    let none = ops.reshape(
        &ops.weight("prompt_encoder.no_mask_embed.weight", &[1, c]),
        &[1, c, 1, 1],
    );
    let Some((mask, present)) = mask else {
        let g = config.grid();
        return ops.expand(&none, &[1, c, g, g]);
    };
    let conv = |x: &O::Tensor, i: usize, out: usize, kernel: usize| {
        let name = format!("prompt_encoder.mask_downscaling.{i}");
        ops.conv2d(
            x,
            &name,
            Conv {
                out,
                kernel,
                stride: kernel,
                padding: 0,
                bias: true,
            },
        )
    };
    let norm = |x: &O::Tensor, i: usize| ops.layer_norm_2d(x, &format!("prompt_encoder.mask_downscaling.{i}"));
    let x = ops.gelu(&norm(&conv(mask, 0, config.mask_in_chans / 4, 2), 1));
    let x = ops.gelu(&norm(&conv(&x, 3, config.mask_in_chans, 2), 4));
    let x = conv(&x, 6, c, 1); // [Q, C, g, g]
    let q = ops.shape(present)[0];
    let present = ops.reshape(present, &[q, 1, 1, 1]);
    let absent = ops.shift(&ops.scale(&present, -1.0), 1.0);
    ops.add(&ops.mul(&x, &present), &ops.mul(&none, &absent))
}
