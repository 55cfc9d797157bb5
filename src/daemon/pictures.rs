//! Annotated pictures of detections: files of `segment` and `demo`, snapshots of the daemon.

use std::io;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::vision::geometry::FrameSize;
use crate::vision::refine::RefinedMask;

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
    drawn(pipeline, found, &found.masks.iter().collect::<Vec<_>>())
}

fn drawn(pipeline: &Pipeline, found: &Detections, masks: &[&RefinedMask]) -> Vec<u8> {
    let mut rgb = pipeline.rgb().to_vec();
    // Best score last, so that it is drawn on top.
    let annotations = masks.iter().rev().filter_map(|m| {
        let spec = pipeline.queries().get(m.query)?;
        Some(Annotation {
            mask: &m.mask,
            label: format!("{} {:.2}", spec.id, m.score),
            colour: spec.color.unwrap_or_else(|| colour(m.query)),
        })
    });
    annotate(&mut rgb, found.size, &annotations.collect::<Vec<_>>());
    rgb
}

/// Quality of snapshots, 1-100.
const JPEG_QUALITY: u8 = 80;

/// The last frame with the detections of one query drawn on it, as JPEG.
///
/// # Errors
/// What the encoder says: a side longer than 65,535 pixels.
pub fn snapshot(pipeline: &Pipeline, found: &Detections, query: usize) -> Result<Vec<u8>, image::ImageError> {
    let only: Vec<_> = found.masks.iter().filter(|m| m.query == query).collect();
    jpeg(&drawn(pipeline, found, &only), found.size)
}

/// The last frame with nothing drawn on it, as JPEG.
///
/// # Errors
/// As [`snapshot`].
pub fn plain_jpeg(pipeline: &Pipeline, found: &Detections) -> Result<Vec<u8>, image::ImageError> {
    jpeg(pipeline.rgb(), found.size)
}

fn jpeg(rgb: &[u8], size: FrameSize) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(
        rgb,
        size.width() as u32,
        size.height() as u32,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
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
