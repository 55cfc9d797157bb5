//! int8 variant of a graph: QuantizeLinear and DequantizeLinear around its matrix products and convolutions.
//!
//! Weights are symmetric int8 per output channel (per row for embedding tables), activations symmetric int8 per tensor,
//! all zero points 0: the form that TensorRT reads and ONNX Runtime fuses. Weights that meet an 8-bit activation use
//! ±63 (7 bits) unless told otherwise: on x86 without VNNI the pairwise 16-bit sums of the product saturate with ±127.
//! Weights that are widened before a float product ([`Treatment::WeightOnly`], tables) cannot saturate anything and use
//! ±127. Products of two activations (attention scores and values) stay float.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

use super::formats::fp16_stored;
use super::onnx_file::{OnnxFile, float_tensor, floats, integer, node, raw_tensor};

/// Smallest weight worth a scale per channel.
const SMALLEST: usize = 1024;

/// What happens to one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// 8-bit weights and activations.
    Int8,
    /// 8-bit weights, widened before a float product.
    WeightOnly,
    /// Weights stored as fp16, float product.
    Float,
}

/// A weight that can be quantized, with everything that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Name of the initialiser.
    pub weight: String,
    /// Axis of its channels: 1 for matrices `[K, N]`, 0 for convolutions and tables.
    pub axis: usize,
    /// Number of weights.
    pub elements: usize,
    /// Tensors it is multiplied with; none for an embedding table.
    pub activations: Vec<String>,
}

impl Layer {
    /// The layer's name, as the checkpoint calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.weight.trim_end_matches(".single").trim_end_matches(".transposed");
        name.strip_suffix(".weight").unwrap_or(name)
    }

    /// What may be done to it without any measurement: everything to a product, no activation to a table.
    #[must_use]
    pub fn strongest(&self) -> Treatment {
        if self.activations.is_empty() {
            Treatment::WeightOnly
        } else {
            Treatment::Int8
        }
    }
}

/// Every layer that can be quantized, in graph order.
#[must_use]
pub fn layers(file: &OnnxFile) -> Vec<Layer> {
    let graph = file.graph();
    let weights: BTreeMap<&str, &TensorProto> = graph
        .initializer
        .iter()
        .filter(|t| t.data_type == DataType::Float as i32)
        .map(|t| (t.name.as_str(), t))
        .collect();
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let mut found: Vec<Layer> = Vec::new();
    let mut elsewhere = BTreeSet::new();
    for node in &graph.node {
        let place = place(node, &constants);
        for (at, input) in node
            .input
            .iter()
            .enumerate()
            .filter(|(_, i)| weights.contains_key(i.as_str()))
        {
            let tensor = weights[input.as_str()];
            match place {
                Some((slot, axis)) if slot == at && fits(node, tensor) => {
                    let activation = (node.op_type != "Gather").then(|| node.input[0].clone());
                    match found.iter_mut().find(|l| l.weight == *input) {
                        Some(layer) if layer.axis == axis => layer.activations.extend(activation),
                        Some(_) => drop(elsewhere.insert(input.clone())),
                        None => found.push(Layer {
                            weight: input.clone(),
                            axis,
                            elements: tensor.dims.iter().product::<i64>() as usize,
                            activations: activation.into_iter().collect(),
                        }),
                    }
                }
                _ => drop(elsewhere.insert(input.clone())),
            }
        }
    }
    found.retain(|l| !elsewhere.contains(&l.weight));
    for layer in &mut found {
        layer.activations.sort();
        layer.activations.dedup();
    }
    found
}

/// Input that holds the weight, and the weight's channel axis.
fn place(node: &NodeProto, constants: &BTreeSet<&str>) -> Option<(usize, usize)> {
    let computed = |at: usize| node.input.get(at).is_some_and(|i| !constants.contains(i.as_str()));
    match node.op_type.as_str() {
        "MatMul" if computed(0) => Some((1, 1)),
        "Conv" if computed(0) => Some((1, 0)),
        "Gather" if computed(1) => Some((0, 0)),
        _ => None,
    }
}

fn fits(node: &NodeProto, weight: &TensorProto) -> bool {
    let rank = if node.op_type == "Conv" { 4 } else { 2 };
    let elements = weight.dims.iter().product::<i64>();
    let finite = || floats(weight).is_some_and(|v| v.iter().all(|x| x.is_finite()));
    weight.dims.len() == rank && elements >= SMALLEST as i64 && finite()
}

/// What to do with a graph.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Treatment per weight; a layer that is not named stays float.
    pub treatments: BTreeMap<String, Treatment>,
    /// Largest magnitude per activation, which becomes level 127.
    pub ranges: BTreeMap<String, f32>,
    /// Number of axes per activation, as far as known.
    pub ranks: BTreeMap<String, usize>,
    /// Bits of weights that meet 8-bit activations: 7 or 8.
    pub weight_bits: u32,
}

/// Applies a plan. Other large weights are stored as fp16. A layer whose activation has no range stays weight-only.
#[must_use]
pub fn quantized(mut file: OnnxFile, layers: &[Layer], plan: &Plan) -> OnnxFile {
    let mut rewrite = Rewrite::default();
    let largest = if plan.weight_bits >= 8 { 127 } else { 63 };
    let graph = file.graph_mut();
    let by_name: BTreeMap<&str, &Layer> = layers.iter().map(|l| (l.weight.as_str(), l)).collect();
    let treatment = |layer: &Layer| {
        let wanted = plan.treatments.get(&layer.weight).copied().unwrap_or(Treatment::Float);
        let ranged = layer.activations.iter().all(|a| plan.ranges.contains_key(a));
        if ranged {
            wanted.max(layer.strongest())
        } else {
            wanted.max(Treatment::WeightOnly)
        }
    };
    let old = std::mem::take(&mut graph.initializer);
    for tensor in old {
        match by_name.get(tensor.name.as_str()).map(|&l| (l, treatment(l))) {
            Some((layer, Treatment::Int8)) => rewrite.weight(&tensor, layer.axis, largest),
            Some((layer, Treatment::WeightOnly)) => rewrite.weight(&tensor, layer.axis, 127),
            _ => rewrite.initializers.push(tensor),
        }
    }
    for mut node in std::mem::take(&mut graph.node) {
        let (slot, other) = if node.op_type == "Gather" {
            (0, None)
        } else {
            (1, Some(0))
        };
        let layer = node.input.get(slot).and_then(|w| by_name.get(w.as_str()));
        let wanted = layer.map_or(Treatment::Float, |&l| treatment(l));
        if wanted != Treatment::Float {
            node.input[slot] = rewrite.widened(&node.input[slot].clone());
        }
        if let (Treatment::Int8, Some(at)) = (wanted, other) {
            let range = plan.ranges[&node.input[at]];
            if node.op_type == "MatMul" && plan.ranks.get(&node.input[at]).is_some_and(|&r| r >= 3) {
                rewrite.products.insert(node.output[0].clone());
            }
            node.input[at] = rewrite.activation(&node.input[at].clone(), range);
        }
        rewrite.nodes.push(node);
    }
    rewrite.keep_biases_apart();
    rewrite.finish(graph);
    fp16_stored(file)
}

#[derive(Default)]
struct Rewrite {
    initializers: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    /// Channel axis and number of channels per quantized weight.
    weights: BTreeMap<String, (usize, usize)>,
    /// Zero points by length; 0 stands for a scalar.
    zeros: BTreeSet<usize>,
    done: BTreeSet<String>,
    /// Outputs of 8-bit matrix products of three axes and more.
    products: BTreeSet<String>,
}

impl Rewrite {
    /// Stores a weight as int8 with one scale per channel.
    fn weight(&mut self, tensor: &TensorProto, axis: usize, largest: i32) {
        let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
        let values = floats(tensor).unwrap_or_default();
        let (levels, scales) = channel_levels(&values, &dims, axis, largest);
        let name = &tensor.name;
        let raw = levels.iter().map(|&l| l as u8).collect();
        self.initializers
            .push(raw_tensor(&format!("{name}.i8"), &tensor.dims, DataType::Int8, raw));
        self.initializers
            .push(float_tensor(&format!("{name}.s"), &[scales.len() as i64], &scales));
        self.weights.insert(name.clone(), (axis, scales.len()));
    }

    /// The float version of a stored weight.
    fn widened(&mut self, name: &str) -> String {
        let (axis, channels) = self.weights[name];
        let wide = format!("{name}.w");
        if self.done.insert(wide.clone()) {
            let zero = self.zero(channels);
            let (levels, scale) = (format!("{name}.i8"), format!("{name}.s"));
            let attribute = vec![integer("axis", axis as i64)];
            self.nodes
                .push(node("DequantizeLinear", &[&levels, &scale, &zero], &wide, attribute));
        }
        wide
    }

    /// An activation rounded to 8 bits, as float; all layers that read it share it.
    fn activation(&mut self, name: &str, range: f32) -> String {
        let (levels, scale, wide) = (format!("{name}.q"), format!("{name}.s"), format!("{name}.d"));
        if self.done.insert(wide.clone()) {
            let zero = self.zero(0);
            self.initializers
                .push(float_tensor(&scale, &[], &[(range / 127.0).max(f32::MIN_POSITIVE)]));
            self.nodes
                .push(node("QuantizeLinear", &[name, &scale, &zero], &levels, Vec::new()));
            self.nodes
                .push(node("DequantizeLinear", &[&levels, &scale, &zero], &wide, Vec::new()));
        }
        wide
    }

    /// Gives the biases of 8-bit products three axes, `[1, 1, N]`. ONNX Runtime fuses a product and a bias of one axis
    /// into a float Gemm before it looks for quantized products, and then multiplies in float (nano's encoder on a CPU
    /// with VNNI: 1.3 of fp32's time, 0.8 with three axes).
    fn keep_biases_apart(&mut self) {
        for node in self
            .nodes
            .iter_mut()
            .filter(|n| n.op_type == "Add" && n.input.len() == 2)
        {
            for (product, bias) in [(0, 1), (1, 0)] {
                if !self.products.contains(&node.input[product]) {
                    continue;
                }
                let bias = &mut node.input[bias];
                let Some(tensor) = self.initializers.iter().find(|t| t.name == *bias && t.dims.len() == 1) else {
                    continue;
                };
                let (mut tensor, name) = (tensor.clone(), format!("{bias}.3"));
                tensor.dims.splice(0..0, [1, 1]);
                tensor.name.clone_from(&name);
                if self.done.insert(name.clone()) {
                    self.initializers.push(tensor);
                }
                *bias = name;
            }
        }
        let read: BTreeSet<&String> = self.nodes.iter().flat_map(|n| &n.input).collect();
        self.initializers.retain(|t| read.contains(&t.name));
    }

    fn zero(&mut self, channels: usize) -> String {
        self.zeros.insert(channels);
        format!("zero.{channels}")
    }

    fn finish(mut self, graph: &mut GraphProto) {
        for &channels in &self.zeros {
            let dims = if channels == 0 {
                Vec::new()
            } else {
                vec![channels as i64]
            };
            let zero = raw_tensor(
                &format!("zero.{channels}"),
                &dims,
                DataType::Int8,
                vec![0; channels.max(1)],
            );
            self.initializers.push(zero);
        }
        graph.initializer = self.initializers;
        graph.node = self.nodes;
    }
}

/// Levels in `-largest..=largest` and the scale of every channel; a channel of zeros has scale 1.
fn channel_levels(values: &[f32], dims: &[usize], axis: usize, largest: i32) -> (Vec<i8>, Vec<f32>) {
    let (channels, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>().max(1));
    let channel = |i: usize| i / inner % channels;
    let mut scales = vec![0.0_f32; channels];
    for (i, v) in values.iter().enumerate() {
        let c = channel(i);
        scales[c] = scales[c].max(v.abs());
    }
    let steps = largest as f32;
    for s in &mut scales {
        *s = if *s / steps > 0.0 { *s / steps } else { 1.0 };
    }
    let level = |(i, v): (usize, &f32)| (v / scales[channel(i)]).round().clamp(-steps, steps) as i8;
    (values.iter().enumerate().map(level).collect(), scales)
}
