//! Operators on tensors by the loops of [`super::rows`], in parallel over blocks of rows.

use burn_backend::{TensorData, TensorMetadata};
use burn_flex::FlexTensor;

use super::buffer::{written, written_with};
use super::rows;

/// Values per parallel task: enough work to pay for the hand-over.
const BLOCK: usize = 1 << 15;

pub(super) fn tensor(values: Vec<f32>, shape: Vec<usize>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

pub(super) fn dims(x: &FlexTensor) -> Vec<usize> {
    x.shape().iter().copied().collect()
}

/// Whether the values of `x` fill its storage, in whatever order of axes.
fn is_dense(x: &FlexTensor) -> bool {
    let layout = x.layout();
    let mut axes: Vec<_> = layout
        .shape()
        .iter()
        .copied()
        .zip(layout.strides())
        .filter(|(size, _)| *size > 1)
        .collect();
    axes.sort_by_key(|(_, stride)| **stride);
    let mut expected = 1;
    for (size, stride) in axes {
        if stride.cast_unsigned() != expected {
            return false;
        }
        expected *= size;
    }
    layout.start_offset() == 0 && x.bytes().len() == 4 * expected
}

/// Applies `f(values of a, values of b, output)` to parts of tensors of one shape; the result lies in memory as `a` does.
fn by_values(a: &FlexTensor, b: Option<&FlexTensor>, f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> FlexTensor {
    let alike = is_dense(a) && b.is_none_or(|b| b.layout() == a.layout() && is_dense(b));
    let order = |x: &FlexTensor| if alike { x.clone() } else { x.to_contiguous() };
    let (a, b) = (order(a), b.map(order));
    let values = a.storage::<f32>();
    let others = b.as_ref().map_or(values, |b| b.storage::<f32>());
    let out = written(1, values.len(), BLOCK, |_, first, out| {
        let part = first..first + out.len();
        f(&values[part.clone()], &others[part], out);
    });
    let layout = a.layout().clone();
    tensor(out, dims(&a)).with_layout(layout)
}

/// Values of whole rows of `width`, about [`BLOCK`] of them.
fn whole_rows(width: usize) -> usize {
    (BLOCK / width).max(1) * width
}

fn width(x: &FlexTensor) -> usize {
    *dims(x).last().expect("a row has an axis")
}

/// Softmax over rows.
pub(super) fn softmax(x: &FlexTensor) -> FlexTensor {
    let (width, contiguous) = (width(x), x.to_contiguous());
    let values = contiguous.storage::<f32>();
    let out = written(1, values.len(), whole_rows(width), |_, first, out| {
        out.copy_from_slice(&values[first..][..out.len()]);
        rows::softmax(out, &[], width);
    });
    tensor(out, dims(x))
}

/// Gradient of softmax over rows.
pub(super) fn softmax_backward(y: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let width = width(y);
    let (shape, y, grad) = (dims(y), y.to_contiguous(), grad.to_contiguous());
    let (y, grad) = (y.storage::<f32>(), grad.storage::<f32>());
    let out = written(1, y.len(), whole_rows(width), |_, first, out| {
        out.copy_from_slice(&grad[first..][..out.len()]);
        rows::softmax_backward(&y[first..][..out.len()], out, width);
    });
    tensor(out, shape)
}

/// `(x − mean) / sqrt(var + epsilon) · w + b` over rows.
pub(super) fn layer_norm(x: &FlexTensor, w: &FlexTensor, b: &FlexTensor, epsilon: f32) -> FlexTensor {
    let (shape, x, w, b) = (dims(x), x.to_contiguous(), w.to_contiguous(), b.to_contiguous());
    let (x, w, b) = (x.storage::<f32>(), w.storage::<f32>(), b.storage::<f32>());
    let out = written(1, x.len(), whole_rows(w.len()), |_, first, out| {
        rows::layer_norm(&x[first..][..out.len()], w, b, epsilon, out);
    });
    tensor(out, shape)
}

/// Gradients of [`layer_norm`] by input, weight and bias.
pub(super) fn layer_norm_backward(x: &FlexTensor, w: &FlexTensor, grad: &FlexTensor, epsilon: f32) -> [FlexTensor; 3] {
    let (shape, x, w, grad) = (dims(x), x.to_contiguous(), w.to_contiguous(), grad.to_contiguous());
    let (x, w, grad) = (x.storage::<f32>(), w.storage::<f32>(), grad.storage::<f32>());
    let width = w.len();
    let (out, parts) = written_with(1, x.len(), whole_rows(width), |_, first, out| {
        let mut by_parameters = vec![0.0; 2 * width];
        let part = first..first + out.len();
        rows::layer_norm_backward(&x[part.clone()], w, &grad[part], epsilon, out, &mut by_parameters);
        by_parameters
    });
    let mut by_weight = vec![0.0; 2 * width];
    parts.iter().for_each(|part| rows::add_rows(part, &mut by_weight));
    let by_bias = by_weight.split_off(width);
    [
        tensor(out, shape),
        tensor(by_weight, vec![width]),
        tensor(by_bias, vec![width]),
    ]
}

/// Exact-form GELU.
pub(super) fn gelu(x: &FlexTensor) -> FlexTensor {
    by_values(x, None, |x, _, out| rows::gelu(x, out))
}

/// Gradient of [`gelu`].
pub(super) fn gelu_backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    by_values(x, Some(grad), rows::gelu_backward)
}
