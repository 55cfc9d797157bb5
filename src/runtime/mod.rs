//! The accelerator: opens the graphs of a bundle and runs them.
//!
//! Two back ends answer to one small trait: tract (pure Rust, always there) and ONNX Runtime (feature `ort`, loaded at
//! run time). Everything outside this folder sees only [`ImageEncoder`], [`MaskDecoder`] and [`TextEncoder`]; which
//! back end and provider was chosen, and why, is text in [`Engine::provider`] and [`Engine::notes`].
//!
//! What is named is strict: provider `tensorrt` that does not do the work is an error. What is `auto` falls back, and
//! says why. [`precision`] chooses the variant of the graphs, [`engine_cache`] keeps what TensorRT builds.

pub mod device;
pub mod engine_cache;
mod engine_marker;
mod error;
mod graph;
pub mod inventory;
mod models;
mod options;
#[cfg(feature = "ort")]
mod ort_backend;
#[cfg(feature = "ort")]
mod ort_library;
pub mod precision;
#[cfg(feature = "ort")]
mod profile_folder;
pub mod progress;
pub mod proof;
#[cfg(feature = "ort")]
mod providers;
mod text_tower;
mod tract_backend;

use std::collections::BTreeMap;

use crate::contract::Bundle;
use crate::vision::features::Features;
use crate::vision::query::DecoderPrompt;
use crate::vision::refine::DecodedPrompt;

pub use error::RuntimeError;
pub use graph::{GraphSession, TakeOutput, Values};
pub use models::{Opened, open_with};
pub use options::{Backend, Provider, RuntimeOptions};
use precision::{Executor, choose};
use progress::{Progress, Silent};

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

    /// Frees what the next [`Self::embed`] can load again.
    fn release(&mut self) {}
}

/// What a frame runs through at one input size.
pub struct SizedGraphs {
    /// Image encoder.
    pub encoder: Box<dyn ImageEncoder>,
    /// Mask decoder.
    pub decoder: Box<dyn MaskDecoder>,
}

/// The graphs of a bundle, open.
pub struct Engine {
    /// Image encoder of the bundle's own size.
    pub encoder: Box<dyn ImageEncoder>,
    /// Mask decoder of the bundle's own size.
    pub decoder: Box<dyn MaskDecoder>,
    /// The further sizes that [`RuntimeOptions::sides`] named, by side in pixels.
    pub further: BTreeMap<usize, SizedGraphs>,
    /// Text encoder; loaded when a text is embedded, until it is released.
    pub text: Box<dyn TextEncoder>,
    /// What runs them: `tract-cpu`, `ort-cpu`, `ort-cuda`, `ort-tensorrt`.
    pub provider: String,
    /// Variant of image encoder and mask decoder.
    pub precision: String,
    /// Why that one: every candidate that was tried, and what became of it.
    pub notes: Vec<String>,
    /// Nodes of image encoders and mask decoders by ONNX Runtime's name of the provider, counted in a warm-up run; empty on the CPU.
    pub nodes: BTreeMap<String, usize>,
}

/// Keeps ONNX Runtime from collecting telemetry: 1.32 writes a device id into the user's cache as soon as it is loaded,
/// whatever its programming interface is told later. To be called first in `main`.
///
/// Does nothing once the process has a second thread, where changing the environment is not sound any more.
#[allow(unsafe_code)]
pub fn forbid_telemetry() {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if alone && std::env::var_os("ORT_DISABLE_TELEMETRY").is_none() {
        // SAFETY: this is the only thread of the process, so nothing reads the environment at the same time.
        unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    }
}

/// Opens the graphs of a bundle with the back end the options ask for.
///
/// # Errors
/// [`RuntimeError`]; with [`Backend::Auto`] a missing library is a note, unless a GPU or a library was named.
pub fn open(bundle: &Bundle, options: &RuntimeOptions) -> Result<Engine, RuntimeError> {
    open_watched(bundle, options, &Silent)
}

/// As [`open`], telling `progress` what takes long.
///
/// # Errors
/// As [`open`]; [`RuntimeError::EngineMissing`] and [`RuntimeError::Cancelled`] where `progress` says so.
pub fn open_watched(
    bundle: &Bundle,
    options: &RuntimeOptions,
    progress: &dyn Progress,
) -> Result<Engine, RuntimeError> {
    match options.backend {
        Backend::Tract if options.names_gpu() => Err(RuntimeError::TractProvider {
            provider: if options.provider == Provider::Cuda {
                "cuda"
            } else {
                "tensorrt"
            },
        }),
        Backend::Tract => open_tract(bundle, options, Vec::new()),
        Backend::Ort => open_ort(bundle, options, progress),
        Backend::Auto => match open_ort(bundle, options, progress) {
            // Whoever names a GPU or a library does not want tract.
            Err(error @ (RuntimeError::NoLibrary { .. } | RuntimeError::NotBuilt))
                if !options.names_gpu() && options.ort_library.is_none() =>
            {
                open_tract(bundle, options, vec![format!("tract is used: {error}")])
            }
            opened => opened,
        },
    }
}

/// Opens one graph by its boundary on the CPU, with tract or ONNX Runtime: what measures an export before it is a bundle.
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
    Ok(Box::new(ort_backend::Library::load(options)?.open_on_cpu(path, spec)?))
}

#[cfg(not(feature = "ort"))]
fn open_graph_ort(
    _: &std::path::Path,
    _: &crate::contract::GraphSpec,
    _: &RuntimeOptions,
) -> Result<Box<dyn GraphSession>, RuntimeError> {
    Err(RuntimeError::NotBuilt)
}

/// Sides of a bundle at several sizes.
fn sides(bundles: &[Bundle]) -> Vec<usize> {
    bundles.iter().map(|at| at.manifest.encoder.side).collect()
}

fn open_tract(bundle: &Bundle, options: &RuntimeOptions, mut notes: Vec<String>) -> Result<Engine, RuntimeError> {
    let further = models::further(bundle, &options.sides)?;
    let sides = sides(&further);
    let named = options.precision.as_deref();
    let choice = choose(&bundle.manifest.precision, named, &sides, Executor::Tract)?;
    notes.extend(choice.note());
    let opened = Opened {
        provider: Executor::Tract.name().into(),
        precision: choice.variant,
        further: &further,
        notes,
        nodes: BTreeMap::new(),
    };
    let threads = tract_backend::threads(options.thread_count());
    open_with(bundle, opened, move |spec, path| {
        Ok(Box::new(tract_backend::TractSession::open(
            path,
            spec,
            threads.clone(),
        )?))
    })
}

#[cfg(feature = "ort")]
use ort_backend::open as open_ort;

#[cfg(not(feature = "ort"))]
fn open_ort(_: &Bundle, _: &RuntimeOptions, _: &dyn Progress) -> Result<Engine, RuntimeError> {
    Err(RuntimeError::NotBuilt)
}
