//! Pascal VOC: `JPEGImages/ID.jpg`, `SegmentationClass/ID.png` (palette, 255 = void), `SegmentationObject/ID.png` if
//! there, and the ids of a set in `ImageSets/Segmentation/SET.txt`; `train` or `val` if none is named.

use std::path::Path;

use super::{Found, Purpose, table, text};
use crate::train::dataset::raw::{MaskSource, RawSample, SegmentSource, Stored};
use crate::train::dataset::{ClassNames, DatasetError, IndexTable, SampleInfo};

/// Names of indices 1-20.
const NAMES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

pub(super) fn open(folder: &Path, set: Option<&str>, purpose: Purpose) -> Result<Found, DatasetError> {
    let set = set.unwrap_or(match purpose {
        Purpose::Learning => "train",
        Purpose::Measuring => "val",
    });
    let list = folder.join("ImageSets/Segmentation").join(format!("{set}.txt"));
    let names = NAMES.map(str::to_owned);
    // 0 is background, 1-20 things, the rest nothing
    let meaning = IndexTable::new(|i| match i {
        0 => ClassNames::BACKGROUND,
        1..=20 => i + 1,
        _ => ClassNames::UNLABELLED,
    });
    let sample = |id: &str| {
        let objects = folder.join("SegmentationObject").join(format!("{id}.png"));
        RawSample {
            key: id.to_owned(),
            origin: list.as_path().into(),
            info: SampleInfo {
                source: "voc".into(),
                vocab: names.to_vec(),
                ..SampleInfo::default()
            },
            photo: Stored::File(folder.join("JPEGImages").join(format!("{id}.jpg"))),
            mask: Some(MaskSource::Indexed(
                Stored::File(folder.join("SegmentationClass").join(format!("{id}.png"))),
                meaning.clone(),
            )),
            segments: objects
                .is_file()
                .then_some(SegmentSource::Indexed(Stored::File(objects))),
        }
    };
    Ok(Found {
        samples: text(&list)?.split_whitespace().map(sample).collect(),
        names: table(names.clone()),
        skipped: Vec::new(),
    })
}
