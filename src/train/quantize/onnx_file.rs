//! An exported graph as it lies on disk: read, checked, its weights as fp32, and written again.
//!
//! Works on the file alone, so that any bundle can be quantized without its checkpoint. Whatever a file may hold is
//! checked once in [`OnnxFile::read`]; the rewriting in [`super::formats`] and [`super::qdq`] relies on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

use super::QuantizeError;

/// Per-axis QuantizeLinear and DequantizeLinear exist from this operator set on.
const OLDEST_OPSET: i64 = 13;

/// A checked graph.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    path: PathBuf,
    model: ModelProto,
}

impl OnnxFile {
    /// Reads a graph of `ai.onnx` operators whose initialisers are complete and lie in the file itself.
    ///
    /// # Errors
    /// [`QuantizeError::Graph`] naming the file and what is wrong with it; [`QuantizeError::Io`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self, QuantizeError> {
        let bytes = std::fs::read(path).map_err(QuantizeError::io(path))?;
        let bad = |message: String| QuantizeError::Graph {
            path: path.into(),
            message,
        };
        let model = ModelProto::decode(bytes.as_slice()).map_err(|e| bad(format!("is no ONNX file ({e})")))?;
        check(&model).map_err(bad)?;
        Ok(Self {
            path: path.into(),
            model,
        })
    }

    /// The file this graph came from; messages name it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().expect("read checked that there is a graph")
    }

    /// The graph, to be rewritten.
    pub(super) fn graph_mut(&mut self) -> &mut GraphProto {
        self.model.graph.as_mut().expect("read checked that there is a graph")
    }

    /// Bytes of the file this would be.
    #[must_use]
    pub fn size(&self) -> usize {
        self.model.encoded_len()
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    /// The initialiser of a name.
    #[must_use]
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.graph().initializer.iter().find(|t| t.name == name)
    }

    /// The same graph with every fp16 initialiser behind a Cast stored as fp32 under the Cast's name: the reference
    /// that all variants are made from, whatever storage the bundle has.
    #[must_use]
    pub fn expanded(mut self) -> Self {
        let graph = self.graph_mut();
        let stored: BTreeMap<String, usize> = graph
            .initializer
            .iter()
            .enumerate()
            .filter(|(_, t)| t.data_type == DataType::Float16 as i32)
            .map(|(i, t)| (t.name.clone(), i))
            .collect();
        let readers = readers(graph);
        let (mut done, mut new) = (BTreeSet::new(), Vec::new());
        graph.node.retain(|node| {
            let Some(&at) = node.input.first().and_then(|i| stored.get(i)) else {
                return true;
            };
            let widens = node.op_type == "Cast"
                && node
                    .attribute
                    .iter()
                    .any(|a| a.name == "to" && a.i == DataType::Float as i64);
            let values = floats(&graph.initializer[at]);
            let (true, Some(values)) = (widens, values) else {
                return true;
            };
            new.push(float_tensor(&node.output[0], &graph.initializer[at].dims, &values));
            // only when the last reader is gone is the half-size copy superfluous
            let casts = new.len();
            if readers.get(&node.input[0]).copied().unwrap_or(0) == 1 && casts > 0 {
                done.insert(at);
            }
            false
        });
        let mut index = 0;
        graph.initializer.retain(|_| {
            index += 1;
            !done.contains(&(index - 1))
        });
        graph.initializer.extend(new);
        self
    }
}

/// How many node inputs and graph outputs read each tensor.
pub(super) fn readers(graph: &GraphProto) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for name in graph
        .node
        .iter()
        .flat_map(|n| &n.input)
        .chain(graph.output.iter().map(|o| &o.name))
    {
        *count.entry(name.clone()).or_insert(0) += 1;
    }
    count
}

fn check(model: &ModelProto) -> Result<(), String> {
    let graph = model.graph.as_ref().ok_or("holds no graph")?;
    if graph.node.is_empty() || graph.output.is_empty() {
        return Err("holds an empty graph".into());
    }
    let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let opset = model.opset_import.iter().find(|o| standard(&o.domain));
    match opset {
        Some(o) if o.version >= OLDEST_OPSET => {}
        found => {
            let found = found.map_or("none".into(), |o| o.version.to_string());
            return Err(format!(
                "uses ai.onnx operator set {found}, expected {OLDEST_OPSET} or newer; export the model again"
            ));
        }
    }
    for node in &graph.node {
        if !standard(&node.domain) {
            return Err(format!(
                "uses operator {}.{}, expected ai.onnx only",
                node.domain, node.op_type
            ));
        }
        if matches!(node.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear") {
            return Err("is quantized already; give the variant it was made from".into());
        }
        if node.output.is_empty() {
            return Err(format!("node {:?} ({}) has no output", node.name, node.op_type));
        }
    }
    graph.initializer.iter().try_for_each(check_initializer)
}

fn check_initializer(t: &TensorProto) -> Result<(), String> {
    if t.data_location == Some(1) || !t.external_data.is_empty() {
        return Err(format!(
            "keeps initialiser {:?} in another file, expected one file",
            t.name
        ));
    }
    let wanted = t
        .dims
        .iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let half_or_single = [DataType::Float as i32, DataType::Float16 as i32].contains(&t.data_type);
    let found = floats(t).map(|v| v.len());
    if half_or_single && (wanted.is_none() || found != wanted) {
        return Err(format!(
            "is damaged: initialiser {:?} of shape {:?} holds {} values",
            t.name,
            t.dims,
            found.unwrap_or(0)
        ));
    }
    Ok(())
}

/// Values of a float initialiser, fp16 widened; `None` for other types and for bytes that are no whole values.
#[must_use]
pub fn floats(t: &TensorProto) -> Option<Vec<f32>> {
    if t.data_type == DataType::Float as i32 {
        if t.raw_data.is_empty() {
            return Some(t.float_data.clone());
        }
        let (chunks, rest) = t.raw_data.as_chunks::<4>();
        return rest
            .is_empty()
            .then(|| chunks.iter().map(|&c| f32::from_le_bytes(c)).collect());
    }
    if t.data_type != DataType::Float16 as i32 {
        return None;
    }
    if t.raw_data.is_empty() {
        let bits = t.int32_data.iter().map(|&v| u16::try_from(v).unwrap_or(0x7e00));
        return Some(bits.map(|b| half::f16::from_bits(b).to_f32()).collect());
    }
    let (chunks, rest) = t.raw_data.as_chunks::<2>();
    rest.is_empty()
        .then(|| chunks.iter().map(|&c| half::f16::from_le_bytes(c).to_f32()).collect())
}

/// An initialiser of raw bytes.
pub(super) fn raw_tensor(name: &str, dims: &[i64], data_type: DataType, raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.into(),
        data_type: data_type as i32,
        raw_data,
        ..TensorProto::default()
    }
}

/// An fp32 initialiser.
pub(super) fn float_tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    raw_tensor(name, dims, DataType::Float, raw)
}

/// An fp16 initialiser, nearest values, finite ones kept finite.
pub(super) fn half_tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let narrow = |&v: &f32| {
        let v = if v.is_finite() { v.clamp(-65504.0, 65504.0) } else { v };
        half::f16::from_f32(v).to_le_bytes()
    };
    let raw = values.iter().flat_map(narrow).collect();
    raw_tensor(name, dims, DataType::Float16, raw)
}

/// A node with one output; unnamed, which saves a fifth of a small quantized file.
pub(super) fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

/// An integer attribute.
pub(super) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

/// Wraps a graph written by a test.
#[cfg(test)]
pub(super) fn of_bytes(bytes: &[u8]) -> OnnxFile {
    OnnxFile {
        path: "test.onnx".into(),
        model: ModelProto::decode(bytes).unwrap(),
    }
}
