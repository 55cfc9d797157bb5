//! The three graphs as the pipeline sees them: batching, padding, coordinates.

use std::collections::BTreeMap;
use std::path::Path;

use super::graph::{Graph, GraphSession, Values};
use super::precision::full_precision;
use super::text_tower::TextTower;
use super::{Engine, ImageEncoder, MaskDecoder, RuntimeError};
use crate::contract::{Bundle, DecoderSpec, EncoderSpec, GraphKind, Precision};
use crate::vision::features::Features;
use crate::vision::query::DecoderPrompt;
use crate::vision::refine::{DecodedPrompt, MASKS_PER_PROMPT};

struct Encoder {
    graph: Graph,
    spec: EncoderSpec,
}

impl ImageEncoder for Encoder {
    fn encode(&mut self, image: &[f32], features: &mut Features) -> Result<(), RuntimeError> {
        let Features {
            image_embeddings,
            patch_embeddings,
            image_embedding,
        } = features;
        self.graph.run(
            &[Values::F32(image)],
            &mut [image_embeddings, patch_embeddings, image_embedding],
        )?;
        features.check(&self.spec)?;
        Ok(())
    }
}

struct Decoder {
    graph: Graph,
    spec: DecoderSpec,
    cells: usize,
    points: Vec<f32>,
    labels: Vec<f32>,
    masks: Vec<f32>,
    has_mask: Vec<f32>,
    logits: Vec<f32>,
    ious: Vec<f32>,
}

impl Decoder {
    /// Fills the inputs with up to `Q` prompts; the rest asks about nothing.
    fn pack(&mut self, prompts: &[DecoderPrompt]) {
        let (q, n) = (self.spec.prompts, self.spec.points);
        for (buffer, length, fill) in [
            (&mut self.points, q * n * 2, 0.0),
            (&mut self.labels, q * n, -1.0),
            (&mut self.masks, q * self.cells, 0.0),
            (&mut self.has_mask, q, 0.0),
        ] {
            buffer.clear();
            buffer.resize(length, fill);
        }
        for (slot, prompt) in prompts.iter().enumerate().take(q) {
            for (i, point) in prompt.points.iter().enumerate().take(n) {
                let at = slot * n + i;
                // The graph adds 0.5 to pixel indices; our points already sit at pixel centres.
                self.points[2 * at] = point.x - 0.5;
                self.points[2 * at + 1] = point.y - 0.5;
                self.labels[at] = 1.0;
            }
            if prompt.mask.len() == self.cells {
                self.masks[slot * self.cells..][..self.cells].copy_from_slice(&prompt.mask);
                self.has_mask[slot] = 1.0;
            }
        }
    }
}

impl MaskDecoder for Decoder {
    fn decode(&mut self, features: &Features, prompts: &[DecoderPrompt]) -> Result<Vec<DecodedPrompt>, RuntimeError> {
        let mut answers = Vec::with_capacity(prompts.len());
        for batch in prompts.chunks(self.spec.prompts) {
            self.pack(batch);
            let inputs = [
                &features.image_embeddings,
                &self.points,
                &self.labels,
                &self.masks,
                &self.has_mask,
            ];
            self.graph
                .run(&inputs.map(|v| Values::F32(v)), &mut [&mut self.logits, &mut self.ious])?;
            let each = self.logits.chunks_exact(MASKS_PER_PROMPT * self.cells);
            let predictions = self.ious.as_chunks::<MASKS_PER_PROMPT>().0;
            answers.extend(
                each.zip(predictions)
                    .take(batch.len())
                    .map(|(logits, &iou_predictions)| DecodedPrompt {
                        low_res_logits: logits.to_vec(),
                        iou_predictions,
                    }),
            );
        }
        Ok(answers)
    }
}

/// What a back end says about an engine whose graphs it opens.
pub struct Opened<'a> {
    /// Name of what runs it.
    pub provider: String,
    /// The variant of image encoder and mask decoder.
    pub precision: &'a Precision,
    /// Why that provider.
    pub notes: Vec<String>,
    /// Nodes by provider, where they were counted.
    pub nodes: BTreeMap<String, usize>,
}

/// Builds an engine from whatever `open` returns for each graph; back ends and tests come through here.
///
/// Image encoder and mask decoder are opened at once, in this order. The text encoder is opened when a text is
/// embedded, again after each [`TextEncoder::release`]; it is always the first variant that computes in 32 bits.
///
/// # Errors
/// The first error of `open`.
pub fn open_with(
    bundle: &Bundle,
    opened: Opened<'_>,
    mut open: impl FnMut(GraphKind, &Path) -> Result<Box<dyn GraphSession>, RuntimeError> + Send + 'static,
) -> Result<Engine, RuntimeError> {
    let manifest = &bundle.manifest;
    let path = |kind: GraphKind, variant: &Precision| bundle.dir.join(variant.file(kind));
    let mut graph = |kind: GraphKind| {
        let session = open(kind, &path(kind, opened.precision))?;
        Ok::<_, RuntimeError>(Graph::new(manifest.graph_spec(kind), session))
    };
    let encoder = Encoder {
        graph: graph(GraphKind::Encoder)?,
        spec: manifest.encoder.clone(),
    };
    let side = manifest.encoder.low_res_side();
    let decoder = Decoder {
        graph: graph(GraphKind::MaskDecoder)?,
        spec: manifest.decoder.clone(),
        cells: side * side,
        points: Vec::new(),
        labels: Vec::new(),
        masks: Vec::new(),
        has_mask: Vec::new(),
        logits: Vec::new(),
        ious: Vec::new(),
    };
    let words = full_precision(&manifest.precision).unwrap_or(opened.precision);
    let text_path = path(GraphKind::TextEncoder, words);
    let text = TextTower::new(manifest, move || open(GraphKind::TextEncoder, &text_path));
    Ok(Engine {
        encoder: Box::new(encoder),
        decoder: Box::new(decoder),
        text: Box::new(text),
        provider: opened.provider,
        precision: opened.precision.name.clone(),
        notes: opened.notes,
        nodes: opened.nodes,
    })
}
