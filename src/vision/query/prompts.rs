//! Score maps → questions to the mask decoder: connected components, sampled points, mask prompts.
//!
//! After the two-head pipeline of SAM-CLIP (arXiv 2310.15308, section 4.4): points sampled by confidence inside a
//! component of the score map, and the map itself as mask prompt.

use super::{PROMPT_CLAMP, ScoreMap, logit, sigmoid};
use crate::vision::geometry::{FrameSize, Letterbox, ModelPoint, resample_to_frame};
use crate::vision::tidy::connected;

/// Next number in [0, 1) of the splitmix64 sequence: fixed here, so that the points of a frame never change with a
/// library version.
pub(in crate::vision) fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
}

/// One question to the mask decoder.
#[derive(Clone, Debug)]
pub struct DecoderPrompt {
    /// Index of the query.
    pub query: usize,
    /// Score of the component: mean probability over its patches, weighted by itself; in (0, 1).
    pub score: f32,
    /// Points inside the component, the most confident first.
    pub points: Vec<ModelPoint>,
    /// Mask prompt, `[4g, 4g]` logits within ±10.
    pub mask: Vec<f32>,
}

/// How many prompts a score map may turn into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptRules {
    /// Largest number of components per query; the strongest ones are kept.
    pub components: usize,
    /// Largest number of points per component (the manifest's `N` caps it too).
    pub points: usize,
    /// Seed of the sampling; the same seed and frame give the same points.
    pub seed: u64,
}

impl Default for PromptRules {
    fn default() -> Self {
        Self {
            components: 6,
            points: 3,
            seed: 0,
        }
    }
}

/// The most confident of `patches`, then patches drawn with probability proportional to their score, without
/// repetition: at most `count`. `logits` holds the score's logit of every patch of the grid.
#[must_use]
pub fn sample_patches(logits: &[f32], patches: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut left: Vec<(usize, f32)> = patches.iter().map(|&p| (p, sigmoid(logits[p]))).collect();
    let mut state = seed;
    let mut drawn = Vec::new();
    while drawn.len() < count && !left.is_empty() {
        let index = if drawn.is_empty() {
            (0..left.len())
                .max_by(|&a, &b| left[a].1.total_cmp(&left[b].1))
                .unwrap_or(0)
        } else {
            let mut target = uniform(&mut state) * left.iter().map(|p| p.1).sum::<f32>();
            left.iter()
                .position(|p| {
                    target -= p.1;
                    target <= 0.0
                })
                .unwrap_or(left.len() - 1)
        };
        drawn.push(left.swap_remove(index).0);
    }
    drawn
}

struct Component {
    patches: Vec<usize>,
    score: f32,
    mass: f32,
}

impl ScoreMap {
    /// Prompts for every present query: one per connected component of patches above the query's threshold.
    ///
    /// `low_res_side` is the side `4g` of the decoder's mask input, `max_points` its `N`.
    #[must_use]
    pub fn prompts(&self, rules: &PromptRules, low_res_side: usize, max_points: usize) -> Vec<DecoderPrompt> {
        let mut prompts = Vec::new();
        for query in 0..self.queries() {
            let labels = self.components(query, rules.components);
            for (index, component) in labels.iter().enumerate() {
                let seed = rules.seed ^ ((query as u64) << 32 | index as u64);
                let others = labels
                    .iter()
                    .enumerate()
                    .filter(|&(i, _)| i != index)
                    .flat_map(|(_, c)| &c.patches);
                prompts.push(DecoderPrompt {
                    query,
                    score: component.score,
                    points: self.sample(query, component, rules.points.min(max_points), seed),
                    mask: self.mask_prompt(query, others, low_res_side),
                });
            }
        }
        prompts
    }

    /// 8-connected components of valid patches at or above the threshold, the heaviest first.
    fn components(&self, query: usize, keep: usize) -> Vec<Component> {
        let (logits, cut) = (self.logits(query), logit(self.thresholds[query]));
        let open = logits.iter().zip(&self.valid).map(|(&l, &v)| v && l >= cut).collect();
        let mut found = Vec::new();
        for patches in connected(open, true) {
            let probabilities = patches.iter().map(|&p| sigmoid(logits[p]));
            let (mass, squares) = probabilities.fold((0.0, 0.0), |(m, s), p| (m + p, s + p * p));
            found.push(Component {
                patches,
                score: squares / mass.max(f32::MIN_POSITIVE),
                mass,
            });
        }
        found.sort_by(|a, b| b.mass.total_cmp(&a.mass));
        found.truncate(keep);
        found
    }

    fn sample(&self, query: usize, component: &Component, count: usize, seed: u64) -> Vec<ModelPoint> {
        let patches = sample_patches(self.logits(query), &component.patches, count, seed);
        patches.into_iter().map(|patch| self.centre(patch)).collect()
    }

    /// Centre of a patch, held inside the picture.
    fn centre(&self, patch: usize) -> ModelPoint {
        let cell = self.letterbox.side() as f32 / self.grid as f32;
        let at = |i: usize, limit: usize| ((i as f32 + 0.5) * cell).min(limit as f32 - 0.5);
        let scaled = self.letterbox.scaled();
        ModelPoint {
            x: at(patch % self.grid, scaled.width()),
            y: at(patch / self.grid, scaled.height()),
        }
    }

    /// The query's logits relative to its threshold, with padding and the `other` components turned off, bilinear to
    /// `[side, side]`.
    fn mask_prompt<'a>(&self, query: usize, other: impl Iterator<Item = &'a usize>, side: usize) -> Vec<f32> {
        let cut = logit(self.thresholds[query]);
        let relative = |l: f32| (l - cut).clamp(-PROMPT_CLAMP, PROMPT_CLAMP);
        let mut map: Vec<f32> = self.logits(query).iter().map(|&l| relative(l)).collect();
        other.for_each(|&p| map[p] = -map[p].abs());
        map.iter_mut()
            .zip(&self.valid)
            .filter(|(_, v)| !**v)
            .for_each(|(m, _)| *m = -PROMPT_CLAMP);
        let mut out = Vec::with_capacity(side * side);
        let square = FrameSize::new(side as u32, side as u32);
        if let Ok(square) = square {
            resample_to_frame(&map, self.grid, &Letterbox::fit(square, side), &mut out);
        }
        out
    }
}
