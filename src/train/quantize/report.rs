//! What `train quantize` prints.

use std::fmt::Write as _;

use super::Variant;
use super::measure::Loss;
use super::sensitivity::Sensitivity;
use super::timing::Timing;
use crate::contract::GraphKind;

/// Units of a sensitivity table that are printed.
const SHOWN: usize = 12;

/// One variant and what became of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub variant: Variant,
    /// Bytes of encoder, mask decoder, text encoder.
    pub bytes: [usize; 3],
    /// Bytes over those of fp32.
    pub size_ratio: f64,
    /// What it loses.
    pub loss: Loss,
    /// Layers computed in float, of an int8 variant.
    pub float_layers: Vec<String>,
    /// Why it was refused; empty if it passed.
    pub objections: Vec<String>,
    /// Whether it lies in the bundle.
    pub written: bool,
}

/// Everything measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Name of the reference and what ran the measurements.
    pub heading: String,
    /// Bytes of the three graphs with fp32 weights.
    pub fp32_bytes: [usize; 3],
    /// Trials per graph.
    pub sensitivity: Vec<(GraphKind, Sensitivity)>,
    /// Variants in order.
    pub rows: Vec<Row>,
    /// Peak resident size of this process before the timings, MiB.
    pub peak_mib: Option<u64>,
    /// Encoder times and memory.
    pub timings: Vec<Timing>,
}

impl Report {
    /// Refused variants with their reasons, as one text; `None` if everything was written.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let refused: Vec<String> = self
            .rows
            .iter()
            .filter(|r| !r.written)
            .map(|r| format!("{} refused: {}", r.variant, r.objections.join("; ")))
            .collect();
        (!refused.is_empty()).then(|| {
            format!(
                "{}; the bundle is as it was without it. Calibrate on more photos (--calibration-photos), let it \
                 keep more in float (more --rounds), or write it all the same with --force",
                refused.join("\n")
            )
        })
    }

    /// All tables in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("{}\n", self.heading);
        for (kind, found) in &self.sensitivity {
            sensitivity(&mut out, *kind, found);
        }
        self.losses(&mut out);
        if let Some(peak) = self.peak_mib {
            let _ = write!(out, "\nPeak memory of making and measuring all this: {peak} MiB\n");
        }
        self.times(&mut out);
        for row in self.rows.iter().filter(|r| !r.float_layers.is_empty()) {
            let _ = write!(
                out,
                "\n{}: weights in 8 bits, product in float, for {} layers: {}\n",
                row.variant,
                row.float_layers.len(),
                row.float_layers.join(", ")
            );
        }
        out
    }

    fn losses(&self, out: &mut String) {
        out.push_str(
            "\n| variant | encoder kB | mask decoder kB | text encoder kB | size / fp32 | mean IoU change | ranking \
             changed (ties included) | mask agreement | relative L2: features, patches, image, masks, IoU, text | \
             written |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let kib = |bytes: [usize; 3]| bytes.map(|b| format!("{:.0}", b as f64 / 1000.0)).join(" | ");
        let _ = writeln!(out, "| fp32 | {} | 1.000 | | | | | |", kib(self.fp32_bytes));
        for row in &self.rows {
            let l = &row.loss;
            let error = |name: &str| l.relative_error.get(name).map_or("-".into(), |e| format!("{e:.4}"));
            let errors = [
                "image_embeddings",
                "patch_embeddings",
                "image_embedding",
                "low_res_logits",
                "iou_predictions",
                "text_embedding",
            ]
            .map(error)
            .join(", ");
            let written = match (row.written, row.objections.is_empty()) {
                (true, true) => "yes",
                (true, false) => "forced",
                _ => "refused",
            };
            let iou = l.iou_change().map_or("no labels".into(), |c| format!("{c:+.4}"));
            let _ = writeln!(
                out,
                "| {} | {} | {:.3} | {iou} | {:.4} ({:.4}) | {:.4} | {errors} | {written} |",
                row.variant,
                kib(row.bytes),
                row.size_ratio,
                l.ranking_changed,
                l.top_differs,
                l.mask_agreement,
            );
        }
    }

    fn times(&self, out: &mut String) {
        if self.timings.is_empty() {
            return;
        }
        out.push_str("\n| encoder | back end | load / fp32 | run / fp32 | peak MiB |\n|---|---|---|---|---|\n");
        for t in &self.timings {
            let peak = t.peak_mib.map_or("-".into(), |peak| format!("{peak:.0}"));
            let _ = writeln!(
                out,
                "| {} | {} | {:.2} | {:.2} | {peak} |",
                t.name, t.backend, t.load, t.run
            );
        }
    }
}

fn sensitivity(out: &mut String, kind: GraphKind, found: &Sensitivity) {
    let methods: Vec<String> = found.methods.iter().map(|(m, e)| format!("{m} {e:.4}")).collect();
    let alone = found
        .weights_alone
        .map_or(String::new(), |e| format!("; weights alone {e:.4}"));
    let _ = write!(
        out,
        "\n{}: overall relative error with every layer in 8 bits: {}{alone}. Chosen: {}\n",
        kind.name(),
        methods.join(", "),
        found.method
    );
    if found.units.is_empty() {
        return;
    }
    out.push_str("\n| only this in 8 bits | overall relative error |\n|---|---|\n");
    for (unit, effect) in found.units.iter().take(SHOWN) {
        let _ = writeln!(out, "| {} | {effect:.4} |", unit.name);
    }
    if let Some((_, effect)) = found.units.get(SHOWN) {
        let _ = writeln!(out, "| {} more | at most {effect:.4} |", found.units.len() - SHOWN);
    }
}
