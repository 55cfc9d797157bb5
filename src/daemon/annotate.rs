//! Draws detections on a picture: translucent fill, outline, label with score.

use std::convert::Infallible;

use embedded_graphics::mono_font::iso_8859_1::{FONT_6X10, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::*;
use embedded_graphics::text::{Baseline, Text};

use crate::vision::geometry::FrameSize;
use crate::vision::mask::BinaryMask;

/// One thing to draw.
pub struct Annotation<'a> {
    /// Where it is.
    pub mask: &'a BinaryMask,
    /// Text of the label, e.g. `person 0.83`.
    pub label: String,
    /// Red, green, blue.
    pub colour: [u8; 3],
}

/// Twelve colours that stay apart from each other on most photos.
const COLOURS: [[u8; 3]; 12] = [
    [230, 25, 75],
    [0, 130, 255],
    [255, 200, 0],
    [60, 200, 75],
    [245, 130, 48],
    [170, 60, 220],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 150, 160],
    [0, 150, 140],
    [170, 110, 40],
];

/// The colour of a query: the same index always has the same one.
#[must_use]
pub fn colour(query: usize) -> [u8; 3] {
    COLOURS[query % COLOURS.len()]
}

/// Share of the colour in a filled pixel, of 256.
const FILL: u32 = 110;

/// Draws on packed RGB, `[height, width, 3]`; a shorter buffer or masks of another size are left alone.
pub fn annotate(rgb: &mut [u8], size: FrameSize, annotations: &[Annotation<'_>]) {
    if rgb.len() < 3 * size.pixels() {
        return;
    }
    let shorter = size.width().min(size.height());
    let thickness = (shorter / 240).clamp(2, 8);
    for a in annotations.iter().filter(|a| a.mask.size() == size) {
        fill(rgb, a);
        outline(rgb, a, thickness);
    }
    // Labels last: no mask hides them. Each looks for a place that no other label covers.
    let mut taken: Vec<[usize; 4]> = Vec::new();
    for a in annotations.iter().filter(|a| a.mask.size() == size) {
        label(rgb, size, a, &mut taken);
    }
}

fn fill(rgb: &mut [u8], a: &Annotation<'_>) {
    for (pixel, _) in rgb.chunks_exact_mut(3).zip(a.mask.pixels()).filter(|(_, m)| *m) {
        for (p, c) in pixel.iter_mut().zip(a.colour) {
            *p = ((u32::from(*p) * (256 - FILL) + u32::from(c) * FILL) >> 8) as u8;
        }
    }
}

/// Colours the pixels of the mask that are within `thickness` of its border, measured along rows and columns.
fn outline(rgb: &mut [u8], a: &Annotation<'_>, thickness: usize) {
    let (width, height) = (a.mask.size().width(), a.mask.size().height());
    let inside = |x: usize, y: usize, dx: isize, dy: isize| match (x.checked_add_signed(dx), y.checked_add_signed(dy)) {
        (Some(x), Some(y)) if x < width && y < height => a.mask.get(x, y),
        // The frame's edge is no border of the thing.
        _ => true,
    };
    for (i, pixel) in rgb.chunks_exact_mut(3).enumerate().take(width * height) {
        let (x, y) = (i % width, i / width);
        let border = |d: isize| {
            [(d, 0), (-d, 0), (0, d), (0, -d)]
                .iter()
                .any(|&(dx, dy)| !inside(x, y, dx, dy))
        };
        if a.mask.get(x, y) && (1..=thickness as isize).any(border) {
            pixel.copy_from_slice(&a.colour);
        }
    }
}

/// Font and integer magnification for a frame.
fn font(size: FrameSize) -> (&'static MonoFont<'static>, usize) {
    match size.width().min(size.height()) {
        0..200 => (&FONT_6X10, 1),
        shorter => (&FONT_10X20, (shorter / 500).clamp(1, 6)),
    }
}

fn label(rgb: &mut [u8], size: FrameSize, a: &Annotation<'_>, taken: &mut Vec<[usize; 4]>) {
    let Some(bounds) = a.mask.bounding_box() else { return };
    let (font, scale) = font(size);
    let (glyph_width, glyph_height) = (font.character_size.width as usize, font.character_size.height as usize);
    let margin = 2 * scale;
    let most = (size.width().saturating_sub(2 * margin) / (glyph_width * scale)).max(1);
    let text: String = a.label.chars().take(most.min(60)).collect();
    let mut bitmap = Bitmap::new(text.chars().count() * glyph_width, glyph_height);
    let style = MonoTextStyle::new(font, BinaryColor::On);
    // Drawing into a bitmap cannot fail.
    let _ = Text::with_baseline(&text, Point::zero(), style, Baseline::Top).draw(&mut bitmap);
    let (w, h) = (bitmap.width * scale + 2 * margin, bitmap.height * scale + 2 * margin);
    let x = bounds.x1.min(size.width().saturating_sub(w));
    let (low, high) = (bounds.y1, size.height().saturating_sub(h));
    // Above the thing, else inside its top, else further down.
    let places = [low.saturating_sub(h)]
        .into_iter()
        .chain((0..40).map(|i| low + i * h))
        .map(|y| y.min(high));
    let free = |y: &usize| {
        !taken
            .iter()
            .any(|t| x < t[2] && t[0] < x + w && *y < t[3] && t[1] < y + h)
    };
    let y = places.clone().find(free).unwrap_or(low.min(high));
    taken.push([x, y, x + w, y + h]);
    // Text in whichever of black and white is further from the colour.
    let [r, g, b] = a.colour.map(u32::from);
    let ink = if 299 * r + 587 * g + 114 * b > 140_000 {
        [0; 3]
    } else {
        [255; 3]
    };
    for py in y..(y + h).min(size.height()) {
        for px in x..(x + w).min(size.width()) {
            let text_at = (px.wrapping_sub(x + margin) / scale, py.wrapping_sub(y + margin) / scale);
            let colour = if px >= x + margin && py >= y + margin && bitmap.get(text_at) {
                ink
            } else {
                a.colour
            };
            rgb[3 * (py * size.width() + px)..][..3].copy_from_slice(&colour);
        }
    }
}

/// One bit per pixel, a target for embedded-graphics.
struct Bitmap {
    width: usize,
    height: usize,
    bits: Vec<bool>,
}

impl Bitmap {
    fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            bits: vec![false; width * height],
        }
    }

    fn get(&self, (x, y): (usize, usize)) -> bool {
        x < self.width && y < self.height && self.bits[y * self.width + x]
    }
}

impl OriginDimensions for Bitmap {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Bitmap {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            if let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y))
                && x < self.width
                && y < self.height
            {
                self.bits[y * self.width + x] = colour.is_on();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(width: u32, height: u32, label: &str, inside: impl Fn(usize, usize) -> bool) -> Vec<u8> {
        let size = FrameSize::new(width, height).unwrap();
        let pixels = (0..size.pixels()).map(|i| inside(i % size.width(), i / size.width()));
        let mask = BinaryMask::from_pixels(size, pixels);
        let mut rgb = vec![100; 3 * size.pixels()];
        annotate(
            &mut rgb,
            size,
            &[Annotation {
                mask: &mask,
                label: label.into(),
                colour: [230, 25, 75],
            }],
        );
        rgb
    }

    #[test]
    fn the_fill_is_translucent_and_the_outline_is_not() {
        let rgb = drawn(301, 257, "x", |x, y| (50..250).contains(&x) && (100..200).contains(&y));
        let at = |x: usize, y: usize| &rgb[3 * (y * 301 + x)..][..3];
        assert_eq!(at(20, 150), [100, 100, 100]);
        assert_eq!(at(50, 150), [230, 25, 75]);
        assert_eq!(at(51, 150), [230, 25, 75]);
        assert_eq!(at(52, 150), [155, 67, 89]);
    }

    #[test]
    fn the_label_stands_above_the_thing_and_holds_ink() {
        let rgb = drawn(301, 257, "person 0.83", |x, y| x >= 50 && y >= 100);
        let ink = rgb
            .chunks_exact(3)
            .enumerate()
            .filter(|(_, p)| *p == [255; 3])
            .map(|(i, _)| (i % 301, i / 301));
        let ink: Vec<_> = ink.collect();
        assert!(ink.len() > 200, "{}", ink.len());
        assert!(ink.iter().all(|&(x, y)| x >= 50 && (76..100).contains(&y)));
    }

    #[test]
    fn labels_never_leave_the_frame_nor_cover_each_other() {
        for (w, h) in [(1, 1), (7, 300), (640, 9), (199, 201)] {
            drawn(w, h, "a label that is much longer than the picture is wide", |_, _| {
                true
            });
        }
        let size = FrameSize::new(301, 257).unwrap();
        let mask = BinaryMask::from_pixels(size, std::iter::repeat_n(true, size.pixels()));
        let one = |colour| Annotation {
            mask: &mask,
            label: "a".into(),
            colour,
        };
        let mut rgb = vec![100; 3 * size.pixels()];
        annotate(&mut rgb, size, &[one([230, 25, 75]), one([0, 130, 255])]);
        let count = |c: [u8; 3]| rgb.chunks_exact(3).filter(|p| *p == c).count();
        assert!(count([230, 25, 75]) > 200 && count([0, 130, 255]) > 200);
    }
}
