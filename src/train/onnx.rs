//! [`Ops`] as a recorder of ONNX nodes.
//!
//! Opset 17, `ai.onnx` operators only, static shapes, fp32 compute; large weights may be stored as fp16
//! with a Cast behind them, which both runtimes fold at load. Linear weights are stored transposed, so
//! that no Transpose stands in the graph.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tract_onnx::pb::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::Dimension,
};

use crate::train::ops::{Conv, Ops, broadcast, product, resized};
use crate::train::weights::Weights;

/// Ends the name of a linear layer's weight in a graph, which holds it transposed.
pub(super) const TRANSPOSED: &str = ".transposed";

/// Smallest weight that is stored as fp16: below, the Cast costs more than it saves.
const HALF_FROM: usize = 1024;

/// How weights are stored in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// fp32.
    Single,
    /// fp16 for weights of 1,024 values and more, computed in fp32.
    Half,
}

impl Storage {
    /// Name of the variant in a bundle.
    #[must_use]
    pub fn variant(self) -> &'static str {
        match self {
            Self::Single => "fp32",
            Self::Half => "fp16-stored",
        }
    }
}

impl std::str::FromStr for Storage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp32" => Ok(Self::Single),
            "fp16" => Ok(Self::Half),
            _ => Err(format!("found {text:?}, expected fp16 or fp32")),
        }
    }
}

/// A value of the recorded graph.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    shape: Vec<usize>,
    weight: Option<String>,
}

/// Records what a model does.
pub struct Recorder<'a> {
    weights: &'a Weights,
    storage: Storage,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    nodes: Vec<NodeProto>,
    initializers: BTreeMap<String, TensorProto>,
    constants: BTreeMap<(i32, Vec<i64>, Vec<u8>), String>,
    inputs: Vec<ValueInfoProto>,
}

impl<'a> Recorder<'a> {
    /// A recorder whose graph holds `weights`, which were checked against the model's inventory.
    #[must_use]
    pub fn new(weights: &'a Weights, storage: Storage) -> Self {
        Self {
            weights,
            storage,
            state: RefCell::default(),
        }
    }

    /// A graph input of `f32`.
    #[must_use]
    pub fn input(&self, name: &str, shape: &[usize]) -> Node {
        self.state
            .borrow_mut()
            .inputs
            .push(value_info(name, DataType::Float, shape));
        Node {
            name: name.into(),
            shape: shape.into(),
            weight: None,
        }
    }

    /// The graph input `name [T, L]` of `i64` token ids.
    #[must_use]
    pub fn tokens(&self, name: &str, texts: usize, length: usize) -> Node {
        self.state
            .borrow_mut()
            .inputs
            .push(value_info(name, DataType::Int64, &[texts, length]));
        Node {
            name: name.into(),
            shape: vec![texts, length],
            weight: None,
        }
    }

    /// The graph as an ONNX file with the named outputs; nodes and initialisers that no output needs are left out.
    #[must_use]
    pub fn finish(self, graph: &str, outputs: &[(&str, &Node)]) -> Vec<u8> {
        let mut state = self.state.into_inner();
        for (name, node) in outputs {
            state.nodes.push(NodeProto {
                input: vec![node.name.clone()],
                output: vec![(*name).into()],
                name: format!("output.{name}"),
                op_type: "Identity".into(),
                ..NodeProto::default()
            });
        }
        drop_unread(
            &mut state.nodes,
            &outputs.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        );
        let read: BTreeSet<&String> = state.nodes.iter().flat_map(|n| &n.input).collect();
        let initializer = state
            .initializers
            .into_iter()
            .filter(|(name, _)| read.contains(name))
            .map(|(_, t)| t)
            .collect();
        let output = outputs
            .iter()
            .map(|(name, node)| value_info(name, DataType::Float, &node.shape))
            .collect();
        let graph = GraphProto {
            node: state.nodes,
            name: graph.into(),
            initializer,
            input: state.inputs,
            output,
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: 17,
            }],
            producer_name: "samclip train export".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }

    /// Emits one node with one output of `shape`.
    fn emit(&self, op: &str, inputs: &[&str], shape: Vec<usize>, attributes: Vec<AttributeProto>) -> Node {
        let mut state = self.state.borrow_mut();
        let name = format!("{}_{}", op.to_lowercase(), state.nodes.len());
        state.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute: attributes,
            ..NodeProto::default()
        });
        Node {
            name,
            shape,
            weight: None,
        }
    }

    fn unary(&self, op: &str, x: &Node) -> Node {
        self.emit(op, &[&x.name], x.shape.clone(), Vec::new())
    }

    fn binary(&self, op: &str, a: &Node, b: &Node) -> Node {
        self.emit(op, &[&a.name, &b.name], broadcast(&a.shape, &b.shape), Vec::new())
    }

    /// An initialiser; equal contents share one.
    fn stored(&self, data_type: DataType, dims: Vec<i64>, raw_data: Vec<u8>) -> String {
        let mut state = self.state.borrow_mut();
        let key = (data_type as i32, dims, raw_data);
        if let Some(name) = state.constants.get(&key) {
            return name.clone();
        }
        let name = format!("constant_{}", state.constants.len());
        let (_, dims, raw_data) = key.clone();
        let tensor = TensorProto {
            dims,
            data_type: data_type as i32,
            raw_data,
            name: name.clone(),
            ..TensorProto::default()
        };
        state.initializers.insert(name.clone(), tensor);
        state.constants.insert(key, name.clone());
        name
    }

    fn integers(&self, values: &[usize]) -> String {
        let raw = values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect();
        self.stored(DataType::Int64, vec![values.len() as i64], raw)
    }

    fn scalar(&self, value: f32) -> String {
        self.stored(DataType::Float, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Puts weight values into the graph under `name` and returns the fp32 value's name.
    fn place(&self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let fits = values.iter().all(|v| v.abs() < 6.0e4);
        let half = self.storage == Storage::Half && values.len() >= HALF_FROM && fits;
        if self.state.borrow().initializers.contains_key(name) {
            return if half {
                format!("{name}.single")
            } else {
                name.to_owned()
            };
        }
        let dims = shape.iter().map(|&d| d as i64).collect();
        let (data_type, raw_data) = if half {
            (
                DataType::Float16,
                values
                    .iter()
                    .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                    .collect(),
            )
        } else {
            (DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        let tensor = TensorProto {
            dims,
            data_type: data_type as i32,
            raw_data,
            name: name.into(),
            ..TensorProto::default()
        };
        let mut state = self.state.borrow_mut();
        state.initializers.insert(name.into(), tensor);
        if !half {
            return name.to_owned();
        }
        let single = format!("{name}.single");
        state.nodes.push(NodeProto {
            input: vec![name.into()],
            output: vec![single.clone()],
            name: single.clone(),
            op_type: "Cast".into(),
            attribute: vec![integer("to", DataType::Float as i64)],
            ..NodeProto::default()
        });
        single
    }
}

/// Keeps the nodes that lead to `outputs`; every node stands behind those it reads.
fn drop_unread(nodes: &mut Vec<NodeProto>, outputs: &[&str]) {
    let mut read: BTreeSet<String> = outputs.iter().map(|&o| o.to_owned()).collect();
    nodes.reverse();
    nodes.retain(|node| {
        let kept = node.output.iter().any(|o| read.contains(o));
        if kept {
            read.extend(node.input.iter().cloned());
        }
        kept
    });
    nodes.reverse();
}

fn value_info(name: &str, data_type: DataType, shape: &[usize]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|&d| Dimension {
            value: Some(pb::tensor_shape_proto::dimension::Value::DimValue(d as i64)),
            ..Dimension::default()
        })
        .collect();
    let tensor = pb::type_proto::Tensor {
        elem_type: data_type as i32,
        shape: Some(pb::TensorShapeProto { dim }),
    };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value,
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: kind as i32,
        ..AttributeProto::default()
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: value,
        ..attribute(name, AttributeType::Int)
    }
}

fn integer_list(name: &str, values: &[usize]) -> AttributeProto {
    AttributeProto {
        ints: values.iter().map(|&v| v as i64).collect(),
        ..attribute(name, AttributeType::Ints)
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        f: value,
        ..attribute(name, AttributeType::Float)
    }
}

/// A matrix `[rows, columns]` as `[columns, rows]`, row-major both.
pub(super) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..values.len())
        .map(|i| values[(i % rows) * columns + i / rows])
        .collect()
}

impl Ops for Recorder<'_> {
    type Tensor = Node;
    type Tokens = Node;

    fn shape(&self, x: &Node) -> Vec<usize> {
        x.shape.clone()
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Node {
        Node {
            name: self.place(name, shape, &self.weights[name].data),
            shape: shape.into(),
            weight: Some(name.into()),
        }
    }

    fn constant(&self, values: Vec<f32>, shape: &[usize]) -> Node {
        let dims = shape.iter().map(|&d| d as i64).collect();
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Node {
            name: self.stored(DataType::Float, dims, raw),
            shape: shape.into(),
            weight: None,
        }
    }

    fn linear_with(&self, x: &Node, weight: &Node, bias: Option<&Node>) -> Node {
        let [out, inner] = [weight.shape[0], weight.shape[1]];
        let right = match &weight.weight {
            Some(name) => {
                let values = transposed(&self.weights[name].data, out, inner);
                let name = self.place(&format!("{name}{TRANSPOSED}"), &[inner, out], &values);
                Node {
                    name,
                    shape: vec![inner, out],
                    weight: None,
                }
            }
            None => self.permute(weight, &[1, 0]),
        };
        let product = self.matmul(x, &right);
        bias.map_or(product.clone(), |bias| self.add(&product, bias))
    }

    fn matmul(&self, a: &Node, b: &Node) -> Node {
        let (shape, _) = product(&a.shape, &b.shape);
        self.emit("MatMul", &[&a.name, &b.name], shape, Vec::new())
    }

    fn conv2d(&self, x: &Node, name: &str, conv: Conv) -> Node {
        let [b, channels, h, w] = <[usize; 4]>::try_from(x.shape.clone()).expect("conv2d takes NCHW");
        let weight = self.weight(
            &format!("{name}.weight"),
            &[conv.out, channels, conv.kernel, conv.kernel],
        );
        let bias = conv.bias.then(|| self.weight(&format!("{name}.bias"), &[conv.out]));
        let shape = vec![b, conv.out, conv.side(h), conv.side(w)];
        let mut inputs = vec![x.name.as_str(), weight.name.as_str()];
        inputs.extend(bias.as_ref().map(|b| b.name.as_str()));
        let attributes = vec![
            integer_list("kernel_shape", &[conv.kernel; 2]),
            integer_list("strides", &[conv.stride; 2]),
            integer_list("pads", &[conv.padding; 4]),
        ];
        self.emit("Conv", &inputs, shape, attributes)
    }

    fn add(&self, a: &Node, b: &Node) -> Node {
        self.binary("Add", a, b)
    }

    fn sub(&self, a: &Node, b: &Node) -> Node {
        self.binary("Sub", a, b)
    }

    fn mul(&self, a: &Node, b: &Node) -> Node {
        self.binary("Mul", a, b)
    }

    fn div(&self, a: &Node, b: &Node) -> Node {
        self.binary("Div", a, b)
    }

    fn scale(&self, x: &Node, factor: f32) -> Node {
        self.emit("Mul", &[&x.name, &self.scalar(factor)], x.shape.clone(), Vec::new())
    }

    fn shift(&self, x: &Node, offset: f32) -> Node {
        self.emit("Add", &[&x.name, &self.scalar(offset)], x.shape.clone(), Vec::new())
    }

    fn reshape(&self, x: &Node, shape: &[usize]) -> Node {
        assert_eq!(
            x.shape.iter().product::<usize>(),
            shape.iter().product::<usize>(),
            "reshape {:?} to {shape:?}",
            x.shape
        );
        self.emit("Reshape", &[&x.name, &self.integers(shape)], shape.into(), Vec::new())
    }

    fn permute(&self, x: &Node, order: &[usize]) -> Node {
        let shape = order.iter().map(|&i| x.shape[i]).collect();
        self.emit("Transpose", &[&x.name], shape, vec![integer_list("perm", order)])
    }

    fn slice(&self, x: &Node, axis: usize, start: usize, end: usize) -> Node {
        let shape = resized(&x.shape, axis, end - start);
        let (starts, ends, axes) = (self.integers(&[start]), self.integers(&[end]), self.integers(&[axis]));
        self.emit("Slice", &[&x.name, &starts, &ends, &axes], shape, Vec::new())
    }

    fn concat(&self, parts: &[Node], axis: usize) -> Node {
        let shape = resized(&parts[0].shape, axis, parts.iter().map(|p| p.shape[axis]).sum());
        let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
        self.emit("Concat", &names, shape, vec![integer("axis", axis as i64)])
    }

    fn pad_end(&self, x: &Node, axis: usize, amount: usize) -> Node {
        if amount == 0 {
            return x.clone();
        }
        let rank = x.shape.len();
        let mut pads = vec![0; 2 * rank];
        pads[rank + axis] = amount;
        let shape = resized(&x.shape, axis, x.shape[axis] + amount);
        self.emit(
            "Pad",
            &[&x.name, &self.integers(&pads), &self.scalar(0.0)],
            shape,
            Vec::new(),
        )
    }

    fn expand(&self, x: &Node, shape: &[usize]) -> Node {
        if x.shape == shape {
            return x.clone();
        }
        self.emit("Expand", &[&x.name, &self.integers(shape)], shape.into(), Vec::new())
    }

    fn rows(&self, table: &Node, indices: &[usize]) -> Node {
        let shape = resized(&table.shape, 0, indices.len());
        self.emit(
            "Gather",
            &[&table.name, &self.integers(indices)],
            shape,
            vec![integer("axis", 0)],
        )
    }

    fn softmax(&self, x: &Node) -> Node {
        self.emit("Softmax", &[&x.name], x.shape.clone(), vec![integer("axis", -1)])
    }

    fn layer_norm(&self, x: &Node, name: &str, epsilon: f32) -> Node {
        let width = *x.shape.last().expect("x has an axis");
        let weight = self.weight(&format!("{name}.weight"), &[width]);
        let bias = self.weight(&format!("{name}.bias"), &[width]);
        let attributes = vec![integer("axis", -1), float("epsilon", epsilon)];
        self.emit(
            "LayerNormalization",
            &[&x.name, &weight.name, &bias.name],
            x.shape.clone(),
            attributes,
        )
    }

    fn gelu(&self, x: &Node) -> Node {
        let erf = self.unary("Erf", &self.scale(x, std::f32::consts::FRAC_1_SQRT_2));
        self.scale(&self.mul(x, &self.shift(&erf, 1.0)), 0.5)
    }

    fn relu(&self, x: &Node) -> Node {
        self.unary("Relu", x)
    }

    fn sigmoid(&self, x: &Node) -> Node {
        self.unary("Sigmoid", x)
    }

    fn sin(&self, x: &Node) -> Node {
        self.unary("Sin", x)
    }

    fn cos(&self, x: &Node) -> Node {
        self.unary("Cos", x)
    }

    fn sqrt(&self, x: &Node) -> Node {
        self.unary("Sqrt", x)
    }

    fn log(&self, x: &Node) -> Node {
        self.unary("Log", x)
    }

    fn equals(&self, x: &Node, value: f32) -> Node {
        let equal = self.emit("Equal", &[&x.name, &self.scalar(value)], x.shape.clone(), Vec::new());
        self.emit(
            "Cast",
            &[&equal.name],
            x.shape.clone(),
            vec![integer("to", DataType::Float as i64)],
        )
    }

    fn max(&self, x: &Node, axis: usize) -> Node {
        let shape = resized(&x.shape, axis, 1);
        self.emit(
            "ReduceMax",
            &[&x.name],
            shape,
            vec![integer_list("axes", &[axis]), integer("keepdims", 1)],
        )
    }

    fn sum(&self, x: &Node, axis: usize) -> Node {
        let shape = resized(&x.shape, axis, 1);
        self.emit(
            "ReduceSum",
            &[&x.name, &self.integers(&[axis])],
            shape,
            vec![integer("keepdims", 1)],
        )
    }

    fn embed(&self, table: &Node, tokens: &Node) -> Node {
        let shape = vec![tokens.shape[0], tokens.shape[1], table.shape[1]];
        self.emit("Gather", &[&table.name, &tokens.name], shape, vec![integer("axis", 0)])
    }

    fn end_of_text(&self, tokens: &Node) -> Node {
        let to_float = vec![integer("to", DataType::Float as i64)];
        let ids = self.emit("Cast", &[&tokens.name], tokens.shape.clone(), to_float.clone());
        let largest = self.max(&ids, 1);
        let equal = self.emit("Equal", &[&ids.name, &largest.name], tokens.shape.clone(), Vec::new());
        let mask = self.emit("Cast", &[&equal.name], tokens.shape.clone(), to_float);
        self.reshape(&mask, &[tokens.shape[0], 1, tokens.shape[1]])
    }
}
