//! Stages 1 to 3 of the paper: head probing, joint distillation of backbone, CLIP head and SAM head, adaptation to the
//! bundle's size.
//!
//! A step is one or more micro-batches ([`MicroBatch`]) whose gradients add up before the optimiser moves. With
//! `separate` in a stage, a step is the paper's: CLIP batches at one of several sizes, then a SAM batch at the native
//! size. Without, one batch of pictures serves all losses, a departure that pays where both teachers were made
//! from the same data. Further departures, each set in the recipe: `losses.labelled` mixes labelled masks into the SAM
//! teacher's, `losses.region_text` adds the cross-entropy of patch embeddings against class names.

use std::ops::Range;
use std::sync::mpsc::sync_channel;

use rand::RngExt as _;

use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::Graph;
use crate::train::feed::{Feed, FeedError, MASK_PROMPTS};
use crate::train::forgetting::BoxMasks;
use crate::train::frozen::{Features, Store};
use crate::train::initial;
use crate::train::kernels::Kernels;
use crate::train::micro_batch::{Maker, MicroBatch, Serves};
use crate::train::model::{SamConfig, inventory, resize};
use crate::train::precision::Precision;
use crate::train::recipe::{Adapt, Recipe, Stage, StageName};
use crate::train::session::{RunFolder, Session, SessionError, progress_bar};
use crate::train::text_bank::TextBank;
use crate::train::weights::{Values, Weights};

/// Stage numbers, for random streams.
const PROBE: u64 = 3;
const DISTILL: u64 = 4;
const ADAPT: u64 = 5;

/// Whose image embeddings L_CLIP asks for.
pub enum ClipTeacher<B: Kernels> {
    /// A CLIP model's, at the size that it was made for.
    Tower(Graph<B>),
    /// The merged model's own of before, on the very pictures that the student sees.
    Before(Graph<B>),
}

/// Frozen teachers: held in their own type, without a tape, so that they cannot be trained by mistake.
pub struct Teachers<B: Kernels> {
    sam: Weights,
    sam_config: SamConfig,
    precision: Precision,
    /// The CLIP teacher.
    pub clip: ClipTeacher<B>,
    /// Text embeddings of names by the CLIP teacher's tower.
    pub text: TextBank<B>,
    /// The text tower's tokenizer.
    pub tokenizer: Tokenizer,
}

impl<B: Kernels> Teachers<B> {
    /// Teachers of `recipe` from their weights, on the device of `text`.
    #[must_use]
    pub fn new(recipe: &Recipe, sam: Weights, clip: &Weights, text: TextBank<B>, tokenizer: Tokenizer) -> Self {
        Self {
            sam,
            sam_config: recipe.sam.clone(),
            precision: recipe.precision,
            clip: ClipTeacher::Tower(Graph::new(clip, text.device().clone()).with_precision(recipe.precision)),
            text,
            tokenizer,
        }
    }

    /// Rehearsal: the merged model `before` of `recipe` is the SAM teacher, and the CLIP teacher too where there is no
    /// `clip`.
    #[must_use]
    pub fn of_before(
        recipe: &Recipe,
        before: &Weights,
        clip: Option<&Weights>,
        tokenizer: Tokenizer,
        device: B::Device,
    ) -> Self {
        let graph = |weights| Graph::new(weights, device.clone()).with_precision(recipe.precision);
        Self {
            sam: before.clone(),
            sam_config: recipe.sam.clone(),
            precision: recipe.precision,
            clip: match clip {
                Some(tower) => ClipTeacher::Tower(graph(tower)),
                None => ClipTeacher::Before(graph(before)),
            },
            text: TextBank::new(before, recipe.merged(), tokenizer.clone(), device),
            tokenizer,
        }
    }

    /// The SAM teacher for pictures of the size of `config`.
    fn sam_at(&self, config: &SamConfig) -> Graph<B> {
        let resized = resize::positions(&self.sam, &self.sam_config, config);
        Graph::new(&resized, self.text.device().clone()).with_precision(self.precision)
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

/// Stage 1: backbone frozen, CLIP head only.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn probe<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers<B>,
    initial: impl FnOnce() -> Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let session = folder.session(recipe, StageName::Probe, initial)?;
    let store = recipe.probe.repeat.map(|_| {
        let origin = folder.identity(&without_pace(recipe), StageName::Probe);
        let origin = format!("{}\n{}", origin.recipe, origin.data);
        Store::open(&folder.path.join("probe.features"), &origin)
    });
    let step = Steps {
        stage: &recipe.probe,
        number: PROBE,
        masks: MASK_PROMPTS,
        own_points: false,
        features: store.transpose()?,
    };
    run(session, &step, recipe, feed, teachers, &probe_rate)
}

/// Factor on the learning rate of stage 1: the CLIP head alone learns.
fn probe_rate(name: &str) -> f32 {
    f32::from(u8::from(name.starts_with("clip_head.")))
}

/// A recipe without what stage 1 may change and keep its features: how long and how fast it learns.
fn without_pace(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    let probe = &mut recipe.probe;
    (probe.steps, probe.learning_rate, probe.warmup, probe.average) = (0, 0.0, 0, None);
    recipe
}

/// Stage 2: backbone, CLIP head and SAM head; the prompt encoder stays frozen, the text tower too unless
/// `losses.train_text` is set.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn distill<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers<B>,
    initial: impl FnOnce() -> Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let session = folder.session(recipe, StageName::Distill, initial)?;
    let step = Steps {
        stage: &recipe.distill,
        number: DISTILL,
        masks: MASK_PROMPTS,
        own_points: false,
        features: None,
    };
    run(session, &step, recipe, feed, teachers, &distill_rate(recipe))
}

/// Factors on the learning rate of stage 2 by weight; backbone and SAM head learn at `backbone_rate`.
fn distill_rate(recipe: &Recipe) -> impl Fn(&str) -> f32 {
    let slow = recipe.distill.backbone_rate;
    let text = inventory::text(&recipe.text, recipe.clip_head.text_dim);
    move |name: &str| match name {
        _ if name.starts_with("clip_head.") => 1.0,
        _ if recipe.losses.train_text && text.contains_key(name) => 1.0,
        "logit_scale" if recipe.losses.region_text > 0.0 => 1.0,
        _ if name.starts_with("image_encoder.") || name.starts_with("mask_decoder.") => slow,
        _ => 0.0,
    }
}

/// Stage 3: the heads at the bundle's size, if the recipe has that stage; the position tables are resized first.
/// Returns the weights of [`Recipe::adapted`].
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn adapt<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers<B>,
    distilled: Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let Some(adapt) = &recipe.adapt else {
        return Ok(distilled);
    };
    let adapted = recipe.adapted();
    let session = folder.session(recipe, StageName::Adapt, || {
        resize::positions(&distilled, &recipe.sam, &adapted.sam)
    })?;
    let step = Steps {
        stage: &adapt.stage,
        number: ADAPT,
        masks: adapt.own_prompts,
        own_points: true,
        features: None,
    };
    run(session, &step, &adapted, feed, teachers, &adapt_rate(adapt))
}

/// Factors on the learning rate of stage 3 by weight.
fn adapt_rate(adapt: &Adapt) -> impl Fn(&str) -> f32 {
    move |name: &str| match name {
        _ if name.starts_with("clip_head.") => 1.0,
        _ if name.starts_with("mask_decoder.") => adapt.mask_decoder_rate,
        _ if name.starts_with("image_encoder.") => adapt.backbone_rate,
        _ => 0.0,
    }
}

/// What a stage's steps are made of.
pub(super) struct Steps<'a> {
    pub stage: &'a Stage,
    /// Stage number, for random streams.
    pub number: u64,
    /// Share of mask prompts.
    pub masks: f64,
    /// Whether the points of mask prompts are drawn from the CLIP head's scores too.
    pub own_points: bool,
    /// Where the features of frozen networks are kept, if the stage's batches come again.
    pub features: Option<Store>,
}

/// Computes what a store lacks of the micro-batches `indices` of `steps`. `make` works on another thread.
fn look_at_all(
    store: &Store,
    steps: Range<u64>,
    indices: Range<usize>,
    make: &(dyn Fn(u64) -> Result<Vec<MicroBatch>, FeedError> + Sync),
    look: impl Fn(&MicroBatch) -> Features,
) -> Result<(), SessionError> {
    let lacks = |step: &u64| !indices.clone().all(|index| store.has(*step, index));
    let missing: Vec<u64> = steps.filter(lacks).collect();
    let progress = progress_bar("features", missing.len() as u64, 0);
    let mut looked = 0;
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(2);
        // A closed channel means that the loop below ended early.
        scope.spawn(move || missing.iter().try_for_each(|&step| send.send((step, make(step))).ok()));
        for (step, batches) in receive {
            for (index, micro) in indices
                .clone()
                .zip(&batches?)
                .filter(|&(index, _)| !store.has(step, index))
            {
                store.put(step, index, look(micro))?;
                looked += 1;
            }
            progress.inc(1);
        }
        Ok::<_, SessionError>(())
    })?;
    progress.finish();
    tracing::info!(
        computed = looked,
        "features of the frozen backbone and the CLIP teacher"
    );
    Ok(())
}

/// Runs a stage from where its session stands; returns the weights it ends with.
pub(super) fn run<B: Kernels>(
    mut session: Session<B>,
    steps: &Steps,
    recipe: &Recipe,
    feed: &Feed,
    teachers: &mut Teachers<B>,
    rate: &dyn Fn(&str) -> f32,
) -> Result<Weights, SessionError> {
    let &Steps { stage, number, .. } = steps;
    let sam_teacher = (recipe.losses.labelled < 1.0).then(|| teachers.sam_at(&recipe.sam));
    let per_process = stage.accumulate;
    let first = session.processes().rank() * per_process;
    let mut maker = Maker::new(recipe, feed, stage, number, steps.masks, steps.own_points);
    maker.per_step = session.processes().count() * per_process;
    maker.for_tower = matches!(teachers.clip, ClipTeacher::Tower(_));
    let native = recipe.sam.image_size;
    let make = |step: u64| -> Result<Vec<MicroBatch>, FeedError> {
        let mut batches = Vec::new();
        for index in first..first + per_process {
            let Some(separate) = &stage.separate else {
                batches.push(maker.make(step, index, Serves::Both, native, stage.batch)?);
                continue;
            };
            let mut rng = feed.rng(number | SIZES, step, index);
            let size = separate.clip[rng.random_range(0..separate.clip.len())];
            batches.push(maker.make(step, index, Serves::Clip, size.side, size.batch)?);
            if separate.sam_batch > 0 {
                batches.push(maker.make(step, index, Serves::Sam, native, separate.sam_batch)?);
            }
        }
        Ok(batches)
    };
    let distinct = stage.repeat.unwrap_or(u64::MAX).min(stage.steps);
    if let Some(store) = steps.features.as_ref().filter(|_| session.step() < stage.steps) {
        let backbone = Graph::new(&session.weights, teachers.text.device().clone()).with_precision(recipe.precision);
        let look = |micro: &MicroBatch| micro.look(recipe, &backbone, &teachers.clip);
        look_at_all(store, 0..distinct, first..first + per_process, &make, look)?;
    }
    let batch = |step: u64| {
        let step = step % distinct.max(1);
        let mut batches = make(step)?;
        if let Some(store) = &steps.features {
            for (index, micro) in (first..).zip(&mut batches) {
                micro.features = store.get(step, index);
            }
        }
        Ok(batches)
    };
    if let Some(watch) = &stage.watch {
        let masks = BoxMasks::new(feed, &recipe.sam, recipe.export.points, watch.photos);
        let device = teachers.text.device().clone();
        session.watch_with(Box::new(move |weights| masks.iou::<B>(weights, &device)));
    }
    session.run(stage, &recipe.optimizer, rate, batch, |graph, micro: MicroBatch| {
        micro.loss(graph, recipe, teachers, sam_teacher.as_ref())
    })?;
    Ok(session.weights)
}

/// Added to a stage's number for the random stream of the sizes.
const SIZES: u64 = 1 << 8;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::teachers::clip_config;

    fn shipped(name: &str) -> Recipe {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        Recipe::read(&models.join(name).join("recipe.toml")).unwrap()
    }

    /// The rates of all weights of the merged model whose names begin so, each once.
    fn rates(recipe: &Recipe, prefix: &str, rate: &dyn Fn(&str) -> f32) -> Vec<f32> {
        let names = inventory::merged(&recipe.merged()).into_keys();
        let mut rates: Vec<f32> = names.filter(|n| n.starts_with(prefix)).map(|n| rate(&n)).collect();
        rates.dedup();
        rates
    }

    #[test]
    fn backbone_and_sam_head_of_the_papers_recipe_learn_at_a_tenth_of_the_rate_and_in_stage_2_alone() {
        let recipe = shipped("vit-b");
        let (distill, adapt) = (distill_rate(&recipe), adapt_rate(recipe.adapt.as_ref().unwrap()));
        let stages: [&dyn Fn(&str) -> f32; 3] = [&probe_rate, &distill, &adapt];
        for (prefix, expected) in [
            ("clip_head.", [1.0, 1.0, 1.0]),
            ("image_encoder.", [0.0, 0.1, 0.0]),
            ("mask_decoder.", [0.0, 0.1, 0.0]),
            ("prompt_encoder.", [0.0; 3]),
            ("transformer.", [0.0; 3]),
            ("token_embedding.", [0.0; 3]),
            ("text_projection", [0.0; 3]),
            ("logit_scale", [0.0; 3]),
        ] {
            let found = stages.map(|rate| rates(&recipe, prefix, rate));
            assert_eq!(found, expected.map(|rate| vec![rate]), "{prefix}");
        }
    }

    #[test]
    fn what_else_learns_in_stages_2_and_3_is_what_the_recipe_says() {
        let mut recipe = shipped("nano");
        assert_eq!(rates(&recipe, "transformer.", &distill_rate(&recipe)), [0.0]);
        assert_eq!(rates(&recipe, "logit_scale", &distill_rate(&recipe)), [1.0]);
        recipe.losses.train_text = true;
        for part in ["transformer.", "token_embedding.", "text_projection"] {
            assert_eq!(rates(&recipe, part, &distill_rate(&recipe)), [1.0], "{part}");
        }
        let adapt = recipe.adapt.as_mut().unwrap();
        (adapt.mask_decoder_rate, adapt.backbone_rate) = (0.5, 0.25);
        let adapt = adapt.clone();
        for (prefix, expected) in [("mask_decoder.", 0.5), ("image_encoder.", 0.25), ("clip_head.", 1.0)] {
            assert_eq!(rates(&recipe, prefix, &adapt_rate(&adapt)), [expected], "{prefix}");
        }
    }

    #[test]
    fn the_student_begins_as_the_teachers_with_copies_of_the_last_backbone_block_as_its_clip_head() {
        let mut recipe = shipped("nano");
        let sam = &mut recipe.sam;
        (sam.image_size, sam.embed_dim, sam.depth, sam.num_heads) = (64, 16, 2, 2);
        (sam.stem, sam.global_attn_indexes, sam.rel_pos) = (vec![4, 4, 8, 16], vec![1], true);
        recipe.clip_head.layers = 2;
        let sam = initial::weights(&inventory::sam(&recipe.sam), 1);
        let clip = initial::weights(&inventory::clip(&clip_config(&recipe)), 2);
        let student = student(&recipe, &sam, &clip);
        assert_eq!(
            student.keys().collect::<Vec<_>>(),
            inventory::merged(&recipe.merged()).keys().collect::<Vec<_>>()
        );

        let last = "image_encoder.blocks.1.";
        let of_block: Vec<&str> = sam.keys().filter_map(|name| name.strip_prefix(last)).collect();
        assert!(of_block.contains(&"attn.rel_pos_h") && of_block.contains(&"mlp.lin1.weight"));
        for layer in ["clip_head.blocks.0.", "clip_head.blocks.1."] {
            let head = student.keys().filter_map(|name| name.strip_prefix(layer));
            assert_eq!(head.collect::<Vec<_>>(), of_block, "{layer}");
            for name in &of_block {
                assert_eq!(
                    student[&format!("{layer}{name}")],
                    sam[&format!("{last}{name}")],
                    "{layer}{name}"
                );
            }
        }
        let first = &sam["image_encoder.blocks.0.attn.qkv.weight"];
        assert_ne!(&student["clip_head.blocks.0.attn.qkv.weight"], first);
        assert!(
            sam.iter().all(|(name, values)| student[name] == *values),
            "the SAM teacher"
        );
        for name in inventory::text(&recipe.text, recipe.clip_head.text_dim).keys() {
            assert_eq!(student[name], clip[name], "{name}");
        }
        assert_eq!(student["logit_scale"].data, [recipe.losses.logit_scale.ln()]);
    }
}
