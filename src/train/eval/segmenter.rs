//! A bundle under measurement: its engine, its words, and a mask decoder that also takes boxes.
//!
//! The daemon asks points and masks only, so the runtime's decoder knows no boxes; here the same graph is opened once
//! more and fed directly. A SAM teacher is such a bundle too: the student before training, whose backbone and SAM head
//! are the teacher's.

use tempfile::TempDir;

use super::wording::{Words, tokenizer};
use super::{EvalError, ImageText, frame};
use crate::contract::{Bundle, GraphKind, GraphSpec};
use crate::runtime::{self, Backend, Engine, GraphSession, Provider, RuntimeOptions, Values};
use crate::train::dataset::Sample;
use crate::vision::features::Features;
use crate::vision::geometry::{FramePoint, Letterbox};
use crate::vision::preprocess::Preprocessor;
use crate::vision::refine::{DecodedPrompt, MASKS_PER_PROMPT};

/// A question about one region, in frame pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prompt {
    /// Left, top, right, bottom; the latter two exclusive.
    Box([f32; 4]),
    /// A foreground point; pixel centres at +0.5.
    Point(FramePoint),
}

/// A bundle, open.
pub struct Segmenter {
    /// Head of its column.
    pub name: String,
    /// Where it comes from.
    pub origin: String,
    /// The bundle.
    pub bundle: Bundle,
    /// Its graphs.
    pub engine: Engine,
    /// Encoder outputs of the last photo.
    pub features: Features,
    preprocessor: Preprocessor,
    stretches: bool,
    words: Words,
    decoder: Box<dyn GraphSession>,
    spec: GraphSpec,
    /// Where the bundle lies if it was made for the measurement.
    _folder: Option<TempDir>,
}

impl Segmenter {
    /// Opens a bundle; `folder` is kept as long as the model if the bundle was exported for the measurement.
    ///
    /// # Errors
    /// [`EvalError`] if a graph or the vocabulary cannot be opened.
    pub fn open(
        name: &str,
        origin: &str,
        bundle: Bundle,
        options: &RuntimeOptions,
        folder: Option<TempDir>,
    ) -> Result<Self, EvalError> {
        let engine = runtime::open(&bundle, options)?;
        let spec = bundle.manifest.graph_spec(GraphKind::MaskDecoder);
        let on_ort = engine.provider.starts_with("ort");
        let on_cpu = RuntimeOptions {
            backend: if on_ort { Backend::Ort } else { Backend::Tract },
            provider: Provider::Cpu,
            ..options.clone()
        };
        let path = bundle.graph_path(GraphKind::MaskDecoder, Some(&engine.precision))?;
        Ok(Self {
            name: name.into(),
            origin: origin.into(),
            decoder: runtime::open_graph(&path, &spec, &on_cpu)?,
            preprocessor: Preprocessor::new(&bundle.manifest.encoder),
            stretches: false,
            words: Words::new(tokenizer(&bundle)?, bundle.manifest.encoder.embed_dim),
            features: Features::default(),
            engine,
            bundle,
            spec,
            _folder: folder,
        })
    }

    /// The same model, photos stretched to its square instead of letterboxed.
    #[must_use]
    pub fn stretching(self) -> Self {
        Self {
            preprocessor: self.preprocessor.stretching(),
            stretches: true,
            ..self
        }
    }

    /// Whether photos are stretched to the model's square.
    #[must_use]
    pub fn stretches(&self) -> bool {
        self.stretches
    }

    /// Encodes a photo into [`Self::features`].
    ///
    /// # Errors
    /// [`EvalError`] if the photo cannot be used or the engine fails.
    pub fn encode(&mut self, photo: &Sample) -> Result<Letterbox, EvalError> {
        let letterbox = self.preprocessor.run(&frame(photo)?)?;
        let image = self.preprocessor.tensor();
        self.engine.encoder.encode(image, &mut self.features)?;
        Ok(letterbox)
    }

    /// The SAM head's answers to prompts on the last encoded photo, in order.
    ///
    /// # Errors
    /// [`EvalError`] if the decoder fails.
    pub fn decode(&mut self, letterbox: &Letterbox, prompts: &[Prompt]) -> Result<Vec<DecodedPrompt>, EvalError> {
        let (q, n) = (
            self.bundle.manifest.decoder.prompts,
            self.bundle.manifest.decoder.points,
        );
        let cells = self.bundle.manifest.encoder.low_res_side().pow(2);
        let mut answers = Vec::with_capacity(prompts.len());
        for batch in prompts.chunks(q) {
            let (mut coords, mut labels) = (vec![0.0; q * n * 2], vec![-1.0; q * n]);
            for (slot, prompt) in batch.iter().enumerate() {
                let (points, kinds): (Vec<FramePoint>, &[f32]) = match *prompt {
                    Prompt::Point(point) => (vec![point], &[1.0]),
                    Prompt::Box([x1, y1, x2, y2]) => (
                        vec![FramePoint { x: x1, y: y1 }, FramePoint { x: x2, y: y2 }],
                        &[2.0, 3.0],
                    ),
                };
                for (i, (point, kind)) in points.iter().zip(kinds).enumerate().take(n) {
                    let at = letterbox.to_model(*point);
                    // The graph adds half a pixel to everything. Points sit at pixel centres already; box corners are
                    // edges, to which SAM adds the half pixel too.
                    let shift = if *kind == 1.0 { 0.5 } else { 0.0 };
                    coords[2 * (slot * n + i)] = at.x - shift;
                    coords[2 * (slot * n + i) + 1] = at.y - shift;
                    labels[slot * n + i] = *kind;
                }
            }
            let (mask, has_mask) = (vec![0.0; q * cells], vec![0.0; q]);
            let inputs = [&self.features.image_embeddings, &coords, &labels, &mask, &has_mask];
            let (mut logits, mut ious) = (Vec::new(), Vec::new());
            self.decoder
                .run(&self.spec, &inputs.map(|v| Values::F32(v)), &mut |index, _, values| {
                    let out = if index == 0 { &mut logits } else { &mut ious };
                    out.extend_from_slice(values);
                    Ok(())
                })?;
            let each = logits.chunks_exact(MASKS_PER_PROMPT * cells);
            let predicted = ious.as_chunks::<MASKS_PER_PROMPT>().0;
            answers.extend(
                each.zip(predicted)
                    .take(batch.len())
                    .map(|(l, &iou_predictions)| DecodedPrompt {
                        low_res_logits: l.to_vec(),
                        iou_predictions,
                    }),
            );
        }
        Ok(answers)
    }
}

impl ImageText for Segmenter {
    fn image(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError> {
        self.encode(photo)?;
        Ok(self.features.image_embedding.clone())
    }

    fn names(&mut self, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.words.names(&mut *self.engine.text, names)
    }

    fn sentences(&mut self, sentences: &[String]) -> Result<Vec<Option<Vec<f32>>>, EvalError> {
        self.words.sentences(&mut *self.engine.text, sentences)
    }
}
