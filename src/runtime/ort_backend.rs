//! ONNX Runtime, loaded at run time; TensorRT, CUDA, CPU in that order.
//!
//! The crate must not be touched before a library is loaded (it panics), and a process may build one environment only,
//! so the environment lives in a static once a candidate works. A GPU provider counts as used only after a profiled
//! warm-up run has shown it: see [`super::proof`]. On the CPU nothing needs proof and nothing is profiled.
//!
//! The text tower always runs on the CPU and in 32 bits: its answers are cached, so it runs rarely, and an engine of
//! its own would take minutes to build.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;
use tracing::debug;

use super::engine_cache::{EngineKey, Lease, clean, with_engines};
use super::graph::{GraphSession, TakeOutput, Values, positions};
use super::models::{Opened, further, open_with, per_frame};
use super::precision::{Choice, Executor, choose};
use super::profile_folder::ProfileFolder;
use super::progress::{Progress, Stage};
use super::proof::Proof;
use super::providers::{self, TensorRtSettings};
use super::{Engine, Provider, RuntimeError, RuntimeOptions, device, ort_library, sides};
use crate::contract::{Bundle, Dtype, GraphKind, GraphSpec};

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// One candidate and its version, or why it was not used.
pub(super) type Candidate = (PathBuf, Result<String, String>);

/// The loaded library and the process-wide environment.
#[derive(Clone)]
pub(super) struct Library {
    environment: Environment,
    /// Every candidate up to the one in use, which is the last.
    pub(super) tried: Vec<Candidate>,
}

fn candidates(options: &RuntimeOptions) -> Vec<PathBuf> {
    let variables = ["SAMCLIP_ORT_LIB", "ORT_DYLIB_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let program = std::env::current_exe().ok();
    ort_library::candidates(options.ort_library.as_deref(), variables, program.as_deref())
}

impl Library {
    /// Loads the first candidate that works; later calls return the same library.
    pub(super) fn load(options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        Self::search(options).map_err(|tried| {
            let describe = |(path, outcome): &Candidate| match outcome {
                // What is not there needs no explanation beyond its name.
                Err(reason) if reason == "not there" => path.display().to_string(),
                Err(reason) => format!("{} ({reason})", path.display()),
                Ok(version) => format!("{} (version {version})", path.display()),
            };
            RuntimeError::NoLibrary {
                tried: tried.iter().map(describe).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// As [`Self::load`], with every candidate and what became of it instead of an error.
    pub(super) fn search(options: &RuntimeOptions) -> Result<Self, Vec<Candidate>> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*loaded {
            return Ok(library.clone());
        }
        let mut tried = Vec::new();
        for path in candidates(options) {
            let outcome = ort_library::version(&path)
                .and_then(|version| start(&path, options.thread_count()).map(|environment| (version, environment)));
            match outcome {
                Err(reason) => tried.push((path, Err(reason))),
                Ok((version, environment)) => {
                    tried.push((path, Ok(version)));
                    let library = Self { environment, tried };
                    *loaded = Some(library.clone());
                    return Ok(library);
                }
            }
        }
        Err(tried)
    }

    /// What was found, and what had to be passed over although it is there.
    pub(super) fn notes(&self) -> Vec<String> {
        let note = |(path, outcome): &Candidate| match outcome {
            Ok(version) => Some(format!("ONNX Runtime {version}, library {}", path.display())),
            Err(reason) if reason == "not there" => None,
            Err(reason) => Some(format!("library {} passed over: {reason}", path.display())),
        };
        self.tried.iter().filter_map(note).collect()
    }

    pub(super) fn version(&self) -> &str {
        let used = self.tried.last().and_then(|(_, outcome)| outcome.as_ref().ok());
        used.map_or("unknown", String::as_str)
    }

    /// A session builder with nothing registered.
    pub(super) fn builder(&self) -> Result<SessionBuilder, String> {
        Session::builder(&self.environment)
            .map_err(|e| e.to_string())?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| e.to_string())?
            // A pattern is a second block for all activations beside what the first run took: 4.3 of 9.0 GB at 1024 px.
            .with_memory_pattern(false)
            .map_err(|e| e.to_string())
    }

    /// Opens one graph on the CPU.
    pub(super) fn open_on_cpu(&self, path: &Path, spec: &GraphSpec) -> Result<OrtSession, RuntimeError> {
        let builder = self.builder().map_err(refusal(path))?;
        commit(builder, path, spec)
    }
}

fn refusal(path: &Path) -> impl Fn(String) -> RuntimeError {
    move |message| RuntimeError::Open {
        path: path.to_owned(),
        backend: "ort",
        message,
    }
}

fn commit(mut builder: SessionBuilder, path: &Path, spec: &GraphSpec) -> Result<OrtSession, RuntimeError> {
    let session = builder
        .commit_from_file(path)
        .map_err(|e| refusal(path)(providers::first_line(&e.to_string())))?;
    let graph = spec.graph.name();
    let names = |outlets: &[ort::value::Outlet]| outlets.iter().map(|o| o.name().to_owned()).collect::<Vec<_>>();
    positions(graph, &spec.inputs, &names(session.inputs()))?;
    positions(graph, &spec.outputs, &names(session.outputs()))?;
    Ok(OrtSession { session, _lease: None })
}

/// Loads a library and builds the environment with one thread pool for all sessions.
fn start(path: &Path, threads: usize) -> Result<Environment, String> {
    let builder = ort::init_from(path).map_err(|e| e.to_string())?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|p| p.with_spin_control(false))
        .map_err(|e| e.to_string())?;
    builder
        .with_name("samclip")
        .with_global_thread_pool(pool)
        .with_telemetry(false)
        .with_logger(Arc::new(|level, category, _, _, message| {
            debug!(?level, category, message, "ONNX Runtime");
        }))
        .build()
        .map_err(|e| e.to_string())
}

/// Opens a bundle on the wanted provider, or on the first of TensorRT, CUDA and CPU that does the work.
pub(super) fn open(bundle: &Bundle, options: &RuntimeOptions, progress: &dyn Progress) -> Result<Engine, RuntimeError> {
    let library = Library::load(options)?;
    let mut notes = library.notes();
    let wanted: &[Executor] = match options.provider {
        Provider::Cpu => &[Executor::OrtCpu],
        Provider::Cuda => &[Executor::Cuda],
        Provider::TensorRt => &[Executor::TensorRt],
        Provider::Auto => &[Executor::TensorRt, Executor::Cuda, Executor::OrtCpu],
    };
    let (last, before) = wanted
        .split_last()
        .expect("every provider maps to at least one executor");
    for &executor in before {
        match open_on(&library, bundle, options, executor, progress, &mut notes) {
            Err(error) if may_fall_back(&error) => {
                notes.push(format!(
                    "provider {} skipped: {}",
                    providers::short_name(executor),
                    reason(error)
                ));
            }
            other => return other,
        }
    }
    open_on(&library, bundle, options, *last, progress, &mut notes)
}

/// Errors of one provider that say nothing about the next.
fn may_fall_back(error: &RuntimeError) -> bool {
    matches!(
        error,
        RuntimeError::Provider { .. }
            | RuntimeError::EngineCache { .. }
            | RuntimeError::Open { .. }
            | RuntimeError::Run { .. }
    )
}

/// The message without advice that is for those who named the provider.
fn reason(error: RuntimeError) -> String {
    match error {
        RuntimeError::Provider { message, .. } => message,
        other => other.to_string(),
    }
}

fn open_on(
    library: &Library,
    bundle: &Bundle,
    options: &RuntimeOptions,
    executor: Executor,
    progress: &dyn Progress,
    notes: &mut Vec<String>,
) -> Result<Engine, RuntimeError> {
    let further = further(bundle, &options.sides)?;
    let named = options.precision.as_deref();
    let choice = choose(&bundle.manifest.precision, named, &sides(&further), executor)?;
    let cache = options.cache.as_deref();
    if let (Some(cache), Executor::TensorRt | Executor::Cuda, true) = (cache, executor, progress.may_build()) {
        // The profile of the warm-up run goes there; where it cannot be made, the temporary files have to do.
        let _ = std::fs::create_dir_all(cache);
    }
    if executor == Executor::TensorRt {
        // Loads its libraries, so that their versions can be part of the key.
        let probed = library.builder().and_then(|mut b| providers::probe(executor, &mut b));
        probed.map_err(|message| unusable(executor, message))?;
    }
    let (mut sessions, mut proof, mut said) = (Vec::new(), None::<Proof>, Vec::new());
    for at in std::iter::once(bundle).chain(&further) {
        let (opened, counted, notes) = open_size(library, at, choice, executor, progress, cache)?;
        sessions.extend(opened);
        if let Some(counted) = counted {
            proof.get_or_insert_default().add(&counted);
        }
        let new = notes.into_iter().filter(|note| !said.contains(note));
        said.extend(new.collect::<Vec<_>>());
    }
    let mut leases = sessions.iter().filter_map(|session| session._lease.as_ref());
    if let (Some(cache), true) = (cache, leases.any(|lease| lease.built && lease.folder.is_some())) {
        clean(&cache.join("engines"), &engine_key(library, bundle, choice));
    }
    let mut notes = std::mem::take(notes);
    notes.extend(choice.note());
    notes.extend(said);
    if let Some(proof) = &proof {
        notes.push(format!("warm-up run: {}", proof.summary()));
    }
    let opened = Opened {
        provider: executor.name().into(),
        precision: choice.variant,
        further: &further,
        notes,
        nodes: proof.map(|p| p.nodes).unwrap_or_default(),
    };
    let mut sessions = sessions.into_iter();
    let library = library.clone();
    open_with(bundle, opened, move |spec, path| {
        // Those that are open already come first; the text encoder is opened when it is asked for.
        let session = match (spec.graph, sessions.next()) {
            (GraphKind::TextEncoder, _) | (_, None) => library.open_on_cpu(path, spec)?,
            (_, Some(session)) => session,
        };
        Ok(Box::new(session))
    })
}

/// Opens a bundle at the size it is seen at; engines of each size are kept apart, so that another size costs its own alone.
fn open_size(
    library: &Library,
    at: &Bundle,
    choice: Choice<'_>,
    executor: Executor,
    progress: &dyn Progress,
    cache: Option<&Path>,
) -> Result<Graphs, RuntimeError> {
    let mut open = |engines: Option<&Path>| open_graphs(library, at, choice, executor, engines, cache);
    if executor != Executor::TensorRt {
        return open(None);
    }
    let Some(cache) = cache else {
        if !progress.may_build() {
            let path = "no cache directory".into();
            return Err(RuntimeError::EngineMissing { path });
        }
        progress.stage(&Stage::BuildEngine(None));
        return open(None);
    };
    let key = engine_key(library, at, choice);
    let ((mut sessions, proof, mut notes), lease) = with_engines(&cache.join("engines"), &key, progress, &mut open)?;
    let origin = if lease.built { "built" } else { "loaded" };
    let folder = lease.folder.as_ref();
    let place = folder.map_or("memory".into(), |f| f.display().to_string());
    notes.push(format!("engines {origin} in {place}"));
    let lease = Arc::new(lease);
    for session in &mut sessions {
        session._lease = Some(Arc::clone(&lease));
    }
    Ok((sessions, proof, notes))
}

fn unusable(executor: Executor, message: String) -> RuntimeError {
    RuntimeError::Provider {
        provider: providers::short_name(executor),
        message,
    }
}

fn engine_key(library: &Library, at: &Bundle, choice: Choice<'_>) -> EngineKey {
    let half = if choice.half { "+fp16" } else { "" };
    EngineKey {
        bundle: at.hash.clone(),
        precision: format!("{}{half} at {}", choice.variant.name, at.manifest.encoder.side),
        device: device::gpu(Path::new("/")).unwrap_or_else(|| "unknown".into()),
        onnx_runtime: format!("{} {}", library.version(), ort::info()),
        tensorrt: device::engine_versions(&device::loaded_now()),
    }
}

type Graphs = (Vec<OrtSession>, Option<Proof>, Vec<String>);

/// Opens image encoder and mask decoder; on a GPU with proof that it does the work, whose profile is written in `cache`.
fn open_graphs(
    library: &Library,
    at: &Bundle,
    choice: Choice<'_>,
    executor: Executor,
    engines: Option<&Path>,
    cache: Option<&Path>,
) -> Result<Graphs, RuntimeError> {
    let (mut sessions, mut proof, mut notes) = (Vec::new(), None::<Proof>, Vec::new());
    for (spec, path) in per_frame(at, &choice.variant.name)? {
        if executor == Executor::OrtCpu {
            sessions.push(library.open_on_cpu(&path, &spec)?);
            continue;
        }
        let name = spec.graph.name();
        let failed = |message: String| unusable(executor, format!("{name}: {message}"));
        let mut builder = library.builder().map_err(failed)?;
        let said = register(&mut builder, executor, choice, name, engines);
        let said = said.map_err(|message| unusable(executor, message))?;
        let profile = ProfileFolder::new(cache).map_err(failed)?;
        let builder = builder
            .with_profiling(profile.start())
            .map_err(|e| failed(e.to_string()))?;
        let mut session = commit(builder, &path, &spec).map_err(|error| match error {
            RuntimeError::Open { message, .. } => failed(message),
            other => other,
        })?;
        let counted = session.warm_up(&spec).map_err(failed)?;
        counted.judge(providers::ort_name(executor)).map_err(failed)?;
        proof.get_or_insert_default().add(&counted);
        notes.extend(
            said.into_iter()
                .filter(|note| !notes.contains(note))
                .collect::<Vec<_>>(),
        );
        sessions.push(session);
    }
    Ok((sessions, proof, notes))
}

fn register(
    builder: &mut SessionBuilder,
    executor: Executor,
    choice: Choice<'_>,
    graph: &'static str,
    engines: Option<&Path>,
) -> Result<Vec<String>, String> {
    match executor {
        Executor::TensorRt => providers::register_tensor_rt(
            builder,
            &TensorRtSettings::new(engines, graph, choice.variant, choice.half),
        ),
        Executor::Cuda => providers::register_cuda(builder).map(|()| Vec::new()),
        Executor::OrtCpu | Executor::Tract => Ok(Vec::new()),
    }
}

/// Counts which provider runs how many nodes of one graph on the CPU: what `doctor` shows.
pub(super) fn prove_on_cpu(library: &Library, path: &Path, spec: &GraphSpec) -> Result<Proof, RuntimeError> {
    let profile = ProfileFolder::new(None).map_err(refusal(path))?;
    let builder = library.builder().map_err(refusal(path))?;
    let builder = builder
        .with_profiling(profile.start())
        .map_err(|e| refusal(path)(e.to_string()))?;
    let mut session = commit(builder, path, spec)?;
    session.warm_up(spec).map_err(|message| RuntimeError::Run {
        graph: spec.graph.name(),
        backend: "ort",
        message,
    })
}

/// One graph in ONNX Runtime.
pub(super) struct OrtSession {
    session: Session,
    /// Keeps the engine's files from being cleaned away.
    _lease: Option<Arc<Lease>>,
}

impl OrtSession {
    /// Runs once on zeros and counts the nodes of the run; ends the profiling that the session was opened with.
    fn warm_up(&mut self, spec: &GraphSpec) -> Result<Proof, String> {
        let zeros: Vec<(Vec<f32>, Vec<i64>)> = spec
            .inputs
            .iter()
            .map(|tensor| match tensor.dtype {
                Dtype::F32 => (vec![0.0; tensor.elements()], Vec::new()),
                Dtype::I64 => (Vec::new(), vec![0; tensor.elements()]),
            })
            .collect();
        let inputs: Vec<Values<'_>> = spec
            .inputs
            .iter()
            .zip(&zeros)
            .map(|(tensor, (floats, ints))| match tensor.dtype {
                Dtype::F32 => Values::F32(floats),
                Dtype::I64 => Values::I64(ints),
            })
            .collect();
        let ran = self.run(spec, &inputs, &mut |_, _, _| Ok(()));
        let written = self.session.end_profiling().map_err(|e| e.to_string())?;
        ran.map_err(|e| e.to_string())?;
        let profile = std::fs::read_to_string(&written).map_err(|e| format!("profile {written}: {e}"))?;
        Proof::read(&profile)
    }
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
