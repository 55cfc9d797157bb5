//! Measures models on photos that training never saw, through the daemon's own runtime and vision code.
//!
//! One file per measurement, each a function of a model and a data set: [`semantic`] segmentation, [`presence`] of
//! queries (false alarms and hits).

pub mod presence;
pub mod semantic;
mod truth;
mod wording;

use crate::runtime::RuntimeError;
use crate::text::tokenizer::TextError;
use crate::train::dataset::{DatasetError, Sample};
use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::{FrameSize, SizeError};
use crate::vision::pixels::PixelError;
use crate::vision::query::QueryError;

pub use semantic::{CLASSES, ClassResult, Measurement, Semantic, semantic};
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
    /// The vocabulary file of the bundle.
    #[error("{path}: {source}")]
    Vocabulary {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// The photo as a camera would deliver it.
///
/// # Errors
/// [`EvalError::Size`] for a photo without pixels.
pub fn frame(sample: &Sample) -> Result<Frame, EvalError> {
    Ok(Frame {
        size: FrameSize::new(sample.photo.width as u32, sample.photo.height as u32)?,
        format: PixelFormat::Rgb24,
        stride: 3 * sample.photo.width,
        bytes: sample.photo.rgb.clone(),
        sequence: Sequence::default(),
        captured: CaptureTime::default(),
    })
}
