//! Instance segmentation from prompts: the SAM head's mask of each labelled region, from its box and from one point.
//!
//! Regions: the photo's segments, or the connected parts of each named class where it has none; at least 0.2 % of the
//! photo, the [`MOST`] largest. Box: the region's tight bounding box, SAM's single-mask output (0). Point: the pixel
//! deepest inside (largest city-block distance to the edge), the output of 1-3 with the highest predicted IoU. Logits
//! go to the photo's size bilinearly and are cut at 0; the figure is the mean IoU over regions. No AP: prompts come from
//! the labels, so there is no ranking of detections to integrate.

mod regions;

use super::report::Entry;
use super::segmenter::{Prompt, Segmenter};
use super::{EvalError, chosen};
use crate::train::dataset::{Dataset, Split};
use crate::vision::geometry::{Letterbox, resample_to_frame};
use crate::vision::mask::BinaryMask;
use crate::vision::refine::{DecodedPrompt, MASKS_PER_PROMPT};
pub use regions::{Region, regions};

/// Most regions of one photo.
pub const MOST: usize = 20;

/// Share of the photo from which on a region is large.
pub const LARGE: f64 = 0.05;

/// Mean of what was added.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// The mean; 0 of nothing.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// The measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Instances {
    /// Photos with at least one region.
    pub photos: usize,
    /// Mean IoU from boxes.
    pub boxes: Mean,
    /// Mean IoU from boxes of regions of at least [`LARGE`] of the photo.
    pub large: Mean,
    /// Mean IoU from one point, the mask that the model itself prefers.
    pub points: Mean,
    /// Mean IoU from one point, the best of the three masks.
    pub oracle: Mean,
}

impl Instances {
    /// The rows of a table; none if no photo has a region.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        if self.boxes.count == 0 {
            return Vec::new();
        }
        let head = format!("{} regions on {} photos", self.boxes.count, self.photos);
        vec![
            Entry::percent(format!("{head}: box, mean IoU %"), self.boxes.value()),
            Entry::percent(
                format!("{} regions of 5 % and more: box, mean IoU %", self.large.count),
                self.large.value(),
            ),
            Entry::percent(format!("{head}: one point, mean IoU %"), self.points.value()),
            Entry::percent(format!("{head}: one point, best of three %"), self.oracle.value()),
        ]
    }
}

/// Measures the SAM head of `model` on at most `limit` photos of one part.
///
/// # Errors
/// [`EvalError`] if a photo cannot be used or the model fails.
pub fn instances(
    model: &mut Segmenter,
    dataset: &Dataset,
    part: Option<Split>,
    limit: usize,
) -> Result<Instances, EvalError> {
    let mut found = Instances::default();
    let with_regions = chosen(dataset, part).filter(|&i| {
        let raw = &dataset.samples()[i];
        raw.mask.is_some() || raw.segments.is_some()
    });
    for index in with_regions.take(limit) {
        let sample = dataset.get(index)?;
        let regions = regions(&sample, dataset.names());
        if regions.is_empty() {
            continue;
        }
        found.photos += 1;
        let letterbox = model.encode(&sample)?;
        let prompts = regions
            .iter()
            .flat_map(|r| [Prompt::Box(r.bounds), Prompt::Point(r.inside)]);
        let answers = model.decode(&letterbox, &prompts.collect::<Vec<_>>())?;
        for (region, pair) in regions.iter().zip(answers.chunks_exact(2)) {
            let iou =
                |answer: &DecodedPrompt, output: usize| f64::from(mask(answer, output, &letterbox).iou(&region.mask));
            found.boxes.add(iou(&pair[0], 0));
            if region.mask.area() as f64 >= LARGE * region.mask.size().pixels() as f64 {
                found.large.add(iou(&pair[0], 0));
            }
            let three: Vec<f64> = (1..MASKS_PER_PROMPT).map(|output| iou(&pair[1], output)).collect();
            let predicted = &pair[1].iou_predictions;
            let preferred = (0..three.len()).max_by(|&a, &b| predicted[a + 1].total_cmp(&predicted[b + 1]));
            found.points.add(preferred.map_or(0.0, |i| three[i]));
            found.oracle.add(three.into_iter().fold(0.0, f64::max));
        }
    }
    Ok(found)
}

/// One output of the decoder on the frame, cut at 0.
pub(super) fn mask(answer: &DecodedPrompt, output: usize, letterbox: &Letterbox) -> BinaryMask {
    let cells = answer.low_res_logits.len() / MASKS_PER_PROMPT;
    let mut logits = Vec::new();
    let low_res = &answer.low_res_logits[output * cells..(output + 1) * cells];
    resample_to_frame(low_res, cells.isqrt(), letterbox, &mut logits);
    BinaryMask::from_logits(letterbox.frame(), &logits, 0.0)
}
