//! Losses, each with its formula, over [`Ops`]; golden values in `tests/golden.rs`.

use crate::train::ops::Ops;

/// Focal loss's weight of the foreground (Lin et al., arXiv 1708.02002).
const ALPHA: f32 = 0.25;

/// Mean over the last axis, which is kept with size 1.
fn mean<O: Ops>(ops: &O, x: &O::Tensor) -> O::Tensor {
    let shape = ops.shape(x);
    let axis = shape.len() - 1;
    ops.scale(&ops.sum(x, axis), 1.0 / shape[axis] as f32)
}

fn one_minus<O: Ops>(ops: &O, x: &O::Tensor) -> O::Tensor {
    ops.shift(&ops.scale(x, -1.0), 1.0)
}

/// Cosine distance `1 − cos(a, b)` of unit vectors `[B, D]`: `[B, 1]`. L_CLIP of the paper.
pub fn cosine<O: Ops>(ops: &O, a: &O::Tensor, b: &O::Tensor) -> O::Tensor {
    one_minus(ops, &ops.sum(&ops.mul(a, b), 1))
}

/// Losses of mask logits, each `[.., 1]`.
pub struct MaskLosses<T> {
    /// Focal loss: α 0.25, γ 2, mean over pixels.
    pub focal: T,
    /// Binary cross-entropy, mean over pixels.
    pub entropy: T,
    /// Dice loss: `1 − (2 Σ p t + 1) / (Σ p + Σ t + 1)`.
    pub dice: T,
}

/// Losses of logits `[.., P]` against soft targets `[.., P]` in 0..1.
pub fn mask_losses<O: Ops>(ops: &O, logits: &O::Tensor, target: &O::Tensor) -> MaskLosses<O::Tensor> {
    let axis = ops.shape(logits).len() - 1;
    let p = ops.sigmoid(logits);
    let (not_p, not_t) = (one_minus(ops, &p), one_minus(ops, target));
    // Cross-entropy with logits: relu(x) − x t + log(1 + e^−|x|), the last term as −log σ(|x|).
    let magnitude = ops.add(&ops.relu(logits), &ops.relu(&ops.scale(logits, -1.0)));
    let tail = ops.scale(&ops.log(&ops.sigmoid(&magnitude)), -1.0);
    let entropy = ops.add(&ops.sub(&ops.relu(logits), &ops.mul(logits, target)), &tail);
    let agreement = ops.add(&ops.mul(&p, target), &ops.mul(&not_p, &not_t));
    let miss = one_minus(ops, &agreement);
    let alpha = ops.shift(&ops.scale(target, 2.0 * ALPHA - 1.0), 1.0 - ALPHA);
    let focal = mean(ops, &ops.mul(&ops.mul(&alpha, &ops.mul(&miss, &miss)), &entropy));
    let overlap = ops.shift(&ops.scale(&ops.sum(&ops.mul(&p, target), axis), 2.0), 1.0);
    let total = ops.shift(&ops.add(&ops.sum(&p, axis), &ops.sum(target, axis)), 1.0);
    MaskLosses {
        focal,
        entropy: mean(ops, &entropy),
        dice: one_minus(ops, &ops.div(&overlap, &total)),
    }
}

/// Cross-entropy of logits `[R, K]` against weighted target distributions `[R, K]` (rows sum to the
/// row's weight, 0 for rows that do not count): `Σ −t log softmax(x)`, a `[1, 1]`.
pub fn cross_entropy<O: Ops>(ops: &O, logits: &O::Tensor, target: &O::Tensor) -> O::Tensor {
    let p = ops.softmax(logits);
    let log = ops.log(&ops.shift(&p, 1e-9));
    ops.scale(&ops.sum(&ops.sum(&ops.mul(&log, target), 1), 0), -1.0)
}
