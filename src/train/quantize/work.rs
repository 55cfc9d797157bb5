//! One run from calibration to the published bundle, readable top to bottom.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::calibrate::{Calibration, GraphStatistics, reference_graph};
use super::error::QuantizeError;
use super::measure::{Loss, Reference, Subject, mean_iou};
use super::onnx_file::OnnxFile;
use super::options::{Options, Variant};
use super::publish::Staging;
use super::qdq::Treatment;
use super::report::{Report, Row};
use super::sensitivity::{Sensitivity, Trials};
use super::session::Runner;
use super::spool::Spool;
use super::timing::{self, Timed};
use super::{formats, gate};
use crate::contract::{Bundle, BundleError, Compute, GraphKind, Manifest, Measured, Precision};
use crate::runtime::RuntimeError;
use crate::train::eval::EvalError;
use crate::train::eval::peak_memory;
use crate::vision::query::QueryError;

/// One run's inputs.
pub(super) struct Work<'a> {
    pub(super) options: &'a Options,
    pub(super) bundle: &'a Bundle,
    pub(super) reference: &'a str,
    pub(super) runner: &'a Runner,
    pub(super) staging: &'a Staging,
    pub(super) calibrated: usize,
    /// Training photos.
    pub(super) seen: Subject<'a>,
    /// Validation photos.
    pub(super) unseen: Subject<'a>,
}

type Statistics = BTreeMap<GraphKind, GraphStatistics>;

/// A variant whose files lie in the staging folder under unfinished names.
struct Staged {
    files: Vec<(GraphKind, PathBuf)>,
    bytes: [usize; 3],
    float_layers: Vec<String>,
}

impl Work<'_> {
    /// Calibrates if need be, then makes, measures and publishes one variant after the other.
    pub(super) fn run(&self, variants: &[Variant]) -> Result<Report, QuantizeError> {
        let mut fp32_bytes = [0; 3];
        for (bytes, kind) in fp32_bytes.iter_mut().zip(GraphKind::ALL) {
            *bytes = reference_graph(self.bundle, kind, self.reference)?.size();
        }
        let statistics = if variants.iter().any(|v| v.compute() != Compute::Fp32) {
            tracing::info!(photos = self.calibrated, "calibrating");
            let calibration = Calibration {
                bundle: self.bundle,
                reference: self.reference,
                subject: &self.seen,
                trial_photos: self.options.sensitivity_photos.max(1),
                runner: self.runner,
                staging: self.staging,
            };
            calibration.run()?
        } else {
            Statistics::new()
        };
        tracing::info!(photos = self.unseen.photos.len(), "measuring the reference");
        let files = GraphKind::ALL.map(|k| Ok((k, self.bundle.graph_path(k, Some(self.reference))?)));
        let files: Vec<_> = files.into_iter().collect::<Result<_, BundleError>>()?;
        let spool = Spool::new(self.staging.folder(), "reference")?;
        let mut reference = Reference::measure(&self.unseen, self.runner.engine(self.bundle, &files)?, spool)?;
        let mut report = Report {
            heading: format!(
                "reference {} on {}: mean IoU {} on {} labelled of {} validation photos; calibrated on {} training \
                 photos",
                self.reference,
                self.runner.name,
                mean_iou(reference.semantic()).map_or("unknown".into(), |iou| format!("{iou:.4}")),
                reference.semantic().photos,
                self.unseen.photos.len(),
                self.calibrated
            ),
            fp32_bytes,
            ..Report::default()
        };
        let mut manifest = self.bundle.manifest.clone();
        for &variant in variants {
            let row = if variant == Variant::Int8 {
                self.int8(&statistics, &mut reference, &mut report, &mut manifest)?
            } else {
                let staged = self.float(variant, &statistics)?;
                let row = self.judge(variant, &staged, &mut reference, &report)?;
                self.finish(row, staged, None, &mut manifest)?
            };
            report.rows.push(row);
        }
        report.peak_mib = peak_memory::own().ok().map(|kib| kib / 1024);
        // The variants are written by now: timings that fail must not cost the report.
        match self.timings(&manifest) {
            Ok(timings) => report.timings = timings,
            Err(error) => tracing::warn!(%error, "encoders are not timed; the variants are written all the same"),
        }
        Ok(report)
    }

    /// Writes the three graphs of a variant, one after the other, under unfinished names.
    fn stage(
        &self,
        variant: Variant,
        mut build: impl FnMut(GraphKind) -> Result<OnnxFile, QuantizeError>,
    ) -> Result<Staged, QuantizeError> {
        let mut staged = Staged {
            files: Vec::new(),
            bytes: [0; 3],
            float_layers: Vec::new(),
        };
        for (at, kind) in GraphKind::ALL.into_iter().enumerate() {
            let bytes = build(kind)?.encode();
            let path = self.staging.write(&format!("{}.{variant}.onnx", kind.name()), &bytes)?;
            staged.bytes[at] = bytes.len();
            staged.files.push((kind, path));
        }
        Ok(staged)
    }

    fn float(&self, variant: Variant, statistics: &Statistics) -> Result<Staged, QuantizeError> {
        self.stage(variant, |kind| {
            let graph = reference_graph(self.bundle, kind, self.reference)?;
            Ok(match statistics.get(&kind) {
                Some(found) if variant == Variant::Fp16Compute => formats::fp16_compute(graph, &found.largest()),
                _ => formats::fp16_stored(graph),
            })
        })
    }

    fn judge(
        &self,
        variant: Variant,
        staged: &Staged,
        reference: &mut Reference,
        report: &Report,
    ) -> Result<Row, QuantizeError> {
        tracing::info!(%variant, "measuring");
        let loss = match self.runner.engine(self.bundle, &staged.files) {
            Ok(engine) => reference.compare(&self.unseen, engine),
            Err(error) => Err(error),
        };
        let loss = match loss {
            // values that are not finite are the variant's fault, and the gate's business
            Err(QuantizeError::Eval(
                EvalError::Runtime(RuntimeError::Features(_)) | EvalError::Query(QueryError::NoMean { .. }),
            )) => Loss::unusable(&self.unseen),
            other => other?,
        };
        let sum = |bytes: [usize; 3]| bytes.iter().sum::<usize>() as f64;
        let size_ratio = sum(staged.bytes) / sum(report.fp32_bytes).max(1.0);
        Ok(Row {
            variant,
            bytes: staged.bytes,
            size_ratio,
            objections: gate::objections(&loss, size_ratio, variant == Variant::Int8),
            loss,
            float_layers: staged.float_layers.clone(),
            written: false,
        })
    }

    fn int8(
        &self,
        statistics: &Statistics,
        reference: &mut Reference,
        report: &mut Report,
        manifest: &mut Manifest,
    ) -> Result<Row, QuantizeError> {
        for (&kind, found) in statistics {
            let file = reference_graph(self.bundle, kind, self.reference)?;
            let trials = self.trials(&file, found);
            tracing::info!(
                graph = kind.name(),
                layers = found.layers.len(),
                "trying layers in 8 bits"
            );
            let sensitivity = trials.search(self.options.calibration, self.options.max_runs)?;
            report.sensitivity.push((kind, sensitivity));
        }
        let mut last: Option<(Row, Staged)> = None;
        for round in 0..self.options.rounds.max(1) {
            let staged = self.plan(statistics, &report.sensitivity, round)?;
            let unchanged = last
                .as_ref()
                .is_some_and(|(row, _)| row.float_layers == staged.float_layers);
            if !unchanged {
                let row = self.judge(Variant::Int8, &staged, reference, report)?;
                tracing::info!(
                    round, float_layers = row.float_layers.len(), iou_change = ?row.loss.iou_change(),
                    ranking_changed = row.loss.ranking_changed, objections = ?row.objections, "int8 measured"
                );
                let passed = row.objections.is_empty();
                last = Some((row, staged));
                if passed {
                    break;
                }
            }
        }
        let Some((row, staged)) = last else {
            return Err(QuantizeError::NoReference);
        };
        let methods = report
            .sensitivity
            .iter()
            .map(|(k, s)| format!("{} {}", k.name(), s.method));
        let calibration = format!("{}, {} photos", methods.collect::<Vec<_>>().join(", "), self.calibrated);
        self.finish(row, staged, Some(calibration), manifest)
    }

    fn trials<'b>(&'b self, file: &'b OnnxFile, statistics: &'b GraphStatistics) -> Trials<'b> {
        Trials {
            bundle: self.bundle,
            file,
            statistics,
            weight_bits: self.options.weight_bits,
            runner: self.runner,
            staging: self.staging,
        }
    }

    /// Stages int8 graphs whose layers' effects stay within the target of `round` per graph.
    fn plan(
        &self,
        statistics: &Statistics,
        sensitivity: &[(GraphKind, Sensitivity)],
        round: usize,
    ) -> Result<Staged, QuantizeError> {
        let mut float_layers = Vec::new();
        let mut staged = self.stage(Variant::Int8, |kind| {
            let file = reference_graph(self.bundle, kind, self.reference)?;
            let found = statistics.get(&kind).zip(sensitivity.iter().find(|(k, _)| *k == kind));
            let Some((statistics, (_, sensitivity))) = found else {
                return Ok(formats::fp16_stored(file));
            };
            let kept = sensitivity.kept_in_float(sensitivity.target(self.options.target_error, round));
            let in_float = |weight: &String| kept.iter().any(|u| u.weights.contains(weight));
            let layers = statistics.layers.iter().filter(|l| in_float(&l.weight));
            float_layers.extend(layers.map(|l| format!("{}: {}", kind.name(), l.name())));
            let trials = self.trials(&file, statistics);
            Ok(trials.build(&trials.plan(sensitivity.method, |l| {
                if in_float(&l.weight) {
                    Treatment::WeightOnly
                } else {
                    l.strongest()
                }
            })))
        })?;
        staged.float_layers = float_layers;
        Ok(staged)
    }

    /// Publishes a variant that passed or is forced, removes the files of one that is refused.
    fn finish(
        &self,
        mut row: Row,
        staged: Staged,
        calibration: Option<String>,
        manifest: &mut Manifest,
    ) -> Result<Row, QuantizeError> {
        let forced = !row.objections.is_empty();
        if forced && !self.options.force {
            staged.files.iter().for_each(|(_, path)| self.staging.remove(path));
            return Ok(row);
        }
        let name = row.variant.name();
        let names = GraphKind::ALL.map(|k| Staging::free_name(manifest, k.name(), name));
        let finite = |v: f64| if v.is_finite() { v } else { f64::from(f32::MAX) };
        let errors = row.loss.relative_error.iter();
        let precision = Precision {
            name: name.into(),
            compute: row.variant.compute(),
            encoder: names[0].clone(),
            mask_decoder: names[1].clone(),
            text_encoder: names[2].clone(),
            relative_error: errors.map(|(n, &e)| (n.clone(), rounded(finite(e)))).collect(),
            mean_iou_change: row.loss.iou_change().map(rounded),
            size: Vec::new(),
            measured: Some(Measured {
                reference: self.reference.into(),
                photos: row.loss.photos,
                mask_agreement: rounded(row.loss.mask_agreement),
                ranking_changed: rounded(row.loss.ranking_changed),
                size_ratio: rounded(row.size_ratio),
                calibration,
                float_layers: row.float_layers.clone(),
                forced,
            }),
        };
        let files: Vec<_> = staged.files.into_iter().map(|(_, path)| path).zip(names).collect();
        *manifest = self.staging.publish(manifest.clone(), precision, &files)?.manifest;
        row.written = true;
        Ok(row)
    }

    /// Times the written variants' encoders against one with fp32 weights.
    fn timings(&self, manifest: &Manifest) -> Result<Vec<timing::Timing>, QuantizeError> {
        if self.options.timing_rounds == 0 {
            return Ok(Vec::new());
        }
        tracing::info!("timing");
        let graph = reference_graph(self.bundle, GraphKind::Encoder, self.reference)?;
        let path = self.staging.write("encoder.fp32.onnx", &graph.encode())?;
        drop(graph);
        let mut files = vec![Timed {
            name: "fp32".into(),
            path: path.clone(),
            compute: Compute::Fp32,
        }];
        let named = manifest.precision.iter().filter(|p| p.name != "fp32");
        files.extend(named.map(|p| Timed {
            name: p.name.clone(),
            path: self.staging.folder().join(&p.encoder),
            compute: p.compute,
        }));
        let mut rows = Vec::new();
        if self.runner.is_ort() {
            rows = timing::compare(self.runner, self.bundle, &files, self.options.timing_rounds)?;
        }
        files.retain(|f| f.compute == Compute::Fp32);
        let tract = Runner::on_tract(self.options.threads);
        rows.extend(timing::compare(
            &tract,
            self.bundle,
            &files,
            self.options.timing_rounds,
        )?);
        self.staging.remove(&path);
        Ok(rows)
    }
}

/// Six significant places are enough for a manifest.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
