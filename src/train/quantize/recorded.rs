//! Tests of the rewritten graphs: a small recorded graph in every variant, run by ONNX Runtime.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use tract_onnx::pb::{ModelProto, TensorProto, tensor_proto::DataType};

use super::formats::{fp16_compute, fp16_stored};
use super::onnx_file::{OnnxFile, floats, of_bytes};
use super::qdq::{Plan, Treatment, layers, quantized};
use crate::contract::{GraphKind, GraphSpec, TensorSpec};
use crate::runtime::{Backend, RuntimeOptions, Values, open_graph};
use crate::train::cost::inventory;
use crate::train::initial;
use crate::train::onnx::{Recorder, Storage};
use crate::train::ops::{Conv, Ops};

const INPUT: [usize; 4] = [1, 8, 12, 10];

/// A convolution, a product into a wide layer and back, attention without weights, a sine of large positions.
fn forward<O: Ops>(ops: &O, x: &O::Tensor) -> Vec<(&'static str, O::Tensor)> {
    let conv = Conv {
        out: 16,
        kernel: 3,
        stride: 1,
        padding: 1,
        bias: true,
    };
    let y = ops.relu(&ops.conv2d(x, "stem", conv));
    let tokens = ops.reshape(&ops.permute(&y, &[0, 2, 3, 1]), &[1, 120, 16]);
    let wide = ops.gelu(&ops.linear(&tokens, "up", 96, true));
    let normed = ops.layer_norm(&wide, "norm", 1e-6);
    let out = ops.linear(&normed, "down", 32, true); // [1, 120, 32]
    let scores = ops.softmax(&ops.matmul(&ops.scale(&out, 0.1), &ops.permute(&out, &[0, 2, 1])));
    let attended = ops.matmul(&scores, &out); // [1, 120, 32]
    let waves = ops.sin(&ops.scale(&ops.sum(&tokens, 2), 100.0)); // [1, 120, 1]
    vec![("features", out), ("attended", attended), ("waves", waves)]
}

fn graph(storage: Storage) -> OnnxFile {
    let weights = initial::weights(
        &inventory(|ledger| {
            let _ = forward(ledger, &ledger.input(&INPUT));
        }),
        5,
    );
    let recorder = Recorder::new(&weights, storage);
    let outputs = forward(&recorder, &recorder.input("image", &INPUT));
    let named: Vec<_> = outputs.iter().map(|(name, node)| (*name, node)).collect();
    of_bytes(&recorder.finish("recorded", &named))
}

fn spec() -> GraphSpec {
    GraphSpec {
        graph: GraphKind::Encoder,
        inputs: vec![TensorSpec::f32("image", &INPUT)],
        outputs: vec![
            TensorSpec::f32("features", &[1, 120, 32]),
            TensorSpec::f32("attended", &[1, 120, 32]),
            TensorSpec::f32("waves", &[1, 120, 1]),
        ],
    }
}

fn run(file: &OnnxFile, backend: Backend) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    std::fs::write(&path, file.encode()).unwrap();
    let options = RuntimeOptions {
        backend,
        provider: crate::runtime::Provider::Cpu,
        threads: 2,
        ..RuntimeOptions::default()
    };
    let spec = spec();
    let mut session = open_graph(&path, &spec, &options)
        .expect("this test needs ONNX Runtime: set SAMCLIP_ORT_LIB to libonnxruntime.so (tests/run does)");
    let image: Vec<f32> = (0..INPUT.iter().product())
        .map(|i: usize| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let mut outputs = vec![Vec::new(); 3];
    let take = &mut |index: usize, _: &[usize], values: &[f32]| {
        outputs[index] = values.to_vec();
        Ok(())
    };
    session.run(&spec, &[Values::F32(&image)], take).unwrap();
    outputs
}

fn relative(found: &[f32], expected: &[f32]) -> f32 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    assert_eq!(found.len(), expected.len());
    (sum(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / sum(&mut expected.iter().copied())).sqrt()
}

fn plan(file: &OnnxFile, weight_bits: u32, treatment: Treatment) -> Plan {
    let layers = layers(file);
    Plan {
        treatments: layers.iter().map(|l| (l.weight.clone(), treatment)).collect(),
        // the input lies within 1, normalised and rectified values within 6
        ranges: layers
            .iter()
            .flat_map(|l| &l.activations)
            .map(|a| (a.clone(), if a == "image" { 1.0 } else { 6.0 }))
            .collect(),
        ranks: layers
            .iter()
            .flat_map(|l| &l.activations)
            .map(|a| (a.clone(), if a == "image" { 4 } else { 3 }))
            .collect(),
        weight_bits,
    }
}

fn levels(file: &OnnxFile) -> BTreeMap<&str, &TensorProto> {
    let int8 = file
        .graph()
        .initializer
        .iter()
        .filter(|t| t.data_type == DataType::Int8 as i32);
    int8.filter(|t| t.name.ends_with(".i8"))
        .map(|t| (t.name.as_str(), t))
        .collect()
}

fn largest(t: &TensorProto) -> i8 {
    t.raw_data.iter().map(|&b| (b as i8).saturating_abs()).max().unwrap()
}

#[test]
fn expanding_gives_back_what_fp16_storage_holds() {
    let (half, single) = (graph(Storage::Half), graph(Storage::Single));
    let expanded = half.clone().expanded();
    assert!(expanded.graph().node.iter().all(|n| n.op_type != "Cast"));
    assert_eq!(run(&expanded, Backend::Tract), run(&half, Backend::Tract));
    let stored = fp16_stored(expanded.clone());
    assert!(stored.size() < expanded.size() * 3 / 4);
    assert_eq!(run(&stored, Backend::Tract), run(&half, Backend::Tract));
    assert_eq!(
        run(&single.clone().expanded(), Backend::Tract),
        run(&single, Backend::Tract)
    );
}

#[test]
fn every_product_and_convolution_with_a_large_weight_is_a_layer() {
    let found = layers(&graph(Storage::Single));
    let names: Vec<(&str, usize, usize)> = found.iter().map(|l| (l.name(), l.axis, l.elements)).collect();
    assert_eq!(names, [("stem", 0, 1152), ("up", 1, 1536), ("down", 1, 3072)]);
    assert_eq!(found[0].activations, ["image"]);
}

#[test]
fn fp16_compute_is_close_and_keeps_large_positions_exact() {
    let file = graph(Storage::Single);
    let expected = run(&file, Backend::Ort);
    let half = fp16_compute(file.clone(), &BTreeMap::new());
    let products = half.graph().node.iter().filter(|n| n.op_type == "MatMul");
    assert!(products.clone().count() == 4 && half.size() < file.size() * 3 / 4);
    let found = run(&half, Backend::Ort);
    for (found, expected) in found.iter().zip(&expected).take(2) {
        // fp16 has 11 bits: 4.9e-4 per rounding, a handful of roundings in a row
        assert!(relative(found, expected) < 4e-3, "{}", relative(found, expected));
    }
    // angles of some hundred radians, which fp16 knows to 0.25: only the rounding of the stored weights remains
    let stored = run(&fp16_stored(file.clone()), Backend::Ort);
    assert!(
        relative(&found[2], &stored[2]) < 1e-3,
        "{}",
        relative(&found[2], &stored[2])
    );
    // a tensor that was seen beyond fp16's safe range keeps what touches it in fp32
    let layer = &layers(&file)[2];
    let large = BTreeMap::from([(layer.activations[0].clone(), 20_000.0)]);
    let kept = fp16_compute(file.clone(), &large);
    let reads_f16 = |f: &OnnxFile| {
        let product = f
            .graph()
            .node
            .iter()
            .find(|n| n.op_type == "MatMul" && n.input[1].starts_with("down"));
        product.unwrap().input[1].ends_with(".f16")
    };
    assert!(reads_f16(&half) && !reads_f16(&kept));
    assert!(relative(&run(&kept, Backend::Ort)[0], &expected[0]) < 4e-3);
}

#[test]
fn int8_is_close_smaller_and_its_weights_stay_within_7_bits() {
    let file = graph(Storage::Single);
    let expected = run(&file, Backend::Ort);
    let layers = layers(&file);
    let int8 = quantized(file.clone(), &layers, &plan(&file, 7, Treatment::Int8));
    for (found, expected) in run(&int8, Backend::Ort).iter().zip(&expected).take(2) {
        // ranges of 6 in 127 steps and weights in 63: about 2 % per layer, three layers
        assert!(relative(found, expected) < 0.08, "{}", relative(found, expected));
        assert!(relative(found, expected) > 1e-4, "nothing was rounded");
    }
    let found = levels(&int8);
    assert_eq!(found.len(), 3);
    assert!(found.values().all(|t| largest(t) == 63), "7 bits, used to the end");
    let eight = quantized(file.clone(), &layers, &plan(&file, 8, Treatment::Int8));
    assert!(levels(&eight).values().all(|t| largest(t) == 127));
    // biases of one axis would be fused with the product into a float Gemm
    let biases: Vec<&[i64]> = ["up", "down"]
        .map(|n| int8.initializer(&format!("{n}.bias.3")).unwrap().dims.as_slice())
        .into();
    assert_eq!(biases, [&[1, 1, 96][..], &[1, 1, 32]]);
    assert!(int8.initializer("up.bias").is_none());
    let ops: BTreeSet<&str> = int8.graph().node.iter().map(|n| n.op_type.as_str()).collect();
    assert!(ops.contains("QuantizeLinear") && ops.contains("DequantizeLinear"));
}

#[test]
fn weight_only_layers_lose_less_and_quantize_no_activation() {
    let file = graph(Storage::Single);
    let expected = run(&file, Backend::Ort);
    let layers = layers(&file);
    let alone = quantized(file.clone(), &layers, &plan(&file, 7, Treatment::WeightOnly));
    assert!(alone.graph().node.iter().all(|n| n.op_type != "QuantizeLinear"));
    assert!(levels(&alone).values().all(|t| largest(t) == 127));
    let int8 = quantized(file.clone(), &layers, &plan(&file, 7, Treatment::Int8));
    let error = |f: &OnnxFile| relative(&run(f, Backend::Ort)[0], &expected[0]);
    assert!(error(&alone) < error(&int8) && error(&alone) < 0.02);
    let float = quantized(file.clone(), &layers, &plan(&file, 7, Treatment::Float));
    assert!(levels(&float).is_empty() && error(&float) < 1e-3);
}

#[test]
fn scales_are_per_channel_and_put_every_weight_within_half_a_step() {
    let file = graph(Storage::Single);
    let int8 = quantized(file.clone(), &layers(&file), &plan(&file, 7, Treatment::Int8));
    for layer in layers(&file) {
        let original = floats(file.initializer(&layer.weight).unwrap()).unwrap();
        let dims = &file.initializer(&layer.weight).unwrap().dims;
        let scales = floats(int8.initializer(&format!("{}.s", layer.weight)).unwrap()).unwrap();
        let stored = &int8.initializer(&format!("{}.i8", layer.weight)).unwrap().raw_data;
        assert_eq!(scales.len() as i64, dims[layer.axis]);
        assert!(scales.iter().any(|s| s != &scales[0]), "channels differ");
        let inner: usize = dims[layer.axis + 1..].iter().product::<i64>() as usize;
        for (i, (&byte, value)) in stored.iter().zip(&original).enumerate() {
            let scale = scales[i / inner % scales.len()];
            assert!((f32::from(byte as i8) * scale - value).abs() <= 0.5001 * scale, "{i}");
        }
    }
    let zeros = int8.graph().initializer.iter().filter(|t| t.name.starts_with("zero."));
    assert!(zeros.clone().count() >= 2 && zeros.flat_map(|t| &t.raw_data).all(|&b| b == 0));
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.onnx");
    let whole = graph(Storage::Single).encode();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = OnnxFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("encoder.onnx"), "{error}");
        error
    };
    for keep in [0, 1, whole.len() / 3, whole.len() - 1] {
        refused(&whole[..keep]);
    }
    assert!(refused(b"\x00\x01 no graph").contains("no ONNX file"));
    let changed = |change: fn(&mut ModelProto)| {
        let mut model = ModelProto::decode(whole.as_slice()).unwrap();
        change(&mut model);
        model.encode_to_vec()
    };
    assert!(refused(&changed(|m| m.graph = None)).contains("holds no graph"));
    let cut = |m: &mut ModelProto| {
        let weights = &mut m.graph.as_mut().unwrap().initializer;
        weights
            .iter_mut()
            .find(|t| t.dims == [16, 96])
            .unwrap()
            .raw_data
            .truncate(400);
    };
    assert!(refused(&changed(cut)).contains("holds 100 values"));
    assert!(refused(&changed(|m| m.opset_import[0].version = 11)).contains("operator set 11"));
    let foreign = |m: &mut ModelProto| m.graph.as_mut().unwrap().node[0].domain = "com.microsoft".into();
    assert!(refused(&changed(foreign)).contains("ai.onnx only"));
    std::fs::write(&path, &whole).unwrap();
    let file = OnnxFile::read(&path).unwrap();
    let int8 = quantized(file.clone(), &layers(&file), &plan(&file, 7, Treatment::Int8));
    assert!(refused(&int8.encode()).contains("quantized already"));
}
