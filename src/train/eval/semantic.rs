//! Zero-shot semantic segmentation. The protocol: the validation tenth of the photos (split by hash of the
//! key), at their own size; ten names and the bundle's background prompts compete in every photo, whatever it
//! shows; a pixel gets the name of the highest probability, or none if the background prompts together have more. Pixels without a
//! label do not count; a prediction on background, or on a label outside the ten, is a false positive
//! unless the photo's collection does not annotate the name or the two names overlap. IoU is summed over all
//! photos. The constant-class figure is the IoU of predicting that class everywhere.

use super::truth::{Label, Tally, Truth};
use super::wording::{queries, tokenizer};
use super::{EvalError, frame};
use crate::contract::{Bundle, Manifest};
use crate::runtime::{self, RuntimeOptions};
use crate::text::templates::TEMPLATES;
use crate::train::dataset::{ClassNames, Dataset, Sample, Split};
use crate::vision::features::Features;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{DecoderPrompt, PromptRules, Queries, ScoreMap, score, sigmoid};
use crate::vision::refine::{DecodedPrompt, RefineRules, semantic_logits};

/// The classes of the table.
pub const CLASSES: [&str; 10] = [
    "building",
    "sky",
    "road",
    "car",
    "vegetation",
    "person",
    "window",
    "door",
    "horse",
    "grass",
];

/// One row of the table.
#[derive(Clone, Debug)]
pub struct ClassResult {
    /// The class.
    pub name: &'static str,
    /// Photos that show it.
    pub photos: usize,
    /// IoU of predicting it everywhere.
    pub constant: f64,
    /// IoU of the CLIP head alone.
    pub clip_head: f64,
    /// IoU of both heads.
    pub both_heads: f64,
}

/// The measurement.
#[derive(Clone, Debug)]
pub struct Semantic {
    /// Photos with labels.
    pub photos: usize,
    /// One row per class.
    pub classes: Vec<ClassResult>,
    /// Back end and provider.
    pub provider: String,
}

impl Semantic {
    /// Means over the classes: constant, CLIP head, both heads.
    #[must_use]
    pub fn means(&self) -> [f64; 3] {
        let n = self.classes.len().max(1) as f64;
        let mean = |f: fn(&ClassResult) -> f64| self.classes.iter().map(f).sum::<f64>() / n;
        [mean(|c| c.constant), mean(|c| c.clip_head), mean(|c| c.both_heads)]
    }

    /// The table in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "{} validation photos, {}\n\n| class | photos | constant class | CLIP head | CLIP + SAM head |\n\
             |---|---|---|---|---|\n",
            self.photos, self.provider
        );
        for c in &self.classes {
            let row = format!(
                "| {} | {} | {:.3} | {:.3} | {:.3} |\n",
                c.name, c.photos, c.constant, c.clip_head, c.both_heads
            );
            out.push_str(&row);
        }
        let [constant, clip, both] = self.means();
        out.push_str(&format!("| **mean** | | {constant:.3} | {clip:.3} | {both:.3} |\n"));
        out
    }
}

/// A running measurement of one model: photos go in one by one, tallies add up.
pub struct Measurement<'a> {
    manifest: &'a Manifest,
    queries: Queries,
    preprocessor: Preprocessor,
    features: Features,
    tallies: [[Tally; CLASSES.len()]; 2],
    photos: usize,
    shown: [usize; CLASSES.len()],
    pixels: u64,
}

impl<'a> Measurement<'a> {
    /// Nothing measured yet; `queries` as [`queries`] makes them.
    #[must_use]
    pub fn new(manifest: &'a Manifest, queries: Queries) -> Self {
        Self {
            manifest,
            queries,
            preprocessor: Preprocessor::new(&manifest.encoder),
            features: Features::default(),
            tallies: [[Tally::default(); CLASSES.len()]; 2],
            photos: 0,
            shown: [0; CLASSES.len()],
            pixels: 0,
        }
    }

    /// Encoder outputs of the last photo.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Runs one photo through both heads and returns its scores and the prompts they became; a photo without labels
    /// adds nothing to the tallies.
    ///
    /// # Errors
    /// [`EvalError`] if the photo cannot be used or the engine fails.
    pub fn photo(
        &mut self,
        engine: &mut runtime::Engine,
        sample: &Sample,
        names: &ClassNames,
    ) -> Result<(ScoreMap, Vec<DecoderPrompt>), EvalError> {
        let letterbox = self.preprocessor.run(&frame(sample)?)?;
        engine.encoder.encode(self.preprocessor.tensor(), &mut self.features)?;
        let scores = score(&self.features, &self.queries, self.manifest, letterbox)?;
        let prompts = scores.prompts(
            &PromptRules::default(),
            self.manifest.encoder.low_res_side(),
            self.manifest.decoder.points,
        );
        if sample.mask.is_some() {
            let decoded = engine.decoder.decode(&self.features, &prompts)?;
            self.count(&Truth::of(sample, names), &scores, &prompts, &decoded);
        }
        Ok((scores, prompts))
    }

    fn count(&mut self, truth: &Truth, scores: &ScoreMap, prompts: &[DecoderPrompt], decoded: &[DecodedPrompt]) {
        let rules = RefineRules::default();
        let alone: Vec<Vec<f32>> = (0..CLASSES.len()).map(|q| scores.frame_logits(q)).collect();
        let both = (0..CLASSES.len()).map(|q| semantic_logits(scores, q, prompts, decoded, &rules));
        let both: Vec<Vec<f32>> = both.collect();
        let none = background_probability(&alone);
        truth.count(&alone, &none, &mut self.tallies[0]);
        truth.count(&both, &none, &mut self.tallies[1]);
        self.photos += 1;
        self.pixels += truth.label.iter().filter(|l| !matches!(l, Label::Unknown)).count() as u64;
        for (class, shown) in self.shown.iter_mut().enumerate() {
            *shown += usize::from(truth.label.iter().any(|l| matches!(l, Label::Class(c) if *c == class)));
        }
    }

    /// The table of all labelled photos so far.
    #[must_use]
    pub fn finish(&self, provider: &str) -> Semantic {
        let classes = CLASSES.iter().enumerate().map(|(i, name)| ClassResult {
            name,
            photos: self.shown[i],
            constant: self.tallies[0][i].labelled as f64 / self.pixels.max(1) as f64,
            clip_head: self.tallies[0][i].iou(),
            both_heads: self.tallies[1][i].iou(),
        });
        Semantic {
            photos: self.photos,
            classes: classes.collect(),
            provider: provider.into(),
        }
    }
}

/// Measures semantic segmentation of `bundle` on one part of `dataset`, at most `limit` photos.
///
/// # Errors
/// [`EvalError`] if the bundle does not run or a photo cannot be read.
pub fn semantic(
    bundle: &Bundle,
    options: &RuntimeOptions,
    dataset: &Dataset,
    limit: usize,
    part: Split,
) -> Result<Semantic, EvalError> {
    let mut engine = runtime::open(bundle, options)?;
    let queries = queries(&mut *engine.text, &tokenizer(bundle)?, &bundle.manifest, &TEMPLATES)?;
    let mut measurement = Measurement::new(&bundle.manifest, queries);
    let with_mask = dataset
        .indices(part)
        .into_iter()
        .filter(|&i| dataset.samples()[i].mask.is_some());
    for index in with_mask.take(limit) {
        measurement.photo(&mut engine, &dataset.get(index)?, dataset.names())?;
    }
    Ok(measurement.finish(&engine.provider))
}

/// What the probabilities of all names leave for the background prompts, per pixel; `logits[class][pixel]` are log odds.
fn background_probability(logits: &[Vec<f32>]) -> Vec<f32> {
    let pixels = logits.first().map_or(0, Vec::len);
    let named = |pixel: usize| logits.iter().map(|l| sigmoid(l[pixel])).sum::<f32>();
    (0..pixels).map(|pixel| 1.0 - named(pixel)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_takes_what_the_names_leave() {
        let none = background_probability(&[vec![0.0, -20.0], vec![-20.0, -20.0]]);
        assert!((none[0] - 0.5).abs() < 1e-3 && (none[1] - 1.0).abs() < 1e-3);
    }
}
