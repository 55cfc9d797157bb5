//! Does the daemon report what is there, and keep silent about what is not?
//!
//! The protocol: every labelled photo of one part of the data is asked three lists of queries. *Absent*: ten names of
//! the class table that [`is_absent`] rules out, drawn by the photo's key (fewer where its collection annotates fewer).
//! *Outside*: [`OUTSIDE`], words that no mask is named by; nobody has checked that no photo shows one, so a photo whose
//! own words mention one is not asked it. *Present*: every labelled name that covers at least 1 % of the photo.
//! Queries go through the daemon's stages (scores, prompts, mask decoder, refinement, smallest area), once with the
//! whole list asked at the same time and once each alone; a query asked for itself is no background prompt.
//!
//! An alarm is a query with at least one published mask. A present query is *hit* if one is published, *located* if
//! its masks together reach IoU 0.5 with its label; unlabelled pixels and names that may be called so do not count.
//!
//! [`is_absent`]: crate::train::dataset::names::is_absent

mod asked;

use serde::Serialize;

use super::report::{Entry, Section};
use super::wording::{Words, competitors, tokenizer};
use super::{EvalError, chosen, frame};
use crate::contract::{Bundle, Manifest};
use crate::runtime::Engine;
use crate::train::dataset::{Dataset, Split};
use crate::vision::features::Features;
use crate::vision::geometry::Letterbox;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{PromptRules, Queries, ScoreMap, score};
use crate::vision::refine::{RefineRules, RefinedMask, refine};
use asked::{Asked, Subject};

/// Words that no mask of the collections is named by.
pub const OUTSIDE: [&str; 10] = [
    "elephant",
    "pizza",
    "submarine",
    "helicopter",
    "refrigerator",
    "giraffe",
    "piano",
    "snowboard",
    "keyboard",
    "banana",
];

/// The thresholds at which everything is counted.
pub const SWEEP: [f32; 19] = [
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
];

/// Smallest published mask in frame pixels, as `samclipd segment` has it: half of the daemon's default, so that alarms are not
/// underrated.
const MIN_AREA: usize = 32;

/// Share of a photo that a labelled name must cover to be asked.
const LEAST_SHARE: f64 = 0.01;

/// IoU from which on a present query is located.
const LOCATED: f64 = 0.5;

/// Columns of the table in the order of [`Published`]: name, factor, digits.
const COLUMNS: [(&str, f64, usize); 4] = [
    ("alarms of ten absent", 10.0, 2),
    ("alarms of ten outside", 10.0, 2),
    ("present, hit %", 100.0, 1),
    ("present, located %", 100.0, 1),
];

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Those that are.
    pub count: usize,
    /// All.
    pub of: usize,
}

impl Share {
    /// The share, 0-1; 0 of nothing.
    #[must_use]
    pub fn value(self) -> f64 {
        self.count as f64 / self.of.max(1) as f64
    }

    pub(super) fn add(&mut self, yes: bool) {
        self.count += usize::from(yes);
        self.of += 1;
    }
}

/// What was published at one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Published {
    /// False alarms among absent queries.
    pub absent: Share,
    /// False alarms among the words outside training.
    pub outside: Share,
    /// Present queries with a published mask.
    pub hit: Share,
    /// Present queries whose masks reach IoU 0.5 with the label.
    pub located: Share,
}

/// One threshold of the sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PresenceRow {
    /// Score threshold of every query.
    pub threshold: f32,
    /// The queries of a list asked at the same time.
    pub together: Published,
    /// Each query asked alone: the hardest case, nothing but background competes.
    pub alone: Published,
}

/// The measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Presence {
    /// Photos asked.
    pub photos: usize,
    /// Score threshold of the bundle.
    pub bundle_threshold: f32,
    /// One row per threshold of [`SWEEP`], rising.
    pub rows: Vec<PresenceRow>,
}

impl Presence {
    fn new(bundle_threshold: f32) -> Self {
        let row = |threshold| PresenceRow {
            threshold,
            ..PresenceRow::default()
        };
        Self {
            photos: 0,
            bundle_threshold,
            rows: SWEEP.map(row).to_vec(),
        }
    }

    /// The row whose threshold is nearest.
    #[must_use]
    pub fn at(&self, threshold: f32) -> &PresenceRow {
        let distance = |row: &PresenceRow| (row.threshold - threshold).abs();
        let nearest = self.rows.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.expect("the sweep has rows")
    }

    /// The sweep as a table: a row per threshold, alarms per ten queries, hits in percent.
    #[must_use]
    pub fn section(&self, model: &str, protocol: &str) -> Section {
        let mut columns = Vec::new();
        for how in ["together", "alone"] {
            for (index, (what, factor, decimals)) in COLUMNS.into_iter().enumerate() {
                let entry = |row: &PresenceRow| {
                    let published = if how == "alone" { &row.alone } else { &row.together };
                    let Published {
                        absent,
                        outside,
                        hit,
                        located,
                    } = published;
                    let share = [absent, outside, hit, located][index].value();
                    Entry::new(format!("threshold {:.2}", row.threshold), factor * share, decimals)
                };
                columns.push((format!("{how}: {what}"), self.rows.iter().map(entry).collect()));
            }
        }
        let title = format!(
            "Presence by threshold: {model}, {} photos, own threshold {:.2}",
            self.photos, self.bundle_threshold
        );
        Section::new(&title, protocol, columns)
    }
}

/// Counts false alarms and hits of `bundle`, opened as `engine`, on at most `limit` labelled photos of one part.
///
/// # Errors
/// [`EvalError`] if the bundle does not run or a photo cannot be read.
pub fn presence(
    engine: &mut Engine,
    bundle: &Bundle,
    dataset: &Dataset,
    part: impl Into<Option<Split>>,
    limit: usize,
) -> Result<Presence, EvalError> {
    let mut words = Words::new(tokenizer(bundle)?, bundle.manifest.encoder.embed_dim);
    let mut presence = Presence::new(bundle.manifest.calibration.threshold);
    let mut preprocessor = Preprocessor::new(&bundle.manifest.encoder);
    let mut features = Features::default();
    let labelled = chosen(dataset, part.into()).filter(|&i| dataset.samples()[i].mask.is_some());
    for index in labelled.take(limit) {
        let sample = dataset.get(index)?;
        let letterbox = preprocessor.run(&frame(&sample)?)?;
        engine.encoder.encode(preprocessor.tensor(), &mut features)?;
        let asked = Asked::of(&sample, dataset.names());
        let texts = asked.subjects.iter().map(|s| s.name.as_str());
        words.learn(
            &mut *engine.text,
            texts.chain(bundle.manifest.background.iter().map(String::as_str)),
        )?;
        let mut photo = Photo {
            engine,
            manifest: &bundle.manifest,
            words: &words,
            features: &features,
            letterbox,
        };
        let (mut together, mut alone) = (photo.score(asked.together())?, photo.score(asked.alone())?);
        for row in &mut presence.rows {
            photo.ask(row.threshold, &mut together, &mut row.together)?;
            photo.ask(row.threshold, &mut alone, &mut row.alone)?;
        }
        presence.photos += 1;
    }
    Ok(presence)
}

/// Names that are asked at the same time, with their scores.
struct Scored<'s> {
    list: Vec<&'s Subject>,
    scores: ScoreMap,
}

/// One encoded photo.
struct Photo<'a> {
    engine: &'a mut Engine,
    manifest: &'a Manifest,
    words: &'a Words,
    features: &'a Features,
    letterbox: Letterbox,
}

impl Photo<'_> {
    /// Scores of each list, asked on its own.
    fn score<'s>(&self, lists: Vec<Vec<&'s Subject>>) -> Result<Vec<Scored<'s>>, EvalError> {
        let scored = lists.into_iter().map(|list| {
            let names: Vec<&str> = list.iter().map(|s| s.name.as_str()).collect();
            let queries = self.queries(&names)?;
            let scores = score(self.features, &queries, self.manifest, self.letterbox)?;
            Ok(Scored { list, scores })
        });
        scored.collect()
    }

    /// Cuts each list at one threshold and counts what is published.
    fn ask(&mut self, threshold: f32, lists: &mut [Scored], counts: &mut Published) -> Result<(), EvalError> {
        let (side, points) = (self.manifest.encoder.low_res_side(), self.manifest.decoder.points);
        let (mut prompts, mut ends) = (Vec::new(), Vec::new());
        for Scored { scores, .. } in lists.iter_mut() {
            scores.cut_at(threshold);
            prompts.extend(scores.prompts(&PromptRules::default(), side, points));
            ends.push(prompts.len());
        }
        // One call for all lists fills the decoder's batches.
        let decoded = self.engine.decoder.decode(self.features, &prompts)?;
        let rules = RefineRules {
            min_area: 1,
            ..RefineRules::default()
        };
        let mut start = 0;
        for (Scored { list, .. }, end) in lists.iter().zip(ends) {
            let mut masks = refine(&prompts[start..end], &decoded[start..end], &self.letterbox, &rules);
            masks.retain(|m| m.mask.area() >= MIN_AREA);
            start = end;
            for (query, subject) in list.iter().enumerate() {
                let own: Vec<&RefinedMask> = masks.iter().filter(|m| m.query == query).collect();
                subject.count(&own, counts);
            }
        }
        Ok(())
    }

    /// The names as queries, against the background prompts that are not among them; all of those if none is left.
    fn queries(&self, names: &[&str]) -> Result<Queries, EvalError> {
        let asked: Vec<_> = names.iter().map(|n| (self.words.get(n).to_vec(), None)).collect();
        let against = competitors(self.manifest, names);
        let against: Vec<_> = against.iter().map(|b| self.words.get(b).to_vec()).collect();
        Ok(Queries::new(self.manifest.encoder.embed_dim, &asked, &against)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_finds_the_nearest_row_of_the_sweep() {
        let presence = Presence::new(0.35);
        for (threshold, expected) in [(0.0, 0.05), (0.36, 0.35), (0.48, 0.5), (1.0, 0.95)] {
            assert_eq!(presence.at(threshold).threshold, expected);
        }
    }

    #[test]
    fn the_table_counts_per_ten_queries() {
        let mut presence = Presence::new(0.35);
        presence.rows.truncate(1);
        presence.rows[0].together.absent = Share { count: 3, of: 20 };
        presence.rows[0].alone.hit = Share { count: 1, of: 4 };
        let section = presence.section("nano", "");
        assert_eq!(section.columns[0], "together: alarms of ten absent");
        assert_eq!(
            (section.rows[0].values[0], section.rows[0].values[6]),
            (Some(1.5), Some(25.0))
        );
    }
}
