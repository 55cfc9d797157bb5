//! The command line of `train quantize`.

use std::path::PathBuf;

use super::histogram::Method;
use crate::contract::{Compute, Manifest};

/// A variant that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Weights stored as fp16, computed in fp32.
    Fp16Stored,
    /// Computed in fp16, for CUDA and TensorRT.
    Fp16Compute,
    /// 8-bit integers, for TensorRT and ONNX Runtime.
    Int8,
}

impl Variant {
    /// All, in the order in which they are made.
    pub const ALL: [Self; 3] = [Self::Fp16Stored, Self::Fp16Compute, Self::Int8];

    /// Name in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16Stored => "fp16-stored",
            Self::Fp16Compute => "fp16-compute",
            Self::Int8 => "int8",
        }
    }

    /// What it computes in.
    #[must_use]
    pub fn compute(self) -> Compute {
        match self {
            Self::Fp16Stored => Compute::Fp32,
            Self::Fp16Compute => Compute::Fp16,
            Self::Int8 => Compute::Int8,
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|v| v.name() == text);
        found.ok_or_else(|| format!("found {text:?}, expected one of {names}"))
    }
}

/// What to quantize, on what, and how much to spend on it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bundle folder.
    #[arg(long)]
    pub bundle: PathBuf,
    /// WebDataset tars or globs of them: calibration takes training photos, the gate validation photos.
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// Folder of the bundle with its new variants; the bundle's own adds them in place.
    #[arg(long)]
    pub out: PathBuf,
    /// Variants to write: fp16-stored, fp16-compute, int8; without, those that the bundle lacks.
    #[arg(long, value_delimiter = ',')]
    pub variants: Vec<Variant>,
    /// Write a variant that the gate refuses, and record that it was forced.
    #[arg(long)]
    pub force: bool,
    /// Bits of weights that meet 8-bit activations: 7 runs everywhere, 8 saturates on x86 without VNNI.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(7..=8))]
    pub weight_bits: u32,
    /// How 8-bit ranges are chosen: max, entropy or percentile:P; without, the best of several by measurement.
    #[arg(long)]
    pub calibration: Option<Method>,
    /// Training photos to calibrate on, at least 16.
    #[arg(long, default_value_t = 64)]
    pub calibration_photos: usize,
    /// Training photos that trials of single layers run on.
    #[arg(long, default_value_t = 4)]
    pub sensitivity_photos: usize,
    /// Most runs of each graph for trials; where layers are too many for it, they are tried by block; 0 tries nothing.
    #[arg(long, default_value_t = 400)]
    pub max_runs: usize,
    /// Overall relative error that 8-bit layers of one graph may add up to in the first plan; a graph far beyond it
    /// starts at three quarters of what all its layers add up to.
    #[arg(long, default_value_t = 0.01)]
    pub target_error: f64,
    /// Plans to measure, each with half the error of the one before, until the gate lets one pass.
    #[arg(long, default_value_t = 4)]
    pub rounds: usize,
    /// Validation photos that the gate measures on.
    #[arg(long, default_value_t = 300)]
    pub measure_photos: usize,
    /// Sentence templates per name, 1 to 80; fewer save time with a large text encoder.
    #[arg(long, default_value_t = 80)]
    pub templates: usize,
    /// Rounds of timing the encoders against each other; 0 times nothing.
    #[arg(long, default_value_t = 3)]
    pub timing_rounds: usize,
    /// Threads of one run; 0 means as many as the machine has.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

impl Options {
    /// The variants asked for, or all that `manifest` lacks, in order.
    #[must_use]
    pub fn variants_for(&self, manifest: &Manifest) -> Vec<Variant> {
        let lacks = |v: &Variant| manifest.precision.iter().all(|p| p.name != v.name());
        let wanted = |v: &Variant| {
            if self.variants.is_empty() {
                lacks(v)
            } else {
                self.variants.contains(v)
            }
        };
        Variant::ALL.into_iter().filter(wanted).collect()
    }
}
