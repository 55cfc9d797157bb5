//! `train quantize`: fp16 and int8 variants of a bundle, each with its measured loss, and a gate.
//!
//! ```text
//! bundle ─reference→ calibrate ─histograms→ sensitivity ─plans→ qdq, formats ─graphs→ measure ─losses→ gate → publish
//! ```
//!
//! Works on the bundle's ONNX files alone. The reference is the variant `fp32` if the bundle has it, else its first
//! variant that computes in fp32. Everything is run by the daemon's runtime (ONNX Runtime on the CPU; tract, where its
//! library is missing, measures fp16-stored only). Calibration and trials see training photos, the gate validation
//! photos. One engine is open at a time and no activation is kept: peak memory is that of one encoder session, three copies
//! of the largest graph (as read, as changed, as bytes) and at most 800 MiB of inner tensors.

pub mod calibrate;
mod error;
pub mod formats;
pub mod gate;
pub mod histogram;
pub mod measure;
pub mod onnx_file;
pub mod options;
pub mod publish;
pub mod qdq;
#[cfg(test)]
mod recorded;
pub mod report;
pub mod sensitivity;
pub mod session;
pub mod spool;
pub mod timing;
mod work;

use crate::contract::{Compute, GraphKind, Manifest};
use crate::text::templates::TEMPLATES;
use crate::text::tokenizer::Tokenizer;
use crate::train::dataset::{Dataset, Split};
use crate::train::eval::semantic::classes_of;
use crate::train::eval::{self, CLASSES};

pub use error::QuantizeError;
use measure::Subject;
use onnx_file::OnnxFile;
pub use options::{Options, Variant};
use publish::Staging;
use report::Report;
use session::Runner;
use work::Work;

/// Makes, measures, and writes the variants that `options` asks for.
///
/// # Errors
/// [`QuantizeError`]; the bundle is then as it was, or has the variants that were finished before.
pub fn run(options: &Options) -> Result<Report, QuantizeError> {
    let bundle = Manifest::read(&options.bundle)?;
    let reference = reference_name(&bundle.manifest)?;
    let variants = options.variants_for(&bundle.manifest);
    if let Some(&variant) = variants.iter().find(|v| v.name() == reference) {
        return Err(QuantizeError::IsReference { variant });
    }
    let probe = bundle.graph_path(GraphKind::MaskDecoder, Some(&reference))?;
    // a damaged graph is named before a back end says it in its own words
    for kind in GraphKind::ALL {
        OnnxFile::read(&bundle.graph_path(kind, Some(&reference))?)?;
    }
    let runner = Runner::choose(
        &probe,
        &bundle.manifest.graph_spec(GraphKind::MaskDecoder),
        options.threads,
    )?;
    let needs_ort = |v: &&Variant| v.compute() != Compute::Fp32;
    if let (false, Some(&variant)) = (runner.is_ort(), variants.iter().find(needs_ort)) {
        return Err(QuantizeError::NeedsOrt { variant });
    }
    let mut dataset = Dataset::open(&options.data)?;
    dataset.skip_corrupt();
    let tokenizer = eval::tokenizer(&bundle)?;
    let calibration_photos = spread(dataset.indices(Split::Train), options.calibration_photos);
    let measured_photos = spread(validation(&dataset), options.measure_photos);
    if measured_photos.is_empty() {
        return Err(QuantizeError::NoValidation);
    }
    let calibrated = calibration_photos.len();
    if variants.iter().any(|v| v.compute() != Compute::Fp32) && calibrated < calibrate::FEWEST_PHOTOS {
        return Err(QuantizeError::FewPhotos { found: calibrated });
    }
    let work = Work {
        options,
        reference: &reference,
        runner: &runner,
        staging: &Staging::open(&bundle, &options.out)?,
        calibrated,
        seen: Subject {
            photos: calibration_photos,
            ..subject(&bundle.manifest, &tokenizer, &dataset, options)
        },
        unseen: Subject {
            photos: measured_photos,
            ..subject(&bundle.manifest, &tokenizer, &dataset, options)
        },
        bundle: &bundle,
    };
    work.run(&variants)
}

fn subject<'a>(
    manifest: &'a Manifest,
    tokenizer: &'a Tokenizer,
    dataset: &'a Dataset,
    options: &Options,
) -> Subject<'a> {
    Subject {
        manifest,
        tokenizer,
        dataset,
        photos: Vec::new(),
        classes: names(dataset),
        templates: &TEMPLATES[..options.templates.clamp(1, TEMPLATES.len())],
    }
}

/// What variants are asked for: the names that `train eval` asks the photos for, or its table's where the photos have none.
fn names(dataset: &Dataset) -> Vec<String> {
    let found = classes_of(dataset);
    if found.is_empty() {
        CLASSES.map(str::to_owned).into()
    } else {
        found
    }
}

/// The variant that the others are compared with.
fn reference_name(manifest: &Manifest) -> Result<String, QuantizeError> {
    let single = manifest.precision.iter().filter(|p| p.compute == Compute::Fp32);
    let named = single.clone().find(|p| p.name == "fp32");
    let found = named
        .or_else(|| single.clone().next())
        .ok_or(QuantizeError::NoReference)?;
    Ok(found.name.clone())
}

/// Validation photos: the labelled ones, or all if none is labelled.
fn validation(dataset: &Dataset) -> Vec<usize> {
    let all = dataset.indices(Split::Validation);
    let labelled: Vec<usize> = all
        .iter()
        .copied()
        .filter(|&i| dataset.samples()[i].mask.is_some())
        .collect();
    if labelled.is_empty() { all } else { labelled }
}

/// At most `count` of the indices, spread evenly, so that every collection of a tar is among them.
fn spread(indices: Vec<usize>, count: usize) -> Vec<usize> {
    let total = indices.len();
    let count = count.min(total);
    (0..count).map(|i| indices[i * total / count.max(1)]).collect()
}
