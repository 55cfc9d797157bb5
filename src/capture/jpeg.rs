//! Where one JPEG ends and the next begins, by its markers; and the fast decoder for motion JPEG.

use std::borrow::Cow;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::picture::LARGEST_DECODED;
use crate::vision::geometry::FrameSize;

/// What the bytes at the start of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// A whole JPEG of this many bytes.
    Whole(usize),
    /// The beginning of one; more bytes are needed.
    Partial,
    /// Not a JPEG; this many bytes can be dropped before looking again.
    Garbage(usize),
}

/// Finds the end of the JPEG at the start of `bytes`, walking its segments so that thumbnails inside are skipped.
pub(super) fn extent(bytes: &[u8]) -> Extent {
    match bytes {
        [] | [0xff] => return Extent::Partial,
        [0xff, 0xd8, ..] => {}
        _ => {
            let next = bytes.windows(2).position(|w| w == [0xff, 0xd8]);
            // A lone 0xff at the end may be the first half of a marker.
            let keep = usize::from(bytes.last() == Some(&0xff));
            return Extent::Garbage(next.unwrap_or(bytes.len() - keep));
        }
    }
    let mut at = 2;
    loop {
        // Markers may be padded with 0xff; anything else between them is entropy-coded data.
        let Some(step) = bytes[at..]
            .windows(2)
            .position(|w| w[0] == 0xff && !matches!(w[1], 0x00 | 0xff | 0xd0..=0xd7))
        else {
            return Extent::Partial;
        };
        let marker = bytes[at + step + 1];
        at += step + 2;
        match marker {
            0xd9 => return Extent::Whole(at),
            // A new start inside: the picture before was cut short.
            0xd8 => return Extent::Garbage(at - 2),
            0x01 => {}
            _ => {
                let Some(&[high, low]) = bytes.get(at..at + 2).and_then(|b| b.first_chunk()) else {
                    return Extent::Partial;
                };
                let length = usize::from(u16::from_be_bytes([high, low])).max(2);
                if at + length > bytes.len() {
                    return Extent::Partial;
                }
                at += length;
            }
        }
    }
}

/// Whether the bytes start with a JPEG that has its end marker.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    matches!(extent(bytes), Extent::Whole(_))
}

/// Segment that marks a picture out of a motion JPEG clip.
const MOTION_JPEG: &[u8] = b"\xff\xe0\0\x10AVI1\0\0\0\0\0\0\0\0\0\0";

/// Whether Huffman tables come before the pixels; true for what is no JPEG.
fn has_huffman_tables(bytes: &[u8]) -> bool {
    let mut rest = match bytes {
        [0xff, 0xd8, rest @ ..] => rest,
        _ => return true,
    };
    while let [0xff, marker, high, low, ..] = *rest {
        match marker {
            0xc4 => return true,
            0xda => return false,
            // padding
            0xff => rest = &rest[1..],
            _ => match rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..) {
                Some(next) => rest = next,
                None => return true,
            },
        }
    }
    true
}

/// Decodes one picture of a motion JPEG stream to packed RGB.
///
/// Huffman tables may be missing, and so may the end marker: cameras leave out both. A picture that ends too early is an
/// error; one that was cut short and ended properly is not noticed.
pub(super) fn decode(bytes: &[u8]) -> Result<(FrameSize, Vec<u8>), String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(FrameSize::LARGEST_SIDE as usize)
        .set_max_height(FrameSize::LARGEST_SIDE as usize);
    let completed = if has_huffman_tables(bytes) {
        Cow::Borrowed(bytes)
    } else {
        // The decoder knows the tables that are left out, once it is told that this is motion JPEG.
        Cow::Owned([&bytes[..2], MOTION_JPEG, &bytes[2..]].concat())
    };
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(completed.as_ref()), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let bytes = decoder.output_buffer_size().unwrap_or(0);
    if u64::try_from(bytes).unwrap_or(u64::MAX) > LARGEST_DECODED {
        return Err(format!(
            "JPEG of {bytes} bytes when decoded, expected at most {LARGEST_DECODED}"
        ));
    }
    let pixels = decoder.decode().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("JPEG without a frame header")?;
    let side = |s: usize| u32::try_from(s).unwrap_or(0);
    let size = FrameSize::new(side(width), side(height)).map_err(|e| e.to_string())?;
    if pixels.len() != 3 * size.pixels() {
        return Err(format!(
            "JPEG of {size} decodes to {} bytes, expected {}",
            pixels.len(),
            3 * size.pixels()
        ));
    }
    Ok((size, pixels))
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;
    use proptest::prelude::*;

    use super::*;
    use crate::capture::picture::tests::encoded;

    #[test]
    fn the_end_is_found_behind_a_thumbnail() {
        let plain = encoded(16, 16, 50, ImageFormat::Jpeg);
        let thumbnail = encoded(8, 8, 20, ImageFormat::Jpeg);
        let mut whole = vec![0xff, 0xd8, 0xff, 0xe1];
        whole.extend(u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes());
        whole.extend(&thumbnail);
        whole.extend(&plain[2..]);
        let mut stream = whole.clone();
        stream.extend(b"junk");
        assert_eq!(extent(&stream), Extent::Whole(whole.len()));
        assert_eq!(extent(&stream[whole.len()..]), Extent::Garbage(4));
        assert_eq!(extent(&whole[..whole.len() - 1]), Extent::Partial);
    }

    #[test]
    fn a_picture_cut_short_by_the_next_is_garbage() {
        let one = encoded(16, 16, 50, ImageFormat::Jpeg);
        let mut stream = one[..one.len() - 10].to_vec();
        let cut = stream.len();
        stream.extend(&one);
        assert_eq!(extent(&stream), Extent::Garbage(cut));
    }

    #[test]
    fn a_picture_with_a_part_missing_is_an_error() {
        let noise = image::RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([x * y, 7 * x, 13 * y].map(|v| (v % 251) as u8))
        });
        let mut whole = std::io::Cursor::new(Vec::new());
        noise.write_to(&mut whole, ImageFormat::Jpeg).unwrap();
        let whole = whole.into_inner();
        assert_eq!(decode(&whole).unwrap().1.len(), 3 * 64 * 64);
        assert!(decode(&whole[..whole.len() / 2]).is_err());
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn end_marker_and_huffman_tables_may_be_missing() {
        let whole = encoded(32, 16, 50, ImageFormat::Jpeg);
        let pixels = decode(&whole).unwrap();
        assert_eq!(decode(&whole[..whole.len() - 2]).unwrap(), pixels);
        let mut bare = whole[..2].to_vec();
        let mut at = 2;
        while whole[at + 1] != 0xda {
            let length = 2 + usize::from(u16::from_be_bytes([whole[at + 2], whole[at + 3]]));
            if whole[at + 1] != 0xc4 {
                bare.extend(&whole[at..at + length]);
            }
            at += length;
        }
        assert!(bare.len() + 300 < at, "no tables found");
        bare.extend(&whole[at..]);
        assert_eq!(decode(&bare).unwrap(), pixels);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if let Extent::Whole(n) | Extent::Garbage(n) = extent(&bytes) {
                prop_assert!(n <= bytes.len() && n > 0);
            }
        }
    }
}
