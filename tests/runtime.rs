//! Both back ends on the same tiny bundle: same results, same refusals.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use samclip::contract::{Bundle, Compute, GraphKind, GraphSpec, Manifest};
use samclip::runtime::{
    Backend, Engine, GraphSession, ImageEncoder, MaskDecoder, Opened, Provider, RuntimeError, RuntimeOptions,
    TakeOutput, Values, open, open_with,
};
use samclip::text::tokenizer::Tokenizer;
use samclip::vision::features::Features;
use samclip::vision::geometry::ModelPoint;
use samclip::vision::query::DecoderPrompt;

fn bundle() -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny::write(dir.path());
    (dir, bundle)
}

fn options(backend: Backend) -> RuntimeOptions {
    RuntimeOptions {
        backend,
        threads: 2,
        ..RuntimeOptions::default()
    }
}

/// With the further size, and the bundle's own named too.
fn both_sizes(backend: Backend) -> RuntimeOptions {
    RuntimeOptions {
        sides: vec![tiny::SMALL, tiny::SIDE, tiny::SMALL],
        ..options(backend)
    }
}

/// Every output of every graph at every open size, for a seeded picture, three prompts and seven texts.
fn run(mut engine: Engine) -> Vec<Vec<f32>> {
    let mut all = run_at(tiny::SIDE, &mut *engine.encoder, &mut *engine.decoder);
    for (side, graphs) in &mut engine.further {
        all.extend(run_at(*side, &mut *graphs.encoder, &mut *graphs.decoder));
    }
    let tokenizer = Tokenizer::standard();
    let texts = ["red", "a green car", "blue", "yellow", "red and blue", "green", "sky"];
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t).unwrap().to_vec()).collect();
    let embeddings = engine.text.embed(&ids).unwrap();
    assert_eq!(embeddings.len(), 7);
    assert!(embeddings[1][1] > 0.5 && embeddings[1][0] < -0.5);
    all.into_iter().chain(embeddings).collect()
}

/// The outputs of both graphs of one size.
fn run_at(size: usize, encoder: &mut dyn ImageEncoder, decoder: &mut dyn MaskDecoder) -> Vec<Vec<f32>> {
    let pixels = 3 * size * size;
    let image: Vec<f32> = (0..pixels).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let mut features = Features::default();
    encoder.encode(&image, &mut features).unwrap();
    let side = 4 * size / 16;
    let prompts: Vec<DecoderPrompt> = (0..3)
        .map(|i| DecoderPrompt {
            query: i,
            score: 0.5,
            points: vec![ModelPoint { x: 1.5, y: 2.5 }; i + 1],
            mask: (0..side * side).map(|p| p as f32 / 100.0 - i as f32).collect(),
        })
        .collect();
    let decoded = decoder.decode(&features, &prompts).unwrap();
    assert_eq!(decoded.len(), 3);
    assert_eq!(decoded[1].low_res_logits[side * side..2 * side * side], prompts[1].mask);
    assert_eq!(decoded[0].iou_predictions, [-1.0 / 3.0; 4]);
    assert_eq!(decoded[2].iou_predictions, [1.0; 4]);
    let decoded = decoded
        .into_iter()
        .flat_map(|d| [d.low_res_logits, d.iou_predictions.to_vec()]);
    let all = [
        features.image_embeddings,
        features.patch_embeddings,
        features.image_embedding,
    ];
    all.into_iter().chain(decoded).collect()
}

#[test]
fn tract_runs_every_graph_of_the_sizes_that_are_wanted() {
    let (_dir, bundle) = bundle();
    let engine = open(&bundle, &options(Backend::Tract)).unwrap();
    assert!(engine.further.is_empty());
    run(engine);
    let engine = open(&bundle, &both_sizes(Backend::Tract)).unwrap();
    assert!(engine.further.keys().eq(&[tiny::SMALL]));
    assert_eq!(engine.provider, "tract-cpu");
    run(engine);
}

#[cfg(feature = "ort")]
#[test]
fn onnx_runtime_gives_the_same_results_as_tract() {
    let (_dir, bundle) = bundle();
    let ort = RuntimeOptions {
        provider: Provider::Cpu,
        ..both_sizes(Backend::Ort)
    };
    let engine = open(&bundle, &ort)
        .expect("this test needs ONNX Runtime: set SAMCLIP_ORT_LIB to libonnxruntime.so (tests/run does)");
    assert_eq!(engine.provider, "ort-cpu");
    let (found, expected) = (run(engine), run(open(&bundle, &both_sizes(Backend::Tract)).unwrap()));
    assert!(found.iter().map(Vec::len).eq(expected.iter().map(Vec::len)));
    for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((f - e).abs() < 1e-5, "{f} {e}");
    }
}

#[test]
fn a_graph_with_other_shapes_than_the_manifest_is_refused() {
    let (dir, mut bundle) = bundle();
    let read = Manifest::read(dir.path()).unwrap();
    assert_eq!(read.hash, bundle.hash);
    bundle.manifest.encoder.neck_channels = 5;
    let mut engine = open(&bundle, &options(Backend::Tract)).unwrap();
    let image = vec![0.0; 3 * tiny::SIDE * tiny::SIDE];
    let error = engine.encoder.encode(&image, &mut Features::default()).unwrap_err();
    assert!(
        matches!(error, RuntimeError::OutputShape { ref found, .. } if found[1] == 3),
        "{error}"
    );
}

#[test]
fn a_graph_with_other_names_is_refused_when_opened() {
    let (dir, bundle) = bundle();
    std::fs::copy(dir.path().join("text_encoder.onnx"), dir.path().join("encoder.onnx")).unwrap();
    let error = open(&bundle, &options(Backend::Tract)).err().unwrap().to_string();
    assert!(error.contains("token_ids") && error.contains("image"), "{error}");
}

#[test]
fn bytes_that_are_no_graph_are_refused_when_opened() {
    let (dir, bundle) = bundle();
    let path = dir.path().join("mask_decoder.onnx");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = open(&bundle, &options(Backend::Tract)).err().unwrap();
    assert!(error.to_string().contains("mask_decoder.onnx"), "{error}");
}

#[test]
fn inputs_of_the_wrong_length_are_refused() {
    let (_dir, bundle) = bundle();
    let mut engine = open(&bundle, &options(Backend::Tract)).unwrap();
    assert!(matches!(
        engine.encoder.encode(&[0.0; 12], &mut Features::default()),
        Err(RuntimeError::InputLength { found: 12, .. })
    ));
    assert!(matches!(
        engine.text.embed(&[vec![1; 76]]),
        Err(RuntimeError::InputLength { found: 76, .. })
    ));
}

/// Gives zeros of the right shape.
struct Zeros;

impl GraphSession for Zeros {
    fn run(&mut self, spec: &GraphSpec, _: &[Values<'_>], output: &mut TakeOutput<'_>) -> Result<(), RuntimeError> {
        let mut outputs = spec.outputs.iter().enumerate();
        outputs.try_for_each(|(i, o)| output(i, &o.shape, &vec![0.0; o.elements()]))
    }
}

#[test]
fn the_text_encoder_is_open_only_between_a_text_and_its_release() {
    let (dir, bundle) = bundle();
    let opens = Arc::new(AtomicUsize::new(0));
    let opened = Opened {
        provider: "zeros".into(),
        precision: &bundle.manifest.precision[0],
        further: &[],
        notes: Vec::new(),
        nodes: Default::default(),
    };
    let counter = Arc::clone(&opens);
    let mut engine = open_with(&bundle, opened, move |spec, path| {
        assert!(path.is_file(), "{}", path.display());
        counter.fetch_add(usize::from(spec.graph == GraphKind::TextEncoder), Ordering::Relaxed);
        Ok(Box::new(Zeros))
    })
    .unwrap();
    let count = || opens.load(Ordering::Relaxed);
    assert_eq!(count(), 0);
    assert_eq!(engine.text.embed(&vec![vec![1; 77]; 11]).unwrap().len(), 11);
    engine.text.embed(&[vec![1; 77]]).unwrap();
    assert_eq!(count(), 1);
    engine.text.release();
    engine.text.release();
    engine.text.embed(&[vec![1; 77]]).unwrap();
    assert_eq!(count(), 2);
    engine.text.release();
    std::fs::write(dir.path().join("text_encoder.onnx"), "of another bundle").unwrap();
    let error = engine.text.embed(&[vec![1; 77]]).unwrap_err().to_string();
    assert!(
        error.contains("text_encoder.onnx: SHA-256 is ") && error.contains("another model lies there"),
        "{error}"
    );
    assert_eq!(count(), 2);
}

#[test]
fn every_wanted_size_is_opened_from_its_own_files_and_the_bundles_before_the_others() {
    let (_dir, bundle) = bundle();
    let further = [bundle.at(tiny::SMALL).unwrap()];
    let opened = Opened {
        provider: "zeros".into(),
        precision: &bundle.manifest.precision[0],
        further: &further,
        notes: Vec::new(),
        nodes: Default::default(),
    };
    let (sender, files) = std::sync::mpsc::channel();
    let engine = open_with(&bundle, opened, move |spec, path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        sender.send((name, spec.inputs[0].shape.clone())).unwrap();
        Ok(Box::new(Zeros))
    });
    assert!(engine.unwrap().further.keys().eq(&[tiny::SMALL]));
    let image = |side: usize| vec![1, 3, side, side];
    let features = |grid: usize| vec![1, 3, grid, grid];
    let expected = [
        ("encoder.onnx".to_owned(), image(96)),
        ("mask_decoder.onnx".to_owned(), features(6)),
        ("encoder.small.onnx".to_owned(), image(64)),
        ("mask_decoder.small.onnx".to_owned(), features(4)),
    ];
    assert_eq!(files.iter().collect::<Vec<_>>(), expected);
}

/// The tiny bundle with a variant that says it computes in 8 bits.
fn bundle_with_int8() -> (tempfile::TempDir, Bundle) {
    let (dir, bundle) = bundle();
    let mut manifest = bundle.manifest;
    let mut variant = manifest.precision[0].clone();
    variant.name = "int8".into();
    variant.compute = Compute::Int8;
    variant.size.clear();
    manifest.precision.push(variant);
    let bundle = manifest.write(dir.path()).unwrap();
    (dir, bundle)
}

#[test]
fn tract_refuses_a_variant_that_it_computes_wrongly() {
    let (_dir, bundle) = bundle_with_int8();
    assert_eq!(open(&bundle, &options(Backend::Tract)).unwrap().precision, "fp32");
    let int8 = RuntimeOptions {
        precision: Some("int8".into()),
        ..options(Backend::Tract)
    };
    let error = open(&bundle, &int8).err().unwrap().to_string();
    assert!(
        error.contains("\"int8\"") && error.contains("it can run fp32"),
        "{error}"
    );
    let unknown = RuntimeOptions {
        precision: Some("fp4".into()),
        ..options(Backend::Tract)
    };
    let error = open(&bundle, &unknown).err().unwrap().to_string();
    assert!(error.contains("\"fp4\"") && error.contains("fp32, int8"), "{error}");
}

#[test]
fn a_size_that_the_bundle_or_the_variant_lacks_is_refused_with_those_there_are() {
    let (_dir, bundle) = bundle_with_int8();
    let with = |side: usize, precision: Option<&str>| {
        let options = RuntimeOptions {
            sides: vec![side],
            precision: precision.map(str::to_owned),
            ..options(Backend::Tract)
        };
        open(&bundle, &options).err().unwrap().to_string()
    };
    assert_eq!(
        with(80, None),
        "the bundle has no size of 80 pixels, it has 96, 64; `train export` makes those under [export] sizes"
    );
    let expected = "precision \"int8\" has no size of 64 pixels; of the bundle's, fp32 has it";
    assert_eq!(with(tiny::SMALL, Some("int8")), expected);
}

#[test]
fn tract_does_not_stand_in_for_a_gpu() {
    let (_dir, bundle) = bundle();
    for (provider, name) in [(Provider::Cuda, "cuda"), (Provider::TensorRt, "tensorrt")] {
        let options = RuntimeOptions {
            provider,
            ..options(Backend::Tract)
        };
        let error = open(&bundle, &options).err().unwrap().to_string();
        assert!(error.contains("CPU only") && error.contains(name), "{error}");
    }
}

/// These run where there is no GPU: ONNX Runtime's library of the tests has no GPU provider in it at all.
#[cfg(feature = "ort")]
mod without_gpu {
    use super::*;

    #[test]
    fn a_named_provider_is_an_error_that_names_what_is_missing() {
        let (_dir, bundle) = bundle();
        for backend in [Backend::Ort, Backend::Auto] {
            for (provider, name) in [(Provider::Cuda, "CUDA"), (Provider::TensorRt, "TensorRT")] {
                let options = RuntimeOptions {
                    provider,
                    ..options(backend)
                };
                let error = open(&bundle, &options).err().unwrap();
                assert!(matches!(error, RuntimeError::Provider { .. }), "{error}");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn auto_falls_back_to_the_cpu_and_says_why() {
        let (_dir, bundle) = bundle_with_int8();
        let engine = open(&bundle, &options(Backend::Auto)).unwrap();
        assert_eq!(
            (engine.provider.as_str(), engine.precision.as_str()),
            ("ort-cpu", "fp32")
        );
        for provider in ["tensorrt", "cuda"] {
            let start = format!("provider {provider} skipped: ");
            let note = engine.notes.iter().find(|n| n.starts_with(&start));
            assert!(note.is_some_and(|n| n.len() > start.len()), "{:?}", engine.notes);
        }
        assert!(engine.nodes.is_empty());
        run(engine);
    }

    #[test]
    fn a_profile_counts_the_nodes_that_the_cpu_runs() {
        let (_dir, bundle) = bundle();
        let proof = samclip::runtime::inventory::prove_on_cpu(&bundle, &options(Backend::Ort)).unwrap();
        assert!(proof.nodes["CPUExecutionProvider"] >= 5, "{proof:?}");
        assert_eq!(proof.judge("CPUExecutionProvider"), Ok(()));
        let error = proof.judge("TensorrtExecutionProvider").unwrap_err();
        assert!(error.contains("runs no node"), "{error}");
    }
}
