//! Weights as a map from the reference checkpoints' names to values; reading and writing it.
//!
//! `.pth` and `.pt` (PyTorch zip and legacy pickles) and `.safetensors` load; `.safetensors` is written.
//! [`check`] compares a map with a model's inventory and lists every difference in one error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

mod pytorch_file;
mod safetensors_file;

/// One weight: row-major values and their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values, `shape`'s product of them.
    pub data: Vec<f32>,
}

/// Weights by name.
pub type Weights = BTreeMap<String, Values>;
/// Shapes by name: what a model asks for.
pub type Inventory = BTreeMap<String, Vec<usize>>;

/// Why weights could not be read or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file's name says nothing we read.
    #[error("{path}: unknown kind of checkpoint; expected a name ending in .pth, .pt, .bin or .safetensors")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged or not a checkpoint.
    #[error("{path}: not a readable checkpoint: {reason}; download or export it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// A tensor has a type that holds no weights.
    #[error("{path}: tensor {name:?} has type {found}, expected f32, f16, bf16 or f64")]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// Names or shapes differ from the model's.
    #[error("{origin} does not fit the model: {differences}")]
    Mismatch {
        /// Where the weights came from.
        origin: String,
        /// Every missing, extra and mis-shaped tensor.
        differences: String,
    },
}

/// Reads a checkpoint, all of it, as `f32`, one tensor after the other: beside the result, memory holds the bytes of one
/// tensor. Integer buffers of a PyTorch file are left out.
///
/// # Errors
/// [`WeightsError`] if the file cannot be read, is damaged, or is of an unknown kind.
pub fn read(path: &Path) -> Result<Weights, WeightsError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => safetensors_file::read(path),
        Some("pth" | "pt" | "bin") => pytorch_file::read(path),
        _ => Err(WeightsError::Kind { path: path.into() }),
    }
}

/// Writes `weights` with `metadata` as `.safetensors`, by a temporary file beside it: a kill at any
/// time leaves the old file or the new one. One tensor at a time is held a second time.
///
/// # Errors
/// [`WeightsError::Io`] if the file cannot be written.
pub fn write(path: &Path, weights: &Weights, metadata: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    safetensors_file::write(path, weights, metadata)
}

/// The metadata that [`write`] stored.
///
/// # Errors
/// [`WeightsError`] if the file cannot be read or is damaged.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    safetensors_file::read_metadata(path)
}

/// Names and shapes of `weights`.
#[must_use]
pub fn shapes(weights: &Weights) -> Inventory {
    weights
        .iter()
        .map(|(name, v)| (name.clone(), v.shape.clone()))
        .collect()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError + '_ {
    move |source| WeightsError::Io {
        path: path.into(),
        source,
    }
}

fn damaged(path: &Path, reason: impl std::fmt::Display) -> WeightsError {
    WeightsError::Damaged {
        path: path.into(),
        reason: reason.to_string(),
    }
}

/// How a file stores one value.
#[derive(Clone, Copy)]
enum Stored {
    F16,
    Bf16,
    F32,
    F64,
}

impl Stored {
    fn width(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Little-endian bytes as `f32`.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let convert = |f: &dyn Fn(&[u8]) -> f32| bytes.chunks_exact(self.width()).map(f).collect();
        match self {
            Self::F16 => convert(&|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Self::Bf16 => convert(&|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Self::F32 => convert(&|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            #[allow(clippy::cast_possible_truncation)] // weights are used in f32
            Self::F64 => convert(&|b| f64::from_le_bytes(b.try_into().expect("chunks of 8")) as f32),
        }
    }
}

/// Compares `weights` with what the model asks for.
///
/// # Errors
/// One [`WeightsError::Mismatch`] that lists every missing, extra and mis-shaped tensor.
pub fn check(weights: &Weights, inventory: &Inventory, origin: &str) -> Result<(), WeightsError> {
    let mut differences = String::new();
    for (name, shape) in inventory {
        match weights.get(name) {
            None => write!(differences, "\n  missing {name} {shape:?}").expect("a string grows"),
            Some(v) if v.shape != *shape => {
                write!(differences, "\n  {name} has shape {:?}, expected {shape:?}", v.shape).expect("a string grows");
            }
            Some(_) => {}
        }
    }
    for (name, v) in weights {
        if !inventory.contains_key(name) {
            write!(differences, "\n  extra {name} {:?}", v.shape).expect("a string grows");
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Mismatch {
        origin: origin.into(),
        differences,
    })
}
