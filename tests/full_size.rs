//! Published architectures at full size: checkpoints with the exact names and shapes go in, a bundle comes out and runs,
//! each within 6 GiB of address space (`ulimit -v`). Values are by formula, so masks mean nothing and paths do.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(feature = "train")]

mod formula;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use samclip::contract::{GraphKind, Manifest};
use samclip::runtime::{self, Backend, Provider, RuntimeOptions, Values};
use samclip::train::model::{ClipConfig, SamConfig, inventory};
use samclip::train::weights;

/// Runs a program of this package with 6 GiB of address space.
fn limited(program: &str, arguments: &[&str]) -> Output {
    Command::new("bash")
        .args(["-c", "ulimit -v 6291456; exec \"$@\"", "bash", program])
        .args(arguments)
        .output()
        .unwrap()
}

fn train(arguments: &[&str]) -> String {
    let output = limited(env!("CARGO_BIN_EXE_train"), arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn create(path: &Path) -> BufWriter<File> {
    BufWriter::with_capacity(1 << 20, File::create(path).unwrap())
}

fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let pairs = || found.iter().zip(expected).map(|(f, e)| (f64::from(*f), f64::from(*e)));
    let error: f64 = pairs().map(|(f, e)| (f - e).powi(2)).sum();
    (error / pairs().map(|(_, e)| e * e).sum::<f64>()).sqrt()
}

/// SAM ViT-B's embeddings of the picture by formula, every fourth of each axis (segment-anything 1.0).
fn reference_embeddings() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/sam_vit_b.formula.io.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor("image_embeddings_every_4th").unwrap();
    view.data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn sam_vit_b_and_openclip_vit_l_14_become_a_bundle_that_segments() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (sam, clip) = (at("sam_vit_b_01ec64.pth"), at("open_clip_pytorch_model.bin"));
    let (sam_shapes, clip_shapes) = (
        inventory::sam(&SamConfig::vit_b()),
        inventory::clip(&ClipConfig::vit_l_14()),
    );
    formula::write_pth(create(Path::new(&sam)), &sam_shapes);
    formula::write_pth(create(Path::new(&clip)), &clip_shapes);

    let stored = at("sam.safetensors");
    let said = train(&["import", "--sam", &sam, "--out", &stored]);
    assert!(said.contains("314 tensors"), "{said}");
    let found = weights::read(Path::new(&stored)).unwrap();
    let name = "image_encoder.blocks.7.mlp.lin1.weight";
    assert_eq!(
        found[name],
        formula::formula(name, &sam_shapes[name]),
        "values arrive where they belong"
    );
    assert_eq!(weights::shapes(&found), sam_shapes);
    drop(found);
    let said = train(&["import", "--clip", &clip]);
    assert!(said.contains("446 tensors, 427616513 values"), "{said}");

    let recipe = format!("{}/models/vit-b/recipe.toml", env!("CARGO_MANIFEST_DIR"));
    let bundle = at("vit-b");
    train(&[
        "export", "--recipe", &recipe, "--sam", &stored, "--clip", &clip, "--out", &bundle,
    ]);
    for file in [&sam, &clip, &stored] {
        std::fs::remove_file(file).unwrap();
    }

    let opened = Manifest::read(Path::new(&bundle)).unwrap();
    let encoder = &opened.manifest.encoder;
    assert_eq!((encoder.side, encoder.patch_grid, encoder.embed_dim), (1024, 32, 768));
    encoder_matches_the_reference(&opened);

    let picture = format!("{}/models/samples/astronaut.jpg", env!("CARGO_MANIFEST_DIR"));
    let (cache, out) = (at("cache"), at("out"));
    let output = Command::new("bash")
        .args([
            "-c",
            "ulimit -v 6291456; exec \"$@\"",
            "bash",
            env!("CARGO_BIN_EXE_samclipd"),
        ])
        .args([
            "segment",
            &picture,
            "--model",
            &bundle,
            "--runtime",
            "ort",
            "--threads",
            "2",
            "--query",
            "person",
            "--out",
            &out,
        ])
        .env("CACHE_DIRECTORY", cache)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("model vit-b"), "{said}");
    assert!(folder.path().join("out/astronaut.json").is_file());
}

/// The bundle's encoder on ONNX Runtime against the reference's embeddings. Weights are stored as fp16, which rounds
/// each by up to 4.9e-4; twelve blocks with random weights bring the sum to less than 5e-3.
fn encoder_matches_the_reference(bundle: &samclip::contract::Bundle) {
    let options = RuntimeOptions {
        backend: Backend::Ort,
        provider: Provider::Cpu,
        ..RuntimeOptions::default()
    };
    let spec = bundle.manifest.graph_spec(GraphKind::Encoder);
    let path = bundle.graph_path(GraphKind::Encoder, None).unwrap();
    let mut session = runtime::open_graph(&path, &spec, &options).unwrap();
    let image = formula::image();
    let mut embeddings = Vec::new();
    session
        .run(&spec, &[Values::F32(&image)], &mut |index, shape, values| {
            if index == 0 {
                assert_eq!(shape, [1, 256, 64, 64]);
                embeddings = formula::every_4th(values, 256, 64, 4);
            }
            assert!(values.iter().all(|v| v.is_finite()), "output {index} is finite");
            Ok(())
        })
        .unwrap();
    let error = relative_l2(&embeddings, &reference_embeddings());
    println!("golden | bundle vit-b image_embeddings, fp16 stored | ort | {error:.1e}");
    assert!(error < 5e-3, "relative L2 {error:.2e}");
}

#[test]
fn the_other_published_sizes_are_recognised_and_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.pth");
    let file = path.to_str().unwrap();
    for (name, values) in [("vit_l", "312343088"), ("vit_h", "641090864")] {
        formula::write_pth(create(&path), &inventory::sam(&SamConfig::named(name).unwrap()));
        let said = train(&["import", "--sam", file]);
        assert!(said.contains(&format!("{values} values")), "{name}: {said}");
    }
    std::fs::remove_file(&path).unwrap();
    let path = folder.path().join("open_clip_model.safetensors");
    let file = path.to_str().unwrap();
    formula::write_safetensors(create(&path), &inventory::clip(&ClipConfig::named("ViT-B-16").unwrap()));
    let said = train(&["import", "--clip", file]);
    assert!(
        said.contains("149620737 values") && said.contains("\"quick_gelu\":false"),
        "{said}"
    );
    let said = train(&["import", "--clip", file, "--arch", "ViT-B-16-quickgelu"]);
    assert!(said.contains("\"quick_gelu\":true"), "{said}");
}
