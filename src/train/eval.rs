//! Measures a bundle on photos that training never saw, through the daemon's own runtime and vision code.
//!
//! Zero-shot semantic segmentation, the protocol: the validation tenth of the photos (split by hash of the
//! key), at their own size; ten names and the bundle's background prompts compete in every photo, whatever it
//! shows; a pixel gets the name of the highest probability, or none if the background prompts together have more. Pixels without a
//! label do not count; a prediction on background, or on a label outside the ten, is a false positive
//! unless the photo's collection does not annotate the name or the two names overlap. IoU is summed over all
//! photos. The constant-class figure is the IoU of predicting that class everywhere.

use crate::contract::{Bundle, Manifest};
use crate::runtime::{self, RuntimeError, RuntimeOptions, TextEncoder};
use crate::text::templates::TEMPLATES;
use crate::text::tokenizer::{TextError, Tokenizer};
use crate::train::dataset::names::{canonical, overlap, whole_person};
use crate::train::dataset::{ClassNames, Dataset, DatasetError, Sample, Split};
use crate::vision::features::Features;
use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::{FrameSize, SizeError};
use crate::vision::pixels::PixelError;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{DecoderPrompt, PromptRules, Queries, QueryError, ScoreMap, mean_embedding, score, sigmoid};
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

/// Why a measurement stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Opening or running the bundle.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A photo.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The bundle's vocabulary or a name.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The embeddings of the names.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A photo's size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A photo's pixels.
    #[error(transparent)]
    Pixels(#[from] PixelError),
    /// The vocabulary file of the bundle.
    #[error("{path}: {source}")]
    Vocabulary {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Pixels of one class: right, claimed, there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Predicted and labelled so.
    pub both: u64,
    /// Predicted, counted.
    pub predicted: u64,
    /// Labelled so.
    pub labelled: u64,
}

impl Tally {
    /// Intersection over union, 0 where there is neither.
    #[must_use]
    pub fn iou(&self) -> f64 {
        let union = self.predicted + self.labelled - self.both;
        if union == 0 {
            0.0
        } else {
            self.both as f64 / union as f64
        }
    }
}

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

/// Text embeddings of names: templates averaged and re-normalised, as the daemon does it.
fn embed(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    name: &str,
    width: usize,
    templates: &[&str],
) -> Result<Vec<f32>, EvalError> {
    let ids = templates
        .iter()
        .map(|t| Ok(tokenizer.encode(&t.replace("{}", name))?.to_vec()));
    let rows = text.embed(&ids.collect::<Result<Vec<_>, TextError>>()?)?;
    Ok(mean_embedding(&rows.concat(), width)?)
}

/// The tokenizer a bundle names.
///
/// # Errors
/// [`EvalError::Vocabulary`] or [`EvalError::Text`] if its merges cannot be read.
pub fn tokenizer(bundle: &Bundle) -> Result<Tokenizer, EvalError> {
    let Some(file) = bundle.manifest.vocabulary_file() else {
        return Ok(Tokenizer::standard());
    };
    let path = bundle.dir.join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| EvalError::Vocabulary { path, source })?;
    Ok(Tokenizer::from_merges(&text)?)
}

/// Embeddings of [`CLASSES`] and of the bundle's background prompts, each the mean over `templates`.
///
/// # Errors
/// [`EvalError`] if the text encoder fails or a name does not fit its context.
pub fn queries(
    text: &mut dyn TextEncoder,
    tokenizer: &Tokenizer,
    manifest: &Manifest,
    templates: &[&str],
) -> Result<Queries, EvalError> {
    let width = manifest.encoder.embed_dim;
    let mut asked = Vec::new();
    for name in CLASSES {
        asked.push((embed(text, tokenizer, name, width, templates)?, 0.5));
    }
    let mut background = Vec::new();
    for name in competitors(manifest) {
        background.push(embed(text, tokenizer, name, width, templates)?);
    }
    Ok(Queries::new(width, &asked, &background)?)
}

/// The bundle's background prompts that are not asked about themselves.
pub fn competitors(manifest: &Manifest) -> impl Iterator<Item = &str> {
    let background = manifest.background.iter().map(String::as_str);
    background.filter(|b| !CLASSES.contains(b))
}

/// The photo as a camera would deliver it.
///
/// # Errors
/// [`EvalError::Size`] for a photo without pixels.
pub fn frame(sample: &Sample) -> Result<Frame, EvalError> {
    Ok(Frame {
        size: FrameSize::new(sample.photo.width as u32, sample.photo.height as u32)?,
        format: PixelFormat::Rgb24,
        stride: 3 * sample.photo.width,
        bytes: sample.photo.rgb.clone(),
        sequence: Sequence::default(),
        captured: CaptureTime::default(),
    })
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

/// What a pixel is labelled as.
#[derive(Clone, Debug, PartialEq)]
enum Label {
    Unknown,
    Background,
    Class(usize),
    Other(u8),
}

/// Labels of one photo.
struct Truth {
    label: Vec<Label>,
    /// Per class: whether a prediction on background counts.
    annotated: [bool; CLASSES.len()],
    /// Per table index: classes that a label outside the ten may also be called.
    tolerated: Vec<[bool; CLASSES.len()]>,
}

impl Truth {
    fn of(sample: &Sample, names: &ClassNames) -> Self {
        let mask = whole_person(sample, names).or_else(|| sample.mask.clone());
        let table: Vec<Label> = (0..names.len())
            .map(|i| {
                let Ok(index) = u8::try_from(i) else {
                    return Label::Unknown;
                };
                match names.name(index).map(|n| (n, canonical(n))) {
                    _ if index == ClassNames::BACKGROUND => Label::Background,
                    Some((_, Some(name))) => CLASSES
                        .iter()
                        .position(|c| *c == name)
                        .map_or(Label::Other(index), Label::Class),
                    _ => Label::Unknown,
                }
            })
            .collect();
        let tolerated = (0..names.len()).map(|i| {
            let name = u8::try_from(i).ok().and_then(|i| names.name(i)).and_then(canonical);
            CLASSES.map(|c| name.is_some_and(|n| overlap(n, c)))
        });
        let classes = mask.map(|m| m.classes).unwrap_or_default();
        Self {
            label: classes.iter().map(|&c| table[usize::from(c)].clone()).collect(),
            annotated: CLASSES.map(|c| sample.info.vocab.iter().any(|v| canonical(v) == Some(c))),
            tolerated: tolerated.collect(),
        }
    }

    /// Adds the prediction by `logits[class][pixel]` (log odds) to the tallies; `none` is the background's probability.
    fn count(&self, logits: &[Vec<f32>], none: &[f32], tallies: &mut [Tally; CLASSES.len()]) {
        for (pixel, label) in self.label.iter().enumerate() {
            let best = (0..CLASSES.len()).max_by(|&a, &b| logits[a][pixel].total_cmp(&logits[b][pixel]));
            let best = best.filter(|&b| sigmoid(logits[b][pixel]) >= none[pixel]);
            match label {
                Label::Unknown => {}
                Label::Background => {
                    if let Some(b) = best.filter(|&b| self.annotated[b]) {
                        tallies[b].predicted += 1;
                    }
                }
                Label::Other(index) => {
                    if let Some(b) = best.filter(|&b| !self.tolerated[usize::from(*index)][b]) {
                        tallies[b].predicted += 1;
                    }
                }
                Label::Class(class) => {
                    tallies[*class].labelled += 1;
                    if let Some(b) = best {
                        tallies[b].predicted += 1;
                        tallies[b].both += u64::from(b == *class);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(label: Vec<Label>) -> Truth {
        let mut annotated = [false; CLASSES.len()];
        annotated[1] = true;
        let mut tolerated = vec![[false; CLASSES.len()]; 2];
        tolerated[1][4] = true;
        Truth {
            label,
            annotated,
            tolerated,
        }
    }

    /// Logits that name `class` on every pixel, with `level`.
    fn everywhere(class: usize, level: f32, pixels: usize) -> Vec<Vec<f32>> {
        (0..CLASSES.len())
            .map(|c| vec![if c == class { level } else { level - 5.0 }; pixels])
            .collect()
    }

    #[test]
    fn right_wrong_and_ignored_pixels_are_counted_once() {
        let labels = vec![
            Label::Class(1),
            Label::Class(0),
            Label::Unknown,
            Label::Background,
            Label::Other(1),
        ];
        let mut tallies = [Tally::default(); CLASSES.len()];
        truth(labels).count(&everywhere(1, 1.0, 5), &[0.5; 5], &mut tallies);
        assert_eq!(
            tallies[1],
            Tally {
                both: 1,
                predicted: 4,
                labelled: 1
            }
        );
        assert_eq!(
            tallies[0],
            Tally {
                both: 0,
                predicted: 0,
                labelled: 1
            }
        );
        assert!((tallies[1].iou() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn unannotated_background_and_overlapping_names_are_no_mistakes() {
        let mut tallies = [Tally::default(); CLASSES.len()];
        truth(vec![Label::Background, Label::Other(1)]).count(&everywhere(4, 1.0, 2), &[0.5; 2], &mut tallies);
        assert_eq!(tallies[4], Tally::default());
    }

    #[test]
    fn the_background_takes_what_the_names_leave() {
        let none = background_probability(&[vec![0.0, -20.0], vec![-20.0, -20.0]]);
        assert!((none[0] - 0.5).abs() < 1e-3 && (none[1] - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_pixel_whose_best_name_is_below_the_background_has_none() {
        let mut tallies = [Tally::default(); CLASSES.len()];
        truth(vec![Label::Class(1)]).count(&everywhere(1, -0.1, 1), &[0.5], &mut tallies);
        assert_eq!(
            tallies[1],
            Tally {
                both: 0,
                predicted: 0,
                labelled: 1
            }
        );
    }
}
