//! What a variant may lose before it is refused.
//!
//! With labels: mean IoU of both heads may fall by at most [`IOU_LOSS`], and no photo's highest class may change beyond
//! a tie ([`super::measure::TIE`]). One photo is one too many, because a class that the reference leads by more than a
//! tie is an answer that users have seen and set thresholds by. Where no photo is labelled with a name that is asked for, the
//! IoU cannot be measured; then the variant's masks have to agree with the reference's by [`AGREEMENT`] on average. An int8
//! bundle has to be worth it: at most [`INT8_SIZE`] of the bytes of fp32.

use super::measure::{Loss, TIE};

/// Largest fall of mean IoU.
pub const IOU_LOSS: f64 = 0.01;

/// Smallest mean IoU with the reference's masks where there are no labels.
pub const AGREEMENT: f64 = 0.99;

/// Largest share of fp32's bytes for int8.
pub const INT8_SIZE: f64 = 0.30;

/// Why a variant is refused, with the figures; empty if it passes.
#[must_use]
pub fn objections(loss: &Loss, size_ratio: f64, int8: bool) -> Vec<String> {
    let mut found = Vec::new();
    let finite = loss.relative_error.values().all(|e| e.is_finite()) && loss.mask_agreement.is_finite();
    if !finite {
        found.push("its outputs are not finite".to_owned());
    }
    match loss.mean_iou {
        Some([reference, variant]) if reference - variant > IOU_LOSS || variant.is_nan() => found.push(format!(
            "mean IoU falls by {:.4}, from {reference:.4} to {variant:.4} on {} labelled photos; at most {IOU_LOSS} is \
             allowed",
            reference - variant,
            loss.labelled
        )),
        None if loss.mask_agreement < AGREEMENT || loss.mask_agreement.is_nan() => found.push(format!(
            "without photos that are labelled with a known name its masks have to agree with the reference's by {AGREEMENT}, found {:.4} on {} \
             photos",
            loss.mask_agreement, loss.photos
        )),
        _ => {}
    }
    if loss.ranking_changed > 0.0 {
        let photos = (loss.ranking_changed * loss.photos as f64).round();
        found.push(format!(
            "the highest-scoring class changes by more than {TIE} in {photos} of {} photos; none is allowed",
            loss.photos
        ));
    }
    if int8 && size_ratio > INT8_SIZE {
        found.push(format!(
            "its files are {size_ratio:.3} of fp32, at most {INT8_SIZE} is allowed"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss() -> Loss {
        Loss {
            relative_error: [("patch_embeddings".to_owned(), 0.02)].into(),
            photos: 40,
            labelled: 30,
            mean_iou: Some([0.40, 0.391]),
            mask_agreement: 0.9,
            ranking_changed: 0.0,
            top_differs: 0.1,
        }
    }

    #[test]
    fn a_small_loss_passes_and_every_limit_is_named_when_it_is_crossed() {
        assert!(objections(&loss(), 0.29, true).is_empty());
        assert!(objections(&loss(), 0.5, false).is_empty());
        let refused = |change: fn(&mut Loss), ratio| {
            let mut loss = loss();
            change(&mut loss);
            let found = objections(&loss, ratio, true);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        assert!(refused(|l| l.mean_iou = Some([0.40, 0.389]), 0.29).contains("falls by 0.0110"));
        assert!(refused(|l| l.mean_iou = Some([0.40, f64::NAN]), 0.29).contains("NaN"));
        assert!(refused(|l| l.ranking_changed = 0.05, 0.29).contains("in 2 of 40 photos"));
        assert!(refused(|_| (), 0.301).contains("0.301 of fp32"));
        assert!(refused(|l| l.mean_iou = None, 0.29).contains("0.9000 on 40"));
        let mut unlabelled = loss();
        (unlabelled.mean_iou, unlabelled.mask_agreement) = (None, 0.995);
        assert!(objections(&unlabelled, 0.29, true).is_empty());
    }
}
