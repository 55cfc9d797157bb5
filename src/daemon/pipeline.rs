//! One frame through all stages: preprocess → encoder once → query → decoder → refine, with the time of each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::contract::{Bundle, BundleError, Manifest};
use crate::runtime::progress::{Progress, Silent};
use crate::runtime::{self, Engine, ImageEncoder, MaskDecoder, RuntimeError, RuntimeOptions};
use crate::vision::features::Features;
use crate::vision::frame::{CaptureTime, Frame, Sequence};
use crate::vision::geometry::FrameSize;
use crate::vision::pixels::PixelError;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{PromptRules, QueryError, score};
use crate::vision::refine::{RefineRules, RefinedMask, refine};

use super::embedder::{QueryEmbedder, QuerySet};
use super::words::{WordCounts, Words, WordsError};

/// What to look for.
#[derive(Clone, Debug, PartialEq)]
pub struct QuerySpec {
    /// Id in topics and messages.
    pub id: String,
    /// Texts that mean the same; usually one.
    pub prompts: Vec<String>,
    /// Score from which on it is present, in (0, 1); `None` means the bundle's default.
    pub threshold: Option<f32>,
    /// Smallest mask, in frame pixels.
    pub min_area: usize,
    /// Largest mask, in frame pixels; `None` for any.
    pub max_area: Option<usize>,
    /// Colour in pictures, red, green, blue; `None` for one chosen by position.
    pub color: Option<[u8; 3]>,
}

impl QuerySpec {
    /// A query with one text, an id made of it, and the bundle's threshold.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut id: String = text
            .chars()
            .take(40)
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .collect();
        while id.contains("--") {
            id = id.replace("--", "-");
        }
        let id = id.trim_matches('-');
        let id = if id.is_empty() { "query" } else { id };
        Self {
            id: id.to_owned(),
            prompts: vec![text.to_owned()],
            threshold: None,
            min_area: 32,
            max_area: None,
            color: None,
        }
    }
}

/// Why a pipeline cannot be built or a frame cannot be processed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A graph cannot be opened or run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A query's text cannot be embedded.
    #[error("query {id:?}: {source}")]
    Words {
        /// Id of the query, or `background`.
        id: String,
        /// Why.
        source: WordsError,
    },
    /// The bundle's vocabulary cannot be read.
    #[error(transparent)]
    Vocabulary(WordsError),
    /// Queries do not fit the model.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The frame is too short.
    #[error(transparent)]
    Pixels(#[from] PixelError),
}

/// Time spent in each stage of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Colour conversion, resize, normalisation.
    pub preprocess: Duration,
    /// Image encoder.
    pub encoder: Duration,
    /// Scores and prompts.
    pub query: Duration,
    /// Mask decoder, all batches.
    pub decoder: Duration,
    /// Masks on the frame.
    pub refine: Duration,
}

impl StageTimes {
    /// Stages by name, in order.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, Duration); 5] {
        [
            ("preprocess", self.preprocess),
            ("encoder", self.encoder),
            ("query", self.query),
            ("decoder", self.decoder),
            ("refine", self.refine),
        ]
    }

    /// All stages together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.by_name().iter().map(|s| s.1).sum()
    }
}

/// What was found on one frame.
#[derive(Clone, Debug)]
pub struct Detections {
    /// Frame size.
    pub size: FrameSize,
    /// Number of the frame.
    pub sequence: Sequence,
    /// Capture time of the frame.
    pub captured: CaptureTime,
    /// Masks, best score first.
    pub masks: Vec<RefinedMask>,
    /// Best score of every query anywhere on the frame, in the order of the queries.
    pub best: Vec<f32>,
    /// Time of each stage.
    pub times: StageTimes,
}

/// An open model with its queries.
pub struct Pipeline {
    manifest: Manifest,
    model: String,
    provider: String,
    precision: String,
    notes: Vec<String>,
    nodes: BTreeMap<String, usize>,
    encoder: Box<dyn ImageEncoder>,
    decoder: Box<dyn MaskDecoder>,
    embedder: Arc<Mutex<QueryEmbedder>>,
    preprocessor: Preprocessor,
    features: Features,
    asked: Arc<QuerySet>,
    prompt_rules: PromptRules,
    refine_rules: RefineRules,
}

impl Pipeline {
    /// Reads and checks a bundle and opens its graphs.
    ///
    /// # Errors
    /// [`PipelineError`] if the bundle or a graph is refused.
    pub fn open(bundle: &Path, options: &RuntimeOptions) -> Result<Self, PipelineError> {
        Self::open_watched(bundle, options, &Silent)
    }

    /// As [`Self::open`], telling `progress` what takes long.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_watched(
        bundle: &Path,
        options: &RuntimeOptions,
        progress: &dyn Progress,
    ) -> Result<Self, PipelineError> {
        let bundle = Manifest::read(bundle)?;
        let engine = runtime::open_watched(&bundle, options, progress)?;
        Self::new(&bundle, engine, options.cache.as_deref())
    }

    /// A pipeline over graphs that are already open; text embeddings are kept below `cache`, if there is one.
    ///
    /// The text encoder may stay loaded until the next [`Self::set_queries`], which frees it.
    ///
    /// # Errors
    /// [`PipelineError`] if the vocabulary or a background prompt is refused.
    pub fn new(bundle: &Bundle, engine: Engine, cache: Option<&Path>) -> Result<Self, PipelineError> {
        let Engine {
            encoder,
            decoder,
            further: _,
            text,
            provider,
            precision,
            notes,
            nodes,
        } = engine;
        let manifest = bundle.manifest.clone();
        let words = Words::new(bundle, text, cache).map_err(PipelineError::Vocabulary)?;
        let mut embedder = QueryEmbedder::new(words, &manifest);
        let asked = embedder.embed(&[], None)?;
        Ok(Self {
            model: format!("{}@{}", manifest.name, bundle.id()),
            preprocessor: Preprocessor::new(&manifest.encoder),
            manifest,
            provider,
            precision,
            notes,
            nodes,
            encoder,
            decoder,
            embedder: Arc::new(Mutex::new(embedder)),
            features: Features::default(),
            asked,
            prompt_rules: PromptRules::default(),
            refine_rules: RefineRules {
                min_area: 1,
                ..RefineRules::default()
            },
        })
    }

    /// Replaces the queries; on error the old ones stay.
    ///
    /// # Errors
    /// As [`Self::prepare_queries`].
    pub fn set_queries(&mut self, specs: &[QuerySpec]) -> Result<(), PipelineError> {
        self.asked = self.prepare_queries(specs, None)?;
        Ok(())
    }

    /// Embeds queries without asking them yet: every camera may have its own, and [`Self::ask`] changes between them.
    ///
    /// `background` are the texts they compete with; `None` means the bundle's. Takes as long as the text encoder needs
    /// for what was never asked before.
    ///
    /// # Errors
    /// [`PipelineError`] for a text that cannot be embedded or an impossible threshold.
    pub fn prepare_queries(
        &self,
        specs: &[QuerySpec],
        background: Option<&[String]>,
    ) -> Result<Arc<QuerySet>, PipelineError> {
        self.lock_embedder().prepare(specs, background)
    }

    /// What makes embeddings of queries, for a thread that does so while frames go on: [`Self::run`] never waits for it.
    #[must_use]
    pub fn embedder(&self) -> Arc<Mutex<QueryEmbedder>> {
        Arc::clone(&self.embedder)
    }

    fn lock_embedder(&self) -> MutexGuard<'_, QueryEmbedder> {
        // an embedding is stored whole or not at all
        self.embedder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queries in use, to be asked again later.
    #[must_use]
    pub fn asked(&self) -> Arc<QuerySet> {
        Arc::clone(&self.asked)
    }

    /// Asks these queries of the frames that follow.
    pub fn ask(&mut self, queries: &Arc<QuerySet>) {
        self.asked = Arc::clone(queries);
    }

    /// The queries in use.
    #[must_use]
    pub fn queries(&self) -> &[QuerySpec] {
        self.asked.specs()
    }

    /// Score threshold of a query, in (0, 1).
    #[must_use]
    pub fn threshold(&self, query: usize) -> f32 {
        let own = self.asked.specs().get(query).and_then(|s| s.threshold);
        own.unwrap_or(self.manifest.calibration.threshold)
    }

    /// Model name and the start of its hash, as messages show it.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What runs the model, e.g. `tract-cpu`.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Why that provider.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Variant of the graphs in use.
    #[must_use]
    pub fn precision(&self) -> &str {
        &self.precision
    }

    /// Nodes by provider, counted in a warm-up run; empty on the CPU.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, usize> {
        &self.nodes
    }

    /// Where the embeddings of queries and background prompts came from.
    #[must_use]
    pub fn word_counts(&self) -> WordCounts {
        self.lock_embedder().counts()
    }

    /// The bundle's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The last frame as packed RGB, `[height, width, 3]`.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        self.preprocessor.rgb()
    }

    /// Takes one frame through all stages.
    ///
    /// # Errors
    /// [`PipelineError`]; the pipeline stays usable for the next frame.
    pub fn run(&mut self, frame: &Frame) -> Result<Detections, PipelineError> {
        let mut times = StageTimes::default();
        let mut start = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now - std::mem::replace(&mut start, now)
        };
        let letterbox = self.preprocessor.run(frame)?;
        times.preprocess = lap();
        self.encoder.encode(self.preprocessor.tensor(), &mut self.features)?;
        times.encoder = lap();
        let scores = score(&self.features, self.asked.queries(), &self.manifest, letterbox)?;
        let low_res_side = self.manifest.encoder.low_res_side();
        let prompts = scores.prompts(&self.prompt_rules, low_res_side, self.manifest.decoder.points);
        let best = (0..scores.queries()).map(|q| scores.best(q)).collect();
        times.query = lap();
        let decoded = self.decoder.decode(&self.features, &prompts)?;
        times.decoder = lap();
        let mut masks = refine(&prompts, &decoded, &letterbox, &self.refine_rules);
        masks.retain(|m| {
            let area = m.mask.area();
            let fits = |s: &QuerySpec| area >= s.min_area && s.max_area.is_none_or(|most| area <= most);
            self.asked.specs().get(m.query).is_some_and(fits)
        });
        masks.sort_by(|a, b| b.score.total_cmp(&a.score));
        times.refine = lap();
        Ok(Detections {
            size: frame.size,
            sequence: frame.sequence,
            captured: frame.captured,
            masks,
            best,
            times,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_of_the_text() {
        for (text, id) in [
            ("Hard hat, hi-vis", "hard-hat-hi-vis"),
            ("  person ", "person"),
            ("日本", "query"),
        ] {
            assert_eq!(QuerySpec::from_text(text).id, id);
        }
    }
}
