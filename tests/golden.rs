//! Every output of the model against vectors of the reference implementations (segment-anything 1.0,
//! open_clip 3.3.0; random weights), on autodiff, on tract and on ONNX Runtime.
//!
//! Tolerance: 1e-4 relative L2, ten times above what any interpreter shows; prints the worst per output.
//! ONNX Runtime's library is named by `SAMCLIP_ORT_LIB`, which `tests/run` sets.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(feature = "train")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexDevice};
use safetensors::{Dtype, SafeTensors};
use samclip::contract::{GraphKind, GraphSpec, TensorSpec};
use samclip::runtime::{self, Backend, Provider, RuntimeOptions};
use samclip::train::autodiff::{Graph, TokenBatch};
use samclip::train::kernels::Kernels;
use samclip::train::model::prompt_encoder::{self, Prompts};
use samclip::train::model::{
    ClipConfig, ClipHeadConfig, MergedConfig, Pooling, SamConfig, TextConfig, clip, encode, encoder, inventory,
    mask_decoder,
};
use samclip::train::onnx::{Recorder, Storage};
use samclip::train::ops::Ops;
use samclip::train::optimizer::Gradients;
use samclip::train::precision::Precision;
use samclip::train::session::{self, StepLoss, Tape};
use samclip::train::weights::{self, Values, Weights};
use samclip::train::{initial, loss};

mod formula;

use formula::formula;

const TOLERANCE: f64 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/golden")
        .join(name)
}

fn vectors(name: &str) -> Weights {
    let bytes = std::fs::read(golden(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
            other => panic!("unexpected type {other:?}"),
        }
    };
    file.tensors()
        .iter()
        .map(|(n, v)| {
            (
                n.clone(),
                Values {
                    shape: v.shape().to_vec(),
                    data: read(v),
                },
            )
        })
        .collect()
}

fn sam_config() -> SamConfig {
    serde_json::from_slice(&std::fs::read(golden("sam_tiny.json")).unwrap()).unwrap()
}

fn clip_config() -> ClipConfig {
    serde_json::from_slice(&std::fs::read(golden("clip_tiny.json")).unwrap()).unwrap()
}

fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let (mut error, mut norm) = (0.0_f64, 0.0_f64);
    for (&f, &e) in found.iter().zip(expected) {
        error += f64::from(f - e).powi(2);
        norm += f64::from(e).powi(2);
    }
    (error / norm.max(1e-12)).sqrt()
}

/// Compares and prints; the printed lines are the golden table.
fn assert_close(interpreter: &str, output: &str, found: &[f32], expected: &[f32]) {
    let error = relative_l2(found, expected);
    println!("golden | {output} | {interpreter} | {error:.1e}");
    assert!(
        error < TOLERANCE,
        "{output} on {interpreter}: relative L2 {error:.2e}, allowed {TOLERANCE:.0e}"
    );
}

/// Coordinates and labels of a golden prompt case, in the fixed form of the decoder graph.
fn prompt_case(io: &Weights, case: &str) -> (Vec<f32>, Vec<f32>, usize) {
    let (points, labels, boxes) = (&io["points"].data, &io["point_labels"].data, &io["boxes"].data);
    let with_points = case != "box";
    let with_box = case == "box" || case == "all";
    let (mut coords, mut kinds, mut n) = (Vec::new(), Vec::new(), 0);
    for q in 0..2 {
        let before = kinds.len();
        if with_points {
            coords.extend_from_slice(&points[q * 4..q * 4 + 4]);
            kinds.extend_from_slice(&labels[q * 2..q * 2 + 2]);
            if !with_box {
                coords.extend([0.0, 0.0]);
                kinds.push(-1.0);
            }
        }
        if with_box {
            coords.extend_from_slice(&boxes[q * 4..q * 4 + 4]);
            kinds.extend([2.0, 3.0]);
        }
        n = kinds.len() - before;
    }
    (coords, kinds, n)
}

const CASES: [(&str, bool); 4] = [("points", false), ("box", false), ("points_mask", true), ("all", true)];

#[test]
fn sam_on_autodiff_matches_every_intermediate() {
    type B = Autodiff<Flex>;
    let config = sam_config();
    let checkpoint = weights::read(&golden("sam_tiny.pth")).unwrap();
    weights::check(&checkpoint, &inventory::sam(&config), "sam_tiny.pth").unwrap();
    let io = vectors("sam_tiny.io.safetensors");
    let graph = Graph::<B>::new(&checkpoint, Default::default());
    let close = |name: &str, x: &<Graph<B> as Ops>::Tensor| {
        assert_close("autodiff", name, &graph.values(x), &io[name].data);
    };
    let image = graph.input(io["encoder_input"].data.clone(), &io["encoder_input"].shape);
    let mut tokens = encoder::embed_patches(&graph, &config, &image);
    close("tokens_after_pos_embed", &tokens);
    for index in 0..config.depth {
        tokens = encoder::block(&config, index).forward(&graph, &format!("image_encoder.blocks.{index}"), &tokens);
        close(&format!("tokens_after_block_{index}"), &tokens);
    }
    let embeddings = encoder::neck(&graph, &config, &tokens);
    close("image_embeddings", &embeddings);
    close("dense_pe", &prompt_encoder::dense_positions(&graph, &config));
    for (case, with_mask) in CASES {
        let (coords, labels, n) = prompt_case(&io, case);
        let mask = with_mask.then(|| {
            let mask = &io["mask_input"];
            (
                graph.input(mask.data.clone(), &mask.shape),
                graph.input(vec![1.0; 2], &[2]),
            )
        });
        let prompts = Prompts {
            coords: graph.input(coords, &[2, n, 2]),
            labels: graph.input(labels, &[2, n]),
            mask,
        };
        let (sparse, dense) = prompt_encoder::encode(&graph, &config, &prompts);
        close(&format!("{case}.sparse"), &sparse);
        let g = config.grid();
        close(
            &format!("{case}.dense"),
            &graph.expand(&dense, &[2, config.out_chans, g, g]),
        );
        let (masks, iou) = mask_decoder::decode(&graph, &config, &embeddings, &prompts);
        close(&format!("{case}.low_res_masks"), &masks);
        close(&format!("{case}.iou_predictions"), &iou);
    }
}

#[test]
fn clip_on_autodiff_matches() {
    let config = clip_config();
    let checkpoint = weights::read(&golden("clip_tiny.safetensors")).unwrap();
    weights::check(&checkpoint, &inventory::clip(&config), "clip_tiny.safetensors").unwrap();
    let io = vectors("clip_tiny.io.safetensors");
    let graph = Graph::<Autodiff<Flex>>::new(&checkpoint, Default::default());
    let pixels = graph.input(io["pixels"].data.clone(), &io["pixels"].shape);
    let image = clip::encode_image(&graph, &config, &pixels);
    assert_close(
        "autodiff",
        "image_features",
        &graph.values(&image),
        &io["image_features"].data,
    );
    let ids = io["token_ids"].data.iter().map(|&i| i as u32).collect();
    let tokens = TokenBatch::new(ids, 77);
    let text = clip::encode_text(&graph, &config.text_cfg, config.embed_dim, false, &tokens);
    assert_close(
        "autodiff",
        "text_features",
        &graph.values(&text),
        &io["text_features"].data,
    );
}

#[test]
fn short_texts_give_the_same_features_as_padded_ones() {
    let config = clip_config();
    let checkpoint = weights::read(&golden("clip_tiny.safetensors")).unwrap();
    let io = vectors("clip_tiny.io.safetensors");
    let graph = Graph::<Flex>::new(&checkpoint, Default::default());
    // The first text, "a photo of a cat.", has eight tokens.
    let ids = io["token_ids"].data[..9].iter().map(|&i| i as u32).collect();
    let text = clip::encode_text(
        &graph,
        &config.text_cfg,
        config.embed_dim,
        false,
        &TokenBatch::new(ids, 9),
    );
    assert_close(
        "autodiff",
        "text_features (9 tokens)",
        &graph.values(&text),
        &io["text_features"].data[..40],
    );
}

/// A recorded graph with its inputs and the outputs it must give.
struct Case {
    onnx: Vec<u8>,
    inputs: Vec<(&'static str, Vec<usize>, Input)>,
    expected: Vec<(String, Vec<f32>)>,
}

enum Input {
    Float(Vec<f32>),
    Ids(Vec<i64>),
}

fn cases(storage: Storage) -> Vec<Case> {
    let mut cases = Vec::new();
    let config = sam_config();
    let checkpoint = weights::read(&golden("sam_tiny.pth")).unwrap();
    let io = vectors("sam_tiny.io.safetensors");
    let of = |names: &[String]| {
        names
            .iter()
            .map(|n| (n.clone(), io[n].data.clone()))
            .collect::<Vec<_>>()
    };

    let recorder = Recorder::new(&checkpoint, storage);
    let image = recorder.input("image", &io["encoder_input"].shape);
    let mut tokens = encoder::embed_patches(&recorder, &config, &image);
    let mut outputs = vec![("tokens_after_pos_embed".to_owned(), tokens.clone())];
    for index in 0..config.depth {
        tokens = encoder::block(&config, index).forward(&recorder, &format!("image_encoder.blocks.{index}"), &tokens);
        outputs.push((format!("tokens_after_block_{index}"), tokens.clone()));
    }
    outputs.push(("image_embeddings".into(), encoder::neck(&recorder, &config, &tokens)));
    let names: Vec<String> = outputs.iter().map(|(n, _)| n.clone()).collect();
    let refs: Vec<_> = outputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
    cases.push(Case {
        onnx: recorder.finish("encoder", &refs),
        inputs: vec![(
            "image",
            io["encoder_input"].shape.clone(),
            Input::Float(io["encoder_input"].data.clone()),
        )],
        expected: of(&names),
    });

    let g = config.grid();
    for (case, with_mask) in CASES {
        let (coords, labels, n) = prompt_case(&io, case);
        let recorder = Recorder::new(&checkpoint, storage);
        let shapes = [
            vec![1, config.out_chans, g, g],
            vec![2, n, 2],
            vec![2, n],
            vec![2, 1, 4 * g, 4 * g],
            vec![2],
        ];
        let embeddings = recorder.input("image_embeddings", &shapes[0]);
        let prompts = Prompts {
            coords: recorder.input("point_coords", &shapes[1]),
            labels: recorder.input("point_labels", &shapes[2]),
            mask: Some((
                recorder.input("mask_input", &shapes[3]),
                recorder.input("has_mask_input", &shapes[4]),
            )),
        };
        let (sparse, dense) = prompt_encoder::encode(&recorder, &config, &prompts);
        let (masks, iou) = mask_decoder::predict(&recorder, &config, &embeddings, &sparse, &dense);
        let names = ["sparse", "dense", "low_res_masks", "iou_predictions"].map(|p| format!("{case}.{p}"));
        let nodes = [&sparse, &dense, &masks, &iou];
        let refs: Vec<_> = names.iter().map(String::as_str).zip(nodes).collect();
        let values = [
            io["image_embeddings"].data.clone(),
            coords,
            labels,
            io["mask_input"].data.clone(),
            vec![f32::from(u8::from(with_mask)); 2],
        ];
        let input_names = [
            "image_embeddings",
            "point_coords",
            "point_labels",
            "mask_input",
            "has_mask_input",
        ];
        let inputs = input_names
            .into_iter()
            .zip(shapes)
            .zip(values)
            .map(|((n, s), v)| (n, s, Input::Float(v)));
        cases.push(Case {
            onnx: recorder.finish("mask_decoder", &refs),
            inputs: inputs.collect(),
            expected: of(&names),
        });
    }

    let config = clip_config();
    let checkpoint = weights::read(&golden("clip_tiny.safetensors")).unwrap();
    let io = vectors("clip_tiny.io.safetensors");
    let recorder = Recorder::new(&checkpoint, storage);
    let image = recorder.input("image", &io["pixels"].shape);
    let features = clip::encode_image(&recorder, &config, &image);
    cases.push(Case {
        onnx: recorder.finish("clip_image", &[("image_features", &features)]),
        inputs: vec![(
            "image",
            io["pixels"].shape.clone(),
            Input::Float(io["pixels"].data.clone()),
        )],
        expected: vec![("image_features".into(), io["image_features"].data.clone())],
    });
    let recorder = Recorder::new(&checkpoint, storage);
    let shape = io["token_ids"].shape.clone();
    let tokens = recorder.tokens("token_ids", shape[0], shape[1]);
    let features = clip::encode_text(&recorder, &config.text_cfg, config.embed_dim, false, &tokens);
    cases.push(Case {
        onnx: recorder.finish("clip_text", &[("text_features", &features)]),
        inputs: vec![(
            "token_ids",
            shape,
            Input::Ids(io["token_ids"].data.iter().map(|&i| i as i64).collect()),
        )],
        expected: vec![("text_features".into(), io["text_features"].data.clone())],
    });
    cases
}

/// Runs a recorded graph through the daemon's runtime.
fn run(case: &Case, backend: Backend) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    std::fs::write(&path, &case.onnx).unwrap();
    let inputs = case.inputs.iter().map(|(name, shape, values)| match values {
        Input::Float(_) => TensorSpec::f32(name, shape),
        Input::Ids(_) => TensorSpec::i64(name, shape),
    });
    // Shapes of outputs are not part of the golden files: the runtime hands them out with the values.
    let outputs = case.expected.iter().map(|(name, _)| TensorSpec::f32(name, &[]));
    let spec = GraphSpec {
        graph: GraphKind::Encoder,
        inputs: inputs.collect(),
        outputs: outputs.collect(),
    };
    let options = RuntimeOptions {
        backend,
        provider: Provider::Cpu,
        ..RuntimeOptions::default()
    };
    let mut session = runtime::open_graph(&path, &spec, &options).unwrap();
    let values: Vec<_> = case
        .inputs
        .iter()
        .map(|(_, _, values)| match values {
            Input::Float(v) => runtime::Values::F32(v),
            Input::Ids(v) => runtime::Values::I64(v),
        })
        .collect();
    let mut found = vec![Vec::new(); case.expected.len()];
    let mut keep = |index: usize, _: &[usize], values: &[f32]| {
        found[index] = values.to_vec();
        Ok(())
    };
    session.run(&spec, &values, &mut keep).unwrap();
    found
}

#[test]
fn recorded_graphs_on_tract_match() {
    for case in cases(Storage::Single) {
        for (found, (name, expected)) in run(&case, Backend::Tract).iter().zip(&case.expected) {
            assert_close("tract", name, found, expected);
        }
    }
}

#[test]
fn recorded_graphs_on_onnx_runtime_match() {
    for case in cases(Storage::Single) {
        for (found, (name, expected)) in run(&case, Backend::Ort).iter().zip(&case.expected) {
            assert_close("ort", name, found, expected);
        }
    }
}

#[test]
fn full_size_sam_vit_b_on_onnx_runtime_matches() {
    let config = SamConfig::vit_b();
    let weights: Weights = inventory::sam(&config)
        .iter()
        .map(|(name, shape)| (name.clone(), formula(name, shape)))
        .collect();
    let io = vectors("sam_vit_b.formula.io.safetensors");
    let image = formula::image();
    let recorder = Recorder::new(&weights, Storage::Single);
    let input = recorder.input("image", &[1, 3, 1024, 1024]);
    let embeddings = encoder::neck(&recorder, &config, &encoder::tokens(&recorder, &config, &input));
    // The reference adds one padding point behind the single point.
    let prompts = Prompts {
        coords: recorder.input("point_coords", &[1, 2, 2]),
        labels: recorder.input("point_labels", &[1, 2]),
        mask: None,
    };
    let (masks, iou) = mask_decoder::decode(&recorder, &config, &embeddings, &prompts);
    let outputs = [
        ("image_embeddings", &embeddings),
        ("low_res_masks", &masks),
        ("iou_predictions", &iou),
    ];
    let case = Case {
        onnx: recorder.finish("sam_vit_b", &outputs),
        inputs: vec![
            ("image", vec![1, 3, 1024, 1024], Input::Float(image)),
            (
                "point_coords",
                vec![1, 2, 2],
                Input::Float(vec![300.0, 400.0, 0.0, 0.0]),
            ),
            ("point_labels", vec![1, 2], Input::Float(vec![1.0, -1.0])),
        ],
        expected: outputs
            .iter()
            .map(|(name, _)| ((*name).to_owned(), Vec::new()))
            .collect(),
    };
    drop(weights);
    let found = run(&case, Backend::Ort);
    let embeddings = formula::every_4th(&found[0], 256, 64, 4);
    assert_close(
        "ort",
        "sam_vit_b image_embeddings",
        &embeddings,
        &io["image_embeddings_every_4th"].data,
    );
    let masks = formula::every_4th(&found[1], 4, 256, 1);
    assert_close(
        "ort",
        "sam_vit_b low_res_masks",
        &masks,
        &io["low_res_masks_every_4th"].data,
    );
    assert_close(
        "ort",
        "sam_vit_b iou_predictions",
        &found[2],
        &io["iou_predictions"].data,
    );
}

#[test]
fn losses_match_the_reference() {
    let io = vectors("losses.safetensors");
    let graph = Graph::<Flex>::new(&Weights::new(), Default::default());
    let rows = |name: &str| graph.input(io[name].data.clone(), &[3, 576]);
    let target = graph.sigmoid(&rows("teacher_logits"));
    let found = loss::mask_losses(&graph, &rows("student_logits"), &target);
    assert_close("autodiff", "focal", &graph.values(&found.focal), &io["focal"].data);
    assert_close("autodiff", "dice", &graph.values(&found.dice), &io["dice"].data);
    let unit = |name: &str| graph.unit_norm(&graph.input(io[name].data.clone(), &io[name].shape));
    let cosine = loss::cosine(&graph, &unit("e_student"), &unit("e_teacher"));
    assert_close("autodiff", "cosine", &graph.values(&cosine), &io["cosine"].data);
}

/// A small merged model with a stem, windows with padding, relative positions and pooled tokens.
fn small_model() -> (MergedConfig, Weights) {
    let sam = SamConfig {
        image_size: 64,
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        window_size: 3,
        global_attn_indexes: vec![1],
        out_chans: 16,
        mask_in_chans: 8,
        decoder_heads: 2,
        decoder_mlp_dim: 16,
        stem: vec![4, 8, 8, 16],
        ..SamConfig::vit_b()
    };
    let clip_head = ClipHeadConfig {
        layers: 1,
        text_dim: 8,
        mlp_dim: 16,
        max_grid: 2,
        pooling: Pooling::Max,
    };
    let text = TextConfig {
        context_length: 77,
        vocab_size: 514,
        width: 8,
        heads: 2,
        layers: 1,
    };
    let config = MergedConfig {
        sam,
        clip_head,
        text,
        quick_gelu: false,
    };
    let weights = initial::weights(&inventory::merged(&config), 7);
    (config, weights)
}

/// A scalar that every trained weight of the merged model moves.
fn objective<B: Kernels>(graph: &Graph<Tape<B>>, config: &MergedConfig) -> StepLoss<B> {
    // Steps are small: maxima and ReLUs bend the value.
    let image = (0..3 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let out = encode(graph, config, &graph.input(image, &[1, 3, 64, 64]));
    let mask = graph.input((0..256).map(|i| (i as f32).cos()).collect(), &[1, 1, 16, 16]);
    let prompts = Prompts {
        coords: graph.input(vec![10.0, 12.0, 40.0, 50.0], &[1, 2, 2]),
        labels: graph.input(vec![1.0, 0.0], &[1, 2]),
        mask: Some((mask, graph.input(vec![1.0], &[1]))),
    };
    let (masks, iou) = mask_decoder::decode(graph, &config.sam, &out.image_embeddings, &prompts);
    let target = (0..1024).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
    let losses = loss::mask_losses(
        graph,
        &graph.reshape(&masks, &[4, 256]),
        &graph.input(target, &[4, 256]),
    );
    let column = graph.add(&graph.add(&losses.focal, &losses.dice), &losses.entropy);
    let anchor = graph.input(vec![0.5, -0.2, 0.1, 0.4, 0.0, 0.3, -0.6, 0.2], &[1, 8, 1, 1]);
    let patches = graph.reshape(&graph.mul(&out.patch_embeddings, &anchor), &[1, 32]);
    let anchor = graph.input(vec![0.4, -0.1, 0.3, 0.3, -0.5, 0.2, 0.1, 0.7], &[1, 8]);
    let parts = [
        graph.sum(&column, 0),
        graph.sum(&patches, 1),
        graph.sum(&graph.mul(&out.image_embedding, &anchor), 1),
        graph.sum(&graph.mul(&iou, &iou), 1),
    ];
    let total = parts
        .iter()
        .skip(1)
        .fold(parts[0].clone(), |sum, part| graph.add(&sum, part));
    StepLoss {
        total: graph.reshape(&total, &[1]),
        parts: Vec::new(),
    }
}

/// The backend that trains on GPUs, by a Vulkan driver that computes on the processor.
#[cfg(feature = "train-vulkan")]
#[test]
fn a_gpu_computes_the_loss_and_the_gradients_of_the_processor() {
    use samclip::train::device::gpu::{self, Gpu};

    let (config, weights) = small_model();
    let device = gpu::open_software().unwrap();
    let processor = of::<Flex>(&weights, &config, &FlexDevice, Precision::Fp32, 1.0);
    let found = of::<Gpu>(&weights, &config, &device, Precision::Fp32, 1.0);
    assert!(
        (found.0 - processor.0).abs() < 1e-5 * processor.0.abs(),
        "{} {}",
        found.0,
        processor.0
    );
    assert_gradients(&found.1, &processor.1, 1e-4, 1e-6);
}

/// Value and gradients of `scale` times the objective, by all weights.
fn of<B: Kernels>(
    weights: &Weights,
    config: &MergedConfig,
    device: &B::Device,
    precision: Precision,
    scale: f32,
) -> (f32, Gradients) {
    let (value, _, gradients) = session::gradients::<B>(
        weights,
        device,
        precision,
        |_| 1.0,
        |graph| {
            let loss = objective(graph, config);
            StepLoss {
                total: graph.scale(&loss.total, scale),
                ..loss
            }
        },
    );
    (value, gradients)
}

fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|v| v * v).sum::<f32>().sqrt()
}

/// Every gradient is `relative` of its length away at most, and `absolute` of the length of all.
fn assert_gradients(found: &Gradients, expected: &Gradients, relative: f32, absolute: f32) {
    assert!(expected.len() > 50, "{}", expected.len());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let whole = norm(expected.values().flatten().copied());
    for (name, expected) in expected {
        let apart = norm(found[name].iter().zip(expected).map(|(a, b)| a - b));
        let length = norm(expected.iter().copied());
        // The bias of keys cancels in the softmax: its gradient is rounding alone.
        assert!(
            apart <= relative * length + absolute * whole,
            "{name}: {apart} of {length}, all {whole}"
        );
    }
}

/// How far all gradients together are from `expected`, of its length.
fn distance(found: &Gradients, expected: &Gradients) -> f32 {
    let pairs = expected
        .iter()
        .flat_map(|(name, values)| found[name].iter().zip(values));
    norm(pairs.map(|(a, b)| a - b)) / norm(expected.values().flatten().copied())
}

/// Rounded factors change gradients a little, and as little those of a loss that is a million times smaller.
fn assert_rounded<B: Kernels>(device: &B::Device, precision: Precision, least: f32, most: f32) {
    let (config, weights) = small_model();
    for scale in [1.0, 1e-6] {
        let (expected, full) = of::<Flex>(&weights, &config, &FlexDevice, Precision::Fp32, scale);
        let (found, rounded) = of::<B>(&weights, &config, device, precision, scale);
        assert!((found - expected).abs() < most * expected.abs(), "{found} {expected}");
        let apart = distance(&rounded, &full);
        println!("golden | gradients in {precision}, loss times {scale:e} | against fp32 | {apart:.1e}");
        assert!((least..most).contains(&apart), "loss times {scale:e}: {apart:e}");
        assert_gradients(&rounded, &full, 10.0 * most, most);
    }
}

#[test]
fn bf16_gradients_are_those_of_fp32_but_for_rounding() {
    assert_rounded::<Flex>(&FlexDevice, Precision::Bf16, 5e-4, 4e-2);
}

#[cfg(feature = "train-vulkan")]
#[test]
fn fp16_gradients_of_a_gpu_are_those_of_fp32_but_for_rounding() {
    use samclip::train::device::gpu::{self, Gpu};

    assert_rounded::<Gpu>(&gpu::open_software().unwrap(), Precision::Fp16, 5e-4, 5e-3);
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (config, mut weights) = small_model();
    // Not part of the objective: the text tower, and prompts that are not asked (boxes, padding, no mask).
    let text = inventory::text(&config.text, 8);
    let unused = [
        "logit_scale",
        "point_embeddings.2",
        "point_embeddings.3",
        "not_a_point",
        "no_mask",
    ];
    let used = |name: &str| !text.contains_key(name) && !unused.iter().any(|u| name.contains(u));
    let (_, _, gradients) = session::gradients::<Flex>(
        &weights,
        &FlexDevice,
        Precision::Fp32,
        |name| f32::from(u8::from(used(name))),
        |graph| objective(graph, &config),
    );
    let (mut worst, mut culprit) = (0.0_f32, String::new());
    for name in weights.keys().filter(|n| used(n)).cloned().collect::<Vec<_>>() {
        let gradient = gradients.get(&name).unwrap_or_else(|| panic!("no gradient for {name}"));
        // Along the gradient's signs the value changes by the gradient's 1-norm per unit of step.
        let expected: f32 = gradient.iter().map(|g| g.abs()).sum();
        let step = 3e-3 / (gradient.len() as f32).sqrt();
        let mut value = |sign: f32| {
            let saved = weights[&name].data.clone();
            let data = &mut weights.get_mut(&name).unwrap().data;
            data.iter_mut()
                .zip(gradient)
                .for_each(|(w, g)| *w += sign * step * g.signum());
            let fp32 = Precision::Fp32;
            let (value, _, _) =
                session::gradients::<Flex>(&weights, &FlexDevice, fp32, |_| 0.0, |graph| objective(graph, &config));
            weights.get_mut(&name).unwrap().data = saved;
            value
        };
        let found = (value(1.0) - value(-1.0)) / (2.0 * step);
        // An f32 value of about 10 carries 1e-6 of noise, which the division by the step magnifies.
        let error = (found - expected).abs() / expected.max(1e-4 / step);
        assert!(
            error.is_finite(),
            "{name}: {found} by differences, {expected} by the gradient"
        );
        if error > worst {
            (worst, culprit) = (error, name);
        }
    }
    println!("golden | gradients against finite differences ({culprit}) | autodiff | {worst:.1e}");
    assert!(worst < 0.03, "{culprit}: relative error {worst:.3}");
}

#[test]
fn fp16_storage_stays_within_its_rounding() {
    // fp16 rounds weights by up to 4.9e-4 relative; 5e-3 leaves room for its growth over the layers.
    for case in cases(Storage::Half) {
        for (found, (name, expected)) in run(&case, Backend::Tract).iter().zip(&case.expected) {
            let error = relative_l2(found, expected);
            println!("golden | {name} | tract, fp16-stored | {error:.1e}");
            assert!(error < 5e-3, "{name}: {error:.2e}");
        }
    }
}

#[test]
fn key_lists_of_the_published_checkpoints_match_exactly() {
    let read = |name: &str| -> BTreeMap<String, Vec<usize>> {
        serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
    };
    assert_eq!(inventory::sam(&SamConfig::vit_b()), read("sam_vit_b.keys.json"));
    assert_eq!(
        inventory::clip(&ClipConfig::vit_l_14()),
        read("open_clip_vit_l_14.keys.json")
    );
}

#[test]
fn a_checkpoint_that_does_not_fit_is_one_error_listing_everything() {
    let mut checkpoint = weights::read(&golden("sam_tiny.pth")).unwrap();
    checkpoint.remove("image_encoder.neck.0.weight");
    checkpoint.insert(
        "stranger".into(),
        Values {
            shape: vec![2],
            data: vec![0.0; 2],
        },
    );
    checkpoint.get_mut("image_encoder.pos_embed").unwrap().shape = vec![1, 12, 12, 24, 2];
    let error = weights::check(&checkpoint, &inventory::sam(&sam_config()), "x.pth")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing image_encoder.neck.0.weight [32, 48, 1, 1]"),
        "{error}"
    );
    assert!(error.contains("extra stranger [2]"), "{error}");
    assert!(
        error.contains("image_encoder.pos_embed has shape [1, 12, 12, 24, 2], expected [1, 12, 12, 48]"),
        "{error}"
    );
}

#[test]
fn a_truncated_checkpoint_is_one_clear_error_at_any_length() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sam_tiny.pth", "clip_tiny.safetensors"] {
        let bytes = std::fs::read(golden(name)).unwrap();
        for keep in [
            0,
            1,
            100,
            bytes.len() / 3,
            bytes.len() / 2,
            bytes.len() - 100,
            bytes.len() - 1,
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let error = weights::read(&path).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("not a readable checkpoint"),
                "{keep}: {error}"
            );
        }
    }
}
