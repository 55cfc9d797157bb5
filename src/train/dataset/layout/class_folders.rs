//! ImageNet's folders: one per class, named by synset or by the class itself; each photo gets one label. Sets are folders
//! of such folders (`imagenet@val` is `imagenet/val`); without one, the folder itself is read.
//!
//! Names come from `names.txt`, `synset_words.txt` or `LOC_synset_mapping.txt` (`n01440764 tench, Tinca tinca` per line)
//! in the folder or beside it; the first of several synonyms counts. A folder without a line is named by itself, `_` read
//! as a space.
//!
//! Folders are classes, also where their first synonyms are the same but for capitals: such classes go by the first
//! synonym that is nobody else's ("tank suit" for the second "maillot" of ImageNet), and where the list has none, as for
//! its two cranes, by the same name and the folder ([`SampleInfo::class`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::{Found, entries, file_name, is_photo, synonyms, text, wrong};
use crate::train::dataset::raw::{RawSample, Stored, stem};
use crate::train::dataset::{DatasetError, SampleInfo};

/// Files of names, curated ones first.
const LISTS: [&str; 3] = ["names.txt", "synset_words.txt", "LOC_synset_mapping.txt"];

/// * `set` - the folder of folders in `folder`
pub(super) fn open(folder: &Path, set: Option<&str>) -> Result<Found, DatasetError> {
    let source = file_name(folder);
    let folder = &set.map_or_else(|| folder.to_owned(), |set| folder.join(set));
    if !folder.is_dir() {
        return Err(wrong(
            folder,
            "no such folder; a set of class folders is a folder of them",
        ));
    }
    let mut names = names(folder)?;
    let classes: Vec<PathBuf> = entries(folder)?.into_iter().filter(|p| p.is_dir()).collect();
    for id in classes.iter().map(|class| file_name(class)) {
        let itself = vec![id.replace('_', " ")];
        names.entry(id).or_insert(itself);
    }
    let labels = told_apart(&names);
    let mut shared: HashMap<String, usize> = HashMap::new();
    for label in labels.values() {
        *shared.entry(label.to_lowercase()).or_default() += 1;
    }
    let mut found = Found::default();
    for class in classes {
        let id = file_name(&class);
        let label = labels[id.as_str()];
        for photo in entries(&class)?.into_iter().filter(|p| is_photo(p)) {
            found.samples.push(RawSample {
                key: format!("{id}/{}", stem(&photo)),
                origin: folder.as_path().into(),
                info: SampleInfo {
                    source: source.clone(),
                    labels: vec![label.to_owned()],
                    class: (shared[&label.to_lowercase()] > 1).then(|| id.clone()),
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

/// One name of each folder: the first, or the next that no other folder is called by first where the first is shared.
fn told_apart(names: &BTreeMap<String, Vec<String>>) -> HashMap<&str, &str> {
    let first = |synonyms: &[String]| synonyms.first().map_or("", String::as_str).to_lowercase();
    let mut firsts: HashMap<String, usize> = HashMap::new();
    for synonyms in names.values() {
        *firsts.entry(first(synonyms)).or_default() += 1;
    }
    let mut taken: HashSet<String> = HashSet::new();
    let mut labels = HashMap::new();
    for (id, synonyms) in names {
        let own = synonyms.first().map_or("", String::as_str);
        let free = |name: &&String| {
            let name = name.to_lowercase();
            !firsts.contains_key(&name) && !taken.contains(&name)
        };
        let label = match firsts[&first(synonyms)] {
            1 => own,
            _ => synonyms.iter().skip(1).find(free).map_or(own, String::as_str),
        };
        taken.insert(label.to_lowercase());
        labels.insert(id.as_str(), label);
    }
    labels
}

/// Synonyms by folder.
fn names(folder: &Path) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    let places = [Some(folder), folder.parent()].into_iter().flatten();
    let mut lists = places.flat_map(|place| LISTS.map(|list| place.join(list)));
    let Some(list) = lists.find(|list| list.is_file()) else {
        return Ok(BTreeMap::new());
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
            Ok((id.to_owned(), synonyms(name).collect()))
        })
        .collect()
}
