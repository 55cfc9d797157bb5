//! What the machine offers for running a model: libraries, GPU, providers. `samclipd doctor` prints it.

use std::path::PathBuf;

use super::device;
use super::{RuntimeError, RuntimeOptions};
use crate::contract::Bundle;

/// A name, and what was found or why nothing was.
pub type Finding = (String, Result<String, String>);

/// Everything that was looked for.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Paths where ONNX Runtime's library was looked for, up to the one in use: version, or why not.
    pub ort_libraries: Vec<Finding>,
    /// NVIDIA GPU, driver and board; `None` if there is no sign of one.
    pub gpu: Option<String>,
    /// Libraries of CUDA and TensorRT: path, or what needs them.
    pub gpu_libraries: Vec<Finding>,
    /// Providers of ONNX Runtime: whether they register.
    pub providers: Vec<Finding>,
}

/// Looks for everything; opens no graph.
#[must_use]
pub fn take(options: &RuntimeOptions) -> Inventory {
    let root = std::path::Path::new("/");
    let ld_library_path = std::env::var("LD_LIBRARY_PATH").ok();
    let directories: Vec<PathBuf> = device::library_directories(root, ld_library_path.as_deref());
    let library = |(name, part): &(&str, &str)| {
        let found = device::find_library(&directories, name);
        let found = found.map(|path| path.display().to_string());
        (
            (*name).to_owned(),
            found.ok_or_else(|| format!("not found; part of {part}")),
        )
    };
    let (ort_libraries, providers) = ort(options);
    Inventory {
        ort_libraries,
        gpu: device::gpu(root),
        gpu_libraries: device::WANTED_LIBRARIES.iter().map(library).collect(),
        providers,
    }
}

#[cfg(feature = "ort")]
fn ort(options: &RuntimeOptions) -> (Vec<Finding>, Vec<Finding>) {
    use super::ort_backend::Library;
    use super::precision::Executor;
    use super::providers;

    let named = |tried: &[super::ort_backend::Candidate]| {
        let one = |(path, outcome): &super::ort_backend::Candidate| (path.display().to_string(), outcome.clone());
        tried.iter().map(one).collect::<Vec<_>>()
    };
    match Library::search(options) {
        Err(tried) => (named(&tried), Vec::new()),
        Ok(library) => {
            let probe = |executor: Executor| {
                let outcome = library
                    .builder()
                    .and_then(|mut builder| providers::probe(executor, &mut builder));
                (
                    providers::short_name(executor).to_owned(),
                    outcome.map(|()| "registers".to_owned()),
                )
            };
            let executors = [Executor::TensorRt, Executor::Cuda, Executor::OrtCpu];
            (named(&library.tried), executors.map(probe).to_vec())
        }
    }
}

#[cfg(not(feature = "ort"))]
fn ort(_: &RuntimeOptions) -> (Vec<Finding>, Vec<Finding>) {
    (Vec::new(), Vec::new())
}

/// Counts, on ONNX Runtime's CPU provider, which provider runs the nodes of the image encoder of the bundle's own size.
///
/// # Errors
/// [`RuntimeError`] if there is no library or the graph is refused.
#[cfg(feature = "ort")]
pub fn prove_on_cpu(bundle: &Bundle, options: &RuntimeOptions) -> Result<super::proof::Proof, RuntimeError> {
    use super::precision::{Executor, choose};
    use crate::contract::GraphKind;

    let library = super::ort_backend::Library::load(options)?;
    let sides = super::sides(&super::models::further(bundle, &options.sides)?);
    let named = options.precision.as_deref();
    let choice = choose(&bundle.manifest.precision, named, &sides, Executor::OrtCpu)?;
    let path = bundle.dir.join(choice.variant.file(GraphKind::Encoder));
    super::ort_backend::prove_on_cpu(&library, &path, &bundle.manifest.graph_spec(GraphKind::Encoder))
}

/// As with feature `ort`, which this build lacks.
///
/// # Errors
/// Always [`RuntimeError::NotBuilt`].
#[cfg(not(feature = "ort"))]
pub fn prove_on_cpu(_: &Bundle, _: &RuntimeOptions) -> Result<super::proof::Proof, RuntimeError> {
    Err(RuntimeError::NotBuilt)
}
