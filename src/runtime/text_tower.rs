//! The text encoder, in memory only while texts are embedded.
//!
//! A CLIP text tower is larger than the rest of a small bundle, and a camera asks it for a new text about never.

use tracing::debug;

use super::graph::{Graph, GraphSession, Values};
use super::{RuntimeError, TextEncoder};
use crate::contract::{GraphKind, GraphSpec, Manifest, TextSpec};

type Open = dyn FnMut() -> Result<Box<dyn GraphSession>, RuntimeError> + Send;

/// Opens its graph when a text comes, frees it when told to.
pub(super) struct TextTower {
    open: Box<Open>,
    graph: Option<Graph>,
    boundary: GraphSpec,
    spec: TextSpec,
    width: usize,
}

impl TextTower {
    pub(super) fn new(
        manifest: &Manifest,
        open: impl FnMut() -> Result<Box<dyn GraphSession>, RuntimeError> + Send + 'static,
    ) -> Self {
        Self {
            open: Box::new(open),
            graph: None,
            boundary: manifest.graph_spec(GraphKind::TextEncoder),
            spec: manifest.text.clone(),
            width: manifest.encoder.embed_dim,
        }
    }
}

impl TextEncoder for TextTower {
    fn embed(&mut self, token_ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let length = self.spec.context;
        let mut embeddings = Vec::with_capacity(token_ids.len());
        for batch in token_ids.chunks(self.spec.batch) {
            let mut ids: Vec<i64> = Vec::with_capacity(self.spec.batch * length);
            for text in batch {
                if text.len() != length {
                    let (name, found) = ("token_ids".into(), text.len());
                    return Err(RuntimeError::InputLength {
                        graph: "text_encoder",
                        name,
                        found,
                        expected: length,
                    });
                }
                ids.extend(text.iter().map(|&id| i64::from(id)));
            }
            // Unused rows repeat the first text: a valid one, whose answer is dropped.
            while ids.len() < self.spec.batch * length {
                ids.extend_from_within(..length);
            }
            let graph = match &mut self.graph {
                Some(graph) => graph,
                closed => {
                    debug!("text encoder is loaded");
                    closed.insert(Graph::new(self.boundary.clone(), (self.open)()?))
                }
            };
            let mut out = Vec::new();
            graph.run(&[Values::I64(&ids)], &mut [&mut out])?;
            embeddings.extend(out.chunks_exact(self.width).take(batch.len()).map(<[f32]>::to_vec));
        }
        Ok(embeddings)
    }

    fn release(&mut self) {
        if self.graph.take().is_some() {
            debug!("text encoder is freed");
        }
    }
}
