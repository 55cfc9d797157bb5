//! Which patches look like which words.
//!
//! Scores are cosine similarities between patch embeddings and text embeddings, times the learned logit scale (CLIP,
//! arXiv 2103.00020), softmax over the queries and the background prompts of the bundle, then the bundle's
//! calibration. [`ScoreMap::prompts`] turns them into questions to the mask decoder. No mask is cut here:
//! [`super::refine`] owns that, so one frame can be re-cut without running the encoder again.

use super::features::Features;
use super::geometry::{Letterbox, resample_to_frame};
use crate::contract::{Calibration, Manifest};

mod prompts;

#[cfg(test)]
pub(super) use prompts::uniform;
pub use prompts::{DecoderPrompt, PromptRules, sample_patches};

/// Largest absolute value of a mask prompt, and of a score's logit.
const PROMPT_CLAMP: f32 = 10.0;

/// Cosine from which on a background prompt says the same as a query: "street" must not take away what "road" asks for.
/// Synonyms that a text tower knows lie above it, different things of one kind (car, bus) below.
const SAME_MEANING: f32 = 0.9;

/// Text embeddings of what is asked and of the background it competes with.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    /// `[Q, D]`, unit norm.
    embeddings: Vec<f32>,
    /// `[B, D]`, unit norm.
    background: Vec<f32>,
    /// Score thresholds of the queries, in (0, 1); `None` for the one of the model's calibration.
    thresholds: Vec<Option<f32>>,
    width: usize,
}

/// Text embeddings that do not fit the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// An embedding has another width than the model's.
    #[error("text embedding {index} has {found} values, the model's have {expected}; it belongs to another model")]
    Width {
        /// Index among queries, then background prompts.
        index: usize,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// A score threshold outside (0, 1).
    #[error("query {index}: threshold {found}, expected a number between 0 and 1")]
    Threshold {
        /// Index of the query.
        index: usize,
        /// What was found.
        found: f32,
    },
    /// Nothing for a query to compete with.
    #[error("no background prompt; expected at least one, or every patch belongs to some query")]
    NoBackground,
    /// Every template's embedding is zero or not finite.
    #[error("text embeddings of {count} templates have no usable mean; the text encoder returned zeros or NaN")]
    NoMean {
        /// Number of embeddings.
        count: usize,
    },
}

/// Mean of unit-norm embeddings of one text in several templates, `[T, D]`, re-normalised to unit norm.
///
/// # Errors
/// [`QueryError::NoMean`] if the mean has no direction.
pub fn mean_embedding(embeddings: &[f32], width: usize) -> Result<Vec<f32>, QueryError> {
    let mut mean = vec![0.0f32; width];
    for row in embeddings.chunks_exact(width.max(1)) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / norm);
    }
    let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
    if !norm.is_finite() || norm < 1e-12 {
        return Err(QueryError::NoMean {
            count: embeddings.len() / width.max(1),
        });
    }
    mean.iter_mut().for_each(|m| *m /= norm);
    Ok(mean)
}

impl Queries {
    /// Checked queries.
    ///
    /// * `queries` — one `(embedding [D], threshold)` each, unit norm; no threshold means the model's at the size in use
    /// * `background` — one embedding `[D]` per background prompt, unit norm; one that means the same as a query does not
    ///   compete, unless no other is left
    ///
    /// # Errors
    /// [`QueryError`] for a wrong width, an impossible threshold, or no background.
    pub fn new(width: usize, queries: &[(Vec<f32>, Option<f32>)], background: &[Vec<f32>]) -> Result<Self, QueryError> {
        if background.is_empty() {
            return Err(QueryError::NoBackground);
        }
        Self::checked(width, queries, background)
    }

    /// As [`Self::new`] without background: the queries share every patch among themselves. For measuring where every
    /// pixel is known to be one of them; a camera's picture is not.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn among_themselves(width: usize, queries: &[(Vec<f32>, Option<f32>)]) -> Result<Self, QueryError> {
        Self::checked(width, queries, &[])
    }

    fn checked(width: usize, queries: &[(Vec<f32>, Option<f32>)], background: &[Vec<f32>]) -> Result<Self, QueryError> {
        for (index, e) in queries.iter().map(|q| &q.0).chain(background).enumerate() {
            if e.len() != width {
                return Err(QueryError::Width {
                    index,
                    found: e.len(),
                    expected: width,
                });
            }
        }
        for (index, &(_, found)) in queries.iter().enumerate() {
            if let Some(found) = found.filter(|found| !(*found > 0.0 && *found < 1.0)) {
                return Err(QueryError::Threshold { index, found });
            }
        }
        let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let other = |b: &&Vec<f32>| queries.iter().all(|(q, _)| cosine(q, b) < SAME_MEANING);
        let competing: Vec<&Vec<f32>> = background.iter().filter(other).collect();
        let competing = if competing.is_empty() {
            background.concat()
        } else {
            competing.into_iter().flatten().copied().collect()
        };
        Ok(Self {
            embeddings: queries.iter().flat_map(|q| q.0.iter().copied()).collect(),
            background: competing,
            thresholds: queries.iter().map(|q| q.1).collect(),
            width,
        })
    }

    /// Number of queries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.thresholds.len()
    }

    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.thresholds.is_empty()
    }
}

/// Calibrated scores of every query on every patch.
#[derive(Clone, Debug)]
pub struct ScoreMap {
    /// Side of the patch grid.
    grid: usize,
    letterbox: Letterbox,
    valid: Vec<bool>,
    /// Calibrated logits, `[Q, n, n]`.
    logits: Vec<f32>,
    thresholds: Vec<f32>,
}

/// Scores every patch against every query.
///
/// # Errors
/// [`QueryError::Width`] if the embeddings belong to another model.
pub fn score(
    features: &Features,
    queries: &Queries,
    manifest: &Manifest,
    letterbox: Letterbox,
) -> Result<ScoreMap, QueryError> {
    let (grid, width) = (manifest.encoder.patch_grid, manifest.encoder.embed_dim);
    let patches = grid * grid;
    if queries.width != width || features.patch_embeddings.len() != width * patches {
        return Err(QueryError::Width {
            index: 0,
            found: queries.width,
            expected: width,
        });
    }
    let similarity = |texts: &[f32]| {
        let mut out = vec![0.0f32; texts.len() / width * patches];
        for (row, text) in out.chunks_exact_mut(patches).zip(texts.chunks_exact(width)) {
            for (&weight, channel) in text.iter().zip(features.patch_embeddings.chunks_exact(patches)) {
                row.iter_mut().zip(channel).for_each(|(o, &p)| *o += weight * p);
            }
            row.iter_mut().for_each(|o| *o *= manifest.logit_scale);
        }
        out // [texts, n*n]
    };
    let (asked, background) = (similarity(&queries.embeddings), similarity(&queries.background));
    let classes = queries.len();
    let mut logits = vec![0.0; asked.len()];
    for p in 0..patches {
        let column = |q: usize| asked[q * patches + p];
        let others = background.iter().skip(p).step_by(patches).copied();
        let everything = others.chain((0..classes).map(column));
        let top = everything.clone().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = everything.map(|l| f64::from(l - top).exp()).sum();
        for q in 0..classes {
            let own = f64::from(column(q) - top).exp();
            // logit(p) = log p − log(1 − p), from the masses so that p close to 1 stays exact
            let log_odds = if total - own > 1e-30 {
                (own / (total - own)).ln()
            } else {
                f64::from(2.0 * PROMPT_CLAMP)
            };
            logits[q * patches + p] = calibrated(log_odds as f32, &manifest.calibration);
        }
    }
    let valid = letterbox.valid_cells(grid);
    Ok(ScoreMap {
        grid,
        letterbox,
        valid,
        logits,
        thresholds: queries
            .thresholds
            .iter()
            .map(|own| own.unwrap_or(manifest.calibration.threshold))
            .collect(),
    })
}

fn calibrated(log_odds: f32, c: &Calibration) -> f32 {
    (c.scale * log_odds + c.offset).clamp(-2.0 * PROMPT_CLAMP, 2.0 * PROMPT_CLAMP)
}

/// Logistic function.
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Inverse of [`sigmoid`], for `p` in (0, 1).
#[must_use]
pub fn logit(p: f32) -> f32 {
    (p / (1.0 - p)).ln()
}

impl ScoreMap {
    /// Cuts every query at another threshold, in (0, 1); scores do not depend on it.
    pub fn cut_at(&mut self, threshold: f32) {
        self.thresholds.fill(threshold);
    }

    /// Number of queries.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.thresholds.len()
    }

    /// Score from which on each query is present, in (0, 1).
    #[must_use]
    pub fn thresholds(&self) -> &[f32] {
        &self.thresholds
    }

    /// How the frame lies in the model's square.
    #[must_use]
    pub fn letterbox(&self) -> &Letterbox {
        &self.letterbox
    }

    /// Calibrated logits of one query, `[n, n]`.
    #[must_use]
    pub fn logits(&self, query: usize) -> &[f32] {
        let patches = self.grid * self.grid;
        self.logits.get(query * patches..(query + 1) * patches).unwrap_or(&[])
    }

    /// Highest probability of a query on the patches of the frame, in (0, 1); 0 for an unknown query.
    #[must_use]
    pub fn best(&self, query: usize) -> f32 {
        let inside = self.logits(query).iter().zip(&self.valid).filter(|&(_, &v)| v);
        inside.map(|(&l, _)| sigmoid(l)).fold(0.0, f32::max)
    }

    /// Per-pixel calibrated logits of one query on the frame, `[height, width]`: the CLIP head alone, bilinear.
    #[must_use]
    pub fn frame_logits(&self, query: usize) -> Vec<f32> {
        let mut out = Vec::new();
        if query < self.queries() {
            resample_to_frame(self.logits(query), self.grid, &self.letterbox, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{DecoderSpec, EncoderSpec, FORMAT_VERSION, TextSpec};
    use crate::vision::geometry::{FrameSize, ModelPoint};

    const GRID: usize = 6;

    fn manifest() -> Manifest {
        let encoder = EncoderSpec {
            side: 96,
            stride: 16,
            neck_channels: 1,
            embed_dim: 3,
            patch_grid: GRID,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        let decoder = DecoderSpec { prompts: 2, points: 3 };
        let text = TextSpec {
            batch: 1,
            context: 77,
            vocabulary: "openai-clip".into(),
            merges: None,
        };
        Manifest {
            format_version: FORMAT_VERSION,
            name: "tiny".into(),
            logit_scale: 8.0,
            background: vec!["background".into()],
            graph: Manifest::standard_graphs(&encoder, &decoder, &text),
            encoder,
            decoder,
            text,
            calibration: Calibration::default(),
            precision: vec![],
            size: vec![],
            source: vec![],
            files: Default::default(),
        }
    }

    /// Patches look like class 0, 1 or 2 (background) as drawn; frame 64x43 leaves rows 4 and 5 as padding.
    fn scored(rows: [&str; GRID], calibration: Calibration) -> ScoreMap {
        let mut features = Features {
            patch_embeddings: vec![0.0; 3 * GRID * GRID],
            ..Features::default()
        };
        for (p, c) in rows.concat().chars().enumerate() {
            let class = c.to_digit(10).unwrap_or(2) as usize;
            features.patch_embeddings[class * GRID * GRID + p] = 1.0;
        }
        let unit = |i: usize| (0..3).map(|j| f32::from(u8::from(i == j))).collect::<Vec<_>>();
        let queries = Queries::new(3, &[(unit(0), None), (unit(1), Some(0.5))], &[unit(2)]).unwrap();
        let manifest = Manifest {
            calibration,
            ..manifest()
        };
        score(
            &features,
            &queries,
            &manifest,
            Letterbox::fit(FrameSize::new(64, 43).unwrap(), 96),
        )
        .unwrap()
    }

    const SCENE: [&str; GRID] = ["00...1", "00....", "......", "....00", "111111", "000000"];

    #[test]
    fn probabilities_are_the_softmax_over_queries_and_background() {
        let map = scored(SCENE, Calibration::default());
        let expected = 8f32.exp() / (8f32.exp() + 2.0);
        assert!((map.best(0) - expected).abs() < 1e-5);
        assert!((sigmoid(map.logits(0)[3]) - 1.0 / (8f32.exp() + 2.0)).abs() < 1e-6);
        assert_eq!(map.best(7), 0.0);
    }

    #[test]
    fn calibration_scales_and_shifts_the_logit() {
        let plain = scored(SCENE, Calibration::default());
        let map = scored(
            SCENE,
            Calibration {
                scale: 0.5,
                offset: -1.0,
                threshold: 0.5,
            },
        );
        for (a, b) in plain.logits(1).iter().zip(map.logits(1)) {
            assert!((0.5 * a - 1.0 - b).abs() < 1e-4);
        }
    }

    #[test]
    fn every_component_of_a_present_query_is_one_prompt_and_padding_is_none() {
        let prompts = scored(SCENE, Calibration::default()).prompts(&PromptRules::default(), 24, 3);
        assert_eq!(prompts.iter().map(|p| p.query).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(prompts.iter().map(|p| p.points.len()).collect::<Vec<_>>(), [3, 2, 1]);
        assert!(prompts[0].points.iter().all(|p| p.x < 32.0 && p.y < 32.0));
        assert_eq!(prompts[2].points[0], ModelPoint { x: 88.0, y: 8.0 });
        assert!(prompts.iter().flat_map(|p| &p.points).all(|p| p.y < 64.0));
    }

    #[test]
    fn the_mask_prompt_is_positive_on_its_own_component_only() {
        let prompts = scored(SCENE, Calibration::default()).prompts(&PromptRules::default(), 24, 3);
        let at = |prompt: &DecoderPrompt, x: usize, y: usize| prompt.mask[y * 24 + x];
        assert_eq!(prompts[0].mask.len(), 576);
        assert!(at(&prompts[0], 2, 2) > 5.0 && at(&prompts[0], 20, 14) < -5.0);
        assert!(at(&prompts[1], 2, 2) < -5.0 && at(&prompts[1], 20, 14) > 5.0);
        assert!(
            prompts
                .iter()
                .all(|p| at(p, 3, 22) == -PROMPT_CLAMP && p.mask.iter().all(|v| v.abs() <= PROMPT_CLAMP))
        );
    }

    #[test]
    fn points_repeat_with_the_seed_and_change_with_it() {
        let map = scored(["000000"; GRID], Calibration::default());
        let points = |seed| {
            map.prompts(
                &PromptRules {
                    seed,
                    ..PromptRules::default()
                },
                24,
                3,
            )[0]
            .points
            .clone()
        };
        assert_eq!(points(1), points(1));
        assert!((2..20).any(|s| points(s) != points(1)));
    }

    #[test]
    fn an_absent_query_asks_nothing() {
        assert!(
            scored(["......"; GRID], Calibration::default())
                .prompts(&PromptRules::default(), 24, 3)
                .is_empty()
        );
    }

    #[test]
    fn frame_logits_have_the_sign_of_the_patch_below() {
        let map = scored(SCENE, Calibration::default());
        let logits = map.frame_logits(0);
        assert_eq!(logits.len(), 64 * 43);
        assert!(logits[5 * 64 + 5] > 0.0 && logits[5 * 64 + 40] < 0.0 && logits[42 * 64 + 60] > 0.0);
    }

    #[test]
    fn a_background_prompt_that_means_the_same_does_not_compete_unless_it_is_the_last() {
        let (road, sky) = (vec![1.0, 0.0], vec![0.0, 1.0]);
        let street = vec![0.95, (1.0f32 - 0.95 * 0.95).sqrt()];
        let background = |queries: &[Vec<f32>], prompts: &[Vec<f32>]| {
            let queries: Vec<_> = queries.iter().map(|q| (q.clone(), None)).collect();
            Queries::new(2, &queries, prompts).unwrap().background
        };
        let (only, two) = ([street.clone()], [street.clone(), sky.clone()]);
        assert_eq!(background(std::slice::from_ref(&road), &two), sky);
        assert_eq!(
            background(&[sky], &[street, road.clone()]).len(),
            4,
            "neither means the sky"
        );
        assert_eq!(background(&[road], &only), only[0]);
    }

    #[test]
    fn without_background_the_best_query_has_most_of_a_patch_that_looks_like_neither() {
        let (a, b) = (vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.0]);
        let queries = [(a, None), (b, None)];
        let mut features = Features {
            patch_embeddings: vec![0.0; 3 * GRID * GRID],
            ..Features::default()
        };
        // every patch looks like the background, and a little more like b than like a
        features.patch_embeddings[GRID * GRID..2 * GRID * GRID].fill(0.2);
        features.patch_embeddings[2 * GRID * GRID..].fill(0.9);
        let letterbox = Letterbox::fit(FrameSize::new(64, 64).unwrap(), 96);
        let best = |queries: &Queries| {
            let scores = score(&features, queries, &manifest(), letterbox).unwrap();
            [scores.best(0), scores.best(1)]
        };
        let [a, b] = best(&Queries::new(3, &queries, &[vec![0.0, 0.0, 1.0]]).unwrap());
        assert!(a < b && b < 0.5, "{a} {b}");
        let [a, b] = best(&Queries::among_themselves(3, &queries).unwrap());
        assert!(b > 0.5 && (a + b - 1.0).abs() < 1e-5, "{a} {b}");
    }

    #[test]
    fn embeddings_of_another_model_are_refused() {
        let unit = vec![1.0, 0.0];
        assert!(matches!(
            Queries::new(3, &[(unit.clone(), None)], &[vec![0.0; 3]]),
            Err(QueryError::Width { .. })
        ));
        assert!(matches!(
            Queries::new(2, &[(unit.clone(), Some(1.0))], std::slice::from_ref(&unit)),
            Err(QueryError::Threshold { .. })
        ));
        assert_eq!(
            Queries::new(2, &[(unit, None)], &[]).unwrap_err(),
            QueryError::NoBackground
        );
    }

    #[test]
    fn the_mean_of_templates_has_unit_norm_and_zeros_have_none() {
        let mean = mean_embedding(&[1.0, 0.0, 0.0, 1.0], 2).unwrap();
        assert!((mean[0] - 0.5f32.sqrt()).abs() < 1e-6 && (mean[1] - mean[0]).abs() < 1e-6);
        assert!(mean_embedding(&[1.0, 0.0, -1.0, 0.0], 2).is_err());
        assert!(mean_embedding(&[f32::NAN, 0.0], 2).is_err());
    }
}
