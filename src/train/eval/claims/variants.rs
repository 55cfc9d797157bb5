//! The ways of training that the paper compares, each a change of one recipe.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::super::wise_ft::interpolate;
use super::figures::{Data, Figures, measure, measure_ends};
use crate::contract::sha256_hex;
use crate::text::tokenizer::Tokenizer;
use crate::train::curve;
use crate::train::dataset::Dataset;
use crate::train::distill::{self, Teachers};
use crate::train::feed::Feed;
use crate::train::model::Pooling;
use crate::train::recipe::{BatchSize, Recipe};
use crate::train::session::RunFolder;
use crate::train::teachers;
use crate::train::text_bank::TextBank;
use crate::train::weights::Weights;

/// One way of training.
struct Variant {
    name: &'static str,
    /// Where its runs are kept.
    folder: &'static str,
    what: &'static str,
    change: fn(&mut Recipe),
    stages: Stages,
}

/// The stages that a variant runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stages {
    /// None: the student as it is made.
    None,
    /// Stage 1 alone.
    Probe,
    /// Stage 2 alone.
    Distill,
    /// Stages 1 and 2.
    Both,
    /// Stage 2 on what the variant "probed" ends with: the change is one that stage 1 does not see.
    DistillProbed,
}

const VARIANTS: [Variant; 11] = [
    Variant {
        name: "untrained",
        folder: "untrained",
        what: "the SAM teacher with a CLIP head that has learnt nothing",
        change: |_| (),
        stages: Stages::None,
    },
    Variant {
        name: "probed",
        folder: "probed",
        what: "stage 1 alone: CLIP head on the frozen SAM backbone",
        change: |_| (),
        stages: Stages::Probe,
    },
    Variant {
        name: "two-stage",
        folder: "two-stage",
        what: "the paper: stage 1, then CLIP and SAM batches together",
        change: |_| (),
        stages: Stages::DistillProbed,
    },
    Variant {
        name: "repeat",
        folder: "repeat",
        what: "two-stage with another seed: the noise",
        change: |recipe| recipe.seed += 1,
        stages: Stages::Both,
    },
    Variant {
        name: "second repeat",
        folder: "second-repeat",
        what: "two-stage with a third seed: the noise",
        change: |recipe| recipe.seed += 2,
        stages: Stages::Both,
    },
    Variant {
        name: "naive",
        folder: "naive",
        what: "distillation from CLIP alone, nothing rehearses SAM",
        change: |recipe| {
            recipe.losses.sam = 0.0;
            if let Some(separate) = &mut recipe.distill.separate {
                separate.sam_batch = 0;
            }
        },
        stages: Stages::DistillProbed,
    },
    Variant {
        name: "unprobed",
        folder: "unprobed",
        what: "stage 2 without stage 1, as many steps in all",
        change: |recipe| recipe.distill.steps += recipe.probe.steps,
        stages: Stages::Distill,
    },
    Variant {
        name: "average",
        folder: "average",
        what: "two-stage with average- in place of max-pooling",
        change: |recipe| recipe.clip_head.pooling = Pooling::Average,
        stages: Stages::Both,
    },
    Variant {
        name: "weight ÷ 10",
        folder: "weight-tenth",
        what: "two-stage with a tenth of the weight of L_SAM",
        change: |recipe| recipe.losses.sam *= 0.1,
        stages: Stages::DistillProbed,
    },
    Variant {
        name: "weight × 10",
        folder: "weight-tenfold",
        what: "two-stage with ten times the weight of L_SAM",
        change: |recipe| recipe.losses.sam *= 10.0,
        stages: Stages::DistillProbed,
    },
    Variant {
        name: "all sizes",
        folder: "all-sizes",
        what: "two-stage with CLIP batches at the SAM size too",
        change: |recipe| {
            let side = recipe.sam.image_size;
            if let Some(separate) = &mut recipe.distill.separate {
                separate.clip.push(BatchSize { side, batch: 4 });
            }
        },
        stages: Stages::DistillProbed,
    },
];

/// Both teachers of a study.
pub(super) struct Made {
    pub(super) sam: Weights,
    pub(super) clip: Weights,
    pub(super) tokenizer: Tokenizer,
    dataset: Arc<Dataset>,
}

impl Made {
    /// Trains the teachers as the recipe says.
    pub(super) fn train(
        recipe: &Recipe,
        dataset: &Arc<Dataset>,
        tokenizer: &Tokenizer,
        folder: &RunFolder,
    ) -> Result<Self> {
        let feed = Feed::new(Some(Arc::clone(dataset)), recipe);
        let (Some(sam), Some(clip)) = (&recipe.teach_sam, &recipe.teach_clip) else {
            anyhow::bail!("the recipe trains no teachers");
        };
        Ok(Self {
            sam: teachers::sam(recipe, sam, &feed, folder)?,
            clip: teachers::clip(recipe, clip, &feed, tokenizer, folder)?,
            tokenizer: tokenizer.clone(),
            dataset: Arc::clone(dataset),
        })
    }
}

/// A variant with its result.
#[derive(Serialize)]
pub(super) struct Trained {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) figures: Figures,
    /// Curve of stage 2: (step, name, value).
    pub(super) curve: Vec<(u64, String, f32)>,
    #[serde(skip)]
    pub(super) weights: Weights,
    #[serde(skip)]
    pub(super) recipe: Recipe,
}

/// Trains and measures every variant; each in a folder of its own below `folder`.
pub(super) fn all(recipe: &Recipe, made: &Made, folder: &RunFolder, data: &Data) -> Result<Vec<Trained>> {
    let mut trained = Vec::new();
    for variant in &VARIANTS {
        tracing::info!(variant = variant.name, what = variant.what, "training");
        let mut changed = recipe.clone();
        (variant.change)(&mut changed);
        let own = RunFolder {
            path: folder.path.join(variant.folder),
            ..folder.clone()
        };
        std::fs::create_dir_all(&own.path)?;
        let probed = trained
            .iter()
            .find(|t: &&Trained| t.name == "probed")
            .map(|t| &t.weights);
        let weights = train(&changed, variant.stages, made, probed, &own)?;
        let figures = remembered(&own.path.join("figures.json"), &weights, data, || {
            Ok(measure(&changed, &weights, data)?)
        })?;
        tracing::info!(variant = variant.name, ?figures, "measured");
        trained.push(Trained {
            name: variant.name,
            what: variant.what,
            figures,
            curve: curve::read(&own.path.join("distill.curve.csv"))?,
            weights,
            recipe: changed,
        });
    }
    Ok(trained)
}

/// Figures that were measured before of the same weights and as many samples, else those of `measure`, which are kept.
fn remembered(
    path: &Path,
    weights: &Weights,
    data: &Data,
    measure: impl FnOnce() -> Result<Figures>,
) -> Result<Figures> {
    let bytes = weights.iter().flat_map(|(name, values)| {
        let values = values.data.iter().flat_map(|v| v.to_le_bytes());
        name.bytes().chain(values)
    });
    let key = format!("{}, {} samples", sha256_hex(&bytes.collect::<Vec<u8>>()), data.limit);
    let known = std::fs::read(path).ok();
    let known = known.and_then(|bytes| serde_json::from_slice::<(String, Figures)>(&bytes).ok());
    if let Some((_, figures)) = known.filter(|(found, _)| *found == key) {
        return Ok(figures);
    }
    let figures = measure()?;
    std::fs::write(path, serde_json::to_vec(&(key, figures))?)?;
    Ok(figures)
}

fn train(
    recipe: &Recipe,
    stages: Stages,
    made: &Made,
    probed: Option<&Weights>,
    folder: &RunFolder,
) -> Result<Weights> {
    let feed = Feed::new(Some(Arc::clone(&made.dataset)), recipe);
    let text = TextBank::new(&made.clip, recipe.merged(), made.tokenizer.clone(), folder.device);
    let mut teachers = Teachers::new(recipe, made.sam.clone(), &made.clip, text, made.tokenizer.clone());
    let mut student = match (stages, probed) {
        (Stages::DistillProbed, Some(probed)) => probed.clone(),
        _ => distill::student(recipe, &made.sam, &made.clip),
    };
    if matches!(stages, Stages::Probe | Stages::Both) {
        student = distill::probe(recipe, &feed, &mut teachers, || student, folder)?;
    }
    if matches!(stages, Stages::Distill | Stages::Both | Stages::DistillProbed) {
        student = distill::distill(recipe, &feed, &mut teachers, || student, folder)?;
    }
    Ok(student)
}

/// Understanding and masks between two models, in tenths.
pub(super) fn interpolated(recipe: &Recipe, from: &Weights, to: &Weights, data: &Data) -> Result<Vec<(f32, Figures)>> {
    let alphas = (0..=10_u8).map(|i| f32::from(i) / 10.0);
    let points = alphas.map(|alpha| Ok((alpha, measure_ends(recipe, &interpolate(from, to, alpha)?, data)?)));
    points.collect()
}
