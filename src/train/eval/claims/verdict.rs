//! What the figures say about each claim, by rules that are written down before the figures are known.
//!
//! An effect counts if it is larger than twice the noise, the largest difference of three runs that differ in their seed alone, and
//! at least half a point.

use super::comparison::{MERGED, TEACHERS};
use super::figures::{Figures, clip_side};
use super::{Results, SEEDS};

/// A claim with what was found.
pub(super) struct Verdict {
    pub(super) claim: &'static str,
    pub(super) rule: &'static str,
    pub(super) found: String,
    pub(super) outcome: Outcome,
}

/// Whether a claim holds here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The effect is there and larger than the noise.
    Reproduced,
    /// The effect is within the noise.
    NotShown,
    /// The opposite is there, larger than the noise.
    Contradicted,
}

impl Outcome {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::NotShown => "not shown",
            Self::Contradicted => "contradicted",
        }
    }

    /// Of an effect in points that the claim says is positive.
    fn of(effect: f64, noise: f64) -> Self {
        let least = (2.0 * noise.abs()).max(0.5);
        match effect {
            e if e > least => Self::Reproduced,
            e if e < -least => Self::Contradicted,
            _ => Self::NotShown,
        }
    }

    /// Two effects that have to be there together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Reproduced, Self::Reproduced) => Self::Reproduced,
            (Self::Contradicted, _) | (_, Self::Contradicted) => Self::Contradicted,
            _ => Self::NotShown,
        }
    }
}

/// All verdicts on one data set.
pub(super) fn all(results: &Results) -> Vec<Verdict> {
    let of = |name: &str| -> Figures {
        let found = results.variants.iter().find(|v| v.name == name);
        found.map(|v| v.figures).expect("the table of variants has it")
    };
    let (teacher, seeds, naive) = (of("untrained"), SEEDS.map(of), of("naive"));
    let two = seeds[0];
    let noise = |get: fn(&Figures) -> f64| spread(seeds.each_ref().map(get));
    let understanding = |f: &Figures| f.understanding;
    let boxes = |f: &Figures| f.boxes;
    let mut verdicts = Vec::new();

    let (lost, kept) = (teacher.boxes - naive.boxes, two.boxes - naive.boxes);
    verdicts.push(Verdict {
        claim: "(a) Distillation from CLIP alone forgets SAM; rehearsing SAM does not",
        rule: "box IoU of naive below the SAM teacher's, and of two-stage above naive's",
        found: format!(
            "SAM teacher {:.1}, naive {:.1}, two-stage {:.1} (noise {:.1})",
            teacher.boxes,
            naive.boxes,
            two.boxes,
            noise(boxes).abs()
        ),
        outcome: Outcome::of(lost, noise(boxes)).and(Outcome::of(kept, noise(boxes))),
    });

    // The point that loses least against two-stage on its worse side.
    let shortfall = |f: &Figures| (f.understanding - two.understanding).min(f.boxes - two.boxes);
    let best = results
        .interpolated
        .iter()
        .max_by(|a, b| shortfall(&a.1).total_cmp(&shortfall(&b.1)));
    if let Some((alpha, figures)) = best {
        let worst = noise(understanding).abs().max(noise(boxes).abs());
        verdicts.push(Verdict {
            claim: "(b) Interpolating between SAM and the CLIP-distilled model (WiSE-FT) finds no point as good on both sides",
            rule: "at every alpha, understanding or box IoU is below two-stage's, which understands something",
            found: format!(
                "best alpha {alpha:.1}: understanding {:.1} against {:.1}, boxes {:.1} against {:.1}",
                figures.understanding, two.understanding, figures.boxes, two.boxes
            ),
            outcome: no_point_as_good(-shortfall(figures), &two, worst),
        });
    }

    let average = of("average");
    verdicts.push(Verdict {
        claim: "(c) Max-pooling segments better than average-pooling",
        rule: "mean IoU of the CLIP head at the CLIP size, max above average",
        found: format!(
            "max {:.1}, average {:.1} (noise {:.1}); understanding {:.1} and {:.1}",
            two.clip_head_low,
            average.clip_head_low,
            noise(|f| f.clip_head_low).abs(),
            two.understanding,
            average.understanding
        ),
        outcome: Outcome::of(two.clip_head_low - average.clip_head_low, noise(|f| f.clip_head_low)),
    });

    let unprobed = of("unprobed");
    verdicts.push(Verdict {
        claim: "(d) Probing the head first keeps more of SAM",
        rule: "box IoU of two-stage above that of stage 2 alone with as many steps",
        found: format!(
            "boxes {:.1} and {:.1}, understanding {:.1} and {:.1} without stage 1 (noise {:.1} and {:.1})",
            two.boxes,
            unprobed.boxes,
            two.understanding,
            unprobed.understanding,
            noise(boxes).abs(),
            noise(understanding).abs()
        ),
        outcome: Outcome::of(two.boxes - unprobed.boxes, noise(boxes)),
    });

    let (light, heavy) = (of("weight ÷ 10"), of("weight × 10"));
    verdicts.push(Verdict {
        claim: "(e) A smaller weight of L_SAM forgets more, a larger one blocks CLIP",
        rule: "box IoU of a tenth below two-stage's, and understanding of tenfold below two-stage's",
        found: format!(
            "boxes {:.1} / {:.1} / {:.1}, understanding {:.1} / {:.1} / {:.1} for a tenth, one, tenfold",
            light.boxes, two.boxes, heavy.boxes, light.understanding, two.understanding, heavy.understanding
        ),
        outcome: Outcome::of(two.boxes - light.boxes, noise(boxes)).and(Outcome::of(
            two.understanding - heavy.understanding,
            noise(understanding),
        )),
    });

    verdicts.push(Verdict {
        claim: "(f) Both heads segment better than the CLIP head alone, at equal resolution",
        rule: "mean IoU of both heads above the CLIP head's, both at the SAM size",
        found: format!("CLIP head {:.1}, both heads {:.1}", two.clip_head, two.both_heads),
        outcome: Outcome::of(two.both_heads - two.clip_head, noise(|f| f.both_heads - f.clip_head)),
    });

    verdicts.extend(probing(results));

    let costs = &results.comparison;
    if let Some(&(masks, separate)) = costs.separate_ms.iter().find(|(masks, _)| *masks == 16) {
        verdicts.push(Verdict {
            claim: "(h) One pass costs less than SAM once and CLIP once per mask",
            rule: "encoder time of one picture with 16 masks",
            found: format!(
                "one pass {:.1} ms, {masks} + 1 passes {separate:.1} ms, {:.1} times as much; CLIP once costs {:.1} ms",
                costs.merged_ms,
                separate / costs.merged_ms,
                costs.clip_ms
            ),
            outcome: Outcome::of(100.0 * (separate / costs.merged_ms - 1.0), 5.0),
        });
    }

    verdicts.extend(mode_switching(results, &two, noise(understanding)));
    verdicts
}

/// The largest difference of three figures.
fn spread(of: [f64; 3]) -> f64 {
    let [most, least] = [f64::max, f64::min].map(|choose| of.into_iter().reduce(choose).expect("three figures"));
    most - least
}

/// Whether every interpolation falls short of a student that understands something: of one that does not, none can.
fn no_point_as_good(shortfall: f64, two_stage: &Figures, noise: f64) -> Outcome {
    Outcome::of(shortfall, noise).and(Outcome::of(two_stage.understanding, 0.0))
}

/// A linear probe segments better with the merged features than with either teacher's (paper, Table 3).
fn probing(results: &Results) -> Option<Verdict> {
    let probes = &results.comparison.probes;
    let best = |names: [&str; 2]| -> Option<f64> {
        let found = probes
            .iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(_, iou)| *iou);
        found.max_by(f64::total_cmp)
    };
    let teachers = best(TEACHERS)?;
    let [merged, repeated, again] = MERGED.map(best);
    let seeds = [merged?, repeated?, again?];
    let list: Vec<String> = probes.iter().map(|(name, iou)| format!("{name} {iou:.1}")).collect();
    Some(Verdict {
        claim: "(g) A linear probe segments better with the merged features than with either teacher's",
        rule: "mean IoU of the better of two probes on merged features above the better of two on the teachers'",
        found: list.join(", "),
        outcome: Outcome::of(seeds[0] - teachers, spread(seeds)),
    })
}

/// A student of CLIP at low and SAM at high resolution understands less at the SAM size (paper.md, section 8).
///
/// Both sizes are known before anything is measured: the best of many sizes is above any one of them by luck alone.
fn mode_switching(results: &Results, two_stage: &Figures, noise: f64) -> Option<Verdict> {
    let recipe = &results.variants.first()?.recipe;
    let (low, side) = (clip_side(recipe), recipe.sam.image_size);
    let at_sam_size = |variant: &str| {
        let found = results.sizes.iter().find(|s| s.variant == variant && s.side == side);
        found.map(|s| s.understanding)
    };
    let (two_low, two_there) = (two_stage.understanding, at_sam_size("two-stage")?);
    let cured_there = at_sam_size("all sizes")?;
    Some(Verdict {
        claim: "(i) Trained with CLIP at low and SAM at high resolution, the student switches modes: it understands less at the \
                SAM size; CLIP batches at all sizes cure it",
        rule: "understanding at the SAM size below that at the CLIP size, and at the SAM size higher with CLIP batches at all sizes",
        found: format!(
            "at {low} px {two_low:.1}, at {side} px {two_there:.1}; with all sizes {cured_there:.1} there (noise {:.1})",
            noise.abs()
        ),
        outcome: Outcome::of(two_low - two_there, noise).and(Outcome::of(cured_there - two_there, noise)),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Outcome::{self, Contradicted, NotShown, Reproduced};
    use super::*;
    use crate::train::eval::claims::comparison::Comparison;
    use crate::train::eval::claims::figures::AtSize;
    use crate::train::eval::claims::variants::Trained;
    use crate::train::recipe::Recipe;
    use crate::train::weights::Weights;

    #[test]
    fn an_effect_has_to_exceed_the_noise() {
        for (effect, noise, expected) in [
            (3.0, 1.0, Reproduced),
            (2.0, 1.0, NotShown),
            (-3.0, -1.0, Contradicted),
            (0.4, 0.0, NotShown),
            (0.6, 0.0, Reproduced),
        ] {
            assert_eq!(Outcome::of(effect, noise), expected, "{effect} {noise}");
        }
        let understands = |understanding| Figures {
            understanding,
            ..Figures::default()
        };
        assert_eq!(no_point_as_good(3.0, &understands(13.5), 0.6), Reproduced);
        assert_eq!(no_point_as_good(3.0, &understands(0.0), 0.1), NotShown);
        assert_eq!(Reproduced.and(NotShown), NotShown);
        assert_eq!(NotShown.and(Contradicted), Contradicted);
    }

    #[test]
    fn the_noise_is_the_largest_difference_of_three_runs() {
        for of in [[2.0, 3.5, 3.0], [3.5, 3.0, 2.0], [3.0, 2.0, 3.5]] {
            assert_eq!(spread(of), 1.5);
        }
    }

    /// A study with the understanding of two variants by side, and with probes of the teachers, of two-stage and of its
    /// repetitions, two each.
    fn study(two_stage: [f64; 7], all_sizes: [f64; 7], probes: [[f64; 2]; 4]) -> Results {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/study/recipe.toml");
        let recipe = Recipe::read(&recipe).unwrap();
        assert_eq!((clip_side(&recipe), recipe.sam.image_size), (64, 128));
        let sides = [48, 64, 96, 112, 128, 160, 176];
        let names = [
            "untrained",
            "two-stage",
            "repeat",
            "second repeat",
            "naive",
            "average",
            "unprobed",
            "weight ÷ 10",
            "weight × 10",
            "all sizes",
        ];
        let trained = |name: &&'static str| Trained {
            name,
            what: "",
            figures: Figures {
                understanding: match *name {
                    "two-stage" => two_stage[1],
                    "repeat" => two_stage[1] + 0.2,
                    "second repeat" => two_stage[1] + 0.5,
                    _ => 50.0,
                },
                ..Figures::default()
            },
            curve: Vec::new(),
            weights: Weights::new(),
            recipe: recipe.clone(),
        };
        let sizes = |variant, found: [f64; 7]| {
            sides.into_iter().zip(found).map(move |(side, understanding)| AtSize {
                variant,
                side,
                understanding,
                boxes: 0.0,
                clip_head: 0.0,
            })
        };
        let probed = std::iter::once(TEACHERS).chain(MERGED).zip(probes);
        Results {
            source: "drawn",
            samples: 0,
            understanding: "",
            variants: names.iter().map(trained).collect(),
            interpolated: Vec::new(),
            sizes: sizes("two-stage", two_stage)
                .chain(sizes("all sizes", all_sizes))
                .collect(),
            comparison: Comparison {
                merged_ms: 1.0,
                sam_ms: 1.0,
                clip_ms: 1.0,
                separate_ms: Vec::new(),
                parameters: [0.0; 2],
                mmac: [0.0; 3],
                probes: probed.flat_map(|(names, found)| names.into_iter().zip(found)).collect(),
                megabytes: [0.0; 2],
                peak_mib: None,
            },
        }
    }

    /// Outcome of a claim, and what was found.
    fn verdict(results: &Results, claim: &str) -> (Outcome, String) {
        let found = all(results).into_iter().find(|v| v.claim.starts_with(claim)).unwrap();
        (found.outcome, found.found)
    }

    #[test]
    fn a_mode_is_switched_between_the_clip_and_the_sam_size_and_luck_at_another_size_is_none() {
        // CLIP size 64, SAM size 128 of 48, 64, 96, 112, 128, 160, 176; the noise is half a point.
        let cured = [50.0, 50.0, 50.0, 50.0, 57.0, 50.0, 50.0];
        for (two_stage, all_sizes, expected) in [
            ([50.0, 58.0, 50.0, 50.0, 50.0, 50.0, 50.0], cured, Reproduced),
            ([50.0, 58.0, 50.0, 50.0, 50.0, 50.0, 50.0], [50.0; 7], NotShown),
            ([50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 58.0], cured, NotShown),
            ([60.0, 45.0, 50.0, 50.0, 50.0, 50.0, 60.0], cured, Contradicted),
        ] {
            let (outcome, found) = verdict(&study(two_stage, all_sizes, [[1.0; 2]; 4]), "(i)");
            assert_eq!(outcome, expected, "{two_stage:?}");
            let figures = format!("at 64 px {:.1}, at 128 px 50.0; with all sizes", two_stage[1]);
            assert!(found.contains(&figures), "{found}");
        }
    }

    #[test]
    fn both_sides_of_the_probing_claim_have_the_better_of_two_probes() {
        for (teachers, merged, expected) in [
            ([20.0, 10.0], [10.0, 23.0], Reproduced),
            ([10.0, 20.0], [23.0, 10.0], Reproduced),
            ([10.0, 26.0], [23.0, 10.0], Contradicted),
            ([23.0, 22.5], [23.0, 10.0], NotShown),
        ] {
            let study = study([50.0; 7], [50.0; 7], [teachers, merged, [22.5, 9.0], [10.0, 22.8]]);
            assert_eq!(verdict(&study, "(g)").0, expected, "{teachers:?} {merged:?}");
        }
    }
}
