//! SA-1B: `sa_123.jpg` with `sa_123.json`, whose `annotations[].segmentation` are COCO run-length codes without names. The
//! JSON is read when the sample is decoded.

use std::path::Path;

use serde::Deserialize;

use super::{Found, entries, is_photo};
use crate::train::dataset::raw::{RawSample, SegmentSource, Stored, stem};
use crate::train::dataset::{ClassNames, DatasetError, Outline, SampleInfo, Shape};

#[derive(Deserialize)]
struct File {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    segmentation: Outline,
}

pub(super) fn open(folder: &Path) -> Result<Found, DatasetError> {
    let mut found = Found::default();
    for list in entries(folder)?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
    {
        let photos = ["jpg", "jpeg", "png"].map(|extension| list.with_extension(extension));
        let photo = photos.iter().find(|p| is_photo(p) && p.is_file()).unwrap_or(&photos[0]);
        found.samples.push(RawSample {
            key: stem(&list),
            origin: folder.into(),
            info: SampleInfo {
                source: "sa-1b".into(),
                ..SampleInfo::default()
            },
            photo: Stored::File(photo.clone()),
            mask: None,
            segments: Some(SegmentSource::SegmentAnything(Stored::File(list))),
        });
    }
    Ok(found)
}

/// The segments of one photo; what is wrong with the file otherwise.
pub(in crate::train::dataset) fn shapes(list: &Stored) -> Result<Vec<Shape>, String> {
    let file: File = serde_json::from_slice(&list.read()?).map_err(|error| error.to_string())?;
    let shape = |annotation: Annotation| Shape {
        class: ClassNames::UNLABELLED,
        crowd: false,
        outline: annotation.segmentation,
    };
    Ok(file.annotations.into_iter().map(shape).collect())
}
