//! `samclipd segment`: the pipeline once per picture; annotated PNG, 1-bit mask per query, JSON, a printed table.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::capture::read_picture;
use crate::clock::Clock;
use crate::vision::frame::CaptureTime;

use super::pictures::{write_annotated, write_file};
use super::pipeline::{Pipeline, QuerySpec};
use super::report::{MaskOutput, TABLE_HEADER, frame_message, mask_png, query_mask, table_rows};

/// What to do.
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    /// Pictures, PNG or JPEG.
    pub pictures: Vec<PathBuf>,
    /// Texts to look for.
    pub queries: Vec<String>,
    /// Directory for the results; made if it is missing.
    pub out: PathBuf,
    /// Score threshold for all queries, in (0, 1); `None` means the bundle's.
    pub threshold: Option<f32>,
    /// How masks are written into the JSON.
    pub masks: MaskOutput,
}

/// A query for every text, each with an id of its own: repeated ids, and those that are `taken`, get a number.
pub(super) fn specs(texts: &[String], threshold: Option<f32>, taken: &[&str]) -> Vec<QuerySpec> {
    let mut used: HashSet<String> = taken.iter().map(|&id| id.to_owned()).collect();
    let unique = |text: &String| {
        let mut spec = QuerySpec {
            threshold,
            ..QuerySpec::from_text(text)
        };
        let base = spec.id.clone();
        let mut number = 2;
        while !used.insert(spec.id.clone()) {
            spec.id = format!("{base}-{number}");
            number += 1;
        }
        spec
    };
    texts.iter().map(unique).collect()
}

/// File names of the results of one picture: its stem, with a number if an earlier one had the same.
fn stem(picture: &Path, used: &mut HashSet<String>) -> String {
    let base = picture
        .file_stem()
        .map_or_else(|| "picture".into(), |s| s.to_string_lossy().into_owned());
    let mut name = base.clone();
    let mut number = 2;
    while !used.insert(name.clone()) {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

/// Segments every picture; a picture that cannot be read does not stop the others.
///
/// For `photo.jpg` and query `person`: `photo.annotated.png`, `photo.person.mask.png`, `photo.json`.
///
/// # Errors
/// A query that is refused, a result that cannot be written; at the end, the pictures that could not be read.
pub fn segment(
    pipeline: &mut Pipeline,
    options: &SegmentOptions,
    clock: &dyn Clock,
    table: &mut dyn Write,
) -> anyhow::Result<()> {
    if options.queries.is_empty() {
        bail!("no query; give at least one with --query TEXT");
    }
    pipeline.set_queries(&specs(&options.queries, options.threshold, &[]))?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    writeln!(table, "model {}, provider {}", pipeline.model(), pipeline.provider())?;
    writeln!(table, "{TABLE_HEADER}")?;
    let (mut unreadable, mut used) = (Vec::new(), HashSet::new());
    for picture in &options.pictures {
        let mut frame = match read_picture(picture) {
            Ok(frame) => frame,
            Err(error) => {
                unreadable.push(error.to_string());
                continue;
            }
        };
        let now = clock.now();
        frame.captured = CaptureTime {
            monotonic: now.monotonic,
            unix_micros: now.unix_micros,
        };
        let found = pipeline.run(&frame).with_context(|| picture.display().to_string())?;
        let stem = stem(picture, &mut used);
        let path = |suffix: &str| options.out.join(format!("{stem}.{suffix}"));
        write_annotated(&path("annotated.png"), pipeline, &found)?;
        for (query, spec) in pipeline.queries().iter().enumerate() {
            let mask = query_mask(&found, query);
            write_file(&path(&format!("{}.mask.png", spec.id)), &mask_png(&mask)?)?;
        }
        let message = frame_message("picture", pipeline, &found, clock.now(), options.masks, &[])?;
        write_file(&path("json"), &serde_json::to_vec_pretty(&message)?)?;
        write!(table, "{}", table_rows(&stem, pipeline, &found))?;
    }
    if unreadable.len() < options.pictures.len() {
        writeln!(table, "results are in {}", options.out.display())?;
    }
    if !unreadable.is_empty() {
        bail!("{}", unreadable.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_an_id_of_its_own_that_is_not_taken() {
        let texts = ["Cat", "cat", "frame", "frame 2", "!"].map(str::to_owned);
        let ids: Vec<String> = specs(&texts, None, &["frame", "query"])
            .into_iter()
            .map(|spec| spec.id)
            .collect();
        assert_eq!(ids, ["cat", "cat-2", "frame-2", "frame-2-2", "query-2"]);
    }
}
