//! Decoder logits → masks on the frame: choose, un-letterbox, cut, filter.
//!
//! SAM's multi-mask outputs (1 to 3; output 0 is its single-mask mode) are alternatives of different extent; the one
//! with the highest predicted IoU wins, unless it contradicts the score map it was asked about. Low-resolution logits
//! lose specks and pinholes and go to the frame in one bilinear step (cell centres mapped through the letterbox, padding never read), then the
//! threshold is 0.

use super::geometry::{Letterbox, resample_to_frame};
use super::mask::BinaryMask;
use super::query::{DecoderPrompt, ScoreMap};
use super::tidy::tidy;

/// Outputs of the decoder per prompt.
pub const MASKS_PER_PROMPT: usize = 4;

/// What the decoder said to one prompt.
#[derive(Clone, Debug)]
pub struct DecodedPrompt {
    /// Logits, `[4, 4g, 4g]`.
    pub low_res_logits: Vec<f32>,
    /// Predicted IoU of each of the four masks.
    pub iou_predictions: [f32; MASKS_PER_PROMPT],
}

/// One answer: a mask of frame size and how sure each head is.
#[derive(Clone, Debug)]
pub struct RefinedMask {
    /// Index of the query.
    pub query: usize,
    /// Calibrated CLIP score of the component, in (0, 1).
    pub score: f32,
    /// SAM head's predicted IoU of the mask, about 0 to 1.
    pub predicted_iou: f32,
    /// The mask, frame size.
    pub mask: BinaryMask,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RefineRules {
    /// Smallest kept area, in frame pixels.
    pub min_area: usize,
    /// Two masks of one query that overlap more than this (IoU) are one; the better score stays.
    pub duplicate_iou: f32,
    /// A mask whose overlap (IoU) with the component it was asked about is below this is replaced by the component.
    pub min_agreement: f32,
    /// Parts and holes of a mask smaller than this share of it are not meant ([`tidy`]).
    pub speck: f32,
}

impl Default for RefineRules {
    fn default() -> Self {
        Self {
            min_area: 32,
            duplicate_iou: 0.7,
            min_agreement: 0.2,
            speck: 0.03,
        }
    }
}

/// Index of the mask to use: the highest predicted IoU among those that agree with the mask prompt, by at least
/// `min_agreement` (IoU at low resolution); `None` if none agrees.
fn choose(decoded: &DecodedPrompt, prompt: &DecoderPrompt, min_agreement: f32) -> Option<usize> {
    let cells = prompt.mask.len();
    let agreement = |index: usize| {
        let logits = decoded
            .low_res_logits
            .get(index * cells..(index + 1) * cells)
            .unwrap_or(&[]);
        let (mut both, mut either) = (0usize, 0usize);
        for (&l, &p) in logits.iter().zip(&prompt.mask) {
            both += usize::from(l > 0.0 && p > 0.0);
            either += usize::from(l > 0.0 || p > 0.0);
        }
        both as f32 / either.max(1) as f32
    };
    let agreeing = (1..MASKS_PER_PROMPT).filter(|&i| agreement(i) >= min_agreement);
    agreeing.max_by(|&a, &b| decoded.iou_predictions[a].total_cmp(&decoded.iou_predictions[b]))
}

/// Frame-size logits of one prompt's answer, and its predicted IoU.
///
/// Falls back to the mask prompt itself (predicted IoU 0) when no mask of the decoder agrees with it.
fn answer(
    prompt: &DecoderPrompt,
    decoded: &DecodedPrompt,
    letterbox: &Letterbox,
    rules: &RefineRules,
    out: &mut Vec<f32>,
) -> f32 {
    let cells = prompt.mask.len();
    let side = cells.isqrt();
    let (logits, predicted_iou) = match choose(decoded, prompt, rules.min_agreement) {
        Some(index) => (
            &decoded.low_res_logits[index * cells..(index + 1) * cells],
            decoded.iou_predictions[index],
        ),
        None => (prompt.mask.as_slice(), 0.0),
    };
    let mut logits = logits.to_vec();
    tidy(&mut logits, rules.speck);
    resample_to_frame(&logits, side, letterbox, out);
    predicted_iou
}

/// Turns decoder answers into masks on the frame, best score first within each query.
///
/// `decoded` holds one answer per prompt, in order; surplus prompts are ignored.
#[must_use]
pub fn refine(
    prompts: &[DecoderPrompt],
    decoded: &[DecodedPrompt],
    letterbox: &Letterbox,
    rules: &RefineRules,
) -> Vec<RefinedMask> {
    let mut logits = Vec::new();
    let answers = prompts.iter().zip(decoded).map(|(prompt, decoded)| {
        let predicted_iou = answer(prompt, decoded, letterbox, rules, &mut logits);
        let mask = BinaryMask::from_logits(letterbox.frame(), &logits, 0.0);
        RefinedMask {
            query: prompt.query,
            score: prompt.score,
            predicted_iou,
            mask,
        }
    });
    let mut found: Vec<_> = answers.filter(|m| m.mask.area() >= rules.min_area.max(1)).collect();
    found.sort_by(|a, b| a.query.cmp(&b.query).then(b.score.total_cmp(&a.score)));
    let mut kept: Vec<RefinedMask> = Vec::new();
    for mask in found {
        let duplicate = kept
            .iter()
            .any(|k| k.query == mask.query && k.mask.iou(&mask.mask) > rules.duplicate_iou);
        if !duplicate {
            kept.push(mask);
        }
    }
    kept
}

/// Per-pixel logits of one query with both heads, `[height, width]`, for semantic evaluation: the CLIP head's logits,
/// raised where a mask of the query covers the pixel and lowered elsewhere, by the bounded SAM logit.
///
/// A query without prompts keeps the CLIP head's logits.
#[must_use]
pub fn semantic_logits(
    scores: &ScoreMap,
    query: usize,
    prompts: &[DecoderPrompt],
    decoded: &[DecodedPrompt],
    rules: &RefineRules,
) -> Vec<f32> {
    const SAM_BOUND: f32 = 4.0;
    let mut out = scores.frame_logits(query);
    let (mut best, mut logits): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for (prompt, decoded) in prompts.iter().zip(decoded).filter(|(p, _)| p.query == query) {
        answer(prompt, decoded, scores.letterbox(), rules, &mut logits);
        if best.is_empty() {
            best.clone_from(&logits);
        }
        best.iter_mut().zip(&logits).for_each(|(b, &l)| *b = b.max(l));
    }
    out.iter_mut()
        .zip(&best)
        .for_each(|(o, b)| *o += b.clamp(-SAM_BOUND, SAM_BOUND));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::geometry::{FrameSize, ModelPoint};

    const SIDE: usize = 8;

    fn half(left: bool, value: f32) -> Vec<f32> {
        (0..SIDE * SIDE)
            .map(|i| if (i % SIDE < SIDE / 2) == left { value } else { -value })
            .collect()
    }

    fn prompt(query: usize, score: f32, left: bool) -> DecoderPrompt {
        DecoderPrompt {
            query,
            score,
            points: vec![ModelPoint { x: 1.0, y: 1.0 }],
            mask: half(left, 5.0),
        }
    }

    fn decoded(lefts: [bool; 4], iou_predictions: [f32; 4]) -> DecodedPrompt {
        DecodedPrompt {
            low_res_logits: lefts.map(|l| half(l, 3.0)).concat(),
            iou_predictions,
        }
    }

    fn letterbox() -> Letterbox {
        Letterbox::fit(FrameSize::new(30, 17).unwrap(), 32)
    }

    fn left_area(mask: &BinaryMask) -> (usize, usize) {
        let left = (0..17).map(|y| (0..15).filter(|&x| mask.get(x, y)).count()).sum();
        (left, mask.area() - left)
    }

    #[test]
    fn the_mask_with_the_highest_predicted_iou_is_cut_on_the_frame() {
        let answers = [decoded([false, true, true, true], [9.0, 0.2, 0.8, 0.1])];
        let found = refine(&[prompt(0, 0.9, true)], &answers, &letterbox(), &RefineRules::default());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].predicted_iou, 0.8);
        assert_eq!(left_area(&found[0].mask), (15 * 17, 0));
    }

    #[test]
    fn a_mask_that_contradicts_its_prompt_gives_way_to_the_next_or_to_the_prompt() {
        let one = [decoded([true, false, false, true], [0.0, 0.9, 0.9, 0.3])];
        let found = refine(&[prompt(0, 0.9, true)], &one, &letterbox(), &RefineRules::default());
        assert_eq!((found[0].predicted_iou, left_area(&found[0].mask)), (0.3, (15 * 17, 0)));
        let none = [decoded([false; 4], [0.9; 4])];
        let found = refine(&[prompt(0, 0.9, true)], &none, &letterbox(), &RefineRules::default());
        assert_eq!((found[0].predicted_iou, left_area(&found[0].mask)), (0.0, (15 * 17, 0)));
    }

    #[test]
    fn duplicates_of_one_query_are_dropped_but_not_those_of_another() {
        let prompts = [
            prompt(0, 0.6, true),
            prompt(0, 0.9, true),
            prompt(1, 0.5, true),
            prompt(0, 0.7, false),
        ];
        let answers = [true, true, true, false].map(|l| decoded([l; 4], [0.5; 4]));
        let found = refine(&prompts, &answers, &letterbox(), &RefineRules::default());
        let kept: Vec<_> = found.iter().map(|m| (m.query, m.score)).collect();
        assert_eq!(kept, [(0, 0.9), (0, 0.7), (1, 0.5)]);
    }

    #[test]
    fn masks_below_the_smallest_area_are_dropped() {
        let answers = [decoded([true; 4], [0.5; 4])];
        for (min_area, count) in [(15 * 17, 1), (15 * 17 + 1, 0)] {
            let rules = RefineRules {
                min_area,
                ..RefineRules::default()
            };
            assert_eq!(
                refine(&[prompt(0, 0.9, true)], &answers, &letterbox(), &rules).len(),
                count
            );
        }
    }

    #[test]
    fn an_answer_that_is_too_short_falls_back_to_the_prompt() {
        let short = [DecodedPrompt {
            low_res_logits: vec![1.0; 3],
            iou_predictions: [0.5; 4],
        }];
        let found = refine(&[prompt(0, 0.9, true)], &short, &letterbox(), &RefineRules::default());
        assert_eq!(left_area(&found[0].mask), (15 * 17, 0));
    }
}
