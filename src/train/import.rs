//! Other people's checkpoints: read, recognised, checked against the architecture, kept under the same names.

use std::path::{Path, PathBuf};

use crate::contract::{Bundle, BundleError, Compute, GraphKind, Manifest, hash_file};
use crate::train::model::{ClipConfig, MergedConfig, SamConfig, architecture, encoder, inventory, resize};
use crate::train::onnx::{TRANSPOSED, transposed};
use crate::train::quantize::QuantizeError;
use crate::train::quantize::onnx_file::{OnnxFile, floats};
use crate::train::session::model_weights;
use crate::train::weights::{self, Inventory, Values, Weights, WeightsError};

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
    /// The bundle is damaged.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A graph of the bundle is none of ours.
    #[error(transparent)]
    Graph(Box<QuantizeError>),
    /// The bundle has nothing to read weights from.
    #[error("{path}: every variant is quantized; expected one that computes in fp32, as train export writes")]
    Quantized {
        /// The bundle's folder.
        path: PathBuf,
    },
}

/// Weights of a bundle of `config`: from a run's checkpoint, or from the bundle itself if `path` is a folder. Those of a model without
/// the detail path do as well, and those of a model for pictures of another size, whose position tables are resized.
///
/// # Errors
/// [`ImportError`]: unreadable, damaged, or one list of all tensors that do not fit the recipe.
pub fn trained(path: &Path, config: &MergedConfig) -> Result<Weights, ImportError> {
    let mut expected = inventory::merged(config);
    let mut weights = if path.is_dir() {
        bundle(&Manifest::read(path)?, &expected)?
    } else {
        model_weights(weights::read(path)?)
    };
    if let Some(found) = size(&weights, &config.sam)
        && found.image_size != config.sam.image_size
    {
        tracing::info!(
            from = found.image_size,
            to = config.sam.image_size,
            "positions are resized to the recipe's size"
        );
        weights = resize::positions(&weights, &found, &config.sam);
    }
    if !encoder::has_detail(&weights) {
        expected.retain(|name, _| !name.starts_with(encoder::DETAIL));
    }
    weights::check(&weights, &expected, &path.display().to_string())?;
    Ok(weights)
}

/// The configuration of `weights` if they are those of `config` at some size of pictures, from the absolute position table.
fn size(weights: &Weights, config: &SamConfig) -> Option<SamConfig> {
    let table = weights.get("image_encoder.pos_embed")?;
    let &[1, side, width, channels] = table.shape.as_slice() else {
        return None;
    };
    let fits = side == width && side > 0 && channels == config.embed_dim && table.data.len() == side * side * channels;
    fits.then(|| SamConfig {
        image_size: side * config.patch_size,
        ..config.clone()
    })
}

/// What tells one file or bundle of [`trained`] from another.
///
/// # Errors
/// [`ImportError`] if it cannot be read.
pub fn fingerprint(path: &Path) -> Result<String, ImportError> {
    Ok(if path.is_dir() {
        Manifest::read(path)?.hash
    } else {
        hash_file(path)?
    })
}

/// The weights of `expected` that a bundle's graphs hold under their own names, as `train export` puts them there.
fn bundle(bundle: &Bundle, expected: &Inventory) -> Result<Weights, ImportError> {
    let floating = bundle.manifest.precision.iter().find(|p| p.compute == Compute::Fp32);
    let floating = floating.ok_or_else(|| ImportError::Quantized {
        path: bundle.dir.clone(),
    })?;
    let mut weights = Weights::from([(
        "logit_scale".to_owned(),
        Values {
            shape: Vec::new(),
            data: vec![bundle.manifest.logit_scale.ln()],
        },
    )]);
    for kind in GraphKind::ALL {
        let file =
            OnnxFile::read(&bundle.dir.join(floating.file(kind))).map_err(|e| ImportError::Graph(Box::new(e)))?;
        for tensor in &file.graph().initializer {
            let (name, turned) = match tensor.name.strip_suffix(TRANSPOSED) {
                Some(name) => (name, true),
                None => (tensor.name.as_str(), false),
            };
            let (true, Some(mut data)) = (expected.contains_key(name), floats(tensor)) else {
                continue;
            };
            let mut shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            if let (true, &[rows, columns]) = (turned, shape.as_slice()) {
                data = transposed(&data, rows, columns);
                shape.reverse();
            }
            weights.insert(name.to_owned(), Values { shape, data });
        }
    }
    Ok(weights)
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

/// A published checkpoint, or that of a run's teacher without the state of its training.
fn read(path: &Path) -> Result<Weights, WeightsError> {
    let mut weights = model_weights(weights::read(path)?);
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
    use crate::train::initial;
    use crate::train::recipe::Recipe;

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
    fn a_model_of_another_size_is_read_with_its_positions_resized() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/recipe.toml");
        let mut recipe = Recipe::read(&recipe).unwrap();
        (recipe.sam.embed_dim, recipe.sam.num_heads, recipe.sam.depth) = (16, 2, 1);
        (recipe.sam.stem, recipe.sam.global_attn_indexes) = (vec![4, 4, 8, 16], vec![0]);
        let mut at = |side: usize| {
            recipe.sam.image_size = side;
            recipe.merged()
        };
        let (small, large) = (at(96), at(160));
        let weights = initial::weights(&inventory::merged(&small), 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.safetensors");
        weights::write(&path, &weights, &Default::default()).unwrap();
        assert_eq!(trained(&path, &small).unwrap(), weights);
        let read = trained(&path, &large).unwrap();
        assert_eq!(read["image_encoder.pos_embed"].shape, [1, 10, 10, 16]);
        assert_eq!(read, resize::positions(&weights, &small.sam, &large.sam));
        // A table that is none is refused, not resized.
        let mut damaged = weights;
        damaged.get_mut("image_encoder.pos_embed").unwrap().shape = vec![1, 4, 9, 16];
        weights::write(&path, &damaged, &Default::default()).unwrap();
        let error = trained(&path, &large).unwrap_err().to_string();
        assert!(
            error.contains("image_encoder.pos_embed has shape [1, 4, 9, 16]"),
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
