//! PNG masks whose pixel values are indices: grey or palette, which is left unresolved.

use std::sync::Arc;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

/// Largest accepted number of pixels of a mask.
const MAX_PIXELS: u64 = 1 << 28;

/// What a collection's 256 indices mean in the class table.
#[derive(Debug, Clone)]
pub struct IndexTable(Arc<[u8; 256]>);

impl IndexTable {
    /// A table from the meaning of each index.
    #[must_use]
    pub fn new(meaning: impl Fn(u8) -> u8) -> Self {
        Self(Arc::new(std::array::from_fn(|i| meaning(i as u8))))
    }

    /// The meaning of one index.
    #[must_use]
    pub fn get(&self, index: u8) -> u8 {
        self.0[usize::from(index)]
    }
}

/// Width and height of a mask and its indices, row-major; what is wrong with it otherwise.
pub(super) fn read(bytes: &[u8]) -> Result<((usize, usize), Vec<u8>), String> {
    let limits = Limits {
        bytes: 2 * MAX_PIXELS as usize,
    };
    let mut decoder = Decoder::new_with_limits(std::io::Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    if u64::from(info.width) * u64::from(info.height) > MAX_PIXELS {
        return Err(format!("is {width}x{height}, at most {MAX_PIXELS} pixels are accepted"));
    }
    let (kind, depth) = (info.color_type, info.bit_depth);
    if !matches!(kind, ColorType::Grayscale | ColorType::Indexed) || depth == BitDepth::Sixteen {
        return Err(format!(
            "is a PNG of {kind:?} with {depth:?} bits, expected grey or palette of at most 8"
        ));
    }
    let mut rows = vec![0; reader.output_buffer_size().ok_or("is too large")?];
    reader.next_frame(&mut rows).map_err(|error| error.to_string())?;
    let bits = depth as usize;
    let mask = u8::MAX >> (8 - bits);
    let row_bytes = (width * bits).div_ceil(8);
    let indices = rows
        .chunks_exact(row_bytes.max(1))
        .take(height)
        .flat_map(|row| (0..width).map(move |x| row[x * bits / 8] >> (8 - bits - x * bits % 8) & mask));
    Ok(((width, height), indices.collect()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A palette PNG of the given bit depth.
    pub(in crate::train) fn palette_png(width: u32, height: u32, depth: BitDepth, rows: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(ColorType::Indexed);
        encoder.set_depth(depth);
        encoder.set_palette(
            (0..=255u8)
                .flat_map(|i| [255 - i, i, 7])
                .take(3 << depth as usize)
                .collect::<Vec<_>>(),
        );
        encoder.write_header().unwrap().write_image_data(rows).unwrap();
        bytes
    }

    #[test]
    fn a_palette_stays_unresolved_at_every_depth() {
        let eight = palette_png(3, 2, BitDepth::Eight, &[0, 15, 255, 1, 2, 3]);
        assert_eq!(read(&eight).unwrap(), ((3, 2), vec![0, 15, 255, 1, 2, 3]));
        let four = palette_png(3, 2, BitDepth::Four, &[0x01, 0xf0, 0x23, 0x40]);
        assert_eq!(read(&four).unwrap(), ((3, 2), vec![0, 1, 15, 2, 3, 4]));
    }

    #[test]
    fn colours_and_noise_are_refused() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&[1, 2, 3]).unwrap();
        assert!(read(&bytes).unwrap_err().contains("expected grey or palette"));
        assert!(read(b"no picture").is_err());
        let whole = palette_png(3, 2, BitDepth::Eight, &[0; 6]);
        assert!(read(&whole[..whole.len() / 2]).is_err());
    }
}
