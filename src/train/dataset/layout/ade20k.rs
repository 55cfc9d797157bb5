//! ADE20K scene parsing (the benchmark of 150 names): `images/SET/ID.jpg`, `annotations/SET/ID.png` (0 = unlabelled, 1-150)
//! and `objectInfo150.txt` (tab-separated, the last column holds the names, the first synonym counts); `training` or
//! `validation` if no set is named.

use std::path::Path;

use super::{Found, Purpose, entries, first_name, is_photo, table, text, wrong};
use crate::train::dataset::raw::{MaskSource, RawSample, Stored, stem};
use crate::train::dataset::{ClassNames, DatasetError, IndexTable, SampleInfo};

pub(super) fn open(folder: &Path, set: Option<&str>, purpose: Purpose) -> Result<Found, DatasetError> {
    let set = set.unwrap_or(match purpose {
        Purpose::Learning => "training",
        Purpose::Measuring => "validation",
    });
    let names = names(&folder.join("objectInfo150.txt"))?;
    // 0 is unlabelled; nothing is background
    let last = u8::try_from(names.len()).unwrap_or(u8::MAX);
    let meaning = IndexTable::new(|i| match i {
        i if i >= 1 && i <= last => i + 1,
        _ => ClassNames::UNLABELLED,
    });
    let photos = folder.join("images").join(set);
    let sample = |photo: std::path::PathBuf| {
        let id = stem(&photo);
        let mask = folder.join("annotations").join(set).join(format!("{id}.png"));
        RawSample {
            key: id,
            origin: photos.as_path().into(),
            info: SampleInfo {
                source: "ade20k".into(),
                vocab: names.clone(),
                ..SampleInfo::default()
            },
            photo: Stored::File(photo),
            mask: Some(MaskSource::Indexed(Stored::File(mask), meaning.clone())),
            segments: None,
        }
    };
    Ok(Found {
        samples: entries(&photos)?
            .into_iter()
            .filter(|p| is_photo(p))
            .map(sample)
            .collect(),
        names: table(names.clone()),
        skipped: Vec::new(),
    })
}

/// Names in order of index, from 1.
fn names(list: &Path) -> Result<Vec<String>, DatasetError> {
    let text = text(list)?;
    let mut names = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .skip(1)
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let mut cells = line.split('\t').map(str::trim);
        let (index, name) = (cells.next().and_then(|c| c.parse::<usize>().ok()), cells.next_back());
        match (index, name) {
            (Some(index), Some(name)) if index == names.len() + 1 && index <= 253 => names.push(first_name(name)),
            _ => {
                let expected = format!("expected index {} of at most 253, figures and a name", names.len() + 1);
                return Err(wrong(list, format!("line {}: found {line:?}, {expected}", number + 1)));
            }
        }
    }
    Ok(names)
}
