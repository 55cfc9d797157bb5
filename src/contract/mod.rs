//! The promise an exported model makes, shared by `train export` (which writes it) and the daemon (which checks it).
//!
//! A bundle is a directory with `manifest.toml`, three ONNX graphs per precision, two more per further input size and, where
//! the vocabulary is not the standard CLIP one, a file of merges. The daemon never needs layers; it needs the names, shapes, normalisation,
//! logit scale and calibration written here. What is deliberately absent: anything that runs a graph
//! ([`crate::runtime`]) and anything that looks at pixels ([`crate::vision`]).

mod bundle;
mod manifest;
mod size;
mod tensors;
mod validate;
mod whole_file;

pub use bundle::{Bundle, BundleError, LARGEST_MANIFEST, MANIFEST_FILE, hash_file, sha256_hex};
pub use manifest::{
    Calibration, Compute, DecoderSpec, EncoderSpec, FORMAT_VERSION, Manifest, Measured, OPENAI_CLIP_VOCABULARY,
    Precision, Source, TextSpec,
};
pub use size::{Size, SizeFiles};
pub use tensors::{Dtype, GraphKind, GraphSpec, TensorSpec};
pub use validate::check_file_name;
pub use whole_file::{write_whole, write_whole_with};
