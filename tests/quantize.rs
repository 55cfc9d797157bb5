//! `train quantize` end to end on the shipped bundle and drawn scenes: what is written, what is refused, what survives.
//!
//! Needs ONNX Runtime: `tests/run` sets SAMCLIP_ORT_LIB.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(feature = "train")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use samclip::contract::{Bundle, Compute, GraphKind, Manifest};
use samclip::runtime::{self, Backend, Provider, RuntimeOptions};
use samclip::train::quantize::histogram::Method;
use samclip::train::quantize::report::Report;
use samclip::train::quantize::{Options, QuantizeError, Variant, run};
use samclip::train::synth;
use samclip::vision::features::Features;

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano")
}

/// A tar of drawn scenes with its table of names; a tenth of the scenes is for validation.
fn scenes(folder: &Path, count: u64) -> String {
    let path = folder.join("scenes.tar");
    synth::shard::write(std::fs::File::create(&path).unwrap(), 3, 0, count, 160).unwrap();
    let names = synth::names();
    let table: std::collections::BTreeMap<usize, &str> = names.iter().enumerate().collect();
    std::fs::write(folder.join("classes.json"), serde_json::to_vec(&table).unwrap()).unwrap();
    path.display().to_string()
}

/// Little of everything: no trials, no timing, few texts.
fn quick(data: String, out: PathBuf, variants: &[Variant]) -> Options {
    let folder = Path::new(&data).parent().unwrap();
    Options {
        bundle: copy_of_nano(folder),
        data: vec![data],
        out,
        variants: variants.to_vec(),
        force: false,
        weight_bits: 7,
        calibration: Some(Method::Percentile(99.99)),
        calibration_photos: 16,
        sensitivity_photos: 1,
        max_runs: 0,
        target_error: 0.05,
        rounds: 1,
        measure_photos: 4,
        templates: 1,
        timing_rounds: 0,
        threads: 2,
    }
}

/// A file's kinds of bytes: every name in the folder with its SHA-256.
fn contents(folder: &Path) -> BTreeSet<(String, String)> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let hash = samclip::contract::sha256_hex(&std::fs::read(&path).unwrap());
            (path.file_name().unwrap().to_string_lossy().into_owned(), hash)
        })
        .collect()
}

/// The shipped bundle in `folder`, with its default variant alone.
fn copy_of_nano(folder: &Path) -> PathBuf {
    let to = folder.join("bundle");
    if to.exists() {
        return to;
    }
    std::fs::create_dir(&to).unwrap();
    let mut manifest = Manifest::read(&nano()).unwrap().manifest;
    manifest.precision.truncate(1);
    manifest.files.clear();
    for name in manifest.referenced_files() {
        std::fs::copy(nano().join(&name), to.join(&name)).unwrap();
    }
    manifest.write(&to).unwrap();
    to
}

fn encode(bundle: &Bundle, precision: &str) -> Vec<f32> {
    let options = RuntimeOptions {
        backend: Backend::Ort,
        provider: Provider::Cpu,
        threads: 2,
        precision: Some(precision.into()),
        ..RuntimeOptions::default()
    };
    let mut engine = runtime::open(bundle, &options).unwrap();
    let side = bundle.manifest.encoder.side;
    let image: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.011).sin()).collect();
    let mut features = Features::default();
    engine.encoder.encode(&image, &mut features).unwrap();
    features.patch_embeddings
}

fn written(report: &Report) -> Vec<bool> {
    report.rows.iter().map(|r| r.written).collect()
}

#[test]
fn variants_are_written_measured_and_run_by_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut options = quick(scenes(folder.path(), 60), out.clone(), &[]);
    // what is checked here is the files, not whether drawn scenes rank alike
    options.force = true;
    let report = run(&options).unwrap();
    // fp16-stored is the reference
    assert_eq!(written(&report), [true, true]);
    let bundle = Manifest::read(&out).unwrap();
    let names: Vec<(&str, Compute)> = bundle
        .manifest
        .precision
        .iter()
        .map(|p| (p.name.as_str(), p.compute))
        .collect();
    assert_eq!(
        names,
        [
            ("fp16-stored", Compute::Fp32),
            ("fp16-compute", Compute::Fp16),
            ("int8", Compute::Int8)
        ]
    );
    for (row, precision) in report.rows.iter().zip(&bundle.manifest.precision[1..]) {
        let measured = precision.measured.as_ref().unwrap();
        assert_eq!((measured.reference.as_str(), measured.photos), ("fp16-stored", 4));
        assert_eq!(measured.forced, !row.objections.is_empty());
        assert_eq!(precision.relative_error.len(), 6, "every output of every graph");
        assert!(precision.relative_error["patch_embeddings"] > 0.0);
        assert!(precision.mean_iou_change.is_some());
        let bytes: u64 = GraphKind::ALL
            .map(|k| std::fs::metadata(out.join(precision.file(k))).unwrap().len())
            .iter()
            .sum();
        assert_eq!(bytes as usize, row.bytes.iter().sum::<usize>());
    }
    let [half, int8] = &bundle.manifest.precision[1..] else {
        panic!("three variants")
    };
    assert!(
        half.relative_error["patch_embeddings"] < 0.01,
        "{:?}",
        half.relative_error
    );
    assert!(int8.measured.as_ref().unwrap().size_ratio <= 0.30);
    assert!(
        int8.measured
            .as_ref()
            .unwrap()
            .calibration
            .as_ref()
            .unwrap()
            .contains("16 photos")
    );
    let reference = encode(&bundle, "fp16-stored");
    for (name, bound) in [("fp16-compute", 0.01), ("int8", 0.25)] {
        let found = encode(&bundle, name);
        let error: f32 = found.iter().zip(&reference).map(|(f, r)| (f - r).powi(2)).sum();
        let norm: f32 = reference.iter().map(|r| r * r).sum();
        assert!((error / norm).sqrt() < bound, "{name}: {}", (error / norm).sqrt());
    }
    assert!(
        contents(&out).iter().all(|(name, _)| !name.starts_with('.')),
        "nothing unfinished is left"
    );
}

#[test]
fn the_gate_refuses_a_spoiled_variant_and_force_records_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = copy_of_nano(folder.path());
    let before = contents(&out);
    let mut options = quick(scenes(folder.path(), 60), out.clone(), &[Variant::Int8]);
    options.bundle.clone_from(&out);
    // three quarters of all activations are clipped
    options.calibration = Some(Method::Percentile(25.0));
    let report = run(&options).unwrap();
    assert_eq!(written(&report), [false]);
    let refusal = report.refusal().unwrap();
    assert!(
        refusal.contains("int8 refused: ") && refusal.contains("--force"),
        "{refusal}"
    );
    assert_eq!(contents(&out), before, "a refused variant leaves no trace");

    options.force = true;
    let report = run(&options).unwrap();
    assert_eq!(written(&report), [true]);
    assert!(report.refusal().is_none());
    let bundle = Manifest::read(&out).unwrap();
    assert!(
        bundle
            .manifest
            .precision(Some("int8"))
            .unwrap()
            .measured
            .as_ref()
            .unwrap()
            .forced
    );

    // written again, it replaces itself; nothing that the manifest does not name stays
    run(&options).unwrap();
    let again = Manifest::read(&out).unwrap();
    assert_eq!(again.manifest.precision.len(), 2);
    let names: BTreeSet<String> = contents(&out).into_iter().map(|(name, _)| name).collect();
    let graphs = names.iter().filter(|n| n.ends_with(".onnx")).count();
    let of_variants = again.manifest.precision.iter().map(|p| 3 + 2 * p.size.len());
    assert_eq!(graphs, of_variants.sum::<usize>(), "{names:?}");
}

#[test]
fn a_calibration_set_of_one_picture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = scenes(folder.path(), 60);
    let mut options = quick(data, folder.path().join("out"), &[Variant::Int8]);
    options.calibration_photos = 1;
    let error = run(&options).unwrap_err();
    assert!(matches!(error, QuantizeError::FewPhotos { found: 1 }), "{error}");
    let text = error.to_string();
    assert!(text.contains("found 1") && text.contains("at least 16"), "{text}");
    options.calibration_photos = 16;
    options.data = vec![scenes(folder.path(), 1)];
    let error = run(&options).unwrap_err();
    assert!(
        matches!(error, QuantizeError::FewPhotos { .. } | QuantizeError::NoValidation),
        "{error}"
    );
}

#[test]
fn another_bundle_in_the_way_and_the_reference_itself_are_refused() {
    let (folder, another) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = copy_of_nano(another.path());
    let data = scenes(folder.path(), 60);
    let error = run(&quick(data.clone(), other, &[Variant::Int8])).unwrap_err();
    assert!(matches!(error, QuantizeError::OtherBundle { .. }), "{error}");
    let error = run(&quick(data, folder.path().join("out"), &[Variant::Fp16Stored])).unwrap_err();
    assert!(matches!(error, QuantizeError::IsReference { .. }), "{error}");
}

#[test]
fn a_damaged_graph_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = copy_of_nano(folder.path());
    let path = bundle.join("mask_decoder.onnx");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let mut options = quick(scenes(folder.path(), 60), bundle.clone(), &[Variant::Int8]);
    options.bundle.clone_from(&bundle);
    let text = run(&options).unwrap_err().to_string();
    assert!(text.contains("mask_decoder.onnx") && text.contains("SHA-256"), "{text}");
    // the same damage with a manifest that vouches for it
    let manifest = Manifest::parse(&std::fs::read_to_string(bundle.join("manifest.toml")).unwrap()).unwrap();
    manifest.write(&bundle).unwrap();
    let text = run(&options).unwrap_err().to_string();
    assert!(
        text.contains("mask_decoder.onnx") && text.contains("is no ONNX file"),
        "{text}"
    );
}

/// `train` in a shell that lets no file grow beyond `blocks` of 512 bytes; a write beyond fails as on a full disk.
fn train_on_a_full_disk(blocks: u32, arguments: &[&str]) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_train")])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_leaves_the_bundle_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = copy_of_nano(folder.path());
    let before = contents(&bundle);
    let data = scenes(folder.path(), 60);
    let path = bundle.to_str().unwrap();
    let arguments = [
        "quantize",
        "--bundle",
        path,
        "--out",
        path,
        "--data",
        &data,
        "--variants",
        "fp16-compute",
        "--force",
        "--calibration-photos",
        "16",
        "--measure-photos",
        "2",
        "--templates",
        "1",
        "--timing-rounds",
        "0",
    ];
    // 2 MB: enough for nothing but the small graphs
    let output = train_on_a_full_disk(4000, &arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("File too large") && text.contains("the bundle is as it was"),
        "{text}"
    );
    assert_eq!(contents(&bundle), before);
    Manifest::read(&bundle).unwrap();
}

#[test]
fn a_folder_in_the_way_of_a_graph_leaves_the_bundle_valid() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = copy_of_nano(folder.path());
    std::fs::create_dir_all(bundle.join("text_encoder.fp16-compute.onnx/x")).unwrap();
    let mut options = quick(scenes(folder.path(), 60), bundle.clone(), &[Variant::Fp16Compute]);
    (options.bundle, options.force) = (bundle.clone(), true);
    let text = run(&options).unwrap_err().to_string();
    assert!(text.contains("text_encoder.fp16-compute.onnx"), "{text}");
    let read = Manifest::read(&bundle).unwrap();
    assert_eq!(read.manifest.precision.len(), 1);
}
