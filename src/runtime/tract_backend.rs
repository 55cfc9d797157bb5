//! tract: pure Rust, 32-bit floats on the CPU, nothing to install.

use std::path::Path;
use std::sync::Arc;

use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::*;

use super::RuntimeError;
use super::graph::{GraphSession, TakeOutput, Values, positions};
use crate::contract::{Dtype, GraphSpec};

/// A thread pool shared by the sessions of one engine.
pub(super) fn threads(count: usize) -> Executor {
    if count > 1 {
        Executor::multithread(count)
    } else {
        Executor::SingleThread
    }
}

/// One graph, optimised for its static shapes.
pub(super) struct TractSession {
    plan: Arc<TypedRunnableModel>,
    /// For each of tract's inputs, the place in the manifest's order.
    inputs: Vec<usize>,
    /// For each output of the manifest, the place in tract's order.
    outputs: Vec<usize>,
    threads: Executor,
}

impl TractSession {
    pub(super) fn open(path: &Path, spec: &GraphSpec, threads: Executor) -> Result<Self, RuntimeError> {
        let refused = |error: TractError| RuntimeError::Open {
            path: path.to_owned(),
            backend: "tract",
            message: format!("{error:#}"),
        };
        let graph = spec.graph.name();
        let mut model = tract_onnx::onnx().model_for_path(path).map_err(refused)?;
        let found: Vec<String> = model
            .input_outlets()
            .map_err(refused)?
            .iter()
            .map(|outlet| model.node(outlet.node).name.clone())
            .collect();
        let places = positions(graph, &spec.inputs, &found)?;
        let mut inputs = vec![0; found.len()];
        for (index, &place) in places.iter().enumerate() {
            let datum = match spec.inputs[index].dtype {
                Dtype::F32 => f32::datum_type(),
                Dtype::I64 => i64::datum_type(),
            };
            let fact = InferenceFact::dt_shape(datum, spec.inputs[index].shape.as_slice());
            model.set_input_fact(place, fact).map_err(refused)?;
            inputs[place] = index;
        }
        let found: Vec<String> = model
            .output_outlets()
            .map_err(refused)?
            .iter()
            .map(|&outlet| model.outlet_label(outlet).unwrap_or_default().to_owned())
            .collect();
        let outputs = positions(graph, &spec.outputs, &found)?;
        let optimised = model
            .into_typed()
            .and_then(|m| m.into_decluttered())
            .and_then(|m| m.into_optimized());
        let plan = optimised.and_then(|m| m.into_runnable()).map_err(refused)?;
        Ok(Self {
            plan,
            inputs,
            outputs,
            threads,
        })
    }
}

impl GraphSession for TractSession {
    fn run(
        &mut self,
        spec: &GraphSpec,
        inputs: &[Values<'_>],
        output: &mut TakeOutput<'_>,
    ) -> Result<(), RuntimeError> {
        let failed = |error: TractError| RuntimeError::Run {
            graph: spec.graph.name(),
            backend: "tract",
            message: format!("{error:#}"),
        };
        let tensor = |&index: &usize| {
            let shape = &spec.inputs[index].shape;
            let tensor = match inputs[index] {
                Values::F32(v) => Tensor::from_shape(shape, v),
                Values::I64(v) => Tensor::from_shape(shape, v),
            };
            tensor.map(IntoTValue::into_tvalue)
        };
        let tensors = self
            .inputs
            .iter()
            .map(tensor)
            .collect::<TractResult<TVec<_>>>()
            .map_err(failed)?;
        let found = multithread_tract_scope(self.threads.clone(), || self.plan.run(tensors)).map_err(failed)?;
        for (index, &place) in self.outputs.iter().enumerate() {
            let tensor = &found[place];
            let view = tensor.to_plain_array_view::<f32>().map_err(failed)?;
            let standard = view.as_standard_layout();
            output(index, tensor.shape(), standard.as_slice().unwrap_or(&[]))?;
        }
        Ok(())
    }
}
