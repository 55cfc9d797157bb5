//! `.pth`, `.pt` and `.bin`: PyTorch's pickles, read without executing them.

use std::path::Path;

use pytorch_reader::{DType, PytorchReader};

use super::{Stored, Values, Weights, WeightsError, damaged, io};

/// What a user can do about a file that holds no state_dict.
const REMEDY: &str = "a TorchScript archive, as OpenAI publishes its CLIP models, must be saved as a state_dict first";

pub(super) fn read(path: &Path) -> Result<Weights, WeightsError> {
    std::fs::File::open(path).map_err(io(path))?;
    let reader = PytorchReader::new(path).map_err(|e| damaged(path, format!("{e}; {REMEDY}")))?;
    let mut weights = Weights::new();
    for (name, tensor) in reader.into_tensors() {
        let stored = match tensor.dtype() {
            DType::F32 => Stored::F32,
            DType::F64 => Stored::F64,
            DType::F16 => Stored::F16,
            DType::BF16 => Stored::Bf16,
            _ => continue,
        };
        let bytes = tensor
            .read()
            .map_err(|e| damaged(path, format!("tensor {name:?}: {e}")))?;
        let expected = tensor.num_elements() * stored.width();
        if bytes.len() != expected {
            let (found, shape) = (bytes.len(), tensor.shape());
            let reason = format!("tensor {name:?} holds {found} bytes, its shape {shape:?} asks for {expected}");
            return Err(damaged(path, reason));
        }
        let values = Values {
            shape: tensor.shape().to_vec(),
            data: stored.decode(&bytes),
        };
        weights.insert(name, values);
    }
    if weights.is_empty() {
        return Err(damaged(path, format!("it holds no tensors; {REMEDY}")));
    }
    Ok(weights)
}
