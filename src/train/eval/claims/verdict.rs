//! What the figures say about each claim, by rules that are written down before the figures are known.
//!
//! An effect counts if it is larger than twice the noise, the difference of two runs that differ in their seed alone, and
//! at least half a point.

use super::Results;
use super::comparison::{MERGED, REPEATED, TEACHERS};
use super::figures::Figures;

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
    let (teacher, two, repeat, naive) = (of("untrained"), of("two-stage"), of("repeat"), of("naive"));
    let noise = |get: fn(&Figures) -> f64| get(&two) - get(&repeat);
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

    verdicts.extend(mode_switching(results, noise(understanding)));
    verdicts
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
    let (teachers, merged, repeated) = (best(TEACHERS)?, best(MERGED)?, best(REPEATED)?);
    let list: Vec<String> = probes.iter().map(|(name, iou)| format!("{name} {iou:.1}")).collect();
    Some(Verdict {
        claim: "(g) A linear probe segments better with the merged features than with either teacher's",
        rule: "mean IoU of the best probe on merged features above the best on a teacher's",
        found: list.join(", "),
        outcome: Outcome::of(merged - teachers, merged - repeated),
    })
}

/// A student of CLIP at low and SAM at high resolution understands less at the SAM size (paper.md, section 8).
fn mode_switching(results: &Results, noise: f64) -> Option<Verdict> {
    let at = |variant: &str| {
        let sizes = results.sizes.iter().filter(move |s| s.variant == variant);
        let best = sizes.clone().map(|s| s.understanding).fold(f64::MIN, f64::max);
        (
            best,
            sizes.clone().map(|s| (s.side, s.understanding)).collect::<Vec<_>>(),
        )
    };
    let ((best, two), (_, cured)) = (at("two-stage"), at("all sizes"));
    // The SAM size is the fifth of seven, six sixths.
    let (&(side, two_there), &(_, cured_there)) = (two.get(4)?, cured.get(4)?);
    Some(Verdict {
        claim: "(i) Trained with CLIP at low and SAM at high resolution, the student switches modes: it understands less at the \
                SAM size; CLIP batches at all sizes cure it",
        rule: "understanding at the SAM size below the best size's, and higher with CLIP batches at all sizes",
        found: format!(
            "best size {best:.1}, at {side} px {two_there:.1}; with all sizes {cured_there:.1} there (noise {:.1})",
            noise.abs()
        ),
        outcome: Outcome::of(best - two_there, noise).and(Outcome::of(cured_there - two_there, noise)),
    })
}

#[cfg(test)]
mod tests {
    use super::Outcome::{self, Contradicted, NotShown, Reproduced};
    use super::{Figures, no_point_as_good};

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
}
