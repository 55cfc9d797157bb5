//! Float variants of a graph: fp16-stored and fp16-compute.
//!
//! *fp16-stored* keeps large weights as fp16 behind a Cast that every runtime folds at load; the arithmetic stays fp32.
//! *fp16-compute* is a true fp16 graph for CUDA and TensorRT with an fp32 boundary. It keeps in fp32 what loses there:
//! normalisations and sums of squares (LayerNormalization, ReduceSum, Sqrt, Div), Softmax, the sine and cosine of
//! pixel positions, comparisons of whole numbers (token ids reach 49,407, fp16 counts to 2,048), and layers whose input
//! reached magnitudes above [`LARGEST_HALF`] on the calibration photos (the inputs that calibration sees: those of
//! products with weights, convolutions and LayerNormalization).

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

use super::onnx_file::{OnnxFile, float_tensor, floats, half_tensor, integer, node};

/// Smallest weight that is stored as fp16: below, the Cast costs more than it saves.
const HALF_FROM: usize = 1024;

/// Largest magnitude that may be computed in fp16: a fourth of fp16's range, so that photos unlike the calibration's
/// have room.
pub const LARGEST_HALF: f32 = 16_376.0;

/// Operators that are as good in fp16.
const HALF_OPERATORS: [&str; 10] = [
    "MatMul",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "Add",
    "Sub",
    "Mul",
    "Relu",
    "Sigmoid",
    "Erf",
];

/// Operators that only move values: they take the type of what they move.
const MOVES: [&str; 13] = [
    "Reshape",
    "Transpose",
    "Slice",
    "Concat",
    "Pad",
    "Expand",
    "Identity",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Flatten",
    "Tile",
];

/// The graph with its large weights stored as fp16 and computed as fp32.
///
/// Weights with values beyond fp16's range and scales of quantized tensors stay as they are.
#[must_use]
pub fn fp16_stored(mut file: OnnxFile) -> OnnxFile {
    let graph = file.graph_mut();
    let quantized: BTreeSet<String> = graph
        .node
        .iter()
        .filter(|n| n.op_type.ends_with("quantizeLinear") || n.op_type == "QuantizeLinear")
        .flat_map(|n| n.input.iter().cloned())
        .collect();
    let mut casts = Vec::new();
    for t in &mut graph.initializer {
        let Some(values) = stored_as_half(t, &quantized) else {
            continue;
        };
        let (wide, narrow) = (t.name.clone(), format!("{}.half", t.name));
        *t = half_tensor(&narrow, &t.dims, &values);
        casts.push(node(
            "Cast",
            &[&narrow],
            &wide,
            vec![integer("to", DataType::Float as i64)],
        ));
    }
    casts.append(&mut graph.node);
    graph.node = casts;
    file
}

fn stored_as_half(t: &TensorProto, quantized: &BTreeSet<String>) -> Option<Vec<f32>> {
    if t.data_type != DataType::Float as i32 || quantized.contains(&t.name) {
        return None;
    }
    floats(t).filter(|v| v.len() >= HALF_FROM && v.iter().all(|x| x.abs() < 6.0e4))
}

/// Element type of every tensor, as far as this needs to know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Half,
    Other,
}

/// The graph computing in fp16; `largest` holds the largest magnitude seen per tensor, as calibration measured it.
#[must_use]
pub fn fp16_compute(mut file: OnnxFile, largest: &BTreeMap<String, f32>) -> OnnxFile {
    let graph = file.graph_mut();
    let exact = exact_tensors(graph);
    let mut conversion = Conversion::of(graph);
    for node in std::mem::take(&mut graph.node) {
        conversion.push(node, largest, &exact);
    }
    for output in &graph.output {
        conversion.widen_output(&output.name);
    }
    let Conversion {
        nodes, initializers, ..
    } = conversion;
    let read: BTreeSet<&String> = nodes.iter().flat_map(|n| &n.input).collect();
    graph.initializer = initializers.into_values().filter(|t| read.contains(&t.name)).collect();
    graph.node = nodes;
    fp16_stored(file)
}

/// What stays fp32 although its operator would not need it: everything that a sine or cosine is computed from (pixel
/// positions times 2π), and the terms of sums.
fn exact_tensors(graph: &GraphProto) -> BTreeSet<String> {
    let mut exact = BTreeSet::new();
    for node in graph.node.iter().rev() {
        if matches!(node.op_type.as_str(), "Sin" | "Cos") || node.output.iter().any(|o| exact.contains(o)) {
            exact.extend(node.input.iter().cloned());
        }
    }
    let sums = graph.node.iter().filter(|n| n.op_type.starts_with("Reduce"));
    exact.extend(sums.flat_map(|n| n.input.iter().cloned()));
    exact
}

struct Conversion {
    kinds: BTreeMap<String, Kind>,
    initializers: BTreeMap<String, TensorProto>,
    nodes: Vec<NodeProto>,
}

impl Conversion {
    fn of(graph: &GraphProto) -> Self {
        let kind = |data_type: i32| match data_type {
            t if t == DataType::Float as i32 => Kind::Single,
            t if t == DataType::Float16 as i32 => Kind::Half,
            _ => Kind::Other,
        };
        let mut kinds = BTreeMap::new();
        for input in &graph.input {
            use tract_onnx::pb::type_proto::Value::TensorType;
            if let Some(TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
                kinds.insert(input.name.clone(), kind(t.elem_type));
            }
        }
        kinds.extend(graph.initializer.iter().map(|t| (t.name.clone(), kind(t.data_type))));
        Self {
            kinds,
            initializers: graph.initializer.iter().map(|t| (t.name.clone(), t.clone())).collect(),
            nodes: Vec::new(),
        }
    }

    fn kind(&self, name: &str) -> Kind {
        self.kinds.get(name).copied().unwrap_or(Kind::Other)
    }

    fn push(&mut self, mut node: NodeProto, largest: &BTreeMap<String, f32>, exact: &BTreeSet<String>) {
        let op = node.op_type.as_str();
        let touched = node.input.iter().chain(&node.output);
        let large = touched.filter_map(|t| largest.get(t)).any(|&v| v > LARGEST_HALF);
        let large = large || node.output.iter().any(|o| exact.contains(o));
        let wanted = if MOVES.contains(&op) {
            self.moved(&node)
        } else if HALF_OPERATORS.contains(&op) && !large {
            Kind::Half
        } else {
            Kind::Single
        };
        for at in 0..node.input.len() {
            if self.kind(&node.input[at]) != Kind::Other && wanted != Kind::Other {
                node.input[at] = self.as_kind(&node.input[at], wanted);
            }
        }
        let result = match op {
            "Cast" => match node.attribute.iter().find(|a| a.name == "to").map(|a| a.i) {
                Some(to) if to == DataType::Float as i64 => Kind::Single,
                Some(to) if to == DataType::Float16 as i64 => Kind::Half,
                _ => Kind::Other,
            },
            "Equal" | "Less" | "Greater" | "Not" | "And" | "Or" | "Shape" | "ArgMax" => Kind::Other,
            _ if node.input.iter().all(|i| self.kind(i) == Kind::Other) => Kind::Other,
            _ => wanted,
        };
        for output in &node.output {
            self.kinds.insert(output.clone(), result);
        }
        self.nodes.push(node);
    }

    /// Type of what a moving operator moves; constants follow what they stand beside, and are fp16 alone.
    fn moved(&self, node: &NodeProto) -> Kind {
        let parts = if node.op_type == "Concat" {
            &node.input[..]
        } else {
            &node.input[..node.input.len().min(1)]
        };
        let computed = parts
            .iter()
            .filter(|p| !self.initializers.contains_key(*p))
            .map(|p| self.kind(p));
        let mut kinds = computed.filter(|&k| k != Kind::Other).collect::<Vec<_>>();
        kinds.dedup();
        match kinds[..] {
            [] => parts.first().map_or(Kind::Other, |p| match self.kind(p) {
                Kind::Single => Kind::Half,
                other => other,
            }),
            [Kind::Half] => Kind::Half,
            _ => Kind::Single,
        }
    }

    /// A tensor in another float type: a second initialiser, or one Cast that all readers share.
    fn as_kind(&mut self, name: &str, wanted: Kind) -> String {
        if name.is_empty() || self.kind(name) == wanted {
            return name.into();
        }
        let (suffix, to) = match wanted {
            Kind::Half => ("f16", DataType::Float16),
            _ => ("f32", DataType::Float),
        };
        let other = format!("{name}.{suffix}");
        if self.kinds.contains_key(&other) {
            return other;
        }
        self.kinds.insert(other.clone(), wanted);
        if let Some((t, values)) = self.initializers.get(name).and_then(|t| Some((t, floats(t)?))) {
            let converted = match wanted {
                Kind::Half => half_tensor(&other, &t.dims, &values),
                _ => float_tensor(&other, &t.dims, &values),
            };
            self.initializers.insert(other.clone(), converted);
        } else {
            let attribute = vec![integer("to", to as i64)];
            self.nodes.push(node("Cast", &[name], &other, attribute));
        }
        other
    }

    /// Makes a graph output fp32: whoever computes it writes under another name, a Cast gives the name back.
    fn widen_output(&mut self, output: &str) {
        if self.kind(output) != Kind::Half {
            return;
        }
        let inner = format!("{output}.inner");
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| *n == output) {
                name.clone_from(&inner);
            }
        }
        let attribute = vec![integer("to", DataType::Float as i64)];
        self.nodes.push(node("Cast", &[&inner], output, attribute));
    }
}
