//! COCO run-length codes: `BinaryMask` ↔ the compressed text of `pycocotools`.
//!
//! Runs go down the columns and start with empty pixels. Each run is written as the difference from the run two before
//! (from the third on), 5 bits per character, low bits first, offset 48 (`maskApi.c`, `rleToString`).

use super::geometry::FrameSize;
use super::mask::BinaryMask;

/// Why a text is not the code of a mask of the given size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RleError {
    /// A character outside the code's alphabet.
    #[error("run-length code: byte {found:#04x} at {position} is outside '0' to 'o'")]
    Character {
        /// The byte found.
        found: u8,
        /// Its position.
        position: usize,
    },
    /// A number that does not end, or is too large or negative.
    #[error("run-length code: run {run} is unfinished, negative or longer than the mask")]
    Run {
        /// Index of the run.
        run: usize,
    },
    /// Runs do not add up to the mask's pixels.
    #[error("run-length code covers {found} pixels, a mask of {size} has {expected}")]
    Length {
        /// Pixels covered.
        found: usize,
        /// Mask size.
        size: FrameSize,
        /// Pixels expected.
        expected: usize,
    },
}

/// Encodes as COCO's `counts` text.
#[must_use]
pub fn encode(mask: &BinaryMask) -> String {
    let mut runs: Vec<i64> = Vec::new();
    let (mut current, mut length) = (false, 0);
    for x in 0..mask.size().width() {
        for y in 0..mask.size().height() {
            if mask.get(x, y) != current {
                runs.push(length);
                (current, length) = (!current, 0);
            }
            length += 1;
        }
    }
    runs.push(length);
    let mut text = String::new();
    for (i, &run) in runs.iter().enumerate() {
        let mut value = if i > 2 { run - runs[i - 2] } else { run };
        loop {
            let low = (value & 0x1f) as u8;
            value >>= 5;
            let more = if low & 0x10 == 0 { value != 0 } else { value != -1 };
            text.push(char::from(48 + low + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    text
}

/// Decodes COCO's `counts` text.
///
/// # Errors
/// [`RleError`] for anything that is not a code of exactly `size` pixels; foreign bytes never panic.
pub fn decode(counts: &str, size: FrameSize) -> Result<BinaryMask, RleError> {
    let expected = size.pixels();
    let mut runs: Vec<i64> = Vec::new();
    let (mut value, mut shift, mut total) = (0i64, 0u32, 0usize);
    for (position, found) in counts.bytes().enumerate() {
        let bits = found
            .checked_sub(48)
            .filter(|&b| b < 64)
            .ok_or(RleError::Character { found, position })?;
        if shift > 35 {
            return Err(RleError::Run { run: runs.len() });
        }
        value |= i64::from(bits & 0x1f) << shift;
        shift += 5;
        if bits & 0x20 != 0 {
            continue;
        }
        if bits & 0x10 != 0 {
            value |= -1 << shift;
        }
        let run = runs.len();
        let length = if run > 2 { value + runs[run - 2] } else { value };
        let pixels = usize::try_from(length)
            .ok()
            .filter(|&n| n <= expected)
            .ok_or(RleError::Run { run })?;
        total += pixels;
        if total > expected {
            return Err(RleError::Length {
                found: total,
                size,
                expected,
            });
        }
        runs.push(length);
        (value, shift) = (0, 0);
    }
    if shift != 0 {
        return Err(RleError::Run { run: runs.len() });
    }
    if total != expected {
        return Err(RleError::Length {
            found: total,
            size,
            expected,
        });
    }
    let mut columns = runs
        .iter()
        .enumerate()
        .flat_map(|(i, &n)| (0..n).map(move |_| i % 2 == 1));
    let mut pixels = vec![false; expected];
    for x in 0..size.width() {
        for y in 0..size.height() {
            pixels[y * size.width() + x] = columns.next().unwrap_or(false);
        }
    }
    Ok(BinaryMask::from_pixels(size, pixels))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    // pycocotools.mask.encode, seed 20231023
    static CODES: &str = include_str!("../../tests/data/golden/rle.json");
    static MASKS: &[u8] = include_bytes!("../../tests/data/golden/rle.masks.safetensors");

    #[derive(serde::Deserialize)]
    struct Golden {
        size: [u32; 2],
        counts: String,
        area: usize,
        bbox_xywh: [f64; 4],
    }

    #[test]
    fn forty_masks_equal_pycocotools_both_ways() {
        let codes: Vec<Golden> = serde_json::from_str(CODES).unwrap();
        let masks = SafeTensors::deserialize(MASKS).unwrap();
        assert_eq!(codes.len(), 40);
        for (i, golden) in codes.iter().enumerate() {
            let size = FrameSize::new(golden.size[1], golden.size[0]).unwrap();
            let tensor = masks.tensor(&format!("mask_{i:02}")).unwrap();
            let mask = BinaryMask::from_pixels(size, tensor.data().iter().map(|&v| v != 0));
            assert_eq!(encode(&mask), golden.counts, "mask {i}");
            assert_eq!(decode(&golden.counts, size).unwrap(), mask, "mask {i}");
            assert_eq!(mask.area(), golden.area);
            let b = mask
                .bounding_box()
                .map_or([0.0; 4], |b| [b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1].map(|v| v as f64));
            assert_eq!(b, golden.bbox_xywh, "mask {i}");
        }
    }

    #[test]
    fn broken_codes_are_refused() {
        let size = FrameSize::new(5, 3).unwrap();
        for text in ["", "o", "\u{7f}", "0", "`", "ooooooooooooooo0", "é", "0?1", "OO"] {
            assert!(decode(text, size).is_err(), "{text:?}");
        }
        assert!(matches!(
            decode("1 2", size),
            Err(RleError::Character {
                found: 0x20,
                position: 1
            })
        ));
    }

    proptest! {
        #[test]
        fn decoding_returns_the_encoded_mask(w in 1u32..40, h in 1u32..40, bits in prop::collection::vec(any::<bool>(), 1600)) {
            let mask = BinaryMask::from_pixels(FrameSize::new(w, h).unwrap(), bits);
            prop_assert_eq!(decode(&encode(&mask), mask.size()).unwrap(), mask);
        }

        #[test]
        fn foreign_bytes_never_panic(text in "\\PC{0,60}", w in 1u32..400, h in 1u32..400) {
            let _ = decode(&text, FrameSize::new(w, h).unwrap());
        }

        #[test]
        fn foreign_codes_never_panic(text in "[0-o]{0,40}", w in 1u32..400, h in 1u32..400) {
            let _ = decode(&text, FrameSize::new(w, h).unwrap());
        }
    }
}
