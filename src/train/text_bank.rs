//! Text embeddings of names, as the daemon computes them: 80 templates, averaged, re-normalised.

use std::collections::HashMap;

use crate::text::templates::TEMPLATES;
use crate::text::tokenizer::{TextError, Tokenizer};
use crate::train::autodiff::{Graph, TokenBatch};
use crate::train::kernels::Kernels;
use crate::train::model::{MergedConfig, clip};
use crate::train::ops::Ops;
use crate::train::weights::Weights;

/// A frozen text tower with a cache.
pub struct TextBank<B: Kernels> {
    tower: Graph<B>,
    config: MergedConfig,
    tokenizer: Tokenizer,
    cache: HashMap<String, Vec<f32>>,
}

/// Token ids of `texts`, cut behind the longest text: what follows the end-of-text token never matters.
///
/// # Errors
/// [`TextError`] of the first text that is refused.
pub fn tokenize(tokenizer: &Tokenizer, texts: &[String]) -> Result<TokenBatch, TextError> {
    let rows = texts
        .iter()
        .map(|t| tokenizer.encode(t))
        .collect::<Result<Vec<_>, _>>()?;
    let end = |row: &[u32; 77]| row.iter().position(|&id| id == tokenizer.end_of_text()).unwrap_or(76);
    let length = rows.iter().map(end).max().unwrap_or(0) + 1;
    Ok(TokenBatch::new(
        rows.iter().flat_map(|row| row[..length].iter().copied()).collect(),
        length,
    ))
}

/// Unit-norm embeddings `[B, D]` of texts.
pub fn embed<O: Ops<Tokens = TokenBatch>>(ops: &O, config: &MergedConfig, tokens: &TokenBatch) -> O::Tensor {
    let (text, width) = (&config.text, config.clip_head.text_dim);
    ops.unit_norm(&clip::encode_text(ops, text, width, config.quick_gelu, tokens))
}

impl<B: Kernels> TextBank<B> {
    /// A bank over the text tower among `weights`, on `device`.
    #[must_use]
    pub fn new(weights: &Weights, config: MergedConfig, tokenizer: Tokenizer, device: B::Device) -> Self {
        Self {
            tower: Graph::new(weights, device),
            config,
            tokenizer,
            cache: HashMap::new(),
        }
    }

    /// The device that it computes on.
    #[must_use]
    pub fn device(&self) -> &B::Device {
        self.tower.device()
    }

    /// Unit-norm embedding `[D]` of a name.
    ///
    /// # Errors
    /// [`TextError`] if the name is too long.
    pub fn embed(&mut self, name: &str) -> Result<&[f32], TextError> {
        if !self.cache.contains_key(name) {
            let texts: Vec<String> = TEMPLATES.iter().map(|t| t.replace("{}", name)).collect();
            let tokens = tokenize(&self.tokenizer, &texts)?;
            let rows = self.tower.values(&embed(&self.tower, &self.config, &tokens));
            let mut mean = vec![0.0; self.config.clip_head.text_dim];
            for row in rows.chunks(self.config.clip_head.text_dim) {
                mean.iter_mut().zip(row).for_each(|(m, r)| *m += r);
            }
            let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            mean.iter_mut().for_each(|v| *v /= norm);
            self.cache.insert(name.to_owned(), mean);
        }
        Ok(&self.cache[name])
    }
}
