//! Prompts for the SAM head as the daemon makes them: from the CLIP head's scores; and the SAM teacher's answers to prompts.

use crate::train::feed::{Item, NameTargets, PromptBatch, upsample};
use crate::train::model::SamConfig;
use crate::vision::query::{PromptRules, sample_patches};

/// What the CLIP head says about a micro-batch.
pub struct Scores<'a> {
    /// The pictures.
    pub items: &'a [Item],
    /// The names.
    pub targets: &'a NameTargets,
    /// Patch logits `[B, n², K]`.
    pub logits: &'a [f32],
    /// Side of the patch grid.
    pub n: usize,
}

/// Replaces the simulated mask prompts of named regions by what the CLIP head really says: the
/// logit of the name's probability, clamped to ±10, upsampled; with `points`, also the points, drawn as the daemon
/// draws them, unless no patch has the name.
///
/// `points` is the seed of the drawing, or none to leave the points alone.
pub fn prompts_from_scores(prompts: &mut PromptBatch, scores: &Scores, sam: &SamConfig, points: Option<u64>) {
    let Scores {
        items,
        targets,
        logits,
        n,
    } = *scores;
    let (k, low) = (targets.names.len(), 4 * sam.grid());
    for row in 0..prompts.counts.len() {
        let item = &items[row / prompts.per_image];
        let (Some(name), Some(names)) = (prompts.named[row], &item.names) else {
            continue;
        };
        if prompts.has_mask[row] == 0.0 {
            continue;
        }
        let name = &names.names[usize::from(name) - 2];
        let Some(column) = targets.names.iter().position(|m| m == name) else {
            continue;
        };
        let image = &logits[(row / prompts.per_image) * n * n * k..][..n * n * k];
        let coarse: Vec<f32> = image.chunks(k).map(|cell| log_odds(cell, column)).collect();
        prompts.mask[row * low * low..][..low * low].copy_from_slice(&upsample(&coarse, n, low));
        if let Some(seed) = points {
            let there: Vec<usize> = (0..n * n).filter(|&patch| coarse[patch] > 0.0).collect();
            let drawn = sample_patches(&coarse, &there, PromptRules::default().points, seed ^ row as u64);
            prompts.set_points(row, &drawn, n, sam.image_size);
        }
    }
}

/// Logit of the softmax probability of `column` among `logits`, within ±10.
fn log_odds(logits: &[f32], column: usize) -> f32 {
    let rest = logits.iter().enumerate().filter(|(i, _)| *i != column).map(|(_, &l)| l);
    let highest = rest.clone().fold(f32::MIN, f32::max);
    let sum: f32 = rest.map(|l| (l - highest).exp()).sum();
    (logits[column] - highest - sum.ln()).clamp(-10.0, 10.0)
}

/// Mixes the teacher's single-mask probabilities `[R, 4, P]` into the targets `[R, P]`.
pub fn mix_teacher(prompts: &mut PromptBatch, teacher: &[f32], labelled: f32) {
    let pixels = prompts.target.len() / prompts.counts.len();
    for (target, logits) in prompts.target.chunks_mut(pixels).zip(teacher.chunks(4 * pixels)) {
        for (t, &z) in target.iter_mut().zip(logits) {
            *t = labelled * *t + (1.0 - labelled) / (1.0 + (-z).exp());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::augment::{Region, View};
    use crate::train::feed::PixelNames;

    /// One picture of 32 × 32 whose left half is sky, with one mask prompt for the sky, and the names.
    fn input() -> (Item, PromptBatch, NameTargets) {
        let item = Item {
            view: View {
                side: 32,
                content: (32, 32),
                pixels: Vec::new(),
                classes: None,
                segments: None,
                region: Region {
                    x: 0.0,
                    y: 0.0,
                    width: 32.0,
                    height: 32.0,
                    flip: false,
                },
            },
            names: Some(PixelNames {
                index: (0..32 * 32).map(|i| if i % 32 < 16 { 2 } else { 1 }).collect(),
                names: vec!["sky".into()],
                annotated: Vec::new(),
                rough: false,
            }),
            text: None,
        };
        let prompts = PromptBatch {
            per_image: 1,
            coords: vec![9.0; 8],
            labels: vec![1.0; 4],
            mask: vec![0.0; 64],
            has_mask: vec![1.0],
            target: vec![0.0; 64],
            known: Vec::new(),
            counts: vec![1.0],
            named: vec![Some(2)],
        };
        let targets = NameTargets {
            names: vec!["background".into(), "sky".into()],
            ..NameTargets::default()
        };
        (item, prompts, targets)
    }

    /// The prompt after the CLIP head said `logits` for its 2 × 2 patches.
    fn asked(logits: &[f32], points: Option<u64>) -> PromptBatch {
        let (item, mut prompts, targets) = input();
        let scores = Scores {
            items: &[item],
            targets: &targets,
            logits,
            n: 2,
        };
        prompts_from_scores(&mut prompts, &scores, &sam(), points);
        prompts
    }

    fn sam() -> SamConfig {
        SamConfig {
            image_size: 32,
            ..SamConfig::vit_b()
        }
    }

    #[test]
    fn prompts_of_the_last_stage_are_what_the_clip_head_says() {
        // Patches [2, 2], logits of background and sky: the lower left patch is sky beyond doubt, the upper left barely.
        let logits = [0.0, 0.5, 3.0, 0.0, 0.0, 30.0, 0.0, -2.0];
        let asked = asked(&logits, Some(1));
        assert_eq!(asked.labels, [1.0, 1.0, -1.0, -1.0], "two patches are sky");
        assert_eq!(
            asked.coords[..4],
            [7.5, 23.5, 7.5, 7.5],
            "the surest first, pixel indices"
        );
        let mask = &asked.mask;
        assert!(
            (mask[7 * 8] - 10.0).abs() < 1e-6 && (mask[7] + 3.0).abs() < 1e-6,
            "{mask:?}"
        );
    }

    #[test]
    fn given_points_stay_where_the_stage_or_the_scores_have_none() {
        let nowhere = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        for (logits, points) in [(nowhere, Some(1)), ([0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 9.0], None)] {
            let asked = asked(&logits, points);
            assert_eq!((asked.coords, asked.labels), (vec![9.0; 8], vec![1.0; 4]));
        }
    }

    #[test]
    fn the_sam_teachers_probabilities_are_mixed_into_the_labelled_masks_by_their_shares() {
        // Two prompts of four cells; of the teacher's four masks the first is the single one.
        let teacher: Vec<f32> = [[0.0, 3.0_f32.ln(), -(3.0_f32.ln()), 40.0], [-40.0, 40.0, 0.0, 0.0]]
            .iter()
            .flat_map(|single| single.iter().copied().chain([9.0; 12]))
            .collect();
        let probabilities = [0.5, 0.75, 0.25, 1.0, 0.0, 1.0, 0.5, 0.5];
        let labels = [1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.25];
        for labelled in [0.0_f32, 0.25, 1.0] {
            let mut prompts = PromptBatch {
                per_image: 2,
                target: labels.to_vec(),
                counts: vec![1.0; 2],
                ..PromptBatch::default()
            };
            mix_teacher(&mut prompts, &teacher, labelled);
            for ((found, label), probability) in prompts.target.iter().zip(labels).zip(probabilities) {
                let expected = labelled * label + (1.0 - labelled) * probability;
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{labelled} labelled: {:?}",
                    prompts.target
                );
            }
        }
    }
}
