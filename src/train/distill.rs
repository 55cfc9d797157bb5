//! Stages 1 to 3 of the paper: head probing, joint distillation of backbone, CLIP head and SAM head, adaptation to the
//! bundle's size.
//!
//! Departures from the paper, all set in the recipe: pictures of a step serve all losses (the paper draws
//! separate batches because its teachers' data differ); `losses.labelled` mixes labelled masks into the SAM
//! teacher's; `losses.region_text` adds the cross-entropy of patch embeddings against class names.

use std::collections::HashMap;

use burn_backend::ops::FloatTensorOps;
use burn_flex::Flex;
use rand::RngExt;

use crate::text::templates::TEMPLATES;
use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::Graph;
use crate::train::dataset::augment::{Colours, Fit, view};
use crate::train::feed::{Feed, Item, MASK_PROMPTS, NameTargets, PromptBatch, in_other_words, upsample};
use crate::train::initial;
use crate::train::loss::{cosine, cross_entropy};
use crate::train::model::position::linear_matrix;
use crate::train::model::{SamConfig, clip, clip_head, encoder, inventory, resize};
use crate::train::ops::Ops;
use crate::train::recipe::{Recipe, Stage, StageName};
use crate::train::sam_loss;
use crate::train::session::{RunFolder, Session, SessionError, StepLoss, Tape, Tensor};
use crate::train::teachers::{CLIP_NORMALISATION, clip_config};
use crate::train::text_bank::{TextBank, tokenize};
use crate::train::weights::{Values, Weights};
use crate::vision::query::{PromptRules, sample_patches};

/// Stage numbers, for random streams.
const PROBE: u64 = 3;
const DISTILL: u64 = 4;
const ADAPT: u64 = 5;

/// Frozen teachers: held in their own type, without a tape, so that they cannot be trained by mistake.
pub struct Teachers {
    sam: Weights,
    sam_config: SamConfig,
    clip: Graph<Flex>,
    /// Text embeddings of names by the CLIP teacher's tower.
    pub text: TextBank,
    tokenizer: Tokenizer,
}

impl Teachers {
    /// Teachers of `recipe` from their weights.
    #[must_use]
    pub fn new(recipe: &Recipe, sam: Weights, clip: &Weights, text: TextBank, tokenizer: Tokenizer) -> Self {
        Self {
            sam,
            sam_config: recipe.sam.clone(),
            clip: Graph::new(clip, Default::default()),
            text,
            tokenizer,
        }
    }

    /// The SAM teacher for pictures of the size of `config`.
    fn sam_at(&self, config: &SamConfig) -> Graph<Flex> {
        Graph::new(
            &resize::positions(&self.sam, &self.sam_config, config),
            Default::default(),
        )
    }
}

/// The student before training: the SAM teacher, a CLIP head whose layers are copies of the last backbone
/// block (paper appendix A) with a random MLP, and the CLIP teacher's text tower.
#[must_use]
pub fn student(recipe: &Recipe, sam: &Weights, clip: &Weights) -> Weights {
    let config = recipe.merged();
    let last = format!("image_encoder.blocks.{}.", config.sam.depth - 1);
    let known = |name: &str, shape: &[usize]| {
        let copied = name
            .strip_prefix("clip_head.blocks.")
            .and_then(|rest| rest.split_once('.'));
        let source = copied.map_or_else(|| name.to_owned(), |(_, rest)| format!("{last}{rest}"));
        let found = sam.get(&source).or_else(|| clip.get(&source))?;
        (found.shape == shape).then(|| found.data.clone())
    };
    let mut weights = initial::completed(&inventory::merged(&config), recipe.seed + 2, known);
    let scale = Values {
        shape: Vec::new(),
        data: vec![recipe.losses.logit_scale.ln()],
    };
    weights.insert("logit_scale".into(), scale);
    weights
}

/// One step's input.
pub struct Input {
    items: Vec<Item>,
    teacher_pixels: Vec<f32>,
    prompts: PromptBatch,
    targets: NameTargets,
    /// The word that stands for each name of `targets`.
    words: Vec<String>,
    template: &'static str,
    /// Seed of the points that are drawn from the CLIP head's scores.
    points_seed: u64,
}

/// Grid of the region-text loss, in cells per patch and direction.
const CELLS_PER_PATCH: usize = 2;

/// Stage 1: backbone frozen, CLIP head only.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn probe(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers,
    initial: impl FnOnce() -> Weights,
    folder: &RunFolder,
) -> Result<Weights, SessionError> {
    let rate = |name: &str| f32::from(u8::from(name.starts_with("clip_head.")));
    let mut session = folder.session(recipe, StageName::Probe, initial)?;
    let step = Steps {
        stage: &recipe.probe,
        number: PROBE,
        masks: MASK_PROMPTS,
        own_points: false,
    };
    run(&mut session, &step, recipe, feed, teachers, &rate)?;
    Ok(session.weights)
}

/// Stage 2: backbone, CLIP head and SAM head; the prompt encoder stays frozen, the text tower too unless
/// `losses.train_text` is set.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn distill(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers,
    initial: impl FnOnce() -> Weights,
    folder: &RunFolder,
) -> Result<Weights, SessionError> {
    let slow = recipe.distill.backbone_rate;
    let text = inventory::text(&recipe.text, recipe.clip_head.text_dim);
    let rate = |name: &str| match name {
        _ if name.starts_with("clip_head.") => 1.0,
        _ if recipe.losses.train_text && text.contains_key(name) => 1.0,
        "logit_scale" if recipe.losses.region_text > 0.0 => 1.0,
        _ if name.starts_with("image_encoder.") || name.starts_with("mask_decoder.") => slow,
        _ => 0.0,
    };
    let mut session = folder.session(recipe, StageName::Distill, initial)?;
    let step = Steps {
        stage: &recipe.distill,
        number: DISTILL,
        masks: MASK_PROMPTS,
        own_points: false,
    };
    run(&mut session, &step, recipe, feed, teachers, &rate)?;
    Ok(session.weights)
}

/// Stage 3: the heads at the bundle's size, if the recipe has that stage; the position tables are resized first.
/// Returns the weights of [`Recipe::adapted`].
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn adapt(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers,
    distilled: Weights,
    folder: &RunFolder,
) -> Result<Weights, SessionError> {
    let Some(adapt) = &recipe.adapt else {
        return Ok(distilled);
    };
    let adapted = recipe.adapted();
    let rate = |name: &str| match name {
        _ if name.starts_with("clip_head.") => 1.0,
        _ if name.starts_with("mask_decoder.") => adapt.mask_decoder_rate,
        _ if name.starts_with("image_encoder.") => adapt.backbone_rate,
        _ => 0.0,
    };
    let mut session = folder.session(recipe, StageName::Adapt, || {
        resize::positions(&distilled, &recipe.sam, &adapted.sam)
    })?;
    let step = Steps {
        stage: &adapt.stage,
        number: ADAPT,
        masks: adapt.own_prompts,
        own_points: true,
    };
    run(&mut session, &step, &adapted, feed, teachers, &rate)?;
    Ok(session.weights)
}

/// What a stage's steps are made of.
struct Steps<'a> {
    stage: &'a Stage,
    /// Stage number, for random streams.
    number: u64,
    /// Share of mask prompts.
    masks: f64,
    /// Whether the points of mask prompts are drawn from the CLIP head's scores too.
    own_points: bool,
}

fn run(
    session: &mut Session,
    steps: &Steps,
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers,
    rate: &dyn Fn(&str) -> f32,
) -> Result<(), SessionError> {
    let &Steps {
        stage,
        number,
        masks,
        own_points,
    } = steps;
    let config = recipe.merged();
    let (sam, side) = (&config.sam, config.sam.image_size);
    let sam_teacher = (recipe.losses.labelled < 1.0).then(|| teachers.sam_at(sam));
    let base = feed.names();
    let name_weights = name_weights(feed, recipe.losses.least_weight);
    let patches = if sam.grid() > config.clip_head.max_grid {
        sam.grid() / 2
    } else {
        sam.grid()
    };
    let cells = patches * CELLS_PER_PATCH;
    let teacher_side = recipe.clip_teacher.image_size;
    let batch = |step: u64| {
        let mut rng = feed.rng(number, step, stage.batch);
        let mut input = Input {
            items: Vec::new(),
            teacher_pixels: Vec::new(),
            prompts: PromptBatch::default(),
            targets: NameTargets::default(),
            words: Vec::new(),
            template: TEMPLATES[rng.random_range(0..TEMPLATES.len())],
            points_seed: rng.random(),
        };
        for slot in 0..stage.batch {
            let mut rng = feed.rng(number, step, slot);
            let sample = feed.sample(number, step, slot, stage.batch, 0.15);
            let item = feed.item(&sample, side, &mut rng);
            let at_teacher = view(
                &sample,
                item.view.region,
                teacher_side,
                Fit::Stretch,
                Colours::SAME,
                &CLIP_NORMALISATION,
            );
            input.teacher_pixels.extend(at_teacher.pixels);
            if stage.prompts > 0 {
                input.prompts.push(
                    &item,
                    stage.prompts,
                    recipe.export.points,
                    4 * sam.grid(),
                    masks,
                    &mut rng,
                );
            }
            input.items.push(item);
        }
        let losses = &recipe.losses;
        input.targets = NameTargets::new(&input.items, &base, cells, losses.part_share, |name| {
            name_weights.get(name).copied().unwrap_or(1.0)
        });
        input.targets.add_strangers(losses.strangers, &mut rng);
        let spoken = |name: &String| {
            let word = if losses.synonyms {
                in_other_words(name, &mut rng)
            } else {
                name
            };
            word.to_owned()
        };
        input.words = input.targets.names.iter().map(spoken).collect();
        input
    };
    session.run(stage, &recipe.optimizer, rate, batch, |graph, mut input| {
        let b = stage.batch;
        let pixels: Vec<f32> = input.items.iter().flat_map(|i| i.view.pixels.iter().copied()).collect();
        let image = graph.input(pixels.clone(), &[b, 3, side, side]);
        let tokens = encoder::tokens(graph, sam, &image);
        let (patch_embeddings, image_embedding) = clip_head::embed(graph, &config, &tokens);

        let expected = teachers.clip.input(
            std::mem::take(&mut input.teacher_pixels),
            &[b, 3, teacher_side, teacher_side],
        );
        let expected = clip::encode_image(&teachers.clip, &clip_config(recipe), &expected);
        let expected = teachers.clip.values(&teachers.clip.unit_norm(&expected));
        let expected = graph.input(expected, &[b, config.clip_head.text_dim]);
        let distance = graph.scale(
            &graph.sum(&cosine(graph, &image_embedding, &expected), 0),
            1.0 / b as f32,
        );
        let mut total = graph.reshape(&graph.scale(&distance, recipe.losses.clip), &[1]);
        let mut parts = vec![("clip", graph.values(&distance)[0])];

        let mut scores = None;
        if recipe.losses.region_text > 0.0 {
            let (loss, accuracy, logits) = region_text(graph, recipe, &patch_embeddings, &input, teachers, patches);
            parts.extend([("region-text", graph.values(&loss)[0]), ("cell accuracy", accuracy)]);
            total = graph.add(
                &total,
                &graph.reshape(&graph.scale(&loss, recipe.losses.region_text), &[1]),
            );
            scores = Some(logits);
        }
        if stage.prompts > 0 && recipe.losses.sam > 0.0 {
            if let Some(logits) = &scores {
                prompts_from_scores(&mut input, logits, patches, sam, own_points);
            }
            if let Some(teacher) = &sam_teacher {
                let image = teacher.input(pixels, &[b, 3, side, side]);
                let embeddings = encoder::neck(teacher, sam, &encoder::tokens(teacher, sam, &image));
                let (masks, _) = sam_loss::decode(teacher, sam, &embeddings, &input.prompts);
                mix_teacher(&mut input.prompts, &teacher.values(&masks), recipe.losses.labelled);
            }
            let embeddings = encoder::neck(graph, sam, &tokens);
            let (loss, iou) = sam_loss::loss(graph, sam, &embeddings, &input.prompts, &recipe.losses);
            parts.extend([("sam", graph.values(&loss)[0]), ("mask iou", iou)]);
            total = graph.add(&total, &graph.scale(&loss, recipe.losses.sam));
        }
        StepLoss { total, parts }
    })
}

/// Cross-entropy of upsampled patch logits against the names of the cells; the share of weighted cells whose
/// best name is right; and the patch logits `[B, K, n²]` on the host.
fn region_text(
    graph: &Graph<Tape>,
    recipe: &Recipe,
    patch_embeddings: &Tensor,
    input: &Input,
    teachers: &mut Teachers,
    n: usize,
) -> (Tensor, f32, Vec<f32>) {
    let (targets, dim) = (&input.targets, recipe.clip_head.text_dim);
    let k = targets.names.len();
    let table = if recipe.losses.train_text {
        let texts: Vec<String> = input
            .words
            .iter()
            .map(|word| input.template.replace("{}", word))
            .collect();
        let tokens = tokenize(&teachers.tokenizer, &texts).expect("class names are short");
        graph.unit_norm(&clip::encode_text(graph, &recipe.text, dim, recipe.quick_gelu, &tokens))
    } else {
        let mut table = Vec::with_capacity(k * dim);
        for word in &input.words {
            table.extend_from_slice(teachers.text.embed(word).expect("class names are short"));
        }
        graph.input(table, &[k, dim])
    };
    let b = graph.shape(patch_embeddings)[0];
    let scale = graph.reshape(&Tape::float_exp(graph.weight("logit_scale", &[])), &[1, 1]);
    let rows = graph.reshape(&graph.permute(patch_embeddings, &[0, 2, 3, 1]), &[b * n * n, dim]);
    let logits = graph.matmul(&rows, &graph.permute(&table, &[1, 0]));
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
    (loss, right / counted.max(1e-9), coarse)
}

/// Replaces the simulated mask prompts of named regions by what the CLIP head really says: the
/// logit of the name's probability, clamped to ±10, upsampled; with `points`, also the points, drawn as the daemon
/// draws them, unless no patch has the name.
fn prompts_from_scores(input: &mut Input, logits: &[f32], n: usize, sam: &SamConfig, points: bool) {
    let (k, low) = (input.targets.names.len(), 4 * sam.grid());
    let prompts = &mut input.prompts;
    for row in 0..prompts.counts.len() {
        let item = &input.items[row / prompts.per_image];
        let (Some(name), Some(names)) = (prompts.named[row], &item.names) else {
            continue;
        };
        if prompts.has_mask[row] == 0.0 {
            continue;
        }
        let name = &names.names[usize::from(name) - 2];
        let Some(column) = input.targets.names.iter().position(|m| m == name) else {
            continue;
        };
        let image = &logits[(row / prompts.per_image) * n * n * k..][..n * n * k];
        let coarse: Vec<f32> = image.chunks(k).map(|cell| log_odds(cell, column)).collect();
        prompts.mask[row * low * low..][..low * low].copy_from_slice(&upsample(&coarse, n, low));
        if points {
            let there: Vec<usize> = (0..n * n).filter(|&patch| coarse[patch] > 0.0).collect();
            let seed = input.points_seed ^ row as u64;
            let drawn = sample_patches(&coarse, &there, PromptRules::default().points, seed);
            prompts.set_points(row, &drawn, n, sam.image_size);
        }
    }
}

/// Logit of the softmax probability of `column` among `logits`, within ±10.
fn log_odds(logits: &[f32], column: usize) -> f32 {
    let rest = logits.iter().enumerate().filter(|(i, _)| *i != column).map(|(_, &l)| l);
    let highest = rest.clone().fold(f32::MIN, f32::max);
    let sum: f32 = rest.map(|l| (l - highest).exp()).sum();
    (logits[column] - highest - sum.ln()).clamp(-10.0, 10.0)
}

/// Mixes the teacher's single-mask probabilities `[R, 4, P]` into the targets `[R, P]`.
fn mix_teacher(prompts: &mut PromptBatch, teacher: &[f32], labelled: f32) {
    let pixels = prompts.target.len() / prompts.counts.len();
    for (target, logits) in prompts.target.chunks_mut(pixels).zip(teacher.chunks(4 * pixels)) {
        for (t, &z) in target.iter_mut().zip(logits) {
            *t = labelled * *t + (1.0 - labelled) / (1.0 + (-z).exp());
        }
    }
}

/// Weight of each name in the region-text loss: the inverse root of its share of labelled pixels against the
/// third quartile, between `least` and 2, so that rare names are learnt and frequent ones do not drown them.
fn name_weights(feed: &Feed, least: f32) -> HashMap<String, f32> {
    use crate::train::dataset::names::canonical;
    use crate::train::dataset::{Split, split};
    use rayon::prelude::*;
    let Some(dataset) = feed.dataset() else {
        return HashMap::new();
    };
    let count = |index: usize| -> HashMap<String, f64> {
        let mut counts = HashMap::new();
        if let Ok(sample) = dataset.get(index)
            && let Some(mask) = sample.mask
        {
            let mut histogram = [0_u32; 256];
            mask.classes.iter().for_each(|&c| histogram[usize::from(c)] += 1);
            for (class, &n) in histogram.iter().enumerate().filter(|(_, n)| **n > 0) {
                let name = u8::try_from(class)
                    .ok()
                    .and_then(|c| dataset.names().name(c))
                    .and_then(canonical);
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
    let counts = (0..dataset.len())
        .into_par_iter()
        .filter(|&i| split(&dataset.samples()[i].key) == Split::Train)
        .map(count)
        .reduce(HashMap::new, merge);
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
    use super::*;
    use crate::train::dataset::augment::{Region, View};
    use crate::train::feed::PixelNames;

    /// One picture of 32 × 32 whose left half is sky, with one mask prompt for the sky.
    fn input() -> Input {
        let item = Item {
            view: View {
                side: 32,
                content: (32, 32),
                pixels: Vec::new(),
                classes: None,
                segments: None,
                region: Region {
                    x: 0.0,
                    y: 0.0,
                    width: 32.0,
                    height: 32.0,
                    flip: false,
                },
            },
            names: Some(PixelNames {
                index: (0..32 * 32).map(|i| if i % 32 < 16 { 2 } else { 1 }).collect(),
                names: vec!["sky".into()],
                annotated: Vec::new(),
            }),
            text: None,
        };
        Input {
            items: vec![item],
            teacher_pixels: Vec::new(),
            prompts: PromptBatch {
                per_image: 1,
                coords: vec![9.0; 8],
                labels: vec![1.0; 4],
                mask: vec![0.0; 64],
                has_mask: vec![1.0],
                target: vec![0.0; 64],
                counts: vec![1.0],
                named: vec![Some(2)],
            },
            targets: NameTargets {
                names: vec!["background".into(), "sky".into()],
                ..NameTargets::default()
            },
            words: Vec::new(),
            template: "{}",
            points_seed: 1,
        }
    }

    fn sam() -> SamConfig {
        SamConfig {
            image_size: 32,
            ..SamConfig::vit_b()
        }
    }

    #[test]
    fn prompts_of_the_last_stage_are_what_the_clip_head_says() {
        // Patches [2, 2], logits of background and sky: the lower left patch is sky beyond doubt, the upper left barely.
        let logits = [0.0, 0.5, 3.0, 0.0, 0.0, 30.0, 0.0, -2.0];
        let mut asked = input();
        prompts_from_scores(&mut asked, &logits, 2, &sam(), true);
        assert_eq!(asked.prompts.labels, [1.0, 1.0, -1.0, -1.0], "two patches are sky");
        assert_eq!(
            asked.prompts.coords[..4],
            [7.5, 23.5, 7.5, 7.5],
            "the surest first, pixel indices"
        );
        let mask = &asked.prompts.mask;
        assert!(
            (mask[7 * 8] - 10.0).abs() < 1e-6 && (mask[7] + 3.0).abs() < 1e-6,
            "{mask:?}"
        );
    }

    #[test]
    fn given_points_stay_where_the_stage_or_the_scores_have_none() {
        let nowhere = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        for (logits, points) in [(nowhere, true), ([0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 9.0], false)] {
            let mut asked = input();
            prompts_from_scores(&mut asked, &logits, 2, &sam(), points);
            assert_eq!(
                (asked.prompts.coords, asked.prompts.labels),
                (vec![9.0; 8], vec![1.0; 4])
            );
        }
    }
}
