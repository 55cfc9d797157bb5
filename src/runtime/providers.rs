//! ONNX Runtime's GPU providers: how each is registered, and what became of it.
//!
//! Each one is registered by itself and its answer kept. Libraries on older Jetson images refuse options that they do
//! not know, so TensorRT is tried with a full set of options first and with a small one after.

use std::path::Path;

use ort::ep::{CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT};
use ort::session::builder::SessionBuilder;

use super::precision::Executor;
use crate::contract::{Compute, Precision};

/// What TensorRT shall make of one graph.
#[derive(Clone, Debug)]
pub(super) struct TensorRtSettings<'a> {
    /// Where engines are; `None` keeps none.
    pub(super) engines: Option<&'a Path>,
    /// Start of the engines' file names.
    pub(super) prefix: &'static str,
    /// Whether 16-bit arithmetic is allowed.
    pub(super) half: bool,
    /// Whether the graph holds 8-bit arithmetic.
    pub(super) int8: bool,
}

impl<'a> TensorRtSettings<'a> {
    pub(super) fn new(engines: Option<&'a Path>, prefix: &'static str, variant: &Precision, half: bool) -> Self {
        let int8 = variant.compute == Compute::Int8;
        Self {
            engines,
            prefix,
            half,
            int8,
        }
    }

    /// Every option that helps.
    fn full(&self) -> TensorRT {
        let mut provider = self.reduced().with_layer_norm_fp32_fallback(self.half);
        if let Some(engines) = self.engines {
            // Engines of two graphs share a folder: the prefix tells them apart.
            provider = provider
                .with_engine_cache_prefix(self.prefix)
                .with_timing_cache(true)
                .with_timing_cache_path(engines.display());
        }
        provider
    }

    /// What every version since 1.17 knows.
    fn reduced(&self) -> TensorRT {
        let mut provider = TensorRT::default().with_fp16(self.half).with_int8(self.int8);
        if let Some(engines) = self.engines {
            provider = provider
                .with_engine_cache(true)
                .with_engine_cache_path(engines.display());
        }
        provider
    }
}

/// ONNX Runtime's own name of an executor's provider; the CPU's for the rest.
pub(super) fn ort_name(executor: Executor) -> &'static str {
    match executor {
        Executor::TensorRt => TensorRT::NAME,
        Executor::Cuda => CUDA::NAME,
        Executor::Tract | Executor::OrtCpu => "CPUExecutionProvider",
    }
}

/// Short name of an executor's provider, as in the configuration.
pub(super) fn short_name(executor: Executor) -> &'static str {
    match executor {
        Executor::TensorRt => "tensorrt",
        Executor::Cuda => "cuda",
        Executor::Tract | Executor::OrtCpu => "cpu",
    }
}

fn attempt(provider: &ExecutionProviderDispatch, builder: &mut SessionBuilder) -> Result<(), String> {
    provider
        .register(builder)
        .map_err(|error| first_line(&error.to_string()))
}

/// Whether a provider's libraries load: what is missing otherwise. Costs some 50 ms, opens no graph.
pub(super) fn probe(executor: Executor, builder: &mut SessionBuilder) -> Result<(), String> {
    match executor {
        Executor::TensorRt => attempt(&TensorRT::default().build(), builder),
        Executor::Cuda => attempt(&CUDA::default().build(), builder),
        Executor::Tract | Executor::OrtCpu => Ok(()),
    }
}

/// Registers TensorRT, and CUDA behind it for what TensorRT does not take; notes say what was given up.
pub(super) fn register_tensor_rt(
    builder: &mut SessionBuilder,
    settings: &TensorRtSettings<'_>,
) -> Result<Vec<String>, String> {
    let mut notes = Vec::new();
    if let Err(full) = attempt(&settings.full().build(), builder) {
        attempt(&settings.reduced().build(), builder).map_err(|reduced| {
            if reduced == full {
                full.clone()
            } else {
                format!("{full}; with fewer options: {reduced}")
            }
        })?;
        notes.push(format!(
            "provider tensorrt registered with fewer options, without timing cache and name prefix: {full}"
        ));
    }
    if let Err(error) = register_cuda(builder) {
        notes.push(format!("provider cuda is not behind tensorrt: {error}"));
    }
    Ok(notes)
}

/// Registers CUDA.
pub(super) fn register_cuda(builder: &mut SessionBuilder) -> Result<(), String> {
    attempt(&CUDA::default().build(), builder)
}

/// ONNX Runtime puts stack traces behind its messages, and source positions before them.
pub(super) fn first_line(message: &str) -> String {
    let line = message.lines().find(|l| !l.trim().is_empty()).unwrap_or(message).trim();
    match line
        .rfind("Failed to load library ")
        .or_else(|| line.rfind("CUDA failure "))
    {
        Some(at) => line[at..].to_owned(),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_to_what_is_missing() {
        let long = "/onnxruntime_src/provider_bridge_ort.cc:2167 onnxruntime::Provider& Get() [ONNXRuntimeError] : 1 : \
                    FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot \
                    open shared object file: No such file or directory\n\n#0 trace";
        assert_eq!(
            first_line(long),
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared \
             object file: No such file or directory"
        );
        assert_eq!(first_line("\nplain\nmore"), "plain");
        assert_eq!(first_line(""), "");
    }
}
