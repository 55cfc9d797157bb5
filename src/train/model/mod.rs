//! The model, written once over [`Ops`]: configuration and forward functions.
//!
//! File by file after segment-anything's `modeling/` and OpenCLIP's `transformer.py`. Weights carry the
//! reference checkpoints' names; our CLIP head (paper section 3, appendix A) adds `clip_head.*`.

pub mod architecture;
pub mod attention;
pub mod clip;
pub mod clip_head;
pub mod encoder;
pub mod inventory;
pub mod mask_decoder;
pub mod position;
pub mod prompt_encoder;
pub mod resize;

use serde::{Deserialize, Serialize};

use crate::train::ops::Ops;

/// SAM's image encoder (`ImageEncoderViT`) and heads; defaults are those of `build_sam_vit_b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamConfig {
    /// Side of the square input in pixels that the position table belongs to.
    pub image_size: usize,
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Width of the tokens.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of the encoder.
    pub num_heads: usize,
    /// Hidden width of the MLP as a multiple of `embed_dim`.
    pub mlp_ratio: usize,
    /// Window side in tokens of the blocks that are not global.
    pub window_size: usize,
    /// Indices of the blocks with global attention.
    pub global_attn_indexes: Vec<usize>,
    /// Channels of the neck, which is the width of the heads.
    pub out_chans: usize,
    /// Hidden channels of the mask prompt's downscaling.
    pub mask_in_chans: usize,
    /// Layers of the mask decoder's two-way transformer.
    pub decoder_depth: usize,
    /// Heads of the mask decoder.
    pub decoder_heads: usize,
    /// Hidden width of the mask decoder's MLP.
    pub decoder_mlp_dim: usize,
    /// Decomposed relative positions in the encoder's attention (SAM has them).
    #[serde(default = "yes")]
    pub rel_pos: bool,
    /// Channels of a convolutional stem (3×3, stride 2 each, the last one `embed_dim`) in place of the
    /// patch projection; empty for SAM's own. `2^len` must be `patch_size`.
    #[serde(default)]
    pub stem: Vec<usize>,
    /// Departure: channels of convolutions (3×3, stride 2 each) on the pixels, whose output is added to the neck's, so that
    /// masks see edges inside a patch; empty for SAM's own. At most 4. `[sharpen]` sets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<usize>,
}

fn yes() -> bool {
    true
}

impl SamConfig {
    /// Side of the token grid at the native size.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The CLIP head on the backbone's tokens (paper section 3; widths the paper leaves open: ours).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipHeadConfig {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the text space.
    pub text_dim: usize,
    /// Hidden width of the MLP.
    pub mlp_dim: usize,
    /// Token grids larger than this side are average-pooled 2×2 before the head (paper.md section 10).
    pub max_grid: usize,
    /// How tokens become the image embedding.
    #[serde(default, skip_serializing_if = "Pooling::is_max")]
    pub pooling: Pooling,
}

/// Pooling of the CLIP head's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The largest value of each channel: the paper's choice.
    #[default]
    Max,
    /// The mean.
    Average,
}

impl Pooling {
    /// Whether it is the paper's.
    #[must_use]
    pub fn is_max(&self) -> bool {
        *self == Self::Max
    }
}

/// One CLIP tower's transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Input side in pixels.
    pub image_size: usize,
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Hidden width of the MLP as a multiple of `width`.
    pub mlp_ratio: f32,
}

/// CLIP's text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Tokens per text.
    pub context_length: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Number of blocks.
    pub layers: usize,
}

/// A CLIP model, in OpenCLIP's configuration form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Width of the shared space.
    pub embed_dim: usize,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
    /// QuickGELU in place of GELU (OpenAI's checkpoints).
    #[serde(default)]
    pub quick_gelu: bool,
}

/// The merged model: SAM encoder and heads, CLIP head, CLIP teacher's text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergedConfig {
    /// Backbone and SAM head.
    pub sam: SamConfig,
    /// CLIP head.
    pub clip_head: ClipHeadConfig,
    /// Text tower (the CLIP teacher's, frozen).
    pub text: TextConfig,
    /// QuickGELU in the text tower.
    #[serde(default)]
    pub quick_gelu: bool,
}

impl MergedConfig {
    /// Side of the patch grid that the CLIP head answers on for pictures of `side` pixels: that of the tokens, halved
    /// where it is above `max_grid`.
    #[must_use]
    pub fn patch_grid(&self, side: usize) -> usize {
        let grid = side / self.sam.patch_size;
        if grid > self.clip_head.max_grid { grid / 2 } else { grid }
    }
}

/// Encoder outputs of the merged model for `[B, 3, S, S]`.
#[derive(Clone, Debug)]
pub struct EncoderOutputs<T> {
    /// `[B, C, g, g]`, the neck's output.
    pub image_embeddings: T,
    /// `[B, D, n, n]`, unit norm over D.
    pub patch_embeddings: T,
    /// `[B, D]`, unit norm.
    pub image_embedding: T,
}

/// Runs backbone, neck and CLIP head on normalised pixels `[B, 3, S, S]`.
pub fn encode<O: Ops>(ops: &O, config: &MergedConfig, image: &O::Tensor) -> EncoderOutputs<O::Tensor> {
    let tokens = encoder::tokens(ops, &config.sam, image); // [B, g, g, E]
    let image_embeddings = encoder::embeddings(ops, &config.sam, image, &tokens);
    let (patch_embeddings, image_embedding) = clip_head::embed(ops, config, &tokens);
    EncoderOutputs {
        image_embeddings,
        patch_embeddings,
        image_embedding,
    }
}
