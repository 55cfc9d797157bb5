//! From queries to what the model is asked: the embeddings of their texts, beside those of what they compete with.

use std::sync::Arc;

use crate::contract::Manifest;
use crate::vision::query::Queries;

use super::pipeline::{PipelineError, QuerySpec};
use super::words::{WordCounts, Words};

/// Queries with their embeddings, ready for one model; made by a [`QueryEmbedder`].
#[derive(Clone, Debug, Default)]
pub struct QuerySet {
    specs: Vec<QuerySpec>,
    queries: Queries,
}

impl QuerySet {
    /// The queries, in the order of their scores.
    #[must_use]
    pub fn specs(&self) -> &[QuerySpec] {
        &self.specs
    }

    /// Their embeddings.
    #[must_use]
    pub fn queries(&self) -> &Queries {
        &self.queries
    }
}

/// Makes [`QuerySet`]s for one bundle.
pub struct QueryEmbedder {
    words: Words,
    width: usize,
    /// What queries compete with where nothing else is said.
    background: Vec<String>,
}

impl QueryEmbedder {
    /// An embedder over the words of a bundle.
    #[must_use]
    pub fn new(words: Words, manifest: &Manifest) -> Self {
        Self {
            words,
            width: manifest.encoder.embed_dim,
            background: manifest.background.clone(),
        }
    }

    /// Embeds queries and what they compete with, `None` for the bundle's texts; frees the text encoder afterwards.
    ///
    /// # Errors
    /// [`PipelineError`] for a text that cannot be embedded or an impossible threshold.
    pub fn prepare(
        &mut self,
        specs: &[QuerySpec],
        background: Option<&[String]>,
    ) -> Result<Arc<QuerySet>, PipelineError> {
        let prepared = self.embed(specs, background);
        self.words.release();
        prepared
    }

    /// As [`Self::prepare`], and keeps the text encoder loaded if it was needed.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn embed(
        &mut self,
        specs: &[QuerySpec],
        background: Option<&[String]>,
    ) -> Result<Arc<QuerySet>, PipelineError> {
        let mut embedded = Vec::with_capacity(specs.len());
        for spec in specs {
            let embedding = self
                .words
                .embed_all(&spec.prompts)
                .map_err(|source| PipelineError::Words {
                    id: spec.id.clone(),
                    source,
                })?;
            embedded.push((embedding, spec.threshold));
        }
        let background = competitors(background.unwrap_or(&self.background), specs);
        let competing = background
            .iter()
            .map(|text| self.words.embed(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| PipelineError::Words {
                id: BACKGROUND.into(),
                source,
            })?;
        Ok(Arc::new(QuerySet {
            specs: specs.to_vec(),
            queries: Queries::new(self.width, &embedded, &competing)?,
        }))
    }

    /// Where the embeddings came from so far.
    #[must_use]
    pub fn counts(&self) -> WordCounts {
        self.words.counts()
    }
}

/// Where an error has a query's id, for one of the texts that queries compete with; no query has this id.
pub(super) const BACKGROUND: &str = "background";

/// Background prompts that no query asks for itself, since a text must not compete with itself; all if none is left.
fn competitors(background: &[String], specs: &[QuerySpec]) -> Vec<String> {
    let plain = |text: &str| text.trim().to_lowercase();
    let asked: Vec<String> = specs.iter().flat_map(|s| &s.prompts).map(|p| plain(p)).collect();
    let kept: Vec<String> = background
        .iter()
        .filter(|name| !asked.contains(&plain(name)))
        .cloned()
        .collect();
    if kept.is_empty() { background.to_vec() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_text_that_is_asked_for_does_not_compete_with_itself() {
        let background = ["wall".to_owned(), "Sky".to_owned()];
        let asked = |text: &str| competitors(&background, &[QuerySpec::from_text(text)]);
        assert_eq!(asked(" sky"), ["wall"]);
        assert_eq!(asked("cat"), background);
        assert_eq!(competitors(&background[..1], &[QuerySpec::from_text("wall")]), ["wall"]);
    }
}
