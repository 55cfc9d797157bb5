//! Zero-shot semantic segmentation.
//!
//! Labelled photos at their own size; all names of the table and the bundle's background prompts compete in every photo,
//! whatever it shows; a pixel gets the name of the highest probability, or none if the background prompts together have
//! more. Pixels without a label do not count. By the open protocol names are those of [`classes_of`], and a prediction on
//! background, or on a label outside the table, is a false positive unless the photo's collection does not annotate the
//! name or the two names overlap; the published ones ([`Protocol`]) know no such excuses. IoU is summed over all photos; a
//! mean is over the classes that some photo shows; with photos of several collections, also over each one's photos and the
//! classes that they show. The constant-class figure is the IoU of predicting that class
//! everywhere.

use std::collections::BTreeMap;

use super::protocol::Protocol;
use super::report::Entry;
use super::segmenter::Segmenter;
use super::truth::{Label, Tally, Truth};
use super::wording::{among_themselves, queries, tokenizer};
use super::{EvalError, chosen, frame};
use crate::contract::Manifest;
use crate::runtime;
use crate::text::templates::TEMPLATES;
use crate::train::dataset::names::{canonical, spoken};
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

/// The names that compete on `dataset`: [`CLASSES`] if its table has them all, else every name of its table.
#[must_use]
pub fn classes_of(dataset: &Dataset) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in dataset.names().iter().filter_map(canonical) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if CLASSES.iter().all(|c| names.contains(c)) {
        names = CLASSES.to_vec();
    }
    names.into_iter().map(str::to_owned).collect()
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct ClassResult {
    /// The class.
    pub name: String,
    /// Photos that show it.
    pub photos: usize,
    /// IoU of predicting it everywhere.
    pub constant: f64,
    /// IoU of the CLIP head alone.
    pub clip_head: f64,
    /// IoU of both heads.
    pub both_heads: f64,
}

/// The photos of one collection.
#[derive(Clone, Debug)]
pub struct SourceResult {
    /// Its name.
    pub name: String,
    /// Its photos with labels.
    pub photos: usize,
    /// Classes that they show.
    pub classes: usize,
    /// Mean IoU over these classes, on these photos: constant, CLIP head, both heads.
    pub means: [f64; 3],
}

/// The measurement.
#[derive(Clone, Debug)]
pub struct Semantic {
    /// Photos with labels.
    pub photos: usize,
    /// One row per class.
    pub classes: Vec<ClassResult>,
    /// IoU of the background, CLIP head alone and both heads, where every photo's collection annotates every class.
    pub background: Option<[f64; 2]>,
    /// One row per collection, if there are several.
    pub sources: Vec<SourceResult>,
    /// Back end and provider.
    pub provider: String,
}

impl Semantic {
    /// The classes that some photo shows: the others have no IoU.
    pub fn shown(&self) -> impl Iterator<Item = &ClassResult> {
        self.classes.iter().filter(|c| c.photos > 0)
    }

    /// Means over the classes that some photo shows: constant, CLIP head, both heads.
    #[must_use]
    pub fn means(&self) -> [f64; 3] {
        let n = self.shown().count().max(1) as f64;
        let mean = |f: fn(&ClassResult) -> f64| self.shown().map(f).sum::<f64>() / n;
        [mean(|c| c.constant), mean(|c| c.clip_head), mean(|c| c.both_heads)]
    }

    /// The rows of a table, IoU in percent.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        if self.photos == 0 {
            return Vec::new();
        }
        let [_, clip, both] = self.means();
        let shown = self.shown().count();
        let head = mean_head(shown, self.classes.len(), self.photos);
        let mut entries = vec![
            Entry::percent(format!("{head}: CLIP head"), clip),
            Entry::percent(format!("{head}: both heads"), both),
        ];
        if let Some(background) = self.background {
            for (heads, mean, iou) in [("CLIP head", clip, background[0]), ("both heads", both, background[1])] {
                let n = shown as f64;
                entries.push(Entry::percent(
                    format!("mean with background: {heads}"),
                    (n * mean + iou) / (n + 1.0),
                ));
            }
        }
        for c in self.shown() {
            entries.push(Entry::percent(
                format!("{}, {} photos: CLIP head", c.name, c.photos),
                c.clip_head,
            ));
            entries.push(Entry::percent(
                format!("{}, {} photos: both heads", c.name, c.photos),
                c.both_heads,
            ));
        }
        for s in &self.sources {
            let head = format!("{}, {} photos, mean of {} classes", s.name, s.photos, s.classes);
            entries.push(Entry::percent(format!("{head}: CLIP head"), s.means[1]));
            entries.push(Entry::percent(format!("{head}: both heads"), s.means[2]));
        }
        entries
    }

    /// The same rows for the constant-class figure.
    #[must_use]
    pub fn constant_entries(&self) -> Vec<Entry> {
        let constant = |c: &ClassResult| ClassResult {
            clip_head: c.constant,
            both_heads: c.constant,
            ..c.clone()
        };
        let classes = self.classes.iter().map(constant).collect();
        let of_source = |s: &SourceResult| SourceResult {
            means: [s.means[0]; 3],
            ..s.clone()
        };
        Self {
            classes,
            sources: self.sources.iter().map(of_source).collect(),
            background: None,
            ..self.clone()
        }
        .entries()
    }
}

/// What a mean IoU is a mean of.
pub(super) fn mean_head(shown: usize, classes: usize, photos: usize) -> String {
    if shown == classes {
        format!("mean of {classes} classes, {photos} photos")
    } else {
        format!("mean of the {shown} of {classes} classes that {photos} photos show")
    }
}

/// A running measurement of one model: photos go in one by one, tallies add up.
pub struct Measurement<'a> {
    manifest: &'a Manifest,
    queries: Queries,
    classes: Vec<String>,
    protocol: Protocol,
    preprocessor: Preprocessor,
    features: Features,
    whole: Counts,
    /// By collection.
    sources: BTreeMap<String, Counts>,
    background: [Tally; 2],
    /// Whether every photo's collection annotates every class.
    complete: bool,
}

/// What some photos show and were said to show, by class.
#[derive(Clone, Debug)]
struct Counts {
    photos: usize,
    shown: Vec<usize>,
    /// Each class predicted everywhere; CLIP head alone; both heads.
    tallies: [Vec<Tally>; 3],
}

impl Counts {
    fn new(classes: usize) -> Self {
        Self {
            photos: 0,
            shown: vec![0; classes],
            tallies: [(); 3].map(|()| vec![Tally::default(); classes]),
        }
    }

    fn add(&mut self, more: &Self) {
        self.photos += more.photos;
        self.shown.iter_mut().zip(&more.shown).for_each(|(a, b)| *a += b);
        for (tallies, more) in self.tallies.iter_mut().zip(&more.tallies) {
            tallies.iter_mut().zip(more).for_each(|(a, b)| *a += *b);
        }
    }

    /// Means over the classes that are shown.
    fn of_source(&self, name: &str) -> SourceResult {
        let shown: Vec<usize> = (0..self.shown.len()).filter(|&class| self.shown[class] > 0).collect();
        let mean = |tallies: &Vec<Tally>| {
            let sum: f64 = shown.iter().map(|&class| tallies[class].iou()).sum();
            sum / shown.len().max(1) as f64
        };
        SourceResult {
            name: name.into(),
            photos: self.photos,
            classes: shown.len(),
            means: self.tallies.each_ref().map(mean),
        }
    }
}

impl<'a> Measurement<'a> {
    /// Nothing measured yet; `queries` as [`queries`] makes them of `classes`.
    ///
    /// [`queries`]: super::queries
    #[must_use]
    pub fn new<N: AsRef<str>>(manifest: &'a Manifest, queries: Queries, classes: &[N]) -> Self {
        Self {
            manifest,
            queries,
            classes: classes.iter().map(|c| c.as_ref().to_owned()).collect(),
            protocol: Protocol::Open,
            preprocessor: Preprocessor::new(&manifest.encoder),
            features: Features::default(),
            whole: Counts::new(classes.len()),
            sources: BTreeMap::new(),
            background: [Tally::default(); 2],
            complete: true,
        }
    }

    /// As [`Self::new`], counted by `protocol`, whose classes they are.
    #[must_use]
    fn counted_by(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// As [`Self::new`], of photos that are stretched to the model's square.
    #[must_use]
    fn stretching(mut self) -> Self {
        self.preprocessor = self.preprocessor.stretching();
        self
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
            let truth = Truth::of(sample, names, &self.classes, self.protocol);
            let counts = self.count(&truth, &scores, &prompts, &decoded);
            self.whole.add(&counts);
            let empty = || Counts::new(self.classes.len());
            let source = self.sources.entry(sample.info.source.clone());
            source.or_insert_with(empty).add(&counts);
        }
        Ok((scores, prompts))
    }

    /// The counts of one photo.
    fn count(
        &mut self,
        truth: &Truth,
        scores: &ScoreMap,
        prompts: &[DecoderPrompt],
        decoded: &[DecodedPrompt],
    ) -> Counts {
        let (rules, classes) = (RefineRules::default(), self.classes.len());
        let alone: Vec<Vec<f32>> = (0..classes).map(|q| scores.frame_logits(q)).collect();
        let both = (0..classes).map(|q| semantic_logits(scores, q, prompts, decoded, &rules));
        let both: Vec<Vec<f32>> = both.collect();
        let none = background_probability(&alone, self.protocol);
        let mut counts = Counts::new(classes);
        counts.photos = 1;
        let [everywhere, of_alone, of_both] = &mut counts.tallies;
        truth.count(&alone, &none, of_alone, &mut self.background[0]);
        truth.count(&both, &none, of_both, &mut self.background[1]);
        self.complete &= truth.annotated.iter().all(|a| *a);
        truth.count_everywhere(everywhere);
        for (class, shown) in counts.shown.iter_mut().enumerate() {
            *shown = usize::from(truth.label.iter().any(|l| matches!(l, Label::Class(c) if *c == class)));
        }
        counts
    }

    /// The table of all labelled photos so far.
    #[must_use]
    pub fn finish(&self, provider: &str) -> Semantic {
        let classes = self.classes.iter().enumerate().map(|(i, name)| ClassResult {
            name: name.clone(),
            photos: self.whole.shown[i],
            constant: self.whole.tallies[0][i].iou(),
            clip_head: self.whole.tallies[1][i].iou(),
            both_heads: self.whole.tallies[2][i].iou(),
        });
        let several = self.sources.len() > 1;
        let sources = self.sources.iter().filter(|_| several);
        Semantic {
            photos: self.whole.photos,
            classes: classes.collect(),
            background: (self.complete && self.background[0].labelled > 0).then(|| self.background.map(|t| t.iou())),
            sources: sources.map(|(name, counts)| counts.of_source(name)).collect(),
            provider: provider.into(),
        }
    }
}

/// What is measured, and how it counts.
#[derive(Clone, Copy)]
pub struct Photos<'a> {
    /// The data.
    pub dataset: &'a Dataset,
    /// Which part; none for everything.
    pub part: Option<Split>,
    /// At most this many labelled photos.
    pub limit: usize,
    /// How pixels are counted.
    pub protocol: Protocol,
}

/// Measures semantic segmentation of `model`.
///
/// # Errors
/// [`EvalError`] if the model does not run or a photo cannot be read.
pub fn semantic(model: &mut Segmenter, photos: &Photos<'_>) -> Result<Semantic, EvalError> {
    let classes = photos.protocol.classes(photos.dataset);
    asked_as(&classes, &classes, model, photos)
}

/// As [`semantic`], each of `classes` asked with the word at its place in `asked`.
fn asked_as<N: AsRef<str>>(
    asked: &[N],
    classes: &[String],
    model: &mut Segmenter,
    photos: &Photos<'_>,
) -> Result<Semantic, EvalError> {
    let (bundle, engine) = (&model.bundle, &mut model.engine);
    let (tokenizer, text) = (tokenizer(bundle)?, &mut *engine.text);
    let queries = match photos.protocol.has_background() {
        true => queries(text, &tokenizer, &bundle.manifest, &TEMPLATES, asked)?,
        false => among_themselves(text, &tokenizer, &bundle.manifest, &TEMPLATES, asked)?,
    };
    semantic_by(queries, classes, model, photos)
}

/// As [`semantic`], asked in other words: each class that has one by the first of them, `automobile` for `car`. Rows are named by what
/// was asked.
///
/// # Errors
/// As [`semantic`].
pub fn in_other_words(model: &mut Segmenter, photos: &Photos<'_>) -> Result<Semantic, EvalError> {
    let classes = photos.protocol.classes(photos.dataset);
    let asked: Vec<&str> = classes
        .iter()
        .map(|class| spoken(class).nth(1).unwrap_or(class))
        .collect();
    let mut found = asked_as(&asked, &classes, model, photos)?;
    for (row, asked) in found.classes.iter_mut().zip(&asked) {
        row.name = (*asked).to_owned();
    }
    Ok(found)
}

/// As [`semantic`], with `queries` for `classes` as [`queries`] makes them.
///
/// # Errors
/// As [`semantic`].
pub(super) fn semantic_by(
    queries: Queries,
    classes: &[String],
    model: &mut Segmenter,
    photos: &Photos<'_>,
) -> Result<Semantic, EvalError> {
    let Photos {
        dataset,
        part,
        limit,
        protocol,
    } = *photos;
    let stretches = model.stretches();
    let (bundle, engine) = (&model.bundle, &mut model.engine);
    let mut measurement = Measurement::new(&bundle.manifest, queries, classes).counted_by(protocol);
    if stretches {
        measurement = measurement.stretching();
    }
    let with_mask = chosen(dataset, part).filter(|&i| dataset.samples()[i].mask.is_some());
    for index in with_mask.take(limit) {
        measurement.photo(engine, &dataset.get(index)?, dataset.names())?;
    }
    Ok(measurement.finish(&engine.provider))
}

/// What the probabilities of all names leave for the background prompts, per pixel; `logits[class][pixel]` are log odds.
/// Nothing where the protocol knows no background.
fn background_probability(logits: &[Vec<f32>], protocol: Protocol) -> Vec<f32> {
    let pixels = logits.first().map_or(0, Vec::len);
    if !protocol.has_background() {
        return vec![0.0; pixels];
    }
    let named = |pixel: usize| logits.iter().map(|l| sigmoid(l[pixel])).sum::<f32>();
    (0..pixels).map(|pixel| 1.0 - named(pixel)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_of_the_classes_that_are_shown() {
        let class = |name: &str, photos, iou| ClassResult {
            name: name.into(),
            photos,
            constant: iou / 2.0,
            clip_head: iou,
            both_heads: iou,
        };
        let mut found = Semantic {
            photos: 7,
            classes: vec![class("car", 5, 0.6), class("sky", 2, 0.4), class("horse", 0, 0.0)],
            background: Some([0.2; 2]),
            sources: Vec::new(),
            provider: "tract-cpu".into(),
        };
        assert_eq!(found.means(), [0.25, 0.5, 0.5]);
        let rows = |found: &Semantic| found.entries().into_iter().map(|e| e.name).collect::<Vec<_>>();
        assert_eq!(
            rows(&found)[0],
            "mean of the 2 of 3 classes that 7 photos show: CLIP head"
        );
        assert!(rows(&found).iter().all(|row| !row.starts_with("horse")));
        let with_background = found
            .entries()
            .into_iter()
            .find(|e| e.name.contains("with background"))
            .unwrap();
        assert_eq!(
            with_background,
            Entry::percent("mean with background: CLIP head", 1.2 / 3.0)
        );
        found.classes.pop();
        assert_eq!(rows(&found)[0], "mean of 2 classes, 7 photos: CLIP head");
    }

    #[test]
    fn photos_of_a_collection_are_counted_on_their_own_and_in_all() {
        let of = |shown: &[usize], tallies: &[(u64, u64, u64)]| {
            let mut counts = Counts::new(2);
            (counts.photos, counts.shown) = (1, shown.to_vec());
            let tally = |&(both, predicted, labelled): &(u64, u64, u64)| Tally {
                both,
                predicted,
                labelled,
            };
            counts.tallies = [(); 3].map(|()| tallies.iter().map(tally).collect());
            counts
        };
        let (streets, animals) = (
            of(&[1, 0], &[(2, 2, 4), (0, 3, 0)]),
            of(&[0, 1], &[(0, 4, 0), (3, 3, 3)]),
        );
        let found = streets.of_source("streets");
        assert_eq!((found.photos, found.classes, found.means), (1, 1, [0.5; 3]));
        assert_eq!(animals.of_source("animals").means, [1.0; 3]);
        let mut whole = streets;
        whole.add(&animals);
        let found = whole.of_source("all");
        assert_eq!(
            (found.photos, found.classes, found.means),
            (2, 2, [(2.0 / 8.0 + 0.5) / 2.0; 3])
        );
    }

    #[test]
    fn the_background_takes_what_the_names_leave() {
        let logits = [vec![0.0, -20.0], vec![-20.0, -20.0]];
        let none = background_probability(&logits, Protocol::Published);
        assert!((none[0] - 0.5).abs() < 1e-3 && (none[1] - 1.0).abs() < 1e-3);
        assert_eq!(
            background_probability(&logits, Protocol::PublishedNoBackground),
            [0.0; 2]
        );
    }
}
