//! Departure: after everything else, neck and mask decoder learn to answer the questions that the daemon asks.
//!
//! A patch of 16 pixels has one token, which says little of where an edge runs through it; so the stage may add a short path
//! from the pixels to the neck's output ([`SamConfig::detail`](super::model::SamConfig::detail)), silent at first. Backbone, CLIP head and text tower stand still, so what the CLIP head says does not change. Its scores of a view become
//! prompts as on a camera, and the labels say what masks are right ([`questions`](super::questions)). A share of the prompts are points and boxes
//! as in the earlier stages, so that the SAM head does not forget them.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::contract::Manifest;
use crate::text::tokenizer::Tokenizer;
use crate::train::autodiff::Graph;
use crate::train::export;
use crate::train::feed::{Draw, Feed, Item, PromptBatch, SCALES};
use crate::train::initial;
use crate::train::kernels::Kernels;
use crate::train::model::{clip_head, encoder, inventory};
use crate::train::ops::Ops;
use crate::train::questions::{Question, answered, names_to_ask};
use crate::train::recipe::{Recipe, Sharpen, StageName};
use crate::train::sam_loss;
use crate::train::session::{RunFolder, SessionError, StepLoss};
use crate::train::text_bank::TextBank;
use crate::train::weights::Weights;
use crate::vision::features::Features;
use crate::vision::geometry::{FrameSize, Letterbox};
use crate::vision::query::{PromptRules, Queries, ScoreMap, score};

/// Stage number, for random streams.
const SHARPEN: u64 = 7;

/// Points and boxes per picture that are practised beside the daemon's prompts, and their weight in the loss.
const PRACTISED: usize = 2;
const PRACTICE: f32 = 0.25;

/// Crops of half the views; the others show what the daemon sees, nearly the whole photo.
const NEARLY_WHOLE: (f32, f32) = (0.85, 1.0);

/// Score thresholds that prompts are cut at: users set their own.
const THRESHOLDS: (f32, f32) = (0.25, 0.6);

/// The input of one pass.
struct Views {
    items: Vec<Item>,
    /// What is asked of each, and at which threshold.
    asked: Vec<(Vec<String>, f32)>,
    practice: PromptBatch,
    rng: ChaCha8Rng,
}

/// Trains neck and mask decoder of `trained` as the recipe's `[sharpen]` says, if it has that stage; returns the weights of
/// the bundle.
///
/// # Errors
/// [`SessionError`] of the stage.
pub fn sharpen<B: Kernels>(
    recipe: &Recipe,
    feed: &Feed,
    tokenizer: &Tokenizer,
    trained: Weights,
    folder: &RunFolder<B>,
) -> Result<Weights, SessionError> {
    let Some(Sharpen { stage, .. }) = &recipe.sharpen else {
        return Ok(trained);
    };
    let whole = recipe;
    let recipe = &recipe.exported();
    let sam = &recipe.sam;
    let (side, low, points) = (sam.image_size, 4 * sam.grid(), recipe.export.points);
    let mut asker = Asker::<B>::new(recipe, &trained, tokenizer, &folder.device);
    let completed = || {
        let known = |name: &str, _: &[usize]| trained.get(name).map(|values| values.data.clone());
        initial::completed(&inventory::merged(&recipe.merged()), recipe.seed + SHARPEN, known)
    };
    let mut session = folder.session(whole, StageName::Sharpen, completed)?;
    let first = session.processes().rank() * stage.accumulate;
    let micro = session.processes().count() * stage.accumulate;
    let names = feed.names();
    let batch = |step: u64| {
        let micro_batches = (first..first + stage.accumulate).map(|index| {
            let slots = index * stage.batch..(index + 1) * stage.batch;
            let made = feed.slots(slots, |slot| {
                let mut rng = feed.rng(SHARPEN, step, slot);
                let draw = Draw::Any { unlabelled: 0.0 };
                let sample = feed.sample(SHARPEN, step, slot, stage.batch * micro, draw)?;
                let scales = if rng.random_bool(0.5) { SCALES } else { NEARLY_WHOLE };
                let item = feed.item(&sample, side, scales, &mut rng);
                // What is rough says where a thing is, and no mask.
                let labels = item.names.as_ref().filter(|labels| !labels.rough);
                let asked = labels.map(|labels| names_to_ask(labels, &names, &mut rng));
                let threshold = rng.random_range(THRESHOLDS.0..THRESHOLDS.1);
                let mut practice = PromptBatch::default();
                practice.push(&item, PRACTISED, points, low, 0.0, &mut rng);
                Ok((item, (asked.unwrap_or_default(), threshold), practice))
            })?;
            let mut views = Views {
                items: Vec::new(),
                asked: Vec::new(),
                practice: PromptBatch::default(),
                rng: feed.rng(SHARPEN, step, stage.batch * micro + index),
            };
            for (item, asked, practice) in made {
                views.items.push(item);
                views.asked.push(asked);
                views.practice.append(practice);
            }
            Ok(views)
        });
        micro_batches.collect()
    };
    let rate = |name: &str| {
        let learns = ["image_encoder.neck.", "mask_decoder.", encoder::DETAIL];
        let learns = learns.iter().any(|part| name.starts_with(part));
        f32::from(u8::from(learns))
    };
    session.run(stage, &recipe.optimizer, rate, batch, |graph, views: Views| {
        let pixels: Vec<f32> = views.items.iter().flat_map(|i| i.view.pixels.iter().copied()).collect();
        let (tokens, asked) = asker.ask(&views, pixels.clone(), stage.prompts);
        let image = graph.input(pixels, &[stage.batch, 3, side, side]);
        let tokens = graph.input(tokens, &[stage.batch, sam.grid(), sam.grid(), sam.embed_dim]);
        let embeddings = encoder::embeddings(graph, sam, &image, &tokens);
        let (own, iou) = sam_loss::loss(graph, sam, &embeddings, &asked, &recipe.losses);
        let (practice, practised) = sam_loss::loss(graph, sam, &embeddings, &views.practice, &recipe.losses);
        let parts = vec![
            ("sam", graph.values(&own)[0]),
            ("mask iou", iou),
            ("points and boxes iou", practised),
            ("questions", asked.counts.iter().sum()),
        ];
        let total = graph.add(&graph.scale(&own, 1.0 - PRACTICE), &graph.scale(&practice, PRACTICE));
        StepLoss {
            total: graph.scale(&total, 1.0 / micro as f32),
            parts,
        }
    })?;
    Ok(session.weights)
}

/// The frozen part of the model, asking as the daemon does.
struct Asker<'a, B: Kernels> {
    recipe: &'a Recipe,
    frozen: Graph<B>,
    text: TextBank<B>,
    manifest: Manifest,
}

impl<'a, B: Kernels> Asker<'a, B> {
    /// Over `weights` of the `recipe`'s bundle.
    fn new(recipe: &'a Recipe, weights: &Weights, tokenizer: &Tokenizer, device: &B::Device) -> Self {
        Self {
            recipe,
            frozen: Graph::new(weights, device.clone()).with_precision(recipe.precision),
            text: TextBank::new(weights, recipe.merged(), tokenizer.clone(), device.clone()),
            manifest: export::manifest(recipe, weights),
        }
    }

    /// Backbone tokens `[B, g, g, E]` of the views, whose pixels are `[B, 3, S, S]`, and at most `per_image` questions about each.
    fn ask(&mut self, views: &Views, pixels: Vec<f32>, per_image: usize) -> (Vec<f32>, PromptBatch) {
        let config = self.recipe.merged();
        let (side, low) = (config.sam.image_size, 4 * config.sam.grid());
        let image = self.frozen.input(pixels, &[views.items.len(), 3, side, side]);
        let tokens = encoder::tokens(&self.frozen, &config.sam, &image);
        let (patches, _) = clip_head::embed(&self.frozen, &config, &tokens);
        let patches = self.frozen.values(&patches);
        let (mut batch, mut rng) = (PromptBatch::default(), views.rng.clone());
        let each = patches.len() / views.items.len();
        for ((item, (names, threshold)), patches) in views.items.iter().zip(&views.asked).zip(patches.chunks(each)) {
            let mut questions = self.questions(item, patches, names, *threshold);
            questions.shuffle(&mut rng);
            batch.push_questions(&questions, per_image, self.recipe.export.points, low);
        }
        (self.frozen.values(&tokens), batch)
    }

    /// The questions about one view, whose patch embeddings are `[D, n, n]`.
    fn questions(&mut self, item: &Item, patches: &[f32], names: &[String], threshold: f32) -> Vec<Question> {
        let (Some(labels), false) = (&item.names, names.is_empty()) else {
            return Vec::new();
        };
        let scores = self.scores(item, patches, names, threshold);
        let low = self.manifest.encoder.low_res_side();
        let prompts = scores.prompts(&PromptRules::default(), low, self.manifest.decoder.points);
        answered(prompts, names, labels, item.view.side, low)
    }

    fn scores(&mut self, item: &Item, patches: &[f32], names: &[String], threshold: f32) -> ScoreMap {
        let mut embed = |name: &String| {
            let embedding = self.text.embed(name).expect("names of classes fit the context");
            embedding.to_vec()
        };
        let asked: Vec<_> = names.iter().map(|name| (embed(name), Some(threshold))).collect();
        let background: Vec<_> = self.manifest.background.iter().map(&mut embed).collect();
        let width = self.manifest.encoder.embed_dim;
        let queries = Queries::new(width, &asked, &background).expect("embeddings are as wide as the model's");
        let features = Features {
            patch_embeddings: patches.to_vec(),
            ..Features::default()
        };
        let (width, height) = item.view.content;
        let content = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let frame = FrameSize::new(content(width), content(height)).expect("a view shows at least a pixel");
        let letterbox = Letterbox::fit(frame, item.view.side);
        score(&features, &queries, &self.manifest, letterbox).expect("embeddings are as wide as the model's")
    }
}
