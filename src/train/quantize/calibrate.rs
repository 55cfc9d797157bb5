//! Calibration: the reference runs on real photos, histograms of what its layers read are kept.
//!
//! The text encoder runs first, since its embeddings decide what the decoder is asked; then the encoder, whose features
//! wait in a [`Spool`]; then the decoder on those features. A full-size encoder shows its inner tensors in portions of
//! at most [`TAPPED_BYTES`] per run, so memory stays bounded and the photos are run once per portion.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::QuantizeError;
use super::measure::{self, Subject, Trial, prompts_of_one_run};
use super::onnx_file::OnnxFile;
use super::publish::Staging;
use super::qdq::{Layer, layers};
use super::session::{Runner, Seen, Taps};
use super::spool::Spool;
use crate::contract::{Bundle, GraphKind};
use crate::train::eval::{self, EvalError};
use crate::vision::features::Features;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{Queries, score};

/// Fewest photos that calibration takes: ranges of one photo clip the next.
pub const FEWEST_PHOTOS: usize = 16;

/// Largest estimated size of the inner tensors shown by one run.
const TAPPED_BYTES: usize = 800 << 20;

/// Most texts that the text encoder is calibrated on.
const TEXTS: usize = 256;

/// Texts that trial variants of the text encoder are compared on.
const TRIAL_TEXTS: usize = 32;

/// What calibration found about one graph.
pub struct GraphStatistics {
    /// Its layers.
    pub layers: Vec<Layer>,
    /// What its layers, and its normalisations, read.
    pub seen: BTreeMap<String, Seen>,
    /// Inputs and reference outputs for trial variants.
    pub trial: Trial,
}

impl GraphStatistics {
    /// Largest magnitude per tensor.
    #[must_use]
    pub fn largest(&self) -> BTreeMap<String, f32> {
        self.seen
            .iter()
            .map(|(n, s)| (n.clone(), s.histogram.largest()))
            .collect()
    }
}

/// Reads one graph of the reference with its weights as fp32.
///
/// # Errors
/// [`QuantizeError::Graph`] for a damaged file.
pub fn reference_graph(bundle: &Bundle, kind: GraphKind, reference: &str) -> Result<OnnxFile, QuantizeError> {
    Ok(OnnxFile::read(&bundle.graph_path(kind, Some(reference))?)?.expanded())
}

/// One graph under calibration: its layers and what is to be watched.
struct Watched {
    layers: Vec<Layer>,
    /// Tensors with their estimated bytes.
    tensors: Vec<(String, usize)>,
}

impl Watched {
    fn of(file: &OnnxFile, bundle: &Bundle) -> Self {
        let layers = layers(file);
        let graph = file.graph();
        let encoder = &bundle.manifest.encoder;
        let width = |name: &str, axis: usize| {
            let dims = file.initializer(name).map(|t| t.dims.clone()).unwrap_or_default();
            dims.get(axis).map_or(1, |&d| usize::try_from(d).unwrap_or(1))
        };
        let mut tensors: BTreeMap<String, usize> = BTreeMap::new();
        for node in &graph.node {
            let (slot, axis, places) = match node.op_type.as_str() {
                "MatMul" => (1, 0, encoder.grid() * encoder.grid()),
                "Conv" => (1, 1, encoder.side * encoder.side / 4),
                "LayerNormalization" => (1, 0, encoder.grid() * encoder.grid()),
                _ => continue,
            };
            let watched =
                node.op_type == "LayerNormalization" || layers.iter().any(|l| node.input.get(1) == Some(&l.weight));
            let constant = file.initializer(&node.input[0]).is_some();
            if watched && !constant {
                let bytes = places * width(&node.input[slot], axis) * 4;
                tensors.insert(node.input[0].clone(), bytes);
            }
        }
        Self {
            layers,
            tensors: tensors.into_iter().collect(),
        }
    }

    /// The tensors in portions; never none.
    fn portions(&self) -> Vec<Vec<String>> {
        let (mut portions, mut bytes) = (vec![Vec::new()], 0);
        for (tensor, size) in &self.tensors {
            if bytes + size > TAPPED_BYTES && bytes > 0 {
                portions.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            portions.last_mut().expect("starts with one").push(tensor.clone());
        }
        portions
    }

    fn all(&self) -> Vec<String> {
        self.tensors.iter().map(|(t, _)| t.clone()).collect()
    }
}

/// Runs the reference on the calibration photos.
pub struct Calibration<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// Name of the reference variant.
    pub reference: &'a str,
    /// Photos and texts; never validation photos.
    pub subject: &'a Subject<'a>,
    /// Photos that trial variants are compared on.
    pub trial_photos: usize,
    /// What runs the graphs.
    pub runner: &'a Runner,
    /// Where instrumented graphs are put meanwhile.
    pub staging: &'a Staging,
}

impl Calibration<'_> {
    /// All three graphs.
    ///
    /// # Errors
    /// [`QuantizeError::FewPhotos`] below [`FEWEST_PHOTOS`]; [`QuantizeError`] if a photo or a graph cannot be used, or
    /// an inner tensor is not finite.
    pub fn run(&self) -> Result<BTreeMap<GraphKind, GraphStatistics>, QuantizeError> {
        let found = self.subject.photos.len();
        if found < FEWEST_PHOTOS {
            return Err(QuantizeError::FewPhotos { found });
        }
        let (text, queries) = self.text()?;
        let mut spool = Spool::new(self.staging.folder(), "calibration")?;
        let encoder = self.encoder(&mut spool)?;
        let decoder = self.decoder(&queries, &mut spool)?;
        let all = BTreeMap::from([
            (GraphKind::Encoder, encoder),
            (GraphKind::MaskDecoder, decoder),
            (GraphKind::TextEncoder, text),
        ]);
        for (kind, statistics) in &all {
            let wrong = statistics.seen.iter().find(|(_, s)| !s.histogram.largest().is_finite());
            if let Some((tensor, _)) = wrong {
                return Err(QuantizeError::Graph {
                    path: self.bundle.graph_path(*kind, Some(self.reference))?,
                    message: format!("computes values that are not finite in {tensor:?}; export the model again"),
                });
            }
        }
        Ok(all)
    }

    /// Writes the instrumented graph and opens it.
    fn open(
        &self,
        kind: GraphKind,
        file: &OnnxFile,
        tensors: &[String],
    ) -> Result<(crate::runtime::Engine, Taps), QuantizeError> {
        let taps = Taps::on(tensors);
        let path: PathBuf = self
            .staging
            .write("calibration.onnx", &taps.instrumented(file).encode())?;
        let engine = self.runner.tapped(self.bundle, &[(kind, path.clone())], &taps)?;
        self.staging.remove(&path);
        Ok((engine, taps))
    }

    fn text(&self) -> Result<(GraphStatistics, Queries), QuantizeError> {
        let kind = GraphKind::TextEncoder;
        let file = reference_graph(self.bundle, kind, self.reference)?;
        let watched = Watched::of(&file, self.bundle);
        let (mut engine, taps) = self.open(kind, &file, &watched.all())?;
        drop(file);
        let subject = self.subject;
        let queries = subject.queries(&mut *engine.text)?;
        let mut ids = Vec::new();
        for &index in &subject.photos {
            let info = &subject.dataset.samples()[index].info;
            for text in info.captions.iter().chain(&info.labels).chain(&info.classes) {
                ids.extend(subject.tokenizer.encode(text).ok().map(|row| row.to_vec()));
            }
        }
        ids.sort();
        ids.dedup();
        let step = ids.len().div_ceil(TEXTS).max(1);
        let mut ids: Vec<_> = ids.into_iter().step_by(step).collect();
        engine.text.embed(&ids)?;
        // names in their first template lead the trial: they are what the daemon asks
        let names = measure::token_ids(subject)?
            .into_iter()
            .step_by(subject.templates.len().max(1));
        ids = names.chain(ids).take(TRIAL_TEXTS).collect();
        let expected = engine.text.embed(&ids)?;
        let statistics = GraphStatistics {
            layers: watched.layers,
            seen: taps.seen(),
            trial: Trial::TextEncoder(ids, expected),
        };
        Ok((statistics, queries))
    }

    fn encoder(&self, spool: &mut Spool) -> Result<GraphStatistics, QuantizeError> {
        let kind = GraphKind::Encoder;
        let file = reference_graph(self.bundle, kind, self.reference)?;
        let watched = Watched::of(&file, self.bundle);
        drop(file);
        let mut preprocessor = Preprocessor::new(&self.subject.manifest.encoder);
        let (mut seen, mut trial) = (BTreeMap::new(), Vec::new());
        for (portion, tensors) in watched.portions().iter().enumerate() {
            let file = reference_graph(self.bundle, kind, self.reference)?;
            let (mut engine, taps) = self.open(kind, &file, tensors)?;
            drop(file);
            for (place, &index) in self.subject.photos.iter().enumerate() {
                let sample = self.subject.dataset.get(index).map_err(EvalError::from)?;
                preprocessor.run(&eval::frame(&sample)?).map_err(EvalError::from)?;
                let mut features = Features::default();
                engine.encoder.encode(preprocessor.tensor(), &mut features)?;
                if portion > 0 {
                    continue;
                }
                spool.push(&features.image_embeddings)?;
                spool.push(&features.patch_embeddings)?;
                if place < self.trial_photos {
                    trial.push((preprocessor.tensor().to_vec(), features));
                }
            }
            seen.append(&mut taps.seen());
        }
        Ok(GraphStatistics {
            layers: watched.layers,
            seen,
            trial: Trial::Encoder(trial),
        })
    }

    fn decoder(&self, queries: &Queries, spool: &mut Spool) -> Result<GraphStatistics, QuantizeError> {
        let kind = GraphKind::MaskDecoder;
        let file = reference_graph(self.bundle, kind, self.reference)?;
        let watched = Watched::of(&file, self.bundle);
        let (mut engine, taps) = self.open(kind, &file, &watched.all())?;
        drop(file);
        let (mut reader, mut trial) = (spool.read()?, Vec::new());
        let mut preprocessor = Preprocessor::new(&self.subject.manifest.encoder);
        for (place, &index) in self.subject.photos.iter().enumerate() {
            let sample = self.subject.dataset.get(index).map_err(EvalError::from)?;
            let letterbox = preprocessor.run(&eval::frame(&sample)?).map_err(EvalError::from)?;
            let features = Features {
                image_embeddings: reader.next_array()?,
                patch_embeddings: reader.next_array()?,
                image_embedding: Vec::new(),
            };
            let scores = score(&features, queries, self.subject.manifest, letterbox).map_err(EvalError::from)?;
            let prompts = prompts_of_one_run(&scores, self.subject.manifest);
            let decoded = engine.decoder.decode(&features, &prompts)?;
            if place < self.trial_photos {
                trial.push((features, prompts, decoded));
            }
        }
        Ok(GraphStatistics {
            layers: watched.layers,
            seen: taps.seen(),
            trial: Trial::MaskDecoder(trial),
        })
    }
}
