//! Detections → what leaves the program: the frame message, mask PNGs, a table for people.

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::Moment;
use crate::message::payload::{Detection, FrameMessage, PayloadError, RleText, SCHEMA, rfc3339};
use crate::track::scene::Sighting;
use crate::vision::mask::BinaryMask;
use crate::vision::{polygon, rle};

use super::pipeline::{Detections, Pipeline};

/// How masks are written into messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskOutput {
    /// Include polygons.
    pub polygon: bool,
    /// Largest distance of a dropped corner from the simplified outline, in frame pixels.
    pub tolerance: f32,
    /// Include the COCO run-length code.
    pub rle: bool,
}

impl Default for MaskOutput {
    fn default() -> Self {
        Self {
            polygon: true,
            tolerance: 1.5,
            rle: false,
        }
    }
}

pub(super) fn clip(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The frame message of one camera; `sightings` are what tracking knows of each mask, in their order, if anything.
///
/// # Errors
/// [`PayloadError`] if the capture time is outside the years that RFC 3339 knows.
pub fn frame_message(
    camera: &str,
    pipeline: &Pipeline,
    found: &Detections,
    now: Moment,
    output: MaskOutput,
    sightings: &[Sighting],
) -> Result<FrameMessage, PayloadError> {
    let detections = found.masks.iter().enumerate().filter_map(|(index, m)| {
        let sighting = sightings.get(index).cloned().unwrap_or_default();
        let spec = pipeline.queries().get(m.query)?;
        let b = m.mask.bounding_box()?;
        let rings = |mask: &BinaryMask| polygon::simplify(polygon::trace(mask), output.tolerance);
        Some(Detection {
            track_id: sighting.track,
            query: spec.id.clone(),
            prompt: spec.prompts.first().cloned().unwrap_or_default(),
            score: m.score,
            threshold: found.thresholds.get(m.query).copied()?,
            bbox: [b.x1, b.y1, b.x2, b.y2].map(clip),
            area: m.mask.area() as u64,
            zones: sighting.zones,
            polygon: output
                .polygon
                .then(|| rings(&m.mask).into_iter().map(|r| r.points).collect()),
            rle: output.rle.then(|| RleText {
                size: [clip(found.size.height()), clip(found.size.width())],
                counts: rle::encode(&m.mask),
            }),
        })
    });
    let age = now.monotonic.saturating_sub(found.captured.monotonic);
    Ok(FrameMessage {
        schema: SCHEMA.into(),
        camera: camera.into(),
        seq: found.sequence.0,
        timestamp: rfc3339(found.captured.unix_micros.div_euclid(1000))?,
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        size: [clip(found.size.width()), clip(found.size.height())],
        input_side: Some(clip(found.side)),
        model: pipeline.model().into(),
        provider: pipeline.provider().into(),
        detections: detections.collect(),
    })
}

/// A mask as a 1-bit greyscale PNG of frame size: 1 (white) is the thing.
///
/// # Errors
/// What the encoder says; memory is the only thing that can be short.
pub fn mask_png(mask: &BinaryMask) -> Result<Vec<u8>, png::EncodingError> {
    let (width, height) = (mask.size().width(), mask.size().height());
    let mut bits = vec![0u8; width.div_ceil(8) * height];
    for (index, _) in mask.pixels().enumerate().filter(|(_, set)| *set) {
        let (x, y) = (index % width, index / width);
        bits[y * width.div_ceil(8) + x / 8] |= 0x80 >> (x % 8);
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, clip(width), clip(height));
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bits)?;
    writer.finish()?;
    Ok(bytes)
}

/// The union of all masks of one query; empty if there are none.
#[must_use]
pub fn query_mask(found: &Detections, query: usize) -> BinaryMask {
    let mut all = BinaryMask::empty(found.size);
    let masks = found.masks.iter().filter(|m| m.query == query);
    masks.for_each(|m| all.unite(&m.mask));
    all
}

/// Header of [`table_rows`].
pub const TABLE_HEADER: &str = "frame                 query            score   box                       area   ms";

/// One line per detection of a frame, or one line that says that nothing was found.
#[must_use]
pub fn table_rows(frame: &str, pipeline: &Pipeline, found: &Detections) -> String {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    let mut text = String::new();
    for m in &found.masks {
        let (Some(spec), Some(b)) = (pipeline.queries().get(m.query), m.mask.bounding_box()) else {
            continue;
        };
        let area = 100.0 * m.mask.area() as f64 / found.size.pixels() as f64;
        let bounds = format!("{},{} {}x{}", b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1);
        let id: String = spec.id.chars().take(16).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{frame:<21} {id:<16} {:>5.2}   {bounds:<22} {area:>6.1} % {:>5.0}",
            m.score,
            milliseconds(found.times.total())
        );
    }
    if text.is_empty() {
        let best = found.best.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let nearest = best.and_then(|(q, s)| Some(format!("best: {} {s:.2}", pipeline.queries().get(q)?.id)));
        let nothing = format!("nothing found ({})", nearest.unwrap_or_default());
        let _ = writeln!(
            text,
            "{frame:<21} {nothing:<57} {:>5.0}",
            milliseconds(found.times.total())
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::geometry::FrameSize;

    #[test]
    fn a_mask_png_has_one_bit_per_pixel_and_keeps_every_one() {
        let size = FrameSize::new(11, 3).unwrap();
        let mask = BinaryMask::from_pixels(size, (0..33).map(|i| i % 3 == 0));
        let bytes = mask_png(&mask).unwrap();
        let decoder = png::Decoder::new(std::io::Cursor::new(&bytes));
        let info = decoder.read_info().unwrap();
        assert_eq!((info.info().bit_depth, info.info().width), (png::BitDepth::One, 11));
        let grey = image::load_from_memory(&bytes).unwrap().into_luma8().into_raw();
        assert!(
            grey.iter()
                .zip(mask.pixels())
                .all(|(&g, m)| (g == 255) == m && (g == 0) != m)
        );
    }
}
