//! COCO's instances and LVIS: one JSON of photos, names and outlines; the photos beside it, COCO's captions too.
//!
//! COCO names every thing of its 80 classes, so all names are annotated in every photo and what no outline covers is
//! background. LVIS annotates per photo only the names of its outlines, without those of `not_exhaustive_category_ids`, of
//! which it outlines some things and not others, and the names of `neg_category_ids`. Class masks hold at
//! most 253 names: LVIS's 253 with the most outlines; outlines of the others are segments without a name. Where outlines
//! overlap, the smaller one lies on top.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::coco_captions;
use super::{Found, Purpose, entries, file_name, table, text, wrong};
use crate::train::dataset::raw::{MaskSource, RawSample, SegmentSource, Stored, stem};
use crate::train::dataset::{ClassNames, DatasetError, Outline, SampleInfo, Shape};

/// Most names of a class mask.
const MOST_NAMES: usize = 253;

/// How one of the two data sets names its files.
pub(super) struct Kind {
    source: &'static str,
    /// What the name of a list begins with; the set follows.
    start: &'static str,
    /// The set that is learnt from and the one that papers report on.
    sets: [&'static str; 2],
    /// Whether every name is annotated in every photo.
    exhaustive: bool,
}

pub(super) const COCO: Kind = Kind {
    source: "coco",
    start: "instances_",
    sets: ["train2017", "val2017"],
    exhaustive: true,
};

pub(super) const LVIS: Kind = Kind {
    source: "lvis",
    start: "lvis_v1_",
    sets: ["train", "val"],
    exhaustive: false,
};

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    #[serde(default)]
    file_name: Option<String>,
    #[serde(default)]
    coco_url: Option<String>,
    #[serde(default)]
    neg_category_ids: Vec<u64>,
    #[serde(default)]
    not_exhaustive_category_ids: Vec<u64>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    category_id: u64,
    segmentation: Outline,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

/// Names by category id, and the index of those that have one.
struct Names {
    by_id: HashMap<u64, String>,
    index: HashMap<u64, u8>,
    table: ClassNames,
}

impl Names {
    fn of(file: &File) -> Self {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for annotation in &file.annotations {
            *counts.entry(annotation.category_id).or_default() += 1;
        }
        let mut kept: Vec<&Category> = file.categories.iter().collect();
        kept.sort_by_key(|c| (std::cmp::Reverse(counts.get(&c.id).copied().unwrap_or(0)), c.id));
        kept.truncate(MOST_NAMES);
        kept.sort_by_key(|c| c.id);
        let spoken = |c: &Category| c.name.replace('_', " ");
        Self {
            by_id: file.categories.iter().map(|c| (c.id, spoken(c))).collect(),
            index: (2u8..).zip(&kept).map(|(index, c)| (c.id, index)).collect(),
            table: table(kept.iter().map(|c| spoken(c))),
        }
    }

    fn spoken<'a>(&self, ids: impl Iterator<Item = &'a u64>) -> Vec<String> {
        let mut names: Vec<String> = ids.filter_map(|id| self.by_id.get(id).cloned()).collect();
        names.sort();
        names.dedup();
        names
    }
}

pub(super) fn open(folder: &Path, set: Option<&str>, kind: &Kind, purpose: Purpose) -> Result<Found, DatasetError> {
    if let Some(list) = coco_captions::splits(folder, set).filter(|_| kind.exhaustive) {
        return coco_captions::open(folder, &list, set, kind.source);
    }
    let list = list(folder, set, kind, purpose)?;
    let file: File = serde_json::from_str(&text(&list)?).map_err(|error| wrong(&list, error.to_string()))?;
    let names = Names::of(&file);
    let mut things: BTreeMap<u64, Vec<Annotation>> = BTreeMap::new();
    for annotation in file.annotations {
        if !names.by_id.contains_key(&annotation.category_id) {
            return Err(wrong(
                &list,
                format!("annotation of category {}, which has no name", annotation.category_id),
            ));
        }
        things.entry(annotation.image_id).or_default().push(annotation);
    }
    let mut captions =
        coco_captions::read(&list.with_file_name(file_name(&list).replacen(kind.start, "captions_", 1)))?;
    let all = names.spoken(names.by_id.keys());
    let mut found = Found::default();
    for image in &file.images {
        let annotations = things.remove(&image.id).unwrap_or_default();
        let Some(photo) = photo(folder, &list, image) else {
            found.skipped.push(DatasetError::Corrupt {
                key: image.id.to_string(),
                origin: list.clone(),
                part: "images".into(),
                reason: "has neither file_name nor coco_url".into(),
            });
            continue;
        };
        let classes = names.spoken(annotations.iter().map(|a| &a.category_id));
        let vocab = if kind.exhaustive {
            all.clone()
        } else {
            let annotated = annotations
                .iter()
                .map(|a| &a.category_id)
                .filter(|id| !image.not_exhaustive_category_ids.contains(id))
                .chain(&image.neg_category_ids);
            names.spoken(annotated)
        };
        let shape = |annotation: Annotation| Shape {
            class: names
                .index
                .get(&annotation.category_id)
                .copied()
                .unwrap_or(ClassNames::UNLABELLED),
            crowd: annotation.iscrowd == 1,
            outline: annotation.segmentation,
        };
        let shapes: Arc<[Shape]> = annotations.into_iter().map(shape).collect();
        found.samples.push(RawSample {
            key: stem(&photo),
            origin: list.as_path().into(),
            info: SampleInfo {
                source: kind.source.into(),
                classes,
                vocab,
                captions: captions.remove(&image.id).unwrap_or_default(),
                ..SampleInfo::default()
            },
            photo: Stored::File(photo),
            mask: Some(MaskSource::Shapes(Arc::clone(&shapes))),
            segments: Some(SegmentSource::Shapes(shapes)),
        });
    }
    found.names = names.table;
    Ok(found)
}

/// The list of a set: in `annotations` or in the folder itself.
fn list(folder: &Path, set: Option<&str>, kind: &Kind, purpose: Purpose) -> Result<PathBuf, DatasetError> {
    let mut lists = Vec::new();
    for place in [folder.join("annotations"), folder.to_owned()] {
        if place.is_dir() {
            let is_list = |p: &PathBuf| file_name(p).starts_with(kind.start) && file_name(p).ends_with(".json");
            lists.extend(entries(&place)?.into_iter().filter(is_list));
        }
    }
    let of = |path: &Path| stem(path).trim_start_matches(kind.start).to_owned();
    let [learnt, measured] = kind.sets;
    let wanted = set.unwrap_or(match purpose {
        Purpose::Learning => learnt,
        Purpose::Measuring => measured,
    });
    let chosen = lists.iter().find(|p| of(p) == wanted);
    match (chosen, set, lists.as_slice()) {
        (Some(list), _, _) => Ok(list.clone()),
        // The only list counts whatever its set is called, but what is measured on is not learnt from unasked.
        (None, None, [only]) if purpose == Purpose::Measuring || of(only) != measured => Ok(only.clone()),
        _ => {
            let known = lists.iter().map(|p| of(p)).collect::<Vec<_>>().join(", ");
            let expected = format!("{}{wanted}.json", kind.start);
            Err(wrong(
                folder,
                format!("no list of set {wanted:?} ({expected}); found sets: {known}"),
            ))
        }
    }
}

/// Where a photo is: in the folder of its set, in `images`, or beside the list. LVIS says the set in the address.
fn photo(folder: &Path, list: &Path, image: &Image) -> Option<PathBuf> {
    let name = match (&image.file_name, &image.coco_url) {
        (Some(name), _) => name.clone(),
        (None, Some(url)) => url
            .rsplit('/')
            .take(2)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("/"),
        (None, None) => return None,
    };
    // Only the name and its folder count: a list must not reach outside.
    let parts: Vec<&str> = name
        .split(['/', '\\'])
        .filter(|p| !p.is_empty() && *p != "." && *p != "..")
        .collect();
    let (last, set) = (parts.last()?, stem(list));
    let set = set.rsplit('_').next().unwrap_or_default();
    let mut places = vec![folder.join(set).join(last), folder.join("images").join(set).join(last)];
    if let [.., of, _] = parts[..] {
        places.push(folder.join(of).join(last));
    }
    places.extend([folder.join("images").join(last), folder.join(last)]);
    Some(places.iter().find(|p| p.is_file()).unwrap_or(&places[0]).clone())
}
