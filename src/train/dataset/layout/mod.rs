//! Data sets in the folders in which they are published, read as they are.
//!
//! A folder may name one of its sets behind an `@`, as in `VOC2012@train`; without one, [`Purpose`] decides. Sets are the data
//! sets' own; [`super::split`] cuts training and validation out of any of them all the same.

mod ade20k;
mod captions;
mod class_folders;
mod coco;
mod coco_captions;
pub mod sa1b;
mod voc;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{ClassNames, DatasetError, RawSample};

/// A published layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// ImageNet: a folder of photos per class, perhaps with a file of synset names. Labels.
    ClassFolders,
    /// COCO: annotations/instances_SET.json beside the photos, perhaps captions_SET.json. Named masks, instances, captions.
    Coco,
    /// LVIS: lvis_v1_SET.json beside COCO's photos. Named masks and instances.
    Lvis,
    /// Flickr30k: a list of captions beside the photos. Captions.
    Captions,
    /// Pascal VOC: JPEGImages, SegmentationClass, ImageSets. Named masks.
    Voc,
    /// ADE20K scene parsing: images, annotations, objectInfo150.txt. Named masks.
    Ade20k,
    /// SA-1B: photos with a JSON of run-length codes each. Segments without names.
    #[value(name = "sa-1b")]
    Sa1b,
}

/// What data are read for, which decides the set of a folder that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training: the set that is meant for it.
    Learning,
    /// Everything else: the set that papers report on.
    Measuring,
}

/// A folder given as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// The set asked for.
    pub set: Option<String>,
}

impl Folder {
    /// The folder that `text` names, with or without a set behind an `@`; none if there is no such folder.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        if Path::new(text).is_dir() {
            return Some(Self {
                path: text.into(),
                set: None,
            });
        }
        let (path, set) = text.rsplit_once('@')?;
        (Path::new(path).is_dir() && !set.is_empty()).then(|| Self {
            path: path.into(),
            set: Some(set.to_owned()),
        })
    }
}

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Samples, their pictures not read yet.
    pub samples: Vec<RawSample>,
    /// The class table; empty without masks.
    pub names: ClassNames,
    /// Samples that cannot be used.
    pub skipped: Vec<DatasetError>,
}

/// Reads a folder's lists; no picture is opened.
///
/// # Errors
/// [`DatasetError::Unrecognised`], or [`DatasetError::Layout`] and [`DatasetError::Io`] for lists that are missing or
/// damaged. Single bad samples land in [`Found::skipped`].
pub fn open(folder: &Folder, layout: Option<Layout>, purpose: Purpose) -> Result<Found, DatasetError> {
    let layout = of(folder, layout)?;
    let set = folder.set.as_deref();
    let found = match layout {
        Layout::ClassFolders => class_folders::open(&folder.path, set),
        Layout::Coco => coco::open(&folder.path, set, &coco::COCO, purpose),
        Layout::Lvis => coco::open(&folder.path, set, &coco::LVIS, purpose),
        Layout::Captions => captions::open(&folder.path, set, purpose),
        Layout::Voc => voc::open(&folder.path, set, purpose),
        Layout::Ade20k => ade20k::open(&folder.path, set, purpose),
        Layout::Sa1b => sa1b::open(&folder.path),
    }?;
    if found.samples.is_empty() && found.skipped.is_empty() {
        let reason = format!("holds no sample; expected {}", layout.looks());
        return Err(wrong(&folder.path, reason));
    }
    Ok(found)
}

/// The layout of a folder: the named one, or the one that it looks like.
///
/// # Errors
/// [`DatasetError::Unrecognised`], or [`DatasetError::Io`] for a folder that cannot be read.
pub fn of(folder: &Folder, layout: Option<Layout>) -> Result<Layout, DatasetError> {
    if let Some(layout) = layout {
        return Ok(layout);
    }
    let found = recognise(&folder.path)?;
    let set = folder.set.as_ref().map(|set| folder.path.join(set));
    if let (None, Some(set)) = (found, set.filter(|set| set.is_dir()))
        && recognise(&set)? == Some(Layout::ClassFolders)
    {
        return Ok(Layout::ClassFolders);
    }
    found.ok_or_else(|| {
        let looks: Vec<&str> = Layout::value_variants().iter().map(|l| l.looks()).collect();
        DatasetError::Unrecognised {
            folder: folder.path.clone(),
            known: looks.join("; "),
        }
    })
}

impl Layout {
    /// Its name and what it looks like.
    fn looks(self) -> &'static str {
        match self {
            Self::ClassFolders => "class-folders (CLASS/photo.jpg, or SET/CLASS/photo.jpg as FOLDER@SET)",
            Self::Coco => "coco (annotations/instances_SET.json, SET/photo.jpg)",
            Self::Lvis => "lvis (lvis_v1_SET.json, train2017 and val2017)",
            Self::Captions => "captions (results_20130124.token, results.csv or captions.txt, photos beside it)",
            Self::Voc => "voc (JPEGImages, SegmentationClass, ImageSets/Segmentation/SET.txt)",
            Self::Ade20k => "ade20k (images/SET, annotations/SET, objectInfo150.txt)",
            Self::Sa1b => "sa-1b (photo.jpg with photo.json)",
        }
    }
}

/// The layout that a folder looks like.
fn recognise(folder: &Path) -> Result<Option<Layout>, DatasetError> {
    let has = |name: &str| folder.join(name).exists();
    let here = entries(folder)?;
    let named = |path: &PathBuf, start: &str, end: &str| {
        let name = file_name(path);
        name.starts_with(start) && name.ends_with(end)
    };
    let lists = if has("annotations") {
        entries(&folder.join("annotations"))?
    } else {
        Vec::new()
    };
    let any = |start: &str, end: &str| here.iter().chain(&lists).any(|p| named(p, start, end));
    Ok(if has("JPEGImages") && has("ImageSets") {
        Some(Layout::Voc)
    } else if has("images") && has("annotations") && lists.iter().any(|p| p.is_dir()) {
        Some(Layout::Ade20k)
    } else if any("instances_", ".json") || has(coco_captions::SPLITS) {
        Some(Layout::Coco)
    } else if any("lvis", ".json") {
        Some(Layout::Lvis)
    } else if captions::list(folder).is_some() {
        Some(Layout::Captions)
    } else if here.iter().any(|p| is_photo(p) && p.with_extension("json").is_file()) {
        Some(Layout::Sa1b)
    } else {
        let class = |path: &PathBuf| path.is_dir() && entries(path).is_ok_and(|e| e.iter().any(|p| is_photo(p)));
        here.iter().any(class).then_some(Layout::ClassFolders)
    })
}

fn wrong(path: &Path, reason: impl Into<String>) -> DatasetError {
    DatasetError::Layout {
        path: path.into(),
        reason: reason.into(),
    }
}

/// What is in a folder, in alphabetical order.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let failed = |source| DatasetError::Io {
        path: folder.into(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// A list as text.
fn text(path: &Path) -> Result<String, DatasetError> {
    std::fs::read_to_string(path).map_err(|source| DatasetError::Io {
        path: path.into(),
        source,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_photo(path: &Path) -> bool {
    let extension = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    matches!(extension.as_str(), "jpg" | "jpeg" | "png")
}

/// The first of several synonyms, `_` read as a space.
fn first_name(names: &str) -> String {
    synonyms(names).next().unwrap_or_default()
}

/// Several synonyms, `_` read as a space.
fn synonyms(names: &str) -> impl Iterator<Item = String> {
    names.split([',', ';']).map(|name| name.trim().replace('_', " "))
}

/// A table of names behind the two special ones.
fn table(names: impl IntoIterator<Item = String>) -> ClassNames {
    let special = ["unlabelled", "background"].map(str::to_owned);
    ClassNames::new(special.into_iter().chain(names).collect())
}

#[cfg(test)]
mod tests;
