//! The host program end to end: a tiny recipe on drawn scenes alone, from nothing to a bundle that runs.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(feature = "train")]

mod stops;
mod study;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use samclip::contract::Manifest;
use samclip::runtime::{self, Backend, RuntimeOptions};
use samclip::train::autodiff::Graph;
use samclip::train::model::encode;
use samclip::train::precision::Precision;
use samclip::train::recipe::{BatchSize, Finetune, Recipe, Separate, Sharpen, Watch};
use samclip::train::session::model_weights;
use samclip::train::weights::{self, Weights};
use samclip::vision::features::Features;

fn train(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_train"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Arguments of one stage of a recipe on drawn scenes, kept in the folder `out`.
fn on_scenes<'a>(stage: &'a str, recipe: &'a Path, out: &'a Path) -> [&'a str; 5] {
    [
        stage,
        "--recipe",
        recipe.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]
}

/// One stage of a recipe on drawn scenes, computed by `device`.
fn train_on(device: &str, stage: &str, recipe: &Path, out: &Path) -> Output {
    train(&[&on_scenes(stage, recipe, out)[..], &["--device", device]].concat())
}

/// The shipped recipe, shrunk until it runs in seconds.
fn tiny_recipe(folder: &Path) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
    let mut recipe = Recipe::read(&shipped).unwrap();
    let sam = &mut recipe.sam;
    (sam.image_size, sam.embed_dim, sam.depth, sam.num_heads) = (64, 32, 2, 2);
    (sam.stem, sam.global_attn_indexes) = (vec![8, 8, 16, 32], vec![0, 1]);
    (sam.out_chans, sam.decoder_mlp_dim) = (32, 32);
    (recipe.clip_head.text_dim, recipe.clip_head.mlp_dim) = (32, 32);
    (recipe.text.width, recipe.text.heads, recipe.text.layers) = (32, 2, 1);
    (
        recipe.clip_teacher.image_size,
        recipe.clip_teacher.width,
        recipe.clip_teacher.layers,
    ) = (32, 32, 1);
    (recipe.clip_teacher.head_width, recipe.export.prompts) = (16, 2);
    recipe.export.background.truncate(1);
    for stage in [
        recipe.teach_sam.as_mut().unwrap(),
        recipe.teach_clip.as_mut().unwrap(),
        &mut recipe.probe,
        &mut recipe.distill,
    ] {
        (stage.steps, stage.batch, stage.warmup) = (2, 2, 1);
        stage.average = None; // an average over hundreds of steps is the beginning here
    }
    (recipe.finetune, recipe.losses.clip) = (None, 0.1);
    let adapt = recipe.adapt.as_mut().unwrap();
    adapt.image_size = 96;
    (adapt.stage.steps, adapt.stage.batch, adapt.stage.warmup) = (2, 2, 1);
    recipe.export.sizes = vec![64];
    let words = recipe.words.as_mut().unwrap();
    (words.steps, words.batch, words.warmup) = (2, 4, 1);
    recipe.sharpen = None;
    let path = folder.join("tiny.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

/// Writes the tiny recipe with a change; its path.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Recipe)) -> PathBuf {
    let mut recipe = Recipe::read(&tiny_recipe(folder)).unwrap();
    change(&mut recipe);
    let path = folder.join(name);
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

#[test]
fn the_last_stage_takes_masks_of_a_sam_teacher_that_saw_another_size() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    recipe.losses.labelled = 0.0;
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let output = train(&on_scenes("adapt", &path, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(out.join("adapt.safetensors").is_file());
}

#[test]
fn drawn_scenes_alone_become_a_bundle_that_says_what_the_checkpoint_says() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let arguments = on_scenes("run", &recipe, &out);
    let output = train(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let again = train(&arguments);
    assert!(
        again.status.success(),
        "a finished run runs again: {}",
        text(&again.stderr)
    );
    a_run_is_measured_beside_its_teachers(recipe.to_str().unwrap(), &out, folder.path());

    let bundle = Manifest::read(&out.join("bundle")).unwrap();
    let recipe = Recipe::read(&recipe).unwrap().adapted();
    assert_eq!(
        bundle.manifest.encoder.side, 96,
        "the bundle has the size of the last stage"
    );
    let weights = model_weights(weights::read(&out.join("words.safetensors")).unwrap());
    let graph = Graph::<burn_flex::Flex>::new(&weights, Default::default());
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    // The graph of the checkpoint resizes its tables by itself; those of the bundle's further size were resized before.
    for side in [96, 64] {
        let image: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.011).sin()).collect();
        let input = graph.input(image.clone(), &[1, 3, side, side]);
        let expected = encode(&graph, &recipe.merged(), &input);
        let mut engine = runtime::open(&bundle.at(side).unwrap(), &options).unwrap();
        let mut features = Features::default();
        engine.encoder.encode(&image, &mut features).unwrap();
        // Weights are stored as fp16, which rounds them by up to 4.9e-4.
        for (name, found, expected) in [
            (
                "image_embeddings",
                &features.image_embeddings,
                graph.values(&expected.image_embeddings),
            ),
            (
                "patch_embeddings",
                &features.patch_embeddings,
                graph.values(&expected.patch_embeddings),
            ),
            (
                "image_embedding",
                &features.image_embedding,
                graph.values(&expected.image_embedding),
            ),
        ] {
            let error: f32 = found.iter().zip(&expected).map(|(f, e)| (f - e).powi(2)).sum();
            let norm: f32 = expected.iter().map(|e| e * e).sum();
            let off = (error / norm).sqrt();
            assert_eq!(found.len(), expected.len(), "{name} at {side}");
            assert!(off < 5e-3, "{name} at {side}: relative L2 {off}");
        }
    }
}

#[test]
fn features_of_the_frozen_backbone_are_computed_once_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_recipe(folder.path());
    let base = Recipe::read(&path).unwrap();
    // Sizes above and below what the CLIP head pools, and weights of both.
    let clip = vec![BatchSize { side: 64, batch: 2 }, BatchSize { side: 128, batch: 1 }];
    let probe = |name: &str, out: &str, change: &dyn Fn(&mut Recipe)| {
        let mut recipe = base.clone();
        (recipe.clip_head.max_grid, recipe.probe.steps) = (4, 4);
        recipe.probe.separate = Some(Separate {
            clip: clip.clone(),
            sam_batch: 0,
        });
        change(&mut recipe);
        let path = folder.path().join(name);
        std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        let out = folder.path().join(out);
        let output = train(&on_scenes("probe", &path, &out));
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let weights = weights::read(&out.join("probe.safetensors")).unwrap();
        (weights, said)
    };
    let (fresh, said) = probe("fresh.toml", "fresh", &|_| {});
    assert!(!said.contains("features") && !folder.path().join("fresh/probe.features").exists());
    // Batches that come again after all of them are those that never do.
    let (kept, said) = probe("kept.toml", "kept", &|r| r.probe.repeat = Some(4));
    assert!(said.contains("computed=4"), "{said}");
    assert!(kept == fresh, "weights and moments, to the bit");

    // Two batches, twice; once more with one of them damaged.
    let (twice, said) = probe("twice.toml", "twice", &|r| r.probe.repeat = Some(2));
    assert!(said.contains("computed=2") && twice != fresh, "{said}");
    let features = folder.path().join("twice/probe.features");
    let file = features.join("000001-000.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    std::fs::remove_file(folder.path().join("twice/probe.safetensors")).unwrap();
    let (again, said) = probe("twice.toml", "twice", &|r| r.probe.repeat = Some(2));
    assert!(said.contains("computed=1") && again == twice, "{said}");
    assert_eq!(std::fs::read_dir(features).unwrap().count(), 2);
    // What is kept is what the head learns from.
    let (mut changed, metadata) = (weights::read(&file).unwrap(), weights::read_metadata(&file).unwrap());
    changed.get_mut("teacher").unwrap().data.reverse();
    weights::write(&file, &changed, &metadata).unwrap();
    std::fs::remove_file(folder.path().join("twice/probe.safetensors")).unwrap();
    let (misled, said) = probe("twice.toml", "twice", &|r| r.probe.repeat = Some(2));
    assert!(said.contains("computed=0") && misled != twice, "{said}");

    // How fast the head learns is no matter of the backbone, other crops are.
    type Change = fn(&mut Recipe);
    let changes: [(Change, &str); 2] = [
        (|r| r.probe.learning_rate *= 2.0, "computed=0"),
        (|r| r.variation.close_ups = 0.5, "computed=2"),
    ];
    for (index, (change, expected)) in changes.into_iter().enumerate() {
        std::fs::remove_file(folder.path().join("twice/probe.safetensors")).unwrap();
        for teacher in ["sam_teacher", "clip_teacher"].iter().filter(|_| index == 1) {
            std::fs::remove_file(folder.path().join(format!("twice/{teacher}.safetensors"))).unwrap();
        }
        let both = |r: &mut Recipe| {
            r.probe.repeat = Some(2);
            change(r);
        };
        let (_, said) = probe("changed.toml", "twice", &both);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn other_words_are_learnt_by_the_text_tower_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    // Names must be told apart before another word can be as near as its name.
    recipe.teach_clip.as_mut().unwrap().steps = 60;
    let words = recipe.words.as_mut().unwrap();
    (words.steps, words.batch) = (100, 16);
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let output = train(&on_scenes("words", &path, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |stage: &str| model_weights(weights::read(&out.join(format!("{stage}.safetensors"))).unwrap());
    let (adapted, taught) = (read("adapt"), read("words"));
    let moved: Vec<&String> = adapted.keys().filter(|n| adapted[*n] != taught[*n]).collect();
    let tower =
        |name: &str| name.starts_with("transformer.") || name.starts_with("token_") || name.contains("ln_final");
    let own = ["positional_embedding", "text_projection"];
    assert!(moved.iter().any(|n| n.starts_with("transformer.")), "{moved:?}");
    assert!(moved.iter().all(|n| tower(n) || own.contains(&n.as_str())), "{moved:?}");
    let curve = std::fs::read_to_string(out.join("words.curve.csv")).unwrap();
    let distances = curve.lines().filter_map(|line| line.split_once(",distance,"));
    let distances: Vec<f32> = distances.map(|(_, value)| value.parse().unwrap()).collect();
    let (first, last) = (distances[0], distances[distances.len() - 1]);
    assert!(last < 0.7 * first, "distances {distances:?}");
}

#[test]
fn the_sam_head_learns_the_daemons_prompts_and_what_the_clip_head_says_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    // A CLIP head that tells names apart asks something.
    (recipe.teach_clip.as_mut().unwrap().steps, recipe.distill.steps) = (60, 120);
    (recipe.distill.batch, recipe.losses.region_text) = (8, 3.0);
    // No scene shows it, so the tiny model does not take the names for it.
    recipe.export.background = vec!["dog".into()];
    let mut sharpen = recipe.adapt.as_ref().unwrap().stage.clone();
    (sharpen.steps, sharpen.batch, sharpen.prompts, sharpen.learning_rate) = (50, 8, 4, 3e-3);
    recipe.sharpen = Some(Sharpen {
        detail: vec![4, 8],
        stage: sharpen,
    });
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let output = train(&on_scenes("sharpen", &path, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));

    let read = |out: &Path, stage: &str| {
        let checkpoint = weights::read(&out.join(format!("{stage}.safetensors"))).unwrap();
        model_weights(checkpoint)
    };
    let (before, after) = (read(&out, "words"), read(&out, "sharpen"));
    let moved: Vec<&String> = before.keys().filter(|n| before[*n] != after[*n]).collect();
    for part in ["image_encoder.neck.", "mask_decoder."] {
        assert!(moved.iter().any(|n| n.starts_with(part)), "{part}: {moved:?}");
    }
    let fold = &after["image_encoder.detail.fold.weight"].data;
    assert!(
        fold.iter().any(|v| *v != 0.0),
        "the detail path starts silent and learns"
    );
    let parts = ["image_encoder.neck.", "mask_decoder.", "image_encoder.detail."];
    let sam_head = |n: &str| parts.iter().any(|part| n.starts_with(part));
    assert!(moved.iter().all(|n| sam_head(n)), "{moved:?}");
    let curve = std::fs::read_to_string(out.join("sharpen.curve.csv")).unwrap();
    let of = |name: &str| -> Vec<f32> {
        let lines = curve.lines().filter_map(|line| line.split_once(&format!(",{name},")));
        lines.map(|(_, value)| value.parse().unwrap()).collect()
    };
    assert!(of("questions").iter().all(|&count| count > 0.2), "{curve}");
    assert!(of("sam")[1] < of("sam")[0], "{curve}");

    // From the bundle alone, without the stages before; its weights are those of the checkpoint.
    let bundle = folder.path().join("bundle");
    let export = |from: &Path, to: &Path, further: &[&str]| {
        let [recipe, from, to] = [&path, from, to].map(|p| p.to_str().unwrap());
        let mut arguments = vec!["export", "--recipe", recipe, "--checkpoint", from, "--out", to];
        arguments.extend(["--storage", "fp32"]);
        arguments.extend(further);
        let output = train(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let (words, sharpened) = (out.join("words.safetensors"), out.join("sharpen.safetensors"));
    export(&words, &bundle, &[]);
    let same = |a: &Path, b: &Path| {
        let graphs = ["encoder.onnx", "mask_decoder.onnx", "text_encoder.onnx"];
        graphs.map(|graph| std::fs::read(a.join(graph)).unwrap() == std::fs::read(b.join(graph)).unwrap())
    };
    let again = folder.path().join("again");
    export(&bundle, &again, &[]);
    assert_eq!(same(&bundle, &again), [true; 3]);
    // Between two checkpoints: either end, and what lies between is neither.
    let whole = folder.path().join("sharpened");
    export(&sharpened, &whole, &[]);
    let earlier = folder.path().join("distill.safetensors");
    let mut moved = weights::read(&sharpened).unwrap();
    let bias = "mask_decoder.iou_prediction_head.layers.2.bias";
    moved.get_mut(bias).unwrap().data.fill(3.0);
    weights::write(&earlier, &moved, &Default::default()).unwrap();
    for (alpha, equal) in [("0", true), ("0.5", false), ("1", false)] {
        let between = ["--between", earlier.to_str().unwrap(), "--alpha", alpha];
        export(&sharpened, &again, &between);
        assert_eq!(same(&whole, &again), [true, equal, true], "--alpha {alpha}");
    }
    let alone = folder.path().join("alone");
    let mut arguments = on_scenes("sharpen", &path, &alone).to_vec();
    arguments.extend(["--start", bundle.to_str().unwrap()]);
    let output = train(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!alone.join("words.safetensors").exists());
    let from_bundle = read(&alone, "sharpen");
    let learnt = |n: &&String| sam_head(n);
    for name in after.keys().filter(learnt) {
        let (a, b) = (&after[name].data, &from_bundle[name].data);
        assert_eq!(a.len(), b.len(), "{name}");
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-3, "{name}: {a} and {b}");
        }
    }
    let teacher = out.join("clip_teacher.safetensors");
    a_model_goes_on_learning_from_a_bundle(&path, &alone.join("sharpen.safetensors"), &teacher, folder.path());
}

/// `start` are weights of the recipe at `path`, with a detail path; `teacher` is its CLIP teacher.
fn a_model_goes_on_learning_from_a_bundle(path: &Path, start: &Path, teacher: &Path, folder: &Path) {
    let read = |path: &Path| model_weights(weights::read(path).unwrap());
    let finetune = |start: &Path, name: &str, clip: f32, teacher: &[&str]| {
        let mut recipe = Recipe::read(path).unwrap();
        let mut stage = recipe.adapt.as_ref().unwrap().stage.clone();
        (stage.steps, stage.batch, stage.prompts, stage.learning_rate) = (50, 8, 2, 1e-3);
        recipe.finetune = Some(Finetune {
            own_prompts: 0.5,
            stage,
        });
        recipe.losses.clip = clip;
        let (path, out) = (folder.join(format!("{name}.toml")), folder.join(name));
        std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        let mut arguments = on_scenes("finetune", &path, &out).to_vec();
        arguments.extend(["--start", start.to_str().unwrap()]);
        arguments.extend(teacher);
        let output = train(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let curve = std::fs::read_to_string(out.join("finetune.curve.csv")).unwrap();
        let first_and_last = |part: &str| {
            let lines = curve.lines().filter_map(|line| line.split_once(&format!(",{part},")));
            let values: Vec<f32> = lines.map(|(_, value)| value.parse().unwrap()).collect();
            (values[0], values[values.len() - 1])
        };
        (
            read(&out.join("finetune.safetensors")),
            first_and_last("region-text"),
            first_and_last("clip"),
        )
    };
    // A CLIP head that is out of tune has something to learn in so few steps.
    let mut before = read(start);
    for (_, values) in before.iter_mut().filter(|(name, _)| name.starts_with("clip_head.")) {
        for (index, value) in values.data.iter_mut().enumerate() {
            *value *= if index % 2 == 0 { 1.75 } else { 0.25 };
        }
    }
    let start = folder.join("out_of_tune.safetensors");
    weights::write(&start, &before, &Default::default()).unwrap();
    let finetune = |name, clip, teacher: &[&str]| finetune(&start, name, clip, teacher);
    let (after, region_text, forgotten) = finetune("unbound", 0.0, &[]);
    assert!(region_text.1 < region_text.0, "{region_text:?}");
    let moved: Vec<&String> = before.keys().filter(|n| before[*n] != after[*n]).collect();
    for part in [
        "image_encoder.blocks.",
        "image_encoder.detail.",
        "clip_head.",
        "mask_decoder.",
    ] {
        assert!(moved.iter().any(|n| n.starts_with(part)), "{part}: {moved:?}");
    }
    let may = ["image_encoder.", "clip_head.", "mask_decoder."];
    assert!(
        moved.iter().all(|n| may.iter().any(|part| n.starts_with(part))),
        "{moved:?}"
    );
    // What it rehearses is what it said before.
    let (_, _, rehearsed) = finetune("bound", 30.0, &[]);
    assert!(rehearsed.1 < 0.5 * forgotten.1, "{rehearsed:?} {forgotten:?}");
    // The teacher says something else, and is listened to.
    let (_, _, taught) = finetune("taught", 30.0, &["--clip", teacher.to_str().unwrap()]);
    assert!(
        taught.0 > 3.0 * rehearsed.1 && taught.1 < taught.0,
        "{rehearsed:?} {taught:?}"
    );

    let output = train(&on_scenes("finetune", path, &folder.join("none")));
    let error = text(&output.stderr);
    assert!(
        !output.status.success() && error.contains("the recipe has no [finetune]"),
        "{error}"
    );
}

#[test]
fn a_bundle_that_the_recipe_did_not_make_is_no_start() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    recipe.sharpen = Some(Sharpen {
        detail: Vec::new(),
        stage: recipe.distill.clone(),
    });
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    let mut arguments = on_scenes("sharpen", &path, &out).to_vec();
    arguments.extend(["--start", nano.to_str().unwrap()]);
    let output = train(&arguments);
    let error = text(&output.stderr);
    assert!(
        !output.status.success() && error.contains("models/nano does not fit the model"),
        "{error}"
    );
    assert!(
        error.contains("image_encoder.pos_embed has shape [1, 20, 20, 160]"),
        "{error}"
    );
}

/// The paper's steps: CLIP batches of two sizes and SAM batches in stage 2, CLIP batches alone in stage 3.
#[test]
fn separate_batches_of_several_sizes_train_what_the_paper_trains() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    let size = |side, batch| BatchSize { side, batch };
    recipe.distill.separate = Some(Separate {
        clip: vec![size(64, 2), size(96, 1)],
        sam_batch: 1,
    });
    (recipe.distill.accumulate, recipe.distill.steps) = (2, 3);
    recipe.distill.watch = Some(Watch {
        every: 1,
        photos: 2,
        tolerance: 100.0,
    });
    recipe.losses.region_text = 0.0;
    let adapt = recipe.adapt.as_mut().unwrap();
    (adapt.own_prompts, adapt.mask_decoder_rate) = (0.0, 0.0);
    adapt.stage.separate = Some(Separate {
        clip: vec![size(64, 2), size(128, 1)],
        sam_batch: 0,
    });
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let arguments = on_scenes("adapt", &path, &out);
    let output = train(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("kept of SAM"), "{}", text(&output.stderr));
    let read = |stage: &str| weights::read(&out.join(format!("{stage}.safetensors"))).unwrap();
    let (probed, distilled, adapted) = (read("probe"), read("distill"), read("adapt"));
    let moved = |before: &Weights, after: &Weights, prefix: &str| {
        let names = before
            .keys()
            .filter(|n| n.starts_with(prefix) && !n.contains("pos_embed"));
        names.filter(|n| before[*n] != after[*n]).count()
    };
    for prefix in ["image_encoder.blocks", "clip_head", "mask_decoder"] {
        assert!(
            moved(&probed, &distilled, prefix) > 0,
            "stage 2 leaves {prefix} as it was"
        );
    }
    for frozen in ["prompt_encoder", "transformer", "token_embedding"] {
        assert_eq!(moved(&probed, &distilled, frozen), 0, "stage 2 moves {frozen}");
    }
    assert!(
        moved(&distilled, &adapted, "clip_head") > 0,
        "stage 3 leaves the CLIP head as it was"
    );
    for frozen in ["image_encoder", "mask_decoder", "prompt_encoder"] {
        assert_eq!(moved(&distilled, &adapted, frozen), 0, "stage 3 moves {frozen}");
    }
}

/// Text of the report that `train eval` prints, or of its error.
fn eval(arguments: &[&str]) -> Result<String, String> {
    let output = train(&[&["eval"], arguments].concat());
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Bundle, checkpoint, WiSE-FT and both teachers of a finished run, measured on drawn scenes.
fn a_run_is_measured_beside_its_teachers(recipe: &str, run: &Path, folder: &Path) {
    let (tar, json) = (folder.join("scenes.tar"), folder.join("report.json"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (tar, markdown) = (path(&tar), path(&folder.join("report.md")));
    assert!(
        train(&["synth", "--out", &tar, "--count", "60", "--side", "64"])
            .status
            .success()
    );
    let (bundle, adapt, distill) = (
        path(&run.join("bundle")),
        path(&run.join("adapt.safetensors")),
        path(&run.join("distill.safetensors")),
    );
    let models = ["--bundle", &bundle, "--recipe", recipe, "--run", run.to_str().unwrap()];
    let data = ["--data", &tar, "--part", "all", "--limit", "3"];
    let printed = eval(
        &[
            &models[..],
            &["--checkpoint", &adapt, "--between", &adapt, &adapt, "--alpha", "0.5"],
            &data,
            &["--json", json.to_str().unwrap(), "--markdown", &markdown],
        ]
        .concat(),
    )
    .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(printed.trim(), std::fs::read_to_string(markdown).unwrap().trim());
    let columns: Vec<&str> = report["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["column"].as_str().unwrap())
        .collect();
    assert_eq!(columns[1..], ["adapt", "WiSE-FT 0.5", "SAM teacher", "CLIP teacher"]);
    let inputs: Vec<&str> = report["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["input"].as_str().unwrap())
        .collect();
    assert_eq!((inputs[0], inputs[3]), ("96 px, letterboxed", "64 px, letterboxed"));
    let section = |title: &str| {
        let found = report["sections"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["title"].as_str().unwrap().starts_with(title));
        found.unwrap_or_else(|| panic!("{title}: {printed}"))
    };
    for title in [
        "Retrieval",
        "Masks from",
        "Forgetting",
        "Zero-shot semantic",
        "SAM and CLIP as",
        "Linear",
        "Presence",
        "Cost",
    ] {
        assert!(!section(title)["protocol"].as_str().unwrap().is_empty(), "{title}");
    }
    let values = |title: &str, row: usize| section(title)["rows"][row]["values"].as_array().unwrap().clone();
    let masks = values("Masks from", 0);
    assert_eq!(
        (masks.len(), &masks[0], &masks[1]),
        (4, &masks[1], &masks[2]),
        "bundle, checkpoint and the middle are one"
    );
    let (own, teacher) = (masks[0].as_f64().unwrap(), masks[3].as_f64().unwrap());
    assert!((values("Forgetting", 0)[0].as_f64().unwrap() - (own - teacher)).abs() < 1e-6);

    let sizes = ["--bundle", &bundle, "--side", "64", "96", "--measure", "instance"];
    let printed = eval(&[&sizes[..], &data].concat()).unwrap();
    let place = |text: &str| printed.find(text).unwrap_or_else(|| panic!("{text}: {printed}"));
    assert!(place("64 px, letterboxed") < place("96 px, letterboxed"));
    let stretched = ["--bundle", &bundle, "--stretch", "--measure", "semantic", "retrieval"];
    let printed = eval(&[&stretched[..], &data].concat()).unwrap();
    assert!(
        printed.contains("96 px, stretched")
            && printed.contains("see all of it, stretched")
            && !printed.contains("letterboxed"),
        "{printed}"
    );
    let error = eval(&[&["--bundle", &bundle, "--side", "80"], &data[..]].concat()).unwrap_err();
    assert!(error.contains("no size of 80 pixels, it has 96, 64"), "{error}");
    let error = eval(&[&["--recipe", recipe, "--between", &distill, &adapt], &data[..]].concat()).unwrap_err();
    assert!(
        error.contains("the second checkpoint does not fit") && error.contains("pos_embed"),
        "{error}"
    );
    let error = eval(&data).unwrap_err();
    assert!(error.contains("no model; give --bundle DIR"), "{error}");
    let error = eval(&[
        "--bundle",
        &bundle,
        "--data",
        folder.to_str().unwrap(),
        "--layout",
        "voc",
    ])
    .unwrap_err();
    assert!(error.contains("ImageSets/Segmentation/val.txt"), "{error}");
}

#[test]
fn a_full_disk_ends_the_run_with_one_error_and_the_run_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let arguments = on_scenes("distill", &recipe, &out);
    let teachers = on_scenes("teachers", &recipe, &out);
    assert!(train(&teachers).status.success());
    let kept = std::fs::read(out.join("sam_teacher.safetensors")).unwrap();

    // No file may grow beyond 16 KiB, and writing more is an error instead of a signal.
    let full = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_train"),
        ])
        .args(arguments)
        .output()
        .unwrap();
    assert!(!full.status.success());
    let said = text(&full.stderr);
    assert!(said.contains("probe") && said.contains("File too large"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(std::fs::read(out.join("sam_teacher.safetensors")).unwrap(), kept);
    let left = std::fs::read_dir(&out)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.ends_with(".safetensors")).collect();
    assert_eq!(left.len(), 2, "the teachers, and nothing half written: {left:?}");

    let output = train(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(out.join("distill.safetensors").is_file());
}

#[test]
fn a_recipe_with_an_unknown_key_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_recipe(folder.path());
    let recipe = std::fs::read_to_string(&path).unwrap().replace("merges = ", "merge = ");
    std::fs::write(&path, recipe).unwrap();
    let output = train(&on_scenes("run", &path, folder.path()));
    let message = text(&output.stderr);
    assert!(
        !output.status.success() && message.contains("unknown field `merge`"),
        "{message}"
    );
}

#[test]
fn impossible_recipe_values_name_the_key_and_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_recipe(folder.path());
    let recipe = std::fs::read_to_string(&path).unwrap();
    for (from, to, key) in [
        (
            "patch_size = 16",
            "patch_size = 14",
            "sam.patch_size: found 14, expected 16",
        ),
        (
            "num_heads = 2",
            "num_heads = 3",
            "sam.num_heads: found 3, expected a divisor of embed_dim 32",
        ),
        (
            "vocab_size = 4096",
            "vocab_size = 4000",
            "text.vocab_size: found 4000, expected merges + 514 = 4096",
        ),
    ] {
        assert!(recipe.contains(from), "{from}");
        std::fs::write(&path, recipe.replacen(from, to, 1)).unwrap();
        let message = Recipe::read(&path).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn import_checks_a_published_checkpoint_and_stores_it() {
    let folder = tempfile::tempdir().unwrap();
    let golden = |name: &str| format!("{}/tests/data/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let out = folder.path().join("sam.safetensors");
    let (checkpoint, config) = (golden("sam_tiny.pth"), golden("sam_tiny.json"));
    let output = train(&[
        "import",
        "--sam",
        &checkpoint,
        "--config",
        &config,
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        weights::read(&out).unwrap(),
        weights::read(Path::new(&checkpoint)).unwrap()
    );
    for (wanted, expected) in [
        (
            &[][..],
            "[1, 12, 12, 48]; expected a checkpoint of SAM vit_b, vit_l, vit_h",
        ),
        (&["--arch", "vit_b"][..], "does not fit the model"),
        (
            &["--arch", "vit_x"][..],
            "found \"vit_x\", expected one of vit_b, vit_l, vit_h",
        ),
    ] {
        let refused = train(&[&["import", "--sam", &checkpoint], wanted].concat());
        let message = text(&refused.stderr);
        assert!(!refused.status.success() && message.contains(expected), "{message}");
    }
}

/// The first step of AdamW moves every weight with a gradient by its learning rate, whatever the gradient.
#[test]
fn backbone_and_sam_head_move_at_a_tenth_of_the_rate_in_stage_2() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut recipe = Recipe::read(&path).unwrap();
    let distill = &mut recipe.distill;
    (distill.steps, distill.warmup, distill.learning_rate) = (1, 1, 1e-3);
    (distill.backbone_rate, recipe.optimizer.weight_decay) = (0.1, 0.0);
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let output = train(&on_scenes("distill", &path, &out));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |stage: &str| model_weights(weights::read(&out.join(format!("{stage}.safetensors"))).unwrap());
    let (before, after) = (read("probe"), read("distill"));
    for (prefix, expected) in [
        ("clip_head.", 1e-3),
        ("image_encoder.", 1e-4),
        ("mask_decoder.", 1e-4),
        ("prompt_encoder.", 0.0),
        ("transformer.", 0.0),
    ] {
        let names = before.keys().filter(|name| name.starts_with(prefix));
        let values = names.flat_map(|name| before[name].data.iter().zip(&after[name].data));
        let moved = values.map(|(before, after)| (after - before).abs()).fold(0.0, f32::max);
        // Weights near 1 are rounded by 6e-8, 0.06 % of the smaller step.
        assert!((moved - expected).abs() <= 5e-3 * expected, "{prefix} moves by {moved}");
    }
}

/// Data-parallel training; `mpirun` is Open MPI's.
#[cfg(feature = "mpi")]
mod several_processes {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn two_processes(stage: &str, recipe: &Path, out: &Path) -> Command {
        let mut command = Command::new("mpirun");
        command
            .args([
                "--allow-run-as-root",
                "--oversubscribe",
                "-n",
                "2",
                env!("CARGO_BIN_EXE_train"),
                stage,
                "--mpi",
            ])
            .args(["--recipe", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run_alone(stage: &str, recipe: &Path, out: &Path) {
        let arguments = on_scenes(stage, recipe, out);
        let output = train(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn checked(output: &Output) {
        assert!(
            output.status.success(),
            "{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }

    fn model(out: &Path, stage: &str) -> Weights {
        model_weights(weights::read(&out.join(format!("{stage}.safetensors"))).unwrap())
    }

    #[test]
    fn two_processes_end_with_the_weights_of_one_with_twice_the_batch() {
        let folder = tempfile::tempdir().unwrap();
        let twice = changed(folder.path(), "twice.toml", |recipe| {
            let adapt = &mut recipe.adapt.as_mut().unwrap().stage;
            for stage in [&mut recipe.probe, &mut recipe.distill, adapt] {
                stage.accumulate = 2;
            }
        });
        let once = changed(folder.path(), "once.toml", |_| ());
        let (alone, both) = (folder.path().join("alone"), folder.path().join("both"));
        run_alone("adapt", &twice, &alone);

        let early = two_processes("adapt", &once, &both).output().unwrap();
        assert!(!early.status.success());
        assert!(
            text(&early.stderr).contains("run `train teachers` first"),
            "{}",
            text(&early.stderr)
        );
        run_alone("teachers", &once, &both);
        checked(&two_processes("adapt", &once, &both).output().unwrap());
        for stage in ["probe", "distill", "adapt"] {
            assert_eq!(model(&alone, stage), model(&both, stage), "{stage}");
        }
    }

    /// Kills one of the two processes once there is a checkpoint.
    fn kill_one(mpirun: &mut Child, checkpoint: &Path) {
        let patience = Instant::now() + Duration::from_secs(120);
        while !checkpoint.exists() {
            assert!(Instant::now() < patience, "no checkpoint after two minutes");
            assert!(
                mpirun.try_wait().unwrap().is_none(),
                "ended before its first checkpoint"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
        let children = std::fs::read_to_string(children).unwrap();
        let victim = children.split_whitespace().last().expect("mpirun has children");
        let killed = Command::new("kill").args(["-9", victim]).status().unwrap();
        assert!(killed.success());
    }

    #[test]
    fn a_killed_process_ends_the_run_with_an_error_and_a_checkpoint_to_go_on_from() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = changed(folder.path(), "long.toml", |recipe| recipe.distill.steps = 400);
        let (stopped, whole) = (folder.path().join("stopped"), folder.path().join("whole"));
        for out in [&stopped, &whole] {
            run_alone("teachers", &recipe, out);
        }
        let mut mpirun = two_processes("distill", &recipe, &stopped).spawn().unwrap();
        kill_one(&mut mpirun, &stopped.join("distill.safetensors"));
        let output = mpirun.wait_with_output().unwrap();
        assert!(!output.status.success());
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("exited on signal 9"), "{said}");

        let metadata = weights::read_metadata(&stopped.join("distill.safetensors")).unwrap();
        let step: u64 = metadata["step"].parse().unwrap();
        assert!((100..400).contains(&step), "checkpoint of step {step}");
        for out in [&stopped, &whole] {
            checked(&two_processes("distill", &recipe, out).output().unwrap());
        }
        assert_eq!(model(&stopped, "distill"), model(&whole, "distill"));
    }
}

/// The losses of a stage's curve.
fn losses(out: &Path, stage: &str) -> Vec<(String, f32)> {
    let curve = std::fs::read_to_string(out.join(format!("{stage}.curve.csv"))).unwrap();
    let lines = curve.lines().skip(1).map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[1].to_owned(), fields[2].parse().unwrap())
    });
    lines.collect()
}

#[test]
fn a_run_in_bf16_loses_about_what_one_in_fp32_loses() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let run = |precision| {
        let mut changed = Recipe::read(&recipe).unwrap();
        changed.precision = precision;
        std::fs::write(&recipe, toml::to_string(&changed).unwrap()).unwrap();
        let out = folder.path().join(precision.to_string());
        let output = train(&on_scenes("run", &recipe, &out));
        assert!(output.status.success(), "{precision}: {}", text(&output.stderr));
        Manifest::read(&out.join("bundle")).unwrap();
        out
    };
    let [full, rounded] = [Precision::Fp32, Precision::Bf16].map(run);
    for stage in ["sam_teacher", "clip_teacher", "probe", "distill", "adapt", "words"] {
        let (expected, found) = (losses(&full, stage), losses(&rounded, stage));
        assert_eq!(expected.len(), found.len(), "{stage}");
        assert_ne!(expected, found, "{stage}: the same to the last digit");
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            assert!(
                (expected - found).abs() < 0.1 * expected.abs() + 0.02,
                "{stage}, {name}: {found} in bf16, {expected} in fp32"
            );
        }
    }
    // What was begun in one precision does not go on in another.
    let output = train(&on_scenes("run", &recipe, &full));
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("precision"), "{said}");
}

#[test]
fn a_device_refuses_a_precision_that_it_lacks_before_anything_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let whole = std::fs::read_to_string(&recipe).unwrap();
    let mut cases = vec![("cpu", "fp16", "found \"fp16\", expected fp32 or bf16")];
    if cfg!(feature = "train-vulkan") {
        cases.push(("gpu:software", "bf16", "found \"bf16\", expected fp32 or fp16"));
    }
    cases.push((
        "cpu",
        "int8",
        "unknown variant `int8`, expected one of `fp32`, `bf16`, `fp16`",
    ));
    for (device, precision, expected) in cases {
        std::fs::write(&recipe, format!("precision = \"{precision}\"\n{whole}")).unwrap();
        let out = folder.path().join("run");
        let output = train_on(device, "run", &recipe, &out);
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && said.contains(expected) && !said.contains("panicked"),
            "{said}"
        );
        assert!(!out.exists(), "{device}, {precision}: nothing was begun");
    }
}

/// The backend that trains on GPUs, by a Vulkan driver that computes on the processor.
#[cfg(feature = "train-vulkan")]
mod on_a_gpu {
    use super::*;

    #[test]
    fn a_run_on_a_gpu_loses_what_one_on_the_processor_loses_and_ends_with_a_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = tiny_recipe(folder.path());
        let mut changed = Recipe::read(&recipe).unwrap();
        changed.sharpen = Some(Sharpen {
            detail: vec![8],
            stage: changed.distill.clone(),
        });
        std::fs::write(&recipe, toml::to_string(&changed).unwrap()).unwrap();
        let (processor, gpu) = (folder.path().join("processor"), folder.path().join("gpu"));
        for (out, device) in [(&processor, "cpu"), (&gpu, "gpu:software")] {
            let output = train_on(device, "run", &recipe, out);
            assert!(output.status.success(), "{device}: {}", text(&output.stderr));
            Manifest::read(&out.join("bundle")).unwrap();
        }
        // What `[sharpen]` asks depends on which scores pass a threshold.
        for stage in ["sam_teacher", "clip_teacher", "probe", "distill", "adapt", "words"] {
            let (expected, found) = (losses(&processor, stage), losses(&gpu, stage));
            assert_eq!(expected.len(), found.len(), "{stage}");
            for ((name, expected), (_, found)) in expected.iter().zip(&found) {
                // After a step of AdamW small gradients decide by their signs: it is not the same to the last digit.
                assert!(
                    (expected - found).abs() < 0.02 * expected.abs() + 0.01,
                    "{stage}, {name}: {found}, on the processor {expected}"
                );
            }
        }
    }

    #[test]
    fn two_runs_on_a_gpu_end_with_the_same_weights() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = tiny_recipe(folder.path());
        let weights = ["once", "again"].map(|name| {
            let out = folder.path().join(name);
            let output = train_on("gpu:software", "teachers", &recipe, &out);
            assert!(output.status.success(), "{}", text(&output.stderr));
            ["sam_teacher", "clip_teacher"].map(|teacher| {
                let checkpoint = out.join(format!("{teacher}.safetensors"));
                weights::read(&checkpoint).unwrap()
            })
        });
        assert!(
            weights[0] == weights[1],
            "moments and weights are the same to the last bit"
        );
    }

    #[test]
    fn a_gpu_that_is_not_there_is_one_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
        let output = train_on("gpu:99", "run", &recipe, &out);
        let error = text(&output.stderr);
        assert!(
            !output.status.success()
                && error.contains("expected GPU 99, counted from 0")
                && !error.contains("panicked"),
            "{error}"
        );
    }
}

#[cfg(not(feature = "train-vulkan"))]
#[test]
fn a_gpu_needs_a_build_for_gpus() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let output = train_on("gpu", "run", &recipe, &out);
    let error = text(&output.stderr);
    assert!(
        !output.status.success() && error.contains("--features train-vulkan"),
        "{error}"
    );
    assert!(!out.exists(), "nothing was begun");
}
