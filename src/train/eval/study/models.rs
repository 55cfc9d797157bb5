//! The models that a study puts side by side, opened from bundles, checkpoints and teachers.

use std::path::Path;

use anyhow::Result;

use super::super::clip_tower::{ClipTower, WholePhoto};
use super::super::options::Options;
use super::super::report::ModelFacts;
use super::super::segmenter::Segmenter;
use super::super::wise_ft::interpolate;
use super::super::{EvalError, ImageText};
use crate::contract::Manifest;
use crate::runtime::RuntimeOptions;
use crate::train::model::inventory;
use crate::train::onnx::Storage;
use crate::train::recipe::{Recipe, StageName};
use crate::train::session::model_weights;
use crate::train::teachers::clip_config;
use crate::train::weights::{Inventory, Weights};
use crate::train::{distill, export, import, weights};

/// The models of a study, open.
pub(super) struct Models {
    /// Bundles, checkpoints, and what lies between checkpoints.
    pub(super) students: Vec<Segmenter>,
    /// The SAM teacher: the student before training.
    pub(super) sam: Option<Segmenter>,
    /// The CLIP teacher.
    pub(super) clip: Option<ClipTower>,
}

impl Models {
    /// Opens what the options name.
    pub(super) fn open(options: &Options, recipe: Option<&Recipe>, runtime: &RuntimeOptions) -> Result<Self> {
        let mut models = Self {
            students: Vec::new(),
            sam: None,
            clip: None,
        };
        for folder in &options.bundle {
            let bundle = Manifest::read(folder)?;
            let name = format!("{} {}", bundle.manifest.name, bundle.id());
            let origin = folder.display().to_string();
            let mut add = |name: &str, bundle| {
                models
                    .students
                    .push(Segmenter::open(name, &origin, bundle, runtime, None)?);
                Ok::<_, EvalError>(())
            };
            if options.side.is_empty() {
                add(&name, bundle.clone())?;
            }
            for &side in &options.side {
                add(&format!("{name} {side} px"), bundle.at(side)?)?;
            }
        }
        let Some(recipe) = recipe else {
            return Ok(models.placing(options));
        };
        for path in &options.checkpoint {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let (weights, origin) = (read(path)?, path.display().to_string());
            let sized = sized(recipe, &weights);
            models
                .students
                .push(temporary(&name, &origin, &sized, &weights, runtime)?);
        }
        if let [first, second] = options.between.as_slice() {
            let (a, b) = (read(first)?, read(second)?);
            for &alpha in &options.alpha {
                let weights = interpolate(&a, &b, alpha)?;
                let (name, sized) = (format!("WiSE-FT {alpha}"), sized(recipe, &weights));
                let origin = format!("{} to {}", first.display(), second.display());
                models
                    .students
                    .push(temporary(&name, &origin, &sized, &weights, runtime)?);
            }
        }
        let (sam, clip) = match (&options.run, &options.sam, &options.clip) {
            (Some(run), _, _) => {
                let file = |stage: StageName| run.join(format!("{}.safetensors", stage.checkpoint()));
                (file(StageName::TeachSam), file(StageName::TeachClip))
            }
            (None, Some(sam), Some(clip)) => (sam.clone(), clip.clone()),
            _ => return Ok(models.placing(options)),
        };
        let (sam_weights, clip_weights) = match &options.run {
            Some(_) => (
                checked(&sam, &inventory::sam(&recipe.sam))?,
                checked(&clip, &inventory::clip(&clip_config(recipe)))?,
            ),
            None => (
                import::sam(&sam, Some(&recipe.sam))?.0,
                import::clip(&clip, Some(&clip_config(recipe)))?.0,
            ),
        };
        let native = at_stage_2(recipe);
        let student = distill::student(&native, &sam_weights, &clip_weights);
        let origin = sam.display().to_string();
        let teacher = temporary("SAM teacher", &origin, &native, &student, runtime)?;
        let (config, origin) = (clip_config(recipe), clip.display().to_string());
        let tower = ClipTower::open(
            "CLIP teacher",
            &origin,
            &config,
            &clip_weights,
            whole_photo(options),
            &teacher.bundle,
            runtime,
        )?;
        (models.sam, models.clip) = (Some(teacher), Some(tower));
        Ok(models.placing(options))
    }

    /// The same with students that see photos as `options` say; teachers keep what they were made with.
    fn placing(mut self, options: &Options) -> Self {
        if options.stretch {
            self.students = self.students.into_iter().map(Segmenter::stretching).collect();
        }
        self
    }

    /// Everything that makes masks.
    pub(super) fn segmenters(&mut self) -> impl Iterator<Item = &mut Segmenter> {
        self.students.iter_mut().chain(&mut self.sam)
    }

    /// Everything that puts pictures and words into one space, with its column.
    pub(super) fn image_text(&mut self) -> Vec<(String, &mut dyn ImageText)> {
        let students = self
            .students
            .iter_mut()
            .map(|s| (s.name.clone(), s as &mut dyn ImageText));
        let clip = self.clip.iter_mut().map(|c| (c.name.clone(), c as &mut dyn ImageText));
        students.chain(clip).collect()
    }

    /// What each column stands for.
    pub(super) fn facts(&mut self) -> Vec<ModelFacts> {
        let mut facts: Vec<ModelFacts> = self
            .segmenters()
            .map(|s| ModelFacts {
                column: s.name.clone(),
                origin: s.origin.clone(),
                input: format!(
                    "{} px, {}",
                    s.bundle.manifest.encoder.side,
                    if s.stretches() { "stretched" } else { "letterboxed" }
                ),
                bundle: Some(s.bundle.id().to_owned()),
                provider: format!("{}, {}", s.engine.provider, s.engine.precision),
            })
            .collect();
        facts.extend(self.clip.iter().map(|c| ModelFacts {
            column: c.name.clone(),
            origin: c.origin.clone(),
            input: format!("{} px, {}", c.config.vision_cfg.image_size, c.whole.name()),
            bundle: None,
            provider: c.provider.clone(),
        }));
        facts
    }
}

/// How the CLIP teacher sees whole photos: one of a run as it was trained, somebody's checkpoint as it is published.
fn whole_photo(options: &Options) -> WholePhoto {
    match options.run {
        Some(_) => WholePhoto::Stretched,
        None => WholePhoto::CentreCrop,
    }
}

/// The model's weights of a checkpoint.
fn read(path: &Path) -> Result<Weights> {
    Ok(model_weights(weights::read(path)?))
}

/// As [`read`], compared with what the recipe's model asks for.
fn checked(path: &Path, expected: &Inventory) -> Result<Weights> {
    let weights = read(path)?;
    weights::check(&weights, expected, &path.display().to_string())?;
    Ok(weights)
}

/// The recipe at the size that a checkpoint's position table has: before the last stage that of stage 2.
fn sized(recipe: &Recipe, weights: &Weights) -> Recipe {
    let table = weights.get("image_encoder.pos_embed");
    match table.is_some_and(|table| table.shape.get(1) == Some(&recipe.sam.grid())) {
        true => at_stage_2(recipe),
        false => recipe.clone(),
    }
}

/// The recipe at the size of stage 2, which is the teachers'.
pub(super) fn at_stage_2(recipe: &Recipe) -> Recipe {
    Recipe {
        adapt: None,
        ..recipe.clone()
    }
}

/// Weights as a bundle of one size in a folder that goes when the model goes.
fn temporary(
    name: &str,
    origin: &str,
    recipe: &Recipe,
    weights: &Weights,
    runtime: &RuntimeOptions,
) -> Result<Segmenter, EvalError> {
    let folder = tempfile::tempdir().map_err(EvalError::temporary)?;
    let mut recipe = recipe.clone();
    recipe.export.sizes.clear();
    let bundle = export::bundle(&recipe, weights, folder.path(), Storage::Half)?;
    Segmenter::open(name, origin, bundle, runtime, Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_checkpoint_is_measured_by_the_published_protocol_and_a_runs_teacher_by_its_own() {
        let options = |run: Option<&str>| Options {
            run: run.map(Into::into),
            ..Options::default()
        };
        assert_eq!(whole_photo(&options(Some("runs/nano"))), WholePhoto::Stretched);
        assert_eq!(whole_photo(&options(None)), WholePhoto::CentreCrop);
    }
}
