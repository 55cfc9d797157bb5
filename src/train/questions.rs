//! What the daemon asks the SAM head about a view, and what the labels answer.
//!
//! Prompts come from the daemon's own code ([`crate::vision::query`]), so the SAM head meets in training what it meets on a
//! camera. Cells that the labels leave open (unlabelled pixels, a part whose whole is asked for, what belongs to another
//! prompt of the same query) neither count for a mask nor against it.

use std::collections::VecDeque;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::train::dataset::names::overlap;
use crate::train::feed::{BACKGROUND, PixelNames, PromptBatch};
use crate::vision::query::DecoderPrompt;

/// Most names that are asked for beside those in the view.
const OTHERS: usize = 8;

/// Least share of a prompt's own area that the labels must give to the name: below, it is a false alarm, whose right answer no
/// mask is.
const LEAST_RIGHT: f32 = 0.25;

/// A prompt and its answer.
#[derive(Clone, Debug)]
pub struct Question {
    /// The prompt.
    pub prompt: DecoderPrompt,
    /// `[4g, 4g]`, 0-1: share of the cell's known pixels inside the mask.
    pub target: Vec<f32>,
    /// `[4g, 4g]`: 1 where the labels know the answer, else 0.
    pub known: Vec<f32>,
}

/// Names to ask for together: half the time one of those in the view alone, else all of them and some of `all` that nothing in
/// the view may be called.
pub fn names_to_ask(labels: &PixelNames, all: &[String], rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut shown = vec![false; labels.names.len() + 2];
    labels.index.iter().for_each(|&i| shown[usize::from(i)] = true);
    let present = labels.names.iter().zip(&shown[2..]).filter(|(_, shown)| **shown);
    let mut asked: Vec<String> = present.map(|(name, _)| name.clone()).collect();
    if asked.is_empty() {
        return asked;
    }
    if rng.random_bool(0.5) {
        let one = rng.random_range(0..asked.len());
        return vec![asked.swap_remove(one)];
    }
    for _ in 0..rng.random_range(0..=OTHERS) {
        let Some(name) = all.choose(rng) else { break };
        if name != BACKGROUND && !asked.iter().any(|other| overlap(other, name)) {
            asked.push(name.clone());
        }
    }
    asked
}

/// The prompts about `asked` that are more right than wrong, with their answers by `labels` of a view of `side` pixels; `low` is
/// the side of masks.
#[must_use]
pub fn answered(
    prompts: Vec<DecoderPrompt>,
    asked: &[String],
    labels: &PixelNames,
    side: usize,
    low: usize,
) -> Vec<Question> {
    let nearest = nearest(&prompts, low);
    let questions = prompts.into_iter().enumerate().filter_map(|(index, prompt)| {
        let (mut target, mut known) = cells(labels, &asked[prompt.query], side, low);
        for (cell, near) in nearest.iter().enumerate() {
            if target[cell] > 0.0 && near[prompt.query].is_some_and(|near| near != index) {
                (target[cell], known[cell]) = (0.0, 0.0);
            }
        }
        let own = || (0..low * low).filter(|&cell| prompt.mask[cell] > 0.0 && known[cell] > 0.0);
        let right: f32 = own().map(|cell| target[cell]).sum();
        (right > 0.0 && right >= LEAST_RIGHT * own().count() as f32).then_some(Question { prompt, target, known })
    });
    questions.collect()
}

/// What a label says about a name: it is, it is not, or nothing.
fn says(labels: &PixelNames, name: &str) -> Vec<Option<bool>> {
    let background = labels.annotated.iter().any(|known| known == name).then_some(false);
    let named = labels.names.iter().map(|label| match label == name {
        true => Some(true),
        false => (!overlap(label, name)).then_some(false),
    });
    [None, background].into_iter().chain(named).collect()
}

/// Share of each cell's known pixels that are `name`, and whether at least half of its pixels are known: `[low, low]` each.
fn cells(labels: &PixelNames, name: &str, side: usize, low: usize) -> (Vec<f32>, Vec<f32>) {
    let (says, cell) = (says(labels, name), side / low);
    let (mut inside, mut known) = (vec![0.0_f32; low * low], vec![0.0_f32; low * low]);
    for y in 0..low * cell {
        for x in 0..low * cell {
            if let Some(is) = says[usize::from(labels.index[y * side + x])] {
                let at = (y / cell) * low + x / cell;
                known[at] += 1.0;
                inside[at] += f32::from(u8::from(is));
            }
        }
    }
    let half = (cell * cell) as f32 / 2.0;
    for (inside, known) in inside.iter_mut().zip(&mut known) {
        let counts = *known >= half;
        *inside = if counts { *inside / *known } else { 0.0 };
        *known = f32::from(u8::from(counts));
    }
    (inside, known)
}

/// Per cell and query, the prompt of that query whose own area is nearest, in steps along the grid.
fn nearest(prompts: &[DecoderPrompt], low: usize) -> Vec<Vec<Option<usize>>> {
    let queries = prompts.iter().map(|p| p.query + 1).max().unwrap_or(0);
    let mut found = vec![vec![None; queries]; low * low];
    let mut next = VecDeque::new();
    for (index, prompt) in prompts.iter().enumerate() {
        for cell in (0..low * low).filter(|&cell| prompt.mask[cell] > 0.0) {
            next.push_back((cell, index));
        }
    }
    while let Some((cell, index)) = next.pop_front() {
        let slot = &mut found[cell][prompts[index].query];
        if slot.is_some() {
            continue;
        }
        *slot = Some(index);
        let (x, y) = (cell % low, cell / low);
        let around = [
            (x > 0).then(|| cell - 1),
            (x + 1 < low).then_some(cell + 1),
            (y > 0).then(|| cell - low),
            (y + 1 < low).then_some(cell + low),
        ];
        next.extend(around.into_iter().flatten().map(|cell| (cell, index)));
    }
    found
}

impl PromptBatch {
    /// Adds the questions about one view, at most `per_image`, each with `n` points and a mask of side `low`; rows that are left
    /// do not count.
    pub fn push_questions(&mut self, questions: &[Question], per_image: usize, n: usize, low: usize) {
        self.per_image = per_image;
        for row in 0..per_image {
            let question = questions.get(row);
            let points = question.map_or(&[][..], |q| &q.prompt.points);
            for slot in 0..n {
                // Pixel indices: the prompt encoder adds the half pixel of the centre.
                let at = points.get(slot).map_or([0.0; 2], |p| [p.x - 0.5, p.y - 0.5]);
                self.coords.extend(at);
                self.labels.push(if slot < points.len() { 1.0 } else { -1.0 });
            }
            let mut plane = |of: fn(&Question) -> &Vec<f32>, to: fn(&mut Self) -> &mut Vec<f32>| match question {
                Some(question) => to(self).extend_from_slice(of(question)),
                None => to(self).extend(std::iter::repeat_n(0.0, low * low)),
            };
            plane(|q| &q.prompt.mask, |batch| &mut batch.mask);
            plane(|q| &q.target, |batch| &mut batch.target);
            plane(|q| &q.known, |batch| &mut batch.known);
            let there = f32::from(u8::from(question.is_some()));
            self.has_mask.push(there);
            self.counts.push(there);
            self.named.push(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::vision::geometry::ModelPoint;

    const LOW: usize = 8;

    /// A view of 16 × 16: sky in the upper half, then car on the left and background on the right, the last row unlabelled.
    fn labels() -> PixelNames {
        let index = (0..256).map(|i| match (i / 16, i % 16) {
            (0..8, _) => 2,
            (15, _) => 0,
            (_, 0..8) => 3,
            _ => 1,
        });
        PixelNames {
            index: index.collect(),
            names: vec!["sky".into(), "car".into(), "horse".into()],
            annotated: vec!["car".into()],
            rough: false,
        }
    }

    /// A prompt whose own area are the cells with `own(x, y)`.
    fn prompt(query: usize, own: fn(usize, usize) -> bool) -> DecoderPrompt {
        let value = |i: usize| if own(i % LOW, i / LOW) { 4.0 } else { -4.0 };
        DecoderPrompt {
            query,
            score: 0.9,
            points: vec![ModelPoint { x: 3.0, y: 5.0 }],
            mask: (0..LOW * LOW).map(value).collect(),
        }
    }

    fn asked(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn labels_answer_where_they_know() {
        let questions = answered(vec![prompt(0, |_, y| y > 4)], &asked(&["car"]), &labels(), 16, LOW);
        let Question { target, known, .. } = &questions[0];
        assert_eq!((target[0], known[0]), (0.0, 1.0), "sky is no car");
        assert_eq!((target[4 * LOW], known[4 * LOW]), (1.0, 1.0), "car");
        assert_eq!(
            (target[4 * LOW + 7], known[4 * LOW + 7]),
            (0.0, 1.0),
            "cars are annotated"
        );
        assert_eq!(
            (target[7 * LOW], known[7 * LOW]),
            (1.0, 1.0),
            "one of two rows is labelled"
        );

        let questions = answered(vec![prompt(0, |_, y| y < 4)], &asked(&["sky"]), &labels(), 16, LOW);
        assert_eq!(
            questions[0].known[4 * LOW + 7],
            0.0,
            "skies are not annotated: background may be one"
        );
        assert_eq!(questions[0].known[4 * LOW], 1.0, "a car is no sky");
    }

    #[test]
    fn a_part_is_neither_the_whole_nor_not() {
        let mut labels = labels();
        labels.names[0] = "window".into();
        let questions = answered(
            vec![prompt(0, |x, y| y > 3 && x < 4)],
            &asked(&["car"]),
            &labels,
            16,
            LOW,
        );
        assert_eq!((questions[0].target[0], questions[0].known[0]), (0.0, 0.0));
    }

    #[test]
    fn a_false_alarm_is_no_question_and_a_partly_right_one_is() {
        let ask = |own| answered(vec![prompt(0, own)], &asked(&["car"]), &labels(), 16, LOW).len();
        assert_eq!(ask(|_, y| y < 4), 0, "sky");
        assert_eq!(ask(|x, y| y < 4 || (x == 0 && y == 4)), 0, "1 cell of 33");
        assert_eq!(ask(|x, _| x < 4), 1, "half of it");
    }

    #[test]
    fn each_of_two_prompts_answers_for_what_is_nearer_to_it() {
        let prompts = vec![prompt(0, |x, y| x == 0 && y < 2), prompt(0, |x, y| x == 7 && y < 2)];
        let questions = answered(prompts, &asked(&["sky"]), &labels(), 16, LOW);
        for (question, (own, other)) in questions.iter().zip([(0, 7), (7, 0)]) {
            assert_eq!((question.target[own], question.known[own]), (1.0, 1.0));
            assert_eq!((question.target[other], question.known[other]), (0.0, 0.0));
        }
        let two = vec![prompt(0, |x, y| x == 0 && y < 2), prompt(1, |x, y| x == 0 && y > 5)];
        let questions = answered(two, &asked(&["sky", "car"]), &labels(), 16, LOW);
        assert_eq!(
            questions[0].target[7], 1.0,
            "prompts of other queries take nothing away"
        );
    }

    #[test]
    fn one_name_of_the_view_or_all_of_them_with_strangers_are_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let all = asked(&[BACKGROUND, "sky", "window", "grass", "dog"]);
        let drawn: Vec<_> = (0..200).map(|_| names_to_ask(&labels(), &all, &mut rng)).collect();
        let alone = drawn.iter().filter(|names| names.len() == 1).count();
        assert!((70..130).contains(&alone), "{alone}");
        let has = |names: &Vec<String>, name: &str| names.iter().any(|n| n == name);
        for names in &drawn {
            assert!(
                names.len() == 1 || (has(names, "sky") && has(names, "car")),
                "{names:?}"
            );
            assert!(!has(names, "horse") && !has(names, BACKGROUND), "{names:?}");
            assert!(
                !has(names, "car") || !has(names, "window"),
                "a window may be the car's: {names:?}"
            );
        }
        assert!(drawn.iter().any(|names| has(names, "dog")));
        let nothing = PixelNames::default();
        assert!(names_to_ask(&nothing, &all, &mut rng).is_empty());
    }

    #[test]
    fn rows_without_a_question_do_not_count() {
        let questions = answered(vec![prompt(0, |_, y| y > 4)], &asked(&["car"]), &labels(), 16, LOW);
        let mut batch = PromptBatch::default();
        batch.push_questions(&questions, 2, 2, LOW);
        assert_eq!((batch.per_image, batch.counts.as_slice()), (2, &[1.0, 0.0][..]));
        assert_eq!(batch.labels, [1.0, -1.0, -1.0, -1.0]);
        assert_eq!(batch.coords[..2], [2.5, 4.5]);
        for plane in [&batch.mask, &batch.target, &batch.known] {
            assert_eq!(plane.len(), 2 * LOW * LOW);
        }
    }
}
