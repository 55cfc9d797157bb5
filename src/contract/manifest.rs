//! `manifest.toml`: sizes, normalisation, scores, precisions, provenance and hashes of a bundle.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{BundleError, GraphKind, GraphSpec, Size, SizeFiles};

/// The only format this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Value of [`TextSpec::vocabulary`] for the standard CLIP merges, which the program carries itself.
pub const OPENAI_CLIP_VOCABULARY: &str = "openai-clip";

/// Everything the daemon must know about a bundle before it opens a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of this file; [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Model name as shown in messages, e.g. `nano`.
    pub name: String,
    /// Learned logit scale (already exponentiated): scores are `logit_scale × cosine`.
    pub logit_scale: f32,
    /// Prompts that compete with every query as background classes; at least one.
    pub background: Vec<String>,
    /// Image encoder's own size and normalisation.
    pub encoder: EncoderSpec,
    /// Mask decoder batch sizes.
    pub decoder: DecoderSpec,
    /// Text encoder sizes and vocabulary.
    pub text: TextSpec,
    /// How softmax probabilities become scores.
    pub calibration: Calibration,
    /// Variants of the graphs; the first one is the default.
    pub precision: Vec<Precision>,
    /// Sizes beside that of `encoder`; see [`Manifest::at`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub size: Vec<Size>,
    /// Tensor tables of the three graphs; must equal [`GraphSpec::standard`].
    pub graph: Vec<GraphSpec>,
    /// Checkpoints and data sets the weights come from.
    #[serde(default)]
    pub source: Vec<Source>,
    /// SHA-256 (64 lower-case hex digits) of every file of the bundle, by plain file name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// Sizes and normalisation of the image encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Side `S` of the square input, pixels; a multiple of the stride.
    pub side: usize,
    /// Pixels per feature cell of `image_embeddings`; 16.
    pub stride: usize,
    /// Channels `C` of `image_embeddings`.
    pub neck_channels: usize,
    /// Width `D` of the text-image space.
    pub embed_dim: usize,
    /// Side `n` of the square grid of `patch_embeddings`; divides `S`.
    pub patch_grid: usize,
    /// Mean per channel (red, green, blue), on the 0–255 scale.
    pub mean: [f32; 3],
    /// Standard deviation per channel, on the 0–255 scale; positive.
    pub std: [f32; 3],
}

impl EncoderSpec {
    /// Side `g` of the `image_embeddings` grid.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.side.checked_div(self.stride).unwrap_or(0)
    }

    /// Side of the decoder's low-resolution masks, `4g`.
    #[must_use]
    pub fn low_res_side(&self) -> usize {
        4 * self.grid()
    }
}

/// Static batch sizes of the mask decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// Prompts `Q` per run.
    pub prompts: usize,
    /// Points `N` per prompt; unused ones carry label −1.
    pub points: usize,
}

/// Static sizes and vocabulary of the text encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSpec {
    /// Texts `T` per run.
    pub batch: usize,
    /// Tokens per text; 77.
    pub context: usize,
    /// `openai-clip`, or the name of a file of merges in the bundle.
    pub vocabulary: String,
    /// Number of merges used; absent means all of the vocabulary's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges: Option<usize>,
}

/// Maps a patch's softmax probability `p` to a score: `sigmoid(scale × logit(p) + offset)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Factor on the probability's logit; positive, so that the order of scores is kept.
    pub scale: f32,
    /// Added after scaling.
    pub offset: f32,
    /// Default score threshold of a query, in (0, 1).
    pub threshold: f32,
}

impl Default for Calibration {
    /// The identity with threshold 0.5.
    fn default() -> Self {
        Self {
            scale: 1.0,
            offset: 0.0,
            threshold: 0.5,
        }
    }
}

/// The arithmetic that a variant's graphs ask for; chooses which provider may run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32-bit floats: every back end runs it.
    #[default]
    Fp32,
    /// 16-bit floats: for GPUs.
    Fp16,
    /// 8-bit integers between QuantizeLinear and DequantizeLinear: for TensorRT and ONNX Runtime, never for tract,
    /// which runs such graphs inexactly.
    Int8,
}

/// One variant of the three graphs and what it costs in accuracy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precision {
    /// e.g. `fp16-stored`: weights stored as 16-bit floats, computed in 32 bits.
    pub name: String,
    /// What the graphs compute in.
    #[serde(default)]
    pub compute: Compute,
    /// File of the image encoder.
    pub encoder: String,
    /// File of the mask decoder.
    pub mask_decoder: String,
    /// File of the text encoder.
    pub text_encoder: String,
    /// Measured relative L2 error per output tensor, against 32-bit weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relative_error: BTreeMap<String, f64>,
    /// Measured change of mean IoU against 32-bit weights, negative when worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_iou_change: Option<f64>,
    /// Its graphs at further sizes; it may lack some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub size: Vec<SizeFiles>,
    /// How the losses were measured, as `train quantize` records it; absent for a variant nobody measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Measured loss of a variant against a reference variant of the same bundle, on photos that calibration never saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Name of the variant it was compared with.
    pub reference: String,
    /// Photos measured; at least 1.
    pub photos: usize,
    /// Mean IoU, 0 to 1, of the variant's masks with the reference's for the same prompts.
    pub mask_agreement: f64,
    /// Share of photos, 0 to 1, whose highest-scoring class changed by more than a tie.
    pub ranking_changed: f64,
    /// Bytes of the three graphs over those of the same graphs with weights stored as fp32; above 0.
    pub size_ratio: f64,
    /// How the ranges of 8-bit activations were found, e.g. `encoder entropy, 64 photos`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Layers that an int8 variant computes in floats because of their measured effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub float_layers: Vec<String>,
    /// The variant was written although the gate refused it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

impl Precision {
    /// File of one graph.
    #[must_use]
    pub fn file(&self, graph: GraphKind) -> &str {
        match graph {
            GraphKind::Encoder => &self.encoder,
            GraphKind::MaskDecoder => &self.mask_decoder,
            GraphKind::TextEncoder => &self.text_encoder,
        }
    }

    /// Files of all its graphs, at every size.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let own = GraphKind::ALL.map(|graph| self.file(graph));
        let further = self.size.iter().flat_map(|at| [&at.encoder, &at.mask_decoder]);
        own.into_iter().chain(further.map(String::as_str))
    }
}

/// A checkpoint or data set that the weights come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What it is.
    pub name: String,
    /// Licence as its owner states it; `none stated` where there is none.
    pub licence: String,
    /// Where it can be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl Manifest {
    /// The tensor tables of all three graphs that follow from the sizes.
    #[must_use]
    pub fn standard_graphs(encoder: &EncoderSpec, decoder: &DecoderSpec, text: &TextSpec) -> Vec<GraphSpec> {
        GraphKind::ALL
            .iter()
            .map(|&kind| GraphSpec::standard(kind, encoder, decoder, text))
            .collect()
    }

    /// The tensor table of one graph.
    #[must_use]
    pub fn graph_spec(&self, kind: GraphKind) -> GraphSpec {
        GraphSpec::standard(kind, &self.encoder, &self.decoder, &self.text)
    }

    /// The variant of a name, or the default one for `None`.
    ///
    /// # Errors
    /// [`BundleError::Value`] if no variant has that name.
    pub fn precision(&self, name: Option<&str>) -> Result<&Precision, BundleError> {
        let found = match name {
            None => self.precision.first(),
            Some(name) => self.precision.iter().find(|p| p.name == name),
        };
        found.ok_or_else(|| BundleError::Value {
            field: "precision".into(),
            found: name.unwrap_or("nothing").into(),
            expected: self
                .precision
                .iter()
                .map(|p| p.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The vocabulary file of the bundle; `None` for the standard vocabulary.
    #[must_use]
    pub fn vocabulary_file(&self) -> Option<&str> {
        (self.text.vocabulary != OPENAI_CLIP_VOCABULARY).then_some(self.text.vocabulary.as_str())
    }

    /// Every file that the manifest refers to, without the manifest itself.
    #[must_use]
    pub fn referenced_files(&self) -> BTreeSet<String> {
        let graphs = self.precision.iter().flat_map(|p| p.files().map(str::to_owned));
        graphs
            .chain(self.vocabulary_file().map(str::to_owned))
            .chain(self.files.keys().cloned())
            .collect()
    }
}
