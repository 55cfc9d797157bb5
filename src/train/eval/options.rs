//! What `train eval` is asked.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::train::dataset::layout::Folder;
use crate::train::dataset::{Layout, Split};
use crate::train::eval::protocol::Protocol;
use crate::train::eval::wise_ft::share;

/// Models, data and measurements of one study.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Bundle folders; one column each.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub bundle: Vec<PathBuf>,
    /// Sides in pixels of the bundles' sizes to measure; one column each. The bundles' own size without any.
    #[arg(long, value_name = "PIXELS", num_args = 1.., requires = "bundle")]
    pub side: Vec<usize>,
    /// Recipe of --checkpoint, of the teachers, and of the figures of cost.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Checkpoints of a run of --recipe; one column each.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "recipe")]
    pub checkpoint: Vec<PathBuf>,
    /// Two checkpoints of --recipe; columns with weights between them (WiSE-FT), one per --alpha.
    #[arg(long, value_names = ["FILE", "FILE"], num_args = 2, requires = "recipe")]
    pub between: Vec<PathBuf>,
    /// Shares of the second checkpoint of --between, 0-1.
    #[arg(long, num_args = 1.., requires = "between", default_values_t = [0.25, 0.5, 0.75], value_parser = share)]
    pub alpha: Vec<f32>,
    /// Folder of a run of --recipe: its sam_teacher.safetensors and clip_teacher.safetensors are columns.
    #[arg(long, value_name = "DIR", requires = "recipe", conflicts_with_all = ["sam", "clip"])]
    pub run: Option<PathBuf>,
    /// SAM teacher of --recipe's architecture (.pth, .safetensors).
    #[arg(long, value_name = "FILE", requires_all = ["recipe", "clip"])]
    pub sam: Option<PathBuf>,
    /// CLIP teacher of --recipe's architecture (.pt, .bin, .safetensors).
    #[arg(long, value_name = "FILE", requires_all = ["recipe", "sam"])]
    pub clip: Option<PathBuf>,
    /// WebDataset tars, globs of them, or folders of published data sets (FOLDER@SET for one of its sets).
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// What linear probes are fitted on, as --data (imagenet@train for --data imagenet@val); without it, on the nine
    /// training tenths of --data.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    pub probe_train: Vec<String>,
    /// Layout of the folders; recognised by what is in them if not given.
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,
    /// Which part of the data; by default everything of folders, the validation tenth of tars.
    #[arg(long, value_enum)]
    pub part: Option<Part>,
    /// How pixels are counted against names; by default as papers report on the folder, our own rules for tars.
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,
    /// Bundles and checkpoints see photos stretched to their square, as the paper measures segmentation at 448 px; without it
    /// letterboxed, as the daemon shows frames. `presence` is what the daemon would publish, and letterboxed always.
    #[arg(long)]
    pub stretch: bool,
    /// At most this many photos per measurement.
    #[arg(long, default_value_t = usize::MAX)]
    pub limit: usize,
    /// What to measure; everything that models and data allow if not given.
    #[arg(long, value_enum, num_args = 1..)]
    pub measure: Vec<Measure>,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Everything.
    All,
    /// The nine tenths that `train run` learns from.
    Train,
    /// The tenth that it never sees.
    Validation,
}

impl Part {
    /// The split; none for everything.
    #[must_use]
    pub fn split(self) -> Option<Split> {
        match self {
            Self::All => None,
            Self::Train => Some(Split::Train),
            Self::Validation => Some(Split::Validation),
        }
    }

    /// As it is written in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all samples",
            Self::Train => "the nine training tenths",
            Self::Validation => "the validation tenth",
        }
    }
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// Zero-shot classification.
    Classification,
    /// Retrieval by captions.
    Retrieval,
    /// Masks from boxes and points.
    Instance,
    /// Zero-shot semantic segmentation, per class.
    Semantic,
    /// The same, asked in other words for the names.
    Words,
    /// Both teachers as two models: SAM masks everything, CLIP names every mask.
    Pair,
    /// What a linear layer reads from frozen features.
    Probing,
    /// What the student lost against each teacher.
    Forgetting,
    /// False alarms of absent queries and hits of present ones, by threshold.
    Presence,
    /// Size, multiply-accumulates, latency.
    Cost,
}

impl Options {
    /// The part that is measured.
    #[must_use]
    pub fn part(&self) -> Part {
        let folders = self.data.iter().all(|pattern| Folder::of(pattern).is_some());
        self.part.unwrap_or(if folders { Part::All } else { Part::Validation })
    }

    /// Whether `measure` was asked for.
    #[must_use]
    pub fn wants(&self, measure: Measure) -> bool {
        self.measure.is_empty() || self.measure.contains(&measure)
    }
}
