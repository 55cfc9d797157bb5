//! One forward and backward pass of stages 1 to 3 and of `[finetune]`: pictures of one size, and the losses that they serve.

use std::collections::HashMap;

use burn_backend::tensor::FloatTensor;
use rand::RngExt as _;

use crate::text::templates::TEMPLATES;
use crate::train::autodiff::Graph;
use crate::train::dataset::augment::{Colours, Fit, view};
use crate::train::distill::{ClipTeacher, Teachers};
use crate::train::feed::{Draw, Feed, FeedError, Item, NameTargets, PromptBatch, SAM_PICTURES, SCALES, in_other_words};
use crate::train::frozen::Features;
use crate::train::kernels::Kernels;
use crate::train::loss::cosine;
use crate::train::model::{clip, clip_head, encoder};
use crate::train::ops::Ops;
use crate::train::recipe::{Recipe, Stage};
use crate::train::region_text::{self, CELLS_PER_PATCH, name_weights};
use crate::train::sam_loss;
use crate::train::score_prompts::{Scores, mix_teacher, prompts_from_scores};
use crate::train::session::{StepLoss, Tape};
use crate::train::teachers::{CLIP_NORMALISATION, clip_config};
use crate::train::weights::Values;

/// Which losses a micro-batch serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// All of them.
    Both,
    /// L_CLIP and the region-text loss; any size.
    Clip,
    /// L_SAM; the native size.
    Sam,
}

/// The input of one pass.
pub struct MicroBatch {
    serves: Serves,
    /// Side of the pictures, pixels.
    side: usize,
    /// Side of the patch grid.
    patches: usize,
    /// Factor on the loss, so that the micro-batches of a step average.
    share: f32,
    /// What the frozen backbone and the CLIP teacher say of the pictures, where that is known.
    pub features: Option<Features>,
    items: Vec<Item>,
    teacher_pixels: Vec<f32>,
    prompts: PromptBatch,
    targets: NameTargets,
    /// The word that stands for each name of `targets`.
    words: Vec<String>,
    template: &'static str,
    /// Seed of points that are drawn from the CLIP head's scores; none if they are not.
    points_seed: Option<u64>,
}

/// Makes the micro-batches of one stage.
pub struct Maker<'a> {
    recipe: &'a Recipe,
    feed: &'a Feed,
    stage: &'a Stage,
    number: u64,
    masks: f64,
    own_points: bool,
    /// Micro-batches of a step, those of all processes together.
    pub per_step: usize,
    /// Whether the pictures are shown to a CLIP teacher's tower, at its size.
    pub for_tower: bool,
    base: Vec<String>,
    name_weights: HashMap<String, f32>,
}

impl<'a> Maker<'a> {
    /// For stage `number`, a share `masks` of whose prompts are masks; with `own_points` their points come from the CLIP
    /// head's scores.
    #[must_use]
    pub fn new(
        recipe: &'a Recipe,
        feed: &'a Feed,
        stage: &'a Stage,
        number: u64,
        masks: f64,
        own_points: bool,
    ) -> Self {
        Self {
            recipe,
            feed,
            stage,
            number,
            masks,
            own_points,
            per_step: stage.accumulate,
            for_tower: true,
            base: feed.names(),
            // Every mask is decoded for them.
            name_weights: match recipe.losses.region_text > 0.0 {
                true => name_weights(feed, recipe.losses.least_weight),
                false => HashMap::new(),
            },
        }
    }

    /// Micro-batch `index` of `step`: a function of its arguments, the recipe and the photos alone.
    ///
    /// # Errors
    /// [`FeedError`] of a picture.
    pub fn make(
        &self,
        step: u64,
        index: usize,
        serves: Serves,
        side: usize,
        batch: usize,
    ) -> Result<MicroBatch, FeedError> {
        let Self {
            recipe, feed, stage, ..
        } = *self;
        let number = if serves == Serves::Sam {
            self.number | SAM_PICTURES
        } else {
            self.number
        };
        let largest = stage.largest_batch();
        let per_step = largest * self.per_step;
        let mut rng = feed.rng(number, step, per_step + index);
        let mut micro = MicroBatch {
            serves,
            side,
            patches: recipe.merged().patch_grid(side),
            share: 1.0 / self.per_step as f32,
            features: None,
            items: Vec::new(),
            teacher_pixels: Vec::new(),
            prompts: PromptBatch::default(),
            targets: NameTargets::default(),
            words: Vec::new(),
            template: TEMPLATES[rng.random_range(0..TEMPLATES.len())],
            points_seed: Some(rng.random()).filter(|_| self.own_points),
        };
        let unlabelled = recipe.unlabelled_share;
        let draw = match serves {
            Serves::Both => Draw::Any { unlabelled },
            Serves::Clip => Draw::Clip { unlabelled },
            Serves::Sam => Draw::Sam,
        };
        let teacher_side = recipe.clip_teacher.image_size;
        let (low, points) = (4 * recipe.sam.grid(), recipe.export.points);
        let first = index * largest;
        let views = feed.slots(first..first + batch, |slot| {
            let mut rng = feed.rng(number, step, slot);
            let sample = feed.sample(number, step, slot, per_step, draw)?;
            let item = feed.item(&sample, side, SCALES, &mut rng);
            let mut for_teacher = Vec::new();
            if serves != Serves::Sam && self.for_tower {
                let (region, fit) = (item.view.region, Fit::Stretch);
                for_teacher = view(&sample, region, teacher_side, fit, Colours::SAME, &CLIP_NORMALISATION).pixels;
            }
            let mut prompts = PromptBatch::default();
            if serves != Serves::Clip && stage.prompts > 0 {
                prompts.push(&item, stage.prompts, points, low, self.masks, &mut rng);
            }
            Ok((item, for_teacher, prompts))
        })?;
        for (item, for_teacher, prompts) in views {
            micro.items.push(item);
            micro.teacher_pixels.extend(for_teacher);
            micro.prompts.append(prompts);
        }
        let (losses, cells) = (&recipe.losses, micro.patches * CELLS_PER_PATCH);
        micro.targets = NameTargets::new(&micro.items, &self.base, cells, losses.part_share, |name| {
            self.name_weights.get(name).copied().unwrap_or(1.0)
        });
        micro.targets.add_strangers(losses.strangers, &mut rng);
        let spoken = |name: &String| {
            let word = if losses.synonyms {
                in_other_words(name, &mut rng)
            } else {
                name
            };
            word.to_owned()
        };
        micro.words = micro.targets.names.iter().map(spoken).collect();
        Ok(micro)
    }
}

impl MicroBatch {
    /// `[B, 3, S, S]`.
    fn image<B: Kernels>(&self, graph: &Graph<B>) -> FloatTensor<B> {
        let (b, side) = (self.items.len(), self.side);
        let pixels = self.items.iter().flat_map(|i| i.view.pixels.iter().copied());
        graph.input(pixels.collect(), &[b, 3, side, side])
    }

    /// `[B, D]`: image embeddings of the CLIP teacher, unit norm.
    fn teacher<B: Kernels>(&self, recipe: &Recipe, clip: &ClipTeacher<B>) -> Vec<f32> {
        match clip {
            ClipTeacher::Tower(clip) => {
                let side = recipe.clip_teacher.image_size;
                let image = clip.input(self.teacher_pixels.clone(), &[self.items.len(), 3, side, side]);
                clip.values(&clip.unit_norm(&clip::encode_image(clip, &clip_config(recipe), &image)))
            }
            ClipTeacher::Before(merged) => {
                let config = recipe.merged();
                let tokens = encoder::tokens(merged, &config.sam, &self.image(merged));
                merged.values(&clip_head::embed(merged, &config, &tokens).1)
            }
        }
    }

    /// What a frozen `backbone` and the CLIP teacher say of the pictures.
    #[must_use]
    pub fn look<B: Kernels>(&self, recipe: &Recipe, backbone: &Graph<B>, clip: &ClipTeacher<B>) -> Features {
        let config = recipe.merged();
        let tokens = encoder::tokens(backbone, &config.sam, &self.image(backbone));
        let tokens = clip_head::pooled(backbone, &config, &tokens);
        Features {
            tokens: Values {
                shape: backbone.shape(&tokens),
                data: backbone.values(&tokens),
            },
            teacher: Values {
                shape: vec![self.items.len(), config.clip_head.text_dim],
                data: self.teacher(recipe, clip),
            },
        }
    }

    /// Runs the model and the teachers; the losses by the recipe's weights.
    pub fn loss<B: Kernels>(
        mut self,
        graph: &Graph<Tape<B>>,
        recipe: &Recipe,
        teachers: &mut Teachers<B>,
        sam_teacher: Option<&Graph<B>>,
    ) -> StepLoss<B> {
        let (config, losses) = (recipe.merged(), &recipe.losses);
        let (sam, b) = (&config.sam, self.items.len());
        let features = self.features.take();
        let (image, tokens) = match &features {
            Some(Features { tokens, .. }) => (None, graph.input(tokens.data.clone(), &tokens.shape)),
            None => {
                let image = self.image(graph);
                let tokens = encoder::tokens(graph, sam, &image);
                (Some(image), tokens)
            }
        };
        let mut total = graph.input(vec![0.0], &[1]);
        let mut parts = Vec::new();
        let mut add = |loss: &_, weight: f32| {
            total = graph.add(&total, &graph.scale(&graph.reshape(loss, &[1]), self.share * weight));
        };

        let asked = self.serves != Serves::Clip && !self.prompts.counts.is_empty() && losses.sam > 0.0;
        let image = image.filter(|_| asked);
        let mut scores = None;
        if self.serves != Serves::Sam || (image.is_some() && losses.region_text > 0.0) {
            let pooled = match &features {
                Some(_) => tokens.clone(),
                None => clip_head::pooled(graph, &config, &tokens),
            };
            let (patch_embeddings, image_embedding) = clip_head::embed_pooled(graph, &config, &pooled);
            if self.serves != Serves::Sam {
                let known = features.map(|features| features.teacher.data);
                let expected = known.unwrap_or_else(|| self.teacher(recipe, &teachers.clip));
                let expected = graph.input(expected, &[b, config.clip_head.text_dim]);
                let distance = graph.sum(&cosine(graph, &image_embedding, &expected), 0);
                let distance = graph.scale(&distance, 1.0 / b as f32);
                parts.push(("clip", graph.values(&distance)[0]));
                add(&distance, losses.clip);
            }
            if losses.region_text > 0.0 {
                let tower = (&mut teachers.text, &teachers.tokenizer);
                let table = region_text::word_table(graph, recipe, &self.words, self.template, tower);
                let found = region_text::loss(graph, &patch_embeddings, &self.targets, &table, self.patches);
                if self.serves != Serves::Sam {
                    parts.extend([
                        ("region-text", graph.values(&found.loss)[0]),
                        ("cell accuracy", found.accuracy),
                    ]);
                    add(&found.loss, losses.region_text);
                }
                scores = Some(found.logits);
            }
        }
        if let Some(image) = image {
            if let Some(logits) = &scores {
                let scores = Scores {
                    items: &self.items,
                    targets: &self.targets,
                    logits,
                    n: self.patches,
                };
                prompts_from_scores(&mut self.prompts, &scores, sam, self.points_seed);
            }
            if let Some(teacher) = sam_teacher {
                let image = self.image(teacher);
                let tokens = encoder::tokens(teacher, sam, &image);
                let embeddings = encoder::embeddings(teacher, sam, &image, &tokens);
                let (masks, _) = sam_loss::decode(teacher, sam, &embeddings, &self.prompts);
                mix_teacher(&mut self.prompts, &teacher.values(&masks), losses.labelled);
            }
            let embeddings = encoder::embeddings(graph, sam, &image, &tokens);
            let (loss, iou) = sam_loss::loss(graph, sam, &embeddings, &self.prompts, losses);
            parts.extend([("sam", graph.values(&loss)[0]), ("mask iou", iou)]);
            add(&loss, losses.sam);
        }
        StepLoss { total, parts }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::text::tokenizer::Tokenizer;
    use crate::train::dataset::augment::{Region, View};
    use crate::train::initial;
    use crate::train::model::inventory;
    use crate::train::text_bank::TextBank;
    use crate::train::weights::Weights;

    fn shipped(name: &str) -> Recipe {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        Recipe::read(&models.join(name).join("recipe.toml")).unwrap()
    }

    /// The shipped recipe, small, with the paper's losses.
    fn tiny() -> Recipe {
        let mut recipe = shipped("nano");
        let sam = &mut recipe.sam;
        (sam.image_size, sam.embed_dim, sam.depth, sam.num_heads) = (64, 16, 1, 2);
        (sam.stem, sam.global_attn_indexes) = (vec![4, 4, 8, 16], vec![0]);
        let clip = &mut recipe.clip_teacher;
        (clip.image_size, clip.width, clip.layers, clip.head_width) = (32, 16, 1, 8);
        recipe.losses = shipped("vit-b").losses;
        recipe
    }

    /// Two pictures of 64 px without labels, one prompt each, a foreground point; the labelled mask is `label` everywhere.
    fn micro(serves: Serves, label: f32) -> MicroBatch {
        let region = Region {
            x: 0.0,
            y: 0.0,
            width: 64.0,
            height: 64.0,
            flip: false,
        };
        let pixels = |count: usize, pace: f32| (0..count).map(|i| (i as f32 * pace).sin()).collect::<Vec<_>>();
        let item = |pace: f32| Item {
            view: View {
                side: 64,
                content: (64, 64),
                pixels: pixels(3 * 64 * 64, pace),
                classes: None,
                segments: None,
                region,
            },
            names: None,
            text: None,
        };
        MicroBatch {
            serves,
            side: 64,
            patches: 4,
            share: 0.5,
            features: None,
            items: vec![item(0.011), item(0.37)],
            teacher_pixels: pixels(2 * 3 * 32 * 32, 0.05),
            prompts: PromptBatch {
                per_image: 1,
                coords: vec![20.0, 40.0, 50.0, 10.0],
                labels: vec![1.0; 2],
                mask: vec![0.0; 2 * 256],
                has_mask: vec![0.0; 2],
                target: vec![label; 2 * 256],
                known: Vec::new(),
                counts: vec![1.0; 2],
                named: vec![None; 2],
            },
            targets: NameTargets::default(),
            words: Vec::new(),
            template: TEMPLATES[0],
            points_seed: None,
        }
    }

    /// Teachers and a student that agrees with neither.
    struct Bench {
        student: Graph<Tape<Flex>>,
        teachers: Teachers<Flex>,
        sam: Graph<Flex>,
    }

    impl Bench {
        fn new(recipe: &Recipe) -> Self {
            let sam = initial::weights(&inventory::sam(&recipe.sam), 1);
            let clip = initial::weights(&inventory::clip(&clip_config(recipe)), 2);
            let student: Weights = initial::weights(&inventory::merged(&recipe.merged()), 3);
            let tokenizer = Tokenizer::shortened(recipe.merges).unwrap();
            let text = TextBank::new(&clip, recipe.merged(), tokenizer.clone(), FlexDevice);
            Self {
                student: Graph::new(&student, FlexDevice),
                sam: Graph::new(&sam, FlexDevice),
                teachers: Teachers::new(recipe, sam, &clip, text, tokenizer),
            }
        }

        /// Total, L_CLIP and L_SAM of one micro-batch; parts that it does not serve are none.
        fn loss(&mut self, recipe: &Recipe, micro: MicroBatch) -> (f32, Option<f32>, Option<f32>) {
            let StepLoss { total, parts } = micro.loss(&self.student, recipe, &mut self.teachers, Some(&self.sam));
            let part = |name| parts.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            (self.student.values(&total)[0], part("clip"), part("sam"))
        }
    }

    #[test]
    fn the_total_is_its_share_of_the_parts_by_the_recipes_weights_which_are_the_papers_1_and_10() {
        let mut recipe = tiny();
        let mut bench = Bench::new(&recipe);
        assert_eq!((recipe.losses.clip, recipe.losses.sam), (1.0, 10.0));
        for [clip_weight, sam_weight] in [[1.0, 10.0], [0.5, 3.0]] {
            (recipe.losses.clip, recipe.losses.sam) = (clip_weight, sam_weight);
            for (serves, serves_clip, serves_sam) in [
                (Serves::Both, true, true),
                (Serves::Clip, true, false),
                (Serves::Sam, false, true),
            ] {
                let (total, clip, sam) = bench.loss(&recipe, micro(serves, 0.0));
                assert_eq!((clip.is_some(), sam.is_some()), (serves_clip, serves_sam), "{serves:?}");
                let (clip, sam) = (clip.unwrap_or(0.0), sam.unwrap_or(0.0));
                let expected = 0.5 * (clip_weight * clip + sam_weight * sam);
                assert!(
                    expected > 0.01 && (total - expected).abs() < 1e-5 * expected,
                    "{serves:?}: {total} of CLIP {clip} and SAM {sam} by {clip_weight} and {sam_weight}"
                );
            }
        }
    }

    #[test]
    fn l_sam_asks_for_the_sam_teachers_masks_as_far_as_the_labelled_ones_do_not_count() {
        let mut recipe = tiny();
        let mut bench = Bench::new(&recipe);
        let mut sam = |labelled: f32, label: f32| {
            recipe.losses.labelled = labelled;
            bench.loss(&recipe, micro(Serves::Sam, label)).2.unwrap()
        };
        assert_eq!(sam(0.0, 0.0), sam(0.0, 1.0), "the paper: labels are not asked");
        assert_ne!(sam(0.5, 0.0), sam(0.5, 1.0));
        assert_ne!(sam(0.0, 1.0), sam(1.0, 1.0));
    }

    #[test]
    fn l_clip_is_the_mean_cosine_distance_to_the_clip_teachers_image_embeddings() {
        let recipe = tiny();
        let (mut bench, config) = (Bench::new(&recipe), recipe.merged());
        let micro = || micro(Serves::Clip, 0.0);
        let (_, found, _) = bench.loss(&recipe, micro());
        let graph = &bench.student;
        let tokens = encoder::tokens(graph, &config.sam, &micro().image(graph));
        let ours = graph.values(&clip_head::embed(graph, &config, &tokens).1);
        let theirs = micro().teacher(&recipe, &bench.teachers.clip);
        let cosines: f32 = ours.iter().zip(&theirs).map(|(a, b)| a * b).sum();
        let found = found.unwrap();
        assert!(
            (found - (1.0 - cosines / 2.0)).abs() < 1e-5,
            "{found}, cosines {cosines}"
        );
    }
}
