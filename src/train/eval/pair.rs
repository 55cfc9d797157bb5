//! SAM and CLIP as two models, the baseline of the paper's Table 7: SAM masks everything, CLIP names every mask.
//!
//! A grid of [`GRID`]² points asks the SAM teacher for masks (of three, the one with the highest predicted IoU); masks that
//! overlap a better one by more than IoU 0.7 are dropped, the [`MOST`] best stay. The bounding box of each is cropped and
//! goes through the CLIP teacher; names and background prompts compete by softmax. Masks are painted by falling area, a
//! mask whose background prompts together have more than its best name paints nothing. That is one SAM pass and K CLIP
//! passes per photo.

use std::time::Instant;

use super::clip_tower::ClipTower;
use super::instance::{Mean, mask};
use super::report::Entry;
use super::segmenter::{Prompt, Segmenter};
use super::semantic::{Photos, mean_head};
use super::truth::{Tally, Truth};
use super::wording::competitors;
use super::{EvalError, ImageText, chosen};
use crate::train::dataset::Sample;
use crate::train::dataset::augment::Region;
use crate::vision::geometry::FramePoint;
use crate::vision::mask::BinaryMask;
use crate::vision::refine::MASKS_PER_PROMPT;

/// Points per axis.
pub const GRID: usize = 8;

/// Most masks of one photo.
pub const MOST: usize = 30;

/// Overlap from which on two masks are one.
const DUPLICATE_IOU: f32 = 0.7;

/// Smallest mask in pixels.
const LEAST_AREA: usize = 32;

/// The baseline's figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Photos with labels.
    pub photos: usize,
    /// The classes that some photo shows, with their IoU.
    pub classes: Vec<(String, f64)>,
    /// Classes that were asked for.
    pub asked: usize,
    /// Masks per photo, K.
    pub masks: Mean,
    /// Milliseconds per photo.
    pub time_ms: f64,
}

/// Measures the pair.
///
/// # Errors
/// [`EvalError`] if a photo cannot be used or a model fails.
pub fn pair(sam: &mut Segmenter, clip: &mut ClipTower, photos: &Photos<'_>) -> Result<Pair, EvalError> {
    let Photos {
        dataset,
        part,
        limit,
        protocol,
    } = *photos;
    let classes = protocol.classes(dataset);
    let mut names = classes.clone();
    if protocol.has_background() {
        let background = competitors(&sam.bundle.manifest, &classes);
        names.extend(background.into_iter().map(str::to_owned));
    }
    let texts = clip.names(&names)?;
    let (mut tallies, mut none) = (vec![Tally::default(); classes.len()], Tally::default());
    let (mut masks, mut times, mut photos) = (Mean::default(), Mean::default(), 0);
    let labelled = chosen(dataset, part).filter(|&i| dataset.samples()[i].mask.is_some());
    for index in labelled.take(limit) {
        let sample = dataset.get(index)?;
        let start = Instant::now();
        let found = everything(sam, &sample)?;
        let mut predicted = vec![None; sample.photo.width * sample.photo.height];
        for mask in &found {
            let name = named(clip, &sample, mask, &texts, classes.len())?;
            if name.is_some() {
                let set = mask.pixels().zip(&mut predicted).filter(|(set, _)| *set);
                set.for_each(|(_, pixel)| *pixel = name);
            }
        }
        times.add(1e3 * start.elapsed().as_secs_f64());
        masks.add(found.len() as f64);
        photos += 1;
        let truth = Truth::of(&sample, dataset.names(), &classes, protocol);
        for (label, predicted) in truth.label.iter().zip(predicted) {
            truth.count_pixel(label, predicted, &mut tallies, &mut none);
        }
    }
    let asked = classes.len();
    let shown = classes
        .into_iter()
        .zip(&tallies)
        .filter(|(_, tally)| tally.labelled > 0);
    Ok(Pair {
        photos,
        classes: shown.map(|(name, tally)| (name, tally.iou())).collect(),
        asked,
        masks,
        time_ms: times.value(),
    })
}

/// Masks of everything, the largest first.
fn everything(sam: &mut Segmenter, sample: &Sample) -> Result<Vec<BinaryMask>, EvalError> {
    let letterbox = sam.encode(sample)?;
    let at = |i: usize, length: usize| (i as f32 + 0.5) * length as f32 / GRID as f32;
    let points = (0..GRID * GRID).map(|i| FramePoint {
        x: at(i % GRID, sample.photo.width),
        y: at(i / GRID, sample.photo.height),
    });
    let answers = sam.decode(&letterbox, &points.map(Prompt::Point).collect::<Vec<_>>())?;
    let mut found: Vec<(f32, BinaryMask)> = answers
        .iter()
        .filter_map(|answer| {
            let predicted = &answer.iou_predictions;
            let best = (1..MASKS_PER_PROMPT).max_by(|&a, &b| predicted[a].total_cmp(&predicted[b]))?;
            Some((predicted[best], mask(answer, best, &letterbox)))
        })
        .filter(|(_, mask)| mask.area() >= LEAST_AREA)
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut kept: Vec<BinaryMask> = Vec::new();
    for (_, mask) in found {
        if kept.len() < MOST && kept.iter().all(|k| k.iou(&mask) <= DUPLICATE_IOU) {
            kept.push(mask);
        }
    }
    kept.sort_by_key(|mask| std::cmp::Reverse(mask.area()));
    Ok(kept)
}

/// The class of a mask's crop; none where background has more. `texts` are the classes, then the background.
fn named(
    clip: &mut ClipTower,
    sample: &Sample,
    mask: &BinaryMask,
    texts: &[Vec<f32>],
    classes: usize,
) -> Result<Option<usize>, EvalError> {
    let Some(bounds) = mask.bounding_box() else {
        return Ok(None);
    };
    let region = Region {
        x: bounds.x1 as f32,
        y: bounds.y1 as f32,
        width: (bounds.x2 - bounds.x1) as f32,
        height: (bounds.y2 - bounds.y1) as f32,
        flip: false,
    };
    let image = clip.region(sample, region)?.embedding;
    let logits: Vec<f32> = texts
        .iter()
        .map(|text| clip.logit_scale * text.iter().zip(&image).map(|(a, b)| a * b).sum::<f32>())
        .collect();
    Ok(winner(&logits, classes))
}

/// The best of the first `classes` logits, unless the others together have a higher probability.
fn winner(logits: &[f32], classes: usize) -> Option<usize> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass = |l: &f32| (l - top).exp();
    let best = (0..classes).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))?;
    let background: f32 = logits[classes..].iter().map(mass).sum();
    (mass(&logits[best]) >= background).then_some(best)
}

impl Pair {
    /// The rows of a table.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        if self.photos == 0 {
            return Vec::new();
        }
        let mean = self.classes.iter().map(|c| c.1).sum::<f64>() / self.classes.len().max(1) as f64;
        let head = mean_head(self.classes.len(), self.asked, self.photos);
        let mut entries = vec![
            Entry::percent(head, mean),
            Entry::new("CLIP passes per photo (K)", self.masks.value(), 1),
            Entry::new("photo, ms", self.time_ms, 1),
        ];
        entries.extend(self.classes.iter().map(|(name, iou)| Entry::percent(name, *iou)));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::winner;

    #[test]
    fn without_background_prompts_every_mask_gets_a_name() {
        assert_eq!(winner(&[-3.0, -2.0, -9.0], 3), Some(1));
    }

    #[test]
    fn background_prompts_win_together() {
        assert_eq!(winner(&[1.0, 2.0, 0.0], 2), Some(1));
        assert_eq!(
            winner(&[1.0, 2.0, 1.9, 1.9], 2),
            None,
            "two prompts of nearly the same logit have more together"
        );
        assert_eq!(winner(&[], 0), None);
    }
}
