//! Annotated pictures of detections, shared by `segment` and `demo`.

use std::io;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::annotate::{Annotation, annotate, colour};
use super::pipeline::{Detections, Pipeline};

/// Why a picture cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The encoder refuses.
    #[error("{path}: {message}", path = path.display())]
    Encode {
        /// Which file.
        path: PathBuf,
        /// What it says.
        message: String,
    },
}

/// Writes bytes to a file, naming it in the error.
///
/// # Errors
/// [`PictureError::Io`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PictureError> {
    std::fs::write(path, bytes).map_err(|source| PictureError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The last frame of the pipeline with its detections drawn on it, packed RGB.
#[must_use]
pub fn annotated(pipeline: &Pipeline, found: &Detections) -> Vec<u8> {
    let mut rgb = pipeline.rgb().to_vec();
    // Best score last, so that it is drawn on top.
    let annotations = found.masks.iter().rev().filter_map(|m| {
        let spec = pipeline.queries().get(m.query)?;
        Some(Annotation {
            mask: &m.mask,
            label: format!("{} {:.2}", spec.id, m.score),
            colour: colour(m.query),
        })
    });
    annotate(&mut rgb, found.size, &annotations.collect::<Vec<_>>());
    rgb
}

/// Writes the annotated frame as PNG.
///
/// # Errors
/// [`PictureError`], naming the file.
pub fn write_annotated(path: &Path, pipeline: &Pipeline, found: &Detections) -> Result<(), PictureError> {
    let rgb = annotated(pipeline, found);
    let (width, height) = (found.size.width() as u32, found.size.height() as u32);
    let mut bytes = Vec::new();
    let encoded = PngEncoder::new(&mut bytes).write_image(&rgb, width, height, ExtendedColorType::Rgb8);
    encoded.map_err(|e| PictureError::Encode {
        path: path.to_owned(),
        message: e.to_string(),
    })?;
    write_file(path, &bytes)
}
