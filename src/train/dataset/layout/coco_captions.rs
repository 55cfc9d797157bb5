//! COCO's captions: `captions_SET.json` beside `instances_SET.json`, sentences by photo; and Karpathy's sets.
//!
//! Most photos have five, a few have more: the first [`MOST`] of the list count, as in published figures of retrieval.
//! Those are of the 5000 photos of Karpathy's `test`, which `dataset_coco.json` lists with their sentences.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Found, text, wrong};
use crate::train::dataset::raw::{RawSample, Stored, stem};
use crate::train::dataset::{DatasetError, SampleInfo};

/// Karpathy's list.
pub(super) const SPLITS: &str = "dataset_coco.json";

/// Karpathy's sets; COCO's own end with a year.
const SETS: [&str; 4] = ["train", "restval", "val", "test"];

/// Most captions of a photo.
const MOST: usize = 5;

#[derive(Deserialize)]
struct File {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: String,
}

/// Captions by photo, in the order of the list; none without a list.
pub(super) fn read(list: &Path) -> Result<HashMap<u64, Vec<String>>, DatasetError> {
    let mut captions: HashMap<u64, Vec<String>> = HashMap::new();
    if !list.is_file() {
        return Ok(captions);
    }
    let file: File = serde_json::from_str(&text(list)?).map_err(|error| wrong(list, error.to_string()))?;
    for Annotation { image_id, caption } in file.annotations {
        let own = captions.entry(image_id).or_default();
        if own.len() < MOST {
            own.push(caption.trim().to_owned());
        }
    }
    Ok(captions)
}

#[derive(Deserialize)]
struct Splits {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    /// Folder of the photo.
    filepath: String,
    filename: String,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// Karpathy's list where `set` is one of his and the list is in `folder` or its `annotations`.
pub(super) fn splits(folder: &Path, set: Option<&str>) -> Option<PathBuf> {
    set.filter(|set| SETS.contains(set))?;
    let places = [folder.join(SPLITS), folder.join("annotations").join(SPLITS)];
    places.into_iter().find(|list| list.is_file())
}

/// Photos of one of Karpathy's sets with their captions.
pub(super) fn open(folder: &Path, list: &Path, set: Option<&str>, source: &str) -> Result<Found, DatasetError> {
    let splits: Splits = serde_json::from_str(&text(list)?).map_err(|error| wrong(list, error.to_string()))?;
    let own = splits
        .images
        .into_iter()
        .filter(|image| Some(image.split.as_str()) == set);
    // Only the names count: a list must not reach outside.
    let name = |path: &str| Path::new(path).file_name().map(PathBuf::from).unwrap_or_default();
    let sample = |image: Image| {
        let photo = folder.join(name(&image.filepath)).join(name(&image.filename));
        let sentences = image.sentences.into_iter().take(MOST);
        RawSample {
            key: stem(&photo),
            origin: list.into(),
            info: SampleInfo {
                source: source.into(),
                captions: sentences.map(|sentence| sentence.raw.trim().to_owned()).collect(),
                ..SampleInfo::default()
            },
            photo: Stored::File(photo),
            mask: None,
            segments: None,
        }
    };
    Ok(Found {
        samples: own.map(sample).collect(),
        ..Found::default()
    })
}
