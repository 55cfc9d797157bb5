//! Photos with sentences: Flickr30k's `results_20130124.token` (`1.jpg#0<TAB>sentence`), Kaggle's `results.csv`
//! (`image_name| comment_number| comment`) or `captions.txt` (`image,caption`), photos in a folder beside the list.
//!
//! `@test` and other sets are those of Karpathy's `dataset_flickr30k.json`, which then has to be there. Without a set all photos
//! are measured on; learnt from is `train`, where that file is there.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Found, Purpose, entries, file_name, text, wrong};
use crate::train::dataset::raw::{RawSample, Stored, stem};
use crate::train::dataset::{DatasetError, SampleInfo};

/// Karpathy's splits.
const SPLITS: &str = "dataset_flickr30k.json";

/// Folders of photos, in the order in which they are looked for.
const FOLDERS: [&str; 6] = [
    "flickr30k-images",
    "flickr30k_images",
    "Images",
    "images",
    "Flicker8k_Dataset",
    ".",
];

#[derive(Deserialize)]
struct Splits {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    filename: String,
    split: String,
}

/// The list of captions in a folder.
pub(super) fn list(folder: &Path) -> Option<PathBuf> {
    let here = entries(folder).ok()?;
    let is_list = |path: &&PathBuf| {
        let name = file_name(path);
        name.ends_with(".token") || name == "results.csv" || name == "captions.txt"
    };
    here.iter().find(is_list).cloned()
}

pub(super) fn open(folder: &Path, set: Option<&str>, purpose: Purpose) -> Result<Found, DatasetError> {
    let list = list(folder).ok_or_else(|| {
        wrong(
            folder,
            "holds no list of captions; expected a .token file, results.csv or captions.txt",
        )
    })?;
    let mut captions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (photo, sentence) in read(&list)? {
        captions.entry(photo).or_default().push(sentence);
    }
    let splits = folder.join(SPLITS);
    let learnt = (purpose == Purpose::Learning && splits.is_file()).then_some("train");
    if let Some(set) = set.or(learnt) {
        let kept = photos_of(&splits, set)?;
        captions.retain(|photo, _| kept.contains(photo));
    }
    let photos = FOLDERS.map(|name| folder.join(name)).into_iter().find(|f| f.is_dir());
    let photos = photos.unwrap_or_else(|| folder.into());
    let sample = |(photo, captions): (String, Vec<String>)| RawSample {
        key: stem(Path::new(&photo)),
        origin: list.as_path().into(),
        info: SampleInfo {
            source: file_name(folder),
            captions,
            ..SampleInfo::default()
        },
        photo: Stored::File(photos.join(photo)),
        mask: None,
        segments: None,
    };
    Ok(Found {
        samples: captions.into_iter().map(sample).collect(),
        ..Found::default()
    })
}

/// Photos of one of Karpathy's sets.
fn photos_of(path: &Path, set: &str) -> Result<HashSet<String>, DatasetError> {
    let splits: Splits = serde_json::from_str(&text(path)?).map_err(|error| wrong(path, error.to_string()))?;
    let photos: HashSet<String> = splits
        .images
        .iter()
        .filter(|i| i.split == set)
        .map(|i| i.filename.clone())
        .collect();
    if photos.is_empty() {
        let mut known: Vec<String> = splits.images.into_iter().map(|i| i.split).collect();
        known.sort();
        known.dedup();
        return Err(wrong(
            path,
            format!("no photo in set {set:?}, expected one of {}", known.join(", ")),
        ));
    }
    Ok(photos)
}

/// File names and sentences, line by line.
fn read(list: &Path) -> Result<Vec<(String, String)>, DatasetError> {
    let text = text(list)?;
    let name = file_name(list);
    let bad = |line: u64, found: &str, expected: &str| {
        wrong(list, format!("line {line}: found {found:?}, expected {expected}"))
    };
    let mut pairs = Vec::new();
    if name.ends_with(".token") {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let pair = line
                .split_once('\t')
                .and_then(|(id, s)| Some((id.rsplit_once('#')?.0, s.trim())));
            let (photo, sentence) =
                pair.ok_or_else(|| bad(number as u64 + 1, line, "photo.jpg#0, a tab, a sentence"))?;
            pairs.push((photo.to_owned(), sentence.to_owned()));
        }
        return Ok(pairs);
    }
    let delimiter = if name == "results.csv" { b'|' } else { b',' };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(text.as_bytes());
    for record in reader.records() {
        let record = record.map_err(|error| wrong(list, error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let (photo, sentence) = (record.get(0), record.get(record.len().saturating_sub(1)));
        match (photo, sentence) {
            (Some(photo), Some(sentence)) if record.len() >= 2 && !photo.is_empty() && !sentence.is_empty() => {
                pairs.push((photo.to_owned(), sentence.to_owned()));
            }
            // one line of Kaggle's results.csv lacks a delimiter between number and sentence
            (Some(_), _) if delimiter == b'|' && record.len() == 2 => {}
            _ => {
                return Err(bad(
                    line,
                    &record.iter().collect::<Vec<_>>().join("|"),
                    "a photo and a sentence",
                ));
            }
        }
    }
    Ok(pairs)
}
