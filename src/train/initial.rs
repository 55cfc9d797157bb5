//! Initial values of weights by name and shape: what a model starts from when no checkpoint does.
//!
//! Linear and convolution weights: normal with standard deviation `1/√fan_in` cut at two deviations (SAM
//! and CLIP use a fixed 0.02, which suits their widths and not narrow models); norms 1 and 0; position
//! tables and tokens normal 0.02; SAM's Fourier matrix standard normal.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::train::weights::{Inventory, Values, Weights};

/// Initial weights for `inventory`, the same for the same seed.
#[must_use]
pub fn weights(inventory: &Inventory, seed: u64) -> Weights {
    completed(inventory, seed, |_, _| None)
}

/// Weights for `inventory`: those that `known` gives for a name and shape, the others as [`weights`] has them.
#[must_use]
pub fn completed(inventory: &Inventory, seed: u64, known: impl Fn(&str, &[usize]) -> Option<Vec<f32>>) -> Weights {
    inventory
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9).wrapping_add(i as u64));
            (
                name.clone(),
                Values {
                    shape: shape.clone(),
                    data: known(name, shape).unwrap_or_else(|| values(name, shape, &mut rng)),
                },
            )
        })
        .collect()
}

fn values(name: &str, shape: &[usize], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut random = |deviation: f32| (0..count).map(|_| normal(rng).clamp(-2.0, 2.0) * deviation).collect();
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_norm = [
        "norm",
        "ln_",
        ".neck.1",
        ".neck.3",
        "downscaling.1",
        "downscaling.4",
        "upscaling.1",
    ]
    .iter()
    .any(|t| name.contains(t));
    if name == "logit_scale" {
        return vec![(1.0_f32 / 0.07).ln()]; // CLIP's own start
    }
    if name.contains("gaussian_matrix") {
        return random(1.0);
    }
    // The detail path is added to a model that works without it.
    let silent = name == "image_encoder.detail.fold.weight";
    if silent || (shape.len() == 1 && last.contains("bias")) {
        return vec![0.0; count];
    }
    if is_norm && shape.len() == 1 {
        return vec![1.0; count];
    }
    let table = ["pos_embed", "rel_pos", "positional_embedding", "class_embedding"]
        .iter()
        .any(|t| name.contains(t));
    if table || shape.len() == 1 {
        return random(0.02);
    }
    if [
        "_token.weight",
        "_tokens.weight",
        "token_embedding",
        "point_embed",
        "not_a_point",
        "no_mask",
    ]
    .iter()
    .any(|t| name.contains(t))
    {
        return random(if name == "token_embedding.weight" { 0.1 } else { 0.5 });
    }
    // CLIP's projections are [in, out]; transposed convolutions [in, out, 2, 2]; all others [out, in, ..].
    let fan_in = match last {
        "proj" | "text_projection" => shape[0],
        _ if name.contains("output_upscaling") => shape[0],
        _ => shape[1..].iter().product(),
    };
    random(1.0 / (fan_in as f32).sqrt())
}

/// A standard normal value (Box-Muller).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deviation(name: &str, shape: &[usize]) -> f32 {
        let values = values(name, shape, &mut ChaCha8Rng::seed_from_u64(1));
        (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
    }

    #[test]
    fn projections_named_after_tokens_are_projections() {
        let projection = "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight";
        assert!(
            (deviation(projection, &[32, 64]) - 0.125).abs() < 0.02,
            "1/sqrt(64), cut at two deviations"
        );
        assert!((deviation("mask_decoder.mask_tokens.weight", &[4, 512]) - 0.5).abs() < 0.05);
    }

    #[test]
    fn norms_start_as_the_identity() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(values("image_encoder.neck.1.weight", &[3], &mut rng), [1.0; 3]);
        assert_eq!(values("image_encoder.neck.1.bias", &[3], &mut rng), [0.0; 3]);
    }
}
