//! Single pictures: PNG and JPEG files, whole or not at all.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{CaptureError, jpeg};
use crate::vision::frame::{CaptureTime, Frame, PixelFormat, Sequence};
use crate::vision::geometry::FrameSize;

/// Largest accepted picture file.
const LARGEST_FILE: u64 = 256 << 20;

/// Reads one picture as an RGB frame with sequence and time zero, turned upright as its EXIF orientation says.
///
/// # Errors
/// [`CaptureError`] naming the file if it is missing, cut short, damaged or neither PNG nor JPEG.
pub fn read_picture(path: &Path) -> Result<Frame, CaptureError> {
    let io = |source| CaptureError::Io {
        path: path.to_owned(),
        source,
    };
    let content = |message: String| CaptureError::Content {
        path: path.to_owned(),
        message,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > LARGEST_FILE {
        return Err(content(format!("{length} bytes, expected at most {LARGEST_FILE}")));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    decode(&bytes).map_err(content)
}

/// Decodes the bytes of one PNG or JPEG.
pub(super) fn decode(bytes: &[u8]) -> Result<Frame, String> {
    let format = image::guess_format(bytes).ok();
    let picture = match format {
        Some(ImageFormat::Png) => {
            // The end chunk: length 0, name, checksum. The decoder does not insist on it.
            if !bytes.windows(12).rev().any(|w| w == b"\0\0\0\0IEND\xae\x42\x60\x82") {
                return Err(format!(
                    "PNG is cut short after {} bytes; copy the file again",
                    bytes.len()
                ));
            }
            decode_upright(bytes, ImageFormat::Png)?
        }
        Some(ImageFormat::Jpeg) => {
            if !jpeg::is_complete(bytes) {
                return Err(format!(
                    "JPEG is cut short after {} bytes; copy the file again",
                    bytes.len()
                ));
            }
            decode_upright(bytes, ImageFormat::Jpeg)?
        }
        _ => {
            let start: String = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            return Err(format!("not a PNG or JPEG picture (starts with {start:?})"));
        }
    };
    let rgb = picture.into_rgb8();
    let size = FrameSize::new(rgb.width(), rgb.height()).map_err(|e| e.to_string())?;
    Ok(rgb_frame(size, rgb.into_raw()))
}

/// Most bytes of a decoded picture, before it is converted to RGB: a header alone asks for them.
pub(super) const LARGEST_DECODED: u64 = 1 << 30;

fn decode_upright(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, String> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(FrameSize::LARGEST_SIDE);
    limits.max_image_height = Some(FrameSize::LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_DECODED);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| format!("{format:?} header: {e}"))?;
    // The limits are for what decoders need beside the picture itself.
    if decoder.total_bytes() > LARGEST_DECODED {
        let (width, height) = decoder.dimensions();
        return Err(format!(
            "{format:?} of {width} × {height} needs {} bytes, expected at most {LARGEST_DECODED}; make it smaller",
            decoder.total_bytes()
        ));
    }
    let orientation = decoder
        .orientation()
        .unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture =
        DynamicImage::from_decoder(decoder).map_err(|e| format!("{format:?} is cut short or damaged: {e}"))?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// A frame of packed RGB with sequence and time zero.
pub(super) fn rgb_frame(size: FrameSize, bytes: Vec<u8>) -> Frame {
    Frame {
        size,
        format: PixelFormat::Rgb24,
        full_range: false,
        stride: 3 * size.width(),
        bytes,
        sequence: Sequence(0),
        captured: CaptureTime::default(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    /// A picture of one colour with a brighter first row, encoded.
    pub(crate) fn encoded(width: u32, height: u32, level: u8, format: ImageFormat) -> Vec<u8> {
        let mut pixels = vec![level; (3 * width * height) as usize];
        pixels[..3 * width as usize].fill(level.saturating_add(40));
        let mut out = Vec::new();
        match format {
            ImageFormat::Png => image::codecs::png::PngEncoder::new(&mut out).write_image(
                &pixels,
                width,
                height,
                ExtendedColorType::Rgb8,
            ),
            _ => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 95).write_image(
                &pixels,
                width,
                height,
                ExtendedColorType::Rgb8,
            ),
        }
        .unwrap();
        out
    }

    #[test]
    fn a_png_keeps_every_pixel_and_a_jpeg_nearly() {
        let png = decode(&encoded(33, 17, 100, ImageFormat::Png)).unwrap();
        assert_eq!(
            (png.size.width(), png.size.height(), png.bytes[0], png.bytes[3 * 33]),
            (33, 17, 140, 100)
        );
        let jpeg = decode(&encoded(33, 17, 100, ImageFormat::Jpeg)).unwrap();
        assert!(jpeg.bytes[3 * 33 * 10].abs_diff(100) < 4);
    }

    #[test]
    fn a_picture_cut_short_anywhere_is_one_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let whole = encoded(64, 48, 90, format);
            for keep in [0, 1, 7, 20, whole.len() / 2, whole.len() - 3] {
                assert!(decode(&whole[..keep]).is_err(), "{format:?} {keep} of {}", whole.len());
            }
        }
    }

    #[test]
    fn a_small_file_of_a_picture_beyond_the_limit_is_refused_by_its_header() {
        let chunk = |name: &[u8; 4], data: &[u8]| {
            let named = [&name[..], data].concat();
            let mut sum = flate2::Crc::new();
            sum.update(&named);
            let length = u32::try_from(data.len()).unwrap().to_be_bytes();
            [&length[..], &named, &sum.sum().to_be_bytes()].concat()
        };
        let side = 30_000_u32.to_be_bytes();
        let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
        let png = [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(b"IHDR", &header),
            chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]),
            chunk(b"IEND", &[]),
        ];
        let mut jpeg = encoded(64, 48, 90, ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
        for error in [
            decode(&png.concat()).unwrap_err(),
            decode(&jpeg).unwrap_err(),
            jpeg::decode(&jpeg).unwrap_err(),
        ] {
            assert!(error.contains("expected at most 1073741824"), "{error}");
        }
    }

    #[test]
    fn the_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.png");
        let whole = encoded(64, 48, 90, ImageFormat::Png);
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = read_picture(&path).unwrap_err().to_string();
        assert!(error.contains("half.png") && error.contains("cut short"), "{error}");
        assert!(
            read_picture(&dir.path().join("none.png"))
                .unwrap_err()
                .to_string()
                .contains("none.png")
        );
    }
}
