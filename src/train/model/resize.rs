//! Weights for another input size: position tables resized once, so that the model's native size changes.
//!
//! The model resizes its tables at run time where the input differs from its native size ([`super::encoder`],
//! [`super::attention`]); this does the same to the weights themselves, before training or exporting at that size.

use super::SamConfig;
use super::position::{bicubic_matrix, linear_matrix};
use crate::train::weights::{Values, Weights};

/// The weights of `from`, a SAM or the merged model around it, for `to`, which differs in `image_size` alone: the absolute table by bicubic
/// interpolation, the relative tables of global attention by linear interpolation, everything else as it is.
#[must_use]
pub fn positions(weights: &Weights, from: &SamConfig, to: &SamConfig) -> Weights {
    let (old, new) = (from.grid(), to.grid());
    let resized = |name: &str, values: &Values| {
        if name == "image_encoder.pos_embed" {
            absolute(values, old, new)
        } else if name.contains(".rel_pos_") && is_global(name, from) {
            relative(values, 2 * new - 1)
        } else {
            values.clone()
        }
    };
    weights
        .iter()
        .map(|(name, values)| (name.clone(), resized(name, values)))
        .collect()
}

/// Whether a block attends to the whole grid: those of the CLIP head, and the global ones of the backbone.
fn is_global(name: &str, sam: &SamConfig) -> bool {
    let index = name
        .strip_prefix("image_encoder.blocks.")
        .and_then(|rest| rest.split('.').next()?.parse().ok());
    index.is_none_or(|index| sam.global_attn_indexes.contains(&index))
}

/// `[1, s, s, E]` to `[1, t, t, E]`.
fn absolute(values: &Values, s: usize, t: usize) -> Values {
    let width = values.data.len() / (s * s);
    let matrix = bicubic_matrix(s, t);
    let rows = product(&matrix, &values.data, s, s * width); // [t, s·E]
    let data = rows
        .chunks(s * width)
        .flat_map(|row| product(&matrix, row, s, width))
        .collect();
    Values {
        shape: vec![1, t, t, width],
        data,
    }
}

/// `[L, E]` to `[length, E]`.
fn relative(values: &Values, length: usize) -> Values {
    let [old, width] = [values.shape[0], values.shape[1]];
    let data = product(&linear_matrix(old, length), &values.data, old, width);
    Values {
        shape: vec![length, width],
        data,
    }
}

/// `matrix [M, inner] · x [inner, columns]`, row-major.
fn product(matrix: &[f32], x: &[f32], inner: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(matrix.len() / inner * columns);
    for row in matrix.chunks(inner) {
        for column in 0..columns {
            out.push(row.iter().enumerate().map(|(i, m)| m * x[i * columns + column]).sum());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::autodiff::Graph;
    use crate::train::initial;
    use crate::train::model::{MergedConfig, encode, inventory};
    use crate::train::recipe::Recipe;

    /// A model whose windows stay as they are and whose global tables change.
    fn small() -> MergedConfig {
        let recipe = Recipe::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml"));
        let mut config = recipe.unwrap().merged();
        let sam = &mut config.sam;
        (sam.image_size, sam.embed_dim, sam.depth, sam.num_heads) = (96, 16, 2, 2);
        (sam.window_size, sam.global_attn_indexes, sam.rel_pos) = (4, vec![1], true);
        (sam.stem, sam.out_chans) = (Vec::new(), 32);
        (config.clip_head.text_dim, config.clip_head.mlp_dim) = (8, 8);
        config
    }

    #[test]
    fn resized_weights_say_what_the_model_says_when_it_resizes_by_itself() {
        let from = small();
        let mut to = from.clone();
        to.sam.image_size = 160;
        let mut weights = initial::weights(&inventory::merged(&from), 3);
        for (name, values) in weights.iter_mut().filter(|(n, _)| n.contains("pos")) {
            let seed = name.len() as f32;
            values
                .data
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v = 0.3 * (seed + 0.7 * i as f32).sin());
        }
        let image: Vec<f32> = (0..3 * 160 * 160).map(|i| (i as f32 * 0.013).sin()).collect();
        let run = |weights: &Weights, config: &MergedConfig| {
            let graph = Graph::<burn_flex::Flex>::new(weights, Default::default());
            let out = encode(&graph, config, &graph.input(image.clone(), &[1, 3, 160, 160]));
            graph.values(&out.patch_embeddings)
        };
        let resized = positions(&weights, &from.sam, &to.sam);
        crate::train::weights::check(&resized, &inventory::merged(&to), "the resized weights").unwrap();
        let (by_model, by_us) = (run(&weights, &from), run(&resized, &to));
        assert_eq!(by_model.len(), by_us.len());
        for (a, b) in by_model.iter().zip(&by_us) {
            assert!((a - b).abs() < 1e-5, "{a} and {b}");
        }
        assert_ne!(
            resized["image_encoder.blocks.1.attn.rel_pos_h"].shape,
            weights["image_encoder.blocks.1.attn.rel_pos_h"].shape
        );
        assert_eq!(
            resized["image_encoder.blocks.0.attn.rel_pos_h"],
            weights["image_encoder.blocks.0.attn.rel_pos_h"]
        );
    }
}
