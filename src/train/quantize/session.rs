//! Graphs under measurement, run by the daemon's own runtime: engines of chosen files, and taps on inner tensors.
//!
//! An [`Engine`] of the runtime needs three open graphs; a measurement often needs one, and a full-size encoder takes
//! gigabytes. So graphs that a step does not run stay closed, and say so if somebody runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::pb::{
    TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    type_proto::{Tensor, Value},
};

use super::QuantizeError;
use super::histogram::Histogram;
use super::onnx_file::{OnnxFile, node};
use crate::contract::{Bundle, GraphKind, GraphSpec, TensorSpec};
use crate::runtime::{
    Backend, Engine, GraphSession, Opened, Provider, RuntimeError, RuntimeOptions, TakeOutput, Values, open_graph,
    open_with,
};

/// Files of the graphs that are open; the others are closed.
pub type Files<'a> = &'a [(GraphKind, PathBuf)];

/// What runs the measurements: ONNX Runtime on the CPU if its library is found, tract otherwise.
#[derive(Clone, Debug)]
pub struct Runner {
    options: RuntimeOptions,
    /// `ort-cpu` or `tract-cpu`.
    pub name: &'static str,
}

impl Runner {
    /// Chooses by opening `probe`, a graph of `spec`.
    ///
    /// # Errors
    /// [`QuantizeError::Runtime`] if neither back end opens it.
    pub fn choose(probe: &Path, spec: &GraphSpec, threads: usize) -> Result<Self, QuantizeError> {
        let ort = Self {
            options: RuntimeOptions {
                backend: Backend::Ort,
                provider: Provider::Cpu,
                threads,
                ..RuntimeOptions::default()
            },
            name: "ort-cpu",
        };
        match open_graph(probe, spec, &ort.options) {
            Ok(_) => Ok(ort),
            Err(RuntimeError::NoLibrary { .. } | RuntimeError::NotBuilt) => Ok(Self::on_tract(threads)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether 8-bit and fp16 graphs can be run.
    #[must_use]
    pub fn is_ort(&self) -> bool {
        self.options.backend == Backend::Ort
    }

    /// tract, whatever else is there.
    #[must_use]
    pub fn on_tract(threads: usize) -> Self {
        Self {
            options: RuntimeOptions {
                backend: Backend::Tract,
                threads,
                ..RuntimeOptions::default()
            },
            name: "tract-cpu",
        }
    }

    /// An engine of the given files.
    ///
    /// # Errors
    /// [`QuantizeError::Runtime`] if a graph cannot be opened.
    pub fn engine(&self, bundle: &Bundle, files: Files<'_>) -> Result<Engine, QuantizeError> {
        self.tapped(bundle, files, &Taps::default())
    }

    /// An engine whose open graphs add the tensors of `taps` to its histograms on every run.
    ///
    /// # Errors
    /// [`QuantizeError::Runtime`] if a graph cannot be opened.
    pub fn tapped(&self, bundle: &Bundle, files: Files<'_>, taps: &Taps) -> Result<Engine, QuantizeError> {
        let opened = Opened {
            provider: self.name.into(),
            precision: bundle.manifest.precision(None)?,
            further: &[],
            notes: Vec::new(),
            nodes: BTreeMap::new(),
        };
        // Opened here and now, the text encoder too, which an engine opens late: the caller may remove the files then.
        let mut sessions = Vec::new();
        for (kind, path) in files {
            let mut spec = bundle.manifest.graph_spec(*kind);
            // shapes of inner tensors are not known here; the session hands them out with the values
            spec.outputs
                .extend(taps.tensors.iter().map(|t| TensorSpec::f32(&tap(t), &[])));
            let inner = open_graph(path, &spec, &self.options)?;
            let taps = taps.clone();
            sessions.push((*kind, Tapped { inner, spec, taps }));
        }
        let engine = open_with(bundle, opened, move |spec, _| {
            let kind = spec.graph;
            Ok(match sessions.iter().position(|(k, _)| *k == kind) {
                Some(at) => Box::new(sessions.swap_remove(at).1),
                None => Box::new(Closed(kind)),
            })
        })?;
        Ok(engine)
    }
}

/// A graph that is not open.
struct Closed(GraphKind);

impl GraphSession for Closed {
    fn run(&mut self, _: &GraphSpec, _: &[Values<'_>], _: &mut TakeOutput<'_>) -> Result<(), RuntimeError> {
        Err(RuntimeError::Run {
            graph: self.0.name(),
            backend: "none",
            message: "the graph is not open in this measurement".into(),
        })
    }
}

/// Inner tensors to watch, and what was seen.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    tensors: Vec<String>,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
}

/// What one tensor was seen to be.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its magnitudes.
    pub histogram: Histogram,
    /// Its number of axes.
    pub rank: usize,
}

impl Taps {
    /// Watches these tensors.
    #[must_use]
    pub fn on(tensors: &[String]) -> Self {
        Self {
            tensors: tensors.to_vec(),
            seen: Arc::default(),
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The graph with the watched tensors as further outputs.
    #[must_use]
    pub fn instrumented(&self, file: &OnnxFile) -> OnnxFile {
        let mut file = file.clone();
        let float = || TypeProto {
            value: Some(Value::TensorType(Tensor {
                elem_type: DataType::Float as i32,
                shape: None,
            })),
            ..TypeProto::default()
        };
        let graph = file.graph_mut();
        for tensor in &self.tensors {
            // a tensor may be an input or an output of the graph already, which may not be an output again
            graph.node.push(node("Identity", &[tensor], &tap(tensor), Vec::new()));
            graph.output.push(ValueInfoProto {
                name: tap(tensor),
                r#type: Some(float()),
                ..ValueInfoProto::default()
            });
        }
        file
    }
}

/// Name of the output that shows a tensor.
fn tap(tensor: &str) -> String {
    format!("{tensor}.tap")
}

struct Tapped {
    inner: Box<dyn GraphSession>,
    spec: GraphSpec,
    taps: Taps,
}

impl GraphSession for Tapped {
    fn run(
        &mut self,
        spec: &GraphSpec,
        inputs: &[Values<'_>],
        output: &mut TakeOutput<'_>,
    ) -> Result<(), RuntimeError> {
        let (own, taps) = (spec.outputs.len(), &self.taps);
        self.inner.run(&self.spec, inputs, &mut |index, shape, values| {
            let Some(tensor) = index.checked_sub(own).and_then(|i| taps.tensors.get(i)) else {
                return output(index, shape, values);
            };
            let mut seen = taps.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.entry(tensor.clone()).or_default();
            seen.histogram.add(values);
            seen.rank = shape.len();
            Ok(())
        })
    }
}
