//! Head probing: what a linear layer reads from frozen features.
//!
//! Ridge regression in closed form on one-hot targets, features standardised by their spread in training, the penalty
//! a thousandth of the number of examples. Fitted on the nine training tenths, scored on the validation tenth; so both
//! need the data set's own training part. *Segmentation*: one example per cell of the feature map, its target the shares
//! of the classes among the cell's labelled pixels; the cell scores go to the photo bilinearly, the best class
//! wins, and every labelled pixel of the classes counts. Where the protocol counts background as benchmarks do, it is the
//! last of the classes. *Classification*: one example per photo, its target the
//! photo's label; collections of at least two names with photos in both parts.

mod feature_map;
mod ridge;

use super::instance::Mean;
use super::protocol::Protocol;
use super::report::Entry;
use super::truth::{Label, Tally, Truth};
use super::zero_shot::{Class, rank, vocabularies};
use super::{EvalError, chosen};
use crate::train::dataset::{Dataset, Sample, Split};
pub use feature_map::{FeatureMap, Features, Source};
use ridge::{Fit, Ridge};

/// Linear probes on the features of one model.
///
/// * `limit` - most photos of each part and kind
///
/// # Errors
/// [`EvalError`] if a photo cannot be used or the model fails.
pub fn probe(
    features: &mut dyn Features,
    dataset: &Dataset,
    limit: usize,
    protocol: Protocol,
) -> Result<Vec<Entry>, EvalError> {
    let mut entries = segmentation(features, dataset, limit, protocol)?;
    entries.extend(classification(features, dataset, limit)?);
    Ok(entries)
}

fn segmentation(
    features: &mut dyn Features,
    dataset: &Dataset,
    limit: usize,
    protocol: Protocol,
) -> Result<Vec<Entry>, EvalError> {
    let names = protocol.classes(dataset);
    let classes = names.len() + usize::from(background_is_a_class(protocol));
    let labels = |sample: &Sample| {
        targets(
            Truth::of(sample, dataset.names(), &names, protocol),
            names.len(),
            protocol,
        )
    };
    let labelled = |part| {
        let with_mask = chosen(dataset, Some(part)).filter(|&i| dataset.samples()[i].mask.is_some());
        with_mask.take(limit).collect::<Vec<_>>()
    };
    let (train, validation) = (labelled(Split::Train), labelled(Split::Validation));
    let mut ridge: Option<Ridge> = None;
    for index in train {
        let sample = dataset.get(index)?;
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
    for index in validation {
        let sample = dataset.get(index)?;
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

fn classification(features: &mut dyn Features, dataset: &Dataset, limit: usize) -> Result<Vec<Entry>, EvalError> {
    let mut entries = Vec::new();
    for (source, names) in vocabularies(dataset).into_iter().filter(|(_, names)| names.len() > 1) {
        let photos = |part| {
            let own = chosen(dataset, Some(part)).filter(|&i| dataset.samples()[i].info.source == source);
            let place = |i: usize| names.iter().position(|n| Some(*n) == Class::of(&dataset.samples()[i]));
            let labelled = own.filter_map(|i| Some((i, place(i)?)));
            labelled.take(limit).collect::<Vec<_>>()
        };
        let (train, validation) = (photos(Split::Train), photos(Split::Validation));
        // One photo per name, as in a sample of ImageNet, cannot teach what the others look like.
        if validation.is_empty() || train.len() < 2 * names.len() {
            continue;
        }
        let mut ridge: Option<Ridge> = None;
        for (index, class) in train {
            let vector = features.vector(&dataset.get(index)?)?;
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
            let scores = fit.scores(&features.vector(&dataset.get(index)?)?);
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
