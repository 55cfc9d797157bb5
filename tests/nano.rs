//! The bundle that ships with the program: whole, small, and right about the sample pictures.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::{Path, PathBuf};

use samclip::capture::read_picture;
use samclip::contract::Manifest;
use samclip::daemon::pipeline::{Pipeline, QuerySpec};
use samclip::runtime::{Backend, RuntimeOptions};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

#[test]
fn the_bundle_is_whole_and_at_most_30_megabytes() {
    let bundle = Manifest::read(&models().join("nano")).unwrap();
    let files = std::fs::read_dir(&bundle.dir)
        .unwrap()
        .map(|f| f.unwrap().metadata().unwrap().len());
    assert!(files.sum::<u64>() < 30_000_000);
    assert!(
        !bundle.manifest.source.is_empty(),
        "a bundle says what it was made from"
    );
}

#[test]
fn person_marks_the_astronaut_and_not_the_wall() {
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    let mut pipeline = Pipeline::open(&models().join("nano"), &options).unwrap();
    pipeline.set_queries(&[QuerySpec::from_text("person")]).unwrap();
    let found = pipeline
        .run(&read_picture(&models().join("samples/astronaut.jpg")).unwrap())
        .unwrap();
    let covered = |x: usize, y: usize| found.masks.iter().any(|m| m.mask.get(x, y));
    for (x, y, part) in [(215, 150, "face"), (180, 300, "chest"), (230, 300, "suit")] {
        assert!(covered(x, y), "the {part} at {x},{y} is missed");
    }
    for (x, y, part) in [
        (350, 60, "wall"),
        (340, 120, "wall beside the shuttle"),
        (120, 60, "wall beside the flag"),
    ] {
        assert!(!covered(x, y), "the {part} at {x},{y} is marked as person");
    }
}
