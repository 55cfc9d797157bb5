//! Words and pictures in, masks out: the whole pipeline over a bundle that answers by colour.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod tiny;

use std::path::Path;

use image::{Rgb, RgbImage};
use samclip::capture::read_picture;
use samclip::clock::SystemClock;
use samclip::daemon::pipeline::{Pipeline, QuerySpec};
use samclip::daemon::report::{MaskOutput, query_mask};
use samclip::daemon::segment::{SegmentOptions, segment};
use samclip::message::payload::FrameMessage;
use samclip::runtime::{Backend, RuntimeOptions};
use samclip::vision::geometry::FrameSize;
use samclip::vision::mask::BinaryMask;
use samclip::vision::rle;

const WIDTH: u32 = 323;
const HEIGHT: u32 = 241;

fn is_red(x: u32, y: u32) -> bool {
    (40..150).contains(&x) && (60..200).contains(&y)
}

fn is_blue(x: u32, y: u32) -> bool {
    (215..320).contains(&x) && (5..200).contains(&y)
}

/// A red and a blue rectangle on yellow.
fn picture() -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| match (is_red(x, y), is_blue(x, y)) {
        (true, _) => Rgb([230, 20, 20]),
        (_, true) => Rgb([20, 20, 230]),
        _ => Rgb([230, 230, 20]),
    })
}

fn truth(inside: impl Fn(u32, u32) -> bool) -> BinaryMask {
    let size = FrameSize::new(WIDTH, HEIGHT).unwrap();
    BinaryMask::from_pixels(size, (0..WIDTH * HEIGHT).map(|i| inside(i % WIDTH, i / WIDTH)))
}

struct Bench {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path());
    picture().save(dir.path().join("shapes.png")).unwrap();
    let options = RuntimeOptions {
        backend: Backend::Tract,
        threads: 1,
        ..RuntimeOptions::default()
    };
    let pipeline = Pipeline::open(dir.path(), &options).unwrap();
    Bench { dir, pipeline }
}

fn options(dir: &Path, pictures: &[&str], queries: &[&str]) -> SegmentOptions {
    SegmentOptions {
        pictures: pictures.iter().map(|p| dir.join(p)).collect(),
        queries: queries.iter().map(|&q| q.into()).collect(),
        out: dir.join("out"),
        threshold: None,
        masks: MaskOutput {
            rle: true,
            ..MaskOutput::default()
        },
    }
}

#[test]
fn every_query_marks_its_own_shape_and_absent_ones_mark_nothing() {
    let Bench { dir, mut pipeline } = bench();
    let queries = ["red", "green", "blue"].map(QuerySpec::from_text);
    pipeline.set_queries(&queries).unwrap();
    let found = pipeline
        .run(&read_picture(&dir.path().join("shapes.png")).unwrap())
        .unwrap();
    // Cells of 16 model pixels are 54 frame pixels wide: borders are that coarse here.
    let ious = [
        query_mask(&found, 0).iou(&truth(is_red)),
        query_mask(&found, 2).iou(&truth(is_blue)),
    ];
    assert!(ious.iter().all(|&iou| iou > 0.7), "{ious:?}");
    assert_eq!(query_mask(&found, 1).area(), 0);
    assert!(found.best[1] < 0.1 && found.best[0] > 0.9, "{:?}", found.best);
    assert_eq!(found.masks.len(), 2);
}

#[test]
fn segment_writes_pictures_masks_json_and_a_table() {
    let Bench { dir, mut pipeline } = bench();
    let mut table = Vec::new();
    let options = options(dir.path(), &["shapes.png", "shapes.png"], &["red", "a blue thing"]);
    segment(&mut pipeline, &options, &SystemClock::new(), &mut table).unwrap();
    let out = dir.path().join("out");
    let mut files: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files[..4],
        [
            "shapes-2.a-blue-thing.mask.png",
            "shapes-2.annotated.png",
            "shapes-2.json",
            "shapes-2.red.mask.png"
        ]
    );
    assert_eq!(files.len(), 8);
    let message = FrameMessage::decode(&std::fs::read(out.join("shapes.json")).unwrap()).unwrap();
    assert_eq!((message.size, message.detections.len()), ([WIDTH, HEIGHT], 2));
    let red = message.detections.iter().find(|d| d.query == "red").unwrap();
    let decoded = rle::decode(
        &red.rle.as_ref().unwrap().counts,
        FrameSize::new(WIDTH, HEIGHT).unwrap(),
    )
    .unwrap();
    assert_eq!(decoded.area() as u64, red.area);
    let mask = image::open(out.join("shapes.red.mask.png")).unwrap().into_luma8();
    assert!(
        mask.enumerate_pixels()
            .all(|(x, y, p)| (p.0[0] == 255) == decoded.get(x as usize, y as usize))
    );
    let table = String::from_utf8(table).unwrap();
    assert!(
        table.contains("red") && table.contains("a-blue-thing") && table.contains("tract-cpu"),
        "{table}"
    );
}

#[test]
fn a_picture_cut_short_is_one_error_and_does_not_stop_the_others() {
    let Bench { dir, mut pipeline } = bench();
    let whole = std::fs::read(dir.path().join("shapes.png")).unwrap();
    std::fs::write(dir.path().join("half.png"), &whole[..whole.len() / 2]).unwrap();
    let options = options(dir.path(), &["half.png", "shapes.png"], &["red"]);
    let error = segment(&mut pipeline, &options, &SystemClock::new(), &mut Vec::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("half.png") && error.contains("cut short") && error.lines().count() == 1,
        "{error}"
    );
    assert!(dir.path().join("out/shapes.annotated.png").exists());
}

#[test]
fn a_query_of_ten_thousand_characters_is_refused_and_the_old_queries_stay() {
    let Bench { mut pipeline, .. } = bench();
    pipeline.set_queries(&[QuerySpec::from_text("red")]).unwrap();
    let error = pipeline
        .set_queries(&[QuerySpec::from_text(&"red ".repeat(2500))])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("10000") && error.contains("1000") && error.len() < 300,
        "{error}"
    );
    assert!(
        pipeline
            .set_queries(&[QuerySpec::from_text("  ")])
            .unwrap_err()
            .to_string()
            .contains("empty")
    );
    assert_eq!(pipeline.queries()[0].id, "red");
}

#[test]
fn an_impossible_threshold_is_refused() {
    let Bench { mut pipeline, .. } = bench();
    for threshold in [0.0, 1.0, -3.0, f32::NAN] {
        let spec = QuerySpec {
            threshold: Some(threshold),
            ..QuerySpec::from_text("red")
        };
        assert!(
            pipeline
                .set_queries(&[spec])
                .unwrap_err()
                .to_string()
                .contains("between 0 and 1")
        );
    }
}

#[test]
fn a_bundle_with_one_byte_flipped_is_refused_by_name() {
    let Bench { dir, .. } = bench();
    let path = dir.path().join("encoder.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let options = RuntimeOptions {
        backend: Backend::Tract,
        ..RuntimeOptions::default()
    };
    let error = Pipeline::open(dir.path(), &options).err().unwrap().to_string();
    assert!(error.contains("encoder.onnx") && error.contains("SHA-256"), "{error}");
}
