//! The camera's picture: three columns, red, green and blue, as motion JPEG and as YUYV.

use std::collections::HashMap;
use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

const COLOURS: [[u8; 3]; 3] = [[230, 20, 20], [20, 230, 20], [20, 20, 230]];

/// Encoded pictures by size.
pub struct Pictures {
    tables: bool,
    encoded: HashMap<(bool, (u16, u16)), Vec<u8>>,
}

impl Pictures {
    /// With or without Huffman tables in the JPEGs.
    pub fn new(tables: bool) -> Self {
        Self {
            tables,
            encoded: HashMap::new(),
        }
    }

    pub fn frame(&mut self, jpeg: bool, size: (u16, u16)) -> &[u8] {
        let tables = self.tables;
        let encode = || match (jpeg, tables) {
            (false, _) => yuyv(size),
            (true, true) => self::jpeg(size),
            (true, false) => without_tables(&self::jpeg(size)),
        };
        self.encoded.entry((jpeg, size)).or_insert_with(encode)
    }
}

fn jpeg((width, height): (u16, u16)) -> Vec<u8> {
    let picture = RgbImage::from_fn(width.into(), height.into(), |x, _| {
        Rgb(COLOURS[(x * 3 / u32::from(width)) as usize])
    });
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

/// The picture as many webcams send it.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let mut bare = jpeg[..2].to_vec();
    let mut at = 2;
    while jpeg[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != 0xc4 {
            bare.extend(&jpeg[at..end]);
        }
        at = end;
    }
    bare.extend(&jpeg[at..]);
    bare
}

/// BT.601, limited range.
fn yuyv((width, height): (u16, u16)) -> Vec<u8> {
    let pair = |x: u16| {
        let [r, g, b] = COLOURS[usize::from(x) * 3 / usize::from(width)].map(f32::from);
        let luma = 16.0 + 0.257 * r + 0.504 * g + 0.098 * b;
        let blue = 128.0 - 0.148 * r - 0.291 * g + 0.439 * b;
        let red = 128.0 + 0.439 * r - 0.368 * g - 0.071 * b;
        [luma, blue, luma, red].map(|v| v.round() as u8)
    };
    let row: Vec<u8> = (0..width).step_by(2).flat_map(pair).collect();
    row.repeat(height.into())
}
