//! Other people's checkpoints: read, recognised, checked against the architecture, kept under the same names.

use std::path::{Path, PathBuf};

use crate::train::model::{ClipConfig, SamConfig, architecture, inventory};
use crate::train::weights::{self, Inventory, Weights, WeightsError};

/// Buffers that checkpoints carry and no model needs: the causal mask is a constant.
const BUFFERS: [&str; 1] = ["attn_mask"];

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Unreadable, or not of the architecture.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No published architecture has its shapes.
    #[error("{path}: {found}; expected a checkpoint of {expected}, or give its architecture with --config FILE.json")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// Architectures that are recognised.
        expected: String,
    },
}

/// Reads a SAM checkpoint and checks every name and shape, against `config` or against the published architecture that
/// it is recognised as.
///
/// # Errors
/// [`ImportError`]: unreadable, not recognised, or one list of all missing, extra and mis-shaped tensors.
pub fn sam(path: &Path, config: Option<&SamConfig>) -> Result<(Weights, SamConfig), ImportError> {
    let known = Known {
        family: "SAM",
        names: &architecture::SAM,
        telling: "image_encoder.pos_embed",
    };
    checked(path, config.cloned(), &known, SamConfig::recognise, inventory::sam)
}

/// Reads an OpenCLIP checkpoint and checks every name and shape, against `config` or against the published
/// architecture that it is recognised as (with plain GELU: no shape tells QuickGELU).
///
/// # Errors
/// [`ImportError`]: unreadable, not recognised, or one list of all missing, extra and mis-shaped tensors.
pub fn clip(path: &Path, config: Option<&ClipConfig>) -> Result<(Weights, ClipConfig), ImportError> {
    let known = Known {
        family: "OpenCLIP",
        names: &architecture::CLIP,
        telling: "visual.conv1.weight",
    };
    checked(path, config.cloned(), &known, ClipConfig::recognise, inventory::clip)
}

/// The published architectures of one family, and the tensor whose shape tells them apart.
struct Known {
    family: &'static str,
    names: &'static [&'static str],
    telling: &'static str,
}

fn checked<C>(
    path: &Path,
    config: Option<C>,
    known: &Known,
    recognise: impl Fn(&Inventory) -> Option<C>,
    inventory: impl Fn(&C) -> Inventory,
) -> Result<(Weights, C), ImportError> {
    let weights = read(path)?;
    let shapes = weights::shapes(&weights);
    let config = config
        .or_else(|| recognise(&shapes))
        .ok_or_else(|| ImportError::Unknown {
            path: path.into(),
            found: described(&shapes, known.telling),
            expected: format!("{} {}", known.family, known.names.join(", ")),
        })?;
    weights::check(&weights, &inventory(&config), &path.display().to_string())?;
    Ok((weights, config))
}

fn read(path: &Path) -> Result<Weights, WeightsError> {
    let mut weights = weights::read(path)?;
    for buffer in BUFFERS {
        weights.remove(buffer);
    }
    Ok(weights)
}

/// What was found where the architecture would show.
fn described(shapes: &Inventory, telling: &str) -> String {
    match (shapes.get(telling), shapes.keys().next()) {
        (Some(shape), _) => format!("{telling} has shape {shape:?}"),
        (None, Some(first)) => format!("{} tensors, {first} among them, and no {telling}", shapes.len()),
        (None, None) => "no tensors".into(),
    }
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
        let (weights, _) = sam(&golden("sam_tiny.pth"), Some(&config)).unwrap();
        assert!(weights.contains_key("image_encoder.blocks.3.attn.rel_pos_w"));
        let config = serde_json::from_slice(&std::fs::read(golden("clip_tiny.json")).unwrap()).unwrap();
        let (weights, _) = clip(&golden("clip_tiny.safetensors"), Some(&config)).unwrap();
        assert!(weights["logit_scale"].shape.is_empty(), "a scalar stays a scalar");
    }

    #[test]
    fn a_checkpoint_of_another_size_is_refused_with_the_whole_list() {
        let error = sam(&golden("sam_tiny.pth"), Some(&SamConfig::vit_b()))
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

    #[test]
    fn a_checkpoint_of_no_published_architecture_says_what_it_is_and_what_is_read() {
        let error = sam(&golden("sam_tiny.pth"), None).unwrap_err().to_string();
        assert!(
            error.contains("[1, 12, 12, 48]") && error.contains("vit_b, vit_l, vit_h"),
            "{error}"
        );
        let error = clip(&golden("sam_tiny.pth"), None).unwrap_err().to_string();
        assert!(
            error.contains("no visual.conv1.weight") && error.contains("--config"),
            "{error}"
        );
    }
}
