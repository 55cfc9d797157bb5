//! ONNX Runtime, loaded at run time from a list of candidates; TensorRT, CUDA, CPU in that order.
//!
//! The crate must not be touched before a library is loaded (it panics), and a process may build one environment only,
//! so the environment lives in a static once a candidate works. Each provider is registered by itself, so that the
//! reason why one was skipped is known. A registered provider may still leave nodes to the CPU.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::{CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;
use tracing::debug;

use super::graph::{GraphSession, TakeOutput, Values, positions};
use super::{Provider, RuntimeError, RuntimeOptions};
use crate::contract::GraphSpec;

/// Names and directories where distributions and vendors put the library.
const USUAL_PLACES: [&str; 8] = [
    "libonnxruntime.so",
    "libonnxruntime.so.1",
    "/usr/local/lib/libonnxruntime.so",
    "/usr/lib/libonnxruntime.so",
    "/usr/lib/aarch64-linux-gnu/libonnxruntime.so",
    "/usr/lib/x86_64-linux-gnu/libonnxruntime.so",
    "/opt/onnxruntime/lib/libonnxruntime.so",
    "/usr/lib64/libonnxruntime.so",
];

static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The loaded library and the process-wide environment.
pub(super) struct Library {
    environment: Environment,
    pub(super) note: String,
}

/// An open session and how it came to its provider.
pub(super) struct Opened {
    pub(super) session: OrtSession,
    pub(super) provider: String,
    pub(super) notes: Vec<String>,
}

fn candidates(options: &RuntimeOptions) -> Vec<PathBuf> {
    let variables = ["SAMCLIP_ORT_LIB", "ORT_DYLIB_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let named = options
        .ort_library
        .clone()
        .into_iter()
        .chain(variables)
        .filter(|p| !p.as_os_str().is_empty());
    named.chain(USUAL_PLACES.iter().map(PathBuf::from)).collect()
}

impl Library {
    /// Loads the first candidate that works; later calls return the same library.
    pub(super) fn load(options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tried = Vec::new();
        if loaded.is_none() {
            for path in candidates(options) {
                match start(&path, options.thread_count()) {
                    Ok(environment) => {
                        *loaded = Some((path, environment));
                        break;
                    }
                    // What is not there needs no explanation beyond its name.
                    Err(_) if !path.is_file() => tried.push(path.display().to_string()),
                    Err(message) => tried.push(format!("{} ({message})", path.display())),
                }
            }
        }
        match &*loaded {
            Some((path, environment)) => {
                let note = format!("ONNX Runtime library {}", path.display());
                Ok(Self {
                    environment: environment.clone(),
                    note,
                })
            }
            None => Err(RuntimeError::NoLibrary {
                tried: tried.join(", "),
            }),
        }
    }

    /// Opens one graph on the best provider that registers.
    pub(super) fn open(&self, path: &Path, spec: &GraphSpec, options: &RuntimeOptions) -> Result<Opened, RuntimeError> {
        let refused = |message: String| RuntimeError::Open {
            path: path.to_owned(),
            backend: "ort",
            message,
        };
        let mut builder = Session::builder(&self.environment).map_err(|e| refused(e.to_string()))?;
        builder = builder
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| refused(e.to_string()))?;
        // A pattern is a second block for all activations beside what the first run took: 4.3 of 9.0 GB at 1024 px.
        builder = builder.with_memory_pattern(false).map_err(|e| refused(e.to_string()))?;
        let (provider, notes) = register(&mut builder, options)?;
        let session = builder.commit_from_file(path).map_err(|e| refused(e.to_string()))?;
        let graph = spec.graph.name();
        let names = |outlets: &[ort::value::Outlet]| outlets.iter().map(|o| o.name().to_owned()).collect::<Vec<_>>();
        positions(graph, &spec.inputs, &names(session.inputs()))?;
        positions(graph, &spec.outputs, &names(session.outputs()))?;
        Ok(Opened {
            session: OrtSession { session },
            provider: format!("ort-{provider}"),
            notes,
        })
    }
}

/// Loads a library and builds the environment with one thread pool for all sessions.
fn start(path: &Path, threads: usize) -> Result<Environment, String> {
    let builder = ort::init_from(path).map_err(|e| source_chain(&e))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|p| p.with_spin_control(false))
        .map_err(|e| e.to_string())?;
    builder
        .with_name("samclip")
        .with_global_thread_pool(pool)
        .with_telemetry(false)
        .with_logger(std::sync::Arc::new(|level, category, _, _, message| {
            debug!(?level, category, message, "ONNX Runtime");
        }))
        .build()
        .map_err(|e| e.to_string())
}

/// An error with its causes: the loader's outermost text hides why the library was refused.
fn source_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Registers the wanted providers in order; returns the first that registers and what became of the others.
fn register(
    builder: &mut SessionBuilder,
    options: &RuntimeOptions,
) -> Result<(&'static str, Vec<String>), RuntimeError> {
    let wanted: &[(&str, Provider)] = match options.provider {
        Provider::Cpu => &[],
        Provider::Cuda => &[("cuda", Provider::Cuda)],
        Provider::TensorRt => &[("tensorrt", Provider::TensorRt)],
        Provider::Auto => &[("tensorrt", Provider::TensorRt), ("cuda", Provider::Cuda)],
    };
    let (mut chosen, mut notes) = ("cpu", Vec::new());
    for &(name, provider) in wanted {
        match dispatch(provider, options).register(builder) {
            Ok(()) => {
                notes.push(format!("provider {name} registered"));
                if chosen == "cpu" {
                    chosen = name;
                }
            }
            Err(error) if options.provider == Provider::Auto => {
                notes.push(format!("provider {name} skipped: {error}"));
            }
            Err(error) => {
                return Err(RuntimeError::Provider {
                    provider: name,
                    message: error.to_string(),
                });
            }
        }
    }
    Ok((chosen, notes))
}

fn dispatch(provider: Provider, options: &RuntimeOptions) -> ExecutionProviderDispatch {
    if provider != Provider::TensorRt {
        return CUDA::default().build();
    }
    let mut tensor_rt = TensorRT::default().with_fp16(false);
    if let Some(cache) = &options.engine_cache {
        let cache = cache.display().to_string();
        tensor_rt = tensor_rt
            .with_engine_cache(true)
            .with_engine_cache_path(&cache)
            .with_timing_cache(true);
    }
    tensor_rt.build()
}

/// One graph in ONNX Runtime.
pub(super) struct OrtSession {
    session: Session,
}

impl GraphSession for OrtSession {
    fn run(
        &mut self,
        spec: &GraphSpec,
        inputs: &[Values<'_>],
        output: &mut TakeOutput<'_>,
    ) -> Result<(), RuntimeError> {
        let graph = spec.graph.name();
        let failed = |error: ort::Error| RuntimeError::Run {
            graph,
            backend: "ort",
            message: error.to_string(),
        };
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (tensor, &input) in spec.inputs.iter().zip(inputs) {
            let shape = tensor.shape.clone();
            let value = match input {
                Values::F32(v) => TensorRef::from_array_view((shape, v)).map_err(failed)?.into(),
                Values::I64(v) => TensorRef::from_array_view((shape, v)).map_err(failed)?.into(),
            };
            values.push((&tensor.name, value));
        }
        let found = self.session.run(values).map_err(failed)?;
        for (index, tensor) in spec.outputs.iter().enumerate() {
            let value = found.get(&tensor.name).ok_or_else(|| RuntimeError::Boundary {
                graph,
                found: found.keys().collect::<Vec<_>>().join(", "),
                expected: tensor.name.clone(),
            })?;
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
            let shape: Vec<usize> = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            output(index, &shape, values)?;
        }
        Ok(())
    }
}
