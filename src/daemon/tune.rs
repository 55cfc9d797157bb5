//! `samclipd tune`: how a text scores on pictures that show the thing and on pictures that do not, and where to cut.
//!
//! The score of a picture is the best one anywhere on it, which is what a threshold is compared with. Other texts that
//! will be asked at the same time should be named: they compete, and change every score.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::capture::read_picture;
use crate::vision::query::{logit, sigmoid};

use super::pipeline::{Pipeline, QuerySpec};

/// Scores at or below this, and at or above its complement, count as this: logits must stay finite.
const EXTREME: f32 = 1e-4;

/// How far outside of the scores of one kind of picture a cut lies, in logits: 0.4 becomes 0.20 or 0.64.
const MARGIN: f32 = 1.0;

/// Thresholds are told with three digits.
const STEP: f32 = 0.001;

/// Bars of the histogram.
const BARS: usize = 10;

/// What to try.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// The text.
    pub query: String,
    /// Other texts that are asked at the same time.
    pub against: Vec<String>,
    /// Pictures that show the thing.
    pub with: Vec<PathBuf>,
    /// Pictures that do not.
    pub without: Vec<PathBuf>,
}

/// Where to cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// Scores from here on count as present, in (0, 1).
    pub threshold: f32,
    /// Share of the pictures with the thing at or above it, 0-1.
    pub found: f32,
    /// Share of the pictures without the thing at or above it, 0-1.
    pub false_alarms: f32,
}

/// The threshold with the best mean of found and rightly quiet pictures, in the middle of the gap it cuts.
///
/// With one kind of picture only, the cut lies just outside of it: below all that show the thing, above all that do
/// not. Among cuts that are worth the same, the strictest one. The shares are those of the threshold as it is told, a multiple of
/// 0.001 that a configuration takes. `None` without scores.
#[must_use]
pub fn propose(with: &[f32], without: &[f32]) -> Option<Proposal> {
    let bounded = |s: &f32| {
        if s.is_nan() {
            EXTREME
        } else {
            s.clamp(EXTREME, 1.0 - EXTREME)
        }
    };
    let mut scores: Vec<f32> = with.iter().chain(without).map(bounded).collect();
    if scores.is_empty() {
        return None;
    }
    scores.sort_unstable_by(f32::total_cmp);
    scores.dedup();
    // In the middle between two scores on the scale of logits, where the ends of the range are as wide as its middle.
    let middle = |a: f32, b: f32| sigmoid(f32::midpoint(logit(a), logit(b)));
    let (lowest, highest) = (scores[0], scores[scores.len() - 1]);
    let told = |cut: f32| ((cut / STEP).round() * STEP).clamp(STEP, 1.0 - STEP);
    let cuts = std::iter::once(sigmoid(logit(lowest) - MARGIN))
        .chain(scores.windows(2).map(|pair| middle(pair[0], pair[1])))
        .chain(std::iter::once(sigmoid(logit(highest) + MARGIN)))
        .map(told);
    let share = |scores: &[f32], cut: f32| {
        scores.iter().filter(|s| bounded(s) >= cut).count() as f32 / scores.len().max(1) as f32
    };
    let proposals = cuts.map(|threshold| Proposal {
        threshold,
        found: if with.is_empty() { 1.0 } else { share(with, threshold) },
        false_alarms: share(without, threshold),
    });
    proposals.max_by(|a, b| {
        let worth = |p: &Proposal| p.found - p.false_alarms;
        worth(a).total_cmp(&worth(b)).then(a.threshold.total_cmp(&b.threshold))
    })
}

/// Score below which this share of the sorted scores lies.
fn quantile(sorted: &[f32], share: f32) -> f32 {
    let index = (share * (sorted.len().saturating_sub(1)) as f32).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

fn distribution(title: &str, scores: &[f32], table: &mut dyn Write) -> std::io::Result<()> {
    if scores.is_empty() {
        return Ok(());
    }
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let [low, median, high] = [0.0, 0.5, 1.0].map(|share| quantile(&sorted, share));
    writeln!(
        table,
        "\n{title}: {} pictures, lowest {low:.3}, median {median:.3}, highest {high:.3}",
        scores.len()
    )?;
    for bar in 0..BARS {
        let inside = |s: &&f32| ((**s * BARS as f32) as usize).min(BARS - 1) == bar;
        let count = sorted.iter().filter(inside).count();
        let length = (40 * count).div_ceil(sorted.len());
        writeln!(
            table,
            "  {:.1} {:<40} {count}",
            bar as f32 / BARS as f32,
            "#".repeat(length)
        )?;
    }
    Ok(())
}

/// Scores every picture and prints both distributions and the proposal.
///
/// # Errors
/// A text that is refused, a picture that cannot be read, no picture at all.
pub fn tune(pipeline: &mut Pipeline, options: &TuneOptions, table: &mut dyn Write) -> anyhow::Result<()> {
    if options.with.is_empty() && options.without.is_empty() {
        bail!("no pictures; give some with --with PICTURE... or --without PICTURE...");
    }
    let spec = |text: &String| QuerySpec {
        // No mask is asked for: scores are all that matters here.
        threshold: Some(0.999),
        ..QuerySpec::from_text(text)
    };
    let specs: Vec<QuerySpec> = std::iter::once(&options.query)
        .chain(&options.against)
        .map(spec)
        .collect();
    pipeline.set_queries(&specs)?;
    let current = pipeline.manifest().calibration.threshold;
    writeln!(table, "model {}, its own threshold {current:.3}", pipeline.model())?;
    writeln!(table, "score   shows it  picture")?;
    let mut scores = [Vec::new(), Vec::new()];
    for (pictures, shows, kept) in [(&options.with, "yes", 0), (&options.without, "no", 1)] {
        for picture in pictures {
            let frame = read_picture(picture)?;
            let found = pipeline.run(&frame).with_context(|| picture.display().to_string())?;
            let score = found.best.first().copied().unwrap_or(0.0);
            writeln!(table, "{score:.3}   {shows:<8}  {}", picture.display())?;
            scores[kept].push(score);
        }
    }
    let [with, without] = &scores;
    distribution("with it", with, table)?;
    distribution("without it", without, table)?;
    if let Some(proposal) = propose(with, without) {
        let Proposal {
            threshold,
            found,
            false_alarms,
        } = proposal;
        writeln!(table, "\nthreshold = {threshold:.3}")?;
        if !with.is_empty() {
            writeln!(table, "  found on {:.0} % of the pictures that show it", 100.0 * found)?;
        }
        if without.is_empty() {
            writeln!(table, "  nothing is known of false alarms: give pictures without it")?;
        } else {
            writeln!(table, "  false alarm on {:.0} % of the others", 100.0 * false_alarms)?;
        }
        if !with.is_empty() && !without.is_empty() && found - false_alarms < 0.8 {
            writeln!(
                table,
                "  no threshold separates them well: try other words, or name what it is confused with"
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_lies_in_the_middle_of_the_gap() {
        let proposal = propose(&[0.9, 0.8, 0.95], &[0.1, 0.2]).unwrap();
        assert_eq!((proposal.found, proposal.false_alarms), (1.0, 0.0));
        assert!((proposal.threshold - 0.5).abs() < 1e-3, "{proposal:?}");
    }

    #[test]
    fn where_both_overlap_most_pictures_are_right() {
        let proposal = propose(&[0.9, 0.8, 0.7, 0.2], &[0.1, 0.15, 0.3, 0.25]).unwrap();
        assert_eq!((proposal.found, proposal.false_alarms), (0.75, 0.0));
        assert!(proposal.threshold > 0.3 && proposal.threshold < 0.7);
    }

    #[test]
    fn one_kind_of_picture_puts_the_cut_just_outside_of_it() {
        let above = propose(&[], &[0.2, 0.4]).unwrap();
        assert!(
            (0.6..0.7).contains(&above.threshold) && above.false_alarms == 0.0,
            "{above:?}"
        );
        let below = propose(&[0.5, 0.4], &[]).unwrap();
        assert!(
            (0.15..0.25).contains(&below.threshold) && below.found == 1.0,
            "{below:?}"
        );
        assert_eq!(propose(&[], &[]), None);
    }

    #[test]
    fn extreme_scores_give_a_threshold_that_is_allowed() {
        for (with, without) in [
            (&[1.0, 1.0][..], &[0.0][..]),
            (&[1.0], &[1.0]),
            (&[0.0], &[0.0]),
            (&[f32::NAN], &[0.5]),
        ] {
            let proposal = propose(with, without).unwrap();
            assert!(proposal.threshold > 0.0 && proposal.threshold < 1.0, "{proposal:?}");
            let told = format!("{:.3}", proposal.threshold);
            assert!(told != "0.000" && told != "1.000", "{told}");
        }
    }

    #[test]
    fn where_nothing_separates_them_silence_is_better_than_noise() {
        let proposal = propose(&[0.3], &[0.6]).unwrap();
        assert_eq!((proposal.found, proposal.false_alarms), (0.0, 0.0), "{proposal:?}");
    }
}
