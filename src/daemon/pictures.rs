//! Annotated pictures of detections: files of `segment` and `demo`, snapshots of the daemon.

use std::io;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::thumbnail;
use image::{ExtendedColorType, ImageBuffer, ImageEncoder, Rgb};

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
    encode(rgb, size.width() as u32, size.height() as u32)
}

/// Packed RGB as JPEG, made smaller if a side is longer than `side` pixels.
///
/// # Errors
/// As [`snapshot`].
pub fn jpeg_within(rgb: &[u8], size: FrameSize, side: u32) -> Result<Vec<u8>, image::ImageError> {
    let (width, height) = (size.width() as u32, size.height() as u32);
    let longer = width.max(height);
    let picture = ImageBuffer::<Rgb<u8>, &[u8]>::from_raw(width, height, rgb).filter(|_| longer > side);
    let Some(picture) = picture else {
        return encode(rgb, width, height);
    };
    let scaled = |length: u32| ((u64::from(length) * u64::from(side)).div_ceil(u64::from(longer)) as u32).max(1);
    let small = thumbnail(&picture, scaled(width), scaled(height));
    encode(small.as_raw(), small.width(), small.height())
}

fn encode(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(rgb, width, height, ExtendedColorType::Rgb8)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_keeps_its_shape_when_it_is_made_smaller() {
        for ((width, height), expected) in [((40, 30), (40, 30)), ((200, 50), (100, 25)), ((3, 301), (1, 100))] {
            let size = FrameSize::new(width, height).unwrap();
            let bytes = jpeg_within(&vec![90; 3 * size.pixels()], size, 100).unwrap();
            let picture = image::load_from_memory(&bytes).unwrap();
            assert_eq!((picture.width(), picture.height()), expected);
        }
    }
}
