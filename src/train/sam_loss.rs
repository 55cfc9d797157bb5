//! L_SAM: masks and predicted IoU of the SAM head against target masks.
//!
//! SAM's own weights (arXiv 2304.02643) are 20 × focal + dice, IoU error × 1. A head without pre-training
//! falls into the empty mask under them (measured: mask IoU 0.000 after 250 steps), so the recipe can put cross-entropy
//! in focal's place. Of the three ambiguous masks only the best one learns, the single-mask output always does.

use crate::train::autodiff::Graph;
use crate::train::feed::PromptBatch;
use crate::train::kernels::Kernels;
use crate::train::loss::{MaskLosses, mask_losses};
use crate::train::model::prompt_encoder::Prompts;
use crate::train::model::{SamConfig, mask_decoder};
use crate::train::ops::Ops;
use crate::train::recipe::LossWeights;
use crate::train::session::{Tape, Tensor};

/// The logit of a cell whose target is unknown is the negative of this.
const OUTSIDE: f32 = 20.0;

/// Runs the SAM head for `prompts` on image embeddings `[B, C, g, g]`: logits `[B·Q, 4, 4g, 4g]` and
/// predicted IoU `[B·Q, 4]`.
pub fn decode<B: Kernels>(
    graph: &Graph<B>,
    sam: &SamConfig,
    embeddings: &<Graph<B> as Ops>::Tensor,
    prompts: &PromptBatch,
) -> (<Graph<B> as Ops>::Tensor, <Graph<B> as Ops>::Tensor) {
    let (g, c, q) = (sam.grid(), sam.out_chans, prompts.per_image);
    let rows = prompts.counts.len();
    let (images, n, low) = (rows / q, prompts.labels.len() / rows, 4 * g);
    let repeated = graph.expand(&graph.reshape(embeddings, &[images, 1, c, g, g]), &[images, q, c, g, g]);
    let input = Prompts {
        coords: graph.input(prompts.coords.clone(), &[rows, n, 2]),
        labels: graph.input(prompts.labels.clone(), &[rows, n]),
        mask: Some((
            graph.input(prompts.mask.clone(), &[rows, 1, low, low]),
            graph.input(prompts.has_mask.clone(), &[rows]),
        )),
    };
    mask_decoder::decode(graph, sam, &graph.reshape(&repeated, &[rows, c, g, g]), &input)
}

/// Loss `[1]` of the SAM head, its parts, and the mean IoU of the single-mask output.
pub fn loss<B: Kernels>(
    graph: &Graph<Tape<B>>,
    sam: &SamConfig,
    embeddings: &Tensor<B>,
    prompts: &PromptBatch,
    weights: &LossWeights,
) -> (Tensor<B>, f32) {
    let rows = prompts.counts.len();
    let pixels = 16 * sam.grid() * sam.grid();
    let (masks, iou) = decode(graph, sam, embeddings, prompts);
    let logits = graph.reshape(&masks, &[rows, 4, pixels]);
    let logits = if prompts.known.is_empty() {
        logits
    } else {
        // Outside for certain, whatever the model says: nothing to learn there.
        let known = graph.input(prompts.known.clone(), &[rows, 1, pixels]);
        let outside = graph.scale(&graph.shift(&known, -1.0), OUTSIDE);
        graph.add(&graph.mul(&logits, &known), &outside)
    };
    let target = graph.expand(
        &graph.input(prompts.target.clone(), &[rows, 1, pixels]),
        &[rows, 4, pixels],
    );
    let MaskLosses { focal, entropy, dice } = mask_losses(graph, &logits, &target);
    let pixelwise = graph.add(
        &graph.scale(&focal, weights.focal),
        &graph.scale(&entropy, weights.entropy),
    );
    let loss = graph.reshape(&graph.add(&pixelwise, &dice), &[rows, 4]);
    let single = graph.slice(&loss, 1, 0, 1);
    let best = graph.scale(&graph.max(&graph.scale(&graph.slice(&loss, 1, 1, 4), -1.0), 1), -1.0);
    let mask_loss = graph.add(&single, &best); // [R, 1]

    let found = measured_iou(&graph.values(&logits), &prompts.target, pixels);
    let counted = prompts.counts.iter().sum::<f32>().max(1.0);
    let mean_iou = found.chunks(4).zip(&prompts.counts).map(|(f, c)| f[0] * c).sum::<f32>() / counted;
    let error = graph.sub(&iou, &graph.input(found, &[rows, 4]));
    let iou_loss = graph.scale(&graph.sum(&graph.mul(&error, &error), 1), 0.25);
    let shares = graph.input(prompts.counts.iter().map(|c| c / counted).collect(), &[rows, 1]);
    let total = graph.sum(&graph.mul(&graph.add(&mask_loss, &iou_loss), &shares), 0);
    (graph.reshape(&total, &[1]), mean_iou)
}

/// IoU of `logits [R, 4, P] > 0` with `target [R, P] > 0.5`: `[R, 4]`.
#[must_use]
pub fn measured_iou(logits: &[f32], target: &[f32], pixels: usize) -> Vec<f32> {
    logits
        .chunks(pixels)
        .enumerate()
        .map(|(i, logits)| {
            let target = &target[(i / 4) * pixels..][..pixels];
            let (mut both, mut either) = (0_u32, 0_u32);
            for (&l, &t) in logits.iter().zip(target) {
                let (l, t) = (l > 0.0, t > 0.5);
                both += u32::from(l && t);
                either += u32::from(l || t);
            }
            both as f32 / either.max(1) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::measured_iou;

    #[test]
    fn iou_counts_pixels_above_the_thresholds() {
        let logits = [1.0, 1.0, -1.0, -1.0].repeat(4);
        assert_eq!(measured_iou(&logits, &[0.0, 1.0, 1.0, 0.2], 4), [1.0 / 3.0; 4]);
        assert_eq!(
            measured_iou(&[-1.0; 8], &[0.0, 0.0], 2),
            [0.0; 4],
            "nothing found, nothing there"
        );
    }
}
