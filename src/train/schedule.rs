//! Learning rate over a stage: linear warm-up, then cosine to a hundredth.

/// Factor on the base learning rate at `step` of `steps` with `warmup` steps of warm-up: above 0, at most 1.
#[must_use]
pub fn warmup_cosine(step: u64, steps: u64, warmup: u64) -> f32 {
    #[allow(clippy::cast_precision_loss)] // step counts stay far below 2^24
    let [step, steps, warmup] = [step, steps, warmup].map(|v| v as f32);
    if step < warmup {
        return (step + 1.0) / warmup;
    }
    let progress = ((step - warmup) / (steps - warmup).max(1.0)).min(1.0);
    0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::warmup_cosine;

    #[test]
    fn rises_to_one_and_falls_to_a_hundredth() {
        assert!((warmup_cosine(0, 100, 10) - 0.1).abs() < 1e-6);
        assert!((warmup_cosine(9, 100, 10) - 1.0).abs() < 1e-6);
        assert!((warmup_cosine(55, 100, 10) - 0.505).abs() < 1e-3);
        assert!((warmup_cosine(100, 100, 10) - 0.01).abs() < 1e-6);
        assert!(
            (warmup_cosine(7, 7, 10) - 0.8).abs() < 1e-6,
            "a stage shorter than its warm-up"
        );
    }
}
