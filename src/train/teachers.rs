//! Small SAM and CLIP teachers from labelled data, for people without the big ones.
//!
//! The SAM teacher learns masks from points, boxes and coarse masks; the CLIP teacher learns pictures and
//! labelled regions against their words (CLIP's symmetric cross-entropy, equal words being equal).

use burn_backend::ops::FloatTensorOps;
use rand::RngExt;

use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::{Graph, TokenBatch};
use crate::train::dataset::Sample;
use crate::train::dataset::augment::{Augmentation, Colours, Fit, Normalisation, Region, augment, bounds, view};
use crate::train::dataset::names::canonical;
use crate::train::feed::{Draw, Feed, MASK_PROMPTS, PromptBatch, SCALES, in_other_words, in_template};
use crate::train::initial;
use crate::train::kernels::Kernels;
use crate::train::loss::cross_entropy;
use crate::train::model::{ClipConfig, clip, encoder, inventory};
use crate::train::ops::Ops;
use crate::train::recipe::{Recipe, Stage, StageName};
use crate::train::sam_loss;
use crate::train::session::{RunFolder, SessionError, StepLoss, Tape, Tensor};
use crate::train::strangers::STRANGERS;
use crate::train::text_bank::tokenize;
use crate::train::weights::Weights;

/// CLIP's normalisation on 0-255 RGB (paper.md section 7).
pub const CLIP_NORMALISATION: Normalisation = Normalisation {
    mean: [122.770_94, 116.746_01, 104.093_74],
    std: [68.500_534, 66.632_19, 70.323_16],
};

/// Stage numbers, for random streams.
const SAM: u64 = 1;
const CLIP: u64 = 2;

/// Class names per step that the text tower learns to tell apart by their words.
const NAMES_PER_STEP: usize = 64;

/// The CLIP teacher's configuration.
#[must_use]
pub fn clip_config(recipe: &Recipe) -> ClipConfig {
    ClipConfig {
        embed_dim: recipe.clip_head.text_dim,
        vision_cfg: recipe.clip_teacher.clone(),
        text_cfg: recipe.text.clone(),
        quick_gelu: recipe.quick_gelu,
    }
}

/// Trains the SAM teacher as `stage` says; returns its weights.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn sam<B: Kernels>(
    recipe: &Recipe,
    stage: &Stage,
    feed: &Feed,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let sam = &recipe.sam;
    let mut session = folder.session(recipe, StageName::TeachSam, || {
        initial::weights(&inventory::sam(sam), recipe.seed)
    })?;
    let low = 4 * sam.grid();
    let batch = |step: u64| {
        let views = feed.slots(0..stage.batch, |slot| {
            let mut rng = feed.rng(SAM, step, slot);
            let sample = feed.sample(SAM, step, slot, stage.batch, Draw::Any { unlabelled: 0.15 })?;
            let item = feed.item(&sample, sam.image_size, SCALES, &mut rng);
            let mut prompts = PromptBatch::default();
            prompts.push(&item, stage.prompts, recipe.export.points, low, MASK_PROMPTS, &mut rng);
            Ok((item.view.pixels, prompts))
        })?;
        let (mut pixels, mut prompts) = (Vec::new(), PromptBatch::default());
        for (view, asked) in views {
            pixels.extend(view);
            prompts.append(asked);
        }
        Ok(vec![(pixels, prompts)])
    };
    let frozen = |name: &str| f32::from(u8::from(!name.contains("gaussian_matrix")));
    session.run(stage, &recipe.optimizer, frozen, batch, |graph, (pixels, prompts)| {
        let image = graph.input(pixels, &[stage.batch, 3, sam.image_size, sam.image_size]);
        let embeddings = encoder::neck(graph, sam, &encoder::tokens(graph, sam, &image));
        let (total, iou) = sam_loss::loss(graph, sam, &embeddings, &prompts, &recipe.losses);
        let parts = vec![("sam", graph.values(&total)[0]), ("mask iou", iou)];
        StepLoss { total, parts }
    })?;
    Ok(session.weights)
}

/// A name, or with `synonyms` one of the words for it, in one of the 80 templates.
fn worded(name: &str, synonyms: bool, rng: &mut rand_chacha::ChaCha8Rng) -> String {
    let word = if synonyms { in_other_words(name, rng) } else { name };
    in_template(word, rng)
}

/// A picture and its words.
struct Pair {
    pixels: Vec<f32>,
    text: String,
}

/// A whole picture with its text, or a labelled region with its name.
fn pair(feed: &Feed, sample: &Sample, side: usize, synonyms: bool, rng: &mut rand_chacha::ChaCha8Rng) -> Pair {
    if rng.random_bool(0.7)
        && let Some((region, name)) = named_region(feed, sample, rng)
    {
        let view = view(sample, region, side, Fit::Stretch, Colours::SAME, &CLIP_NORMALISATION);
        return Pair {
            pixels: view.pixels,
            text: worded(&name, synonyms, rng),
        };
    }
    let text = feed
        .item(sample, 16, SCALES, rng)
        .text
        .or_else(|| named_region(feed, sample, rng).map(|(_, name)| name));
    let ranges = Augmentation {
        scale: (0.6, 1.0),
        ..Augmentation::default()
    };
    let view = augment(sample, side, &ranges, &CLIP_NORMALISATION, rng);
    Pair {
        pixels: view.pixels,
        text: text.unwrap_or_else(|| "a photo".into()),
    }
}

/// Bounding box, a little widened, of one named part of a sample.
fn named_region(feed: &Feed, sample: &Sample, rng: &mut rand_chacha::ChaCha8Rng) -> Option<(Region, String)> {
    let (width, height) = (sample.photo.width, sample.photo.height);
    let mut parts: Vec<(String, Vec<usize>)> = Vec::new();
    if let (false, Some(segments)) = (sample.regions.is_empty(), &sample.segments) {
        for (i, name) in sample.regions.iter().enumerate() {
            let id = i + 1;
            let pixels = segments
                .ids
                .iter()
                .enumerate()
                .filter(|(_, v)| usize::from(**v) == id)
                .map(|(p, _)| p);
            parts.push((name.clone(), pixels.collect()));
        }
    } else if let (Some(mask), Some(dataset)) = (&sample.mask, feed.dataset()) {
        let mut classes: Vec<u8> = mask.classes.clone();
        classes.sort_unstable();
        classes.dedup();
        for class in classes {
            if let Some(name) = dataset.names().name(class).and_then(canonical) {
                let pixels = mask
                    .classes
                    .iter()
                    .enumerate()
                    .filter(|(_, v)| **v == class)
                    .map(|(p, _)| p);
                parts.push((name.to_owned(), pixels.collect()));
            }
        }
    }
    parts.retain(|(_, pixels)| pixels.len() * 200 > width * height);
    if parts.is_empty() {
        return None;
    }
    let (name, pixels) = parts.swap_remove(rng.random_range(0..parts.len()));
    let ([x0, y0], [x1, y1]) = bounds(pixels, width);
    let margin = rng.random_range(0.0..0.15);
    let (w, h) = ((x1 - x0) as f32, (y1 - y0) as f32);
    let x = (x0 as f32 - margin * w).max(0.0);
    let y = (y0 as f32 - margin * h).max(0.0);
    let region = Region {
        x,
        y,
        width: (w * (1.0 + 2.0 * margin)).min(width as f32 - x),
        height: (h * (1.0 + 2.0 * margin)).min(height as f32 - y),
        flip: rng.random_bool(0.5),
    };
    Some((region, name))
}

/// Trains the CLIP teacher as `stage` says; returns its weights.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn clip<B: Kernels>(
    recipe: &Recipe,
    stage: &Stage,
    feed: &Feed,
    tokenizer: &Tokenizer,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let config = clip_config(recipe);
    let (side, synonyms) = (config.vision_cfg.image_size, recipe.losses.synonyms);
    let mut names = feed.names();
    names.extend(
        crate::train::synth::names()
            .iter()
            .filter_map(canonical)
            .map(str::to_owned),
    );
    if recipe.losses.strangers > 0 {
        names.extend(STRANGERS.iter().map(|&word| word.to_owned()));
    }
    let mut session = folder.session(recipe, StageName::TeachClip, || {
        initial::weights(&inventory::clip(&config), recipe.seed + 1)
    })?;
    let batch = |step: u64| {
        let pairs = feed.slots(0..stage.batch, |slot| {
            let mut rng = feed.rng(CLIP, step, slot);
            let sample = feed.sample(CLIP, step, slot, stage.batch, Draw::Clip { unlabelled: 0.5 })?;
            Ok(pair(feed, &sample, side, synonyms, &mut rng))
        })?;
        let (mut pixels, mut texts) = (Vec::new(), Vec::new());
        for pair in pairs {
            pixels.extend(pair.pixels);
            texts.push(pair.text.chars().take(300).collect::<String>());
        }
        let tokens = tokenize(tokenizer, &texts).expect("texts are cut to 300 characters");
        let mut rng = feed.rng(CLIP, step, stage.batch);
        let chosen: Vec<&String> = (0..NAMES_PER_STEP)
            .map(|_| &names[rng.random_range(0..names.len())])
            .collect();
        let mut pair = || {
            let texts: Vec<String> = chosen.iter().map(|n| worded(n, synonyms, &mut rng)).collect();
            tokenize(tokenizer, &texts).expect("class names are short")
        };
        let named = (chosen.iter().map(|n| (*n).clone()).collect::<Vec<_>>(), pair(), pair());
        Ok(vec![(pixels, texts, tokens, named)])
    };
    session.run(
        stage,
        &recipe.optimizer,
        |_| 1.0,
        batch,
        |graph, (pixels, texts, tokens, named)| {
            let embed = |tokens: &TokenBatch| {
                let text = clip::encode_text(graph, &config.text_cfg, config.embed_dim, config.quick_gelu, tokens);
                graph.unit_norm(&text)
            };
            let image = graph.input(pixels, &[stage.batch, 3, side, side]);
            let image = graph.unit_norm(&clip::encode_image(graph, &config, &image));
            let scale = graph.reshape(&Tape::<B>::float_exp(graph.weight("logit_scale", &[])), &[1, 1]);
            let (clip, top1) = contrastive(graph, &image, &embed(&tokens), &texts, &scale);
            let mut parts = vec![("clip", graph.values(&clip)[0]), ("in-batch top-1", top1)];
            let mut total = clip;
            if recipe.losses.name_contrast > 0.0 {
                let (names, first, second) = named;
                let scale = graph.input(vec![recipe.losses.logit_scale], &[1, 1]);
                let (loss, top1) = contrastive(graph, &embed(&first), &embed(&second), &names, &scale);
                parts.extend([("names", graph.values(&loss)[0]), ("names top-1", top1)]);
                total = graph.add(&total, &graph.scale(&loss, recipe.losses.name_contrast));
            }
            StepLoss { total, parts }
        },
    )?;
    // CLIP bounds its temperature at 1/100.
    if let Some(scale) = session.weights.get_mut("logit_scale") {
        scale.data[0] = scale.data[0].min(100.0_f32.ln());
    }
    Ok(session.weights)
}

/// CLIP's symmetric loss `[1]` of unit-norm `[B, D]` pairs, and the share of rows whose best column is right;
/// rows with equal texts are positives of each other.
fn contrastive<B: Kernels>(
    graph: &Graph<Tape<B>>,
    a: &Tensor<B>,
    b: &Tensor<B>,
    texts: &[String],
    scale: &Tensor<B>,
) -> (Tensor<B>, f32) {
    let n = texts.len();
    let logits = graph.mul(&graph.matmul(a, &graph.permute(b, &[1, 0])), scale);
    let mut target = vec![0.0; n * n];
    for (row, text) in target.chunks_mut(n).zip(texts) {
        let equal = texts.iter().filter(|t| *t == text).count();
        for (cell, other) in row.iter_mut().zip(texts) {
            *cell = if other == text { 1.0 / (equal * n) as f32 } else { 0.0 };
        }
    }
    let target = graph.input(target, &[n, n]);
    let by_row = cross_entropy(graph, &logits, &target);
    let by_column = cross_entropy(graph, &graph.permute(&logits, &[1, 0]), &target);
    let total = graph.reshape(&graph.scale(&graph.add(&by_row, &by_column), 0.5), &[1]);
    let values = graph.values(&logits);
    let best = |row: &[f32]| (0..n).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap_or(0);
    let right = values
        .chunks(n)
        .enumerate()
        .filter(|(i, row)| texts[best(row)] == texts[*i])
        .count();
    (total, right as f32 / n as f32)
}
