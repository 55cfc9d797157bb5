//! From a query's text to its embedding: 80 templates, averaged, re-normalised, computed once per text.
//!
//! What was computed is kept on disk, so that the text encoder is loaded only for a text that was never asked before.

use std::collections::HashMap;
use std::path::Path;

use crate::contract::{Bundle, BundleError};
use crate::runtime::{RuntimeError, TextEncoder};
use crate::text::templates::{TEMPLATES, fill};
use crate::text::tokenizer::{TextError, Tokenizer};
use crate::vision::query::{QueryError, mean_embedding};

use super::text_cache::TextCache;

/// Why a text has no embedding.
#[derive(Debug, thiserror::Error)]
pub enum WordsError {
    /// The text is too long, or the vocabulary is damaged.
    #[error("query text: {0}")]
    Text(#[from] TextError),
    /// Nothing to look for.
    #[error("query text is empty; expected a word or a short description")]
    Empty,
    /// The text encoder failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The text encoder returned nothing usable.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The bundle's vocabulary cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Most embeddings kept in memory; beyond, all are forgotten: the cache directory has them.
const MAX_KNOWN: usize = 4_096;

/// Tokenizer, text encoder and what they answered so far.
pub struct Words {
    tokenizer: Tokenizer,
    encoder: Box<dyn TextEncoder>,
    width: usize,
    known: HashMap<String, Vec<f32>>,
    cache: Option<TextCache>,
    counts: WordCounts,
}

/// Where embeddings came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WordCounts {
    /// Texts that went through the text encoder.
    pub computed: usize,
    /// Texts read from the cache directory.
    pub cached: usize,
    /// Texts computed that the cache directory, if there is one, does not hold.
    pub lost: usize,
}

impl Words {
    /// The words of one bundle; embeddings are kept below `cache`, if there is one.
    ///
    /// # Errors
    /// [`WordsError`] if the bundle's vocabulary cannot be read.
    pub fn new(bundle: &Bundle, encoder: Box<dyn TextEncoder>, cache: Option<&Path>) -> Result<Self, WordsError> {
        let tokenizer = match bundle.manifest.vocabulary_file() {
            None => match bundle.manifest.text.merges {
                None => Tokenizer::standard(),
                Some(merges) => Tokenizer::shortened(merges)?,
            },
            Some(name) => {
                let path = bundle.dir.join(name);
                let text = std::fs::read_to_string(&path).map_err(|source| BundleError::Io { path, source })?;
                Tokenizer::from_merges(&text)?
            }
        };
        Ok(Self {
            tokenizer,
            encoder,
            width: bundle.manifest.encoder.embed_dim,
            known: HashMap::new(),
            cache: cache.map(|dir| TextCache::new(dir, bundle)),
            counts: WordCounts::default(),
        })
    }

    /// The unit-norm embedding `[D]` of one text.
    ///
    /// # Errors
    /// [`WordsError`] if the text is empty or longer than the tokenizer accepts, or the encoder fails.
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>, WordsError> {
        // Before filling templates, so that the error counts the user's own characters.
        self.tokenizer.encode(text)?;
        let text = text.trim();
        if text.is_empty() {
            return Err(WordsError::Empty);
        }
        if let Some(known) = self.known.get(text) {
            return Ok(known.clone());
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        if let Some(kept) = self.cache.as_ref().and_then(|cache| cache.get(text, self.width)) {
            self.counts.cached += 1;
            self.known.insert(text.to_owned(), kept.clone());
            return Ok(kept);
        }
        // A sentence near the limit may pass it inside a template; the sentence alone is then what is embedded.
        let filled = TEMPLATES
            .iter()
            .filter_map(|t| self.tokenizer.encode(&fill(t, text)).ok());
        let mut ids: Vec<Vec<u32>> = filled.map(|ids| ids.to_vec()).collect();
        if ids.is_empty() {
            ids.push(self.tokenizer.encode(text)?.to_vec());
        }
        let rows = self.encoder.embed(&ids)?;
        let mean = mean_embedding(&rows.concat(), self.width)?;
        self.counts.computed += 1;
        if let Some(cache) = &mut self.cache {
            self.counts.lost += usize::from(!cache.put(text, &mean));
        }
        self.known.insert(text.to_owned(), mean.clone());
        Ok(mean)
    }

    /// Frees the text encoder until the next new text.
    pub fn release(&mut self) {
        self.encoder.release();
    }

    /// Where embeddings came from so far.
    #[must_use]
    pub fn counts(&self) -> WordCounts {
        self.counts
    }

    /// The embedding of several texts that mean the same: their mean, re-normalised.
    ///
    /// # Errors
    /// As [`Self::embed`]; [`WordsError::Empty`] for no text at all.
    pub fn embed_all(&mut self, texts: &[String]) -> Result<Vec<f32>, WordsError> {
        if texts.is_empty() {
            return Err(WordsError::Empty);
        }
        let rows = texts.iter().map(|t| self.embed(t)).collect::<Result<Vec<_>, _>>()?;
        Ok(mean_embedding(&rows.concat(), self.width)?)
    }
}
