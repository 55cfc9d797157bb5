//! Text embeddings on disk: what they save, and that nothing which happens to them stops a query.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::path::{Path, PathBuf};

use samclip::contract::{Bundle, Manifest};
use samclip::daemon::pipeline::{Pipeline, QuerySpec};
use samclip::daemon::words::{WordCounts, Words};
use samclip::runtime::{self, Backend, RuntimeOptions};

struct Bench {
    dir: tempfile::TempDir,
    bundle: Bundle,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = tiny::write(dir.path());
        Self { dir, bundle }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn words(&self, cache: Option<&Path>) -> Words {
        let options = RuntimeOptions {
            backend: Backend::Tract,
            threads: 1,
            ..RuntimeOptions::default()
        };
        let engine = runtime::open(&self.bundle, &options).unwrap();
        Words::new(&self.bundle, engine.text, cache).unwrap()
    }

    /// All entries of the bundle.
    fn entries(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.cache().join("text")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }
}

fn counts(computed: usize, cached: usize, lost: usize) -> WordCounts {
    WordCounts { computed, cached, lost }
}

#[test]
fn a_kept_text_needs_no_text_encoder() {
    let bench = Bench::new();
    let mut first = bench.words(Some(&bench.cache()));
    let red = first.embed("red").unwrap();
    assert_eq!(first.counts(), counts(1, 0, 0));
    // The graph cannot be opened any more: whoever opens it fails.
    std::fs::write(bench.dir.path().join("text_encoder.onnx"), "no graph").unwrap();
    let mut second = bench.words(Some(&bench.cache()));
    assert_eq!(second.embed(" red ").unwrap(), red);
    assert_eq!(second.counts(), counts(0, 1, 0));
    let error = second.embed("green").unwrap_err().to_string();
    assert!(error.contains("text_encoder.onnx"), "{error}");
    assert!(
        bench.words(None).embed("red").is_err(),
        "without a cache nothing is kept"
    );
}

#[test]
fn a_text_encoder_that_was_freed_is_loaded_again_for_a_new_text() {
    let bench = Bench::new();
    let mut words = bench.words(None);
    words.embed("red").unwrap();
    words.release();
    words.embed("green").unwrap();
    words.release();
    std::fs::remove_file(bench.dir.path().join("text_encoder.onnx")).unwrap();
    words.embed("red").unwrap();
    assert!(words.embed("blue").is_err(), "it was not freed");
}

#[test]
fn a_damaged_entry_is_computed_again_and_mended() {
    let bench = Bench::new();
    let red = bench.words(Some(&bench.cache())).embed("red").unwrap();
    let entry = bench.entries().pop().unwrap();
    let whole = std::fs::read(&entry).unwrap();
    for damage in [&whole[..whole.len() - 1], b"", b"nonsense"] {
        std::fs::write(&entry, damage).unwrap();
        let mut words = bench.words(Some(&bench.cache()));
        assert_eq!(words.embed("red").unwrap(), red);
        assert_eq!(words.counts(), counts(1, 0, 0));
        assert_eq!(std::fs::read(&entry).unwrap(), whole);
    }
}

#[test]
fn another_bundle_does_not_get_the_embeddings_of_this_one() {
    let mut bench = Bench::new();
    bench.words(Some(&bench.cache())).embed("red").unwrap();
    bench.bundle.hash = "0".repeat(64);
    let mut words = bench.words(Some(&bench.cache()));
    words.embed("red").unwrap();
    assert_eq!(words.counts(), counts(1, 0, 0));
}

#[test]
fn a_directory_that_cannot_be_written_costs_only_the_cache() {
    let bench = Bench::new();
    std::fs::write(bench.cache(), "a file").unwrap();
    let mut words = bench.words(Some(&bench.cache()));
    words.embed("red").unwrap();
    words.embed("green").unwrap();
    words.embed("red").unwrap();
    assert_eq!(words.counts(), counts(2, 0, 2));
}

#[test]
fn a_pipeline_embeds_the_background_once_per_machine() {
    let bench = Bench::new();
    let options = RuntimeOptions {
        backend: Backend::Tract,
        cache: Some(bench.cache()),
        ..RuntimeOptions::default()
    };
    let counted = || {
        let mut pipeline = Pipeline::open(bench.dir.path(), &options).unwrap();
        pipeline
            .set_queries(&["red", "blue"].map(QuerySpec::from_text))
            .unwrap();
        pipeline.word_counts()
    };
    // "yellow" is the background of this bundle.
    assert_eq!(counted(), counts(3, 0, 0));
    assert_eq!(counted(), counts(0, 3, 0));
    assert_eq!(
        Manifest::read(bench.dir.path()).unwrap().manifest.background,
        ["yellow"]
    );
}
