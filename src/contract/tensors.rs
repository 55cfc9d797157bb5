//! Names, element types and shapes of what goes into and comes out of the three graphs.

use serde::{Deserialize, Serialize};

use super::{DecoderSpec, EncoderSpec, TextSpec};

/// Which of the three graphs of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphKind {
    /// Picture → SAM features, CLIP patch embeddings, CLIP image embedding.
    Encoder,
    /// SAM features + prompts → low-resolution mask logits.
    MaskDecoder,
    /// Token ids → unit-norm text embeddings.
    TextEncoder,
}

impl GraphKind {
    /// All graphs, in the order in which a frame meets them.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::MaskDecoder, Self::TextEncoder];

    /// The name used in the manifest and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::MaskDecoder => "mask_decoder",
            Self::TextEncoder => "text_encoder",
        }
    }
}

/// Element type of a tensor at a graph boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE float.
    F32,
    /// 64-bit signed integer.
    I64,
}

/// One input or output of a graph. Shapes are static.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Name in the ONNX graph.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of 32-bit floats.
    #[must_use]
    pub fn f32(name: &str, shape: &[usize]) -> Self {
        Self {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        }
    }

    /// A tensor of 64-bit integers.
    #[must_use]
    pub fn i64(name: &str, shape: &[usize]) -> Self {
        Self {
            name: name.to_owned(),
            dtype: Dtype::I64,
            shape: shape.to_vec(),
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Boundary of one graph: every input and output, in graph order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphSpec {
    /// Which graph.
    pub graph: GraphKind,
    /// Inputs in order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in order.
    pub outputs: Vec<TensorSpec>,
}

impl GraphSpec {
    /// The boundary that follows from the sizes; the only one this format version knows.
    ///
    /// With `S` = side, `g` = S / stride, `C` = neck channels, `D` = embedding width, `n` = patch grid, `Q` prompts of
    /// `N` points, `T` texts of `L` tokens:
    ///
    /// * encoder: `image [1,3,S,S]` → `image_embeddings [1,C,g,g]`, `patch_embeddings [1,D,n,n]`,
    ///   `image_embedding [1,D]`
    /// * mask decoder: `image_embeddings`, `point_coords [Q,N,2]`, `point_labels [Q,N]`, `mask_input [Q,1,4g,4g]`,
    ///   `has_mask_input [Q]` → `low_res_logits [Q,4,4g,4g]`, `iou_predictions [Q,4]`
    /// * text encoder: `token_ids [T,L]` (i64) → `text_embedding [T,D]`
    #[must_use]
    pub fn standard(graph: GraphKind, encoder: &EncoderSpec, decoder: &DecoderSpec, text: &TextSpec) -> Self {
        let (s, g, c, d, n) = (
            encoder.side,
            encoder.grid(),
            encoder.neck_channels,
            encoder.embed_dim,
            encoder.patch_grid,
        );
        let (q, p, m) = (decoder.prompts, decoder.points, 4 * g);
        let (inputs, outputs) = match graph {
            GraphKind::Encoder => (
                vec![TensorSpec::f32("image", &[1, 3, s, s])],
                vec![
                    TensorSpec::f32("image_embeddings", &[1, c, g, g]),
                    TensorSpec::f32("patch_embeddings", &[1, d, n, n]),
                    TensorSpec::f32("image_embedding", &[1, d]),
                ],
            ),
            GraphKind::MaskDecoder => (
                vec![
                    TensorSpec::f32("image_embeddings", &[1, c, g, g]),
                    TensorSpec::f32("point_coords", &[q, p, 2]),
                    TensorSpec::f32("point_labels", &[q, p]),
                    TensorSpec::f32("mask_input", &[q, 1, m, m]),
                    TensorSpec::f32("has_mask_input", &[q]),
                ],
                vec![
                    TensorSpec::f32("low_res_logits", &[q, 4, m, m]),
                    TensorSpec::f32("iou_predictions", &[q, 4]),
                ],
            ),
            GraphKind::TextEncoder => (
                vec![TensorSpec::i64("token_ids", &[text.batch, text.context])],
                vec![TensorSpec::f32("text_embedding", &[text.batch, d])],
            ),
        };
        Self { graph, inputs, outputs }
    }
}
