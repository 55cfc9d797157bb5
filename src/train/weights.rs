//! Weights as a map from the reference checkpoints' names to values; reading and writing it.
//!
//! `.pth` and `.pt` (PyTorch zip and legacy pickles) and `.safetensors` load; `.safetensors` is written.
//! [`check`] compares a map with a model's inventory and lists every difference in one error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

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

/// Reads a checkpoint, all of it, as `f32`. Integer buffers of a PyTorch file are left out.
///
/// # Errors
/// [`WeightsError`] if the file cannot be read, is damaged, or is of an unknown kind.
pub fn read(path: &Path) -> Result<Weights, WeightsError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => read_safetensors(path),
        Some("pth" | "pt" | "bin") => read_pytorch(path),
        _ => Err(WeightsError::Kind { path: path.into() }),
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError + '_ {
    move |source| WeightsError::Io {
        path: path.into(),
        source,
    }
}

fn read_safetensors(path: &Path) -> Result<Weights, WeightsError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| WeightsError::Damaged {
        path: path.into(),
        reason: e.to_string(),
    })?;
    let mut weights = Weights::new();
    for (name, view) in file.tensors() {
        let convert = |n: usize, f: &dyn Fn(&[u8]) -> f32| view.data().chunks_exact(n).map(f).collect::<Vec<f32>>();
        let data = match view.dtype() {
            Dtype::F32 => convert(4, &|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => convert(2, &|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => convert(2, &|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            #[allow(clippy::cast_possible_truncation)] // weights are used in f32
            Dtype::F64 => convert(8, &|b| f64::from_le_bytes(b.try_into().expect("chunks of 8")) as f32),
            other => {
                return Err(WeightsError::Type {
                    path: path.into(),
                    name,
                    found: format!("{other:?}"),
                });
            }
        };
        weights.insert(
            name,
            Values {
                shape: view.shape().to_vec(),
                data,
            },
        );
    }
    Ok(weights)
}

fn read_pytorch(path: &Path) -> Result<Weights, WeightsError> {
    use pytorch_reader::DType;
    std::fs::File::open(path).map_err(io(path))?;
    let damaged = |reason: String| WeightsError::Damaged {
        path: path.into(),
        reason,
    };
    let reader = pytorch_reader::PytorchReader::new(path).map_err(|e| damaged(e.to_string()))?;
    let mut weights = Weights::new();
    for (name, tensor) in reader.into_tensors() {
        let width = match tensor.dtype() {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::F16 | DType::BF16 => 2,
            _ => continue,
        };
        let bytes = tensor.read().map_err(|e| damaged(format!("tensor {name:?}: {e}")))?;
        if bytes.len() != tensor.num_elements() * width {
            return Err(damaged(format!(
                "tensor {name:?} holds {} bytes, its shape {:?} asks for {}",
                bytes.len(),
                tensor.shape(),
                tensor.num_elements() * width
            )));
        }
        #[allow(clippy::cast_possible_truncation)] // weights are used in f32
        let data = bytes
            .chunks_exact(width)
            .map(|b| match tensor.dtype() {
                DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                DType::F64 => f64::from_le_bytes(b.try_into().expect("chunks of 8")) as f32,
                DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                _ => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            })
            .collect();
        weights.insert(
            name,
            Values {
                shape: tensor.shape().to_vec(),
                data,
            },
        );
    }
    if weights.is_empty() {
        return Err(damaged("it holds no tensors".into()));
    }
    Ok(weights)
}

/// Writes `weights` with `metadata` as `.safetensors`, by a temporary file beside it: a kill at any
/// time leaves the old file or the new one.
///
/// # Errors
/// [`WeightsError::Io`] if the file cannot be written.
pub fn write(path: &Path, weights: &Weights, metadata: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .iter()
        .map(|(name, v)| {
            (
                name.clone(),
                v.shape.clone(),
                v.data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).expect("values fill their shape");
        (name.as_str(), view)
    });
    let metadata = Some(metadata.clone().into_iter().collect());
    let partial = path.with_extension("partial");
    let written = safetensors::serialize_to_file(views, metadata, &partial);
    written.map_err(|e| WeightsError::Io {
        path: partial.clone(),
        source: std::io::Error::other(e.to_string()),
    })?;
    std::fs::rename(&partial, path).map_err(io(path))
}

/// The metadata that [`write`] stored.
///
/// # Errors
/// [`WeightsError`] if the file cannot be read or is damaged.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| WeightsError::Damaged {
        path: path.into(),
        reason: e.to_string(),
    })?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
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
