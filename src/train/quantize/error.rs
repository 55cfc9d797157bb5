//! Why nothing was quantized.

use std::path::{Path, PathBuf};

use super::calibrate;
use super::options::Variant;
use crate::contract::BundleError;
use crate::runtime::RuntimeError;
use crate::train::dataset::DatasetError;
use crate::train::eval::EvalError;

/// Why nothing was quantized. A variant that the gate refuses is no error but a [`super::report::Report::refusal`].
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A graph of the bundle cannot be quantized.
    #[error("{path}: the graph {message}", path = path.display())]
    Graph {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}; the bundle is as it was", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The data.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Names, photos or their scores.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A graph cannot be opened or run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Too few photos to calibrate on.
    #[error(
        "found {found} photos to calibrate on, expected at least {fewest}; ranges of a few photos clip the next one. \
         Give more tars with --data (the tenth of the keys that is for validation does not count) or raise \
         --calibration-photos",
        fewest = calibrate::FEWEST_PHOTOS
    )]
    FewPhotos {
        /// Photos found.
        found: usize,
    },
    /// Nothing to measure the loss on.
    #[error("found no validation photo to measure on, expected at least 1; give more tars with --data")]
    NoValidation,
    /// ONNX Runtime is missing.
    #[error(
        "{variant} can only be measured with ONNX Runtime, found only tract; set SAMCLIP_ORT_LIB to libonnxruntime.so \
         1.17 or newer, or ask for --variants fp16-stored"
    )]
    NeedsOrt {
        /// The variant.
        variant: Variant,
    },
    /// No variant computes in fp32.
    #[error("the bundle has no variant that computes in fp32, expected one to compare with; export the model again")]
    NoReference,
    /// The reference itself was asked for.
    #[error("variant {variant} is what the others are compared with; name others with --variants")]
    IsReference {
        /// The variant.
        variant: Variant,
    },
    /// Another bundle lies where this one should go.
    #[error("{out} holds another bundle; give an empty folder, or the bundle's own to add variants to it", out = out.display())]
    OtherBundle {
        /// The folder.
        out: PathBuf,
    },
}

impl QuantizeError {
    /// An I/O error at a path.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}
