//! The region-text loss: patch embeddings against the words of labelled cells. A departure from the paper, set in the
//! recipe by `losses.region_text`.

use std::collections::HashMap;

use burn_backend::ops::FloatTensorOps;
use rayon::prelude::*;

use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::Graph;
use crate::train::dataset::names::canonical;
use crate::train::dataset::{ClassNames, Split, split};
use crate::train::feed::{BACKGROUND, Feed, NameTargets};
use crate::train::kernels::Kernels;
use crate::train::loss::cross_entropy;
use crate::train::model::clip;
use crate::train::model::position::linear_matrix;
use crate::train::ops::Ops;
use crate::train::recipe::Recipe;
use crate::train::session::{Tape, Tensor};
use crate::train::text_bank::{TextBank, tokenize};

/// Grid of the loss, in cells per patch and direction.
pub const CELLS_PER_PATCH: usize = 2;

/// Most photos whose pixels decide the weights of names; of more, as many are taken at equal distances.
const WEIGHED: usize = 20_000;

/// The loss of one micro-batch.
pub struct RegionText<B: Kernels> {
    /// Cross-entropy, `[1, 1]`.
    pub loss: Tensor<B>,
    /// Share of the weighted cells whose best name is right, 0-1.
    pub accuracy: f32,
    /// Patch logits `[B, n², K]` on the host.
    pub logits: Vec<f32>,
}

/// Embeddings `[K, D]` of `words`: learnt by the student's own text tower in one template if the recipe says so, else the
/// frozen tower's over all templates.
pub fn word_table<B: Kernels>(
    graph: &Graph<Tape<B>>,
    recipe: &Recipe,
    words: &[String],
    template: &str,
    (bank, tokenizer): (&mut TextBank<B>, &Tokenizer),
) -> Tensor<B> {
    let dim = recipe.clip_head.text_dim;
    if recipe.losses.train_text {
        let texts: Vec<String> = words.iter().map(|word| template.replace("{}", word)).collect();
        let tokens = tokenize(tokenizer, &texts).expect("class names are short");
        return graph.unit_norm(&clip::encode_text(graph, &recipe.text, dim, recipe.quick_gelu, &tokens));
    }
    let mut table = Vec::with_capacity(words.len() * dim);
    for word in words {
        table.extend_from_slice(bank.embed(word).expect("class names are short"));
    }
    graph.input(table, &[words.len(), dim])
}

/// Cross-entropy of upsampled patch logits against the names of the cells. `table [K, D]` are the words' embeddings, `n` is
/// the side of the patch grid.
pub fn loss<B: Kernels>(
    graph: &Graph<Tape<B>>,
    patch_embeddings: &Tensor<B>,
    targets: &NameTargets,
    table: &Tensor<B>,
    n: usize,
) -> RegionText<B> {
    let shape = graph.shape(patch_embeddings);
    let (b, dim, k) = (shape[0], shape[1], targets.names.len());
    let scale = graph.reshape(&Tape::<B>::float_exp(graph.weight("logit_scale", &[])), &[1, 1]);
    let rows = graph.reshape(&graph.permute(patch_embeddings, &[0, 2, 3, 1]), &[b * n * n, dim]);
    let logits = graph.matmul(&rows, &graph.permute(table, &[1, 0]));
    let logits = graph.mul(&logits, &scale); // [B·n², K]
    let coarse = graph.values(&logits);
    let cells = n * CELLS_PER_PATCH;
    let up = graph.input(linear_matrix(n, cells), &[cells, n]);
    let x = graph.matmul(&up, &graph.reshape(&logits, &[b, n, n * k])); // [B, cells, n·K]
    let x = graph.matmul(&up, &graph.reshape(&x, &[b * cells, n, k])); // [B·cells, cells, K]
    let x = graph.reshape(&x, &[b * cells * cells, k]);
    let x = graph.add(&x, &graph.input(targets.allowed.clone(), &[b * cells * cells, k]));
    let loss = cross_entropy(graph, &x, &graph.input(targets.target.clone(), &[b * cells * cells, k]));
    let values = graph.values(&x);
    let (mut right, mut counted) = (0.0_f32, 0.0_f32);
    for (logits, target) in values.chunks(k).zip(targets.target.chunks(k)) {
        // The largest share is the cell's own name, see `losses.part_share`.
        let wanted = (0..k).max_by(|&a, &b| target[a].total_cmp(&target[b])).unwrap_or(0);
        if target[wanted] > 0.0 {
            counted += target[wanted];
            if logits.iter().all(|&l| l <= logits[wanted]) {
                right += target[wanted];
            }
        }
    }
    RegionText {
        loss,
        accuracy: right / counted.max(1e-9),
        logits: coarse,
    }
}

/// Weight of each name in the region-text loss, background among them: the inverse root of its share of labelled pixels against
/// the third quartile, between `least` and 2, so that rare names are learnt and frequent ones do not drown them.
pub fn name_weights(feed: &Feed, least: f32) -> HashMap<String, f32> {
    let Some(dataset) = feed.dataset() else {
        return HashMap::new();
    };
    let count = |index: usize| -> HashMap<String, f64> {
        let mut counts = HashMap::new();
        if let Ok(sample) = feed.read(dataset, index)
            && let Some(mask) = sample.mask
        {
            let mut histogram = [0_u32; 256];
            mask.classes.iter().for_each(|&c| histogram[usize::from(c)] += 1);
            for (class, &n) in (0_u8..=255).zip(&histogram).filter(|(_, n)| **n > 0) {
                let name = match class {
                    ClassNames::BACKGROUND => Some(BACKGROUND),
                    _ => dataset.names().name(class).and_then(canonical),
                };
                if let Some(name) = name {
                    *counts.entry(name.to_owned()).or_insert(0.0) += f64::from(n);
                }
            }
        }
        counts
    };
    let merge = |mut a: HashMap<String, f64>, b: HashMap<String, f64>| {
        b.into_iter().for_each(|(name, n)| *a.entry(name).or_insert(0.0) += n);
        a
    };
    let labelled = |&index: &usize| {
        let raw = &dataset.samples()[index];
        raw.mask.is_some() && split(&raw.key) == Split::Train
    };
    let labelled: Vec<usize> = (0..dataset.len()).filter(labelled).collect();
    let every = labelled.len().div_ceil(WEIGHED).max(1);
    let counts = labelled
        .into_par_iter()
        .step_by(every)
        .map(count)
        .reduce(HashMap::new, merge);
    by_rarity(counts, least)
}

/// The weights of names with so many pixels.
fn by_rarity(counts: HashMap<String, f64>, least: f32) -> HashMap<String, f32> {
    let mut sorted: Vec<f64> = counts.values().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let Some(&middle) = sorted.get(sorted.len() * 3 / 4) else {
        return HashMap::new();
    };
    #[allow(clippy::cast_possible_truncation)] // clamped to at most 2
    counts
        .into_iter()
        .map(|(name, n)| (name, (middle / n).sqrt().clamp(f64::from(least), 2.0) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::train::dataset::Dataset;
    use crate::train::dataset::tests::{folder, grey_png, jpeg, key_of};

    #[test]
    fn the_background_weighs_by_its_pixels_as_every_name_does() {
        let (seen, unseen) = (key_of(Split::Train), key_of(Split::Validation));
        let photo = |key: &str, class: u8, side: u32| {
            [
                (format!("{key}.jpg"), jpeg(side, side)),
                (format!("{key}.mask.png"), grey_png(side, side, class)),
            ]
        };
        let other = format!("{seen}0");
        assert_eq!(split(&other), Split::Train, "choose another key");
        let members = [photo(&seen, 1, 30), photo(&other, 2, 10), photo(&unseen, 2, 90)].concat();
        let members: Vec<_> = members
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.clone()))
            .collect();
        let (_folder, pattern) = folder(&members);
        let recipe = Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml")).unwrap();
        let feed = Feed::new(Some(Arc::new(Dataset::open(&[pattern]).unwrap())), &recipe);
        // The third quartile of 100 and 900 pixels is 900.
        let weights = name_weights(&feed, 0.1);
        assert_eq!((weights["background"], weights["cat"]), (1.0, 2.0));
        assert_eq!(weights.len(), 2);
    }

    #[test]
    fn a_weight_is_the_inverse_root_of_a_share_between_its_bounds() {
        let counts = [("a", 1.0), ("b", 100.0), ("c", 400.0), ("d", 900.0), ("e", 90_000.0)];
        let counts: HashMap<String, f64> = counts.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
        let weights = by_rarity(counts, 0.2);
        let wanted = [("a", 2.0), ("b", 2.0), ("c", 1.5), ("d", 1.0), ("e", 0.2)];
        for (name, weight) in wanted {
            assert!((weights[name] - weight).abs() < 1e-6, "{name}: {}", weights[name]);
        }
    }
}
