//! A whole bundle that answers by colour: small enough to write in a test, exact enough to predict its masks.
//!
//! * encoder: mean colour of every 16-pixel cell in [−1, 1], normalised to unit length, is its patch embedding
//! * text encoder: the words red, green, blue and yellow are the directions of those colours
//! * mask decoder: answers with the mask prompt, four times, and a predicted IoU of the mean point label
#![allow(unreachable_pub)] // a module of several test programs, each uses a part
#![allow(dead_code, reason = "every test binary uses another part")]

use std::path::Path;

use prost::Message;
use samclip::contract::{
    Bundle, Calibration, Compute, DecoderSpec, EncoderSpec, FORMAT_VERSION, GraphKind, Manifest,
    OPENAI_CLIP_VOCABULARY, Precision, Size, SizeFiles, Source, TensorSpec, TextSpec,
};
use samclip::text::tokenizer::Tokenizer;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};

pub const SIDE: usize = 96;

/// Side of the bundle's further size.
pub const SMALL: usize = 64;

/// Writes `manifest.toml` and the three graphs.
pub fn write(dir: &Path) -> Bundle {
    let encoder = EncoderSpec {
        side: SIDE,
        stride: 16,
        neck_channels: 3,
        embed_dim: 3,
        patch_grid: SIDE / 16,
        mean: [127.5; 3],
        std: [127.5; 3],
    };
    let decoder = DecoderSpec { prompts: 2, points: 3 };
    let text = TextSpec {
        batch: 5,
        context: 77,
        vocabulary: OPENAI_CLIP_VOCABULARY.into(),
        merges: None,
    };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        name: "colours".into(),
        logit_scale: 12.0,
        background: vec!["yellow".into()],
        graph: Manifest::standard_graphs(&encoder, &decoder, &text),
        encoder,
        decoder,
        text,
        calibration: Calibration::default(),
        precision: vec![Precision {
            name: "fp32".into(),
            compute: Compute::Fp32,
            encoder: "encoder.onnx".into(),
            mask_decoder: "mask_decoder.onnx".into(),
            text_encoder: "text_encoder.onnx".into(),
            relative_error: Default::default(),
            mean_iou_change: None,
            size: vec![SizeFiles {
                side: SMALL,
                encoder: "encoder.small.onnx".into(),
                mask_decoder: "mask_decoder.small.onnx".into(),
            }],
            measured: None,
        }],
        size: vec![Size {
            side: SMALL,
            patch_grid: SMALL / 16,
            calibration: None,
        }],
        source: vec![Source {
            name: "written by a test".into(),
            licence: "MIT OR Apache-2.0".into(),
            url: None,
        }],
        files: Default::default(),
    };
    for manifest in [&manifest, &manifest.at(SMALL).unwrap()] {
        for (kind, graph) in [
            (GraphKind::Encoder, encoder_graph()),
            (GraphKind::MaskDecoder, decoder_graph()),
            (GraphKind::TextEncoder, text_graph()),
        ] {
            let spec = manifest.graph_spec(kind);
            let bytes = model(graph, &spec.inputs, &spec.outputs);
            std::fs::write(dir.join(manifest.precision[0].file(kind)), bytes).unwrap();
        }
    }
    manifest.write(dir).unwrap()
}

/// Nodes and constants of a graph under construction.
#[derive(Default)]
struct Parts {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Parts {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.into()).collect(),
            output: vec![output.into()],
            name: format!("{op}_{output}"),
            op_type: op.into(),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        let mut t = constant(name, shape, DataType::Float);
        t.float_data = values;
        self.constants.push(t);
    }

    fn ints(&mut self, name: &str, shape: &[usize], values: Vec<i64>) {
        let mut t = constant(name, shape, DataType::Int64);
        t.int64_data = values;
        self.constants.push(t);
    }

    /// `output = input / (|input| over axis 1)`.
    fn unit(&mut self, input: &str, output: &str) {
        let name = |part: &str| format!("{output}_{part}");
        let (square, sum, root, safe) = (name("square"), name("sum"), name("root"), name("safe"));
        self.node("Mul", &[input, input], &square, vec![]);
        self.ints(&name("axis"), &[1], vec![1]);
        self.node("ReduceSum", &[&square, &name("axis")], &sum, vec![int("keepdims", 1)]);
        self.node("Sqrt", &[&sum], &root, vec![]);
        self.floats(&name("epsilon"), &[1], vec![1e-6]);
        self.node("Add", &[&root, &name("epsilon")], &safe, vec![]);
        self.node("Div", &[input, &safe], output, vec![]);
    }
}

fn encoder_graph() -> Parts {
    let mut p = Parts::default();
    let cell = || vec![ints("kernel_shape", &[16, 16]), ints("strides", &[16, 16])];
    p.node("AveragePool", &["image"], "image_embeddings", cell());
    p.unit("image_embeddings", "patch_embeddings");
    p.node("GlobalAveragePool", &["image"], "mean", vec![]);
    p.node("Flatten", &["mean"], "flat", vec![int("axis", 1)]);
    p.unit("flat", "image_embedding");
    p
}

fn decoder_graph() -> Parts {
    let mut p = Parts::default();
    p.node("Concat", &["mask_input"; 4], "low_res_logits", vec![int("axis", 1)]);
    p.node(
        "ReduceMean",
        &["point_labels"],
        "mean_label",
        vec![ints("axes", &[1]), int("keepdims", 1)],
    );
    p.node("Concat", &["mean_label"; 4], "iou_predictions", vec![int("axis", 1)]);
    p
}

fn text_graph() -> Parts {
    let tokenizer = Tokenizer::standard();
    let mut table = vec![0.0; 3 * 49408];
    for (word, colour) in [
        ("red", [1.0, -1.0, -1.0]),
        ("green", [-1.0, 1.0, -1.0]),
        ("blue", [-1.0, -1.0, 1.0]),
        ("yellow", [1.0, 1.0, -1.0]),
    ] {
        let id = tokenizer.encode(word).unwrap()[1] as usize;
        table[3 * id..3 * id + 3].copy_from_slice(&colour);
    }
    let mut p = Parts::default();
    p.floats("table", &[49408, 3], table);
    p.node("Gather", &["table", "token_ids"], "rows", vec![int("axis", 0)]);
    p.ints("tokens", &[1], vec![1]);
    p.node("ReduceSum", &["rows", "tokens"], "sum", vec![int("keepdims", 0)]);
    p.unit("sum", "text_embedding");
    p
}

fn model(parts: Parts, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Vec<u8> {
    let graph = GraphProto {
        node: parts.nodes,
        name: "tiny".into(),
        initializer: parts.constants,
        input: inputs.iter().map(info).collect(),
        output: outputs.iter().map(info).collect(),
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

fn constant(name: &str, shape: &[usize], kind: DataType) -> TensorProto {
    let dims = shape.iter().map(|&d| d as i64).collect();
    TensorProto {
        name: name.into(),
        dims,
        data_type: kind as i32,
        ..TensorProto::default()
    }
}

fn info(spec: &TensorSpec) -> ValueInfoProto {
    let kind = if spec.name == "token_ids" {
        DataType::Int64
    } else {
        DataType::Float
    };
    let dim = |&d: &usize| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(d as i64)),
        ..Default::default()
    };
    let shape = TensorShapeProto {
        dim: spec.shape.iter().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: kind as i32,
        shape: Some(shape),
    };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: spec.name.clone(),
        r#type: Some(TypeProto {
            value,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}
