//! How the graphs of a bundle shall be opened.

use std::path::PathBuf;

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
    /// ONNX Runtime's shared library; if given, no other is tried.
    pub ort_library: Option<PathBuf>,
    /// Threads of one inference; 0 means as many as the machine has.
    pub threads: usize,
    /// Precision variant of the manifest; `None` means the best for the provider, see [`super::choose`].
    pub precision: Option<String>,
    /// Sides of the sizes to open beside the bundle's own, in pixels; each must be one of [`Manifest::sides`].
    ///
    /// [`Manifest::sides`]: crate::contract::Manifest::sides
    pub sides: Vec<usize>,
    /// Where engines and text embeddings are kept; `None` means they are made anew each time.
    pub cache: Option<PathBuf>,
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

    /// Whether a GPU is asked for by name, so that nothing else will do.
    #[must_use]
    pub fn names_gpu(&self) -> bool {
        matches!(self.provider, Provider::Cuda | Provider::TensorRt)
    }
}
