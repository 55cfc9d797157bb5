//! ImageNet's folders: one per class, named by synset or by the class itself; each photo gets one label.
//!
//! Synset names come from `synset_words.txt`, `LOC_synset_mapping.txt` or `names.txt` (`n01440764 tench, Tinca tinca`
//! per line) in the folder or beside it; the first of several synonyms counts. A folder without a line is named by
//! itself, `_` read as a space.

use std::collections::HashMap;
use std::path::Path;

use super::{Found, entries, file_name, first_name, is_photo, text, wrong};
use crate::train::dataset::raw::{RawSample, Stored, stem};
use crate::train::dataset::{DatasetError, SampleInfo};

/// Files of names.
const LISTS: [&str; 3] = ["synset_words.txt", "LOC_synset_mapping.txt", "names.txt"];

pub(super) fn open(folder: &Path) -> Result<Found, DatasetError> {
    let names = names(folder)?;
    let source = file_name(folder);
    let mut found = Found::default();
    for class in entries(folder)?.into_iter().filter(|p| p.is_dir()) {
        let id = file_name(&class);
        let label = names.get(&id).cloned().unwrap_or_else(|| id.replace('_', " "));
        for photo in entries(&class)?.into_iter().filter(|p| is_photo(p)) {
            found.samples.push(RawSample {
                key: format!("{id}/{}", stem(&photo)),
                origin: folder.into(),
                info: SampleInfo {
                    source: source.clone(),
                    labels: vec![label.clone()],
                    ..SampleInfo::default()
                },
                photo: Stored::File(photo),
                mask: None,
                segments: None,
            });
        }
    }
    Ok(found)
}

/// Names by folder.
fn names(folder: &Path) -> Result<HashMap<String, String>, DatasetError> {
    let places = [Some(folder), folder.parent()].into_iter().flatten();
    let mut lists = places.flat_map(|place| LISTS.map(|list| place.join(list)));
    let Some(list) = lists.find(|list| list.is_file()) else {
        return Ok(HashMap::new());
    };
    let lines = text(&list)?;
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let (id, name) = line.trim().split_once(char::is_whitespace).ok_or_else(|| {
                wrong(
                    &list,
                    format!("line {}: found {line:?}, expected a folder and its name", number + 1),
                )
            })?;
            Ok((id.to_owned(), first_name(name)))
        })
        .collect()
}
