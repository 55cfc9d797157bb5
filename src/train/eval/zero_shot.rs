//! Zero-shot classification and retrieval by captions: the image embedding against text embeddings.
//!
//! Classification: a photo takes part if its collection gives it one name, or a name and a finer one (the last is asked
//! then, "pug" of "dog, pug"); lists of tags do not. All names that the collection gives to any photo compete, 80
//! templates averaged; two classes of one name are two, and of equal scores the class that is listed first has the
//! better one. Retrieval: every caption that fits the model's context against every photo with captions; text-to-image
//! looks for the caption's own photo, image-to-text for any of the photo's captions (R@K as in the CLIP paper, arXiv
//! 2103.00020).

use std::collections::BTreeMap;

use super::presence::Share;
use super::report::Entry;
use super::{EvalError, ImageText, chosen};
use crate::train::dataset::{Dataset, RawSample, Split};

/// Accuracy on one collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// The collection.
    pub collection: String,
    /// Classes that compete.
    pub names: usize,
    /// Whether each photo's name is the most similar one, in the order of the data set.
    pub right: Vec<bool>,
    /// It is among the five most similar ones.
    pub top5: Share,
}

impl Accuracy {
    /// The photo's name is the most similar one.
    #[must_use]
    pub fn top1(&self) -> Share {
        Share {
            count: self.right.iter().filter(|&&right| right).count(),
            of: self.right.len(),
        }
    }
}

/// How much more often one model is right than another on the same photos.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Difference of the shares, -1 to 1.
    pub mean: f64,
    /// Its standard error: photos on which both are right or both are wrong add nothing to it. One photo has none.
    pub error: Option<f64>,
}

impl Difference {
    /// Of the answers of two models to the same photos, in the same order; nothing where there are no photos.
    #[must_use]
    pub fn paired(own: &[bool], other: &[bool]) -> Option<Self> {
        let photos = own.len() as f64;
        if own.is_empty() || own.len() != other.len() {
            return None;
        }
        let won = own.iter().zip(other).filter(|(own, other)| own > other).count() as f64;
        let lost = own.iter().zip(other).filter(|(own, other)| own < other).count() as f64;
        let mean = (won - lost) / photos;
        let squares = (won + lost) / photos - mean * mean;
        Some(Self {
            mean,
            error: (own.len() > 1).then(|| (squares / (photos - 1.0)).sqrt()),
        })
    }
}

/// The name that a photo is to be given; none for photos without labels and with lists of tags.
pub(super) fn label(sample: &RawSample) -> Option<&str> {
    let labels = &sample.info.labels;
    (labels.len() <= 2).then(|| labels.last().map(String::as_str)).flatten()
}

/// A class of a collection: its name, and which of the collection's classes it is where others share the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class<'a> {
    pub(super) name: &'a str,
    which: Option<&'a str>,
}

impl<'a> Class<'a> {
    /// The class that a photo is to be given; none where there is no [`label`].
    pub(super) fn of(sample: &'a RawSample) -> Option<Self> {
        label(sample).map(|name| Self {
            name,
            which: sample.info.class.as_deref(),
        })
    }
}

/// Classes that each collection gives to any photo, in alphabetical order.
pub(super) fn vocabularies(dataset: &Dataset) -> BTreeMap<&str, Vec<Class<'_>>> {
    let mut classes: BTreeMap<&str, Vec<Class>> = BTreeMap::new();
    for sample in dataset.samples() {
        if let Some(class) = Class::of(sample) {
            classes.entry(&sample.info.source).or_default().push(class);
        }
    }
    for list in classes.values_mut() {
        list.sort();
        list.dedup();
    }
    classes
}

/// How many classes come before `own`: those with a better score, and those listed before it with the same.
pub(super) fn rank(scores: &[f32], own: usize) -> usize {
    let before = |&(i, &score): &(usize, &f32)| score > scores[own] || (score == scores[own] && i < own);
    scores.iter().enumerate().filter(before).count()
}

/// Zero-shot classification of at most `limit` photos of one part.
///
/// # Errors
/// [`EvalError`] if a photo or a name cannot be used or the model fails.
pub fn classify(
    model: &mut dyn ImageText,
    dataset: &Dataset,
    part: Option<Split>,
    limit: usize,
) -> Result<Vec<Accuracy>, EvalError> {
    let vocabularies = vocabularies(dataset);
    let mut embedded: BTreeMap<&str, Vec<Vec<f32>>> = BTreeMap::new();
    let mut found: BTreeMap<&str, Accuracy> = BTreeMap::new();
    let labelled = chosen(dataset, part).filter(|&i| label(&dataset.samples()[i]).is_some());
    for index in labelled.take(limit) {
        let raw = &dataset.samples()[index];
        let (source, Some(class)) = (raw.info.source.as_str(), Class::of(raw)) else {
            continue;
        };
        let classes = &vocabularies[source];
        if !embedded.contains_key(source) {
            let names: Vec<String> = classes.iter().map(|class| class.name.to_owned()).collect();
            embedded.insert(source, model.names(&names)?);
        }
        let image = model.image(&dataset.get(index)?)?;
        let scores: Vec<f32> = embedded[source].iter().map(|text| dot(&image, text)).collect();
        let own = classes.iter().position(|c| *c == class);
        let before = own.map_or(scores.len(), |own| rank(&scores, own));
        let accuracy = found.entry(source).or_insert_with(|| Accuracy {
            collection: source.to_owned(),
            names: classes.len(),
            right: Vec::new(),
            top5: Share::default(),
        });
        accuracy.right.push(before == 0);
        accuracy.top5.add(before < 5);
    }
    Ok(found.into_values().collect())
}

/// The rows of a table.
#[must_use]
pub fn accuracy_entries(found: &[Accuracy]) -> Vec<Entry> {
    let rows = found.iter().flat_map(|a| {
        let top1 = a.top1();
        let head = format!("{}, {} photos, {} names", a.collection, top1.of, a.names);
        [
            Entry::percent(format!("{head}: top-1 %"), top1.value()),
            Entry::percent(format!("{head}: top-5 %"), a.top5.value()),
        ]
    });
    rows.collect()
}

/// Recall of retrieval by captions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retrieval {
    /// Photos with captions.
    pub photos: usize,
    /// Captions left out because they are longer than the model's context.
    pub too_long: usize,
    /// Text to image: the right photo first, and among the first five.
    pub to_image: [Share; 2],
    /// Image to text: one of the right captions first, and among the first five.
    pub to_text: [Share; 2],
}

/// Retrieval among at most `limit` captioned photos of one part.
///
/// # Errors
/// [`EvalError`] if a photo cannot be used or the model fails.
pub fn retrieve(
    model: &mut dyn ImageText,
    dataset: &Dataset,
    part: Option<Split>,
    limit: usize,
) -> Result<Retrieval, EvalError> {
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    let mut too_long = 0;
    let captioned = chosen(dataset, part).filter(|&i| !dataset.samples()[i].info.captions.is_empty());
    for index in captioned.take(limit) {
        let sample = dataset.get(index)?;
        let texts = model.sentences(&sample.info.captions)?;
        too_long += texts.iter().filter(|t| t.is_none()).count();
        captions.extend(texts.into_iter().flatten().map(|t| (images.len(), t)));
        images.push(model.image(&sample)?);
    }
    let mut retrieval = ranked(&images, &captions);
    retrieval.too_long = too_long;
    Ok(retrieval)
}

/// Ranks everything against everything; a caption carries the index of its photo.
fn ranked(images: &[Vec<f32>], captions: &[(usize, Vec<f32>)]) -> Retrieval {
    let mut retrieval = Retrieval {
        photos: images.len(),
        ..Retrieval::default()
    };
    for (own, text) in captions {
        let reference = dot(&images[*own], text);
        let better = images.iter().filter(|image| dot(image, text) > reference).count();
        retrieval.to_image[0].add(better == 0);
        retrieval.to_image[1].add(better < 5);
    }
    for (index, image) in images.iter().enumerate() {
        let scores: Vec<(bool, f32)> = captions.iter().map(|(own, t)| (*own == index, dot(image, t))).collect();
        let best = scores
            .iter()
            .filter(|s| s.0)
            .map(|s| s.1)
            .fold(f32::NEG_INFINITY, f32::max);
        if best > f32::NEG_INFINITY {
            let better = scores.iter().filter(|s| !s.0 && s.1 > best).count();
            retrieval.to_text[0].add(better == 0);
            retrieval.to_text[1].add(better < 5);
        }
    }
    retrieval
}

impl Retrieval {
    /// The rows of a table; none if no photo has captions.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let (photos, captions) = (self.photos, self.to_image[0].of);
        if captions == 0 {
            return Vec::new();
        }
        let head = format!("{photos} photos, {captions} captions");
        vec![
            Entry::percent(format!("{head}: text to image R@1 %"), self.to_image[0].value()),
            Entry::percent(format!("{head}: text to image R@5 %"), self.to_image[1].value()),
            Entry::percent(format!("{head}: image to text R@1 %"), self.to_text[0].value()),
            Entry::percent(format!("{head}: image to text R@5 %"), self.to_text[1].value()),
            Entry::new("captions too long", self.too_long as f64, 0),
        ]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::Sample;

    #[test]
    fn recall_counts_the_own_photo_and_any_own_caption() {
        let images = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![0.8, 0.6]];
        let captions = vec![
            (0, vec![1.0, 0.0]),  // finds its photo
            (1, vec![0.8, 0.6]),  // finds photo 2 before its own
            (1, vec![-0.6, 0.8]), // finds its photo
            (2, vec![0.0, 1.0]),  // finds photo 1 before its own
        ];
        let found = ranked(&images, &captions);
        assert_eq!(found.to_image[0], Share { count: 2, of: 4 });
        assert_eq!(found.to_image[1], Share { count: 4, of: 4 });
        // photo 0: its own caption is best; photo 1: caption of photo 2 beats both own ones; photo 2: likewise
        assert_eq!(found.to_text[0], Share { count: 1, of: 3 });
        assert_eq!(found.to_text[1], Share { count: 3, of: 3 });
        assert_eq!(found.entries()[0].name, "3 photos, 4 captions: text to image R@1 %");
    }

    #[test]
    fn a_difference_is_as_uncertain_as_the_photos_on_which_two_models_disagree() {
        let photos = |right: &str| right.chars().map(|c| c == '1').collect::<Vec<bool>>();
        let found = Difference::paired(&photos("11000000"), &photos("10110000")).unwrap();
        assert!((found.mean + 0.125).abs() < 1e-12, "{found:?}");
        // differences 0 1 -1 -1 0 0 0 0: squares add up to 3, the mean is -1/8
        let expected = ((3.0 - 8.0 / 64.0) / (8.0 * 7.0_f64)).sqrt();
        assert!((found.error.unwrap() - expected).abs() < 1e-12, "{found:?}");
        let same = Difference::paired(&photos("1100"), &photos("1100")).unwrap();
        assert_eq!((same.mean, same.error), (0.0, Some(0.0)));
        let one = Difference::paired(&[false], &[true]).unwrap();
        assert_eq!((one.mean, one.error), (-1.0, None));
        assert_eq!(Difference::paired(&[], &[]), None);
    }

    /// Embeds a photo as its first pixel, a name as what it says.
    struct Colours;

    impl ImageText for Colours {
        fn image(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
            Ok(vec![f32::from(photo.photo.rgb[0]) - 127.0, 1.0])
        }

        fn names(&mut self, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError> {
            Ok(names
                .iter()
                .map(|n| vec![if n == "night" { -1.0 } else { 1.0 }, 0.0])
                .collect())
        }

        fn sentences(&mut self, _: &[String]) -> Result<Vec<Option<Vec<f32>>>, EvalError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn two_folders_of_one_name_are_two_classes_of_which_one_can_be_right() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("names.txt"), "n01 crane\nn02 crane\nn03 night\n").unwrap();
        for (class, level) in [("n01", 250), ("n02", 250), ("n03", 0)] {
            let folder = root.path().join("val").join(class);
            std::fs::create_dir_all(&folder).unwrap();
            let picture = image::RgbImage::from_pixel(4, 4, image::Rgb([level; 3]));
            picture.save(folder.join("a.png")).unwrap();
        }
        let dataset = Dataset::open(&[root.path().join("val").to_str().unwrap()]).unwrap();
        let found = classify(&mut Colours, &dataset, None, usize::MAX).unwrap();
        assert_eq!(
            (found[0].names, found[0].right.as_slice()),
            (3, &[true, false, true][..])
        );
        assert_eq!(found[0].top5, Share { count: 3, of: 3 });
    }

    #[test]
    fn of_equal_scores_the_first_class_has_the_better_one() {
        assert_eq!([0, 1, 2, 3].map(|own| rank(&[0.5, 0.9, 0.9, 0.1], own)), [2, 0, 1, 3]);
    }

    #[test]
    fn no_captions_make_no_rows() {
        assert!(ranked(&[], &[]).entries().is_empty());
    }
}
