//! What the encoder says about one frame, with the shapes the manifest promises.

use crate::contract::EncoderSpec;

/// Encoder outputs of one frame.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// SAM features, `[1, C, g, g]`.
    pub image_embeddings: Vec<f32>,
    /// CLIP patch embeddings, `[1, D, n, n]`, unit norm over `D`.
    pub patch_embeddings: Vec<f32>,
    /// CLIP image embedding, `[1, D]`, unit norm.
    pub image_embedding: Vec<f32>,
}

/// An encoder output of the wrong length, or not finite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// Length differs from the manifest's shape.
    #[error("{name} holds {found} values, manifest says {expected}; model and manifest come from different exports")]
    Length {
        /// Tensor name.
        name: &'static str,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// NaN or infinity.
    #[error("{name} holds values that are not finite; the model or the chosen precision is unusable on this provider")]
    NotFinite {
        /// Tensor name.
        name: &'static str,
    },
}

impl Features {
    /// Checks lengths and finiteness.
    ///
    /// # Errors
    /// [`FeatureError`], naming the tensor.
    pub fn check(&self, spec: &EncoderSpec) -> Result<(), FeatureError> {
        let g = spec.grid();
        for (name, values, expected) in [
            ("image_embeddings", &self.image_embeddings, spec.neck_channels * g * g),
            (
                "patch_embeddings",
                &self.patch_embeddings,
                spec.embed_dim * spec.patch_grid * spec.patch_grid,
            ),
            ("image_embedding", &self.image_embedding, spec.embed_dim),
        ] {
            if values.len() != expected {
                return Err(FeatureError::Length {
                    name,
                    found: values.len(),
                    expected,
                });
            }
            // A sum is finite only if every value is, save for overflow far beyond any embedding.
            if !values.iter().sum::<f32>().is_finite() {
                return Err(FeatureError::NotFinite { name });
            }
        }
        Ok(())
    }
}
