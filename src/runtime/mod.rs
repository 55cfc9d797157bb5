//! The accelerator: opens the three graphs of a bundle and runs them.
//!
//! Two back ends answer to one small trait: tract (pure Rust, always there) and ONNX Runtime (feature `ort`, loaded at
//! run time). Everything outside this folder sees only [`ImageEncoder`], [`MaskDecoder`] and [`TextEncoder`]; which
//! back end and provider was chosen, and why, is text in [`Engine::provider`] and [`Engine::notes`].

mod graph;
mod models;
#[cfg(feature = "ort")]
mod ort_backend;
mod tract_backend;

use std::path::PathBuf;

use crate::contract::{Bundle, BundleError, GraphKind};
use crate::vision::features::{FeatureError, Features};
use crate::vision::query::DecoderPrompt;
use crate::vision::refine::DecodedPrompt;

pub use graph::{GraphSession, TakeOutput, Values};
pub use models::open_with;

/// Runs the image encoder: once per frame.
pub trait ImageEncoder: Send {
    /// Encodes one preprocessed frame, `[1, 3, S, S]`, into `features`, whose buffers are reused.
    ///
    /// # Errors
    /// [`RuntimeError`] if the back end fails or an output differs from the manifest.
    fn encode(&mut self, image: &[f32], features: &mut Features) -> Result<(), RuntimeError>;
}

/// Runs the mask decoder on any number of prompts, in batches of the manifest's `Q`.
pub trait MaskDecoder: Send {
    /// One answer per prompt, in order.
    ///
    /// # Errors
    /// [`RuntimeError`] if the back end fails or an output differs from the manifest.
    fn decode(&mut self, features: &Features, prompts: &[DecoderPrompt]) -> Result<Vec<DecodedPrompt>, RuntimeError>;
}

/// Runs the text encoder on any number of texts, in batches of the manifest's `T`.
pub trait TextEncoder: Send {
    /// One unit-norm embedding `[D]` per text; `token_ids` are `[L]` each, as the tokenizer gives them.
    ///
    /// # Errors
    /// [`RuntimeError`] if the back end fails or an output differs from the manifest.
    fn embed(&mut self, token_ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RuntimeError>;
}

/// Which back end to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// ONNX Runtime if its library is found, tract otherwise.
    #[default]
    Auto,
    /// tract, on the CPU.
    Tract,
    /// ONNX Runtime, or an error.
    Ort,
}

/// Which of ONNX Runtime's providers to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// TensorRT, then CUDA, then the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
    /// TensorRT, or an error.
    TensorRt,
}

/// How to open the graphs.
#[derive(Clone, Debug, Default)]
pub struct RuntimeOptions {
    /// Which back end.
    pub backend: Backend,
    /// Which provider of ONNX Runtime.
    pub provider: Provider,
    /// ONNX Runtime's shared library; tried before every other candidate.
    pub ort_library: Option<PathBuf>,
    /// Threads of one inference; 0 means as many as the machine has.
    pub threads: usize,
    /// Precision variant of the manifest; `None` means its default.
    pub precision: Option<String>,
    /// Where TensorRT keeps the engines it built; `None` means they are built anew.
    pub engine_cache: Option<PathBuf>,
}

impl RuntimeOptions {
    /// Number of threads to use, at least 1.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// The three graphs of a bundle, open.
pub struct Engine {
    /// Image encoder.
    pub encoder: Box<dyn ImageEncoder>,
    /// Mask decoder.
    pub decoder: Box<dyn MaskDecoder>,
    /// Text encoder.
    pub text: Box<dyn TextEncoder>,
    /// What runs them, e.g. `tract-cpu`, `ort-cpu`, `ort-cuda`.
    pub provider: String,
    /// Why that one: every candidate that was tried, and what became of it.
    pub notes: Vec<String>,
}

/// Why graphs cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The manifest knows no such precision.
    #[error(transparent)]
    Bundle(#[from] BundleError),
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
        /// What ONNX Runtime says.
        message: String,
    },
    /// This build has no ONNX Runtime support.
    #[error("this build has no ONNX Runtime support; rebuild with feature \"ort\" or use tract")]
    NotBuilt,
    /// Encoder outputs are unusable.
    #[error(transparent)]
    Features(#[from] FeatureError),
}

/// Opens the graphs of a bundle with the back end the options ask for.
///
/// # Errors
/// [`RuntimeError`]; with [`Backend::Auto`] a missing library is a note, not an error.
pub fn open(bundle: &Bundle, options: &RuntimeOptions) -> Result<Engine, RuntimeError> {
    match options.backend {
        Backend::Tract => open_tract(bundle, options, Vec::new()),
        Backend::Ort => open_ort(bundle, options),
        Backend::Auto => match open_ort(bundle, options) {
            Ok(engine) => Ok(engine),
            Err(error @ (RuntimeError::NoLibrary { .. } | RuntimeError::NotBuilt)) => {
                open_tract(bundle, options, vec![format!("tract is used: {error}")])
            }
            Err(error) => Err(error),
        },
    }
}

/// Opens one graph by its boundary, with tract or ONNX Runtime: what measures an export before it is a bundle.
///
/// # Errors
/// [`RuntimeError`] if the back end is missing or refuses the graph.
pub fn open_graph(
    path: &std::path::Path,
    spec: &crate::contract::GraphSpec,
    options: &RuntimeOptions,
) -> Result<Box<dyn GraphSession>, RuntimeError> {
    match options.backend {
        Backend::Ort => open_graph_ort(path, spec, options),
        Backend::Tract | Backend::Auto => {
            let threads = tract_backend::threads(options.thread_count());
            Ok(Box::new(tract_backend::TractSession::open(path, spec, threads)?))
        }
    }
}

#[cfg(feature = "ort")]
fn open_graph_ort(
    path: &std::path::Path,
    spec: &crate::contract::GraphSpec,
    options: &RuntimeOptions,
) -> Result<Box<dyn GraphSession>, RuntimeError> {
    Ok(Box::new(
        ort_backend::Library::load(options)?.open(path, spec, options)?.session,
    ))
}

#[cfg(not(feature = "ort"))]
fn open_graph_ort(
    _: &std::path::Path,
    _: &crate::contract::GraphSpec,
    _: &RuntimeOptions,
) -> Result<Box<dyn GraphSession>, RuntimeError> {
    Err(RuntimeError::NotBuilt)
}

fn open_tract(bundle: &Bundle, options: &RuntimeOptions, notes: Vec<String>) -> Result<Engine, RuntimeError> {
    let threads = tract_backend::threads(options.thread_count());
    open_with(
        bundle,
        options.precision.as_deref(),
        "tract-cpu".into(),
        notes,
        |kind: GraphKind, path| {
            Ok(Box::new(tract_backend::TractSession::open(
                path,
                &bundle.manifest.graph_spec(kind),
                threads.clone(),
            )?))
        },
    )
}

#[cfg(feature = "ort")]
fn open_ort(bundle: &Bundle, options: &RuntimeOptions) -> Result<Engine, RuntimeError> {
    let library = ort_backend::Library::load(options)?;
    let mut notes = vec![library.note.clone()];
    let mut provider = String::new();
    let mut sessions = Vec::new();
    for kind in GraphKind::ALL {
        let path = bundle.graph_path(kind, options.precision.as_deref())?;
        let opened = library.open(&path, &bundle.manifest.graph_spec(kind), options)?;
        if kind == GraphKind::Encoder {
            provider = opened.provider;
            notes.extend(opened.notes);
        }
        sessions.push(opened.session);
    }
    let mut sessions = sessions.into_iter();
    open_with(bundle, options.precision.as_deref(), provider, notes, |_, path| {
        let missing = || RuntimeError::Open {
            path: path.to_owned(),
            backend: "ort",
            message: "no session".into(),
        };
        sessions.next().map(|s| Box::new(s) as Box<_>).ok_or_else(missing)
    })
}

#[cfg(not(feature = "ort"))]
fn open_ort(_: &Bundle, _: &RuntimeOptions) -> Result<Engine, RuntimeError> {
    Err(RuntimeError::NotBuilt)
}
