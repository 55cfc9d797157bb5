//! What a photo's labels say about the classes of a table, and the counting of right and wrong pixels.

use super::protocol::Protocol;
use crate::train::dataset::names::{canonical, overlap, whole_person};
use crate::train::dataset::{ClassNames, Sample};
use crate::vision::query::sigmoid;

/// Pixels of one class: right, claimed, there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Predicted and labelled so.
    pub both: u64,
    /// Predicted, counted.
    pub predicted: u64,
    /// Labelled so.
    pub labelled: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.both += more.both;
        self.predicted += more.predicted;
        self.labelled += more.labelled;
    }
}

impl Tally {
    /// Intersection over union, 0 where there is neither.
    #[must_use]
    pub fn iou(&self) -> f64 {
        let union = self.predicted + self.labelled - self.both;
        if union == 0 {
            0.0
        } else {
            self.both as f64 / union as f64
        }
    }
}

/// What a pixel is labelled as.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Label {
    Unknown,
    Background,
    Class(usize),
    Other(u8),
}

/// Labels of one photo.
pub(super) struct Truth {
    /// Per pixel, row-major.
    pub(super) label: Vec<Label>,
    /// Per class: whether a prediction on background counts.
    pub(super) annotated: Vec<bool>,
    /// Per table index: classes that a label outside the table may also be called.
    pub(super) tolerated: Vec<Vec<bool>>,
}

impl Truth {
    /// What `sample` says about `classes`, which are [`Protocol::classes`] of the same table.
    pub(super) fn of(sample: &Sample, names: &ClassNames, classes: &[String], protocol: Protocol) -> Self {
        if protocol.strict() {
            return Self::strict(sample, names, classes.len(), protocol);
        }
        let mask = whole_person(sample, names).or_else(|| sample.mask.clone());
        let table: Vec<Label> = (0..names.len())
            .map(|i| {
                let Ok(index) = u8::try_from(i) else {
                    return Label::Unknown;
                };
                match names.name(index).map(|n| (n, canonical(n))) {
                    _ if index == ClassNames::BACKGROUND => Label::Background,
                    Some((_, Some(name))) => classes
                        .iter()
                        .position(|c| *c == name)
                        .map_or(Label::Other(index), Label::Class),
                    _ => Label::Unknown,
                }
            })
            .collect();
        let tolerated = (0..names.len()).map(|i| {
            let name = u8::try_from(i).ok().and_then(|i| names.name(i)).and_then(canonical);
            let also = |class: &String| name.is_some_and(|n| overlap(n, class));
            classes.iter().map(also).collect()
        });
        let labels = mask.map(|m| m.classes).unwrap_or_default();
        let annotated = |class: &String| sample.info.vocab.iter().any(|v| canonical(v) == Some(class));
        Self {
            label: labels.iter().map(|&c| table[usize::from(c)].clone()).collect(),
            annotated: classes.iter().map(annotated).collect(),
            tolerated: tolerated.collect(),
        }
    }

    /// As published: an index is its own class and nothing else, everything is annotated.
    fn strict(sample: &Sample, names: &ClassNames, classes: usize, protocol: Protocol) -> Self {
        let label = |&index: &u8| match usize::from(index).checked_sub(2) {
            Some(class) if class < classes => Label::Class(class),
            None if index == ClassNames::BACKGROUND && protocol.has_background() => Label::Background,
            _ => Label::Unknown,
        };
        let mask = sample.mask.as_ref().map_or(&[][..], |mask| &mask.classes);
        Self {
            label: mask.iter().map(label).collect(),
            annotated: vec![true; classes],
            tolerated: vec![vec![false; classes]; names.len()],
        }
    }

    /// Adds the prediction by `logits[class][pixel]` (log odds) to the tallies of the classes and of the background;
    /// `none` is the background's probability.
    pub(super) fn count(&self, logits: &[Vec<f32>], none: &[f32], tallies: &mut [Tally], background: &mut Tally) {
        for (pixel, label) in self.label.iter().enumerate() {
            let best = (0..tallies.len()).max_by(|&a, &b| logits[a][pixel].total_cmp(&logits[b][pixel]));
            let best = best.filter(|&b| sigmoid(logits[b][pixel]) >= none[pixel]);
            self.count_pixel(label, best, tallies, background);
        }
    }

    /// Adds to each class's tally what predicting it everywhere is worth, by the rules of [`Truth::count_pixel`].
    pub(super) fn count_everywhere(&self, tallies: &mut [Tally]) {
        let (mut background, mut others) = (0, vec![0; self.tolerated.len()]);
        let mut labelled = vec![0; tallies.len()];
        for label in &self.label {
            match label {
                Label::Unknown => {}
                Label::Background => background += 1,
                Label::Class(class) => labelled[*class] += 1,
                Label::Other(index) => others[usize::from(*index)] += 1,
            }
        }
        let of_classes: u64 = labelled.iter().sum();
        for (class, tally) in tallies.iter_mut().enumerate() {
            let counted = |(count, tolerated): (&u64, &Vec<bool>)| if tolerated[class] { 0 } else { *count };
            let of_others: u64 = others.iter().zip(&self.tolerated).map(counted).sum();
            let of_background = if self.annotated[class] { background } else { 0 };
            tally.labelled += labelled[class];
            tally.both += labelled[class];
            tally.predicted += of_classes + of_background + of_others;
        }
    }

    /// Adds one pixel's predicted class, or none for background.
    pub(super) fn count_pixel(
        &self,
        label: &Label,
        predicted: Option<usize>,
        tallies: &mut [Tally],
        background: &mut Tally,
    ) {
        let counted = *label != Label::Unknown;
        background.predicted += u64::from(counted && predicted.is_none());
        match label {
            Label::Unknown => {}
            Label::Background => {
                background.labelled += 1;
                background.both += u64::from(predicted.is_none());
                if let Some(b) = predicted.filter(|&b| self.annotated[b]) {
                    tallies[b].predicted += 1;
                }
            }
            Label::Other(index) => {
                if let Some(b) = predicted.filter(|&b| !self.tolerated[usize::from(*index)][b]) {
                    tallies[b].predicted += 1;
                }
            }
            Label::Class(class) => {
                tallies[*class].labelled += 1;
                if let Some(b) = predicted {
                    tallies[b].predicted += 1;
                    tallies[b].both += u64::from(b == *class);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::dataset::{ClassMask, Photo, SampleInfo};

    const CLASSES: usize = 10;

    fn truth(label: Vec<Label>) -> Truth {
        let mut annotated = vec![false; CLASSES];
        annotated[1] = true;
        let mut tolerated = vec![vec![false; CLASSES]; 2];
        tolerated[1][4] = true;
        Truth {
            label,
            annotated,
            tolerated,
        }
    }

    /// Logits that name `class` on every pixel, with `level`.
    fn everywhere(class: usize, level: f32, pixels: usize) -> Vec<Vec<f32>> {
        (0..CLASSES)
            .map(|c| vec![if c == class { level } else { level - 5.0 }; pixels])
            .collect()
    }

    #[test]
    fn right_wrong_and_ignored_pixels_are_counted_once() {
        let labels = vec![
            Label::Class(1),
            Label::Class(0),
            Label::Unknown,
            Label::Background,
            Label::Other(1),
        ];
        let mut tallies = [Tally::default(); CLASSES];
        truth(labels).count(&everywhere(1, 1.0, 5), &[0.5; 5], &mut tallies, &mut Tally::default());
        assert_eq!(
            tallies[1],
            Tally {
                both: 1,
                predicted: 4,
                labelled: 1
            }
        );
        assert_eq!(
            tallies[0],
            Tally {
                both: 0,
                predicted: 0,
                labelled: 1
            }
        );
        assert!((tallies[1].iou() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn one_class_everywhere_is_worth_what_its_prediction_would_be() {
        let labels = || {
            vec![
                Label::Class(1),
                Label::Class(4),
                Label::Unknown,
                Label::Background,
                Label::Other(0),
                Label::Other(1),
            ]
        };
        let mut everywhere_at_once = [Tally::default(); CLASSES];
        truth(labels()).count_everywhere(&mut everywhere_at_once);
        for (class, found) in everywhere_at_once.iter().enumerate() {
            let mut tallies = [Tally::default(); CLASSES];
            truth(labels()).count(
                &everywhere(class, 1.0, 6),
                &[0.5; 6],
                &mut tallies,
                &mut Tally::default(),
            );
            assert_eq!(*found, tallies[class], "class {class}");
        }
    }

    #[test]
    fn background_is_right_where_nothing_is_predicted() {
        let labels = vec![Label::Background, Label::Class(1), Label::Unknown, Label::Background];
        let (mut tallies, mut background) = ([Tally::default(); CLASSES], Tally::default());
        let mut logits = everywhere(1, -3.0, 4);
        logits[1][3] = 3.0;
        truth(labels).count(&logits, &[0.5; 4], &mut tallies, &mut background);
        let expected = Tally {
            both: 1,
            predicted: 2,
            labelled: 2,
        };
        assert_eq!(background, expected);
    }

    #[test]
    fn unannotated_background_and_overlapping_names_are_no_mistakes() {
        let mut tallies = [Tally::default(); CLASSES];
        truth(vec![Label::Background, Label::Other(1)]).count(
            &everywhere(4, 1.0, 2),
            &[0.5; 2],
            &mut tallies,
            &mut Tally::default(),
        );
        assert_eq!(tallies[4], Tally::default());
    }

    /// A photo of the given indices; names 2, 3 and 4 of the table are a whole, a part of it, and a synonym of the whole.
    fn labelled(classes: &[u8]) -> (Sample, ClassNames) {
        let names = ["unlabelled", "background", "person", "hair", "pedestrian"].map(str::to_owned);
        let sample = Sample {
            key: "k".into(),
            photo: Photo {
                width: classes.len(),
                height: 1,
                rgb: vec![0; 3 * classes.len()],
            },
            mask: Some(ClassMask {
                width: classes.len(),
                height: 1,
                classes: classes.to_vec(),
            }),
            segments: None,
            info: SampleInfo::default(),
            regions: Vec::new(),
        };
        (sample, ClassNames::new(names.to_vec()))
    }

    /// Tallies of "person" everywhere, and of the background.
    fn person_everywhere(indices: &[u8], protocol: Protocol, classes: &[&str]) -> (Vec<Tally>, Tally) {
        let (sample, names) = labelled(indices);
        let classes: Vec<String> = classes.iter().map(|&c| c.to_owned()).collect();
        let truth = Truth::of(&sample, &names, &classes, protocol);
        let logits: Vec<Vec<f32>> = (0..classes.len())
            .map(|c| vec![if c == 0 { 1.0 } else { -1.0 }; indices.len()])
            .collect();
        let (mut tallies, mut background) = (vec![Tally::default(); classes.len()], Tally::default());
        truth.count(&logits, &vec![0.5; indices.len()], &mut tallies, &mut background);
        (tallies, background)
    }

    #[test]
    fn as_published_every_name_is_a_class_and_every_wrong_pixel_counts() {
        let (tallies, background) =
            person_everywhere(&[0, 1, 2, 3, 4], Protocol::Published, &["person", "hair", "pedestrian"]);
        let tally = |both, predicted, labelled| Tally {
            both,
            predicted,
            labelled,
        };
        assert_eq!(tallies, [tally(1, 4, 1), tally(0, 0, 1), tally(0, 0, 1)]);
        assert_eq!(background, tally(0, 0, 1));
        let (open, _) = person_everywhere(&[0, 1, 2, 3, 4], Protocol::Open, &["person"]);
        assert_eq!(
            open,
            [tally(2, 2, 2)],
            "hair is the person's, a pedestrian is one, nobody annotated the rest"
        );
    }

    #[test]
    fn without_background_what_shows_none_of_the_names_does_not_count() {
        let classes = ["person", "hair", "pedestrian"];
        let (tallies, background) = person_everywhere(&[1, 1, 2, 0, 3], Protocol::PublishedNoBackground, &classes);
        let person = Tally {
            both: 1,
            predicted: 2,
            labelled: 1,
        };
        assert_eq!((tallies[0], tallies[1].labelled), (person, 1));
        assert_eq!(background, Tally::default());
    }

    #[test]
    fn a_pixel_whose_best_name_is_below_the_background_has_none() {
        let mut tallies = [Tally::default(); CLASSES];
        truth(vec![Label::Class(1)]).count(&everywhere(1, -0.1, 1), &[0.5], &mut tallies, &mut Tally::default());
        assert_eq!(
            tallies[1],
            Tally {
                both: 0,
                predicted: 0,
                labelled: 1
            }
        );
    }
}
