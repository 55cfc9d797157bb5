//! The report: Markdown with a verdict per claim, the figures behind it as JSON, plots as SVG.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::plot::{Line, draw};
use super::verdict::{self, Verdict};
use super::{Options, Results, SEEDS};
use crate::train::recipe::Recipe;

/// Writes `report.md`, `figures.json` and the plots; returns the report's path.
pub(super) fn write(options: &Options, recipe: &Recipe, results: &[Results]) -> Result<PathBuf> {
    let mut text = head(recipe, options);
    let verdicts: Vec<(&str, Vec<Verdict>)> = results.iter().map(|r| (r.source, verdict::all(r))).collect();
    text.push_str(&summary(&verdicts));
    for (found, (_, verdicts)) in results.iter().zip(&verdicts) {
        text.push_str(&section(found, verdicts));
        plots(options, found)?;
    }
    let figures: Vec<_> = results
        .iter()
        .map(|r| {
            json!({
                "source": r.source,
                "samples": r.samples,
                "understanding": r.understanding,
                "variants": r.variants,
                "interpolated": r.interpolated,
                "sizes": r.sizes,
                "comparison": r.comparison,
            })
        })
        .collect();
    let json = serde_json::to_string_pretty(&figures)?;
    let path = options.out.join("report.md");
    for (path, text) in [(options.out.join("figures.json"), json), (path.clone(), text)] {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

fn head(recipe: &Recipe, options: &Options) -> String {
    let steps = |stage: Option<u64>| stage.unwrap_or(0);
    format!(
        "# The paper's claims at small scale\n\n\
         Written by `train study`; the recipe is `{}`: SAM at {} px, stage 1 of {} steps, stage 2 of {} steps, teachers of {} (SAM) \
         and {} (CLIP) steps, trained on the same data. The paper's models are 26 times as wide and saw 41 million pictures: \
         what holds here may fail there, and the other way round. Where an effect is not shown, the runs may have \
         been too short to show it.\n\n\
         An effect counts if it exceeds twice the noise, the largest difference of three runs that differ in their seed alone, and half a point. \
         All figures are of the validation split (one tenth by hash of the key), at most {} samples per measurement, and in \
         percent where no unit is given.\n\n",
        options.recipe.display(),
        recipe.sam.image_size,
        recipe.probe.steps,
        recipe.distill.steps,
        steps(recipe.teach_sam.as_ref().map(|s| s.steps)),
        steps(recipe.teach_clip.as_ref().map(|s| s.steps)),
        options.photos,
    )
}

/// One line per claim, one column per data set.
fn summary(verdicts: &[(&str, Vec<Verdict>)]) -> String {
    let mut out = String::from("| claim |");
    verdicts
        .iter()
        .for_each(|(source, _)| out.push_str(&format!(" {source} |")));
    out.push_str(&format!("\n|---|{}\n", "---|".repeat(verdicts.len())));
    for (row, first) in verdicts.first().into_iter().flat_map(|(_, v)| v).enumerate() {
        write!(out, "| {} |", first.claim).expect("a string grows");
        for (_, column) in verdicts {
            out.push_str(&format!(" {} |", column.get(row).map_or("-", |v| v.outcome.words())));
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

fn section(results: &Results, verdicts: &[Verdict]) -> String {
    let mut out = format!(
        "## {}\n\n{} samples. \"Understanding\" is {}.\n\n\
         | variant | what it is | understanding | boxes, IoU | CLIP head, CLIP size | CLIP head, SAM size | both heads, SAM size |\n\
         |---|---|---:|---:|---:|---:|---:|\n",
        match results.source {
            "drawn" => "Drawn scenes",
            _ => "Photos",
        },
        results.samples,
        results.understanding
    );
    for v in &results.variants {
        let f = v.figures;
        let row = format!(
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            v.name, v.what, f.understanding, f.boxes, f.clip_head_low, f.clip_head, f.both_heads
        );
        out.push_str(&row);
    }
    out.push('\n');
    for v in verdicts {
        let block = format!(
            "**{}**: {}. Rule: {}. Found: {}.\n\n",
            v.claim,
            v.outcome.words(),
            v.rule,
            v.found
        );
        out.push_str(&block);
    }
    let c = &results.comparison;
    out.push_str("| encoders of one picture | merged, one pass | SAM and CLIP, K + 1 passes |\n|---|---:|---:|\n");
    for &(masks, ms) in &c.separate_ms {
        out.push_str(&format!(
            "| time with {masks} masks, ms | {:.1} | {ms:.1} |\n",
            c.merged_ms
        ));
    }
    out.push_str(&format!(
        "| parameters, million | {:.2} | {:.2} |\n| file, MB | {:.2} | {:.2} |\n\
         | multiply-accumulates, million | {:.0} | {:.0} + K × {:.0} |\n",
        c.parameters[0], c.parameters[1], c.megabytes[0], c.megabytes[1], c.mmac[0], c.mmac[1], c.mmac[2]
    ));
    if let Some([none, one, two]) = c.peak_mib {
        out.push_str(&format!(
            "| peak memory above the {none:.0} MiB of a process without a model, MiB | {:.1} | {:.1} |\n",
            one - none,
            two - none
        ));
    }
    out.push('\n');
    for (name, what) in PLOTS {
        out.push_str(&format!("![{what}]({}_{name}.svg)\n\n", results.source));
    }
    if results.source == "drawn" {
        out.push_str(
            "![masks](masks.png)\n\nMasks from the same boxes: the scene, the SAM teacher, naive distillation, two-stage.\n\n",
        );
    }
    out
}

const PLOTS: [(&str, &str); 4] = [
    ("forgetting", "box mask IoU against steps of stage 2"),
    ("loss", "L_CLIP against steps of stage 2"),
    (
        "wise_ft",
        "understanding against box IoU between SAM and the distilled model",
    ),
    ("sizes", "understanding against input size"),
];

fn plots(options: &Options, results: &Results) -> Result<()> {
    let path = |name: &str| options.out.join(format!("{}_{name}.svg", results.source));
    let curves = |of: &str| -> Vec<Line> {
        let line = |v: &super::variants::Trained| Line {
            name: v.name.into(),
            points: v
                .curve
                .iter()
                .filter(|(_, name, _)| name == of)
                .map(|(step, _, value)| (*step as f64, f64::from(*value)))
                .collect(),
        };
        results.variants.iter().map(line).collect()
    };
    let title = |what: &str| format!("{what} ({})", results.source);
    draw(
        &path("forgetting"),
        &title("What is kept of SAM"),
        ("step of stage 2", "box mask IoU, %"),
        &curves("box mask IoU"),
    )?;
    draw(
        &path("loss"),
        &title("L_CLIP"),
        ("step of stage 2", "cosine distance"),
        &curves("clip"),
    )?;
    let mut points = vec![Line {
        name: "interpolated, alpha 0 to 1".into(),
        points: results
            .interpolated
            .iter()
            .map(|(_, f)| (f.boxes, f.understanding))
            .collect(),
    }];
    for name in SEEDS {
        let found = results.variants.iter().filter(|v| v.name == name);
        // A short dash: a line of one point is invisible.
        points.extend(found.map(|v| {
            Line {
                name: name.into(),
                points: [-0.4, 0.4]
                    .map(|dx| (v.figures.boxes + dx, v.figures.understanding))
                    .to_vec(),
            }
        }));
    }
    let axes = ("box mask IoU, %", results.understanding);
    draw(&path("wise_ft"), &title("WiSE-FT"), axes, &points)?;
    let sizes = ["two-stage", "all sizes"].map(|name| Line {
        name: name.into(),
        points: results
            .sizes
            .iter()
            .filter(|s| s.variant == name)
            .map(|s| (s.side as f64, s.understanding))
            .collect(),
    });
    draw(
        &path("sizes"),
        &title("Input size"),
        ("side, px", results.understanding),
        &sizes,
    )
}
