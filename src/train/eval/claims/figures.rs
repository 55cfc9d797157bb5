//! What is measured of every variant, the same way each time, on the validation split.
//!
//! * understanding: top-1 of zero-shot classification over the collections that give single names to their photos (2 to 100
//!   of them); R@5 of text-to-image retrieval where no collection does (drawn scenes have captions), in percent;
//! * boxes: mean IoU of masks from box prompts, the SAM head at its own size, in percent;
//! * mean IoU of zero-shot semantic segmentation, in percent: CLIP head at the largest CLIP size, CLIP head at the
//!   SAM size, both heads at the SAM size.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::instance::instances;
use super::super::presence::Share;
use super::super::protocol::Protocol;
use super::super::segmenter::Segmenter;
use super::super::semantic::{Photos, classes_of, semantic_by};
use super::super::wording::competitors;
use super::super::zero_shot::{Accuracy, classify, label, retrieve};
use super::super::{EvalError, ImageText};
use crate::runtime::RuntimeOptions;
use crate::train::dataset::{Dataset, Sample, Split};
use crate::train::export;
use crate::train::model::resize;
use crate::train::onnx::Storage;
use crate::train::recipe::Recipe;
use crate::train::weights::Weights;
use crate::vision::query::Queries;

/// What is measured on.
pub(super) struct Data {
    pub(super) dataset: Arc<Dataset>,
    /// Most samples of one measurement.
    pub(super) limit: usize,
    pub(super) runtime: RuntimeOptions,
    /// Embeddings of names: all variants have the teacher's text tower, which is frozen.
    pub(super) words: RefCell<HashMap<String, Vec<f32>>>,
}

/// A model that looks names up before it computes them.
struct Remembering<'a> {
    model: &'a mut Segmenter,
    words: &'a RefCell<HashMap<String, Vec<f32>>>,
}

impl ImageText for Remembering<'_> {
    fn image(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
        self.model.image(photo)
    }

    fn names(&mut self, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError> {
        let mut words = self.words.borrow_mut();
        let new: Vec<String> = names.iter().filter(|n| !words.contains_key(*n)).cloned().collect();
        let embeddings = self.model.names(&new)?;
        words.extend(new.into_iter().zip(embeddings));
        Ok(names.iter().map(|name| words[name].clone()).collect())
    }

    fn sentences(&mut self, sentences: &[String]) -> Result<Vec<Option<Vec<f32>>>, EvalError> {
        self.model.sentences(sentences)
    }
}

/// The figures of one set of weights, percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) understanding: f64,
    pub(super) boxes: f64,
    pub(super) clip_head_low: f64,
    pub(super) clip_head: f64,
    pub(super) both_heads: f64,
}

/// The figures of one set of weights at one input size, percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct AtSize {
    pub(super) variant: &'static str,
    pub(super) side: usize,
    pub(super) understanding: f64,
    pub(super) boxes: f64,
    pub(super) clip_head: f64,
}

/// Largest side of the CLIP batches, pixels.
pub(super) fn clip_side(recipe: &Recipe) -> usize {
    let separate = recipe.distill.separate.iter().flat_map(|s| &s.clip);
    let below = separate
        .map(|size| size.side)
        .filter(|&side| side < recipe.sam.image_size);
    below.max().unwrap_or(recipe.sam.image_size)
}

/// All figures of `weights`, a merged model at the recipe's SAM size.
pub(super) fn measure(recipe: &Recipe, weights: &Weights, data: &Data) -> Result<Figures, EvalError> {
    let mut low = open_at(recipe, weights, clip_side(recipe), data)?;
    let mut native = open_at(recipe, weights, recipe.sam.image_size, data)?;
    let at_low = segmentation(&mut low, data)?;
    let at_native = segmentation(&mut native, data)?;
    Ok(Figures {
        understanding: understanding(&mut low, data)?,
        boxes: boxes(&mut native, data)?,
        clip_head_low: 100.0 * at_low[1],
        clip_head: 100.0 * at_native[1],
        both_heads: 100.0 * at_native[2],
    })
}

/// Understanding and boxes alone, for the many points of an interpolation.
pub(super) fn measure_ends(recipe: &Recipe, weights: &Weights, data: &Data) -> Result<Figures, EvalError> {
    Ok(Figures {
        understanding: understanding(&mut open_at(recipe, weights, clip_side(recipe), data)?, data)?,
        boxes: boxes(&mut open_at(recipe, weights, recipe.sam.image_size, data)?, data)?,
        ..Figures::default()
    })
}

/// One model at sizes from a third of the SAM size to four thirds.
pub(super) fn at_sizes(
    variant: &'static str,
    recipe: &Recipe,
    weights: &Weights,
    data: &Data,
) -> Result<Vec<AtSize>, EvalError> {
    let mut found = Vec::new();
    for third in 2..=8 {
        let side = (recipe.sam.image_size * third / 6).next_multiple_of(16);
        let mut model = open_at(recipe, weights, side, data)?;
        found.push(AtSize {
            variant,
            side,
            understanding: understanding(&mut model, data)?,
            boxes: boxes(&mut model, data)?,
            clip_head: 100.0 * segmentation(&mut model, data)?[1],
        });
    }
    Ok(found)
}

/// The weights as a bundle for pictures of `side` pixels.
pub(super) fn open_at(recipe: &Recipe, weights: &Weights, side: usize, data: &Data) -> Result<Segmenter, EvalError> {
    let mut sized = recipe.clone();
    sized.sam.image_size = side;
    sized.adapt = None;
    sized.export.sizes.clear();
    let weights = resize::positions(weights, &recipe.sam, &sized.sam);
    let folder = tempfile::tempdir().map_err(EvalError::temporary)?;
    let bundle = export::bundle(&sized, &weights, folder.path(), Storage::Single)?;
    Segmenter::open("study", "a run of the study", bundle, &data.runtime, Some(folder))
}

/// Top-1 or R@5, see the top of the file; percent.
pub(super) fn understanding(model: &mut Segmenter, data: &Data) -> Result<f64, EvalError> {
    let part = Some(Split::Validation);
    let words = &data.words;
    let mut model = Remembering { model, words };
    let classified = classify(&mut model, &data.dataset, part, usize::MAX)?;
    let usable = classified.iter().filter(|a| (2..=100).contains(&a.names));
    let mut hits = Share::default();
    for top1 in usable.map(Accuracy::top1) {
        hits.count += top1.count;
        hits.of += top1.of;
    }
    if hits.of == 0 {
        hits = retrieve(&mut model, &data.dataset, part, data.limit)?.to_image[1];
    }
    Ok(100.0 * hits.value())
}

/// Name of what [`understanding`] is on this data.
pub(super) fn understanding_name(dataset: &Dataset) -> &'static str {
    let single = dataset.samples().iter().any(|s| label(s).is_some());
    if single { "zero-shot top-1" } else { "text-to-image R@5" }
}

/// Means over the classes: constant, CLIP head, both heads.
fn segmentation(model: &mut Segmenter, data: &Data) -> Result<[f64; 3], EvalError> {
    let (dataset, words) = (&data.dataset, &data.words);
    let classes = classes_of(dataset);
    let manifest = model.bundle.manifest.clone();
    let against: Vec<String> = competitors(&manifest, &classes)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut remembering = Remembering { model, words };
    let asked: Vec<_> = remembering
        .names(&classes)?
        .into_iter()
        .map(|e| (e, Some(0.5)))
        .collect();
    let queries = Queries::new(manifest.encoder.embed_dim, &asked, &remembering.names(&against)?)?;
    let photos = Photos {
        dataset,
        part: Some(Split::Validation),
        limit: data.limit,
        protocol: Protocol::Open,
    };
    let found = semantic_by(queries, &classes, model, &photos)?;
    Ok(found.means())
}

fn boxes(model: &mut Segmenter, data: &Data) -> Result<f64, EvalError> {
    let found = instances(model, &data.dataset, Some(Split::Validation), data.limit)?;
    Ok(100.0 * found.boxes.value())
}
