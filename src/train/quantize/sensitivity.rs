//! Which layers may be 8-bit, by measured effect.
//!
//! On a few calibration photos, each graph is tried with everything in 8 bits under every way to choose ranges, then
//! with one layer (or one block of layers, where a run is costly) in 8 bits and the rest in floats. Effects of single
//! layers add up about like independent errors, so a plan for a given overall error keeps the strongest ones in float
//! until the sum of the remaining squares fits. Whether that is good enough is not decided here: [`super::gate`]
//! measures the whole variant on other photos, and [`super::run`] asks for a stricter plan where it fails.

use std::collections::BTreeMap;

use super::QuantizeError;
use super::calibrate::GraphStatistics;
use super::histogram::Method;
use super::onnx_file::OnnxFile;
use super::publish::Staging;
use super::qdq::{Layer, Plan, Treatment, quantized};
use super::session::Runner;
use crate::contract::Bundle;

/// Ways to choose ranges that are tried against each other.
const METHODS: [Method; 4] = [
    Method::Max,
    Method::Percentile(99.999),
    Method::Percentile(99.99),
    Method::Entropy,
];

/// Layers that are tried together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Name of the layer, or of the block.
    pub name: String,
    /// Weights of its layers.
    pub weights: Vec<String>,
}

/// What the trials of one graph found.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// How ranges are chosen.
    pub method: Method,
    /// Overall error with every layer in 8 bits, per method tried.
    pub methods: Vec<(Method, f64)>,
    /// Overall error with 8-bit weights alone.
    pub weights_alone: Option<f64>,
    /// Overall error with one unit in 8 bits, strongest first; empty if nothing was tried.
    pub units: Vec<(Unit, f64)>,
}

/// Tries variants of one graph.
pub struct Trials<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// The graph with fp32 weights.
    pub file: &'a OnnxFile,
    /// What calibration found about it.
    pub statistics: &'a GraphStatistics,
    /// Bits of weights that meet 8-bit activations.
    pub weight_bits: u32,
    /// What runs the graphs.
    pub runner: &'a Runner,
    /// Where trial graphs are put meanwhile.
    pub staging: &'a Staging,
}

impl Trials<'_> {
    /// The plan that treats every layer as `treatment` says, with ranges by `method`.
    #[must_use]
    pub fn plan(&self, method: Method, treatment: impl Fn(&Layer) -> Treatment) -> Plan {
        let layers = self.statistics.layers.iter();
        let seen = &self.statistics.seen;
        Plan {
            treatments: layers.map(|l| (l.weight.clone(), treatment(l))).collect(),
            ranges: seen
                .iter()
                .map(|(n, s)| (n.clone(), s.histogram.range(method)))
                .collect(),
            ranks: seen.iter().map(|(n, s)| (n.clone(), s.rank)).collect(),
            weight_bits: self.weight_bits,
        }
    }

    /// The graph under a plan.
    #[must_use]
    pub fn build(&self, plan: &Plan) -> OnnxFile {
        quantized(self.file.clone(), &self.statistics.layers, plan)
    }

    fn error(&self, plan: &Plan) -> Result<f64, QuantizeError> {
        let kind = self.statistics.trial.kind();
        let path = self.staging.write("trial.onnx", &self.build(plan).encode())?;
        let mut engine = self.runner.engine(self.bundle, &[(kind, path.clone())])?;
        self.staging.remove(&path);
        self.statistics.trial.error(&mut engine)
    }

    /// Tries methods (all, or the given one) and units, within about `max_runs` runs of the graph.
    ///
    /// # Errors
    /// [`QuantizeError`] if a trial graph cannot be written or run.
    pub fn search(&self, fixed: Option<Method>, max_runs: usize) -> Result<Sensitivity, QuantizeError> {
        let trials = max_runs / self.statistics.trial.runs().max(1);
        let all = |l: &Layer| l.strongest();
        let mut methods = Vec::new();
        for method in fixed.map_or(METHODS.to_vec(), |m| vec![m]) {
            if trials > methods.len() {
                methods.push((method, self.error(&self.plan(method, all))?));
            }
        }
        let best = methods.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let method = best.map(|b| b.0).or(fixed).unwrap_or(Method::Entropy);
        let left = trials.saturating_sub(methods.len() + 1);
        let mut found = Sensitivity {
            method,
            methods,
            weights_alone: None,
            units: Vec::new(),
        };
        if left == 0 {
            return Ok(found);
        }
        found.weights_alone = Some(self.error(&self.plan(method, |_| Treatment::WeightOnly))?);
        for unit in units(&self.statistics.layers, left) {
            let plan = self.plan(method, |l| {
                if unit.weights.contains(&l.weight) {
                    l.strongest()
                } else {
                    Treatment::Float
                }
            });
            let error = self.error(&plan)?;
            tracing::debug!(unit = unit.name, error, "tried in 8 bits");
            found.units.push((unit, error));
        }
        found.units.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(found)
    }
}

/// Share of the effect of everything in 8 bits that the first plan leaves at least: without it, a large model whose
/// every block is beyond the wanted error would start with nothing in 8 bits at all.
const FIRST_SHARE: f64 = 0.75;

impl Sensitivity {
    /// The error that the plan of `round` (0 first) may add up to: `wanted`, or most of what all units add up to if that
    /// is more; half of it in every further round.
    #[must_use]
    pub fn target(&self, wanted: f64, round: usize) -> f64 {
        let finite = self.units.iter().map(|(_, e)| e * e).filter(|e| e.is_finite());
        let first = wanted.max(FIRST_SHARE * finite.sum::<f64>().sqrt());
        first / 2_f64.powi(i32::try_from(round).unwrap_or(i32::MAX))
    }

    /// Units to compute in float so that the others' effects stay within `target` together.
    #[must_use]
    pub fn kept_in_float(&self, target: f64) -> Vec<&Unit> {
        let rest = |kept: usize| self.units[kept..].iter().map(|(_, e)| e * e).sum::<f64>().sqrt();
        let kept = (0..self.units.len())
            .find(|&k| rest(k) <= target)
            .unwrap_or(self.units.len());
        self.units[..kept].iter().map(|(unit, _)| unit).collect()
    }
}

/// Products to try: one by one if there are at most `limit`, else by block, else neighbouring blocks together.
fn units(layers: &[Layer], limit: usize) -> Vec<Unit> {
    let products: Vec<&Layer> = layers.iter().filter(|l| !l.activations.is_empty()).collect();
    let one = |l: &&Layer| Unit {
        name: l.name().into(),
        weights: vec![l.weight.clone()],
    };
    if products.len() <= limit {
        return products.iter().map(one).collect();
    }
    let mut blocks: Vec<Unit> = Vec::new();
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for layer in products {
        let name = block(layer.name());
        let at = *place.entry(name.clone()).or_insert_with(|| {
            blocks.push(Unit {
                name,
                weights: Vec::new(),
            });
            blocks.len() - 1
        });
        blocks[at].weights.push(layer.weight.clone());
    }
    let together = blocks.len().div_ceil(limit.max(1)).max(1);
    let merge = |chunk: &[Unit]| Unit {
        name: chunk.iter().map(|u| u.name.as_str()).collect::<Vec<_>>().join(" + "),
        weights: chunk.iter().flat_map(|u| u.weights.clone()).collect(),
    };
    blocks.chunks(together).map(merge).collect()
}

/// The name up to its first number, `image_encoder.blocks.3` for instance, or without its last part.
fn block(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let number = parts.iter().position(|p| p.parse::<usize>().is_ok());
    let end = number.map_or(parts.len().saturating_sub(1).max(1), |n| n + 1);
    parts[..end].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> Layer {
        Layer {
            weight: format!("{name}.weight.transposed.single"),
            axis: 1,
            elements: 4096,
            activations: vec!["x".into()],
        }
    }

    #[test]
    fn units_are_layers_then_blocks_then_neighbours_as_the_budget_shrinks() {
        let layers: Vec<Layer> = [
            "enc.blocks.0.a",
            "enc.blocks.0.b",
            "enc.blocks.1.a",
            "neck.0",
            "head.proj",
        ]
        .iter()
        .map(|n| layer(n))
        .collect();
        let names = |limit| units(&layers, limit).into_iter().map(|u| u.name).collect::<Vec<_>>();
        assert_eq!(names(5)[1], "enc.blocks.0.b");
        assert_eq!(names(4), ["enc.blocks.0", "enc.blocks.1", "neck.0", "head"]);
        assert_eq!(names(2), ["enc.blocks.0 + enc.blocks.1", "neck.0 + head"]);
        assert_eq!(units(&layers, 1).iter().map(|u| u.weights.len()).sum::<usize>(), 5);
    }

    #[test]
    fn the_strongest_units_are_kept_in_float_until_the_rest_fits() {
        let unit = |name: &str| Unit {
            name: name.into(),
            weights: Vec::new(),
        };
        let found = Sensitivity {
            method: Method::Max,
            methods: Vec::new(),
            weights_alone: None,
            units: vec![(unit("a"), f64::INFINITY), (unit("b"), 0.04), (unit("c"), 0.03)],
        };
        let kept = |target| {
            found
                .kept_in_float(target)
                .iter()
                .map(|u| u.name.as_str())
                .collect::<Vec<_>>()
        };
        assert!((found.target(0.01, 0) - 0.0375).abs() < 1e-9 && (found.target(0.01, 1) - 0.01875).abs() < 1e-9);
        assert_eq!(found.target(0.1, 1), 0.05);
        assert_eq!(kept(0.051), ["a"]);
        assert_eq!(kept(0.049), ["a", "b"]);
        assert_eq!(kept(0.01), ["a", "b", "c"]);
    }
}
