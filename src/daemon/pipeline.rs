//! An open model with what is asked of it, at every size that is open: texts are embedded once for all of them. What a frame
//! goes through at one size is its [`Sight`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::{Bundle, BundleError, Manifest};
use crate::runtime::progress::{Progress, Silent, Stage};
use crate::runtime::{self, Engine, RuntimeError, RuntimeOptions, SizedGraphs};
use crate::vision::frame::Frame;
use crate::vision::pixels::PixelError;
use crate::vision::query::QueryError;

use super::embedder::{QueryEmbedder, QuerySet};
use super::schedule::SizeFault;
use super::sight::Sight;
use super::words::{WordCounts, Words, WordsError};

pub use super::sight::{Detections, StageTimes};

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
    /// A camera's sizes are not the model's.
    #[error(transparent)]
    Size(#[from] SizeFault),
    /// A size was not opened.
    #[error("no size of {side} pixels is open, expected one of {open:?}")]
    NotOpen {
        /// The side asked for.
        side: usize,
        /// Those that are open.
        open: Vec<usize>,
    },
    /// The frame is too short.
    #[error(transparent)]
    Pixels(#[from] PixelError),
}

/// An open model with its queries.
pub struct Pipeline {
    manifest: Manifest,
    model: String,
    provider: String,
    precision: String,
    notes: Vec<String>,
    nodes: BTreeMap<String, usize>,
    own: Sight,
    further: Vec<Sight>,
    /// Side of the size that the last frame went through.
    seen_at: usize,
    embedder: Arc<Mutex<QueryEmbedder>>,
    asked: Arc<QuerySet>,
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
        Self::open_bundle(&Manifest::read(bundle)?, options, progress)
    }

    /// As [`Self::open_watched`], of a bundle that was read and perhaps is seen at one of its sizes ([`Bundle::at`]).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_bundle(
        bundle: &Bundle,
        options: &RuntimeOptions,
        progress: &dyn Progress,
    ) -> Result<Self, PipelineError> {
        let engine = runtime::open_watched(bundle, options, progress)?;
        progress.stage(&Stage::EmbedTexts);
        Self::new(bundle, engine, options.cache.as_deref())
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
            further,
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
        let own = Sight::new(manifest.clone(), SizedGraphs { encoder, decoder });
        let further = further.into_iter();
        let further = further.map(|(side, graphs)| Ok(Sight::new(manifest.at(side)?, graphs)));
        Ok(Self {
            model: format!("{}@{}", manifest.name, bundle.id()),
            seen_at: own.side(),
            own,
            further: further.collect::<Result<_, BundleError>>()?,
            manifest,
            provider,
            precision,
            notes,
            nodes,
            embedder: Arc::new(Mutex::new(embedder)),
            asked,
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

    /// Sides of the sizes that are open, pixels; the model's own first.
    #[must_use]
    pub fn sides(&self) -> Vec<usize> {
        std::iter::once(&self.own)
            .chain(&self.further)
            .map(Sight::side)
            .collect()
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
        let mut further = self.further.iter();
        further
            .find(|sight| sight.side() == self.seen_at)
            .unwrap_or(&self.own)
            .rgb()
    }

    /// Takes one frame through all stages at the model's own size.
    ///
    /// # Errors
    /// [`PipelineError`]; the pipeline stays usable for the next frame.
    pub fn run(&mut self, frame: &Frame) -> Result<Detections, PipelineError> {
        self.run_at(frame, self.own.side())
    }

    /// As [`Self::run`], at one of [`Self::sides`].
    ///
    /// # Errors
    /// As [`Self::run`]; [`PipelineError::NotOpen`] for another side.
    pub fn run_at(&mut self, frame: &Frame, side: usize) -> Result<Detections, PipelineError> {
        let sight = match self.further.iter().position(|sight| sight.side() == side) {
            Some(index) => &mut self.further[index],
            None if side == self.own.side() => &mut self.own,
            None => {
                let open = self.sides();
                return Err(PipelineError::NotOpen { side, open });
            }
        };
        self.seen_at = side;
        sight.run(frame, &self.asked)
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
