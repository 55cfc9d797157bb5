//! Measures models on photos that training never saw, through the daemon's own runtime and vision code.
//!
//! One file per measurement, each a function of a model and a data set. [`study`] puts models side by side in a
//! [`report`]. A model is a bundle ([`segmenter`]) or a CLIP teacher ([`clip_tower`]); a SAM teacher is a bundle too.

pub mod calibrate;
mod centre_crop;
pub mod claims;
pub mod clip_tower;
pub mod instance;
pub mod options;
pub mod pair;
pub mod peak_memory;
pub mod presence;
pub mod probing;
mod protocol;
pub mod report;
pub mod segmenter;
pub mod semantic;
pub mod speed;
pub mod study;
mod truth;
pub mod wise_ft;
mod wording;
pub mod zero_shot;

use crate::contract::BundleError;
use crate::runtime::RuntimeError;
use crate::text::tokenizer::TextError;
use crate::train::dataset::{Dataset, DatasetError, Sample, Split};
use crate::train::export::ExportError;
use crate::train::import::ImportError;
use crate::train::recipe::RecipeError;
use crate::train::weights::WeightsError;
use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::{FrameSize, SizeError};
use crate::vision::pixels::PixelError;
use crate::vision::query::QueryError;

pub use options::Options;
pub use protocol::Protocol;
pub use semantic::{CLASSES, ClassResult, Measurement, Semantic};
pub use truth::Tally;
pub use wording::{competitors, queries, tokenizer};

/// Why a measurement stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Opening or running the bundle.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A photo.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The bundle's vocabulary or a name.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The embeddings of the names.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A photo's size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A photo's pixels.
    #[error(transparent)]
    Pixels(#[from] PixelError),
    /// A bundle that does not hold what its manifest says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A bundle made for the measurement.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A checkpoint.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A teacher's checkpoint.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A graph made for the measurement.
    #[error("temporary files in {folder}: {source}; set TMPDIR to a folder with room")]
    Temporary {
        /// Folder of temporary files.
        folder: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The vocabulary file of the bundle.
    #[error("{path}: {source}")]
    Vocabulary {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl EvalError {
    fn temporary(source: std::io::Error) -> Self {
        Self::Temporary {
            folder: std::env::temp_dir(),
            source,
        }
    }
}

/// A model that puts pictures and words into one space.
pub trait ImageText {
    /// Unit-norm embedding `[D]` of a whole photo.
    ///
    /// # Errors
    /// [`EvalError`] if the photo cannot be used or the model fails.
    fn image(&mut self, photo: &Sample) -> Result<Vec<f32>, EvalError>;

    /// Unit-norm embedding `[D]` of each name: the 80 templates averaged and re-normalised.
    ///
    /// # Errors
    /// [`EvalError`] if a name is too long or the model fails.
    fn names(&mut self, names: &[String]) -> Result<Vec<Vec<f32>>, EvalError>;

    /// Unit-norm embedding `[D]` of each sentence as it is; nothing for one longer than the model's context.
    ///
    /// # Errors
    /// [`EvalError`] if the model fails.
    fn sentences(&mut self, sentences: &[String]) -> Result<Vec<Option<Vec<f32>>>, EvalError>;
}

/// The photo as a camera would deliver it.
///
/// # Errors
/// [`EvalError::Size`] for a photo without pixels.
pub fn frame(sample: &Sample) -> Result<Frame, EvalError> {
    Ok(Frame {
        size: FrameSize::new(sample.photo.width as u32, sample.photo.height as u32)?,
        format: PixelFormat::Rgb24,
        full_range: false,
        stride: 3 * sample.photo.width,
        bytes: sample.photo.rgb.clone(),
        sequence: Sequence::default(),
        captured: CaptureTime::default(),
    })
}

/// Indices of one part of the data, or of all of it.
pub(super) fn chosen(dataset: &Dataset, part: Option<Split>) -> impl Iterator<Item = usize> {
    let indices = part.map_or_else(|| (0..dataset.len()).collect(), |part| dataset.indices(part));
    indices.into_iter()
}
