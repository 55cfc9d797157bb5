//! What one photo is asked: names it certainly lacks, words outside training, names it is labelled with.

use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

use super::{LEAST_SHARE, LOCATED, OUTSIDE, Published};
use crate::train::dataset::names::{canonical, is_absent, overlap, whole_person};
use crate::train::dataset::{ClassMask, ClassNames, Sample};
use crate::vision::refine::RefinedMask;

/// Absent queries per photo.
const ABSENT: usize = 10;

/// Why a name is asked.
#[derive(Debug, PartialEq)]
pub(super) enum Why {
    Absent,
    Outside,
    /// Per pixel: labelled so, labelled otherwise, or neither here nor there.
    Present(Vec<Option<bool>>),
}

/// One name asked about one photo.
#[derive(Debug, PartialEq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) why: Why,
}

impl Subject {
    /// Adds what the published `masks` of this name mean.
    pub(super) fn count(&self, masks: &[&RefinedMask], counts: &mut Published) {
        let published = !masks.is_empty();
        match &self.why {
            Why::Absent => counts.absent.add(published),
            Why::Outside => counts.outside.add(published),
            Why::Present(truth) => {
                counts.hit.add(published);
                let (mut both, mut either) = (0u32, 0u32);
                let mut claimed = vec![false; truth.len()];
                for mask in masks {
                    claimed
                        .iter_mut()
                        .zip(mask.mask.pixels())
                        .for_each(|(c, set)| *c |= set);
                }
                for (labelled, claimed) in truth.iter().zip(claimed) {
                    let Some(labelled) = *labelled else { continue };
                    both += u32::from(labelled && claimed);
                    either += u32::from(labelled || claimed);
                }
                counts
                    .located
                    .add(f64::from(both) / f64::from(either.max(1)) >= LOCATED);
            }
        }
    }
}

/// Everything one photo is asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) subjects: Vec<Subject>,
}

impl Asked {
    pub(super) fn of(sample: &Sample, names: &ClassNames) -> Self {
        let mut subjects: Vec<Subject> = Vec::new();
        let mut add = |name: &str, why| {
            subjects.push(Subject {
                name: name.to_owned(),
                why,
            });
        };
        let table = each_once(names.iter().filter_map(canonical));
        let mut absent: Vec<&str> = table.iter().copied().filter(|n| is_absent(sample, n)).collect();
        absent.shuffle(&mut ChaCha8Rng::from_seed(Sha256::digest(sample.key.as_bytes()).into()));
        absent.iter().take(ABSENT).for_each(|name| add(name, Why::Absent));
        let outside = OUTSIDE.iter().filter(|word| !mentions(sample, word));
        outside.for_each(|word| add(word, Why::Outside));
        for name in table {
            if let Some(truth) = truth(sample, names, name) {
                add(name, Why::Present(truth));
            }
        }
        Self { subjects }
    }

    /// Three lists, each asked at the same time.
    pub(super) fn together(&self) -> Vec<Vec<&Subject>> {
        let is: [fn(&Why) -> bool; 3] = [
            |w| *w == Why::Absent,
            |w| *w == Why::Outside,
            |w| matches!(w, Why::Present(_)),
        ];
        let lists = is.map(|is| self.subjects.iter().filter(|s| is(&s.why)).collect::<Vec<_>>());
        lists.into_iter().filter(|list| !list.is_empty()).collect()
    }

    /// One list per name.
    pub(super) fn alone(&self) -> Vec<Vec<&Subject>> {
        self.subjects.iter().map(|s| vec![s]).collect()
    }
}

fn each_once<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Whether a class, a label or a caption of the photo has this word.
fn mentions(sample: &Sample, word: &str) -> bool {
    let info = &sample.info;
    let mut texts = info.classes.iter().chain(&info.labels).chain(&info.captions);
    texts.any(|text| text.to_lowercase().contains(word))
}

/// Where the photo is labelled `name`; `None` if that is less than [`LEAST_SHARE`] of it.
fn truth(sample: &Sample, names: &ClassNames, name: &str) -> Option<Vec<Option<bool>>> {
    let person = (name == "person").then(|| whole_person(sample, names)).flatten();
    let mask: &ClassMask = person.as_ref().or(sample.mask.as_ref())?;
    let of_class: Vec<Option<bool>> = (0..names.len())
        .map(|class| {
            let class = u8::try_from(class).ok()?;
            if class == ClassNames::BACKGROUND {
                let annotated = sample.info.vocab.iter().any(|v| canonical(v) == Some(name));
                return annotated.then_some(false);
            }
            let labelled = canonical(names.name(class)?)?;
            match labelled == name {
                true => Some(true),
                false => (!overlap(labelled, name)).then_some(false),
            }
        })
        .collect();
    let truth: Vec<Option<bool>> = mask.classes.iter().map(|&c| of_class[usize::from(c)]).collect();
    let labelled = truth.iter().filter(|t| **t == Some(true)).count();
    (labelled > 0 && labelled as f64 >= LEAST_SHARE * truth.len() as f64).then_some(truth)
}

#[cfg(test)]
mod tests {
    use super::super::Share;
    use super::*;
    use crate::train::dataset::{Photo, SampleInfo};
    use crate::vision::geometry::FrameSize;
    use crate::vision::mask::BinaryMask;

    fn table() -> ClassNames {
        let names = ["unlabelled", "background", "car", "vegetation", "tree", "cow", "sheep"];
        ClassNames::new(names.map(str::to_owned).to_vec())
    }

    fn street() -> Sample {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Sample {
            key: "street".into(),
            photo: Photo {
                width: 5,
                height: 1,
                rgb: vec![0; 15],
            },
            mask: Some(ClassMask {
                width: 5,
                height: 1,
                classes: vec![0, 1, 2, 3, 4],
            }),
            segments: None,
            info: SampleInfo {
                classes: words(&["car", "vegetation", "tree"]),
                captions: words(&["A giraffe on a street."]),
                vocab: words(&["car", "vegetation", "cow"]),
                ..SampleInfo::default()
            },
            regions: Vec::new(),
        }
    }

    fn names(asked: &Asked, is: impl Fn(&Why) -> bool) -> Vec<&str> {
        let found = asked.subjects.iter().filter(|s| is(&s.why));
        found.map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn only_what_the_collection_annotates_is_asked_as_absent() {
        let asked = Asked::of(&street(), &table());
        assert_eq!(names(&asked, |w| *w == Why::Absent), ["cow"]);
        assert_eq!(
            names(&asked, |w| matches!(w, Why::Present(_))),
            ["car", "vegetation", "tree"]
        );
    }

    #[test]
    fn a_word_that_a_caption_mentions_is_not_asked_as_absent() {
        let outside = Asked::of(&street(), &table());
        let outside = names(&outside, |w| *w == Why::Outside);
        assert_eq!(outside.len(), OUTSIDE.len() - 1);
        assert!(!outside.contains(&"giraffe"));
    }

    #[test]
    fn unlabelled_pixels_and_overlapping_names_do_not_count() {
        let truth = truth(&street(), &table(), "vegetation").unwrap();
        assert_eq!(truth, [None, Some(false), Some(false), Some(true), None]);
    }

    #[test]
    fn a_published_mask_elsewhere_is_a_hit_that_locates_nothing() {
        let asked = Asked::of(&street(), &table());
        let subject = asked.subjects.iter().find(|s| s.name == "car").unwrap();
        let mask = |pixels: [bool; 5]| RefinedMask {
            query: 0,
            score: 0.9,
            predicted_iou: 0.5,
            mask: BinaryMask::from_pixels(FrameSize::new(5, 1).unwrap(), pixels),
        };
        for (pixels, located) in [
            ([false, true, false, false, false], 0),
            ([true, true, true, false, false], 1),
        ] {
            let mut counts = Published::default();
            subject.count(&[&mask(pixels)], &mut counts);
            assert_eq!(counts.hit, Share { count: 1, of: 1 });
            assert_eq!(counts.located, Share { count: located, of: 1 });
        }
        let mut counts = Published::default();
        subject.count(&[], &mut counts);
        assert_eq!((counts.hit.count, counts.located.of), (0, 1));
    }
}
