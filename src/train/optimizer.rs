//! AdamW over the weight map, with parameter groups by name and global-norm clipping.
//!
//! Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) on matrices only: biases, norms and
//! position tables are not decayed. Moments are kept by name, so a checkpoint holds them and a resumed
//! run takes the same steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::train::weights::{Values, Weights};

/// Gradients by weight name, each as long as its weight.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// Settings of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Weight decay per step, times the learning rate.
    pub weight_decay: f32,
    /// Largest global norm of the gradients; longer ones are scaled down to it.
    pub clip_norm: f32,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

/// The optimiser's state.
#[derive(Clone, Debug, Default)]
pub struct AdamW {
    /// Steps taken.
    pub step: u64,
    first: BTreeMap<String, Vec<f32>>,
    second: BTreeMap<String, Vec<f32>>,
}

/// Norm of all gradients together.
#[must_use]
pub fn global_norm(gradients: &Gradients) -> f32 {
    let sum: f64 = gradients.values().flatten().map(|&g| f64::from(g).powi(2)).sum();
    #[allow(clippy::cast_possible_truncation)] // a norm's precision is not needed beyond f32
    {
        sum.sqrt() as f32
    }
}

/// Whether weight decay applies: matrices and kernels, not tables of positions or single tokens.
fn decays(name: &str, values: &Values) -> bool {
    let matrix = values.shape.iter().filter(|&&d| d > 1).count() >= 2;
    matrix
        && !["pos_embed", "rel_pos", "positional_embedding", "token_embedding"]
            .iter()
            .any(|t| name.contains(t))
}

impl AdamW {
    /// One step; `rate` gives each weight's learning rate by name. Returns the norm before clipping; where that is not finite, none,
    /// and nothing has changed.
    pub fn step(
        &mut self,
        config: &AdamWConfig,
        weights: &mut Weights,
        gradients: &Gradients,
        rate: impl Fn(&str) -> f32,
    ) -> Option<f32> {
        let norm = Some(global_norm(gradients)).filter(|norm| norm.is_finite())?;
        self.step += 1;
        let clip = if norm > config.clip_norm {
            config.clip_norm / norm
        } else {
            1.0
        };
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // exact far beyond any run
        let t = self.step.min(1 << 24) as f32;
        let (bias1, bias2) = (1.0 - config.beta1.powf(t), 1.0 - config.beta2.powf(t));
        for (name, gradient) in gradients {
            let values = weights.get_mut(name).expect("gradients belong to weights");
            let decay = if decays(name, values) { config.weight_decay } else { 0.0 };
            let rate = rate(name);
            let first = self
                .first
                .entry(name.clone())
                .or_insert_with(|| vec![0.0; gradient.len()]);
            let second = self
                .second
                .entry(name.clone())
                .or_insert_with(|| vec![0.0; gradient.len()]);
            for (((w, &g), m), v) in values.data.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = g * clip;
                *m = config.beta1 * *m + (1.0 - config.beta1) * g;
                *v = config.beta2 * *v + (1.0 - config.beta2) * g * g;
                let update = (*m / bias1) / ((*v / bias2).sqrt() + config.epsilon);
                *w -= rate * (update + decay * *w);
            }
        }
        Some(norm)
    }

    /// The moments as weights, for a checkpoint: `first.{name}` and `second.{name}`.
    #[must_use]
    pub fn to_weights(&self) -> Weights {
        let named = |prefix: &'static str, map: &BTreeMap<String, Vec<f32>>| {
            let entry = move |(n, d): (&String, &Vec<f32>)| {
                (
                    format!("{prefix}.{n}"),
                    Values {
                        shape: vec![d.len()],
                        data: d.clone(),
                    },
                )
            };
            map.iter().map(entry).collect::<Weights>()
        };
        let mut all = named("first", &self.first);
        all.extend(named("second", &self.second));
        all
    }

    /// The state that [`AdamW::to_weights`] wrote.
    #[must_use]
    pub fn from_weights(step: u64, weights: &Weights) -> Self {
        let part = |prefix: &str| {
            let strip = |(n, v): (&String, &Values)| Some((n.strip_prefix(prefix)?.to_owned(), v.data.clone()));
            weights.iter().filter_map(strip).collect()
        };
        Self {
            step,
            first: part("first."),
            second: part("second."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: f32) -> Weights {
        [(
            "w".to_owned(),
            Values {
                shape: vec![1],
                data: vec![value],
            },
        )]
        .into()
    }

    #[test]
    fn first_step_moves_by_the_learning_rate_against_the_gradient() {
        let mut weights = one(1.0);
        let gradients = [("w".to_owned(), vec![0.5])].into();
        let norm = AdamW::default().step(&AdamWConfig::default(), &mut weights, &gradients, |_| 0.1);
        assert!((norm.unwrap() - 0.5).abs() < 1e-6);
        assert!((weights["w"].data[0] - 0.9).abs() < 1e-5);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let (mut weights, mut adam) = (one(1.0), AdamW::default());
        for gradient in [f32::NAN, f32::INFINITY] {
            let gradients = [("w".to_owned(), vec![gradient])].into();
            assert_eq!(
                adam.step(&AdamWConfig::default(), &mut weights, &gradients, |_| 0.1),
                None
            );
            assert_eq!((weights["w"].data[0], adam.step, adam.to_weights().len()), (1.0, 0, 0));
        }
    }

    #[test]
    fn restored_state_takes_the_same_step() {
        let gradients: Gradients = [("w".to_owned(), vec![0.3])].into();
        let (mut weights, mut adam) = (one(1.0), AdamW::default());
        adam.step(&AdamWConfig::default(), &mut weights, &gradients, |_| 0.1)
            .unwrap();
        let mut restored = AdamW::from_weights(adam.step, &adam.to_weights());
        let mut copy = weights.clone();
        for (adam, weights) in [(&mut adam, &mut weights), (&mut restored, &mut copy)] {
            adam.step(&AdamWConfig::default(), weights, &gradients, |_| 0.1)
                .unwrap();
        }
        assert_eq!(weights, copy);
    }

    #[test]
    fn only_matrices_decay() {
        let matrix = |name: &str, shape: &[usize]| {
            decays(
                name,
                &Values {
                    shape: shape.into(),
                    data: Vec::new(),
                },
            )
        };
        assert!(matrix("blocks.0.attn.qkv.weight", &[9, 3]));
        assert!(!matrix("blocks.0.norm1.weight", &[3]));
        assert!(!matrix("image_encoder.pos_embed", &[1, 4, 4, 3]));
        assert!(!matrix("mask_decoder.iou_token.weight", &[1, 8]));
    }

    fn named(values: &[(&str, &[usize], &[f32])]) -> Weights {
        let entry = |&(name, shape, data): &(&str, &[usize], &[f32])| {
            let (shape, data) = (shape.to_vec(), data.to_vec());
            (name.to_owned(), Values { shape, data })
        };
        values.iter().map(entry).collect()
    }

    fn gradients(matrix: &[f32], bias: &[f32]) -> Gradients {
        [("m".to_owned(), matrix.to_vec()), ("b".to_owned(), bias.to_vec())].into()
    }

    /// A matrix and a bias before the first step.
    fn matrix_and_bias() -> Weights {
        named(&[("m", &[2, 2], &[1.0, -2.0, 0.5, 3.0]), ("b", &[2], &[0.25, -0.75])])
    }

    fn assert_close(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 2e-6, "{what}: {found:?}, expected {expected:?}");
        }
    }

    /// Expected values by 64-bit floats from the formulas of PyTorch's `AdamW` and `clip_grad_norm_` (without its 1e-6):
    /// `g ← g min(1, c / ‖g‖)`, `w ← w − γ λ w`, `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
    /// `w ← w − γ (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)`; λ of the bias is 0. Rounding in 32 bits moves them by up to 1e-6.
    #[test]
    fn three_steps_are_those_of_the_formulas() {
        let (mut weights, mut adam) = (matrix_and_bias(), AdamW::default());
        let rate = |name: &str| if name == "m" { 0.1 } else { 0.01 };
        // Norms 13, which is cut to 1, 0.55, which is not, and 3.4.
        for (step, gradients, matrix, bias) in [
            (
                1,
                gradients(&[3.0, -4.0, 0.0, 0.0], &[0.0, 12.0]),
                [0.89, -1.88, 0.495, 2.97],
                [0.25, -0.76],
            ),
            (
                2,
                gradients(&[0.1, 0.2, -0.3, 0.05], &[-0.02, 0.4]),
                [0.790_023_4, -1.845_596_6, 0.564_463_7, 2.865_886_3],
                [0.257_441_4, -0.769_107_7],
            ),
            (
                3,
                gradients(&[-2.0, 1.0, 0.5, 2.0], &[1.5, -0.25]),
                [0.813_209_9, -1.857_700_2, 0.582_338_6, 2.768_705_6],
                [0.251_320_2, -0.775_663_1],
            ),
        ] {
            adam.step(&AdamWConfig::default(), &mut weights, &gradients, rate)
                .unwrap();
            assert_close(&weights["m"].data, &matrix, &format!("matrix after step {step}"));
            assert_close(&weights["b"].data, &bias, &format!("bias after step {step}"));
        }
    }

    #[test]
    fn weights_decay_by_rate_times_decay_apart_from_the_gradient() {
        let (mut weights, mut adam) = (matrix_and_bias(), AdamW::default());
        let config = AdamWConfig {
            weight_decay: 0.25,
            ..AdamWConfig::default()
        };
        for kept in [0.9, 0.81] {
            adam.step(&config, &mut weights, &gradients(&[0.0; 4], &[0.0; 2]), |_| 0.4)
                .unwrap();
            let expected = [1.0, -2.0, 0.5, 3.0].map(|w| kept * w);
            assert_close(&weights["m"].data, &expected, "1 − 0.4 · 0.25 of the weights stays");
            assert_eq!(weights["b"].data, [0.25, -0.75], "biases do not decay");
        }
    }

    #[test]
    fn gradients_longer_than_the_clip_norm_together_are_scaled_down_to_it() {
        // 3, 4 and 12 have norm 13.
        let long = gradients(&[3.0, -4.0, 0.0, 0.0], &[0.0, 12.0]);
        for (clip_norm, factor) in [(1.0, 1.0 / 13.0), (6.5, 0.5), (13.0, 1.0), (100.0, 1.0)] {
            let (mut weights, mut adam) = (matrix_and_bias(), AdamW::default());
            let config = AdamWConfig {
                clip_norm,
                ..AdamWConfig::default()
            };
            let norm = adam.step(&config, &mut weights, &long, |_| 0.1).unwrap();
            assert!((norm - 13.0).abs() < 1e-5, "the norm before clipping: {norm}");
            // The first moment is a tenth of the gradient, the second a thousandth of its square.
            let moments = adam.to_weights();
            let scaled = [3.0, -4.0, 0.0, 0.0].map(|g| 0.1 * factor * g);
            assert_close(&moments["first.m"].data, &scaled, "matrix");
            assert_close(&moments["first.b"].data, &[0.0, 1.2 * factor], "bias");
            let second = moments["second.b"].data[1] / (0.144 * factor * factor);
            assert!(
                (second - 1.0).abs() < 1e-4,
                "second moment, {second} times what was expected"
            );
        }
    }
}
