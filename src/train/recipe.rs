//! A run's recipe: one TOML file with everything that decides the result, besides the data.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::contract::Source;
use crate::train::model::{ClipHeadConfig, MergedConfig, SamConfig, TextConfig, VisionConfig};
use crate::train::optimizer::AdamWConfig;
use crate::train::precision::Precision;

/// The recipe of a merged model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the bundle.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Merges of the shortened vocabulary; 48,894 is CLIP's own.
    pub merges: usize,
    /// Share of drawn scenes among the training samples, 0-1; 1 where no photos are given.
    pub synth_share: f64,
    /// Share of photos without class masks among the photos of stages 1 to 3 and `[finetune]`, 0-1; 0.15 if not given. They are
    /// most of what the CLIP teacher learnt from, so that a high share holds on to it. A SAM batch ([`Separate`]) shows none but those
    /// with segments, whatever the share.
    #[serde(default = "unlabelled_share", skip_serializing_if = "is_usual_share")]
    pub unlabelled_share: f64,
    /// Departures: how pictures are varied beyond random crops, mirroring and colours.
    #[serde(default, skip_serializing_if = "Variation::is_none")]
    pub variation: Variation,
    /// Backbone and SAM head.
    pub sam: SamConfig,
    /// CLIP head.
    pub clip_head: ClipHeadConfig,
    /// Text tower.
    pub text: TextConfig,
    /// The CLIP teacher's image tower.
    pub clip_teacher: VisionConfig,
    /// QuickGELU in both towers of the CLIP teacher (OpenAI's weights ask for it).
    #[serde(default)]
    pub quick_gelu: bool,
    /// What matrix products are computed in, all stages; fp32 if not given. A device may lack the others.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
    /// Optimiser, all stages.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Training the SAM teacher on labelled masks; absent where the teacher is somebody's checkpoint.
    #[serde(default)]
    pub teach_sam: Option<Stage>,
    /// Training the CLIP teacher on captions, labels and labelled regions; absent where the teacher is somebody's
    /// checkpoint.
    #[serde(default)]
    pub teach_clip: Option<Stage>,
    /// Stage 1 of the paper: backbone frozen, CLIP head only.
    pub probe: Stage,
    /// Stage 2 of the paper: backbone, CLIP head and SAM head together.
    pub distill: Stage,
    /// Stage 3 of the paper: the heads get used to the size of the exported bundle. Without it the bundle has the
    /// size of stage 2.
    #[serde(default)]
    pub adapt: Option<Adapt>,
    /// Departure: the text tower alone learns other words for the names, at the end
    /// ([`words`](crate::train::words)). Without it the text tower is the CLIP teacher's, as in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Stage>,
    /// Departure: all of the merged model but the text tower goes on learning from labelled photos, and rehearses the CLIP
    /// teacher, or what it said before ([`finetune`](crate::train::finetune)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Finetune>,
    /// Departure: the SAM head alone learns to answer the daemon's prompts, at the end
    /// ([`sharpen`](crate::train::sharpen)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharpen: Option<Sharpen>,
    /// Weights of the losses in stages 1 to 3.
    pub losses: LossWeights,
    /// The fixed shapes of the exported graphs, and what the daemon needs to know.
    pub export: ExportConfig,
}

/// The stages, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageName {
    /// The SAM teacher.
    TeachSam,
    /// The CLIP teacher.
    TeachClip,
    /// Stage 1.
    Probe,
    /// Stage 2.
    Distill,
    /// Stage 3.
    Adapt,
    /// Other words for the names.
    Words,
    /// More labelled photos.
    Finetune,
    /// The SAM head on the daemon's prompts.
    Sharpen,
}

impl StageName {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::TeachSam,
        Self::TeachClip,
        Self::Probe,
        Self::Distill,
        Self::Adapt,
        Self::Words,
        Self::Finetune,
        Self::Sharpen,
    ];

    /// The stage's section in the recipe.
    #[must_use]
    pub fn section(self) -> &'static str {
        match self {
            Self::TeachSam => "teach_sam",
            Self::TeachClip => "teach_clip",
            Self::Probe => "probe",
            Self::Distill => "distill",
            Self::Adapt => "adapt",
            Self::Words => "words",
            Self::Finetune => "finetune",
            Self::Sharpen => "sharpen",
        }
    }

    /// Name of the stage's checkpoint in a run's folder, without its extension.
    #[must_use]
    pub fn checkpoint(self) -> &'static str {
        match self {
            Self::TeachSam => "sam_teacher",
            Self::TeachClip => "clip_teacher",
            other => other.section(),
        }
    }
}

/// How pictures are varied in every stage; all 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variation {
    /// Share of the labelled pictures that are cropped around one labelled thing, 0-1.
    pub close_ups: f64,
    /// Share of the pictures that get a thing from another photo pasted in, 0-1.
    pub pasted: f64,
}

impl Variation {
    /// Whether pictures are varied no further.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// One training stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Optimiser steps.
    pub steps: u64,
    /// Samples per step.
    pub batch: usize,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// Stage 2 and `[finetune]`: factor on the learning rate of backbone and SAM head (the paper: 0.1).
    #[serde(default = "one")]
    pub backbone_rate: f32,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Prompts per image for the SAM head.
    #[serde(default)]
    pub prompts: usize,
    /// Departure: the stage ends with the exponential moving average of its weights over the steps; the share that
    /// each step keeps, for example 0.999. Absent: the weights of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<f32>,
    /// Micro-batches whose gradients are averaged before the optimiser moves: the batch of a step is this many times
    /// `batch`, the memory is that of one.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub accumulate: usize,
    /// The paper's step: a CLIP batch and a SAM batch of different pictures. Absent: one batch of `batch` pictures serves
    /// all losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separate: Option<Separate>,
    /// Stage 1: its batches come again after so many steps, and what the frozen backbone and the CLIP teacher say of them is
    /// computed once and kept in the run's folder. Absent: new pictures and new crops in every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<u64>,
    /// Early stop by the forgetting measure. Absent: all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
}

impl Stage {
    /// Whether no batch serves the SAM head.
    #[must_use]
    pub fn is_clip_alone(&self) -> bool {
        self.prompts == 0 && !self.has_sam_batch()
    }

    /// Whether a step has a batch for the SAM head alone.
    #[must_use]
    pub fn has_sam_batch(&self) -> bool {
        self.separate.as_ref().is_some_and(|separate| separate.sam_batch > 0)
    }

    /// Whether a SAM head learns masks in it, where L_SAM has a weight.
    fn asks_for_masks(&self) -> bool {
        self.prompts > 0 && self.separate.as_ref().is_none_or(|separate| separate.sam_batch > 0)
    }

    /// Most pictures of one micro-batch.
    #[must_use]
    pub fn largest_batch(&self) -> usize {
        self.separate.as_ref().map_or(self.batch, |separate| {
            let clip = separate.clip.iter().map(|size| size.batch);
            clip.chain([separate.sam_batch]).max().unwrap_or(0)
        })
    }
}

/// A step of two kinds of batches (paper section 3; sizes as in CVNets' variable batch sampler).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Separate {
    /// Sizes of the CLIP batch, one of them drawn for every micro-batch; the paper: 224 and 448 px in stage 2.
    pub clip: Vec<BatchSize>,
    /// Pictures of the SAM batch, of photos with class masks or segments, at the model's own size; 0 for none, which is the
    /// paper's stage 3.
    pub sam_batch: usize,
}

/// Side and number of the pictures of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSize {
    /// Side in pixels, a multiple of 16.
    pub side: usize,
    /// Pictures, at least 1.
    pub batch: usize,
}

/// When a stage ends early because the student forgets what SAM knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Steps between two looks.
    pub every: u64,
    /// Pictures of the validation split that are looked at.
    pub photos: usize,
    /// Points of mask IoU from box prompts that the student may lose against its best look before the stage ends with
    /// the weights of that look.
    pub tolerance: f32,
}

fn once() -> usize {
    1
}

fn is_once(value: &usize) -> bool {
    *value == once()
}

fn unlabelled_share() -> f64 {
    0.15
}

fn is_usual_share(share: &f64) -> bool {
    *share == unlabelled_share()
}

/// Stage 3: resolution adaptation. The paper trains the CLIP head alone (`mask_decoder_rate` and
/// `backbone_rate` 0).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapt {
    /// Side of the pictures in this stage and of the bundle's input, pixels; a multiple of 16.
    pub image_size: usize,
    /// Departure: factor on the learning rate of the mask decoder, which learns to sharpen what the CLIP head says.
    #[serde(default)]
    pub mask_decoder_rate: f32,
    /// Share of the SAM head's prompts that are made as the daemon makes them: points drawn from the CLIP head's
    /// scores, and the scores as mask prompt; 0-1.
    #[serde(default)]
    pub own_prompts: f64,
    /// Departure: factor on the learning rate of backbone and neck.
    #[serde(default)]
    pub backbone_rate: f32,
    /// Steps, batch and rate.
    pub stage: Stage,
}

/// The merged model goes on learning from labelled photos.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    /// Share of the SAM head's prompts that are made as the daemon makes them, as in [`Adapt::own_prompts`]; 0-1.
    #[serde(default)]
    pub own_prompts: f64,
    /// Steps, batch and rate.
    pub stage: Stage,
}

/// The last stage: neck and mask decoder learn to answer the prompts that the daemon makes of the CLIP head's scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharpen {
    /// [`SamConfig::detail`] of the bundle, which this stage adds to the model and trains.
    ///
    /// [`SamConfig::detail`]: crate::train::model::SamConfig::detail
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<usize>,
    /// Steps, batch and rate; `prompts` counts those per picture.
    pub stage: Stage,
}

fn one() -> f32 {
    1.0
}

/// Weights of the losses. The paper's total is L_CLIP + 10 L_SAM with L_SAM against the SAM teacher alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossWeights {
    /// L_CLIP: cosine distance of image embeddings to the CLIP teacher's.
    pub clip: f32,
    /// L_SAM: `focal` × focal + `entropy` × cross-entropy + dice, and the squared error of the predicted IoU.
    pub sam: f32,
    /// Weight of the focal loss in L_SAM; SAM: 20.
    pub focal: f32,
    /// Departure: weight of the cross-entropy in L_SAM; SAM: 0.
    pub entropy: f32,
    /// Share of the labelled mask in L_SAM's target, the rest is the SAM teacher's; 0 is the paper.
    pub labelled: f32,
    /// Departure from the paper: cross-entropy of patch embeddings against class-name embeddings on
    /// labelled masks; 0 is the paper.
    pub region_text: f32,
    /// Departure from the paper: the text tower learns from the region-text loss in stage 2; false is the
    /// paper. A tower from few captions puts names too close together (measured: cosine 0.96 between
    /// "window" and "car"), and patches cannot be told apart by it.
    #[serde(default)]
    pub train_text: bool,
    /// Departure: weight of the CLIP teacher's loss that tells class names apart by their words alone: two
    /// templates of one name are positives, other names negatives. 0 is CLIP.
    #[serde(default)]
    pub name_contrast: f32,
    /// Logit scale that the student starts from; CLIP's models end near 100.
    pub logit_scale: f32,
    /// Departure: the share of a part in the region-text target of its pixels where the collection annotates the whole
    /// too (a window in a building); the whole gets the rest and is the second-best name. Absent: part and whole never
    /// compete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_share: Option<f32>,
    /// Departure: the region-text loss and the CLIP teacher's words take a random word of those that people use for a
    /// name (car, automobile, vehicle).
    #[serde(default, skip_serializing_if = "is_false")]
    pub synonyms: bool,
    /// Departure: nouns per step that no labelled pixel shows and that compete with the names in the region-text loss,
    /// so that asking for them stays without an answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub strangers: usize,
    /// Least weight of a name, or of the background, in the region-text loss; the weight is the inverse root of its share of
    /// the labelled pixels, and 2 at most. With a high least weight the frequent ones drown the others.
    #[serde(default = "half", skip_serializing_if = "is_half")]
    pub least_weight: f32,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn half() -> f32 {
    0.5
}

fn is_half(value: &f32) -> bool {
    *value == half()
}

/// What the bundle fixes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// Prompts per decoder run, Q.
    pub prompts: usize,
    /// Points per prompt, N.
    pub points: usize,
    /// Texts per text encoder run, T.
    pub texts: usize,
    /// Prompts that compete with every query.
    pub background: Vec<String>,
    /// Default score threshold, 0-1.
    pub threshold: f32,
    /// Sides in pixels of further sizes, from the same weights with the position tables resized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<usize>,
    /// What the weights come from, and its terms.
    #[serde(default)]
    pub source: Vec<Source>,
}

/// Why a recipe was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a recipe.
    #[error("{path}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, key and what was expected.
        reason: String,
    },
    /// Values do not go together.
    #[error("{path}: {what}: found {found}, expected {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        what: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// [`RecipeError`] names the file, the key, what was found and what is allowed.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Io {
            path: path.into(),
            source,
        })?;
        let recipe: Self = toml::from_str(&text).map_err(|e| RecipeError::Syntax {
            path: path.into(),
            reason: e.to_string().trim_end().into(),
        })?;
        recipe.check(path)?;
        Ok(recipe)
    }

    fn check(&self, path: &Path) -> Result<(), RecipeError> {
        let sam = &self.sam;
        let stem = 1_usize
            .checked_shl(u32::try_from(sam.stem.len()).unwrap_or(u32::MAX))
            .unwrap_or(0);
        let size = |side: usize| side >= 32 && side.is_multiple_of(16);
        let adapted = self.adapt.as_ref().map_or(sam.image_size, |a| a.image_size);
        let grid = |side: usize| side / 16;
        let pools = |side: usize| grid(side) == self.merged().patch_grid(side) || grid(side).is_multiple_of(2);
        let own_prompts = [
            self.adapt.as_ref().map_or(0.0, |adapt| adapt.own_prompts),
            self.finetune.as_ref().map_or(0.0, |finetune| finetune.own_prompts),
        ];
        let detail = self.sharpen.as_ref().map_or(&[][..], |s| &s.detail);
        let weights = &self.losses;
        let rules: [(&'static str, bool, String, String); 29] = [
            (
                "sam.patch_size",
                sam.patch_size == 16,
                sam.patch_size.to_string(),
                "16".into(),
            ),
            (
                "sam.detail",
                sam.detail.is_empty(),
                format!("{:?}", sam.detail),
                "none: [sharpen] adds it".into(),
            ),
            (
                "sharpen.detail",
                detail.len() <= 4 && detail.iter().all(|&channels| channels > 0),
                format!("{detail:?}"),
                "at most 4 numbers of channels, each at least 1".into(),
            ),
            (
                "batch",
                self.stages().all(|stage| stage.batch > 0 || stage.separate.is_some()),
                format!("{:?}", self.stages().map(|stage| stage.batch).collect::<Vec<_>>()),
                "at least 1 in every stage without separate".into(),
            ),
            (
                "teach_sam.prompts",
                self.teach_sam.as_ref().is_none_or(|stage| stage.prompts > 0),
                self.teach_sam.as_ref().map_or(0, |stage| stage.prompts).to_string(),
                "at least 1".into(),
            ),
            (
                "sharpen.stage.prompts",
                self.sharpen.as_ref().is_none_or(|s| s.stage.prompts > 0),
                self.sharpen.as_ref().map_or(0, |s| s.stage.prompts).to_string(),
                "at least 1".into(),
            ),
            (
                "sam.image_size",
                size(sam.image_size),
                sam.image_size.to_string(),
                "a multiple of 16, at least 32".into(),
            ),
            (
                "adapt.image_size",
                size(adapted),
                adapted.to_string(),
                "a multiple of 16, at least 32".into(),
            ),
            (
                "clip_head.max_grid",
                pools(sam.image_size) && pools(adapted),
                format!(
                    "{} for pictures of {} and {adapted} px",
                    self.clip_head.max_grid, sam.image_size
                ),
                "at least image_size / 16, or an even image_size / 16, which is halved".into(),
            ),
            (
                "sam.window_size",
                sam.window_size > 0 || (0..sam.depth).all(|i| sam.global_attn_indexes.contains(&i)),
                sam.window_size.to_string(),
                "at least 1 where not every block is global".into(),
            ),
            (
                "losses.region_text",
                self.losses.region_text > 0.0 || own_prompts == [0.0; 2],
                self.losses.region_text.to_string(),
                "above 0 with own_prompts, which come from its scores".into(),
            ),
            (
                "own_prompts",
                own_prompts.iter().all(|share| (0.0..=1.0).contains(share)),
                format!("{own_prompts:?} in [adapt] and [finetune]"),
                "0 to 1".into(),
            ),
            (
                "unlabelled_share",
                (0.0..=1.0).contains(&self.unlabelled_share),
                self.unlabelled_share.to_string(),
                "0 to 1".into(),
            ),
            (
                "sam.stem",
                sam.stem.is_empty() || (stem == sam.patch_size && sam.stem.last() == Some(&sam.embed_dim)),
                format!("{:?}", sam.stem),
                format!("empty, or four widths ending in embed_dim {}", sam.embed_dim),
            ),
            (
                "sam.num_heads",
                sam.num_heads > 0 && sam.embed_dim.is_multiple_of(sam.num_heads),
                sam.num_heads.to_string(),
                format!("a divisor of embed_dim {}", sam.embed_dim),
            ),
            (
                "sam.out_chans",
                sam.out_chans.is_multiple_of(8 * sam.decoder_heads.max(1)) && sam.decoder_heads > 0,
                sam.out_chans.to_string(),
                "a multiple of 8 × decoder_heads".into(),
            ),
            (
                "text.vocab_size",
                self.text.vocab_size == self.merges + 514,
                self.text.vocab_size.to_string(),
                format!("merges + 514 = {}", self.merges + 514),
            ),
            (
                "text.context_length",
                self.text.context_length == 77,
                self.text.context_length.to_string(),
                "77".into(),
            ),
            (
                "synth_share",
                (0.0..=1.0).contains(&self.synth_share),
                self.synth_share.to_string(),
                "0 to 1".into(),
            ),
            (
                "variation",
                [self.variation.close_ups, self.variation.pasted]
                    .iter()
                    .all(|share| (0.0..=1.0).contains(share)),
                format!(
                    "close_ups {}, pasted {}",
                    self.variation.close_ups, self.variation.pasted
                ),
                "shares of 0 to 1".into(),
            ),
            (
                "losses.part_share",
                self.losses.part_share.is_none_or(|share| share > 0.5 && share <= 1.0),
                format!("{:?}", self.losses.part_share),
                "above 0.5, at most 1: the part must win".into(),
            ),
            (
                "average",
                self.stages()
                    .all(|stage| stage.average.is_none_or(|kept| (0.0..1.0).contains(&kept))),
                format!("{:?}", self.stages().map(|stage| stage.average).collect::<Vec<_>>()),
                "0 to below 1".into(),
            ),
            (
                "accumulate, watch",
                self.stages()
                    .all(|s| s.accumulate > 0 && s.watch.is_none_or(|w| w.every > 0 && w.photos > 0)),
                format!(
                    "{:?}",
                    self.stages().map(|s| (s.accumulate, s.watch)).collect::<Vec<_>>()
                ),
                "accumulate, watch.every and watch.photos of at least 1".into(),
            ),
            (
                "separate",
                self.teach_sam
                    .iter()
                    .chain(&self.teach_clip)
                    .all(|s| s.separate.is_none() && s.accumulate == 1 && s.watch.is_none())
                    && self
                        .words
                        .iter()
                        .chain(self.sharpen.iter().map(|sharpen| &sharpen.stage))
                        .all(|s| s.separate.is_none() && s.watch.is_none())
                    && self.stages().filter_map(|s| s.separate.as_ref()).all(|separate| {
                        let fits = |c: &BatchSize| size(c.side) && pools(c.side) && c.batch > 0;
                        !separate.clip.is_empty() && separate.clip.iter().all(fits)
                    }),
                format!(
                    "{:?}",
                    self.stages().map(|s| (s.accumulate, &s.separate)).collect::<Vec<_>>()
                ),
                "one or more CLIP sizes, each a multiple of 16 that the CLIP head can pool; not in a teacher's stage, nor in \
                 [words] and [sharpen], which are not watched either, and a teacher's step is one batch"
                    .into(),
            ),
            (
                "separate.sam_batch",
                self.stages()
                    .all(|s| !s.has_sam_batch() || (s.prompts > 0 && weights.sam > 0.0))
                    && !self.probe.has_sam_batch(),
                format!(
                    "{:?} with losses.sam = {}",
                    self.stages()
                        .filter(|s| s.has_sam_batch())
                        .map(|s| format!("{} pictures, {} prompts", s.largest_batch(), s.prompts))
                        .collect::<Vec<_>>(),
                    weights.sam
                ),
                "0, or prompts of at least 1 and losses.sam above 0; 0 in [probe], whose SAM head is frozen".into(),
            ),
            (
                "losses",
                [
                    weights.clip,
                    weights.sam,
                    weights.focal,
                    weights.entropy,
                    weights.region_text,
                    weights.name_contrast,
                ]
                .iter()
                .all(|weight| weight.is_finite() && *weight >= 0.0)
                    && (0.0..=1.0).contains(&weights.labelled)
                    && weights.logit_scale > 0.0
                    && weights.logit_scale.is_finite(),
                format!(
                    "clip {}, sam {}, focal {}, entropy {}, region_text {}, name_contrast {}, labelled {}, logit_scale {}",
                    weights.clip,
                    weights.sam,
                    weights.focal,
                    weights.entropy,
                    weights.region_text,
                    weights.name_contrast,
                    weights.labelled,
                    weights.logit_scale
                ),
                "finite weights of at least 0, labelled of 0 to 1 and a logit_scale above 0".into(),
            ),
            (
                "repeat",
                self.stages().filter(|s| s.repeat.is_some()).count() == usize::from(self.probe.repeat.is_some())
                    && self.probe.repeat.is_none_or(|steps| steps > 0 && self.probe.is_clip_alone()),
                format!(
                    "{:?}, in [probe] with {} prompts",
                    self.stages().map(|s| s.repeat).collect::<Vec<_>>(),
                    self.probe.prompts
                ),
                "at least 1, in [probe] alone, which then has no prompts and no SAM batch".into(),
            ),
            (
                "export.points",
                self.export.points >= 3 && self.export.prompts > 0 && self.export.texts > 0,
                format!(
                    "{} points, {} prompts, {} texts",
                    self.export.points, self.export.prompts, self.export.texts
                ),
                "at least 3 points, 1 prompt and 1 text".into(),
            ),
            (
                "export.sizes",
                self.export.sizes.iter().enumerate().all(|(index, &side)| {
                    let other = side != adapted && !self.export.sizes[..index].contains(&side);
                    other && size(side) && pools(side)
                }),
                format!("{:?}", self.export.sizes),
                format!(
                    "other sides than {adapted}, each once, multiples of 16 of at least 32 that the CLIP head can pool"
                ),
            ),
        ];
        for (what, holds, found, expected) in rules {
            if !holds {
                return Err(RecipeError::Value {
                    path: path.into(),
                    what,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// The recipe as far as it decides the result of stage `name`, as TOML: what its checkpoint is bound to. Later
    /// stages, the bundle's name and its manifest may change without making the checkpoint worthless.
    #[must_use]
    pub fn deciding(&self, name: StageName) -> String {
        let mut table = toml::Table::try_from(self).expect("a recipe is a table");
        table.remove("name");
        if let Some(toml::Value::Table(export)) = table.get_mut("export") {
            // The last stage asks beside the background prompts.
            export.retain(|key, _| key == "points" || (key == "background" && name == StageName::Sharpen));
        }
        let stages = StageName::ALL.into_iter().filter(|&stage| stage > name);
        for later in stages.map(StageName::section) {
            table.remove(later);
        }
        if name == StageName::TeachSam {
            table.remove("clip_teacher");
        }
        table.to_string()
    }

    /// The stage of that name, if the recipe has it.
    #[must_use]
    pub fn stage(&self, name: StageName) -> Option<&Stage> {
        match name {
            StageName::TeachSam => self.teach_sam.as_ref(),
            StageName::TeachClip => self.teach_clip.as_ref(),
            StageName::Probe => Some(&self.probe),
            StageName::Distill => Some(&self.distill),
            StageName::Adapt => self.adapt.as_ref().map(|adapt| &adapt.stage),
            StageName::Words => self.words.as_ref(),
            StageName::Finetune => self.finetune.as_ref().map(|finetune| &finetune.stage),
            StageName::Sharpen => self.sharpen.as_ref().map(|sharpen| &sharpen.stage),
        }
    }

    /// Whether a SAM head learns masks in the stage.
    #[must_use]
    pub fn learns_masks(&self, name: StageName) -> bool {
        match name {
            StageName::TeachSam | StageName::Sharpen => self.stage(name).is_some(),
            StageName::TeachClip | StageName::Probe | StageName::Words => false,
            StageName::Distill | StageName::Adapt | StageName::Finetune => {
                self.losses.sam > 0.0 && self.stage(name).is_some_and(Stage::asks_for_masks)
            }
        }
    }

    /// All stages that the recipe has.
    fn stages(&self) -> impl Iterator<Item = &Stage> {
        StageName::ALL.into_iter().filter_map(|name| self.stage(name))
    }

    /// The recipe at the size of stage 3.
    #[must_use]
    pub fn adapted(&self) -> Self {
        let mut adapted = self.clone();
        if let Some(adapt) = &self.adapt {
            adapted.sam.image_size = adapt.image_size;
        }
        adapted
    }

    /// The recipe of the bundle: [`Self::adapted`], with what the last stage adds to the model.
    #[must_use]
    pub fn exported(&self) -> Self {
        let mut exported = self.adapted();
        if let Some(sharpen) = &self.sharpen {
            exported.sam.detail.clone_from(&sharpen.detail);
        }
        exported
    }

    /// The merged model's configuration.
    #[must_use]
    pub fn merged(&self) -> MergedConfig {
        MergedConfig {
            sam: self.sam.clone(),
            clip_head: self.clip_head.clone(),
            text: self.text.clone(),
            quick_gelu: self.quick_gelu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Recipe {
        Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml")).unwrap()
    }

    #[test]
    fn a_checkpoint_is_bound_to_what_decides_it_and_nothing_later() {
        type Change = fn(&mut Recipe);
        let changes: [(Change, Option<StageName>); 8] = [
            (|r| r.export.threshold = 0.4, None),
            (|r| r.name = "other".into(), None),
            (|r| r.export.sizes = vec![96], None),
            (|r| r.export.background.truncate(1), Some(StageName::Sharpen)),
            (|r| r.adapt = None, Some(StageName::Adapt)),
            (|r| r.distill.steps += 1, Some(StageName::Distill)),
            (|r| r.clip_teacher.layers += 1, Some(StageName::TeachClip)),
            (|r| r.seed += 1, Some(StageName::TeachSam)),
        ];
        let recipe = shipped();
        for (index, (change, first)) in changes.into_iter().enumerate() {
            let mut changed = recipe.clone();
            change(&mut changed);
            for stage in StageName::ALL {
                let same = recipe.deciding(stage) == changed.deciding(stage);
                assert_eq!(
                    same,
                    first.is_none_or(|first| stage < first),
                    "change {index}, {stage:?}"
                );
            }
        }
    }

    fn apart() -> Separate {
        Separate {
            clip: vec![BatchSize { side: 224, batch: 8 }],
            sam_batch: 2,
        }
    }

    fn watch() -> Watch {
        Watch {
            every: 10,
            photos: 4,
            tolerance: 1.0,
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_refused_by_name() {
        type Spoil = fn(&mut Recipe);
        let cases: [(Spoil, &str); 21] = [
            (
                |r| r.words.as_mut().unwrap().batch = 0,
                "batch: found [8, 48, 8, 16, 8, 0, 8], expected at least 1",
            ),
            (
                |r| r.teach_sam.as_mut().unwrap().prompts = 0,
                "teach_sam.prompts: found 0, expected at least 1",
            ),
            (
                |r| r.adapt.as_mut().unwrap().image_size = 100,
                "adapt.image_size: found 100, expected a multiple of 16",
            ),
            (
                |r| r.adapt.as_mut().unwrap().image_size = 528,
                "clip_head.max_grid: found 32 for pictures of 224 and 528 px",
            ),
            (
                |r| (r.sam.window_size, r.sam.global_attn_indexes) = (0, vec![1]),
                "sam.window_size: found 0",
            ),
            (|r| r.losses.region_text = 0.0, "losses.region_text: found 0"),
            (
                |r| r.unlabelled_share = 1.5,
                "unlabelled_share: found 1.5, expected 0 to 1",
            ),
            (|r| r.probe.repeat = Some(0), "repeat: found [None, None, Some(0)"),
            (|r| r.distill.repeat = Some(9), "expected at least 1, in [probe] alone"),
            (
                |r| (r.probe.repeat, r.probe.prompts) = (Some(9), 2),
                "in [probe] with 2 prompts",
            ),
            (
                |r| r.export.sizes = vec![320],
                "export.sizes: found [320], expected other sides than 320",
            ),
            (
                |r| r.export.sizes = vec![224, 224],
                "export.sizes: found [224, 224], expected other sides than 320, each once",
            ),
            (|r| r.export.sizes = vec![230], "export.sizes: found [230]"),
            (
                |r| r.sam.detail = vec![8],
                "sam.detail: found [8], expected none: [sharpen]",
            ),
            (
                |r| r.sharpen.as_mut().unwrap().detail = vec![8; 5],
                "sharpen.detail: found [8, 8, 8, 8, 8], expected at most 4",
            ),
            (
                |r| r.sharpen.as_mut().unwrap().stage.prompts = 0,
                "sharpen.stage.prompts: found 0, expected at least 1",
            ),
            (
                |r| (r.distill.separate, r.distill.prompts) = (Some(apart()), 0),
                "separate.sam_batch: found [\"8 pictures, 0 prompts\"]",
            ),
            (
                |r| (r.distill.separate, r.losses.sam) = (Some(apart()), 0.0),
                "with losses.sam = 0, expected 0, or prompts of at least 1",
            ),
            (
                |r| (r.probe.separate, r.probe.prompts) = (Some(apart()), 2),
                "0 in [probe], whose SAM head is frozen",
            ),
            (|r| r.losses.sam = f32::NAN, "losses: found clip 1, sam NaN"),
            (
                |r| r.teach_sam.as_mut().unwrap().watch = Some(watch()),
                "a teacher's step is one batch",
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        for (spoil, expected) in cases {
            let mut recipe = shipped();
            spoil(&mut recipe);
            std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
            let error = Recipe::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
