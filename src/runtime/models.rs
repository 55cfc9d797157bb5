//! The graphs as the pipeline sees them: batching, padding, coordinates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::graph::{Graph, GraphSession, Values};
use super::precision::full_precision;
use super::text_tower::TextTower;
use super::{Engine, ImageEncoder, MaskDecoder, RuntimeError, SizedGraphs};
use crate::contract::{Bundle, BundleError, DecoderSpec, EncoderSpec, GraphKind, GraphSpec, Precision, hash_file};
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
    /// The bundle at the sizes to open beside its own; the variant has them all.
    pub further: &'a [Bundle],
    /// Why that provider.
    pub notes: Vec<String>,
    /// Nodes by provider, where they were counted.
    pub nodes: BTreeMap<String, usize>,
}

/// A bundle at the sizes that are wanted beside its own, each once.
///
/// # Errors
/// [`BundleError::NoSize`] for one that it lacks.
pub(super) fn further(bundle: &Bundle, sides: &[usize]) -> Result<Vec<Bundle>, BundleError> {
    let own = bundle.manifest.encoder.side;
    let sides: BTreeSet<usize> = sides.iter().copied().filter(|&side| side != own).collect();
    sides.into_iter().map(|side| bundle.at(side)).collect()
}

/// Image encoder and mask decoder of a bundle: what goes in and out, and the file of a variant by name.
///
/// # Errors
/// [`BundleError::Value`] if no variant has that name.
pub(super) fn per_frame(bundle: &Bundle, variant: &str) -> Result<[(GraphSpec, PathBuf); 2], BundleError> {
    let variant = bundle.manifest.precision(Some(variant))?;
    let one = |kind| (bundle.manifest.graph_spec(kind), bundle.dir.join(variant.file(kind)));
    Ok([GraphKind::Encoder, GraphKind::MaskDecoder].map(one))
}

/// Builds an engine from whatever `open` returns for each graph; back ends and tests come through here.
///
/// Image encoder and mask decoder are opened at once, in this order, those of the bundle's own size before those of the
/// further ones. The text encoder is opened when a text is embedded, again after each [`TextEncoder::release`]; it is
/// always the first variant that computes in 32 bits.
///
/// [`TextEncoder::release`]: super::TextEncoder::release
///
/// # Errors
/// The first error of `open`.
pub fn open_with(
    bundle: &Bundle,
    opened: Opened<'_>,
    mut open: impl FnMut(&GraphSpec, &Path) -> Result<Box<dyn GraphSession>, RuntimeError> + Send + 'static,
) -> Result<Engine, RuntimeError> {
    let precision = &opened.precision.name;
    let mut sized = |bundle: &Bundle| {
        let [encoder, decoder] = per_frame(bundle, precision)?;
        let mut graph = |(spec, path): (GraphSpec, PathBuf)| {
            let session = open(&spec, &path)?;
            Ok::<_, RuntimeError>(Graph::new(spec, session))
        };
        let side = bundle.manifest.encoder.low_res_side();
        Ok::<_, RuntimeError>(SizedGraphs {
            encoder: Box::new(Encoder {
                graph: graph(encoder)?,
                spec: bundle.manifest.encoder.clone(),
            }),
            decoder: Box::new(Decoder {
                graph: graph(decoder)?,
                spec: bundle.manifest.decoder.clone(),
                cells: side * side,
                points: Vec::new(),
                labels: Vec::new(),
                masks: Vec::new(),
                has_mask: Vec::new(),
                logits: Vec::new(),
                ious: Vec::new(),
            }),
        })
    };
    let SizedGraphs { encoder, decoder } = sized(bundle)?;
    let further = opened.further.iter();
    let further = further.map(|at| Ok((at.manifest.encoder.side, sized(at)?)));
    let further = further.collect::<Result<_, RuntimeError>>()?;
    let manifest = &bundle.manifest;
    let words = full_precision(&manifest.precision).unwrap_or(opened.precision);
    let name = words.file(GraphKind::TextEncoder);
    let text_path = bundle.dir.join(name);
    let expected = manifest.files.get(name).cloned();
    let text_spec = manifest.graph_spec(GraphKind::TextEncoder);
    // It is opened whenever there is a new text, and the folder may hold another bundle by then.
    let text = TextTower::new(manifest, move || {
        if let Some(expected) = &expected {
            let found = hash_file(&text_path)?;
            if found != *expected {
                let (path, expected) = (text_path.clone(), expected.clone());
                return Err(RuntimeError::Replaced { path, found, expected });
            }
        }
        open(&text_spec, &text_path)
    });
    Ok(Engine {
        encoder,
        decoder,
        further,
        text: Box::new(text),
        provider: opened.provider,
        precision: precision.clone(),
        notes: opened.notes,
        nodes: opened.nodes,
    })
}
