//! Weights + graphs + manifest → bundle directory, the files that the daemon reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::contract::{
    Bundle, BundleError, Calibration, Compute, DecoderSpec, EncoderSpec, FORMAT_VERSION, Manifest, Precision, Size,
    SizeFiles, TextSpec,
};
use crate::text::tokenizer::{STANDARD_MERGES, TextError, standard_merges};
use crate::train::feed::NORMALISATION;
use crate::train::model::prompt_encoder::Prompts;
use crate::train::model::{clip, encode, encoder, inventory, mask_decoder, resize};
use crate::train::onnx::{Recorder, Storage};
use crate::train::ops::Ops;
use crate::train::recipe::Recipe;
use crate::train::weights::{self, Weights, WeightsError};

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights are not those of the recipe's model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The merges of the vocabulary.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The manifest.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// File of the shortened vocabulary's merges.
const MERGES_FILE: &str = "merges.txt";

/// Writes the bundle of `weights` to `folder`, weights stored as `storage` says, and reads it back. The weights are those
/// of the recipe's last stage, or of one before `[sharpen]`: then the bundle has no detail path. For further sizes their position
/// tables are resized.
///
/// # Errors
/// [`ExportError`] if the weights do not fit the recipe or a file cannot be written.
pub fn bundle(recipe: &Recipe, weights: &Weights, folder: &Path, storage: Storage) -> Result<Bundle, ExportError> {
    let recipe = &if encoder::has_detail(weights) {
        recipe.exported()
    } else {
        recipe.adapted()
    };
    let config = recipe.merged();
    weights::check(weights, &inventory::merged(&config), "the checkpoint")?;
    std::fs::create_dir_all(folder).map_err(|source| ExportError::Io {
        path: folder.into(),
        source,
    })?;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| ExportError::Io { path, source })
    };
    write("encoder.onnx", &encoder_graph(recipe, weights, storage))?;
    write("mask_decoder.onnx", &decoder_graph(recipe, weights, storage))?;
    let further = recipe.export.sizes.iter().map(|&side| SizeFiles {
        side,
        encoder: format!("encoder.{side}.onnx"),
        mask_decoder: format!("mask_decoder.{side}.onnx"),
    });
    let further: Vec<SizeFiles> = further.collect();
    for files in &further {
        let mut sized = recipe.clone();
        sized.sam.image_size = files.side;
        let weights = &resize::positions(weights, &recipe.sam, &sized.sam);
        write(&files.encoder, &encoder_graph(&sized, weights, storage))?;
        write(&files.mask_decoder, &decoder_graph(&sized, weights, storage))?;
    }
    write("text_encoder.onnx", &text_graph(recipe, weights, storage))?;
    if recipe.merges < STANDARD_MERGES {
        write(MERGES_FILE, standard_merges(recipe.merges)?.as_bytes())?;
    }
    let mut manifest = manifest(recipe, weights);
    manifest.precision.push(Precision {
        name: storage.variant().into(),
        compute: Compute::Fp32,
        encoder: "encoder.onnx".into(),
        mask_decoder: "mask_decoder.onnx".into(),
        text_encoder: "text_encoder.onnx".into(),
        relative_error: BTreeMap::new(),
        mean_iou_change: None,
        size: further,
        measured: None,
    });
    manifest.write(folder)?;
    Ok(Manifest::read(folder)?)
}

/// The manifest of the bundle of `weights`, without graphs and files; `recipe` is the bundle's ([`Recipe::exported`]).
#[must_use]
pub fn manifest(recipe: &Recipe, weights: &Weights) -> Manifest {
    let config = recipe.merged();
    let encoder = EncoderSpec {
        side: config.sam.image_size,
        stride: config.sam.patch_size,
        neck_channels: config.sam.out_chans,
        embed_dim: config.clip_head.text_dim,
        patch_grid: config.patch_grid(config.sam.image_size),
        mean: NORMALISATION.mean,
        std: NORMALISATION.std,
    };
    let decoder = DecoderSpec {
        prompts: recipe.export.prompts,
        points: recipe.export.points,
    };
    let text = TextSpec {
        batch: recipe.export.texts,
        context: recipe.text.context_length,
        vocabulary: if recipe.merges < STANDARD_MERGES {
            MERGES_FILE.into()
        } else {
            crate::contract::OPENAI_CLIP_VOCABULARY.into()
        },
        merges: (recipe.merges < STANDARD_MERGES).then_some(recipe.merges),
    };
    let sizes = recipe.export.sizes.iter().map(|&side| Size {
        side,
        patch_grid: config.patch_grid(side),
        calibration: None,
    });
    Manifest {
        format_version: FORMAT_VERSION,
        name: recipe.name.clone(),
        logit_scale: weights["logit_scale"].data[0].exp(),
        background: recipe.export.background.clone(),
        graph: Manifest::standard_graphs(&encoder, &decoder, &text),
        encoder,
        decoder,
        text,
        calibration: Calibration {
            threshold: recipe.export.threshold,
            ..Calibration::default()
        },
        precision: Vec::new(),
        size: sizes.collect(),
        source: recipe.export.source.clone(),
        files: BTreeMap::new(),
    }
}

/// `image` → `image_embeddings`, `patch_embeddings`, `image_embedding`.
fn encoder_graph(recipe: &Recipe, weights: &Weights, storage: Storage) -> Vec<u8> {
    let config = recipe.merged();
    let recorder = Recorder::new(weights, storage);
    let image = recorder.input("image", &[1, 3, config.sam.image_size, config.sam.image_size]);
    let outputs = encode(&recorder, &config, &image);
    recorder.finish(
        "encoder",
        &[
            ("image_embeddings", &outputs.image_embeddings),
            ("patch_embeddings", &outputs.patch_embeddings),
            ("image_embedding", &outputs.image_embedding),
        ],
    )
}

/// Prompts on one image's embeddings → `low_res_logits`, `iou_predictions`.
fn decoder_graph(recipe: &Recipe, weights: &Weights, storage: Storage) -> Vec<u8> {
    let sam = &recipe.sam;
    let (q, n, g) = (recipe.export.prompts, recipe.export.points, sam.grid());
    let recorder = Recorder::new(weights, storage);
    let embeddings = recorder.input("image_embeddings", &[1, sam.out_chans, g, g]);
    let prompts = Prompts {
        coords: recorder.input("point_coords", &[q, n, 2]),
        labels: recorder.input("point_labels", &[q, n]),
        mask: Some((
            recorder.input("mask_input", &[q, 1, 4 * g, 4 * g]),
            recorder.input("has_mask_input", &[q]),
        )),
    };
    let (masks, iou) = mask_decoder::decode(&recorder, sam, &embeddings, &prompts);
    recorder.finish("mask_decoder", &[("low_res_logits", &masks), ("iou_predictions", &iou)])
}

/// `token_ids` → `text_embedding`.
fn text_graph(recipe: &Recipe, weights: &Weights, storage: Storage) -> Vec<u8> {
    let recorder = Recorder::new(weights, storage);
    let tokens = recorder.tokens("token_ids", recipe.export.texts, recipe.text.context_length);
    let features = clip::encode_text(
        &recorder,
        &recipe.text,
        recipe.clip_head.text_dim,
        recipe.quick_gelu,
        &tokens,
    );
    let embedding = recorder.unit_norm(&features);
    recorder.finish("text_encoder", &[("text_embedding", &embedding)])
}
