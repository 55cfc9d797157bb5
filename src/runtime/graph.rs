//! One open graph, whatever runs it: inputs by the manifest's order, outputs checked against its shapes.

use super::RuntimeError;
use crate::contract::{GraphSpec, TensorSpec};

/// Values of one input tensor, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

impl Values<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Receives one output: its place in the manifest's order, its shape, its values.
pub type TakeOutput<'a> = dyn FnMut(usize, &[usize], &[f32]) -> Result<(), RuntimeError> + 'a;

/// What a back end does: takes every input in the manifest's order and hands out every output with its shape.
pub trait GraphSession: Send {
    /// Runs once. `output` is called once per output, in the manifest's order, with shape and values.
    fn run(&mut self, spec: &GraphSpec, inputs: &[Values<'_>], output: &mut TakeOutput<'_>)
    -> Result<(), RuntimeError>;
}

/// A session and the boundary it must keep.
pub(super) struct Graph {
    pub(super) spec: GraphSpec,
    session: Box<dyn GraphSession>,
}

impl Graph {
    pub(super) fn new(spec: GraphSpec, session: Box<dyn GraphSession>) -> Self {
        Self { spec, session }
    }

    /// Runs once and copies the outputs into `outputs`, which must be as many as the graph has.
    pub(super) fn run(&mut self, inputs: &[Values<'_>], outputs: &mut [&mut Vec<f32>]) -> Result<(), RuntimeError> {
        let graph = self.spec.graph.name();
        for (spec, values) in self.spec.inputs.iter().zip(inputs) {
            if spec.elements() != values.len() {
                let (name, found, expected) = (spec.name.clone(), values.len(), spec.elements());
                return Err(RuntimeError::InputLength {
                    graph,
                    name,
                    found,
                    expected,
                });
            }
        }
        let specs = &self.spec.outputs;
        self.session.run(&self.spec, inputs, &mut |index, shape, values| {
            check_output(graph, &specs[index], shape)?;
            if let Some(out) = outputs.get_mut(index) {
                out.clear();
                out.extend_from_slice(values);
            }
            Ok(())
        })
    }
}

fn check_output(graph: &'static str, spec: &TensorSpec, found: &[usize]) -> Result<(), RuntimeError> {
    if spec.shape == found {
        return Ok(());
    }
    let (name, found, expected) = (spec.name.clone(), found.to_vec(), spec.shape.clone());
    Err(RuntimeError::OutputShape {
        graph,
        name,
        found,
        expected,
    })
}

/// Position of every expected name among those found.
pub(super) fn positions(
    graph: &'static str,
    expected: &[TensorSpec],
    found: &[String],
) -> Result<Vec<usize>, RuntimeError> {
    let place = |spec: &TensorSpec| {
        found
            .iter()
            .position(|name| *name == spec.name)
            .ok_or_else(|| RuntimeError::Boundary {
                graph,
                found: found.join(", "),
                expected: spec.name.clone(),
            })
    };
    let places = expected.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    if found.len() != expected.len() {
        let names = expected.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(RuntimeError::Boundary {
            graph,
            found: found.join(", "),
            expected: names,
        });
    }
    Ok(places)
}
