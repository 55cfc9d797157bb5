//! COCO's captions: `captions_SET.json` beside `instances_SET.json`, sentences by photo.
//!
//! Most photos have five, a few have more: the first [`MOST`] of the list count, as in published figures of retrieval.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{text, wrong};
use crate::train::dataset::DatasetError;

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
