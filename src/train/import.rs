//! Other people's checkpoints: read, check against the architecture, store under the same names.

use std::path::Path;

use crate::train::model::{ClipConfig, SamConfig, inventory};
use crate::train::weights::{self, Weights, WeightsError};

/// Buffers that checkpoints carry and no model needs: the causal mask is a constant.
const BUFFERS: [&str; 1] = ["attn_mask"];

/// Reads a SAM checkpoint and checks every name and shape against `config`.
///
/// # Errors
/// [`WeightsError`]: unreadable, or one list of all missing, extra and mis-shaped tensors.
pub fn sam(path: &Path, config: &SamConfig) -> Result<Weights, WeightsError> {
    checked(path, &inventory::sam(config))
}

/// Reads an OpenCLIP checkpoint and checks every name and shape against `config`.
///
/// # Errors
/// [`WeightsError`]: unreadable, or one list of all missing, extra and mis-shaped tensors.
pub fn clip(path: &Path, config: &ClipConfig) -> Result<Weights, WeightsError> {
    checked(path, &inventory::clip(config))
}

fn checked(path: &Path, inventory: &weights::Inventory) -> Result<Weights, WeightsError> {
    let mut weights = weights::read(path)?;
    for buffer in BUFFERS {
        weights.remove(buffer);
    }
    weights::check(&weights, inventory, &path.display().to_string())?;
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/golden")
            .join(name)
    }

    #[test]
    fn published_file_forms_import_under_their_own_names() {
        let config = serde_json::from_slice(&std::fs::read(golden("sam_tiny.json")).unwrap()).unwrap();
        let weights = sam(&golden("sam_tiny.pth"), &config).unwrap();
        assert!(weights.contains_key("image_encoder.blocks.3.attn.rel_pos_w"));
        let config = serde_json::from_slice(&std::fs::read(golden("clip_tiny.json")).unwrap()).unwrap();
        let weights = clip(&golden("clip_tiny.safetensors"), &config).unwrap();
        assert!(weights["logit_scale"].shape.is_empty(), "a scalar stays a scalar");
    }

    #[test]
    fn a_checkpoint_of_another_size_is_refused_with_the_whole_list() {
        let error = sam(&golden("sam_tiny.pth"), &SamConfig::vit_b())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("missing image_encoder.blocks.11.attn.proj.bias [768]"),
            "{error}"
        );
        assert!(
            error.contains("image_encoder.pos_embed has shape [1, 12, 12, 48], expected [1, 64, 64, 768]"),
            "{error}"
        );
    }
}
