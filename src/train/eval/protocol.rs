//! Which names and pixels count in semantic segmentation: by our own rules, or as benchmarks publish their figures.

use clap::ValueEnum;

use super::options::Options;
use super::semantic::classes_of;
use crate::train::dataset::layout::{self, Folder};
use crate::train::dataset::{Dataset, DatasetError, Layout};

/// How pixels are counted against names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// For collections that do not annotate alike: one name per meaning; neither parts of a name's thing nor what a
    /// collection does not annotate are mistakes.
    #[default]
    Open,
    /// As benchmarks with a background class count (VOC-21, COCO-Object): every name is a class, every wrong pixel
    /// counts.
    Published,
    /// As benchmarks without one count (VOC-20, ADE-150): every labelled pixel gets the best name; background is not
    /// counted.
    PublishedNoBackground,
}

impl Protocol {
    /// What papers report on a layout; none for those without named masks. LVIS looks for other names in every photo, so
    /// that a photo's background says nothing of most of them.
    fn of(layout: Layout) -> Option<Self> {
        match layout {
            Layout::Voc | Layout::Coco => Some(Self::Published),
            Layout::Ade20k => Some(Self::PublishedNoBackground),
            Layout::Lvis => Some(Self::Open),
            Layout::ClassFolders | Layout::Captions | Layout::Sa1b => None,
        }
    }

    /// The one that was asked for, or that of all folders; [`Self::Open`] for tars and where folders disagree.
    ///
    /// # Errors
    /// [`DatasetError`] for a folder that cannot be read or is nothing known.
    pub(super) fn asked(options: &Options) -> Result<Self, DatasetError> {
        if let Some(protocol) = options.protocol {
            return Ok(protocol);
        }
        let mut all: Option<Self> = None;
        for pattern in &options.data {
            let Some(folder) = Folder::of(pattern) else {
                return Ok(Self::Open);
            };
            let own = Self::of(layout::of(&folder, options.layout)?);
            if all.is_some() && own.is_some() && all != own {
                return Ok(Self::Open);
            }
            all = all.or(own);
        }
        Ok(all.unwrap_or_default())
    }

    /// Whether every name stands for itself and every wrong pixel counts.
    pub(super) fn strict(self) -> bool {
        self != Self::Open
    }

    /// Whether a pixel may have no name.
    pub(super) fn has_background(self) -> bool {
        self != Self::PublishedNoBackground
    }

    /// The names that compete on `dataset`; in strict protocols the one at place `i` is that of index `i + 2`.
    pub(super) fn classes(self, dataset: &Dataset) -> Vec<String> {
        if self.strict() {
            dataset.names().iter().skip(2).map(str::to_owned).collect()
        } else {
            classes_of(dataset)
        }
    }

    /// As it is written in the report.
    pub(super) fn semantic(self) -> &'static str {
        match self {
            Self::Open => OPEN,
            Self::Published => PUBLISHED,
            Self::PublishedNoBackground => NO_BACKGROUND,
        }
    }
}

const OPEN: &str = "Protocol open: all names of the table and the bundle's background prompts compete (80 templates \
    averaged), at the photo's own size. Background rule: a pixel has no name where the background prompts together have \
    a higher probability than the best name. A prediction on background, or on a label outside the table, is wrong \
    unless the collection does not annotate the name or the two overlap.";
const PUBLISHED: &str = "Protocol published: every name of the data set is a class of its own, asked as it is written \
    there, and competes with the bundle's background prompts (80 templates averaged), at the photo's own size. \
    Background is one class more: a pixel has it where the background prompts together have a higher probability than \
    the best name. Every wrong pixel counts; unlabelled (void) ones do not. The published figure is the mean with \
    background.";
const NO_BACKGROUND: &str = "Protocol published-no-background: every name of the data set is a class of its own, asked \
    as it is written there; they compete among themselves alone (80 templates averaged), at the photo's own size. Every \
    labelled pixel gets the best one, every wrong one counts; background and unlabelled pixels do not.";

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn asked(data: &[&str], protocol: Option<Protocol>) -> Protocol {
        let options = Options {
            data: data.iter().map(|&d| d.to_owned()).collect(),
            protocol,
            ..Options::default()
        };
        Protocol::asked(&options).unwrap()
    }

    #[test]
    fn folders_are_measured_as_papers_report_on_them_and_tars_as_before() {
        let voc = folder(&["JPEGImages/a.jpg", "ImageSets/Segmentation/val.txt"]);
        let ade = folder(&["images/validation/a.jpg", "annotations/validation/a.png"]);
        let lvis = folder(&["lvis_v1_val.json"]);
        let classes = folder(&["dog/a.jpg"]);
        let [voc, ade, lvis, classes] = [&voc, &ade, &lvis, &classes].map(|f| f.path().to_str().unwrap());
        assert_eq!(asked(&[voc], None), Protocol::Published);
        assert_eq!(asked(&[&format!("{voc}@train")], None), Protocol::Published);
        assert_eq!(asked(&[ade], None), Protocol::PublishedNoBackground);
        assert_eq!(asked(&[lvis], None), Protocol::Open);
        assert_eq!(asked(&["data/*.tar"], None), Protocol::Open);
        assert_eq!(asked(&[voc, "data/*.tar"], None), Protocol::Open);
        assert_eq!(asked(&[voc, ade], None), Protocol::Open, "they disagree");
        assert_eq!(
            asked(&[classes, ade], None),
            Protocol::PublishedNoBackground,
            "folders of classes have no masks"
        );
        assert_eq!(asked(&[voc], Some(Protocol::Open)), Protocol::Open);
        assert_eq!(
            asked(&["data/*.tar"], Some(Protocol::PublishedNoBackground)),
            Protocol::PublishedNoBackground
        );
    }
}
