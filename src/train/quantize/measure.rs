//! What a variant loses against the reference, photo by photo, in one run of each encoder.
//!
//! * relative L2 error of every output; decoder outputs from the variant's own features, for the reference's prompts
//! * mean IoU of both heads against the labels, as `train eval` measures it
//! * mask agreement: IoU of the low-resolution masks of both for the reference's prompts, the output that the reference
//!   predicts best
//! * ranking: a photo counts as changed if its highest-scoring class became another one although the reference put more
//!   than [`TIE`] between the two. A class's score in a photo is what the daemon reports for an absent or present query:
//!   its highest probability on any patch of the frame.

use std::collections::BTreeMap;

use super::QuantizeError;
use super::spool::Spool;
use crate::contract::{GraphKind, Manifest};
use crate::runtime::{Engine, RuntimeError, TextEncoder};
use crate::text::tokenizer::Tokenizer;
use crate::train::dataset::Dataset;
use crate::train::eval::{self, Measurement, Semantic};
use crate::vision::features::Features;
use crate::vision::geometry::ModelPoint;
use crate::vision::query::{DecoderPrompt, PromptRules, Queries, ScoreMap, score};
use crate::vision::refine::{DecodedPrompt, MASKS_PER_PROMPT};

/// Two scores (probabilities) this close are a tie: thresholds are set in steps of a few hundredths, so no
/// configuration tells them apart reliably.
pub const TIE: f32 = 0.05;

/// Output names of all graphs, in the order in which errors are summed.
const OUTPUTS: [&str; 6] = [
    "image_embeddings",
    "patch_embeddings",
    "image_embedding",
    "low_res_logits",
    "iou_predictions",
    "text_embedding",
];

/// Sums for relative L2 errors by output name.
#[derive(Clone, Debug, Default)]
pub struct Errors(BTreeMap<&'static str, [f64; 2]>);

impl Errors {
    /// Adds one pair of arrays; arrays of different lengths count as wholly wrong.
    pub fn add(&mut self, output: &'static str, found: &[f32], expected: &[f32]) {
        let sums = self.0.entry(output).or_default();
        let square = |v: f32| f64::from(v) * f64::from(v);
        sums[1] += expected.iter().map(|&e| square(e)).sum::<f64>();
        sums[0] += if found.len() == expected.len() {
            found.iter().zip(expected).map(|(f, e)| square(f - e)).sum::<f64>()
        } else {
            expected.iter().map(|&e| square(e)).sum()
        };
    }

    /// Relative L2 error per output.
    #[must_use]
    pub fn relative(&self) -> BTreeMap<String, f64> {
        let ratio = |[difference, norm]: [f64; 2]| (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
        self.0
            .iter()
            .map(|(name, sums)| ((*name).into(), ratio(*sums)))
            .collect()
    }

    /// Root mean square of the errors of all outputs.
    #[must_use]
    pub fn overall(&self) -> f64 {
        let squares = self.relative().into_values().map(|e| e * e);
        (squares.sum::<f64>() / self.0.len().max(1) as f64).sqrt()
    }
}

/// Loss of one variant.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Relative L2 error per output.
    pub relative_error: BTreeMap<String, f64>,
    /// Photos measured.
    pub photos: usize,
    /// Photos with labels among them.
    pub labelled: usize,
    /// Mean IoU of both heads: reference, variant; `None` where no photo is labelled with one of the names.
    pub mean_iou: Option<[f64; 2]>,
    /// Mean IoU of the variant's masks with the reference's; `None` if no prompt was asked.
    pub mask_agreement: f64,
    /// Share of photos with another highest class than before, ties aside.
    pub ranking_changed: f64,
    /// Share of photos with another highest class than before, ties included.
    pub top_differs: f64,
}

impl Loss {
    /// The loss of a variant whose outputs are not finite.
    #[must_use]
    pub fn unusable(subject: &Subject<'_>) -> Self {
        Self {
            relative_error: OUTPUTS.map(|o| (o.to_owned(), f64::INFINITY)).into(),
            photos: subject.photos.len(),
            labelled: 0,
            mean_iou: None,
            mask_agreement: 0.0,
            ranking_changed: 1.0,
            top_differs: 1.0,
        }
    }

    /// Change of mean IoU, negative when worse.
    #[must_use]
    pub fn iou_change(&self) -> Option<f64> {
        self.mean_iou.map(|[reference, variant]| variant - reference)
    }
}

/// What photos, names and texts are measured.
pub struct Subject<'a> {
    /// The bundle's manifest.
    pub manifest: &'a Manifest,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Photos.
    pub dataset: &'a Dataset,
    /// Indices of the measured photos.
    pub photos: Vec<usize>,
    /// Names that compete in every photo.
    pub classes: Vec<String>,
    /// Sentence templates of a name.
    pub templates: &'a [&'a str],
}

impl Subject<'_> {
    /// What the names are, as `text` embeds them.
    ///
    /// # Errors
    /// [`QuantizeError::Eval`] for a name that is too long or a graph that does not run.
    pub fn queries(&self, text: &mut dyn TextEncoder) -> Result<Queries, QuantizeError> {
        let found = eval::queries(text, self.tokenizer, self.manifest, self.templates, &self.classes);
        found.map_err(Into::into)
    }
}

/// The reference's answers, and its own IoU.
pub struct Reference {
    spool: Spool,
    queries: Queries,
    texts: Vec<Vec<f32>>,
    semantic: Semantic,
}

/// The first prompts of a photo's scores, as many as one decoder run takes, the last of them a plain point without mask:
/// a scene that shows none of the names is asked about too.
#[must_use]
pub fn prompts_of_one_run(scores: &ScoreMap, manifest: &Manifest) -> Vec<DecoderPrompt> {
    let (side, points) = (manifest.encoder.low_res_side(), manifest.decoder.points);
    let mut prompts = scores.prompts(&PromptRules::default(), side, points);
    prompts.truncate(manifest.decoder.prompts.saturating_sub(1));
    let scaled = scores.letterbox().scaled();
    prompts.push(DecoderPrompt {
        query: 0,
        score: 0.5,
        points: vec![ModelPoint {
            x: scaled.width() as f32 / 2.0,
            y: scaled.height() as f32 / 2.0,
        }],
        mask: Vec::new(),
    });
    prompts
}

/// Token ids of every name in every template.
///
/// # Errors
/// [`QuantizeError::Eval`] for a name that is too long.
pub fn token_ids(subject: &Subject<'_>) -> Result<Vec<Vec<u32>>, QuantizeError> {
    let classes = subject.classes.iter().map(String::as_str);
    let names = classes.chain(eval::competitors(subject.manifest, &subject.classes));
    let texts = names.flat_map(|n| subject.templates.iter().map(move |t| t.replace("{}", n)));
    let ids = texts.map(|t| Ok(subject.tokenizer.encode(&t).map_err(eval::EvalError::from)?.to_vec()));
    ids.collect()
}

fn best(scores: &ScoreMap, subject: &Subject<'_>) -> Vec<f32> {
    (0..subject.classes.len()).map(|c| scores.best(c)).collect()
}

impl Reference {
    /// Runs the reference on every photo.
    ///
    /// # Errors
    /// [`QuantizeError`] if a photo or a graph cannot be used or the disk of the spool is full.
    pub fn measure(subject: &Subject<'_>, mut engine: Engine, mut spool: Spool) -> Result<Self, QuantizeError> {
        let text = &mut *engine.text;
        let queries = subject.queries(text)?;
        let texts = text.embed(&token_ids(subject)?)?;
        let mut measurement = Measurement::new(subject.manifest, queries.clone(), &subject.classes);
        for &index in &subject.photos {
            let sample = subject.dataset.get(index).map_err(eval::EvalError::from)?;
            let (scores, _) = measurement.photo(&mut engine, &sample, subject.dataset.names())?;
            let features = measurement.features();
            let decoded = engine
                .decoder
                .decode(features, &prompts_of_one_run(&scores, subject.manifest))?;
            spool.push(&features.image_embeddings)?;
            spool.push(&features.patch_embeddings)?;
            spool.push(&features.image_embedding)?;
            spool.push(&best(&scores, subject))?;
            spool.push(&decoded.iter().flat_map(|d| d.iou_predictions).collect::<Vec<_>>())?;
            for d in &decoded {
                spool.push(&d.low_res_logits)?;
            }
        }
        Ok(Self {
            spool,
            queries,
            texts,
            semantic: measurement.finish(&engine.provider),
        })
    }

    /// Compares a variant with it.
    ///
    /// # Errors
    /// [`QuantizeError`] if the variant does not run.
    pub fn compare(&mut self, subject: &Subject<'_>, mut engine: Engine) -> Result<Loss, QuantizeError> {
        let mut errors = Errors::default();
        let text = &mut *engine.text;
        for (found, expected) in text.embed(&token_ids(subject)?)?.iter().zip(&self.texts) {
            errors.add("text_embedding", found, expected);
        }
        let queries = subject.queries(text)?;
        let mut measurement = Measurement::new(subject.manifest, queries, &subject.classes);
        let mut reader = self.spool.read()?;
        let (mut changed, mut differs, mut agreement) = (0, 0, Mean::default());
        for &index in &subject.photos {
            let sample = subject.dataset.get(index).map_err(eval::EvalError::from)?;
            let (scores, _) = measurement.photo(&mut engine, &sample, subject.dataset.names())?;
            let expected = Features {
                image_embeddings: reader.next_array()?,
                patch_embeddings: reader.next_array()?,
                image_embedding: reader.next_array()?,
            };
            let features = measurement.features();
            add_features(&mut errors, features, &expected);
            let ranked = Ranking::of(&reader.next_array()?, &best(&scores, subject));
            changed += usize::from(ranked == Ranking::Changed);
            differs += usize::from(ranked != Ranking::Kept);
            // the same prompts: from the reference's features and names
            let own = score(&expected, &self.queries, subject.manifest, *scores.letterbox());
            let prompts = prompts_of_one_run(&own.map_err(eval::EvalError::from)?, subject.manifest);
            let ious = reader.next_array()?;
            let (ious, _) = ious.as_chunks::<MASKS_PER_PROMPT>();
            for (found, predicted) in engine.decoder.decode(features, &prompts)?.iter().zip(ious) {
                let logits = reader.next_array()?;
                errors.add("low_res_logits", &found.low_res_logits, &logits);
                errors.add("iou_predictions", &found.iou_predictions, predicted);
                agreement.add(mask_iou(found, &logits, predicted));
            }
        }
        let (photos, semantic) = (subject.photos.len(), measurement.finish(&engine.provider));
        let share = |n: usize| n as f64 / photos.max(1) as f64;
        Ok(Loss {
            relative_error: errors.relative(),
            photos,
            labelled: semantic.photos,
            mean_iou: mean_iou(&self.semantic).zip(mean_iou(&semantic)).map(|(a, b)| [a, b]),
            mask_agreement: agreement.value(),
            ranking_changed: share(changed),
            top_differs: share(differs),
        })
    }

    /// The reference's own table.
    #[must_use]
    pub fn semantic(&self) -> &Semantic {
        &self.semantic
    }
}

/// Mean IoU of both heads over the names that some photo is labelled with, if there is one.
#[must_use]
pub fn mean_iou(found: &Semantic) -> Option<f64> {
    found.shown().next().map(|_| found.means()[2])
}

/// Adds the encoder's three outputs.
pub fn add_features(errors: &mut Errors, found: &Features, expected: &Features) {
    let pick = |f: &Features| [&f.image_embeddings, &f.patch_embeddings, &f.image_embedding].map(Clone::clone);
    for (name, (f, e)) in OUTPUTS.into_iter().zip(pick(found).iter().zip(&pick(expected))) {
        errors.add(name, f, e);
    }
}

/// IoU of the masks of the output that the reference predicts best; two empty masks agree.
fn mask_iou(found: &DecodedPrompt, expected: &[f32], predicted: &[f32; MASKS_PER_PROMPT]) -> f64 {
    let cells = expected.len() / MASKS_PER_PROMPT;
    let index = (1..MASKS_PER_PROMPT)
        .max_by(|&a, &b| predicted[a].total_cmp(&predicted[b]))
        .unwrap_or(1);
    let span = index * cells..(index + 1) * cells;
    let (found, expected) = (found.low_res_logits.get(span.clone()).unwrap_or(&[]), &expected[span]);
    let (mut both, mut either) = (0_usize, 0_usize);
    for (&f, &e) in found.iter().zip(expected) {
        both += usize::from(f > 0.0 && e > 0.0);
        either += usize::from(f > 0.0 || e > 0.0);
    }
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// What became of a photo's highest class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranking {
    Kept,
    /// Another class, which the reference scored within [`TIE`].
    Tie,
    Changed,
}

impl Ranking {
    fn of(reference: &[f32], variant: &[f32]) -> Self {
        let top = |scores: &[f32]| (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        match (top(reference), top(variant)) {
            (Some(before), Some(after)) if before != after => {
                if reference[before] - reference[after] > TIE {
                    Self::Changed
                } else {
                    Self::Tie
                }
            }
            _ => Self::Kept,
        }
    }
}

/// Outputs of one graph on a few inputs, to compare trial variants with.
#[derive(Clone, Debug)]
pub enum Trial {
    /// Preprocessed photos and what the reference encoder said.
    Encoder(Vec<(Vec<f32>, Features)>),
    /// Features, prompts, and what the reference decoder said.
    MaskDecoder(Vec<(Features, Vec<DecoderPrompt>, Vec<DecodedPrompt>)>),
    /// Token ids, and what the reference text encoder said.
    TextEncoder(Vec<Vec<u32>>, Vec<Vec<f32>>),
}

impl Trial {
    /// The graph that is tried.
    #[must_use]
    pub fn kind(&self) -> GraphKind {
        match self {
            Self::Encoder(_) => GraphKind::Encoder,
            Self::MaskDecoder(_) => GraphKind::MaskDecoder,
            Self::TextEncoder(..) => GraphKind::TextEncoder,
        }
    }

    /// Runs of the graph that one trial takes.
    #[must_use]
    pub fn runs(&self) -> usize {
        match self {
            Self::Encoder(inputs) => inputs.len(),
            Self::MaskDecoder(inputs) => inputs.len(),
            Self::TextEncoder(ids, _) => ids.len().div_ceil(8),
        }
    }

    /// Overall relative error of the engine's graph; infinite if it gives values that are not finite.
    ///
    /// # Errors
    /// [`QuantizeError::Runtime`] if the graph does not run.
    pub fn error(&self, engine: &mut Engine) -> Result<f64, QuantizeError> {
        match self.errors(engine) {
            Ok(errors) if errors.overall().is_finite() => Ok(errors.overall()),
            Ok(_) | Err(RuntimeError::Features(_)) => Ok(f64::INFINITY),
            Err(error) => Err(error.into()),
        }
    }

    fn errors(&self, engine: &mut Engine) -> Result<Errors, RuntimeError> {
        let mut errors = Errors::default();
        match self {
            Self::Encoder(inputs) => {
                let mut features = Features::default();
                for (image, expected) in inputs {
                    engine.encoder.encode(image, &mut features)?;
                    add_features(&mut errors, &features, expected);
                }
            }
            Self::MaskDecoder(inputs) => {
                for (features, prompts, expected) in inputs {
                    for (f, e) in engine.decoder.decode(features, prompts)?.iter().zip(expected) {
                        errors.add("low_res_logits", &f.low_res_logits, &e.low_res_logits);
                        errors.add("iou_predictions", &f.iou_predictions, &e.iou_predictions);
                    }
                }
            }
            Self::TextEncoder(ids, expected) => {
                for (f, e) in engine.text.embed(ids)?.iter().zip(expected) {
                    errors.add("text_embedding", f, e);
                }
            }
        }
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_iou_needs_a_photo_that_shows_one_of_the_names() {
        use crate::train::eval::ClassResult;
        let class = |photos, iou| ClassResult {
            name: "pallet".into(),
            photos,
            constant: 0.0,
            clip_head: 0.0,
            both_heads: iou,
        };
        let found = |classes| Semantic {
            photos: 3,
            classes,
            background: None,
            sources: Vec::new(),
            provider: "tract-cpu".into(),
        };
        assert_eq!(mean_iou(&found(vec![class(0, 0.0), class(0, 0.0)])), None);
        assert_eq!(mean_iou(&found(vec![class(0, 0.0), class(2, 0.5)])), Some(0.5));
    }

    #[test]
    fn a_ranking_changes_only_beyond_a_tie() {
        assert_eq!(Ranking::of(&[0.9, 0.2], &[0.6, 0.5]), Ranking::Kept);
        assert_eq!(Ranking::of(&[0.90, 0.87], &[0.8, 0.85]), Ranking::Tie);
        assert_eq!(Ranking::of(&[0.90, 0.80], &[0.8, 0.85]), Ranking::Changed);
    }

    #[test]
    fn errors_are_relative_to_the_reference_and_a_wrong_length_is_wholly_wrong() {
        let mut errors = Errors::default();
        errors.add("a", &[3.0, 4.0], &[3.0, 4.5]);
        errors.add("b", &[1.0], &[2.0, 0.0]);
        let relative = errors.relative();
        assert!((relative["a"] - 0.5 / (9.0_f64 + 20.25).sqrt()).abs() < 1e-9);
        assert!((relative["b"] - 1.0).abs() < 1e-9);
        let mean = (relative["a"].powi(2) + 1.0) / 2.0;
        assert!((errors.overall() - mean.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn agreement_looks_at_the_mask_that_the_reference_predicts_best() {
        let expected: Vec<f32> = [[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]].concat();
        let found = |best: [f32; 2]| DecodedPrompt {
            low_res_logits: [[-1.0; 2], [-1.0; 2], best, [1.0; 2]].concat(),
            iou_predictions: [9.0, 9.0, 0.0, 0.0],
        };
        let predicted = [9.0, 0.1, 0.8, 0.2];
        assert_eq!(mask_iou(&found([2.0, 3.0]), &expected, &predicted), 1.0);
        assert_eq!(mask_iou(&found([2.0, -3.0]), &expected, &predicted), 0.5);
        assert_eq!(mask_iou(&found([2.0, -3.0]), &[-1.0; 8], &predicted), 0.0);
        assert_eq!(mask_iou(&found([-2.0, -3.0]), &[-1.0; 8], &predicted), 1.0);
    }
}
