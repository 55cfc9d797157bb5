//! Ridge regression in closed form: sums over examples, then one Cholesky decomposition.

/// Penalty per example.
const PENALTY: f64 = 1e-3;

/// Sums over the examples seen so far.
pub(super) struct Ridge {
    inputs: usize,
    outputs: usize,
    examples: f64,
    /// `[F+1, F+1]`, lower triangle, the last row and column for the constant 1.
    gram: Vec<f64>,
    /// `[F+1, K]`.
    cross: Vec<f64>,
}

/// A fitted linear layer.
pub(super) struct Fit {
    outputs: usize,
    /// `[F+1, K]`, the last row the constant.
    weights: Vec<f64>,
}

impl Ridge {
    pub(super) fn new(inputs: usize, outputs: usize) -> Self {
        let n = inputs + 1;
        Self {
            inputs,
            outputs,
            examples: 0.0,
            gram: vec![0.0; n * n],
            cross: vec![0.0; n * outputs],
        }
    }

    /// Adds one example; `x` has as many values as inputs, `target` as many as outputs.
    pub(super) fn add(&mut self, x: &[f32], target: &[f32]) {
        let n = self.inputs + 1;
        self.examples += 1.0;
        let value = |i: usize| if i < self.inputs { f64::from(x[i]) } else { 1.0 };
        for i in 0..n {
            let own = value(i);
            let row = &mut self.gram[i * n..i * n + i + 1];
            for (sum, &other) in row.iter_mut().zip(x) {
                *sum += own * f64::from(other);
            }
            if i == self.inputs {
                row[i] += 1.0;
            }
            for (sum, &t) in self.cross[i * self.outputs..].iter_mut().zip(target) {
                *sum += own * f64::from(t);
            }
        }
    }

    /// The weights; none without examples.
    pub(super) fn solve(&self) -> Option<Fit> {
        let (n, f) = (self.inputs + 1, self.inputs);
        if self.examples == 0.0 {
            return None;
        }
        // Standardised features have spread 1, so a penalty on the raw weight is multiplied by the feature's variance.
        let mut gram = self.gram.clone();
        for i in 0..f {
            let mean = self.gram[f * n + i] / self.examples;
            let variance = self.gram[i * n + i] / self.examples - mean * mean;
            // a feature that never changes is no example's own, and must not make the sums singular
            let variance = variance.max(1e-6 * (mean * mean + 1e-6));
            gram[i * n + i] += PENALTY * self.examples * variance;
        }
        cholesky(&mut gram, n)?;
        let mut weights = self.cross.clone();
        for k in 0..self.outputs {
            let at = |i: usize| i * self.outputs + k;
            for i in 0..n {
                let sum: f64 = (0..i).map(|j| gram[i * n + j] * weights[at(j)]).sum();
                weights[at(i)] = (weights[at(i)] - sum) / gram[i * n + i];
            }
            for i in (0..n).rev() {
                let sum: f64 = (i + 1..n).map(|j| gram[j * n + i] * weights[at(j)]).sum();
                weights[at(i)] = (weights[at(i)] - sum) / gram[i * n + i];
            }
        }
        Some(Fit {
            outputs: self.outputs,
            weights,
        })
    }
}

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor; none if it is not positive definite.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - sum;
            a[i * n + j] = if i == j {
                (rest > 0.0).then(|| rest.sqrt())?
            } else {
                rest / a[j * n + j]
            };
        }
    }
    Some(())
}

impl Fit {
    /// One score per output.
    pub(super) fn scores(&self, x: &[f32]) -> Vec<f32> {
        let (rows, constant) = self.weights.split_at(self.weights.len() - self.outputs);
        let mut scores = constant.to_vec();
        for (row, &value) in rows.chunks_exact(self.outputs).zip(x) {
            scores.iter_mut().zip(row).for_each(|(s, w)| *s += f64::from(value) * w);
        }
        #[allow(clippy::cast_possible_truncation)] // scores are compared, not summed
        scores.into_iter().map(|s| s as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_rule_is_recovered_and_the_scale_of_a_feature_does_not_matter() {
        for scale in [1.0, 1000.0] {
            let mut ridge = Ridge::new(2, 2);
            for i in 0..200 {
                let (a, b) = ((i as f32 * 0.37).sin(), (i as f32 * 1.3).cos());
                ridge.add(&[a, b * scale], &[2.0 * a - b + 0.5, b]);
            }
            let found = ridge.solve().unwrap().scores(&[0.3, 0.7 * scale]);
            assert!(
                (found[0] - 0.4).abs() < 5e-3 && (found[1] - 0.7).abs() < 5e-3,
                "{found:?}"
            );
        }
    }

    #[test]
    fn no_example_is_no_fit_and_a_constant_feature_does_no_harm() {
        assert!(Ridge::new(2, 1).solve().is_none());
        let mut ridge = Ridge::new(2, 1);
        for i in 0..10 {
            ridge.add(&[i as f32, 3.0], &[i as f32]);
        }
        let found = ridge.solve().unwrap().scores(&[4.0, 3.0])[0];
        assert!((found - 4.0).abs() < 0.02, "{found}");
    }
}
