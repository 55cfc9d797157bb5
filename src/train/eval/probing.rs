//! Head probing: what a linear layer reads from frozen features.
//!
//! Ridge regression in closed form on one-hot targets, features standardised by their spread in training, the penalty a
//! thousandth of the number of examples. Fitted on the nine training tenths, scored on the validation tenth; or fitted
//! on the training set that a collection is published with, scored on its validation set. *Segmentation*: one example
//! per cell of the feature map, its target the shares of the classes among the cell's labelled pixels; the cell scores
//! go to the photo bilinearly, the best class wins, and every labelled pixel of the classes counts. Where the protocol
//! counts background as benchmarks do, it is the last of the classes. *Classification*: one example per photo, its
//! target the photo's label; collections of at least two names with photos in both parts.

mod feature_map;
mod ridge;

use super::instance::Mean;
use super::protocol::Protocol;
use super::report::Entry;
use super::semantic::Photos;
use super::truth::{Label, Tally, Truth};
use super::zero_shot::{Class, rank, vocabularies};
use super::{EvalError, chosen};
use crate::train::dataset::{Dataset, Sample, Split};
pub use feature_map::{FeatureMap, Features, Source};
use ridge::{Fit, Ridge};

/// What probes are fitted on and what they are scored on.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    fitted: Part<'a>,
    scored: Part<'a>,
    /// Most photos of each part and kind.
    limit: usize,
    protocol: Protocol,
}

#[derive(Clone, Copy)]
struct Part<'a> {
    dataset: &'a Dataset,
    split: Option<Split>,
}

impl<'a> Part<'a> {
    fn indices(self) -> impl Iterator<Item = usize> {
        chosen(self.dataset, self.split)
    }

    /// Labelled photos of one collection with the place of their class among `classes`.
    fn of_collection(self, source: &str, classes: &[Class<'_>], limit: usize) -> Vec<(usize, usize)> {
        let samples = self.dataset.samples();
        let own = self.indices().filter(|&i| samples[i].info.source == source);
        let place = |i: usize| Some((i, classes.binary_search(&Class::of(&samples[i])?).ok()?));
        own.filter_map(place).take(limit).collect()
    }

    fn with_masks(self, limit: usize) -> impl Iterator<Item = usize> {
        let samples = self.dataset.samples();
        self.indices().filter(|&i| samples[i].mask.is_some()).take(limit)
    }
}

impl<'a> Examples<'a> {
    /// The nine training tenths and the validation tenth of one data set, at most `limit` photos of each.
    #[must_use]
    pub fn tenths(dataset: &'a Dataset, limit: usize, protocol: Protocol) -> Self {
        let part = |split| Part {
            dataset,
            split: Some(split),
        };
        Self {
            fitted: part(Split::Train),
            scored: part(Split::Validation),
            limit,
            protocol,
        }
    }

    /// All of one data set, and `photos` of another one with the same table of names.
    #[must_use]
    pub fn apart(fitted: &'a Dataset, photos: &Photos<'a>) -> Self {
        Self {
            fitted: Part {
                dataset: fitted,
                split: None,
            },
            scored: Part {
                dataset: photos.dataset,
                split: photos.part,
            },
            limit: photos.limit,
            protocol: photos.protocol,
        }
    }

    /// Collections to score with the one that each is fitted on: that of its name, or the only one, and their classes.
    fn collections(&self) -> Vec<(&'a str, &'a str, Vec<Class<'a>>)> {
        let (fitted, scored) = (vocabularies(self.fitted.dataset), vocabularies(self.scored.dataset));
        let single = fitted.len() == 1 && scored.len() == 1;
        let mut pairs = Vec::new();
        for (source, classes) in scored {
            let learnt = fitted.get_key_value(source);
            if let Some((from, learnt)) = learnt.or_else(|| fitted.first_key_value().filter(|_| single)) {
                let mut all = [classes, learnt.clone()].concat();
                all.sort();
                all.dedup();
                pairs.push((source, *from, all));
            }
        }
        pairs
    }
}

/// Linear probes on the features of one model.
///
/// # Errors
/// [`EvalError`] if a photo cannot be used or the model fails.
pub fn probe(features: &mut dyn Features, examples: &Examples<'_>) -> Result<Vec<Entry>, EvalError> {
    let mut entries = segmentation(features, examples)?;
    entries.extend(classification(features, examples)?);
    Ok(entries)
}

fn segmentation(features: &mut dyn Features, examples: &Examples<'_>) -> Result<Vec<Entry>, EvalError> {
    let Examples {
        fitted,
        scored,
        limit,
        protocol,
    } = *examples;
    let (names, table) = (protocol.classes(scored.dataset), scored.dataset.names());
    let classes = names.len() + usize::from(background_is_a_class(protocol));
    let labels = |sample: &Sample| targets(Truth::of(sample, table, &names, protocol), names.len(), protocol);
    let mut ridge: Option<Ridge> = None;
    for index in fitted.with_masks(limit) {
        let sample = fitted.dataset.get(index)?;
        let map = features.map(&sample)?;
        let ridge = ridge.get_or_insert_with(|| Ridge::new(map.channels, classes));
        for (cell, target) in cell_targets(&map, &sample, &labels(&sample), classes) {
            ridge.add(&map.cell(cell), &target);
        }
    }
    let Some(fit) = ridge.as_ref().and_then(Ridge::solve) else {
        return Ok(Vec::new());
    };
    let mut tallies = vec![Tally::default(); classes];
    let mut photos = 0;
    for index in scored.with_masks(limit) {
        let sample = scored.dataset.get(index)?;
        let map = features.map(&sample)?;
        count(&fit, &map, &labels(&sample), &mut tallies);
        photos += 1;
    }
    let mut mean = Mean::default();
    tallies
        .iter()
        .filter(|t| t.labelled > 0)
        .for_each(|t| mean.add(t.iou()));
    let name = format!("segmentation, {classes} classes, {photos} photos: mean IoU %");
    Ok(if photos > 0 {
        vec![Entry::percent(name, mean.value())]
    } else {
        Vec::new()
    })
}

/// Whether what shows none of the names is to be told from them: where papers count it.
fn background_is_a_class(protocol: Protocol) -> bool {
    protocol.strict() && protocol.has_background()
}

/// Per pixel: the class to be told, background behind the names; nothing where no pixel counts.
fn targets(truth: Truth, names: usize, protocol: Protocol) -> Vec<Option<usize>> {
    let target = |label| match label {
        Label::Class(class) => Some(class),
        Label::Background => background_is_a_class(protocol).then_some(names),
        Label::Other(_) | Label::Unknown => None,
    };
    truth.label.into_iter().map(target).collect()
}

/// Shares of the classes in each cell that has a labelled pixel of one.
fn cell_targets(map: &FeatureMap, sample: &Sample, labels: &[Option<usize>], classes: usize) -> Vec<(usize, Vec<f32>)> {
    let mut shares = vec![vec![0.0_f32; classes]; map.side * map.side];
    let width = sample.photo.width.max(1);
    for (pixel, label) in labels.iter().enumerate() {
        if let Some(class) = *label {
            shares[map.cell_of(pixel % width, pixel / width)][class] += 1.0;
        }
    }
    let mut targets = Vec::new();
    for (cell, mut share) in shares.into_iter().enumerate() {
        let total: f32 = share.iter().sum();
        if total > 0.0 {
            share.iter_mut().for_each(|s| *s /= total);
            targets.push((cell, share));
        }
    }
    targets
}

fn count(fit: &Fit, map: &FeatureMap, labels: &[Option<usize>], tallies: &mut [Tally]) {
    let cells: Vec<Vec<f32>> = (0..map.side * map.side)
        .map(|cell| fit.scores(&map.cell(cell)))
        .collect();
    let planes: Vec<Vec<f32>> = (0..tallies.len())
        .map(|class| map.on_photo(&cells.iter().map(|scores| scores[class]).collect::<Vec<_>>()))
        .collect();
    for (pixel, label) in labels.iter().enumerate() {
        if let Some(class) = *label {
            let best = (0..planes.len()).max_by(|&a, &b| planes[a][pixel].total_cmp(&planes[b][pixel]));
            let best = best.expect("the table has classes");
            tallies[class].labelled += 1;
            tallies[best].predicted += 1;
            tallies[best].both += u64::from(best == class);
        }
    }
}

fn classification(features: &mut dyn Features, examples: &Examples<'_>) -> Result<Vec<Entry>, EvalError> {
    let Examples {
        fitted, scored, limit, ..
    } = *examples;
    let mut entries = Vec::new();
    for (source, from, names) in examples
        .collections()
        .into_iter()
        .filter(|(_, _, names)| names.len() > 1)
    {
        let train = fitted.of_collection(from, &names, limit);
        let validation = scored.of_collection(source, &names, limit);
        // One photo per name, as in a sample of ImageNet, cannot teach what the others look like.
        if validation.is_empty() || train.len() < 2 * names.len() {
            continue;
        }
        let mut ridge: Option<Ridge> = None;
        for (index, class) in train {
            let vector = features.vector(&fitted.dataset.get(index)?)?;
            let mut target = vec![0.0; names.len()];
            target[class] = 1.0;
            ridge
                .get_or_insert_with(|| Ridge::new(vector.len(), names.len()))
                .add(&vector, &target);
        }
        let Some(fit) = ridge.as_ref().and_then(Ridge::solve) else {
            continue;
        };
        let mut right = Mean::default();
        let count = validation.len();
        for (index, class) in validation {
            let scores = fit.scores(&features.vector(&scored.dataset.get(index)?)?);
            right.add(f64::from(u8::from(rank(&scores, class) == 0)));
        }
        let name = format!("{source}, {} names, {count} photos: top-1 %", names.len());
        entries.push(Entry::percent(name, right.value()));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first pixel of a photo.
    struct Pixel;

    impl Features for Pixel {
        fn map(&mut self, _: &Sample) -> Result<FeatureMap, EvalError> {
            unreachable!("there are no masks")
        }

        fn vector(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
            Ok(photo.photo.rgb[..3].iter().map(|&v| f32::from(v)).collect())
        }
    }

    /// Grey photos of a class, of one level each.
    fn photos(folder: &std::path::Path, levels: &[u8]) {
        std::fs::create_dir_all(folder).unwrap();
        for (i, &level) in levels.iter().enumerate() {
            let picture = image::RgbImage::from_pixel(2, 2, image::Rgb([level, 0, 0]));
            picture.save(folder.join(format!("{i}.png"))).unwrap();
        }
    }

    fn probed(train: &str, val: &str) -> Vec<Entry> {
        let [train, val] = [train, val].map(|set| Dataset::open(&[set]).unwrap());
        let photos = Photos {
            dataset: &val,
            part: None,
            limit: usize::MAX,
            protocol: Protocol::Open,
        };
        probe(&mut Pixel, &Examples::apart(&train, &photos)).unwrap()
    }

    #[test]
    fn a_probe_is_fitted_on_the_published_training_set_and_scored_on_the_validation_set() {
        let root = tempfile::tempdir().unwrap();
        for (place, levels) in [
            ("train/dark", &[0, 10, 20][..]),
            ("train/light", &[200, 220, 240]),
            ("val/dark", &[5, 250]),
            ("val/light", &[210, 230]),
        ] {
            photos(&root.path().join(place), levels);
        }
        let path = root.path().display();
        let found = probed(&format!("{path}@train"), &format!("{path}@val"));
        let source = root.path().file_name().unwrap().to_str().unwrap();
        let name = format!("{source}, 2 names, 4 photos: top-1 %");
        assert_eq!(found, [Entry::percent(name, 0.75)], "one dark photo is light");
        let found = probed(&format!("{path}/train"), &format!("{path}/val"));
        assert_eq!(found, [Entry::percent("val, 2 names, 4 photos: top-1 %", 0.75)]);
    }

    #[test]
    fn background_is_told_from_the_names_where_papers_count_it() {
        let truth = || Truth {
            label: vec![Label::Class(1), Label::Background, Label::Unknown, Label::Other(9)],
            annotated: vec![true; 2],
            tolerated: Vec::new(),
        };
        let found = |protocol| targets(truth(), 2, protocol);
        assert_eq!(found(Protocol::Published), [Some(1), Some(2), None, None]);
        assert_eq!(found(Protocol::Open), [Some(1), None, None, None]);
        assert_eq!(found(Protocol::PublishedNoBackground), [Some(1), None, None, None]);
    }
}
