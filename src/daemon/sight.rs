//! One frame through all stages at one input size: preprocess → encoder once → query → decoder → refine, with the time of each.

use std::time::{Duration, Instant};

use crate::contract::Manifest;
use crate::runtime::SizedGraphs;
use crate::vision::features::Features;
use crate::vision::frame::{CaptureTime, Frame, Sequence};
use crate::vision::geometry::FrameSize;
use crate::vision::preprocess::Preprocessor;
use crate::vision::query::{PromptRules, score};
use crate::vision::refine::{RefineRules, RefinedMask, refine};

use super::embedder::QuerySet;
use super::pipeline::PipelineError;

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

impl std::ops::Add for StageTimes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            preprocess: self.preprocess + other.preprocess,
            encoder: self.encoder + other.encoder,
            query: self.query + other.query,
            decoder: self.decoder + other.decoder,
            refine: self.refine + other.refine,
        }
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
    /// Score from which on each query is present at this size, in (0, 1), in the order of the queries.
    pub thresholds: Vec<f32>,
    /// Side of the size that the frame went through, pixels.
    pub side: usize,
    /// Side of the size that it went through before, where a first look was only a hint.
    pub hinted: Option<usize>,
    /// Time of each stage, of both looks if there were two.
    pub times: StageTimes,
}

impl Detections {
    /// What was found by a look that this one had asked for, on the same frame.
    #[must_use]
    pub fn confirmed(&self, by: Self) -> Self {
        Self {
            hinted: Some(self.side),
            times: by.times + self.times,
            ..by
        }
    }

    /// Sides of the sizes that the frame went through, in order.
    pub fn looks(&self) -> impl Iterator<Item = usize> {
        self.hinted.into_iter().chain([self.side])
    }
}

/// The graphs of one size, with buffers that are used again for every frame.
pub(super) struct Sight {
    /// The bundle's, at this size.
    manifest: Manifest,
    graphs: SizedGraphs,
    preprocessor: Preprocessor,
    features: Features,
    prompt_rules: PromptRules,
    refine_rules: RefineRules,
}

impl Sight {
    /// Over the open graphs of the size that `manifest` is seen at.
    pub(super) fn new(manifest: Manifest, graphs: SizedGraphs) -> Self {
        Self {
            preprocessor: Preprocessor::new(&manifest.encoder),
            manifest,
            graphs,
            features: Features::default(),
            prompt_rules: PromptRules::default(),
            refine_rules: RefineRules {
                min_area: 1,
                ..RefineRules::default()
            },
        }
    }

    /// Side of the square input, pixels.
    pub(super) fn side(&self) -> usize {
        self.manifest.encoder.side
    }

    /// The last frame as packed RGB, `[height, width, 3]`.
    pub(super) fn rgb(&self) -> &[u8] {
        self.preprocessor.rgb()
    }

    /// Takes one frame through all stages.
    ///
    /// # Errors
    /// [`PipelineError`]; the next frame can be taken all the same.
    pub(super) fn run(&mut self, frame: &Frame, asked: &QuerySet) -> Result<Detections, PipelineError> {
        let mut times = StageTimes::default();
        let mut start = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now - std::mem::replace(&mut start, now)
        };
        let letterbox = self.preprocessor.run(frame)?;
        times.preprocess = lap();
        self.graphs
            .encoder
            .encode(self.preprocessor.tensor(), &mut self.features)?;
        times.encoder = lap();
        let scores = score(&self.features, asked.queries(), &self.manifest, letterbox)?;
        let low_res_side = self.manifest.encoder.low_res_side();
        let prompts = scores.prompts(&self.prompt_rules, low_res_side, self.manifest.decoder.points);
        let best = (0..scores.queries()).map(|q| scores.best(q)).collect();
        times.query = lap();
        let decoded = self.graphs.decoder.decode(&self.features, &prompts)?;
        times.decoder = lap();
        let mut masks = refine(&prompts, &decoded, &letterbox, &self.refine_rules);
        masks.retain(|m| {
            let area = m.mask.area();
            let spec = asked.specs().get(m.query);
            spec.is_some_and(|s| area >= s.min_area && s.max_area.is_none_or(|most| area <= most))
        });
        masks.sort_by(|a, b| b.score.total_cmp(&a.score));
        times.refine = lap();
        Ok(Detections {
            size: frame.size,
            sequence: frame.sequence,
            captured: frame.captured,
            masks,
            best,
            thresholds: scores.thresholds().to_vec(),
            side: self.side(),
            hinted: None,
            times,
        })
    }
}
