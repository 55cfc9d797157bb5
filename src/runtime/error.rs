//! Why graphs cannot be opened or run.

use std::path::PathBuf;

use super::precision::PrecisionError;
use crate::contract::BundleError;
use crate::vision::features::FeatureError;

/// Why graphs cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The bundle is not what its manifest says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No variant of the graphs fits.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// A graph is another one than when the bundle was opened.
    #[error(
        "{path}: SHA-256 is {found}, it was {expected} when the model was opened; another model lies there now, restart the program",
        path = path.display()
    )]
    Replaced {
        /// Which file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// Its hash in the manifest of the bundle that is open.
        expected: String,
    },
    /// The back end refuses the graph.
    #[error("{path}: {backend} cannot open the graph: {message}", path = path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Which back end.
        backend: &'static str,
        /// What it says.
        message: String,
    },
    /// A graph lacks an input or output of the manifest.
    #[error("{graph} graph has {found}, manifest says {expected}; model and manifest come from different exports")]
    Boundary {
        /// Which graph.
        graph: &'static str,
        /// Names found.
        found: String,
        /// Name expected.
        expected: String,
    },
    /// An output has another shape than the manifest says.
    #[error(
        "{graph} output {name:?} has shape {found:?}, manifest says {expected:?}; model and manifest come from different exports"
    )]
    OutputShape {
        /// Which graph.
        graph: &'static str,
        /// Which output.
        name: String,
        /// Shape found.
        found: Vec<usize>,
        /// Shape expected.
        expected: Vec<usize>,
    },
    /// The caller gave an input of the wrong length.
    #[error("{graph} input {name:?} got {found} values, expected {expected}")]
    InputLength {
        /// Which graph.
        graph: &'static str,
        /// Which input.
        name: String,
        /// Values given.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The back end failed while running.
    #[error("{graph}: {backend} failed: {message}")]
    Run {
        /// Which graph.
        graph: &'static str,
        /// Which back end.
        backend: &'static str,
        /// What it says.
        message: String,
    },
    /// ONNX Runtime's library was not found.
    #[error(
        "no usable ONNX Runtime library among {tried}; set SAMCLIP_ORT_LIB to libonnxruntime.so 1.17 or newer, or use tract"
    )]
    NoLibrary {
        /// Every candidate and what became of it.
        tried: String,
    },
    /// The wanted provider cannot be used.
    #[error("provider {provider} is not usable: {message}; use provider \"auto\" to fall back")]
    Provider {
        /// Which provider.
        provider: &'static str,
        /// What is missing, or what it leaves to others.
        message: String,
    },
    /// tract is asked for a GPU.
    #[error("tract runs on the CPU only, provider {provider} needs ONNX Runtime; use engine \"ort\" or \"auto\"")]
    TractProvider {
        /// Which provider.
        provider: &'static str,
    },
    /// Engines cannot be kept.
    #[error("engine cache {path}: {message}", path = path.display())]
    EngineCache {
        /// Which folder or file.
        path: PathBuf,
        /// What happened and what helps.
        message: String,
    },
    /// The engine is not there, and the caller did not want it built.
    #[error("TensorRT engines are not built yet ({path}); `samclipd prepare` builds them", path = path.display())]
    EngineMissing {
        /// Where they would be.
        path: PathBuf,
    },
    /// The caller gave up while another process was building.
    #[error("stopped while waiting for the engines in {path}", path = path.display())]
    Cancelled {
        /// What was waited for.
        path: PathBuf,
    },
    /// This build has no ONNX Runtime support.
    #[error("this build has no ONNX Runtime support; rebuild with feature \"ort\" or use tract")]
    NotBuilt,
    /// Encoder outputs are unusable.
    #[error(transparent)]
    Features(#[from] FeatureError),
}
